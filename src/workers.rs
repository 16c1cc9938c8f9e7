//! The threads that serve connections.
//!
//! Each worker has its own runtime. A connection and all work for its requests stay on one worker. A reply
//! from a lease node thus wakes no other thread, and concurrent requests to the same lease node go out in one
//! write. docs/PERFORMANCE.md has the savings over one runtime with many threads.
//!
//! A single accept loop distributes the connections, instead of the system (SO_REUSEPORT). gRPC connections
//! are few and long-lived, so the system's hash of addresses would leave some workers without any. In
//! addition, a second agent that is given the same port by mistake still gets an error.

use std::{
    cell::Cell,
    io,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use election_redis::Askers;
use tokio::runtime::{Builder, Handle};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

thread_local! {
    static NUMBER: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The number of the worker that owns the current thread, from 0; `None` on any other thread.
#[must_use]
pub fn number() -> Option<usize> {
    NUMBER.get()
}

/// The threads that serve connections. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Workers {
    workers: Arc<[Worker]>,
    background: Handle,
}

#[derive(Debug)]
struct Worker {
    runtime: Handle,
    /// How many connections this worker serves.
    serves: Arc<AtomicUsize>,
}

impl Worker {
    fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            serves: Arc::default(),
        }
    }
}

impl Workers {
    /// Starts `count` threads, which end when the guard is dropped. The current runtime becomes the
    /// background runtime.
    ///
    /// # Errors
    /// Returns the error of the system if the process can have no more threads or files.
    pub fn start(count: NonZeroUsize) -> io::Result<(Self, DropGuard)> {
        let stop = CancellationToken::new();
        // If a thread cannot be started, dropping the guard ends those that were.
        let guard = stop.clone().drop_guard();
        let started = (0..count.get()).map(|number| start(number, stop.clone()));
        let workers = started.collect::<io::Result<_>>()?;
        let started = Self {
            workers,
            background: Handle::current(),
        };
        Ok((started, guard))
    }

    /// Uses the current runtime as the only worker.
    #[must_use]
    pub fn here() -> Self {
        Self {
            workers: [Worker::new(Handle::current())].into(),
            background: Handle::current(),
        }
    }

    /// The background runtime.
    pub fn background(&self) -> &Handle {
        &self.background
    }

    /// The runtimes that send requests to lease nodes: those of the workers, in the order of their
    /// [`number`]s, and the background runtime.
    #[must_use]
    pub fn askers(&self) -> Askers {
        let workers = self.workers.iter();
        Askers {
            serving: workers.map(|worker| worker.runtime.clone()).collect(),
            background: self.background.clone(),
            number,
        }
    }

    /// Serves a connection on the worker that serves the fewest.
    pub fn serve(
        &self,
        connections: &TaskTracker,
        serving: impl Future<Output = ()> + Send + 'static,
    ) {
        let serves = |worker: &&Worker| worker.serves.load(Ordering::Relaxed);
        let Some(worker) = self.workers.iter().min_by_key(serves) else {
            return;
        };
        let share = Share::of(&worker.serves);
        let serving = async move {
            let _share = share;
            serving.await;
        };
        connections.spawn_on(serving, &worker.runtime);
    }
}

fn start(number: usize, stop: CancellationToken) -> io::Result<Worker> {
    let (runtime, started) = mpsc::channel();
    let work = move || {
        NUMBER.set(Some(number));
        // The starting thread waits for this result.
        match Builder::new_current_thread().enable_all().build() {
            Ok(built) => {
                let _ = runtime.send(Ok(built.handle().clone()));
                built.block_on(stop.cancelled());
            }
            Err(error) => drop(runtime.send(Err(error))),
        }
    };
    let name = format!("worker-{number}");
    thread::Builder::new().name(name).spawn(work)?;
    let runtime = started.recv().map_err(io::Error::other)??;
    Ok(Worker::new(runtime))
}

/// Counts a connection of a worker until it is dropped.
struct Share {
    serves: Arc<AtomicUsize>,
}

impl Share {
    fn of(serves: &Arc<AtomicUsize>) -> Self {
        serves.fetch_add(1, Ordering::Relaxed);
        Self {
            serves: Arc::clone(serves),
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.serves.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    #[tokio::test]
    async fn connections_are_spread_evenly_and_stay_on_their_worker() {
        let three = NonZeroUsize::new(3).expect("not zero");
        let (workers, guard) = Workers::start(three).expect("threads");
        let connections = TaskTracker::new();
        let (served, mut serving) = unbounded_channel();
        let mut serve = async |ends: CancellationToken| {
            let served = served.clone();
            workers.serve(&connections, async move {
                let first = number().expect("a worker's thread");
                let name = thread::current().name().map(ToOwned::to_owned);
                assert_eq!(name, Some(format!("worker-{first}")));
                served.send(first).expect("waited for");
                ends.cancelled().await;
            });
            serving.recv().await.expect("serves")
        };
        let forever = CancellationToken::new();
        let mut on = Vec::new();
        for _ in 0..6 {
            on.push(serve(forever.clone()).await);
        }
        on.sort_unstable();
        assert_eq!(on, [0, 0, 1, 1, 2, 2]);

        // After a connection ends, its worker gets the next one.
        let ends = CancellationToken::new();
        let worker = serve(ends.clone()).await;
        for _ in 0..2 {
            serve(forever.clone()).await;
        }
        ends.cancel();
        while connections.len() > 8 {
            tokio::task::yield_now().await;
        }
        assert_eq!(serve(forever.clone()).await, worker);

        // Dropping the guard also ends the pending work of a worker.
        workers.serve(&connections, pending());
        drop(guard);
        connections.close();
        connections.wait().await;
    }
}
