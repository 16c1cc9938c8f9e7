//! The leaders that this agent knows, to report their changes.
//!
//! An agent knows the requests that it served itself. An agent that makes a change reports it; other agents learn of it
//! from the next request and report nothing. The ledger is bounded: it forgets the leaders of elections without recent
//! requests.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use quick_cache::sync::Cache;
use strum::{IntoStaticStr, VariantArray, VariantNames};
use tokio::time::Instant;

use crate::lease::Lease;
use crate::types::{Candidate, ElectionId, Token};

/// The number of elections whose leaders the ledger remembers.
const REMEMBERED: usize = 100_000;

/// Tolerance for the round trip when comparing a remote expiry with a local clock: the remaining time of a lease is
/// shorter when the reply arrives than when the node sent it.
const PRECISION: Duration = Duration::from_millis(250);

/// Receives changes of leaders and outcomes of requests.
pub trait LedgerObserver: fmt::Debug + Send + Sync + 'static {
    /// The leader of an election changed, or the election became vacant.
    fn changed(&self, change: &Change<'_>);

    /// A request had this outcome.
    fn finished(&self, request: Request, outcome: RequestOutcome);
}

/// The kind of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Request {
    /// Become the leader.
    Campaign,
    /// Stay the leader.
    Extend,
    /// Give up the leadership.
    Resign,
    /// Hand the leadership over to another candidate.
    Handover,
    /// Return the leader.
    Leader,
    /// Return the leaders of the elections of a kind.
    List,
    /// Return the kinds that have elections.
    ListKinds,
    /// Return whether a token is the leader's.
    Verify,
}

/// The outcome of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, IntoStaticStr, VariantArray, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum RequestOutcome {
    /// The candidate leads.
    Elected,
    /// The election has a leader. For a campaign, an extension, a resignation or a handover: another leader.
    Held,
    /// The campaign's request id belongs to an earlier one, which has ended.
    Used,
    /// The election is vacant.
    Vacant,
    /// The candidate leads, but with another token.
    Stale,
    /// The lease nodes have no memory for the grant.
    StoreFull,
    /// The outcome is unknown.
    Unavailable,
    /// The request was served.
    Done,
    /// No grant with the given token is known.
    NotGranted,
}

impl RequestOutcome {
    /// The name of the outcome in telemetry.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// A change of leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change<'a> {
    /// The election.
    pub election: &'a ElectionId,
    /// The previous leader, as far as this agent knows.
    pub old: Option<&'a Candidate>,
    /// The new leader; `None` when the election is vacant.
    pub new: Option<&'a Candidate>,
    /// The new leader's token; without a new leader, the previous leader's token if it is known.
    pub token: Option<Token>,
    /// The cause of the change.
    pub cause: Cause,
}

/// Why the leader of an election changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, IntoStaticStr, VariantArray, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Cause {
    /// The new leader campaigned.
    Campaign,
    /// The leader resigned.
    Resign,
    /// The leader or another caller handed the leadership over.
    Handover,
    /// The leader let its term lapse, and this agent noticed it now.
    Expiry,
}

impl Cause {
    /// The name of the cause in telemetry.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// The known leaders of elections. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ledger(Arc<Inner>);

struct Inner {
    known: Cache<ElectionId, Arc<KnownLeader>>,
    /// The instant that [`KnownLeader::until`] counts from.
    since: Instant,
    observer: Arc<dyn LedgerObserver>,
}

/// The leader of an election.
struct KnownLeader {
    leader: Candidate,
    token: Option<Token>,
    /// When the term ends unless it is extended, in ms.
    until: AtomicU64,
}

impl Ledger {
    /// An empty ledger that reports to this observer.
    #[must_use]
    pub fn new(observer: Arc<dyn LedgerObserver>) -> Self {
        Self(Arc::new(Inner {
            known: Cache::new(REMEMBERED),
            since: Instant::now(),
            observer,
        }))
    }

    /// The number of remembered elections that are held.
    #[must_use]
    pub fn held(&self) -> usize {
        let now = self.0.millis(Instant::now());
        let known = self.0.known.iter();
        let held = known.filter(|(_, known)| known.until.load(Ordering::Relaxed) > now);
        held.count()
    }

    pub(super) fn finished(&self, request: Request, outcome: RequestOutcome) {
        self.0.observer.finished(request, outcome);
    }

    /// Enters a grant to the candidate.
    pub(super) fn won(
        &self,
        election: &ElectionId,
        candidate: &Candidate,
        token: Token,
        term: Duration,
        cause: Cause,
    ) {
        let until = Instant::now() + term;
        let old = self.0.known.get(election);
        if let Some(known) = &old
            && known.is(candidate, token)
        {
            // A repeated request finds the lease of the first one.
            return known.extend(self.0.millis(until));
        }
        let old = self.still_leads(election, old);
        // A campaign replaces only another process of the candidate's name. Any other previous leader has resigned
        // through another agent, which reported it.
        let replaces =
            |known: &Arc<KnownLeader>| cause != Cause::Campaign || known.leader == *candidate;
        let old = old.filter(replaces);
        self.put(election, candidate, Some(token), until);
        self.0.observer.changed(&Change {
            election,
            old: old.as_ref().map(|known| &known.leader),
            new: Some(candidate),
            token: Some(token),
            cause,
        });
    }

    /// Enters the election's lease, as a node reported it.
    pub(super) fn seen(&self, election: &ElectionId, lease: &Lease) {
        let until = Instant::now() + lease.remaining;
        match self.0.known.get(election) {
            Some(known) if known.is(&lease.leader, lease.token) => {
                known.extend(self.0.millis(until));
            }
            // The agent that granted the lease has reported it.
            _ => self.put(election, &lease.leader, Some(lease.token), until),
        }
    }

    /// Enters that the leader's term was extended.
    pub(super) fn extended(
        &self,
        election: &ElectionId,
        leader: &Candidate,
        token: Option<Token>,
        term: Duration,
    ) {
        let until = Instant::now() + term;
        match self.0.known.get(election) {
            Some(known) if known.leader == *leader && (token.is_none() || known.token == token) => {
                known.extend(self.0.millis(until));
            }
            _ => self.put(election, leader, token, until),
        }
    }

    /// Enters that the leader resigned.
    pub(super) fn resigned(&self, election: &ElectionId, leader: &Candidate, token: Option<Token>) {
        let known = self.0.known.remove(election).map(|(_, known)| known);
        let known = known.filter(|known| known.leader == *leader);
        self.0.observer.changed(&Change {
            election,
            old: Some(leader),
            new: None,
            token: token.or(known.and_then(|known| known.token)),
            cause: Cause::Resign,
        });
    }

    /// Enters that the election is vacant.
    pub(super) fn vacant(&self, election: &ElectionId) {
        let known = self.0.known.get(election);
        if self.still_leads(election, known).is_some() {
            // The leader has resigned through another agent, which reported it.
            self.0.known.remove(election);
        }
    }

    /// The known leader, unless its term ends within [`PRECISION`]. Reports an expired term once.
    fn still_leads(
        &self,
        election: &ElectionId,
        known: Option<Arc<KnownLeader>>,
    ) -> Option<Arc<KnownLeader>> {
        let known = known?;
        if known.until.load(Ordering::Relaxed) > self.0.millis(Instant::now() + PRECISION) {
            return Some(known);
        }
        let is_this = |other: &Arc<KnownLeader>| Arc::ptr_eq(other, &known);
        if self.0.known.remove_if(election, is_this).is_some() {
            self.0.observer.changed(&Change {
                election,
                old: Some(&known.leader),
                new: None,
                token: known.token,
                cause: Cause::Expiry,
            });
        }
        None
    }

    fn put(&self, election: &ElectionId, leader: &Candidate, token: Option<Token>, until: Instant) {
        let known = KnownLeader {
            leader: leader.clone(),
            token,
            until: AtomicU64::new(self.0.millis(until)),
        };
        self.0.known.insert(election.clone(), Arc::new(known));
    }
}

impl Inner {
    fn millis(&self, at: Instant) -> u64 {
        crate::types::millis(at.saturating_duration_since(self.since))
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").finish_non_exhaustive()
    }
}

impl KnownLeader {
    fn is(&self, leader: &Candidate, token: Token) -> bool {
        self.leader == *leader && self.token == Some(token)
    }

    /// Extends the term; never shortens it.
    fn extend(&self, until: u64) {
        self.until.fetch_max(until, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::time::advance;

    use super::*;
    use crate::types::Value;

    #[derive(Debug, Default)]
    struct Reported(Mutex<Vec<String>>);

    impl LedgerObserver for Reported {
        fn changed(&self, change: &Change<'_>) {
            let name = |candidate: Option<&Candidate>| {
                candidate
                    .map_or("-", |candidate| candidate.as_str())
                    .to_owned()
            };
            let token = change.token.map_or(0, Token::get);
            let (old, new, cause) = (name(change.old), name(change.new), change.cause);
            let mut reported = self.0.lock().expect("unlocked");
            reported.push(format!("{old} {new} {token} {cause:?}"));
        }

        fn finished(&self, _: Request, _: RequestOutcome) {}
    }

    struct Fixture {
        reported: Arc<Reported>,
        ledger: Ledger,
        election: ElectionId,
    }

    const TERM: Duration = Duration::from_secs(10);

    impl Fixture {
        fn new() -> Self {
            let reported = Arc::new(Reported::default());
            Self {
                ledger: Ledger::new(Arc::clone(&reported) as _),
                reported,
                election: ElectionId::new("", "e").expect("valid"),
            }
        }

        fn won(&self, name: &str, token: u64, cause: Cause) {
            let token = Token::new(token).expect("valid");
            self.ledger
                .won(&self.election, &candidate(name), token, TERM, cause);
        }

        fn seen(&self, name: &str, token: u64) {
            let lease = Lease {
                leader: candidate(name),
                token: Token::new(token).expect("valid"),
                value: Value::default(),
                elected_at: 0,
                remaining: TERM,
            };
            self.ledger.seen(&self.election, &lease);
        }

        fn reported(&self) -> Vec<String> {
            std::mem::take(&mut self.reported.0.lock().expect("unlocked"))
        }
    }

    fn candidate(name: &str) -> Candidate {
        Candidate::new("candidate", name).expect("valid")
    }

    #[tokio::test(start_paused = true)]
    async fn every_change_is_told_once_with_its_cause() {
        let it = Fixture::new();
        it.won("a", 1, Cause::Campaign);
        assert_eq!(it.reported(), ["- a 1 Campaign"]);
        it.won("a", 1, Cause::Campaign);
        assert_eq!(it.reported(), [""; 0], "the same request again");
        it.won("a", 2, Cause::Campaign);
        assert_eq!(
            it.reported(),
            ["a a 2 Campaign"],
            "another process of that name"
        );
        it.won("b", 3, Cause::Handover);
        assert_eq!(it.reported(), ["a b 3 Handover"]);
        it.ledger.resigned(&it.election, &candidate("b"), None);
        assert_eq!(it.reported(), ["b - 3 Resign"]);
        it.ledger.vacant(&it.election);
        assert_eq!(it.reported(), [""; 0]);
        assert_eq!(it.ledger.held(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_term_that_has_lapsed_is_told_when_that_is_seen() {
        let it = Fixture::new();
        it.won("a", 1, Cause::Campaign);
        advance(TERM / 2).await;
        it.ledger
            .extended(&it.election, &candidate("a"), None, TERM);
        advance(TERM / 2).await;
        it.ledger.vacant(&it.election);
        assert_eq!(
            it.reported(),
            ["- a 1 Campaign"],
            "it has resigned elsewhere"
        );

        it.won("a", 2, Cause::Campaign);
        assert_eq!(it.ledger.held(), 1);
        advance(TERM).await;
        assert_eq!(it.ledger.held(), 0);
        it.won("b", 3, Cause::Campaign);
        let expected = ["- a 2 Campaign", "a - 2 Expiry", "- b 3 Campaign"];
        assert_eq!(it.reported(), expected);
        advance(TERM).await;
        it.ledger.vacant(&it.election);
        it.ledger.vacant(&it.election);
        assert_eq!(it.reported(), ["b - 3 Expiry"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_others_have_granted_is_known_and_not_told() {
        let it = Fixture::new();
        it.seen("a", 1);
        it.won("b", 2, Cause::Campaign);
        assert_eq!(
            it.reported(),
            ["- b 2 Campaign"],
            "`a` has resigned elsewhere"
        );
        it.seen("a", 3);
        it.seen("b", 4);
        assert_eq!(it.reported(), [""; 0]);
        it.won("c", 5, Cause::Handover);
        assert_eq!(it.reported(), ["b c 5 Handover"]);
        let other = Some(Token::new(6).expect("valid"));
        it.ledger
            .extended(&it.election, &candidate("d"), other, TERM);
        it.ledger.resigned(&it.election, &candidate("d"), None);
        assert_eq!(it.reported(), ["d - 6 Resign"]);
    }
}
