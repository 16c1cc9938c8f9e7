//! Caches decisions by their questions.

use std::hash::{Hash, Hasher};

use election_core::{
    election::quota::Held,
    types::{Candidate, ElectionId, Kind},
};
use quick_cache::{Equivalent, Weighter, sync::Cache};

use super::{Decision, PolicyAction, Question, Resource};
use crate::auth::Identity;

/// Capacity of the cache in bytes: tens of thousands of decisions, fewer if names are long or groups are many.
pub(super) const KEPT_BYTES: u64 = 8 << 20;
/// Initial capacity in number of decisions; it grows with use.
const KEPT_DECISIONS: usize = 10_000;
/// Size of a decision without its names, in bytes.
const DECISION_BYTES: usize = 256;

/// A cache of decisions by question, up to [`KEPT_BYTES`].
pub(super) type Decisions = Cache<Key, Decision, Bytes>;

/// Creates an empty cache.
pub(super) fn decisions() -> Decisions {
    Cache::with_weighter(KEPT_DECISIONS, KEPT_BYTES, Bytes)
}

/// An owned question.
pub(super) struct Key {
    identity: Identity,
    action: PolicyAction,
    resource: Kept,
    candidate: Option<Candidate>,
    current_leader: Option<Candidate>,
    held: Held,
    /// Total length of the names, in bytes.
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

/// Weighs decisions by size. Callers choose most of the content, so a limit on the number alone would not bound memory.
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

// The cache is looked up by a borrowed question, which must have the same hash.
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
