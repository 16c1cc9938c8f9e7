//! The layer order, outermost first.

use std::{convert::Infallible, time::Duration};

use axum::{body::Body, response::Response};
use http::{HeaderValue, Request};
use tower::{Service, ServiceBuilder};
use tower_http::request_id::{
    MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer,
};

use crate::{
    auth::{Identity, authenticator::Authenticator, policy::Policies},
    endpoint::{Area, classified},
    layers::{
        authenticate::AuthenticateLayer,
        authorize::authorize,
        body_limit::BodyLimitLayer,
        cors::Origins,
        deadline::DeadlineLayer,
        in_flight::InFlightLayer,
        measure::MeasureLayer,
        origin::OriginLayer,
        rate_limit::{RateLimiter, rate_limit},
        respond::RespondLayer,
        trace::TraceLayer,
    },
    peer::TrustedProxies,
    reload::Current,
    status::Problem,
    telemetry::metrics::Metrics,
};

/// The configuration of the layers.
#[derive(Clone)]
pub struct Settings {
    /// The origins whose web pages may send requests.
    pub cors: Origins,
    /// The layer that records spans of requests; `None` if tracing is off.
    pub trace: Option<TraceLayer>,
    /// Limits how many requests and streams may be open at once.
    pub in_flight: InFlightLayer,
    /// Authenticates callers.
    pub authenticator: Authenticator,
    /// The areas that are public.
    pub public: Vec<Area>,
    /// The policies that authorize callers; `None` permits everything.
    pub policies: Option<Current<Policies>>,
    /// The rate limiter; `None` if rates are not limited.
    pub limiter: Option<RateLimiter>,
    /// The proxies that are trusted to name client addresses.
    pub proxies: TrustedProxies,
    /// The maximum duration of a request.
    pub request_timeout: Duration,
}

/// Settings for tests of other parts: permits every caller, one request at a time, for a second at most.
impl Default for Settings {
    fn default() -> Self {
        Self {
            cors: Origins::None,
            trace: None,
            in_flight: InFlightLayer::new(1, 1),
            authenticator: Authenticator {
                anonymous: Some(Identity::anonymous()),
                ..Authenticator::default()
            },
            public: Vec::new(),
            policies: None,
            limiter: None,
            proxies: TrustedProxies::default(),
            request_timeout: Duration::from_secs(1),
        }
    }
}

/// Wraps the mux in all layers.
pub fn stack<S>(
    mux: S,
    settings: &Settings,
    metrics: Option<Metrics>,
) -> impl Service<Request<Body>, Response = Response, Error = Infallible, Future: Send>
+ use<S>
+ Clone
+ Send
+ 'static
where
    S: Service<Request<Body>, Response = Response, Error = Problem, Future: Send>
        + Clone
        + Send
        + 'static,
{
    ServiceBuilder::new()
        // Outermost: nearly all layers below read the endpoint of the request.
        .map_request(classified)
        // Outside of all layers that respond, so that every reply carries the id.
        .layer(SetRequestIdLayer::x_request_id(RandomId))
        .layer(PropagateRequestIdLayer::x_request_id())
        // Outside of the layers that refuse requests: pages may read refusals, too. Outside of the
        // measurement: a preflight asks about a request and is not one itself.
        .option_layer(settings.cors.layer())
        // Outside of the measurement, so that exemplars can name the trace. Inside of the id, which spans
        // record.
        .option_layer(settings.trace.clone())
        // Outside of the layers that refuse or panic, so that those requests are measured, too.
        .option_layer(metrics.map(MeasureLayer::new))
        // Renders refusals of the layers below in the caller's protocol. Limits a panic to its request: the
        // connection survives.
        .layer(RespondLayer)
        // Before any work for the request.
        .layer(settings.in_flight.clone())
        // Before authentication and before the body is read: both use up the caller's time.
        .layer(DeadlineLayer::new(settings.request_timeout))
        // Before everything that depends on the caller.
        .layer(AuthenticateLayer::new(
            settings.authenticator.clone(),
            settings.public.clone(),
            settings.limiter.clone(),
        ))
        // After authentication: limits the rate per caller.
        .layer(rate_limit(settings.limiter.clone()))
        // After authentication, and outside of everything that denies requests or changes leaders: audit
        // lines name the origin.
        .layer(OriginLayer::new(settings.proxies.clone()))
        // After authentication, too.
        .layer(authorize(settings.policies.clone()))
        // Innermost: bounds every body that the mux reads.
        .layer(BodyLimitLayer)
        .service(mux)
}

/// Generates an id for requests without one: 128 random bits in hexadecimal.
#[derive(Debug, Clone, Copy)]
struct RandomId;

impl MakeRequestId for RandomId {
    fn make_request_id<B>(&mut self, _: &Request<B>) -> Option<RequestId> {
        let id = format!("{:032x}", fastrand::u128(..));
        let mut id = HeaderValue::try_from(id).ok()?;
        // Keeps HTTP/2 from indexing the id: no other reply has the same id, and each would occupy a place in
        // the connection's table.
        id.set_sensitive(true);
        Some(RequestId::new(id))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use http::{StatusCode, header};
    use http_body_util::BodyExt as _;
    use tower::{ServiceExt as _, service_fn};

    use super::*;
    use crate::{peer::Peer, status::Code};

    /// Sends a request of this content type to a mux that fails with this problem.
    async fn refused(problem: Problem, content_type: &str) -> Response {
        let mux = service_fn(move |_: Request<Body>| {
            let problem = problem.clone();
            async move { Err::<Response, _>(problem) }
        });
        let stack = stack(mux, &Settings::default(), None);
        let request = Request::post("/election/e")
            .header(header::CONTENT_TYPE, content_type)
            .extension(Peer::new(Ipv4Addr::LOCALHOST.into(), None))
            .body(Body::empty())
            .expect("a request");
        let Ok(response) = stack.oneshot(request).await;
        response
    }

    fn of<'a>(response: &'a Response, name: &str) -> &'a str {
        response
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// The error table that existing clients rely on. A change here changes the contract.
    const TABLE: [(Code, tonic::Code, u16); 16] = [
        (Code::InvalidArgument, tonic::Code::InvalidArgument, 400),
        (Code::Unauthenticated, tonic::Code::Unauthenticated, 401),
        (Code::PermissionDenied, tonic::Code::PermissionDenied, 403),
        (Code::NotFound, tonic::Code::NotFound, 404),
        (Code::MethodNotAllowed, tonic::Code::Unimplemented, 405),
        (Code::Conflict, tonic::Code::AlreadyExists, 409),
        (Code::PayloadTooLarge, tonic::Code::ResourceExhausted, 413),
        (
            Code::UnsupportedMediaType,
            tonic::Code::InvalidArgument,
            415,
        ),
        (Code::RateLimited, tonic::Code::ResourceExhausted, 429),
        (Code::OverQuota, tonic::Code::ResourceExhausted, 429),
        (Code::Overloaded, tonic::Code::ResourceExhausted, 429),
        (Code::Disabled, tonic::Code::Unimplemented, 501),
        (Code::Unavailable, tonic::Code::Unavailable, 503),
        (Code::StoreFull, tonic::Code::Unavailable, 503),
        (Code::DeadlineExceeded, tonic::Code::DeadlineExceeded, 504),
        (Code::Internal, tonic::Code::Internal, 500),
    ];

    #[tokio::test]
    async fn every_row_of_the_error_table_is_told_in_every_protocol() {
        assert_eq!(Code::ALL.len(), TABLE.len());
        for (code, grpc, http) in TABLE {
            let mut problem = Problem::new(code, "what to change: ä").with("reason", "WHY");
            problem.retry_after =
                (code == Code::Unavailable).then_some(Duration::from_micros(1_199_001));

            for (content_type, answered) in [
                ("application/grpc", "application/grpc"),
                ("application/grpc-web+proto", "application/grpc-web+proto"),
                (
                    "application/grpc-web-text",
                    "application/grpc-web-text+proto",
                ),
            ] {
                let response = refused(problem.clone(), content_type).await;
                assert_eq!(response.status(), StatusCode::OK, "{code:?}");
                assert_eq!(of(&response, "content-type"), answered);
                assert_eq!(response.extensions().get(), Some(&code), "for the metrics");
                assert_eq!(
                    of(&response, "grpc-status"),
                    (grpc as i32).to_string(),
                    "{code:?}"
                );
                assert_eq!(
                    of(&response, "grpc-message"),
                    "what%20to%20change:%20%C3%A4"
                );
                let pushback = if code == Code::Unavailable {
                    "1200"
                } else {
                    ""
                };
                assert_eq!(of(&response, "grpc-retry-pushback-ms"), pushback);
                assert_eq!(of(&response, "x-election-agent-code"), format!("{code:?}"));
                let body = response.into_body().collect().await.expect("a body");
                assert!(
                    body.trailers().is_none(),
                    "trailers-only: all is in the headers"
                );
                assert!(body.to_bytes().is_empty());
            }

            let response = refused(problem, "application/json").await;
            assert_eq!(response.status().as_u16(), http, "{code:?}");
            assert_eq!(of(&response, "content-type"), "application/problem+json");
            let retry = match (code, http) {
                (_, 429) => "1",
                (Code::Unavailable, _) => "2",
                _ => "",
            };
            assert_eq!(of(&response, "retry-after"), retry, "{code:?}");
            assert_eq!(of(&response, "www-authenticate").is_empty(), http != 401);
            assert_eq!(of(&response, "x-request-id").len(), 32);
            let body = response
                .into_body()
                .collect()
                .await
                .expect("a body")
                .to_bytes();
            let document: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
            let title = StatusCode::from_u16(http)
                .expect("a status")
                .canonical_reason();
            let expected = serde_json::json!({
                "type": "about:blank", "title": title, "status": http, "detail": "what to change: ä",
                "message": "what to change: ä", "code": format!("{code:?}"), "reason": "WHY",
            });
            assert_eq!(document, expected);
        }
    }
}
