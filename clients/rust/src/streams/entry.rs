//! An election of a stream.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{Left, Told};
use crate::{
    Deadline, Lost,
    hooks::Hooks,
    lead::Settings,
    proto::{self, lead_request::What},
    term::Shared,
};

/// An election that was joined, or is about to be.
pub(super) struct Entry {
    pub(super) settings: Settings,
    pub(super) hooks: Hooks,
    /// Of the present attempt to be elected.
    pub(super) request_id: String,
    pub(super) told: mpsc::UnboundedSender<Told>,
    pub(super) stage: Stage,
}

/// How far it is.
pub(super) enum Stage {
    /// Joined without a token, or waits to be.
    Waiting,
    /// Granted, but for a short time only: nobody works under it yet.
    Unconfirmed { token: u64, extends: Extends },
    /// Somebody works under it.
    Leading {
        term: Arc<Shared>,
        extends: Option<Extends>,
    },
    /// No work is left under it except what the clock ends. It is given up when its time is over.
    Lapsing { token: u64, until: Deadline },
    /// It is being given up.
    Leaving {
        token: u64,
        since: Instant,
        left: Option<oneshot::Sender<Result<(), Left>>>,
    },
}

/// How pings extend a term.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extends {
    /// Only pings after this one do: the agent had received it when it granted the term.
    pub(super) after: u64,
    /// For how long, from when the ping was sent.
    pub(super) by: Duration,
    /// The same in ms.
    pub(super) millis: i32,
}

impl Entry {
    /// The message that joins it to a new stream. `None`: it is about to leave.
    pub(super) fn join(&self) -> Option<What> {
        let token = match &self.stage {
            Stage::Waiting => 0,
            Stage::Unconfirmed { token, .. } | Stage::Lapsing { token, .. } => *token,
            Stage::Leading { term, .. } => term.token,
            Stage::Leaving { .. } => return None,
        };
        Some(What::Join(proto::Join {
            kind: self.settings.kind.clone(),
            election: self.settings.election.clone(),
            // Checked before it came here.
            term: i32::try_from(self.settings.term.as_millis()).unwrap_or(i32::MAX),
            value: self.settings.value.clone(),
            request_id: if token == 0 {
                self.request_id.clone()
            } else {
                String::new()
            },
            token,
        }))
    }

    pub(super) fn leave(&self, token: u64) -> What {
        What::Leave(proto::Leave {
            kind: self.settings.kind.clone(),
            election: self.settings.election.clone(),
            token,
        })
    }

    pub(super) fn tell(&self, told: Told) {
        // The waiter may have gone.
        let _ = self.told.send(told);
    }

    /// It has left the stream: notifies the leadership.
    pub(super) fn end(self, why: Option<Lost>) {
        match self.stage {
            Stage::Leading { term, .. } => {
                if let Some(why) = why {
                    term.lose(why);
                }
            }
            Stage::Leaving {
                left: Some(left), ..
            } => {
                let _ = left.send(why.map_or(Ok(()), |why| Err(Left::Lost(why))));
            }
            Stage::Leaving { .. }
            | Stage::Waiting
            | Stage::Unconfirmed { .. }
            | Stage::Lapsing { .. } => {}
        }
    }

    /// Calls take over.
    pub(super) fn fall_back(self) {
        self.tell(Told::Fallback);
        if let Stage::Leaving {
            left: Some(left), ..
        } = self.stage
        {
            let _ = left.send(Err(Left::NotKnown));
        }
    }
}
