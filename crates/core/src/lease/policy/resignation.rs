//! Resignations.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Call, Event, Machine, Reply, Step, View};
use crate::lease::{
    Reading, Resign, State,
    quorum::{Error, undecided},
    tally::{Denial, Done, Reads, Resignations, Verdict},
};

/// A resignation. One without a token first reads the leader's token: a late node must not take it for a resignation
/// from a later term of the same candidate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Resigning {
    resign: Resign,
    began: Instant,
    deadline: Instant,
    reads: Option<Reads>,
    votes: Option<Resignations>,
    /// Whether nodes without an incarnation record got one. Then all nodes are called again.
    health_checked: bool,
    checking_health: bool,
    answered: bool,
}

type Resigned = Result<(), Error>;
type Steps = Vec<Step<Resigned>>;

const READ: u32 = 0;
const RESIGN: u32 = 1;
/// The offset of the tags of the second round of calls.
const AGAIN: u32 = 2;

impl Resigning {
    /// Creates a resignation with this deadline.
    #[must_use]
    pub fn new(resign: Resign, now: Instant, deadline: Instant) -> Self {
        Self {
            began: now,
            resign,
            deadline,
            reads: None,
            votes: None,
            health_checked: false,
            checking_health: false,
            answered: false,
        }
    }

    fn ask(&mut self, view: &impl View, steps: &mut Steps) {
        let electorate = view.electorate();
        let (tag, call) = match self.resign.token {
            None => {
                self.reads = Some(Reads::new(electorate));
                (READ, Call::Read(Arc::new(self.resign.election.clone())))
            }
            Some(_) => {
                self.votes = Some(Resignations::new(electorate));
                (RESIGN, Call::Resign(Arc::new(self.resign.clone())))
            }
        };
        steps.push(Step::Ask {
            tag: tag + if self.health_checked { AGAIN } else { 0 },
            nodes: electorate.nodes(),
            call,
            until: self.deadline,
        });
    }

    fn answer(&mut self, answer: Resigned, steps: &mut Steps) {
        if !self.answered {
            self.answered = true;
            steps.push(Step::Answer(answer));
        }
    }

    fn check_health(&mut self, steps: &mut Steps) {
        if !self.checking_health {
            self.checking_health = true;
            steps.push(Step::CheckHealth(self.began, false));
        }
    }

    fn count_reads(&mut self, now: Instant, view: &impl View, steps: &mut Steps) {
        let Some(reads) = &self.reads else { return };
        let verdict = reads.verdict();
        if verdict == Verdict::Open {
            return;
        }
        if verdict == Verdict::NoQuorumPossible && reads.is_unrecorded() && !self.health_checked {
            return self.check_health(steps);
        }
        self.reads = None;
        let answer = match verdict {
            Verdict::Decided(State::Held(lease)) if lease.leader == self.resign.leader => {
                self.resign.token = Some(lease.token);
                return self.ask(view, steps);
            }
            Verdict::Decided(State::Held(_)) => Err(Denial::HeldByOther.into()),
            Verdict::Decided(State::Vacant(_)) => Err(Denial::NoTerm.into()),
            Verdict::Open | Verdict::NoQuorumPossible => {
                Err(undecided(view.electorate(), self.deadline, now))
            }
        };
        self.answer(answer, steps);
    }

    fn count_votes(&mut self, now: Instant, view: &impl View, steps: &mut Steps) {
        let Some(votes) = &self.votes else { return };
        if votes.verdict() == Verdict::NoQuorumPossible
            && votes.is_unrecorded()
            && !self.health_checked
        {
            return self.check_health(steps);
        }
        let answer = match votes.verdict() {
            Verdict::Open => return,
            Verdict::Decided(Done::No(denial)) => Err(denial.into()),
            Verdict::Decided(_) => Ok(()),
            Verdict::NoQuorumPossible => Err(undecided(view.electorate(), self.deadline, now)),
        };
        self.answer(answer, steps);
    }
}

impl Machine for Resigning {
    type Output = Resigned;

    fn on(&mut self, event: Event, now: Instant, view: &impl View, steps: &mut Steps) {
        match event {
            Event::Begin => self.ask(view, steps),
            Event::Replied { tag, node, reply } => {
                if tag % AGAIN == READ
                    && (tag >= AGAIN) == self.health_checked
                    && let Some(reads) = &mut self.reads
                {
                    let reply: Result<Reading, _> = reply.and_then(|reply| match reply {
                        Reply::Read(reading) => Ok(reading),
                        other => Err(other.unexpected()),
                    });
                    reads.add(node, reply);
                } else if tag % AGAIN == RESIGN
                    && (tag >= AGAIN) == self.health_checked
                    && let Some(votes) = &mut self.votes
                {
                    let reply = reply.and_then(|reply| match reply {
                        Reply::Resign(reply) => Ok(reply),
                        other => Err(other.unexpected()),
                    });
                    votes.add(node, reply);
                }
            }
            Event::HealthChecked(answered) => {
                self.health_checked = true;
                if answered {
                    (self.reads, self.votes) = (None, None);
                    self.ask(view, steps);
                }
            }
            Event::Woken | Event::Abandoned => {}
        }
        self.count_reads(now, view, steps);
        self.count_votes(now, view, steps);
    }

    fn is_done(&self) -> bool {
        // The election is vacant already; the other nodes should soon agree.
        let votes = self.votes.as_ref();
        self.answered && votes.is_none_or(|votes| votes.outstanding().is_empty())
    }
}
