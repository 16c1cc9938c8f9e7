//! Replies of agents, and requests to them.

use std::time::Duration;

use crate::{Deadline, Error, proto};

/// The longest name, in bytes; agents check the rest.
pub(crate) const DEFAULT_KIND: &str = "default";

/// The state of an election.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct State {
    /// The election's kind.
    pub kind: String,
    /// The election's name.
    pub election: String,
    /// The leader; `None` when the election is vacant.
    pub leader: Option<Leader>,
    /// The leader's fencing token; of a vacant election the highest token that is remembered, 0 if none is.
    pub token: u64,
    /// Why the state is reported.
    pub cause: Cause,
    /// Identifies the leadership or the vacancy. It stays the same while the leader extends its term.
    pub position: String,
    /// Others may have led between the state reported before and this one.
    pub missed: bool,
}

impl State {
    /// Whether the election has a leader.
    #[must_use]
    pub const fn is_held(&self) -> bool {
        self.leader.is_some()
    }
}

/// A leader.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leader {
    /// The election's kind.
    pub kind: String,
    /// The election's name.
    pub election: String,
    /// The leader's name.
    pub name: String,
    /// The leader's fencing token.
    pub token: u64,
    /// How long the term lasts unless it is extended, when the agent looked.
    pub remaining: Duration,
    /// The leader's public data, such as its address.
    pub value: String,
    /// When the token was granted, in ms since the Unix epoch, by the clock of the agent that granted it.
    pub elected_at: i64,
}

/// Why a state is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// It was the state when it was asked for.
    Present,
    /// The leader campaigned.
    Campaign,
    /// The leader resigned.
    Resign,
    /// The leader was handed the election.
    Handover,
    /// The leader's term ended.
    Expiry,
    /// A grant was rolled back that came too late: the state is an earlier one again.
    RolledBack,
    /// The agent named a cause that this version does not know.
    Unknown,
}

/// Whether a token is the present leader's.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// Whether the election is held with this token.
    pub current: bool,
    /// Why it is not; `None` if it is.
    pub reason: Option<NotCurrent>,
    /// What the answer is based on.
    pub state: Option<State>,
    /// Until then no other candidate is elected unless the leader resigns or hands over. Counted from before the
    /// request was sent. `None` if the token is not current.
    pub valid_until: Option<Deadline>,
}

/// Why a token is not the present leader's.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotCurrent {
    /// The election is vacant.
    NoTerm,
    /// The election is held with a larger token.
    StaleToken,
    /// No token as large as this one is known to have been granted.
    NotGranted,
    /// The agent gave a reason that this version does not know.
    Other(String),
}

/// The leaders of elections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leaders {
    /// The held elections and their leaders, in a stable order.
    pub leaders: Vec<Leader>,
    /// A part of the lease nodes did not answer: elections may be missing.
    pub incomplete: bool,
}

/// The kinds that have elections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Kinds {
    /// The kinds, in a stable order.
    pub kinds: Vec<String>,
    /// A part of the lease nodes did not answer: kinds may be missing.
    pub incomplete: bool,
}

/// Which elections are observed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// One election.
    Election {
        /// The election's kind.
        kind: String,
        /// The election's name.
        election: String,
    },
    /// The elections of a kind whose names begin so.
    Prefix {
        /// The elections' kind.
        kind: String,
        /// How their names begin.
        prefix: String,
    },
    /// All elections of a kind.
    Kind(String),
    /// All elections of all kinds that the caller may list.
    All,
}

impl Scope {
    /// One election of a kind.
    pub fn election(kind: impl Into<String>, election: impl Into<String>) -> Self {
        Self::Election {
            kind: kind.into(),
            election: election.into(),
        }
    }

    /// The elections of a kind whose names begin so.
    pub fn prefix(kind: impl Into<String>, prefix: impl Into<String>) -> Self {
        Self::Prefix {
            kind: kind.into(),
            prefix: prefix.into(),
        }
    }

    /// All elections of a kind.
    pub fn kind(kind: impl Into<String>) -> Self {
        Self::Kind(kind.into())
    }
}

/// An election of the kind `default`.
impl From<&str> for Scope {
    fn from(election: &str) -> Self {
        Self::election(DEFAULT_KIND, election)
    }
}

/// An election of the kind `default`.
impl From<String> for Scope {
    fn from(election: String) -> Self {
        Self::election(DEFAULT_KIND, election)
    }
}

/// Of which kinds leaders are listed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OfKind {
    /// Of one kind.
    Kind(String),
    /// Of all kinds that the caller may list.
    All,
}

impl From<&str> for OfKind {
    fn from(kind: &str) -> Self {
        Self::Kind(kind.to_owned())
    }
}

impl From<String> for OfKind {
    fn from(kind: String) -> Self {
        Self::Kind(kind)
    }
}

/// One campaign, for callers that extend on their own. [`Agent::lead`](crate::Agent::lead) does all of it.
#[derive(Clone, Debug)]
#[must_use = "nothing is asked before it is given to `Agent::campaign`"]
pub struct Campaign {
    pub(crate) kind: String,
    pub(crate) election: String,
    pub(crate) candidate: String,
    pub(crate) term: Duration,
    pub(crate) value: String,
    pub(crate) wait: Duration,
    pub(crate) request_id: Option<String>,
}

impl Campaign {
    /// A campaign of a candidate for an election of the kind `default`.
    pub fn new(election: impl Into<String>, candidate: impl Into<String>, term: Duration) -> Self {
        Self {
            kind: DEFAULT_KIND.to_owned(),
            election: election.into(),
            candidate: candidate.into(),
            term,
            value: String::new(),
            wait: Duration::ZERO,
            request_id: None,
        }
    }

    /// The election's kind.
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.kind = kind.into();
        self
    }

    /// Public data of the leader, such as its address: at most 1024 bytes.
    pub fn value(mut self, value: impl Into<String>) -> Self {
        self.value = value.into();
        self
    }

    /// How long to wait if another candidate leads: at most what the agent allows, 60 s unless configured.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Names this attempt to get elected, so that it can be repeated; a random one unless given.
    pub fn request_id(mut self, id: impl Into<String>) -> Self {
        self.request_id = Some(id.into());
        self
    }
}

/// How a campaign ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Campaigned {
    /// Whether the caller leads.
    pub elected: bool,
    /// The leader: the caller when elected.
    pub leader: String,
    /// The leader's token: the caller's when elected.
    pub token: u64,
    /// The leader's public data.
    pub value: String,
    /// Elected: until when the caller may act, counted from before the campaign was sent.
    pub valid_until: Option<Deadline>,
    /// Elected after a wait: the term has to be extended at once.
    pub provisional: bool,
}

/// Moves a leadership to another candidate.
#[derive(Clone, Debug)]
#[must_use = "nothing is asked before it is given to `Agent::handover`"]
pub struct Handover {
    pub(crate) kind: String,
    pub(crate) election: String,
    pub(crate) to: String,
    pub(crate) term: Duration,
    pub(crate) from: String,
    pub(crate) token: u64,
}

impl Handover {
    /// Hands an election of the kind `default` to a candidate, for a term.
    pub fn new(election: impl Into<String>, to: impl Into<String>, term: Duration) -> Self {
        Self {
            kind: DEFAULT_KIND.to_owned(),
            election: election.into(),
            to: to.into(),
            term,
            from: String::new(),
            token: 0,
        }
    }

    /// The election's kind.
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.kind = kind.into();
        self
    }

    /// The leader that hands over; needed unless the election is vacant.
    pub fn from(mut self, leader: impl Into<String>) -> Self {
        self.from = leader.into();
        self
    }

    /// The fencing token of the leader that hands over.
    pub fn token(mut self, token: u64) -> Self {
        self.token = token;
        self
    }
}

/// Whose pods are listed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PodsOf {
    /// A Deployment's.
    Deployment(String),
    /// A pod's siblings.
    Pod(String),
}

/// A pod of a Kubernetes Deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pod {
    /// The pod's name.
    pub name: String,
    /// The Deployment that it belongs to.
    pub deployment: String,
    /// Its address; empty while it has none.
    pub ip: String,
    /// Pending, Running, Succeeded, Failed or Unknown.
    pub phase: String,
    /// Why the pod is in this phase; mostly empty.
    pub reason: String,
    /// Whether its deletion was asked for.
    pub terminating: bool,
    /// Whether a node was found for it.
    pub scheduled: bool,
    /// Whether its init containers have ended.
    pub initialized: bool,
    /// Whether it is ready.
    pub ready: bool,
    /// Whether its containers are ready.
    pub containers_ready: bool,
    /// The ReplicaSet that it belongs to.
    pub replica_set: ReplicaSet,
}

/// A revision of a Deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplicaSet {
    /// Its name; empty when it has gone.
    pub name: String,
    /// The rollout's revision: larger is newer.
    pub revision: i32,
    /// Its pods.
    pub replicas: i32,
    /// Its pods that are ready.
    pub ready_replicas: i32,
    /// Its pods that have been ready for long enough.
    pub available_replicas: i32,
    /// Its pods that have all labels of its template.
    pub fully_labeled_replicas: i32,
    /// The pods that the Deployment wants.
    pub desired_replicas: i32,
    /// The pods that the Deployment allows during a rollout.
    pub max_replicas: i32,
}

/// Milliseconds for the wire: rounded down, so that no term is longer than requested.
pub(crate) fn millis(duration: Duration, what: &str) -> Result<i32, Error> {
    i32::try_from(duration.as_millis())
        .map_err(|_| Error::Config(format!("{what} is too long: {duration:?}")))
}

/// A duration of the wire; negative ones do not exist.
pub(crate) fn duration(millis: i32) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

impl Leader {
    pub(crate) fn of(leader: proto::Leader) -> Self {
        Self {
            kind: leader.kind,
            election: leader.election,
            name: leader.name,
            token: leader.token,
            remaining: duration(leader.remaining),
            value: leader.value,
            elected_at: leader.elected_at,
        }
    }
}

impl Cause {
    fn of(cause: proto::state::Cause) -> Self {
        match cause {
            proto::state::Cause::Present => Self::Present,
            proto::state::Cause::Campaign => Self::Campaign,
            proto::state::Cause::Resign => Self::Resign,
            proto::state::Cause::Handover => Self::Handover,
            proto::state::Cause::Expiry => Self::Expiry,
            proto::state::Cause::RolledBack => Self::RolledBack,
            proto::state::Cause::Unspecified => Self::Unknown,
        }
    }
}

impl State {
    /// `None` if the message names neither a leader nor a vacancy.
    pub(crate) fn of(state: proto::State) -> Option<Self> {
        let cause = Cause::of(state.cause());
        let leader = match state.phase() {
            proto::state::Phase::Held => Some(Leader::of(state.leader?)),
            proto::state::Phase::Vacant => None,
            proto::state::Phase::Unspecified => return None,
        };
        Some(Self {
            kind: state.kind,
            election: state.election,
            leader,
            token: state.token,
            cause,
            position: state.position,
            missed: state.missed,
        })
    }
}

impl Pod {
    pub(crate) fn of(pod: proto::Pod) -> Self {
        let status = pod.status.unwrap_or_default();
        let set = pod.replica_set.unwrap_or_default();
        Self {
            name: pod.name,
            deployment: pod.deployment,
            ip: pod.ip,
            phase: status.phase,
            reason: status.reason,
            terminating: status.terminating,
            scheduled: status.pod_scheduled,
            initialized: status.pod_initialized,
            ready: status.pod_ready,
            containers_ready: status.containers_ready,
            replica_set: ReplicaSet {
                name: set.name,
                revision: set.revision,
                replicas: set.replicas,
                ready_replicas: set.ready_replicas,
                available_replicas: set.available_replicas,
                fully_labeled_replicas: set.fully_labeled_replicas,
                desired_replicas: set.desired_replicas,
                max_replicas: set.max_replicas,
            },
        }
    }
}
