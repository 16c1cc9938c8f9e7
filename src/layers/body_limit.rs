//! Refuses bodies over 64 KiB.
//!
//! A `Content-Length` over the limit is refused before anything is read. A REST body without one is cut
//! off at the limit, which the JSON reader answers in the same words. A gRPC body is a stream of messages
//! of any total length, so each message is held to the limit by tonic's decoder.
//!
//! Refusal: PayloadTooLarge (RESOURCE_EXHAUSTED, 413).

use std::task::{Context, Poll};

use axum::body::Body;
use futures_util::future::{Either, Ready, ready};
use http::{Request, header};
use http_body_util::Limited;
use tower::{Layer, Service};

use crate::transport::{
    Protocol,
    status::{Code, Problem},
};

/// The largest body of a REST request and message of a gRPC call, in bytes.
pub const MAX_BODY: usize = 64 * 1024;

/// What a body over the limit is answered.
pub(crate) fn too_large() -> Problem {
    Problem::new(
        Code::PayloadTooLarge,
        format!("the request is over {MAX_BODY} bytes: send less"),
    )
}

/// Applies [`BodyLimit`].
#[derive(Debug, Clone, Copy)]
pub struct BodyLimitLayer;

impl<S> Layer<S> for BodyLimitLayer {
    type Service = BodyLimit<S>;

    fn layer(&self, inner: S) -> BodyLimit<S> {
        BodyLimit { inner }
    }
}

/// Refuses bodies over [`MAX_BODY`].
#[derive(Debug, Clone)]
pub struct BodyLimit<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for BodyLimit<S>
where
    S: Service<Request<Body>, Error = Problem>,
{
    type Response = S::Response;
    type Error = Problem;
    type Future = Either<S::Future, Ready<Result<S::Response, Problem>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Problem>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let announced = request
            .headers()
            .get(header::CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > MAX_BODY as u64) {
            return Either::Right(ready(Err(too_large())));
        }
        let request = match Protocol::of(request.headers()) {
            Protocol::Rest => request.map(|body| Body::new(Limited::new(body, MAX_BODY))),
            Protocol::Grpc | Protocol::GrpcWeb(_) => request,
        };
        Either::Left(self.inner.call(request))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;
    use tower_test::mock;

    use super::*;

    fn request(length: Option<usize>, body: usize) -> Request<Body> {
        let mut request = Request::new(Body::from(vec![b'x'; body]));
        if let Some(length) = length {
            request
                .headers_mut()
                .insert(header::CONTENT_LENGTH, length.into());
        }
        request
    }

    #[tokio::test]
    async fn an_announced_body_over_the_limit_is_refused_unread() {
        let (inner, mut handle) = mock::pair::<Request<Body>, ()>();
        let limited = BodyLimitLayer.layer(inner.map_err(|_| too_large()));
        handle.allow(1);
        let refused = limited.oneshot(request(Some(MAX_BODY + 1), 0)).await;
        assert_eq!(
            refused.map_err(|problem| problem.code),
            Err(Code::PayloadTooLarge)
        );
    }

    #[tokio::test]
    async fn an_unannounced_body_is_cut_off_at_the_limit() {
        for (size, fits) in [(MAX_BODY, true), (MAX_BODY + 1, false)] {
            let (inner, mut handle) = mock::pair::<Request<Body>, ()>();
            let limited = BodyLimitLayer.layer(inner.map_err(|_| too_large()));
            let call = tokio::spawn(limited.oneshot(request(None, size)));
            let (passed, respond) = handle.next_request().await.expect("passed on");
            assert_eq!(passed.into_body().collect().await.is_ok(), fits);
            respond.send_response(());
            assert_eq!(call.await.expect("no panic"), Ok(()));
        }
    }
}
