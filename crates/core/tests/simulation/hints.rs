//! Hints on their way from a server to an agent: lost, late, repeated and forged.

use std::sync::Mutex;

use election_core::{
    lease::{Hint, Listener, hint::Cause},
    types::Token,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::server::Server;

/// How many of a thousand hints are followed by a forged one.
const FORGED: u32 = 100;

/// The hints in transit to a listener.
pub(crate) struct Post<'a> {
    server: &'a Server,
    listener: &'a dyn Listener,
    /// Hints, and when they arrive.
    sent: Mutex<Vec<(Instant, Hint)>>,
    posted: Notify,
}

impl<'a> Post<'a> {
    pub(crate) fn new(server: &'a Server, listener: &'a dyn Listener) -> Self {
        Self {
            server,
            listener,
            sent: Mutex::default(),
            posted: Notify::new(),
        }
    }

    fn send(&self, hint: Hint) {
        if !self.server.chance(|faults| faults.lost) {
            let arrives = Instant::now() + self.server.transit();
            self.sent
                .lock()
                .expect("not poisoned")
                .push((arrives, hint));
            self.posted.notify_one();
        }
    }

    /// A hint that no node has sent.
    fn forge(&self, like: &Hint) -> Hint {
        let causes = [
            Cause::Campaign,
            Cause::Handover,
            Cause::Resign,
            Cause::RolledBack,
            Cause::Repaired,
        ];
        let token = like.token.get() - 1 + self.server.draw(3);
        Hint {
            cause: causes[self.server.draw(causes.len() as u64) as usize],
            token: Token::new(token).unwrap_or(like.token),
            ..like.clone()
        }
    }

    /// Delivers hints as they arrive.
    pub(crate) async fn deliver(&self) {
        loop {
            let now = Instant::now();
            let (arrived, next) = {
                let mut sent = self.sent.lock().expect("not poisoned");
                let arrived: Vec<_> = sent.extract_if(.., |(at, _)| *at <= now).collect();
                (arrived, sent.iter().map(|(at, _)| *at).min())
            };
            for (_, hint) in arrived {
                self.listener.hinted(hint);
            }
            let next = async {
                match next {
                    Some(next) => sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = next => {}
                () = self.posted.notified() => {}
            }
        }
    }
}

impl Listener for Post<'_> {
    fn connected(&self, listeners: usize) {
        self.listener.connected(listeners);
    }

    fn hinted(&self, hint: Hint) {
        if self.server.chance(|faults| faults.doubled) {
            self.send(hint.clone());
        }
        if self.server.chance(|_| FORGED) {
            self.send(self.forge(&hint));
        }
        self.send(hint);
    }
}
