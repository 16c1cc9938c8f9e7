//! A primary with two replicas, and three Sentinels.

use std::{
    fmt,
    time::{Duration, Instant},
};

use fastrand::Rng;

use super::{KEEPS, Topology, cut_off, last, lease_on, lost_writes, offset};
use crate::harness::{Deployment, Place as _, Sentinels, eventually};

pub(crate) struct Failover {
    deployment: Sentinels,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    Kill,
    KillAheadOfReplicas,
    Stop,
    KillSentinel,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "the primary killed, later restarted",
            Self::KillAheadOfReplicas => "the primary killed while replicas lag",
            Self::Stop => "the primary stopped, goes on after the failover",
            Self::KillSentinel => "one Sentinel killed, restarted",
        })
    }
}

impl Topology for Failover {
    type Fault = Fault;
    const FAULTS: &'static [Fault] = &[
        Fault::Kill,
        Fault::KillAheadOfReplicas,
        Fault::Stop,
        Fault::KillSentinel,
    ];
    const BRIEFLY: usize = 1;

    async fn start() -> Self {
        let deployment = Sentinels::with(Deployment {
            arguments: &KEEPS,
            ..Deployment::default()
        });
        Self {
            deployment: deployment.await,
        }
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        self.deployment.settings()
    }

    async fn ready(&mut self) {
        self.deployment.settled().await;
    }

    async fn suffer(&mut self, fault: Fault, _whole_term: Duration, rng: &mut Rng) {
        let sentinels = &mut self.deployment.sentinels;
        if matches!(fault, Fault::KillSentinel) {
            let sentinel = rng.usize(..sentinels.len());
            sentinels[sentinel].kill();
            last(rng, 100..2_000).await;
            return sentinels[sentinel].run().await;
        }
        let primary = self.deployment.primary().await.expect("a primary");
        let servers = &mut self.deployment.servers;
        let others: Vec<_> = (0..servers.len()).filter(|n| *n != primary).collect();
        let began = Instant::now();
        match fault {
            Fault::Kill | Fault::KillSentinel => {
                servers[primary].kill();
                self.deployment.failed_over_from(primary, began).await;
                last(rng, 0..3_000).await;
                self.deployment.servers[primary].run().await;
            }
            Fault::KillAheadOfReplicas => {
                cut_off(servers, primary, &others).await;
                last(rng, 0..500).await;
                let written = offset(&servers[primary], "master_repl_offset").await;
                servers[primary].kill();
                for replica in others {
                    servers[replica].signal("CONT");
                }
                self.deployment.failed_over_from(primary, began).await;
                let promoted = eventually("the Sentinels agree", async || {
                    let promoted = self.deployment.primary().await;
                    promoted.filter(|promoted| *promoted != primary)
                })
                .await;
                lost_writes(written, &self.deployment.servers[promoted]).await;
                self.deployment.servers[primary].run().await;
            }
            Fault::Stop => {
                servers[primary].signal("STOP");
                self.deployment.failed_over_from(primary, began).await;
                // Agents may not know yet, or have known for long, when it wakes up.
                last(rng, 0..6_000).await;
                self.deployment.servers[primary].signal("CONT");
            }
        }
    }
    async fn leases(&self, election: &str) -> Vec<Option<(String, u64)>> {
        let primary = self.deployment.primary().await.expect("a primary");
        vec![lease_on(&self.deployment.servers[primary], election).await]
    }
}
