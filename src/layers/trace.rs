//! Records sampled requests in spans, following the OpenTelemetry semantic conventions for RPC and HTTP servers. A
//! request that is not sampled costs only an inspection of its headers.
//!
//! A span lasts until the reply's body has been sent, so that it includes the gRPC status, which follows the body.

use std::{
    convert::Infallible,
    fmt,
    net::IpAddr,
    pin::Pin,
    task::{self, Poll, ready},
};

use axum::{body::Body, response::Response};
use http::{HeaderMap, Method, Request, Version, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use opentelemetry::{
    Context, KeyValue,
    trace::{Status, TraceContextExt as _},
};
use pin_project_lite::pin_project;
use tower::{Layer, Service};
use tracing::{Instrument as _, Span, field, instrument::Instrumented};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::measure::grpc_status;
use crate::{
    endpoint::{Area, Counted, Endpoint, Protocol},
    peer::{Peer, TrustedProxies},
    telemetry::trace::{REQUEST, Recorder, SPANS, sampler::Parent},
};

/// The conventions' name for an unknown method.
const OTHER: &str = "_OTHER";

/// Applies [`Trace`].
#[derive(Debug, Clone)]
pub struct TraceLayer {
    recorder: Recorder,
    proxies: TrustedProxies,
    scheme: &'static str,
}

impl TraceLayer {
    /// Creates a layer that records requests received with or without TLS. For requests behind these proxies, it
    /// records the client's address.
    #[must_use]
    pub fn new(recorder: Recorder, proxies: TrustedProxies, tls: bool) -> Self {
        Self {
            recorder,
            proxies,
            scheme: if tls { "https" } else { "http" },
        }
    }

    /// Returns the request's span; a disabled one if the request is not recorded.
    fn record(&self, request: &Request<Body>) -> Span {
        let headers = request.headers();
        let parent = match self.recorder.continues {
            true => Parent::of(headers),
            false => None,
        };
        if !self.recorder.sampler.samples(parent.as_ref()) {
            return Span::none();
        }
        // A request that has not been classified is refused by a layer below.
        let Some(endpoint) = Endpoint::among(request.extensions()) else {
            return Span::none();
        };
        let watched = matches!(endpoint.area, Area::Probes | Area::Metrics);
        // Probes and metrics are frequent: they are recorded only if their caller samples them.
        if watched && !parent.is_some_and(|parent| parent.is_sampled()) {
            return Span::none();
        }
        let span = self.span(request, endpoint);
        if let Some(parent) = parent {
            let above = Context::new().with_remote_span_context(parent.context(headers));
            // The call fails if the span has started or has no subscriber. It has not started, and all spans share one
            // subscriber.
            let _ = span.set_parent(above);
        }
        span
    }

    /// Creates the span of a request. Its attributes contain no names that callers choose, unless the configuration
    /// includes them.
    fn span(&self, request: &Request<Body>, endpoint: Endpoint) -> Span {
        let (headers, uri) = (request.headers(), request.uri());
        let server = server(request);
        let named = Named::of(request.method(), endpoint);
        let (rpc, http) = match &named {
            Named::Rpc { service, method } => (Some((*service, *method)), None),
            Named::Http { method, route } => (None, Some((*method, *route))),
        };
        tracing::info_span!(
            target: SPANS,
            parent: None,
            REQUEST,
            otel.kind = "server",
            otel.name = %named,
            rpc.system = rpc.map(|_| "grpc"),
            rpc.method = rpc.map(|(_, method)| method),
            rpc.service = rpc.and_then(|(service, _)| service),
            http.request.method = http.map(|(method, _)| method),
            http.route = http.and_then(|(_, route)| route),
            url.scheme = http.map(|_| self.scheme),
            url.path = http.filter(|_| self.recorder.keys).map(|_| uri.path()),
            network.protocol.name = "http",
            network.protocol.version = version(request.version()),
            server.address = server.map(|(host, _)| host),
            server.port = server.and_then(|(_, port)| port).map(i64::from),
            client.address = self.client(request).map(field::display),
            election_agent.request_id = text(headers, "x-request-id"),
        )
    }

    fn client(&self, request: &Request<Body>) -> Option<IpAddr> {
        let peer = request.extensions().get::<Peer>()?;
        Some(self.proxies.client_address(peer.address, request.headers()))
    }
}

/// The name of a request's span, from a small fixed set.
enum Named {
    Rpc {
        service: Option<&'static str>,
        method: &'static str,
    },
    Http {
        method: &'static str,
        route: Option<&'static str>,
    },
}

impl Named {
    fn of(method: &Method, endpoint: Endpoint) -> Self {
        match endpoint.protocol {
            Protocol::Grpc | Protocol::GrpcWeb(_) => match endpoint.route.and_then(rpc) {
                Some((service, method)) => Self::Rpc {
                    service: Some(service),
                    method,
                },
                None => Self::Rpc {
                    service: None,
                    method: OTHER,
                },
            },
            Protocol::Rest => Self::Http {
                method: known(method),
                route: endpoint.route,
            },
        }
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Rpc { service, method } => match service {
                Some(service) => write!(f, "{service}/{method}"),
                None => f.write_str(method),
            },
            Self::Http { method, route } => {
                f.write_str(if method == OTHER { "HTTP" } else { method })?;
                route.map_or(Ok(()), |route| write!(f, " {route}"))
            }
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Returns the service and the method in a route.
fn rpc(route: &'static str) -> Option<(&'static str, &'static str)> {
    route.strip_prefix('/')?.split_once('/')
}

/// Returns the method's name, if the specifications define it.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::CONNECT => "CONNECT",
        Method::OPTIONS => "OPTIONS",
        Method::TRACE => "TRACE",
        Method::PATCH => "PATCH",
        _ => OTHER,
    }
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "2",
        Version::HTTP_10 => "1.0",
        _ => "1.1",
    }
}

/// Returns the host and port that the caller addressed.
fn server(request: &Request<Body>) -> Option<(&str, Option<u16>)> {
    if let Some(authority) = request.uri().authority() {
        return Some((authority.host(), authority.port_u16()));
    }
    let host = text(request.headers(), header::HOST.as_str())?;
    match host.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => Some((host, port.parse().ok())),
        _ => Some((host, None)),
    }
}

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;

    fn layer(&self, inner: S) -> Trace<S> {
        Trace {
            inner,
            layer: self.clone(),
        }
    }
}

/// Records the requests of a service.
#[derive(Debug, Clone)]
pub struct Trace<S> {
    inner: S,
    layer: TraceLayer,
}

impl<S> Service<Request<Body>> for Trace<S>
where
    S: Service<Request<Body>, Response = Response, Error = Infallible>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Traced<S::Future>;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let span = self.layer.record(&request);
        let endpoint = Endpoint::among(request.extensions()).filter(|_| !span.is_none());
        let server = endpoint.map(|endpoint| ServerSpan {
            _span: span.clone(),
            context: span.context(),
            protocol: endpoint.protocol,
            endless: endpoint.counted == Counted::ApiStream,
            ended: false,
        });
        let reply = span.in_scope(|| self.inner.call(request));
        Traced {
            reply: reply.instrument(span),
            server,
        }
    }
}

/// The span of a request in progress. If it is dropped before the reply has been sent, the caller has disconnected.
///
/// The span must end when the reply has been sent, but background tasks of the request hold its [`Span`] for longer. It
/// is therefore ended through the OpenTelemetry API.
struct ServerSpan {
    /// Keeps the span open while the body is sent.
    _span: Span,
    context: Context,
    protocol: Protocol,
    /// Whether the reply goes on until the caller leaves.
    endless: bool,
    ended: bool,
}

impl ServerSpan {
    /// Ends the span with the reply's status, if there is one.
    fn end(&mut self, answer: Option<ReplyStatus>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let span = self.context.span();
        let error = match (self.protocol, answer) {
            (Protocol::Rest, Some(ReplyStatus { http, .. })) => {
                span.set_attribute(KeyValue::new("http.response.status_code", i64::from(http)));
                (http >= 500).then(|| http.to_string())
            }
            (Protocol::Rest, None) => Some("cancelled".to_owned()),
            (_, answer) => {
                let code = answer.map_or(tonic::Code::Cancelled, |answer| answer.grpc);
                span.set_attribute(KeyValue::new("rpc.grpc.status_code", code as i64));
                is_the_servers(code).then(|| (code as i32).to_string())
            }
        };
        if let Some(error) = error {
            span.set_attribute(KeyValue::new("error.type", error));
            span.set_status(Status::error(""));
        }
        span.end();
    }
}

impl Drop for ServerSpan {
    fn drop(&mut self) {
        self.end(None);
    }
}

/// The status of a reply.
#[derive(Debug, Clone, Copy)]
struct ReplyStatus {
    http: u16,
    grpc: tonic::Code,
}

/// Returns whether the conventions classify a gRPC status as a server error.
fn is_the_servers(code: tonic::Code) -> bool {
    use tonic::Code::{DataLoss, DeadlineExceeded, Internal, Unavailable, Unimplemented, Unknown};
    matches!(
        code,
        Unknown | DeadlineExceeded | Unimplemented | Internal | Unavailable | DataLoss
    )
}

pin_project! {
    /// A future of the reply, with the span that the reply ends.
    pub struct Traced<F> {
        #[pin]
        reply: Instrumented<F>,
        server: Option<ServerSpan>,
    }
}

impl<F> Future for Traced<F>
where
    F: Future<Output = Result<Response, Infallible>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let Ok(response) = ready!(this.reply.poll(cx));
        let Some(span) = this.server.take() else {
            return Poll::Ready(Ok(response));
        };
        let answer = ReplyStatus {
            http: response.status().as_u16(),
            grpc: grpc_status(&response),
        };
        Poll::Ready(Ok(
            response.map(|body| Body::new(TracedBody { body, span, answer }))
        ))
    }
}

pin_project! {
    /// A body whose end also ends the request's span.
    struct TracedBody {
        #[pin]
        body: Body,
        span: ServerSpan,
        answer: ReplyStatus,
    }

    impl PinnedDrop for TracedBody {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            // A sender that finds the body at its end need not poll it again. A stream of events ends when its reader
            // disconnects, and HTTP has no status for that.
            let events = this.span.endless && this.span.protocol == Protocol::Rest;
            if this.body.is_end_stream() || events {
                this.span.end(Some(*this.answer));
            }
        }
    }
}

impl HttpBody for TracedBody {
    type Data = <Body as HttpBody>::Data;
    type Error = <Body as HttpBody>::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.project();
        let frame = ready!(this.body.poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                let status = frame.trailers_ref();
                if let Some(status) = status.and_then(|trailers| trailers.get("grpc-status")) {
                    this.answer.grpc = tonic::Code::from_bytes(status.as_bytes());
                    this.span.end(Some(*this.answer));
                }
            }
            None => this.span.end(Some(*this.answer)),
            Some(Err(_)) => this.span.end(None),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, sync::Arc, time::Duration};

    use bytes::Bytes;
    use futures_util::{FutureExt as _, stream};
    use http_body_util::{BodyExt as _, StreamBody};
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::{
        error::OTelSdkResult,
        trace::{SdkTracerProvider, Span as SdkSpan, SpanData, SpanProcessor},
    };
    use parking_lot::Mutex;
    use tower::{ServiceExt as _, service_fn};
    use tracing::subscriber::DefaultGuard;
    use tracing_subscriber::{layer::SubscriberExt as _, util::SubscriberInitExt as _};

    use super::*;
    use crate::{
        endpoint::classified,
        telemetry::trace::{
            self, current_trace_id,
            sampler::{Root, Sampler},
        },
    };

    /// Collects ended spans.
    #[derive(Debug, Clone, Default)]
    struct Kept(Arc<Mutex<Vec<SpanData>>>);

    impl SpanProcessor for Kept {
        fn on_start(&self, _: &mut SdkSpan, _: &Context) {}

        fn on_end(&self, span: SpanData) {
            let mut spans = self.0.lock();
            spans.push(span);
        }

        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }

        fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
            Ok(())
        }
    }

    impl Kept {
        /// Returns the only span that ended since the last call.
        fn one(&self) -> SpanData {
            let mut spans = self.0.lock();
            assert_eq!(spans.len(), 1, "{spans:?}");
            spans.remove(0)
        }

        fn is_empty(&self) -> bool {
            let spans = self.0.lock();
            spans.is_empty()
        }
    }

    fn attribute(span: &SpanData, key: &str) -> String {
        let mut attributes = span.attributes.iter();
        let found = attributes.find(|attribute| attribute.key.as_str() == key);
        found.map_or_else(String::new, |attribute| attribute.value.to_string())
    }

    /// Returns the layer, the spans that it records, and the guards that keep recording enabled.
    fn layer(root: Root) -> (TraceLayer, Kept, (SdkTracerProvider, DefaultGuard)) {
        let kept = Kept::default();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(kept.clone())
            .build();
        let recorder = Recorder {
            sampler: Sampler {
                parent_based: true,
                root,
            },
            continues: true,
            keys: false,
        };
        let spans = trace::layer(provider.tracer("test"));
        let subscriber = tracing_subscriber::registry().with(spans).set_default();
        (
            TraceLayer::new(recorder, TrustedProxies::default(), true),
            kept,
            (provider, subscriber),
        )
    }

    fn grpc() -> Request<Body> {
        Request::post("/grpc.election_agent.v1.Election/Campaign")
            .header(header::CONTENT_TYPE, "application/grpc")
            .body(Body::empty())
            .map(classified)
            .expect("a request")
    }

    /// Returns a body of one message, with this status in its trailers.
    fn with_trailers(status: &'static str) -> Body {
        let trailers = HeaderMap::from_iter([(
            header::HeaderName::from_static("grpc-status"),
            header::HeaderValue::from_static(status),
        )]);
        let frames = [
            Frame::data(Bytes::from_static(b"message")),
            Frame::trailers(trailers),
        ];
        let frames = frames.map(Ok::<_, Infallible>);
        Body::new(StreamBody::new(stream::iter(frames)))
    }

    #[tokio::test]
    async fn the_status_that_comes_after_the_body_counts() {
        let (layer, kept, _provider) = layer(Root::Always);
        for (status, code, is_error) in [("0", "0", false), ("5", "5", false), ("14", "14", true)] {
            let service = service_fn(move |_| async move {
                Ok::<_, Infallible>(Response::new(with_trailers(status)))
            });
            let Ok(answer) = layer.layer(service).oneshot(grpc()).await;
            assert!(kept.is_empty(), "the answer is still being sent");
            answer.into_body().collect().await.expect("a body");
            let span = kept.one();
            assert_eq!(attribute(&span, "rpc.grpc.status_code"), code);
            assert_eq!(span.status != Status::Unset, is_error, "{span:?}");
        }
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_ends_the_span() {
        let (layer, kept, _provider) = layer(Root::Always);
        let never = service_fn(|_| pending::<Result<Response, Infallible>>());
        assert!(layer.layer(never).oneshot(grpc()).now_or_never().is_none());
        assert_eq!(attribute(&kept.one(), "rpc.grpc.status_code"), "1");

        let service =
            service_fn(|_| async { Ok::<_, Infallible>(Response::new(with_trailers("0"))) });
        let Ok(answer) = layer.layer(service).oneshot(grpc()).await;
        drop(answer);
        assert_eq!(attribute(&kept.one(), "rpc.grpc.status_code"), "1");

        let get = |path| {
            let request = Request::get(path).body(Body::empty());
            classified(request.expect("a request"))
        };
        // This is the usual end of a stream of events.
        let Ok(answer) = layer.layer(service).oneshot(get("/elections/events")).await;
        drop(answer);
        let span = kept.one();
        assert_eq!(attribute(&span, "http.response.status_code"), "200");
        assert_eq!(span.status, Status::Unset, "{span:?}");

        let Ok(answer) = layer.layer(service).oneshot(get("/elections")).await;
        drop(answer);
        assert_eq!(attribute(&kept.one(), "error.type"), "cancelled");

        let answer = layer.layer(never).oneshot(get("/elections"));
        assert!(answer.now_or_never().is_none());
        let span = kept.one();
        assert_eq!(span.name, "GET /elections");
        assert_eq!(attribute(&span, "error.type"), "cancelled");
        assert_eq!(attribute(&span, "url.scheme"), "https");
    }

    #[tokio::test]
    async fn a_recorded_request_knows_its_trace_and_others_have_none() {
        for root in [Root::Always, Root::Never] {
            let (layer, kept, _provider) = layer(root);
            let service = service_fn(|_| async {
                // Suspend once, as a service that waits does.
                tokio::task::yield_now().await;
                tracing::info!(target: SPANS, number = 7, "found");
                let body = Body::from(current_trace_id().unwrap_or_default());
                Ok::<_, Infallible>(Response::new(body))
            });
            let request = Request::get("/election/x")
                .body(Body::empty())
                .map(classified);
            let answer = layer.layer(service).oneshot(request.expect("a request"));
            let Ok(answer) = answer.await;
            let body = answer.into_body().collect().await.expect("a body");
            let found = String::from_utf8(body.to_bytes().to_vec()).expect("text");
            assert_eq!(current_trace_id(), None, "nothing is left behind");
            if root == Root::Never {
                assert!(found.is_empty() && kept.is_empty());
                continue;
            }
            let span = kept.one();
            assert_eq!(found, span.span_context.trace_id().to_string());
            assert_eq!(span.events[0].name, "found");
            assert_eq!(attribute(&span, "http.response.status_code"), "200");
        }
    }
}
