//! The parts of a call that need no server, no socket and no Redis: a change for the worse shows here before it
//! is lost in the noise of a whole call (which `--bench rpc` measures).
//!
//! ```text
//! cargo bench --bench pure                                 # everything: a minute
//! cargo bench --bench pure -- quorum/                      # what has this in its name
//! cargo bench --bench pure -- --save-baseline before       # then change the code, and
//! cargo bench --bench pure -- --baseline before            # see what has become of each
//! ```
//!
//! Every figure is the time of one call on one thread, and `elem/s` how many that thread does in a second. What
//! a call leaves to other tasks, such as healing a node, is part of its time. Compare only what was measured
//! while the machine did nothing else. Groups build on each other:
//!
//! - [`quorum`]: what a decision costs when the nodes answer at once.
//! - [`messages`]: names, and Protocol Buffers.
//! - [`entrances`]: the same call of the domain by every way in; what is above `domain` is conversion.
//! - [`layers`]: the layers around a mux that answers at once; each line has one more than the line before.
//! - [`policies`]: may somebody do something?
//! - [`metrics`]: counting an answer, and writing `/metrics`.
//!
//! `measuring/nothing` is what measuring adds to every figure of `quorum`, `entrances` and `layers`.

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

/// As the agent has it.
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
