//! The real quorum over simulated nodes and a simulated network, in simulated time.
//!
//! A seed determines everything: when candidates send requests and through which agent, which messages are
//! slow, lost or doubled, when nodes pause and forget, whose clock runs fast or is set back or forward, which hints are
//! lost, late or forged, and when agents change from one list of nodes to another. A run checks the guarantees of the
//! agent (see [`record`]). A failure names its seed, and `SIM_SEED=… make test-sim` replays exactly that run.
//!
//! `SIM_SEEDS` is the number of seeds to run, starting at `SIM_FIRST`; 100 by default.

#![expect(
    clippy::expect_used,
    reason = "a simulation that cannot go on should say where"
)]

mod agent;
mod candidate;
mod change;
mod faults;
mod handle;
mod hints;
mod lists;
mod observer;
mod record;
mod rules;
mod run;
mod scenario;
mod server;
mod steady;

use std::sync::atomic::{AtomicU64, Ordering};

use election_core::types::ElectionId;
use record::{Record, Totals};

/// The election of all candidates.
fn election() -> ElectionId {
    ElectionId::new("sim", "election").expect("valid")
}

/// Runs a future in simulated time.
fn in_simulated_time<T>(what: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(what)
}

fn simulate(seed: u64) -> Record {
    let outcome = std::panic::catch_unwind(|| in_simulated_time(run::run(seed)));
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
            first..first + number("SIM_SEEDS").unwrap_or(100)
        }
    };
    let next = AtomicU64::new(seeds.start);
    let work = || {
        let mut totals = Totals::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return totals;
            }
            totals.add(&simulate(seed).totals());
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut all = Totals::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            match worker.join() {
                Ok(totals) => all.add(&totals),
                Err(panic) => {
                    next.store(seeds.end, Ordering::Relaxed);
                    std::panic::resume_unwind(panic);
                }
            }
        }
    });
    let runs = seeds.end - seeds.start;
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
