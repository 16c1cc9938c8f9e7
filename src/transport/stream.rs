//! How streams of the API last and end: the agent rechecks the caller's credential, and says goodbye before the end.

use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use http::Extensions;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::request::{identity, peer};
use crate::{
    auth::{Identity, Recheck},
    status::Problem,
};

/// How often a caller's credential and rights are checked again.
pub(super) const CHECK_EVERY: Duration = Duration::from_secs(60);
/// How long a stream goes on after its goodbye, so that the caller can open another one first.
pub(super) const GOES_ON: Duration = Duration::from_secs(2);
/// The maximum time after which a caller should open another stream, in ms; spread at random.
const RECONNECT_WITHIN: u32 = 500;

/// Why a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "UPPERCASE")]
pub enum Reason {
    /// The connection is to end.
    Age,
    /// The agent shuts down.
    Shutdown,
    /// The caller does not read.
    Slow,
    /// The caller's credential or rights are no longer good.
    Unauthenticated,
}

/// The message that announces the end of a stream.
#[derive(Debug, Clone, Copy)]
pub struct Goodbye {
    /// Why.
    pub reason: Reason,
    /// After how many ms the caller should open another stream.
    pub reconnect_after: u32,
}

/// An event that affects a stream from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// The credential was checked, and is good. The caller's rights may have changed.
    Checked,
    /// The stream must say goodbye.
    Ends(Reason),
    /// The stream ends now: it has said goodbye.
    Over,
}

/// The caller of a stream, and what ends the stream.
pub(super) struct Life {
    caller: Identity,
    recheck: Recheck,
    /// The next result of `recheck`.
    checked: BoxFuture<'static, Option<Identity>>,
    ending: CancellationToken,
    shutdown: CancellationToken,
    /// When the stream ends, once it has said goodbye.
    until: Option<Instant>,
}

impl Life {
    /// The life of the stream of the request with these extensions.
    pub(super) fn begin(extensions: &Extensions) -> Result<Self, Problem> {
        let caller = identity(extensions)?.clone();
        let peer = peer(extensions)?;
        let recheck = Recheck::of(extensions);
        Ok(Self {
            checked: checked(recheck.clone(), caller.clone()),
            caller,
            recheck,
            ending: peer.ending.clone(),
            shutdown: peer.shutdown.clone(),
            until: None,
        })
    }

    /// The caller, as it was authenticated last.
    pub(super) fn caller(&self) -> &Identity {
        &self.caller
    }

    /// Whether the stream has said goodbye.
    pub(super) fn is_ending(&self) -> bool {
        self.until.is_some()
    }

    /// The next turn. Cancel-safe.
    pub(super) async fn next(&mut self) -> Turn {
        if let Some(until) = self.until {
            // A timer may be a millisecond late, and the stream must send nothing more then.
            if until > Instant::now() {
                sleep_until(until).await;
            }
            return Turn::Over;
        }
        tokio::select! {
            biased;
            () = self.ending.cancelled() => Turn::Ends(match self.shutdown.is_cancelled() {
                true => Reason::Shutdown,
                false => Reason::Age,
            }),
            identity = &mut self.checked => match identity {
                Some(caller) => {
                    self.checked = checked(self.recheck.clone(), caller.clone());
                    self.caller = caller;
                    Turn::Checked
                }
                None => Turn::Ends(Reason::Unauthenticated),
            },
        }
    }

    /// Says goodbye. The stream goes on for a while if the caller can open another one.
    pub(super) fn goodbye(&mut self, reason: Reason) -> Goodbye {
        let goes_on = match reason {
            Reason::Age | Reason::Shutdown => GOES_ON,
            // This caller must receive nothing more.
            Reason::Slow | Reason::Unauthenticated => Duration::ZERO,
        };
        if reason == Reason::Unauthenticated {
            tracing::info!(caller = %self.caller, "a stream ends: its credential or rights are no longer good");
        }
        self.until = Some(Instant::now() + goes_on);
        Goodbye {
            reason,
            reconnect_after: fastrand::u32(..RECONNECT_WITHIN),
        }
    }
}

/// Rechecks a credential after [`CHECK_EVERY`].
fn checked(recheck: Recheck, caller: Identity) -> BoxFuture<'static, Option<Identity>> {
    async move {
        sleep(CHECK_EVERY).await;
        recheck.again(&caller).await
    }
    .boxed()
}
