//! A term, as the work of a leader sees it.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use tokio::sync::watch;

use crate::{
    Deadline, Lost, Standing,
    clock::Anchor,
    hooks::Hooks,
    timer::{self, Timed},
};

/// A term of leadership, as the work of the leader sees it. Clones see the same term.
///
/// The clock decides: [`check`](Self::check) and [`remaining`](Self::remaining) read it each time, whatever the
/// network or the runtime do. A term that was lost stays lost.
#[derive(Clone)]
pub struct Term {
    shared: Arc<Shared>,
    /// What [`renewed`](Self::renewed) has returned last.
    seen: Deadline,
}

impl Term {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let seen = shared.valid_until();
        Self { shared, seen }
    }

    /// The fencing token: larger than that of every leader before. Give it to the storage that keeps the work.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.shared.token
    }

    /// The election's name.
    #[must_use]
    pub fn election(&self) -> &str {
        &self.shared.election
    }

    /// The election's kind.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.shared.kind
    }

    /// The name that the leader campaigned under.
    #[must_use]
    pub fn candidate(&self) -> &str {
        &self.shared.candidate
    }

    /// Until when no other candidate is elected unless the term is given up. It moves with each extension.
    #[must_use]
    pub fn valid_until(&self) -> Deadline {
        self.shared.valid_until()
    }

    /// For how long the leader may act: until [`valid_until`](Self::valid_until), and not at all once it is lost.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        let now = self.shared.look();
        if now.lost.is_some() {
            return Duration::ZERO;
        }
        now.valid_until.remaining()
    }

    /// Whether the leader may still act.
    ///
    /// # Errors
    ///
    /// Why it may not, from the moment at which [`lost`](Self::lost) resolves.
    pub fn check(&self) -> Result<(), Lost> {
        match self.shared.look().lost {
            None => Ok(()),
            Some(lost) => Err(lost),
        }
    }

    /// Resolves when the leadership is lost: at once when another leads, and at the latest the margin before
    /// [`valid_until`](Self::valid_until).
    pub fn lost(&self) -> Loss {
        Loss::new(Arc::clone(&self.shared))
    }

    /// Resolves when [`valid_until`](Self::valid_until) has moved since this was called last on this value. Nothing is
    /// missed if the future is dropped.
    ///
    /// # Errors
    ///
    /// Why the leadership is lost.
    pub async fn renewed(&mut self) -> Result<Deadline, Lost> {
        let mut changes = self.shared.now.subscribe();
        loop {
            // The clock first: it may know of a loss that was not reported yet.
            self.shared.look();
            let now = *changes.borrow_and_update();
            if let Some(lost) = now.lost {
                return Err(lost);
            }
            if now.valid_until > self.seen {
                self.seen = now.valid_until;
                return Ok(now.valid_until);
            }
            // The sender lives in `shared`.
            if changes.changed().await.is_err() {
                return Err(Lost::TermOver);
            }
        }
    }

    /// Whether the last attempts to extend the term have failed without a definite denial.
    #[must_use]
    pub fn in_jeopardy(&self) -> bool {
        self.shared.look().jeopardy
    }
}

impl fmt::Debug for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

/// A future that resolves when the leadership is lost, with the reason. Clones resolve with it.
#[must_use = "futures do nothing unless polled"]
pub struct Loss {
    shared: Arc<Shared>,
    wait: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
}

impl Loss {
    fn new(shared: Arc<Shared>) -> Self {
        let mut changes = shared.now.subscribe();
        let wait = async move {
            // The sender lives as long as the future.
            let _ = changes.wait_for(|now| now.lost.is_some()).await;
        };
        Self {
            shared,
            wait: Box::pin(wait),
        }
    }
}

impl Future for Loss {
    type Output = Lost;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Lost> {
        // The clock first: the timer's thread may not have had its turn.
        if let Some(lost) = self.shared.look().lost {
            return Poll::Ready(lost);
        }
        match self.wait.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(self.shared.look().lost.unwrap_or(Lost::TermOver)),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Clone for Loss {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.shared))
    }
}

impl fmt::Debug for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loss").field("term", &self.shared).finish()
    }
}

/// What is known of a term.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) valid_until: Deadline,
    /// Clocks, before what gave the term was sent.
    anchor: Anchor,
    pub(crate) jeopardy: bool,
    pub(crate) lost: Option<Lost>,
}

/// A term, shared by the task that extends it and the work under it.
pub(crate) struct Shared {
    pub(crate) kind: String,
    pub(crate) election: String,
    pub(crate) candidate: String,
    pub(crate) token: u64,
    margin: Duration,
    now: watch::Sender<Now>,
    hooks: Hooks,
}

/// Whose term it is.
#[derive(Clone, Debug)]
pub(crate) struct Who {
    pub(crate) kind: String,
    pub(crate) election: String,
    pub(crate) candidate: String,
}

impl Shared {
    /// A term that ends at the latest at `valid_until` unless it is extended; the process's timer watches it.
    pub(crate) fn start(
        who: Who,
        token: u64,
        valid_until: Deadline,
        anchor: Anchor,
        margin: Duration,
        hooks: Hooks,
    ) -> Arc<Self> {
        let now = Now {
            valid_until,
            anchor,
            jeopardy: false,
            lost: None,
        };
        let shared = Arc::new(Self {
            kind: who.kind,
            election: who.election,
            candidate: who.candidate,
            token,
            margin,
            now: watch::Sender::new(now),
            hooks,
        });
        let weak = Arc::downgrade(&shared);
        let weak: Weak<dyn Timed> = weak;
        timer::watch(valid_until.minus(margin), weak);
        shared
    }

    /// The known state, after a check of the clock.
    pub(crate) fn look(&self) -> Now {
        let now = *self.now.borrow();
        if now.lost.is_some() {
            return now;
        }
        if now.anchor.has_jumped() {
            self.lose(Lost::ClockJumped);
        } else if now.valid_until.minus(self.margin).has_passed() {
            self.expire();
        } else {
            return now;
        }
        *self.now.borrow()
    }

    pub(crate) fn valid_until(&self) -> Deadline {
        self.now.borrow().valid_until
    }

    /// The term is over if the clock says so, also when it is extended at this moment.
    fn expire(&self) {
        self.lose_if(Lost::TermOver, |now| {
            now.valid_until.minus(self.margin).has_passed()
        });
    }

    /// The leadership is lost, unless it was before.
    pub(crate) fn lose(&self, why: Lost) {
        self.lose_if(why, |_| true);
    }

    /// The leader gives the term up: work that still checks it must not act. That is no loss to report.
    pub(crate) fn give_up(&self) {
        self.now.send_if_modified(|now| {
            let first = now.lost.is_none();
            now.lost = now.lost.or(Some(Lost::NoTerm));
            first
        });
    }

    fn lose_if(&self, why: Lost, condition: impl FnOnce(&Now) -> bool) {
        let lost = self.now.send_if_modified(|now| {
            let lost = now.lost.is_none() && condition(now);
            if lost {
                now.lost = Some(why);
            }
            lost
        });
        if lost {
            tracing::warn!(
                kind = self.kind,
                election = self.election,
                token = self.token,
                reason = %why,
                "leadership lost"
            );
            self.hooks.lost(why);
        }
    }

    /// The term was extended. A promise that lasts longer still holds, and a loss that was reported stays one.
    pub(crate) fn extend(&self, valid_until: Deadline, anchor: Anchor) {
        // If the time was over before the extension arrived, the loss has been reported to the work, or is about to be.
        self.look();
        let mut relieved = None;
        self.now.send_modify(|now| {
            if valid_until > now.valid_until {
                now.valid_until = valid_until;
                now.anchor = anchor;
            }
            if std::mem::take(&mut now.jeopardy) && now.lost.is_none() {
                relieved = Some(now.valid_until);
            }
        });
        if let Some(valid_until) = relieved {
            self.hooks.state(Standing::Leading {
                token: self.token,
                valid_until,
            });
        }
    }

    /// An attempt to extend the term has failed, and it is not known whether the caller leads.
    pub(crate) fn jeopardize(self: &Arc<Self>, reason: &str) {
        let first = self.now.send_if_modified(|now| {
            let first = !now.jeopardy && now.lost.is_none();
            now.jeopardy |= first;
            first
        });
        if first {
            tracing::warn!(
                kind = self.kind,
                election = self.election,
                token = self.token,
                reason,
                "leadership in jeopardy: the term was not extended"
            );
            self.hooks.jeopardy(Term::new(Arc::clone(self)), reason);
        }
    }
}

impl Timed for Shared {
    fn due(&self) -> Option<Deadline> {
        let now = self.look();
        now.lost
            .is_none()
            .then(|| now.valid_until.minus(self.margin))
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let now = *self.now.borrow();
        f.debug_struct("Term")
            .field("kind", &self.kind)
            .field("election", &self.election)
            .field("candidate", &self.candidate)
            .field("token", &self.token)
            .field("remaining", &now.valid_until.remaining())
            .field("in_jeopardy", &now.jeopardy)
            .field("lost", &now.lost)
            .finish()
    }
}
