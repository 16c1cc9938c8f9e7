//! Counts votes: what the replies of some of the nodes decide. Pure; no clock, no I/O.

use std::time::Duration;

use super::{
    ExtendReply, GrantReply, Lease, NodeError, Reading, Refusal, ResignReply, State,
    policy::{Electorate, Nodes},
};
use crate::types::{Candidate, Token};

/// The size of a majority of this many nodes.
#[must_use]
pub fn quorum(count: usize) -> usize {
    count / 2 + 1
}

/// What a set of replies to one round of calls has decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict<T> {
    /// The decision stands, whatever the other nodes reply.
    Decided(T),
    /// More replies are needed.
    Open,
    /// No quorum agrees, whatever the other nodes reply.
    NoQuorumPossible,
}

/// Which nodes have not replied yet, and which failed to reply.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Roll {
    electorate: Electorate,
    outstanding: Nodes,
    errors: Nodes,
}

impl Roll {
    fn new(electorate: Electorate) -> Self {
        Self {
            electorate,
            outstanding: electorate.nodes(),
            errors: Nodes::NONE,
        }
    }

    /// Notes a reply, and returns its content if there is one.
    fn note<T>(&mut self, node: usize, reply: Result<T, NodeError>) -> Option<T> {
        self.outstanding.remove(node);
        if reply.is_err() {
            self.errors.add(node);
        }
        reply.ok()
    }

    /// The nodes on which the call may have taken effect, or may yet.
    fn unknown(&self) -> Nodes {
        self.outstanding.and(self.errors)
    }

    /// Whether so many nodes failed to reply that no majority of the others is left.
    fn unreachable(&self) -> bool {
        let others = self.electorate.nodes().without(self.errors);
        !self.electorate.all(others)
    }
}

/// The votes of one round of grants.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Grants {
    roll: Roll,
    granted: Vec<(Token, Nodes)>,
    held: Vec<(Lease, Nodes)>,
    mismatched: Nodes,
    vacant: Nodes,
    used: Nodes,
    stale: Option<Token>,
    /// Nodes that have no memory for one more lease. They replied: none of them has granted.
    full: Nodes,
    unrecorded: bool,
    unprepared: bool,
    guarded: Vec<(Duration, usize)>,
}

/// The decision of a quorum about a grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Granted {
    /// The candidate has the lease with this token.
    Won(Token),
    /// Another candidate has the lease.
    Lost(Lease),
    /// The token of the leader that hands over is not the lease's token.
    TokenMismatch,
    /// There is no leader to hand over.
    Vacant,
    /// The request was granted before, and its lease has ended.
    Used,
}

/// Why no quorum agreed on a grant. This determines what the claim does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// Some node has no incarnation record.
    Unrecorded,
    /// This agent has not probed some node as required: in its present incarnation, or since its clock was set.
    Unprepared,
    /// Some node has accepted this token, which is not below the proposed one.
    Stale(Token),
    /// Too few nodes replied.
    Unreachable,
    /// Without those whose memory is full, no majority is left.
    Full,
    /// Too many nodes are in quarantine; after this time enough of them grant again.
    Guarded(Duration),
    /// The votes are split between candidates.
    Split,
}

impl Grants {
    pub(super) fn new(electorate: Electorate) -> Self {
        Self {
            roll: Roll::new(electorate),
            granted: Vec::new(),
            held: Vec::new(),
            mismatched: Nodes::NONE,
            vacant: Nodes::NONE,
            used: Nodes::NONE,
            stale: None,
            full: Nodes::NONE,
            unrecorded: false,
            unprepared: false,
            guarded: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, node: usize, reply: Result<GrantReply, NodeError>) {
        if let Err(NodeError::Full(_)) = reply {
            self.roll.outstanding.remove(node);
            self.full.add(node);
            return;
        }
        match self.roll.note(node, reply) {
            None => {}
            Some(GrantReply::Granted(token)) => {
                match self.granted.iter_mut().find(|(known, _)| *known == token) {
                    Some((_, votes)) => votes.add(node),
                    None => self.granted.push((token, Nodes::one(node))),
                }
            }
            Some(GrantReply::Held(lease)) => {
                let known = self.held.iter_mut();
                match known
                    .into_iter()
                    .find(|(known, _)| known.leader == lease.leader)
                {
                    Some((known, votes)) => {
                        votes.add(node);
                        if lease.token > known.token {
                            *known = lease;
                        }
                    }
                    None => self.held.push((lease, Nodes::one(node))),
                }
            }
            Some(GrantReply::TokenMismatch) => self.mismatched.add(node),
            Some(GrantReply::Vacant) => self.vacant.add(node),
            Some(GrantReply::Used) => self.used.add(node),
            Some(GrantReply::Stale(token)) => self.stale = self.stale.max(Some(token)),
            Some(GrantReply::Unrecorded) => self.unrecorded = true,
            Some(GrantReply::Unregistered | GrantReply::Late) => self.unprepared = true,
            Some(GrantReply::Guarded(wait)) => self.guarded.push((wait, node)),
        }
    }

    /// The nodes that have not replied yet.
    pub(super) fn outstanding(&self) -> Nodes {
        self.roll.outstanding
    }

    pub(super) fn verdict(&self) -> Verdict<Granted> {
        let electorate = self.roll.electorate;
        for (token, votes) in &self.granted {
            if electorate.all(*votes) {
                return Verdict::Decided(Granted::Won(*token));
            }
        }
        for (lease, votes) in &self.held {
            if electorate.any(*votes) {
                return Verdict::Decided(Granted::Lost(lease.clone()));
            }
        }
        if electorate.any(self.mismatched) {
            return Verdict::Decided(Granted::TokenMismatch);
        }
        if electorate.all(self.vacant) {
            return Verdict::Decided(Granted::Vacant);
        }
        if electorate.any(self.used) {
            return Verdict::Decided(Granted::Used);
        }
        let left = self.roll.outstanding;
        let granted = self.granted.iter().map(|(_, votes)| *votes);
        let held = self.held.iter().map(|(_, votes)| *votes);
        let no_quorum_possible = granted
            .chain(held)
            .chain([self.mismatched, self.vacant, self.used])
            .all(|votes| !electorate.any(votes.and(left)));
        match no_quorum_possible {
            true => Verdict::NoQuorumPossible,
            false => Verdict::Open,
        }
    }

    /// Whether a quorum has replied and no candidate has a quorum. The other nodes may decide, but a new vote may be
    /// faster than waiting for them.
    pub(super) fn is_split(&self) -> bool {
        let granted = self.granted.iter().map(|(_, votes)| *votes);
        let held = self.held.iter().map(|(_, votes)| *votes);
        let answered = granted.chain(held).fold(Nodes::NONE, Nodes::and);
        self.roll.electorate.all(answered) && self.verdict() == Verdict::Open
    }

    /// The tokens that nodes hold, other than this one, and whether a majority may hold each.
    pub(super) fn other_tokens(&self, token: Token) -> impl Iterator<Item = (Token, bool)> {
        let others = self
            .granted
            .iter()
            .filter(move |(other, _)| *other != token);
        others.map(|(other, votes)| {
            let may_have = votes.and(self.roll.unknown());
            (*other, self.roll.electorate.any(may_have))
        })
    }

    /// Why no quorum agreed, when none can or the time for the vote has passed.
    pub(super) fn failure(&self) -> Failure {
        let electorate = self.roll.electorate;
        let in_quarantine: Nodes = self.guarded.iter().map(|(_, node)| *node).collect();
        let mut granting = electorate
            .nodes()
            .without(in_quarantine.and(self.roll.unknown()).and(self.full));
        let too_many_full = !self.full.is_empty() && !electorate.all(granting);
        let mut guarded = self.guarded.clone();
        guarded.sort_unstable();
        let wait = guarded.into_iter().find_map(|(wait, node)| {
            let enough = electorate.all(granting);
            granting.add(node);
            (!enough && electorate.all(granting)).then_some(wait)
        });
        match (self.stale, wait) {
            _ if self.unrecorded => Failure::Unrecorded,
            _ if self.unprepared => Failure::Unprepared,
            (Some(token), _) => Failure::Stale(token),
            _ if self.roll.unreachable() => Failure::Unreachable,
            (None, Some(wait)) => Failure::Guarded(wait),
            (None, None) if too_many_full => Failure::Full,
            (None, None) => Failure::Split,
        }
    }
}

/// The nodes that refused an extension or a resignation, by their reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Refusals {
    missing: Nodes,
    /// Includes the nodes without an incarnation record.
    not_known: Nodes,
    unrecorded: bool,
    held: Nodes,
    stale: Nodes,
}

impl Refusals {
    fn add(&mut self, node: usize, refusal: Refusal) {
        self.unrecorded |= refusal == Refusal::Unrecorded;
        match refusal {
            Refusal::Missing => self.missing.add(node),
            Refusal::NotKnown | Refusal::Unrecorded => self.not_known.add(node),
            Refusal::Held => self.held.add(node),
            Refusal::Stale => self.stale.add(node),
        }
    }

    /// The reason that most nodes report; of equal numbers, the most specific one. Nodes that are `behind` hold the
    /// lease with an older token.
    fn denial(&self, behind: Nodes) -> Denial {
        let stale = self.stale.and(behind).count();
        let (held, missing) = (self.held.count(), self.missing.count());
        if stale >= held && stale >= missing {
            Denial::StaleToken
        } else if held >= missing {
            Denial::HeldByOther
        } else {
            Denial::NoTerm
        }
    }
}

/// The votes of one round of extensions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Extensions {
    roll: Roll,
    renewed: Nodes,
    behind: Nodes,
    refusals: Refusals,
}

/// The decision of the nodes about an extension or a resignation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    /// A quorum did it.
    Yes,
    /// A quorum would have done it, but some nodes have an older token of the same leader.
    AfterRaising,
    /// A quorum of one of two lists did it; the lease must be written to the other list's nodes.
    AfterWriting,
    /// A quorum does not hold the leader's lease.
    No(Denial),
}

/// Why a leader's request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// The election is vacant.
    #[error(
        "the election is vacant: the term has lapsed, was given up, or never was; campaign again"
    )]
    NoTerm,
    /// Another candidate leads.
    #[error("another candidate leads the election")]
    HeldByOther,
    /// The candidate leads, but with another token.
    #[error(
        "the token is not the leader's current one: another process has campaigned under this name since"
    )]
    StaleToken,
}

impl Extensions {
    pub(super) fn new(electorate: Electorate) -> Self {
        Self {
            roll: Roll::new(electorate),
            renewed: Nodes::NONE,
            behind: Nodes::NONE,
            refusals: Refusals::default(),
        }
    }

    /// Whether some node has no incarnation record yet: a retry may help when it has one.
    pub(super) fn is_unrecorded(&self) -> bool {
        self.refusals.unrecorded
    }

    pub(super) fn add(&mut self, node: usize, reply: Result<ExtendReply, NodeError>) {
        match self.roll.note(node, reply) {
            None => {}
            Some(ExtendReply::Renewed(_)) => self.renewed.add(node),
            Some(ExtendReply::Behind) => self.behind.add(node),
            Some(ExtendReply::Refused(refusal)) => self.refusals.add(node, refusal),
        }
    }

    pub(super) fn renewed(&self) -> Nodes {
        self.renewed
    }

    pub(super) fn behind(&self) -> Nodes {
        self.behind
    }

    /// The nodes that hold another candidate's lease: a grant that may be unacknowledged and be rolled back.
    pub(super) fn held(&self) -> Nodes {
        self.refusals.held
    }

    /// The nodes that lack the lease, or have an older one.
    pub(super) fn lacking(&self) -> Nodes {
        self.behind
            .and(self.refusals.missing)
            .and(self.refusals.not_known)
    }

    pub(super) fn outstanding(&self) -> Nodes {
        self.roll.outstanding
    }

    pub(super) fn verdict(&self) -> Verdict<Done> {
        let electorate = self.roll.electorate;
        if electorate.all(self.renewed) {
            return Verdict::Decided(Done::Yes);
        }
        if electorate.all(self.renewed.and(self.roll.outstanding)) {
            return Verdict::Open;
        }
        if electorate.is_joint() && electorate.any(self.renewed) {
            return match self.roll.outstanding.is_empty() {
                true => Verdict::Decided(Done::AfterWriting),
                false => Verdict::Open,
            };
        }
        // A node that has the token proves that it was granted, so nodes with an older token may be repaired to it.
        if !self.renewed.is_empty() && electorate.all(self.renewed.and(self.behind)) {
            return Verdict::Decided(Done::AfterRaising);
        }
        let unknown = self.roll.unknown().and(self.refusals.not_known);
        if !electorate.any(self.renewed.and(unknown)) {
            return Verdict::Decided(Done::No(self.refusals.denial(self.behind)));
        }
        match electorate.any(self.renewed.and(self.roll.outstanding)) {
            true => Verdict::Open,
            false => Verdict::NoQuorumPossible,
        }
    }
}

/// The votes of one round of resignations.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Resignations {
    roll: Roll,
    resigned: Nodes,
    refusals: Refusals,
}

impl Resignations {
    pub(super) fn new(electorate: Electorate) -> Self {
        Self {
            roll: Roll::new(electorate),
            resigned: Nodes::NONE,
            refusals: Refusals::default(),
        }
    }

    /// See [`Extensions::is_unrecorded`].
    pub(super) fn is_unrecorded(&self) -> bool {
        self.refusals.unrecorded
    }

    pub(super) fn add(&mut self, node: usize, reply: Result<ResignReply, NodeError>) {
        match self.roll.note(node, reply) {
            None => {}
            Some(ResignReply::Resigned) => self.resigned.add(node),
            Some(ResignReply::Refused(refusal)) => self.refusals.add(node, refusal),
        }
    }

    pub(super) fn outstanding(&self) -> Nodes {
        self.roll.outstanding
    }

    /// Resigned means: a node had the lease, and a quorum now has none.
    pub(super) fn verdict(&self) -> Verdict<Done> {
        let electorate = self.roll.electorate;
        let gone = self
            .resigned
            .and(self.refusals.missing)
            .and(self.refusals.not_known);
        if !self.resigned.is_empty() && electorate.all(gone) {
            return Verdict::Decided(Done::Yes);
        }
        if !self.roll.outstanding.is_empty() {
            return Verdict::Open;
        }
        let may_have = self
            .resigned
            .and(self.roll.errors)
            .and(self.refusals.not_known);
        if !electorate.any(may_have) {
            return Verdict::Decided(Done::No(self.refusals.denial(Nodes::NONE)));
        }
        Verdict::NoQuorumPossible
    }
}

/// The replies of one round of reads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Reads {
    roll: Roll,
    not_known: Nodes,
    unrecorded: bool,
    leases: Vec<(usize, Lease)>,
    /// The highest token of a vacancy.
    token: Option<Token>,
}

impl Reads {
    pub(super) fn new(electorate: Electorate) -> Self {
        Self {
            roll: Roll::new(electorate),
            not_known: Nodes::NONE,
            unrecorded: false,
            leases: Vec::new(),
            token: None,
        }
    }

    /// See [`Extensions::is_unrecorded`].
    pub(super) fn is_unrecorded(&self) -> bool {
        self.unrecorded
    }

    pub(super) fn add(&mut self, node: usize, reply: Result<Reading, NodeError>) {
        self.unrecorded |= reply == Ok(Reading::Unrecorded);
        match self.roll.note(node, reply) {
            None => {}
            Some(Reading::Vacant(token)) => self.token = self.token.max(token),
            Some(Reading::NotKnown | Reading::Unrecorded) => self.not_known.add(node),
            Some(Reading::Held(lease)) => self.leases.push((node, lease)),
        }
    }

    /// The token of the last term. Leases of a minority belong to campaigns that are under way or have failed: after a
    /// term that a majority granted, at least one node reports the vacancy.
    fn last_token(&self) -> Option<Token> {
        let claimed = || self.leases.iter().map(|(_, lease)| lease.token).max();
        self.token.or_else(claimed)
    }

    /// Whether a majority would have replied, if some nodes had not forgotten.
    pub(super) fn is_forgotten(&self) -> bool {
        !self.not_known.is_empty() && !self.roll.unreachable()
    }

    pub(super) fn verdict(&self) -> Verdict<State> {
        let electorate = self.roll.electorate;
        if let Some(lease) = agreed(&self.leases, electorate) {
            return Verdict::Decided(State::Held(lease));
        }
        let unknown = self.roll.unknown().and(self.not_known);
        let possible = |unknown: Nodes| {
            let leaders = self.leases.iter().map(|(_, lease)| &lease.leader);
            let mut votes = leaders.map(|leader| votes(&self.leases, leader).and(unknown));
            votes.any(|votes| electorate.any(votes)) || electorate.any(unknown)
        };
        if !possible(unknown) {
            return Verdict::Decided(State::Vacant(self.last_token()));
        }
        match self.roll.outstanding.is_empty() {
            true => Verdict::NoQuorumPossible,
            false => Verdict::Open,
        }
    }
}

pub(super) fn votes(leases: &[(usize, Lease)], leader: &Candidate) -> Nodes {
    let of_leader = leases.iter().filter(|(_, lease)| lease.leader == *leader);
    of_leader.map(|(node, _)| *node).collect()
}

/// The lease that a quorum holds; it lasts as long as a quorum holds it.
pub(super) fn agreed(leases: &[(usize, Lease)], electorate: Electorate) -> Option<Lease> {
    let leader = leases
        .iter()
        .map(|(_, lease)| &lease.leader)
        .find(|leader| electorate.any(votes(leases, leader)))?;
    let mut of_leader: Vec<_> = leases
        .iter()
        .filter(|(_, lease)| lease.leader == *leader)
        .collect();
    of_leader.sort_unstable_by_key(|(_, lease)| std::cmp::Reverse(lease.remaining));
    let mut longest = Nodes::NONE;
    let remaining = of_leader.iter().find_map(|(node, lease)| {
        longest.add(*node);
        electorate.any(longest).then_some(lease.remaining)
    })?;
    let (_, newest) = of_leader.into_iter().max_by_key(|(_, lease)| lease.token)?;
    Some(Lease {
        remaining,
        ..newest.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Value;

    fn of(nodes: usize) -> Electorate {
        Electorate::of(Nodes::first(nodes))
    }

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
        let mut tally = Grants::new(of(nodes));
        for (node, reply) in replies.iter().enumerate() {
            tally.add(node, reply.clone());
        }
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
        assert_eq!(split.verdict(), Verdict::NoQuorumPossible);
        assert_eq!(split.failure(), Failure::Split);
        let unknown = grants(3, &[Ok(Yes(mine)), Ok(Held(a)), error()]);
        assert_eq!(unknown.verdict(), Verdict::NoQuorumPossible);
        let tokens_differ = grants(3, &[Ok(Yes(mine)), Ok(Yes(token(8))), error()]);
        assert_eq!(tokens_differ.verdict(), Verdict::NoQuorumPossible);
    }

    #[test]
    fn a_failed_grant_says_what_to_do_next() {
        use GrantReply::{Granted as Yes, Guarded, Stale, Unrecorded};
        let secs = Duration::from_secs;
        let failure = |replies: &[_]| grants(3, replies).failure();
        assert_eq!(
            failure(&[Ok(Unrecorded), Ok(Unrecorded), error()]),
            Failure::Unrecorded
        );
        assert_eq!(
            failure(&[Ok(Yes(token(2))), Ok(Stale(token(3))), error()]),
            Failure::Stale(token(3))
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
    fn full_nodes_are_the_reason_only_where_no_majority_is_left_without_them() {
        use GrantReply::{Granted as Yes, Guarded, Held};
        let full = || Err(NodeError::Full("no memory".to_owned()));
        let mine = token(9);
        let granted = || Ok(Yes(mine));
        let won = grants(3, &[full(), granted(), granted()]);
        assert_eq!(won.verdict(), Verdict::Decided(Granted::Won(mine)));
        let a = lease("a", 5, 10);
        let lost = grants(3, &[full(), Ok(Held(a.clone())), Ok(Held(a.clone()))]);
        assert_eq!(lost.verdict(), Verdict::Decided(Granted::Lost(a.clone())));

        let guard = Duration::from_secs(9);
        for (replies, failure) in [
            (vec![full()], Failure::Full),
            (vec![full(), full()], Failure::Full),
            (vec![full(), granted(), error()], Failure::Full),
            (vec![full(), error(), error()], Failure::Unreachable),
            (vec![full(), granted(), Ok(Held(a))], Failure::Split),
            // The wait ends by itself.
            (
                vec![full(), granted(), Ok(Guarded(guard))],
                Failure::Guarded(guard),
            ),
            (vec![full(), full(), Ok(Guarded(guard))], Failure::Full),
        ] {
            let nodes = replies.len().max(2) * 2 - 1;
            let nodes = if replies.len() == 1 { 1 } else { nodes.min(3) };
            let tally = grants(nodes, &replies);
            assert_eq!(tally.verdict(), Verdict::NoQuorumPossible, "{replies:?}");
            assert_eq!(tally.failure(), failure, "{replies:?}");
        }
    }

    #[test]
    fn an_extension_is_refused_only_when_no_quorum_can_hold_the_lease() {
        use ExtendReply::{Behind, Refused, Renewed};
        use Refusal::{Held, Missing, Stale};
        let verdict = |nodes, replies: &[Result<ExtendReply, NodeError>]| {
            let mut tally = Extensions::new(of(nodes));
            for (node, reply) in replies.iter().enumerate() {
                tally.add(node, reply.clone());
            }
            tally.verdict()
        };
        let yes = || Ok(Renewed(token(1)));
        let no = |denial| Verdict::Decided(Done::No(denial));
        assert_eq!(verdict(1, &[Ok(Behind)]), no(Denial::StaleToken));
        assert_eq!(verdict(1, &[Ok(Refused(Stale))]), no(Denial::StaleToken));
        assert_eq!(verdict(1, &[error()]), Verdict::NoQuorumPossible);
        assert_eq!(
            verdict(3, &[yes(), error(), yes()]),
            Verdict::Decided(Done::Yes)
        );
        assert_eq!(verdict(3, &[yes(), Ok(Refused(Missing))]), Verdict::Open);
        assert_eq!(
            verdict(3, &[yes(), Ok(Refused(Missing)), error()]),
            Verdict::NoQuorumPossible
        );
        assert_eq!(
            verdict(3, &[Ok(Refused(Held)), Ok(Refused(Held))]),
            no(Denial::HeldByOther)
        );
        assert_eq!(
            verdict(3, &[Ok(Refused(Missing)), Ok(Refused(Missing))]),
            no(Denial::NoTerm)
        );
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
        use Refusal::{Held, Missing};
        use ResignReply::{Refused, Resigned};
        let verdict = |replies: &[Result<ResignReply, NodeError>]| {
            let mut tally = Resignations::new(of(3));
            for (node, reply) in replies.iter().enumerate() {
                tally.add(node, reply.clone());
            }
            tally.verdict()
        };
        assert_eq!(
            verdict(&[Ok(Resigned), Ok(Refused(Missing))]),
            Verdict::Decided(Done::Yes)
        );
        assert_eq!(
            verdict(&[Ok(Refused(Missing)), Ok(Refused(Missing))]),
            Verdict::Open
        );
        assert_eq!(
            verdict(&[Ok(Refused(Missing)), Ok(Refused(Missing)), error()]),
            Verdict::Decided(Done::No(Denial::NoTerm))
        );
        assert_eq!(
            verdict(&[Ok(Refused(Held)), Ok(Refused(Held)), Ok(Resigned)]),
            Verdict::Decided(Done::No(Denial::HeldByOther))
        );
        assert_eq!(
            verdict(&[Ok(Resigned), error(), error()]),
            Verdict::NoQuorumPossible
        );
    }

    #[test]
    fn a_read_answers_when_a_quorum_agrees_or_no_leader_can_have_one() {
        let verdict = |replies: &[Result<Reading, NodeError>]| {
            let mut tally = Reads::new(of(3));
            for (node, reply) in replies.iter().enumerate() {
                tally.add(node, reply.clone());
            }
            tally.verdict()
        };
        let token = Token::new;
        let (old, new) = (lease("a", 5, 10), lease("a", 6, 30));
        assert_eq!(
            verdict(&[Ok(Reading::Held(old.clone())), Ok(Reading::Held(new))]),
            Verdict::Decided(State::Held(lease("a", 6, 10)))
        );
        assert_eq!(
            verdict(&[Ok(Reading::Vacant(token(3))), Ok(Reading::Vacant(None))]),
            Verdict::Decided(State::Vacant(token(3)))
        );
        assert_eq!(
            verdict(&[Ok(Reading::Vacant(None)), Ok(Reading::Held(old.clone()))]),
            Verdict::Open
        );
        assert_eq!(
            verdict(&[
                Ok(Reading::Vacant(None)),
                Ok(Reading::Held(old.clone())),
                error()
            ]),
            Verdict::NoQuorumPossible
        );
        assert_eq!(
            verdict(&[
                Ok(Reading::Held(lease("b", 7, 5))),
                Ok(Reading::Held(old)),
                Ok(Reading::Held(lease("c", 8, 5)))
            ]),
            Verdict::Decided(State::Vacant(token(8)))
        );
        assert_eq!(
            verdict(&[
                Ok(Reading::Vacant(token(3))),
                Ok(Reading::Held(lease("b", 7, 5))),
                Ok(Reading::Vacant(None)),
            ]),
            Verdict::Decided(State::Vacant(token(3))),
            "a campaign that is under way has left no vacancy"
        );
    }
}
