//! A span for every question to a lease node, as the semantic conventions for databases have it.

use std::{borrow::Cow, sync::Arc, time::Duration};

use async_trait::async_trait;
use opentelemetry::{
    Context, KeyValue,
    trace::{SpanBuilder, SpanKind, Status, TraceContextExt as _, Tracer as _},
};
use tokio::time::Instant;

use super::{Recorder, recorded};
use crate::{
    election::types::{Candidate, ElectionId, Kind},
    lease::{
        Bounds, Extend, ExtendReply, Grant, GrantReply, Heal, Incarnation, LeaseNode, Look,
        NodeError, Page, Probe, Reading, Resign, ResignReply, Unmarked,
        quorum::observer::Operation,
    },
};

/// A timer may fire this much before what it measures has taken its time, as that began a little later.
const TOLERANCE: Duration = Duration::from_millis(5);

/// What a node is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum System {
    /// Scripts on Redis.
    Redis,
    /// This process.
    Embedded,
}

/// A lease node whose answers to recorded requests have spans.
pub struct Traced {
    node: Arc<dyn LeaseNode>,
    recorder: Recorder,
    system: System,
    /// The attributes that all its spans have.
    place: Vec<KeyValue>,
    /// How long an answer is waited for at the most.
    limit: Duration,
}

impl Traced {
    /// Records what this node is asked, where an answer is waited for as long as `limit`.
    #[must_use]
    pub fn new(
        node: Arc<dyn LeaseNode>,
        system: System,
        limit: Duration,
        recorder: Recorder,
    ) -> Self {
        let name = match system {
            System::Redis => "redis",
            System::Embedded => "election_agent",
        };
        let mut place = vec![
            KeyValue::new("db.system.name", name),
            KeyValue::new("election_agent.node", node.name().to_owned()),
        ];
        // `host:port`, with the database if it is not 0; a deployment that is known by another name has none.
        let address = node.name().split('/').next().unwrap_or_default();
        let address = address.rsplit_once(':');
        if let Some((host, port)) = address
            && let Ok(port) = port.parse::<u16>()
        {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            place.push(KeyValue::new("server.address", host.to_owned()));
            place.push(KeyValue::new("server.port", i64::from(port)));
        }
        Self {
            node,
            recorder,
            system,
            place,
            limit,
        }
    }

    /// Asks, in a span of its own if the current one is recorded.
    async fn ask<T>(
        &self,
        operation: Operation,
        about: About<'_>,
        outcome: impl FnOnce(&T) -> &'static str,
        reply: impl Future<Output = Result<T, NodeError>>,
    ) -> Result<T, NodeError> {
        let Some(parent) = recorded(Context::clone) else {
            return reply.await;
        };
        let mut attributes = self.place.clone();
        let (name, operation_name) = match self.system {
            System::Redis => {
                let script = format!("{}.lua", operation.name());
                attributes.push(KeyValue::new("db.stored_procedure.name", script));
                // Low in number, as the conventions ask.
                (format!("EVALSHA {}", operation.name()).into(), "EVALSHA")
            }
            System::Embedded => (Cow::Borrowed(operation.name()), operation.name()),
        };
        attributes.push(KeyValue::new("db.operation.name", operation_name));
        if self.recorder.keys {
            about.tell(&mut attributes);
        }
        let span = SpanBuilder::from_name(name)
            .with_kind(SpanKind::Client)
            .with_attributes(attributes);
        let span = self.recorder.tracer.build_with_context(span, &parent);
        let asked = Asked {
            context: parent.with_span(span),
            since: Instant::now(),
            limit: self.limit,
            answered: false,
        };
        let reply = reply.await;
        asked.answered(match &reply {
            Ok(reply) => Ok(outcome(reply)),
            Err(NodeError::NotSent(_)) => Err("not_sent"),
            Err(NodeError::Full(_)) => Err("full"),
            Err(NodeError::Unknown(_)) => Err("failed"),
        });
        reply
    }
}

/// Whom a question is about: told only if spans may have names.
#[derive(Clone, Copy, Default)]
struct About<'a> {
    kind: Option<&'a Kind>,
    election: Option<&'a ElectionId>,
    candidate: Option<&'a Candidate>,
}

impl<'a> About<'a> {
    fn of(election: &'a ElectionId, candidate: Option<&'a Candidate>) -> Self {
        Self {
            kind: None,
            election: Some(election),
            candidate,
        }
    }

    fn tell(self, attributes: &mut Vec<KeyValue>) {
        let mut tell = |key, value: &str| attributes.push(KeyValue::new(key, value.to_owned()));
        if let Some(kind) = self.kind {
            tell("election_agent.kind", kind.as_str());
        }
        if let Some(election) = self.election {
            tell("election_agent.election", election.path());
        }
        if let Some(candidate) = self.candidate {
            tell("election_agent.candidate", candidate.as_str());
        }
    }
}

/// A question without an answer yet. Dropped as such, it was given up.
struct Asked {
    context: Context,
    since: Instant,
    limit: Duration,
    answered: bool,
}

impl Asked {
    fn answered(mut self, outcome: Result<&'static str, &'static str>) {
        self.answered = true;
        self.tell(outcome);
    }

    fn tell(&self, outcome: Result<&'static str, &'static str>) {
        let span = self.context.span();
        let word = match outcome {
            Ok(word) => word,
            Err(error) => {
                span.set_attribute(KeyValue::new("error.type", error));
                // Without the error's text, which may hold what the node was asked; the log has it.
                span.set_status(Status::error(""));
                "unknown"
            }
        };
        span.set_attribute(KeyValue::new("election_agent.outcome", word));
        span.end();
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        match self.since.elapsed() + TOLERANCE >= self.limit {
            true => self.tell(Err("timeout")),
            // The others had decided, or the caller's time was over.
            false => self.tell(Ok("abandoned")),
        }
    }
}

#[async_trait]
impl LeaseNode for Traced {
    fn name(&self) -> &str {
        self.node.name()
    }

    async fn grant(&self, grant: &Grant) -> Result<GrantReply, NodeError> {
        let about = About::of(&grant.election, Some(&grant.candidate));
        let outcome = |reply: &_| match reply {
            GrantReply::Granted(_) => "granted",
            GrantReply::Held(_) => "held",
            GrantReply::TokenMismatch => "token_mismatch",
            GrantReply::Vacant => "vacant",
            GrantReply::Stale(_) => "stale",
            GrantReply::Used => "used",
            GrantReply::Late => "late",
            GrantReply::Unregistered => "unregistered",
            GrantReply::Unmarked => "unmarked",
            GrantReply::Guarded(_) => "guarded",
        };
        self.ask(Operation::Grant, about, outcome, self.node.grant(grant))
            .await
    }

    async fn extend(&self, extend: &Extend) -> Result<ExtendReply, NodeError> {
        let about = About::of(&extend.election, Some(&extend.leader));
        let outcome = |reply: &_| match reply {
            ExtendReply::Renewed(_) => "renewed",
            ExtendReply::Missing => "missing",
            ExtendReply::NotKnown => "not_known",
            ExtendReply::Unmarked => "unmarked",
            ExtendReply::Held => "held",
            ExtendReply::Stale => "stale",
            ExtendReply::Behind => "behind",
        };
        self.ask(Operation::Extend, about, outcome, self.node.extend(extend))
            .await
    }

    async fn heal(&self, heal: &Heal) -> Result<bool, NodeError> {
        let about = About::of(&heal.election, Some(&heal.lease.leader));
        let outcome = |healed: &bool| match healed {
            true => "healed",
            false => "refused",
        };
        self.ask(Operation::Heal, about, outcome, self.node.heal(heal))
            .await
    }

    async fn resign(&self, resign: &Resign) -> Result<ResignReply, NodeError> {
        let about = About::of(&resign.election, Some(&resign.leader));
        let outcome = |reply: &_| match reply {
            ResignReply::Resigned => "resigned",
            ResignReply::Missing => "missing",
            ResignReply::NotKnown => "not_known",
            ResignReply::Unmarked => "unmarked",
            ResignReply::Held => "held",
            ResignReply::Stale => "stale",
        };
        self.ask(Operation::Resign, about, outcome, self.node.resign(resign))
            .await
    }

    async fn withdraw(&self, grant: &Grant) -> Result<(), NodeError> {
        let about = About::of(&grant.election, Some(&grant.candidate));
        let asked = self.node.withdraw(grant);
        self.ask(Operation::Withdraw, about, |()| "withdrawn", asked)
            .await
    }

    async fn read(&self, election: &ElectionId) -> Result<Reading, NodeError> {
        let outcome = |reading: &Reading| match reading {
            Reading::Held(_) => "held",
            Reading::Vacant => "vacant",
            Reading::NotKnown => "not_known",
            Reading::Unmarked => "unmarked",
        };
        let about = About::of(election, None);
        self.ask(Operation::Read, about, outcome, self.node.read(election))
            .await
    }

    async fn list(
        &self,
        kind: &Kind,
        after: Option<&ElectionId>,
        limit: usize,
    ) -> Result<Page, NodeError> {
        let about = About {
            kind: Some(kind),
            election: after,
            candidate: None,
        };
        let asked = self.node.list(kind, after, limit);
        self.ask(Operation::List, about, |_| "listed", asked).await
    }

    async fn mark(
        &self,
        unmarked: &[Unmarked],
        wait: Duration,
        bounds: Bounds,
    ) -> Result<usize, NodeError> {
        let asked = self.node.mark(unmarked, wait, bounds);
        self.ask(Operation::Mark, About::default(), |_| "marked", asked)
            .await
    }

    async fn probe(&self, look: Look) -> Result<Probe, NodeError> {
        let asked = self.node.probe(look);
        self.ask(Operation::Probe, About::default(), |_| "answered", asked)
            .await
    }

    fn incarnation(&self, election: &ElectionId) -> Option<Incarnation> {
        self.node.incarnation(election)
    }
}
