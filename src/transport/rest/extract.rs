//! Reads requests, and says what is wrong with them in the words of the error table.

use std::convert::Infallible;

use axum::{
    extract::{FromRequest, FromRequestParts, OptionalFromRequest, Path, Query, Request},
    http::{HeaderMap, header, request::Parts},
};
use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::{
    layers::deadline::Deadline,
    transport::status::{Code, Problem},
};

/// A JSON body; it must be announced as `application/json`.
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

/// A JSON body, if there is a body.
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
    serde_json::from_slice(body).map_err(|error| {
        Problem::new(
            Code::InvalidArgument,
            format!("the body is not the JSON that this path takes: {error}"),
        )
    })
}

/// What the path's parameters say.
pub(super) struct Params<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        Path::from_request_parts(parts, state)
            .await
            .map(|Path(params)| Self(params))
            .map_err(|rejection| {
                Problem::new(
                    Code::InvalidArgument,
                    format!(
                        "the path cannot be read: {}: percent-encode names as UTF-8",
                        rejection.body_text()
                    ),
                )
            })
    }
}

/// What the query says.
pub(super) struct Search<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Search<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
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

impl<S: Send + Sync> FromRequestParts<S> for Deadline {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.extensions))
    }
}
