//! Traces: spans of requests and of what lease nodes are asked for them, sent by OpenTelemetry's protocol.
//!
//! Whether a request is recorded is decided by its headers ([`sampler`]), in
//! [`layers::trace`](crate::layers::trace), before anything is built for it. A recorded request carries its
//! span in OpenTelemetry's context, which follows it from poll to poll; everything here that acts on "the current
//! span" looks there, which costs others a look at a variable of the thread. Log lines written meanwhile name
//! its trace and span ([`log`](super::log)).

mod export;
pub mod node;
mod otlp;
pub mod sampler;

use std::{
    collections::BTreeMap,
    env, fmt,
    pin::Pin,
    task::{self, Poll},
    time::Duration,
};

use opentelemetry::{
    Context, InstrumentationScope, KeyValue,
    trace::{SpanId, TraceContextExt as _, TraceId, TracerProvider as _},
};
use opentelemetry_sdk::{
    Resource,
    trace::{
        IdGenerator as _, RandomIdGenerator, Sampler as SdkSampler, SdkTracer, SdkTracerProvider,
    },
};
use pin_project_lite::pin_project;
use url::Url;

pub use export::{Counts, counts};
use export::{Exporting, Queue};
use sampler::Sampler;

/// The semantic conventions that names of spans and attributes are from.
const CONVENTIONS: &str = "https://opentelemetry.io/schemas/1.37.0";
/// The attribute by which processes of one service are told apart.
const INSTANCE: &str = "service.instance.id";

/// How requests are traced.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where spans are sent.
    pub destination: Destination,
    /// What the agent tells of itself.
    pub resource: BTreeMap<String, String>,
    /// Which requests are recorded.
    pub sampler: Sampler,
    /// How spans are gathered.
    pub batches: Batches,
    /// Whether traces that callers began are continued.
    pub continues: bool,
    /// Whether spans have the names of elections and candidates.
    pub keys: bool,
}

/// The protocol that spans are sent by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// OTLP over gRPC.
    Grpc,
    /// OTLP over HTTP, in Protocol Buffers.
    Http,
}

/// Where spans are sent, and how.
#[derive(Clone)]
pub struct Destination {
    /// The protocol.
    pub protocol: Protocol,
    /// The receiver; over HTTP with the path.
    pub endpoint: Url,
    /// What is sent with every request: may hold credentials.
    pub headers: BTreeMap<String, String>,
    /// How long an export may take, with its repetitions.
    pub timeout: Duration,
    /// Whether requests are compressed.
    pub gzip: bool,
    /// The authorities that are trusted, in PEM, instead of the system's.
    pub authorities: Option<Vec<u8>>,
}

/// Without the headers' values.
impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Destination")
            .field("protocol", &self.protocol)
            .field("endpoint", &self.endpoint.origin())
            .field("headers", &self.headers.keys())
            .finish_non_exhaustive()
    }
}

/// How spans are gathered before they are sent.
#[derive(Debug, Clone, Copy)]
pub struct Batches {
    /// How long a span waits for others at the most.
    pub delay: Duration,
    /// How long sending a batch may take at the most.
    pub timeout: Duration,
    /// How many spans may wait; what comes then is lost.
    pub queue: usize,
    /// How many are sent at once; no more than may wait.
    pub most: usize,
}

/// Why requests cannot be traced, naming the variable to change.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(String);

/// Tracing that has been started.
#[derive(Debug)]
pub struct Traces {
    /// Dropping it would end tracing.
    _provider: SdkTracerProvider,
    recorder: Recorder,
    exporting: Exporting,
}

/// What makes spans. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder {
    /// Makes spans; it records all that it is asked for.
    pub(crate) tracer: SdkTracer,
    /// Which requests are recorded.
    pub(crate) sampler: Sampler,
    /// Whether traces that callers began are continued.
    pub(crate) continues: bool,
    /// Whether spans have the names of elections and candidates.
    pub(crate) keys: bool,
}

impl Traces {
    /// Starts a task of this runtime that sends spans; does not wait for the receiver.
    ///
    /// # Errors
    /// A destination that cannot be used.
    pub fn start(settings: Settings) -> Result<Self, StartError> {
        let mut attributes = settings.resource;
        let entry = attributes.entry(INSTANCE.to_owned());
        entry.or_insert_with(instance);
        let attributes = attributes.into_iter();
        let resource = Resource::builder_empty()
            .with_attributes(attributes.map(|(key, value)| KeyValue::new(key, value)))
            .with_attributes([
                KeyValue::new("telemetry.sdk.language", "rust"),
                KeyValue::new("telemetry.sdk.name", "opentelemetry"),
            ])
            .build();
        // Without the path, which may hold a key.
        let receiver = settings.destination.endpoint.origin();
        let receiver = receiver.ascii_serialization();
        tracing::info!(receiver, "requests are traced");
        let exporter = otlp::exporter(&settings.destination, &resource)?;
        let (queue, exporting) = Queue::start(exporter, settings.batches);
        let provider = SdkTracerProvider::builder()
            // The decision has been made when a span is built.
            .with_sampler(SdkSampler::AlwaysOn)
            .with_resource(resource)
            .with_span_processor(queue)
            .build();
        let scope = InstrumentationScope::builder(env!("CARGO_PKG_NAME"))
            .with_version(env!("CARGO_PKG_VERSION"))
            .with_schema_url(CONVENTIONS)
            .build();
        Ok(Self {
            recorder: Recorder {
                tracer: provider.tracer_with_scope(scope),
                sampler: settings.sampler,
                continues: settings.continues,
                keys: settings.keys,
            },
            _provider: provider,
            exporting,
        })
    }

    /// What makes spans.
    #[must_use]
    pub fn recorder(&self) -> Recorder {
        self.recorder.clone()
    }

    /// Sends what waits, for no longer than this. Spans that end later are lost.
    pub async fn flush(self, limit: Duration) {
        self.exporting.finish(limit).await;
    }
}

/// What this process is called among those of the service, until it ends.
///
/// In Kubernetes the pod, which is the host's name there, as in the audit trail. Elsewhere several agents may share a
/// host and its name, so that it is a random number.
fn instance() -> String {
    let pod = env::var_os("KUBERNETES_SERVICE_HOST").and_then(|_| hostname::get().ok());
    let pod = pod.and_then(|name| name.into_string().ok());
    pod.unwrap_or_else(|| RandomIdGenerator::default().new_trace_id().to_string())
}

/// The id of the trace that the current request is recorded in, in 32 hexadecimal digits.
#[must_use]
pub fn current_trace_id() -> Option<String> {
    current_ids().map(|(trace, _)| trace.to_string())
}

/// The ids of the trace that the current request is recorded in, and of its span.
pub(super) fn current_ids() -> Option<(TraceId, SpanId)> {
    recorded(|context| {
        let span = context.span();
        let context = span.span_context();
        (context.trace_id(), context.span_id())
    })
}

/// Tells of something, with a number, in the current request's span, if it is recorded and has not ended.
pub fn event(name: &'static str, key: &'static str, number: u64) {
    recorded(|context| {
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        let span = context.span();
        span.add_event(name, vec![KeyValue::new(key, number)]);
    });
}

/// Something of the current context, if a span is recorded in it.
fn recorded<T>(of: impl FnOnce(&Context) -> T) -> Option<T> {
    Context::map_current(|context| context.has_active_span().then(|| of(context)))
}

/// Lets a future be of the current request, also where it is polled by another task.
pub fn carry<F: Future>(future: F) -> Carried<F> {
    within(recorded(Context::clone), future)
}

/// Lets a future be of the request with this context.
pub(crate) fn within<F: Future>(context: Option<Context>, future: F) -> Carried<F> {
    Carried { future, context }
}

pin_project! {
    /// A future that is of a request, if that is recorded.
    #[derive(Debug)]
    pub struct Carried<F> {
        #[pin]
        future: F,
        context: Option<Context>,
    }
}

impl<F: Future> Future for Carried<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _current = this.context.clone().map(Context::attach);
        this.future.poll(cx)
    }
}
