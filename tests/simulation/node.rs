//! A node that may be slow, unreachable, paused or forgetful.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use election_agent::{
    election::types::{ElectionId, Kind, Term},
    lease::{
        Extend, ExtendReply, Grant, GrantReply, Heal, Lease, LeaseNode, NodeError, Page, Probe,
        Resign, ResignReply, Settings, Unmarked, embedded::Embedded,
    },
};
use fastrand::Rng;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, sleep_until},
};

use crate::{MAX_TERM, OPERATION_TIMEOUT};

const SETTINGS: Settings = Settings {
    retention: Duration::from_secs(3600),
    guard: Some(MAX_TERM),
};

/// The longest that a message takes in any run.
pub(crate) const SLOWEST: Duration = Duration::from_secs(8);

/// How much goes wrong in a run; shares are of a thousand messages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Faults {
    lost: u32,
    doubled: u32,
    slow: u32,
    /// How long a slow message takes at the most.
    slowest: Duration,
    /// How often a node pauses or forgets, on average.
    every: Duration,
    /// Whether nodes forget everything when they restart.
    forgetful: bool,
}

impl Faults {
    const NONE: Self = Self {
        lost: 0,
        doubled: 0,
        slow: 0,
        slowest: Duration::ZERO,
        every: Duration::MAX,
        forgetful: false,
    };

    pub(crate) fn new(rng: &mut Rng, forgetful: bool) -> Self {
        Self {
            forgetful,
            lost: *rng.choice(&[0, 10, 50, 200]).expect("some"),
            doubled: *rng.choice(&[0, 10, 100]).expect("some"),
            slow: *rng.choice(&[0, 20, 200]).expect("some"),
            slowest: *rng
                .choice(&[Duration::from_millis(100), Duration::from_secs(2), SLOWEST])
                .expect("some"),
            every: Duration::from_secs(*rng.choice(&[10, 30, 300]).expect("some")),
        }
    }
}

/// What happens to a node.
enum Event {
    /// It restarts empty.
    Forget,
    /// It saves what it has.
    Save,
    /// It restarts with what it saved last.
    GoBack,
    /// It stands still.
    Pause(Duration),
}

/// One simulated node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct SimNode(Arc<Inner>);

struct Inner {
    name: String,
    /// Replaced when the node forgets.
    memory: Mutex<Arc<Embedded>>,
    /// What the node goes back to when it is restarted from old data.
    saved: Mutex<Option<Embedded>>,
    /// The run that the node was settled in when its last probe was answered.
    probed_run: Mutex<Option<String>>,
    rng: Mutex<Rng>,
    faults: Mutex<Faults>,
    /// Not a channel: tokio wakes those in an order of its own.
    paused_until: Mutex<Instant>,
    /// How much faster than true time the node's clock runs, or slower: a lease lasts so much less or more.
    fast: f64,
}

impl SimNode {
    pub(crate) fn new(number: usize, mut rng: Rng) -> Self {
        Self(Arc::new(Inner {
            name: format!("node {number}"),
            memory: Mutex::new(Arc::new(Embedded::in_memory(SETTINGS))),
            saved: Mutex::default(),
            probed_run: Mutex::default(),
            fast: *rng.choice(&[0.0, -0.01, 0.005, 0.01]).expect("some"),
            rng: Mutex::new(rng),
            faults: Mutex::new(Faults::NONE),
            paused_until: Mutex::new(Instant::now()),
        }))
    }

    /// Makes trouble until the time is over, and then no more.
    pub(crate) async fn misbehave(self, faults: Faults, until: Instant) {
        let node = &self.0;
        *node.faults.lock().expect("not poisoned") = faults;
        loop {
            let (wait, event) = {
                let mut rng = node.rng.lock().expect("not poisoned");
                let wait = faults.every.mul_f64(rng.f64() * 2.0);
                let event = match rng.u32(..10) {
                    0..2 if faults.forgetful => Event::Forget,
                    2..4 if faults.forgetful => Event::Save,
                    4..6 if faults.forgetful => Event::GoBack,
                    _ => Event::Pause(Duration::from_millis(rng.u64(100..12_000))),
                };
                (wait, event)
            };
            if Instant::now() + wait >= until {
                break;
            }
            sleep(wait).await;
            let mut memory = node.memory.lock().expect("not poisoned");
            let mut saved = node.saved.lock().expect("not poisoned");
            match event {
                Event::Forget => *memory = Arc::new(Embedded::in_memory(SETTINGS)),
                Event::Save => *saved = Some(memory.restored()),
                Event::GoBack => {
                    if let Some(saved) = &*saved {
                        *memory = Arc::new(saved.restored());
                    }
                }
                Event::Pause(time) => {
                    *node.paused_until.lock().expect("not poisoned") = Instant::now() + time;
                }
            }
        }
        sleep_until(until).await;
        *node.faults.lock().expect("not poisoned") = Faults::NONE;
    }

    /// Sends a request over the network. Like a command that was written to a socket, it is carried out
    /// whether or not somebody still waits for the answer.
    async fn call<T: Send + 'static, F>(
        &self,
        operation: impl Fn(Arc<Embedded>) -> F + Send + Sync + 'static,
    ) -> Result<T, NodeError>
    where
        F: Future<Output = Result<T, NodeError>> + Send,
    {
        let (answer, answered) = oneshot::channel();
        let node = Arc::clone(&self.0);
        tokio::spawn(async move {
            let faults = *node.faults.lock().expect("not poisoned");
            let copies = if node.chance(faults.doubled) { 2 } else { 1 };
            let mut answer = Some(answer);
            for _ in 0..copies {
                if node.chance(faults.lost) {
                    continue;
                }
                sleep(node.transit()).await;
                node.not_paused().await;
                let memory = Arc::clone(&node.memory.lock().expect("not poisoned"));
                let reply = operation(memory).await;
                if node.chance(faults.lost) {
                    continue;
                }
                sleep(node.transit()).await;
                if let Some(answer) = answer.take() {
                    // Whoever asked may have given up.
                    let _ = answer.send(reply);
                }
            }
            // A connection that breaks is noticed sooner or later.
            if let Some(answer) = answer {
                let broken = node.rng.lock().expect("not poisoned").u64(1..3_000);
                sleep(Duration::from_millis(broken)).await;
                let _ = answer.send(Err(NodeError::unknown("the connection broke")));
            }
        });
        answered
            .await
            .unwrap_or_else(|_| Err(NodeError::unknown("the run is over")))
    }
}

impl Inner {
    async fn not_paused(&self) {
        loop {
            let until = *self.paused_until.lock().expect("not poisoned");
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }

    fn chance(&self, of_a_thousand: u32) -> bool {
        self.rng.lock().expect("not poisoned").u32(..1000) < of_a_thousand
    }

    /// How long a message is on its way.
    fn transit(&self) -> Duration {
        let faults = *self.faults.lock().expect("not poisoned");
        let slow = self.chance(faults.slow);
        let mut rng = self.rng.lock().expect("not poisoned");
        match slow {
            true => faults.slowest.mul_f64(rng.f64()),
            false => Duration::from_micros(rng.u64(50..3_000)),
        }
    }

    fn by_my_clock(&self, term: Term) -> Term {
        let ms = term.duration().mul_f64(1.0 - self.fast).as_millis();
        Term::from_millis(i64::try_from(ms).expect("short"), 2 * MAX_TERM)
            .expect("terms are long enough")
    }
}

#[async_trait]
impl LeaseNode for SimNode {
    fn name(&self) -> &str {
        &self.0.name
    }

    async fn grant(&self, grant: &Grant) -> Result<GrantReply, NodeError> {
        let grant = Arc::new(Grant {
            term: self.0.by_my_clock(grant.term),
            ..grant.clone()
        });
        self.call(move |node| {
            let grant = Arc::clone(&grant);
            async move { node.grant(&grant).await }
        })
        .await
    }

    async fn extend(&self, extend: &Extend) -> Result<ExtendReply, NodeError> {
        let extend = Arc::new(Extend {
            term: self.0.by_my_clock(extend.term),
            ..extend.clone()
        });
        self.call(move |node| {
            let extend = Arc::clone(&extend);
            async move { node.extend(&extend).await }
        })
        .await
    }

    async fn heal(&self, heal: &Heal) -> Result<bool, NodeError> {
        let heal = Arc::new(Heal {
            term: self.0.by_my_clock(heal.term),
            ..heal.clone()
        });
        self.call(move |node| {
            let heal = Arc::clone(&heal);
            async move { node.heal(&heal).await }
        })
        .await
    }

    async fn resign(&self, resign: &Resign) -> Result<ResignReply, NodeError> {
        let resign = Arc::new(resign.clone());
        self.call(move |node| {
            let resign = Arc::clone(&resign);
            async move { node.resign(&resign).await }
        })
        .await
    }

    async fn withdraw(&self, grant: &Grant) -> Result<(), NodeError> {
        let grant = Arc::new(grant.clone());
        self.call(move |node| {
            let grant = Arc::clone(&grant);
            async move { node.withdraw(&grant).await }
        })
        .await
    }

    async fn read(&self, election: &ElectionId) -> Result<Option<Lease>, NodeError> {
        let election = Arc::new(election.clone());
        self.call(move |node| {
            let election = Arc::clone(&election);
            async move { node.read(&election).await }
        })
        .await
    }

    async fn list(
        &self,
        kind: &Kind,
        after: Option<&ElectionId>,
        limit: usize,
    ) -> Result<Page, NodeError> {
        let request = Arc::new((kind.clone(), after.cloned()));
        self.call(move |node| {
            let request = Arc::clone(&request);
            async move { node.list(&request.0, request.1.as_ref(), limit).await }
        })
        .await
    }

    async fn mark(&self, unmarked: &[Unmarked], wait: Duration) -> Result<usize, NodeError> {
        let unmarked: Arc<[_]> = unmarked.into();
        self.call(move |node| {
            let unmarked = Arc::clone(&unmarked);
            async move { node.mark(&unmarked, wait).await }
        })
        .await
    }

    async fn probe(&self) -> Result<Probe, NodeError> {
        let (probe, run) = self
            .call(|node| async move {
                let run = node.settled_run(&crate::election(), OPERATION_TIMEOUT);
                Ok((node.probe().await?, run))
            })
            .await?;
        *self.0.probed_run.lock().expect("not poisoned") = run;
        Ok(probe)
    }

    fn settled_run(&self, _election: &ElectionId, _vote: Duration) -> Option<String> {
        self.0.probed_run.lock().expect("not poisoned").clone()
    }
}
