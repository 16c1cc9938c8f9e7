//! Log lines on stderr.
//!
//! What is logged can be changed while the agent runs. The audit trail, a line for every leadership that changes,
//! is logged whatever the level, unless its own directive says otherwise.

use std::{io::IsTerminal as _, sync::OnceLock};

use tracing_subscriber::{
    EnvFilter, Layer as _, Registry, fmt,
    layer::SubscriberExt as _,
    reload::{self, Handle},
    util::SubscriberInitExt as _,
};

use crate::config::{Environment, LogFilter};

/// The target of the audit trail's lines.
pub const AUDIT: &str = "election_agent::audit";

/// What holds unless a filter says otherwise. The clients of Kubernetes log every failed try, which the agent
/// itself logs when it is news.
const DEFAULTS: &str = "election_agent::audit=info,kube_client=off,kube_runtime=off";

/// The filter of the process's subscriber, of which there is one.
static FILTER: OnceLock<Handle<EnvFilter, Registry>> = OnceLock::new();

/// Sends log lines to stderr: JSON in production, readable elsewhere. Does nothing when the process already has a
/// subscriber.
pub fn start(environment: Environment, filter: &LogFilter) {
    let (filter, handle) = reload::Layer::new(env_filter(filter));
    let lines = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let lines = match environment {
        Environment::Production => lines.json().flatten_event(true).boxed(),
        Environment::Development | Environment::Test => lines.boxed(),
    };
    let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter));
    if subscriber.try_init().is_ok() {
        // Nobody else sets it.
        let _ = FILTER.set(handle);
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
