//! When a watch was last heard of, and so how old what it keeps may be.
//!
//! A watch that is silent may have nothing to say, or be cut off. It is therefore asked for anew every few
//! seconds, from where it was, which costs the API server next to nothing: its beginning, and all it says, tell
//! that the table was up to date then.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::BodyExt as _;
use tokio::time::Instant;
use tower::{BoxError, Layer, Service};

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
    /// Why it is not heard of.
    error: Option<String>,
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
        self.state().error.clone()
    }

    /// The table was filled with what the server had at this time or later.
    pub(super) fn filled(&self, at: Instant) {
        self.state().last = Some(at);
        self.works();
    }

    /// Nothing was heard but this. It is logged when it is news.
    pub(super) fn failed(&self, error: String) {
        let mut state = self.state();
        if state.error.is_none() {
            tracing::error!("{} cannot be watched: {error}", self.what);
        }
        state.error = Some(error);
    }

    /// The watch had no use: what it would have told first the server does not know any more.
    pub(super) fn was_behind(&self) {
        let mut state = self.state();
        state.last = state.before;
    }

    /// A watch has begun where the one before was.
    fn began(&self) {
        let mut state = self.state();
        state.before = state.last;
        drop(state);
        self.works();
        self.now();
    }

    /// The watch has said something.
    fn now(&self) {
        let mut state = self.state();
        if state.last.is_some() {
            state.last = Some(Instant::now());
        }
    }

    fn works(&self) {
        if self.state().error.take().is_some() {
            tracing::info!("{} are watched again", self.what);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Around a client of one watch alone: it hears the answers.
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

type Answer = Response<Box<dyn Body<Data = Bytes, Error = BoxError> + Send + Unpin>>;

impl<S, R, B> Service<Request<R>> for Listening<S>
where
    S: Service<Request<R>, Response = Response<B>, Future: Send + 'static>,
    B: Body<Data = Bytes, Error = BoxError> + Send + Unpin + 'static,
{
    type Response = Answer;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<R>) -> Self::Future {
        let query = request.uri().query().unwrap_or_default();
        // A list that is under way says nothing of the table that it is to replace.
        let watches = query.split('&').any(|pair| pair == "watch=true");
        let answering = self.inner.call(request);
        let heard = self.heard.clone();
        Box::pin(async move {
            let answer = answering.await?;
            if !(watches && answer.status().is_success()) {
                return Ok(answer.map(|body| Box::new(body) as _));
            }
            heard.began();
            Ok(answer.map(|body| {
                let hears = move |frame| {
                    heard.now();
                    frame
                };
                Box::new(body.map_frame(hears)) as _
            }))
        })
    }
}
