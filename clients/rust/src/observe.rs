//! Following who leads.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{sync::mpsc, task::JoinHandle};

use crate::{Agent, Error, Scope, State};

mod follow;
mod known;

/// How many events wait to be read. Agents conflate the rest.
const EVENTS: usize = 16;

/// What an observer receives.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// An election's state: the present one at first, then each change.
    State(State),
    /// All present states have been reported. Once, however often the observer connects again.
    Synced,
    /// Whether the states reported last are known to be the present ones. True until reported otherwise.
    #[non_exhaustive]
    Certainty {
        /// Whether they are.
        certain: bool,
        /// For how long they have not been confirmed; zero when certain.
        unconfirmed_for: Duration,
        /// Why, for people; empty when certain.
        reason: String,
    },
}

/// Follows who leads: made by [`Agent::observe`]. Also a [`Stream`](futures_core::Stream).
///
/// It connects again by itself, to whichever agent answers, and reports no state twice in a row. Of an election that
/// changes while it is not read, the last state is reported.
#[must_use = "nothing is observed before `next`"]
pub struct Observer {
    agent: Agent,
    scope: Scope,
    following: Option<Following>,
}

/// The task that follows. It ends when this is dropped.
struct Following {
    events: mpsc::Receiver<Result<Event, Error>>,
    task: JoinHandle<()>,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Observer {
    pub(crate) fn new(agent: Agent, scope: Scope) -> Self {
        Self {
            agent,
            scope,
            following: None,
        }
    }

    /// What is observed.
    #[must_use]
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The next event. After an error, which is one that trying again does not help, there are none. Nothing is missed
    /// if the future is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`], [`Error::Config`].
    pub async fn next(&mut self) -> Option<Result<Event, Error>> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Event, Error>>> {
        let following = self.following.get_or_insert_with(|| {
            let (sender, events) = mpsc::channel(EVENTS);
            let task = follow::follow(self.agent.clone(), self.scope.clone(), sender);
            Following {
                events,
                task: tokio::spawn(task),
            }
        });
        let event = ready!(following.events.poll_recv(context));
        Poll::Ready(event)
    }
}

impl futures_core::Stream for Observer {
    type Item = Result<Event, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll(context)
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer")
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}
