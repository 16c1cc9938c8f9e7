//! Extensions, and the healing of nodes that lack the lease which a quorum has.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Error, Operation, Quorum, too_slow};
use crate::{
    lease::{
        Extend, ExtendReply, Heal,
        tally::{Denial, Done, Extensions, Verdict, quorum},
    },
    telemetry::trace,
};

impl Quorum {
    /// Extends a leader's term; `Ok(Err(_))` says why not.
    ///
    /// # Errors
    /// [`Error`]: not known; the term may or may not have been extended.
    pub async fn extend(
        &self,
        extend: Extend,
        deadline: Instant,
    ) -> Result<Result<(), Denial>, Error> {
        let started = Instant::now();
        let extend = Arc::new(extend);
        let nodes = self.inner.nodes.len();
        let mut tally = Extensions::new(nodes);
        let mut replies = vec![None; nodes];
        let mut round = self.ask(Operation::Extend, deadline, |_, node| {
            let extend = Arc::clone(&extend);
            async move { node.extend(&extend).await }
        });
        let verdict = loop {
            let verdict = tally.verdict();
            if verdict != Verdict::Open {
                break verdict;
            }
            let Some((node, reply)) = round.next().await else {
                break verdict;
            };
            if let Ok(ExtendReply::Renewed(token)) = reply {
                self.inner.tokens.seen(token);
            }
            replies[node] = reply.as_ref().ok().cloned();
            tally.add(reply);
        };
        match verdict {
            Verdict::Decided(Done::Yes) => {
                // What has been answered already needs no task to wait for it.
                while let Some((node, reply)) = round.ready().await {
                    replies[node] = reply.ok();
                }
                if round.is_open() || replies.iter().any(is_lacking) {
                    let quorum = self.clone();
                    let healed = Arc::clone(&extend);
                    tell_healing(numbers(&replies, is_lacking).len());
                    self.inner.tasks.spawn(trace::carry(async move {
                        while let Some((node, reply)) = round.next().await {
                            replies[node] = reply.ok();
                        }
                        let lacking = numbers(&replies, is_lacking);
                        let mend = Mend::Heal;
                        quorum
                            .mend(mend, &healed, started, &replies, &lacking, deadline)
                            .await;
                    }));
                }
            }
            Verdict::Decided(Done::AfterRaising) => {
                let had = numbers(&replies, is_renewed).len();
                let behind = numbers(&replies, is_behind);
                tell_healing(behind.len());
                let raised = self
                    .mend(Mend::Raise, &extend, started, &replies, &behind, deadline)
                    .await;
                if had + raised < quorum(nodes) {
                    return Err(self.undecided(deadline));
                }
            }
            Verdict::Decided(Done::No(denial)) => return Ok(Err(denial)),
            Verdict::Open | Verdict::Hopeless => {
                return Err(self.undecided(deadline));
            }
        }
        if started.elapsed() + extend.term.drift() >= extend.term.duration() {
            return Err(too_slow());
        }
        Ok(Ok(()))
    }

    /// Writes the lease to nodes that lack it, from one that was renewed, while the extension that began at
    /// `started` is in force; gives how many took it.
    ///
    /// A node that has restarted is not healed before every vote is counted that it may have forgotten: a
    /// candidate that won by its vote, and the leader that is healed there, would both count on it.
    async fn mend(
        &self,
        mend: Mend,
        extend: &Arc<Extend>,
        started: Instant,
        replies: &[Option<ExtendReply>],
        lacking: &[usize],
        deadline: Instant,
    ) -> usize {
        if lacking.is_empty() {
            return 0;
        }
        // Before the lease is read: what it has held since then, a node has not forgotten in this run.
        let runs: Vec<_> = self
            .inner
            .nodes
            .iter()
            .map(|node| node.node.settled_run(&extend.election, self.inner.limit))
            .collect();
        let lacking: Vec<_> = lacking
            .iter()
            .copied()
            .filter(|node| runs[*node].is_some())
            .collect();
        let mut source = numbers(replies, is_renewed);
        source.truncate(1);
        if lacking.is_empty() {
            return 0;
        }
        let mut reading = self.ask_some(Operation::Read, source, deadline, |_, node| {
            let extend = Arc::clone(extend);
            async move { node.read(&extend.election).await }
        });
        let Some((_, Ok(Some(lease)))) = reading.next().await else {
            return 0;
        };
        let in_force = started.elapsed() + extend.term.drift() < extend.term.duration();
        if lease.leader != extend.leader || !in_force {
            return 0;
        }
        let mut round = self.ask_some(Operation::Heal, lacking, deadline, |number, node| {
            let heal = Heal {
                election: extend.election.clone(),
                lease: lease.clone(),
                term: extend.term,
                run: runs[number].clone().unwrap_or_default(),
                existing: mend == Mend::Raise,
            };
            async move { node.heal(&heal).await }
        });
        let mut mended = 0;
        while let Some((node, reply)) = round.next().await {
            if reply == Ok(true) {
                mended += 1;
                tracing::debug!(node = self.inner.nodes[node].name(), "healed a lease");
            }
        }
        if mended > 0 {
            self.inner.observer.healed(mended);
        }
        mended
    }
}

/// What is done to nodes that lack a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mend {
    /// A quorum has it: it is written anew.
    Heal,
    /// No quorum has the token: leases of the same leader are raised to it, but none is made. A node that
    /// has lost the lease since it was asked may have voted for another.
    Raise,
}

/// The numbers of the nodes that replied so.
fn numbers(
    replies: &[Option<ExtendReply>],
    so: impl Fn(&Option<ExtendReply>) -> bool,
) -> Vec<usize> {
    let numbers = (0..replies.len()).filter(|node| so(&replies[*node]));
    numbers.collect()
}

fn is_renewed(reply: &Option<ExtendReply>) -> bool {
    matches!(reply, Some(ExtendReply::Renewed(_)))
}

fn is_behind(reply: &Option<ExtendReply>) -> bool {
    matches!(reply, Some(ExtendReply::Behind))
}

fn is_lacking(reply: &Option<ExtendReply>) -> bool {
    matches!(reply, Some(ExtendReply::Missing | ExtendReply::Behind))
}

/// Tells the request's trace that so many nodes lack the lease, and are given it if they may be.
fn tell_healing(nodes: usize) {
    if nodes > 0 {
        let nodes = nodes as u64;
        trace::event("election_agent.healing", "election_agent.nodes", nodes);
    }
}
