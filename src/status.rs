//! The error table that every layer and every transport uses. [`crate::transport`] maps the errors of
//! elections, policies and pods to its rows.

use std::time::Duration;

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};
use tonic::{Status, metadata::MetadataValue};

use crate::endpoint::Protocol;

macro_rules! table {
    ($($(#[doc = $doc:literal])+ $code:ident => $grpc:ident, $http:ident;)+) => {
        /// The kind of an error, the same for callers of every protocol.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[doc = $doc])+ $code,)+ }

        impl Code {
            /// Every row of the table.
            pub const ALL: &'static [Self] = &[$(Self::$code),+];

            /// The row's name: the `code` member of a problem.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$code => stringify!($code),)+ }
            }

            /// The status that gRPC and gRPC-Web callers get.
            #[must_use]
            pub fn grpc(self) -> tonic::Code {
                match self { $(Self::$code => tonic::Code::$grpc,)+ }
            }

            /// The status that REST callers get.
            #[must_use]
            pub fn http(self) -> StatusCode {
                match self { $(Self::$code => StatusCode::$http,)+ }
            }

            /// What the row means, for the API reference.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$code => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

table! {
    /// The request is malformed or a value is out of range; nothing was changed.
    InvalidArgument => InvalidArgument, BAD_REQUEST;
    /// The caller did not prove who it is; nothing was changed.
    Unauthenticated => Unauthenticated, UNAUTHORIZED;
    /// The caller may not do this; nothing was changed.
    PermissionDenied => PermissionDenied, FORBIDDEN;
    /// There is no such path, deployment or pod, or the election is vacant.
    NotFound => NotFound, NOT_FOUND;
    /// The path does not have this method; `Allow` lists those it has.
    MethodNotAllowed => Unimplemented, METHOD_NOT_ALLOWED;
    /// Another candidate leads, the token is not the leader's, or the request id was used.
    Conflict => AlreadyExists, CONFLICT;
    /// The request is over 64 KiB; nothing was changed.
    PayloadTooLarge => ResourceExhausted, PAYLOAD_TOO_LARGE;
    /// The body is not of a media type that the path takes, or is compressed; nothing was changed.
    UnsupportedMediaType => InvalidArgument, UNSUPPORTED_MEDIA_TYPE;
    /// The caller asks too often; nothing was changed.
    RateLimited => ResourceExhausted, TOO_MANY_REQUESTS;
    /// The caller holds as many elections as it may, or all callers do of the kind; nothing was changed.
    OverQuota => ResourceExhausted, TOO_MANY_REQUESTS;
    /// The agent has too much to do; nothing was changed.
    Overloaded => ResourceExhausted, TOO_MANY_REQUESTS;
    /// This agent does not offer that; nothing was changed.
    Disabled => Unimplemented, NOT_IMPLEMENTED;
    /// No quorum of lease nodes gave an answer: the outcome is not known. Of pods: what is known is too old.
    Unavailable => Unavailable, SERVICE_UNAVAILABLE;
    /// The memory of the lease nodes has no room for another election; nothing was granted. Leaders extend and resign
    /// as ever.
    StoreFull => Unavailable, SERVICE_UNAVAILABLE;
    /// The deadline passed first: the outcome is not known.
    DeadlineExceeded => DeadlineExceeded, GATEWAY_TIMEOUT;
    /// The agent or its store is at fault: its log has the cause, and a retry does not help. The outcome is not known.
    Internal => Internal, INTERNAL_SERVER_ERROR;
}

/// The header that reports when the caller may try again.
const GRPC_RETRY_PUSHBACK: &str = "grpc-retry-pushback-ms";

impl Code {
    /// The row of the table that a response represents, in any protocol; [`None`] if the response is not an
    /// error of the table.
    #[must_use]
    pub fn of<B>(response: &http::Response<B>) -> Option<Self> {
        let named = || {
            let name = response.headers().get(GRPC_CODE)?;
            let mut all = Self::ALL.iter();
            all.find(|code| name == code.name()).copied()
        };
        response.extensions().get().copied().or_else(named)
    }
}

/// The header that names the row to gRPC callers, because several rows share a gRPC status.
const GRPC_CODE: &str = "x-election-agent-code";

/// An error that is returned to the caller.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// The row of the table.
    pub code: Code,
    /// What is wrong and what to change. Contains no internals and no secrets.
    pub message: String,
    /// After what time another try may succeed.
    pub retry_after: Option<Duration>,
    /// Additional members of the problem document.
    pub details: Map<String, Value>,
}

impl Problem {
    /// Creates a problem of this row.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            retry_after: None,
            details: Map::new(),
        }
    }

    /// Creates a problem for an internal error. The code that creates it logs the cause.
    #[must_use]
    pub fn bug() -> Self {
        Self::new(Code::Internal, "the agent failed; its log has the cause")
    }

    /// Adds a member to the problem document.
    #[must_use]
    pub fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.details.insert(member.to_owned(), value.into());
        self
    }

    /// The RFC 9457 problem document, with the members `code` and `message`.
    #[must_use]
    pub fn document(&self) -> Value {
        let status = self.code.http();
        let mut document = json!({
            "type": "about:blank",
            "title": status.canonical_reason().unwrap_or("Error"),
            "status": status.as_u16(),
            "detail": self.message,
            "message": self.message,
            "code": self.code.name(),
        });
        if let Some(members) = document.as_object_mut() {
            members.extend(self.details.clone());
        }
        document
    }

    /// Renders the response in the caller's protocol. Its extensions contain the row, which a gRPC status
    /// alone does not identify.
    #[must_use]
    pub fn render(self, protocol: Protocol) -> Response {
        let code = self.code;
        let mut response: Response = match protocol {
            Protocol::Rest => return self.into_response(),
            Protocol::Grpc | Protocol::GrpcWeb(_) => Status::from(self).into_http(),
        };
        if let Protocol::GrpcWeb(content_type) = protocol {
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        response.extensions_mut().insert(code);
        response
    }
}

/// Renders the [document](Problem::document).
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.document().to_string()));
        *response.status_mut() = self.code.http();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(wait) = self.retry_after.or(default_retry(self.code)) {
            headers.insert(
                header::RETRY_AFTER,
                HeaderValue::from(wait.as_nanos().div_ceil(1_000_000_000) as u64),
            );
        }
        if self.code == Code::Unauthenticated {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.code == Code::UnsupportedMediaType {
            // RFC 9110: a 415 may refer to the content coding.
            let none = HeaderValue::from_static("identity");
            headers.insert(header::ACCEPT_ENCODING, none);
        }
        response.extensions_mut().insert(self.code);
        response
    }
}

impl From<Problem> for Status {
    fn from(problem: Problem) -> Self {
        let mut status = Self::new(problem.code.grpc(), problem.message);
        let code = MetadataValue::from_static(problem.code.name());
        status.metadata_mut().insert(GRPC_CODE, code);
        if let Some(wait) = problem.retry_after {
            // Rounds up: a caller that returns sooner is refused again.
            let ms = u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
            status.metadata_mut().insert(GRPC_RETRY_PUSHBACK, ms.into());
        }
        status
    }
}

/// Responses with status 429 always have a retry time.
fn default_retry(code: Code) -> Option<Duration> {
    (code.http() == StatusCode::TOO_MANY_REQUESTS).then_some(Duration::from_secs(1))
}
