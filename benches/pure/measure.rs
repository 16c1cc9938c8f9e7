//! Measures asynchronous calls on a single-threaded runtime, as the agent's workers have it, and in a task,
//! as connections are served.

use std::{
    future::{poll_fn, ready},
    task::Poll,
    time::{Duration, Instant},
};

use criterion::{Bencher, BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use tokio::runtime::{Builder, Runtime};

/// The number of calls that are prepared at once. Small enough for the processor's cache, and large enough
/// that reading the clock before and after them is negligible.
const BATCH: u64 = 100;

/// Creates a runtime like a worker's.
pub(crate) fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Creates a group of benchmarks of one call each.
pub(crate) fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(1));
    group
}

/// Measures consecutive calls, with the work that they leave to other tasks.
///
/// `prepare` creates the input of a call and is not measured. It gets the call's number within its batch,
/// below [`BATCH`]. `call` returns whether the response was the expected one.
pub(crate) fn calls<I, P, C, Preparing, Calling>(
    bencher: &mut Bencher<'_>,
    runtime: &Runtime,
    prepare: P,
    call: C,
) where
    I: Send + 'static,
    P: Fn(u64) -> Preparing + Clone + Send + 'static,
    C: Fn(I) -> Calling + Clone + Send + 'static,
    Preparing: Future<Output = I> + Send + 'static,
    Calling: Future<Output = bool> + Send + 'static,
{
    bencher.iter_custom(|calls| {
        let task = runtime.spawn(measured(calls, prepare.clone(), call.clone()));
        runtime.block_on(task).expect("every call is answered")
    });
}

async fn measured<I, Preparing, Calling>(
    calls: u64,
    prepare: impl Fn(u64) -> Preparing,
    call: impl Fn(I) -> Calling,
) -> Duration
where
    Preparing: Future<Output = I>,
    Calling: Future<Output = bool>,
{
    let (mut took, mut left) = (Duration::ZERO, calls);
    let mut inputs = Vec::new();
    while left > 0 {
        let batch = left.min(BATCH);
        for number in 0..batch {
            inputs.push(prepare(number).await);
        }
        let_others_run().await;
        let started = Instant::now();
        for input in inputs.drain(..) {
            assert!(call(input).await, "another answer than is measured");
            let_others_run().await;
        }
        took += started.elapsed();
        left -= batch;
    }
    took
}

/// Moves to the end of the task queue. Tokio's `yield_now` would also poll the system for events every time,
/// which a busy worker does once in many tasks.
async fn let_others_run() {
    let mut asked = false;
    poll_fn(|cx| {
        if asked {
            return Poll::Ready(());
        }
        asked = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

pub(crate) fn benches(criterion: &mut Criterion) {
    let runtime = runtime();
    group(criterion, "measuring").bench_function("nothing", |bencher| {
        calls(bencher, &runtime, |_| ready(()), |()| ready(true));
    });
}
