//! Log lines on stderr.
//!
//! What is logged can be changed while the agent runs. The audit trail, a line for every leadership that changes,
//! is logged whatever the level, unless its own directive says otherwise.
//!
//! A thread of its own writes the lines. Where whoever reads them does not keep up, a bounded number waits, and further
//! ones are lost and [counted](lost): elections go on.

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

/// The target of the audit trail's lines.
pub const AUDIT: &str = "election_agent::audit";

/// What holds unless a filter says otherwise. Spans are for traces alone. The clients of Kubernetes log every failed try, which the agent
/// itself logs when it is news.
const DEFAULTS: &str =
    "election_agent::audit=info,election_agent::span=off,kube_client=off,kube_runtime=off";

/// How many lines may wait to be written: some megabytes.
const WAITING: usize = 8_192;

/// How long the end waits for lines to be written.
const FLUSH: Duration = Duration::from_secs(1);

/// The filter of the process's subscriber, of which there is one.
static FILTER: OnceLock<Handle<EnvFilter, Registry>> = OnceLock::new();
/// How many lines found no place to wait.
static CROWDED_OUT: OnceLock<ErrorCounter> = OnceLock::new();
/// How many lines the system did not take.
static NOT_WRITTEN: AtomicU64 = AtomicU64::new(0);

/// Lets lines that wait be written when it is dropped, for a second at the longest.
#[must_use]
#[derive(Debug)]
pub struct Flush(Option<WorkerGuard>);

impl Drop for Flush {
    fn drop(&mut self) {
        let guard = self.0.take();
        let (written, wait) = mpsc::channel();
        // Dropping the guard may itself write where nobody reads.
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
    /// The directives.
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
        // The agent logs nothing above error, so panic and fatal, which existing deployments set, leave errors
        // alone.
        let directives = match text {
            "debug" | "info" | "error" => text,
            "warning" => "warn",
            "panic" | "fatal" => "error",
            // A word alone would be taken for a module whose everything is logged.
            word if !word.contains('=') => return Err(ADVICE.to_owned()),
            directives => directives,
        };
        EnvFilter::builder()
            .parse(directives)
            .map(|_| Self(directives.to_owned()))
            .map_err(|error| format!("{error}: {ADVICE}"))
    }
}

/// Whom log lines are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readers {
    /// Programs: lines are JSON.
    Machines,
    /// People.
    People,
}

/// Sends log lines, and what panics say, to stderr: JSON for machines. Does nothing when the
/// process already has a subscriber. Spans go into the pipeline, if there is one.
pub fn start(readers: Readers, filter: &LogFilter, traces: Option<&trace::Pipeline>) -> Flush {
    let (filter, handle) = reload::Layer::new(env_filter(filter));
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(WAITING)
        .thread_name("log")
        .finish(Stderr { told: 0 });
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
        // Nobody else sets them.
        let _ = FILTER.set(handle);
        let _ = CROWDED_OUT.set(crowded_out);
        // The default hook waits for whoever reads stderr.
        panic::set_hook(Box::new(|panic| {
            let backtrace = std::backtrace::Backtrace::capture();
            tracing::error!(%backtrace, "{panic}");
        }));
    }
    Flush(Some(guard))
}

/// The ids of a trace and of a span.
type Ids = (TraceId, SpanId);

/// Formats lines, with the ids of the trace and the span of the request that they are about, if it is recorded.
struct WithTrace<F> {
    format: F,
    /// The ids, as they end a line.
    members: fn(Ids) -> String,
    /// What lines end with otherwise.
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

/// How many lines were lost since the start.
#[must_use]
pub fn lost() -> u64 {
    let crowded_out = CROWDED_OUT.get().map_or(0, ErrorCounter::dropped_lines);
    crowded_out as u64 + NOT_WRITTEN.load(Ordering::Relaxed)
}

/// Writes lines, and says when some were lost.
struct Stderr {
    /// How many lost lines have been told of.
    told: u64,
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
                // Whoever made the pipe may have set it so.
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

    /// Called whenever no line waits any more, so that there is a place for one that says what is missing.
    fn flush(&mut self) -> io::Result<()> {
        let lost = lost();
        let lines = lost - self.told;
        if lines > 0 {
            self.told = lost;
            tracing::warn!(
                lines,
                "log lines were lost: whoever reads stderr did not keep up, or could not be written to"
            );
        }
        Ok(())
    }
}

/// Logs by this filter from now on; whether this process logs at all.
pub fn change(filter: &LogFilter) -> bool {
    let handle = FILTER.get();
    handle.is_some_and(|handle| handle.reload(env_filter(filter)).is_ok())
}

fn env_filter(filter: &LogFilter) -> EnvFilter {
    EnvFilter::new(format!("{DEFAULTS},{}", filter.directives()))
}
