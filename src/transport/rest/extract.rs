//! Extractors whose rejections are rows of the error table.

use std::fmt;

use axum::{
    extract::{FromRequest, FromRequestParts, OptionalFromRequest, Path, Query, Request},
    http::{HeaderMap, header, request::Parts},
};
use bytes::Bytes;
use election_core::types::ElectionId;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, de::DeserializeOwned};

use super::dto::ElectionPath;
use crate::status::{Code, Problem};

/// A JSON body. The content type must be `application/json`.
pub(super) struct Json<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(Problem::new(
                Code::UnsupportedMediaType,
                "the body must be JSON: send it with \"Content-Type: application/json\"",
            ));
        }
        let body = read(request, state).await?;
        parse(&body).map(Self)
    }
}

/// An optional JSON body.
impl<S: Send + Sync, T: DeserializeOwned> OptionalFromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Option<Self>, Problem> {
        let json = is_json(request.headers());
        let body = read(request, state).await?;
        if body.is_empty() {
            return Ok(None);
        }
        if !json {
            return Err(Problem::new(
                Code::UnsupportedMediaType,
                "the body must be JSON: send it with \"Content-Type: application/json\"",
            ));
        }
        parse(&body).map(|value| Some(Self(value)))
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|media_type| media_type.trim().eq_ignore_ascii_case("application/json"))
}

async fn read<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    Bytes::from_request(request, state)
        .await
        .map_err(|rejection| {
            Problem::new(
                Code::InvalidArgument,
                format!("the body cannot be read: {}", rejection.body_text()),
            )
        })
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let refuse = |what: &dyn fmt::Display| {
        Problem::new(
            Code::InvalidArgument,
            format!("the body is not the JSON that this path takes: {what}"),
        )
    };
    // RFC 8259 permits readers to ignore the byte order mark that some editors and languages write.
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    // Serde accepts an array as the members in their order.
    if body
        .trim_ascii_start()
        .first()
        .is_some_and(|first| *first != b'{')
    {
        return Err(refuse(&"give an object: {…}"));
    }
    serde_json::from_slice(body).map_err(|error| refuse(&error))
}

/// The parameters of a path that takes no query.
pub(super) struct Named<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Named<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let named = named(parts, state).await?;
        Search::<NoQuery>::from_request_parts(parts, state).await?;
        Ok(Self(named))
    }
}

async fn named<S: Send + Sync, T: DeserializeOwned + Send>(
    parts: &mut Parts,
    state: &S,
) -> Result<T, Problem> {
    check_encoding("path", parts.uri.path())?;
    let path = Path::<T>::from_request_parts(parts, state).await;
    path.map(|Path(path)| path).map_err(|rejection| {
        Problem::new(
            Code::InvalidArgument,
            format!("the path cannot be read: {}", rejection.body_text()),
        )
    })
}

/// The election in a path that takes no query.
pub(super) struct Target(pub(super) ElectionId);

impl<S: Send + Sync> FromRequestParts<S> for Target {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Named(path) = Named::<ElectionPath>::from_request_parts(parts, state).await?;
        Ok(Self(path.election()?))
    }
}

/// The election in a path that takes a query, which another extractor reads.
pub(super) struct Queried(pub(super) ElectionId);

impl<S: Send + Sync> FromRequestParts<S> for Queried {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path: ElectionPath = named(parts, state).await?;
        Ok(Self(path.election()?))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoQuery {}

/// The parameters of the query.
pub(super) struct Search<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Search<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        check_encoding("query", parts.uri.query().unwrap_or_default())?;
        Query::try_from_uri(&parts.uri)
            .map(|Query(query)| Self(query))
            .map_err(|rejection| {
                Problem::new(
                    Code::InvalidArgument,
                    format!(
                        "the query is not what this path takes: {}",
                        rejection.body_text()
                    ),
                )
            })
    }
}

/// Rejects malformed escapes and text that is not UTF-8. Later decoders take such an escape literally and
/// replace invalid bytes: two spellings would then name one election.
fn check_encoding(part: &str, text: &str) -> Result<(), Problem> {
    let hex = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_hexdigit);
    let bytes = text.as_bytes();
    let escaped = bytes
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'%')
        .all(|(at, _)| hex(bytes.get(at + 1)) && hex(bytes.get(at + 2)));
    if escaped && percent_decode_str(text).decode_utf8().is_ok() {
        return Ok(());
    }
    Err(Problem::new(
        Code::InvalidArgument,
        format!(
            "the {part} cannot be read: percent-encode names as UTF-8, and \"%\" itself as %25"
        ),
    ))
}
