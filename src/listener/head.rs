//! Detects when hyper waits for the head of an HTTP/1.1 request.
//!
//! Only hyper knows where a request's body ends, and so which bytes belong to the next head. It exposes that only
//! through its header timer: it starts the timer when it begins to wait for a head, and drops it when the head is
//! complete. The timer defined here never fires; it records these events. [`super::watch`] enforces the timeout,
//! because hyper's own timer also runs between requests.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use hyper::rt::{Sleep, Timer};

/// Counts the heads that hyper has waited for on one connection. Cheap to clone; clones share the count.
///
/// One task reads the connection, so relaxed ordering is sufficient.
#[derive(Debug, Clone, Default)]
pub(super) struct Heads(Arc<AtomicU64>);

impl Heads {
    /// Returns twice the number of complete heads, plus one while the next head is awaited.
    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn await_next(&self) -> Pin<Box<dyn Sleep>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(Awaited(self.clone()))
    }
}

impl Timer for Heads {
    fn sleep(&self, _: Duration) -> Pin<Box<dyn Sleep>> {
        self.await_next()
    }

    fn sleep_until(&self, _: Instant) -> Pin<Box<dyn Sleep>> {
        self.await_next()
    }
}

/// Exists while a head is awaited.
#[derive(Debug)]
struct Awaited(Heads);

impl Sleep for Awaited {}

impl Future for Awaited {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::Relaxed);
    }
}
