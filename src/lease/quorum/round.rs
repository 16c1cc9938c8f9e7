//! A question to several nodes at once, and their answers as they come in.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use pin_project_lite::pin_project;
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
    ) -> Round<F, T>
    where
        F: Future<Output = Result<T, NodeError>>,
    {
        let all: Vec<_> = (0..self.inner.nodes.len()).collect();
        self.ask_some(operation, &all, deadline, call)
    }

    /// Puts a question to these nodes at once; each has the operation timeout, but not longer than the
    /// deadline. `call` gets the node's number, too.
    pub(super) fn ask_some<T, F>(
        &self,
        operation: Operation,
        nodes: &[usize],
        deadline: Instant,
        call: impl Fn(usize, Arc<dyn LeaseNode>) -> F,
    ) -> Round<F, T>
    where
        F: Future<Output = Result<T, NodeError>>,
    {
        let allowed: Vec<_> = nodes
            .iter()
            .copied()
            .filter(|node| !self.inner.nodes[*node].is_excluded())
            .collect();
        let limit = Instant::now() + self.inner.limit;
        let mut round = self.ask_even_excluded(operation, &allowed, deadline.min(limit), call);
        round.overdue = match deadline < limit {
            true => Called::GivenUp,
            false => Called::Timeout,
        };
        let excluded = nodes.iter().filter(|node| !allowed.contains(node));
        round.excluded.extend(excluded);
        round
    }

    /// Puts a question to these nodes, also those that must not vote; each has until the deadline.
    pub(super) fn ask_even_excluded<T, F>(
        &self,
        operation: Operation,
        nodes: &[usize],
        deadline: Instant,
        call: impl Fn(usize, Arc<dyn LeaseNode>) -> F,
    ) -> Round<F, T>
    where
        F: Future<Output = Result<T, NodeError>>,
    {
        Round {
            operation,
            started: Instant::now(),
            overdue: Called::Timeout,
            excluded: Vec::new(),
            calls: nodes
                .iter()
                .map(|&node| Call {
                    node,
                    reply: call(node, Arc::clone(&self.inner.nodes[node].node)),
                })
                .collect(),
            waiting: nodes.to_vec(),
            timer: Box::pin(sleep_until(deadline)),
            inner: Arc::clone(&self.inner),
        }
    }
}

pin_project! {
    /// A question to one node.
    struct Call<F> {
        node: usize,
        #[pin]
        reply: F,
    }
}

impl<F: Future> Future for Call<F> {
    type Output = (usize, F::Output);

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        this.reply.poll(cx).map(|reply| (*this.node, reply))
    }
}

/// The answers to one question, as they come in.
pub(super) struct Round<F, T>
where
    F: Future<Output = Result<T, NodeError>>,
{
    operation: Operation,
    started: Instant,
    /// What comes of calls that have no answer when the time is over.
    overdue: Called,
    /// Nodes that are not asked, and given as errors at once.
    excluded: Vec<usize>,
    calls: FuturesUnordered<Call<F>>,
    waiting: Vec<usize>,
    timer: Pin<Box<Sleep>>,
    inner: Arc<Inner>,
}

impl<F, T> Round<F, T>
where
    F: Future<Output = Result<T, NodeError>>,
{
    /// The next answer, with the node's number. When the time is over, the nodes that have not answered
    /// are given as errors; `None` when every node has been given.
    pub(super) async fn next(&mut self) -> Option<(usize, Result<T, NodeError>)> {
        if let Some(node) = self.excluded.pop() {
            let error = self.inner.nodes[node].excluded();
            let error = error.unwrap_or_else(|| NodeError::NotSent("it was excluded".to_owned()));
            return Some((node, Err(error)));
        }
        let last = *self.waiting.last()?;
        let (node, reply, outcome) = loop {
            let answer = tokio::select! {
                biased;
                Some((node, reply)) = self.calls.next() => {
                    let outcome = Called::of(&reply);
                    (node, reply, outcome)
                }
                () = &mut self.timer => {
                    let name = self.inner.nodes[last].name();
                    let error = NodeError::unknown(format!("{name}: no answer in time"));
                    (last, Err(error), self.overdue)
                }
            };
            // A node that was given as an error may answer yet: too late.
            if self.waiting.contains(&answer.0) {
                break answer;
            }
        };
        self.waiting.retain(|waiting| *waiting != node);
        let took = self.started.elapsed();
        self.inner
            .observer
            .called(node, self.operation, outcome, took);
        if let Err(error) = &reply {
            self.inner.nodes[node].complain(error);
        }
        Some((node, reply))
    }

    /// The nodes that were asked and have not answered yet.
    pub(super) fn waiting(&self) -> &[usize] {
        &self.waiting
    }

    pub(super) fn is_open(&self) -> bool {
        !self.waiting.is_empty() || !self.excluded.is_empty()
    }
}
