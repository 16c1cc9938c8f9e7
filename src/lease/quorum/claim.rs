//! Campaigns and handovers: votes, and the cleaning up after those that did not win.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

use super::{Claim, Claimed, Error, Quorum, too_slow, unreachable};
use crate::{
    election::types::Token,
    lease::{
        Grant, GrantReply,
        tally::{Failure, Granted, Grants, Verdict},
    },
};

/// The longest pause before a split vote is tried again; the first ones are shorter.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
/// How often a withdrawal that a node did not answer is repeated.
const WITHDRAW_AGAIN: Duration = Duration::from_millis(250);

impl Quorum {
    /// Asks for votes until they decide, and cleans up after votes that did not.
    pub(super) async fn run_claim(
        &self,
        claim: Claim,
        deadline: Instant,
        answer: oneshot::Sender<Result<Claimed, Error>>,
    ) {
        let mut attempt = 0;
        let result = loop {
            let Some(token) = self.inner.tokens.next() else {
                break Err(Error::unavailable(
                    "fencing tokens are used up: a node has accepted a token near 2^53",
                ));
            };
            let grant = Arc::new(Grant {
                election: claim.election.clone(),
                candidate: claim.candidate.clone(),
                token,
                term: claim.term,
                value: claim.value.clone(),
                request_id: claim.request_id.clone(),
                elected_at: self.inner.tokens.unix_millis(),
                over: claim.over.clone(),
            });
            let vote = self.vote(&grant, deadline).await;
            // Where this grant is, or may yet be, stored.
            let left = vote.perhaps(token);
            let Vote {
                started,
                tally,
                unmarked,
                verdict,
                ..
            } = vote;
            let failure = match verdict {
                Verdict::Decided(Granted::Won(won)) => {
                    let used = started.elapsed() + claim.term.drift();
                    let valid_for = claim.term.duration().saturating_sub(used);
                    if valid_for.is_zero() {
                        self.withdraw(&grant, left, started);
                        break Err(too_slow());
                    }
                    let claimed = Claimed::Won {
                        token: won,
                        valid_for,
                    };
                    // A repeated request may have got its old token from some nodes and this one from
                    // others; and a caller that has gone will not use what it was granted.
                    if answer.send(Ok(claimed)).is_err() || won != token {
                        self.withdraw(&grant, left, started);
                    }
                    return;
                }
                Verdict::Decided(Granted::Lost(lease)) => {
                    self.withdraw(&grant, left, started);
                    break Ok(Claimed::Lost(lease));
                }
                Verdict::Decided(Granted::TokenMismatch) => {
                    self.withdraw(&grant, left, started);
                    break Ok(Claimed::TokenMismatch);
                }
                Verdict::Open | Verdict::Hopeless => tally.failure(),
            };
            self.withdraw(&grant, left, started);
            if answer.is_closed() {
                return;
            }
            if let Some(wait) = self.inner.markers.wait(&failure) {
                self.mark(&unmarked, wait, deadline).await;
            }
            let pause = match failure {
                // The cause is mended: the very next vote should decide.
                Failure::AllUnmarked | Failure::Unmarked | Failure::Stale if attempt == 0 => {
                    Duration::ZERO
                }
                Failure::AllUnmarked | Failure::Unmarked | Failure::Stale | Failure::Split => {
                    pause(attempt)
                }
                Failure::Unreachable(errors) => break Err(unreachable(&errors, deadline)),
                Failure::Guarded(wait) => break Err(guarded(wait)),
            };
            attempt += 1;
            if Instant::now() + pause >= deadline {
                break Err(match failure {
                    Failure::Split => Error::unavailable(
                        "no candidate got a quorum of the nodes before the deadline: try again",
                    ),
                    _ => Error::DeadlineExceeded,
                });
            }
            sleep(pause).await;
        };
        // A caller that has gone does not want to know, and nothing was granted to it.
        let _ = answer.send(result);
    }

    async fn vote(&self, grant: &Arc<Grant>, deadline: Instant) -> Vote {
        let nodes = self.inner.nodes.len();
        let mut vote = Vote {
            started: Instant::now(),
            tally: Grants::new(nodes),
            replies: vec![None; nodes],
            unmarked: Vec::new(),
            verdict: Verdict::Open,
        };
        let mut round = self.ask(deadline, |node| {
            let grant = Arc::clone(grant);
            async move { node.grant(&grant).await }
        });
        while vote.verdict == Verdict::Open
            && let Some((node, reply)) = round.next().await
        {
            match &reply {
                Ok(GrantReply::Unmarked) => vote.unmarked.push(node),
                Ok(GrantReply::Granted(_) | GrantReply::Guarded(_)) => self.inner.markers.note(),
                Ok(GrantReply::Stale(floor)) => {
                    self.inner.markers.note();
                    self.inner.tokens.seen(*floor);
                }
                _ => {}
            }
            vote.replies[node] = reply.as_ref().ok().cloned();
            vote.tally.add(reply);
            vote.verdict = vote.tally.verdict();
        }
        vote
    }

    /// Marks nodes and waits until they are: the next vote needs it.
    async fn mark(&self, nodes: &[usize], wait: Duration, deadline: Instant) {
        let names: Vec<_> = nodes
            .iter()
            .map(|node| self.inner.nodes[*node].0.name())
            .collect();
        if wait.is_zero() {
            tracing::info!(
                nodes = names.join(", "),
                "new lease nodes: they grant from now on"
            );
        } else {
            tracing::warn!(
                nodes = names.join(", "),
                wait_ms = wait.as_millis(),
                "lease nodes without a marker may have lost their memory: they abstain from grants"
            );
        }
        let mut round = self.ask_some(nodes, deadline, |node| async move { node.mark(wait).await });
        while round.next().await.is_some() {}
    }

    /// Takes a grant back at these nodes, in the background, until each has answered or the lease must
    /// have lapsed.
    fn withdraw(&self, grant: &Arc<Grant>, nodes: Vec<usize>, granted: Instant) {
        if nodes.is_empty() {
            return;
        }
        let quorum = self.clone();
        let grant = Arc::clone(grant);
        let until = granted + self.inner.limit + grant.term.duration();
        self.inner.tasks.spawn(async move {
            let mut left = nodes;
            while !left.is_empty() && Instant::now() < until {
                let mut round = quorum.ask_some(&left, until, |node| {
                    let grant = Arc::clone(&grant);
                    async move {
                        node.withdraw(&grant.election, &grant.candidate, grant.token)
                            .await
                    }
                });
                let mut failed = Vec::new();
                while let Some((node, reply)) = round.next().await {
                    if reply.is_err() {
                        failed.push(node);
                    }
                }
                left = failed;
                if !left.is_empty() {
                    sleep(WITHDRAW_AGAIN).await;
                }
            }
        });
    }
}

/// One round of grants.
struct Vote {
    started: Instant,
    tally: Grants,
    replies: Vec<Option<GrantReply>>,
    unmarked: Vec<usize>,
    verdict: Verdict<Granted>,
}

impl Vote {
    /// The nodes that have granted this token, or may yet.
    fn perhaps(&self, token: Token) -> Vec<usize> {
        (0..self.replies.len())
            .filter(|node| match &self.replies[*node] {
                None => true,
                Some(reply) => *reply == GrantReply::Granted(token),
            })
            .collect()
    }
}

fn guarded(wait: Duration) -> Error {
    Error::Unavailable {
        reason: format!(
            "lease nodes abstain from new grants for another {:.1} s: they have restarted and may have \
             forgotten a leader that still has time left",
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
