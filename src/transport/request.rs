//! Data of a request besides its message, for handlers and layers, and limits of all requests.

use axum::{extract::FromRequestParts, http::request::Parts};
use http::Extensions;
use std::{convert::Infallible, fmt, num::NonZeroU32, sync::Arc, time::Duration};
use tokio::time::Instant;

use crate::{
    auth::{Caller, Identity},
    endpoint::Endpoint,
    peer::Peer,
    status::{Code, Problem},
};

/// The maximum size of a REST request body and of a gRPC message, in bytes.
pub const MAX_BODY: usize = 64 * 1024;

/// The problem of a body over the limit.
pub(crate) fn too_large() -> Problem {
    Problem::new(
        Code::PayloadTooLarge,
        format!("the request is over {MAX_BODY} bytes: send less"),
    )
}

/// When a request arrived, and how long it may take.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    received: Instant,
    /// The caller's own timeout, if it sent one.
    callers: Option<Duration>,
    /// The server's limit.
    limit: Duration,
}

impl Deadline {
    /// Creates the deadline of a request that has just arrived.
    #[must_use]
    pub(crate) fn new(callers: Option<Duration>, limit: Duration) -> Self {
        Self {
            received: Instant::now(),
            callers,
            limit,
        }
    }

    /// The deadline of the request with these extensions. Now, if the request did not pass a
    /// [`Limit`](crate::layers::deadline::Limit) layer.
    pub(crate) fn of(extensions: &Extensions) -> Self {
        extensions
            .get::<Self>()
            .copied()
            .unwrap_or_else(|| Self::new(None, Duration::ZERO))
    }

    /// The moment of the deadline: the server's limit or the caller's, whichever is earlier.
    pub(crate) fn instant(self) -> Instant {
        self.after(Duration::ZERO)
    }

    /// The moment of the deadline of a request that waits for this long: the server's limit does not count the wait.
    pub(crate) fn after(self, wait: Duration) -> Instant {
        let limit = self.limit + wait;
        self.received + self.callers.map_or(limit, |callers| callers.min(limit))
    }

    /// The server's limit.
    pub(crate) fn limit(self) -> Duration {
        self.limit
    }

    /// When the request arrived.
    pub(crate) fn received(self) -> Instant {
        self.received
    }
}

/// Counts the messages of a stream in the rate limit of its caller. Cheap to clone.
#[derive(Clone)]
pub struct Allowance(Arc<dyn Fn(NonZeroU32) -> Result<(), Problem> + Send + Sync>);

impl Allowance {
    /// An allowance that this function counts.
    #[must_use]
    pub fn new(count: impl Fn(NonZeroU32) -> Result<(), Problem> + Send + Sync + 'static) -> Self {
        Self(Arc::new(count))
    }

    /// The allowance of the request with these extensions. [`None`]: callers have no limit.
    #[must_use]
    pub fn of(extensions: &Extensions) -> Option<Self> {
        extensions.get().cloned()
    }

    /// Counts messages, or the operations that a message requests.
    ///
    /// # Errors
    /// The caller is over its limit.
    pub fn take(&self, messages: usize) -> Result<(), Problem> {
        let messages = u32::try_from(messages).unwrap_or(u32::MAX);
        match NonZeroU32::new(messages) {
            Some(messages) => (self.0)(messages),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Allowance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Allowance")
    }
}

/// The caller, as the authentication layer has determined it.
///
/// # Errors
/// Returns and logs an internal error if the request did not pass that layer.
pub fn caller(extensions: &Extensions) -> Result<&Caller, Problem> {
    extensions.get().ok_or_else(unverified)
}

/// The identity of the caller, on a path that requires one.
///
/// # Errors
/// Returns and logs an internal error if the request did not pass the authentication layer, or if the layer
/// treats the path as public.
pub fn identity(extensions: &Extensions) -> Result<&Identity, Problem> {
    caller(extensions)?.identity().ok_or_else(unverified)
}

/// The peer of the request's connection.
///
/// # Errors
/// Returns and logs an internal error if the listener did not set the peer.
pub fn peer(extensions: &Extensions) -> Result<&Peer, Problem> {
    extensions.get().ok_or_else(|| missing("peer"))
}

/// The endpoint of the request, as the outermost layer has [classified](crate::endpoint::classified) it.
///
/// # Errors
/// Returns and logs an internal error if the request was not classified.
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
        let found = |caller: Option<Caller>| {
            let mut extensions = Extensions::new();
            caller.map(|caller| extensions.insert(caller));
            identity(&extensions).cloned().map_err(|it| it.code)
        };
        let anonymous = Identity::anonymous();
        assert_eq!(found(Some(Caller::Known(anonymous.clone()))), Ok(anonymous));
        assert_eq!(found(Some(Caller::Public)), Err(Code::Internal));
        assert_eq!(found(None), Err(Code::Internal));
    }
}
