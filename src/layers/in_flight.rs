//! Refuses requests while too many are in progress, so that accepted ones are answered in time.
//!
//! All connections and ports share one count (`EA_MAX_IN_FLIGHT`). Requests are refused at once and never queued: a
//! queue behind a slow lease node would delay all later requests. Probes and metrics that are answered at once are
//! exempt, so that a busy agent is neither restarted nor unobserved.
//!
//! A request is in progress until its reply has been sent completely, so a stream counts for its whole duration.
//! Streams of the API, and requests that wait for a change ([`Stay`]), cost little while nothing changes: they have a
//! count of their own (`EA_MAX_STREAMS`). Streams of the health service and of reflection, which any client may keep
//! open, have a separate count of the size of that of requests and cannot displace elections.
//!
//! Refusal: Overloaded (RESOURCE_EXHAUSTED, 429).

use std::{
    pin::Pin,
    sync::Arc,
    task::{self, Context, Poll},
};

use axum::{body::Body, response::Response};
use futures_util::future::{Either, Ready, ready};
use http::Request;
use pin_project_lite::pin_project;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::{Layer, Service};

use crate::{
    body::Holding,
    endpoint::{Action, Counted, Endpoint},
    status::{Code, Problem},
    transport::{
        request::endpoint,
        stay::{Places, Stay},
    },
};

/// Applies [`InFlight`]; clones share the counts.
#[derive(Debug, Clone)]
pub struct InFlightLayer {
    counts: Counts,
}

#[derive(Debug, Clone)]
struct Counts {
    most: usize,
    requests: Arc<Semaphore>,
    /// Counts streams of the API and requests that wait.
    streams: Places,
    /// Counts other streams that last as long as their clients keep them open.
    others: Arc<Semaphore>,
}

impl Counts {
    /// Reserves a place for a request, unless the request is exempt.
    fn place(&self, request: &mut Request<Body>) -> Result<Option<Place>, Problem> {
        let Endpoint {
            counted, action, ..
        } = endpoint(request.extensions())?;
        let count = match counted {
            Counted::Request | Counted::MayWait => &self.requests,
            Counted::ApiStream => {
                let permit = self.streams.take()?;
                if action == Action::Lead {
                    request.extensions_mut().insert(self.streams.clone());
                }
                return Ok(Some(Place::Of { _permit: permit }));
            }
            Counted::Stream => &self.others,
            Counted::Never => return Ok(None),
        };
        let place = Arc::clone(count).try_acquire_owned().map_err(|_| {
            Problem::new(
                Code::Overloaded,
                "the agent has its maximum number of requests in progress (EA_MAX_IN_FLIGHT): try again soon",
            )
        })?;
        if counted != Counted::MayWait {
            return Ok(Some(Place::Of { _permit: place }));
        }
        let stay = Arc::new(Stay::new(place, self.streams.clone()));
        request.extensions_mut().insert(Arc::clone(&stay));
        Ok(Some(Place::Shared { _stay: stay }))
    }
}

/// What a request or stream in progress holds.
enum Place {
    Of {
        _permit: OwnedSemaphorePermit,
    },
    /// The place of a request that may exchange it for that of a stream.
    Shared {
        _stay: Arc<Stay>,
    },
}

impl InFlightLayer {
    /// Creates a layer that admits `most` requests at once, as many streams outside the API, and `streams` of the API.
    #[must_use]
    pub fn new(most: usize, streams: usize) -> Self {
        Self {
            counts: Counts {
                most,
                requests: Arc::new(Semaphore::new(most)),
                streams: Places::new(streams),
                others: Arc::new(Semaphore::new(most)),
            },
        }
    }
}

impl InFlightLayer {
    /// Returns how many requests are in progress.
    #[must_use]
    pub fn requests(&self) -> usize {
        let free = self.counts.requests.available_permits();
        self.counts.most.saturating_sub(free)
    }

    /// Returns how many streams of the API and requests that wait are open.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.counts.streams.taken()
    }
}

impl<S> Layer<S> for InFlightLayer {
    type Service = InFlight<S>;

    fn layer(&self, inner: S) -> InFlight<S> {
        InFlight {
            inner,
            counts: self.counts.clone(),
        }
    }
}

/// Refuses requests while too many are in progress.
#[derive(Debug, Clone)]
pub struct InFlight<S> {
    inner: S,
    counts: Counts,
}

impl<S> Service<Request<Body>> for InFlight<S>
where
    S: Service<Request<Body>, Response = Response, Error = Problem>,
{
    type Response = Response;
    type Error = Problem;
    type Future = Either<UnderWay<S::Future>, Ready<Result<Response, Problem>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Problem>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        match self.counts.place(&mut request) {
            Ok(place) => Either::Left(UnderWay {
                future: self.inner.call(request),
                place,
            }),
            Err(problem) => Either::Right(ready(Err(problem))),
        }
    }
}

pin_project! {
    /// A future of the reply, whose body keeps the request's place.
    pub struct UnderWay<F> {
        #[pin]
        future: F,
        place: Option<Place>,
    }
}

impl<F> Future for UnderWay<F>
where
    F: Future<Output = Result<Response, Problem>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = task::ready!(this.future.poll(cx));
        let Some(place) = this.place.take() else {
            return Poll::Ready(answer);
        };
        Poll::Ready(
            answer.map(|response| response.map(|body| Body::new(Holding::new(body, place)))),
        )
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tower::ServiceExt as _;
    use tower_test::mock;

    use super::*;
    use crate::endpoint::classified;

    fn request(path: &str) -> Request<Body> {
        classified(Request::post(path).body(Body::empty()).expect("a request"))
    }

    #[tokio::test]
    async fn what_is_over_the_limit_is_refused_at_once_until_an_answer_was_sent() {
        let (inner, mut handle) = mock::pair::<Request<Body>, Response>();
        let as_problem = |error| Problem::new(Code::Internal, format!("{error}"));
        let service = InFlightLayer::new(2, 2).layer(inner.map_err(as_problem));
        let call = |path| {
            let answer = service.clone().oneshot(request(path));
            answer
                .map(|answer| answer.map_err(|problem| problem.code))
                .boxed()
        };
        let free = |service: &InFlight<_>| service.counts.requests.available_permits();

        let first = tokio::spawn(call("/election/e"));
        let (_, answer_first) = handle.next_request().await.expect("passed on");
        let second = tokio::spawn(call("/election/f"));
        let (_, answer_second) = handle.next_request().await.expect("passed on");
        for path in ["/election/e", "/livez/x", "//metrics"] {
            let refused = call(path).await.map(|_| ());
            assert_eq!(refused, Err(Code::Overloaded), "{path}");
        }

        for path in [
            "/livez",
            "/readyz",
            "/metrics",
            "/grpc.health.v1.Health/Check",
        ] {
            let probe = tokio::spawn(call(path));
            let (_, answer) = handle.next_request().await.expect(path);
            answer.send_response(Response::default());
            assert!(probe.await.expect("no panic").is_ok(), "{path}");
        }

        answer_first.send_response(Response::default());
        let stream = first.await.expect("no panic").expect("an answer");
        assert_eq!(free(&service), 0, "it has not been sent");
        drop(stream);
        assert_eq!(free(&service), 1);

        // A cancelled request frees its place.
        second.abort();
        assert!(second.await.expect_err("aborted").is_cancelled());
        drop(answer_second);
        assert_eq!(free(&service), 2);

        // A request that failed frees its place.
        let third = tokio::spawn(call("/election/e"));
        let (_, answer_third) = handle.next_request().await.expect("passed on");
        assert_eq!(free(&service), 1);
        answer_third.send_error("broken");
        let failed = third.await.expect("no panic").map(|_| ());
        assert_eq!(failed, Err(Code::Internal));
        assert_eq!(free(&service), 2);
    }

    #[tokio::test]
    async fn streams_for_all_take_no_place_of_requests_and_are_no_more_than_these() {
        let (inner, mut handle) = mock::pair::<Request<Body>, Response>();
        let as_problem = |error| Problem::new(Code::Internal, format!("{error}"));
        let service = InFlightLayer::new(2, 2).layer(inner.map_err(as_problem));
        let mut open = Vec::new();
        let streams = [
            "/grpc.health.v1.Health/Watch",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        ];
        for path in streams {
            let stream = tokio::spawn(service.clone().oneshot(request(path)));
            let (_, answer) = handle.next_request().await.expect("passed on");
            answer.send_response(Response::default());
            open.push(stream.await.expect("no panic").expect("a stream"));
        }
        for path in streams {
            let refused = service
                .clone()
                .oneshot(request(path))
                .await
                .expect_err(path);
            assert_eq!(refused.code, Code::Overloaded, "{path}");
        }
        let election = tokio::spawn(service.clone().oneshot(request("/election/e")));
        let (_, answer) = handle.next_request().await.expect("passed on");
        answer.send_response(Response::default());
        assert!(election.await.expect("no panic").is_ok());
        open.pop();
        assert_eq!(service.counts.others.available_permits(), 1);
    }
}
