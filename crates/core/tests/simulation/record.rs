//! The events of a run, checked against the guarantees:
//! - At most one candidate may act as leader at any instant, unless clocks jump forward during its term.
//! - Every grant's token is larger than that of every grant that was reported before it or, if clocks jump
//!   forward during its term, before its request.
//! - A candidate is reported as leader only if a request or grant of that candidate is still in force.

use std::{
    collections::BTreeMap,
    fmt,
    ops::AddAssign,
    sync::{Arc, Mutex, MutexGuard},
};

use election_core::types::Token;
use tokio::time::Instant;

/// The record of one run. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Record {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    started: Instant,
    /// Whether clocks jump so that two candidates may lead. Only tokens tell them apart then.
    tokens_alone: bool,
    /// Until when each candidate may act as leader.
    leads: BTreeMap<String, Instant>,
    /// Until when each candidate may be reported as leader, because of replies that it received or requests
    /// that it sent.
    may_lead: BTreeMap<String, Instant>,
    /// The tokens of grants, and when each was reported.
    tokens: Vec<(Instant, Token)>,
    /// The token with which each candidate was elected last, if it is known.
    elected_with: BTreeMap<String, Option<Token>>,
    events: Vec<String>,
    totals: Totals,
}

/// Counts of events.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) grants: u64,
    /// Grants after a wait, for less than the term.
    pub(crate) provisional: u64,
    pub(crate) extensions: u64,
    pub(crate) resignations: u64,
    pub(crate) handovers: u64,
    pub(crate) refusals: u64,
    pub(crate) unknown: u64,
    /// States that observers received.
    pub(crate) observed: u64,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                started: Instant::now(),
                tokens_alone: false,
                leads: BTreeMap::new(),
                may_lead: BTreeMap::new(),
                tokens: Vec::new(),
                elected_with: BTreeMap::new(),
                events: Vec::new(),
                totals: Totals::default(),
            })),
        }
    }
}

impl Record {
    /// Creates the record of a run in which two candidates may lead.
    pub(crate) fn of_tokens_alone() -> Self {
        let record = Self::default();
        record.lock().tokens_alone = true;
        record
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("not poisoned")
    }

    /// The candidate receives a grant: it sent the request at `asked` and leads until `until`, with this
    /// token if known.
    pub(crate) fn elected(&self, name: &str, token: Option<Token>, asked: Instant, until: Instant) {
        let mut inner = self.lock();
        inner.totals.grants += 1;
        inner.event(&format!("{name} elected with {token:?}"));
        inner.leads(name, until);
        inner.elected_with.insert(name.to_owned(), token);
        let Some(token) = token else {
            return;
        };
        let before = match inner.tokens_alone {
            true => asked,
            false => Instant::now(),
        };
        let earlier = inner.tokens.iter();
        let wrong = earlier.filter(|(told, theirs)| match *told <= before {
            true => token <= *theirs,
            false => token == *theirs,
        });
        let wrong: Vec<_> = wrong.map(|(_, theirs)| *theirs).collect();
        assert!(
            wrong.is_empty(),
            "token {token} of {name} after {wrong:?}:\n{}",
            inner.history()
        );
        inner.tokens.push((Instant::now(), token));
    }

    /// The grant that was recorded last is provisional.
    pub(crate) fn provisional(&self) {
        self.lock().totals.provisional += 1;
    }

    /// The leader receives an extension of its term.
    pub(crate) fn extended(&self, name: &str, until: Instant) {
        let mut inner = self.lock();
        inner.totals.extensions += 1;
        inner.event(&format!("{name} extended"));
        inner.leads(name, until);
    }

    /// A request or grant that makes the candidate leader may be in force until then.
    pub(crate) fn may_lead(&self, name: &str, until: Instant) {
        let mut inner = self.lock();
        let known = inner.may_lead.entry(name.to_owned()).or_insert(until);
        *known = until.max(*known);
    }

    /// A node reports this leader, after every request has left the network.
    pub(crate) fn said_to_lead(&self, name: &str) {
        let mut inner = self.lock();
        inner.event(&format!("{name} is reported as leader"));
        let until = inner.may_lead.get(name);
        assert!(
            until.is_some_and(|until| *until >= Instant::now()),
            "{name} is reported as leader, but no request or grant of it is in force:\n{}",
            inner.history()
        );
    }

    /// An observer receives a state.
    pub(crate) fn observed(&self, what: &str) {
        let mut inner = self.lock();
        inner.totals.observed += 1;
        inner.event(&format!("an observer receives {what}"));
    }

    /// The election is reported vacant after the term with this token, so nobody may act with the token any more.
    pub(crate) fn is_over(&self, token: Token) {
        let inner = self.lock();
        let elected = inner.elected_with.iter();
        let mut named = elected.filter(|(_, with)| **with == Some(token));
        let acts = named.find(|(name, _)| {
            let until = inner.leads.get(*name);
            until.is_some_and(|until| *until > Instant::now())
        });
        if let Some((name, _)) = acts.filter(|_| !inner.tokens_alone) {
            panic!(
                "an observer receives a vacancy while {name} leads with {token}:\n{}",
                inner.history()
            );
        }
    }

    /// Until when the candidate leads, if it does.
    pub(crate) fn leads_until(&self, name: &str) -> Option<Instant> {
        let until = self.lock().leads.get(name).copied();
        until.filter(|until| *until > Instant::now())
    }

    /// The leader stops acting as leader.
    pub(crate) fn ended(&self, name: &str, why: &str) {
        let mut inner = self.lock();
        match why {
            "resigns" => inner.totals.resignations += 1,
            "hands over" => inner.totals.handovers += 1,
            _ => {}
        }
        inner.event(&format!("{name} {why}"));
        inner.leads.remove(name);
    }

    /// The reply to a request reports no change.
    pub(crate) fn refused(&self, name: &str, what: &str) {
        let mut inner = self.lock();
        inner.totals.refusals += 1;
        inner.event(&format!("{name} is refused: {what}"));
    }

    /// The outcome of a request is unknown.
    pub(crate) fn unknown(&self, name: &str, what: &str) {
        let mut inner = self.lock();
        inner.totals.unknown += 1;
        inner.event(&format!("{name} does not know: {what}"));
    }

    /// Records an event of a server or an agent.
    pub(crate) fn note(&self, what: &str) {
        self.lock().event(what);
    }

    /// Renders the last events.
    pub(crate) fn history(&self) -> String {
        self.lock().history()
    }

    pub(crate) fn events(&self) -> Vec<String> {
        self.lock().events.clone()
    }

    pub(crate) fn totals(&self) -> Totals {
        self.lock().totals.clone()
    }
}

impl Inner {
    fn event(&mut self, what: &str) {
        let at = self.started.elapsed();
        self.events.push(format!("{at:?} {what}"));
    }

    fn leads(&mut self, name: &str, until: Instant) {
        let now = Instant::now();
        let others = self
            .leads
            .iter()
            .find(|(other, until)| *other != name && **until > now)
            .filter(|_| !self.tokens_alone);
        if let Some((other, theirs)) = others {
            let left = *theirs - now;
            panic!(
                "{name} leads, and {other} has {left:?} left:\n{}",
                self.history()
            );
        }
        // An earlier, longer term stays valid.
        let known = self.leads.entry(name.to_owned()).or_insert(until);
        *known = until.max(*known);
    }

    /// Renders the last events.
    fn history(&self) -> String {
        let (first, from) = (
            self.events.len().min(8),
            self.events.len().saturating_sub(40),
        );
        let (head, tail) = (&self.events[..first], &self.events[from.max(first)..]);
        [head, tail].concat().join("\n")
    }
}

impl Totals {
    pub(crate) fn add(&mut self, other: &Self) {
        self.grants.add_assign(other.grants);
        self.provisional.add_assign(other.provisional);
        self.extensions.add_assign(other.extensions);
        self.resignations.add_assign(other.resignations);
        self.handovers.add_assign(other.handovers);
        self.refusals.add_assign(other.refusals);
        self.unknown.add_assign(other.unknown);
        self.observed.add_assign(other.observed);
    }

    /// Returns whether enough of everything happened for the checks to be meaningful.
    pub(crate) fn is_plausible(&self) -> bool {
        let Self {
            grants,
            provisional,
            extensions,
            resignations,
            handovers,
            refusals,
            unknown,
            observed,
        } = *self;
        [
            grants,
            provisional,
            extensions,
            resignations,
            handovers,
            refusals,
            unknown,
            observed,
        ]
        .iter()
        .all(|count| *count > 100)
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} grants, {} of them provisional, {} extensions, {} resignations, {} handovers, {} refusals, {} unknown outcomes, {} \
             observed states",
            self.grants,
            self.provisional,
            self.extensions,
            self.resignations,
            self.handovers,
            self.refusals,
            self.unknown,
            self.observed
        )
    }
}
