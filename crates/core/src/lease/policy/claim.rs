//! Campaigns and handovers: votes, and the rollback of those that did not win.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Call, Event, Machine, Nodes, Note, Reply, Step, View};
use crate::{
    lease::{
        Grant, GrantReply, NodeError,
        quorum::{Claim, Claimed, Error, observer::RetryReason, too_slow, undecided},
        rules::{Rule, holds},
        tally::{Failure, Granted, Grants, Verdict},
    },
    types::Token,
};

/// The longest pause before the next vote after a split one; the first pauses are shorter.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
/// How long a split vote waits for the nodes that have not replied yet. The wait grows by this much with every vote:
/// nodes that are merely slow get to decide, while a node that is down leaves time for many votes.
const SPLIT_WAITS: Duration = Duration::from_millis(100);
/// The first and the longest pause before repeating a rollback that a node did not reply to.
const ROLL_BACK_AGAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));

/// A claim: holds votes until one decides or the deadline passes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Claiming {
    claim: Claim,
    began: Instant,
    deadline: Instant,
    /// The number of votes held before this one.
    attempt: u32,
    /// Whether a grant finds leases that earlier tries of the request were granted.
    repeat: bool,
    /// The token that a majority may have granted to an earlier try.
    resumes: Option<Token>,
    /// A token that some node has accepted: the next token must be above it.
    above: Option<Token>,
    phase: Phase,
    votes: Vec<Vote>,
    answered: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    /// The last vote is open; if it is split, it ends at this time.
    Voting { patience: Option<Instant> },
    /// The last vote's grants are being rolled back, so that the next vote replaces what the election held before it.
    RollingBack { failure: Next },
    /// The nodes are being probed.
    CheckingHealth,
    /// The claim waits until the next vote.
    Pausing { until: Instant },
    /// The outcome is decided; only rollbacks remain.
    Decided,
}

/// What follows the rollback of a failed vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Next {
    Pause,
    AtOnce,
    CheckHealth,
}

/// One round of grants, and the nodes that store the grant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Vote {
    grant: Arc<Grant>,
    started: Instant,
    tally: Grants,
    /// Nodes that wrote a lease for this grant, or renewed the lease that an earlier try was granted.
    granted: Nodes,
    /// Of the `granted` nodes, those that have another token than the proposed one.
    repeated: Nodes,
    /// Nodes that may have done either.
    unknown: Nodes,
    fate: Fate,
    /// Nodes on which a rollback is in progress.
    rolling_back: Nodes,
    /// The number of nodes that completed a rollback since the last note.
    rolled_back: usize,
    /// Nodes that did not reply to the rollback.
    failed: Nodes,
    /// When to repeat the failed rollbacks; `pause` is the pause before the repetition after that.
    again: Option<Instant>,
    pause: Duration,
}

/// What happens to the grants of a vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Fate {
    Open,
    /// The grant stays where the token is this one.
    Stays(Token),
    /// The grant is rolled back everywhere.
    Goes,
}

impl Claiming {
    /// Creates a claim with this deadline.
    #[must_use]
    pub fn new(claim: Claim, now: Instant, deadline: Instant) -> Self {
        Self {
            claim,
            began: now,
            deadline,
            attempt: 0,
            repeat: true,
            resumes: None,
            above: None,
            phase: Phase::CheckingHealth,
            votes: Vec::new(),
            answered: false,
        }
    }

    fn answer(&mut self, outcome: Result<Claimed, Error>, steps: &mut Steps) {
        if !self.answered {
            self.answered = true;
            steps.push(Step::Answer(outcome));
        }
    }

    fn hold_vote(&mut self, now: Instant, view: &impl View, steps: &mut Steps) {
        let resumes = self.resumes.take();
        let Some(token) = resumes.or_else(|| view.token(self.above)) else {
            self.phase = Phase::Decided;
            let error = format!(
                "fencing tokens of the election {} are used up: a node has accepted one near 2^53",
                self.claim.election.path()
            );
            return self.answer(Err(Error::Internal(error)), steps);
        };
        let bounds = view.bounds();
        let grant = Arc::new(Grant {
            election: self.claim.election.clone(),
            candidate: self.claim.candidate.clone(),
            token,
            grant_id: view.random(),
            term: self.claim.term,
            value: self.claim.value.clone(),
            request_id: self.claim.request_id.clone(),
            repeat: self.repeat,
            elected_at: view.unix_millis(),
            replaces: self.claim.replaces.clone(),
            bounds,
            not_after: now + bounds.vote,
        });
        let electorate = view.electorate();
        let nodes = electorate.nodes();
        steps.push(Step::Ask {
            tag: self.tag(self.votes.len(), false),
            nodes,
            call: Call::Grant(Arc::clone(&grant)),
            until: self.deadline,
        });
        self.votes.push(Vote {
            grant,
            started: now,
            tally: Grants::new(electorate),
            granted: Nodes::NONE,
            repeated: Nodes::NONE,
            unknown: Nodes::NONE,
            fate: Fate::Open,
            rolling_back: Nodes::NONE,
            rolled_back: 0,
            failed: Nodes::NONE,
            again: None,
            pause: ROLL_BACK_AGAIN.0,
        });
        self.phase = Phase::Voting { patience: None };
    }

    /// The tag of the grants of a vote, or of its rollbacks.
    fn tag(&self, vote: usize, rollback: bool) -> u32 {
        2 * vote as u32 + u32::from(rollback)
    }

    fn count(&mut self, now: Instant, view: &impl View, steps: &mut Steps) {
        let Phase::Voting { patience } = self.phase else {
            return;
        };
        let Some(vote) = self.votes.last_mut() else {
            return;
        };
        let verdict = vote.tally.verdict();
        let over =
            vote.tally.outstanding().is_empty() || patience.is_some_and(|until| now >= until);
        let failure = match verdict {
            Verdict::Open if !over => {
                if patience.is_none() && vote.tally.is_split() {
                    let until = now + SPLIT_WAITS * (self.attempt + 1);
                    self.phase = Phase::Voting {
                        patience: Some(until),
                    };
                }
                return;
            }
            Verdict::Open | Verdict::NoQuorumPossible => vote.tally.failure(),
            Verdict::Decided(Granted::Won(token)) => return self.won(token, now, view, steps),
            Verdict::Decided(decided) => {
                vote.fate = Fate::Goes;
                self.phase = Phase::Decided;
                let outcome = match decided {
                    Granted::Lost(lease) => Ok(Claimed::Lost(lease)),
                    Granted::TokenMismatch => Ok(Claimed::TokenMismatch),
                    Granted::Vacant => Ok(Claimed::Vacant),
                    Granted::Used | Granted::Won(_) => Ok(Claimed::Used),
                };
                vote.note(steps);
                return self.answer(outcome, steps);
            }
        };
        vote.fate = Fate::Goes;
        vote.note(steps);
        if let Failure::Guarded(wait) = failure {
            steps.push(Step::Note(Note::Guarded(wait)));
        }
        let token = vote.grant.token;
        let others: Vec<_> = vote.tally.other_tokens(token).collect();
        let error = match failure {
            Failure::Guarded(wait) => Some(guarded(wait)),
            Failure::Unreachable => Some(undecided(view.electorate(), self.deadline, now)),
            Failure::Full => Some(Error::StoreFull),
            _ => None,
        };
        if let Some(error) = error {
            self.phase = Phase::Decided;
            return self.answer(Err(error), steps);
        }
        if let Failure::Stale(known) = failure {
            self.above = self.above.max(Some(known));
        }
        // Some nodes hold the grant of an earlier try, and others do not. All nodes need one token: the earlier try's
        // token, as long as a majority may have it. If an earlier vote of this claim has already proposed that token, a
        // node has accepted a later one since.
        if self.repeat && holds(Rule::RetriesGetTheirToken) {
            let tried = |token| self.votes.iter().any(|vote| vote.grant.token == token);
            let untried = others.iter().filter(|(other, _)| !tried(*other));
            let best = untried.max_by_key(|(token, may_have)| (*may_have, *token));
            match best {
                Some((token, _)) => self.resumes = Some(*token),
                None if others.iter().any(|(_, may_have)| *may_have) => {
                    self.phase = Phase::Decided;
                    let error = undecided(view.electorate(), self.deadline, now);
                    return self.answer(Err(error), steps);
                }
                None => self.repeat = others.is_empty(),
            }
        } else {
            self.repeat &= others.is_empty();
        }
        steps.push(Step::Note(Note::Retried(match failure {
            Failure::Stale(_) => RetryReason::StaleToken,
            Failure::Unrecorded | Failure::Unprepared => RetryReason::Unrecorded,
            _ => RetryReason::SplitVote,
        })));
        let next = match failure {
            Failure::Unrecorded | Failure::Unprepared => Next::CheckHealth,
            Failure::Split => Next::Pause,
            // The cause is resolved: the next vote should decide.
            _ => Next::AtOnce,
        };
        self.phase = Phase::RollingBack { failure: next };
    }

    fn won(&mut self, token: Token, now: Instant, view: &impl View, steps: &mut Steps) {
        let Some(vote) = self.votes.last_mut() else {
            return;
        };
        self.phase = Phase::Decided;
        let term = self.claim.term;
        let received = self.claim.waited_since.unwrap_or(vote.started);
        // From then on, nodes may have stored the lease.
        let sent = match holds(Rule::TermBeginsWithTheVote) {
            true => vote.started,
            false => now,
        };
        let waited = sent.saturating_duration_since(received);
        let drift = match (holds(Rule::Drift), holds(Rule::DriftOfTheWait)) {
            // The caller's clock measures its wait, too.
            (true, true) => term.drift_after(waited),
            (true, false) => term.drift(),
            (false, _) => Duration::ZERO,
        };
        let took = now - vote.started;
        let valid_for = (waited + term.duration()).saturating_sub(now - sent + drift);
        // `valid_for` counts from before the caller's request: subtract the time since then.
        let left = valid_for.saturating_sub(now - self.claim.waited_since.unwrap_or(self.began));
        // Rejects a vote that outlived the vote lifetime: a repair of a node that may have forgotten a vote assumes
        // that older votes no longer count.
        let counts = took <= view.bounds().vote || !holds(Rule::VotesAreBounded);
        if left.is_zero() || !counts {
            vote.fate = Fate::Goes;
            vote.note(steps);
            return self.answer(Err(too_slow()), steps);
        }
        vote.fate = Fate::Stays(token);
        self.answer(Ok(Claimed::Won { token, valid_for }), steps);
    }

    /// Continues when the last vote's grants are rolled back, or the deadline passed before every node confirmed its
    /// rollback.
    fn rolled_back(&mut self, now: Instant, view: &impl View, steps: &mut Steps) {
        let Phase::RollingBack { failure } = self.phase else {
            return;
        };
        let Some(vote) = self.votes.last() else {
            return;
        };
        if !vote.rolling_back.is_empty() && now < self.deadline {
            return;
        }
        if failure == Next::CheckHealth {
            self.phase = Phase::CheckingHealth;
            steps.push(Step::CheckHealth(vote.started, true));
            return;
        }
        self.pause(failure == Next::Pause, now, view, steps);
    }

    /// Waits before the next vote, unless the deadline comes first.
    fn pause(&mut self, split: bool, now: Instant, view: &impl View, steps: &mut Steps) {
        let pause = match split || self.attempt > 0 {
            true => pause(self.attempt, view.random()),
            false => Duration::ZERO,
        };
        self.attempt += 1;
        if now + pause >= self.deadline {
            self.phase = Phase::Decided;
            let error = match split {
                true => Error::unavailable(
                    "no candidate got a quorum of the nodes before the deadline: try again",
                ),
                false => Error::DeadlineExceeded,
            };
            return self.answer(Err(error), steps);
        }
        match pause {
            Duration::ZERO => self.hold_vote(now, view, steps),
            pause => self.phase = Phase::Pausing { until: now + pause },
        }
    }

    /// Rolls back the grants that must go, on every node that may have them and has no rollback in progress.
    fn roll_back(&mut self, now: Instant, view: &impl View, steps: &mut Steps) {
        for number in 0..self.votes.len() {
            let vote = &self.votes[number];
            // Most votes have nothing to roll back, and this check runs on every event.
            if vote.again.is_none() && vote.to_roll_back().is_empty() {
                continue;
            }
            let limit = view.bounds().vote;
            let tag = self.tag(number, true);
            let deadline = match self.phase {
                Phase::RollingBack { .. } => self.deadline,
                // At most as long as a node may take.
                _ => now + 2 * limit,
            };
            let vote = &mut self.votes[number];
            let lapsed = vote.started + limit + vote.grant.term.duration();
            if now >= lapsed {
                // Every lease that this vote wrote has ended.
                if vote.tally.outstanding().is_empty() {
                    (vote.granted, vote.unknown, vote.again) = (Nodes::NONE, Nodes::NONE, None);
                }
                continue;
            }
            if vote.again.is_some_and(|at| now >= at) {
                (vote.again, vote.failed) = (None, Nodes::NONE);
            }
            let nodes = vote.to_roll_back();
            let nodes = nodes.without(vote.rolling_back.and(vote.failed));
            if nodes.is_empty() {
                continue;
            }
            vote.rolling_back = vote.rolling_back.and(nodes);
            steps.push(Step::Ask {
                tag,
                nodes,
                call: Call::RollBack(Arc::clone(&vote.grant)),
                until: deadline,
            });
        }
    }

    fn replied(&mut self, tag: u32, node: usize, reply: Result<Reply, NodeError>, now: Instant) {
        let Some(vote) = self.votes.get_mut(tag as usize / 2) else {
            return;
        };
        match reply {
            Ok(Reply::RolledBack) => {
                vote.rolling_back.remove(node);
                vote.granted.remove(node);
                vote.unknown.remove(node);
                vote.rolled_back += 1;
            }
            Err(_) if tag % 2 == 1 => {
                vote.rolling_back.remove(node);
                // The rollback repeats until the node replies to it.
                vote.granted.remove(node);
                vote.unknown.add(node);
                // Not at once: a node that cannot be reached fails again and again before another node replies.
                vote.failed.add(node);
                if vote.again.is_none() {
                    vote.again = Some(now + vote.pause);
                    vote.pause = (vote.pause * 2).min(ROLL_BACK_AGAIN.1);
                }
            }
            reply => {
                let reply = reply.and_then(|reply| match reply {
                    Reply::Grant(reply) => Ok(reply),
                    other => Err(other.unexpected()),
                });
                match &reply {
                    Ok(GrantReply::Granted(token)) => {
                        vote.granted.add(node);
                        if *token != vote.grant.token {
                            vote.repeated.add(node);
                        }
                    }
                    Err(NodeError::Unknown(_)) => vote.unknown.add(node),
                    Ok(_) | Err(NodeError::NotSent(_) | NodeError::Full(_)) => {}
                }
                vote.tally.add(node, reply);
            }
        }
    }

    /// When the machine must act although no event arrives.
    fn wake(&self) -> Option<Instant> {
        let phase = match self.phase {
            Phase::Voting { patience } => patience,
            Phase::Pausing { until } => Some(until),
            Phase::RollingBack { .. } => Some(self.deadline),
            Phase::CheckingHealth | Phase::Decided => None,
        };
        let again = self.votes.iter().filter_map(|vote| vote.again);
        phase.into_iter().chain(again).min()
    }
}

impl Vote {
    /// The nodes on which the grant must be rolled back, among those whose call has ended.
    fn to_roll_back(&self) -> Nodes {
        match self.fate {
            Fate::Open => Nodes::NONE,
            _ if !holds(Rule::Rollbacks) => Nodes::NONE,
            Fate::Goes => self.granted.and(self.unknown),
            // The request keeps its earlier token; some nodes wrote a new lease for it, or may have.
            Fate::Stays(token) if token != self.grant.token => {
                self.granted.without(self.repeated).and(self.unknown)
            }
            Fate::Stays(_) => Nodes::NONE,
        }
    }

    /// Notes that the grants of this vote, certain and possible, are being rolled back.
    fn note(&self, steps: &mut Steps) {
        let nodes = self.granted.and(self.unknown).count();
        if nodes > 0 {
            steps.push(Step::Note(Note::RollingBack(nodes)));
        }
    }
}

type Steps = Vec<Step<Result<Claimed, Error>>>;

impl Machine for Claiming {
    type Output = Result<Claimed, Error>;

    fn on(&mut self, event: Event, now: Instant, view: &impl View, steps: &mut Steps) {
        match event {
            Event::Begin => self.hold_vote(now, view, steps),
            Event::Replied { tag, node, reply } => self.replied(tag, node, reply, now),
            Event::Woken => {}
            Event::HealthChecked(answered) => {
                if self.phase == Phase::CheckingHealth {
                    match answered {
                        true => self.pause(false, now, view, steps),
                        false => {
                            self.phase = Phase::Decided;
                            let error = undecided(view.electorate(), self.deadline, now);
                            self.answer(Err(error), steps);
                        }
                    }
                }
            }
            Event::Abandoned => {
                // The caller is gone: no grant will be acknowledged.
                self.answered = true;
                self.phase = Phase::Decided;
                for vote in &mut self.votes {
                    vote.fate = Fate::Goes;
                }
            }
        }
        if let Phase::Pausing { until } = self.phase
            && now >= until
        {
            self.hold_vote(now, view, steps);
        }
        self.count(now, view, steps);
        self.roll_back(now, view, steps);
        self.rolled_back(now, view, steps);
        for vote in &mut self.votes {
            if vote.rolling_back.is_empty() && vote.rolled_back > 0 {
                steps.push(Step::Note(Note::RolledBack(std::mem::take(
                    &mut vote.rolled_back,
                ))));
            }
        }
        if let Some(at) = self.wake() {
            steps.push(Step::Wake(at));
        }
    }

    fn is_done(&self) -> bool {
        let settled = |vote: &Vote| {
            vote.tally.outstanding().is_empty()
                && vote.rolling_back.is_empty()
                && vote.to_roll_back().is_empty()
        };
        self.phase == Phase::Decided && self.votes.iter().all(settled)
    }
}

fn guarded(wait: Duration) -> Error {
    Error::Unavailable {
        reason: format!(
            "lease nodes are in quarantine for another {:.1} s: they have restarted or were promoted, and \
             may have forgotten a leader that still has time left",
            wait.as_secs_f64()
        ),
        retry_after: Some(wait),
    }
}

/// A pause, uniform between zero and a limit that doubles with every vote, so that conflicting candidates drift apart.
fn pause(attempt: u32, random: u64) -> Duration {
    let limit = Duration::from_millis(5 << attempt.min(10)).min(LONGEST_PAUSE);
    limit.mul_f64(random as f64 / u64::MAX as f64)
}
