//! Leases on N nodes: what a node does, and how a quorum of nodes decides.
//!
//! A *node* is one independent place that stores leases. [`LeaseNode`] is the whole contract between a node and the
//! [quorum]. To add a kind of node, implement the trait so that the operation sequences of the contract suite give the
//! replies that the [in-process node](embedded) gives.

pub mod embedded;
pub mod guard;
pub mod hint;
pub mod memory;
pub mod merge;
pub mod policy;
pub mod quorum;
pub mod rules;
pub mod tally;
pub mod token;

use std::{fmt, sync::Arc, time::Duration};

pub use hint::{Hint, Listener};
pub use tally::Denial;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::types::{Candidate, ElectionId, Kind, RequestId, Term, Token, Value};

/// An independent place that stores leases.
///
/// # What a node keeps
/// Per election, a node keeps a **lease** (leader, token, value, request id, elected-at, expiry). The lease vanishes at
/// its expiry. Three things outlive it by [`Settings::retention`]:
///
/// - the **token high-water mark**: the highest token of a grant that may have counted;
/// - the highest token that was **acknowledged**;
/// - the **request ids** of the last few grants.
///
/// An unacknowledged lease also carries a **grant id** and what a rollback restores. The grant id names the grant that
/// last wrote or renewed the lease. A rollback restores the lease that this grant replaced, with its own grant id if it
/// has one, and the high-water mark before the grant.
///
/// Per partition, a node keeps an **incarnation record**. Most nodes have one partition; a cluster has many. The record
/// says which incarnation of the server it belongs to, since when that incarnation remembers, when it may begin to
/// grant, and the longest [`Bounds`] that agents have registered. An *incarnation* is a period in which the server has
/// not lost memory: it ends with a restart and with a promotion.
///
/// # What every operation guarantees
/// - *Atomic*: an operation takes effect wholly at one instant or not at all, whatever runs concurrently.
/// - *Honest*: an `Ok` reply means that the operation took effect and, for a durable node, is on disk. An
///   [`Err`](NodeError) means that it may or may not have taken effect, now or later, unless the error says otherwise.
///   The caller must treat the outcome as unknown.
/// - *Expiry counts from the operation*: a node holds a lease that it wrote or renewed for a term at least that long,
///   by a clock whose rate is right within the drift allowance.
/// - *Never shorter*: only [`resign`](Self::resign), [`roll_back`](Self::roll_back) and a grant to another candidate
///   bring a lease's expiry forward. The exception is a lease that lasts longer than any agent grants: the node's clock
///   has been set back since it was written.
/// - *Not after*: a [`grant`](Self::grant) and a [`repair`](Self::repair) take no effect after their `not_after`, by
///   the node's own clock.
/// - *A full node still replies*: a node whose memory is full refuses grants of vacant elections and repairs that would
///   take more memory ([`NodeError::Full`]). It still extends, resigns, rolls back and reads, and still reports who
///   holds an election.
/// - *Cancel-safe*: dropping the future has the same effect as an `Err`.
///
/// A node does not bound the time that an operation takes; the quorum does.
#[async_trait]
pub trait LeaseNode: Send + Sync + 'static {
    /// The node's name in logs and in `/readyz`: its address, without credentials.
    fn name(&self) -> &str;

    /// The kind of the node, for operators.
    fn role(&self) -> &'static str {
        "embedded"
    }

    /// The system that keeps the leases, as spans name it.
    fn system(&self) -> System {
        System::InProcess
    }

    /// Writes a lease if the election allows it. Checks in this order:
    ///
    /// 1. Another candidate holds the lease and [`Grant::replaces`] does not allow the grant to replace it:
    ///    [`GrantReply::Held`], or [`GrantReply::TokenMismatch`] when only the token is wrong.
    /// 2. With a guard ([`Bounds::guard`]): without an incarnation record, [`GrantReply::Unrecorded`]; if the agent's
    ///    bounds are longer than the record's, [`GrantReply::Unregistered`]. If the record belongs to another
    ///    incarnation, the node rewrites it for its current incarnation. That incarnation may grant after the longest
    ///    guard that the agent or the record knows; until then the reply is [`GrantReply::Guarded`]. (This holds for
    ///    the candidate's own lease too: a server rolled back to an old snapshot may hold a lease that the candidate
    ///    has since given up.) A grant without a guard has to wait, too, where other agents have a guard.
    /// 3. It is after [`Grant::not_after`], or the grant was rolled back: [`GrantReply::Late`]. There is no lease, and
    ///    [`Grant::replaces`] needs a leader: [`GrantReply::Vacant`].
    /// 4. [`Grant::repeat`] is set, and the candidate holds the lease with the same request id: the node renews the
    ///    lease and replies [`GrantReply::Granted`] with the lease's token. The request id belongs to an earlier grant
    ///    whose lease has ended: [`GrantReply::Used`].
    /// 5. The token is not above the high-water mark: [`GrantReply::Stale`].
    /// 6. Otherwise the node writes the lease and the high-water mark: [`GrantReply::Granted`].
    ///
    /// In 4 and 6, [`Grant::grant_id`] becomes the lease's grant id. The node keeps the previous lease, if there was
    /// one, for a rollback.
    async fn grant(&self, grant: &Grant) -> Result<GrantReply, NodeError>;

    /// Renews the leader's lease.
    ///
    /// Without a lease, the reply is [`Refusal::Missing`]. A node that may have forgotten the lease replies
    /// [`Refusal::NotKnown`], and one without an incarnation record replies [`Refusal::Unrecorded`]. If another
    /// candidate holds the lease, the reply is [`Refusal::Held`]. If a token is given and the lease has a larger one,
    /// the reply is [`Refusal::Stale`]; if the lease has a smaller one, it is [`ExtendReply::Behind`]. Then nothing
    /// changes: only [`repair`](Self::repair) writes a larger token, one that a quorum confirms.
    ///
    /// Otherwise the node renews the lease and replies [`ExtendReply::Renewed`]. This acknowledges the lease: the node
    /// forgets its grant id and what a rollback would restore, and no grant of the lease can be rolled back any more.
    /// The high-water mark is at least the lease's token, and outlives the new term by [`Settings::retention`].
    async fn extend(&self, extend: &Extend) -> Result<ExtendReply, NodeError>;

    /// Extends several terms, each as [`extend`](Self::extend) does: one result for each, in their order. Each
    /// extension is atomic, but not all together.
    async fn extend_many(&self, extends: &[Arc<Extend>]) -> Vec<Result<ExtendReply, NodeError>> {
        let mut replies = Vec::with_capacity(extends.len());
        for extend in extends {
            replies.push(self.extend(extend).await);
        }
        replies
    }

    /// Writes a lease that a quorum is known to hold to a node that lacks it.
    ///
    /// The node accepts a repair (`true`) until [`Repair::not_after`] and only in the incarnation that
    /// [`Repair::incarnation`] names, also while it is in quarantine. Every vote that an earlier incarnation may have
    /// forgotten must no longer count: the incarnation must be older than the longest vote lifetime that the agent or
    /// the record knows. The token must be at least the highest acknowledged token and, after a resignation, above the
    /// token that was given up. The node must hold a lease of the same leader with no larger token, or what
    /// [`Repair::onto`] permits besides. Under an unacknowledged lease, the repaired lease becomes the one that a
    /// rollback restores.
    ///
    /// The repaired lease is acknowledged. It keeps its request id if the token is the same; otherwise it has none.
    /// Afterwards the token is at most the high-water mark, which outlives the term by [`Settings::retention`].
    async fn repair(&self, repair: &Repair) -> Result<bool, NodeError>;

    /// Deletes the leader's lease, also where a rollback would restore it. The replies are those of
    /// [`extend`](Self::extend). No repair writes a lease with this token afterwards.
    async fn resign(&self, resign: &Resign) -> Result<ResignReply, NodeError>;

    /// Rolls back an unacknowledged grant: if the lease is unacknowledged, removes this grant's part of it, wherever
    /// that is in the chain of replaced leases. The lease that is left stays for its remaining time; if none is left,
    /// the election is vacant. The high-water mark returns to its value before the grant that raised it. The request id
    /// of the grant may be used again. A copy of the grant that arrives later is refused by its grant id.
    ///
    /// The restored lease was promised: to the same candidate by an earlier reply, or to a leader that does not know
    /// whether its handover took place.
    async fn roll_back(&self, grant: &Grant) -> Result<(), NodeError>;

    /// Returns the election's lease.
    async fn read(&self, election: &ElectionId) -> Result<Reading, NodeError>;

    /// Lists up to `limit` leases of a kind, or of all kinds, whose elections come after `after`, ordered by the bytes
    /// of their paths. A node examines at most [`LIST_EXAMINES`] entries of its index, so that a listing never delays
    /// other requests. A page may therefore be short, or even empty, and still have a next one. Elections that cannot
    /// be looked up are left out and do not prevent the listing of others: [`Page::incomplete`].
    async fn list(
        &self,
        kind: Option<&Kind>,
        after: Option<&ElectionId>,
        limit: usize,
    ) -> Result<Page, NodeError>;

    /// Lists up to `limit` kinds that have leases and come after `after`, in their order. A node examines at most
    /// [`KIND_EXAMINES`] entries of a kind: if none of them has a lease and there are more, it lists the kind. It
    /// examines at most [`LIST_EXAMINES`] entries in all, and then completes the kind that it is at.
    async fn kinds(&self, after: Option<&Kind>, limit: usize) -> Result<Kinds, NodeError>;

    /// Writes incarnation records that permit grants after `wait` (zero: the node is new, and has nothing to forget).
    /// Returns how many records were written. A partition that already has a record, or whose incarnation is not the
    /// one that was found without a record, gets none.
    async fn mark(
        &self,
        unrecorded: &[Unrecorded],
        wait: Duration,
        bounds: Bounds,
    ) -> Result<usize, NodeError>;

    /// Checks that the node works and reports what its records say. With [`ProbeRequest::write`], the node rewrites a
    /// record of another incarnation for the current one, as [`grant`](Self::grant) does, so that the quarantine begins
    /// with the restart and not with the first campaign after it. It also registers the agent's bounds. A longer guard
    /// makes the wait of the present incarnation longer.
    async fn probe(&self, request: ProbeRequest) -> Result<Probe, NodeError>;

    /// Reads several elections: one result for each, in their order. The node may take them one after another, so each
    /// lease and its remaining time are of the same instant, but not all of them.
    async fn read_many(&self, elections: &[ElectionId]) -> Vec<Result<Reading, NodeError>> {
        let mut readings = Vec::with_capacity(elections.len());
        for election in elections {
            readings.push(self.read(election).await);
        }
        readings
    }

    /// Reports changes to the listener until that fails, and returns why. The default reports none, and never calls the
    /// listener.
    async fn listen(&self, _listener: &dyn Listener) -> NodeError {
        std::future::pending().await
    }

    /// The incarnation, with a record, that served the election when the node was last probed.
    fn incarnation(&self, election: &ElectionId) -> Option<Incarnation>;
}

/// How many entries of its index a node examines to make a [`Page`].
pub const LIST_EXAMINES: usize = 1000;

/// How many entries of its index a node examines to find out whether a kind has a lease.
pub const KIND_EXAMINES: usize = 32;

/// A page of kinds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kinds {
    /// The kinds, in order.
    pub kinds: Vec<Kind>,
    /// The last kind that was examined, when there may be more after it.
    pub next: Option<Kind>,
    /// Why kinds may be missing, as in [`Page::incomplete`].
    pub incomplete: Option<String>,
}

/// A page of held elections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The elections and their leases, in order.
    pub leases: Vec<(ElectionId, Lease)>,
    /// The last election that was examined, when there may be more after it.
    pub next: Option<ElectionId>,
    /// Why elections may be missing, when some could not be looked up. The text is for operators; it holds no
    /// credentials.
    pub incomplete: Option<String>,
}

/// The settings of every node.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How long the token high-water mark outlives the last term.
    pub retention: Duration,
    /// How long a node is in quarantine after it may have lost memory; `None` turns the restart guard off.
    pub guard: Option<Duration>,
    /// How long a vote counts after the request for it.
    pub vote: Duration,
}

/// The waits on which the agents' safety from each other rests. Agents may be configured differently: each registers
/// its own bounds with every node, and the longest known bounds count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// How long a node is in quarantine after it may have lost memory: no shorter than any granted term. `None` for an
    /// agent that wants no guard.
    pub guard: Option<Duration>,
    /// How long a vote counts after the request for it.
    pub vote: Duration,
}

/// A bound that some agent has registered, and the time since an agent last registered it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Registered {
    /// The bound; zero when there is none.
    pub bound: Duration,
    /// The time since the last registration.
    pub age: Duration,
}

/// How long a registered bound counts after its last registration, unless the bound itself is longer: then that long.
/// An agent probes a partition of a large cluster only occasionally.
pub const REMEMBER: Duration = Duration::from_secs(3600);

/// How to probe a node.
#[derive(Debug, Clone, Copy)]
pub struct ProbeRequest {
    /// The agent's own bounds.
    pub own: Bounds,
    /// The longest guard that any node has reported to the agent. The agent passes it on to all nodes.
    pub guard: Registered,
    /// The longest vote lifetime, likewise.
    pub vote: Registered,
    /// Whether the node may write records. An agent first reads the registered bounds of all nodes.
    pub write: bool,
    /// Whether a majority of the nodes of the old list, from which agents move to another list, is closing it.
    pub closed: bool,
}

/// A period in which a node has not lost memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Incarnation {
    /// Its name.
    pub id: String,
    /// When this agent first had a reply from it.
    pub seen: Instant,
}

/// What a node stores for a held election.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The leader.
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

/// A request for a lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Grant {
    /// The election.
    pub election: ElectionId,
    /// The candidate that is to lead.
    pub candidate: Candidate,
    /// The token that the agent proposes.
    pub token: Token,
    /// The random number that identifies this grant among all grants.
    pub grant_id: u64,
    /// How long the lease is held.
    pub term: Term,
    /// The new leader's public data.
    pub value: Value,
    /// Lets a repeated grant find the lease of the first one.
    pub request_id: Option<RequestId>,
    /// Whether the grant finds a lease with the same request id. Otherwise it replaces such a lease like any other of
    /// the candidate's.
    pub repeat: bool,
    /// Now, in ms since the Unix epoch.
    pub elected_at: u64,
    /// What lease the grant may replace.
    pub replaces: Replaces,
    /// The longest guard that the agent knows of, and its own vote lifetime.
    pub bounds: Bounds,
    /// When the vote stops counting: a node that processes the grant later refuses it.
    pub not_after: Instant,
}

/// What lease a [`Grant`] may replace. A vacant election may always be granted, unless the variant needs a leader.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Replaces {
    /// No lease: a handover that names no leader.
    Nothing,
    /// The candidate's own: a campaign.
    Own,
    /// This leader's lease, if the token matches or is not given: a handover.
    Of(Candidate, Option<Token>),
    /// Any lease: a forced handover.
    Anything,
    /// Any lease, but there must be one: a forced handover that names a leader or a token.
    AnyLeader,
    /// No lease, and there must be a leader: a handover that gives a token but names no leader.
    NothingHeld,
}

impl Replaces {
    /// Whether the grant needs a leader whose lease it replaces.
    #[must_use]
    pub fn needs_a_leader(&self) -> bool {
        matches!(self, Self::Of(..) | Self::AnyLeader | Self::NothingHeld)
    }
}

/// The reply to a [`Grant`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GrantReply {
    /// The candidate holds the lease, with this token.
    Granted(Token),
    /// This lease stands and was not replaced.
    Held(Lease),
    /// The leader that hands over holds the lease, but with another token than the one given.
    TokenMismatch,
    /// There is no leader to hand over.
    Vacant,
    /// The proposed token is not above this token high-water mark.
    Stale(Token),
    /// The request id belongs to a grant whose lease has ended.
    Used,
    /// The grant arrived too late to count, or after it was rolled back.
    Late,
    /// There is no incarnation record: the node is new, or has lost its memory.
    Unrecorded,
    /// The agent's bounds are longer than those registered in this incarnation.
    Unregistered,
    /// The node is in quarantine for this long.
    Guarded(Duration),
}

/// A request to renew a lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Extend {
    /// The election.
    pub election: ElectionId,
    /// The candidate that must hold the lease.
    pub leader: Candidate,
    /// The token that the lease must have, when given.
    pub token: Option<Token>,
    /// How long the lease lasts from now on, at least.
    pub term: Term,
}

/// The reply to an [`Extend`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExtendReply {
    /// The lease, with this token, is renewed.
    Renewed(Token),
    /// The lease has a smaller token.
    Behind,
    /// The node does not hold the leader's lease.
    Refused(Refusal),
}

/// A request to write a lease that a quorum holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Repair {
    /// The election.
    pub election: ElectionId,
    /// The lease as a node of the quorum has it.
    pub lease: Lease,
    /// How long the lease lasts from now on, at least.
    pub term: Term,
    /// The incarnation in which the node is known to lack the lease.
    pub incarnation: String,
    /// What the node may have in its place.
    pub onto: Onto,
    /// The longest guard and the longest vote lifetime that the agent knows of.
    pub bounds: Bounds,
    /// When the extension that this repair is part of ceases to be in force.
    pub not_after: Instant,
}

/// What a node may hold in the place of a lease that a repair writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Onto {
    /// A lease of the same leader with no larger token.
    Own,
    /// That, or no lease: the node then holds the lease as if it had extended it.
    Vacant,
    /// Those, or an unacknowledged lease. A rollback of that lease restores the repaired one. Until then the node does
    /// not count as one that has the repaired lease: the other candidate may win the election there.
    Unacknowledged,
}

/// The system that keeps a node's leases, in the terms of OpenTelemetry's conventions for database clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum System {
    /// This process.
    InProcess,
    /// Stored procedures of a database, one for each operation.
    Scripts {
        /// `db.system.name`.
        database: &'static str,
        /// The command that calls a procedure.
        command: &'static str,
        /// The suffix that turns the name of an operation into that of its procedure.
        suffix: &'static str,
    },
}

/// A partition without an incarnation record, and the incarnation of the server that it is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unrecorded {
    /// The partition's number; 0 where there is only one.
    pub partition: u16,
    /// The incarnation.
    pub incarnation: String,
}

/// A request to delete a lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Resign {
    /// The election.
    pub election: ElectionId,
    /// The candidate that must hold the lease.
    pub leader: Candidate,
    /// The token that the lease must have, when given.
    pub token: Option<Token>,
}

/// The reply to a [`Resign`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResignReply {
    /// The lease is deleted.
    Resigned,
    /// The node does not hold the leader's lease.
    Refused(Refusal),
}

/// Why a node neither renews nor deletes a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is no lease.
    Missing,
    /// There is no lease, but the node may have forgotten one.
    NotKnown,
    /// There is no lease, and no incarnation record that says whether the node may have forgotten one.
    Unrecorded,
    /// Another candidate holds the lease.
    Held,
    /// The lease has a larger token; to a [`Resign`]: another token.
    Stale,
}

impl From<Absence> for Refusal {
    fn from(absence: Absence) -> Self {
        match absence {
            Absence::Known => Self::Missing,
            Absence::NotKnown => Self::NotKnown,
            Absence::Unrecorded => Self::Unrecorded,
        }
    }
}

/// What a node reports of an election.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading {
    /// The lease.
    Held(Lease),
    /// There is no lease. The token is the high-water mark, if the node has one.
    Vacant(Option<Token>),
    /// There is no lease, but the node may have forgotten one.
    NotKnown,
    /// There is no lease, and no incarnation record that says whether the node may have forgotten one.
    Unrecorded,
}

/// The state of an election that a quorum agrees on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It has a leader.
    Held(Lease),
    /// It has no leader. The token is the highest high-water mark of the nodes that replied: no grant that counted had
    /// a larger one. [`None`] when the nodes remember no grant.
    Vacant(Option<Token>),
}

impl State {
    /// The lease of the leader.
    #[must_use]
    pub fn lease(&self) -> Option<&Lease> {
        match self {
            Self::Held(lease) => Some(lease),
            Self::Vacant(_) => None,
        }
    }

    /// The lease of the leader.
    #[must_use]
    pub fn into_lease(self) -> Option<Lease> {
        match self {
            Self::Held(lease) => Some(lease),
            Self::Vacant(_) => None,
        }
    }
}

/// Whether a node without a lease would know of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absence {
    /// The node would know: there is no lease.
    Known,
    /// The node may have forgotten a lease.
    NotKnown,
    /// The node may have forgotten a lease, and has no incarnation record.
    Unrecorded,
}

/// What a node reports of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Probe {
    /// How long the node is in quarantine, in the partition where it lasts longest. `None` when the node has no
    /// incarnation record at all, zero when it grants everywhere.
    pub guard: Option<Duration>,
    /// The partitions without an incarnation record.
    pub unrecorded: Vec<Unrecorded>,
    /// The longest guard that any agent has registered, as far as the node knows.
    pub longest_guard: Registered,
    /// The longest vote lifetime, likewise.
    pub longest_vote: Registered,
    /// The node's clock in ms since the Unix epoch, when it has one of its own.
    pub clock: Option<u64>,
    /// A list of nodes with which other agents use this one, and whose majorities need not intersect those of this
    /// agent's list.
    pub other_list: Option<String>,
    /// Whether the node closes the old list, from which agents move to another list: it has seen no agent with only the
    /// old list for the longest guard, and admits no more of them.
    pub closing: bool,
    /// The identity of the place behind the node, if the node can report it. Two nodes with the same identity are one
    /// place, which would vote twice.
    pub identity: Option<String>,
    /// Why the node must not vote although it replies, such as that it may drop leases.
    pub unfit: Option<String>,
    /// What does not work although the node is usable.
    pub degraded: Option<String>,
    /// How much memory the node's servers use; of several servers, the fullest one. [`None`] for a node in the agent's
    /// process.
    pub memory: Option<Memory>,
}

/// How much memory a server uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// The server.
    pub server: String,
    /// The memory that counts against the limit, in bytes.
    pub used: u64,
    /// The limit in bytes; 0 without one.
    pub max: u64,
}

/// The share of its memory above which a server is nearly full.
const NEARLY_FULL: f64 = 0.9;

impl Memory {
    /// The share of the limit that is used, which may be more than 1; [`None`] without a limit.
    #[must_use]
    pub fn share(&self) -> Option<f64> {
        (self.max > 0).then(|| self.used as f64 / self.max as f64)
    }

    /// The warning for operators about a server that is full or nearly full.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let share = self.share().filter(|share| *share > NEARLY_FULL)?;
        Some(format!(
            "{}: {:.0} % of its maxmemory is used ({} of {} bytes): it refuses new elections when it is full",
            self.server,
            100.0 * share,
            self.used,
            self.max
        ))
    }
}

/// An operation of a node failed. The text is for operators; it holds no credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// The request did not reach the node, and never will.
    #[error("{0}")]
    NotSent(String),
    /// The node's memory is full: it refused the request without a change.
    #[error("{0}")]
    Full(String),
    /// The request may or may not have taken effect, or may take effect later.
    #[error("{0}")]
    Unknown(String),
}

impl NodeError {
    /// An error after which the effect on the node is unknown.
    pub fn unknown(reason: impl fmt::Display) -> Self {
        Self::Unknown(reason.to_string())
    }
}
