//! Requests as the layers pass them on: with the caller's identity and a deadline.

use std::future::ready;

use axum::body::Body;
use election_agent::{
    auth::{Caller, Identity},
    endpoint::{ELECTION_PATH, classified},
    layers::deadline::DeadlineLayer,
    status::Problem,
    transport::{Mux, request::Deadline},
};
use http::{Request, StatusCode, Version, header, request::Parts};
use http_body_util::BodyExt as _;
use prost::Message;
use tower::{Layer as _, ServiceExt as _, service_fn};

use crate::quorum::HOUR;

fn anonymous() -> Caller {
    Caller::Known(Identity::anonymous())
}

/// A deadline in an hour, as the layers set it.
pub(crate) async fn deadline() -> Deadline {
    let told = service_fn(|request: Request<Body>| {
        let deadline = request.extensions().get::<Deadline>().copied();
        ready(Ok::<_, Problem>(deadline))
    });
    let told = DeadlineLayer::new(HOUR)
        .layer(told)
        .oneshot(Request::default());
    told.await.expect("in time").expect("a deadline")
}

/// A request as the layers pass it on, for repeated use.
#[derive(Clone)]
pub(crate) struct Template {
    head: Parts,
    body: Vec<u8>,
}

impl Template {
    pub(crate) fn grpc(method: &str, message: &impl Message, deadline: Deadline) -> Self {
        let message = message.encode_to_vec();
        let length = u32::try_from(message.len()).expect("a short message");
        let request = Request::post(format!("{ELECTION_PATH}{method}"))
            .version(Version::HTTP_2)
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers");
        let body = [&[0], length.to_be_bytes().as_slice(), &message].concat();
        Self::new(request, body, deadline)
    }

    pub(crate) fn rest(method: &str, path: &str, body: &str, deadline: Deadline) -> Self {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json");
        Self::new(request, body.as_bytes().to_vec(), deadline)
    }

    fn new(request: http::request::Builder, body: Vec<u8>, deadline: Deadline) -> Self {
        let request = request.extension(anonymous()).extension(deadline);
        let request = classified(request.body(()).expect("a request"));
        let (head, ()) = request.into_parts();
        Self { head, body }
    }

    pub(crate) fn request(&self) -> Request<Body> {
        Request::from_parts(self.head.clone(), Body::from(self.body.clone()))
    }
}

/// Returns whether the response has a message or document. Reads the body, because it is written only when it
/// is read.
pub(crate) async fn answered(mux: Mux, request: Request<Body>) -> bool {
    let Ok(response) = mux.oneshot(request).await else {
        return false;
    };
    let status = response.status();
    let body: Result<_, _> = response.into_body().collect().await;
    // A refusal over gRPC has a status only.
    status == StatusCode::OK && body.is_ok_and(|body| !body.to_bytes().is_empty())
}

/// A message as the layers pass it on.
pub(crate) fn known<T>(message: T, deadline: Deadline) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.extensions_mut().insert(anonymous());
    request.extensions_mut().insert(deadline);
    request
}
