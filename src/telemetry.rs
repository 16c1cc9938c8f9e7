//! Logs, metrics and traces.

pub mod metrics;
pub mod trace;

use std::io::IsTerminal as _;

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::config::{Environment, LogLevel};

/// What the clients of Kubernetes log of every failed try, which the agent itself logs when it is news.
const TOLD_BY_OTHERS: &str = "kube_client=off,kube_runtime=off";

/// Sends log lines to stderr: JSON in production, readable elsewhere. Does nothing when the process
/// already has a subscriber.
pub fn init(environment: Environment, level: LogLevel) {
    let filter = EnvFilter::new(format!("{},{TOLD_BY_OTHERS}", level.filter()));
    let lines = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let registry = tracing_subscriber::registry().with(filter);
    // A second call, as tests make, keeps the first subscriber.
    let _ = match environment {
        Environment::Production => registry
            .with(lines.json().flatten_event(true).with_target(false))
            .try_init(),
        Environment::Development | Environment::Test => registry.with(lines).try_init(),
    };
}
