//! One deployment of a primary and its replicas, which Sentinels watch and fail over.
//!
//! A task per Sentinel queries it for the primary: once a second, when the Sentinel announces a switch, and when a
//! request has failed. A director combines the replies. The primary is the server that a **majority** of all Sentinels
//! has named within the last [`CONFIRMED_FOR`]. All Sentinels are those that are configured or that any of them knows
//! of. Without such a majority, nothing is sent. An agent that is cut off with an old primary therefore stops using it,
//! and two agents do not use two primaries for longer than that time. The guard of a promoted replica is longer by the
//! same time.
//!
//! Sentinel's side of it: [Sentinel client spec](https://redis.io/docs/latest/develop/reference/sentinel-clients/).

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use election_core::lease::{NodeError, tally::quorum};
use futures_util::StreamExt as _;
use redis::{FromRedisValue, RedisError, RedisResult};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    ASK_EVERY, CONFIRMED_FOR,
    reach::{Names, Reach},
    refusal,
    script::Call,
    server::{Address, Server},
    single::{Expect, Link, denied, jittered, open},
};

/// The pause after a failure to reach a Sentinel.
const PAUSE: Duration = Duration::from_millis(500);
/// The channel on which Sentinels announce a new primary.
const SWITCHES: &str = "+switch-master";

/// The configuration of a deployment.
#[derive(Debug, Clone)]
pub struct Sentinels {
    /// The Sentinels, with the credentials that they require.
    pub sentinels: Vec<Server>,
    /// Any server with the credentials that the primary requires.
    pub access: Server,
    /// The name under which the Sentinels watch the primary.
    pub master: String,
}

/// The deployment's current primary.
#[derive(Debug)]
pub(super) struct Failover {
    state: watch::Receiver<State>,
    nudge: Arc<Notify>,
    /// The tasks end with this value.
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct State {
    primary: Option<Primary>,
    /// Why no majority names a primary.
    reason: String,
}

#[derive(Debug, Clone)]
struct Primary {
    address: Address,
    link: Arc<Link>,
    /// Until when the majority's report counts.
    until: Instant,
}

impl Failover {
    /// Starts querying.
    pub(super) fn start(watched: Sentinels, reach: Reach) -> Self {
        let nudge = Arc::new(Notify::new());
        let (said, reports) = mpsc::channel(watched.sentinels.len());
        let (publish, state) = watch::channel(State {
            primary: None,
            reason: format!("no Sentinel has named the primary {} yet", watched.master),
        });
        let mut tasks = JoinSet::new();
        for (number, sentinel) in watched.sentinels.iter().enumerate() {
            let asking = Asking {
                number,
                sentinel: sentinel.clone(),
                master: watched.master.clone(),
                limit: reach.limit,
                names: reach.names,
                nudge: Arc::clone(&nudge),
                said: said.clone(),
            };
            tasks.spawn(asking.run());
        }
        tasks.spawn(direct(watched, reach, reports, publish));
        Self {
            state,
            nudge,
            _tasks: tasks,
        }
    }

    /// Waits until the primary is known and a first attempt to connect to it has ended, or until a query of every
    /// Sentinel has failed.
    pub(super) async fn attempted(&self) {
        let mut state = self.state.clone();
        if state.changed().await.is_ok() {
            let link = state.borrow().primary.clone().map(|primary| primary.link);
            if let Some(link) = link {
                link.attempted().await;
            }
        }
    }

    /// The primary's address, if a majority of Sentinels confirms it.
    pub(super) fn primary(&self) -> Option<String> {
        let state = self.state.borrow();
        let primary = state.primary.as_ref();
        primary.map(|primary| primary.address.to_string())
    }

    /// The primary's server, or why no majority of Sentinels confirms one.
    pub(super) fn serving(&self) -> Result<Server, String> {
        let state = self.state.borrow();
        match &state.primary {
            Some(primary) if Instant::now() < primary.until => Ok(primary.link.server().clone()),
            _ => Err(state.reason.clone()),
        }
    }

    pub(super) async fn run<T: FromRedisValue>(&self, call: &Call) -> Result<T, NodeError> {
        let link = {
            let state = self.state.borrow();
            match &state.primary {
                Some(primary) if Instant::now() < primary.until => Arc::clone(&primary.link),
                _ => return Err(NodeError::NotSent(state.reason.clone())),
            }
        };
        let answer = link.run(call).await;
        if answer.is_err() {
            self.nudge.notify_waiters();
        }
        answer
    }
}

/// The reply of one Sentinel.
#[derive(Debug, Clone)]
struct Said {
    primary: Result<Named, String>,
    /// When the Sentinel was queried: its view may have changed since.
    asked: Instant,
}

/// A primary, as a Sentinel names it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    address: Address,
    /// The identity of the Sentinel: one that is configured under two names has one vote.
    id: String,
    /// How many Sentinels this one knows of, including itself.
    sentinels: usize,
}

/// Publishes the primary that a majority names, and connects to it.
async fn direct(
    watched: Sentinels,
    reach: Reach,
    mut reports: mpsc::Receiver<(usize, Said)>,
    publish: watch::Sender<State>,
) {
    let mut all: Vec<Option<Said>> = vec![None; watched.sentinels.len()];
    while let Some((number, said)) = reports.recv().await {
        all[number] = Some(said);
        let agreed = agreed(&all);
        let known = publish.borrow().primary.clone();
        let primary = match (agreed, known) {
            (Some((address, asked)), Some(known)) if known.address == address => Some(Primary {
                until: known.until.max(asked + CONFIRMED_FOR),
                ..known
            }),
            (Some((address, asked)), known) => match watched.access.at(&address) {
                Ok(server) => {
                    let was = known.map(|known| known.address.to_string());
                    tracing::info!(
                        master = watched.master,
                        primary = %address,
                        was = was.as_deref(),
                        "the Sentinels name a primary"
                    );
                    Some(Primary {
                        link: Arc::new(Link::start(&server, Expect::Primary, reach.clone())),
                        address,
                        until: asked + CONFIRMED_FOR,
                    })
                }
                Err(error) => {
                    tracing::error!(primary = %address, error, "the primary cannot be connected to");
                    known
                }
            },
            (None, known) => known,
        };
        // The first published state should not be that no Sentinel has replied yet.
        if primary.is_none() && all.iter().any(Option::is_none) {
            continue;
        }
        let reason = disagreement(&watched, &all, reach.names);
        publish.send_modify(|state| *state = State { primary, reason });
    }
}

/// The number of Sentinels that are configured, or that one of them knows of.
fn sentinels(all: &[Option<Said>]) -> usize {
    let named = all
        .iter()
        .flatten()
        .filter_map(|said| said.primary.as_ref().ok());
    named
        .map(|named| named.sentinels)
        .max()
        .unwrap_or(0)
        .max(all.len())
}

/// The primary that a majority of all Sentinels names, and when the least recent of that majority was queried.
fn agreed(all: &[Option<Said>]) -> Option<(Address, Instant)> {
    let majority = quorum(sentinels(all));
    // The last reply of each Sentinel.
    let mut last: BTreeMap<&str, (&Address, Instant)> = BTreeMap::new();
    for said in all.iter().flatten() {
        if let Ok(named) = &said.primary {
            let word = last
                .entry(&named.id)
                .or_insert((&named.address, said.asked));
            if said.asked > word.1 {
                *word = (&named.address, said.asked);
            }
        }
    }
    last.values().find_map(|(address, _)| {
        let mut asked: Vec<_> = last
            .values()
            .filter(|(other, _)| other == address)
            .map(|(_, asked)| *asked)
            .collect();
        asked.sort_unstable_by(|a, b| b.cmp(a));
        Some(((*address).clone(), *asked.get(majority - 1)?))
    })
}

/// The text for operators when no majority names a primary.
fn disagreement(watched: &Sentinels, all: &[Option<Said>], names: Names) -> String {
    let said: Vec<_> = watched
        .sentinels
        .iter()
        .zip(all)
        .filter_map(|(sentinel, said)| {
            let said = said.as_ref()?;
            let ago = said.asked.elapsed().as_secs_f64();
            Some(match &said.primary {
                Ok(named) => format!("{} named {} {ago:.1} s ago", sentinel.name(), named.address),
                Err(error) => error.clone(),
            })
        })
        .collect();
    let there_are = sentinels(all);
    let advice = match there_are > all.len() {
        true => format!(
            "; they know of {there_are} Sentinels and {} has {}: list all of them (SENTINEL RESET \
             makes them forget those that are gone)",
            names.urls,
            all.len()
        ),
        false => String::new(),
    };
    format!(
        "{} of {there_are} Sentinels have to name the same server as {} within {CONFIRMED_FOR:?}, and do not: \
         {}{advice}",
        quorum(there_are),
        watched.master,
        said.join("; ")
    )
}

/// A Sentinel's report of a primary that it watches.
fn named(primary: &HashMap<String, String>, id: &str) -> Option<Named> {
    let others: usize = primary.get("num-other-sentinels")?.parse().ok()?;
    Some(Named {
        address: Address::new(primary.get("ip")?, primary.get("port")?.parse().ok()?),
        id: id.to_owned(),
        sentinels: others + 1,
    })
}

/// Queries one Sentinel; never ends.
struct Asking {
    number: usize,
    sentinel: Server,
    master: String,
    limit: Duration,
    names: Names,
    nudge: Arc<Notify>,
    said: mpsc::Sender<(usize, Said)>,
}

impl Asking {
    async fn run(self) {
        let mut logged = None;
        loop {
            let asked = Instant::now();
            let error = match self.ask_until_it_fails(&mut logged).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => self.describe(&error),
                Err(_) => format!(
                    "{}: no answer within {:?}",
                    self.sentinel.name(),
                    self.limit
                ),
            };
            self.say(&mut logged, asked, Err(error)).await;
            sleep(jittered(PAUSE)).await;
        }
    }

    /// Returns `Ok(Ok(()))` when the receiver is gone.
    async fn ask_until_it_fails(
        &self,
        logged: &mut Option<String>,
    ) -> Result<RedisResult<()>, tokio::time::error::Elapsed> {
        let connecting = async {
            let began = Instant::now();
            let connected = async {
                let connection = open(&self.sentinel, self.limit).await?;
                let mut switches = self.sentinel.client().get_async_pubsub().await?;
                switches.subscribe(SWITCHES).await?;
                Ok((connection, switches))
            };
            match connected.await {
                Err(error) => {
                    Err(refusal::explained(&self.sentinel, began, self.limit, error).await)
                }
                connected => connected,
            }
        };
        let (mut connection, mut switches) = match timeout(self.limit, connecting).await? {
            Ok(connected) => connected,
            Err(error) => return Ok(Err(error)),
        };
        let asking = redis::cmd("SENTINEL").arg("MYID").to_owned();
        let id: String = match timeout(self.limit, asking.query_async(&mut connection)).await? {
            Ok(id) => id,
            Err(error) => return Ok(Err(error)),
        };
        let mut announced = switches.on_message();
        loop {
            let asked = Instant::now();
            let mut question = redis::cmd("SENTINEL");
            question.arg("MASTER").arg(&self.master);
            let asking = question.query_async::<HashMap<String, String>>(&mut connection);
            let primary = match timeout(self.limit, asking).await? {
                Ok(primary) => named(&primary, &id).ok_or_else(|| {
                    format!(
                        "{}: its answer to SENTINEL MASTER is not understood",
                        self.sentinel.name()
                    )
                }),
                Err(error) if error.to_string().contains("No such master") => Err(format!(
                    "{}: it watches no primary called {}: set {} to a name that it knows \
                     (SENTINEL MASTERS lists them)",
                    self.sentinel.name(),
                    self.master,
                    self.names.master
                )),
                Err(error) => return Ok(Err(error)),
            };
            if !self.say(logged, asked, primary).await {
                return Ok(Ok(()));
            }
            tokio::select! {
                () = sleep(ASK_EVERY.0) => {}
                () = self.nudge.notified() => {}
                announcement = announced.next() => match announcement {
                    // The other Sentinels should soon know, too.
                    Some(_) => self.nudge.notify_waiters(),
                    None => return Ok(Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into())),
                },
            }
            sleep_until(asked + ASK_EVERY.1).await;
        }
    }

    /// Reports to the director, and logs what is new. Returns `false` when the receiver is gone.
    async fn say(
        &self,
        logged: &mut Option<String>,
        asked: Instant,
        primary: Result<Named, String>,
    ) -> bool {
        let error = primary.as_ref().err().cloned();
        if let Some(error) = error
            .as_ref()
            .filter(|error| logged.as_ref() != Some(error))
        {
            tracing::warn!(error, "a Sentinel does not name the primary; asking again");
        }
        *logged = error;
        let said = Said { primary, asked };
        self.said.send((self.number, said)).await.is_ok()
    }

    fn describe(&self, error: &RedisError) -> String {
        let names = self.names;
        let advice = match error {
            error if denied(error) => {
                let (user, password) = (names.sentinel_username, names.sentinel_password);
                format!(": check {user} and {password}")
            }
            error if error.to_string().contains("unknown command") => format!(
                ": it is no Sentinel: give the Sentinels in {}, or {}=single",
                names.urls, names.mode
            ),
            _ => String::new(),
        };
        format!("{}: {error}{advice}", self.sentinel.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The replies of Sentinels, each by its place in the list.
    fn said(answers: &[Option<(&str, u64)>], now: Instant) -> Vec<Option<Said>> {
        answers
            .iter()
            .enumerate()
            .map(|(number, answer)| {
                answer.map(|(host, ago)| Said {
                    primary: match host {
                        "" => Err("down".to_owned()),
                        host => Ok(Named {
                            address: Address::new(host, 1),
                            id: number.to_string(),
                            sentinels: 1,
                        }),
                    },
                    asked: now - Duration::from_secs(ago),
                })
            })
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_primary_is_whom_a_majority_of_all_sentinels_names() {
        tokio::time::advance(Duration::from_secs(60)).await;
        let now = Instant::now();
        let agreed = |answers: &[_]| {
            agreed(&said(answers, now))
                .map(|(address, asked)| (address.host.to_string(), (now - asked).as_secs()))
        };
        let a = |ago| Some(("a", ago));
        let b = |ago| Some(("b", ago));
        assert_eq!(agreed(&[a(0)]), Some(("a".to_owned(), 0)));
        assert_eq!(agreed(&[a(0), None, None]), None);
        assert_eq!(agreed(&[a(0), b(0), Some(("", 0))]), None);
        assert_eq!(agreed(&[b(0), a(1), a(2)]), Some(("a".to_owned(), 2)));
        assert_eq!(agreed(&[a(3), a(1), a(2)]), Some(("a".to_owned(), 2)));
        assert_eq!(agreed(&[a(0), a(0), None, None]), None);
    }

    #[tokio::test(start_paused = true)]
    async fn sentinels_that_are_not_listed_count_and_one_under_two_names_counts_once() {
        let now = Instant::now();
        let says = |id: &str, sentinels| {
            let named = Named {
                address: Address::new("a", 1),
                id: id.to_owned(),
                sentinels,
            };
            let asked = now;
            Some(Said {
                primary: Ok(named),
                asked,
            })
        };
        assert!(agreed(&[says("x", 1)]).is_some());
        assert_eq!(agreed(&[says("x", 3)]), None, "one of three is listed");
        assert!(agreed(&[says("x", 3), says("y", 3)]).is_some());
        assert_eq!(agreed(&[says("x", 3), says("x", 3)]), None);
    }
}
