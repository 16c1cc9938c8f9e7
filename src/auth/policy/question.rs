//! The questions that policies decide.

use std::{fmt, str::FromStr};

use election_core::election::{
    quota::Held,
    types::{Candidate, ElectionId, Kind},
};

use crate::auth::Identity;

/// What an identity requests to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
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
    /// List a deployment's pods.
    Pods,
    /// Administer the agent.
    Admin,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 11] = [
        Self::Campaign,
        Self::Extend,
        Self::Resign,
        Self::Handover,
        Self::ForceHandover,
        Self::Read,
        Self::List,
        Self::ListKinds,
        Self::Verify,
        Self::Pods,
        Self::Admin,
    ];

    /// Returns the action's name in policies.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Campaign => "campaign",
            Self::Extend => "extend",
            Self::Resign => "resign",
            Self::Handover => "handover",
            Self::ForceHandover => "forceHandover",
            Self::Read => "read",
            Self::List => "list",
            Self::ListKinds => "listKinds",
            Self::Verify => "verify",
            Self::Pods => "pods",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for Action {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let action = Self::ALL.into_iter().find(|action| action.name() == text);
        action.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("{text:?} is no action: give one of {names}")
        })
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
    pub action: Action,
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
