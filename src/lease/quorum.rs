//! A quorum of N ≥ 1 nodes decides; the only way leases are read or written.
//!
//! The algorithm is [Redlock](https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/)
//! with fencing tokens that every node checks against its floor, a guard for nodes that lost their
//! memory, and withdrawal of what a lost vote left behind.
//!
//! Every operation asks all nodes at once and answers as soon as a quorum has decided. An answer that
//! did not come is never counted as a vote. Grants are owned by a task, not by the caller's future: when
//! the caller goes away, its grant is withdrawn.

mod claim;
pub mod observer;
mod round;

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};
use tokio_util::task::TaskTracker;

use super::{
    Extend, ExtendReply, Heal, Lease, LeaseNode, NodeError, Over, Page, Probe, Resign,
    guard::{Markers, RestartGuard},
    merge::merge,
    tally::{Denial, Done, Extensions, Reads, Resignations, Verdict, quorum},
    token::{TokenSource, WallClock},
};
use crate::{
    election::types::{Candidate, ElectionId, Kind, RequestId, Term, Token, Value},
    telemetry::trace,
};
use observer::{Called, Nobody, Observer, Operation, Retry};

/// How a quorum works.
#[derive(Clone)]
pub struct Options {
    /// How long a node may take to answer.
    pub operation_timeout: Duration,
    /// What is done about nodes without a marker.
    pub restart_guard: RestartGuard,
    /// How long nodes abstain that may have lost their memory: at least as long as anything that was
    /// granted may last.
    pub longest_guard: Duration,
    /// The clock that tokens are taken from; [`SystemTime::now`] outside of tests.
    pub clock: WallClock,
    /// Is told what the quorum does.
    pub observer: Arc<dyn Observer>,
}

impl Options {
    /// Options that use the system's clock, and tell nobody.
    #[must_use]
    pub fn new(
        operation_timeout: Duration,
        restart_guard: RestartGuard,
        longest_guard: Duration,
    ) -> Self {
        Self {
            operation_timeout,
            restart_guard,
            longest_guard,
            clock: Arc::new(SystemTime::now),
            observer: Arc::new(Nobody),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No quorum agreed: the outcome is not known.
    #[error("{reason}")]
    Unavailable {
        /// What an operator needs to know.
        reason: String,
        /// When trying again may help, if known.
        retry_after: Option<Duration>,
    },
    /// The caller's deadline came first: the outcome is not known.
    #[error("the deadline passed before a quorum of lease nodes answered")]
    DeadlineExceeded,
}

impl Error {
    fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable {
            reason: reason.into(),
            retry_after: None,
        }
    }
}

/// Asks for a leadership; the quorum adds the token.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The election.
    pub election: ElectionId,
    /// Who is to lead.
    pub candidate: Candidate,
    /// How long.
    pub term: Term,
    /// The new leader's public data.
    pub value: Value,
    /// Makes a retry find the first try's grant.
    pub request_id: Option<RequestId>,
    /// Whose leadership may be replaced.
    pub over: Over,
}

/// What came of a [`Claim`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// The candidate leads.
    Won {
        /// Its fencing token.
        token: Token,
        /// How long it may act as leader, counted from before the claim was made.
        valid_for: Duration,
    },
    /// Another leads.
    Lost(Lease),
    /// The leader that hands over leads, but with another token.
    TokenMismatch,
}

/// How a node does.
#[derive(Debug, Clone)]
pub struct NodeStatus {
    /// The node's name.
    pub name: String,
    /// What it says of itself, or why it says nothing.
    pub probe: Result<Probe, NodeError>,
}

/// The nodes, and what is needed to decide with them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Quorum {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    nodes: Vec<Node>,
    limit: Duration,
    markers: Markers,
    /// When the nodes were last tended because a grant was wanted: one claim does so for all.
    tended: tokio::sync::Mutex<Option<Instant>>,
    tokens: TokenSource,
    tasks: TaskTracker,
    observer: Arc<dyn Observer>,
}

/// A node, and what this agent knows of it.
struct Node {
    node: Arc<dyn LeaseNode>,
    /// What was logged of it lately, and when.
    complaints: Mutex<Vec<(NodeError, Instant)>>,
    /// Why it must not vote, if so.
    excluded: Mutex<Option<String>>,
    /// Whether there is a reason; asked on every call.
    is_excluded: AtomicBool,
    /// Since when some of its partitions have markers and others none.
    mixed_since: Mutex<Option<Instant>>,
    /// Whether it abstained from grants when it was last asked.
    abstains: AtomicBool,
}

/// How often the same complaint about a node is logged, and how many different ones in that time.
const COMPLAIN_EVERY: Duration = Duration::from_secs(30);
const COMPLAINTS: usize = 8;
/// How long an agent may take to mark all partitions of a new node.
const MARKING: Duration = Duration::from_secs(2);
/// How long a node may take to look at all its partitions, or to mark them, if that is more than the
/// operation timeout.
const TENDING: Duration = Duration::from_secs(3);

impl Node {
    fn name(&self) -> &str {
        self.node.name()
    }

    fn is_excluded(&self) -> bool {
        self.is_excluded.load(Ordering::Relaxed)
    }

    fn exclude(&self, why: Option<String>) {
        self.is_excluded.store(why.is_some(), Ordering::Relaxed);
        *self.excluded.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Why the node is not asked for anything that counts.
    fn excluded(&self) -> Option<NodeError> {
        let why = self.excluded.lock().unwrap_or_else(PoisonError::into_inner);
        why.clone().map(NodeError::NotSent)
    }

    /// Whether another agent may be marking the node's partitions just now: then those without a marker are
    /// as new as the others.
    fn is_being_marked(&self, probe: &Probe) -> bool {
        let mut since = self
            .mixed_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if probe.guard.is_none() || probe.unmarked.is_empty() {
            *since = None;
            return false;
        }
        since.get_or_insert_with(Instant::now).elapsed() < MARKING
    }

    /// Logs when the node begins to abstain from grants, and when it grants again.
    fn tell_guard(&self, probe: &Probe) {
        let Some(left) = probe.guard else { return };
        let abstains = !left.is_zero();
        if self.abstains.swap(abstains, Ordering::Relaxed) == abstains {
            return;
        }
        let node = self.name();
        match abstains {
            true => tracing::warn!(
                node,
                remaining_ms = left.as_millis(),
                "a lease node abstains from new grants: it has restarted or was promoted, and may have \
                 forgotten a leader that still has time left"
            ),
            false => tracing::info!(node, "a lease node grants again"),
        }
    }

    /// Logs why the node did not do what it was asked: what is new, and now and then. Callers are not
    /// told, as they may be anybody.
    fn complain(&self, error: &NodeError) {
        let mut told = self
            .complaints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // A node that has stopped fails in more than one way in turn.
        told.retain(|(_, at)| at.elapsed() < COMPLAIN_EVERY);
        if told.iter().any(|(known, _)| known == error) || told.len() == COMPLAINTS {
            return;
        }
        told.push((error.clone(), Instant::now()));
        tracing::warn!(node = self.name(), %error, "a lease node failed");
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Quorum {
    /// A quorum of `nodes`, which must not be empty and must be independent of each other.
    #[must_use]
    pub fn new(nodes: Vec<Arc<dyn LeaseNode>>, options: Options) -> Self {
        Self {
            inner: Arc::new(Inner {
                nodes: nodes
                    .into_iter()
                    .map(|node| Node {
                        node,
                        complaints: Mutex::default(),
                        excluded: Mutex::default(),
                        is_excluded: AtomicBool::new(false),
                        mixed_since: Mutex::default(),
                        abstains: AtomicBool::new(false),
                    })
                    .collect(),
                limit: options.operation_timeout,
                markers: Markers::new(options.restart_guard, options.longest_guard),
                tended: tokio::sync::Mutex::default(),
                tokens: TokenSource::new(options.clock),
                tasks: TaskTracker::new(),
                observer: options.observer,
            }),
        }
    }

    /// Asks for a leadership. The operation goes on when the returned future is dropped, and what it was
    /// granted then is withdrawn.
    ///
    /// # Errors
    /// [`Error`]: not known, and being cleaned up.
    pub async fn claim(&self, claim: Claim, deadline: Instant) -> Result<Claimed, Error> {
        let (answer, claimed) = oneshot::channel();
        let quorum = self.clone();
        let claiming = async move { quorum.run_claim(claim, deadline, answer).await };
        self.inner.tasks.spawn(trace::carry(claiming));
        claimed.await.unwrap_or_else(|_| {
            // The task panicked, or the process is ending.
            Err(Error::unavailable(
                "the agent failed while it asked; its log has the cause",
            ))
        })
    }

    /// Extends a leader's term; `Ok(Err(_))` says why not.
    ///
    /// # Errors
    /// [`Error`]: not known; the term may or may not have been extended.
    pub async fn extend(
        &self,
        extend: Extend,
        deadline: Instant,
    ) -> Result<Result<(), Denial>, Error> {
        let started = Instant::now();
        let extend = Arc::new(extend);
        let nodes = self.inner.nodes.len();
        let mut tally = Extensions::new(nodes);
        let mut replies = vec![None; nodes];
        let mut round = self.ask(Operation::Extend, deadline, |_, node| {
            let extend = Arc::clone(&extend);
            async move { node.extend(&extend).await }
        });
        let verdict = loop {
            let verdict = tally.verdict();
            if verdict != Verdict::Open {
                break verdict;
            }
            let Some((node, reply)) = round.next().await else {
                break verdict;
            };
            if let Ok(ExtendReply::Renewed(token)) = reply {
                self.inner.tokens.seen(token);
            }
            replies[node] = reply.as_ref().ok().cloned();
            tally.add(reply);
        };
        match verdict {
            Verdict::Decided(Done::Yes) => {
                // What has been answered already needs no task to wait for it.
                while let Some((node, reply)) = round.ready().await {
                    replies[node] = reply.ok();
                }
                if round.is_open() || replies.iter().any(is_lacking) {
                    let quorum = self.clone();
                    let healed = Arc::clone(&extend);
                    tell_healing(numbers(&replies, is_lacking).len());
                    self.inner.tasks.spawn(trace::carry(async move {
                        while let Some((node, reply)) = round.next().await {
                            replies[node] = reply.ok();
                        }
                        let lacking = numbers(&replies, is_lacking);
                        let mend = Mend::Heal;
                        quorum
                            .mend(mend, &healed, started, &replies, &lacking, deadline)
                            .await;
                    }));
                }
            }
            Verdict::Decided(Done::AfterRaising) => {
                let had = numbers(&replies, is_renewed).len();
                let behind = numbers(&replies, is_behind);
                tell_healing(behind.len());
                let raised = self
                    .mend(Mend::Raise, &extend, started, &replies, &behind, deadline)
                    .await;
                if had + raised < quorum(nodes) {
                    return Err(self.undecided(deadline));
                }
            }
            Verdict::Decided(Done::No(denial)) => return Ok(Err(denial)),
            Verdict::Open | Verdict::Hopeless => {
                return Err(self.undecided(deadline));
            }
        }
        if started.elapsed() + extend.term.drift() >= extend.term.duration() {
            return Err(too_slow());
        }
        Ok(Ok(()))
    }

    /// Writes the lease to nodes that lack it, from one that was renewed, while the extension that began at
    /// `started` is in force; gives how many took it.
    ///
    /// A node that has restarted is not healed before every vote is counted that it may have forgotten: a
    /// candidate that won by its vote, and the leader that is healed there, would both count on it.
    async fn mend(
        &self,
        mend: Mend,
        extend: &Arc<Extend>,
        started: Instant,
        replies: &[Option<ExtendReply>],
        lacking: &[usize],
        deadline: Instant,
    ) -> usize {
        if lacking.is_empty() {
            return 0;
        }
        // Before the lease is read: what it has held since then, a node has not forgotten in this run.
        let runs: Vec<_> = self
            .inner
            .nodes
            .iter()
            .map(|node| node.node.settled_run(&extend.election, self.inner.limit))
            .collect();
        let lacking: Vec<_> = lacking
            .iter()
            .copied()
            .filter(|node| runs[*node].is_some())
            .collect();
        let mut source = numbers(replies, is_renewed);
        source.truncate(1);
        if lacking.is_empty() {
            return 0;
        }
        let mut reading = self.ask_some(Operation::Read, source, deadline, |_, node| {
            let extend = Arc::clone(extend);
            async move { node.read(&extend.election).await }
        });
        let Some((_, Ok(Some(lease)))) = reading.next().await else {
            return 0;
        };
        let in_force = started.elapsed() + extend.term.drift() < extend.term.duration();
        if lease.leader != extend.leader || !in_force {
            return 0;
        }
        let mut round = self.ask_some(Operation::Heal, lacking, deadline, |number, node| {
            let heal = Heal {
                election: extend.election.clone(),
                lease: lease.clone(),
                term: extend.term,
                run: runs[number].clone().unwrap_or_default(),
                existing: mend == Mend::Raise,
            };
            async move { node.heal(&heal).await }
        });
        let mut mended = 0;
        while let Some((node, reply)) = round.next().await {
            if reply == Ok(true) {
                mended += 1;
                tracing::debug!(node = self.inner.nodes[node].name(), "healed a lease");
            }
        }
        if mended > 0 {
            self.inner.observer.healed(mended);
        }
        mended
    }

    /// Gives a leadership up; `Ok(Err(_))` says why not.
    ///
    /// # Errors
    /// [`Error`]: not known; the leader may or may not have resigned.
    pub async fn resign(
        &self,
        resign: Resign,
        deadline: Instant,
    ) -> Result<Result<(), Denial>, Error> {
        let mut resign = resign;
        if resign.token.is_none() {
            // A node that is late must not take it for a resignation from a later term of the same name.
            match self.read(&resign.election, deadline).await? {
                None => return Ok(Err(Denial::NoTerm)),
                Some(lease) if lease.leader != resign.leader => {
                    return Ok(Err(Denial::HeldByOther));
                }
                Some(lease) => resign.token = Some(lease.token),
            }
        }
        let resign = Arc::new(resign);
        let mut tally = Resignations::new(self.inner.nodes.len());
        let mut round = self.ask(Operation::Resign, deadline, |_, node| {
            let resign = Arc::clone(&resign);
            async move { node.resign(&resign).await }
        });
        let verdict = loop {
            let verdict = tally.verdict();
            if verdict != Verdict::Open {
                break verdict;
            }
            let Some((_, reply)) = round.next().await else {
                break verdict;
            };
            tally.add(reply);
        };
        if round.is_open() {
            // The election is vacant already; the other nodes should soon agree.
            self.inner
                .tasks
                .spawn(async move { while round.next().await.is_some() {} });
        }
        match verdict {
            Verdict::Decided(Done::No(denial)) => Ok(Err(denial)),
            Verdict::Decided(_) => Ok(Ok(())),
            Verdict::Open | Verdict::Hopeless => Err(self.undecided(deadline)),
        }
    }

    /// The lease that a quorum holds.
    ///
    /// # Errors
    /// [`Error`]: not known.
    pub async fn read(
        &self,
        election: &ElectionId,
        deadline: Instant,
    ) -> Result<Option<Lease>, Error> {
        let election = Arc::new(election.clone());
        let mut tally = Reads::new(self.inner.nodes.len());
        let mut round = self.ask(Operation::Read, deadline, |_, node| {
            let election = Arc::clone(&election);
            async move { node.read(&election).await }
        });
        loop {
            match tally.verdict() {
                Verdict::Decided(lease) => return Ok(lease),
                Verdict::Hopeless => return Err(self.undecided(deadline)),
                Verdict::Open => {}
            }
            match round.next().await {
                Some((_, reply)) => tally.add(reply),
                None => return Err(self.undecided(deadline)),
            }
        }
    }

    /// The leases of a kind that a quorum holds, after `after`, in order of their names; short pages may
    /// have a next.
    ///
    /// # Errors
    /// [`Error`]: fewer nodes than a quorum answered.
    pub async fn list(
        &self,
        kind: &Kind,
        after: Option<ElectionId>,
        limit: usize,
        deadline: Instant,
    ) -> Result<Page, Error> {
        let request = Arc::new((kind.clone(), after));
        let mut round = self.ask(Operation::List, deadline, |_, node| {
            let request = Arc::clone(&request);
            async move { node.list(&request.0, request.1.as_ref(), limit).await }
        });
        let quorum = quorum(self.inner.nodes.len());
        let (mut pages, mut errors) = (Vec::new(), Vec::new());
        while let Some((_, reply)) = round.next().await {
            match reply {
                Ok(page) => pages.push(page),
                Err(error) => errors.push(error),
            }
            if pages.len() >= quorum {
                let (page, unanimous) = merge(&pages, quorum, limit);
                if unanimous || !round.is_open() {
                    return Ok(page);
                }
            }
        }
        if pages.len() >= quorum {
            return Ok(merge(&pages, quorum, limit).0);
        }
        Err(self.undecided(deadline))
    }

    /// Asks every node how it does, and marks those without a marker if it is known what they are.
    pub async fn status(&self) -> Vec<NodeStatus> {
        self.tend(false).await
    }

    /// Tends the nodes because a vote that began at `asked` found one without a marker, unless another claim
    /// has done so since; `false` when no node answers.
    async fn tend_for_grant(&self, asked: Instant, deadline: Instant) -> bool {
        let quorum = self.clone();
        let tending = self.inner.tasks.spawn(trace::carry(async move {
            let mut tended = quorum.inner.tended.lock().await;
            if tended.is_some_and(|at| at > asked) {
                return true;
            }
            let now = Instant::now();
            let status = quorum.tend(true).await;
            *tended = Some(now);
            status.iter().any(|node| node.probe.is_ok())
        }));
        // It goes on for others when this one's time is over.
        matches!(timeout_at(deadline, tending).await, Ok(Ok(true)))
    }

    /// As [`Self::status`]; when a grant is `wanted`, nodes without a marker are taken for what they must
    /// be at the worst.
    async fn tend(&self, wanted: bool) -> Vec<NodeStatus> {
        let mut status = self.look().await;
        let mut new = self.inner.markers.may_be_new() && none_is_marked(&status);
        if new {
            // Each had no marker when it was asked, but by the time the last one answered, the first may
            // have been marked, voted in a quorum with the last, and that forgotten it. If all still have
            // none in the same runs, there was an instant at which none had one.
            let again = self.look().await;
            new = none_is_marked(&again) && same_runs(&status, &again);
            status = again;
        }
        let all_marked = self.mark(&status, new, wanted).await;
        if new && !all_marked {
            // One that has been marked may vote, and forget it: then the others must not look new.
            self.inner.markers.note();
            status = self.look().await;
            self.mark(&status, false, true).await;
        }
        status
    }

    /// Asks every node how it does, and lets those that are not fit no longer vote.
    async fn look(&self) -> Vec<NodeStatus> {
        let all = 0..self.inner.nodes.len();
        let mut round = self.ask_even_excluded(
            Operation::Probe,
            all,
            self.tending(),
            |_, node| async move { node.probe().await },
        );
        let mut status: Vec<_> = self
            .inner
            .nodes
            .iter()
            .map(|node| NodeStatus {
                name: node.name().to_owned(),
                probe: Err(NodeError::unknown("no answer")),
            })
            .collect();
        while let Some((node, probe)) = round.next().await {
            if let Ok(probe) = &probe {
                self.inner.nodes[node].tell_guard(probe);
            }
            status[node].probe = probe;
        }
        let probes = || status.iter().filter_map(|node| node.probe.as_ref().ok());
        if let Some(longest) = probes().map(|probe| probe.longest_guard).max() {
            self.inner.markers.note_guard(longest);
        }
        if probes().any(|probe| probe.guard.is_some()) {
            self.inner.markers.note();
        }
        self.exclude_unfit(&mut status);
        status
    }

    /// Lets nodes that are unfit not vote, and of nodes that are one place only the first; one that gives
    /// no answer is what it was.
    fn exclude_unfit(&self, status: &mut [NodeStatus]) {
        for later in 0..status.len() {
            let Ok(probe) = &status[later].probe else {
                continue;
            };
            let same = status[..later].iter().find(|earlier| {
                let earlier = earlier.probe.as_ref().ok();
                probe.identity.is_some()
                    && earlier.is_some_and(|earlier| earlier.identity == probe.identity)
            });
            let node = &self.inner.nodes[later];
            let same = same.map(|same| {
                format!(
                    "{}: it is the same server as {}, and would vote twice: name each server once in \
                     EA_REDIS_URLS",
                    node.name(),
                    same.name
                )
            });
            node.exclude(probe.unfit.clone().or(same));
            if let Some(error) = node.excluded() {
                node.complain(&error);
                status[later].probe = Err(error);
            }
        }
    }

    /// Marks the nodes that have no marker, if it is known whether they are new or have lost their memory;
    /// tells whether all of those were.
    async fn mark(&self, status: &[NodeStatus], new: bool, wanted: bool) -> bool {
        // Nodes that must not vote are not among them.
        let probes: Vec<_> = status.iter().map(|node| node.probe.as_ref().ok()).collect();
        let Some(wait) = self.inner.markers.wait(new, wanted) else {
            return false;
        };
        let unmarked: Vec<_> = (0..probes.len())
            .filter(|node| {
                probes[*node].is_some_and(|probe| {
                    !probe.unmarked.is_empty() && !self.inner.nodes[*node].is_being_marked(probe)
                })
            })
            .collect();
        let mut round =
            self.ask_even_excluded(Operation::Mark, unmarked, self.tending(), |number, node| {
                let parts = probes[number].map_or_else(Vec::new, |probe| probe.unmarked.clone());
                async move { node.mark(&parts, wait).await }
            });
        let mut all_marked = true;
        while let Some((node, reply)) = round.next().await {
            let parts = probes[node].map_or(0, |probe| probe.unmarked.len());
            all_marked &= reply == Ok(parts);
            let node = self.inner.nodes[node].name();
            match reply {
                Ok(1..) if wait.is_zero() => {
                    tracing::info!(node, "a new lease node: it grants from now on");
                }
                Ok(1..) => tracing::warn!(
                    node,
                    wait_ms = wait.as_millis(),
                    "a lease node without a marker may have lost its memory: it abstains from grants"
                ),
                Ok(0) | Err(_) => {}
            }
        }
        all_marked
    }

    /// Until when nodes that are tended may take to answer.
    fn tending(&self) -> Instant {
        Instant::now() + self.inner.limit.max(TENDING)
    }

    /// Why a quorum gave no answer. The cause is in the log: whoever asks may be anybody.
    fn undecided(&self, deadline: Instant) -> Error {
        if Instant::now() >= deadline {
            return Error::DeadlineExceeded;
        }
        Error::unavailable(format!(
            "no quorum of lease nodes gave an answer ({} of {} are needed): the outcome is not known; /readyz \
             and the agent's log have the cause",
            self.needed(),
            self.inner.nodes.len()
        ))
    }

    /// How many nodes have to answer.
    #[must_use]
    pub fn needed(&self) -> usize {
        quorum(self.inner.nodes.len())
    }

    /// Waits until every claim has been answered and every withdrawal is through.
    pub async fn drain(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

/// Whether all nodes answer wholly, and none has a marker.
fn none_is_marked(status: &[NodeStatus]) -> bool {
    status.iter().all(|node| {
        let probe = node.probe.as_ref();
        probe.is_ok_and(|probe| probe.guard.is_none() && probe.degraded.is_none())
    })
}

/// Whether the nodes lack the same markers in the same runs.
fn same_runs(first: &[NodeStatus], again: &[NodeStatus]) -> bool {
    let unmarked = |node: &NodeStatus| Some(node.probe.as_ref().ok()?.unmarked.clone());
    first.iter().map(unmarked).eq(again.iter().map(unmarked))
}

/// What is done to nodes that lack a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mend {
    /// A quorum has it: it is written anew.
    Heal,
    /// No quorum has the token: leases of the same leader are raised to it, but none is made. A node that
    /// has lost the lease since it was asked may have voted for another.
    Raise,
}

/// The numbers of the nodes that replied so.
fn numbers(
    replies: &[Option<ExtendReply>],
    so: impl Fn(&Option<ExtendReply>) -> bool,
) -> Vec<usize> {
    let numbers = (0..replies.len()).filter(|node| so(&replies[*node]));
    numbers.collect()
}

fn is_renewed(reply: &Option<ExtendReply>) -> bool {
    matches!(reply, Some(ExtendReply::Renewed(_)))
}

fn is_behind(reply: &Option<ExtendReply>) -> bool {
    matches!(reply, Some(ExtendReply::Behind))
}

fn is_lacking(reply: &Option<ExtendReply>) -> bool {
    matches!(reply, Some(ExtendReply::Missing | ExtendReply::Behind))
}

/// Tells the request's trace that so many nodes lack the lease, and are given it if they may be.
fn tell_healing(nodes: usize) {
    if nodes > 0 {
        let nodes = nodes as u64;
        trace::event("election_agent.healing", "election_agent.nodes", nodes);
    }
}

fn too_slow() -> Error {
    Error::unavailable("the lease nodes took as long as the term to answer")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::{Grant, Settings, embedded::Embedded};

    /// Notes what it is told, but not how long calls took.
    #[derive(Debug, Default)]
    struct Notes(Mutex<Vec<String>>);

    impl Notes {
        fn note(&self, what: impl fmt::Debug) {
            self.0.lock().expect("whole").push(format!("{what:?}"));
        }

        fn count(&self, what: impl fmt::Debug) -> usize {
            let what = format!("{what:?}");
            let notes = self.0.lock().expect("whole");
            notes.iter().filter(|note| **note == what).count()
        }
    }

    impl Observer for Notes {
        fn called(&self, node: usize, operation: Operation, outcome: Called, _: Duration) {
            self.note((node, operation, outcome));
        }
        fn retried(&self, why: Retry) {
            self.note(why);
        }
        fn withdrawn(&self, nodes: usize) {
            self.note(("withdrawn", nodes));
        }
        fn healed(&self, nodes: usize) {
            self.note(("healed", nodes));
        }
    }

    /// A request's first try reached one node, and its agent died; another node is down.
    #[tokio::test(start_paused = true)]
    async fn what_an_agent_that_died_left_behind_does_not_split_every_retry() {
        let minute = Duration::from_secs(60);
        let settings = Settings {
            retention: minute,
            guard: None,
        };
        let nodes: Vec<_> = (0..2)
            .map(|_| Arc::new(Embedded::in_memory(settings)))
            .collect();
        let claim = Claim {
            election: ElectionId::new("", "e").expect("valid"),
            candidate: Candidate::new("candidate", "a").expect("valid"),
            term: Term::from_millis(60_000, minute).expect("valid"),
            value: Value::default(),
            request_id: RequestId::new("try").expect("valid"),
            over: Over::Own,
        };
        let left_behind = Grant {
            election: claim.election.clone(),
            candidate: claim.candidate.clone(),
            token: Token::new(7).expect("in range"),
            attempt: 1,
            term: claim.term,
            value: Value::default(),
            request_id: claim.request_id.clone(),
            repeat: true,
            elected_at: 0,
            over: Over::Own,
        };
        nodes[0].grant(&left_behind).await.expect("granted");

        let notes = Arc::new(Notes::default());
        let options = Options {
            observer: notes.clone(),
            ..Options::new(Duration::from_secs(1), RestartGuard::Off, minute)
        };
        let nodes = nodes.into_iter().map(|node| node as Arc<dyn LeaseNode>);
        let quorum = Quorum::new(nodes.collect(), options);
        let deadline = Instant::now() + Duration::from_secs(5);
        let claimed = quorum.claim(claim, deadline).await.expect("decided");
        assert!(
            matches!(claimed, Claimed::Won { token, .. } if token.get() > 7),
            "{claimed:?}"
        );
        quorum.drain().await;
        assert_eq!(notes.count(Retry::SplitVote), 1);
        for node in 0..2 {
            let called = |operation| notes.count((node, operation, Called::Ok));
            assert_eq!(called(Operation::Grant), 2, "{notes:?}");
            assert_eq!(called(Operation::Withdraw), 1, "{notes:?}");
        }
        assert_eq!(notes.count(("withdrawn", 2)), 1, "{notes:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stale_token_is_told() {
        let minute = Duration::from_secs(60);
        let settings = Settings {
            retention: minute,
            guard: None,
        };
        let node = Arc::new(Embedded::in_memory(settings));
        let notes = Arc::new(Notes::default());
        let options = Options {
            // Its tokens begin at 1.
            clock: Arc::new(|| SystemTime::UNIX_EPOCH),
            observer: notes.clone(),
            ..Options::new(Duration::from_secs(1), RestartGuard::Off, minute)
        };
        let other = Quorum::new(
            vec![node.clone()],
            Options::new(Duration::from_secs(1), RestartGuard::Off, minute),
        );
        let quorum = Quorum::new(vec![node], options);
        let claim = Claim {
            election: ElectionId::new("", "e").expect("valid"),
            candidate: Candidate::new("candidate", "a").expect("valid"),
            term: Term::from_millis(60_000, minute).expect("valid"),
            value: Value::default(),
            request_id: None,
            over: Over::Own,
        };
        let deadline = Instant::now() + Duration::from_secs(5);
        for quorum in [&other, &quorum] {
            let claimed = quorum.claim(claim.clone(), deadline).await;
            assert!(matches!(claimed, Ok(Claimed::Won { .. })), "{claimed:?}");
        }
        assert_eq!(notes.count(Retry::StaleToken), 1, "{notes:?}");
    }

    /// Answers nothing.
    struct Silent;

    #[async_trait::async_trait]
    impl LeaseNode for Silent {
        fn name(&self) -> &str {
            "silent"
        }
        async fn grant(&self, _: &Grant) -> Result<crate::lease::GrantReply, NodeError> {
            std::future::pending().await
        }
        async fn extend(&self, _: &Extend) -> Result<ExtendReply, NodeError> {
            std::future::pending().await
        }
        async fn heal(&self, _: &Heal) -> Result<bool, NodeError> {
            std::future::pending().await
        }
        async fn resign(&self, _: &Resign) -> Result<crate::lease::ResignReply, NodeError> {
            std::future::pending().await
        }
        async fn withdraw(&self, _: &Grant) -> Result<(), NodeError> {
            std::future::pending().await
        }
        async fn read(&self, _: &ElectionId) -> Result<Option<Lease>, NodeError> {
            std::future::pending().await
        }
        async fn list(
            &self,
            _: &Kind,
            _: Option<&ElectionId>,
            _: usize,
        ) -> Result<Page, NodeError> {
            std::future::pending().await
        }
        async fn mark(
            &self,
            _: &[crate::lease::Unmarked],
            _: Duration,
        ) -> Result<usize, NodeError> {
            std::future::pending().await
        }
        async fn probe(&self) -> Result<Probe, NodeError> {
            std::future::pending().await
        }
        fn settled_run(&self, _: &ElectionId, _: Duration) -> Option<String> {
            None
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_callers_short_deadline_is_no_timeout_of_the_node() {
        let notes = Arc::new(Notes::default());
        let limit = Duration::from_secs(1);
        let options = Options {
            observer: notes.clone(),
            ..Options::new(limit, RestartGuard::Off, limit)
        };
        let quorum = Quorum::new(vec![Arc::new(Silent)], options);
        let election = ElectionId::new("", "e").expect("valid");
        for (time, outcome) in [(limit / 2, Called::GivenUp), (limit * 2, Called::Timeout)] {
            let read = quorum.read(&election, Instant::now() + time).await;
            assert!(read.is_err(), "{read:?}");
            assert_eq!(notes.count((0, Operation::Read, outcome)), 1, "{notes:?}");
        }
    }
}
