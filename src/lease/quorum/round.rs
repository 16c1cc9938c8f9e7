//! A question to several nodes at once, and their answers as they come in.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::time::{Instant, Sleep, sleep_until};

use super::{Called, Inner, Operation, Quorum};
use crate::lease::{LeaseNode, NodeError};

impl Quorum {
    /// Puts a question to all nodes at once, as [`Self::ask_some`] does.
    pub(super) fn ask<T, F>(
        &self,
        operation: Operation,
        deadline: Instant,
        call: impl Fn(usize, Arc<dyn LeaseNode>) -> F,
    ) -> Round<F>
    where
        F: Future<Output = Result<T, NodeError>>,
    {
        self.ask_some(operation, 0..self.inner.nodes.len(), deadline, call)
    }

    /// Puts a question to these nodes at once; each has the operation timeout, but not longer than the
    /// deadline. `call` gets the node's number, too. Those that must not vote are not asked, and given as
    /// errors.
    pub(super) fn ask_some<T, F>(
        &self,
        operation: Operation,
        nodes: impl IntoIterator<Item = usize>,
        deadline: Instant,
        call: impl Fn(usize, Arc<dyn LeaseNode>) -> F,
    ) -> Round<F>
    where
        F: Future<Output = Result<T, NodeError>>,
    {
        let nodes = nodes.into_iter().map(|node| {
            let excluded = self.inner.nodes[node].is_excluded();
            let question = match excluded {
                true => Question::NotPut,
                false => Question::put(self, node, &call),
            };
            (node, question)
        });
        let limit = Instant::now() + self.inner.limit;
        let overdue = match deadline < limit {
            true => Called::GivenUp,
            false => Called::Timeout,
        };
        self.round(operation, nodes.collect(), deadline.min(limit), overdue)
    }

    /// Puts a question to these nodes, also those that must not vote; each has until the deadline.
    pub(super) fn ask_even_excluded<T, F>(
        &self,
        operation: Operation,
        nodes: impl IntoIterator<Item = usize>,
        deadline: Instant,
        call: impl Fn(usize, Arc<dyn LeaseNode>) -> F,
    ) -> Round<F>
    where
        F: Future<Output = Result<T, NodeError>>,
    {
        let nodes = nodes.into_iter();
        let questions = nodes.map(|node| (node, Question::put(self, node, &call)));
        self.round(operation, questions.collect(), deadline, Called::Timeout)
    }

    fn round<F>(
        &self,
        operation: Operation,
        questions: Vec<(usize, Question<F>)>,
        until: Instant,
        overdue: Called,
    ) -> Round<F> {
        Round {
            operation,
            started: Instant::now(),
            until,
            overdue,
            questions,
            timer: None,
            inner: Arc::clone(&self.inner),
        }
    }
}

/// A question to one node.
enum Question<F> {
    /// The node must not vote.
    NotPut,
    Waiting(Pin<Box<F>>),
    /// The node was given, with an answer or an error.
    Given,
}

impl<F> Question<F> {
    fn put(quorum: &Quorum, node: usize, call: impl Fn(usize, Arc<dyn LeaseNode>) -> F) -> Self {
        let asked = Arc::clone(&quorum.inner.nodes[node].node);
        Self::Waiting(Box::pin(call(node, asked)))
    }
}

/// The answers to one question, as they come in.
pub(super) struct Round<F> {
    operation: Operation,
    started: Instant,
    until: Instant,
    /// What comes of calls that have no answer when the time is over.
    overdue: Called,
    /// With their nodes: few, so that all that wait are looked at whenever one has an answer.
    questions: Vec<(usize, Question<F>)>,
    /// Made when there is something to wait for.
    timer: Option<Pin<Box<Sleep>>>,
    inner: Arc<Inner>,
}

impl<F, T> Round<F>
where
    F: Future<Output = Result<T, NodeError>>,
{
    /// The next answer, with the node's number. When the time is over, the nodes that have not answered
    /// are given as errors, and what they answer later is not heard; `None` when every node has been given.
    pub(super) async fn next(&mut self) -> Option<(usize, Result<T, NodeError>)> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`Self::next`], but without waiting: `None` also when no answer has come in yet.
    pub(super) async fn ready(&mut self) -> Option<(usize, Result<T, NodeError>)> {
        poll_fn(|cx| match self.poll_next(cx) {
            Poll::Ready(given) => Poll::Ready(given),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<(usize, Result<T, NodeError>)>> {
        let mut last = None;
        for (node, question) in &mut self.questions {
            match question {
                Question::Given => {}
                Question::NotPut => {
                    *question = Question::Given;
                    let error = self.inner.nodes[*node].excluded();
                    let error =
                        error.unwrap_or_else(|| NodeError::NotSent("it was excluded".to_owned()));
                    return Poll::Ready(Some((*node, Err(error))));
                }
                Question::Waiting(reply) => match reply.as_mut().poll(cx) {
                    Poll::Ready(reply) => {
                        *question = Question::Given;
                        let (node, outcome) = (*node, Called::of(&reply));
                        return Poll::Ready(Some(self.given(node, reply, outcome)));
                    }
                    Poll::Pending => last = Some((*node, question)),
                },
            }
        }
        let Some((node, question)) = last else {
            return Poll::Ready(None);
        };
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(self.until)));
        if timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        *question = Question::Given;
        let name = self.inner.nodes[node].name();
        let error = NodeError::unknown(format!("{name}: no answer in time"));
        Poll::Ready(Some(self.given(node, Err(error), self.overdue)))
    }

    /// Tells what came of a question.
    fn given(
        &self,
        node: usize,
        reply: Result<T, NodeError>,
        outcome: Called,
    ) -> (usize, Result<T, NodeError>) {
        let took = self.started.elapsed();
        let observer = &self.inner.observer;
        observer.called(node, self.operation, outcome, took);
        if let Err(error) = &reply {
            self.inner.nodes[node].complain(error);
        }
        (node, reply)
    }
}

impl<F> Round<F> {
    /// The nodes that were asked and have not answered yet.
    pub(super) fn waiting(&self) -> Vec<usize> {
        let waiting = self.questions.iter();
        let waiting = waiting.filter(|(_, question)| matches!(question, Question::Waiting(_)));
        waiting.map(|(node, _)| *node).collect()
    }

    /// Whether there are nodes that were not given.
    pub(super) fn is_open(&self) -> bool {
        let mut questions = self.questions.iter();
        questions.any(|(_, question)| !matches!(question, Question::Given))
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
        };
        let node = || Arc::new(Embedded::in_memory(settings)) as Arc<dyn LeaseNode>;
        let nodes = (0..nodes).map(|_| node()).collect();
        Quorum::new(nodes, Options::new(LIMIT, RestartGuard::Off, LIMIT))
    }

    /// A question that each node answers with what it is given here.
    fn asked(
        quorum: &Quorum,
        deadline: Instant,
    ) -> (
        Vec<oneshot::Sender<u32>>,
        Round<impl Future<Output = Result<u32, NodeError>>>,
    ) {
        let nodes = quorum.inner.nodes.len();
        let (answers, answered): (Vec<_>, Vec<_>) = (0..nodes).map(|_| oneshot::channel()).unzip();
        let answered: Vec<_> = answered
            .into_iter()
            .map(|it| std::sync::Mutex::new(Some(it)))
            .collect();
        let round = quorum.ask(Operation::Read, deadline, |node, _| {
            let answered = answered[node].lock().expect("whole").take();
            async move {
                let answer = answered.expect("asked once").await;
                answer.map_err(|_| NodeError::unknown("it went away".to_owned()))
            }
        });
        (answers, round)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_ready_is_given_without_waiting_for_the_others() {
        let quorum = quorum(3);
        quorum.inner.nodes[1].exclude(Some("it evicts".to_owned()));
        let (mut answers, mut round) = asked(&quorum, Instant::now() + LIMIT);
        let excluded = (1, Err(NodeError::NotSent("it evicts".to_owned())));
        assert_eq!(round.ready().await, Some(excluded));
        assert_eq!(round.ready().await, None);
        assert_eq!((round.is_open(), round.waiting()), (true, vec![0, 2]));

        answers.pop().expect("three").send(7).expect("waited for");
        assert_eq!(round.ready().await, Some((2, Ok(7))));
        assert_eq!(round.ready().await, None);
        assert_eq!((round.is_open(), round.waiting()), (true, vec![0]));

        // Whoever waits is woken, also after having looked.
        let first = answers.swap_remove(0);
        let answering = async { first.send(8).expect("waited for") };
        let (given, ()) = tokio::join!(round.next(), answering);
        assert_eq!(given, Some((0, Ok(8))));
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
            assert_eq!(round.next().await, Some((0, Err(gone))));
            assert_eq!(started.elapsed(), Duration::ZERO);

            let mut given = Vec::new();
            while let Some((node, reply)) = round.next().await {
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
            // Nobody hears what comes now.
            drop(round);
            for answer in answers {
                assert_eq!(answer.send(9), Err(9));
            }
        }
    }
}
