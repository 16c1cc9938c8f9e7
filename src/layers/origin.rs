//! Lets the audit trail name where a request came from: the caller, its address, the request's id.
//!
//! A variable of the task holds them while the rest of the stack is called and polled, which costs some counts of
//! references and no allocation.

use std::task::{Context, Poll};

use axum::body::Body;
use http::{HeaderName, Request};
use tokio::task::futures::TaskLocalFuture;
use tower::{Layer, Service};

use crate::{
    auth::Identity,
    peer::{Peer, TrustedProxies},
    telemetry::audit::Origin,
    transport::status::Problem,
};

/// The header that names requests.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Applies [`OfOrigin`].
#[derive(Debug, Clone)]
pub struct OriginLayer {
    proxies: TrustedProxies,
}

impl OriginLayer {
    /// Takes requests that these proxies pass on for their clients'.
    #[must_use]
    pub fn new(proxies: TrustedProxies) -> Self {
        Self { proxies }
    }

    fn origin(&self, request: &Request<Body>) -> Origin {
        let (extensions, headers) = (request.extensions(), request.headers());
        let peer = extensions.get::<Peer>();
        Origin {
            caller: extensions.get::<Identity>().cloned(),
            address: peer.map(|peer| self.proxies.client_address(peer.address, headers)),
            request_id: headers.get(REQUEST_ID).cloned(),
        }
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
    type Future = TaskLocalFuture<Origin, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Problem>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let origin = self.layer.origin(&request);
        origin.around(|| self.inner.call(request))
    }
}
