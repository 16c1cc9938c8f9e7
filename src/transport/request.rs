//! What handlers and layers read of a request besides its message, and what holds for all requests.

use axum::{extract::FromRequestParts, http::request::Parts};
use http::Extensions;
use std::convert::Infallible;
use tokio::time::Instant;

use crate::{
    auth::{Caller, Identity},
    endpoint::Endpoint,
    peer::Peer,
    status::{Code, Problem},
};

/// The largest body of a REST request and the largest message of a gRPC call, in bytes.
pub const MAX_BODY: usize = 64 * 1024;

/// What a body over the limit is answered.
pub(crate) fn too_large() -> Problem {
    Problem::new(
        Code::PayloadTooLarge,
        format!("the request is over {MAX_BODY} bytes: send less"),
    )
}

/// When the caller stops waiting.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(pub(crate) Instant);

impl Deadline {
    /// The deadline of the request with these extensions; at once if it passed no
    /// [`Limit`](crate::layers::deadline::Limit) layer.
    pub(crate) fn of(extensions: &Extensions) -> Self {
        extensions
            .get::<Self>()
            .copied()
            .unwrap_or_else(|| Self(Instant::now()))
    }

    /// The moment.
    pub(crate) fn instant(self) -> Instant {
        self.0
    }
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
    extensions.get().ok_or_else(|| missing("peer"))
}

/// What the request asks for, as was told outermost ([`classified`](crate::endpoint::classified)).
///
/// # Errors
/// Internal, which is logged: the request has not been classified.
pub fn endpoint(extensions: &Extensions) -> Result<Endpoint, Problem> {
    Endpoint::among(extensions).ok_or_else(|| missing("endpoint"))
}

fn unverified() -> Problem {
    missing("verified identity")
}

fn missing(what: &str) -> Problem {
    tracing::error!("the request carries no {what}, and is refused; this is a bug");
    Problem::bug()
}

impl<S: Send + Sync> FromRequestParts<S> for Deadline {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.extensions))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Identity {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        identity(&parts.extensions).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
