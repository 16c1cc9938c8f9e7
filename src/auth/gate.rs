//! The door to the elections and to the pods: whoever asks may do there what policies permit.
//!
//! Transports have no other way to them, so that none can forget to ask. A request is denied before
//! anything is done for it.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    Identity,
    policy::{Action, Policies, Question, Resource},
};
use crate::{
    election::{
        self, Campaign, Denial, Elections, Handover, Leaders, List, Outcome, Retry,
        types::{Candidate, ElectionId},
    },
    kube::{self, Lookup, Pods, Wanted},
    lease::{Extend, Lease, Resign},
    reload::Current,
    telemetry::audit,
};

/// Why somebody got no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Policies do not permit it; nothing was changed. The text says what was asked.
    #[error("{0}")]
    Denied(String),
    /// The elections gave none.
    #[error(transparent)]
    Election(#[from] election::Error),
    /// The lookup of pods gave none.
    #[error(transparent)]
    Pods(#[from] kube::Error),
}

/// Elections and pods, and who may do what there. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gate {
    elections: Elections,
    lookup: Lookup,
    /// `None`: everybody may do everything, as nobody is asked who they are.
    policies: Option<Current<Policies>>,
    allow_forced_handover: bool,
}

impl Gate {
    /// A door to these elections and pods, where these policies hold. With `allow_forced_handover` a handover may
    /// replace a leader that did not ask for it, if policies permit that, too.
    #[must_use]
    pub fn new(
        elections: Elections,
        lookup: Lookup,
        policies: Option<Current<Policies>>,
        allow_forced_handover: bool,
    ) -> Self {
        Self {
            elections,
            lookup,
            policies,
            allow_forced_handover,
        }
    }

    /// The longest term that a request may ask for.
    #[must_use]
    pub fn max_term(&self) -> std::time::Duration {
        self.elections.max_term()
    }

    /// [`Elections::campaign`].
    ///
    /// # Errors
    /// [`Error`]: denied, or not known.
    pub async fn campaign(
        &self,
        caller: &Identity,
        campaign: Campaign,
        deadline: Instant,
    ) -> Result<Outcome, Error> {
        self.leads(
            caller,
            Action::Campaign,
            &campaign.election,
            &campaign.candidate,
        )?;
        Ok(self.elections.campaign(campaign, deadline).await?)
    }

    /// [`Elections::extend`].
    ///
    /// # Errors
    /// [`Error`]: denied, or not known.
    pub async fn extend(
        &self,
        caller: &Identity,
        extend: Extend,
        retry: Retry,
        deadline: Instant,
    ) -> Result<Result<(), Denial>, Error> {
        self.leads(caller, Action::Extend, &extend.election, &extend.leader)?;
        Ok(self.elections.extend(extend, retry, deadline).await?)
    }

    /// [`Elections::resign`].
    ///
    /// # Errors
    /// [`Error`]: denied, or not known.
    pub async fn resign(
        &self,
        caller: &Identity,
        resign: Resign,
        deadline: Instant,
    ) -> Result<Result<(), Denial>, Error> {
        self.leads(caller, Action::Resign, &resign.election, &resign.leader)?;
        Ok(self.elections.resign(resign, deadline).await?)
    }

    /// [`Elections::handover`]; forced, if that is allowed and the caller may.
    ///
    /// # Errors
    /// [`Error`]: denied, or not known.
    pub async fn handover(
        &self,
        caller: &Identity,
        handover: Handover,
        deadline: Instant,
    ) -> Result<Result<(), Denial>, Error> {
        let question = |action| Question {
            identity: caller,
            action,
            resource: Resource::Election(&handover.election),
            candidate: Some(&handover.leader),
            current_leader: handover.current_leader.as_ref(),
        };
        let forced = self.allow_forced_handover && self.permits(&question(Action::ForceHandover));
        if !forced {
            self.ask(&question(Action::Handover))?;
        }
        Ok(self.elections.handover(handover, forced, deadline).await?)
    }

    /// [`Elections::leader`].
    ///
    /// # Errors
    /// [`Error`]: denied, or not known.
    pub async fn leader(
        &self,
        caller: &Identity,
        election: &ElectionId,
        deadline: Instant,
    ) -> Result<Option<Lease>, Error> {
        self.sees(caller, Action::Read, Resource::Election(election))?;
        Ok(self.elections.leader(election, deadline).await?)
    }

    /// [`Elections::leaders`].
    ///
    /// # Errors
    /// [`Error`]: denied, or not known.
    pub async fn leaders(
        &self,
        caller: &Identity,
        list: List,
        deadline: Instant,
    ) -> Result<Leaders, Error> {
        self.sees(caller, Action::List, Resource::Kind(list.kind()))?;
        Ok(self.elections.leaders(list, deadline).await?)
    }

    /// Whether pods are looked up here at all: told before what is wrong with a request for them.
    ///
    /// # Errors
    /// They are not.
    pub fn looks_up_pods(&self) -> Result<(), Error> {
        Ok(self.lookup.is_on()?)
    }

    /// [`Lookup::pods`].
    ///
    /// # Errors
    /// [`Error`]: denied, or not known.
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
        self.sees(caller, Action::Pods, resource)?;
        Ok(self.lookup.pods(wanted, deadline).await?)
    }

    /// Whether the caller may do what is for those who run the agent. Nobody may where nobody is asked who they
    /// are.
    ///
    /// # Errors
    /// [`Error::Denied`].
    pub fn administers(&self, caller: &Identity) -> Result<(), Error> {
        if self.policies.is_none() {
            audit::denied(&of_the_agent(caller));
            return Err(Error::Denied(
                "nobody may do this where nobody is asked who they are: set EA_AUTH_MODES, and permit the action \
                 admin by a policy (EA_AUTH_POLICY_DIR)"
                    .to_owned(),
            ));
        }
        self.ask(&of_the_agent(caller))
    }

    fn leads(
        &self,
        caller: &Identity,
        action: Action,
        election: &ElectionId,
        candidate: &Candidate,
    ) -> Result<(), Error> {
        self.ask(&Question {
            identity: caller,
            action,
            resource: Resource::Election(election),
            candidate: Some(candidate),
            current_leader: None,
        })
    }

    fn sees(&self, caller: &Identity, action: Action, resource: Resource<'_>) -> Result<(), Error> {
        self.ask(&Question {
            identity: caller,
            action,
            resource,
            candidate: None,
            current_leader: None,
        })
    }

    fn ask(&self, question: &Question<'_>) -> Result<(), Error> {
        match self.permits(question) {
            true => Ok(()),
            false => Err(denied(question)),
        }
    }

    fn permits(&self, question: &Question<'_>) -> bool {
        permits(self.policies.as_ref(), question)
    }
}

/// Whether the caller may administer the agent.
fn of_the_agent(caller: &Identity) -> Question<'_> {
    Question {
        identity: caller,
        action: Action::Admin,
        resource: Resource::Agent,
        candidate: None,
        current_leader: None,
    }
}

/// Whether policies permit it; without any, everything is.
pub(crate) fn permits(policies: Option<&Current<Policies>>, question: &Question<'_>) -> bool {
    policies.is_none_or(|policies| {
        // Not under the lock: a decision may take long.
        let policies = Arc::clone(&policies.borrow());
        policies.decide(question).allowed()
    })
}

/// What is told to whom policies do not permit what they ask. The audit trail has it, too.
pub(crate) fn denied(question: &Question<'_>) -> Error {
    audit::denied(question);
    Error::Denied(format!(
        "policies do not permit this: {question} (`election-agent authz explain` tells an operator which of them)"
    ))
}
