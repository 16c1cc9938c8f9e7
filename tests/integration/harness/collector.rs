//! A receiver of spans by OpenTelemetry's protocol, over gRPC and HTTP on the same port.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::{Span, span::Event},
};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::{
    net::{TcpListener, TcpSocket},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::{Agent, Place, eventually};

/// How the receiver treats what it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Takes,
    Refuses,
    /// Reads requests, and never answers.
    Hangs,
}

/// A running receiver.
pub(crate) struct Collector {
    address: SocketAddr,
    inbox: Inbox,
    stopped: CancellationToken,
}

/// What has come in.
#[derive(Clone)]
struct Inbox(Arc<Mutex<State>>);

struct State {
    mood: Mood,
    requests: usize,
    headers: Vec<HeaderMap>,
    taken: Vec<ExportTraceServiceRequest>,
}

impl Collector {
    /// An agent on these servers that sends its spans soon to this receiver.
    pub(crate) async fn agent(
        &self,
        place: &(impl Place + ?Sized),
        settings: &[(&str, &str)],
    ) -> Agent {
        let url = self.url();
        let own = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_BSP_SCHEDULE_DELAY", "20"),
        ];
        Agent::on(place, &[&own, settings].concat()).await
    }

    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a port");
        let state = State {
            mood: Mood::Takes,
            requests: 0,
            headers: Vec::new(),
            taken: Vec::new(),
        };
        let mut collector = Self {
            address: listener.local_addr().expect("an address"),
            inbox: Inbox(Arc::new(Mutex::new(state))),
            stopped: CancellationToken::new(),
        };
        collector.serve(listener);
        collector
    }

    fn serve(&mut self, listener: TcpListener) {
        self.stopped = CancellationToken::new();
        let (inbox, stopped) = (self.inbox.clone(), self.stopped.clone());
        tokio::spawn(stopped.run_until_cancelled_owned(async move {
            // Dropped, and so ended, with this task.
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("accepts");
                let inbox = inbox.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(inbox.clone(), request));
                    let server = Builder::new(TokioExecutor::new());
                    // How a connection ends is the agent's affair.
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        }));
    }

    /// Ends, with all its connections.
    pub(crate) fn die(&self) {
        self.stopped.cancel();
    }

    /// Starts again on the same port.
    pub(crate) async fn revive(&mut self) {
        let address = self.address;
        let listener = eventually("the port is free again", async || {
            let socket = TcpSocket::new_v4().expect("a socket");
            socket.set_reuseaddr(true).expect("set");
            socket.bind(address).ok()?;
            socket.listen(16).ok()
        })
        .await;
        self.serve(listener);
    }

    pub(crate) fn set(&self, mood: Mood) {
        self.inbox.lock().mood = mood;
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many requests have come in, however they were treated.
    pub(crate) fn requests(&self) -> usize {
        self.inbox.lock().requests
    }

    /// The headers of each request.
    pub(crate) fn headers(&self) -> Vec<HeaderMap> {
        self.inbox.lock().headers.clone()
    }

    /// All bytes that were taken.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let state = self.inbox.lock();
        state
            .taken
            .iter()
            .flat_map(ExportTraceServiceRequest::encode_to_vec)
            .collect()
    }

    /// The attributes of what sent each batch.
    pub(crate) fn resources(&self) -> Vec<HashMap<String, String>> {
        let state = self.inbox.lock();
        let taken = state.taken.iter().flat_map(|taken| &taken.resource_spans);
        taken
            .filter_map(|spans| spans.resource.as_ref())
            .map(|resource| texts(&resource.attributes))
            .collect()
    }

    /// All spans that were taken.
    pub(crate) fn spans(&self) -> Vec<Received> {
        let state = self.inbox.lock();
        let taken = state.taken.iter().flat_map(|taken| &taken.resource_spans);
        taken
            .flat_map(|spans| &spans.scope_spans)
            .flat_map(|spans| &spans.spans)
            .map(|span| Received(span.clone()))
            .collect()
    }

    /// Waits for a span.
    pub(crate) async fn span(&self, what: &str, is: impl Fn(&Received) -> bool) -> Received {
        eventually(what, async || self.spans().into_iter().find(&is)).await
    }

    /// Waits for this many spans, and gives them all.
    pub(crate) async fn wait_for(
        &self,
        what: &str,
        count: usize,
        are: impl Fn(&Received) -> bool,
    ) -> Vec<Received> {
        eventually(what, async || {
            let spans: Vec<_> = self.spans().into_iter().filter(&are).collect();
            (spans.len() >= count).then_some(spans)
        })
        .await
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.die();
    }
}

impl Inbox {
    fn lock(&self) -> parking_lot::MutexGuard<'_, State> {
        self.0.lock()
    }

    fn take(&self, request: ExportTraceServiceRequest) {
        self.lock().taken.push(request);
    }
}

/// A span as it came in.
#[derive(Debug, Clone)]
pub(crate) struct Received(Span);

impl Received {
    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    pub(crate) fn kind(&self) -> i32 {
        self.0.kind
    }

    pub(crate) fn trace(&self) -> String {
        hex(&self.0.trace_id)
    }

    pub(crate) fn id(&self) -> String {
        hex(&self.0.span_id)
    }

    pub(crate) fn parent(&self) -> String {
        hex(&self.0.parent_span_id)
    }

    pub(crate) fn state(&self) -> &str {
        &self.0.trace_state
    }

    pub(crate) fn is_error(&self) -> bool {
        self.0
            .status
            .as_ref()
            .is_some_and(|status| status.code == 2)
    }

    /// An attribute's value as text; empty when there is none.
    pub(crate) fn get(&self, key: &str) -> String {
        texts(&self.0.attributes).remove(key).unwrap_or_default()
    }

    /// The event of this name.
    pub(crate) fn event(&self, name: &str) -> Option<HashMap<String, String>> {
        let mut events = self.0.events.iter();
        let event: &Event = events.find(|event| event.name == name)?;
        Some(texts(&event.attributes))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(
    attributes: &[opentelemetry_proto::tonic::common::v1::KeyValue],
) -> HashMap<String, String> {
    let texts = attributes.iter().map(|attribute| {
        let value = attribute.value.as_ref();
        let text = match value.and_then(|value| value.value.as_ref()) {
            Some(Value::StringValue(text)) => text.clone(),
            Some(Value::IntValue(number)) => number.to_string(),
            other => format!("{other:?}"),
        };
        (attribute.key.clone(), text)
    });
    texts.collect()
}

#[tonic::async_trait]
impl TraceService for Inbox {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.take(request.into_inner());
        Ok(ExportTraceServiceResponse::default().into())
    }
}

async fn answer(
    inbox: Inbox,
    request: Request<Incoming>,
) -> Result<Response<tonic::body::Body>, Infallible> {
    let mood = {
        let mut state = inbox.lock();
        state.requests += 1;
        state.headers.push(request.headers().clone());
        state.mood
    };
    let content_type = request.headers().get("content-type");
    let is_grpc = content_type.is_some_and(|media| media.as_bytes() == b"application/grpc");
    match mood {
        Mood::Hangs => std::future::pending().await,
        Mood::Refuses if is_grpc => {
            Ok(tonic::Status::invalid_argument("refused by the test").into_http())
        }
        Mood::Refuses => Ok(with(StatusCode::BAD_REQUEST, Vec::new())),
        Mood::Takes if is_grpc => {
            let service = TraceServiceServer::new(inbox)
                .accept_compressed(tonic::codec::CompressionEncoding::Gzip);
            service.oneshot(request).await
        }
        Mood::Takes => {
            assert_eq!(request.uri().path(), "/v1/traces");
            let body = request.into_body().collect().await;
            // A request that breaks off is none.
            let Ok(body) = body else {
                return Ok(with(StatusCode::BAD_REQUEST, Vec::new()));
            };
            let decoded = ExportTraceServiceRequest::decode(body.to_bytes());
            inbox.take(decoded.expect("protobuf"));
            let answer = ExportTraceServiceResponse::default();
            Ok(with(StatusCode::OK, answer.encode_to_vec()))
        }
    }
}

fn with(status: StatusCode, body: Vec<u8>) -> Response<tonic::body::Body> {
    Response::builder()
        .status(status)
        .header("content-type", "application/x-protobuf")
        .body(tonic::body::Body::new(Full::new(Bytes::from(body))))
        .expect("a response")
}
