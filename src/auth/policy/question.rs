//! The questions that policies decide.

use std::fmt;

use election_core::{
    election::quota::Held,
    types::{Candidate, ElectionId, Kind},
};
use strum::{EnumString, IntoStaticStr, VariantNames};

use crate::auth::Identity;

/// What an identity requests to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "camelCase")]
pub enum PolicyAction {
    /// Become the leader.
    Campaign,
    /// Extend a term.
    Extend,
    /// Resign.
    Resign,
    /// Hand over to another candidate.
    Handover,
    /// Hand over to another candidate without the leader's request.
    ForceHandover,
    /// Read an election's leader; read the agent's metrics and documents where they are not public.
    Read,
    /// List the leaders of a kind.
    List,
    /// List kinds, and the leaders of all kinds.
    ListKinds,
    /// Verify a token of an election.
    Verify,
    /// Observe an election, the elections of a kind, or all.
    Observe,
    /// List a deployment's pods.
    Pods,
    /// Administer the agent.
    Admin,
}

impl PolicyAction {
    /// Returns the action's name in policies.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// The object of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resource<'a> {
    /// An election.
    Election(&'a ElectionId),
    /// All elections of a kind.
    Kind(&'a Kind),
    /// A Kubernetes deployment.
    Deployment {
        /// The Deployment's namespace.
        namespace: &'a str,
        /// The Deployment's name.
        name: &'a str,
    },
    /// A Kubernetes pod.
    Pod {
        /// The pod's namespace.
        namespace: &'a str,
        /// The pod's name.
        name: &'a str,
    },
    /// The agent itself.
    Agent,
}

impl Resource<'_> {
    /// Returns the total length of the resource's names, in bytes.
    pub(super) fn length(&self) -> usize {
        match self {
            Self::Election(election) => election.path().len(),
            Self::Kind(kind) => kind.as_str().len(),
            Self::Deployment { namespace, name } | Self::Pod { namespace, name } => {
                namespace.len() + name.len()
            }
            Self::Agent => 0,
        }
    }
}

impl fmt::Display for Resource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Election(election) => write!(f, "the election {election}"),
            Self::Kind(kind) => write!(f, "the kind {}", kind.as_str()),
            Self::Deployment { namespace, name } => write!(f, "the deployment {namespace}/{name}"),
            Self::Pod { namespace, name } => write!(f, "the pod {namespace}/{name}"),
            Self::Agent => f.write_str("the agent"),
        }
    }
}

/// A request for authorization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Question<'a> {
    /// The identity that makes the request.
    pub identity: &'a Identity,
    /// The requested action.
    pub action: PolicyAction,
    /// The resource: one that the [schema](super::SCHEMA) lets the action apply to.
    pub resource: Resource<'a>,
    /// The candidate that campaigns, extends or resigns, or that is to lead after a handover; [`None`] for other
    /// actions.
    pub candidate: Option<&'a Candidate>,
    /// The current leader that a handover names.
    pub current_leader: Option<&'a Candidate>,
    /// How many other elections are held, for campaigns and handovers if [policies use the
    /// number](super::Policies::counts_held); otherwise zero.
    pub held: Held,
}

impl<'a> Question<'a> {
    /// Creates a request without candidates and without held elections.
    #[must_use]
    pub fn new(identity: &'a Identity, action: PolicyAction, resource: Resource<'a>) -> Self {
        Self {
            identity,
            action,
            resource,
            candidate: None,
            current_leader: None,
            held: Held::default(),
        }
    }
}

impl fmt::Display for Question<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} {}",
            self.identity,
            self.action.name(),
            self.resource
        )?;
        if let Some(candidate) = self.candidate {
            write!(f, " for {candidate}")?;
        }
        if let Some(leader) = self.current_leader {
            write!(f, " in place of {leader}")?;
        }
        Ok(())
    }
}
