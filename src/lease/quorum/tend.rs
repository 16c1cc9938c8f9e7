//! What is done about nodes that have no marker, are not fit, or are the same as another.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::{NodeStatus, Operation, Quorum};
use crate::{lease::NodeError, telemetry::trace};

/// How long a node may take to look at all its partitions, or to mark them, if that is more than the
/// operation timeout.
const TENDING: Duration = Duration::from_secs(3);

impl Quorum {
    /// Asks every node how it does, and marks those without a marker if it is known what they are.
    pub async fn status(&self) -> Vec<NodeStatus> {
        self.tend(false).await
    }

    /// Tends the nodes because a vote that began at `asked` found one without a marker, unless another claim
    /// has done so since; `false` when no node answers.
    pub(super) async fn tend_for_grant(&self, asked: Instant, deadline: Instant) -> bool {
        let quorum = self.clone();
        let tending = self.inner.tasks.spawn(trace::carry(async move {
            let mut tended = quorum.inner.tended.lock().await;
            if tended.is_some_and(|at| at > asked) {
                return true;
            }
            let now = Instant::now();
            let status = quorum.tend(true).await;
            *tended = Some(now);
            status.iter().any(|node| node.probe.is_ok())
        }));
        // It goes on for others when this one's time is over.
        matches!(timeout_at(deadline, tending).await, Ok(Ok(true)))
    }

    /// As [`Self::status`]; when a grant is `wanted`, nodes without a marker are taken for what they must
    /// be at the worst.
    async fn tend(&self, wanted: bool) -> Vec<NodeStatus> {
        let mut status = self.look().await;
        let mut new = self.inner.markers.may_be_new() && none_is_marked(&status);
        if new {
            // Each had no marker when it was asked, but by the time the last one answered, the first may
            // have been marked, voted in a quorum with the last, and that forgotten it. If all still have
            // none in the same runs, there was an instant at which none had one.
            let again = self.look().await;
            new = none_is_marked(&again) && same_runs(&status, &again);
            status = again;
        }
        let all_marked = self.mark(&status, new, wanted).await;
        if new && !all_marked {
            // One that has been marked may vote, and forget it: then the others must not look new.
            self.inner.markers.note();
            status = self.look().await;
            self.mark(&status, false, true).await;
        }
        status
    }

    /// Asks every node how it does, and lets those that are not fit no longer vote.
    async fn look(&self) -> Vec<NodeStatus> {
        let all = 0..self.inner.nodes.len();
        let mut round = self.ask_even_excluded(
            Operation::Probe,
            all,
            self.tending(),
            |_, node| async move { node.probe().await },
        );
        let mut status: Vec<_> = self
            .inner
            .nodes
            .iter()
            .map(|node| NodeStatus {
                name: node.name().to_owned(),
                probe: Err(NodeError::unknown("no answer")),
            })
            .collect();
        while let Some((node, probe)) = round.next().await {
            if let Ok(probe) = &probe {
                self.inner.nodes[node].tell_guard(probe);
            }
            status[node].probe = probe;
        }
        let probes = || status.iter().filter_map(|node| node.probe.as_ref().ok());
        if let Some(longest) = probes().map(|probe| probe.longest_guard).max() {
            self.inner.markers.note_guard(longest);
        }
        if probes().any(|probe| probe.guard.is_some()) {
            self.inner.markers.note();
        }
        self.exclude_unfit(&mut status);
        status
    }

    /// Lets nodes that are unfit not vote, and of nodes that are one place only the first; one that gives
    /// no answer is what it was.
    fn exclude_unfit(&self, status: &mut [NodeStatus]) {
        for later in 0..status.len() {
            let Ok(probe) = &status[later].probe else {
                continue;
            };
            let same = status[..later].iter().find(|earlier| {
                let earlier = earlier.probe.as_ref().ok();
                probe.identity.is_some()
                    && earlier.is_some_and(|earlier| earlier.identity == probe.identity)
            });
            let node = &self.inner.nodes[later];
            let same = same.map(|same| {
                format!(
                    "{}: it is the same server as {}, and would vote twice: name each server once in \
                     EA_REDIS_URLS",
                    node.name(),
                    same.name
                )
            });
            node.exclude(probe.unfit.clone().or(same));
            if let Some(error) = node.excluded() {
                node.complain(&error);
                status[later].probe = Err(error);
            }
        }
    }

    /// Marks the nodes that have no marker, if it is known whether they are new or have lost their memory;
    /// tells whether all of those were.
    async fn mark(&self, status: &[NodeStatus], new: bool, wanted: bool) -> bool {
        // Nodes that must not vote are not among them.
        let probes: Vec<_> = status.iter().map(|node| node.probe.as_ref().ok()).collect();
        let Some(wait) = self.inner.markers.wait(new, wanted) else {
            return false;
        };
        let unmarked: Vec<_> = (0..probes.len())
            .filter(|node| {
                probes[*node].is_some_and(|probe| {
                    !probe.unmarked.is_empty() && !self.inner.nodes[*node].is_being_marked(probe)
                })
            })
            .collect();
        let mut round =
            self.ask_even_excluded(Operation::Mark, unmarked, self.tending(), |number, node| {
                let parts = probes[number].map_or_else(Vec::new, |probe| probe.unmarked.clone());
                async move { node.mark(&parts, wait).await }
            });
        let mut all_marked = true;
        while let Some((node, reply)) = round.next().await {
            let parts = probes[node].map_or(0, |probe| probe.unmarked.len());
            all_marked &= reply == Ok(parts);
            let node = self.inner.nodes[node].name();
            match reply {
                Ok(1..) if wait.is_zero() => {
                    tracing::info!(node, "a new lease node: it grants from now on");
                }
                Ok(1..) => tracing::warn!(
                    node,
                    wait_ms = wait.as_millis(),
                    "a lease node without a marker may have lost its memory: it abstains from grants"
                ),
                Ok(0) | Err(_) => {}
            }
        }
        all_marked
    }

    /// Until when nodes that are tended may take to answer.
    fn tending(&self) -> Instant {
        Instant::now() + self.inner.limit.max(TENDING)
    }
}

/// Whether all nodes answer wholly, and none has a marker.
fn none_is_marked(status: &[NodeStatus]) -> bool {
    status.iter().all(|node| {
        let probe = node.probe.as_ref();
        probe.is_ok_and(|probe| probe.guard.is_none() && probe.degraded.is_none())
    })
}

/// Whether the nodes lack the same markers in the same runs.
fn same_runs(first: &[NodeStatus], again: &[NodeStatus]) -> bool {
    let unmarked = |node: &NodeStatus| Some(node.probe.as_ref().ok()?.unmarked.clone());
    first.iter().map(unmarked).eq(again.iter().map(unmarked))
}
