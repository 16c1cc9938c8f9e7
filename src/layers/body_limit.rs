//! Refuses bodies over 64 KiB.
//!
//! REST and gRPC-Web bodies are short. They are read completely here, and a body over the limit is refused before any
//! layer below sees it. Compressed bodies are refused, because their length says little about their content. A gRPC
//! body is a stream of messages of any total length; tonic's decoder applies the limit to each message.
//!
//! Refusals: PayloadTooLarge (RESOURCE_EXHAUSTED, 413); UnsupportedMediaType (INVALID_ARGUMENT, 415) for a body with a
//! content coding; InvalidArgument for an incomplete body.

use std::task::{Context, Poll};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures_util::future::{BoxFuture, Either, FutureExt as _, Ready, ready};
use http::{HeaderMap, Request, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tower::{Layer, Service, ServiceExt as _};

use crate::{
    endpoint::Protocol,
    status::{Code, Problem},
    transport::request::{MAX_BODY, endpoint, too_large},
};

/// Maximum size of a gRPC-Web body: a message of [`MAX_BODY`] with its frame, in base64.
const MAX_GRPC_WEB_BODY: usize = 2 * MAX_BODY;

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
    S: Service<Request<Body>, Error = Problem, Response: 'static, Future: Send>
        + Clone
        + Send
        + 'static,
{
    type Response = S::Response;
    type Error = Problem;
    type Future = Either<
        Either<S::Future, Ready<Result<S::Response, Problem>>>,
        BoxFuture<'static, Result<S::Response, Problem>>,
    >;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Problem>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let limit = match endpoint(request.extensions()).map(|endpoint| endpoint.protocol) {
            Ok(Protocol::Rest) => MAX_BODY,
            Ok(Protocol::GrpcWeb(_)) => MAX_GRPC_WEB_BODY,
            Ok(Protocol::Grpc) => return Either::Left(Either::Left(self.inner.call(request))),
            Err(problem) => return Either::Left(Either::Right(ready(Err(problem)))),
        };
        if request.body().is_end_stream() {
            return Either::Left(Either::Left(self.inner.call(request)));
        }
        let inner = self.inner.clone();
        let read_first = async move {
            let (parts, body) = request.into_parts();
            check_coding(&parts.headers)?;
            let body = read(body, limit).await?;
            inner.oneshot(Request::from_parts(parts, body.into())).await
        };
        Either::Right(read_first.boxed())
    }
}

async fn read(mut body: Body, limit: usize) -> Result<Bytes, Problem> {
    let mut kept = BytesMut::new();
    if body.size_hint().lower() <= limit as u64 {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                Problem::new(
                    Code::InvalidArgument,
                    format!("the body breaks off: {error}"),
                )
            })?;
            if let Some(data) = frame.data_ref() {
                kept.extend_from_slice(data);
            }
            if kept.len() > limit {
                break;
            }
        }
        if kept.len() <= limit {
            return Ok(kept.freeze());
        }
    }
    Err(too_large())
}

/// Refuses compressed bodies.
fn check_coding(headers: &HeaderMap) -> Result<(), Problem> {
    let codings = headers.get_all(header::CONTENT_ENCODING);
    let plain = |coding: &[u8]| coding.trim_ascii().eq_ignore_ascii_case(b"identity");
    match codings.iter().all(|coding| plain(coding.as_bytes())) {
        true => Ok(()),
        false => Err(Problem::new(
            Code::UnsupportedMediaType,
            "the body must not be compressed: send it without Content-Encoding",
        )),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use tower_test::mock::{self, Handle};

    use super::*;
    use crate::endpoint::classified;

    type Inner = Handle<Request<Body>, ()>;

    fn limited() -> (
        impl Service<Request<Body>, Response = (), Error = Problem, Future: Send>,
        Inner,
    ) {
        let (inner, mut handle) = mock::pair::<Request<Body>, ()>();
        handle.allow(1);
        let as_problem = |error| Problem::new(Code::Internal, format!("{error}"));
        (BodyLimitLayer.layer(inner.map_err(as_problem)), handle)
    }

    fn request(content_type: &str, body: usize) -> Request<Body> {
        let request = Request::post("/")
            .header(header::CONTENT_TYPE, content_type)
            .body(Body::from(vec![b'x'; body]));
        classified(request.expect("a request"))
    }

    #[tokio::test]
    async fn a_body_at_the_limit_is_passed_on_whole() {
        for (content_type, size) in [
            ("application/json", 0),
            ("application/json", MAX_BODY),
            ("application/grpc-web-text", MAX_GRPC_WEB_BODY),
            ("application/grpc", 10 * MAX_BODY),
        ] {
            let (service, mut inner) = limited();
            let call = tokio::spawn(service.oneshot(request(content_type, size)).boxed());
            let (passed, answer) = inner.next_request().await.expect("passed on");
            let body = passed.into_body().collect().await.expect("readable");
            assert_eq!(body.to_bytes().len(), size, "{content_type}");
            answer.send_response(());
            assert_eq!(call.await.expect("no panic"), Ok(()));
        }
    }

    #[tokio::test]
    async fn a_compressed_body_is_refused_and_one_that_says_that_it_is_not_is_taken() {
        for (coding, taken) in [("gzip", false), ("identity, br", false), ("Identity", true)] {
            let (service, mut inner) = limited();
            let mut request = request("application/json", 10);
            let value = HeaderValue::from_static(coding);
            request
                .headers_mut()
                .insert(header::CONTENT_ENCODING, value);
            let call = tokio::spawn(service.oneshot(request).boxed());
            if taken {
                let (_, answer) = inner.next_request().await.expect("passed on");
                answer.send_response(());
            }
            let answer = call.await.expect("no panic");
            let code = answer.map_err(|problem| problem.code);
            let refused = Err(Code::UnsupportedMediaType);
            assert_eq!(code, if taken { Ok(()) } else { refused }, "{coding}");
        }
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_and_never_passed_on() {
        for (content_type, size) in [
            ("application/json", MAX_BODY + 1),
            ("application/json", 100 * MAX_BODY),
            ("application/grpc-web+proto", MAX_GRPC_WEB_BODY + 1),
        ] {
            let (service, mut inner) = limited();
            let refused = service.oneshot(request(content_type, size)).await;
            assert_eq!(
                refused.map_err(|problem| problem.code),
                Err(Code::PayloadTooLarge)
            );
            assert!(
                inner.next_request().await.is_none(),
                "{content_type} {size}"
            );
        }
    }
}
