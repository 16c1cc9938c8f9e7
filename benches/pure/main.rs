//! Benchmarks the parts of a call that need no server, no socket and no Redis. A regression shows here even
//! if the noise of a whole call (which `--bench rpc` measures) hides it.
//!
//! ```text
//! cargo bench --bench pure                                 # everything: a minute
//! cargo bench --bench pure -- quorum/                      # only benchmarks with this in their name
//! cargo bench --bench pure -- --save-baseline before       # before a change of the code
//! cargo bench --bench pure -- --baseline before            # after it: compares each benchmark
//! ```
//!
//! Every figure is the time of one call on one thread; `elem/s` is the number of calls that this thread
//! completes in a second. Work that a call leaves to other tasks, such as the repair of a node, is part of
//! its time. Compare only figures that were measured on an otherwise idle machine. Groups build on each
//! other:
//!
//! - [`quorum`]: the cost of a decision when the nodes reply at once.
//! - [`messages`]: names, and Protocol Buffers.
//! - [`entrances`]: the same call of the domain through every entrance; the time above `domain` is
//!   conversion.
//! - [`layers`]: the layers around a mux that responds at once; each line has one more than the line before.
//! - [`policies`]: the authorization of a caller.
//! - [`metrics`]: counting a response, and writing `/metrics`.
//!
//! `measuring/nothing` is the overhead of the measurement in every figure of `quorum`, `entrances` and
//! `layers`.

#![expect(
    clippy::expect_used,
    reason = "a benchmark that cannot go on should say where"
)]

mod entrances;
mod layers;
mod measure;
mod messages;
mod metrics;
mod policies;
mod quorum;
mod requests;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use tikv_jemallocator::Jemalloc;

/// The allocator of the agent.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn short() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(50)
        .nresamples(10_000)
}

criterion_group! {
    name = benches;
    config = short();
    targets = measure::benches, quorum::benches, messages::benches, entrances::benches, layers::benches,
        policies::benches, metrics::benches
}
criterion_main!(benches);
