//! One Redis Cluster: which of its members serves a partition, and how a script gets there.
//!
//! A supervisor queries all known members, once a second and when a request has failed or was redirected, for the
//! member that serves each slot. The serving primary of a partition is the one that a **majority** of the primaries has
//! named within the last [`CONFIRMED_FOR`]; without such a majority, nothing is sent. An old primary that is cut off,
//! or resumes, is therefore not used for longer than that. The guard of a promoted replica is longer by the same time.
//!
//! The redis crate's cluster client is not used, because a vote must come from a primary that is known to be one. That
//! client relies on the first member that replies and does not notice a member that has stopped. It sends the ASKING
//! command for an importing member apart from the command that needs it, and it repeats commands whose outcome is
//! unknown.
//!
//! The protocol: [Redis Cluster
//! specification](https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use crc::{CRC_16_XMODEM, Crc};
use election_core::lease::{NodeError, tally::quorum};
use futures_util::future::join_all;
use parking_lot::{Mutex, MutexGuard};
use redis::{ErrorKind, FromRedisValue, RedisError, ServerErrorKind, Value};
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    ASK_EVERY, CONFIRMED_FOR, Shard,
    index::Index,
    reach::Reach,
    script::Call,
    server::{Address, Server},
    single::{Expect, Failed, Link},
};

const CRC16: Crc<u16> = Crc::<u16>::new(&CRC_16_XMODEM);
const SLOTS: u16 = 16_384;
/// How long members may take to reply to such a query: the replies of others must not wait for a stopped member.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
/// How often a script is redirected or deferred, and the pause when it is deferred.
const REDIRECTIONS: usize = 8;
const PUT_OFF: Duration = Duration::from_millis(25);

/// The slot of a key, or of a hash tag.
fn slot(tag: &str) -> u16 {
    CRC16.checksum(tag.as_bytes()) % SLOTS
}

/// The partition of an election: its path's slot, as if that were a key without a hash tag, modulo the
/// number of partitions.
pub(super) fn partition(path: &str, partitions: u16) -> u16 {
    slot(path) % partitions
}

/// Connections to a cluster's members. A task maintains them, and ends with this value.
#[derive(Debug)]
pub(super) struct Cluster {
    shared: Arc<Shared>,
    map: watch::Receiver<Map>,
    /// Receives the partitions whose keys are moving.
    index: Arc<Index>,
    supervisor: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    /// The configured members, queried when no other is known.
    seeds: Vec<Server>,
    reach: Reach,
    links: Mutex<HashMap<Address, Arc<Link>>>,
    nudge: Notify,
}

/// The member that serves each partition.
#[derive(Debug, Clone)]
struct Map {
    owners: Vec<Option<Owner>>,
    /// The replies of the members when they do not form a majority.
    reason: String,
}

#[derive(Debug, Clone)]
struct Owner {
    address: Address,
    link: Arc<Link>,
    /// Until when the majority's report counts.
    until: Instant,
}

/// A member's view of all slots: from, to, and the member that serves them.
type View = Vec<(u16, u16, Address)>;

impl Cluster {
    /// Starts connecting to the members and querying them.
    pub(super) fn start(
        seeds: Vec<Server>,
        partitions: u16,
        index: Arc<Index>,
        reach: Reach,
    ) -> Self {
        let shared = Arc::new(Shared {
            seeds,
            reach,
            links: Mutex::default(),
            nudge: Notify::new(),
        });
        let (publish, map) = watch::channel(Map {
            owners: vec![None; usize::from(partitions)],
            reason: "no member of the cluster has answered yet".to_owned(),
        });
        let supervisor = tokio::spawn(supervise(Arc::clone(&shared), publish)).abort_handle();
        Self {
            shared,
            map,
            index,
            supervisor,
        }
    }

    /// Waits until the members were queried once, and an attempt to connect to the primaries has ended, successfully or
    /// not.
    pub(super) async fn attempted(&self) {
        let mut map = self.map.clone();
        // An error means that the supervisor is gone, so nothing is left to wait for.
        let _ = map.changed().await;
        let links: Vec<_> = self.shared.links().values().cloned().collect();
        for link in links {
            link.attempted().await;
        }
    }

    /// Returns the primaries with the partitions that they serve, and why some partitions are not served.
    pub(super) fn shards(&self) -> (Vec<Shard>, Option<String>) {
        let map = self.map.borrow();
        let now = Instant::now();
        let mut shards: BTreeMap<&Address, Vec<u16>> = BTreeMap::new();
        let mut unserved = 0;
        for (partition, owner) in (0..).zip(&map.owners) {
            match owner {
                Some(owner) if now < owner.until => {
                    shards.entry(&owner.address).or_default().push(partition);
                }
                _ => unserved += 1,
            }
        }
        let shards = shards.into_iter().map(|(address, partitions)| Shard {
            server: address.to_string(),
            partitions,
        });
        let unserved = (unserved > 0).then(|| {
            format!(
                "no server is known to serve {unserved} of {} partitions: {}",
                map.owners.len(),
                map.reason
            )
        });
        (shards.collect(), unserved)
    }

    /// The primaries with the partitions that they serve, or why some partitions are not served.
    pub(super) fn serving(&self) -> Result<Vec<(Server, Vec<u16>)>, String> {
        let (shards, unserved) = self.shards();
        if let Some(unserved) = unserved {
            return Err(unserved);
        }
        let map = self.map.borrow();
        let server = |partition: u16| {
            let owner = map.owners.get(usize::from(partition))?.as_ref()?;
            Some(owner.link.server().clone())
        };
        let serving = shards.into_iter().filter_map(|shard| {
            let first = *shard.partitions.first()?;
            Some((server(first)?, shard.partitions))
        });
        Ok(serving.collect())
    }

    /// The address of the primary that serves a partition.
    pub(super) fn server(&self, partition: u16) -> Option<String> {
        let map = self.map.borrow();
        let owner = map.owners.get(usize::from(partition))?.as_ref()?;
        Some(owner.address.to_string())
    }

    /// Runs a script on the primary that serves the partition, and follows its redirections.
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        partition: u16,
        call: &Call,
    ) -> Result<T, NodeError> {
        let (mut address, mut link) = self.owner(partition)?;
        let mut asking = false;
        for _ in 0..REDIRECTIONS {
            let answer = link
                .attempt(async |connection| match asking {
                    true => call.run_asking(connection).await,
                    false => call.run(connection).await,
                })
                .await;
            let failed = match answer {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            self.shared.nudge.notify_one();
            match &failed {
                // Redirected and deferred: the script did not run.
                Failed::Error(error) if let Some((to, asks)) = redirection(error, &address) => {
                    self.index.doubt([partition]);
                    link = self.shared.link(&to).map_err(NodeError::NotSent)?;
                    link.attempted().await;
                    (address, asking) = (to, asks);
                }
                Failed::Error(error) if put_off(error) => {
                    self.index.doubt([partition]);
                    sleep(PUT_OFF).await;
                    (address, link) = self.owner(partition)?;
                    asking = false;
                }
                _ => return Err(link.explain(failed)),
            }
        }
        Err(NodeError::NotSent(format!(
            "{address}: the cluster redirected a script {REDIRECTIONS} times: its slots are moving"
        )))
    }

    fn owner(&self, partition: u16) -> Result<(Address, Arc<Link>), NodeError> {
        let map = self.map.borrow();
        match map.owners.get(usize::from(partition)) {
            Some(Some(owner)) if Instant::now() < owner.until => {
                Ok((owner.address.clone(), Arc::clone(&owner.link)))
            }
            _ => {
                self.shared.nudge.notify_one();
                Err(NodeError::NotSent(format!(
                    "no server is known to serve partition {partition}: {}",
                    map.reason
                )))
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

/// The member to which a member redirects a script, and whether the script needs ASKING there.
fn redirection(error: &RedisError, by: &Address) -> Option<(Address, bool)> {
    let (to, _) = error.redirect_node()?;
    let asks = error.kind() == ErrorKind::Server(ServerErrorKind::Ask);
    Some((Address::parse(to, by)?, asks))
}

/// Whether some keys of the slot are still moving to another member.
fn put_off(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::TryAgain)
}

impl Shared {
    fn links(&self) -> MutexGuard<'_, HashMap<Address, Arc<Link>>> {
        self.links.lock()
    }

    /// Returns the connection to a member, creating it if there is none.
    fn link(&self, address: &Address) -> Result<Arc<Link>, String> {
        let mut links = self.links();
        if let Some(link) = links.get(address) {
            return Ok(Arc::clone(link));
        }
        let server = self.seeds[0].at(address)?;
        let link = Arc::new(Link::start(&server, Expect::Member, self.reach.clone()));
        links.insert(address.clone(), Arc::clone(&link));
        Ok(link)
    }

    /// Queries members for their views, all at once.
    async fn ask(&self, members: BTreeSet<Address>) -> Vec<(Address, Result<View, String>)> {
        let asking = members.into_iter().map(|address| async move {
            let view = match self.link(&address) {
                Ok(link) => ask_one(&link, &address).await,
                Err(error) => Err(error),
            };
            (address, view)
        });
        join_all(asking).await
    }
}

async fn ask_one(link: &Link, address: &Address) -> Result<View, String> {
    let asking = async {
        link.attempted().await;
        link.attempt(async |connection| {
            let mut question = redis::cmd("CLUSTER");
            question.arg("SLOTS").query_async(connection).await
        })
        .await
    };
    match timeout(ANSWER_WITHIN, asking).await {
        Ok(Ok(slots)) => view(slots, address)
            .ok_or_else(|| format!("{address}: its answer to CLUSTER SLOTS is not understood")),
        Ok(Err(failed)) => Err(link.explain(failed).to_string()),
        Err(_) => Err(format!("{address}: no answer within {ANSWER_WITHIN:?}")),
    }
}

/// Reads the reply to CLUSTER SLOTS: `[[from, to, [host, port, …], replica…]…]`.
fn view(slots: Vec<Vec<Value>>, asked: &Address) -> Option<View> {
    let mut view = View::new();
    for range in slots {
        let [from, to, primary, ..] = &range[..] else {
            return None;
        };
        let primary: Vec<Value> = redis::from_redis_value_ref(primary).ok()?;
        let [host, port, ..] = &primary[..] else {
            return None;
        };
        let host: Option<String> = redis::from_redis_value_ref(host).ok()?;
        let port = redis::from_redis_value_ref(port).ok()?;
        let host = match host.as_deref() {
            // The member does not know its own address: it is the one that was just used.
            None | Some("") => &asked.host,
            // The member does not know the address of that member.
            Some("?") => continue,
            Some(host) => host,
        };
        view.push((
            redis::from_redis_value_ref(from).ok()?,
            redis::from_redis_value_ref(to).ok()?,
            Address::new(host, port),
        ));
    }
    Some(view)
}

/// The member that a majority of the primaries names for each of the given slots. A member's view counts if the member
/// serves slots by its own view. The view with the most primaries determines how many there are.
fn agreed(views: &[(Address, View)], slots: &[u16]) -> Vec<Option<Address>> {
    let serving = |view: &View| -> BTreeSet<Address> {
        view.iter().map(|(_, _, server)| server.clone()).collect()
    };
    let votes: Vec<_> = views
        .iter()
        .map(|(member, view)| (member, view, serving(view)))
        .filter(|(member, _, serving)| serving.contains(member))
        .collect();
    let primaries = votes.iter().map(|(_, _, serving)| serving.len()).max();
    let majority = quorum(primaries.unwrap_or(0));
    slots
        .iter()
        .map(|slot| {
            let mut named: BTreeMap<&Address, usize> = BTreeMap::new();
            for (_, view, _) in &votes {
                let range = view
                    .iter()
                    .find(|(from, to, _)| (from..=to).contains(&slot));
                if let Some((_, _, server)) = range {
                    *named.entry(server).or_default() += 1;
                }
            }
            let mut named = named.into_iter().filter(|(_, votes)| *votes >= majority);
            match (named.next(), named.next()) {
                (Some((server, _)), None) => Some(server.clone()),
                _ => None,
            }
        })
        .collect()
}

/// Keeps the map up to date; never returns.
async fn supervise(shared: Arc<Shared>, publish: watch::Sender<Map>) {
    let slots: Vec<_> = (0..publish.borrow().owners.len())
        .map(|partition| slot(&partition.to_string()))
        .collect();
    let seeds: BTreeSet<_> = shared
        .seeds
        .iter()
        .map(|seed| seed.address().clone())
        .collect();
    let mut members = seeds.clone();
    let mut logged = String::new();
    loop {
        let asked = Instant::now();
        let mut replies = shared.ask(members.clone()).await;
        // The views of members that the first ones name count, too.
        let named: BTreeSet<_> = replies
            .iter()
            .filter_map(|(_, view)| view.as_ref().ok())
            .flatten()
            .map(|(_, _, server)| server.clone())
            .collect();
        let new: BTreeSet<_> = named.difference(&members).cloned().collect();
        replies.extend(shared.ask(new).await);

        let (mut views, mut errors) = (Vec::new(), Vec::new());
        for (member, view) in replies {
            match view {
                Ok(view) => views.push((member, view)),
                Err(error) => errors.push(error),
            }
        }
        let agreed = agreed(&views, &slots);
        let mut owners = publish.borrow().owners.clone();
        for (owner, address) in owners.iter_mut().zip(agreed) {
            let Some(address) = address else { continue };
            let Ok(link) = shared.link(&address) else {
                continue;
            };
            *owner = Some(Owner {
                address,
                link,
                until: asked + CONFIRMED_FOR,
            });
        }
        let reason = match &errors[..] {
            [] => "the cluster's primaries do not agree yet".to_owned(),
            errors => errors.join("; "),
        };
        if !errors.is_empty() && reason != logged {
            tracing::warn!(reason, "members of the cluster do not answer; asking again");
        }
        logged.clone_from(&reason);

        let used: BTreeSet<_> = owners
            .iter()
            .flatten()
            .filter(|owner| asked < owner.until)
            .map(|owner| owner.address.clone())
            .collect();
        members = &(&seeds | &named) | &used;
        shared
            .links()
            .retain(|address, _| members.contains(address));
        publish.send_modify(|map| *map = Map { owners, reason });

        tokio::select! {
            () = sleep(ASK_EVERY.0) => {}
            () = shared.nudge.notified() => {}
        }
        sleep_until(asked + ASK_EVERY.1).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(name: &str) -> Address {
        Address::new(name, 1)
    }

    fn says(member: &str, serve: &[(u16, u16, &str)]) -> (Address, View) {
        let view = serve
            .iter()
            .map(|(from, to, server)| (*from, *to, at(server)));
        (at(member), view.collect())
    }

    fn owner(views: &[(Address, View)], slot: u16) -> Option<String> {
        let owner = agreed(views, &[slot])
            .pop()
            .expect("one slot was asked for");
        owner.map(|server| server.host.to_string())
    }

    #[test]
    fn a_slot_is_served_by_whom_a_majority_of_primaries_names() {
        let all = [(0, 9, "a"), (10, 19, "b"), (20, 29, "c")];
        let new = [(0, 9, "a2"), (10, 19, "b"), (20, 29, "c")];
        let everyone = [says("a", &all), says("b", &all), says("c", &all)];
        assert_eq!(owner(&everyone, 15).as_deref(), Some("b"));
        assert_eq!(owner(&everyone, 30), None, "no primary serves it");
        assert_eq!(
            owner(&everyone[..1], 5),
            None,
            "one of three is no majority"
        );
        assert_eq!(owner(&everyone[1..], 5).as_deref(), Some("a"));
        let replicas = [says("a", &all), says("x", &all), says("y", &all)];
        assert_eq!(owner(&replicas, 5), None, "replicas have no say");
        // The old primary resumes and knows nothing of its replica's promotion.
        let promoted = [
            says("a", &all),
            says("a2", &new),
            says("b", &new),
            says("c", &new),
        ];
        assert_eq!(owner(&promoted, 5).as_deref(), Some("a2"));
        let torn = [
            says("a", &all),
            says("a2", &new),
            says("b", &new),
            says("c", &all),
        ];
        assert_eq!(owner(&torn, 5), None, "two majorities");
        assert_eq!(owner(&[says("a", &[(0, 9, "a")])], 5).as_deref(), Some("a"));
    }

    #[test]
    fn slots_and_partitions_are_those_of_the_specification() {
        // The specification's own test value of the checksum.
        assert_eq!(CRC16.checksum(b"123456789"), 0x31C3);
        assert_eq!(partition("default/e", 1), 0);
        for path in ["default/e", "k/{0}", "é/ü"] {
            assert!(partition(path, 1024) < 1024);
        }
        let used: BTreeSet<_> = (0..10_000)
            .map(|n| partition(&format!("default/e{n}"), 1024))
            .collect();
        assert_eq!(used.len(), 1024, "elections spread over all partitions");
    }
}
