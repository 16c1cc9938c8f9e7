//! Starts real Redis servers on free ports, and stops them. Only tests use this crate.
//!
//! Functions panic with the reason if a server does not start or rejects a command: a test that cannot go on should
//! say where.

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
/// If the signal cannot be sent.
pub fn signal(pid: u32, name: &str) {
    // The shell's built-in kill: minimal systems have no other.
    let sent = Command::new("sh")
        .args(["-c", &format!("kill -{name} {pid}")])
        .status();
    assert!(sent.expect("sh runs").success(), "SIG{name} was not sent");
    if name == "STOP" {
        await_stop(pid);
    }
}

/// Waits until a child process that was sent `STOP` has stopped or ended. Until one of its threads has run and seen the
/// signal, all continue to reply. The system notifies the parent when all have stopped.
///
/// # Panics
/// If the process is no child of this one.
pub fn await_stop(pid: u32) {
    let pid = pid.try_into().ok().and_then(Pid::from_raw).expect("a pid");
    // NOWAIT leaves the status for a later wait.
    let options = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    retry_on_intr(|| waitid(WaitId::Pid(pid), options)).expect("a child");
}

/// Polls until there is a result.
///
/// # Panics
/// If there is none within ten seconds.
pub async fn eventually<T>(what: &str, ask: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_within(Duration::from_secs(10), what, ask).await
}

/// As [`eventually`], with another limit.
///
/// # Panics
/// If there is no result within the limit.
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
