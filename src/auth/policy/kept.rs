//! Decisions that are kept, by their questions.

use std::hash::{Hash, Hasher};

use election_core::election::{
    quota::Held,
    types::{Candidate, ElectionId, Kind},
};
use quick_cache::{Equivalent, Weighter, sync::Cache};

use super::{Action, Decision, Question, Resource};
use crate::auth::Identity;

/// How much is kept of decisions, in bytes: tens of thousands of them, fewer where names are long and
/// groups many.
pub(super) const KEPT_BYTES: u64 = 8 << 20;
/// How many decisions there is room for at once; more take more when they come.
const KEPT_DECISIONS: usize = 10_000;
/// What a decision takes without its names.
const DECISION_BYTES: usize = 256;

/// Decisions by their questions, as many as [`KEPT_BYTES`] hold.
pub(super) type Decisions = Cache<Key, Decision, Bytes>;

/// None yet.
pub(super) fn decisions() -> Decisions {
    Cache::with_weighter(KEPT_DECISIONS, KEPT_BYTES, Bytes)
}

/// A question that outlives its request.
pub(super) struct Key {
    identity: Identity,
    action: Action,
    resource: Kept,
    candidate: Option<Candidate>,
    current_leader: Option<Candidate>,
    held: Held,
    /// How long its names are.
    bytes: usize,
}

pub(super) enum Kept {
    Election(ElectionId),
    Kind(Kind),
    Deployment(Box<str>, Box<str>),
    Pod(Box<str>, Box<str>),
    Agent,
}

impl Kept {
    pub(super) fn new(resource: Resource<'_>) -> Self {
        match resource {
            Resource::Election(election) => Self::Election(election.clone()),
            Resource::Kind(kind) => Self::Kind(kind.clone()),
            Resource::Deployment { namespace, name } => {
                Self::Deployment(namespace.into(), name.into())
            }
            Resource::Pod { namespace, name } => Self::Pod(namespace.into(), name.into()),
            Resource::Agent => Self::Agent,
        }
    }

    pub(super) fn resource(&self) -> Resource<'_> {
        match self {
            Self::Election(election) => Resource::Election(election),
            Self::Kind(kind) => Resource::Kind(kind),
            Self::Deployment(namespace, name) => Resource::Deployment { namespace, name },
            Self::Pod(namespace, name) => Resource::Pod { namespace, name },
            Self::Agent => Resource::Agent,
        }
    }
}

impl Key {
    pub(super) fn new(question: &Question<'_>) -> Self {
        let Question {
            identity,
            action,
            resource,
            candidate,
            current_leader,
            held,
        } = *question;
        let candidates = [candidate, current_leader].into_iter().flatten();
        let candidates: usize = candidates.map(|candidate| candidate.as_str().len()).sum();
        Self {
            identity: identity.clone(),
            action,
            resource: Kept::new(resource),
            candidate: candidate.cloned(),
            current_leader: current_leader.cloned(),
            held,
            bytes: identity.name().len()
                + length(identity.groups())
                + resource.length()
                + candidates,
        }
    }

    fn question(&self) -> Question<'_> {
        Question {
            identity: &self.identity,
            action: self.action,
            resource: self.resource.resource(),
            candidate: self.candidate.as_ref(),
            current_leader: self.current_leader.as_ref(),
            held: self.held,
        }
    }
}

/// Weighs decisions. Callers choose most of what they hold, so their number alone would bound little.
#[derive(Clone)]
pub(super) struct Bytes;

impl Weighter<Key, Decision> for Bytes {
    fn weight(&self, key: &Key, decision: &Decision) -> u64 {
        let answered = length(decision.policies()) + length(decision.errors());
        (DECISION_BYTES + key.bytes + answered) as u64
    }
}

fn length(texts: &[String]) -> usize {
    let lengths = texts.iter().map(|text| text.len() + size_of::<String>());
    lengths.sum()
}

// A key is looked up by a question, which must therefore hash alike.
impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.question().hash(state);
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.question() == other.question()
    }
}

impl Eq for Key {}

impl Equivalent<Key> for Question<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        *self == key.question()
    }
}
