//! Starts real Redis servers on free ports, and stops them. Only tests are built of this.
//!
//! A server that does not start or does not do what it is told panics, and says why: a test that cannot go on
//! should say where.

#![expect(
    clippy::expect_used,
    reason = "a test that cannot go on should say where"
)]

mod clock;
mod cluster;
mod redis;
mod sentinel;

pub use self::redis::Redis;
pub use clock::{Clock, preload};
pub use cluster::{Cluster, MovingSlot};
pub use sentinel::{Deployment, Sentinels};

use std::{process::Command, time::Duration};

use rustix::{
    io::retry_on_intr,
    process::{Pid, WaitId, WaitIdOptions, waitid},
};

/// Sends a child process the signal `name`. After `STOP` it has stopped.
///
/// # Panics
/// When it cannot be sent.
pub fn signal(pid: u32, name: &str) {
    // The shell's own kill: slim systems have no other.
    let sent = Command::new("sh")
        .args(["-c", &format!("kill -{name} {pid}")])
        .status();
    assert!(sent.expect("sh runs").success(), "SIG{name} was not sent");
    if name == "STOP" {
        await_stop(pid);
    }
}

/// Waits until a child process that was sent `STOP` has stopped, or has ended: until one of its threads has run and has
/// seen the signal, all go on to answer. The parent is told when each has stopped.
///
/// # Panics
/// When it is no child of this process.
pub fn await_stop(pid: u32) {
    let pid = pid.try_into().ok().and_then(Pid::from_raw).expect("a pid");
    // Nothing is taken from who waits for its end.
    let options = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    retry_on_intr(|| waitid(WaitId::Pid(pid), options)).expect("a child");
}

/// Asks again and again until the answer is there.
///
/// # Panics
/// When it is not there in ten seconds.
pub async fn eventually<T>(what: &str, ask: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_within(Duration::from_secs(10), what, ask).await
}

/// As [`eventually`], for what may take longer.
///
/// # Panics
/// When the answer is not there within the limit.
pub async fn eventually_within<T>(
    limit: Duration,
    what: &str,
    mut ask: impl AsyncFnMut() -> Option<T>,
) -> T {
    let waiting = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(limit, waiting)
        .await
        .unwrap_or_else(|_| panic!("not within {limit:?}: {what}"))
}
