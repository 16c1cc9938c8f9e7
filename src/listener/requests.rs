//! The requests of one connection: how many are under way, and since when there is none.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep, sleep_until};

/// The requests of one connection.
#[derive(Debug, Clone)]
pub(super) struct Requests {
    counted: Arc<Counted>,
}

#[derive(Debug)]
struct Counted {
    under_way: AtomicUsize,
    /// When the last one ended.
    ended: Mutex<Instant>,
}

impl Counted {
    fn ended(&self) -> MutexGuard<'_, Instant> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            counted: Arc::new(Counted {
                under_way: AtomicUsize::new(0),
                ended: Mutex::new(Instant::now()),
            }),
        }
    }
}

impl Requests {
    /// Counts a request until its answer has been sent whole.
    pub(super) fn begin(&self) -> UnderWay {
        self.counted.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay(self.clone())
    }

    /// Returns when there has been no request for this long, now or earlier.
    pub(super) async fn idle_for(&self, limit: Option<Duration>) {
        let Some(limit) = limit else {
            return std::future::pending().await;
        };
        loop {
            let until = *self.counted.ended() + limit;
            if self.counted.under_way.load(Ordering::Relaxed) > 0 {
                sleep(limit).await;
            } else if until <= Instant::now() {
                return;
            } else {
                sleep_until(until).await;
            }
        }
    }

    /// Returns when there is no request for this long from now on.
    pub(super) async fn none_for(&self, limit: Duration) {
        *self.counted.ended() = Instant::now();
        self.idle_for(Some(limit)).await;
    }
}

/// A request whose answer has not been sent whole.
#[derive(Debug)]
pub(super) struct UnderWay(Requests);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let counted = &self.0.counted;
        *counted.ended() = Instant::now();
        counted.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}
