//! Coalesces reads in progress: one read for all callers of the same pods, with a bound on concurrency and on the rate.
//! Names that callers invent must not load the API server.
//!
//! `quick_cache`, which shares token reviews, does not fit: when a read fails or gets no turn, its
//! `get_or_insert_async` lets each waiting caller read again, one after the other. Here a failure reaches all waiting
//! callers at once.

use std::{collections::HashMap, num::NonZeroU32, sync::Arc, time::Duration};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::{
        Semaphore,
        watch::{self, Receiver, Sender},
    },
    time::timeout,
};
use tracing::Instrument as _;

use super::{Error, Wanted};

/// Maximum number of concurrent reads, and of reads that wait for a place.
const AT_ONCE: usize = 16;
const WAITING: usize = 64;
/// How long a read may wait for a place.
const TURN: Duration = Duration::from_secs(1);
/// Maximum number of reads that begin per second, and the burst after a quiet period.
const PER_SECOND: NonZeroU32 = NonZeroU32::MIN.saturating_add(49);
const BURST: NonZeroU32 = NonZeroU32::MIN.saturating_add(99);

/// Reads whose results have this type.
pub(super) struct Flights<T> {
    under_way: Mutex<HashMap<Wanted, Sender<Option<T>>>>,
    places: Semaphore,
    rate: DefaultDirectRateLimiter,
}

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            under_way: Mutex::default(),
            places: Semaphore::new(AT_ONCE),
            rate: RateLimiter::direct(Quota::per_second(PER_SECOND).allow_burst(BURST)),
        })
    }

    /// Waits for the read of `wanted` and starts it unless it is in progress. A read that has begun completes even if
    /// all callers leave. A read that no caller waits for does not begin.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: too many reads are in progress.
    pub(super) async fn read<F>(
        self: &Arc<Self>,
        wanted: &Wanted,
        reading: impl FnOnce() -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut answer = self.join(wanted, reading)?;
        let answer = answer.wait_for(Option::is_some).await;
        let answer = answer.ok().and_then(|answer| answer.clone());
        answer.ok_or_else(busy)
    }

    fn join<F>(
        self: &Arc<Self>,
        wanted: &Wanted,
        reading: impl FnOnce() -> F,
    ) -> Result<Receiver<Option<T>>, Error>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut under_way = self.under_way();
        if let Some(answer) = under_way.get(wanted) {
            return Ok(answer.subscribe());
        }
        if under_way.len() >= AT_ONCE + WAITING || self.rate.check().is_err() {
            return Err(busy());
        }
        let (sender, answer) = watch::channel(None);
        under_way.insert(wanted.clone(), sender);
        let flight = Flight {
            flights: Arc::clone(self),
            wanted: Some(wanted.clone()),
        };
        tokio::spawn(flight.fly(reading()).in_current_span());
        Ok(answer)
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<Wanted, Sender<Option<T>>>> {
        self.under_way.lock()
    }
}

/// A read; in progress until dropped.
struct Flight<T> {
    flights: Arc<Flights<T>>,
    /// [`None`] once the read is no longer in progress.
    wanted: Option<Wanted>,
}

impl<T: Clone + Send + Sync + 'static> Flight<T> {
    async fn fly(mut self, reading: impl Future<Output = T>) {
        let flights = Arc::clone(&self.flights);
        let Ok(Ok(_place)) = timeout(TURN, flights.places.acquire()).await else {
            return;
        };
        if self.land(Sender::is_closed).is_some() {
            return;
        }
        let answer = reading.await;
        if let Some(sender) = self.land(|_| true) {
            sender.send_replace(Some(answer));
        }
    }
}

impl<T> Flight<T> {
    /// Ends the read if the condition holds. A later caller starts a new read.
    fn land(
        &mut self,
        if_so: impl FnOnce(&Sender<Option<T>>) -> bool,
    ) -> Option<Sender<Option<T>>> {
        let mut under_way = self.flights.under_way.lock();
        let wanted = self
            .wanted
            .take_if(|wanted| under_way.get(wanted).is_some_and(if_so))?;
        under_way.remove(&wanted)
    }
}

impl<T> Drop for Flight<T> {
    fn drop(&mut self) {
        // The read got no turn or was cancelled: waiting callers see its sender closed.
        self.land(|_| true);
    }
}

fn busy() -> Error {
    Error::Unavailable(
        "too much is read from the Kubernetes API server now, or it is too slow: try again later"
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use futures_util::future::join_all;
    use tokio::{sync::Notify, task::yield_now};

    use super::*;

    fn wanted(name: &str) -> Wanted {
        Wanted::deployment("shop", name).expect("valid")
    }

    /// Lets all ready tasks run.
    async fn settle() {
        for _ in 0..100 {
            yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_want_the_same_wait_for_one_reading() {
        let flights = Flights::new();
        let begun = Arc::new(AtomicUsize::new(0));
        let read = || {
            let begun = Arc::clone(&begun);
            async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                begun.fetch_add(1, Relaxed) + 1
            }
        };
        let web = wanted("web");
        let results = join_all((0..200).map(|_| flights.read(&web, read))).await;
        assert!(results.iter().all(|result| *result == Ok(1)), "{results:?}");
        assert_eq!(flights.read(&web, read).await, Ok(2), "another one");
        assert!(flights.under_way().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_may_wait_are_refused_at_once_and_none_is_read_that_nobody_waits_for() {
        let flights = Flights::new();
        let (begun, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let read = || {
            let (begun, go) = (Arc::clone(&begun), Arc::clone(&go));
            async move {
                begun.fetch_add(1, Relaxed);
                go.notified().await;
            }
        };
        let join = |n: usize| flights.join(&wanted(&format!("app-{n}")), read);
        let waiting: Vec<_> = (0..AT_ONCE + WAITING).map(join).collect();
        assert!(waiting.iter().all(Result::is_ok));
        assert!(join(AT_ONCE + WAITING).is_err());
        assert!(join(0).is_ok(), "one that is under way");
        settle().await;
        assert_eq!(begun.load(Relaxed), AT_ONCE);
        drop(waiting);
        go.notify_waiters();
        settle().await;
        assert_eq!(begun.load(Relaxed), AT_ONCE);
        assert!(flights.under_way().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reading_that_has_no_turn_or_breaks_off_is_told_so() {
        let flights = Flights::<()>::new();
        let web = wanted("web");
        let broken = flights.read(&web, || async { panic!("on purpose") });
        assert!(matches!(broken.await, Err(Error::Unavailable(_))));
        let stuck: Vec<_> = (0..AT_ONCE)
            .map(|n| flights.join(&wanted(&format!("app-{n}")), std::future::pending))
            .collect();
        assert!(stuck.iter().all(Result::is_ok));
        let late = flights.read(&web, || async {});
        assert!(matches!(late.await, Err(Error::Unavailable(_))));
        assert_eq!(flights.under_way().len(), AT_ONCE);
    }

    #[tokio::test]
    async fn readings_are_rationed() {
        let flights = Flights::new();
        let began = std::time::Instant::now();
        let mut read = 0;
        for n in 0..2_000 {
            let app = wanted(&format!("app-{n}"));
            let result = flights.read(&app, || async {}).await;
            read += u32::from(result.is_ok());
        }
        let seconds = u32::try_from(began.elapsed().as_secs()).expect("few") + 1;
        assert!(read >= BURST.get(), "{read}");
        assert!(read <= BURST.get() + PER_SECOND.get() * seconds, "{read}");
    }
}
