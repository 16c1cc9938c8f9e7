//! Log lines on stderr.
//!
//! The filter can be changed while the agent runs. The audit trail has a line for every change of a leader.
//! It is logged at every level, unless its own directive says otherwise.
//!
//! A separate thread writes the lines. If the reader of stderr does not keep up, a bounded number of lines
//! waits. Further lines are lost and [counted](lost), so that elections are never blocked.

use std::{
    fmt,
    io::{self, IsTerminal as _, Write},
    panic,
    str::FromStr,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use opentelemetry::trace::{SpanId, TraceId};
use rustix::event::{PollFd, PollFlags, poll};
use tracing::{Event, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{Format, JsonFields, Writer},
    },
    layer::SubscriberExt as _,
    registry::LookupSpan,
    reload::{self, Handle},
    util::SubscriberInitExt as _,
};

use super::trace;

/// The target of audit lines.
pub const AUDIT: &str = "election_agent::audit";

/// The default directives, which a filter may override. Spans are only for traces. The Kubernetes clients log
/// every failed try; the agent itself logs only changes.
const DEFAULTS: &str =
    "election_agent::audit=info,election_agent::span=off,kube_client=off,kube_runtime=off";

/// The maximum number of lines that wait to be written: some megabytes.
const WAITING: usize = 8_192;

/// How long the shutdown waits for lines to be written.
const FLUSH: Duration = Duration::from_secs(1);

/// The filter of the process's only subscriber.
static FILTER: OnceLock<Handle<EnvFilter, Registry>> = OnceLock::new();
/// Counts the lines that were lost because the queue was full.
static CROWDED_OUT: OnceLock<ErrorCounter> = OnceLock::new();
/// Counts the lines that were lost because a write failed.
static NOT_WRITTEN: AtomicU64 = AtomicU64::new(0);

/// Writes the queued lines when it is dropped. Waits for a second at most.
#[must_use]
#[derive(Debug)]
pub struct Flush(Option<WorkerGuard>);

impl Drop for Flush {
    fn drop(&mut self) {
        let guard = self.0.take();
        let (written, wait) = mpsc::channel();
        // Dropping the guard may itself write, which blocks if stderr is not read.
        let flush = move || {
            drop(guard);
            let _ = written.send(());
        };
        if thread::Builder::new().spawn(flush).is_ok() {
            let _ = wait.recv_timeout(FLUSH);
        }
    }
}

/// What is logged: a level, or [directives](tracing_subscriber::EnvFilter) for modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter(String);

impl LogFilter {
    /// The filter as directives.
    #[must_use]
    pub fn directives(&self) -> &str {
        &self.0
    }
}

impl FromStr for LogFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const ADVICE: &str = "give debug, info, warning, error, panic or fatal, or directives such as \
             election_agent=debug,h2=warn";
        // The agent logs nothing above error. The levels panic and fatal, which existing deployments set,
        // therefore mean error.
        let directives = match text {
            "debug" | "info" | "error" => text,
            "warning" => "warn",
            "panic" | "fatal" => "error",
            // `EnvFilter` would read an unknown word as the name of a module, and log everything of it.
            word if !word.contains('=') => return Err(ADVICE.to_owned()),
            directives => directives,
        };
        EnvFilter::builder()
            .parse(directives)
            .map(|_| Self(directives.to_owned()))
            .map_err(|error| format!("{error}: {ADVICE}"))
    }
}

/// The readers of the log, which determine the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readers {
    /// Programs: lines are JSON.
    Machines,
    /// People: lines are text.
    People,
}

/// Sends log lines and panic messages to stderr, as JSON for machines. Does nothing if the process already
/// has a subscriber. Sends spans to the pipeline, if there is one.
pub fn start(readers: Readers, filter: &LogFilter, traces: Option<&trace::Pipeline>) -> Flush {
    let (filter, handle) = reload::Layer::new(env_filter(filter));
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(WAITING)
        .thread_name("log")
        .finish(Stderr { reported: 0 });
    let crowded_out = writer.error_counter();
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(io::stderr().is_terminal());
    let lines = match readers {
        Readers::Machines => lines
            .fmt_fields(JsonFields::new())
            .event_format(WithTrace {
                format: Format::default().json().flatten_event(true),
                members: |(trace, span)| {
                    format!(",\"trace_id\":\"{trace}\",\"span_id\":\"{span}\"}}\n")
                },
                replaces: "}\n",
            })
            .boxed(),
        Readers::People => lines
            .event_format(WithTrace {
                format: Format::default(),
                members: |(trace, span)| format!(" trace_id={trace} span_id={span}\n"),
                replaces: "\n",
            })
            .boxed(),
    };
    let subscriber = tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .with(traces.map(trace::Pipeline::layer));
    if subscriber.try_init().is_ok() {
        // Only this function sets the two cells.
        let _ = FILTER.set(handle);
        let _ = CROWDED_OUT.set(crowded_out);
        // The default hook would block until stderr is read.
        panic::set_hook(Box::new(|panic| {
            let backtrace = std::backtrace::Backtrace::capture();
            tracing::error!(%backtrace, "{panic}");
        }));
    }
    Flush(Some(guard))
}

/// A trace id and a span id.
type Ids = (TraceId, SpanId);

/// Formats lines. If the current request is recorded, adds the ids of its trace and its span.
struct WithTrace<F> {
    format: F,
    /// Renders the ids as the end of a line.
    members: fn(Ids) -> String,
    /// The end of a line that the ids replace.
    replaces: &'static str,
}

impl<S, N, F> FormatEvent<S, N> for WithTrace<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some(ids) = trace::current_ids() else {
            return self.format.format_event(context, writer, event);
        };
        let mut line = String::new();
        self.format
            .format_event(context, Writer::new(&mut line), event)?;
        match line.strip_suffix(self.replaces) {
            Some(line) => {
                writer.write_str(line)?;
                writer.write_str(&(self.members)(ids))
            }
            None => writer.write_str(&line),
        }
    }
}

/// How many lines were lost since the start of the process.
#[must_use]
pub fn lost() -> u64 {
    let crowded_out = CROWDED_OUT.get().map_or(0, ErrorCounter::dropped_lines);
    crowded_out as u64 + NOT_WRITTEN.load(Ordering::Relaxed)
}

/// Writes lines to stderr, and reports lost lines.
struct Stderr {
    /// How many of the lost lines were reported.
    reported: u64,
}

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_all(line).map(|()| line.len())
    }

    fn write_all(&mut self, mut line: &[u8]) -> io::Result<()> {
        let mut stderr = io::stderr();
        while !line.is_empty() {
            match stderr.write(line) {
                Ok(written) => line = &line[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The creator of the pipe may have made it non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], None)?;
                }
                Err(error) => {
                    NOT_WRITTEN.fetch_add(1, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Reports lost lines. The writer calls this when the queue is empty, so that there is room for the
    /// report.
    fn flush(&mut self) -> io::Result<()> {
        let lost = lost();
        let lines = lost - self.reported;
        if lines > 0 {
            self.reported = lost;
            tracing::warn!(
                lines,
                "log lines were lost: the reader of stderr did not keep up, or it could not be written to"
            );
        }
        Ok(())
    }
}

/// Replaces the filter. Returns whether this process logs at all.
pub fn change(filter: &LogFilter) -> bool {
    let handle = FILTER.get();
    handle.is_some_and(|handle| handle.reload(env_filter(filter)).is_ok())
}

fn env_filter(filter: &LogFilter) -> EnvFilter {
    EnvFilter::new(format!("{DEFAULTS},{}", filter.directives()))
}
