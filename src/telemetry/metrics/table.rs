//! Every metric: its name, type, labels, unit and meaning, and when it exists.
//!
//! Metrics are registered by their rows here, and docs/METRICS.md is generated from them.

use std::fmt::Write as _;

use election_core::{
    election::ledger::{Cause, RequestOutcome},
    lease::quorum::observer::Operation,
};
use strum::{IntoStaticStr, VariantNames};

use crate::endpoint::Action;

/// The prefix of all names, followed by an underscore.
pub const PREFIX: &str = "election_agent";

/// How many elections of a kind of `EA_METRICS_PER_ELECTION` have series of their own.
pub const ELECTIONS_PER_KIND: usize = 1_000;

/// The type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum Type {
    /// Only rises; starts at zero with the agent.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Counts in buckets, with a sum.
    Histogram,
}

impl Type {
    /// The name of the type in the exposition formats.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// A metric.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Its name, without [`PREFIX`].
    pub name: &'static str,
    /// Its type.
    pub kind: Type,
    /// The names of the labels.
    pub labels: &'static [&'static str],
    /// The unit of the values.
    pub unit: &'static str,
    /// What the metric means.
    pub meaning: &'static str,
    /// When the metric exists.
    pub exists: &'static str,
}

impl Row {
    /// The name with [`PREFIX`].
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{PREFIX}_{}", self.name)
    }
}

macro_rules! table {
    ($($row:ident: $kind:ident $name:literal [$($label:literal),*] $unit:literal, $meaning:literal, $exists:literal;)+) => {
        $(pub(super) const $row: Row = Row {
            name: $name,
            kind: Type::$kind,
            labels: &[$($label),*],
            unit: $unit,
            meaning: $meaning,
            exists: $exists,
        };)+

        /// Every metric.
        pub const TABLE: &[Row] = &[$($row),+];
    };
}

table! {
    REQUEST_DURATION: Histogram "request_duration_seconds" ["action", "status"] "seconds",
        "Time until the reply to a request began, by action and gRPC name of the status, over every protocol",
        "from the first request of an action that got the status";
    IN_FLIGHT: Gauge "requests_in_flight" ["action"] "requests",
        "Requests whose reply has not begun",
        "always";
    UNAVAILABLE: Counter "unavailable_total" [] "requests",
        "Requests that got UNAVAILABLE: no quorum of lease nodes replied, or the data about pods is too old",
        "always";
    REFUSED: Counter "requests_refused_total" ["reason"] "requests",
        "Requests that a limit, authentication or policies refused",
        "always";
    OUTCOMES: Counter "outcomes_total" ["action", "outcome"] "requests",
        "The outcomes of requests that reached the elections",
        "from the first request of an action with the outcome";
    LEADERSHIP_CHANGES: Counter "leadership_changes_total" ["cause"] "changes",
        "Changes of leadership that this agent made or observed",
        "always";
    HELD: Gauge "elections_held" [] "elections",
        "Elections whose leader's term has not ended, of those that this agent has replied about",
        "always";
    READY: Gauge "ready" [] "0 or 1",
        "Whether the agent is ready, as /readyz reports it",
        "always";
    DISCONNECTED: Gauge "disconnected_redis_backends" [] "nodes",
        "Lease nodes that do not answer, or must not vote",
        "always";
    NODE_UP: Gauge "node_up" ["node"] "0 or 1",
        "Whether the lease node answers, and may vote",
        "always";
    NODE_GUARD: Gauge "node_guard_remaining_seconds" ["node"] "seconds",
        "For how long the lease node is in quarantine, as it has restarted or was promoted; 0 when it grants",
        "while the node answers and has incarnation records";
    NODE_MEMORY_USED: Gauge "node_memory_used_bytes" ["node"] "bytes",
        "The memory that counts against the lease node's maxmemory; of a Redis Cluster, on the fullest primary",
        "on Redis, while the node answers";
    NODE_MEMORY_MAX: Gauge "node_memory_max_bytes" ["node"] "bytes",
        "The lease node's maxmemory, beyond which it grants nothing; of a Redis Cluster, of the fullest primary",
        "on Redis, while the node answers and has a limit";
    NODE_DURATION: Histogram "node_call_duration_seconds" ["node", "operation"] "seconds",
        "Duration of calls to lease nodes, including those without a reply; excludes calls that a read no longer waited for and calls that were never sent",
        "always";
    NODE_ERRORS: Counter "node_call_errors_total" ["node", "operation", "error"] "calls",
        "Calls to lease nodes that failed",
        "always";
    TOKEN_RETRIES: Counter "token_retries_total" [] "votes",
        "Votes repeated with a larger token, because a node had accepted a larger one than proposed",
        "always";
    SPLIT_VOTES: Counter "split_votes_total" [] "votes",
        "Votes in which candidates competed and none got a quorum",
        "always";
    WITHDRAWALS: Counter "withdrawals_total" [] "grants",
        "Grants rolled back, each counted at every node that did so: of votes that did not win, and of callers that went away",
        "always";
    HEALS: Counter "heals_total" [] "leases",
        "Leases repaired on nodes that lacked them, each counted at every node",
        "always";
    WAITERS: Gauge "waiters" [] "campaigns",
        "Campaigns that wait for an election to become vacant",
        "always";
    OBSERVERS: Gauge "observers" [] "observers",
        "Streams and long polls that observe elections",
        "always";
    BOARD_ELECTIONS: Gauge "board_elections" [] "elections",
        "Elections with waiters or observers",
        "always";
    BOARD_DEAF: Gauge "board_deaf" [] "0 or 1",
        "Whether the agent may miss hints and therefore polls the elections of interest; 0 while there are none",
        "always";
    HINTS: Counter "hints_total" [] "hints",
        "Hints of lease nodes that an election of interest has changed",
        "always";
    CHANGES: Counter "observed_changes_total" [] "changes",
        "Changes of elections of interest",
        "always";
    CHANGES_UNANNOUNCED: Counter "observed_changes_unannounced_total" [] "changes",
        "Changes, except ends of terms, that a read found while no lease node had reported them",
        "always";
    BOARD_READS: Counter "board_reads_total" [] "reads",
        "Reads of elections of interest",
        "always";
    BOARD_CLAIMS: Counter "board_claims_total" [] "claims",
        "Claims for campaigns that waited",
        "always";
    DELIVERY: Histogram "change_delivery_seconds" [] "seconds",
        "Time from when the agent first learned of a change until it handed the change to an observer",
        "always";
    CONNECTIONS: Gauge "connections" [] "connections",
        "Open connections, on both ports",
        "always";
    CONNECTIONS_REFUSED: Counter "connections_refused_total" [] "connections",
        "Connections that were closed for EA_MAX_CONNECTIONS, the limit of open files, or EA_MAX_CONNECTIONS_PER_PEER",
        "always";
    CERTIFICATE_EXPIRY: Gauge "certificate_expiry_timestamp_seconds" [] "seconds since 1970",
        "Earliest expiry among the certificates of the chain for new connections",
        "with TLS (`EA_TLS_CERT_FILE`)";
    KUBE_AGE: Gauge "kube_cache_age_seconds" ["namespace"] "seconds",
        "Time since the Kubernetes API server last confirmed the data about pods",
        "while pods are looked up and there is data about the namespace";
    KUBE_PODS: Gauge "kube_cache_pods" ["namespace"] "pods",
        "Known pods",
        "while pods are looked up";
    SPANS_EXPORTED: Counter "trace_spans_exported_total" [] "spans",
        "Spans that a collector has accepted",
        "always";
    SPANS_LOST: Counter "trace_spans_lost_total" [] "spans",
        "Spans dropped because the collector did not accept them or the queue was full",
        "always";
    EXPORT_FAILURES: Counter "trace_export_failures_total" [] "exports",
        "Exports of spans that failed",
        "always";
    LOG_LINES_LOST: Counter "log_lines_lost_total" [] "lines",
        "Log lines, including those of the audit trail, dropped because their reader did not keep up or a write failed",
        "always";
    BUILD_INFO: Gauge "build_info" ["version", "commit"] "1",
        "The agent's version, and the commit that it was built from, if that is known",
        "always";
    ELECTION_TOKEN: Gauge "election_token" ["kind", "election"] "token",
        "The fencing token of the election's last leader, as far as this agent knows",
        "with `EA_METRICS_PER_ELECTION`, from the election's first change of leadership";
    ELECTION_CHANGES: Counter "election_leadership_changes_total" ["kind", "election", "cause"] "changes",
        "Changes of the election's leadership that this agent made or observed",
        "with `EA_METRICS_PER_ELECTION`, from the election's first change by the cause";
}

/// Renders docs/METRICS.md.
#[must_use]
pub fn markdown() -> String {
    let mut text = format!(
        "<!-- Printed by `election-agent metrics` from the table in src/telemetry/metrics/table.rs. -->\n\
         # Metrics\n\n\
         `GET /metrics` serves what this page lists, unless `EA_METRIC_ENABLE=false`. Clients that accept\n\
         `application/openmetrics-text`, as Prometheus does by default, get OpenMetrics, with trace ids as exemplars\n\
         of traced requests; others get Prometheus text 0.0.4, which has no exemplars. Names, labels and numbers are\n\
         the same in both. All names begin with `{PREFIX}_`.\n\n\
         | name | type | labels | unit | meaning | exists |\n|---|---|---|---|---|---|\n"
    );
    for row in TABLE {
        let labels: Vec<_> = row
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} | {} | {} |",
            row.name,
            row.kind.name(),
            labels.join(", "),
            row.unit,
            row.meaning,
            row.exists
        );
    }
    text.push_str(
        "\n## Labels\n\n\
         Callers choose no label's value, except the elections of `EA_METRICS_PER_ELECTION`: the number of\n\
         series does not grow with elections, candidates, paths or callers.\n\n\
         | label | values |\n|---|---|\n",
    );
    for (label, values) in labels() {
        let _ = writeln!(text, "| `{label}` | {values} |");
    }
    let _ = write!(
        text,
        "\nOf every kind that `EA_METRICS_PER_ELECTION` lists, the first {ELECTIONS_PER_KIND} elections that the agent\n\
         sees have series of their own until it ends; later ones have none, and the log says so once. Name kinds\n\
         whose elections are few and your own.\n"
    );
    text
}

/// The labels and their values.
fn labels() -> [(&'static str, String); 13] {
    let statuses: Vec<_> = (0..17).map(|code| status_name(code.into())).collect();
    [
        ("action", words(Action::VARIANTS)),
        ("status", words(&statuses)),
        ("reason", words(&REFUSALS)),
        ("outcome", words(RequestOutcome::VARIANTS)),
        ("cause", words(Cause::VARIANTS)),
        (
            "node",
            "the addresses of lease nodes, as /readyz names them".to_owned(),
        ),
        ("operation", words(Operation::VARIANTS)),
        (
            "error",
            "`timeout` (`EA_REDIS_OPERATION_TIMEOUT` passed; a caller's own deadline that came first is no error of \
             the node's), `failed` (it is not known whether the node carried out the call), `not_sent`, `full` (no memory for more; \
             nothing was done)"
                .to_owned(),
        ),
        (
            "namespace",
            "those of `EA_KUBE_NAMESPACES`; `*` when it is all of them".to_owned(),
        ),
        ("version", "the agent's".to_owned()),
        (
            "commit",
            "of release builds, if made in a Git repository or with `ELECTION_AGENT_COMMIT`; else `unknown`"
                .to_owned(),
        ),
        ("kind", "those of `EA_METRICS_PER_ELECTION`".to_owned()),
        ("election", "names of elections of these kinds".to_owned()),
    ]
}

fn words(words: &[&str]) -> String {
    format!("`{}`", words.join("`, `"))
}

/// Reasons of refusals: the values of the label.
pub(super) const REFUSALS: [&str; 5] = [
    "rate_limited",
    "overloaded",
    "unauthenticated",
    "denied",
    "over_quota",
];

/// The gRPC name of a status, in lower case.
pub(super) fn status_name(code: tonic::Code) -> &'static str {
    use tonic::Code;
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_end_as_their_type_and_unit_want() {
        let mut names = HashSet::new();
        for row in TABLE {
            assert!(names.insert(row.name), "{} is there twice", row.name);
            assert_eq!(
                row.name.ends_with("_total"),
                row.kind == Type::Counter,
                "{}",
                row.name
            );
            assert_eq!(
                row.name.ends_with("_seconds"),
                row.unit.starts_with("seconds"),
                "{}",
                row.name
            );
            // Without these characters, neither format needs escapes.
            assert!(
                !row.meaning.contains(['\\', '"', '\n', '|']),
                "{}",
                row.name
            );
        }
    }

    #[test]
    fn every_label_is_explained_and_there() {
        let used: HashSet<_> = TABLE.iter().flat_map(|row| row.labels).copied().collect();
        let explained: HashSet<_> = labels().into_iter().map(|(label, _)| label).collect();
        assert_eq!(used, explained);
    }
}
