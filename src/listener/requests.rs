//! The requests of one connection: how many are under way, and since when there is none.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

/// The requests of one connection.
#[derive(Debug, Clone)]
pub(super) struct Requests {
    under_way: Arc<AtomicUsize>,
    ended: watch::Sender<Instant>,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            under_way: Arc::default(),
            ended: watch::Sender::new(Instant::now()),
        }
    }
}

impl Requests {
    /// Counts a request until its answer has been sent whole.
    pub(super) fn begin(&self) -> UnderWay {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay(self.clone())
    }

    /// Returns when there has been no request for this long, now or earlier.
    pub(super) async fn idle_for(&self, limit: Option<Duration>) {
        let Some(limit) = limit else {
            return std::future::pending().await;
        };
        loop {
            let until = *self.ended.borrow() + limit;
            if self.under_way.load(Ordering::Relaxed) > 0 {
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
        self.ended
            .send_modify(|ended| *ended = (*ended).max(Instant::now()));
        self.idle_for(Some(limit)).await;
    }
}

/// A request whose answer has not been sent whole.
#[derive(Debug)]
pub(super) struct UnderWay(Requests);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.ended.send_replace(Instant::now());
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}
