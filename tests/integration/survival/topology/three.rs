//! Three independent servers.

use std::{fmt, time::Duration};

use fastrand::Rng;
use futures_util::future::join_all;
use tokio::time::sleep;

use super::{KEEPS, Topology, last, lease_on};
use crate::harness::{Place as _, Redis};

pub(crate) struct Three {
    servers: Vec<Redis>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    Kill,
    Forget,
    Stop,
    StopForATerm,
    StopTwoForATerm,
    KillTwo,
    RollBackTwo,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "one server killed, restarted with its data",
            Self::Forget => "one server killed, restarted empty",
            Self::Stop => "one server stopped for a while",
            Self::StopForATerm => "one server stopped for longer than a term",
            Self::StopTwoForATerm => "two servers stopped for longer than a term",
            Self::KillTwo => "two servers killed, restarted with their data",
            Self::RollBackTwo => "two servers killed, restarted from a snapshot",
        })
    }
}

impl Topology for Three {
    type Fault = Fault;
    const FAULTS: &'static [Fault] = &[
        Fault::Kill,
        Fault::Forget,
        Fault::Stop,
        Fault::StopForATerm,
        Fault::StopTwoForATerm,
        Fault::KillTwo,
        Fault::RollBackTwo,
    ];

    const BRIEFLY: usize = 6;

    async fn start() -> Self {
        let servers = Redis::several(3, &KEEPS).await;
        Self { servers }
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        self.servers[..].settings()
    }

    async fn suffer(&mut self, fault: Fault, whole_term: Duration, rng: &mut Rng) {
        let mut chosen = [0, 1, 2];
        rng.shuffle(&mut chosen);
        let [one, other, _] = chosen;
        match fault {
            Fault::Kill => {
                self.servers[one].kill();
                last(rng, 100..1_500).await;
                self.servers[one].run().await;
            }
            Fault::Forget => {
                self.servers[one].kill();
                self.servers[one].forget();
                last(rng, 0..1_500).await;
                self.servers[one].run().await;
            }
            Fault::Stop => {
                self.servers[one].signal("STOP");
                last(rng, 200..2_500).await;
                self.servers[one].signal("CONT");
            }
            Fault::StopForATerm | Fault::StopTwoForATerm => {
                let stopped: &[usize] = match fault {
                    Fault::StopForATerm => &[one],
                    _ => &[one, other],
                };
                for server in stopped {
                    self.servers[*server].signal("STOP");
                    last(rng, 0..300).await;
                }
                sleep(whole_term).await;
                for server in stopped {
                    self.servers[*server].signal("CONT");
                    last(rng, 0..300).await;
                }
            }
            Fault::KillTwo => {
                for server in [one, other] {
                    self.servers[server].kill();
                    last(rng, 0..300).await;
                }
                last(rng, 100..1_000).await;
                for server in [one, other] {
                    self.servers[server].run().await;
                    last(rng, 0..300).await;
                }
            }
            Fault::RollBackTwo => {
                let snapshots = [
                    self.servers[one].snapshot().await,
                    self.servers[other].snapshot().await,
                ];
                // Leaders resign, and others are elected, of whom the snapshots know nothing.
                last(rng, 300..1_500).await;
                for (server, snapshot) in [one, other].into_iter().zip(snapshots) {
                    self.servers[server].kill();
                    self.servers[server].run_from(&snapshot).await;
                }
            }
        }
    }
    async fn leases(&self, election: &str) -> Vec<Option<(String, u64)>> {
        let servers = self.servers.iter();
        join_all(servers.map(|server| lease_on(server, election))).await
    }
}
