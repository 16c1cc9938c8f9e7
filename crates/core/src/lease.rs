//! Leases on N nodes: what a node does, and how a quorum of them decides.
//!
//! A *node* is one independent place that stores leases. [`LeaseNode`] is the whole contract between a
//! node and the [quorum]: to add a kind of node, implement it so that the operation sequences
//! of the contract suite give the replies that the [in-process node](embedded) gives.

pub mod embedded;
pub mod guard;
pub mod memory;
pub mod merge;
pub mod policy;
pub mod quorum;
pub mod rules;
pub mod tally;
pub mod token;

use std::{fmt, time::Duration};

pub use tally::Denial;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::election::types::{Candidate, ElectionId, Kind, RequestId, Term, Token, Value};

/// An independent place that stores leases.
///
/// # What a node keeps
/// Per election a **lease** (leader, token, value, request id, elected-at, expiry), which vanishes at
/// its expiry, and three things that outlive it by [`Settings::retention`]: the **token high-water mark** (the
/// *floor*), the highest token of a grant that may have counted; the highest token that was **acknowledged**; and the
/// **request ids** of the last few grants. Until it is acknowledged, a lease has the **attempt**, which names the
/// grant that last wrote or renewed it, and what is restored if that grant is withdrawn: the lease that it replaced,
/// with its own attempt if it has one, and the high-water mark before it.
///
/// Once per partition (most nodes have one, a cluster has many) an **incarnation record**, the *marker*: which
/// incarnation of the server it is of, since when that remembers, from when on it may grant, and the longest
/// [`Bounds`] that agents have registered. An *incarnation* is a time in which the server has not
/// lost memory: it ends with a restart and with a promotion.
///
/// # What every operation promises
/// - *Atomic*: it takes effect wholly at one instant or not at all, whatever else runs.
/// - *Honest*: an `Ok` reply means that it took effect and, for a durable node, is on disk. An
///   [`Err`](NodeError) means that it may or may not have taken effect, now or later, unless it says otherwise: the
///   caller must treat it as unknown.
/// - *Expiry counts from the operation*: a lease written or renewed for a term is held for at least
///   that long, by a clock whose rate is right within the drift allowance.
/// - *Never shorter*: no operation but [`resign`](Self::resign), [`roll_back`](Self::withdraw) and a
///   grant to another candidate brings a lease's expiry forward, unless the lease lasts longer than any agent
///   grants: then the node's clock has been set back since.
/// - *Not after*: a [`grant`](Self::grant) and a [`repair`](Self::heal) take no effect after their
///   `not_after`, by the node's own clock.
/// - *Full is no silence*: a node whose memory is full refuses grants of vacant elections and repairs that would take
///   more of it ([`NodeError::Full`]). It goes on to extend, to resign, to withdraw and to read, and says whose an
///   election is.
/// - *Cancel-safe*: dropping the future has the same effect as an `Err`.
///
/// A node does not bound the time an operation takes; the quorum does.
#[async_trait]
pub trait LeaseNode: Send + Sync + 'static {
    /// What logs and `/readyz` call the node: its address, without credentials.
    fn name(&self) -> &str;

    /// What keeps the leases, as spans name it.
    fn system(&self) -> System {
        System::InProcess
    }

    /// Writes a lease if the election allows it. In this order:
    ///
    /// 1. The lease is another's and [`Grant::over`] does not allow to replace it:
    ///    [`GrantReply::Held`], or [`GrantReply::TokenMismatch`] when only the token is wrong.
    /// 2. With a guard ([`Bounds::guard`]): no record: [`GrantReply::Unrecorded`]; the agent's bounds are longer than
    ///    the record's: [`GrantReply::Unregistered`]. The record is of another incarnation: it is rewritten for this
    ///    one, which may grant after the longest guard that the agent or the record knows, and the reply is
    ///    [`GrantReply::Guarded`]; so it is until then. (This holds for
    ///    the candidate's own lease too: a server rolled back to an old snapshot may hold a lease that
    ///    the candidate has since given up.) Without a guard the wait counts all the same where other agents have
    ///    one.
    /// 3. It is after [`Grant::not_after`], or the grant was withdrawn: [`GrantReply::Late`]. There is no lease, and
    ///    [`Grant::over`] needs a leader: [`GrantReply::Vacant`].
    /// 4. [`Grant::repeat`], and the lease is the candidate's with the same request id: it is renewed, and the reply is
    ///    [`GrantReply::Granted`] with the token it has. The request id is that of an earlier grant whose lease is
    ///    over: [`GrantReply::Used`].
    /// 5. The token is not above the high-water mark: [`GrantReply::Stale`].
    /// 6. Otherwise lease and high-water mark are written: [`GrantReply::Granted`].
    ///
    /// In 4 and 6 [`Grant::attempt`] becomes the lease's attempt, and the lease as it was, if there was
    /// one, is kept to go back to.
    async fn grant(&self, grant: &Grant) -> Result<GrantReply, NodeError>;

    /// Renews the leader's lease.
    ///
    /// No lease: [`ExtendReply::Missing`], or [`ExtendReply::NotKnown`] from a node that may have forgotten it and [`ExtendReply::Unrecorded`] from one without a
    /// marker;
    /// another's: [`ExtendReply::Held`]. A token was given and the
    /// lease has a larger one: [`ExtendReply::Stale`]; a smaller one: [`ExtendReply::Behind`], and
    /// nothing is changed (only a token that a quorum confirms may be raised, by [`repair`](Self::heal)).
    /// Otherwise the lease is renewed: [`ExtendReply::Renewed`]. It is acknowledged: its attempt and what to go back
    /// to are forgotten, and no grant of it may be withdrawn any more. The high-water mark is at least the
    /// lease's token, and outlives the new term by [`Settings::retention`].
    async fn extend(&self, extend: &Extend) -> Result<ExtendReply, NodeError>;

    /// Writes a lease that a quorum is known to hold, so that the node holds it too.
    ///
    /// Allowed (`true`) until [`Repair::not_after`], in the incarnation that [`Repair::run`] names, also while it
    /// abstains from grants, but only when every vote that an earlier incarnation may have forgotten no longer
    /// counts: when it is older than the longest vote lifetime that the agent or the record knows. The token must not
    /// be below the highest that was acknowledged, nor, after a resignation, the one that was given up. The lease has
    /// to be the same leader's with no larger token, or what [`Repair::onto`] permits besides; under a lease that is not
    /// acknowledged, the repaired one becomes what a withdrawal goes back to. The lease is acknowledged then; its
    /// request id is kept if the token is the same, else it has none. The token is then at most the high-water mark,
    /// which outlives the term by [`Settings::retention`].
    async fn repair(&self, repair: &Repair) -> Result<bool, NodeError>;

    /// Deletes the leader's lease, also where it is what a withdrawal would go back to; the replies are those of
    /// [`extend`](Self::extend). No repair writes a lease with this token afterwards.
    async fn resign(&self, resign: &Resign) -> Result<ResignReply, NodeError>;

    /// Takes a grant back that was not answered: if the lease is not acknowledged, the grant's part of it goes,
    /// wherever it is among those that were replaced. What is left is the lease, for what is left of its time;
    /// without any there is none. The high-water mark goes back with the grant that raised it, its request id may be
    /// used again, and a copy of it that arrives only now is refused by its name.
    ///
    /// What it goes back to has been promised: to the same candidate by an earlier answer, or to a
    /// leader that does not know whether its handover took place.
    async fn roll_back(&self, grant: &Grant) -> Result<(), NodeError>;

    /// The election's lease.
    async fn read(&self, election: &ElectionId) -> Result<Reading, NodeError>;

    /// Up to `limit` leases of a kind whose elections come after `after`, ordered by the bytes of their
    /// names. A node looks at no more than [`LIST_EXAMINES`] entries of its index, so that a listing
    /// never holds other requests up: a page may be short, or even empty, and still have a next. Elections
    /// that cannot be looked up are left out and do not keep others from being listed: [`Page::incomplete`].
    async fn list(
        &self,
        kind: &Kind,
        after: Option<&ElectionId>,
        limit: usize,
    ) -> Result<Page, NodeError>;

    /// Writes incarnation records, ready to grant after `wait` (zero: the node is new, and has nothing to
    /// forget); tells how many were written. None is where there is one
    /// already, or in another incarnation than the one that was found without a record.
    async fn mark(
        &self,
        unrecorded: &[Unrecorded],
        wait: Duration,
        bounds: Bounds,
    ) -> Result<usize, NodeError>;

    /// Answers if the node works, and what its records say. Unless it is only to [`read`](Look::write) them, a record
    /// of another incarnation is rewritten for this one, as [`grant`](Self::grant) does, so that the guard begins
    /// with the restart and not with the first campaign after it; and the agent's bounds are registered. A longer
    /// guard makes the wait of the present incarnation longer.
    async fn probe(&self, look: Look) -> Result<Probe, NodeError>;

    /// The incarnation that served the election when the node was last probed, with a record.
    fn incarnation(&self, election: &ElectionId) -> Option<Incarnation>;
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
    /// Why elections may be missing, when some could not be looked up. The text is for operators; it holds no
    /// credentials.
    pub incomplete: Option<String>,
}

/// What every node is built with.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How long a floor outlives the last term.
    pub retention: Duration,
    /// How long a node abstains from grants after it may have lost memory; `None` turns the guard off.
    pub guard: Option<Duration>,
    /// How long a vote counts after it was asked for.
    pub vote: Duration,
}

/// How long the waits are on which the agents' safety from each other rests. Agents may be configured differently:
/// each registers its own with every node, and the longest that are known count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// How long a node abstains from grants after it may have lost memory: no shorter than anything that was granted
    /// lasts. `None` for an agent that wants no guard.
    pub guard: Option<Duration>,
    /// How long a vote counts after it was asked for.
    pub vote: Duration,
}

/// A bound that some agent has registered, and how long ago one last did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Registered {
    /// The bound; zero when there is none.
    pub bound: Duration,
    /// How long ago.
    pub age: Duration,
}

/// How long what an agent has registered counts after the last time that one did, or as long as it is itself, if that
/// is longer. A partition of a large cluster is looked at only now and then.
pub const REMEMBER: Duration = Duration::from_secs(3600);

/// How a node is to be probed.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// The agent's own bounds.
    pub own: Bounds,
    /// The longest guard that any node has told the agent: it is passed on to all.
    pub guard: Registered,
    /// The longest vote lifetime, likewise.
    pub vote: Registered,
    /// Whether records may be written. An agent reads first what others have registered, everywhere.
    pub write: bool,
    /// Whether a majority of the nodes of the list from which agents pass to another is closing it.
    pub closed: bool,
}

/// A time in which a node has not lost memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Incarnation {
    /// Its name.
    pub run: String,
    /// When this agent first had a reply from it.
    pub seen: Instant,
}

/// What a node stores for a held election.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Grant {
    /// The election.
    pub election: ElectionId,
    /// Who is to lead.
    pub candidate: Candidate,
    /// The token that the agent proposes.
    pub token: Token,
    /// Names this grant among all: a random number.
    pub grant_id: u64,
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
    pub replaces: Replaces,
    /// The longest guard that the agent knows of, and its own vote lifetime.
    pub bounds: Bounds,
    /// When the vote no longer counts: a node that gets to the grant only then refuses it.
    pub not_after: Instant,
}

/// Whose lease a [`Grant`] may replace; a vacant election may always be granted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Replaces {
    /// No lease: a handover that names no leader.
    Nothing,
    /// The candidate's own: a campaign.
    Own,
    /// This leader's, if the token is its token or not given: a handover.
    Of(Candidate, Option<Token>),
    /// Anybody's: a forced handover.
    Anything,
    /// Anybody's, but there has to be one: a forced handover that names a leader or a token.
    AnyLeader,
    /// No lease, and there has to be a leader: a handover that gives a token but names no leader.
    NothingHeld,
}

impl Replaces {
    /// Whether the grant needs a leader whose lease it replaces.
    #[must_use]
    pub fn needs_a_leader(&self) -> bool {
        matches!(self, Self::Of(..) | Self::AnyLeader | Self::NothingHeld)
    }
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
    /// There is no leader that could hand over.
    Vacant,
    /// The proposed token is not above this floor.
    Stale(Token),
    /// The request id is that of a grant whose lease is over.
    Used,
    /// The grant arrived too late to count, or after it was withdrawn.
    Late,
    /// There is no marker: the node is new, or has lost its memory.
    Unrecorded,
    /// The agent's bounds are longer than those that were registered in this incarnation.
    Unregistered,
    /// The node abstains from grants for this long.
    Guarded(Duration),
}

/// Asks to renew a lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
    /// There is no lease, but the node may have forgotten one.
    NotKnown,
    /// There is no lease, and no marker that tells whether the node may have forgotten one.
    Unrecorded,
    /// The lease is another's.
    Held,
    /// The lease has a larger token.
    Stale,
    /// The lease has a smaller token.
    Behind,
}

/// Asks to write a lease that a quorum holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Repair {
    /// The election.
    pub election: ElectionId,
    /// The lease as a node of the quorum has it.
    pub lease: Lease,
    /// How long the lease is held from now on, at the least.
    pub term: Term,
    /// The run in which the node is known to lack the lease.
    pub run: String,
    /// What the node may have in its place.
    pub onto: Onto,
    /// The longest guard and the longest vote lifetime that the agent knows of.
    pub bounds: Bounds,
    /// Until when the extension that this is part of is in force.
    pub not_after: Instant,
}

/// What a node may have in the place of a lease that is written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Onto {
    /// A lease of the same leader with no larger token.
    Own,
    /// That, or none: the node then has the lease as if it had extended it.
    Vacant,
    /// Those, or a lease that is not acknowledged, in whose place the written one comes when it is withdrawn. Until
    /// then the node does not count as one that has it: its candidate may win the election there.
    Unacknowledged,
}

/// What keeps the leases of a node, in the words of OpenTelemetry's conventions for database clients.
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
        /// What the name of an operation ends with to be that of its procedure.
        suffix: &'static str,
    },
}

/// A partition that has no marker, and the run of the server that it is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unrecorded {
    /// The partition's number; 0 where there is only one.
    pub partition: u16,
    /// The run.
    pub run: String,
}

/// Asks to delete a lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
    /// There was none, but the node may have forgotten one.
    NotKnown,
    /// There was none, and no marker that tells whether the node may have forgotten one.
    Unrecorded,
    /// It is another's.
    Held,
    /// It has another token.
    Stale,
}

/// What a node says of an election.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading {
    /// The lease.
    Held(Lease),
    /// There is none.
    Vacant,
    /// There is none, but the node may have forgotten one.
    NotKnown,
    /// There is none, and no marker that tells whether the node may have forgotten one.
    Unrecorded,
}

/// Whether a node that finds no lease would know of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absence {
    /// It would: there is none.
    Known,
    /// It may have forgotten it.
    NotKnown,
    /// It may have forgotten it, and has no marker.
    Unrecorded,
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// How long the node abstains from grants, in the partition that does so longest; `None` when it has
    /// no marker at all, zero when it grants everywhere.
    pub guard: Option<Duration>,
    /// The partitions without a marker.
    pub unrecorded: Vec<Unrecorded>,
    /// The longest guard that any agent has registered, as far as the node knows.
    pub longest_guard: Registered,
    /// The longest vote lifetime, likewise.
    pub longest_vote: Registered,
    /// What the node's clock says, in ms since the Unix epoch, when it has one of its own.
    pub clock: Option<u64>,
    /// A list of nodes with which other agents use this one, and whose majorities need not meet those of this
    /// agent's list.
    pub other_list: Option<String>,
    /// Whether the node has not seen an agent for so long that has only the list from which agents pass to another, and
    /// lets none come any more.
    pub closing: bool,
    /// What identifies the place behind the node, when it can tell: two nodes with the same identity are
    /// one place, which would vote twice.
    pub identity: Option<String>,
    /// Why the node must not vote although it answers, such as that it may drop leases.
    pub unfit: Option<String>,
    /// What does not work although the node can be used.
    pub degraded: Option<String>,
    /// How much memory the node's servers use; of several, the fullest one. [`None`] of a node in the agent's process.
    pub memory: Option<Memory>,
}

/// How much memory a server uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// The server.
    pub server: String,
    /// What counts against the limit, in bytes.
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

    /// What to tell operators of a server that is full, or nearly so.
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

/// A node gave no answer. The text is for operators; it holds no credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// What was asked did not reach the node, and never will.
    #[error("{0}")]
    NotSent(String),
    /// The node's memory is full: it refused what was asked before it had changed anything.
    #[error("{0}")]
    Full(String),
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
