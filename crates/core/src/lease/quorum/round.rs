//! Calls to several nodes at once, and their replies as they arrive.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    Called, Inner, Operation, Quorum,
    span::{About, CallSpan, SpanOutcome},
};
use crate::lease::{LeaseNode, NodeError, policy::Nodes};

/// The pending reply of a node.
pub(super) type PendingReply<T> = Pin<Box<dyn Future<Output = Result<T, NodeError>> + Send>>;

impl Quorum {
    /// Calls all nodes at once, and waits for each until the operation timeout or the deadline. Nodes that must not
    /// vote are not called, and yield errors.
    pub(super) fn ask<T>(
        &self,
        operation: Operation,
        about: About<'_>,
        deadline: Instant,
        call: impl Fn(usize, Arc<dyn LeaseNode>) -> PendingReply<T>,
    ) -> Round<T>
    where
        T: SpanOutcome,
    {
        let mut round = self.round();
        let nodes = self.inner.electorate.nodes();
        round.ask(operation, about, 0, nodes, deadline, call);
        round
    }

    pub(super) fn round<T>(&self) -> Round<T> {
        Round {
            calls: Vec::with_capacity(self.inner.nodes.len()),
            timer: None,
            given_at: None,
            inner: Arc::clone(&self.inner),
        }
    }
}

/// A call to one node.
struct Call<T> {
    operation: Operation,
    tag: u32,
    node: usize,
    started: Instant,
    until: Instant,
    /// The outcome if there is no reply in time.
    overdue: Called,
    answer: Option<PendingReply<T>>,
    span: CallSpan,
}

/// Calls, and the replies to them as they arrive.
pub(super) struct Round<T> {
    /// Few, so that polling all open calls for each reply is cheap.
    calls: Vec<Call<T>>,
    /// Created when there is something to wait for.
    timer: Option<Pin<Box<Sleep>>>,
    /// When the last reply was returned.
    given_at: Option<Instant>,
    inner: Arc<Inner>,
}

/// The reply to a call: its tag, the node, and the result.
type Given<T> = (u32, usize, Result<T, NodeError>);

impl<T: SpanOutcome> Round<T> {
    /// Calls these nodes at once. Each has the operation timeout, but not longer than the deadline. Nodes that must not
    /// vote are not called, and yield errors.
    pub(super) fn ask(
        &mut self,
        operation: Operation,
        about: About<'_>,
        tag: u32,
        nodes: Nodes,
        deadline: Instant,
        call: impl Fn(usize, Arc<dyn LeaseNode>) -> PendingReply<T>,
    ) {
        let now = Instant::now();
        let limit = now + self.inner.limit;
        let (until, overdue) = match deadline < limit {
            true => (deadline, Called::GivenUp),
            false => (limit, Called::Timeout),
        };
        for node in nodes.iter() {
            let known = &self.inner.nodes[node];
            let (answer, span) = match known.is_excluded() {
                true => (None, CallSpan::none()),
                false => (
                    Some(call(node, Arc::clone(&known.node))),
                    self.span(node, operation, about),
                ),
            };
            self.calls.push(Call {
                operation,
                tag,
                node,
                started: now,
                until,
                overdue,
                answer,
                span,
            });
        }
    }

    /// Calls these nodes, including those that must not vote. Each has until the deadline.
    pub(super) fn ask_even_excluded(
        &mut self,
        operation: Operation,
        nodes: Nodes,
        deadline: Instant,
        call: impl Fn(usize, Arc<dyn LeaseNode>) -> PendingReply<T>,
    ) {
        for node in nodes.iter() {
            self.calls.push(Call {
                operation,
                tag: 0,
                node,
                started: Instant::now(),
                until: deadline,
                overdue: Called::Timeout,
                answer: Some(call(node, Arc::clone(&self.inner.nodes[node].node))),
                span: self.span(node, operation, About::default()),
            });
        }
    }

    fn span(&self, node: usize, operation: Operation, about: About<'_>) -> CallSpan {
        let node = &self.inner.nodes[node];
        CallSpan::begin(node, operation, about, self.inner.names_in_spans)
    }

    /// Returns the next reply. When the time of a call has passed, its node yields an error; a later reply is ignored.
    /// Returns `None` when every call has yielded a result.
    pub(super) async fn next(&mut self) -> Option<Given<T>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Returns the next reply if it has arrived already, without waiting.
    pub(super) async fn arrived(&mut self) -> Option<Given<T>> {
        poll_fn(|cx| match self.poll_next(cx) {
            Poll::Ready(given) => Poll::Ready(given),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Given<T>>> {
        let mut first: Option<(Instant, usize)> = None;
        for number in 0..self.calls.len() {
            let call = &mut self.calls[number];
            let Some(answer) = &mut call.answer else {
                let call = self.calls.swap_remove(number);
                self.given_at = None;
                let error = self.inner.nodes[call.node].excluded();
                let error =
                    error.unwrap_or_else(|| NodeError::NotSent("it was excluded".to_owned()));
                return Poll::Ready(Some((call.tag, call.node, Err(error))));
            };
            if let Poll::Ready(reply) = answer.as_mut().poll(cx) {
                let outcome = Called::of(&reply);
                return Poll::Ready(Some(self.given(number, reply, outcome)));
            }
            if first.is_none_or(|(until, _)| call.until < until) {
                first = Some((call.until, number));
            }
        }
        let Some((until, number)) = first else {
            return Poll::Ready(None);
        };
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(until)));
        if timer.deadline() != until {
            timer.as_mut().reset(until);
        }
        if timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        let call = &self.calls[number];
        let name = self.inner.nodes[call.node].name();
        let error = NodeError::unknown(format!("{name}: no answer in time"));
        let overdue = call.overdue;
        Poll::Ready(Some(self.given(number, Err(error), overdue)))
    }

    /// Reports the outcome of a call.
    fn given(&mut self, number: usize, reply: Result<T, NodeError>, outcome: Called) -> Given<T> {
        let call = self.calls.swap_remove(number);
        let now = Instant::now();
        self.given_at = Some(now);
        let took = now.saturating_duration_since(call.started);
        let observer = &self.inner.observer;
        observer.called(call.node, call.operation, outcome, took);
        call.span
            .end(outcome, reply.as_ref().ok().map(SpanOutcome::outcome));
        if let Err(error) = &reply {
            self.inner.nodes[call.node].complain(error);
        }
        (call.tag, call.node, reply)
    }

    /// When the last reply was returned: saves its reader a clock reading.
    pub(super) fn given_at(&self) -> Instant {
        self.given_at.unwrap_or_else(Instant::now)
    }

    /// Whether some calls have not yielded a result yet.
    pub(super) fn is_open(&self) -> bool {
        !self.calls.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;
    use crate::lease::{Settings, embedded::Embedded, guard::RestartGuard, quorum::Options};

    const LIMIT: Duration = Duration::from_secs(2);

    fn quorum(nodes: usize) -> Quorum {
        let settings = Settings {
            retention: LIMIT,
            guard: None,
            vote: LIMIT,
        };
        let node = || Arc::new(Embedded::in_memory(settings)) as Arc<dyn LeaseNode>;
        let nodes = (0..nodes).map(|_| node()).collect();
        Quorum::new(nodes, Options::new(LIMIT, RestartGuard::Off, LIMIT))
    }

    /// A call whose reply from each node the test sends.
    fn asked(quorum: &Quorum, deadline: Instant) -> (Vec<oneshot::Sender<usize>>, Round<usize>) {
        let nodes = quorum.inner.nodes.len();
        let (answers, answered): (Vec<_>, Vec<_>) = (0..nodes).map(|_| oneshot::channel()).unzip();
        let answered: Vec<_> = answered
            .into_iter()
            .map(|it| std::sync::Mutex::new(Some(it)))
            .collect();
        let round = quorum.ask(Operation::Read, About::default(), deadline, |node, _| {
            let answered = answered[node].lock().expect("whole").take();
            Box::pin(async move {
                let answer = answered.expect("asked once").await;
                answer.map_err(|_| NodeError::unknown("it went away".to_owned()))
            })
        });
        (answers, round)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_ready_is_given_without_waiting_for_the_others() {
        let quorum = quorum(3);
        quorum.inner.nodes[1].exclude(Some("it evicts".to_owned()));
        let (mut answers, mut round) = asked(&quorum, Instant::now() + LIMIT);
        let excluded = (0, 1, Err(NodeError::NotSent("it evicts".to_owned())));
        assert_eq!(round.next().await, Some(excluded));

        answers.pop().expect("three").send(7).expect("waited for");
        assert_eq!(round.next().await, Some((0, 2, Ok(7))));
        assert!(round.is_open());

        let first = answers.swap_remove(0);
        let answering = async { first.send(8).expect("waited for") };
        let (given, ()) = tokio::join!(round.next(), answering);
        assert_eq!(given, Some((0, 0, Ok(8))));
        assert!(!round.is_open());
        assert_eq!(round.next().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn every_node_is_given_when_the_time_is_over_and_not_before() {
        for (deadline, until) in [(LIMIT / 2, LIMIT / 2), (2 * LIMIT, LIMIT)] {
            let quorum = quorum(3);
            let started = Instant::now();
            let (mut answers, mut round) = asked(&quorum, started + deadline);
            drop(answers.remove(0));
            let gone = NodeError::unknown("it went away".to_owned());
            assert_eq!(round.next().await, Some((0, 0, Err(gone))));
            assert_eq!(started.elapsed(), Duration::ZERO);

            let mut given = Vec::new();
            while let Some((_, node, reply)) = round.next().await {
                assert!(matches!(reply, Err(NodeError::Unknown(_))), "{reply:?}");
                given.push(node);
            }
            given.sort_unstable();
            assert_eq!((given, round.is_open()), (vec![1, 2], false));
            // Timers are exact to the millisecond.
            let took = started.elapsed();
            assert!(
                (until..=until + Duration::from_millis(1)).contains(&took),
                "{took:?}"
            );
            // Replies that arrive from here on have no receiver.
            drop(round);
            for answer in answers {
                assert_eq!(answer.send(9), Err(9));
            }
        }
    }
}
