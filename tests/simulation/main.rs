//! The real quorum over simulated nodes and a simulated network, in simulated time.
//!
//! A seed fixes everything: when candidates ask and through which agent, which messages are slow, lost or
//! doubled, when nodes pause and forget, and whose clock runs fast. A run checks what the agent promises
//! (see [`record`]); a failure names its seed, and `SIM_SEED=… make test-sim` replays exactly that run.
//!
//! `SIM_SEEDS` says how many seeds to run, from `SIM_FIRST` on; without it a few hundred.

#![expect(
    clippy::expect_used,
    reason = "a simulation that cannot go on should say where"
)]

mod candidate;
mod node;
mod record;

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use election_agent::{
    election::{Elections, types::ElectionId},
    lease::{
        LeaseNode,
        guard::RestartGuard,
        quorum::{Options, Quorum},
    },
};
use fastrand::Rng;
use tokio::{task::JoinSet, time::Instant};

use node::{Faults, SimNode};
use record::Record;

/// The longest term, and so the guard.
const MAX_TERM: Duration = Duration::from_secs(5);
/// How long nodes may take to answer.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a run lasts, in simulated time.
const RUN: Duration = Duration::from_secs(90);

/// What all candidates want.
fn election() -> ElectionId {
    ElectionId::new("sim", "election").expect("valid")
}

/// A wall clock; when it `steps`, back an hour, forward a minute, and out of all reason.
fn clock(mut rng: Rng, steps: bool) -> impl Fn() -> SystemTime + Send + Sync {
    let started = Instant::now();
    let range = if steps { 0..6 } else { 0..1 };
    let steps: Vec<i64> = (0..8)
        .map(|_| [0, 0, -3600, 60, -1_800_000_000, 9_000_000_000][rng.usize(range.clone())])
        .collect();
    move || {
        let elapsed = started.elapsed();
        let step = steps[(elapsed.as_secs() / 12) as usize % steps.len()];
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000) + elapsed;
        if step < 0 {
            now - Duration::from_secs(step.unsigned_abs())
        } else {
            now + Duration::from_secs(step.unsigned_abs())
        }
    }
}

/// Runs one seed; gives what was recorded.
async fn run(seed: u64) -> Record {
    // The quorum's own jitter, too.
    fastrand::seed(seed);
    let mut rng = Rng::with_seed(seed);
    let nodes: Vec<_> = (0..*rng.choice(&[1, 3, 3, 3, 5]).expect("some"))
        .map(|n| SimNode::new(n, rng.fork()))
        .collect();
    // Floors keep tokens rising while clocks step, and clocks while floors are lost: not both at once.
    let clocks_step = rng.bool();
    let agents: Vec<_> = (0..rng.usize(1..=3))
        .map(|_| {
            let nodes = nodes
                .iter()
                .map(|node| Arc::new(node.clone()) as Arc<dyn LeaseNode>);
            let mut options = Options::new(OPERATION_TIMEOUT, RestartGuard::On, MAX_TERM);
            options.clock = Arc::new(clock(rng.fork(), clocks_step));
            let quorum = Quorum::new(nodes.collect(), options);
            (Elections::new(quorum.clone(), MAX_TERM), quorum)
        })
        .collect();
    let agents = Arc::new(agents);

    // A first start without faults: the nodes are new, and every agent sees that they are marked.
    let record = Record::default();
    let first = candidate::Candidate::new("first", Arc::clone(&agents), rng.fork(), record.clone());
    first.be_elected_once_and_resign().await;
    for (_, quorum) in agents.iter() {
        quorum.status().await;
    }

    let faults = Faults::new(&mut rng, !clocks_step);
    let until = Instant::now() + RUN;
    let mut tasks = JoinSet::new();
    for node in &nodes {
        tasks.spawn(node.clone().misbehave(faults, until));
    }
    for (_, quorum) in agents.iter() {
        let quorum = quorum.clone();
        // As the agent's monitor does.
        tasks.spawn(async move {
            while Instant::now() < until {
                quorum.status().await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }
    for n in 0..rng.usize(2..=5) {
        let name = format!("c{n}");
        let candidate =
            candidate::Candidate::new(&name, Arc::clone(&agents), rng.fork(), record.clone());
        tasks.spawn(candidate.contend(until));
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no panic");
    }

    // The network is well again, and what was on its way has arrived: whatever was left behind must not keep
    // the election from being won.
    tokio::time::sleep(node::SLOWEST).await;
    let healed = Instant::now();
    let last = candidate::Candidate::new("last", agents, rng.fork(), record.clone());
    last.be_elected_once_and_resign().await;
    assert!(
        healed.elapsed() <= 2 * MAX_TERM + 2 * OPERATION_TIMEOUT,
        "vacant for {:?} although nothing fails, after\n{}",
        healed.elapsed(),
        record.history()
    );
    record
}

fn simulate(seed: u64) -> Record {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let outcome =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runtime.block_on(run(seed))));
    outcome
        .unwrap_or_else(|_| panic!("seed {seed} fails: SIM_SEED={seed} make test-sim replays it"))
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is \"{text}\": give a number")),
    )
}

#[test]
fn promises_are_kept_whatever_the_network_and_the_nodes_do() {
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = number("SIM_FIRST").unwrap_or(0);
            first..first + number("SIM_SEEDS").unwrap_or(300)
        }
    };
    let runs = seeds.end - seeds.start;
    let mut all = record::Totals::default();
    for seed in seeds {
        all.add(&simulate(seed).totals());
    }
    println!("{runs} seeds: {all}");
    assert!(
        runs < 100 || all.is_plausible(),
        "the simulation does too little: {all}"
    );
}

#[test]
fn a_seed_replays_exactly() {
    for seed in [1, 2, 3] {
        let (first, second) = (simulate(seed), simulate(seed));
        assert_eq!(first.events(), second.events(), "seed {seed}");
    }
}
