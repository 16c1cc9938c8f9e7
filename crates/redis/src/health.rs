//! Health checks of servers: incarnation records, incarnations, and whether a server is fit to keep leases.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::atomic::Ordering,
    time::Duration,
};

use election_core::{
    lease::{Bounds, Incarnation, Memory, NodeError, Probe, ProbeRequest, Registered, Unrecorded},
    types::millis,
};
use futures_util::future::join_all;
use parking_lot::MutexGuard;
use tokio::time::{Instant, timeout};

use super::{
    Names, OrEmpty, Redis, Shard, at_once,
    script::{Call, SCRIPTS},
};

/// How long a check of all partitions of a server may take; the next check covers the rest.
const SWEEP: Duration = Duration::from_secs(2);

/// What is known of a server's incarnation records.
#[derive(Debug, Clone, Default)]
pub(super) struct Swept {
    incarnation: String,
    /// When this incarnation first replied.
    seen: Option<Instant>,
    partitions: Vec<u16>,
    /// The partitions of this incarnation that have not been checked yet.
    left: BTreeSet<u16>,
    /// The partitions without an incarnation record, and their incarnations.
    unrecorded: BTreeMap<u16, String>,
    /// When the last of the server's partitions is ready to grant; `None` if none has an incarnation record.
    ready_at: Option<Instant>,
    /// The next partition to check when nothing has changed.
    next: usize,
}

/// The last report of the node as a whole. It counts while the node cannot be reached.
#[derive(Debug, Clone, Default)]
pub(super) struct LastReport {
    /// The list of nodes with which agents use the node.
    lists: Option<Lists>,
    /// The incarnation of the server with the first partition, which no other server shares.
    identity: Option<String>,
}

/// The lists of nodes with which agents use a node.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Lists {
    /// This agent's list, or one that is compatible with it.
    Same {
        /// Whether the node admits no more agents that have only the old list, from which agents move to another.
        closing: bool,
    },
    Other(String),
}

/// A server's report of one partition.
struct Probed {
    guard: Registered,
    vote: Registered,
    /// Its clock, in ms since the epoch.
    clock: i64,
    partition: u16,
    /// How long the server is in quarantine; `None` if it has no incarnation record.
    wait: Option<Duration>,
    incarnation: String,
    /// The commands for which the agent's user lacks permission.
    lacks: String,
    policy: String,
    /// The memory that counts against the limit, and the limit (0: none), in bytes.
    memory: (u64, u64),
}

impl Swept {
    /// Notes the report of a partition. Forgets what was known if the server or its partitions have changed. Returns
    /// the partitions that have another server now, or one that may have forgotten.
    fn note(&mut self, probed: &Probed, partitions: &[u16]) -> Vec<u16> {
        let mut changed = Vec::new();
        if self.incarnation != probed.incarnation || self.partitions != partitions {
            changed = partitions.to_vec();
            if self.incarnation == probed.incarnation {
                let known: BTreeSet<_> = self.partitions.iter().collect();
                changed.retain(|partition| !known.contains(partition));
            }
            *self = Self {
                incarnation: probed.incarnation.clone(),
                seen: Some(Instant::now()),
                partitions: partitions.to_vec(),
                left: partitions.iter().copied().collect(),
                next: self.next,
                ..Self::default()
            };
        }
        self.left.remove(&probed.partition);
        match probed.wait {
            None => {
                self.unrecorded
                    .insert(probed.partition, probed.incarnation.clone());
            }
            Some(wait) => {
                self.unrecorded.remove(&probed.partition);
                if !wait.is_zero() || self.ready_at.is_none() {
                    self.ready_at = self.ready_at.max(Some(Instant::now() + wait));
                }
            }
        }
        changed
    }

    /// Makes the next check cover all partitions.
    pub(super) fn doubt(&mut self) {
        self.left = self.partitions.iter().copied().collect();
    }
}

impl Redis {
    /// Checks every server. A check covers all partitions of a server only when something has changed. Otherwise each
    /// check covers the next partition, so that health checks do not load a cluster.
    pub(super) async fn check_health(&self, request: ProbeRequest) -> Result<Probe, NodeError> {
        let (shards, unserved) = self.connections.shards();
        self.swept()
            .retain(|server, _| shards.iter().any(|shard| shard.server == *server));
        let probing: Vec<_> = shards
            .iter()
            .map(|shard| self.probe_server(shard, request))
            .collect();
        let (probed, registered, ()) =
            tokio::join!(join_all(probing), self.register(request), self.keep_index());

        let mut probe = Probe::default();
        let mut errors: Vec<_> = unserved.map(NodeError::NotSent).into_iter().collect();
        let mut answers = 0;
        let mut known = self.known();
        for (shard, probed) in shards.iter().zip(probed) {
            let (swept, last) = match probed {
                Ok(probed) => probed,
                Err(error) => {
                    errors.push(error);
                    continue;
                }
            };
            answers += 1;
            probe.longest_guard = longest(probe.longest_guard, last.guard);
            probe.longest_vote = longest(probe.longest_vote, last.vote);
            probe.clock = u64::try_from(last.clock).ok();
            let wait = swept
                .ready_at
                .map(|at| at.saturating_duration_since(Instant::now()));
            probe.guard = probe.guard.max(wait);
            probe.unrecorded.extend(swept.unrecorded.into_iter().map(
                |(partition, incarnation)| Unrecorded {
                    partition,
                    incarnation,
                },
            ));
            if !swept.left.is_empty() {
                errors.push(NodeError::NotSent(format!(
                    "{}: {} of its {} partitions have not been checked yet",
                    shard.server,
                    swept.left.len(),
                    swept.partitions.len()
                )));
            }
            if shard.partitions.contains(&0) {
                known.identity = Some(swept.incarnation);
            }
            let memory = Memory {
                server: shard.server.clone(),
                used: last.memory.0,
                max: last.memory.1,
            };
            probe.memory = probe
                .memory
                .into_iter()
                .chain([memory])
                .max_by(|one, other| by_share(one).total_cmp(&by_share(other)));
            let evicts = last.policy != "noeviction" && !self.usage.allow_eviction;
            if !last.lacks.is_empty() && probe.unfit.is_none() {
                probe.unfit = Some(lacking(&shard.server, &last.lacks, self.usage.names));
            }
            if evicts && probe.unfit.is_none() {
                probe.unfit = Some(evicting(&shard.server, &last.policy, self.usage.names));
            }
        }
        // The result, which is compared later, must not depend on the order of the replies.
        probe.unrecorded.sort_unstable_by_key(|part| part.partition);
        match registered {
            Ok(lists) => known.lists = Some(lists),
            Err(error) => errors.push(error),
        }
        self.note(&known);
        if answers == 0 || (shards.len() == 1 && !errors.is_empty()) {
            if let Some(unfit) = probe.unfit {
                return Err(NodeError::NotSent(unfit));
            }
            let unknown = || NodeError::NotSent(format!("{}: no server is known", self.name));
            return Err(errors.into_iter().next().unwrap_or_else(unknown));
        }
        match &known.lists {
            Some(Lists::Other(list)) => probe.other_list = Some(self.other_nodes(list)),
            Some(Lists::Same { closing }) => probe.closing = *closing,
            None => {
                probe.unfit = Some(format!(
                    "{}: the server of its first partition has not reported yet with which list of servers \
                     other agents use it",
                    self.name
                ));
            }
        }
        probe.identity = known.identity;
        errors.dedup();
        let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
        probe.degraded = (!errors.is_empty()).then(|| errors.join("; "));
        Ok(probe)
    }

    /// Checks one partition of a server, and those that have no incarnation record or were not checked in this
    /// incarnation.
    async fn probe_server(
        &self,
        shard: &Shard,
        request: ProbeRequest,
    ) -> Result<(Swept, Probed), NodeError> {
        let next = self.swept_at(shard, |swept| {
            swept.next = swept.next.wrapping_add(1);
            swept.next
        });
        let asked = Instant::now();
        let last = self
            .probe_partition(
                shard.partitions[next % shard.partitions.len()],
                request,
                true,
            )
            .await?;
        // Counted from before the call: an instant converted to the server's clock may be a little late, never early.
        let ours = asked.saturating_duration_since(self.started).as_millis();
        let ahead = last.clock - i64::try_from(ours).unwrap_or_default();
        for partition in &shard.partitions {
            self.clocks[usize::from(*partition)].store(ahead, Ordering::Relaxed);
        }
        let (changed, mut swept) = self.swept_at(shard, |swept| {
            let changed = swept.note(&last, &shard.partitions);
            (changed, swept.clone())
        });
        self.index.doubt(changed);
        if self.settings.guard.is_none() {
            // There are no incarnation records to check.
            swept.left.clear();
            swept.unrecorded.clear();
            return Ok((swept, last));
        }
        if !request.write {
            // A later check, which may write records, covers each partition.
            return Ok((swept, last));
        }
        let unrecorded = swept.unrecorded.keys().copied();
        let left: BTreeSet<_> = unrecorded.chain(swept.left.iter().copied()).collect();
        let probing = left
            .into_iter()
            .filter(|partition| *partition != last.partition)
            .map(|partition| async move {
                let probed = self.probe_partition(partition, request, false).await?;
                let changed = self.swept_at(shard, |swept| swept.note(&probed, &shard.partitions));
                self.index.doubt(changed);
                Ok(())
            });
        // Partitions that the timeout cuts off stay in `left`, and the probe reports them.
        match timeout(SWEEP, at_once(probing.collect())).await {
            Ok(Ok(_)) | Err(_) => {}
            Ok(Err(error)) => return Err(error),
        }
        Ok((self.swept_at(shard, |swept| swept.clone()), last))
    }

    /// Accesses what is known of a server's incarnation records, to read or change it.
    fn swept_at<T>(&self, shard: &Shard, then: impl FnOnce(&mut Swept) -> T) -> T {
        then(self.swept().entry(shard.server.clone()).or_default())
    }

    async fn probe_partition(
        &self,
        partition: u16,
        request: ProbeRequest,
        rights: bool,
    ) -> Result<Probed, NodeError> {
        let keys = &self.keys[usize::from(partition)];
        let call = Call::new(&SCRIPTS.probe, [(&keys.incarnation_record).into()])
            .arg(OrEmpty(request.own.guard.map(millis)))
            .arg(millis(request.own.vote))
            .arg(millis(request.guard.bound))
            .arg(millis(request.guard.age))
            .arg(millis(request.vote.bound))
            .arg(millis(request.vote.age))
            .arg(if request.write { "1" } else { "0" })
            .arg(if rights { "1" } else { "0" });
        let reply = self.reply_in_time(partition, &call).await?;
        let probed = || {
            let mut lines = reply.splitn(11, '\n');
            let mut line = || lines.next();
            let (wait, incarnation, clock) = (line()?, line()?, line()?);
            let (guard, guard_age, vote, vote_age) = (line()?, line()?, line()?, line()?);
            let (lacks, policy, used, max) = (line()?, line()?, line()?, line()?);
            let millis = |text: &str| text.parse().map(Duration::from_millis).ok();
            Some(Probed {
                partition,
                wait: match wait {
                    "" => None,
                    wait => Some(millis(wait)?),
                },
                incarnation: incarnation.to_owned(),
                clock: clock.parse().ok()?,
                guard: Registered {
                    bound: millis(guard)?,
                    age: millis(guard_age)?,
                },
                vote: Registered {
                    bound: millis(vote)?,
                    age: millis(vote_age)?,
                },
                lacks: lacks.to_owned(),
                policy: policy.to_owned(),
                memory: (used.parse().ok()?, max.parse().ok()?),
            })
        };
        probed().ok_or_else(|| self.unexpected("probe", &reply))
    }

    /// Registers the list of nodes with which this agent uses the node, unless incompatible lists are registered.
    async fn register(&self, request: ProbeRequest) -> Result<Lists, NodeError> {
        let keys = &self.keys[0];
        let of_lists = [
            (&keys.lists).into(),
            (&keys.agents).into(),
            (&keys.incarnation_record).into(),
        ];
        let call = Call::new(&SCRIPTS.register, of_lists)
            .arg(&self.usage.nodes)
            .arg(
                request
                    .own
                    .guard
                    .map_or(0, millis)
                    .max(millis(request.guard.bound)),
            )
            .arg(if request.write { "1" } else { "0" })
            .arg(if request.closed { "1" } else { "0" });
        let reply = self.reply_in_time(0, &call).await?;
        match reply.split_once('\n') {
            Some(("other", list)) => Ok(Lists::Other(list.to_owned())),
            None if reply == "ok" => Ok(Lists::Same { closing: false }),
            None if reply == "closing" => Ok(Lists::Same { closing: true }),
            _ => Err(self.unexpected("register", &reply)),
        }
    }

    pub(super) async fn write_incarnation_records(
        &self,
        unrecorded: &[Unrecorded],
        wait: Duration,
        bounds: Bounds,
    ) -> Result<usize, NodeError> {
        let marking = unrecorded.iter().map(|part| async move {
            let Some(keys) = self.keys.get(usize::from(part.partition)) else {
                return Ok(0);
            };
            let call = Call::new(&SCRIPTS.mark, [(&keys.incarnation_record).into()])
                .arg(millis(wait))
                .arg(&part.incarnation)
                .arg(bounds.guard.map_or(0, millis))
                .arg(millis(bounds.vote));
            match &*self.reply(part.partition, &call).await? {
                "1" => {
                    self.marked(part.partition, wait);
                    Ok(1)
                }
                "0" => Ok(0),
                reply => Err(self.unexpected("mark", reply)),
            }
        });
        Ok(at_once(marking.collect()).await?.into_iter().sum())
    }

    /// Notes that a partition has an incarnation record now, so that it needs no further check for one.
    fn marked(&self, partition: u16, wait: Duration) {
        if let Some(server) = self.connections.server(partition)
            && let Some(swept) = self.swept().get_mut(&server)
        {
            swept.unrecorded.remove(&partition);
            swept.ready_at = swept.ready_at.max(Some(Instant::now() + wait));
        }
    }

    /// See [`LeaseNode::incarnation`](election_core::lease::LeaseNode::incarnation); for one partition.
    pub(super) fn incarnation_of(&self, partition: u16) -> Option<Incarnation> {
        let server = self.connections.server(partition)?;
        let swept = self.swept();
        let swept = swept.get(&server)?;
        if swept.unrecorded.contains_key(&partition) || swept.left.contains(&partition) {
            return None;
        }
        Some(Incarnation {
            id: swept.incarnation.clone(),
            seen: swept.seen?,
        })
    }

    /// Like [`reply`](Redis::reply), with an error that names a server that takes too long.
    async fn reply_in_time(&self, partition: u16, call: &Call) -> Result<String, NodeError> {
        let Ok(reply) = timeout(self.limit, self.reply(partition, call)).await else {
            let server = self.connections.server(partition);
            return Err(NodeError::unknown(format!(
                "{}: no answer within {:?}",
                server.as_deref().unwrap_or(&self.name),
                self.limit
            )));
        };
        reply
    }

    fn known(&self) -> LastReport {
        let known = self.known.lock();
        known.clone()
    }

    fn note(&self, known: &LastReport) {
        let mut noted = self.known.lock();
        noted.clone_from(known);
    }

    /// Notes that a grant found a partition without an incarnation record: the next check covers all of its server's
    /// partitions.
    pub(super) fn doubt(&self, partition: u16) {
        if let Some(server) = self.connections.server(partition)
            && let Some(swept) = self.swept().get_mut(&server)
        {
            swept.doubt();
        }
    }

    fn swept(&self) -> MutexGuard<'_, HashMap<String, Swept>> {
        self.swept.lock()
    }

    fn other_nodes(&self, nodes: &str) -> String {
        let Names { urls, prefix, .. } = self.usage.names;
        format!(
            "{}: agents use it with another list of servers, {nodes}, while this one has {}: \
             majorities of different lists need not intersect; give every agent the same {urls}, or \
             this one another {prefix}",
            self.name, self.usage.nodes
        )
    }
}

/// Orders servers by how full they are, those without a limit first.
fn by_share(memory: &Memory) -> f64 {
    memory.share().unwrap_or(-1.0)
}

/// The longer of two bounds; of equal ones, the one with the later registration.
fn longest(one: Registered, other: Registered) -> Registered {
    match (one.bound, other.age) < (other.bound, one.age) {
        true => other,
        false => one,
    }
}

fn lacking(server: &str, commands: &str, names: Names) -> String {
    let rights: Vec<_> = commands
        .split(' ')
        .map(|command| format!("+{}", command.to_lowercase()))
        .collect();
    format!(
        "{server}: the agent's user lacks the right to {commands} on keys that begin with {}: a lease could \
         be left that never lapses; give it with ACL SETUSER: {}",
        names.prefix,
        rights.join(" ")
    )
}

fn evicting(server: &str, policy: &str, names: Names) -> String {
    format!(
        "{server}: its maxmemory-policy is {policy}, so it may drop the lease of a leader that has time \
         left; set it to noeviction, or {}=true if you accept two leaders",
        names.allow_eviction
    )
}
