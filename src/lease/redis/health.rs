//! What servers say of themselves: markers, runs, and whether they are fit to keep leases.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use super::{
    Redis, Shard, at_once,
    script::{Call, SCRIPTS},
};
use crate::{
    election::types::millis,
    lease::{NodeError, Probe, Unmarked},
};

/// How long a look at all partitions of a server may take; what is left is looked at the next time.
const SWEEP: Duration = Duration::from_secs(2);

/// What is known of a server's markers.
#[derive(Debug, Clone, Default)]
pub(super) struct Swept {
    run: String,
    partitions: Vec<u16>,
    /// The partitions that are still to be looked at in this run.
    left: BTreeSet<u16>,
    /// Those without a marker, and the run that they are on.
    unmarked: BTreeMap<u16, String>,
    /// When the last of its partitions is ready to grant; `None` if none has a marker.
    ready_at: Option<Instant>,
    /// Which partition is looked at next, when nothing has changed.
    next: usize,
}

/// What was last heard of the node as a whole. While that cannot be asked, it counts.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// The list of nodes with which agents use it.
    nodes: Option<String>,
    /// The run of the server with the first partition: nobody else's.
    identity: Option<String>,
}

/// What a server says of one partition.
struct Looked {
    partition: u16,
    /// How long it abstains; `None` if it has no marker.
    wait: Option<Duration>,
    run: String,
    policy: String,
}

impl Swept {
    /// Takes note of a partition; what was known is forgotten if the server or its partitions have changed.
    fn note(&mut self, looked: &Looked, partitions: &[u16]) {
        if self.run != looked.run || self.partitions != partitions {
            *self = Self {
                run: looked.run.clone(),
                partitions: partitions.to_vec(),
                left: partitions.iter().copied().collect(),
                next: self.next,
                ..Self::default()
            };
        }
        self.left.remove(&looked.partition);
        match looked.wait {
            None => {
                self.unmarked.insert(looked.partition, looked.run.clone());
            }
            Some(wait) => {
                self.unmarked.remove(&looked.partition);
                if !wait.is_zero() || self.ready_at.is_none() {
                    self.ready_at = self.ready_at.max(Some(Instant::now() + wait));
                }
            }
        }
    }

    /// Has all partitions looked at the next time.
    pub(super) fn doubt(&mut self) {
        self.left = self.partitions.iter().copied().collect();
    }
}

impl Redis {
    /// Looks at every server. One with many partitions is looked at as a whole only when something has
    /// changed; else at one partition after the other, so that a cluster is not busy with being watched.
    pub(super) async fn look_after(&self) -> Result<Probe, NodeError> {
        let (shards, unserved) = self.connections.shards();
        self.swept()
            .retain(|server, _| shards.iter().any(|shard| shard.server == *server));
        let looking: Vec<_> = shards
            .iter()
            .map(|shard| self.look_at_server(shard))
            .collect();
        let (looked, registered) = tokio::join!(join_all(looking), self.register());

        let mut probe = Probe {
            guard: None,
            unmarked: Vec::new(),
            longest_guard: self.settings.guard.unwrap_or_default(),
            identity: None,
            unfit: None,
            degraded: None,
        };
        let mut errors: Vec<_> = unserved.map(NodeError::NotSent).into_iter().collect();
        let mut answers = 0;
        let mut known = self.known();
        for (shard, looked) in shards.iter().zip(looked) {
            let (swept, last) = match looked {
                Ok(looked) => looked,
                Err(error) => {
                    errors.push(error);
                    continue;
                }
            };
            answers += 1;
            let wait = swept
                .ready_at
                .map(|at| at.saturating_duration_since(Instant::now()));
            probe.guard = probe.guard.max(wait);
            probe.unmarked.extend(
                swept
                    .unmarked
                    .into_iter()
                    .map(|(partition, run)| Unmarked { partition, run }),
            );
            if !swept.left.is_empty() {
                errors.push(NodeError::NotSent(format!(
                    "{}: {} of its {} partitions have not been looked at yet",
                    shard.server,
                    swept.left.len(),
                    swept.partitions.len()
                )));
            }
            if shard.partitions.contains(&0) {
                known.identity = Some(swept.run);
            }
            let evicts = last.policy != "noeviction" && !self.usage.allow_eviction;
            if evicts && probe.unfit.is_none() {
                probe.unfit = Some(evicting(&shard.server, &last.policy));
            }
        }
        // What is compared later must not depend on who answered first.
        probe.unmarked.sort_unstable_by_key(|part| part.partition);
        match registered {
            Ok((nodes, longest_guard)) => {
                self.longest_guard.note(longest_guard);
                probe.longest_guard = probe.longest_guard.max(longest_guard);
                known.nodes = Some(nodes);
            }
            Err(error) => errors.push(error),
        }
        self.note(&known);
        if answers == 0 || (shards.len() == 1 && !errors.is_empty()) {
            let unknown = || NodeError::NotSent(format!("{}: no server is known", self.name));
            return Err(errors.into_iter().next().unwrap_or_else(unknown));
        }
        match &known.nodes {
            Some(nodes) if *nodes != self.usage.nodes => {
                probe.unfit = Some(self.other_nodes(nodes));
            }
            Some(_) => {}
            None => {
                probe.unfit = Some(format!(
                    "{}: the server of its first partition has not said yet with which list of servers \
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

    /// Looks at one partition of a server, and at those that have no marker or were not looked at in this
    /// run.
    async fn look_at_server(&self, shard: &Shard) -> Result<(Swept, Looked), NodeError> {
        let next = self.swept_at(shard, |swept| {
            swept.next = swept.next.wrapping_add(1);
            swept.next
        });
        let last = self
            .look_at(shard.partitions[next % shard.partitions.len()])
            .await?;
        let mut swept = self.swept_at(shard, |swept| {
            swept.note(&last, &shard.partitions);
            swept.clone()
        });
        if self.settings.guard.is_none() {
            // There are no markers to look for.
            swept.left.clear();
            swept.unmarked.clear();
            return Ok((swept, last));
        }
        let unmarked = swept.unmarked.keys().copied();
        let left: BTreeSet<_> = unmarked.chain(swept.left.iter().copied()).collect();
        let looking = left
            .into_iter()
            .filter(|partition| *partition != last.partition)
            .map(|partition| async move {
                let looked = self.look_at(partition).await?;
                self.swept_at(shard, |swept| swept.note(&looked, &shard.partitions));
                Ok(())
            });
        // What is cut off here is in `left`, and said.
        match timeout(SWEEP, at_once(looking.collect())).await {
            Ok(Ok(_)) | Err(_) => {}
            Ok(Err(error)) => return Err(error),
        }
        Ok((self.swept_at(shard, |swept| swept.clone()), last))
    }

    /// What is known of a server's markers, to be read or changed.
    fn swept_at<T>(&self, shard: &Shard, then: impl FnOnce(&mut Swept) -> T) -> T {
        then(self.swept().entry(shard.server.clone()).or_default())
    }

    async fn look_at(&self, partition: u16) -> Result<Looked, NodeError> {
        let keys = &self.keys[usize::from(partition)];
        let call = Call::new(&SCRIPTS.probe, [(&keys.marker).into()]).arg(self.guard_arg());
        let reply = self.reply_in_time(partition, &call).await?;
        let looked = || {
            let mut lines = reply.splitn(3, '\n');
            let (wait, run, policy) = (lines.next()?, lines.next()?, lines.next()?);
            let millis = |text: &str| text.parse().map(Duration::from_millis).ok();
            Some(Looked {
                partition,
                wait: match wait {
                    "" => None,
                    wait => Some(millis(wait)?),
                },
                run: run.to_owned(),
                policy: policy.to_owned(),
            })
        };
        looked().ok_or_else(|| self.unexpected("probe", &reply))
    }

    /// Notes how this agent uses the node, and gives the list of nodes and the longest guard that count.
    async fn register(&self) -> Result<(String, Duration), NodeError> {
        let guard = self.settings.guard.map_or(0, millis);
        let call = Call::new(&SCRIPTS.register, [(&self.keys[0].agents).into()])
            .arg(&self.usage.nodes)
            .arg(guard)
            .arg(millis(self.usage.max_term));
        let reply = self.reply_in_time(0, &call).await?;
        match reply.split_once('\n') {
            Some((longest, nodes)) if let Ok(longest) = longest.parse() => {
                Ok((nodes.to_owned(), Duration::from_millis(longest)))
            }
            _ => Err(self.unexpected("register", &reply)),
        }
    }

    pub(super) async fn write_markers(
        &self,
        unmarked: &[Unmarked],
        wait: Duration,
    ) -> Result<usize, NodeError> {
        let marking = unmarked.iter().map(|part| async move {
            let Some(keys) = self.keys.get(usize::from(part.partition)) else {
                return Ok(0);
            };
            let call = Call::new(&SCRIPTS.mark, [(&keys.marker).into()])
                .arg(millis(wait))
                .arg(&part.run);
            match &*self.reply(part.partition, &call).await? {
                "1" => Ok(1),
                "0" => Ok(0),
                reply => Err(self.unexpected("mark", reply)),
            }
        });
        Ok(at_once(marking.collect()).await?.into_iter().sum())
    }

    /// As [`LeaseNode::settled_run`](crate::lease::LeaseNode::settled_run), of a partition.
    pub(super) fn settled(&self, partition: u16, vote: Duration) -> Option<String> {
        let server = self.connections.server(partition)?;
        let swept = self.swept();
        let swept = swept.get(&server)?;
        if self.settings.guard.is_none() {
            // There are no markers, and no promises.
            return Some(swept.run.clone());
        }
        if swept.unmarked.contains_key(&partition) || swept.left.contains(&partition) {
            return None;
        }
        let left = swept.ready_at?.saturating_duration_since(Instant::now());
        let settled = left + vote <= self.longest_guard.get() || left.is_zero();
        settled.then(|| swept.run.clone())
    }

    /// As [`reply`](Redis::reply); a server that takes too long is named.
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

    fn known(&self) -> Known {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.clone()
    }

    fn note(&self, known: &Known) {
        let mut noted = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        noted.clone_from(known);
    }

    /// A grant has found a partition without a marker: the next look is at all of its server's.
    pub(super) fn doubt(&self, partition: u16) {
        if let Some(server) = self.connections.server(partition)
            && let Some(swept) = self.swept().get_mut(&server)
        {
            swept.doubt();
        }
    }

    fn swept(&self) -> MutexGuard<'_, HashMap<String, Swept>> {
        self.swept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn other_nodes(&self, nodes: &str) -> String {
        format!(
            "{}: agents use it with another list of servers, {nodes}, while this one has {}: \
             majorities of different lists need not meet; give every agent the same EA_REDIS_URLS, or \
             this one another EA_REDIS_PREFIX",
            self.name, self.usage.nodes
        )
    }
}

fn evicting(server: &str, policy: &str) -> String {
    format!(
        "{server}: its maxmemory-policy is {policy}, so it may drop the lease of a leader that has time \
         left; set it to noeviction, or EA_ALLOW_EVICTION=true if you accept two leaders"
    )
}
