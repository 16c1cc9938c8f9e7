//! An agent: the real quorum, with settings of its own, over its own handles to all servers.

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
    election::Elections,
    lease::{
        LeaseNode,
        guard::RestartGuard,
        policy::{Electorate, Nodes},
        quorum::{Options, Quorum},
    },
};
use fastrand::Rng;
use tokio::time::{Instant, sleep, sleep_until};

use crate::{handle::Handle, record::Record, server::Server};

/// One agent. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Agent {
    pub(crate) elections: Elections,
    pub(crate) quorum: Quorum,
    pub(crate) handles: Vec<Handle>,
    /// Its nodes.
    pub(crate) servers: Vec<Server>,
    pub(crate) electorate: Electorate,
    /// The longest term that it grants.
    pub(crate) longest: Duration,
    /// How long its votes count.
    pub(crate) vote: Duration,
    pub(crate) starts: Instant,
    guard: RestartGuard,
    is_dead: Arc<AtomicBool>,
    /// Whether it has not come yet, or has gone in good order.
    is_away: Arc<AtomicBool>,
    /// For whom it was asked, and until when what it may have been granted lasts if it dies.
    asked: Arc<Mutex<BTreeMap<String, Instant>>>,
}

/// How an agent is configured.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) longest: Duration,
    pub(crate) vote: Duration,
    pub(crate) guard: RestartGuard,
    /// How far its wall clock is off, in seconds.
    pub(crate) off: i64,
    pub(crate) starts: Instant,
    /// The list of nodes that it has.
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
        Agent {
            elections: Elections::new(quorum.clone(), self.longest),
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
    /// Notes that it was asked to let somebody lead, which may last until then if it dies.
    pub(crate) fn asked(&self, name: &str, until: Instant) {
        let mut asked = self.asked.lock().expect("not poisoned");
        let known = asked.entry(name.to_owned()).or_insert(until);
        *known = until.max(*known);
    }

    /// None of its calls reaches a server any more, and what it was granted is not withdrawn.
    pub(crate) fn die(&self, record: &Record) {
        self.is_dead.store(true, Ordering::Relaxed);
        for handle in &self.handles {
            handle.cut(true);
        }
        for (name, until) in &*self.asked.lock().expect("not poisoned") {
            record.may_lead(name, *until);
        }
    }

    /// Whether it looks for no records.
    pub(crate) fn guard_is_off(&self) -> bool {
        self.guard == RestartGuard::Off
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::Relaxed)
    }

    /// It serves from now on.
    pub(crate) fn comes(&self) {
        self.is_away.store(false, Ordering::Relaxed);
    }

    /// It serves no more. What it is asked for already it does.
    pub(crate) fn goes(&self) {
        self.is_away.store(true, Ordering::Relaxed);
    }

    /// Whether it can be asked, also if nobody knows that it is dead.
    pub(crate) fn serves(&self) -> bool {
        self.starts <= Instant::now() && !self.is_away.load(Ordering::Relaxed)
    }

    /// Whether majorities of its lists can be used.
    pub(crate) async fn is_ready(&self) -> bool {
        let status = self.quorum.status().await;
        let fit = |node: &usize| status[*node].probe.is_ok();
        self.electorate
            .all(self.electorate.nodes().iter().filter(fit).collect())
    }

    /// Whether it can go on without any one of its nodes.
    pub(crate) fn spares_one(&self) -> bool {
        let nodes = self.electorate.nodes();
        nodes.iter().all(|gone| {
            let left = nodes.iter().filter(|node| *node != gone);
            self.electorate.all(left.collect())
        })
    }

    /// Looks after its nodes, as the agent's monitor does.
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

/// A wall clock that is so many seconds off, differently every 12 seconds.
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

/// Where a wall clock is, when it steps: back an hour, forward a minute, and out of all reason.
pub(crate) fn steps(rng: &mut Rng) -> Vec<i64> {
    let steps = [0, 0, -3600, 60, -1_800_000_000, 9_000_000_000];
    (0..8).map(|_| steps[rng.usize(..steps.len())]).collect()
}
