//! Health checks: the treatment of nodes that have no incarnation record, are unfit, or are the same place as another.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tracing::Instrument as _;

use super::{
    NodeStatus, Operation, Quorum,
    node::{Probed, RECORDING},
};
use crate::{
    lease::{
        NodeError,
        policy::{Electorate, Nodes},
        rules::{Rule, holds},
    },
    types::millis,
};

/// How long a node may take to probe all its partitions, or to record incarnations in them, if that is more than the
/// operation timeout.
const CHECKING_HEALTH: Duration = Duration::from_secs(3);

impl Quorum {
    /// Probes every node, and writes incarnation records to the nodes without one if it is known whether they are new.
    pub async fn status(&self) -> Vec<NodeStatus> {
        self.check_health(false).await
    }

    /// Checks the health of the nodes because a vote that began at `asked` found one without an incarnation record,
    /// unless another claim has done so since. Returns `false` when no node replies.
    pub(super) async fn check_health_for(
        self,
        asked: Instant,
        wanted: bool,
        deadline: Instant,
    ) -> bool {
        let quorum = self.clone();
        let checking_health = async move {
            let mut health_checked = quorum.inner.health_checked.lock().await;
            if health_checked.is_some_and(|at| at > asked) {
                return true;
            }
            let now = Instant::now();
            let status = quorum.check_health(wanted).await;
            if wanted {
                *health_checked = Some(now);
            }
            status.iter().any(|node| node.probe.is_ok())
        };
        let checking_health = self.inner.tasks.spawn(checking_health.in_current_span());
        // The check continues for other claims when this claim's deadline passes.
        matches!(timeout_at(deadline, checking_health).await, Ok(Ok(true)))
    }

    /// Like [`Self::status`]. When a grant is `wanted`, nodes without an incarnation record that are not known to be
    /// new count as having lost their memory.
    async fn check_health(&self, wanted: bool) -> Vec<NodeStatus> {
        let mut status = self.look().await;
        let mut new = self.inner.incarnation_records.may_be_new() && none_is_recorded(&status);
        if new {
            // Each node had no record when it was probed. By the time the last one replied, the first may have got a
            // record and voted in a quorum with the last, and the last may have forgotten that. If all nodes still have
            // no record in the same incarnations, there was an instant at which none had one.
            let again = self.look().await;
            if holds(Rule::NewNodesAreLookedAtTwice) {
                new = none_is_recorded(&again) && same_runs(&status, &again);
            }
            status = again;
        }
        let all_recorded = self.mark(&status, new, wanted).await;
        if new && holds(Rule::AllNewNodesAreRecorded) {
            // A node with a record may vote, and forget it. Then neither this node nor the others must look new.
            self.inner.incarnation_records.note();
            if !all_recorded {
                status = self.look().await;
                self.mark(&status, false, true).await;
            } else {
                for probe in status
                    .iter_mut()
                    .filter_map(|node| node.probe.as_mut().ok())
                {
                    probe.unrecorded.clear();
                    probe.guard = Some(Duration::ZERO);
                }
            }
        }
        status
    }

    /// Probes every node, and excludes those that are unfit from votes.
    ///
    /// Before an agent writes anything for the first time, it reads what others have registered on all nodes.
    async fn look(&self) -> Vec<NodeStatus> {
        let nodes = self.inner.nodes.iter();
        let first = !nodes
            .map(|node| node.probed())
            .any(|it| matches!(it, Probed::At(_)));
        if first && holds(Rule::ReadBeforeWriting) {
            self.look_once(false).await;
        }
        let mut status = self.look_once(!self.is_stopped()).await;
        self.exclude_unfit(&mut status);
        status
    }

    async fn look_once(&self, write: bool) -> Vec<NodeStatus> {
        let began = Instant::now();
        let request = self
            .inner
            .incarnation_records
            .look(write, self.old_list_is_closed());
        let bounds = self.inner.incarnation_records.longest();
        let nodes = self.inner.electorate.nodes();
        let mut round = self.round();
        round.ask_even_excluded(
            Operation::Probe,
            nodes,
            self.checking_health(),
            |_, node| Box::pin(async move { node.probe(request).await }),
        );
        let mut status: Vec<_> = self
            .inner
            .nodes
            .iter()
            .map(|node| NodeStatus {
                name: node.name().to_owned(),
                role: node.role(),
                probe: Err(NodeError::unknown("no answer")),
                latency: Duration::ZERO,
                was_full: node.was_full(),
            })
            .collect();
        while let Some((_, node, probe)) = round.next().await {
            if let Ok(probe) = &probe {
                self.inner.nodes[node].log_quarantine(probe);
            }
            status[node].probe = probe;
            status[node].latency = began.elapsed();
        }
        let incarnation_records = &self.inner.incarnation_records;
        let mut clocks = Vec::new();
        for (node, status) in self.inner.nodes.iter().zip(&status) {
            let Ok(probe) = &status.probe else {
                node.note_probe(began, false);
                continue;
            };
            incarnation_records.note_bounds(probe.longest_guard, probe.longest_vote);
            if probe.guard.is_some() {
                incarnation_records.note();
            }
            clocks.extend(probe.clock);
            if let Some(other) = &probe.other_list {
                self.stop(format!("{}: {other}", status.name));
            }
        }
        let closing = |node: &usize| {
            let probe = status[*node].probe.as_ref();
            probe.is_ok_and(|probe| probe.closing)
        };
        let closing: Nodes = self.inner.electorate.old().iter().filter(closing).collect();
        *self.closing() = closing;
        self.inner.tokens.judge(clocks);
        // Only now are the bounds known that all nodes must receive.
        if write && incarnation_records.longest() == bounds && !self.is_stopped() {
            for (node, status) in self.inner.nodes.iter().zip(&status) {
                if status.probe.is_ok() {
                    node.note_probe(began, true);
                }
            }
        }
        status
    }

    /// Whether a majority of the nodes of the old list admits no more agents with only that list.
    fn old_list_is_closed(&self) -> bool {
        let electorate = self.inner.electorate;
        let closed = Electorate::of(electorate.old()).all(*self.closing());
        electorate.is_joint() && (closed || !holds(Rule::OldListIsClosed))
    }

    fn closing(&self) -> parking_lot::MutexGuard<'_, Nodes> {
        self.inner.closing.lock()
    }

    /// Stops the use of all nodes: agents with another list of nodes are active, and majorities of two lists need not
    /// intersect.
    fn stop(&self, why: String) {
        if holds(Rule::OtherListsStopTheAgent) {
            *self.stopped() = Some((why, Instant::now()));
        }
    }

    /// Whether another list was seen so lately that a term granted under it may not be over.
    fn is_stopped(&self) -> bool {
        let mut stopped = self.stopped();
        let longest = self
            .inner
            .incarnation_records
            .longest()
            .guard
            .unwrap_or_default();
        let over = stopped
            .as_ref()
            .is_some_and(|(_, at)| at.elapsed() > longest);
        if over {
            *stopped = None;
        }
        stopped.is_some()
    }

    fn stopped(&self) -> parking_lot::MutexGuard<'_, Option<(String, Instant)>> {
        self.inner.stopped.lock()
    }

    /// Excludes unfit nodes from votes, and all but the first of several nodes that are one place. A node that does not
    /// reply keeps its state.
    fn exclude_unfit(&self, status: &mut [NodeStatus]) {
        let stopped = self.stopped().clone();
        for later in 0..status.len() {
            if let Some((why, _)) = &stopped {
                let node = &self.inner.nodes[later];
                node.exclude(Some(why.clone()));
                let error = NodeError::NotSent(why.clone());
                node.complain(&error);
                status[later].probe = Err(error);
                continue;
            }
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
                    "{}: it is the same server as {}, and would vote twice: name each server once in {}",
                    node.name(),
                    same.name,
                    self.inner.list
                )
            });
            node.exclude(probe.unfit.clone().or(same));
            if let Some(error) = node.excluded() {
                node.complain(&error);
                status[later].probe = Err(error);
            }
        }
    }

    /// Writes incarnation records to the nodes without one, if it is known whether they are new or have lost their
    /// memory. Returns whether all of them got one.
    async fn mark(&self, status: &[NodeStatus], new: bool, wanted: bool) -> bool {
        // `probes` omits the nodes that must not vote.
        let probes: Vec<_> = status.iter().map(|node| node.probe.as_ref().ok()).collect();
        let Some(wait) = self.inner.incarnation_records.wait(new, wanted) else {
            return false;
        };
        let is_unrecorded = |node: &usize| {
            probes[*node].is_some_and(|probe| {
                !probe.unrecorded.is_empty() && !self.inner.nodes[*node].is_being_recorded(probe)
            })
        };
        let unrecorded: Nodes = (0..probes.len()).filter(is_unrecorded).collect();
        let bounds = self.inner.incarnation_records.longest();
        let mut round = self.round();
        // A cluster's many partitions get records once. A partition that got none by then has to wait as if it had
        // forgotten.
        let until = Instant::now() + 5 * RECORDING.max(self.inner.limit);
        round.ask_even_excluded(Operation::Mark, unrecorded, until, |number, node| {
            let parts = probes[number].map_or_else(Vec::new, |probe| probe.unrecorded.clone());
            Box::pin(async move { node.mark(&parts, wait, bounds).await })
        });
        let mut all_recorded = true;
        while let Some((_, node, reply)) = round.next().await {
            let parts = probes[node].map_or(0, |probe| probe.unrecorded.len());
            all_recorded &= reply == Ok(parts);
            let node = self.inner.nodes[node].name();
            match reply {
                Ok(1..) if wait.is_zero() => {
                    tracing::info!(node, "a new lease node: it grants from now on");
                }
                Ok(1..) => tracing::warn!(
                    node,
                    wait_ms = millis(wait),
                    "a lease node without an incarnation record may have lost its memory: it is in quarantine"
                ),
                Ok(0) | Err(_) => {}
            }
        }
        all_recorded
    }

    /// Until when nodes may reply to a health check.
    fn checking_health(&self) -> Instant {
        Instant::now() + self.inner.limit.max(CHECKING_HEALTH)
    }
}

/// Whether all nodes reply completely, and none has an incarnation record.
fn none_is_recorded(status: &[NodeStatus]) -> bool {
    if !holds(Rule::NewOnlyIfNoneIsRecorded) {
        return true;
    }
    status.iter().all(|node| {
        let probe = node.probe.as_ref();
        probe.is_ok_and(|probe| probe.guard.is_none() && probe.degraded.is_none())
    })
}

/// Whether the nodes lack the same incarnation records in the same incarnations.
fn same_runs(first: &[NodeStatus], again: &[NodeStatus]) -> bool {
    let unrecorded = |node: &NodeStatus| Some(node.probe.as_ref().ok()?.unrecorded.clone());
    first
        .iter()
        .map(unrecorded)
        .eq(again.iter().map(unrecorded))
}
