//! What this agent knows of who leads, to tell when that changes.
//!
//! An agent knows what it was asked itself. A change that another agent makes is that one's to tell; of it this
//! agent learns, when it is asked next, and then knows better. What it knows is bounded: of elections that it was
//! not asked for lately it has forgotten who led.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use quick_cache::sync::Cache;
use tokio::time::Instant;

use super::types::{Candidate, ElectionId, Token};
use crate::lease::Lease;

/// Of how many elections it is known who leads.
const REMEMBERED: usize = 100_000;

/// How much earlier than it is known here a term may be over: what is left of it when a node is asked is less when
/// the answer comes.
const PRECISION: Duration = Duration::from_millis(250);

/// Is told what becomes of elections.
pub trait Observer: fmt::Debug + Send + Sync + 'static {
    /// Another leads now, or nobody.
    fn changed(&self, change: &Change<'_>);

    /// What came of a request.
    fn came_of(&self, request: Request, outcome: Outcome);
}

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Request {
    /// To become the leader.
    Campaign,
    /// To stay the leader.
    Extend,
    /// To give the leadership up.
    Resign,
    /// To let another lead.
    Handover,
    /// Who leads.
    Leader,
    /// Who leads the elections of a kind.
    List,
}

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The candidate leads.
    Elected,
    /// Somebody leads: of a campaign, an extension, a resignation or a handover, somebody else.
    Held,
    /// The campaign's request id is that of an earlier one, which is over.
    Used,
    /// Nobody leads.
    Vacant,
    /// The candidate leads, but with another token.
    Stale,
    /// The lease nodes have no memory for it.
    StoreFull,
    /// It is not known.
    Unavailable,
    /// What was asked for was done or told.
    Done,
}

impl Outcome {
    /// Every outcome, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Elected,
        Self::Held,
        Self::Used,
        Self::Vacant,
        Self::Stale,
        Self::StoreFull,
        Self::Unavailable,
        Self::Done,
    ];

    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Elected => "elected",
            Self::Held => "held",
            Self::Used => "used",
            Self::Vacant => "vacant",
            Self::Stale => "stale",
            Self::StoreFull => "store_full",
            Self::Unavailable => "unavailable",
            Self::Done => "done",
        }
    }
}

/// Another leads, or nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change<'a> {
    /// The election.
    pub election: &'a ElectionId,
    /// Who led, as far as this agent knows.
    pub old: Option<&'a Candidate>,
    /// Who leads.
    pub new: Option<&'a Candidate>,
    /// The new leader's token; without one, the old leader's if it is known.
    pub token: Option<Token>,
    /// Why.
    pub cause: Cause,
}

/// Why another leads, or nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// It has campaigned.
    Campaign,
    /// The leader gave the leadership up.
    Resign,
    /// The leader handed it over, or somebody did.
    Handover,
    /// The leader has let its term lapse, and this was seen now.
    Expiry,
}

impl Cause {
    /// Every cause, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Campaign, Self::Resign, Self::Handover, Self::Expiry];

    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Campaign => "campaign",
            Self::Resign => "resign",
            Self::Handover => "handover",
            Self::Expiry => "expiry",
        }
    }
}

/// Who leads, as far as it is known. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ledger(Arc<Inner>);

struct Inner {
    known: Cache<ElectionId, Arc<Known>>,
    /// When [`Known::until`] counts from.
    since: Instant,
    observer: Arc<dyn Observer>,
}

/// A leader.
struct Known {
    leader: Candidate,
    token: Option<Token>,
    /// When the term is over unless it is extended, in ms.
    until: AtomicU64,
}

impl Ledger {
    /// An empty one, that tells this observer.
    #[must_use]
    pub fn new(observer: Arc<dyn Observer>) -> Self {
        Self(Arc::new(Inner {
            known: Cache::new(REMEMBERED),
            since: Instant::now(),
            observer,
        }))
    }

    /// How many elections are held, of those that are remembered.
    #[must_use]
    pub fn held(&self) -> usize {
        let now = self.0.millis(Instant::now());
        let known = self.0.known.iter();
        let held = known.filter(|(_, known)| known.until.load(Ordering::Relaxed) > now);
        held.count()
    }

    pub(super) fn came_of(&self, request: Request, outcome: Outcome) {
        self.0.observer.came_of(request, outcome);
    }

    /// The candidate has been granted the election.
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
            // A request that is repeated finds the lease of the first.
            return known.extend(self.0.millis(until));
        }
        let old = self.still_leads(election, old);
        // A campaign replaces nobody but another process of the candidate's name. Whoever else led has resigned
        // elsewhere, where that was told.
        let replaces = |known: &Arc<Known>| cause != Cause::Campaign || known.leader == *candidate;
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

    /// A node has told the election's lease.
    pub(super) fn seen(&self, election: &ElectionId, lease: &Lease) {
        let until = Instant::now() + lease.remaining;
        match self.0.known.get(election) {
            Some(known) if known.is(&lease.leader, lease.token) => {
                known.extend(self.0.millis(until));
            }
            // Whoever granted that has told it.
            _ => self.put(election, &lease.leader, Some(lease.token), until),
        }
    }

    /// The leader's term has been extended.
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

    /// The leader has given the election up.
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

    /// Nobody leads the election.
    pub(super) fn vacant(&self, election: &ElectionId) {
        let known = self.0.known.get(election);
        if self.still_leads(election, known).is_some() {
            // It has resigned elsewhere, where that was told.
            self.0.known.remove(election);
        }
    }

    /// The known leader, unless its term is over, as far as that is known to the moment: then that is told, once.
    fn still_leads(&self, election: &ElectionId, known: Option<Arc<Known>>) -> Option<Arc<Known>> {
        let known = known?;
        if known.until.load(Ordering::Relaxed) > self.0.millis(Instant::now() + PRECISION) {
            return Some(known);
        }
        let is_this = |other: &Arc<Known>| Arc::ptr_eq(other, &known);
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
        let known = Known {
            leader: leader.clone(),
            token,
            until: AtomicU64::new(self.0.millis(until)),
        };
        self.0.known.insert(election.clone(), Arc::new(known));
    }
}

impl Inner {
    fn millis(&self, at: Instant) -> u64 {
        super::types::millis(at.saturating_duration_since(self.since))
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").finish_non_exhaustive()
    }
}

impl Known {
    fn is(&self, leader: &Candidate, token: Token) -> bool {
        self.leader == *leader && self.token == Some(token)
    }

    /// Terms are never shortened.
    fn extend(&self, until: u64) {
        self.until.fetch_max(until, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::time::advance;

    use super::*;
    use crate::election::types::Value;

    #[derive(Debug, Default)]
    struct Told(Mutex<Vec<String>>);

    impl Observer for Told {
        fn changed(&self, change: &Change<'_>) {
            let name = |candidate: Option<&Candidate>| {
                candidate
                    .map_or("-", |candidate| candidate.as_str())
                    .to_owned()
            };
            let token = change.token.map_or(0, Token::get);
            let (old, new, cause) = (name(change.old), name(change.new), change.cause);
            let mut told = self.0.lock().expect("unlocked");
            told.push(format!("{old} {new} {token} {cause:?}"));
        }

        fn came_of(&self, _: Request, _: Outcome) {}
    }

    struct Fixture {
        told: Arc<Told>,
        ledger: Ledger,
        election: ElectionId,
    }

    const TERM: Duration = Duration::from_secs(10);

    impl Fixture {
        fn new() -> Self {
            let told = Arc::new(Told::default());
            Self {
                ledger: Ledger::new(Arc::clone(&told) as _),
                told,
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

        fn told(&self) -> Vec<String> {
            std::mem::take(&mut self.told.0.lock().expect("unlocked"))
        }
    }

    fn candidate(name: &str) -> Candidate {
        Candidate::new("candidate", name).expect("valid")
    }

    #[tokio::test(start_paused = true)]
    async fn every_change_is_told_once_with_its_cause() {
        let it = Fixture::new();
        it.won("a", 1, Cause::Campaign);
        assert_eq!(it.told(), ["- a 1 Campaign"]);
        it.won("a", 1, Cause::Campaign);
        assert_eq!(it.told(), [""; 0], "the same request again");
        it.won("a", 2, Cause::Campaign);
        assert_eq!(
            it.told(),
            ["a a 2 Campaign"],
            "another process of that name"
        );
        it.won("b", 3, Cause::Handover);
        assert_eq!(it.told(), ["a b 3 Handover"]);
        it.ledger.resigned(&it.election, &candidate("b"), None);
        assert_eq!(it.told(), ["b - 3 Resign"]);
        it.ledger.vacant(&it.election);
        assert_eq!(it.told(), [""; 0]);
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
        assert_eq!(it.told(), ["- a 1 Campaign"], "it has resigned elsewhere");

        it.won("a", 2, Cause::Campaign);
        assert_eq!(it.ledger.held(), 1);
        advance(TERM).await;
        assert_eq!(it.ledger.held(), 0);
        it.won("b", 3, Cause::Campaign);
        let expected = ["- a 2 Campaign", "a - 2 Expiry", "- b 3 Campaign"];
        assert_eq!(it.told(), expected);
        advance(TERM).await;
        it.ledger.vacant(&it.election);
        it.ledger.vacant(&it.election);
        assert_eq!(it.told(), ["b - 3 Expiry"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_others_have_granted_is_known_and_not_told() {
        let it = Fixture::new();
        it.seen("a", 1);
        it.won("b", 2, Cause::Campaign);
        assert_eq!(it.told(), ["- b 2 Campaign"], "`a` has resigned elsewhere");
        it.seen("a", 3);
        it.seen("b", 4);
        assert_eq!(it.told(), [""; 0]);
        it.won("c", 5, Cause::Handover);
        assert_eq!(it.told(), ["b c 5 Handover"]);
        let other = Some(Token::new(6).expect("valid"));
        it.ledger
            .extended(&it.election, &candidate("d"), other, TERM);
        it.ledger.resigned(&it.election, &candidate("d"), None);
        assert_eq!(it.told(), ["d - 6 Resign"]);
    }
}
