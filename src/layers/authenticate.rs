//! Finds out who asks, and lets nobody else in (`EA_AUTH_MODES`).
//!
//! The credential is the `authorization` header, which gRPC calls metadata, or the connection's client
//! certificate, the same over every protocol. What follows finds the [`Identity`] among the request's
//! extensions, and the header no longer: nothing below can log it. Paths that are public (`EA_AUTH_PUBLIC`) are
//! not asked for credentials.
//!
//! Refusals: Unauthenticated (UNAUTHENTICATED, 401); Unavailable (UNAVAILABLE, 503) when whoever knows does not
//! answer; RateLimited (RESOURCE_EXHAUSTED, 429) for wrong credentials from one address faster than the rate
//! limit.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use axum::body::Body;
use futures_util::future::{BoxFuture, Either, FutureExt as _, Ready, ready};
use http::{HeaderMap, Request, header};
use tower::{Layer, Service, ServiceExt as _};

use super::rate_limit::RateLimiter;
use crate::{
    auth::{
        Identity, Refusal,
        authenticator::{Authenticator, Known},
    },
    peer::Peer,
    transport::{
        Area,
        status::{Code, Problem},
    },
};

/// Applies [`Authenticate`].
#[derive(Clone)]
pub struct AuthenticateLayer {
    shared: Arc<Shared>,
}

struct Shared {
    authenticator: Authenticator,
    public: Vec<Area>,
    limiter: Option<RateLimiter>,
}

impl AuthenticateLayer {
    /// Lets in whom the authenticator knows, and everybody where it is public. Wrong credentials count in the
    /// limiter.
    #[must_use]
    pub fn new(
        authenticator: Authenticator,
        public: Vec<Area>,
        limiter: Option<RateLimiter>,
    ) -> Self {
        let shared = Shared {
            authenticator,
            public,
            limiter,
        };
        Self {
            shared: Arc::new(shared),
        }
    }
}

impl<S> Layer<S> for AuthenticateLayer {
    type Service = Authenticate<S>;

    fn layer(&self, inner: S) -> Authenticate<S> {
        Authenticate {
            inner,
            shared: Arc::clone(&self.shared),
        }
    }
}

/// Lets in those who are known.
#[derive(Clone)]
pub struct Authenticate<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Request<Body>> for Authenticate<S>
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
        if self.shared.public.contains(&Area::of(request.uri().path())) {
            return Either::Left(Either::Left(self.inner.call(request)));
        }
        let bearer = match self.shared.authenticator.takes_bearers() {
            true => bearer(request.headers()),
            false => Ok(None),
        };
        let bearer = match bearer {
            Ok(bearer) => bearer,
            Err(problem) => return Either::Left(Either::Right(ready(Err(problem)))),
        };
        let chain = request.extensions().get::<Peer>();
        let chain = chain.and_then(|peer| peer.certificates.as_deref());
        match self.shared.authenticator.identify(bearer, chain) {
            Known::Yes(Ok(identity)) => {
                Either::Left(Either::Left(self.inner.call(introduced(request, identity))))
            }
            Known::Yes(Err(refusal)) => {
                let problem = self.shared.refuse(refusal, &request);
                Either::Left(Either::Right(ready(Err(problem))))
            }
            Known::NotYet(hash) => {
                let token = bearer.unwrap_or_default().to_owned();
                let (inner, shared) = (self.inner.clone(), Arc::clone(&self.shared));
                let verified = async move {
                    match shared.authenticator.verify(&token, hash).await {
                        Ok(identity) => inner.oneshot(introduced(request, identity)).await,
                        Err(refusal) => Err(shared.refuse(refusal, &request)),
                    }
                };
                Either::Right(verified.boxed())
            }
        }
    }
}

/// The request with who sent it, and without what proved that.
fn introduced(mut request: Request<Body>, identity: Identity) -> Request<Body> {
    request.headers_mut().remove(header::AUTHORIZATION);
    request.extensions_mut().insert(identity);
    request
}

/// The bearer token, if there is one ([RFC 6750](https://www.rfc-editor.org/rfc/rfc6750#section-2.1)).
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut values = headers.get_all(header::AUTHORIZATION).into_iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let malformed = || {
        Problem::new(
            Code::Unauthenticated,
            "the authorization header is not understood: send it once, as \"Bearer\" and a token",
        )
    };
    if values.next().is_some() {
        return Err(malformed());
    }
    let (scheme, token) = value
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .ok_or_else(malformed)?;
    let token = token.trim();
    match scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() {
        true => Ok(Some(token)),
        false => Err(malformed()),
    }
}

impl Shared {
    fn refuse(&self, refusal: Refusal, request: &Request<Body>) -> Problem {
        let problem = match refusal {
            Refusal::Unauthenticated(why) => Problem::new(Code::Unauthenticated, why),
            Refusal::Unavailable(why) => return Problem::new(Code::Unavailable, why),
        };
        let limited = self.limiter.as_ref();
        limited
            .and_then(|limiter| limiter.check_address(request).err())
            .unwrap_or(problem)
    }
}
