//! Sets a deadline for every request: the server's limit or the caller's `grpc-timeout`, whichever is earlier.
//!
//! The deadline travels with the request ([`Deadline`]), so that the wait for lease nodes ends with it. This layer also
//! enforces it, in case a layer below does not. The deadline covers the time to the reply's headers; a stream that has
//! begun continues.
//!
//! Refusals: DeadlineExceeded (DEADLINE_EXCEEDED, 504); InvalidArgument for a malformed `grpc-timeout`.

use std::{
    pin::Pin,
    sync::Arc,
    task::{self, Context, Poll},
    time::Duration,
};

use axum::body::Body;
use futures_util::future::{Either, Ready, ready};
use http::{HeaderMap, Request};
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep_until};
use tower::{Layer, Service};

use crate::{
    status::{Code, Problem},
    transport::{request::Deadline, stay::Stay},
};

/// Applies [`Limit`].
#[derive(Debug, Clone, Copy)]
pub struct DeadlineLayer {
    limit: Duration,
}

impl DeadlineLayer {
    /// Creates a layer with this maximum time per request.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        Self { limit }
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = Limit<S>;

    fn layer(&self, inner: S) -> Limit<S> {
        Limit {
            inner,
            limit: self.limit,
        }
    }
}

/// Enforces the deadline of a service.
#[derive(Debug, Clone)]
pub struct Limit<S> {
    inner: S,
    limit: Duration,
}

impl<S> Service<Request<Body>> for Limit<S>
where
    S: Service<Request<Body>, Error = Problem>,
{
    type Response = S::Response;
    type Error = Problem;
    type Future = Either<InTime<S::Future>, Ready<Result<S::Response, Problem>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Problem>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let callers = match grpc_timeout(request.headers()) {
            Ok(timeout) => timeout,
            Err(problem) => return Either::Right(ready(Err(problem))),
        };
        if callers.is_some_and(|timeout| timeout.is_zero()) {
            // The caller has stopped waiting, so no work is done.
            return Either::Right(ready(Err(exceeded())));
        }
        let deadline = Deadline::new(callers, self.limit);
        request.extensions_mut().insert(deadline);
        let stay = request.extensions().get().cloned();
        Either::Left(InTime {
            future: self.inner.call(request),
            timer: sleep_until(deadline.instant()),
            stay,
        })
    }
}

/// Returns the caller's timeout: [1 to 8 digits and a
/// unit](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests).
fn grpc_timeout(headers: &HeaderMap) -> Result<Option<Duration>, Problem> {
    let Some(header) = headers.get("grpc-timeout") else {
        return Ok(None);
    };
    let parse = || {
        let (digits, unit) = header.to_str().ok()?.split_at_checked(header.len() - 1)?;
        if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let number: u64 = digits.parse().ok()?;
        match unit {
            "H" => Some(Duration::from_secs(number * 3600)),
            "M" => Some(Duration::from_secs(number * 60)),
            "S" => Some(Duration::from_secs(number)),
            "m" => Some(Duration::from_millis(number)),
            "u" => Some(Duration::from_micros(number)),
            "n" => Some(Duration::from_nanos(number)),
            _ => None,
        }
    };
    if header.is_empty() {
        return Ok(None);
    }
    parse().map(Some).ok_or_else(|| {
        Problem::new(
            Code::InvalidArgument,
            "the grpc-timeout header is malformed: give 1 to 8 digits and one of H, M, S, m, u, n",
        )
    })
}

fn exceeded() -> Problem {
    Problem::new(
        Code::DeadlineExceeded,
        "the deadline passed before the answer was known",
    )
}

pin_project! {
    /// A future of the reply that fails at the deadline.
    pub struct InTime<F> {
        #[pin]
        future: F,
        #[pin]
        timer: Sleep,
        stay: Option<Arc<Stay>>,
    }
}

impl<F, T> Future for InTime<F>
where
    F: Future<Output = Result<T, Problem>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        if let Poll::Ready(answer) = this.future.poll(cx) {
            return Poll::Ready(answer);
        }
        task::ready!(this.timer.as_mut().poll(cx));
        // A request that waits may take longer.
        if let Some(until) = this.stay.take().and_then(|stay| stay.until()) {
            this.timer.as_mut().reset(until);
            task::ready!(this.timer.poll(cx));
        }
        Poll::Ready(Err(exceeded()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;
    use tower::{ServiceExt as _, service_fn};

    use super::*;

    /// Returns the remaining time that the service sees; the service replies or hangs.
    async fn ask(timeout: Option<&str>, answers: bool) -> Result<Duration, Problem> {
        let inner = service_fn(move |request: Request<Body>| async move {
            if !answers {
                std::future::pending::<()>().await;
            }
            Ok(Deadline::of(request.extensions()).instant() - Instant::now())
        });
        let mut request = Request::new(Body::empty());
        if let Some(timeout) = timeout {
            let timeout = timeout.parse().expect("a header value");
            request.headers_mut().insert("grpc-timeout", timeout);
        }
        DeadlineLayer::new(Duration::from_secs(10))
            .layer(inner)
            .oneshot(request)
            .await
    }

    #[tokio::test(start_paused = true)]
    async fn the_sooner_of_both_limits_counts() {
        for (timeout, left) in [
            (None, Duration::from_secs(10)),
            (Some("1H"), Duration::from_secs(10)),
            (Some("2S"), Duration::from_secs(2)),
            (Some("300m"), Duration::from_millis(300)),
            (Some("99999999n"), Duration::from_nanos(99_999_999)),
        ] {
            assert_eq!(ask(timeout, true).await, Ok(left), "{timeout:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_answer_in_time_is_deadline_exceeded() {
        let started = Instant::now();
        let refused = ask(Some("250m"), false)
            .await
            .map_err(|problem| problem.code);
        assert_eq!(refused, Err(Code::DeadlineExceeded));
        assert_eq!(started.elapsed().as_millis(), 250);
    }

    #[tokio::test]
    async fn a_malformed_timeout_is_refused() {
        for timeout in ["S", "1", "1s", "123456789S", "-1S", "1 S", "½S"] {
            let refused = ask(Some(timeout), true)
                .await
                .map_err(|problem| problem.code);
            assert_eq!(refused, Err(Code::InvalidArgument), "{timeout}");
        }
    }
}
