//! Traces: spans of requests and of what is done for them, sent by OpenTelemetry's protocol.
//!
//! Spans are those of [`tracing`] with the target [`SPANS`], which `tracing-opentelemetry` makes OpenTelemetry's from.
//! Whether a request is recorded is decided by its headers ([`sampler`]), in
//! [`layers::trace`](crate::layers::trace), before a span is built for it; what is done for a request that is not
//! recorded has no spans. While a recorded request is polled, its span is OpenTelemetry's current one: from there log
//! lines ([`log`](super::log)) and exemplars have its ids.

mod export;
mod otlp;
pub mod sampler;

use std::{collections::BTreeMap, env, fmt, time::Duration};

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
use tracing::{
    Instrument as _, Metadata, Subscriber, field::Empty, level_filters::LevelFilter,
    subscriber::Interest,
};
use tracing_subscriber::{
    Layer,
    layer::{Context as LayerContext, Filter},
    registry::LookupSpan,
};
use url::Url;

pub use election_core::lease::quorum::SPANS;
pub use export::{Counts, counts};
use export::{Exporting, Queue, Unstarted};
use sampler::Sampler;

/// The semantic conventions that names of spans and attributes are from.
const CONVENTIONS: &str = "https://opentelemetry.io/schemas/1.37.0";
/// The name of requests' spans, to the subscriber.
pub(crate) const REQUEST: &str = "request";
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

/// Tracing that is set up, before the process has a runtime.
#[derive(Debug)]
pub struct Pipeline {
    provider: SdkTracerProvider,
    resource: Resource,
    destination: Destination,
    unstarted: Unstarted,
    recorder: Recorder,
}

/// Tracing that has been started.
#[derive(Debug)]
pub struct Traces {
    /// Dropping it would end tracing.
    _provider: SdkTracerProvider,
    recorder: Recorder,
    exporting: Exporting,
}

/// Which requests are recorded, and how.
#[derive(Debug, Clone)]
pub struct Recorder {
    pub(crate) sampler: Sampler,
    /// Whether traces that callers began are continued.
    pub(crate) continues: bool,
    /// Whether spans have the names of elections and candidates.
    pub(crate) keys: bool,
}

impl Pipeline {
    /// Sets tracing up. Spans wait in a queue until [`start`](Self::start).
    #[must_use]
    pub fn new(settings: Settings) -> Self {
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
        let (queue, unstarted) = Queue::new(settings.batches);
        let provider = SdkTracerProvider::builder()
            // The decision has been made when a span is built.
            .with_sampler(SdkSampler::AlwaysOn)
            .with_resource(resource.clone())
            .with_span_processor(queue)
            .build();
        Self {
            provider,
            resource,
            destination: settings.destination,
            unstarted,
            recorder: Recorder {
                sampler: settings.sampler,
                continues: settings.continues,
                keys: settings.keys,
            },
        }
    }

    /// What the process's subscriber needs to record spans.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let scope = InstrumentationScope::builder(env!("CARGO_PKG_NAME"))
            .with_version(env!("CARGO_PKG_VERSION"))
            .with_schema_url(CONVENTIONS)
            .build();
        layer(self.provider.tracer_with_scope(scope))
    }

    /// Starts a task of this runtime that sends spans; does not wait for the receiver.
    ///
    /// # Errors
    /// A destination that cannot be used.
    pub fn start(self) -> Result<Traces, StartError> {
        // Without the path, which may hold a key.
        let receiver = self.destination.endpoint.origin();
        let receiver = receiver.ascii_serialization();
        tracing::info!(receiver, "requests are traced");
        let exporter = otlp::exporter(&self.destination, &self.resource)?;
        Ok(Traces {
            _provider: self.provider,
            recorder: self.recorder,
            exporting: self.unstarted.start(exporter),
        })
    }
}

impl Traces {
    /// Which requests are recorded.
    #[must_use]
    pub fn recorder(&self) -> Recorder {
        self.recorder.clone()
    }

    /// Sends what waits, for no longer than this. Spans that end later are lost.
    pub async fn flush(self, limit: Duration) {
        self.exporting.finish(limit).await;
    }
}

/// Makes OpenTelemetry's spans of this tracer from those of [`tracing`] with the target [`SPANS`]: of requests, and
/// below them of what is done for recorded ones.
pub(crate) fn layer<S>(tracer: SdkTracer) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_error_events_to_status(false)
        .with_error_events_to_exceptions(false)
        .with_filter(Recorded)
}

/// Lets through what is part of a recorded request.
struct Recorded;

impl<S> Filter<S> for Recorded {
    fn enabled(&self, metadata: &Metadata<'_>, _: &LayerContext<'_, S>) -> bool {
        metadata.target() == SPANS && (metadata.name() == REQUEST || recorded(|_| ()).is_some())
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        match metadata.target() == SPANS {
            true => Interest::sometimes(),
            false => Interest::never(),
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
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

/// Awaits the reply of another server, in a span of this name below the current request's if that is recorded.
///
/// # Errors
/// Those of the call.
pub async fn call<T, E>(
    name: &'static str,
    reply: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    if recorded(|_| ()).is_none() {
        return reply.await;
    }
    let span = tracing::info_span!(
        target: SPANS,
        "call",
        otel.name = name,
        otel.kind = "client",
        otel.status_code = Empty,
        error.type = Empty,
    );
    let reply = reply.instrument(span.clone()).await;
    if reply.is_err() {
        // Without the error's text, which may contain names; the log has it.
        span.record("error.type", "failed");
        span.record("otel.status_code", "error");
    }
    reply
}

/// Something of the current context, if a span is recorded in it.
fn recorded<T>(of: impl FnOnce(&Context) -> T) -> Option<T> {
    Context::map_current(|context| context.has_active_span().then(|| of(context)))
}
