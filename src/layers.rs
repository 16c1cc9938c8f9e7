//! The layers around the mux, one per file; `crate::stack` defines their order.

pub mod authenticate;
pub mod authorize;
pub mod body_limit;
pub mod check;
pub mod cors;
pub mod deadline;
pub mod in_flight;
pub mod measure;
pub mod origin;
pub mod rate_limit;
pub mod respond;
pub mod trace;

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, num::NonZeroU32};

    use axum::{body::Body, response::Response};
    use http::Request;
    use tower::{Layer, Service, ServiceExt as _, service_fn};

    use super::*;
    use crate::{
        auth::{Caller, Identity, authenticator::Authenticator},
        peer::{Peer, TrustedProxies},
        status::{Code, Problem},
    };

    /// Returns how a layer treats a complete request that has not been classified.
    async fn through<L>(layer: L) -> Result<(), Code>
    where
        L: Layer<tower::util::BoxCloneSyncService<Request<Body>, Response, Problem>>,
        L::Service: Service<Request<Body>, Error = Problem>,
    {
        let answers = service_fn(|_: Request<Body>| async { Ok(Response::default()) });
        let request = Request::post("/election/e")
            .extension(Peer::new(Ipv4Addr::LOCALHOST.into(), None))
            .extension(Caller::Known(Identity::anonymous()))
            .body(Body::from("{}"));
        let service = layer.layer(tower::util::BoxCloneSyncService::new(answers));
        let answer = service.oneshot(request.expect("a request")).await;
        answer.map(|_| ()).map_err(|problem| problem.code)
    }

    #[tokio::test]
    async fn layers_that_read_the_endpoint_refuse_a_request_that_has_not_been_classified() {
        let one = NonZeroU32::MIN;
        let rate = rate_limit::Rate {
            per_second: one,
            burst: one,
        };
        let limiter = rate_limit::RateLimiter::new(rate, TrustedProxies::default());
        let authenticator = Authenticator {
            anonymous: Some(Identity::anonymous()),
            ..Authenticator::default()
        };
        let refused = Err(Code::Internal);
        assert_eq!(through(in_flight::InFlightLayer::new(1, 1)).await, refused);
        let authenticate = authenticate::AuthenticateLayer::new(authenticator, Vec::new(), None);
        assert_eq!(through(authenticate).await, refused);
        assert_eq!(
            through(rate_limit::rate_limit(Some(limiter))).await,
            refused
        );
        assert_eq!(through(authorize::authorize(None)).await, refused);
        assert_eq!(through(body_limit::BodyLimitLayer).await, refused);
    }
}
