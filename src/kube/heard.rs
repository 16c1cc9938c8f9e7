//! When a watch was last heard of, and so how old what it keeps may be.
//!
//! A watch that is silent may have nothing to say, or be cut off. It is therefore asked for anew every few
//! seconds, from where it was, which costs the API server next to nothing: its beginning, and every event, tell
//! that the table was up to date then. A beginning counts only when the watch has gone on for a second: what
//! happened while nobody watched, or that it cannot go on from where it was, is told first.

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

/// After what time a watch that has begun goes well.
const SETTLES: Duration = Duration::from_secs(1);
/// How long after a watch began the next one may: one that ends at once must not be asked for without end.
const NEXT: Duration = Duration::from_secs(1);

/// What is known of one watch.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    /// What is watched, for the log.
    what: Arc<str>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// When the table was known to be up to date; [`None`] before it is filled.
    last: Option<Instant>,
    /// The same, when the watch began that goes on now.
    before: Option<Instant>,
    /// When that began, as long as it does not count.
    begun: Option<Instant>,
    /// When the latest watch was asked for.
    asked: Option<Instant>,
    /// Why it is not heard of.
    trouble: Trouble,
}

impl Heard {
    pub(super) fn new(what: impl Into<Arc<str>>) -> Self {
        Self {
            what: what.into(),
            state: Arc::default(),
        }
    }

    /// When the table was last known to be up to date; [`None`] before it is filled.
    pub(super) fn last(&self) -> Option<Instant> {
        self.state().last
    }

    /// Why nothing is heard, if so.
    pub(super) fn error(&self) -> Option<String> {
        self.state().trouble.error().map(str::to_owned)
    }

    /// The table was filled with what the server had at this time or later. That the watch works is yet to be
    /// seen.
    pub(super) fn filled(&self, at: Instant) {
        self.state().last = Some(at);
    }

    /// The watch has told an event, which is in the table.
    pub(super) fn told(&self) {
        let mut state = self.state();
        if state.last.is_some() {
            state.last = Some(Instant::now());
        }
        self.works(&mut state);
    }

    /// Nothing was heard but this. It is logged when it is news. Says how long to wait before the next try.
    pub(super) fn failed(&self, error: String) -> Duration {
        let mut state = self.state();
        state.begun = None;
        if state.trouble.add(error) {
            let error = state.trouble.error().unwrap_or_default();
            tracing::error!("{} cannot be watched: {error}", self.what);
        }
        state.trouble.pause()
    }

    /// The watch had no use: what it would have told first the server does not know any more, or what it told
    /// cannot be read.
    pub(super) fn was_behind(&self) {
        let mut state = self.state();
        state.begun = None;
        state.last = state.before;
    }

    /// A watch is about to be asked for. Says when it may be.
    fn asks(&self) -> Instant {
        let mut state = self.state();
        let now = Instant::now();
        let at = state.asked.map_or(now, |asked| now.max(asked + NEXT));
        state.asked = Some(at);
        at
    }

    /// A watch has begun where the one before was.
    fn began(&self) {
        let mut state = self.state();
        state.before = state.last;
        state.begun = Some(Instant::now());
    }

    fn works(&self, state: &mut State) {
        if state.trouble.over() {
            tracing::info!("{} are watched again", self.what);
        }
    }

    /// The state, in which a beginning counts if it is time.
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        if let Some(begun) = state.begun.take_if(|begun| begun.elapsed() >= SETTLES) {
            state.last = state.last.map(|last| last.max(begun));
            self.works(&mut state);
        }
        state
    }
}

/// Around a client of one watch alone: it hears the answers, and spaces the questions.
impl<S> Layer<S> for Heard {
    type Service = Listening<S>;

    fn layer(&self, inner: S) -> Listening<S> {
        Listening {
            inner,
            heard: self.clone(),
        }
    }
}

/// A client whose watch is heard.
pub(super) struct Listening<S> {
    inner: S,
    heard: Heard,
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
        // A list that is under way says nothing of the table that it is to replace.
        let watches = query.split('&').any(|pair| pair == "watch=true");
        // Nothing is sent before it is polled.
        let answering = self.inner.call(request);
        if !watches {
            return Box::pin(answering);
        }
        let heard = self.heard.clone();
        Box::pin(async move {
            sleep_until(heard.asks()).await;
            let answer = answering.await?;
            if answer.status().is_success() {
                heard.began();
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

    /// Asks through a client that is heard.
    async fn ask(heard: &Heard, query: &str, status: u16) {
        let client = service_fn(move |_: Request<()>| async move {
            let answer = Response::builder().status(status).body(());
            Ok::<_, Infallible>(answer.expect("an answer"))
        });
        let request = Request::get(format!("/api/v1/pods?{query}"));
        let request = request.body(()).expect("a request");
        let Ok(answer) = heard.layer(client).oneshot(request).await;
        assert_eq!(answer.status(), status);
    }

    fn age(heard: &Heard) -> u64 {
        heard.last().expect("filled").elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_tells_how_old_its_table_is_and_a_list_does_not() {
        let heard = Heard::new("the pods");
        let second = Duration::from_secs(1);
        let began = Instant::now();
        ask(&heard, "limit=500", 200).await;
        ask(&heard, "watch=true&resourceVersion=1", 200).await;
        advance(2 * second).await;
        assert_eq!(heard.last(), None, "nothing is filled");
        heard.filled(began);
        assert_eq!(age(&heard), 2, "as old as what was listed");

        ask(&heard, "timeoutSeconds=15&watch=true", 200).await;
        assert_eq!(age(&heard), 2, "it may be behind");
        advance(second).await;
        assert_eq!(age(&heard), 1, "it has gone on");
        advance(4 * second).await;
        assert_eq!(age(&heard), 5);
        heard.told();
        assert_eq!(age(&heard), 0, "it has said something");

        advance(5 * second).await;
        ask(&heard, "watch=true", 500).await;
        ask(&heard, "limit=500", 200).await;
        advance(second).await;
        assert_eq!(age(&heard), 6, "no watch");

        ask(&heard, "watch=true", 200).await;
        heard.failed("it cannot be read".to_owned());
        advance(second).await;
        assert_eq!(age(&heard), 7, "it did not go on");

        ask(&heard, "watch=true", 200).await;
        advance(second).await;
        assert_eq!((age(&heard), heard.error()), (1, None));
        heard.was_behind();
        assert_eq!(age(&heard), 8, "it began where the server knows nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_watch_that_goes_on_ends_what_went_wrong() {
        let heard = Heard::new("the pods");
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            heard.filled(Instant::now());
            ask(&heard, "watch=true", 200).await;
            longest = heard.failed("it broke off".to_owned()).max(longest);
        }
        // Although lists succeed, and watches begin.
        assert!(longest >= Duration::from_secs(5), "{longest:?}");
        assert!(heard.error().is_some());
        ask(&heard, "watch=true", 200).await;
        advance(SETTLES).await;
        assert_eq!(heard.error(), None);
        assert!(heard.failed("once more".to_owned()) < Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn watches_that_end_at_once_are_not_asked_for_at_once() {
        let heard = Heard::new("the pods");
        let began = Instant::now();
        for _ in 0..10 {
            ask(&heard, "watch=true", 200).await;
        }
        assert_eq!(began.elapsed(), 9 * NEXT);
        advance(NEXT).await;
        let began = Instant::now();
        ask(&heard, "watch=true", 200).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
