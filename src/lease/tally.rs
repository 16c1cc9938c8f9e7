//! Counting votes: what the replies of some of N nodes decide. Pure; no clock, no I/O.

use std::time::Duration;

use super::{ExtendReply, GrantReply, Lease, NodeError, ResignReply};
use crate::election::types::{Candidate, Token};

/// How many of `nodes` are a quorum: more than half.
pub(super) fn quorum(nodes: usize) -> usize {
    nodes / 2 + 1
}

/// What a set of replies to one round of requests has decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict<T> {
    /// Whatever the other nodes answer, this stands.
    Decided(T),
    /// More answers are needed.
    Open,
    /// Whatever the other nodes answer, no quorum agrees.
    Hopeless,
}

/// How many nodes there are, are still to answer, and gave no answer.
#[derive(Debug)]
struct Roll {
    nodes: usize,
    outstanding: usize,
    errors: usize,
}

impl Roll {
    fn new(nodes: usize) -> Self {
        Self {
            nodes,
            outstanding: nodes,
            errors: 0,
        }
    }

    fn quorum(&self) -> usize {
        quorum(self.nodes)
    }

    /// Notes an answer, and gives its content if there is one.
    fn note<T>(&mut self, reply: Result<T, NodeError>) -> Option<T> {
        self.outstanding -= 1;
        if reply.is_err() {
            self.errors += 1;
        }
        reply.ok()
    }

    /// How many nodes may yet turn out to have done anything.
    fn unknown(&self) -> usize {
        self.outstanding + self.errors
    }

    fn unreachable(&self) -> bool {
        self.errors > self.nodes - self.quorum()
    }
}

/// The votes of one round of grants.
#[derive(Debug)]
pub(super) struct Grants {
    roll: Roll,
    granted: Vec<(Token, usize)>,
    held: Vec<(Lease, usize)>,
    mismatched: usize,
    stale: bool,
    unmarked: usize,
    guarded: Vec<Duration>,
}

/// What a quorum said to a grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Granted {
    /// The candidate has the lease with this token.
    Won(Token),
    /// Another has it.
    Lost(Lease),
    /// The token of the leader that hands over is not the lease's.
    TokenMismatch,
}

/// Why no quorum agreed on a grant, and so what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// Some node has no marker.
    Unmarked,
    /// The token was too small for some node.
    Stale,
    /// Too few nodes answered.
    Unreachable,
    /// Too many nodes abstain; after this long enough of them no longer do.
    Guarded(Duration),
    /// The candidates got in each other's way.
    Split,
}

impl Grants {
    pub(super) fn new(nodes: usize) -> Self {
        Self {
            roll: Roll::new(nodes),
            granted: Vec::new(),
            held: Vec::new(),
            mismatched: 0,
            stale: false,
            unmarked: 0,
            guarded: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, reply: Result<GrantReply, NodeError>) {
        match self.roll.note(reply) {
            None => {}
            Some(GrantReply::Granted(token)) => {
                match self.granted.iter_mut().find(|(known, _)| *known == token) {
                    Some((_, votes)) => *votes += 1,
                    None => self.granted.push((token, 1)),
                }
            }
            Some(GrantReply::Held(lease)) => {
                match self
                    .held
                    .iter_mut()
                    .find(|(known, _)| known.leader == lease.leader)
                {
                    Some((known, votes)) => {
                        *votes += 1;
                        if lease.token > known.token {
                            *known = lease;
                        }
                    }
                    None => self.held.push((lease, 1)),
                }
            }
            Some(GrantReply::TokenMismatch) => self.mismatched += 1,
            Some(GrantReply::Stale(_)) => self.stale = true,
            Some(GrantReply::Unmarked) => self.unmarked += 1,
            Some(GrantReply::Guarded(wait)) => self.guarded.push(wait),
        }
    }

    pub(super) fn verdict(&self) -> Verdict<Granted> {
        let quorum = self.roll.quorum();
        let granted = self.granted.iter().max_by_key(|(_, votes)| *votes);
        let held = self.held.iter().max_by_key(|(_, votes)| *votes);
        if let Some((token, votes)) = granted
            && *votes >= quorum
        {
            return Verdict::Decided(Granted::Won(*token));
        }
        if let Some((lease, votes)) = held
            && *votes >= quorum
        {
            return Verdict::Decided(Granted::Lost(lease.clone()));
        }
        if self.mismatched >= quorum {
            return Verdict::Decided(Granted::TokenMismatch);
        }
        let best = [
            granted.map_or(0, |(_, votes)| *votes),
            held.map_or(0, |(_, votes)| *votes),
            self.mismatched,
        ];
        let hopeless = best
            .iter()
            .all(|votes| votes + self.roll.outstanding < quorum);
        if hopeless {
            Verdict::Hopeless
        } else {
            Verdict::Open
        }
    }

    /// Whether a quorum has answered for candidates of whom none has a quorum: the others may decide, but
    /// asking again may be faster than waiting for them.
    pub(super) fn is_split(&self) -> bool {
        let granted: usize = self.granted.iter().map(|(_, votes)| votes).sum();
        let held: usize = self.held.iter().map(|(_, votes)| votes).sum();
        granted + held >= self.roll.quorum() && self.verdict() == Verdict::Open
    }

    /// Why no quorum agreed, once it cannot or the time for it is over.
    pub(super) fn failure(&self) -> Failure {
        let abstaining = self.guarded.len();
        let granting = self
            .roll
            .nodes
            .saturating_sub(abstaining + self.roll.unknown());
        let missing = self.roll.quorum().saturating_sub(granting);
        let mut guarded = self.guarded.clone();
        guarded.sort_unstable();
        if self.unmarked > 0 {
            Failure::Unmarked
        } else if self.stale {
            Failure::Stale
        } else if self.roll.unreachable() {
            Failure::Unreachable
        } else if let Some(wait) = missing.checked_sub(1).and_then(|last| guarded.get(last)) {
            Failure::Guarded(*wait)
        } else {
            Failure::Split
        }
    }
}

/// The votes of one round of extensions.
#[derive(Debug)]
pub(super) struct Extensions {
    roll: Roll,
    renewed: usize,
    behind: usize,
    missing: usize,
    held: usize,
    stale: usize,
}

/// What the nodes said to an extension or a resignation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    /// A quorum did it.
    Yes,
    /// A quorum would have, had not some nodes an older token of the same leader.
    AfterRaising,
    /// A quorum does not hold the leader's lease.
    No(Denial),
}

/// Why a leader's request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// The election is vacant.
    NoTerm,
    /// Another candidate leads.
    HeldByOther,
    /// The candidate leads, but with another token.
    StaleToken,
}

impl Extensions {
    pub(super) fn new(nodes: usize) -> Self {
        Self {
            roll: Roll::new(nodes),
            renewed: 0,
            behind: 0,
            missing: 0,
            held: 0,
            stale: 0,
        }
    }

    pub(super) fn add(&mut self, reply: Result<ExtendReply, NodeError>) {
        match self.roll.note(reply) {
            None => {}
            Some(ExtendReply::Renewed(_)) => self.renewed += 1,
            Some(ExtendReply::Behind) => self.behind += 1,
            Some(ExtendReply::Missing) => self.missing += 1,
            Some(ExtendReply::Held) => self.held += 1,
            Some(ExtendReply::Stale) => self.stale += 1,
        }
    }

    pub(super) fn verdict(&self) -> Verdict<Done> {
        let quorum = self.roll.quorum();
        if self.renewed >= quorum {
            return Verdict::Decided(Done::Yes);
        }
        if self.renewed + self.roll.outstanding >= quorum {
            return Verdict::Open;
        }
        // A node that has the token proves that it was granted, so nodes behind may be raised.
        if self.renewed > 0 && self.renewed + self.behind >= quorum {
            return Verdict::Decided(Done::AfterRaising);
        }
        if self.renewed + self.roll.unknown() < quorum {
            let stale = self.stale + self.behind;
            return Verdict::Decided(Done::No(denial(stale, self.held, self.missing)));
        }
        Verdict::Hopeless
    }
}

/// The reason most nodes give; of equal numbers, the one that says most.
fn denial(stale: usize, held: usize, missing: usize) -> Denial {
    if stale >= held && stale >= missing {
        Denial::StaleToken
    } else if held >= missing {
        Denial::HeldByOther
    } else {
        Denial::NoTerm
    }
}

/// The votes of one round of resignations.
#[derive(Debug)]
pub(super) struct Resignations {
    roll: Roll,
    resigned: usize,
    missing: usize,
    held: usize,
    stale: usize,
}

impl Resignations {
    pub(super) fn new(nodes: usize) -> Self {
        Self {
            roll: Roll::new(nodes),
            resigned: 0,
            missing: 0,
            held: 0,
            stale: 0,
        }
    }

    pub(super) fn add(&mut self, reply: Result<ResignReply, NodeError>) {
        match self.roll.note(reply) {
            None => {}
            Some(ResignReply::Resigned) => self.resigned += 1,
            Some(ResignReply::Missing) => self.missing += 1,
            Some(ResignReply::Held) => self.held += 1,
            Some(ResignReply::Stale) => self.stale += 1,
        }
    }

    /// Resigned means: a node had the lease, and a quorum now has none.
    pub(super) fn verdict(&self) -> Verdict<Done> {
        let quorum = self.roll.quorum();
        let gone = self.resigned + self.missing;
        if self.resigned > 0 && gone >= quorum {
            return Verdict::Decided(Done::Yes);
        }
        if self.roll.outstanding > 0 {
            return Verdict::Open;
        }
        if self.resigned + self.roll.errors < quorum {
            return Verdict::Decided(Done::No(denial(self.stale, self.held, self.missing)));
        }
        Verdict::Hopeless
    }
}

/// The replies of one round of reads.
#[derive(Debug)]
pub(super) struct Reads {
    roll: Roll,
    leases: Vec<Lease>,
}

impl Reads {
    pub(super) fn new(nodes: usize) -> Self {
        Self {
            roll: Roll::new(nodes),
            leases: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, reply: Result<Option<Lease>, NodeError>) {
        if let Some(Some(lease)) = self.roll.note(reply) {
            self.leases.push(lease);
        }
    }

    pub(super) fn verdict(&self) -> Verdict<Option<Lease>> {
        let quorum = self.roll.quorum();
        let most = self
            .leases
            .iter()
            .map(|lease| votes(&self.leases, &lease.leader))
            .max()
            .unwrap_or(0);
        if most >= quorum {
            return Verdict::Decided(agreed(&self.leases, quorum));
        }
        if most + self.roll.unknown() < quorum {
            return Verdict::Decided(None);
        }
        if self.roll.outstanding == 0 {
            Verdict::Hopeless
        } else {
            Verdict::Open
        }
    }
}

fn votes(leases: &[Lease], leader: &Candidate) -> usize {
    leases
        .iter()
        .filter(|lease| lease.leader == *leader)
        .count()
}

/// The lease that at least `quorum` nodes hold: it lasts as long as a quorum of them does.
pub(super) fn agreed(leases: &[Lease], quorum: usize) -> Option<Lease> {
    let leader = leases
        .iter()
        .map(|lease| &lease.leader)
        .find(|leader| votes(leases, leader) >= quorum)?;
    let mut of_leader: Vec<_> = leases
        .iter()
        .filter(|lease| lease.leader == *leader)
        .collect();
    of_leader.sort_unstable_by_key(|lease| std::cmp::Reverse(lease.remaining));
    let remaining = of_leader.get(quorum - 1)?.remaining;
    let newest = of_leader.into_iter().max_by_key(|lease| lease.token)?;
    Some(Lease {
        remaining,
        ..newest.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::election::types::Value;

    fn token(n: u64) -> Token {
        Token::new(n).expect("in range")
    }

    fn lease(leader: &str, n: u64, remaining: u64) -> Lease {
        Lease {
            leader: Candidate::new("leader", leader).expect("valid"),
            token: token(n),
            value: Value::default(),
            elected_at: 0,
            remaining: Duration::from_millis(remaining),
        }
    }

    fn error<T>() -> Result<T, NodeError> {
        Err(NodeError::unknown("down"))
    }

    fn grants(nodes: usize, replies: &[Result<GrantReply, NodeError>]) -> Grants {
        let mut tally = Grants::new(nodes);
        replies.iter().for_each(|reply| tally.add(reply.clone()));
        tally
    }

    #[test]
    fn a_grant_is_won_or_lost_by_a_quorum_alone() {
        use GrantReply::{Granted as Yes, Held};
        let (mine, a, b) = (token(9), lease("a", 5, 10), lease("b", 6, 10));
        let one = grants(3, &[Ok(Yes(mine))]);
        assert_eq!(one.verdict(), Verdict::Open);
        let won = grants(3, &[Ok(Yes(mine)), error(), Ok(Yes(mine))]);
        assert_eq!(won.verdict(), Verdict::Decided(Granted::Won(mine)));
        let lost = grants(3, &[Ok(Held(a.clone())), Ok(Held(a.clone()))]);
        assert_eq!(lost.verdict(), Verdict::Decided(Granted::Lost(a.clone())));
        let splitting = grants(3, &[Ok(Yes(mine)), Ok(Held(a.clone()))]);
        assert_eq!(splitting.verdict(), Verdict::Open);
        assert!(splitting.is_split() && !one.is_split() && !won.is_split());
        let split = grants(3, &[Ok(Yes(mine)), Ok(Held(a.clone())), Ok(Held(b))]);
        assert_eq!(split.verdict(), Verdict::Hopeless);
        assert_eq!(split.failure(), Failure::Split);
        let unknown = grants(3, &[Ok(Yes(mine)), Ok(Held(a)), error()]);
        assert_eq!(unknown.verdict(), Verdict::Hopeless);
        let tokens_differ = grants(3, &[Ok(Yes(mine)), Ok(Yes(token(8))), error()]);
        assert_eq!(tokens_differ.verdict(), Verdict::Hopeless);
    }

    #[test]
    fn a_failed_grant_says_what_to_do_next() {
        use GrantReply::{Granted as Yes, Guarded, Stale, Unmarked};
        let secs = Duration::from_secs;
        let failure = |replies: &[_]| grants(3, replies).failure();
        assert_eq!(
            failure(&[Ok(Unmarked), Ok(Unmarked), error()]),
            Failure::Unmarked
        );
        assert_eq!(
            failure(&[Ok(Yes(token(2))), Ok(Stale(token(3))), error()]),
            Failure::Stale
        );
        assert_eq!(
            failure(&[Ok(Yes(token(2))), error(), error()]),
            Failure::Unreachable
        );
        assert_eq!(
            failure(&[
                Ok(Yes(token(2))),
                Ok(Guarded(secs(9))),
                Ok(Guarded(secs(4)))
            ]),
            Failure::Guarded(secs(4))
        );
        assert_eq!(
            failure(&[error(), Ok(Guarded(secs(9))), Ok(Guarded(secs(4)))]),
            Failure::Guarded(secs(9))
        );
    }

    #[test]
    fn an_extension_is_refused_only_when_no_quorum_can_hold_the_lease() {
        use ExtendReply::{Behind, Held, Missing, Renewed, Stale};
        let verdict = |nodes, replies: &[Result<ExtendReply, NodeError>]| {
            let mut tally = Extensions::new(nodes);
            replies.iter().for_each(|reply| tally.add(reply.clone()));
            tally.verdict()
        };
        let yes = || Ok(Renewed(token(1)));
        let no = |denial| Verdict::Decided(Done::No(denial));
        assert_eq!(verdict(1, &[Ok(Behind)]), no(Denial::StaleToken));
        assert_eq!(verdict(1, &[Ok(Stale)]), no(Denial::StaleToken));
        assert_eq!(verdict(1, &[error()]), Verdict::Hopeless);
        assert_eq!(
            verdict(3, &[yes(), error(), yes()]),
            Verdict::Decided(Done::Yes)
        );
        assert_eq!(verdict(3, &[yes(), Ok(Missing)]), Verdict::Open);
        assert_eq!(
            verdict(3, &[yes(), Ok(Missing), error()]),
            Verdict::Hopeless
        );
        assert_eq!(verdict(3, &[Ok(Held), Ok(Held)]), no(Denial::HeldByOther));
        assert_eq!(verdict(3, &[Ok(Missing), Ok(Missing)]), no(Denial::NoTerm));
        assert_eq!(
            verdict(3, &[yes(), Ok(Behind), error()]),
            Verdict::Decided(Done::AfterRaising)
        );
        assert_eq!(
            verdict(3, &[Ok(Behind), Ok(Behind), error()]),
            no(Denial::StaleToken)
        );
    }

    #[test]
    fn a_resignation_needs_one_that_had_it_and_a_quorum_without() {
        use ResignReply::{Held, Missing, Resigned};
        let verdict = |replies: &[Result<ResignReply, NodeError>]| {
            let mut tally = Resignations::new(3);
            replies.iter().for_each(|reply| tally.add(reply.clone()));
            tally.verdict()
        };
        assert_eq!(
            verdict(&[Ok(Resigned), Ok(Missing)]),
            Verdict::Decided(Done::Yes)
        );
        assert_eq!(verdict(&[Ok(Missing), Ok(Missing)]), Verdict::Open);
        assert_eq!(
            verdict(&[Ok(Missing), Ok(Missing), error()]),
            Verdict::Decided(Done::No(Denial::NoTerm))
        );
        assert_eq!(
            verdict(&[Ok(Held), Ok(Held), Ok(Resigned)]),
            Verdict::Decided(Done::No(Denial::HeldByOther))
        );
        assert_eq!(
            verdict(&[Ok(Resigned), error(), error()]),
            Verdict::Hopeless
        );
    }

    #[test]
    fn a_read_answers_when_a_quorum_agrees_or_no_leader_can_have_one() {
        let verdict = |replies: &[Result<Option<Lease>, NodeError>]| {
            let mut tally = Reads::new(3);
            replies.iter().for_each(|reply| tally.add(reply.clone()));
            tally.verdict()
        };
        let (old, new) = (lease("a", 5, 10), lease("a", 6, 30));
        assert_eq!(
            verdict(&[Ok(Some(old.clone())), Ok(Some(new))]),
            Verdict::Decided(Some(lease("a", 6, 10)))
        );
        assert_eq!(verdict(&[Ok(None), Ok(None)]), Verdict::Decided(None));
        assert_eq!(verdict(&[Ok(None), Ok(Some(old.clone()))]), Verdict::Open);
        assert_eq!(
            verdict(&[Ok(None), Ok(Some(old.clone())), error()]),
            Verdict::Hopeless
        );
        assert_eq!(
            verdict(&[
                Ok(Some(lease("b", 7, 5))),
                Ok(Some(old)),
                Ok(Some(lease("c", 8, 5)))
            ]),
            Verdict::Decided(None)
        );
    }
}
