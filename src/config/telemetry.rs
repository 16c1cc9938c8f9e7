//! Logs, metrics and traces.

use std::str::FromStr;

use super::{Setting, otel, setting, values::Reader};
use crate::telemetry::trace;

pub(super) const SETTINGS: &[Setting] = &[
    setting(
        "EA_ENV",
        "production",
        "production (JSON logs), development or test (readable logs)",
    ),
    setting(
        "EA_LOG_LEVEL",
        "info",
        "least level that is logged: debug, info, warning, error, panic or fatal",
    ),
    setting("EA_METRIC_ENABLE", "true", "serve `/metrics`"),
    setting(
        "EA_METRIC_REQUEST_DURATION_BUCKETS",
        "0.0005,0.001,0.0025,0.005,0.01,0.025,0.05,0.1,0.25,0.5,1,5",
        "rising upper bounds of the request duration's buckets, in seconds",
    ),
    setting(
        "EA_TRACE_KEYS",
        "false",
        "tell the names of elections and candidates in traces, which `OTEL_*` variables turn on \
         (docs/TRACES.md)",
    ),
];

/// What the agent runs for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Environment {
    /// Real use: logs are for machines.
    Production,
    /// A developer's machine.
    Development,
    /// Tests.
    Test,
}

impl FromStr for Environment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "production" => Ok(Self::Production),
            "development" => Ok(Self::Development),
            "test" => Ok(Self::Test),
            _ => Err("give production, development or test".to_owned()),
        }
    }
}

/// The least level that is logged. The agent logs nothing above error, so panic and fatal, which
/// existing deployments set, leave errors alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// Changes of state.
    Info,
    /// What needs a look.
    Warning,
    /// What needs a hand.
    Error,
}

impl LogLevel {
    /// The level as a filter directive.
    #[must_use]
    pub fn filter(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warning => "warn",
            Self::Error => "error",
        }
    }
}

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "debug" => Ok(Self::Debug),
            "info" => Ok(Self::Info),
            "warning" => Ok(Self::Warning),
            "error" | "panic" | "fatal" => Ok(Self::Error),
            _ => Err("give debug, info, warning, error, panic or fatal".to_owned()),
        }
    }
}

/// Logs, metrics and traces.
#[derive(Debug, Clone)]
pub struct Telemetry {
    /// What the agent runs for.
    pub environment: Environment,
    /// The least level that is logged.
    pub log_level: LogLevel,
    /// Whether `/metrics` is served.
    pub metrics: bool,
    /// Upper bounds of the request duration's buckets, in seconds.
    pub buckets: Vec<f64>,
    /// How requests are traced, if they are.
    pub traces: Option<trace::Settings>,
}

impl Telemetry {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let environment = reader.parsed("EA_ENV");
        let log_level = reader.parsed("EA_LOG_LEVEL");
        let metrics = reader.bool("EA_METRIC_ENABLE");
        let buckets = reader.with("EA_METRIC_REQUEST_DURATION_BUCKETS", |raw| {
            let bounds: Option<Vec<f64>> = raw
                .split(',')
                .map(|bound| bound.trim().parse().ok())
                .collect();
            bounds
                .filter(|bounds| bounds.iter().all(|bound| bound.is_finite() && *bound > 0.0))
                .filter(|bounds| bounds.is_sorted_by(|a, b| a < b))
                .ok_or_else(|| {
                    "give rising positive numbers of seconds, comma separated".to_owned()
                })
        });
        let keys = reader.bool("EA_TRACE_KEYS");
        let traces = otel::read(reader, keys);
        Some(Self {
            environment: environment?,
            log_level: log_level?,
            metrics: metrics?,
            buckets: buckets?,
            traces: traces?,
        })
    }
}
