//! Traces: spans of requests and of the work for them, exported with the OpenTelemetry protocol.
//!
//! Spans are those of [`tracing`] with the target [`SPANS`]; `tracing-opentelemetry` converts them to
//! OpenTelemetry spans. The [`sampler`] decides by a request's headers whether the request is recorded. That
//! happens in [`layers::trace`](crate::layers::trace) before a span is built. The work for a request that is
//! not recorded has no spans. While a recorded request is polled, its span is OpenTelemetry's current one:
//! log lines ([`log`](super::log)) and exemplars read their ids from it.

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

/// The version of the semantic conventions that define the names of spans and attributes.
const CONVENTIONS: &str = "https://opentelemetry.io/schemas/1.37.0";
/// The name of request spans in the subscriber.
pub(crate) const REQUEST: &str = "request";
/// The attribute that distinguishes the processes of a service.
const INSTANCE: &str = "service.instance.id";

/// The configuration of tracing.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The receiver of spans.
    pub destination: Destination,
    /// The attributes of this process's resource.
    pub resource: BTreeMap<String, String>,
    /// Which requests are recorded.
    pub sampler: Sampler,
    /// How spans are batched.
    pub batches: Batches,
    /// Whether traces of callers are continued.
    pub continues: bool,
    /// Whether spans contain the names of elections and candidates.
    pub keys: bool,
}

/// The transport of the OpenTelemetry protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// OTLP over gRPC.
    Grpc,
    /// OTLP over HTTP, in Protocol Buffers.
    Http,
}

/// The receiver of spans, and how to reach it.
#[derive(Clone)]
pub struct Destination {
    /// The protocol.
    pub protocol: Protocol,
    /// The URL of the receiver; with the path for HTTP.
    pub endpoint: Url,
    /// Headers of every export request. They may contain credentials.
    pub headers: BTreeMap<String, String>,
    /// The time limit of an export with its retries.
    pub timeout: Duration,
    /// Whether requests are compressed.
    pub gzip: bool,
    /// The trusted certificate authorities, in PEM, instead of those of the system.
    pub authorities: Option<Vec<u8>>,
}

/// Omits the values of headers, which may contain credentials.
impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Destination")
            .field("protocol", &self.protocol)
            .field("endpoint", &self.endpoint.origin())
            .field("headers", &self.headers.keys())
            .finish_non_exhaustive()
    }
}

/// How spans are batched before they are exported.
#[derive(Debug, Clone, Copy)]
pub struct Batches {
    /// How long a span waits for others at most.
    pub delay: Duration,
    /// How long the export of a batch takes at most.
    pub timeout: Duration,
    /// The capacity of the queue. Further spans are lost.
    pub queue: usize,
    /// The maximum size of a batch; not above the capacity of the queue.
    pub most: usize,
}

/// An error that prevents tracing. Names the variable to change.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(String);

/// A tracing pipeline that is set up, before the process has a runtime.
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

/// Decides which requests are recorded, and how.
#[derive(Debug, Clone)]
pub struct Recorder {
    pub(crate) sampler: Sampler,
    /// Whether traces of callers are continued.
    pub(crate) continues: bool,
    /// Whether spans contain the names of elections and candidates.
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
            // The decision was made before the span was built.
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

    /// The layer with which the process's subscriber records spans.
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

    /// Starts a task on this runtime that exports spans. Does not wait for the receiver.
    ///
    /// # Errors
    /// Returns an error if the destination cannot be used.
    pub fn start(self) -> Result<Traces, StartError> {
        // Omits the path, which may contain a key.
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
    /// Returns the recorder of requests.
    #[must_use]
    pub fn recorder(&self) -> Recorder {
        self.recorder.clone()
    }

    /// Exports the queued spans within this limit. Spans that end later are lost.
    pub async fn flush(self, limit: Duration) {
        self.exporting.finish(limit).await;
    }
}

/// Converts the spans of [`tracing`] with the target [`SPANS`] to spans of this tracer: requests, and below
/// them the work for recorded ones.
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

/// Enables request spans, and other spans only within a recorded request.
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

/// The id of this process within the service, constant until the process ends.
///
/// In Kubernetes it is the host name, which equals the pod name, as in the audit trail. Elsewhere several
/// agents may share a host and its name, so the id is a random number.
fn instance() -> String {
    let pod = env::var_os("KUBERNETES_SERVICE_HOST").and_then(|_| hostname::get().ok());
    let pod = pod.and_then(|name| name.into_string().ok());
    pod.unwrap_or_else(|| RandomIdGenerator::default().new_trace_id().to_string())
}

/// The id of the current request's trace, in 32 hexadecimal digits; `None` if the request is not recorded.
#[must_use]
pub fn current_trace_id() -> Option<String> {
    current_ids().map(|(trace, _)| trace.to_string())
}

/// The ids of the current request's trace and span; `None` if the request is not recorded.
pub(super) fn current_ids() -> Option<(TraceId, SpanId)> {
    recorded(|context| {
        let span = context.span();
        let context = span.span_context();
        (context.trace_id(), context.span_id())
    })
}

/// Awaits the reply of another server. If the current request is recorded, records the call in a child span
/// with this name.
///
/// # Errors
/// Returns the error of the call.
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
        // Omits the text of the error, which may contain names. The log has it.
        span.record("error.type", "failed");
        span.record("otel.status_code", "error");
    }
    reply
}

/// Reads from the current context if it contains a recorded span.
fn recorded<T>(of: impl FnOnce(&Context) -> T) -> Option<T> {
    Context::map_current(|context| context.has_active_span().then(|| of(context)))
}
