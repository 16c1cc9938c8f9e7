//! How many elections callers hold at the same time, as far as this agent knows, and how many they may hold.
//!
//! An agent knows the requests that it served itself. It counts an election for the holder that last got or extended it
//! through this agent. Other agents count their own grants. An agent that has just started has counted nothing; it
//! learns as leaders extend.
//!
//! A holder takes a *place* when it requests an election, before any call to the nodes, so that many concurrent
//! requests get no more than sequential ones. A place is kept until the term has ended by the clock of this agent. That
//! term counts from the nodes' reply, and so never ends before the lease does. A lost campaign releases its place at
//! once.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, HashMap},
    fmt,
    hash::Hash,
    sync::Arc,
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::types::{Candidate, ElectionId};

/// How many elections may be held at the same time; 0: any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// By one holder.
    pub per_holder: usize,
    /// Of one kind, by all holders together.
    pub per_kind: usize,
}

/// How many elections are held besides the requested one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Held {
    /// By the requesting holder.
    pub by_holder: usize,
    /// Of the election's kind, by all holders.
    pub of_kind: usize,
}

/// A limit that prevents a holder from another election. The number is the limit, which the held elections have
/// reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exceeded {
    /// [`Limits::per_holder`].
    Holder(usize),
    /// [`Limits::per_kind`].
    Kind(usize),
}

/// The elections of each holder, and the limits. Cheap to clone.
#[derive(Clone)]
pub struct Quotas(Arc<Inner>);

struct Inner {
    limits: Limits,
    places: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    /// The places of each election; seldom more than one.
    elections: HashMap<ElectionId, Vec<Place>>,
    by_holder: HashMap<Arc<str>, usize>,
    /// How many elections of a kind have places.
    of_kind: HashMap<Box<str>, usize>,
    /// When to check whether places have expired. Each place is in the queue once, for as long as it is held.
    queue: BTreeMap<(Instant, u64), (ElectionId, Arc<str>)>,
    /// How many entries the queue has had.
    queued: u64,
}

struct Place {
    holder: Arc<str>,
    /// The name under which the holder leads.
    leader: Candidate,
    /// Until when it may lead.
    until: Option<Instant>,
    /// The number of the holder's pending requests for the election.
    under_way: usize,
    /// The place's position in the queue.
    queued: Option<(Instant, u64)>,
}

impl Quotas {
    /// Creates a quota without held elections.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(Inner {
            limits,
            places: Mutex::default(),
        }))
    }

    /// Returns how many elections are held besides this one.
    #[must_use]
    pub fn besides(&self, holder: &str, election: &ElectionId) -> Held {
        let mut places = self.places();
        places.lapse(Instant::now());
        places.besides(holder, election)
    }

    /// Takes a place for a holder that requests an election for this term. A holder that has a place for it, or a
    /// pending request for it, is never refused.
    ///
    /// # Errors
    /// The limit that is reached.
    pub fn enter(
        &self,
        holder: &str,
        election: &ElectionId,
        leader: &Candidate,
        term: Duration,
    ) -> Result<Entry, Exceeded> {
        let mut places = self.places();
        places.lapse(Instant::now());
        let besides = places.besides(holder, election);
        let has_place = places.place(holder, election).is_some();
        let Limits {
            per_holder,
            per_kind,
        } = self.0.limits;
        if !has_place && (1..=besides.by_holder).contains(&per_holder) {
            return Err(Exceeded::Holder(per_holder));
        }
        let is_new = !places.elections.contains_key(election);
        if is_new && (1..=besides.of_kind).contains(&per_kind) {
            return Err(Exceeded::Kind(per_kind));
        }
        let place = places.take(holder, election, leader);
        place.under_way += 1;
        Ok(Entry {
            quotas: self.clone(),
            holder: Arc::clone(&place.holder),
            election: election.clone(),
            leader: leader.clone(),
            term,
            besides,
            outcome: None,
        })
    }

    /// Notes that the leader's term was extended at the holder's request, or, unless that is `known`, may have been.
    /// A `known` extension counts even if the holder has no place: leaders continue.
    pub fn extended(
        &self,
        holder: &str,
        election: &ElectionId,
        leader: &Candidate,
        term: Duration,
        known: bool,
    ) {
        let mut places = self.places();
        if known || places.place(holder, election).is_some() {
            places.take(holder, election, leader);
            places.hold(holder, election, leader, Instant::now() + term, known);
        }
    }

    /// Notes that the leader no longer leads.
    pub fn ended(&self, election: &ElectionId, leader: &Candidate) {
        self.places().end(election, |place| place.leader == *leader);
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.0.places.lock()
    }
}

impl fmt::Debug for Quotas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Quotas").field(&self.0.limits).finish()
    }
}

impl Places {
    fn place(&mut self, holder: &str, election: &ElectionId) -> Option<&mut Place> {
        let places = self.elections.get_mut(election)?;
        places.iter_mut().find(|place| *place.holder == *holder)
    }

    fn besides(&mut self, holder: &str, election: &ElectionId) -> Held {
        let mine = usize::from(self.place(holder, election).is_some());
        let any = usize::from(self.elections.contains_key(election));
        let of_kind = self.of_kind.get(election.kind());
        Held {
            by_holder: self.by_holder.get(holder).map_or(0, |held| held - mine),
            of_kind: of_kind.map_or(0, |held| held - any),
        }
    }

    /// Returns the holder's place for the election, a new one if there is none.
    fn take(&mut self, holder: &str, election: &ElectionId, leader: &Candidate) -> &mut Place {
        let places = self.elections.entry(election.clone()).or_default();
        if places.is_empty() {
            *self.of_kind.entry(election.kind().into()).or_default() += 1;
        }
        let known = places.iter().position(|place| *place.holder == *holder);
        let at = known.unwrap_or(places.len());
        if known.is_none() {
            let (holder, count) = match self.by_holder.remove_entry(holder) {
                Some((holder, count)) => (holder, count + 1),
                None => (holder.into(), 1),
            };
            self.by_holder.insert(Arc::clone(&holder), count);
            places.push(Place {
                holder,
                leader: leader.clone(),
                until: None,
                under_way: 0,
                queued: None,
            });
        }
        &mut places[at]
    }

    /// Notes that the holder leads until then at the latest; if that is `known`, no other holder does.
    fn hold(
        &mut self,
        holder: &str,
        election: &ElectionId,
        leader: &Candidate,
        until: Instant,
        known: bool,
    ) {
        let next = self.queued + 1;
        let Some(place) = self.place(holder, election) else {
            return;
        };
        if known || place.until.is_none() {
            place.leader.clone_from(leader);
        }
        place.until = place.until.max(Some(until));
        // A queued place is checked when its turn comes, and stays if it was extended.
        if place.queued.is_none() {
            let holder = Arc::clone(&place.holder);
            let key = (until, next);
            place.queued = Some(key);
            self.queued = next;
            self.queue.insert(key, (election.clone(), holder));
        }
        if known {
            self.end(election, |place| *place.holder != *holder);
        }
    }

    /// Ends these places: they are no longer held.
    fn end(&mut self, election: &ElectionId, ended: impl Fn(&Place) -> bool) {
        if let Some(places) = self.elections.get_mut(election) {
            for place in places.iter_mut().filter(|place| ended(place)) {
                place.until = None;
            }
            self.tidy(election);
        }
    }

    /// Releases the places of the election that are neither held nor requested.
    fn tidy(&mut self, election: &ElectionId) {
        let Some(places) = self.elections.get_mut(election) else {
            return;
        };
        places.retain(|place| {
            let stays = place.until.is_some() || place.under_way > 0;
            if !stays {
                one_less(&mut self.by_holder, &place.holder);
                place.queued.and_then(|key| self.queue.remove(&key));
            }
            stays
        });
        if places.is_empty() {
            self.elections.remove(election);
            one_less(&mut self.of_kind, election.kind());
        }
    }

    /// Releases the places whose terms have ended.
    fn lapse(&mut self, now: Instant) {
        while let Some(first) = self.queue.first_entry()
            && first.key().0 <= now
        {
            let (key, (election, holder)) = first.remove_entry();
            let Some(place) = self.place(&holder, &election) else {
                continue;
            };
            match place.until {
                // The place was extended meanwhile.
                Some(until) if until > now => {
                    let key = (until, key.1);
                    place.queued = Some(key);
                    self.queue.insert(key, (election, holder));
                }
                _ => {
                    (place.until, place.queued) = (None, None);
                    self.tidy(&election);
                }
            }
        }
    }
}

/// Decrements a count; removes it at zero.
fn one_less<K: Hash + Eq + Borrow<str>>(counts: &mut HashMap<K, usize>, key: &str) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// A request for an election, and its place. A request that is dropped without an outcome counts as held until its term
/// is over: its outcome is unknown.
#[derive(Debug)]
pub struct Entry {
    quotas: Quotas,
    holder: Arc<str>,
    election: ElectionId,
    leader: Candidate,
    term: Duration,
    besides: Held,
    outcome: Option<EntryOutcome>,
}

/// The outcome of a request for an election.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryOutcome {
    /// The holder leads.
    Won,
    /// This leader leads, for this long.
    Lost(Candidate, Duration),
    /// Nothing was granted.
    Refused,
}

impl Entry {
    /// What was held besides the election when the request entered. Of concurrent requests, each counts those that
    /// entered before it.
    #[must_use]
    pub fn besides(&self) -> Held {
        self.besides
    }

    /// Ends the request with this outcome.
    pub fn finish(mut self, outcome: EntryOutcome) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let (holder, election, now) = (&*self.holder, &self.election, Instant::now());
        let mut places = self.quotas.places();
        if let Some(place) = places.place(holder, election) {
            place.under_way -= 1;
        }
        match self.outcome.take() {
            Some(EntryOutcome::Won) => {
                places.hold(holder, election, &self.leader, now + self.term, true);
            }
            None => places.hold(holder, election, &self.leader, now + self.term, false),
            Some(EntryOutcome::Lost(leader, remaining)) => {
                places.end(election, |place| place.leader != leader);
                if let Some(place) = places.place(holder, election)
                    && place.until.is_some()
                {
                    places.hold(holder, election, &leader, now + remaining, false);
                }
            }
            Some(EntryOutcome::Refused) => {}
        }
        places.tidy(election);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const TERM: Duration = Duration::from_secs(10);

    fn election(name: &str) -> ElectionId {
        ElectionId::new("k", name).expect("valid")
    }

    fn name(name: &str) -> Candidate {
        Candidate::new("candidate", name).expect("valid")
    }

    fn quotas(per_holder: usize, per_kind: usize) -> Quotas {
        Quotas::new(Limits {
            per_holder,
            per_kind,
        })
    }

    fn enters(quotas: &Quotas, holder: &str, to: &str) -> Result<Entry, Exceeded> {
        quotas.enter(holder, &election(to), &name(holder), TERM)
    }

    fn wins(quotas: &Quotas, holder: &str, to: &str) {
        let entry = enters(quotas, holder, to).expect("a place");
        entry.finish(EntryOutcome::Won);
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_has_so_many_and_its_own_again() {
        let it = quotas(2, 0);
        wins(&it, "a", "1");
        wins(&it, "a", "2");
        assert_eq!(enters(&it, "a", "3").err(), Some(Exceeded::Holder(2)));
        wins(&it, "b", "3");
        wins(&it, "a", "1");
        it.ended(&election("1"), &name("other"));
        assert!(enters(&it, "a", "3").is_err(), "another's resignation");
        it.ended(&election("1"), &name("a"));
        wins(&it, "a", "4");
        advance(TERM / 2).await;
        it.extended("a", &election("4"), &name("a"), TERM, true);
        advance(TERM / 2).await;
        wins(&it, "a", "5");
        let full = enters(&it, "a", "6");
        assert_eq!(full.err(), Some(Exceeded::Holder(2)), "4 was extended");
        advance(TERM).await;
        let besides = it.besides("a", &election("6"));
        assert_eq!(besides, Held::default());
        assert!(it.places().elections.is_empty() && it.places().by_holder.is_empty());
        assert!(it.places().of_kind.is_empty() && it.places().queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_of_a_kind_counts_all_holders() {
        let it = quotas(0, 2);
        wins(&it, "a", "1");
        let second = enters(&it, "b", "2").expect("a place");
        assert_eq!(
            second.besides(),
            Held {
                by_holder: 0,
                of_kind: 1
            }
        );
        assert_eq!(enters(&it, "c", "3").err(), Some(Exceeded::Kind(2)));
        // An election counts once, even with several holders.
        let rival = enters(&it, "c", "1").expect("it has a place");
        rival.finish(EntryOutcome::Lost(name("a"), TERM));
        let other = ElectionId::new("other", "3").expect("valid");
        assert!(it.enter("c", &other, &name("c"), TERM).is_ok());
        second.finish(EntryOutcome::Refused);
        wins(&it, "c", "3");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_lost_takes_no_place_and_what_is_not_known_takes_one_for_a_term() {
        let it = quotas(1, 0);
        let lost = enters(&it, "a", "1").expect("a place");
        assert!(enters(&it, "a", "2").is_err(), "it may yet be won");
        lost.finish(EntryOutcome::Lost(name("b"), TERM));
        drop(enters(&it, "a", "2").expect("a place"));
        assert!(enters(&it, "a", "3").is_err(), "not known");
        advance(TERM).await;
        wins(&it, "a", "3");
        // A second process of the holder finds the first leading.
        let second = it.enter("a", &election("3"), &name("a/2"), TERM);
        second
            .expect("its own")
            .finish(EntryOutcome::Lost(name("a"), TERM));
        assert!(enters(&it, "a", "4").is_err());
        // Another candidate leads now: the election was lost before its time, through another agent.
        let second = it.enter("a", &election("3"), &name("a/2"), TERM);
        second
            .expect("its own")
            .finish(EntryOutcome::Lost(name("c"), TERM));
        wins(&it, "a", "4");
    }

    #[tokio::test(start_paused = true)]
    async fn an_election_counts_for_who_got_or_extended_it_last() {
        let it = quotas(1, 0);
        wins(&it, "a", "1");
        it.extended("b", &election("1"), &name("b"), TERM, false);
        assert!(enters(&it, "a", "2").is_err(), "it is not known");
        it.extended("b", &election("1"), &name("b"), TERM, true);
        assert!(enters(&it, "b", "2").is_err());
        wins(&it, "a", "2");
        it.extended("b", &election("3"), &name("b"), TERM, true);
        assert_eq!(
            it.besides("b", &election("4")).by_holder,
            2,
            "leaders go on"
        );
    }
}
