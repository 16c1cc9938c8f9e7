//! What servers say of themselves: markers, runs, and whether they are fit to keep leases.

use std::{
    collections::HashMap,
    sync::{MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::time::Instant;

use super::{
    Redis, Shard, at_once,
    script::{Call, SCRIPTS},
};
use crate::{
    election::types::millis,
    lease::{NodeError, Probe, Unmarked},
};

/// What is known of a server's markers since all its partitions were looked at.
#[derive(Debug, Clone)]
pub(super) struct Swept {
    pub(super) run: String,
    partitions: Vec<u16>,
    unmarked: Vec<Unmarked>,
    /// When the last of its partitions is ready to grant; `None` if none has a marker.
    ready_at: Option<Instant>,
    /// Which partition is looked at next.
    next: usize,
}

/// What a server says of one partition.
struct Looked {
    partition: u16,
    /// How long it abstains; `None` if it has no marker.
    wait: Option<Duration>,
    run: String,
    policy: String,
}

impl Redis {
    /// Looks at every server. One with many partitions is looked at as a whole only when something has
    /// changed; else at one partition after the other, so that a cluster is not busy with being watched.
    pub(super) async fn look_after(&self) -> Result<Probe, NodeError> {
        let (shards, unserved) = self.connections.shards();
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
            probe.unmarked.extend(swept.unmarked);
            if shard.partitions.contains(&0) {
                probe.identity = Some(swept.run);
            }
            let evicts = last.policy != "noeviction" && !self.usage.allow_eviction;
            if evicts && probe.unfit.is_none() {
                probe.unfit = Some(evicting(&shard.server, &last.policy));
            }
        }
        match registered {
            Ok((nodes, longest_guard)) => {
                self.longest_guard.note(longest_guard);
                probe.longest_guard = probe.longest_guard.max(longest_guard);
                if nodes != self.usage.nodes {
                    probe.unfit = Some(self.other_nodes(&nodes));
                }
            }
            Err(error) => errors.push(error),
        }
        if answers == 0 || (shards.len() == 1 && !errors.is_empty()) {
            let unknown = || NodeError::NotSent(format!("{}: no server is known", self.name));
            return Err(errors.into_iter().next().unwrap_or_else(unknown));
        }
        errors.dedup();
        let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
        probe.degraded = (!errors.is_empty()).then(|| errors.join("; "));
        Ok(probe)
    }

    /// Looks at one partition of a server, and at all of them if that one is not as it was.
    async fn look_at_server(&self, shard: &Shard) -> Result<(Swept, Looked), NodeError> {
        let known = self.swept().get(&shard.server).cloned();
        let next = known.as_ref().map_or(0, |known| known.next);
        let partition = shard.partitions[next % shard.partitions.len()];
        let last = self.look_at(partition).await?;
        let unchanged = known.filter(|known| {
            known.run == last.run
                && known.partitions == shard.partitions
                && known.unmarked.is_empty()
                && last.wait.is_some()
        });
        let mut swept = match unchanged {
            Some(known) => known,
            None => self.sweep(shard, &last).await?,
        };
        let ready_at = last.wait.map(|wait| Instant::now() + wait);
        if last.wait.is_some_and(|wait| !wait.is_zero()) {
            swept.ready_at = swept.ready_at.max(ready_at);
        }
        swept.next = next.wrapping_add(1);
        self.swept().insert(shard.server.clone(), swept.clone());
        Ok((swept, last))
    }

    async fn sweep(&self, shard: &Shard, first: &Looked) -> Result<Swept, NodeError> {
        let others = shard
            .partitions
            .iter()
            .filter(|partition| **partition != first.partition)
            .map(|partition| self.look_at(*partition));
        let others = at_once(others.collect()).await?;
        let now = Instant::now();
        let looked = || others.iter().chain([first]);
        let mut unmarked: Vec<_> = looked()
            .filter(|looked| looked.wait.is_none())
            .map(|looked| Unmarked {
                partition: looked.partition,
                run: looked.run.clone(),
            })
            .collect();
        // What is compared later must not depend on who answered first.
        unmarked.sort_unstable_by_key(|part| part.partition);
        Ok(Swept {
            run: first.run.clone(),
            partitions: shard.partitions.clone(),
            unmarked,
            ready_at: looked()
                .filter_map(|looked| looked.wait)
                .max()
                .map(|wait| now + wait),
            next: 0,
        })
    }

    async fn look_at(&self, partition: u16) -> Result<Looked, NodeError> {
        let keys = &self.keys[usize::from(partition)];
        let call = Call::new(&SCRIPTS.probe, &[&keys.marker], &[&self.guard_arg()]);
        let reply = self.fields(partition, &call).await?;
        let looked = || {
            let [wait, run, policy] = &reply[..] else {
                return None;
            };
            let millis = |text: &str| text.parse().map(Duration::from_millis).ok();
            Some(Looked {
                partition,
                wait: match wait.as_str() {
                    "" => None,
                    wait => Some(millis(wait)?),
                },
                run: run.clone(),
                policy: policy.clone(),
            })
        };
        looked().ok_or_else(|| self.unexpected("probe", &reply))
    }

    /// Notes how this agent uses the node, and gives the list of nodes and the longest guard that count.
    async fn register(&self) -> Result<(String, Duration), NodeError> {
        let guard = self.settings.guard.map_or(0, millis);
        let call = Call::new(
            &SCRIPTS.register,
            &[&self.keys[0].agents],
            &[
                &self.usage.nodes,
                &guard.to_string(),
                &millis(self.usage.max_term).to_string(),
            ],
        );
        let reply = self.fields(0, &call).await?;
        match &reply[..] {
            [nodes, longest] if let Ok(longest) = longest.parse() => {
                Ok((nodes.clone(), Duration::from_millis(longest)))
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
            let call = Call::new(
                &SCRIPTS.mark,
                &[&keys.marker],
                &[&millis(wait).to_string(), &part.run],
            );
            let reply = self.field(part.partition, &call).await?;
            match reply.as_deref() {
                Some("1") => Ok(1),
                Some("0") => Ok(0),
                _ => Err(self.unexpected("mark", &reply)),
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
        if swept
            .unmarked
            .iter()
            .any(|part| part.partition == partition)
        {
            return None;
        }
        let left = swept.ready_at?.saturating_duration_since(Instant::now());
        let settled = left + vote <= self.longest_guard.get() || left.is_zero();
        settled.then(|| swept.run.clone())
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
