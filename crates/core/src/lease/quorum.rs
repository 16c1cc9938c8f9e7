//! A quorum of N ≥ 1 nodes decides; the only way to read or write leases.
//!
//! The algorithm is [Redlock](https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/) with three
//! additions: fencing tokens that every node checks against its token high-water mark, a restart guard for nodes that
//! lost their memory, and rollback of the grants of a lost vote.
//!
//! Every operation calls all nodes at once and returns as soon as a quorum has decided. A missing reply never counts as
//! a vote. A task owns each grant, not the caller's future: when the caller drops the future, the task rolls the grant
//! back.

mod batch;
mod drive;
mod health;
mod node;
pub mod observer;
mod round;
mod span;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{sync::oneshot, time::Instant};
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

pub use span::SPANS;

use super::{
    Extend, Kinds, Lease, LeaseNode, Memory, NodeError, Page, Probe, Reading, Replaces, Resign,
    State,
    guard::{IncarnationRecords, RestartGuard},
    merge::{merge, merge_kinds},
    policy::{
        Electorate, Event, Nodes, claim::Claiming, extension::Extending, resignation::Resigning,
    },
    tally::{Denial, Reads, Verdict},
    token::{TokenSource, WallClock},
};
use crate::types::{Candidate, ElectionId, Kind, RequestId, Term, Token, Value};
use batch::Batch;
use drive::Drive;
use node::Node;
use observer::{Called, NoopObserver, Operation, QuorumObserver};
use round::Round;
use span::About;

/// The options of a quorum.
#[derive(Clone)]
pub struct Options {
    /// How long a node may take to reply, and so how long a vote counts.
    pub operation_timeout: Duration,
    /// How nodes without an incarnation record are treated.
    pub restart_guard: RestartGuard,
    /// How long nodes that may have lost their memory are in quarantine: at least as long as the longest granted term.
    pub longest_guard: Duration,
    /// The clock from which tokens are taken; [`SystemTime::now`] outside of tests.
    pub clock: WallClock,
    /// Observes what the quorum does.
    pub observer: Arc<dyn QuorumObserver>,
    /// Whether spans name elections and candidates.
    pub names_in_spans: bool,
    /// The name that errors use for the setting that lists the nodes.
    pub list: &'static str,
}

impl Options {
    /// Options that use the system's clock and no observer.
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
            observer: Arc::new(NoopObserver),
            names_in_spans: false,
            list: "the list of nodes",
        }
    }
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A quorum refused a leader's request: the caller does not lead, and nothing changed. Every other error but
    /// [`StoreFull`](Self::StoreFull) leaves the outcome unknown.
    #[error(transparent)]
    Denied(#[from] Denial),
    /// No quorum agreed: the outcome is unknown.
    #[error("{reason}")]
    Unavailable {
        /// What an operator needs to know.
        reason: String,
        /// When a retry may help, if known.
        retry_after: Option<Duration>,
    },
    /// The memory of so many nodes is full that no majority can store one more grant. This grant was not made; what
    /// some nodes stored of it is rolled back. Leaders still extend and resign.
    #[error(
        "store full: the memory of the lease nodes has no room for another election: give up elections that are no \
         longer needed, or try again when others have been given up; /readyz and the agent's log name the nodes"
    )]
    StoreFull,
    /// The caller's deadline passed first: the outcome is unknown.
    #[error("the deadline passed before a quorum of lease nodes answered")]
    DeadlineExceeded,
    /// A failure that no retry repairs: the nodes reported an impossible state, or this agent is at fault. The outcome
    /// is unknown. The code that replies to the caller logs the error.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    pub(crate) fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable {
            reason: reason.into(),
            retry_after: None,
        }
    }
}

/// A request for a leadership; the quorum adds the token.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Claim {
    /// The election.
    pub election: ElectionId,
    /// The candidate that is to lead.
    pub candidate: Candidate,
    /// The length of the term.
    pub term: Term,
    /// The new leader's public data.
    pub value: Value,
    /// When the request arrived, if it has waited since: `valid_for` counts from before then.
    pub waited_since: Option<Instant>,
    /// Lets a retry find the grant of the first try.
    pub request_id: Option<RequestId>,
    /// What leadership the claim may replace.
    pub replaces: Replaces,
}

/// The outcome of a [`Claim`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// The candidate leads.
    Won {
        /// Its fencing token.
        token: Token,
        /// How long the candidate may act as leader, counted from before the claim was made.
        valid_for: Duration,
    },
    /// Another candidate leads.
    Lost(Lease),
    /// The leader that hands over leads, but with another token.
    TokenMismatch,
    /// There is no leader to hand over.
    Vacant,
    /// The request id belongs to a grant whose lease has ended.
    Used,
}

/// The state of a node.
#[derive(Debug, Clone)]
pub struct NodeStatus {
    /// The node's name.
    pub name: String,
    /// Which kind of node it is.
    pub role: &'static str,
    /// What the node reports of itself, or why it reports nothing.
    pub probe: Result<Probe, NodeError>,
    /// How long it took to report that.
    pub latency: Duration,
    /// Whether the node lately refused something because its memory was full.
    pub was_full: bool,
}

impl NodeStatus {
    /// Whether the node grants: it replies, is fit to vote, and no quarantine lasts.
    #[must_use]
    pub fn is_voting(&self) -> bool {
        let probe = self.probe.as_ref();
        probe.is_ok_and(|probe| probe.guard.unwrap_or_default().is_zero())
    }

    /// What does not work, or soon will not, although the node can be used. The text is for operators.
    #[must_use]
    pub fn degraded(&self) -> Option<String> {
        let probe = self.probe.as_ref().ok()?;
        let refused = || {
            let name = &self.name;
            self.was_full.then(|| {
                format!("{name}: its memory was full in the last minute: it refused new elections")
            })
        };
        let memory = probe.memory.as_ref().and_then(Memory::warning);
        let parts = [probe.degraded.clone(), memory, refused()];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

/// The nodes and everything needed to decide with them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Quorum {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    nodes: Vec<Node>,
    electorate: Electorate,
    limit: Duration,
    incarnation_records: IncarnationRecords,
    /// When the last health check for a claim took place: one check serves all claims that wait for it.
    health_checked: tokio::sync::Mutex<Option<Instant>>,
    /// Why no node is used, and when that was last seen.
    stopped: parking_lot::Mutex<Option<(String, Instant)>>,
    /// The nodes of the old list that admit no more agents with only that list.
    closing: parking_lot::Mutex<Nodes>,
    tokens: TokenSource,
    tasks: TaskTracker,
    observer: Arc<dyn QuorumObserver>,
    names_in_spans: bool,
    /// The name that errors use for the setting that lists the nodes.
    list: &'static str,
}

impl Quorum {
    /// Creates a quorum of `nodes`, 1 to [`Nodes::MOST`], which must be independent of each other.
    #[must_use]
    pub fn new(nodes: Vec<Arc<dyn LeaseNode>>, options: Options) -> Self {
        let electorate = Electorate::of(Nodes::first(nodes.len()));
        Self::of(nodes, electorate, options)
    }

    /// Like [`Self::new`], with the nodes of one or of two lists.
    #[must_use]
    pub fn of(nodes: Vec<Arc<dyn LeaseNode>>, electorate: Electorate, options: Options) -> Self {
        let (guard, longest) = (options.restart_guard, options.longest_guard);
        Self {
            inner: Arc::new(Inner {
                nodes: nodes.into_iter().map(Node::new).collect(),
                electorate,
                limit: options.operation_timeout,
                incarnation_records: IncarnationRecords::new(
                    guard,
                    longest,
                    options.operation_timeout,
                ),
                health_checked: tokio::sync::Mutex::default(),
                stopped: parking_lot::Mutex::default(),
                closing: parking_lot::Mutex::default(),
                tokens: TokenSource::new(options.clock),
                tasks: TaskTracker::new(),
                observer: options.observer,
                names_in_spans: options.names_in_spans,
                list: options.list,
            }),
        }
    }

    /// Claims a leadership. The operation continues when the returned future is dropped; what it was granted is then
    /// rolled back.
    ///
    /// # Errors
    /// [`Error`]: the outcome is unknown, and any grants are being rolled back.
    pub async fn claim(&self, claim: Claim, deadline: Instant) -> Result<Claimed, Error> {
        let (answer, claimed) = oneshot::channel();
        let quorum = self.clone();
        let claiming = async move { quorum.run_claim(claim, deadline, answer).await };
        self.inner.tasks.spawn(claiming.in_current_span());
        claimed.await.unwrap_or_else(|_| {
            // The task panicked, or the process is shutting down.
            Err(Error::unavailable(
                "the agent failed during the request; its log has the cause",
            ))
        })
    }

    async fn run_claim(
        &self,
        claim: Claim,
        deadline: Instant,
        mut answer: oneshot::Sender<Result<Claimed, Error>>,
    ) {
        let machine = Claiming::new(claim, Instant::now(), deadline);
        let mut drive = Drive::begin(self, machine, deadline);
        let claimed = tokio::select! {
            biased;
            claimed = drive.answer() => claimed,
            () = answer.closed() => None,
        };
        let received = claimed.is_some_and(|claimed| answer.send(claimed).is_ok());
        if !received {
            drive.feed(Event::Abandoned);
        }
        drive.finish().await;
    }

    /// Extends a leader's term. Returns how long the leader may act, counted from before the extension was requested.
    ///
    /// # Errors
    /// [`Error::Denied`]: not extended. Any other [`Error`]: unknown; the term may or may not have been extended.
    pub async fn extend(&self, extend: Extend, deadline: Instant) -> Result<Duration, Error> {
        let machine = Extending::new(extend, Instant::now(), deadline, &*self.inner);
        self.decide(Drive::begin(self, machine, deadline)).await
    }

    /// Extends several terms with few calls, each as [`extend`](Self::extend) does: one result for each, in their
    /// order.
    pub async fn extend_many(
        &self,
        extends: Vec<Arc<Extend>>,
        deadline: Instant,
    ) -> Vec<Result<Duration, Error>> {
        let mut batch = Batch::begin(self, extends, deadline);
        let answers = batch.answers().await;
        if !batch.is_done().await {
            self.inner.tasks.spawn(batch.finish().in_current_span());
        }
        answers
    }

    /// Resigns a leadership.
    ///
    /// # Errors
    /// [`Error::Denied`]: the caller does not lead. Any other [`Error`]: unknown; the leader may or may not have
    /// resigned.
    pub async fn resign(&self, resign: Resign, deadline: Instant) -> Result<(), Error> {
        let machine = Resigning::new(resign, Instant::now(), deadline);
        self.decide(Drive::begin(self, machine, deadline)).await
    }

    /// Returns a machine's answer; a background task does the rest of its work.
    async fn decide<M, T>(&self, mut drive: Box<Drive<M>>) -> Result<T, Error>
    where
        M: super::policy::Machine<Output = Result<T, Error>> + Send + 'static,
        T: Send + 'static,
    {
        let answer = drive.answer().await;
        if !drive.is_done().await {
            let rest = async move { drive.finish().await };
            self.inner.tasks.spawn(rest.in_current_span());
        }
        decided(answer)
    }

    /// Returns the state of an election that a quorum agrees on.
    ///
    /// # Errors
    /// [`Error`]: unknown.
    pub async fn read(&self, election: &ElectionId, deadline: Instant) -> Result<State, Error> {
        let election = Arc::new(election.clone());
        let (began, mut health_checked) = (Instant::now(), false);
        let mut tally = Reads::new(self.inner.electorate);
        let mut round = self.ask_to_read(&election, deadline);
        loop {
            match tally.verdict() {
                Verdict::Decided(state) => return Ok(state),
                Verdict::NoQuorumPossible if tally.is_unrecorded() && !health_checked => {
                    health_checked = true;
                    if !self.clone().check_health_for(began, false, deadline).await {
                        return Err(self.undecided(deadline));
                    }
                    tally = Reads::new(self.inner.electorate);
                    round = self.ask_to_read(&election, deadline);
                    continue;
                }
                Verdict::NoQuorumPossible if tally.is_forgotten() => {
                    return Err(Error::unavailable(
                        "lease nodes have restarted or were promoted, and may have forgotten a leader that still \
                         has time left: who leads is not known",
                    ));
                }
                Verdict::NoQuorumPossible => return Err(self.undecided(deadline)),
                Verdict::Open => {}
            }
            match round.next().await {
                Some((_, node, reply)) => tally.add(node, reply),
                None => return Err(self.undecided(deadline)),
            }
        }
    }

    /// Reads several elections with few calls: one result for each, in their order.
    pub async fn read_many(
        &self,
        elections: Vec<ElectionId>,
        deadline: Instant,
    ) -> Vec<Result<State, Error>> {
        let elections: Arc<[ElectionId]> = elections.into();
        let new = || Reads::new(self.inner.electorate);
        let mut tallies: Vec<_> = elections.iter().map(|_| new()).collect();
        let mut round = self.ask(Operation::Read, About::default(), deadline, |_, node| {
            let elections = Arc::clone(&elections);
            Box::pin(async move { Ok(node.read_many(&elections).await) })
        });
        let open = |tally: &Reads| matches!(tally.verdict(), Verdict::Open);
        while tallies.iter().any(open)
            && let Some((_, node, reply)) = round.next().await
        {
            let mut replies = reply.map(Vec::into_iter);
            for tally in &mut tallies {
                let reply = match &mut replies {
                    Ok(replies) => replies.next().unwrap_or_else(|| {
                        Err(NodeError::unknown(
                            "a reply to some of the reads is missing",
                        ))
                    }),
                    Err(error) => Err(error.clone()),
                };
                tally.add(node, reply);
            }
        }
        let mut states = Vec::with_capacity(tallies.len());
        for (tally, election) in tallies.into_iter().zip(elections.iter()) {
            states.push(match tally.verdict() {
                Verdict::Decided(state) => Ok(state),
                // Rare causes, such as a node without an incarnation record: a single read deals with them.
                Verdict::NoQuorumPossible if tally.is_unrecorded() || tally.is_forgotten() => {
                    self.read(election, deadline).await
                }
                Verdict::NoQuorumPossible | Verdict::Open => Err(self.undecided(deadline)),
            });
        }
        states
    }

    fn ask_to_read(&self, election: &Arc<ElectionId>, deadline: Instant) -> Round<Reading> {
        let about = About {
            election: Some(election),
            ..About::default()
        };
        self.ask(Operation::Read, about, deadline, |_, node| {
            let election = Arc::clone(election);
            Box::pin(async move { node.read(&election).await })
        })
    }

    /// Lists the leases of a kind, or of all kinds, that a quorum is known to hold, after `after`, in order of their
    /// names. A short page may have a next one, and [`Page::incomplete`] says whether a quorum may hold more.
    ///
    /// # Errors
    /// [`Error`]: fewer nodes than a quorum replied.
    pub async fn list(
        &self,
        kind: Option<&Kind>,
        after: Option<ElectionId>,
        limit: usize,
        deadline: Instant,
    ) -> Result<Page, Error> {
        let request = Arc::new((kind.cloned(), after));
        let about = About {
            kind,
            election: request.1.as_ref(),
            ..About::default()
        };
        let mut round = self.ask(Operation::List, about, deadline, |_, node| {
            let request = Arc::clone(&request);
            Box::pin(async move {
                node.list(request.0.as_ref(), request.1.as_ref(), limit)
                    .await
            })
        });
        let electorate = self.inner.electorate;
        let (mut pages, mut answered) = (Vec::new(), Nodes::NONE);
        let mut merged = None;
        while let Some((_, node, reply)) = round.next().await {
            let Ok(page) = reply else { continue };
            if let Some(cause) = &page.incomplete {
                self.inner.nodes[node].complain(&NodeError::unknown(cause));
            }
            answered.add(node);
            pages.push((node, page));
            if electorate.all(answered) {
                let all = merge(&pages, electorate, limit);
                let decided = all.unanimous && !all.undecided;
                merged = Some(all);
                if decided {
                    break;
                }
            }
        }
        let Some(merged) = merged else {
            return Err(self.undecided(deadline));
        };
        let mut page = merged.page;
        page.incomplete = merged.undecided.then(|| {
            let mut causes = pages.into_iter().filter_map(|(_, page)| page.incomplete);
            let silent = || "a lease node gave no answer".to_owned();
            causes.next().unwrap_or_else(silent)
        });
        Ok(page)
    }

    /// Lists, in order, every kind after `after` with an election that a quorum holds, and perhaps kinds without one.
    /// A short page may have a next one, and [`Kinds::incomplete`] says whether there may be more kinds.
    ///
    /// # Errors
    /// [`Error`]: fewer nodes than a quorum replied.
    pub async fn kinds(
        &self,
        after: Option<Kind>,
        limit: usize,
        deadline: Instant,
    ) -> Result<Kinds, Error> {
        let after = Arc::new(after);
        let about = About::default();
        let mut round = self.ask(Operation::Kinds, about, deadline, |_, node| {
            let after = Arc::clone(&after);
            Box::pin(async move { node.kinds(Option::as_ref(&after), limit).await })
        });
        let electorate = self.inner.electorate;
        let (mut pages, mut answered, mut whole) = (Vec::new(), Nodes::NONE, Nodes::NONE);
        while let Some((_, node, reply)) = round.next().await {
            let Ok(page) = reply else { continue };
            answered.add(node);
            match &page.incomplete {
                Some(cause) => self.inner.nodes[node].complain(&NodeError::unknown(cause)),
                None => whole.add(node),
            }
            pages.push(page);
            if electorate.all(whole) {
                break;
            }
        }
        if !electorate.all(answered) {
            return Err(self.undecided(deadline));
        }
        let page = merge_kinds(pages, limit);
        Ok(Kinds {
            incomplete: page.incomplete.filter(|_| !electorate.all(whole)),
            ..page
        })
    }

    fn undecided(&self, deadline: Instant) -> Error {
        undecided(self.inner.electorate, deadline, Instant::now())
    }

    /// Which nodes make a majority.
    pub(crate) fn electorate(&self) -> Electorate {
        self.inner.electorate
    }

    /// The nodes, in the order of their numbers.
    pub(crate) fn nodes(&self) -> Vec<Arc<dyn LeaseNode>> {
        let nodes = self.inner.nodes.iter();
        nodes.map(|node| Arc::clone(&node.node)).collect()
    }

    /// How many nodes of the first list have to reply.
    #[must_use]
    pub fn needed(&self) -> usize {
        self.inner.electorate.needed()
    }

    /// How many of the nodes that vote may fail before elections are no longer decided; [`None`] if they are not
    /// decided now. `status` is that of all nodes.
    #[must_use]
    pub fn spare(&self, status: &[NodeStatus]) -> Option<usize> {
        let mut voting = Nodes::NONE;
        for (number, node) in status.iter().enumerate() {
            if node.is_voting() {
                voting.add(number);
            }
        }
        self.inner.electorate.spare(voting)
    }

    /// Waits until every claim has an answer and every rollback is complete.
    pub async fn drain(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

/// The answer of a machine. A machine without one is at fault.
fn decided<T>(answer: Option<Result<T, Error>>) -> Result<T, Error> {
    answer.unwrap_or_else(|| {
        Err(Error::Internal(
            "the agent came to no decision: the outcome is not known".to_owned(),
        ))
    })
}

/// Why a quorum reached no decision. The cause is in the log only, as any caller may see this text.
pub(super) fn undecided(electorate: Electorate, deadline: Instant, now: Instant) -> Error {
    if now >= deadline {
        return Error::DeadlineExceeded;
    }
    let lists = match electorate.is_joint() {
        true => " of each list",
        false => "",
    };
    Error::unavailable(format!(
        "no quorum of lease nodes gave an answer ({} of {} are needed{lists}): the outcome is not known; /readyz \
         and the agent's log have the cause",
        electorate.needed(),
        electorate.old().count()
    ))
}

pub(crate) fn too_slow() -> Error {
    Error::unavailable("the lease nodes took as long as the term to answer")
}

#[cfg(test)]
mod tests {
    use std::{fmt, sync::Mutex};

    use super::observer::RetryReason;
    use super::*;
    use crate::lease::{
        Bounds, ExtendReply, Grant, Incarnation, LIST_EXAMINES, Onto, ProbeRequest, Reading,
        Repair, Settings,
        embedded::Embedded,
        policy::{Machine, Step, View},
    };

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);
    pub(super) const SETTINGS: Settings = Settings {
        retention: MINUTE,
        guard: None,
        vote: SECOND,
    };

    /// A campaign for a term of a minute.
    pub(super) fn claim() -> Claim {
        Claim {
            election: ElectionId::new("", "e").expect("valid"),
            candidate: Candidate::new("candidate", "a").expect("valid"),
            term: Term::from_millis(60_000, MINUTE).expect("valid"),
            value: Value::default(),
            waited_since: None,
            request_id: None,
            replaces: Replaces::Own,
        }
    }

    /// An unacknowledged grant for a campaign.
    pub(super) fn grant_of(claim: &Claim) -> Grant {
        Grant {
            election: claim.election.clone(),
            candidate: claim.candidate.clone(),
            token: Token::new(7).expect("in range"),
            grant_id: 1,
            term: claim.term,
            value: Value::default(),
            request_id: claim.request_id.clone(),
            repeat: true,
            elected_at: 0,
            replaces: Replaces::Own,
            bounds: Bounds {
                guard: None,
                vote: SECOND,
            },
            not_after: Instant::now() + SECOND,
        }
    }

    /// Records what it observes, but not how long calls took.
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

    impl QuorumObserver for Notes {
        fn called(&self, node: usize, operation: Operation, outcome: Called, _: Duration) {
            self.note((node, operation, outcome));
        }
        fn retried(&self, why: RetryReason) {
            self.note(why);
        }
        fn rolled_back(&self, nodes: usize) {
            self.note(("rolled back", nodes));
        }
        fn repaired(&self, nodes: usize) {
            self.note(("repaired", nodes));
        }
    }

    /// The first try of a request reached one node, and its agent died. The quorum needs both nodes, as with three
    /// nodes and one of them down.
    #[tokio::test(start_paused = true)]
    async fn what_an_agent_that_died_left_behind_does_not_split_every_retry() {
        let nodes: Vec<_> = (0..2)
            .map(|_| Arc::new(Embedded::in_memory(SETTINGS)))
            .collect();
        let claim = Claim {
            request_id: RequestId::new("try").expect("valid"),
            ..claim()
        };
        let left_behind = grant_of(&claim);
        nodes[0].grant(&left_behind).await.expect("granted");

        let notes = Arc::new(Notes::default());
        let options = Options {
            observer: notes.clone(),
            ..Options::new(Duration::from_secs(1), RestartGuard::Off, MINUTE)
        };
        let nodes = nodes.into_iter().map(|node| node as Arc<dyn LeaseNode>);
        let quorum = Quorum::new(nodes.collect(), options);
        quorum.status().await;
        let deadline = Instant::now() + Duration::from_secs(5);
        let claimed = quorum.claim(claim, deadline).await.expect("decided");
        assert!(
            matches!(claimed, Claimed::Won { token, .. } if token.get() == 7),
            "{claimed:?}"
        );
        quorum.drain().await;
        assert_eq!(notes.count(RetryReason::SplitVote), 1);
        for node in 0..2 {
            let called = |operation| notes.count((node, operation, Called::Ok));
            assert_eq!(called(Operation::Grant), 2, "{notes:?}");
            assert_eq!(called(Operation::RollBack), 1, "{notes:?}");
        }
        assert_eq!(notes.count(("rolled back", 2)), 1, "{notes:?}");
    }

    /// More than a node examines for a page, and more than one page has room for.
    #[tokio::test(start_paused = true)]
    async fn kinds_are_listed_without_a_look_at_all_their_elections() {
        let node = Arc::new(Embedded::in_memory(SETTINGS));
        let grant = grant_of(&claim());
        let many = (0..LIST_EXAMINES + 1).map(|n| ("a", n.to_string()));
        let few = ["b", "c"].map(|kind| (kind, "e".to_owned()));
        for (kind, name) in many.chain(few) {
            let election = ElectionId::new(kind, &name).expect("valid");
            let grant = Grant {
                election,
                ..grant.clone()
            };
            node.grant(&grant).await.expect("granted");
        }
        let options = Options::new(SECOND, RestartGuard::Off, MINUTE);
        let quorum = Quorum::new(vec![node], options);
        let deadline = Instant::now() + SECOND;
        let [a, b, c] = ["a", "b", "c"].map(|kind| Kind::new(kind).expect("valid"));
        for (after, limit, kinds, next) in [
            (None, 9, vec![a.clone(), b.clone(), c.clone()], None),
            (None, 2, vec![a.clone(), b.clone()], Some(b.clone())),
            (Some(b.clone()), 9, vec![c.clone()], None),
            (Some(c), 9, vec![], None),
        ] {
            let listed = quorum.kinds(after, limit, deadline).await;
            let incomplete = None;
            assert_eq!(
                listed,
                Ok(Kinds {
                    kinds,
                    next,
                    incomplete
                })
            );
        }
        // Expired leases are not listed.
        tokio::time::advance(2 * MINUTE).await;
        let deadline = Instant::now() + SECOND;
        let listed = quorum.kinds(None, 9, deadline).await;
        let all_over = Kinds {
            // The node did not examine all elections of the kind.
            kinds: vec![a],
            ..Kinds::default()
        };
        assert_eq!(listed, Ok(all_over));
    }

    /// A node that counts towards the quorum of a lease must not let another candidate continue from its own grant.
    #[tokio::test(start_paused = true)]
    async fn what_counts_is_written_under_no_other_lease() {
        let node = Embedded::in_memory(SETTINGS);
        let claim = claim();
        let unacknowledged = grant_of(&claim);
        node.grant(&unacknowledged).await.expect("granted");
        let incarnation = node.incarnation(&claim.election).expect("it has one").id;
        let leader = async || match node.read(&claim.election).await {
            Ok(Reading::Held(lease)) => lease.leader.as_str().to_owned(),
            reading => panic!("{reading:?}"),
        };
        for (onto, written) in [
            (Onto::Own, false),
            (Onto::Vacant, false),
            (Onto::Unacknowledged, true),
        ] {
            let repair = Repair {
                election: claim.election.clone(),
                lease: Lease {
                    leader: Candidate::new("candidate", "leader").expect("valid"),
                    token: Token::new(5).expect("in range"),
                    value: Value::default(),
                    elected_at: 0,
                    remaining: MINUTE,
                },
                term: claim.term,
                incarnation: incarnation.clone(),
                onto,
                bounds: unacknowledged.bounds,
                not_after: Instant::now() + MINUTE,
            };
            assert_eq!(node.repair(&repair).await, Ok(written), "{onto:?}");
            assert_eq!(leader().await, "a", "{onto:?}");
        }
        node.roll_back(&unacknowledged).await.expect("rolled back");
        assert_eq!(leader().await, "leader");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stale_token_is_told() {
        let node = Arc::new(Embedded::in_memory(SETTINGS));
        let notes = Arc::new(Notes::default());
        let options = Options {
            // Its tokens begin at 1.
            clock: Arc::new(|| SystemTime::UNIX_EPOCH),
            observer: notes.clone(),
            ..Options::new(Duration::from_secs(1), RestartGuard::Off, MINUTE)
        };
        let other = Quorum::new(
            vec![node.clone()],
            Options::new(Duration::from_secs(1), RestartGuard::Off, MINUTE),
        );
        let quorum = Quorum::new(vec![node], options);
        let deadline = Instant::now() + Duration::from_secs(5);
        for quorum in [&other, &quorum] {
            quorum.status().await;
            let claimed = quorum.claim(claim(), deadline).await;
            assert!(matches!(claimed, Ok(Claimed::Won { .. })), "{claimed:?}");
        }
        assert_eq!(notes.count(RetryReason::StaleToken), 1, "{notes:?}");
    }

    /// Never replies.
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
        async fn repair(&self, _: &Repair) -> Result<bool, NodeError> {
            std::future::pending().await
        }
        async fn resign(&self, _: &Resign) -> Result<crate::lease::ResignReply, NodeError> {
            std::future::pending().await
        }
        async fn roll_back(&self, _: &Grant) -> Result<(), NodeError> {
            std::future::pending().await
        }
        async fn read(&self, _: &ElectionId) -> Result<Reading, NodeError> {
            std::future::pending().await
        }
        async fn list(
            &self,
            _: Option<&Kind>,
            _: Option<&ElectionId>,
            _: usize,
        ) -> Result<Page, NodeError> {
            std::future::pending().await
        }
        async fn kinds(&self, _: Option<&Kind>, _: usize) -> Result<Kinds, NodeError> {
            std::future::pending().await
        }
        async fn mark(
            &self,
            _: &[crate::lease::Unrecorded],
            _: Duration,
            _: Bounds,
        ) -> Result<usize, NodeError> {
            std::future::pending().await
        }
        async fn probe(&self, _: ProbeRequest) -> Result<Probe, NodeError> {
            std::future::pending().await
        }
        fn incarnation(&self, _: &ElectionId) -> Option<Incarnation> {
            None
        }
    }

    /// Wraps an in-process node with faulty replies to grants and rollbacks.
    pub(super) struct Faulty {
        node: Embedded,
        reachable: bool,
        /// It replies to extensions when there is a permit.
        pub(super) extends: tokio::sync::Semaphore,
        rollbacks: std::sync::atomic::AtomicUsize,
    }

    impl Faulty {
        fn new(reachable: bool) -> Arc<Self> {
            Arc::new(Self {
                node: Embedded::in_memory(SETTINGS),
                reachable,
                extends: tokio::sync::Semaphore::new(1),
                rollbacks: 0.into(),
            })
        }

        /// A node that replies to extensions only when it is permitted to.
        pub(super) fn that_does_not_extend() -> Self {
            Self {
                node: Embedded::in_memory(SETTINGS),
                reachable: true,
                extends: tokio::sync::Semaphore::new(0),
                rollbacks: 0.into(),
            }
        }
    }

    #[async_trait::async_trait]
    impl LeaseNode for Faulty {
        fn name(&self) -> &str {
            "faulty"
        }
        async fn grant(&self, grant: &Grant) -> Result<crate::lease::GrantReply, NodeError> {
            match self.reachable {
                true => self.node.grant(grant).await,
                false => Err(NodeError::unknown("no answer")),
            }
        }
        async fn extend(&self, extend: &Extend) -> Result<ExtendReply, NodeError> {
            let _permit = self.extends.acquire().await;
            self.node.extend(extend).await
        }
        async fn repair(&self, repair: &Repair) -> Result<bool, NodeError> {
            self.node.repair(repair).await
        }
        async fn resign(&self, resign: &Resign) -> Result<crate::lease::ResignReply, NodeError> {
            self.node.resign(resign).await
        }
        async fn roll_back(&self, _: &Grant) -> Result<(), NodeError> {
            let before = self
                .rollbacks
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            assert!(before < 1000, "rollbacks are repeated without a pause");
            match self.reachable {
                true => std::future::pending().await,
                false => Err(NodeError::NotSent("no connection".to_owned())),
            }
        }
        async fn read(&self, election: &ElectionId) -> Result<Reading, NodeError> {
            self.node.read(election).await
        }
        async fn list(
            &self,
            kind: Option<&Kind>,
            after: Option<&ElectionId>,
            limit: usize,
        ) -> Result<Page, NodeError> {
            self.node.list(kind, after, limit).await
        }
        async fn kinds(&self, after: Option<&Kind>, limit: usize) -> Result<Kinds, NodeError> {
            self.node.kinds(after, limit).await
        }
        async fn mark(
            &self,
            unrecorded: &[crate::lease::Unrecorded],
            wait: Duration,
            bounds: Bounds,
        ) -> Result<usize, NodeError> {
            self.node.mark(unrecorded, wait, bounds).await
        }
        async fn probe(&self, request: ProbeRequest) -> Result<Probe, NodeError> {
            self.node.probe(request).await
        }
        fn incarnation(&self, election: &ElectionId) -> Option<Incarnation> {
            self.node.incarnation(election)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_fails_at_once_does_not_spin_while_another_is_slow() {
        let nodes = [Faulty::new(true), Faulty::new(false), Faulty::new(false)];
        let as_nodes = nodes.iter().cloned().map(|node| node as Arc<dyn LeaseNode>);
        let options = Options::new(SECOND, RestartGuard::Off, SECOND);
        let quorum = Quorum::new(as_nodes.collect(), options);
        quorum.status().await;
        let started = Instant::now();
        let claimed = quorum.claim(claim(), started + MINUTE).await;
        assert!(
            matches!(claimed, Err(Error::Unavailable { .. })),
            "{claimed:?}"
        );
        assert_eq!(started.elapsed(), Duration::ZERO);
        quorum.drain().await;
        for node in &nodes {
            // Rollbacks repeat after 250 ms, 500 ms and so on up to 2 s, until the granted term is over.
            let rollbacks = node.rollbacks.load(std::sync::atomic::Ordering::Relaxed);
            assert!((15..40).contains(&rollbacks), "{rollbacks}");
        }
    }

    /// Reports that it is done before it has an answer.
    struct Undecided;

    impl Machine for Undecided {
        type Output = Result<(), Error>;

        fn on(&mut self, _: Event, _: Instant, _: &impl View, _: &mut Vec<Step<Self::Output>>) {}

        fn is_done(&self) -> bool {
            true
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_decision_is_a_fault_that_no_retry_mends() {
        let options = Options::new(SECOND, RestartGuard::Off, SECOND);
        let quorum = Quorum::new(vec![Arc::new(Silent)], options);
        let drive = Drive::begin(&quorum, Undecided, Instant::now() + SECOND);
        let decided = quorum.decide(drive).await;
        assert!(matches!(decided, Err(Error::Internal(_))), "{decided:?}");
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
