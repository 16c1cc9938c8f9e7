//! Provides the audit trail with the origin of a request: the caller, its address, and the request id.
//!
//! A task-local variable holds them while the rest of the stack is called and polled. That costs a few reference counts
//! and no allocation. A request without a caller or a peer is refused, because its audit lines would lack them.

use std::task::{Context, Poll};

use axum::body::Body;
use futures_util::future::{Either, Ready, ready};
use http::{HeaderName, Request};
use tokio::task::futures::TaskLocalFuture;
use tower::{Layer, Service};

use crate::{
    auth::audit::Origin,
    peer::TrustedProxies,
    status::Problem,
    transport::request::{caller, peer},
};

/// The header that names requests.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Applies [`OfOrigin`].
#[derive(Debug, Clone)]
pub struct OriginLayer {
    proxies: TrustedProxies,
}

impl OriginLayer {
    /// Creates a layer that trusts the client addresses reported by these proxies.
    #[must_use]
    pub fn new(proxies: TrustedProxies) -> Self {
        Self { proxies }
    }

    fn origin(&self, request: &Request<Body>) -> Result<Origin, Problem> {
        let (extensions, headers) = (request.extensions(), request.headers());
        let (caller, peer) = (caller(extensions)?, peer(extensions)?);
        Ok(Origin {
            caller: caller.identity().cloned(),
            address: Some(self.proxies.client_address(peer.address, headers)),
            request_id: headers.get(REQUEST_ID).cloned(),
        })
    }
}

impl<S> Layer<S> for OriginLayer {
    type Service = OfOrigin<S>;

    fn layer(&self, inner: S) -> OfOrigin<S> {
        OfOrigin {
            inner,
            layer: self.clone(),
        }
    }
}

/// Serves requests within their origin.
#[derive(Debug, Clone)]
pub struct OfOrigin<S> {
    inner: S,
    layer: OriginLayer,
}

impl<S> Service<Request<Body>> for OfOrigin<S>
where
    S: Service<Request<Body>, Error = Problem>,
{
    type Response = S::Response;
    type Error = Problem;
    type Future = Either<TaskLocalFuture<Origin, S::Future>, Ready<Result<S::Response, Problem>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Problem>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self.layer.origin(&request) {
            Ok(origin) => Either::Left(origin.around(|| self.inner.call(request))),
            Err(problem) => Either::Right(ready(Err(problem))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tower::{ServiceExt as _, service_fn};

    use super::*;
    use crate::{auth::Caller, peer::Peer, status::Code};

    #[tokio::test]
    async fn a_request_without_an_origin_is_refused() {
        let peer = Peer::new(Ipv4Addr::LOCALHOST.into(), None);
        for (caller, peer, expected) in [
            (Some(Caller::Public), Some(&peer), Ok(())),
            (Some(Caller::Public), None, Err(Code::Internal)),
            (None, Some(&peer), Err(Code::Internal)),
        ] {
            let mut request = Request::new(Body::empty());
            caller.map(|caller| request.extensions_mut().insert(caller));
            peer.map(|peer| request.extensions_mut().insert(peer.clone()));
            let answers = service_fn(|_: Request<Body>| async { Ok::<_, Problem>(()) });
            let layer = OriginLayer::new(TrustedProxies::default());
            let answer = layer.layer(answers).oneshot(request).await;
            assert_eq!(answer.map_err(|problem| problem.code), expected);
        }
    }
}
