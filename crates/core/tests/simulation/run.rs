//! A run: agents with different settings, faults of servers and of the network, and candidates that contend.
//! Then the faults end, and no effects of them may remain.

use std::{sync::Arc, time::Duration};

use election_core::lease::{LeaseNode as _, Reading, State, guard::RestartGuard};
use fastrand::Rng;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    agent::{Agent, Plan, clock, steps},
    candidate::{Agents, Candidate},
    change::{Change, Has},
    election,
    faults::{Event, Faults, SLOWEST},
    observer::observe,
    record::Record,
    server::{RETENTION, Server},
    steady::Steady,
};

/// The duration of a run, in simulated time.
pub(crate) const RUN: Duration = Duration::from_secs(60);
/// The longest term of all agents, and so the longest guard.
pub(crate) const LONGEST_TERM: Duration = Duration::from_secs(6);
/// The longest vote lifetime of all agents.
const LONGEST_VOTE: Duration = Duration::from_secs(2);

/// The constants of a run.
#[derive(Debug, Clone, Copy)]
struct World {
    /// Whether servers lose memory. High-water marks keep tokens rising while clocks step, and clocks keep
    /// them rising while high-water marks are lost: a run does not have both.
    forgetful: bool,
    /// Whether the restart guard is off on all agents. An agent without a guard does not register its longest
    /// term, so that other agents would mistake its leases for those of a clock that was set back.
    off: bool,
    /// Whether messages are lost and slow from the beginning.
    bad_start: bool,
    faults: Faults,
    /// When the clocks of servers are set forward.
    forward: Forward,
    /// Whether agents change from one list of servers to another.
    change: Option<Change>,
}

/// When the clock of a server may be set forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Forward {
    Never,
    /// While the server has no lease, so that none is shortened.
    BetweenTerms,
    /// At any time: two candidates may then lead, and their tokens identify the later one.
    AnyTime,
}

impl World {
    /// Draws from separate random numbers, so that these decisions do not change the others of a seed.
    fn with_more(self, rng: &mut Rng) -> Self {
        let forward = match rng.u32(..10) {
            0 if !self.forgetful => Forward::BetweenTerms,
            1 => Forward::AnyTime,
            _ => Forward::Never,
        };
        // Without a guard, nothing records which lists are in use.
        let changes = !self.off && forward == Forward::Never && rng.u32(..4) == 0;
        let mut faults = self.faults;
        faults.set_back &= !changes;
        Self {
            faults,
            forward,
            // The first agent probes its servers only once before it receives requests.
            bad_start: self.bad_start && !changes,
            change: changes.then(|| Change::new(rng)),
            ..self
        }
    }
}

/// Runs one seed, and returns its record.
pub(crate) async fn run(seed: u64) -> Record {
    // Also seeds the quorum's own jitter.
    fastrand::seed(seed);
    let mut rng = Rng::with_seed(seed);
    let forgetful = rng.bool();
    let mut world = World {
        forgetful,
        off: !forgetful && rng.u32(..6) == 0,
        bad_start: rng.u32(..4) == 0,
        faults: Faults::new(&mut rng, forgetful),
        forward: Forward::Never,
        change: None,
    };
    // Without a guard, a lease has no time limit if its server's clock was set back.
    world.faults.set_back &= !world.off;
    let mut more = Rng::with_seed(!seed);
    let world = world.with_more(&mut more);
    let count = *rng.choice(&[1, 3, 3, 3, 5]).expect("some");
    let count = world.change.map_or(count, |change| change.nodes);
    let mut fastest = 0.0_f64;
    let servers: Vec<_> = (0..count)
        .map(|n| {
            let fast: f64 = *rng.choice(&[0.0, -0.01, 0.005, 0.01]).expect("some");
            fastest = fastest.max(fast);
            let guard = (!world.off).then_some(LONGEST_TERM);
            Server::new(&format!("node {n}"), guard, fast, rng.fork())
        })
        .collect();
    let has = match world.change {
        Some(change) => change.generations().into_iter().map(Some).collect(),
        None => vec![None; rng.usize(1..=4)],
    };
    let agents: Agents = Arc::new(
        has.into_iter()
            .enumerate()
            .map(|(n, has)| agent(&mut rng, n, &servers, world, has))
            .collect(),
    );
    let record = match world.forward {
        Forward::AnyTime => Record::of_tokens_alone(),
        Forward::Never | Forward::BetweenTerms => Record::default(),
    };
    record.note(&format!("{count} servers, {world:?}"));
    for agent in agents.iter() {
        record.note(&format!("an agent: {agent:?}"));
    }
    let mut monitors = JoinSet::new();
    for agent in agents.iter() {
        monitors.spawn(agent.clone().monitor(Instant::now() + 20 * RUN));
    }
    start(&mut rng, &servers, &agents, &record, world).await;

    let until = Instant::now() + RUN;
    let mut tasks = JoinSet::new();
    // Only every fourth run has observers. While the list changes, they would also observe agents of a later generation
    // that do not serve yet.
    if seed.is_multiple_of(4) && world.change.is_none() {
        for (n, agent) in agents.iter().enumerate() {
            let (agent, of_kind, record) = (agent.clone(), n % 2 == 1, record.clone());
            tasks.spawn(observe(agent, of_kind, until, record));
        }
    }
    for server in &servers {
        tasks.spawn(
            server
                .clone()
                .misbehave(world.faults, until, record.clone()),
        );
    }
    if world.forward != Forward::Never {
        for server in &servers {
            let (server, record, rng) = (server.clone(), record.clone(), more.fork());
            tasks.spawn(sets_forward(server, world.forward, rng, record, until));
        }
    }
    if let Some(change) = world.change {
        let agents = agents.to_vec();
        tasks.spawn(change.goes_on(agents, more.fork(), record.clone(), until));
    }
    // At least one agent of each generation survives.
    let generation = world.change.map_or(agents.len(), |change| change.agents);
    for (n, agent) in agents.iter().enumerate().skip(1) {
        if n % generation == 0 {
            continue;
        }
        if rng.u32(..4) == 0 {
            let (agent, record) = (agent.clone(), record.clone());
            let dies = agent.starts + RUN.mul_f64(rng.f64());
            tasks.spawn(async move {
                sleep_until(dies.min(until)).await;
                record.note("an agent dies");
                agent.die(&record);
            });
        }
    }
    if world.forgetful && rng.u32(..3) == 0 {
        let at = Instant::now() + RUN.mul_f64(rng.f64());
        let event = *rng
            .choice(&[
                Event::Forget,
                Event::GoBack(0),
                Event::GoBack(2),
                Event::Restart,
            ])
            .expect("some");
        let (servers, noted) = (servers.clone(), record.clone());
        tasks.spawn(async move {
            sleep_until(at).await;
            noted.note(&format!("all servers: {event:?}"));
            for server in &servers {
                server.happens(event);
            }
        });
    }
    for n in 0..rng.usize(2..=5) {
        let name = format!("c{n}");
        let candidate = Candidate::new(&name, Arc::clone(&agents), rng.fork(), record.clone());
        // A candidate's clock and those of servers and agents differ by less than 1 %.
        let slow = *more.choice(&[-0.01, 0.0, 0.01 - fastest]).expect("some");
        tasks.spawn(candidate.with_clock(1.0 - slow).contend(until));
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            std::panic::resume_unwind(error.into_panic());
        }
    }

    // Waits until everything in transit has arrived.
    sleep(LONGEST_VOTE + SLOWEST + Duration::from_millis(500)).await;
    for agent in agents.iter() {
        agent.keeps_nobody_waiting(&record);
    }
    let alive = ready(&agents, &record, world).await;
    nothing_is_left(&alive, &record, &mut rng, world).await;
    if alive.iter().all(Agent::spares_one) {
        let clocks_step = !world.forgetful || world.forward != Forward::Never;
        let steady = Steady::new(&mut rng, &alive, &record, clocks_step);
        steady.keeps_its_lease_everywhere().await;
    }
    record
}

/// Returns the agents that accept requests. While the list is being changed, servers may refuse agents with
/// the next list. The refusal ends a guard's time after they have read the last message of an agent with both
/// lists, which a paused server reads late. The agents remember the refusal for the same time again.
async fn ready(agents: &Agents, record: &Record, world: World) -> Agents {
    let serving = || {
        agents
            .iter()
            .filter(|agent| !agent.is_dead() && agent.serves())
    };
    if world.change.is_none() {
        return Arc::new(serving().cloned().collect());
    }
    let gives_up = Instant::now() + 2 * LONGEST_TERM + LONGEST_VOTE;
    loop {
        let mut ready = Vec::new();
        for agent in serving() {
            if agent.is_ready().await {
                ready.push(agent.clone());
            }
        }
        if !ready.is_empty() {
            return Arc::new(ready);
        }
        if Instant::now() >= gives_up {
            for agent in serving() {
                record.note(&format!("{:?}", agent.quorum.status().await));
            }
            panic!(
                "no agent is ready although nothing fails, after\n{}",
                record.history()
            );
        }
        sleep(Duration::from_millis(300)).await;
    }
}

/// Sets a server's clock forward occasionally.
async fn sets_forward(server: Server, when: Forward, mut rng: Rng, record: Record, until: Instant) {
    // A larger step would exceed the retention: the server would forget accepted tokens while agents' clocks
    // step.
    let mut left = RETENTION.as_millis() as i64 / 2;
    loop {
        let wait = Duration::from_secs(20).mul_f64(rng.f64());
        let by = *rng
            .choice(&[500, 3_000, 60_000, 30 * 60_000])
            .expect("some");
        if Instant::now() + wait >= until {
            return;
        }
        sleep(wait).await;
        if by <= left && (when == Forward::AnyTime || leader_at(&server).await.is_none()) {
            left -= by;
            record.note(&format!("{}: its clock is {by} ms ahead", server.name()));
            server.set_clock(by);
        }
    }
}

fn agent(
    rng: &mut Rng,
    number: usize,
    servers: &[Server],
    world: World,
    has: Option<Has>,
) -> Agent {
    let late = match has {
        Some(has) => has != Has::Old,
        None => number > 0 && rng.u32(..3) == 0,
    };
    let starts = match late && has.is_none() {
        true => Instant::now() + RUN.mul_f64(rng.f64() * 0.8),
        false => Instant::now(),
    };
    let guard = match () {
        // A late agent has never seen a record, and might treat servers that have all forgotten as new.
        () if late && world.forgetful => RestartGuard::Strict,
        () if world.off => RestartGuard::Off,
        () => *rng
            .choice(&[RestartGuard::On, RestartGuard::On, RestartGuard::Strict])
            .expect("some"),
    };
    // The year 2199, and 1970.
    let off = *rng
        .choice(&[0, 0, 0, 5_400_000_000, -1_799_000_000])
        .expect("some");
    let plan = Plan {
        guard,
        starts,
        // If clocks are set back, tokens come from the servers' clocks.
        off: if world.faults.set_back { 0 } else { off },
        ..Plan::new(
            Duration::from_millis(rng.u64(1_100..=LONGEST_TERM.as_millis() as u64)),
            Duration::from_millis(rng.u64(200..=LONGEST_VOTE.as_millis() as u64)),
        )
    };
    let plan_clock = match world.forgetful {
        true => vec![plan.off],
        false => steps(rng),
    };
    // New nodes know no tokens of elections without a request since the change began.
    let plan_clock = has.map_or(plan_clock, |_| vec![0]);
    let Some((change, has)) = world.change.zip(has) else {
        return plan.agent_with_clock(servers, clock(plan_clock));
    };
    let place = change.place(has);
    let plan = Plan {
        list: Some(place.list),
        ..plan
    };
    let agent = plan.agent_of(&servers[place.nodes], place.electorate, clock(plan_clock));
    if number >= change.agents {
        agent.goes();
    }
    agent
}

/// The first start: the nodes are new, and every agent that is present sees that they are marked.
async fn start(rng: &mut Rng, servers: &[Server], agents: &Agents, record: &Record, world: World) {
    if world.bad_start {
        for server in servers {
            server.set_faults(world.faults);
            server.pause(Duration::from_millis(rng.u64(..4_000)));
        }
    }
    let first = Candidate::new("first", Arc::clone(agents), rng.fork(), record.clone());
    first.be_elected_once_and_resign().await;
    for agent in agents.iter().filter(|agent| agent.serves()) {
        loop {
            let status = agent.quorum.status().await;
            let mut probes = status.iter().filter_map(|node| node.probe.as_ref().ok());
            if probes.any(|probe| probe.guard.is_some()) || agent.guard_is_off() {
                break;
            }
        }
    }
}

/// The network works again. Only candidates with a request or grant in force are reported as leaders, and no
/// leftover keeps the election from being won.
async fn nothing_is_left(alive: &Agents, record: &Record, rng: &mut Rng, world: World) {
    for agent in alive.iter() {
        let deadline = Instant::now() + Duration::from_secs(3);
        let read = agent.quorum.read(&election(), deadline).await;
        // A lease outlasts its term if the clock was set back.
        if let Ok(State::Held(lease)) = read
            && !world.faults.set_back
        {
            record.said_to_lead(lease.leader.as_str());
        }
    }
    let peace = Instant::now();
    let last = Candidate::new("last", Arc::clone(alive), rng.fork(), record.clone());
    last.be_elected_once_and_resign().await;
    let bound = 2 * LONGEST_TERM + 2 * LONGEST_VOTE;
    assert!(
        peace.elapsed() <= bound,
        "vacant for {:?} although nothing fails, after\n{}",
        peace.elapsed(),
        record.history()
    );
}

/// The leader that a server reports.
pub(crate) async fn leader_at(server: &Server) -> Option<String> {
    match server.memory().read(&election()).await {
        Ok(Reading::Held(lease)) => Some(lease.leader.as_str().to_owned()),
        _ => None,
    }
}
