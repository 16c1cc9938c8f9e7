//! A span for every call to a lease node that a recorded request makes, with the attributes of OpenTelemetry's
//! [conventions for database clients](https://opentelemetry.io/docs/specs/semconv/database/database-spans/).
//!
//! The span is not entered: what the node's implementation logs belongs to the request.

use tracing::{Span, field::Empty};

use super::{Called, Operation, node::Node};
use crate::{
    lease::{
        ExtendReply, GrantReply, Kinds, NodeError, Page, Probe, Reading, Refusal, ResignReply,
        System,
        policy::{Call, Reply},
    },
    types::{Candidate, ElectionId, Kind},
};

/// The target of spans and of events that only traces contain: logs omit it.
pub const SPANS: &str = "election_agent::span";

/// The address of a node, as spans name it.
#[derive(Debug)]
pub(super) struct Place {
    host: Option<String>,
    port: Option<u16>,
}

impl Place {
    /// Parses a node's name: `host:port`, with the database if it is not 0. A node with another name has no address.
    pub(super) fn of(name: &str) -> Self {
        let address = name.split('/').next().unwrap_or_default();
        let parsed = address.rsplit_once(':').and_then(|(host, port)| {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            Some((host.to_owned(), port.parse().ok()?))
        });
        let (host, port) = parsed.unzip();
        Self { host, port }
    }
}

/// The subject of a call. Spans name it only if [`Options::names_in_spans`](super::Options::names_in_spans) is set.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct About<'a> {
    pub(super) kind: Option<&'a Kind>,
    pub(super) election: Option<&'a ElectionId>,
    pub(super) candidate: Option<&'a Candidate>,
}

impl<'a> About<'a> {
    pub(super) fn of(call: &'a Call) -> Self {
        let (election, candidate) = match call {
            Call::Grant(grant) | Call::RollBack(grant) => (&grant.election, Some(&grant.candidate)),
            Call::Extend(extend) => (&extend.election, Some(&extend.leader)),
            Call::Repair(repair) => (&repair.election, Some(&repair.lease.leader)),
            Call::Resign(resign) => (&resign.election, Some(&resign.leader)),
            Call::Read(election) => (&**election, None),
        };
        Self {
            kind: None,
            election: Some(election),
            candidate,
        }
    }
}

/// The span of a call, which ends when it is dropped.
#[derive(Debug)]
pub(super) struct CallSpan {
    span: Span,
    /// Stays "abandoned" if the other nodes decided first, or the caller's deadline passed.
    outcome: &'static str,
}

impl CallSpan {
    /// Begins a span below the current one, if there is one.
    pub(super) fn begin(
        node: &Node,
        operation: Operation,
        about: About<'_>,
        with_names: bool,
    ) -> Self {
        // Cheaper than a query of every layer of the subscriber.
        if Span::current().is_none() {
            return Self::none();
        }
        let name = operation.name();
        let about = if with_names { about } else { About::default() };
        let (system, command, suffix) = match node.node.system() {
            System::InProcess => ("election_agent", None, ""),
            System::Scripts {
                database,
                command,
                suffix,
            } => (database, Some(command), suffix),
        };
        let place = &node.place;
        let span = tracing::info_span!(
            target: SPANS,
            "lease node call",
            otel.kind = "client",
            otel.name = Empty,
            otel.status_code = Empty,
            db.system.name = system,
            db.operation.name = command.unwrap_or(name),
            db.stored_procedure.name = Empty,
            election_agent.node = node.name(),
            server.address = place.host.as_deref(),
            server.port = place.port.map(i64::from),
            election_agent.kind = about.kind.map(Kind::as_str),
            election_agent.election = about.election.map(ElectionId::path),
            election_agent.candidate = about.candidate.map(Candidate::as_str),
            election_agent.outcome = Empty,
            error.type = Empty,
        );
        match command {
            Some(command) => {
                span.record(
                    "otel.name",
                    tracing::field::display(format_args!("{command} {name}")),
                );
                let procedure = format_args!("{name}{suffix}");
                span.record(
                    "db.stored_procedure.name",
                    tracing::field::display(procedure),
                );
            }
            None => {
                span.record("otel.name", name);
            }
        }
        Self::of(span)
    }

    /// No span.
    pub(super) fn none() -> Self {
        Self::of(Span::none())
    }

    fn of(span: Span) -> Self {
        Self {
            span,
            outcome: "abandoned",
        }
    }

    /// Ends the span with the reply.
    pub(super) fn end(mut self, called: Called, outcome: Option<&'static str>) {
        let error = match called {
            Called::Ok => None,
            Called::GivenUp => return,
            Called::Timeout => Some("timeout"),
            Called::Full => Some("full"),
            Called::Failed => Some("failed"),
            Called::NotSent => Some("not_sent"),
        };
        self.outcome = outcome.unwrap_or("unknown");
        if let Some(error) = error {
            // The error's text is omitted: it may contain what the node was sent. The log has it.
            self.span.record("error.type", error);
            self.span.record("otel.status_code", "error");
        }
    }
}

impl Drop for CallSpan {
    fn drop(&mut self) {
        self.span.record("election_agent.outcome", self.outcome);
    }
}

/// The name of a reply in spans.
pub(super) trait SpanOutcome {
    fn outcome(&self) -> &'static str;
}

impl SpanOutcome for Reply {
    fn outcome(&self) -> &'static str {
        match self {
            Self::Grant(reply) => match reply {
                GrantReply::Granted(_) => "granted",
                GrantReply::Held(_) => "held",
                GrantReply::TokenMismatch => "token_mismatch",
                GrantReply::Vacant => "vacant",
                GrantReply::Stale(_) => "stale",
                GrantReply::Used => "used",
                GrantReply::Late => "late",
                GrantReply::Unregistered => "unregistered",
                GrantReply::Unrecorded => "unmarked",
                GrantReply::Guarded(_) => "guarded",
            },
            Self::Extend(reply) => match reply {
                ExtendReply::Renewed(_) => "renewed",
                ExtendReply::Behind => "behind",
                ExtendReply::Refused(refusal) => refusal.outcome(),
            },
            Self::Repaired(true) => "healed",
            Self::Repaired(false) => "refused",
            Self::Resign(reply) => match reply {
                ResignReply::Resigned => "resigned",
                ResignReply::Refused(refusal) => refusal.outcome(),
            },
            Self::RolledBack => "withdrawn",
            Self::Read(reading) => reading.outcome(),
        }
    }
}

impl SpanOutcome for Refusal {
    fn outcome(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::NotKnown => "not_known",
            Self::Unrecorded => "unmarked",
            Self::Held => "held",
            Self::Stale => "stale",
        }
    }
}

impl SpanOutcome for Reading {
    fn outcome(&self) -> &'static str {
        match self {
            Self::Held(_) => "held",
            Self::Vacant(_) => "vacant",
            Self::NotKnown => "not_known",
            Self::Unrecorded => "unmarked",
        }
    }
}

impl SpanOutcome for Vec<Result<Reading, NodeError>> {
    fn outcome(&self) -> &'static str {
        "read"
    }
}

impl SpanOutcome for Vec<Result<ExtendReply, NodeError>> {
    fn outcome(&self) -> &'static str {
        "extended"
    }
}

impl SpanOutcome for Page {
    fn outcome(&self) -> &'static str {
        "listed"
    }
}

impl SpanOutcome for Kinds {
    fn outcome(&self) -> &'static str {
        "listed"
    }
}

impl SpanOutcome for Probe {
    fn outcome(&self) -> &'static str {
        "answered"
    }
}

/// How many partitions got incarnation records.
impl SpanOutcome for usize {
    fn outcome(&self) -> &'static str {
        "marked"
    }
}
