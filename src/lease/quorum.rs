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
mod extension;
mod node;
pub mod observer;
mod round;
mod tend;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{sync::oneshot, time::Instant};
use tokio_util::task::TaskTracker;

use super::{
    Lease, LeaseNode, NodeError, Over, Page, Probe, Resign,
    guard::{Markers, RestartGuard},
    merge::merge,
    tally::{Denial, Done, Reads, Resignations, Verdict, quorum},
    token::{TokenSource, WallClock},
};
use crate::{
    election::types::{Candidate, ElectionId, Kind, RequestId, Term, Token, Value},
    telemetry::trace,
};
use node::Node;
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

impl Quorum {
    /// A quorum of `nodes`, which must not be empty and must be independent of each other.
    #[must_use]
    pub fn new(nodes: Vec<Arc<dyn LeaseNode>>, options: Options) -> Self {
        Self {
            inner: Arc::new(Inner {
                nodes: nodes.into_iter().map(Node::new).collect(),
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

fn too_slow() -> Error {
    Error::unavailable("the lease nodes took as long as the term to answer")
}

#[cfg(test)]
mod tests {
    use std::{fmt, sync::Mutex};

    use super::*;
    use crate::lease::{Extend, ExtendReply, Grant, Heal, Settings, embedded::Embedded};

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
