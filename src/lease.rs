//! Leases on N nodes: what a node does, and how a quorum of them decides.
//!
//! A *node* is one independent place that stores leases. [`LeaseNode`] is the whole contract between a
//! node and the [quorum]: to add a kind of node, implement it so that the operation sequences
//! of the contract suite give the replies that the [in-process node](embedded) gives.

pub mod embedded;
pub mod guard;
mod merge;
pub mod quorum;
pub mod redis;
mod tally;
pub mod token;

use std::{fmt, time::Duration};

pub use tally::Denial;

use async_trait::async_trait;

use crate::election::types::{Candidate, ElectionId, Kind, RequestId, Term, Token, Value};

/// An independent place that stores leases.
///
/// # What a node keeps
/// Per election a **lease** (leader, token, value, request id, elected-at, expiry), which vanishes at
/// its expiry, and a **floor**, the highest token accepted, which outlives the lease by
/// [`Settings::retention`]. With the lease, until it is extended: the **attempt**, which names the
/// grant that last wrote or renewed it, and what to go back to if that grant is withdrawn.
/// Once per partition (most nodes have one, a cluster has many) a **marker**: which run of the server
/// wrote it, and the time from which that run may grant. A *run* is a time in which the server has not
/// lost memory: it ends with a restart and with a promotion.
///
/// # What every operation promises
/// - *Atomic*: it takes effect wholly at one instant or not at all, whatever else runs.
/// - *Honest*: an `Ok` reply means that it took effect and, for a durable node, is on disk. An
///   [`Err`](NodeError) means that it may or may not have taken effect, now or later: the caller must
///   treat it as unknown.
/// - *Expiry counts from the operation*: a lease written or renewed for a term is held for at least
///   that long, by a clock whose rate is right within the drift allowance.
/// - *Never shorter*: no operation but [`resign`](Self::resign), [`withdraw`](Self::withdraw) and a
///   grant to another candidate brings a lease's expiry forward.
/// - *Cancel-safe*: dropping the future has the same effect as an `Err`.
///
/// A node does not bound the time an operation takes; the quorum does.
#[async_trait]
pub trait LeaseNode: Send + Sync + 'static {
    /// What logs and `/readyz` call the node: its address, without credentials.
    fn name(&self) -> &str;

    /// Writes a lease if the election allows it. In this order:
    ///
    /// 1. The lease is another's and [`Grant::over`] does not allow to replace it:
    ///    [`GrantReply::Held`], or [`GrantReply::TokenMismatch`] when only the token is wrong.
    /// 2. Unless [`Settings::guard`] is `None`: no marker: [`GrantReply::Unmarked`]. The marker is of
    ///    another run: it is rewritten for this run, ready after the guard, and the reply is
    ///    [`GrantReply::Guarded`]; so it is while the marker's ready-at has not come. (This holds for
    ///    the candidate's own lease too: a server rolled back to an old snapshot may hold a lease that
    ///    the candidate has since given up.)
    /// 3. [`Grant::repeat`], and the lease is the candidate's with the same request id: it is renewed, and the reply is
    ///    [`GrantReply::Granted`] with the token it has.
    /// 4. The token is not above the floor: [`GrantReply::Stale`].
    /// 5. Otherwise lease and floor are written: [`GrantReply::Granted`].
    ///
    /// In 3 and 5 [`Grant::attempt`] becomes the lease's attempt, and the lease as it was, if there was
    /// one, is kept to go back to. The floor outlives the term by [`Settings::retention`].
    async fn grant(&self, grant: &Grant) -> Result<GrantReply, NodeError>;

    /// Renews the leader's lease.
    ///
    /// No lease: [`ExtendReply::Missing`]; another's: [`ExtendReply::Held`]. A token was given and the
    /// lease has a larger one: [`ExtendReply::Stale`]; a smaller one: [`ExtendReply::Behind`], and
    /// nothing is changed (only a token that a quorum confirms may be raised, by [`heal`](Self::heal)).
    /// Otherwise the lease is renewed: [`ExtendReply::Renewed`]. Its attempt and what to go back to are
    /// forgotten: it is in use, so no grant of it may be withdrawn any more. The floor is at least the
    /// lease's token, and outlives the new term by [`Settings::retention`].
    async fn extend(&self, extend: &Extend) -> Result<ExtendReply, NodeError>;

    /// Writes a lease that a quorum is known to hold, so that the node holds it too.
    ///
    /// Allowed (`true`) in the run that [`Heal::run`] names and when the marker is of that run, also while
    /// it abstains from grants; when the lease is the same leader's with no larger token, or, unless
    /// [`Heal::existing`], when there is none; and when the token is not below the floor. The lease has no
    /// attempt then; its request id is kept if the token is the same, else it has none. The token becomes
    /// the floor, which outlives the term by [`Settings::retention`].
    ///
    /// A heal that is late must not bring a lease back to a node that has granted the election to
    /// another since and forgotten it: it would be of another run.
    async fn heal(&self, heal: &Heal) -> Result<bool, NodeError>;

    /// Deletes the leader's lease; the replies are those of [`extend`](Self::extend).
    async fn resign(&self, resign: &Resign) -> Result<ResignReply, NodeError>;

    /// Takes a grant back that was not answered: if the lease's attempt is this grant's, it is as it was
    /// before, for what is left of its time then; without a lease before, or when that time is over,
    /// there is none. In any case the floor is at least the grant's token, so that the grant is refused
    /// if it arrives only now.
    ///
    /// What it goes back to has been promised: to the same candidate by an earlier answer, or to a
    /// leader that does not know whether its handover took place.
    async fn withdraw(&self, grant: &Grant) -> Result<(), NodeError>;

    /// The election's lease.
    async fn read(&self, election: &ElectionId) -> Result<Option<Lease>, NodeError>;

    /// Up to `limit` leases of a kind whose elections come after `after`, ordered by the bytes of their
    /// names. A node looks at no more than [`LIST_EXAMINES`] entries of its index, so that a listing
    /// never holds other requests up: a page may be short, or even empty, and still have a next.
    async fn list(
        &self,
        kind: &Kind,
        after: Option<&ElectionId>,
        limit: usize,
    ) -> Result<Page, NodeError>;

    /// Writes markers, ready to grant after `wait`; tells how many were written. None is where there is a
    /// marker already, or where the run is no longer the one that was found without a marker.
    async fn mark(&self, unmarked: &[Unmarked], wait: Duration) -> Result<usize, NodeError>;

    /// Answers if the node works, and what its markers say. A marker of another run is rewritten for
    /// this one, as [`grant`](Self::grant) does, so that the guard begins with the restart and not with
    /// the first campaign after it.
    async fn probe(&self) -> Result<Probe, NodeError>;

    /// The run that served the election when the node was last probed, if its marker is at least `vote` old
    /// or was written for a new node: whatever an earlier run may have granted and forgotten, nobody who
    /// counts votes for no longer than `vote` still counts.
    fn settled_run(&self, election: &ElectionId, vote: Duration) -> Option<String>;
}

/// How many entries of its index a node looks at to make a [`Page`].
pub const LIST_EXAMINES: usize = 1000;

/// A page of held elections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The elections and their leases, in order.
    pub leases: Vec<(ElectionId, Lease)>,
    /// The last election that was looked at, when there may be more after it.
    pub next: Option<ElectionId>,
}

/// What every node is built with.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How long a floor outlives the last term.
    pub retention: Duration,
    /// How long a node abstains from grants after it may have lost memory; `None` turns the guard off.
    pub guard: Option<Duration>,
}

/// What a node stores for a held election.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Who leads.
    pub leader: Candidate,
    /// The leader's fencing token.
    pub token: Token,
    /// The leader's public data.
    pub value: Value,
    /// When the token was granted, in ms since the Unix epoch by the granting agent's clock.
    pub elected_at: u64,
    /// How long until the lease expires unless renewed.
    pub remaining: Duration,
}

/// Asks for a lease.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The election.
    pub election: ElectionId,
    /// Who is to lead.
    pub candidate: Candidate,
    /// The token that the agent proposes.
    pub token: Token,
    /// Names this grant among all: a random number.
    pub attempt: u64,
    /// How long the lease is held.
    pub term: Term,
    /// The new leader's public data.
    pub value: Value,
    /// Makes a repeated grant find the first one's lease.
    pub request_id: Option<RequestId>,
    /// Whether a lease with the same request id is to be found; else it is replaced as any other of the
    /// candidate's.
    pub repeat: bool,
    /// Now, in ms since the Unix epoch.
    pub elected_at: u64,
    /// Whose lease may be replaced.
    pub over: Over,
}

/// Whose lease a [`Grant`] may replace; a vacant election may always be granted.
#[derive(Debug, Clone)]
pub enum Over {
    /// Nobody's: a handover by somebody who does not say for whom.
    Vacant,
    /// The candidate's own: a campaign.
    Own,
    /// This leader's, if the token is its token or not given: a handover.
    Leader(Candidate, Option<Token>),
    /// Anybody's: a forced handover.
    Anyone,
}

/// What came of a [`Grant`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GrantReply {
    /// The lease is the candidate's, with this token.
    Granted(Token),
    /// The lease is this one and stays.
    Held(Lease),
    /// The lease is of the leader that hands over, but the token it gave is not the lease's.
    TokenMismatch,
    /// The proposed token is not above this floor.
    Stale(Token),
    /// There is no marker: the node is new, or has lost its memory.
    Unmarked,
    /// The node abstains from grants for this long.
    Guarded(Duration),
}

/// Asks to renew a lease.
#[derive(Debug, Clone)]
pub struct Extend {
    /// The election.
    pub election: ElectionId,
    /// Who must hold the lease.
    pub leader: Candidate,
    /// The token that the lease must have, when given.
    pub token: Option<Token>,
    /// How long the lease is held from now on, at the least.
    pub term: Term,
}

/// What came of an [`Extend`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExtendReply {
    /// The lease, with this token, is renewed.
    Renewed(Token),
    /// There is no lease.
    Missing,
    /// The lease is another's.
    Held,
    /// The lease has a larger token.
    Stale,
    /// The lease has a smaller token.
    Behind,
}

/// Asks to write a lease that a quorum holds.
#[derive(Debug, Clone)]
pub struct Heal {
    /// The election.
    pub election: ElectionId,
    /// The lease as a node of the quorum has it.
    pub lease: Lease,
    /// How long the lease is held from now on, at the least.
    pub term: Term,
    /// The run in which the node is known to lack the lease.
    pub run: String,
    /// Whether only a lease that is there may be written.
    pub existing: bool,
}

/// A partition that has no marker, and the run of the server that it is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmarked {
    /// The partition's number; 0 where there is only one.
    pub partition: u16,
    /// The run.
    pub run: String,
}

/// Asks to delete a lease.
#[derive(Debug, Clone)]
pub struct Resign {
    /// The election.
    pub election: ElectionId,
    /// Who must hold the lease.
    pub leader: Candidate,
    /// The token that the lease must have, when given.
    pub token: Option<Token>,
}

/// What came of a [`Resign`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResignReply {
    /// The lease is deleted.
    Resigned,
    /// There was none.
    Missing,
    /// It is another's.
    Held,
    /// It has another token.
    Stale,
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// How long the node abstains from grants, in the partition that does so longest; `None` when it has
    /// no marker at all, zero when it grants everywhere.
    pub guard: Option<Duration>,
    /// The partitions without a marker.
    pub unmarked: Vec<Unmarked>,
    /// The longest guard that any agent asks for, as far as the node knows.
    pub longest_guard: Duration,
    /// What identifies the place behind the node, when it can tell: two nodes with the same identity are
    /// one place, which would vote twice.
    pub identity: Option<String>,
    /// Why the node must not vote although it answers, such as that it may drop leases.
    pub unfit: Option<String>,
    /// What does not work although the node can be used.
    pub degraded: Option<String>,
}

/// A node gave no answer. The text is for operators; it holds no credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// What was asked did not reach the node, and never will.
    #[error("{0}")]
    NotSent(String),
    /// What was asked may or may not have happened, or may happen yet.
    #[error("{0}")]
    Unknown(String),
}

impl NodeError {
    /// An error after which it is not known what the node did.
    pub fn unknown(reason: impl fmt::Display) -> Self {
        Self::Unknown(reason.to_string())
    }
}
