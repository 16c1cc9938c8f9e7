//! Campaigns and handovers: votes, and the cleaning up after those that did not win.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};

use super::{Claim, Claimed, Error, Operation, Quorum, Retry, round::Round, too_slow};
use crate::{
    lease::{
        Grant, GrantReply, NodeError,
        tally::{Failure, Granted, Grants, Verdict},
    },
    telemetry::trace,
};

/// The longest pause before a split vote is tried again; the first ones are shorter.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
/// How long a split vote waits for the nodes that have not answered yet; twice as long with every attempt, so
/// that nodes that are merely slow get to decide.
const SPLIT_WAITS: Duration = Duration::from_millis(100);
/// The first and the longest pause before a withdrawal that a node did not answer is repeated.
const WITHDRAW_AGAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(4));

impl Quorum {
    /// Asks for votes until they decide, and cleans up after votes that did not.
    pub(super) async fn run_claim(
        &self,
        claim: Claim,
        deadline: Instant,
        answer: oneshot::Sender<Result<Claimed, Error>>,
    ) {
        let (mut attempt, mut repeat) = (0, true);
        let mut settling = Settling::default();
        let error = loop {
            let Some(token) = self.inner.tokens.next() else {
                break Error::unavailable(
                    "fencing tokens are used up: a node has accepted a token near 2^53",
                );
            };
            let grant = Arc::new(Grant {
                election: claim.election.clone(),
                candidate: claim.candidate.clone(),
                token,
                attempt: fastrand::u64(..),
                term: claim.term,
                value: claim.value.clone(),
                request_id: claim.request_id.clone(),
                elected_at: self.inner.tokens.unix_millis(),
                repeat,
                over: claim.over.clone(),
            });
            let mut vote = Vote::new(self.inner.nodes.len());
            let (owing, asked) = settling.divide(self.inner.nodes.len());
            let mut round = self.ask_some(Operation::Grant, asked, deadline, |_, node| {
                let grant = Arc::clone(&grant);
                async move { node.grant(&grant).await }
            });
            for node in owing {
                let owing = NodeError::NotSent("it has yet to answer the vote before".to_owned());
                vote.add(&grant, node, Err(owing));
            }
            let mut patience = None;
            while vote.tally.verdict() == Verdict::Open {
                if patience.is_none() && vote.tally.is_split() {
                    patience = Some(Instant::now() + SPLIT_WAITS * (1 << attempt.min(10)));
                }
                let next = match patience {
                    Some(until) => timeout_at(until, round.next()).await.unwrap_or_default(),
                    None => round.next().await,
                };
                let Some((node, reply)) = next else { break };
                self.learn(&reply);
                vote.add(&grant, node, reply);
            }
            let failure = match vote.tally.verdict() {
                Verdict::Decided(Granted::Won(won)) => {
                    let used = vote.started.elapsed() + claim.term.drift();
                    let valid_for = claim.term.duration().saturating_sub(used);
                    // Also for the caller's agent, which may have been paused: a node that has restarted is
                    // healed when votes from before are no longer counted.
                    let in_time =
                        !valid_for.is_zero() && vote.started.elapsed() <= self.inner.limit;
                    if !in_time {
                        vote.tell_withdrawal();
                    }
                    let outcome = match in_time {
                        true => Ok(Claimed::Won {
                            token: won,
                            valid_for,
                        }),
                        false => Err(too_slow()),
                    };
                    let told = answer.send(outcome).is_ok();
                    if !told || !in_time {
                        // Nobody will use what was granted.
                        return self.settle(&grant, round, vote).await;
                    }
                    // A request that is dropped before it was written would never be sent, and the lease
                    // would lack a node.
                    self.hear_out(&grant, &mut round, &mut vote).await;
                    if won != token {
                        // The repeated request has its old token; some nodes wrote a new lease for it, or
                        // may have.
                        let nodes = [vote.fresh, vote.unknown].concat();
                        self.withdraw(&grant, nodes, vote.started).await;
                    }
                    return;
                }
                Verdict::Decided(Granted::Lost(lease)) => {
                    vote.tell_withdrawal();
                    // A caller that has gone does not want to know.
                    let _ = answer.send(Ok(Claimed::Lost(lease)));
                    return self.settle(&grant, round, vote).await;
                }
                Verdict::Decided(Granted::TokenMismatch) => {
                    let _ = answer.send(Ok(Claimed::TokenMismatch));
                    return self.settle(&grant, round, vote).await;
                }
                Verdict::Open | Verdict::Hopeless => vote.tally.failure(),
            };
            vote.tell_withdrawal();
            if let Failure::Guarded(wait) = failure {
                tell_guard(wait);
            }
            let error = match failure {
                Failure::Guarded(wait) => Some(guarded(wait)),
                Failure::Unreachable => Some(self.undecided(deadline)),
                _ if answer.is_closed() => Some(self.undecided(deadline)),
                Failure::Unmarked | Failure::Stale | Failure::Split => None,
            };
            if let Some(error) = error {
                let _ = answer.send(Err(error));
                return self.settle(&grant, round, vote).await;
            }

            self.inner.observer.retried(match failure {
                Failure::Stale => Retry::StaleToken,
                Failure::Unmarked => Retry::Unmarked,
                _ => Retry::SplitVote,
            });

            // Some nodes have what an earlier try left behind, others have not: one token for all.
            repeat &= vote.fresh.is_empty() || vote.repeated.is_empty();
            // Before the next vote, so that what it replaces is what there was before this one.
            vote.unknown
                .extend(self.withdraw_once(&grant, &vote.granted(), deadline).await);
            vote.fresh.clear();
            vote.repeated.clear();
            let owing = match vote.tally.verdict() {
                Verdict::Open => round.waiting(),
                _ => Vec::new(),
            };
            let (quorum, started) = (self.clone(), vote.started);
            let settled = async move { quorum.settle(&grant, round, vote).await };
            let task = self.inner.tasks.spawn(trace::carry(settled));
            settling.add(owing, task);
            if failure == Failure::Unmarked && !self.tend_for_grant(started, deadline).await {
                break self.undecided(deadline);
            }
            let pause = match failure {
                Failure::Split => pause(attempt),
                // The cause is mended: the very next vote should decide.
                _ if attempt == 0 => Duration::ZERO,
                _ => pause(attempt),
            };
            attempt += 1;
            if Instant::now() + pause >= deadline {
                break match failure {
                    Failure::Split => Error::unavailable(
                        "no candidate got a quorum of the nodes before the deadline: try again",
                    ),
                    _ => Error::DeadlineExceeded,
                };
            }
            sleep(pause).await;
        };
        let _ = answer.send(Err(error));
    }

    /// Notes what a reply tells of markers and tokens.
    fn learn(&self, reply: &Result<GrantReply, NodeError>) {
        match reply {
            Ok(GrantReply::Granted(_) | GrantReply::Guarded(_)) => self.inner.markers.note(),
            Ok(GrantReply::Stale(floor)) => {
                self.inner.markers.note();
                self.inner.tokens.seen(*floor);
            }
            // Should the nodes forget it, this agent does not.
            Ok(GrantReply::Held(lease)) => self.inner.tokens.seen(lease.token),
            _ => {}
        }
    }

    /// Waits for the nodes that have not answered a grant.
    async fn hear_out<F>(&self, grant: &Grant, round: &mut Round<F>, vote: &mut Vote)
    where
        F: Future<Output = Result<GrantReply, NodeError>>,
    {
        while let Some((node, reply)) = round.next().await {
            self.learn(&reply);
            vote.add(grant, node, reply);
        }
    }

    /// Waits for the nodes that have not answered a grant, and takes it back wherever it is stored.
    async fn settle<F>(&self, grant: &Arc<Grant>, mut round: Round<F>, mut vote: Vote)
    where
        F: Future<Output = Result<GrantReply, NodeError>>,
    {
        self.hear_out(grant, &mut round, &mut vote).await;
        // Questions without an answer end here, and not with the last withdrawal.
        drop(round);
        let nodes = [vote.granted(), vote.unknown].concat();
        self.withdraw(grant, nodes, vote.started).await;
    }

    /// Takes a grant back at these nodes, until each has answered or the lease must have lapsed.
    async fn withdraw(&self, grant: &Arc<Grant>, nodes: Vec<usize>, granted: Instant) {
        let until = granted + self.inner.limit + grant.term.duration();
        let (mut left, mut pause) = (nodes, WITHDRAW_AGAIN.0);
        while !left.is_empty() {
            left = self.withdraw_once(grant, &left, until).await;
            if left.is_empty() || Instant::now() + pause >= until {
                return;
            }
            sleep(pause).await;
            pause = (pause * 2).min(WITHDRAW_AGAIN.1);
        }
    }

    /// Takes a grant back at these nodes, and gives those that did not answer.
    async fn withdraw_once(
        &self,
        grant: &Arc<Grant>,
        nodes: &[usize],
        deadline: Instant,
    ) -> Vec<usize> {
        let asked = nodes.iter().copied();
        let mut round = self.ask_some(Operation::Withdraw, asked, deadline, |_, node| {
            let grant = Arc::clone(grant);
            async move { node.withdraw(&grant).await }
        });
        let mut failed = Vec::new();
        while let Some((node, reply)) = round.next().await {
            if reply.is_err() {
                failed.push(node);
            }
        }
        let withdrawn = nodes.len() - failed.len();
        if withdrawn > 0 {
            self.inner.observer.withdrawn(withdrawn);
        }
        failed
    }
}

/// One round of grants, and where the grant is stored.
struct Vote {
    started: Instant,
    tally: Grants,
    /// Nodes that wrote a lease with the proposed token.
    fresh: Vec<usize>,
    /// Nodes that renewed the lease which an earlier try of the same request was granted.
    repeated: Vec<usize>,
    /// Nodes that may have done either.
    unknown: Vec<usize>,
}

impl Vote {
    fn new(nodes: usize) -> Self {
        Self {
            started: Instant::now(),
            tally: Grants::new(nodes),
            fresh: Vec::new(),
            repeated: Vec::new(),
            unknown: Vec::new(),
        }
    }

    fn add(&mut self, grant: &Grant, node: usize, reply: Result<GrantReply, NodeError>) {
        match &reply {
            Ok(GrantReply::Granted(token)) if *token == grant.token => self.fresh.push(node),
            Ok(GrantReply::Granted(_)) => self.repeated.push(node),
            Err(NodeError::Unknown(_)) => self.unknown.push(node),
            Ok(_) | Err(NodeError::NotSent(_)) => {}
        }
        self.tally.add(reply);
    }

    /// Tells the request's trace that what it was granted, or may have been, is withdrawn.
    fn tell_withdrawal(&self) {
        let nodes = self.fresh.len() + self.repeated.len() + self.unknown.len();
        if nodes > 0 {
            let nodes = nodes as u64;
            trace::event("election_agent.withdrawal", "election_agent.nodes", nodes);
        }
    }

    fn granted(&self) -> Vec<usize> {
        [&self.fresh[..], &self.repeated[..]].concat()
    }
}

/// Votes that were split, and given up although the nodes that had not answered might have decided.
///
/// Fewer nodes than a quorum owe an answer, as a quorum has answered. Until such a node has, and its grant is
/// withdrawn, it takes no part in the next votes: what they would replace there, and put back when they are
/// withdrawn, is a grant that nobody made use of.
#[derive(Default)]
struct Settling {
    votes: Vec<(Vec<usize>, JoinHandle<()>)>,
}

impl Settling {
    fn add(&mut self, owing: Vec<usize>, task: JoinHandle<()>) {
        if !owing.is_empty() {
            self.votes.push((owing, task));
        }
    }

    /// The nodes that owe an answer, and the others.
    fn divide(&mut self, nodes: usize) -> (Vec<usize>, Vec<usize>) {
        self.votes.retain(|(_, task)| !task.is_finished());
        (0..nodes).partition(|node| self.votes.iter().any(|(owing, _)| owing.contains(node)))
    }
}

/// Tells the request's trace that nodes abstain.
fn tell_guard(wait: Duration) {
    let ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    trace::event("election_agent.guard", "election_agent.remaining_ms", ms);
}

fn guarded(wait: Duration) -> Error {
    Error::Unavailable {
        reason: format!(
            "lease nodes abstain from new grants for another {:.1} s: they have restarted or were promoted, and \
             may have forgotten a leader that still has time left",
            wait.as_secs_f64()
        ),
        retry_after: Some(wait),
    }
}

/// Uniform between zero and a limit that doubles with every attempt, so that candidates that got in
/// each other's way come apart.
fn pause(attempt: u32) -> Duration {
    let limit = Duration::from_millis(5 << attempt.min(10)).min(LONGEST_PAUSE);
    limit.mul_f64(fastrand::f64())
}
