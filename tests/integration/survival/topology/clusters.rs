//! One Redis Cluster, or several that are independent of each other.

use std::{fmt, time::Duration};

use fastrand::Rng;
use futures_util::future::join_all;

use super::{KEEPS, Topology, cut_off, last, lease_on, lost_writes, offset};
use crate::harness::{Cluster, Place as _, eventually};

pub(crate) struct Clusters<const N: usize> {
    clusters: Vec<Cluster>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    Kill,
    KillAheadOfReplica,
    Stop,
    Reshard,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "a shard's primary killed, later restarted",
            Self::KillAheadOfReplica => "a shard's primary killed while its replica lags",
            Self::Stop => "a shard's primary stopped, goes on later",
            Self::Reshard => "elections' slots moved to other shards",
        })
    }
}

impl<const N: usize> Topology for Clusters<N> {
    type Fault = Fault;
    const FAULTS: &'static [Fault] = &[
        Fault::Kill,
        Fault::KillAheadOfReplica,
        Fault::Stop,
        Fault::Reshard,
    ];
    const BRIEFLY: usize = 1;

    async fn start() -> Self {
        Self {
            clusters: join_all((0..N).map(|_| Cluster::with(&KEEPS))).await,
        }
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        self.clusters[..].settings()
    }

    async fn ready(&mut self) {
        for cluster in &self.clusters {
            cluster.settled().await;
        }
    }

    async fn suffer(&mut self, fault: Fault, _whole_term: Duration, rng: &mut Rng) {
        let cluster = &mut self.clusters[rng.usize(..N)];
        // Where elections are; the others' shards would not be missed.
        let slots = eventually("elections are held", async || {
            let slots = cluster.slots_with("*:floor:default/e*").await;
            (!slots.is_empty()).then_some(slots)
        })
        .await;
        let slot = *rng.choice(slots.iter()).expect("elections");
        let primary = cluster.primary_of(slot).await.expect("a primary");
        match fault {
            Fault::Kill => {
                cluster.nodes[primary].kill();
                cluster.failed_over_from(primary, slot).await;
                last(rng, 0..3_000).await;
                cluster.nodes[primary].run().await;
            }
            Fault::KillAheadOfReplica => {
                let replica = cluster.replica_of(primary).await.expect("a replica");
                cut_off(&cluster.nodes, primary, &[replica]).await;
                last(rng, 0..500).await;
                let node = &mut cluster.nodes[primary];
                let written = offset(node, "master_repl_offset").await;
                node.kill();
                cluster.nodes[replica].signal("CONT");
                let (promoted, _) = cluster.failed_over_from(primary, slot).await;
                lost_writes(written, &cluster.nodes[promoted]).await;
                cluster.nodes[primary].run().await;
            }
            Fault::Stop => {
                cluster.nodes[primary].signal("STOP");
                if rng.bool() {
                    // So briefly that the others may not notice.
                    last(rng, 500..2_000).await;
                } else {
                    cluster.failed_over_from(primary, slot).await;
                    last(rng, 0..6_000).await;
                }
                cluster.nodes[primary].signal("CONT");
            }
            Fault::Reshard => {
                for slot in slots {
                    let from = cluster.primary_of(slot).await.expect("a primary");
                    let mut others = cluster.primaries().await;
                    others.retain(|other| *other != from);
                    let to = rng.choice(others).expect("other primaries");
                    cluster.move_slot(slot, to).await;
                    last(rng, 0..300).await;
                }
            }
        }
    }
    async fn leases(&self, election: &str) -> Vec<Option<(String, u64)>> {
        let mut leases = Vec::new();
        for cluster in &self.clusters {
            // The election's high-water mark outlives its lease, so the slot is known where the lease is lacking.
            let marks = format!("*:floor:default/{election}");
            let slot = cluster.slots_with(&marks).await.into_iter().next();
            let lease = match slot {
                Some(slot) => {
                    let primary = cluster.primary_of(slot).await.expect("a primary");
                    lease_on(&cluster.nodes[primary], election).await
                }
                None => None,
            };
            leases.push(lease);
        }
        leases
    }
}
