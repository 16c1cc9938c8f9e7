//! The memory of the in-process node, and the effect of each operation on it: the executable specification of
//! [`LeaseNode`](super::LeaseNode). Pure: the caller passes the time, and nothing is written anywhere else.

use std::{collections::BTreeMap, ops::Bound, time::Duration};

use tokio::time::Instant;

use super::{
    Absence, Bounds, Extend, ExtendReply, Grant, GrantReply, KIND_EXAMINES, Kinds, LIST_EXAMINES,
    Lease, Onto, Page, ProbeRequest, REMEMBER, Reading, Refusal, Registered, Repair, Replaces,
    Resign, ResignReply, Settings,
    policy::{Call, Reply},
};
use crate::{
    lease::rules::{Rule, holds},
    types::{Candidate, ElectionId, Kind, RequestId, Token, Value},
};

/// How many leases and high-water marks a grant examines to drop expired ones. More than one, so that expired entries
/// go faster than new ones come.
const SWEEP: usize = 4;
/// How many replaced leases a lease keeps. A candidate that campaigns again and again, and never extends, leaves one
/// each time; the oldest one beyond this limit counts as acknowledged.
const DEEPEST: usize = 8;
/// The number of requests whose ids an election remembers.
const REQUESTS: usize = 8;

/// The memory of a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Memory {
    /// Names this incarnation. A restored copy does not keep it.
    pub(super) incarnation: u64,
    pub(super) leases: BTreeMap<Box<str>, Held>,
    pub(super) high_water_marks: BTreeMap<Box<str>, Retained>,
    pub(super) record: Option<Record>,
    /// Grants that were rolled back, and until when a copy of each may arrive.
    rolled_back: BTreeMap<(u64, Box<str>), Instant>,
    swept_lease: Option<Box<str>>,
    swept_high_water_mark: Option<Box<str>>,
    /// Elections whose lease or high-water mark has changed, for the code that makes changes durable.
    pub(super) changed: Vec<Box<str>>,
}

/// A stored lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Held {
    pub(super) leader: Candidate,
    pub(super) token: Token,
    pub(super) value: Value,
    pub(super) request_id: Option<RequestId>,
    pub(super) elected_at: u64,
    pub(super) expires: Instant,
    /// The longest term that the lease was written for: the time that it counts for after a restart.
    pub(super) longest_term: Duration,
    /// The opening of the database from which the lease was restored, until this process grants or extends the lease.
    /// Until then, another restart does not begin the time that the lease counts for again. Always `None` without a
    /// database.
    pub(super) restored: Option<u64>,
    /// The grant that may still be rolled back.
    pub(super) unacknowledged: Option<Unacknowledged>,
}

/// A grant on which no reply is known to be built yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Unacknowledged {
    grant_id: u64,
    /// The token high-water mark before the grant; the outer `None` for a grant that found its own lease and raised
    /// nothing.
    raised_from: Option<Option<Token>>,
    /// The lease that the grant replaced or renewed; a rollback restores it.
    before: Option<Box<Held>>,
}

/// What outlives the leases of an election.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Retained {
    /// The highest token of a grant that may have counted.
    pub(super) token: Option<Token>,
    /// The least token that a repair may write.
    pub(super) acknowledged: u64,
    /// The last requests that were granted, the newest first, with their tokens.
    pub(super) used: Vec<(RequestId, Token)>,
    pub(super) expires: Instant,
}

/// Since when the node remembers, and the bounds that agents have registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Record {
    pub(super) incarnation: u64,
    /// Since when this incarnation remembers; `None` for a new node, which has nothing to forget.
    pub(super) since: Option<Instant>,
    /// How long after `since` the incarnation may grant.
    pub(super) wait: Duration,
    pub(super) guard: Duration,
    guard_at: Instant,
    vote: Duration,
    vote_at: Instant,
}

impl Memory {
    /// An empty memory of the incarnation with this name.
    #[must_use]
    pub fn new(incarnation: u64) -> Self {
        Self {
            incarnation,
            leases: BTreeMap::new(),
            high_water_marks: BTreeMap::new(),
            record: None,
            rolled_back: BTreeMap::new(),
            swept_lease: None,
            swept_high_water_mark: None,
            changed: Vec::new(),
        }
    }

    /// The memory that a restart from a copy of this one restores, in another incarnation.
    #[must_use]
    pub fn restored(&self, incarnation: u64) -> Self {
        Self {
            incarnation,
            ..self.clone()
        }
    }

    /// The name of this incarnation.
    #[must_use]
    pub fn incarnation_id(&self) -> u64 {
        self.incarnation
    }

    /// Executes a quorum's call, as a node that makes nothing durable.
    pub fn reply(&mut self, call: &Call, settings: Settings, now: Instant) -> Reply {
        let (retention, guarded) = (settings.retention, settings.guard.is_some());
        let reply = match call {
            Call::Grant(grant) => Reply::Grant(self.grant(grant, retention, now)),
            Call::RollBack(grant) => {
                self.roll_back(grant, settings.vote, now);
                Reply::RolledBack
            }
            Call::Extend(extend) => Reply::Extend(self.extend(extend, retention, guarded, now)),
            Call::Repair(repair) => Reply::Repaired(self.repair(repair, retention, now)),
            Call::Resign(resign) => Reply::Resign(self.resign(resign, retention, guarded, now)),
            Call::Read(election) => Reply::Read(self.read(election, guarded, now)),
        };
        self.changed.clear();
        reply
    }

    /// The token of the election's lease.
    pub(super) fn token(&self, election: &ElectionId, now: Instant) -> Option<Token> {
        self.held(election, now).map(|held| held.token)
    }

    fn held(&self, election: &ElectionId, now: Instant) -> Option<&Held> {
        let held = self.leases.get(election.path());
        held.filter(|held| held.expires > now)
    }

    fn held_mut(&mut self, election: &ElectionId, now: Instant) -> Option<&mut Held> {
        let held = self.leases.get_mut(election.path());
        held.filter(|held| held.expires > now)
    }

    fn high_water_mark(&self, election: &ElectionId, now: Instant) -> Option<&Retained> {
        let high_water_mark = self.high_water_marks.get(election.path());
        high_water_mark.filter(|high_water_mark| high_water_mark.expires > now)
    }

    /// The retained data of the election, created if there is none, and kept for the retention after the term.
    fn kept_high_water_mark(
        &mut self,
        election: &ElectionId,
        until: Instant,
        now: Instant,
    ) -> &mut Retained {
        let high_water_mark = self.high_water_marks.entry(election.path().into());
        let high_water_mark = high_water_mark.or_insert_with(|| Retained::new(now));
        if high_water_mark.expires <= now {
            *high_water_mark = Retained::new(now);
        }
        high_water_mark.expires = high_water_mark.expires.max(until);
        high_water_mark
    }

    fn write(&mut self, election: &ElectionId, held: Option<Held>) {
        match held {
            Some(held) => self.leases.insert(election.path().into(), held),
            None => self.leases.remove(election.path()),
        };
        self.changed.push(election.path().into());
    }

    /// The incarnation record as it must be now. A record of another incarnation is rewritten for this one. This
    /// incarnation is in quarantine for the longest known guard, however long ago that was registered: the age of the
    /// restored memory is unknown. A clock that was set back behind the record's beginning makes no wait longer than it
    /// was.
    fn current_record(&mut self, guard: Duration, now: Instant) -> Option<Record> {
        let record = self.record.as_mut()?;
        if record.incarnation != self.incarnation {
            let remembered = match holds(Rule::NodeDecidesGuard) {
                true => record.guard,
                false => Duration::ZERO,
            };
            *record = Record {
                incarnation: self.incarnation,
                since: Some(now),
                wait: guard.max(remembered),
                guard: remembered,
                guard_at: now,
                vote_at: now,
                ..*record
            };
        }
        if record.since.is_some_and(|since| since > now) && holds(Rule::WaitsAreBounded) {
            record.since = Some(now);
        }
        Some(*record)
    }

    /// Whether the node may grant to an agent with these bounds, and otherwise why not.
    fn may_grant(&mut self, bounds: Bounds, now: Instant) -> Result<(), GrantReply> {
        let record = self.current_record(bounds.guard.unwrap_or_default(), now);
        match (record, bounds.guard) {
            (None, None) => Ok(()),
            (None, Some(_)) => Err(GrantReply::Unrecorded),
            (Some(record), Some(guard))
                if (guard > record.guard || bounds.vote > record.vote)
                    && holds(Rule::BoundsAreRegistered) =>
            {
                Err(GrantReply::Unregistered)
            }
            (Some(record), None) if !record.is_guarded(now) => Ok(()),
            (Some(record), _) => match record.left(now) {
                Duration::ZERO => Ok(()),
                left => Err(GrantReply::Guarded(left)),
            },
        }
    }

    /// Whether the node, which has no lease, would know of one.
    fn absence(&self, guarded: bool, now: Instant) -> Absence {
        match self.record {
            _ if !holds(Rule::ForgettingIsNotVacancy) => Absence::Known,
            None if guarded => Absence::Unrecorded,
            Some(record)
                if record.incarnation != self.incarnation || !record.left(now).is_zero() =>
            {
                Absence::NotKnown
            }
            _ => Absence::Known,
        }
    }

    pub(super) fn grant(&mut self, grant: &Grant, retention: Duration, now: Instant) -> GrantReply {
        let election = &grant.election;
        if let Some(reply) = self.in_the_way(grant, now) {
            return reply;
        }
        let held = self.held(election, now);
        let own = held.is_some_and(|held| held.leader == grant.candidate);
        let guarded = self.may_grant(grant.bounds, now);
        if let Err(reply) = guarded
            && (holds(Rule::OwnLeaseGuarded) || !own)
        {
            return reply;
        }
        if now > grant.not_after && holds(Rule::GrantsNotAfter) {
            return GrantReply::Late;
        }
        let vacant = self.held(election, now).is_none();
        if vacant && grant.replaces.needs_a_leader() && holds(Rule::HandoversNeedALeader) {
            return GrantReply::Vacant;
        }
        self.rolled_back.retain(|_, until| *until > now);
        let name = (grant.grant_id, election.path().into());
        if self.rolled_back.contains_key(&name) {
            return GrantReply::Late;
        }

        let held = self.held(election, now).cloned();
        let high_water_mark = self.high_water_mark(election, now).cloned();
        let mark = high_water_mark
            .as_ref()
            .and_then(|high_water_mark| high_water_mark.token);
        let repeated = own
            && grant.request_id.is_some()
            && held
                .as_ref()
                .is_some_and(|held| held.request_id == grant.request_id);
        if let (Some(id), Some(high_water_mark), false) =
            (&grant.request_id, &high_water_mark, repeated)
            && high_water_mark.used.iter().any(|(used, _)| used == id)
            && holds(Rule::RequestIdsOutliveLeases)
        {
            return GrantReply::Used;
        }
        let left = match (&held, own) {
            (Some(held), true) if holds(Rule::NeverShorter) => held.expires - now,
            _ => Duration::ZERO,
        };
        let term = grant.term.duration().max(left);

        if repeated && grant.repeat {
            let Some(lease) = self.held_mut(election, now) else {
                return GrantReply::Late;
            };
            let token = lease.token;
            // A rollback of a grant that arrived twice restores what the first arrival replaced.
            if lease
                .unacknowledged
                .as_ref()
                .map(|unacknowledged| unacknowledged.grant_id)
                != Some(grant.grant_id)
            {
                lease.unacknowledged = Some(Unacknowledged {
                    grant_id: grant.grant_id,
                    raised_from: None,
                    before: held.map(Box::new),
                });
                lease.flatten();
            }
            let outgrown = lease.renew(now, term);
            self.kept_high_water_mark(election, now + term + retention, now);
            if outgrown {
                self.changed.push(election.path().into());
            }
            return GrantReply::Granted(token);
        }

        if let Some(mark) = mark
            && grant.token <= mark
            && holds(Rule::HighWaterMark)
        {
            return GrantReply::Stale(mark);
        }
        let mut lease = Held {
            leader: grant.candidate.clone(),
            token: grant.token,
            value: grant.value.clone(),
            request_id: grant.request_id.clone(),
            elected_at: grant.elected_at,
            expires: now + term,
            longest_term: term,
            restored: None,
            unacknowledged: Some(Unacknowledged {
                grant_id: grant.grant_id,
                raised_from: Some(mark),
                before: held.map(Box::new),
            }),
        };
        lease.flatten();
        self.write(election, Some(lease));
        let high_water_mark = self.kept_high_water_mark(election, now + term + retention, now);
        high_water_mark.token = Some(grant.token);
        if let Some(id) = grant.request_id.as_ref().filter(|_| !repeated) {
            high_water_mark.used.insert(0, (id.clone(), grant.token));
            high_water_mark.used.truncate(REQUESTS);
        }
        self.sweep(now);
        GrantReply::Granted(grant.token)
    }

    /// The reply to a grant that the election's lease prevents. It makes no change that must be durable.
    pub(super) fn in_the_way(&mut self, grant: &Grant, now: Instant) -> Option<GrantReply> {
        let held = self.held(&grant.election, now)?;
        match &grant.replaces {
            Replaces::Anything | Replaces::AnyLeader => None,
            Replaces::Own if held.leader == grant.candidate => None,
            Replaces::Of(leader, token) if held.leader == *leader => {
                let mismatch = token.is_some_and(|token| token != held.token);
                (mismatch && holds(Rule::HandoversToken)).then_some(GrantReply::TokenMismatch)
            }
            _ => Some(GrantReply::Held(self.capped(grant, now))),
        }
    }

    /// The lease that prevents a grant. A lease that lasts longer than any agent grants comes from a clock that has
    /// been set back since; it is cut.
    fn capped(&mut self, grant: &Grant, now: Instant) -> Lease {
        let known = self.record.map_or(Duration::ZERO, |record| record.guard);
        let longest = grant.bounds.guard.map(|guard| guard.max(known));
        if let (Some(longest), Some(held)) = (longest, self.held_mut(&grant.election, now))
            && held.expires - now > longest
        {
            held.expires = now + longest;
        }
        self.leases[grant.election.path()].lease(now)
    }

    pub(super) fn extend(
        &mut self,
        extend: &Extend,
        retention: Duration,
        guarded: bool,
        now: Instant,
    ) -> ExtendReply {
        let absence = self.absence(guarded, now);
        let Some(held) = self.held_mut(&extend.election, now) else {
            return ExtendReply::Refused(absence.into());
        };
        match extend.token {
            _ if held.leader != extend.leader => return ExtendReply::Refused(Refusal::Held),
            Some(token) if token < held.token => return ExtendReply::Refused(Refusal::Stale),
            Some(token) if token > held.token => return ExtendReply::Behind,
            _ => {}
        }
        let (token, term) = (held.token, extend.term.duration());
        let outgrown = held.renew(now, term);
        if !holds(Rule::NeverShorter) {
            held.expires = now + term;
        }
        let acknowledged = held.unacknowledged.take().is_some();
        let high_water_mark =
            self.kept_high_water_mark(&extend.election, now + term + retention, now);
        high_water_mark.token = high_water_mark.token.max(Some(token));
        if acknowledged {
            high_water_mark.acknowledged = high_water_mark.acknowledged.max(token.get());
        }
        if outgrown || acknowledged {
            self.changed.push(extend.election.path().into());
        }
        ExtendReply::Renewed(token)
    }

    pub(super) fn repair(&mut self, repair: &Repair, retention: Duration, now: Instant) -> bool {
        let (election, lease) = (&repair.election, &repair.lease);
        let record = self.current_record(repair.bounds.guard.unwrap_or_default(), now);
        if repair.bounds.guard.is_some() && record.is_none() {
            return false;
        }
        if repair.incarnation != self.incarnation.to_string()
            && holds(Rule::RepairInTheSameIncarnation)
        {
            return false;
        }
        if now > repair.not_after && holds(Rule::RepairInForce) {
            return false;
        }
        if let Some(record) = record
            && let Some(since) = record.since
            && now < since + record.vote.max(repair.bounds.vote)
            && holds(Rule::RepairWhenSettled)
        {
            return false;
        }
        let high_water_mark = self.high_water_mark(election, now);
        if high_water_mark
            .is_some_and(|high_water_mark| lease.token.get() < high_water_mark.acknowledged)
            && holds(Rule::RepairNothingOver)
        {
            return false;
        }
        let repaired = |over: Option<&Held>| {
            let over = over.filter(|held| held.expires > now);
            let left = over.map_or(Duration::ZERO, |held| held.expires - now);
            let term = repair.term.duration().max(left);
            let same = over.filter(|held| held.token == lease.token);
            Held {
                leader: lease.leader.clone(),
                token: lease.token,
                value: lease.value.clone(),
                request_id: same.and_then(|held| held.request_id.clone()),
                elected_at: lease.elected_at,
                expires: now + term,
                longest_term: term,
                restored: None,
                unacknowledged: None,
            }
        };
        let mine = |held: &Held| held.leader == lease.leader && held.token <= lease.token;
        let written = match self.held(election, now) {
            None if repair.onto == Onto::Own && holds(Rule::RaisingMakesNothing) => return false,
            None => repaired(None),
            Some(held) if mine(held) => repaired(Some(held)),
            // The repaired lease goes below the unacknowledged grants, which replaced it or would have: a rollback
            // restores it.
            Some(held)
                if held.unacknowledged.is_some()
                    && (repair.onto == Onto::Unacknowledged
                        || !holds(Rule::CountedRepairsOnTop)) =>
            {
                let mut head = held.clone();
                let last = head.last();
                if last
                    .as_ref()
                    .is_some_and(|last| last.expires > now && !mine(last))
                {
                    return false;
                }
                *last = Some(Box::new(repaired(last.as_deref())));
                head.keep_high_water_mark(lease.token);
                head
            }
            Some(_) => return false,
        };
        let until = now + repair.term.duration() + retention;
        self.write(election, Some(written));
        let high_water_mark = self.kept_high_water_mark(election, until, now);
        high_water_mark.token = high_water_mark.token.max(Some(lease.token));
        high_water_mark.acknowledged = high_water_mark.acknowledged.max(lease.token.get());
        true
    }

    pub(super) fn resign(
        &mut self,
        resign: &Resign,
        retention: Duration,
        guarded: bool,
        now: Instant,
    ) -> ResignReply {
        let (election, token) = (&resign.election, resign.token);
        let token = token.filter(|_| holds(Rule::ResignationsToken));
        if let Some(token) = token {
            let high_water_mark = self.kept_high_water_mark(election, now + retention, now);
            high_water_mark.acknowledged = high_water_mark.acknowledged.max(token.get() + 1);
            self.changed.push(election.path().into());
        }
        let named = |held: &Held| {
            held.leader == resign.leader && token.is_none_or(|token| token == held.token)
        };
        let Some(held) = self.held(election, now).cloned() else {
            return ResignReply::Refused(self.absence(guarded, now).into());
        };
        let reply = match () {
            () if named(&held) => ResignReply::Resigned,
            () if held.leader != resign.leader => ResignReply::Refused(Refusal::Held),
            () => ResignReply::Refused(Refusal::Stale),
        };
        if reply == ResignReply::Resigned {
            self.write(election, None);
        } else if held.chain().any(named) {
            let left = Held::without(Some(Box::new(held)), &named, now);
            self.write(election, left.map(|held| *held));
        }
        reply
    }

    /// Rolls back a grant. Copies of the grant may arrive as long as votes of agents with this vote lifetime count.
    pub(super) fn roll_back(&mut self, grant: &Grant, vote: Duration, now: Instant) {
        let until = grant.not_after.max(now) + vote;
        let election = &grant.election;
        if holds(Rule::RolledBackByName) {
            let name = (grant.grant_id, election.path().into());
            self.rolled_back.insert(name, until);
        }
        if !holds(Rule::Rollbacks) {
            return;
        }
        let Some(held) = self.held(election, now).cloned() else {
            return;
        };
        let of_grant = |entry: &Held| {
            let named = entry
                .unacknowledged
                .as_ref()
                .map(|unacknowledged| unacknowledged.grant_id);
            named == Some(grant.grant_id)
                || !holds(Rule::RollbacksName)
                    && (&entry.leader, entry.token) == (&grant.candidate, grant.token)
        };
        if !held.chain().any(of_grant) {
            return;
        }
        // The high-water mark returns with the grant that raised it, and so does the mark that the rollback of a later
        // grant would restore.
        let mut held = held;
        let removed: Vec<_> = held
            .chain()
            .filter(|entry| of_grant(entry))
            .filter_map(|entry| Some((entry.token, entry.unacknowledged.as_ref()?.raised_from?)))
            .collect();
        for (token, from) in removed {
            if !holds(Rule::HighWaterMarkGoesBack) {
                break;
            }
            if held.keeps(token, from, &of_grant) || held.lower(token, from, &of_grant) {
                continue;
            }
            if let Some(high_water_mark) = self.high_water_marks.get_mut(election.path())
                && high_water_mark.token == Some(token)
            {
                high_water_mark.token = from;
            }
        }
        if let (Some(id), Some(high_water_mark)) = (
            &grant.request_id,
            self.high_water_marks.get_mut(election.path()),
        ) {
            high_water_mark
                .used
                .retain(|used| *used != (id.clone(), grant.token));
        }
        let left = match holds(Rule::RestoresWhatWasBefore) {
            true => Held::without(Some(Box::new(held)), &of_grant, now),
            false => None,
        };
        self.write(election, left.map(|held| *held));
    }

    pub(super) fn read(&self, election: &ElectionId, guarded: bool, now: Instant) -> Reading {
        match (self.held(election, now), self.absence(guarded, now)) {
            (Some(held), _) => Reading::Held(held.lease(now)),
            (None, Absence::Known) => {
                let retained = self.high_water_mark(election, now);
                Reading::Vacant(retained.and_then(|retained| retained.token))
            }
            (None, Absence::NotKnown) => Reading::NotKnown,
            (None, Absence::Unrecorded) => Reading::Unrecorded,
        }
    }

    /// See [`LeaseNode::list`](super::LeaseNode::list).
    pub(super) fn list(
        &self,
        kind: Option<&Kind>,
        after: Option<&ElectionId>,
        limit: usize,
        now: Instant,
    ) -> Page {
        // Every path has the empty prefix.
        let prefix = kind.map_or_else(String::new, |kind| format!("{}/", kind.as_str()));
        let from = after.map_or(prefix.as_str(), ElectionId::path);
        let mut page = Page::default();
        let leases = self
            .leases
            .range::<str, _>((Bound::Excluded(from), Bound::Unbounded))
            .take_while(|(path, _)| path.starts_with(&prefix));
        for (examined, (path, held)) in leases.enumerate() {
            // Every path comes from an election.
            let Ok(election) = ElectionId::from_path(path) else {
                continue;
            };
            if held.expires > now {
                page.leases.push((election.clone(), held.lease(now)));
            }
            if page.leases.len() == limit || examined + 1 == LIST_EXAMINES {
                page.next = Some(election);
                break;
            }
        }
        page
    }

    /// See [`LeaseNode::kinds`](super::LeaseNode::kinds).
    pub(super) fn kinds(&self, after: Option<&Kind>, limit: usize, now: Instant) -> Kinds {
        let mut page = Kinds::default();
        let mut from = after.map(Kind::end).unwrap_or_default();
        let mut examined = 0;
        loop {
            let mut leases = self
                .leases
                .range::<str, _>((Bound::Included(from.as_str()), Bound::Unbounded))
                .peekable();
            let first = leases.peek().and_then(|(path, _)| path.split_once('/'));
            // Every path comes from an election.
            let Some(kind) = first.and_then(|(kind, _)| Kind::new(kind).ok()) else {
                page.next = None;
                return page;
            };
            let end = kind.end();
            let mut seen = 0;
            let held = leases
                .take_while(|(path, _)| ***path < *end)
                .take(KIND_EXAMINES)
                .inspect(|_| seen += 1)
                .any(|(_, held)| held.expires > now);
            if held || seen == KIND_EXAMINES {
                page.kinds.push(kind.clone());
            }
            page.next = Some(kind);
            from = end;
            examined += seen;
            if page.kinds.len() == limit || examined >= LIST_EXAMINES {
                return page;
            }
        }
    }

    /// Writes the record of this incarnation, unless there is one.
    pub fn mark(&mut self, wait: Duration, bounds: Bounds, now: Instant) -> bool {
        let written = self.record.is_none();
        if written {
            self.record = Some(Record {
                incarnation: self.incarnation,
                since: (!wait.is_zero()).then_some(now),
                wait,
                guard: bounds.guard.unwrap_or_default(),
                guard_at: now,
                vote: bounds.vote,
                vote_at: now,
            });
        }
        written
    }

    /// How long the node is in quarantine, if it has a record, and the longest registered guard and vote lifetime.
    pub fn probe(
        &mut self,
        request: ProbeRequest,
        now: Instant,
    ) -> (Option<Duration>, Registered, Registered) {
        let report = |left, record: &Record| {
            let age = |at| now.saturating_duration_since(at);
            let guard = Registered {
                bound: record.guard,
                age: age(record.guard_at),
            };
            let vote = Registered {
                bound: record.vote,
                age: age(record.vote_at),
            };
            (Some(left), guard, vote)
        };
        if !request.write {
            let record = self.record.as_ref();
            return record.map_or_else(Default::default, |record| report(Duration::ZERO, record));
        }
        let guard = request
            .own
            .guard
            .unwrap_or_default()
            .max(request.guard.bound);
        let Some(mut record) = self.current_record(guard, now) else {
            return Default::default();
        };
        record.register(request, now);
        self.record = Some(record);
        let left = match request.own.guard.is_some() || record.is_guarded(now) {
            true => record.left(now),
            false => Duration::ZERO,
        };
        report(left, &record)
    }

    fn sweep(&mut self, now: Instant) {
        let over = next_after(&self.leases, self.swept_lease.take());
        self.swept_lease = over.last().cloned();
        for election in over {
            let lapsed = self.leases.get(&election);
            if lapsed.is_some_and(|held| held.expires <= now) {
                self.leases.remove(&election);
                self.changed.push(election);
            }
        }
        let over = next_after(&self.high_water_marks, self.swept_high_water_mark.take());
        self.swept_high_water_mark = over.last().cloned();
        for election in over {
            let expired = self.high_water_marks.get(&election);
            if expired.is_some_and(|high_water_mark| high_water_mark.expires <= now)
                && !self.leases.contains_key(&election)
            {
                self.high_water_marks.remove(&election);
                self.changed.push(election);
            }
        }
    }
}

fn next_after<T>(map: &BTreeMap<Box<str>, T>, after: Option<Box<str>>) -> Vec<Box<str>> {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    map.range((from, Bound::Unbounded))
        .take(SWEEP)
        .map(|(election, _)| election.clone())
        .collect()
}

impl Held {
    pub(super) fn lease(&self, now: Instant) -> Lease {
        Lease {
            leader: self.leader.clone(),
            token: self.token,
            value: self.value.clone(),
            elected_at: self.elected_at,
            remaining: self.expires - now,
        }
    }

    /// Renews the lease. Returns whether the change must become durable: otherwise the lease would count for too short
    /// a time after a restart.
    fn renew(&mut self, now: Instant, term: Duration) -> bool {
        let outgrown = term > self.longest_term || self.restored.is_some();
        self.expires = self.expires.max(now + term);
        self.longest_term = self.longest_term.max(term);
        self.restored = None;
        outgrown
    }

    /// The lease and those that it replaced, the newest first.
    fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |held| {
            held.unacknowledged.as_ref()?.before.as_deref()
        })
    }

    /// The slot, possibly empty, of the lease below all unacknowledged grants: no rollback removes that lease.
    fn last(&mut self) -> &mut Option<Box<Self>> {
        // Every lease on the way has an unacknowledged grant; the caller ensures this for the first one.
        let unacknowledged = self.unacknowledged.get_or_insert(Unacknowledged {
            grant_id: 0,
            raised_from: None,
            before: None,
        });
        match &unacknowledged.before {
            Some(before) if before.unacknowledged.is_some() => {}
            _ => return &mut unacknowledged.before,
        }
        match &mut unacknowledged.before {
            Some(before) => before.last(),
            none => none,
        }
    }

    /// Makes rollbacks of the grants restore no token below this one as the high-water mark.
    fn keep_high_water_mark(&mut self, token: Token) {
        let Some(unacknowledged) = &mut self.unacknowledged else {
            return;
        };
        if let Some(from) = &mut unacknowledged.raised_from {
            *from = (*from).max(Some(token));
        }
        if let Some(before) = &mut unacknowledged.before {
            before.keep_high_water_mark(token);
        }
    }

    /// Keeps at most [`DEEPEST`] replaced leases.
    fn flatten(&mut self) {
        let mut held = self;
        for _ in 0..DEEPEST {
            let Some(before) = held
                .unacknowledged
                .as_mut()
                .and_then(|it| it.before.as_deref_mut())
            else {
                return;
            };
            held = before;
        }
        held.unacknowledged = None;
    }

    /// Makes the grant whose rollback would restore this token as the high-water mark restore the one before it.
    /// Returns false if there is no such grant.
    fn lower(
        &mut self,
        token: Token,
        from: Option<Token>,
        removed: &impl Fn(&Self) -> bool,
    ) -> bool {
        let gone = removed(self);
        let Some(unacknowledged) = &mut self.unacknowledged else {
            return false;
        };
        if !gone && unacknowledged.raised_from == Some(Some(token)) {
            unacknowledged.raised_from = Some(from);
            return true;
        }
        let before = unacknowledged.before.as_deref_mut();
        before.is_some_and(|before| before.lower(token, from, removed))
    }

    /// Whether a lease with this token remains that an earlier grant wrote and a later one renewed. The rollback of the
    /// later one then restores the high-water mark.
    fn keeps(
        &mut self,
        token: Token,
        from: Option<Token>,
        removed: &impl Fn(&Self) -> bool,
    ) -> bool {
        let stays = self.token == token && !removed(self);
        match &mut self.unacknowledged {
            Some(unacknowledged) if stays => {
                unacknowledged.raised_from.get_or_insert(from);
                true
            }
            Some(unacknowledged) => {
                let before = unacknowledged.before.as_deref_mut();
                before.is_some_and(|before| before.keeps(token, from, removed))
            }
            None => stays,
        }
    }

    /// The rest of a lease and its replaced leases without `these`; the first of the rest has not expired.
    fn without(
        held: Option<Box<Self>>,
        these: &impl Fn(&Self) -> bool,
        now: Instant,
    ) -> Option<Box<Self>> {
        let mut held = held?;
        let before = held.unacknowledged.as_mut().and_then(|it| it.before.take());
        let before = Self::without(before, these, now);
        if these(&held) || held.expires <= now {
            return before;
        }
        if let Some(unacknowledged) = &mut held.unacknowledged {
            unacknowledged.before = before;
        }
        Some(held)
    }
}

impl Retained {
    fn new(now: Instant) -> Self {
        Self {
            token: None,
            acknowledged: 0,
            used: Vec::new(),
            expires: now,
        }
    }
}

impl Record {
    /// Treats the wait as the rest of the longest guard, which began before this process did.
    pub(super) fn began_before(&mut self, now: Instant) {
        let passed = self.guard.saturating_sub(self.wait);
        if let Some(since) = now.checked_sub(passed).filter(|_| self.since.is_some()) {
            self.since = Some(since);
            self.wait += passed;
        }
    }

    /// When the incarnation may grant, if it has to wait.
    pub(super) fn ready_at(&self) -> Option<Instant> {
        self.since.map(|since| since + self.wait)
    }

    /// How long the incarnation is still in quarantine.
    pub(super) fn left(&self, now: Instant) -> Duration {
        let ready_at = self.ready_at();
        ready_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }

    /// Whether an agent that wants a guard has used the node lately.
    fn is_guarded(&self, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.guard_at);
        !self.guard.is_zero() && age <= self.guard.max(REMEMBER)
    }

    /// Registers an agent's bounds. The longest bound counts: it lengthens this incarnation's wait, if it has one. The
    /// record forgets a bound when no agent has registered it for so long that everything granted under it has ended.
    fn register(&mut self, request: ProbeRequest, now: Instant) {
        let longest = |bound: &mut Duration, at: &mut Instant, own: Duration, seen: Registered| {
            // The clock was set back.
            *at = (*at).min(now);
            if now - *at > REMEMBER.max(*bound) {
                *bound = Duration::ZERO;
            }
            if own >= *bound {
                (*bound, *at) = (own, now);
            }
            if seen.bound > *bound {
                (*bound, *at) = (seen.bound, now.checked_sub(seen.age).unwrap_or(now));
            }
        };
        let guard = request.own.guard.unwrap_or_default();
        longest(&mut self.guard, &mut self.guard_at, guard, request.guard);
        longest(
            &mut self.vote,
            &mut self.vote_at,
            request.own.vote,
            request.vote,
        );
        if holds(Rule::WaitsAreLengthened) {
            self.wait = self.wait.max(self.guard);
        }
    }
}
