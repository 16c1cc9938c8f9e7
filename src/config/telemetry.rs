//! Logs, metrics and traces.

use election_core::types::Kind;
use strum::{EnumString, VariantNames};

use super::names::{
    EA_ENV, EA_LOG_LEVEL, EA_METRIC_ENABLE, EA_METRIC_REQUEST_DURATION_BUCKETS,
    EA_METRICS_PER_ELECTION, EA_TRACE_KEYS, Variable,
};
use super::{Setting, list_setting, otel, setting, values::Reader};
use crate::telemetry::{
    log::{LogFilter, Readers},
    trace,
};

pub(super) const SETTINGS: &[Setting] = &[
    setting(
        EA_ENV,
        "production",
        "`production` (JSON logs; leases in memory need EA_STORE=memory), `development` or `test` (readable logs)",
    ),
    setting(
        EA_LOG_LEVEL,
        "info",
        "least level that is logged: debug, info, warning, error, panic or fatal; or one for each module, such as `election_agent=debug,h2=warn`. Read again at SIGHUP",
    ),
    setting(
        EA_METRIC_ENABLE,
        "true",
        "count what `/metrics` serves, and serve it",
    ),
    list_setting(
        EA_METRIC_REQUEST_DURATION_BUCKETS,
        "0.0005,0.001,0.0025,0.005,0.01,0.025,0.05,0.1,0.25,0.5,1,5",
        "rising upper bounds of the request duration's buckets, in seconds",
    ),
    list_setting(
        EA_METRICS_PER_ELECTION,
        "",
        "kinds whose elections have series of their own at `/metrics`, comma separated: at most 1000 elections of each",
    ),
    setting(
        EA_TRACE_KEYS,
        "false",
        "put the names of elections and candidates into traces, which `OTEL_*` variables turn on \
         (docs/TRACES.md)",
    ),
];

/// The environment that the agent runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "lowercase")]
pub enum Environment {
    /// Production: logs are for machines.
    Production,
    /// A developer's machine.
    Development,
    /// Tests.
    Test,
}

impl Environment {
    /// Returns the readers that log lines are formatted for.
    #[must_use]
    pub fn readers(self) -> Readers {
        match self {
            Self::Production => Readers::Machines,
            Self::Development | Self::Test => Readers::People,
        }
    }
}

/// Logs, metrics and traces.
#[derive(Debug, Clone)]
pub struct Telemetry {
    /// The environment that the agent runs in.
    pub environment: Environment,
    /// The log filter.
    pub log: LogFilter,
    /// Whether `/metrics` is served.
    pub metrics: bool,
    /// Upper bounds of the request duration's buckets, in seconds.
    pub buckets: Vec<f64>,
    /// Kinds whose elections have their own metric series.
    pub per_election: Vec<Kind>,
    /// Configuration of tracing; `None` if it is off.
    pub traces: Option<trace::Settings>,
}

impl Telemetry {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let environment = reader.one_of(EA_ENV);
        let log = reader.parsed(EA_LOG_LEVEL);
        let metrics = reader.bool(EA_METRIC_ENABLE);
        let buckets = reader.with(EA_METRIC_REQUEST_DURATION_BUCKETS, |raw| {
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
        const PER_ELECTION: Variable = EA_METRICS_PER_ELECTION;
        let mut per_election = Vec::new();
        for kind in reader.list(PER_ELECTION) {
            match Kind::new(&kind) {
                Ok(kind) => per_election.push(kind),
                Err(what) => reader.mistake(PER_ELECTION, format!("`{kind}` is no kind: {what}")),
            }
        }
        let keys = reader.bool(EA_TRACE_KEYS);
        let traces = otel::read(reader, keys);
        Some(Self {
            environment: environment?,
            log: log?,
            metrics: metrics?,
            buckets: buckets?,
            per_election,
            traces: traces?,
        })
    }
}
