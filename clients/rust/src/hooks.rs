//! The caller's callbacks, and the thread that calls them.

use std::{
    fmt,
    sync::{Arc, LazyLock, mpsc},
};

use crate::{Code, Deadline, Lost, Term};

/// Where a candidate stands in an election, as [`Lead::on_state`](crate::Lead::on_state) reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standing {
    /// Another candidate leads, or nothing is known yet: the candidate waits.
    #[non_exhaustive]
    Waiting {
        /// The leader, if the agent named it.
        leader: Option<String>,
    },
    /// The candidate leads.
    #[non_exhaustive]
    Leading {
        /// The fencing token.
        token: u64,
        /// Until when it may act unless the term is extended.
        valid_until: Deadline,
    },
    /// An attempt to extend the term has failed, and it is not known whether the candidate leads.
    #[non_exhaustive]
    Jeopardy {
        /// Why the attempt has failed.
        reason: String,
    },
    /// No agent answers while the candidate waits.
    #[non_exhaustive]
    NotKnown {
        /// Why not.
        reason: String,
    },
    /// The agent refuses to extend the term, which goes on until its time is over.
    #[non_exhaustive]
    Refused {
        /// What kind of refusal.
        code: Code,
        /// The agent's message.
        message: String,
    },
    /// The leadership is lost.
    Lost(Lost),
    /// The candidate has given its leadership up.
    Resigned,
}

type OnJeopardy = Arc<dyn Fn(&Term) + Send + Sync>;
type OnLost = Arc<dyn Fn(Lost) + Send + Sync>;
type OnState = Arc<dyn Fn(&Standing) + Send + Sync>;
type Alive = Arc<dyn Fn() -> bool + Send + Sync>;

/// The caller's functions.
#[derive(Clone, Default)]
pub(crate) struct Hooks {
    pub(crate) on_jeopardy: Option<OnJeopardy>,
    pub(crate) on_lost: Option<OnLost>,
    pub(crate) on_state: Option<OnState>,
    pub(crate) alive: Option<Alive>,
}

impl Hooks {
    pub(crate) fn state(&self, standing: Standing) {
        if let Some(hook) = self.on_state.clone() {
            call(move || hook(&standing));
        }
    }

    pub(crate) fn lost(&self, why: Lost) {
        self.state(Standing::Lost(why));
        if let Some(hook) = self.on_lost.clone() {
            call(move || hook(why));
        }
    }

    pub(crate) fn jeopardy(&self, term: Term, reason: &str) {
        self.state(Standing::Jeopardy {
            reason: reason.to_owned(),
        });
        if let Some(hook) = self.on_jeopardy.clone() {
            call(move || hook(&term));
        }
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks")
            .field("on_jeopardy", &self.on_jeopardy.is_some())
            .field("on_lost", &self.on_lost.is_some())
            .field("on_state", &self.on_state.is_some())
            .field("alive", &self.alive.is_some())
            .finish()
    }
}

type Call = Box<dyn FnOnce() + Send>;

/// The thread that calls the caller's functions, in order: neither the timer nor an extension waits for them, and they
/// run also while the runtime is blocked.
static CALLS: LazyLock<mpsc::Sender<Call>> = LazyLock::new(|| {
    let (sender, calls) = mpsc::channel::<Call>();
    let spawned = std::thread::Builder::new()
        .name("election-hooks".to_owned())
        .spawn(move || {
            for call in calls {
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_err() {
                    tracing::error!("a leadership callback has panicked");
                }
            }
        });
    if let Err(error) = spawned {
        tracing::error!(%error, "no thread to report to `on_lost` and the like");
    }
    sender
});

fn call(call: impl FnOnce() + Send + 'static) {
    // Fails only if there is no thread, which was logged.
    let _ = CALLS.send(Box::new(call));
}
