//! The mux: one service that handles gRPC, gRPC-Web, REST and probes on every port.

pub mod agent;
pub mod grpc;
pub mod observe;
mod problem;
pub mod request;
pub mod rest;
#[cfg(test)]
mod scene;
pub mod stay;
pub mod stream;
mod term;

use std::{
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::Body, response::Response};
use futures_util::future::{BoxFuture, FutureExt as _, ready};
use http::{HeaderName, HeaderValue, Method, Request, Version, header};
use tonic_web::{GrpcWebLayer, GrpcWebService};
use tower::{Layer as _, Service, ServiceExt as _};

use crate::{
    endpoint::{Counted, Endpoint, Protocol, media_type},
    status::{Code, Problem},
};
pub use problem::reason;

/// Refuses requests that are not valid HTTP/1.1 or HTTP/2. Accepts health checks of load balancers over
/// HTTP/1.0.
fn check_http(request: &mut Request<Body>, endpoint: Endpoint) -> Result<(), Problem> {
    let version = request.version();
    if version < Version::HTTP_11 {
        if endpoint.counted != Counted::Never {
            return Err(Problem::new(
                Code::InvalidArgument,
                "HTTP/1.0 is not supported but for /livez, /readyz and /metrics: use HTTP/1.1 or HTTP/2 (in nginx: \
                 proxy_http_version 1.1)",
            ));
        }
        // HAProxy's `option httpchk` sends this method by default.
        if request.method() == Method::OPTIONS {
            *request.method_mut() = Method::GET;
        }
    }
    let hosts = request.headers().get_all(header::HOST).iter().count();
    // RFC 9112, 3.2: with several Host headers, a proxy and a server may use different ones.
    if version == Version::HTTP_11 && hosts != 1 {
        return Err(Problem::new(
            Code::InvalidArgument,
            format!("a request over HTTP/1.1 has one Host header: this one has {hosts}"),
        ));
    }
    Ok(())
}

/// Refuses gRPC requests that the services would misread. Gives the others a content type that the services
/// know.
fn check_grpc(request: &mut Request<Body>, protocol: Protocol) -> Result<(), Problem> {
    if request.method() != Method::POST {
        return Err(Problem::new(
            Code::MethodNotAllowed,
            "gRPC calls are POST requests",
        ));
    }
    let media_type = media_type(request.headers());
    let messages = media_type
        .trim_start_matches("application/grpc")
        .trim_start_matches("-web")
        .trim_start_matches("-text");
    if !matches!(messages, "" | "+proto") {
        return Err(Problem::new(
            Code::UnsupportedMediaType,
            "messages must be protobuf: send application/grpc, application/grpc-web+proto or \
             application/grpc-web-text+proto",
        ));
    }
    match protocol {
        Protocol::Grpc if request.version() != Version::HTTP_2 => Err(Problem::new(
            Code::InvalidArgument,
            "gRPC needs HTTP/2: over HTTP/1.1 use gRPC-Web (application/grpc-web+proto) or REST",
        )),
        Protocol::GrpcWeb(content_type) => {
            let content_type = HeaderValue::from_static(content_type);
            let headers = request.headers_mut();
            // Without `Accept`, the response uses the format of the request.
            let accepts = headers.get(header::ACCEPT);
            if !accepts.is_some_and(|media| media.as_bytes().starts_with(b"application/grpc-web")) {
                headers.insert(header::ACCEPT, content_type.clone());
            }
            headers.insert(header::CONTENT_TYPE, content_type);
            Ok(())
        }
        Protocol::Grpc | Protocol::Rest => Ok(()),
    }
}

/// The header, and over gRPC also the trailer, with the age of pod data, in ms.
pub const CACHE_AGE: HeaderName = HeaderName::from_static("x-election-agent-cache-age");

/// The value of [`CACHE_AGE`], rounded up: an upper bound of the age.
fn cache_age(age: Duration) -> HeaderValue {
    let ms = age.as_nanos().div_ceil(1_000_000);
    HeaderValue::from(u64::try_from(ms).unwrap_or(u64::MAX))
}

/// Routes each request to gRPC or to the HTTP routes by its protocol.
#[derive(Clone)]
pub struct Mux {
    grpc: GrpcWebService<grpc::Services>,
    rest: axum::Router,
}

impl Mux {
    /// Creates a mux of the gRPC services and the HTTP routes.
    #[must_use]
    pub fn new(grpc: grpc::Services, rest: axum::Router) -> Self {
        Self {
            // Wraps gRPC alone: the layer rejects plain HTTP/1 with 400.
            grpc: GrpcWebLayer::new().layer(grpc),
            rest,
        }
    }
}

impl Service<Request<Body>> for Mux {
    type Response = Response;
    type Error = Problem;
    type Future = BoxFuture<'static, Result<Response, Problem>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Problem>> {
        // gRPC services and axum routers are always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let checked = request::endpoint(request.extensions())
            .and_then(|endpoint| check_http(&mut request, endpoint).map(|()| endpoint.protocol));
        let protocol = match checked {
            Ok(protocol) => protocol,
            Err(problem) => return ready(Err(problem)).boxed(),
        };
        match protocol {
            Protocol::Grpc | Protocol::GrpcWeb(_) => {
                if let Err(problem) = check_grpc(&mut request, protocol) {
                    return ready(Err(problem)).boxed();
                }
                self.grpc
                    .call(request)
                    .map(|response| {
                        let Ok(response) = response;
                        Ok(grpc::blame_the_caller(response).map(Body::new))
                    })
                    .boxed()
            }
            Protocol::Rest => self
                .rest
                .clone()
                .oneshot(request)
                .map(|response| {
                    let Ok(response) = response;
                    Ok(response)
                })
                .boxed(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;
    use tonic_health::server::{HealthReporter, HealthService};

    use super::*;

    #[tokio::test]
    async fn a_request_that_has_not_been_classified_is_refused() {
        let health = HealthService::from_health_reporter(HealthReporter::new());
        let services = grpc::Services::new(None, health, CancellationToken::new());
        let mux = Mux::new(services.expect("built in"), axum::Router::new());
        let refused = mux.oneshot(Request::default()).await.expect_err("nobody's");
        assert_eq!(refused.code, Code::Internal);
    }

    #[test]
    fn a_callers_fault_is_what_tonic_refuses_and_not_what_a_handler_does() {
        let blamed = |status: tonic::Status| {
            let response = grpc::blame_the_caller(status.into_http::<()>());
            Code::of(&response)
        };
        let of_tonic = tonic::Status::internal("protocol error");
        assert_eq!(blamed(of_tonic), Some(Code::InvalidArgument));
        assert_eq!(blamed(Problem::bug().into()), Some(Code::Internal));
    }
}
