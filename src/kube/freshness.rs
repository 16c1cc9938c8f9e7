//! Tracks when each watch was last confirmed, and so the staleness of the table that it fills.
//!
//! A silent watch either has no events or is cut off. The watch therefore restarts every few seconds from its last
//! position, which costs the API server almost nothing. A start and every event confirm that the table was up to date
//! at that time. A start counts only after the watch has lasted for a second: the server first sends the events that
//! happened in between, or reports that the watch cannot continue from its position.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep_until};
use tower::{Layer, Service};

use super::trouble::Trouble;

/// How long a watch must last before its start counts.
const SETTLES: Duration = Duration::from_secs(1);
/// Minimum delay between the starts of two watches: a watch that ends at once must not restart without pause.
const NEXT: Duration = Duration::from_secs(1);

/// The freshness of one watch. Cheap to clone; clones share the state.
#[derive(Debug, Clone)]
pub(super) struct Freshness {
    /// What is watched, for the log.
    what: Arc<str>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// When the table was last known to be up to date; [`None`] before it is filled.
    last: Option<Instant>,
    /// The value of `last` when the current watch began.
    before: Option<Instant>,
    /// When the current watch began, until that start counts.
    begun: Option<Instant>,
    /// When the latest watch was requested.
    asked: Option<Instant>,
    /// Why the watch is not confirmed.
    trouble: Trouble,
}

impl Freshness {
    pub(super) fn new(what: impl Into<Arc<str>>) -> Self {
        Self {
            what: what.into(),
            state: Arc::default(),
        }
    }

    /// Returns when the table was last known to be up to date; [`None`] before it is filled.
    pub(super) fn last(&self) -> Option<Instant> {
        self.state().last
    }

    /// Returns the last failure, if the watch is failing.
    pub(super) fn error(&self) -> Option<String> {
        self.state().trouble.error().map(str::to_owned)
    }

    /// Records that the table holds the server's state of this time or later. The watch itself is not confirmed yet.
    pub(super) fn filled(&self, at: Instant) {
        self.state().last = Some(at);
    }

    /// Records that the watch delivered an event, which is in the table.
    pub(super) fn confirmed(&self) {
        let mut state = self.state();
        if state.last.is_some() {
            state.last = Some(Instant::now());
        }
        self.works(&mut state);
    }

    /// Records a failure and logs it if it is new. Returns the delay before the next attempt.
    pub(super) fn failed(&self, error: String) -> Duration {
        let mut state = self.state();
        state.begun = None;
        if state.trouble.add(error) {
            let error = state.trouble.error().unwrap_or_default();
            tracing::error!("{} cannot be watched: {error}", self.what);
        }
        state.trouble.pause()
    }

    /// Records that the watch was useless: the server no longer has the events that were due first, or an event cannot
    /// be read.
    pub(super) fn was_behind(&self) {
        let mut state = self.state();
        state.begun = None;
        state.last = state.before;
    }

    /// Records that a watch is about to be requested. Returns when it may be.
    fn asks(&self) -> Instant {
        let mut state = self.state();
        let now = Instant::now();
        let at = state.asked.map_or(now, |asked| now.max(asked + NEXT));
        state.asked = Some(at);
        at
    }

    /// Records that a watch began at the position where the previous one ended.
    fn began(&self) {
        let mut state = self.state();
        state.before = state.last;
        state.begun = Some(Instant::now());
    }

    fn works(&self, state: &mut State) {
        if state.trouble.recovered() {
            tracing::info!("{} are watched again", self.what);
        }
    }

    /// Locks the state and counts a start that is old enough.
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        if let Some(begun) = state.begun.take_if(|begun| begun.elapsed() >= SETTLES) {
            state.last = state.last.map(|last| last.max(begun));
            self.works(&mut state);
        }
        state
    }
}

/// Wraps the client of one watch: observes the replies and spaces the requests.
impl<S> Layer<S> for Freshness {
    type Service = Listening<S>;

    fn layer(&self, inner: S) -> Listening<S> {
        Listening {
            inner,
            freshness: self.clone(),
        }
    }
}

/// A client whose watch is observed.
pub(super) struct Listening<S> {
    inner: S,
    freshness: Freshness,
}

impl<S, R, B> Service<Request<R>> for Listening<S>
where
    S: Service<Request<R>, Response = Response<B>, Future: Send + 'static>,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<R>) -> Self::Future {
        let query = request.uri().query().unwrap_or_default();
        // A list in progress says nothing about the table that it is going to replace.
        let watches = query.split('&').any(|pair| pair == "watch=true");
        // The request is not sent until the future is polled.
        let answering = self.inner.call(request);
        if !watches {
            return Box::pin(answering);
        }
        let freshness = self.freshness.clone();
        Box::pin(async move {
            sleep_until(freshness.asks()).await;
            let answer = answering.await?;
            if answer.status().is_success() {
                freshness.began();
            }
            Ok(answer)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tokio::time::advance;
    use tower::{ServiceExt as _, service_fn};

    use super::*;

    /// Sends a request through an observed client.
    async fn ask(freshness: &Freshness, query: &str, status: u16) {
        let client = service_fn(move |_: Request<()>| async move {
            let answer = Response::builder().status(status).body(());
            Ok::<_, Infallible>(answer.expect("an answer"))
        });
        let request = Request::get(format!("/api/v1/pods?{query}"));
        let request = request.body(()).expect("a request");
        let Ok(answer) = freshness.layer(client).oneshot(request).await;
        assert_eq!(answer.status(), status);
    }

    fn age(freshness: &Freshness) -> u64 {
        freshness.last().expect("filled").elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_tells_how_old_its_table_is_and_a_list_does_not() {
        let freshness = Freshness::new("the pods");
        let second = Duration::from_secs(1);
        let began = Instant::now();
        ask(&freshness, "limit=500", 200).await;
        ask(&freshness, "watch=true&resourceVersion=1", 200).await;
        advance(2 * second).await;
        assert_eq!(freshness.last(), None, "nothing is filled");
        freshness.filled(began);
        assert_eq!(age(&freshness), 2, "as old as what was listed");

        ask(&freshness, "timeoutSeconds=15&watch=true", 200).await;
        assert_eq!(age(&freshness), 2, "it may be behind");
        advance(second).await;
        assert_eq!(age(&freshness), 1, "it has gone on");
        advance(4 * second).await;
        assert_eq!(age(&freshness), 5);
        freshness.confirmed();
        assert_eq!(age(&freshness), 0, "it has said something");

        advance(5 * second).await;
        ask(&freshness, "watch=true", 500).await;
        ask(&freshness, "limit=500", 200).await;
        advance(second).await;
        assert_eq!(age(&freshness), 6, "no watch");

        ask(&freshness, "watch=true", 200).await;
        freshness.failed("it cannot be read".to_owned());
        advance(second).await;
        assert_eq!(age(&freshness), 7, "it did not go on");

        ask(&freshness, "watch=true", 200).await;
        advance(second).await;
        assert_eq!((age(&freshness), freshness.error()), (1, None));
        freshness.was_behind();
        assert_eq!(
            age(&freshness),
            8,
            "it began where the server knows nothing"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_watch_that_goes_on_ends_what_went_wrong() {
        let freshness = Freshness::new("the pods");
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            freshness.filled(Instant::now());
            ask(&freshness, "watch=true", 200).await;
            longest = freshness.failed("it broke off".to_owned()).max(longest);
        }
        // Even though lists succeed and watches begin.
        assert!(longest >= Duration::from_secs(5), "{longest:?}");
        assert!(freshness.error().is_some());
        ask(&freshness, "watch=true", 200).await;
        advance(SETTLES).await;
        assert_eq!(freshness.error(), None);
        assert!(freshness.failed("once more".to_owned()) < Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn watches_that_end_at_once_are_not_asked_for_at_once() {
        let freshness = Freshness::new("the pods");
        let began = Instant::now();
        for _ in 0..10 {
            ask(&freshness, "watch=true", 200).await;
        }
        assert_eq!(began.elapsed(), 9 * NEXT);
        advance(NEXT).await;
        let began = Instant::now();
        ask(&freshness, "watch=true", 200).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
