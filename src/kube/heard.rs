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

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use http_body_util::StreamBody;
    use tokio::{sync::mpsc, time::advance};
    use tower::{ServiceExt as _, service_fn};

    use super::*;

    /// Asks through a client that is heard; the answer's body is what is sent to the channel.
    async fn ask(heard: &Heard, query: &str, status: u16) -> (Answer, mpsc::Sender<&'static str>) {
        let (sender, mut receiver) = mpsc::channel::<&'static str>(1);
        let frames = futures_util::stream::poll_fn(move |cx| {
            let received = receiver.poll_recv(cx);
            received.map(|line| line.map(|line| Ok(http_body::Frame::data(line.into()))))
        });
        let body = StreamBody::new(Box::pin(frames));
        let answer = Response::builder().status(status).body(body);
        let answer = Mutex::new(Some(answer.expect("an answer")));
        let client = service_fn(move |_: Request<()>| {
            let answer = answer.lock().expect("unlocked").take();
            async move { Ok::<_, Infallible>(answer.expect("one question")) }
        });
        let request = Request::get(format!("/api/v1/pods?{query}"));
        let request = request.body(()).expect("a request");
        let Ok(answer) = heard.layer(client).oneshot(request).await;
        (answer, sender)
    }

    fn age(heard: &Heard) -> u64 {
        heard.last().expect("filled").elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_tells_how_old_its_table_is_and_a_list_does_not() {
        let heard = Heard::new("the pods");
        let second = Duration::from_secs(1);
        let began = Instant::now();
        let _ = ask(&heard, "limit=500", 200).await;
        let (_watch, _says) = ask(&heard, "watch=true&resourceVersion=1", 200).await;
        assert_eq!(heard.last(), None, "nothing is filled");
        advance(second).await;
        heard.filled(began);
        assert_eq!(age(&heard), 1, "as old as what was listed");

        let (watch, says) = ask(&heard, "timeoutSeconds=15&watch=true", 200).await;
        assert_eq!(age(&heard), 0);
        advance(5 * second).await;
        assert_eq!(age(&heard), 5);
        says.send("{}\n").await.expect("open");
        let mut body = watch.into_body();
        assert!(body.frame().await.is_some_and(|frame| frame.is_ok()));
        assert_eq!(age(&heard), 0, "it has said something");

        advance(5 * second).await;
        let _ = ask(&heard, "watch=true", 500).await;
        let _ = ask(&heard, "limit=500", 200).await;
        assert_eq!(age(&heard), 5, "no watch");

        let _ = ask(&heard, "watch=true", 200).await;
        assert_eq!(age(&heard), 0);
        heard.was_behind();
        assert_eq!(age(&heard), 5, "it began where the server knows nothing");
    }
}
