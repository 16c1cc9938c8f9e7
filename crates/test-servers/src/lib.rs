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

use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// Sends a process the signal `name`, such as `STOP`, after which it has stopped.
///
/// # Panics
/// When it cannot be sent, and when the process has not stopped in ten seconds.
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

/// Waits until each thread of a process that was told to has stopped: until one of them has run and has seen the signal,
/// all go on to answer.
///
/// # Panics
/// When they have not in ten seconds.
pub fn await_stop(pid: u32) {
    let end = Instant::now() + Duration::from_secs(10);
    let tasks = || {
        fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten()
    };
    let stops = |task: std::io::Result<fs::DirEntry>| {
        // A thread that is gone does nothing more. The state follows the name, which is in parentheses.
        let stat = task.and_then(|task| fs::read_to_string(task.path().join("stat")));
        let stat = stat.unwrap_or_default();
        let state = stat.rsplit_once(") ").map_or("X", |(_, rest)| rest);
        state.starts_with(['T', 't', 'X', 'Z'])
    };
    while !tasks().all(stops) {
        assert!(Instant::now() < end, "process {pid} does not stop");
        thread::sleep(Duration::from_millis(1));
    }
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
