//! An agent: the real quorum, with its own settings, over its own handles to all servers.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use election_core::{
    board::{self, Board, Counts},
    election::Elections,
    lease::{
        LeaseNode,
        guard::RestartGuard,
        policy::{Electorate, Nodes},
        quorum::{Options, Quorum},
    },
};
use fastrand::Rng;
use tokio::{
    runtime,
    time::{Instant, sleep, sleep_until},
};

use crate::{handle::Handle, record::Record, server::Server};

/// How long a lease granted after a wait is stored until its first extension, plus 1 % of the wait.
pub(crate) const PROVISIONAL: Duration = Duration::from_millis(1_200);

/// One agent. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Agent {
    pub(crate) elections: Elections,
    pub(crate) board: Board,
    pub(crate) quorum: Quorum,
    pub(crate) handles: Vec<Handle>,
    /// The nodes of this agent.
    pub(crate) servers: Vec<Server>,
    pub(crate) electorate: Electorate,
    /// The longest term that it grants.
    pub(crate) longest: Duration,
    /// Its vote lifetime.
    pub(crate) vote: Duration,
    pub(crate) starts: Instant,
    guard: RestartGuard,
    is_dead: Arc<AtomicBool>,
    /// Whether it has not started yet, or has shut down in an orderly way.
    is_away: Arc<AtomicBool>,
    /// The candidates that sent it requests, and until when their possible grants last if it dies.
    asked: Arc<Mutex<BTreeMap<String, Instant>>>,
}

/// The configuration of an agent.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) longest: Duration,
    pub(crate) vote: Duration,
    pub(crate) guard: RestartGuard,
    /// The error of its wall clock, in seconds.
    pub(crate) off: i64,
    pub(crate) starts: Instant,
    /// The name of its list of nodes.
    pub(crate) list: Option<String>,
    /// Whether the nodes have clocks of their own.
    pub(crate) own_clocks: bool,
}

impl Plan {
    /// A plan with the settings of most scenarios.
    pub(crate) fn new(longest: Duration, vote: Duration) -> Self {
        Self {
            longest,
            vote,
            guard: RestartGuard::On,
            off: 0,
            starts: Instant::now(),
            list: None,
            own_clocks: true,
        }
    }

    pub(crate) fn agent(&self, servers: &[Server]) -> Agent {
        let off = self.off;
        self.agent_with_clock(servers, clock(vec![off]))
    }

    pub(crate) fn agent_with_clock(
        &self,
        servers: &[Server],
        clock: impl Fn() -> SystemTime + Send + Sync + 'static,
    ) -> Agent {
        let electorate = Electorate::of(Nodes::first(servers.len()));
        self.agent_of(servers, electorate, clock)
    }

    pub(crate) fn agent_of(
        &self,
        servers: &[Server],
        electorate: Electorate,
        clock: impl Fn() -> SystemTime + Send + Sync + 'static,
    ) -> Agent {
        let handles: Vec<_> = servers
            .iter()
            .map(|server| Handle::new(server, self.vote, self.list.as_deref(), self.own_clocks))
            .collect();
        let nodes = handles.iter().cloned();
        let nodes = nodes.map(|handle| Arc::new(handle) as Arc<dyn LeaseNode>);
        let mut options = Options::new(self.vote, self.guard, self.longest);
        options.clock = Arc::new(clock);
        let quorum = Quorum::of(nodes.collect(), electorate, options);
        let elections = Elections::new(quorum.clone(), self.longest);
        let settings = board::Settings {
            provisional_term: PROVISIONAL,
            max_wait: Duration::from_secs(60),
        };
        let board = Board::new(
            elections.clone(),
            settings,
            runtime::Handle::current(),
            Arc::new(board::NoopObserver),
        );
        Agent {
            elections,
            board,
            quorum,
            handles,
            servers: servers.to_vec(),
            electorate,
            longest: self.longest,
            vote: self.vote,
            starts: self.starts,
            guard: self.guard,
            is_dead: Arc::default(),
            is_away: Arc::default(),
            asked: Arc::default(),
        }
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent")
            .field("longest", &self.longest)
            .field("vote", &self.vote)
            .field("guard", &self.guard)
            .field(
                "starts_in",
                &(self.starts.saturating_duration_since(Instant::now())),
            )
            .finish_non_exhaustive()
    }
}

impl Agent {
    /// Records that it received a request of a candidate, whose effect lasts until then if the agent dies.
    pub(crate) fn asked(&self, name: &str, until: Instant) {
        let mut asked = self.asked.lock().expect("not poisoned");
        let known = asked.entry(name.to_owned()).or_insert(until);
        *known = until.max(*known);
    }

    /// Stops all its calls to servers. Grants that it obtained are not rolled back.
    pub(crate) fn die(&self, record: &Record) {
        self.is_dead.store(true, Ordering::Relaxed);
        for handle in &self.handles {
            handle.cut(true);
        }
        for (name, until) in &*self.asked.lock().expect("not poisoned") {
            record.may_lead(name, *until);
        }
    }

    /// Asserts that its board keeps nothing for candidates that have gone.
    pub(crate) fn keeps_nobody_waiting(&self, record: &Record) {
        let Counts {
            elections,
            timers,
            waiters,
            subscriptions,
            running,
            ..
        } = self.board.counts();
        assert_eq!(
            (elections, timers, waiters, subscriptions, running),
            (0, 0, 0, 0, false),
            "the board is not empty although nobody waits or observes, after\n{}",
            record.history()
        );
    }

    /// Returns whether its restart guard is off, so that it reads no incarnation records.
    pub(crate) fn guard_is_off(&self) -> bool {
        self.guard == RestartGuard::Off
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::Relaxed)
    }

    /// Starts to serve.
    pub(crate) fn comes(&self) {
        self.is_away.store(false, Ordering::Relaxed);
    }

    /// Stops serving. Requests that it has already accepted continue.
    pub(crate) fn goes(&self) {
        self.is_away.store(true, Ordering::Relaxed);
    }

    /// Returns whether callers can send it requests. True for a dead agent, too, because callers cannot know.
    pub(crate) fn serves(&self) -> bool {
        self.starts <= Instant::now() && !self.is_away.load(Ordering::Relaxed)
    }

    /// Returns whether majorities of all its lists are available.
    pub(crate) async fn is_ready(&self) -> bool {
        let status = self.quorum.status().await;
        let fit = |node: &usize| status[*node].probe.is_ok();
        self.electorate
            .all(self.electorate.nodes().iter().filter(fit).collect())
    }

    /// Returns whether it has a majority without any one of its nodes.
    pub(crate) fn spares_one(&self) -> bool {
        let nodes = self.electorate.nodes();
        nodes.iter().all(|gone| {
            let left = nodes.iter().filter(|node| *node != gone);
            self.electorate.all(left.collect())
        })
    }

    /// Checks the health of its nodes, as the agent's monitor does.
    pub(crate) async fn monitor(self, until: Instant) {
        sleep_until(self.starts).await;
        while Instant::now() < until {
            if self.serves() {
                self.quorum.status().await;
            }
            sleep(Duration::from_secs(1)).await;
        }
    }
}

/// A wall clock with an error in seconds that changes every 12 seconds.
pub(crate) fn clock(off: Vec<i64>) -> impl Fn() -> SystemTime + Send + Sync {
    let started = Instant::now();
    move || {
        let elapsed = started.elapsed();
        let off = off[(elapsed.as_secs() / 12) as usize % off.len()];
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000) + elapsed;
        match off < 0 {
            true => now - Duration::from_secs(off.unsigned_abs()),
            false => now + Duration::from_secs(off.unsigned_abs()),
        }
    }
}

/// The errors of a wall clock that steps: back an hour, forward a minute, and far out of range.
pub(crate) fn steps(rng: &mut Rng) -> Vec<i64> {
    let steps = [0, 0, -3600, 60, -1_800_000_000, 9_000_000_000];
    (0..8).map(|_| steps[rng.usize(..steps.len())]).collect()
}
