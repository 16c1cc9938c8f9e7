//! The domain: who leads an election.
//!
//! Every transport calls [`Elections`]. It takes validated names and numbers ([`types`](crate::types)), calls the
//! [quorum](crate::lease::quorum) of lease nodes, and replies. It knows neither gRPC nor HTTP nor Redis.

pub mod ledger;
pub mod quota;
pub mod state;

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use tokio::time::{Instant, sleep};

pub use crate::lease::{Denial, quorum::Error};
use crate::lease::{
    Extend, Lease, Replaces, Resign, State,
    quorum::{Claim, Claimed, Quorum, too_slow},
};
use crate::types::{Candidate, ElectionId, Invalid, Kind, RequestId, Term, Token, Value};
use ledger::{Cause, Ledger, Request};
use state::Standing;

/// The number of leaders of a page when the request gives none.
pub const DEFAULT_PAGE: usize = 100;
/// The most leaders a page holds.
pub const MAX_PAGE: usize = 1000;

/// A request to become the leader.
#[derive(Debug, Clone)]
pub struct Campaign {
    /// The election.
    pub election: ElectionId,
    /// The candidate.
    pub candidate: Candidate,
    /// The length of the term.
    pub term: Term,
    /// The leader's public data.
    pub value: Value,
    /// Makes a retry safe.
    pub request_id: Option<RequestId>,
    /// The wait that precedes this claim. [`None`]: the request has just arrived.
    pub wait: Option<Wait>,
}

/// A wait for an election to become vacant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Wait {
    /// When the request arrived.
    pub since: Instant,
    /// How long the lease is stored. The caller may have gone during the wait, so a grant after a wait is provisional:
    /// the first extension grants the full term.
    pub stored: Term,
}

/// The outcome of a [`Campaign`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The candidate leads.
    Elected {
        /// Its fencing token.
        token: Token,
        /// How long the candidate may act as leader, counted from before its request. After a wait it may exceed the
        /// term.
        valid_for: Duration,
        /// Whether the lease is stored for a shorter time than the term until its first extension.
        provisional: bool,
        /// When the request arrived, by the agent's clock; after a wait on a [stream](crate::board::Waiter), when the
        /// caller's last message before the claim arrived. The caller counts from before then.
        since: Instant,
    },
    /// Another candidate leads.
    NotElected(Lease),
    /// The request id belongs to an earlier grant, which has ended.
    Used,
}

/// How often, and how far apart, an extension is retried when no quorum of nodes replied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    times: u32,
    interval: Duration,
}

impl Retry {
    /// Validates 0 to 10 retries, 0 to 1000 ms apart.
    ///
    /// # Errors
    /// [`Invalid`] names the number that is out of range.
    pub fn new(times: i64, interval_ms: i64) -> Result<Self, Invalid> {
        let within = |field, number: i64, most: i64, unit| {
            u32::try_from(number)
                .ok()
                .filter(|_| number <= most)
                .ok_or_else(|| Invalid(format!("`{field}` is {number}: give 0 to {most}{unit}")))
        };
        Ok(Self {
            times: within("retries", times, 10, "")?,
            interval: Duration::from_millis(
                within("retry_interval", interval_ms, 1000, " milliseconds")?.into(),
            ),
        })
    }
}

/// A request to hand a leadership over.
#[derive(Debug, Clone)]
pub struct Handover {
    /// The election.
    pub election: ElectionId,
    /// The candidate that is to lead.
    pub leader: Candidate,
    /// The length of the term.
    pub term: Term,
    /// The leader that hands over. Without it, only a vacant election can be handed over.
    pub current_leader: Option<Candidate>,
    /// The token of `current_leader`.
    pub token: Option<Token>,
}

/// A request for a page of leaders.
#[derive(Debug, Clone)]
pub struct List {
    kind: Option<Kind>,
    limit: usize,
    after: Option<ElectionId>,
}

impl List {
    /// The kind; [`None`] for all kinds.
    #[must_use]
    pub fn kind(&self) -> Option<&Kind> {
        self.kind.as_ref()
    }

    /// Validates a request for up to `page_size` leaders (0 means [`DEFAULT_PAGE`]) of `kind`, or of
    /// `all_kinds`, from where the page that returned `page_token` ended.
    ///
    /// # Errors
    /// [`Invalid`]: a kind or page size out of range, a kind beside `all_kinds`, or a page token of another listing.
    pub fn new(
        kind: &str,
        all_kinds: bool,
        page_size: i64,
        page_token: &str,
    ) -> Result<Self, Invalid> {
        if all_kinds && !kind.is_empty() {
            return Err(Invalid(
                "`kind` is given beside `all_kinds`: give one of them".to_owned(),
            ));
        }
        let kind = match all_kinds {
            true => None,
            false => Some(Kind::new(kind)?),
        };
        let after = after(page_token, "of this kind, or of all kinds,", |text| {
            match &kind {
                // No path begins with a slash.
                None => ElectionId::from_path(text.strip_prefix('/')?).ok(),
                Some(kind) => ElectionId::from_path(text)
                    .ok()
                    .filter(|after| after.kind() == kind.as_str()),
            }
        })?;
        Ok(Self {
            kind,
            limit: page_limit(page_size)?,
            after,
        })
    }
}

/// A request for a page of kinds.
#[derive(Debug, Clone)]
pub struct ListKinds {
    limit: usize,
    after: Option<Kind>,
}

impl ListKinds {
    /// Validates a request for up to `page_size` kinds (0 means [`DEFAULT_PAGE`]), from where the page that returned
    /// `page_token` ended.
    ///
    /// # Errors
    /// [`Invalid`]: a page size out of range, or a page token of another listing.
    pub fn new(page_size: i64, page_token: &str) -> Result<Self, Invalid> {
        // No path ends with a slash.
        let kind = |text: &str| Kind::new(text.strip_suffix('/')?).ok();
        Ok(Self {
            limit: page_limit(page_size)?,
            after: after(page_token, "of kinds", kind)?,
        })
    }
}

/// The size of a page, of which `page_size` is requested: 0 means [`DEFAULT_PAGE`].
///
/// # Errors
/// [`Invalid`]: it is negative or over [`MAX_PAGE`].
pub fn page_limit(page_size: i64) -> Result<usize, Invalid> {
    match usize::try_from(page_size) {
        Ok(0) => Ok(DEFAULT_PAGE),
        Ok(size) if size <= MAX_PAGE => Ok(size),
        _ => Err(Invalid(format!(
            "`page_size` is {page_size}: give 1 to {MAX_PAGE}, or 0 for {DEFAULT_PAGE}"
        ))),
    }
}

/// The content of a page token; [`None`] without a token.
fn after<T>(
    page_token: &str,
    of: &str,
    read: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, Invalid> {
    if page_token.is_empty() {
        return Ok(None);
    }
    let text = BASE64_URL_SAFE_NO_PAD.decode(page_token).ok();
    let text = text.and_then(|text| String::from_utf8(text).ok());
    let after = text.and_then(|text| read(&text)).ok_or_else(|| {
        Invalid(format!(
            "`page_token` is not one that a page {of} gave: give the last page's next_page_token unchanged, or leave \
             it out for the first page"
        ))
    })?;
    Ok(Some(after))
}

/// A page of leaders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaders {
    /// Elections and their leases.
    pub leaders: Vec<(ElectionId, Lease)>,
    /// Where the next page starts; empty on the last.
    pub next_page_token: String,
    /// Whether held elections may be missing because parts of the lease nodes did not reply.
    pub incomplete: bool,
}

/// A page of kinds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kinds {
    /// The kinds.
    pub kinds: Vec<Kind>,
    /// Where the next page starts; empty on the last.
    pub next_page_token: String,
    /// Whether kinds may be missing because parts of the lease nodes did not reply.
    pub incomplete: bool,
}

/// Elections on a quorum of lease nodes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Elections {
    quorum: Quorum,
    max_term: Duration,
    /// [`None`]: changes are not reported.
    ledger: Option<Ledger>,
}

impl Elections {
    /// Creates elections with terms up to `max_term`.
    #[must_use]
    pub fn new(quorum: Quorum, max_term: Duration) -> Self {
        Self {
            quorum,
            max_term,
            ledger: None,
        }
    }

    /// The same elections, reported to this ledger.
    #[must_use]
    pub fn entered_into(self, ledger: Ledger) -> Self {
        Self {
            ledger: Some(ledger),
            ..self
        }
    }

    /// The nodes that decide.
    #[must_use]
    pub fn quorum(&self) -> &Quorum {
        &self.quorum
    }

    /// The longest term.
    #[must_use]
    pub fn max_term(&self) -> Duration {
        self.max_term
    }

    /// Campaigns for the leadership; never waits for it.
    ///
    /// # Errors
    /// [`Error`]: a node may have granted the lease for a moment; the grant is rolled back.
    pub async fn campaign(&self, campaign: &Campaign, deadline: Instant) -> Result<Outcome, Error> {
        let (election, candidate) = (&campaign.election, &campaign.candidate);
        let term = campaign.wait.map_or(campaign.term, |wait| wait.stored);
        let provisional = term < campaign.term;
        let since = campaign.wait.map_or_else(Instant::now, |wait| wait.since);
        let claim = Claim {
            election: election.clone(),
            candidate: candidate.clone(),
            term,
            waited_since: campaign.wait.map(|wait| wait.since),
            value: campaign.value.clone(),
            request_id: campaign.request_id.clone(),
            replaces: Replaces::Own,
        };
        let outcome = match self.quorum.claim(claim, deadline).await {
            Ok(Claimed::Won { token, valid_for }) => Ok(Outcome::Elected {
                token,
                valid_for,
                provisional,
                since,
            }),
            Ok(Claimed::Lost(lease)) => Ok(Outcome::NotElected(lease)),
            Ok(Claimed::Used) => Ok(Outcome::Used),
            // Only a handover names a leader.
            Ok(Claimed::TokenMismatch | Claimed::Vacant) => Err(contradiction()),
            Err(error) => Err(error),
        };
        self.enter(
            Request::Campaign,
            &outcome,
            |ledger, outcome| match outcome {
                Outcome::Elected { token, .. } => {
                    let term = term.duration();
                    ledger.won(election, candidate, *token, term, Cause::Campaign);
                    ledger::RequestOutcome::Elected
                }
                Outcome::NotElected(lease) => {
                    ledger.seen(election, lease);
                    ledger::RequestOutcome::Held
                }
                Outcome::Used => ledger::RequestOutcome::Used,
            },
        );
        outcome
    }

    /// Enters the outcome of a request.
    fn enter<T>(
        &self,
        request: Request,
        result: &Result<T, Error>,
        entry: impl FnOnce(&Ledger, &T) -> ledger::RequestOutcome,
    ) {
        let Some(ledger) = &self.ledger else { return };
        let outcome = match result {
            Ok(answer) => entry(ledger, answer),
            Err(Error::StoreFull) => ledger::RequestOutcome::StoreFull,
            Err(Error::Denied(Denial::NoTerm)) => ledger::RequestOutcome::Vacant,
            Err(Error::Denied(Denial::HeldByOther)) => ledger::RequestOutcome::Held,
            Err(Error::Denied(Denial::StaleToken)) => ledger::RequestOutcome::Stale,
            Err(Error::Unavailable { .. } | Error::DeadlineExceeded | Error::Internal(_)) => {
                ledger::RequestOutcome::Unavailable
            }
        };
        ledger.finished(request, outcome);
    }

    /// Enters the outcome of a leader's request.
    fn enter_leaders<T>(
        &self,
        request: Request,
        election: &ElectionId,
        result: &Result<T, Error>,
        done: impl FnOnce(&Ledger),
    ) {
        if let (Some(ledger), Err(Error::Denied(Denial::NoTerm))) = (&self.ledger, result) {
            ledger.vacant(election);
        }
        self.enter(request, result, |ledger, _| {
            done(ledger);
            ledger::RequestOutcome::Done
        });
    }

    /// Extends a term that has not expired. Returns how long the leader may act, counted from before its request: less
    /// than the term by the duration of the successful try and by the [drift](Term::drift).
    ///
    /// # Errors
    /// [`Error::Denied`]: the caller does not lead. Any other [`Error`]: the term may or may not have been extended,
    /// also after all retries. That includes a term that is over after the retries.
    pub async fn extend(
        &self,
        extend: Extend,
        retry: Retry,
        deadline: Instant,
    ) -> Result<Duration, Error> {
        let (began, mut left) = (Instant::now(), retry.times);
        let extended = loop {
            match self.quorum.extend(extend.clone(), deadline).await {
                Err(Error::Unavailable { .. })
                    if left > 0 && Instant::now() + retry.interval < deadline =>
                {
                    left -= 1;
                    sleep(retry.interval).await;
                }
                // The caller counts from before its request, so the earlier tries use up time, too.
                Ok(valid_for) if began.elapsed() >= valid_for => break Err(too_slow()),
                result => break result,
            }
        };
        self.enter_extension(&extend, &extended);
        extended
    }

    /// Extends several terms with few calls to the nodes, each as [`extend`](Self::extend) does without retries: one
    /// result for each, in their order.
    pub async fn extend_many(
        &self,
        extends: Vec<Arc<Extend>>,
        deadline: Instant,
    ) -> Vec<Result<Duration, Error>> {
        let extended = self.quorum.extend_many(extends.clone(), deadline).await;
        for (extend, extended) in extends.iter().zip(&extended) {
            self.enter_extension(extend, extended);
        }
        extended
    }

    fn enter_extension(&self, extend: &Extend, extended: &Result<Duration, Error>) {
        self.enter_leaders(Request::Extend, &extend.election, extended, |ledger| {
            let term = extend.term.duration();
            ledger.extended(&extend.election, &extend.leader, extend.token, term);
        });
    }

    /// Resigns a leadership.
    ///
    /// # Errors
    /// [`Error::Denied`]: the caller does not lead. Any other [`Error`]: the election may or may not be vacant now.
    pub async fn resign(&self, resign: Resign, deadline: Instant) -> Result<(), Error> {
        let resigned = self.quorum.resign(resign.clone(), deadline).await;
        self.enter_leaders(Request::Resign, &resign.election, &resigned, |ledger| {
            ledger.resigned(&resign.election, &resign.leader, resign.token);
        });
        resigned
    }

    /// Moves a leadership to another candidate in one step. A `forced` handover replaces any leader. Returns how long
    /// the new leader may act, counted from before the request.
    ///
    /// # Errors
    /// [`Error::Denied`]: why it was refused. Any other [`Error`]: the old or the new leader may lead.
    pub async fn handover(
        &self,
        handover: Handover,
        forced: bool,
        deadline: Instant,
    ) -> Result<Duration, Error> {
        let names = handover.current_leader.is_some() || handover.token.is_some();
        let replaces = match handover.current_leader {
            // A request that names a leader may be a late duplicate. It must not elect a leader in a vacant election.
            _ if forced && names => Replaces::AnyLeader,
            _ if forced => Replaces::Anything,
            Some(leader) => Replaces::Of(leader, handover.token),
            None if handover.token.is_some() => Replaces::NothingHeld,
            None => Replaces::Nothing,
        };
        let claim = Claim {
            election: handover.election.clone(),
            candidate: handover.leader.clone(),
            term: handover.term,
            waited_since: None,
            value: Value::default(),
            request_id: None,
            replaces,
        };
        let claimed = self.quorum.claim(claim, deadline).await;
        let granted = match &claimed {
            Ok(Claimed::Won { token, .. }) => Some(*token),
            _ => None,
        };
        let moved = claimed.and_then(|claimed| match claimed {
            Claimed::Won { valid_for, .. } => Ok(valid_for),
            Claimed::Lost(_) => Err(Denial::HeldByOther.into()),
            Claimed::TokenMismatch => Err(Denial::StaleToken.into()),
            Claimed::Vacant => Err(Denial::NoTerm.into()),
            // A handover has no request id.
            Claimed::Used => Err(contradiction()),
        });
        self.enter_leaders(Request::Handover, &handover.election, &moved, |ledger| {
            let (leader, term) = (&handover.leader, handover.term.duration());
            if let Some(token) = granted {
                ledger.won(&handover.election, leader, token, term, Cause::Handover);
            }
        });
        moved
    }

    /// The state of an election.
    ///
    /// # Errors
    /// [`Error`]: no quorum of nodes agreed.
    pub async fn state(&self, election: &ElectionId, deadline: Instant) -> Result<State, Error> {
        let read = self.quorum.read(election, deadline).await;
        self.enter(Request::Leader, &read, |ledger, state| {
            enter_state(ledger, election, state);
            match state {
                State::Held(_) => ledger::RequestOutcome::Held,
                State::Vacant(_) => ledger::RequestOutcome::Vacant,
            }
        });
        read
    }

    /// Returns the standing of a token, and the state that it follows from.
    ///
    /// # Errors
    /// [`Error`]: no quorum of nodes agreed.
    pub async fn verify(
        &self,
        election: &ElectionId,
        token: Token,
        deadline: Instant,
    ) -> Result<(Standing, State), Error> {
        let asked = Instant::now();
        let read = self.quorum.read(election, deadline).await;
        let verified = read.map(|state| (Standing::of(token, &state, asked.elapsed()), state));
        self.enter(Request::Verify, &verified, |ledger, (standing, state)| {
            enter_state(ledger, election, state);
            match standing {
                Standing::Current(_) => ledger::RequestOutcome::Done,
                Standing::NoTerm => ledger::RequestOutcome::Vacant,
                Standing::Stale => ledger::RequestOutcome::Stale,
                Standing::NotGranted => ledger::RequestOutcome::NotGranted,
            }
        });
        verified
    }

    /// A page of the elections of a kind, or of all kinds, that are known to be held.
    ///
    /// # Errors
    /// [`Error`]: fewer nodes than a quorum replied.
    pub async fn leaders(&self, list: List, deadline: Instant) -> Result<Leaders, Error> {
        let listed = self
            .quorum
            .list(list.kind(), list.after.clone(), list.limit, deadline)
            .await;
        self.enter(Request::List, &listed, |_, _| ledger::RequestOutcome::Done);
        let page = listed?;
        Ok(Leaders {
            incomplete: page.incomplete.is_some(),
            leaders: page.leases,
            next_page_token: page.next.map_or_else(String::new, |next| {
                // The token of one listing is not valid for another.
                BASE64_URL_SAFE_NO_PAD.encode(match list.kind {
                    Some(_) => next.path().to_owned(),
                    None => format!("/{next}"),
                })
            }),
        })
    }

    /// A page of the kinds that have elections. It may contain a kind whose last leader has gone.
    ///
    /// # Errors
    /// [`Error`]: fewer nodes than a quorum replied.
    pub async fn kinds(&self, list: ListKinds, deadline: Instant) -> Result<Kinds, Error> {
        let listed = self.quorum.kinds(list.after, list.limit, deadline).await;
        self.enter(Request::ListKinds, &listed, |_, _| {
            ledger::RequestOutcome::Done
        });
        let page = listed?;
        let token = |next: Kind| BASE64_URL_SAFE_NO_PAD.encode(format!("{}/", next.as_str()));
        Ok(Kinds {
            kinds: page.kinds,
            next_page_token: page.next.map(token).unwrap_or_default(),
            incomplete: page.incomplete.is_some(),
        })
    }
}

fn enter_state(ledger: &Ledger, election: &ElectionId, state: &State) {
    match state {
        State::Held(lease) => ledger.seen(election, lease),
        State::Vacant(_) => ledger.vacant(election),
    }
}

fn contradiction() -> Error {
    Error::Internal("the lease nodes contradict each other".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_out_of_range_are_told_the_range() {
        assert!(Retry::new(0, 0).is_ok() && Retry::new(10, 1000).is_ok());
        for (times, interval, error) in [
            (-1, 0, "`retries` is -1: give 0 to 10"),
            (11, 0, "`retries` is 11: give 0 to 10"),
            (
                0,
                1001,
                "`retry_interval` is 1001: give 0 to 1000 milliseconds",
            ),
        ] {
            assert_eq!(Retry::new(times, interval), Err(Invalid(error.to_owned())));
        }
    }

    #[test]
    fn a_page_token_must_be_one_of_the_listing() {
        let [of_kind, of_all, of_kinds] = ["batch/nightly", "/batch/nightly", "batch/"]
            .map(|text| BASE64_URL_SAFE_NO_PAD.encode(text));
        assert!(List::new("batch", false, 0, &of_kind).is_ok());
        assert!(List::new("", true, 0, &of_all).is_ok());
        assert!(ListKinds::new(0, &of_kinds).is_ok());
        for (kind, all, size, token) in [
            ("other", false, 0, &*of_kind),
            ("batch", false, 0, &of_all),
            ("batch", false, 0, &of_kinds),
            ("", true, 0, &of_kind),
            ("", true, 0, &of_kinds),
            ("batch", true, 0, ""),
            ("batch", false, 0, "no token"),
            ("batch", false, -1, ""),
            ("batch", false, 1001, ""),
        ] {
            assert!(
                List::new(kind, all, size, token).is_err(),
                "{kind} {all} {size} {token}"
            );
        }
        for (size, token) in [(0, &*of_kind), (0, &of_all), (0, "no token"), (1001, "")] {
            assert!(ListKinds::new(size, token).is_err(), "{size} {token}");
        }
    }
}
