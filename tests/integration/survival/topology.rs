//! Deployments of Redis, and what may happen to them.

mod clusters;
mod failover;
mod three;

pub(crate) use clusters::Clusters;
pub(crate) use failover::Failover;
pub(crate) use three::Three;

use std::{fmt, time::Duration};

use redis::cmd;

use fastrand::Rng;
use tokio::time::sleep;

use crate::harness::{Redis, eventually};

/// A deployment of Redis, running.
pub(crate) trait Topology: Sized {
    type Fault: Copy + fmt::Display + 'static;
    const FAULTS: &'static [Self::Fault];

    /// How many faults come, at most, when no time is given.
    const BRIEFLY: usize;

    async fn start() -> Self;

    /// The settings of an agent's store.
    fn settings(&self) -> Vec<(&'static str, String)>;

    /// Waits until the deployment can bear another fault.
    async fn ready(&mut self) {}

    /// Causes a fault, and ends it. `whole_term` is the longest term of any agent and its operation timeout.
    async fn suffer(&mut self, fault: Self::Fault, whole_term: Duration, rng: &mut Rng);

    /// The leader and token that each server has which a vote comes from, if it has one.
    async fn leases(&self, election: &str) -> Vec<Option<(String, u64)>>;
}

/// What is written is with the system before it is answered, where it outlives the process; that it outlives
/// the machine, too, would only make tests wait for this machine's disk.
const KEEPS: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "no"];

/// Lets a fault last for so many ms.
async fn last(rng: &mut Rng, ms: std::ops::Range<u64>) {
    sleep(Duration::from_millis(rng.u64(ms))).await;
}

/// Stops replicas, and returns when their primary has written something that they did not receive.
async fn cut_off(servers: &[Redis], primary: usize, replicas: &[usize]) {
    for replica in replicas {
        servers[*replica].signal("STOP");
    }
    // What is written to their sockets would still reach them.
    let mut connections = cmd("CLIENT");
    connections.arg("KILL").arg("TYPE").arg("replica");
    let killed = servers[primary].ask::<usize>(&connections).await;
    assert_eq!(killed, Ok(replicas.len()));
    let cut = offset(&servers[primary], "master_repl_offset").await;
    eventually("the primary is ahead", async || {
        let now = offset(&servers[primary], "master_repl_offset").await;
        (now > cut).then_some(())
    })
    .await;
}

/// How many bytes of its stream a server has written, or a promoted one had when it was promoted.
async fn offset(server: &Redis, of: &str) -> u64 {
    let offset = server.info("replication", of).await.expect("an answer");
    offset.parse().expect("a number")
}

/// Prints how much of what its primary had written a promoted replica did not have.
async fn lost_writes(written: u64, promoted: &Redis) {
    // Counted from one on.
    let known = offset(promoted, "second_repl_offset").await - 1;
    assert!(known < written, "it did not lag: {known} of {written}");
    println!("a promoted replica lacked {} bytes", written - known);
}

/// The leader and token that a server has of an election.
async fn lease_on(server: &Redis, election: &str) -> Option<(String, u64)> {
    let mut keys = cmd("KEYS");
    keys.arg(format!("*:lease:default/{election}"));
    let keys: Vec<String> = server.ask(&keys).await.ok()?;
    let mut lease = cmd("HMGET");
    lease.arg(keys.first()?).arg("leader").arg("token");
    server.ask(&lease).await.ok()
}
