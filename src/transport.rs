//! The mux: one service that answers gRPC, gRPC-Web, REST and probes on every port.

mod action;
pub mod grpc;
pub mod rest;
pub mod status;
mod term;

use std::{
    borrow::Cow,
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::Body, response::Response};
use futures_util::future::{BoxFuture, FutureExt as _, ready};
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Version, header};
use tonic_web::{GrpcWebLayer, GrpcWebService};
use tower::{Layer as _, Service, ServiceExt as _};

use crate::{
    auth::{Caller, Identity},
    peer::Peer,
};
pub use action::Action;
use status::{Code, Problem};

/// How a caller speaks, and so how it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC over HTTP/2.
    Grpc,
    /// gRPC-Web over HTTP/1.1 or HTTP/2, with the content type of its answers.
    GrpcWeb(&'static str),
    /// REST, and everything else that is not gRPC.
    Rest,
}

impl Protocol {
    /// Tells the protocol from a request's content type.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let media_type = media_type(headers);
        if media_type.starts_with("application/grpc-web-text") {
            Self::GrpcWeb("application/grpc-web-text+proto")
        } else if media_type.starts_with("application/grpc-web") {
            Self::GrpcWeb("application/grpc-web+proto")
        } else if media_type.starts_with("application/grpc") {
            Self::Grpc
        } else {
            Self::Rest
        }
    }
}

/// The content type without its parameters, in lower case.
fn media_type(headers: &HeaderMap) -> Cow<'_, str> {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    match media_type.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => media_type.to_ascii_lowercase().into(),
        false => media_type.into(),
    }
}

/// Refuses what is not HTTP/1.1 or HTTP/2 as it should be. Load balancers look after the agent's health by HTTP/1.0.
fn check_http(request: &mut Request<Body>) -> Result<(), Problem> {
    let version = request.version();
    if version < Version::HTTP_11 {
        if !is_for_operators(request.uri().path()) {
            return Err(Problem::new(
                Code::InvalidArgument,
                "HTTP/1.0 is not supported but for /livez, /readyz and /metrics: use HTTP/1.1 or HTTP/2 (in nginx: \
                 proxy_http_version 1.1)",
            ));
        }
        // What HAProxy's `option httpchk` asks unless it is told a method.
        if request.method() == Method::OPTIONS {
            *request.method_mut() = Method::GET;
        }
    }
    let hosts = request.headers().get_all(header::HOST).iter().count();
    // RFC 9112, 3.2: proxies that take another host for the first than servers do can be told apart from both.
    if version == Version::HTTP_11 && hosts != 1 {
        return Err(Problem::new(
            Code::InvalidArgument,
            format!("a request over HTTP/1.1 has one Host header: this one has {hosts}"),
        ));
    }
    Ok(())
}

/// Refuses gRPC requests that the services would misread, and gives the others the content type that
/// they know.
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
            // Who does not say how it wants the answer wants it as it has asked.
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

/// What a path is for, as far as it matters who may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area {
    /// Whether the agent works: `/livez`, `/readyz`, gRPC health.
    Probes,
    /// `/metrics`.
    Metrics,
    /// How to ask: `/`, the OpenAPI document, Swagger UI, gRPC reflection.
    Documents,
    /// Everything else.
    Api,
}

impl Area {
    /// The areas that may be public, and how `EA_AUTH_PUBLIC` calls them.
    pub const NAMED: [(&'static str, Self); 3] = [
        ("probes", Self::Probes),
        ("metrics", Self::Metrics),
        ("docs", Self::Documents),
    ];

    /// What this path is for.
    #[must_use]
    pub fn of(path: &str) -> Self {
        match path {
            "/livez"
            | "/readyz"
            | grpc::HEALTH_CHECK
            | grpc::HEALTH_WATCH
            | "/grpc.health.v1.Health/List" => return Self::Probes,
            "/metrics" => return Self::Metrics,
            "/" | "/openapi.json" | "/openapi_v3.yaml" => return Self::Documents,
            _ => {}
        }
        // What has paths below it.
        match path.split('/').nth(1) {
            Some("swagger-ui") => Self::Documents,
            _ if grpc::is_reflection(path) => Self::Documents,
            _ => Self::Api,
        }
    }
}

/// Whether a path is for those who watch the agent, and answered at once: what limits requests lets it pass.
/// The health service's streams are not, which last as long as their clients like.
#[must_use]
pub fn is_for_operators(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz" | "/metrics" | grpc::HEALTH_CHECK)
}

/// Whether a path is of a stream that is none of the API: of the health service, or of reflection.
#[must_use]
pub fn is_stream_for_all(path: &str) -> bool {
    path == grpc::HEALTH_WATCH || grpc::is_reflection(path)
}

/// On whose behalf a request goes on, as the authentication layer has found out.
///
/// # Errors
/// Internal, which is logged: the request has not passed that layer.
pub fn caller(extensions: &Extensions) -> Result<&Caller, Problem> {
    extensions.get().ok_or_else(unverified)
}

/// Who asks, where everybody is asked who they are.
///
/// # Errors
/// Internal, which is logged: the request has not passed the authentication layer, or that takes its path for public.
pub fn identity(extensions: &Extensions) -> Result<&Identity, Problem> {
    caller(extensions)?.identity().ok_or_else(unverified)
}

/// Who is at the other end of the request's connection.
///
/// # Errors
/// Internal, which is logged: whoever has taken the request did not tell.
pub fn peer(extensions: &Extensions) -> Result<&Peer, Problem> {
    extensions.get().ok_or_else(|| {
        tracing::error!("the request carries no peer, and is refused; this is a bug");
        Problem::bug()
    })
}

fn unverified() -> Problem {
    tracing::error!("the request carries no verified identity, and is refused; this is a bug");
    Problem::bug()
}

/// The header, and over gRPC the trailer, that tells how old pods are, in ms.
pub const CACHE_AGE: HeaderName = HeaderName::from_static("x-election-agent-cache-age");

/// How old pods are, as [`CACHE_AGE`] tells it: rounded up, as they are no older than that.
fn cache_age(age: Duration) -> HeaderValue {
    let ms = age.as_nanos().div_ceil(1_000_000);
    HeaderValue::from(u64::try_from(ms).unwrap_or(u64::MAX))
}

/// Sends each request to gRPC or to the HTTP routes by its protocol.
#[derive(Clone)]
pub struct Mux {
    grpc: GrpcWebService<grpc::Services>,
    rest: axum::Router,
}

impl Mux {
    /// A mux over the gRPC services and the HTTP routes.
    #[must_use]
    pub fn new(grpc: grpc::Services, rest: axum::Router) -> Self {
        Self {
            // Around gRPC alone: to plain HTTP/1 it would answer 400.
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
        if let Err(problem) = check_http(&mut request) {
            return ready(Err(problem)).boxed();
        }
        match Protocol::of(request.headers()) {
            protocol @ (Protocol::Grpc | Protocol::GrpcWeb(_)) => {
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
    use super::*;

    #[test]
    fn the_content_type_tells_the_protocol() {
        for (content_type, protocol) in [
            ("application/grpc", Protocol::Grpc),
            ("application/grpc+proto", Protocol::Grpc),
            (
                "application/grpc-web",
                Protocol::GrpcWeb("application/grpc-web+proto"),
            ),
            (
                "application/grpc-web-text",
                Protocol::GrpcWeb("application/grpc-web-text+proto"),
            ),
            (
                "Application/gRPC-Web; charset=utf-8",
                Protocol::GrpcWeb("application/grpc-web+proto"),
            ),
            ("application/grpc+json", Protocol::Grpc),
            ("application/json", Protocol::Rest),
        ] {
            let headers = HeaderMap::from_iter([(
                header::CONTENT_TYPE,
                HeaderValue::from_static(content_type),
            )]);
            assert_eq!(Protocol::of(&headers), protocol, "{content_type}");
        }
        assert_eq!(Protocol::of(&HeaderMap::new()), Protocol::Rest);
    }

    #[test]
    fn elections_are_for_those_alone_who_were_asked_for_a_name() {
        let told = |caller: Option<Caller>| {
            let mut extensions = Extensions::new();
            caller.map(|caller| extensions.insert(caller));
            identity(&extensions).cloned().map_err(|it| it.code)
        };
        let anonymous = Identity::anonymous();
        assert_eq!(told(Some(Caller::Known(anonymous.clone()))), Ok(anonymous));
        assert_eq!(told(Some(Caller::Public)), Err(Code::Internal));
        assert_eq!(told(None), Err(Code::Internal));
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

    #[test]
    fn an_area_has_the_paths_that_there_are_and_no_others() {
        for (area, paths) in [
            (
                Area::Probes,
                &[
                    "/livez",
                    "/readyz",
                    "/grpc.health.v1.Health/Check",
                    "/grpc.health.v1.Health/Watch",
                    "/grpc.health.v1.Health/List",
                ][..],
            ),
            (Area::Metrics, &["/metrics"]),
            (
                Area::Documents,
                &[
                    "/",
                    "/openapi.json",
                    "/openapi_v3.yaml",
                    "/swagger-ui",
                    "/swagger-ui/",
                    "/swagger-ui/index.html",
                    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                ],
            ),
            (
                Area::Api,
                &[
                    "/election/livez",
                    "//livez",
                    "/livez/",
                    "/livez/anything",
                    "/readyz/x",
                    "//metrics/x",
                    "/metrics/",
                    "/grpc.health.v1.Health/",
                    "/grpc.health.v1.Health/Check/x",
                    "/openapi.json/x",
                    "/swagger-uix",
                ],
            ),
        ] {
            for path in paths {
                assert_eq!(Area::of(path), area, "{path}");
                let is_probe = Action::of(&Method::GET, path) == Action::Probe;
                assert_eq!(is_probe, area == Area::Probes, "{path}");
            }
        }
    }

    #[test]
    fn what_passes_limits_is_answered_at_once() {
        for path in [
            "/livez",
            "/readyz",
            "/metrics",
            "/grpc.health.v1.Health/Check",
        ] {
            assert!(is_for_operators(path), "{path}");
        }
        for path in [
            "/grpc.health.v1.Health/Watch",
            "/grpc.health.v1.Health/List",
            "/livez/x",
            "//metrics",
            "/openapi.json",
        ] {
            assert!(!is_for_operators(path), "{path}");
        }
    }
}
