//! Deployments of Redis, and what may happen to them.

mod three;

pub(crate) use three::Three;

use std::{fmt, time::Duration};

use fastrand::Rng;
use tokio::time::sleep;

/// A deployment of Redis, running.
pub(crate) trait Topology: Sized {
    type Fault: Copy + fmt::Display + 'static;
    const FAULTS: &'static [Self::Fault];

    async fn start() -> Self;

    /// What tells an agent where to keep its leases.
    fn settings(&self) -> Vec<(String, String)>;

    /// Brings a fault about, and mends it.
    async fn suffer(&mut self, fault: Self::Fault, rng: &mut Rng);
}

/// Lets a fault last for so many ms.
async fn last(rng: &mut Rng, ms: std::ops::Range<u64>) {
    sleep(Duration::from_millis(rng.u64(ms))).await;
}
