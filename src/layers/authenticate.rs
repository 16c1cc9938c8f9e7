//! Authenticates callers and refuses all others (`EA_AUTH_MODES`).
//!
//! The credential is the `authorization` header (metadata in gRPC) or the connection's client certificate, for every
//! protocol alike. Authentication puts the [`Caller`] into the request's extensions and removes the header, so that no
//! code below can log it. Public paths (`EA_AUTH_PUBLIC`) require no credential; a presented one is removed unread.
//!
//! Refusals: Unauthenticated (UNAUTHENTICATED, 401); Unavailable (UNAVAILABLE, 503) if the verifying server does not
//! respond; RateLimited (RESOURCE_EXHAUSTED, 429) if one address sends invalid credentials, or credentials that need
//! verification, faster than the rate limit; Internal (INTERNAL, 500) if the request carries no peer.

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
        Caller, Recheck, Refusal,
        authenticator::{Authenticator, Identified},
    },
    endpoint::{Area, Counted, Endpoint},
    status::{Code, Problem},
    transport::request::{endpoint, peer},
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
    /// Creates a layer that admits callers known to the authenticator, and all callers on public paths. Invalid
    /// credentials count in the limiter.
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

/// Admits authenticated callers.
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
        let endpoint = match endpoint(request.extensions()) {
            Ok(endpoint) => endpoint,
            Err(problem) => return Either::Left(Either::Right(ready(Err(problem)))),
        };
        if self.shared.public.contains(&endpoint.area) {
            let request = introduced(request, Caller::Public, None);
            return Either::Left(Either::Left(self.inner.call(request)));
        }
        let chain = match peer(request.extensions()) {
            Ok(peer) => peer.certificates.as_deref(),
            Err(problem) => return Either::Left(Either::Right(ready(Err(problem)))),
        };
        let bearer = match self.shared.authenticator.takes_bearers() {
            true => bearer(request.headers()),
            false => Ok(None),
        };
        let bearer = match bearer {
            Ok(bearer) => bearer,
            Err(problem) => {
                let problem = self.shared.count(&request).err().unwrap_or(problem);
                return Either::Left(Either::Right(ready(Err(problem))));
            }
        };
        match self.shared.authenticator.identify(bearer, chain) {
            Identified::Yes(Ok(identity)) => {
                let recheck = self.shared.recheck(endpoint, bearer, &request);
                let request = introduced(request, Caller::Known(identity), recheck);
                Either::Left(Either::Left(self.inner.call(request)))
            }
            Identified::Yes(Err(refusal)) => {
                let problem = self.shared.count(&request).err();
                let problem = problem.unwrap_or_else(|| problem_of(refusal));
                Either::Left(Either::Right(ready(Err(problem))))
            }
            Identified::NotYet(hash) => {
                // The limit applies before the verification, which costs work here and on other servers.
                if let Err(problem) = self.shared.count(&request) {
                    return Either::Left(Either::Right(ready(Err(problem))));
                }
                let token = bearer.unwrap_or_default().to_owned();
                let recheck = self.shared.recheck(endpoint, bearer, &request);
                let (inner, shared) = (self.inner.clone(), Arc::clone(&self.shared));
                let verified = async move {
                    match shared.authenticator.verify(&token, hash).await {
                        Ok(identity) => {
                            let request = introduced(request, Caller::Known(identity), recheck);
                            inner.oneshot(request).await
                        }
                        Err(refusal) => Err(problem_of(refusal)),
                    }
                };
                Either::Right(verified.boxed())
            }
        }
    }
}

/// Returns the request with its caller and without the credential.
fn introduced(
    mut request: Request<Body>,
    caller: Caller,
    recheck: Option<Recheck>,
) -> Request<Body> {
    request.headers_mut().remove(header::AUTHORIZATION);
    request.extensions_mut().insert(caller);
    recheck.map(|recheck| request.extensions_mut().insert(recheck));
    request
}

/// Returns the bearer token, if there is one ([RFC 6750](https://www.rfc-editor.org/rfc/rfc6750#section-2.1)).
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
    /// Keeps the credential of a stream, which is checked again while the stream lasts.
    fn recheck(
        &self,
        endpoint: Endpoint,
        bearer: Option<&str>,
        request: &Request<Body>,
    ) -> Option<Recheck> {
        if endpoint.counted != Counted::ApiStream {
            return None;
        }
        let chain = peer(request.extensions()).ok()?.certificates.clone();
        let bearer = bearer.map(ToOwned::to_owned);
        Some(Recheck::new(self.authenticator.clone(), bearer, chain))
    }

    /// Counts an invalid or unknown credential against the address that sent it.
    fn count(&self, request: &Request<Body>) -> Result<(), Problem> {
        match &self.limiter {
            Some(limiter) => limiter.check_address(request),
            None => Ok(()),
        }
    }
}

fn problem_of(refusal: Refusal) -> Problem {
    match refusal {
        Refusal::Unauthenticated(why) => Problem::new(Code::Unauthenticated, why),
        Refusal::Unavailable(why) => Problem::new(Code::Unavailable, why),
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, num::NonZeroU32, sync::Arc, time::Duration};

    use tokio::{
        sync::watch,
        time::{advance, timeout},
    };
    use tower_test::mock::{self, Handle};

    use super::{super::rate_limit::Rate, *};
    use crate::{
        auth::tokens::{File, New},
        endpoint::classified,
        peer::{Peer, TrustedProxies},
        reload::Source as _,
    };

    type Inner = Handle<Request<Body>, ()>;

    /// Returns the layer, the service below it, and the token of `worker`.
    fn layer(
        limiter: Option<RateLimiter>,
    ) -> (
        impl Service<Request<Body>, Response = (), Error = Problem, Future: Send> + Clone,
        Inner,
        String,
    ) {
        let new = New::make("worker", &["batch".to_owned()]).expect("a token");
        let tokens = File("tokens".into()).make(&new.line.into_bytes());
        let authenticator = Authenticator {
            tokens: Some(watch::channel(Arc::new(tokens.expect("valid"))).1),
            ..Authenticator::default()
        };
        let (inner, handle) = mock::pair::<Request<Body>, ()>();
        let as_problem = |error| Problem::new(Code::Internal, format!("{error}"));
        let layer = AuthenticateLayer::new(authenticator, vec![Area::Probes], limiter);
        (layer.layer(inner.map_err(as_problem)), handle, new.token)
    }

    fn request(path: &str, authorization: &[&str]) -> Request<Body> {
        let mut request = Request::post(path);
        for value in authorization {
            request = request.header(header::AUTHORIZATION, *value);
        }
        let mut request = classified(request.body(Body::empty()).expect("a request"));
        let peer = Peer::new(Ipv4Addr::LOCALHOST.into(), None);
        request.extensions_mut().insert(peer);
        request
    }

    #[tokio::test]
    async fn who_is_known_is_passed_on_by_name_and_without_the_credential() {
        for scheme in ["Bearer", "bearer", "BEARER"] {
            let (service, mut inner, token) = layer(None);
            let asked = request("/election/e", &[&format!("{scheme} {token}")]);
            let call = tokio::spawn(service.oneshot(asked).boxed());
            let (passed, answer) = inner.next_request().await.expect("passed on");
            let caller = passed.extensions().get::<Caller>().expect("a caller");
            let identity = caller.identity().expect("known");
            assert_eq!(
                (identity.name(), identity.groups()),
                ("worker", &["batch".to_owned()][..])
            );
            assert_eq!(passed.headers().get(header::AUTHORIZATION), None);
            answer.send_response(());
            assert_eq!(call.await.expect("no panic"), Ok(()));
        }
    }

    #[tokio::test]
    async fn nobody_else_is_passed_on() {
        for authorization in [
            &[][..],
            &["Bearer ea_wrong"],
            &["Bearer"],
            &["Bearer "],
            &["Basic dXNlcjpwYXNz"],
            &["Bearer a", "Bearer b"],
        ] {
            let (service, mut inner, _) = layer(None);
            inner.allow(1);
            let refused = service.oneshot(request("/election/e", authorization)).await;
            let refused = refused.expect_err("nobody");
            assert_eq!(refused.code, Code::Unauthenticated, "{authorization:?}");
            assert!(!refused.message.contains("ea_wrong"), "{refused}");
            assert!(inner.next_request().await.is_none(), "{authorization:?}");
        }
    }

    #[tokio::test]
    async fn a_request_from_nowhere_is_not_passed_on() {
        let (service, mut inner, token) = layer(None);
        inner.allow(1);
        let mut asked = request("/election/e", &[&format!("Bearer {token}")]);
        asked.extensions_mut().remove::<Peer>();
        let refused = service.oneshot(asked).now_or_never();
        let refused = refused.expect("at once").expect_err("no peer");
        assert_eq!(refused.code, Code::Internal);
        assert!(inner.next_request().await.is_none());
    }

    #[tokio::test]
    async fn a_request_for_a_public_path_is_passed_on_without_an_identity() {
        let (service, mut inner, _) = layer(None);
        let call = tokio::spawn(service.oneshot(request("/livez", &["Basic x"])).boxed());
        let (passed, answer) = inner.next_request().await.expect("passed on");
        assert_eq!(passed.extensions().get(), Some(&Caller::Public));
        answer.send_response(());
        assert_eq!(call.await.expect("no panic"), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_credentials_count_against_the_address_that_shows_them() {
        let two = NonZeroU32::new(2).expect("not zero");
        let rate = Rate {
            per_second: two,
            burst: two,
        };
        let limiter = RateLimiter::new(rate, TrustedProxies::default());
        let (service, mut inner, token) = layer(Some(limiter));
        let ask = async |bearer: &str| {
            let asked = request("/election/e", &[&format!("Bearer {bearer}")]);
            service
                .clone()
                .oneshot(asked)
                .await
                .map_err(|problem| problem.code)
        };
        inner.allow(1);
        for problem in [
            Code::Unauthenticated,
            Code::Unauthenticated,
            Code::RateLimited,
        ] {
            assert_eq!(ask("ea_wrong").await, Err(problem));
        }
        advance(Duration::from_millis(500)).await;
        assert_eq!(ask("ea_wrong").await, Err(Code::Unauthenticated));
        // A valid credential from the same address is admitted.
        let known = request("/election/e", &[&format!("Bearer {token}")]);
        let call = tokio::spawn(service.clone().oneshot(known).boxed());
        let (_, answer) = inner.next_request().await.expect("passed on");
        answer.send_response(());
        assert_eq!(
            timeout(Duration::from_secs(1), call)
                .await
                .expect("in time")
                .expect("no panic"),
            Ok(())
        );
    }
}
