//! Extensions, and the repair of nodes that lack a lease which a quorum has.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Call, Event, Machine, Nodes, Note, Reply, Step, View};
use crate::{
    lease::{
        Extend, ExtendReply, Incarnation, Lease, Onto, Reading, Repair,
        quorum::{Error, too_slow, undecided},
        rules::{Rule, holds},
        tally::{Done, Extensions, Verdict},
    },
    types::Token,
};

/// An extension. It answers when a quorum has decided, and then repairs the nodes that lack the lease.
///
/// A restarted node is not repaired while a vote that it may have forgotten can still count. Otherwise both a candidate
/// that won by its vote and the leader that is repaired there would count on the node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Extending {
    extend: Arc<Extend>,
    started: Instant,
    deadline: Instant,
    votes: Extensions,
    renewed: Option<(usize, Token)>,
    phase: Phase,
    /// The tag of the present vote.
    tag: u32,
    answered: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Phase {
    Voting,
    /// Nodes without an incarnation record get one.
    CheckingHealth,
    /// A quorum has extended. The machine waits for the other replies and repairs the nodes that lack the lease.
    Collecting,
    /// The machine reads the lease from a node that has it, to write it to others.
    Reading(Purpose, Vec<(usize, Incarnation)>),
    /// The machine writes the lease to these nodes, as one repair for each incarnation.
    Writing(Purpose, Nodes, Nodes),
    Done,
}

/// Why nodes that lack a lease are repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Purpose {
    /// A quorum has the lease: it is written again.
    Repair,
    /// No quorum has the token. Repairs write it over older leases of the same leader, but create none: a node that
    /// lost the lease since its reply may have voted for another candidate.
    Raise,
    /// A quorum of one list has the lease. It is written to the nodes of the other list; the answer follows when
    /// quorums of both have it.
    Join,
}

/// How long the leader may act, counted from before the extension was created.
/// The result of an extension: how long the leader may act.
pub type Extended = Result<Duration, Error>;
type Steps = Vec<Step<Extended>>;

/// The tag of the first vote.
pub(in crate::lease) const EXTEND: u32 = 0;
const READ: u32 = 1;
const REPAIR: u32 = 2;
/// The tag of the second vote.
const EXTEND_AGAIN: u32 = 3;

impl Extending {
    /// Creates an extension with this deadline.
    #[must_use]
    pub fn new(
        extend: impl Into<Arc<Extend>>,
        now: Instant,
        deadline: Instant,
        view: &impl View,
    ) -> Self {
        Self {
            extend: extend.into(),
            started: now,
            deadline,
            votes: Extensions::new(view.electorate()),
            renewed: None,
            phase: Phase::Voting,
            tag: EXTEND,
            answered: false,
        }
    }

    fn ask(&self, view: &impl View, steps: &mut Steps) {
        steps.push(Step::Ask {
            tag: self.tag,
            nodes: view.electorate().nodes(),
            call: Call::Extend(Arc::clone(&self.extend)),
            until: self.deadline,
        });
    }

    fn answer(&mut self, answer: Extended, steps: &mut Steps) {
        if !self.answered {
            self.answered = true;
            steps.push(Step::Answer(answer));
        }
    }

    /// When the extension ceases to be in force.
    fn lapses(&self) -> Instant {
        let term = self.extend.term;
        let drift = match holds(Rule::Drift) {
            true => term.drift(),
            false => Duration::ZERO,
        };
        self.started + term.duration().saturating_sub(drift)
    }

    /// A quorum has extended. Answers how long the leader may act, counted as for a claim that is won: if nothing of
    /// it is left now, that is an error.
    fn extended(&mut self, now: Instant, steps: &mut Steps) {
        let valid_for = self.lapses().saturating_duration_since(now);
        let answer = match valid_for > now - self.started {
            true => Ok(valid_for),
            false => Err(too_slow()),
        };
        self.answer(answer, steps);
    }

    fn count(&mut self, now: Instant, view: &impl View, steps: &mut Steps) {
        match self.phase {
            Phase::Voting => match self.votes.verdict() {
                Verdict::Open => return,
                Verdict::Decided(Done::Yes) => {
                    self.phase = Phase::Collecting;
                    self.extended(now, steps);
                }
                Verdict::Decided(Done::AfterRaising) => {
                    let behind = self.votes.behind();
                    return self.repair(Purpose::Raise, behind, now, view, steps);
                }
                Verdict::Decided(Done::AfterWriting) => {
                    let lacking = self.votes.lacking();
                    return self.repair(Purpose::Join, lacking, now, view, steps);
                }
                Verdict::Decided(Done::No(denial)) => {
                    self.phase = Phase::Done;
                    return self.answer(Err(denial.into()), steps);
                }
                Verdict::NoQuorumPossible if self.votes.is_unrecorded() && self.tag == EXTEND => {
                    self.phase = Phase::CheckingHealth;
                    steps.push(Step::CheckHealth(self.started, false));
                    return;
                }
                Verdict::NoQuorumPossible => return self.give_up(now, view, steps),
            },
            Phase::Collecting => {}
            _ => return,
        }
        if self.votes.outstanding().is_empty() {
            // Also below an unacknowledged grant to another candidate. Otherwise candidates that campaign again and
            // again would prevent the repair of the node.
            let lacking = self.votes.lacking().and(self.votes.held());
            self.repair(Purpose::Repair, lacking, now, view, steps);
        }
    }

    fn give_up(&mut self, now: Instant, view: &impl View, steps: &mut Steps) {
        self.phase = Phase::Done;
        self.answer(Err(undecided(view.electorate(), self.deadline, now)), steps);
    }

    /// Reads the lease, to write it to nodes that lack it and may be repaired.
    fn repair(
        &mut self,
        purpose: Purpose,
        lacking: Nodes,
        now: Instant,
        view: &impl View,
        steps: &mut Steps,
    ) {
        if lacking.is_empty() || !holds(Rule::Repair) {
            return self.repaired(purpose, Nodes::NONE, now, view, steps);
        }
        steps.push(Step::Note(Note::Repairing(lacking.count())));
        // Read before the lease: in this incarnation, a node has not forgotten what it has held since then.
        let incarnations: Vec<_> = lacking
            .iter()
            .filter_map(|node| {
                let incarnation = view.incarnation(node, &self.extend.election)?;
                // The nodes that renewed must know of every agent that may still count a vote of an earlier
                // incarnation: an agent registers before it requests votes.
                let mut renewed = self.votes.renewed().iter();
                let known = renewed.all(|from| view.probed_since(from, incarnation.seen));
                (known || !holds(Rule::RepairKnowsBounds)).then_some((node, incarnation))
            })
            .collect();
        let Some((source, _)) = self.renewed.filter(|_| !incarnations.is_empty()) else {
            return self.repaired(purpose, Nodes::NONE, now, view, steps);
        };
        self.phase = Phase::Reading(purpose, incarnations);
        steps.push(Step::Ask {
            tag: READ,
            nodes: Nodes::one(source),
            call: Call::Read(Arc::new(self.extend.election.clone())),
            until: self.until(purpose, now, view),
        });
    }

    /// Until when to wait for replies: the caller does not wait for a repair.
    fn until(&self, purpose: Purpose, now: Instant, view: &impl View) -> Instant {
        match purpose {
            // At most as long as a node may take.
            Purpose::Repair => now + 2 * view.bounds().vote,
            Purpose::Raise | Purpose::Join => self.deadline,
        }
    }

    fn write(&mut self, reading: Option<Lease>, now: Instant, view: &impl View, steps: &mut Steps) {
        let Phase::Reading(purpose, incarnations) = std::mem::replace(&mut self.phase, Phase::Done)
        else {
            return;
        };
        let lapses = self.lapses();
        let in_force = now < lapses || !holds(Rule::RepairInForce);
        // A later grant to the same candidate may yet be rolled back.
        let extended = |lease: &Lease| {
            let token = self.renewed.map(|(_, token)| token);
            lease.leader == self.extend.leader && Some(lease.token) == token
        };
        let lease = reading.filter(|lease| extended(lease) && in_force);
        let Some(lease) = lease else {
            return self.repaired(purpose, Nodes::NONE, now, view, steps);
        };
        let mut nodes = Nodes::NONE;
        for (node, incarnation) in incarnations {
            nodes.add(node);
            let repair = Repair {
                election: self.extend.election.clone(),
                lease: lease.clone(),
                term: self.extend.term,
                incarnation: incarnation.id,
                onto: match purpose {
                    Purpose::Raise => Onto::Own,
                    // The lease counts as held there: a candidate with an unacknowledged lease on top of it might win
                    // there.
                    Purpose::Join => Onto::Vacant,
                    Purpose::Repair => Onto::Unacknowledged,
                },
                bounds: view.longest(),
                not_after: lapses,
            };
            steps.push(Step::Ask {
                tag: REPAIR,
                nodes: Nodes::one(node),
                call: Call::Repair(Arc::new(repair)),
                until: self.until(purpose, now, view),
            });
        }
        self.phase = Phase::Writing(purpose, nodes, Nodes::NONE);
    }

    /// Completes the repair: these nodes were repaired.
    fn repaired(
        &mut self,
        purpose: Purpose,
        nodes: Nodes,
        now: Instant,
        view: &impl View,
        steps: &mut Steps,
    ) {
        if !nodes.is_empty() {
            steps.push(Step::Note(Note::Repaired(nodes.count())));
        }
        if purpose != Purpose::Repair {
            match view.electorate().all(self.votes.renewed().and(nodes)) {
                true => self.extended(now, steps),
                false => return self.give_up(now, view, steps),
            }
        }
        self.phase = Phase::Done;
    }
}

impl Machine for Extending {
    type Output = Extended;

    fn on(&mut self, event: Event, now: Instant, view: &impl View, steps: &mut Steps) {
        match event {
            Event::Begin => self.ask(view, steps),
            Event::HealthChecked(answered) => {
                if matches!(self.phase, Phase::CheckingHealth) {
                    match answered {
                        true => {
                            self.tag = EXTEND_AGAIN;
                            self.phase = Phase::Voting;
                            self.votes = Extensions::new(view.electorate());
                            self.renewed = None;
                            self.ask(view, steps);
                        }
                        false => self.give_up(now, view, steps),
                    }
                }
            }
            Event::Replied { tag, node, reply } => match (tag, reply) {
                (EXTEND | EXTEND_AGAIN, _) if tag != self.tag => {}
                (EXTEND | EXTEND_AGAIN, reply) => {
                    let reply = reply.and_then(|reply| match reply {
                        Reply::Extend(reply) => Ok(reply),
                        other => Err(other.unexpected()),
                    });
                    if let Ok(ExtendReply::Renewed(token)) = reply
                        && self.renewed.is_none_or(|(_, known)| token > known)
                    {
                        self.renewed = Some((node, token));
                    }
                    self.votes.add(node, reply);
                }
                (READ, reply) => {
                    let lease = match reply {
                        Ok(Reply::Read(Reading::Held(lease))) => Some(lease),
                        _ => None,
                    };
                    self.write(lease, now, view, steps);
                }
                (_, reply) => {
                    if let Phase::Writing(purpose, left, repaired) = &mut self.phase {
                        left.remove(node);
                        if reply == Ok(Reply::Repaired(true)) {
                            repaired.add(node);
                        }
                        if left.is_empty() {
                            let (purpose, repaired) = (*purpose, *repaired);
                            self.repaired(purpose, repaired, now, view, steps);
                        }
                    }
                }
            },
            Event::Woken | Event::Abandoned => {}
        }
        self.count(now, view, steps);
    }

    fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done) && self.votes.outstanding().is_empty()
    }
}
