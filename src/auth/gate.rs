//! Authorizes access to elections and pods by policy.
//!
//! Transports reach elections and pods only through this gate, so no transport can skip authorization. The gate denies
//! a request before it does any work for it.

use std::{sync::Arc, time::Duration};

use election_core::{
    board::{Board, Observation, Patience, Scope, Seen, Waiting},
    election::{
        self, Campaign, Denial, Elections, Handover, Kinds, Leaders, List, ListKinds, Outcome,
        Retry,
        quota::{self, Entry, Exceeded, Held, Quotas},
        state::Standing,
    },
    lease::{Extend, Resign, State},
    types::{Candidate, ElectionId, Kind, Term, Token},
};
use tokio::time::Instant;

use super::{
    Identity,
    policy::{Policies, PolicyAction, Question, Resource},
};
use crate::{
    auth::audit,
    kube::{self, Lookup, Pods, Wanted},
    reload::Current,
};

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Policies deny the request; nothing was changed. The text names what was requested.
    #[error("{0}")]
    Denied(String),
    /// The caller holds as many elections as it may, or all callers together hold as many of the kind; nothing was
    /// changed.
    #[error("{message}")]
    OverQuota {
        /// What is held and how to proceed.
        message: String,
        /// The setting that defines the limit.
        setting: &'static str,
        /// The maximum number of held elections.
        limit: usize,
    },
    /// The election service refused the request or failed.
    #[error(transparent)]
    Election(#[from] election::Error),
    /// The pod lookup failed.
    #[error(transparent)]
    Pods(#[from] kube::Error),
}

/// Elections and pods behind authorization. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gate {
    elections: Elections,
    board: Board,
    lookup: Lookup,
    /// `None` if authentication is off: every caller may do everything.
    policies: Option<Current<Policies>>,
    /// `None`: the number of elections that a caller may hold is unlimited.
    quotas: Option<Quotas>,
    allow_forced_handover: bool,
}

impl Gate {
    /// Creates a gate to the elections, their waiters, and pods, with these policies and quotas. With
    /// `allow_forced_handover`, a handover may replace a leader that did not request it, if policies also permit it.
    #[must_use]
    pub fn new(
        board: Board,
        lookup: Lookup,
        policies: Option<Current<Policies>>,
        quotas: Option<Quotas>,
        allow_forced_handover: bool,
    ) -> Self {
        Self {
            elections: board.elections().clone(),
            board,
            lookup,
            policies,
            quotas,
            allow_forced_handover,
        }
    }

    /// Returns the longest term that a request may ask for.
    #[must_use]
    pub fn max_term(&self) -> Duration {
        self.elections.max_term()
    }

    /// Returns the longest time that a campaign may wait.
    #[must_use]
    pub fn max_wait(&self) -> Duration {
        self.board.max_wait()
    }

    /// [`Elections::campaign`], or [`Board::campaign`] if the caller waits.
    ///
    /// # Errors
    /// [`Error`]: the request is denied, or the elections fail.
    pub async fn campaign(
        &self,
        caller: &Identity,
        campaign: &Campaign,
        wait: Option<&Patience>,
        deadline: Instant,
    ) -> Result<Outcome, Error> {
        let (election, candidate) = (&campaign.election, &campaign.candidate);
        let question = Question {
            candidate: Some(candidate),
            ..Question::new(caller, PolicyAction::Campaign, Resource::Election(election))
        };
        let entry = self.enter(question, election, candidate, campaign.term)?;
        let outcome = match wait {
            None => self.elections.campaign(campaign, deadline).await,
            Some(patience) => self.board.campaign(campaign, patience).await,
        };
        note(entry, &outcome, |outcome| match outcome {
            Outcome::Elected { .. } => quota::EntryOutcome::Won,
            Outcome::NotElected(lease) => {
                quota::EntryOutcome::Lost(lease.leader.clone(), lease.remaining)
            }
            Outcome::Used => quota::EntryOutcome::Refused,
        });
        Ok(outcome?)
    }

    /// [`Elections::extend`].
    ///
    /// # Errors
    /// [`Error`]: the request is denied, or the elections fail.
    pub async fn extend(
        &self,
        caller: &Identity,
        extend: Extend,
        retry: Retry,
        deadline: Instant,
    ) -> Result<Duration, Error> {
        self.authorize_leader(
            caller,
            PolicyAction::Extend,
            &extend.election,
            &extend.leader,
        )?;
        let Some(quotas) = &self.quotas else {
            return Ok(self.elections.extend(extend, retry, deadline).await?);
        };
        let asked = extend.clone();
        let extended = self.elections.extend(extend, retry, deadline).await;
        note_extension(quotas, caller, &asked, &extended);
        Ok(extended?)
    }

    /// [`Elections::extend_many`]: one result for each, in their order.
    pub async fn extend_many(
        &self,
        caller: &Identity,
        extends: Vec<Arc<Extend>>,
        deadline: Instant,
    ) -> Vec<Result<Duration, Error>> {
        let permitted = extends.iter().map(|extend| {
            self.authorize_leader(
                caller,
                PolicyAction::Extend,
                &extend.election,
                &extend.leader,
            )
        });
        let permitted: Vec<_> = permitted.collect();
        let asked = extends.into_iter().zip(&permitted);
        let asked = asked.filter_map(|(extend, permitted)| permitted.is_ok().then_some(extend));
        let asked: Vec<_> = asked.collect();
        let extended = self.elections.extend_many(asked.clone(), deadline).await;
        if let Some(quotas) = &self.quotas {
            for (extend, extended) in asked.iter().zip(&extended) {
                note_extension(quotas, caller, extend, extended);
            }
        }
        let mut extended = extended.into_iter();
        let no_answer = || {
            Err(election::Error::Internal(
                "an extension has no reply".to_owned(),
            ))
        };
        let results = permitted.into_iter().map(|permitted| {
            permitted?;
            Ok(extended.next().unwrap_or_else(no_answer)?)
        });
        results.collect()
    }

    /// [`Elections::resign`].
    ///
    /// # Errors
    /// [`Error`]: the request is denied, or the elections fail.
    pub async fn resign(
        &self,
        caller: &Identity,
        resign: Resign,
        deadline: Instant,
    ) -> Result<(), Error> {
        self.authorize_leader(
            caller,
            PolicyAction::Resign,
            &resign.election,
            &resign.leader,
        )?;
        let Some(quotas) = &self.quotas else {
            return Ok(self.elections.resign(resign, deadline).await?);
        };
        let (election, leader) = (resign.election.clone(), resign.leader.clone());
        let resigned = self.elections.resign(resign, deadline).await;
        match &resigned {
            Ok(()) => quotas.ended(&election, &leader),
            Err(election::Error::Denied(denial)) => {
                note_denial(quotas, &election, &leader, *denial);
            }
            Err(_) => {}
        }
        Ok(resigned?)
    }

    /// [`Elections::handover`]; forced if the configuration allows it and policies permit it to the caller.
    ///
    /// # Errors
    /// [`Error`]: the request is denied, or the elections fail.
    pub async fn handover(
        &self,
        caller: &Identity,
        handover: Handover,
        deadline: Instant,
    ) -> Result<Duration, Error> {
        let question = |action| Question {
            identity: caller,
            action,
            resource: Resource::Election(&handover.election),
            candidate: Some(&handover.leader),
            current_leader: handover.current_leader.as_ref(),
            held: self.besides(caller, &handover.election),
        };
        let forced =
            self.allow_forced_handover && self.permits(&question(PolicyAction::ForceHandover));
        let question = question(match forced {
            true => PolicyAction::ForceHandover,
            false => PolicyAction::Handover,
        });
        let (election, leader, term) = (&handover.election, &handover.leader, handover.term);
        // A handover that names the current leader replaces it. If there is none, the handover elects no leader.
        if handover.current_leader.is_none() {
            let entry = self.enter(question, election, leader, term)?;
            let moved = self.elections.handover(handover, forced, deadline).await;
            note(entry, &moved, |_| quota::EntryOutcome::Won);
            return Ok(moved?);
        }
        self.authorize(&question)?;
        let (election, leader) = (election.clone(), leader.clone());
        let moved = self.elections.handover(handover, forced, deadline).await;
        if let Some(quotas) = &self.quotas
            && !matches!(moved, Err(election::Error::Denied(_)))
        {
            let (holder, term) = (caller.name(), term.duration());
            quotas.extended(holder, &election, &leader, term, moved.is_ok());
        }
        Ok(moved?)
    }

    /// [`Elections::state`].
    ///
    /// # Errors
    /// [`Error`]: the request is denied, or the elections fail.
    pub async fn state(
        &self,
        caller: &Identity,
        election: &ElectionId,
        deadline: Instant,
    ) -> Result<State, Error> {
        self.authorize_read(caller, PolicyAction::Read, Resource::Election(election))?;
        Ok(self.elections.state(election, deadline).await?)
    }

    /// [`Elections::verify`].
    ///
    /// # Errors
    /// [`Error`]: the request is denied, or the elections fail.
    pub async fn verify(
        &self,
        caller: &Identity,
        election: &ElectionId,
        token: Token,
        deadline: Instant,
    ) -> Result<(Standing, State), Error> {
        self.authorize_read(caller, PolicyAction::Verify, Resource::Election(election))?;
        Ok(self.elections.verify(election, token, deadline).await?)
    }

    /// [`Elections::leaders`]; of all kinds only those that the caller may list.
    ///
    /// # Errors
    /// [`Error`]: the request is denied, or the elections fail.
    pub async fn leaders(
        &self,
        caller: &Identity,
        list: List,
        deadline: Instant,
    ) -> Result<Leaders, Error> {
        let Some(kind) = list.kind() else {
            self.authorize_read(caller, PolicyAction::ListKinds, Resource::Agent)?;
            let mut page = self.elections.leaders(list, deadline).await?;
            let mut listed = Listed::new(self, caller);
            page.leaders
                .retain(|(election, _)| listed.has(election.kind()));
            return Ok(page);
        };
        self.authorize_read(caller, PolicyAction::List, Resource::Kind(kind))?;
        Ok(self.elections.leaders(list, deadline).await?)
    }

    /// [`Elections::kinds`]; only those that the caller may list.
    ///
    /// # Errors
    /// [`Error`]: the request is denied, or the elections fail.
    pub async fn kinds(
        &self,
        caller: &Identity,
        list: ListKinds,
        deadline: Instant,
    ) -> Result<Kinds, Error> {
        self.authorize_read(caller, PolicyAction::ListKinds, Resource::Agent)?;
        let mut page = self.elections.kinds(list, deadline).await?;
        page.kinds.retain(|kind| self.may_list(caller, kind));
        Ok(page)
    }

    /// [`Board::observe`].
    ///
    /// # Errors
    /// [`Error`]: the request is denied.
    pub fn observe(&self, caller: &Identity, scope: Scope) -> Result<Observation, Error> {
        self.authorize(&observes(caller, &scope))?;
        Ok(self.board.observe(scope))
    }

    /// Returns whether policies permit the caller to observe this.
    #[must_use]
    pub fn may_observe(&self, caller: &Identity, scope: &Scope) -> bool {
        self.permits(&observes(caller, scope))
    }

    /// Returns whether policies permit the caller this campaign.
    #[must_use]
    pub fn may_campaign(&self, caller: &Identity, campaign: &Campaign) -> bool {
        let election = &campaign.election;
        self.permits(&Question {
            candidate: Some(&campaign.candidate),
            held: self.besides(caller, election),
            ..Question::new(caller, PolicyAction::Campaign, Resource::Election(election))
        })
    }

    /// Returns whether policies permit the caller to list the kind.
    #[must_use]
    pub fn may_list(&self, caller: &Identity, kind: &Kind) -> bool {
        self.permits(&Question::new(
            caller,
            PolicyAction::List,
            Resource::Kind(kind),
        ))
    }

    /// Checks that the pod lookup is on. Transports check this before they validate a request for pods.
    ///
    /// # Errors
    /// The lookup is off.
    pub fn looks_up_pods(&self) -> Result<(), Error> {
        Ok(self.lookup.is_on()?)
    }

    /// [`Lookup::pods`].
    ///
    /// # Errors
    /// [`Error`]: the request is denied, or the lookup fails.
    pub async fn pods(
        &self,
        caller: &Identity,
        wanted: &Wanted,
        deadline: Instant,
    ) -> Result<Pods, Error> {
        let resource = match wanted {
            Wanted::Deployment { namespace, name } => Resource::Deployment { namespace, name },
            Wanted::Siblings {
                namespace,
                pod: name,
            } => Resource::Pod { namespace, name },
        };
        self.authorize_read(caller, PolicyAction::Pods, resource)?;
        Ok(self.lookup.pods(wanted, deadline).await?)
    }

    /// [`Board::changes`].
    ///
    /// # Errors
    /// [`Error`]: the request is denied.
    pub fn changes(
        &self,
        caller: &Identity,
        election: &ElectionId,
    ) -> Result<Vec<Arc<Seen>>, Error> {
        self.authorize_read(caller, PolicyAction::Observe, Resource::Election(election))?;
        Ok(self.board.changes(election))
    }

    /// [`Board::waiters`]; of all kinds only those whose leaders the caller may list.
    ///
    /// # Errors
    /// [`Error`]: the request is denied.
    pub fn waiters(
        &self,
        caller: &Identity,
        scope: &Scope,
        skipped: usize,
        most: usize,
    ) -> Result<(Vec<Waiting>, bool), Error> {
        match scope {
            Scope::One(election) => {
                self.authorize_read(caller, PolicyAction::Read, Resource::Election(election))?;
            }
            Scope::Kind(kind, _) => {
                self.authorize_read(caller, PolicyAction::List, Resource::Kind(kind))?;
            }
            Scope::All => self.authorize_read(caller, PolicyAction::ListKinds, Resource::Agent)?,
        }
        let (mut page, more) = self.board.waiters(scope, skipped, most);
        if matches!(scope, Scope::All) {
            let mut listed = Listed::new(self, caller);
            page.retain(|waiting| listed.has(waiting.election.kind()));
        }
        Ok((page, more))
    }

    /// Checks that the caller may read the agent's own state.
    ///
    /// # Errors
    /// [`Error::Denied`].
    pub fn authorize_agent(&self, caller: &Identity) -> Result<(), Error> {
        self.authorize_read(caller, PolicyAction::Read, Resource::Agent)
    }

    /// Returns the names of the actions that policies permit the caller: on the agent, or on an election on behalf of
    /// a candidate, by default the one with the caller's name. A handover counts as one from that candidate to itself.
    #[must_use]
    pub fn permitted(
        &self,
        caller: &Identity,
        election: Option<&ElectionId>,
        candidate: Option<&Candidate>,
    ) -> Vec<&'static str> {
        let own = Candidate::new("candidate", caller.name()).ok();
        let candidate = candidate.or(own.as_ref());
        let may = |action: &PolicyAction| {
            let Some(election) = election else {
                let nobody = *action == PolicyAction::Admin && self.policies.is_none();
                let question = Question::new(caller, *action, Resource::Agent);
                return !nobody && self.permits(&question);
            };
            let leads = !matches!(
                action,
                PolicyAction::Read | PolicyAction::Verify | PolicyAction::Observe
            );
            let hands_over = *action == PolicyAction::Handover;
            let candidate = candidate.filter(|_| leads);
            (candidate.is_some() || !leads)
                && self.permits(&Question {
                    candidate,
                    current_leader: candidate.filter(|_| hands_over),
                    held: self.besides(caller, election),
                    ..Question::new(caller, *action, Resource::Election(election))
                })
        };
        let asked = match election {
            Some(_) => &[
                PolicyAction::Campaign,
                PolicyAction::Extend,
                PolicyAction::Resign,
                PolicyAction::Handover,
                PolicyAction::Read,
                PolicyAction::Verify,
                PolicyAction::Observe,
            ][..],
            None => &[
                PolicyAction::Observe,
                PolicyAction::Read,
                PolicyAction::ListKinds,
                PolicyAction::Admin,
            ],
        };
        let permitted = asked.iter().filter(|action| may(action));
        permitted.map(|action| action.name()).collect()
    }

    /// Checks that the caller may administer the agent. Without authentication, no caller may.
    ///
    /// # Errors
    /// [`Error::Denied`].
    pub fn authorize_admin(&self, caller: &Identity) -> Result<(), Error> {
        let question = Question::new(caller, PolicyAction::Admin, Resource::Agent);
        if self.policies.is_none() {
            audit::denied(&question, None);
            return Err(Error::Denied(
                "without authentication nobody may do this: set EA_AUTH_MODES, and permit the action admin by a policy \
                 (EA_AUTH_POLICY_DIR)"
                    .to_owned(),
            ));
        }
        self.authorize(&question)
    }

    /// Evaluates policies and reserves a place in the caller's quota. Returns [`None`] if quotas are off.
    fn enter(
        &self,
        question: Question<'_>,
        election: &ElectionId,
        candidate: &Candidate,
        term: Term,
    ) -> Result<Option<Box<Entry>>, Error> {
        let held = self.besides(question.identity, election);
        let question = Question { held, ..question };
        // Policies come first: a caller that may not have the election must not take a place, even briefly.
        self.authorize(&question)?;
        let Some(quotas) = &self.quotas else {
            return Ok(None);
        };
        let holder = question.identity.name();
        let entry = quotas.enter(holder, election, candidate, term.duration());
        let entry = entry.map_err(|exceeded| over_quota(&question, election, exceeded))?;
        // Other entries may have been made since the policies decided.
        let held = entry.besides();
        if self.counts_held() && held != question.held {
            let asked = self.authorize(&Question { held, ..question });
            if let Err(denied) = asked {
                entry.finish(quota::EntryOutcome::Refused);
                return Err(denied);
            }
        }
        // Boxed: campaigns that wait are many, and most agents have no quotas.
        Ok(Some(Box::new(entry)))
    }

    /// Returns how many elections are held besides this one, if policies use that number.
    fn besides(&self, caller: &Identity, election: &ElectionId) -> Held {
        match &self.quotas {
            Some(quotas) if self.counts_held() => quotas.besides(caller.name(), election),
            _ => Held::default(),
        }
    }

    fn counts_held(&self) -> bool {
        let policies = self.policies.as_ref();
        policies.is_some_and(|policies| policies.borrow().counts_held())
    }

    fn authorize_leader(
        &self,
        caller: &Identity,
        action: PolicyAction,
        election: &ElectionId,
        candidate: &Candidate,
    ) -> Result<(), Error> {
        self.authorize(&Question {
            candidate: Some(candidate),
            ..Question::new(caller, action, Resource::Election(election))
        })
    }

    fn authorize_read(
        &self,
        caller: &Identity,
        action: PolicyAction,
        resource: Resource<'_>,
    ) -> Result<(), Error> {
        self.authorize(&Question::new(caller, action, resource))
    }

    fn authorize(&self, question: &Question<'_>) -> Result<(), Error> {
        match self.permits(question) {
            true => Ok(()),
            false => Err(denied(question)),
        }
    }

    fn permits(&self, question: &Question<'_>) -> bool {
        permits(self.policies.as_ref(), question)
    }
}

/// Which kinds a caller may list, of kinds whose elections follow each other.
struct Listed<'a> {
    gate: &'a Gate,
    caller: &'a Identity,
    last: (String, bool),
}

impl<'a> Listed<'a> {
    fn new(gate: &'a Gate, caller: &'a Identity) -> Self {
        Self {
            gate,
            caller,
            last: (String::new(), false),
        }
    }

    fn has(&mut self, kind: &str) -> bool {
        if self.last.0 != kind {
            let named = Kind::new(kind);
            let may = named.is_ok_and(|named| self.gate.may_list(self.caller, &named));
            self.last = (kind.to_owned(), may);
        }
        self.last.1
    }
}

/// Updates a quota entry with the result, unless the result is unknown.
fn note<T>(
    entry: Option<Box<Entry>>,
    result: &Result<T, election::Error>,
    quota_outcome: impl FnOnce(&T) -> quota::EntryOutcome,
) {
    let Some(entry) = entry else { return };
    match result {
        Ok(outcome) => entry.finish(quota_outcome(outcome)),
        Err(election::Error::StoreFull | election::Error::Denied(_)) => {
            entry.finish(quota::EntryOutcome::Refused);
        }
        Err(_) => {}
    }
}

/// Updates the quotas with the result of an extension.
fn note_extension(
    quotas: &Quotas,
    caller: &Identity,
    extend: &Extend,
    extended: &Result<Duration, election::Error>,
) {
    let (election, leader, term) = (&extend.election, &extend.leader, extend.term.duration());
    match extended {
        Err(election::Error::Denied(denial)) => note_denial(quotas, election, leader, *denial),
        extended => quotas.extended(caller.name(), election, leader, term, extended.is_ok()),
    }
}

/// Updates the quotas with what a denial implies about a leader.
fn note_denial(quotas: &Quotas, election: &ElectionId, leader: &Candidate, denial: Denial) {
    match denial {
        Denial::NoTerm | Denial::HeldByOther => quotas.ended(election, leader),
        // The candidate leads through another process.
        Denial::StaleToken => {}
    }
}

/// Returns the error for a caller over its quota and writes it to the audit trail.
fn over_quota(question: &Question<'_>, election: &ElectionId, exceeded: Exceeded) -> Error {
    let (setting, limit, held) = match exceeded {
        Exceeded::Holder(limit) => (
            "EA_MAX_HELD_PER_IDENTITY",
            limit,
            format!("{} holds {limit} elections", question.identity.name()),
        ),
        Exceeded::Kind(limit) => (
            "EA_MAX_HELD_PER_KIND",
            limit,
            format!("{limit} elections of the kind {} are held", election.kind()),
        ),
    };
    audit::denied(question, Some(setting));
    Error::OverQuota {
        message: format!(
            "{held}, or requested, through this agent, and its {setting} permits no more: give up one that is no \
             longer needed"
        ),
        setting,
        limit,
    }
}

/// Returns whether policies permit it. Without policies, everything is permitted.
pub(crate) fn permits(policies: Option<&Current<Policies>>, question: &Question<'_>) -> bool {
    policies.is_none_or(|policies| {
        // The lock is not held during the decision, which may take long.
        let policies = Arc::clone(&policies.borrow());
        policies.decide(question).allowed()
    })
}

/// Returns the error for a caller that policies deny and writes it to the audit trail.
pub(crate) fn denied(question: &Question<'_>) -> Error {
    audit::denied(question, None);
    Error::Denied(format!(
        "policies do not permit this: {question} (`election-agent authz explain` shows an operator which of them)"
    ))
}

fn observes<'a>(caller: &'a Identity, scope: &'a Scope) -> Question<'a> {
    let resource = match scope {
        Scope::One(election) => Resource::Election(election),
        Scope::Kind(kind, _) => Resource::Kind(kind),
        Scope::All => Resource::Agent,
    };
    Question::new(caller, PolicyAction::Observe, resource)
}
