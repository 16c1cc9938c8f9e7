//! Tracks the requests of one connection: how many are in progress, since when there is none, and whether the next
//! reply over HTTP/1.1 is the last.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::Version;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep, sleep_until};

/// The requests of one connection. Cheap to clone; clones share the state.
#[derive(Debug, Clone)]
pub(super) struct Requests {
    counted: Arc<Counted>,
}

#[derive(Debug)]
struct Counted {
    /// Whether requests use HTTP/1, which has no separate message to announce the end of a connection.
    over_http_1: AtomicBool,
    /// Whether replies announce the end.
    ending: AtomicBool,
    under_way: AtomicUsize,
    /// When the last request ended.
    ended: Mutex<Instant>,
}

impl Counted {
    fn ended(&self) -> MutexGuard<'_, Instant> {
        self.ended.lock()
    }
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            counted: Arc::new(Counted {
                over_http_1: AtomicBool::new(false),
                ending: AtomicBool::new(false),
                under_way: AtomicUsize::new(0),
                ended: Mutex::new(Instant::now()),
            }),
        }
    }
}

impl Requests {
    /// Counts a request until its reply has been sent completely.
    pub(super) fn begin(&self, version: Version) -> UnderWay {
        if version < Version::HTTP_2 {
            self.counted.over_http_1.store(true, Ordering::Relaxed);
        }
        self.counted.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay(self.clone())
    }

    /// Makes replies announce the end of the connection from now on, if requests use HTTP/1. Returns whether they do.
    pub(super) fn announce_end(&self) -> bool {
        let announces = self.counted.over_http_1.load(Ordering::Relaxed);
        self.counted.ending.store(announces, Ordering::Relaxed);
        announces
    }

    /// Returns once there has been no request for this long, which may include past time.
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

    /// Returns once there has been no request for this long from now on.
    pub(super) async fn none_for(&self, limit: Duration) {
        *self.counted.ended() = Instant::now();
        self.idle_for(Some(limit)).await;
    }
}

/// A request whose reply has not been sent completely.
#[derive(Debug)]
pub(super) struct UnderWay(Requests);

impl UnderWay {
    /// Returns whether the reply must announce the end of the connection.
    pub(super) fn ends_connection(&self) -> bool {
        self.0.counted.ending.load(Ordering::Relaxed)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let counted = &self.0.counted;
        *counted.ended() = Instant::now();
        counted.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}
