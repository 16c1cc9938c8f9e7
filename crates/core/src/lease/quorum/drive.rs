//! Drives a [`Machine`] over the nodes.

use std::{future::ready, sync::Arc};

use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use tracing::Instrument as _;

use super::{
    Inner, Operation, Quorum,
    node::Probed,
    round::{PendingReply, Round},
    span::{About, SPANS},
};
use crate::{
    lease::{
        Bounds, ExtendReply, GrantReply, Incarnation, LeaseNode, NodeError, Refusal,
        policy::{Call, Electorate, Event, Machine, Note, Reply, Step, View},
        rules::{Rule, holds},
    },
    types::{ElectionId, Token},
};

/// A machine, and what it waits for.
pub(super) struct Drive<M: Machine> {
    quorum: Quorum,
    machine: M,
    steps: Vec<Step<M::Output>>,
    round: Round<Reply>,
    wake: Option<Instant>,
    checking_health: Option<JoinHandle<bool>>,
    answer: Option<M::Output>,
    deadline: Instant,
}

impl<M: Machine> Drive<M> {
    /// Begins. The drive is boxed because it is large and passes through several futures.
    pub(super) fn begin(quorum: &Quorum, machine: M, deadline: Instant) -> Box<Self> {
        let mut drive = Box::new(Self::asked(quorum, machine, deadline));
        drive.feed(Event::Begin);
        drive
    }

    /// A drive whose first call another component makes, which [feeds](Self::feed) it the replies.
    pub(super) fn asked(quorum: &Quorum, machine: M, deadline: Instant) -> Self {
        Self {
            quorum: quorum.clone(),
            machine,
            steps: Vec::with_capacity(4),
            round: quorum.round(),
            wake: None,
            checking_health: None,
            answer: None,
            deadline,
        }
    }

    /// Whether the machine has answered, or is done without an answer.
    pub(super) fn has_answered(&self) -> bool {
        self.answer.is_some() || self.machine.is_done()
    }

    /// Whether nothing is left to do.
    pub(super) fn is_finished(&self) -> bool {
        self.machine.is_done()
    }

    /// Whether the drive waits for a call, a time or a health check of its own.
    pub(super) fn is_waiting(&self) -> bool {
        self.round.is_open() || self.wake.is_some() || self.checking_health.is_some()
    }

    /// Returns the machine's answer, or `None` if it has none when it is done.
    pub(super) async fn answer(&mut self) -> Option<M::Output> {
        self.decide().await;
        self.take_answer()
    }

    /// Runs until the machine has answered, or is done without an answer.
    pub(super) async fn decide(&mut self) {
        while !self.has_answered() {
            let event = self.next().await;
            self.feed(event);
        }
    }

    /// The machine's answer, if it has one that was not taken.
    pub(super) fn take_answer(&mut self) -> Option<M::Output> {
        self.answer.take()
    }

    /// Processes the replies that have arrived already, without waiting. Returns whether the machine is done then.
    pub(super) async fn is_done(&mut self) -> bool {
        while let Some(given) = self.round.arrived().await {
            self.feed(replied(given));
        }
        self.machine.is_done()
    }

    /// Runs until nothing is left to do.
    pub(super) async fn finish(&mut self) {
        while !self.machine.is_done() {
            let event = self.next().await;
            self.feed(event);
        }
    }

    /// Waits for the next event.
    pub(super) async fn next(&mut self) -> Event {
        // Nodes that fail at once must not keep the thread from other tasks.
        tokio::task::consume_budget().await;
        let wake = self.wake;
        let woken = async {
            match wake {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let health_checked = async {
            match &mut self.checking_health {
                Some(checking_health) => matches!(checking_health.await, Ok(true)),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Some(given) = self.round.next(), if self.round.is_open() => replied(given),
            answered = health_checked => {
                self.checking_health = None;
                Event::HealthChecked(answered)
            }
            () = woken => Event::Woken,
        }
    }

    pub(super) fn feed(&mut self, event: Event) {
        let inner = &*self.quorum.inner;
        if let Event::Replied {
            reply: Ok(reply), ..
        } = &event
        {
            inner.learn(reply);
        }
        let now = match event {
            Event::Replied { .. } => self.round.given_at(),
            _ => Instant::now(),
        };
        self.wake = None;
        let mut steps = std::mem::take(&mut self.steps);
        self.machine.on(event, now, inner, &mut steps);
        for step in steps.drain(..) {
            match step {
                Step::Ask {
                    tag,
                    nodes,
                    call,
                    until,
                } => {
                    let put = |node, to| put(&self.quorum.inner, &call, node, to);
                    let about = About::of(&call);
                    let operation = operation(&call);
                    self.round.ask(operation, about, tag, nodes, until, put);
                }
                Step::Answer(answer) => self.answer = Some(answer),
                Step::Wake(at) => self.wake = Some(at),
                Step::CheckHealth(since, wanted) => {
                    let quorum = self.quorum.clone();
                    let checking_health = quorum.check_health_for(since, wanted, self.deadline);
                    let checking_health = checking_health.in_current_span();
                    let checking_health = self.quorum.inner.tasks.spawn(checking_health);
                    self.checking_health = Some(checking_health);
                }
                Step::Note(note) => self.quorum.inner.note(note),
            }
        }
        self.steps = steps;
    }
}

fn replied((tag, node, reply): (u32, usize, Result<Reply, NodeError>)) -> Event {
    Event::Replied { tag, node, reply }
}

fn operation(call: &Call) -> Operation {
    match call {
        Call::Grant(_) => Operation::Grant,
        Call::RollBack(_) => Operation::RollBack,
        Call::Extend(_) => Operation::Extend,
        Call::Repair(_) => Operation::Repair,
        Call::Resign(_) => Operation::Resign,
        Call::Read(_) => Operation::Read,
    }
}

/// Calls a node.
fn put(inner: &Inner, call: &Call, number: usize, node: Arc<dyn LeaseNode>) -> PendingReply<Reply> {
    if let Some(instead) = unprobed(inner, call, number) {
        return Box::pin(ready(instead));
    }
    let call = call.clone();
    Box::pin(async move {
        match call {
            Call::Grant(grant) => node.grant(&grant).await.map(Reply::Grant),
            Call::RollBack(grant) => node.roll_back(&grant).await.map(|()| Reply::RolledBack),
            Call::Extend(extend) => node.extend(&extend).await.map(Reply::Extend),
            Call::Repair(repair) => node.repair(&repair).await.map(Reply::Repaired),
            Call::Resign(resign) => node.resign(&resign).await.map(Reply::Resign),
            Call::Read(election) => node.read(&election).await.map(Reply::Read),
        }
    })
}

/// The substitute reply of a node on which this agent has not registered its bounds. Other agents would mistake a lease
/// written there for one of a clock that was set back, and shorten it.
pub(super) fn unprobed(
    inner: &Inner,
    call: &Call,
    number: usize,
) -> Option<Result<Reply, NodeError>> {
    let (rule, unprepared) = match call {
        Call::Grant(_) => (
            Rule::ProbedBeforeVoting,
            Reply::Grant(GrantReply::Unregistered),
        ),
        Call::Extend(_) => (
            Rule::ProbedBeforeExtending,
            Reply::Extend(ExtendReply::Refused(Refusal::Unrecorded)),
        ),
        Call::Repair(_) => (Rule::ProbedBeforeExtending, Reply::Repaired(false)),
        Call::RollBack(_) | Call::Resign(_) | Call::Read(_) => return None,
    };
    let node = &inner.nodes[number];
    match node.probed() {
        Probed::At(_) => None,
        _ if !holds(rule) => None,
        Probed::Never => Some(Ok(unprepared)),
        Probed::InVain => {
            let why = format!("{}: it has not been probed yet", node.name());
            Some(Err(NodeError::NotSent(why)))
        }
    }
}

impl Inner {
    /// Notes what a reply reports of incarnation records and tokens.
    fn learn(&self, reply: &Reply) {
        match reply {
            Reply::Grant(GrantReply::Granted(_) | GrantReply::Guarded(_)) => {
                self.incarnation_records.note();
            }
            Reply::Grant(GrantReply::Stale(high_water_mark)) => {
                self.incarnation_records.note();
                self.tokens.seen(*high_water_mark);
            }
            // If the nodes forget the token, this agent does not.
            Reply::Grant(GrantReply::Held(lease)) => self.tokens.seen(lease.token),
            Reply::Extend(ExtendReply::Renewed(token)) => self.tokens.seen(*token),
            _ => {}
        }
    }

    fn note(&self, note: Note) {
        // OpenTelemetry's integers are signed.
        fn number(it: impl TryInto<i64>) -> i64 {
            it.try_into().unwrap_or(i64::MAX)
        }
        match note {
            Note::Retried(why) => self.observer.retried(why),
            Note::RolledBack(nodes) => self.observer.rolled_back(nodes),
            Note::Repaired(nodes) => {
                tracing::debug!(nodes, "repaired a lease");
                self.observer.repaired(nodes);
            }
            Note::RollingBack(nodes) => {
                tracing::info!(target: SPANS, { election_agent.nodes = number(nodes) }, "election_agent.withdrawal");
            }
            Note::Repairing(nodes) => {
                tracing::info!(target: SPANS, { election_agent.nodes = number(nodes) }, "election_agent.healing");
            }
            Note::Guarded(wait) => {
                let ms = number(wait.as_millis());
                tracing::info!(target: SPANS, { election_agent.remaining_ms = ms }, "election_agent.guard");
            }
        }
    }
}

impl View for Inner {
    fn electorate(&self) -> Electorate {
        self.electorate
    }

    fn bounds(&self) -> Bounds {
        self.incarnation_records.bounds()
    }

    fn longest(&self) -> Bounds {
        self.incarnation_records.longest()
    }

    fn token(&self, above: Option<Token>) -> Option<Token> {
        self.tokens.next(above)
    }

    fn unix_millis(&self) -> u64 {
        self.tokens.unix_millis()
    }

    fn random(&self) -> u64 {
        fastrand::u64(..)
    }

    fn incarnation(&self, node: usize, election: &ElectionId) -> Option<Incarnation> {
        self.nodes[node].node.incarnation(election)
    }

    fn probed_since(&self, node: usize, instant: Instant) -> bool {
        matches!(self.nodes[node].probed(), Probed::At(at) if at >= instant)
    }
}
