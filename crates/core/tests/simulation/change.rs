//! Agents change from one list of nodes to another, one after the other, as docs/STORES.md describes.

use std::time::Duration;

use election_core::lease::policy::{Electorate, Nodes};
use fastrand::Rng;
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    agent::Agent,
    record::Record,
    run::{LONGEST_TERM, RUN},
};

/// Two lists of nodes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change {
    /// The size of the old list, which has the first nodes.
    old: usize,
    /// The start of the new list, which has the last nodes.
    from: usize,
    /// The number of nodes.
    pub(crate) nodes: usize,
    /// The number of agents at a time.
    pub(crate) agents: usize,
}

/// The lists that an agent has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Has {
    Old,
    Both,
    New,
}

/// The nodes of one agent, and their roles.
pub(crate) struct Place {
    pub(crate) list: String,
    pub(crate) nodes: std::ops::Range<usize>,
    pub(crate) electorate: Electorate,
}

impl Change {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        let (old, new) = *rng.choice(&[(3, 3), (3, 3), (1, 3), (3, 1)]).expect("some");
        let shared = rng.usize(0..=old.min(new).min(2));
        Self {
            old,
            from: old - shared,
            nodes: old - shared + new,
            agents: rng.usize(1..=3),
        }
    }

    pub(crate) fn place(self, has: Has) -> Place {
        let list = |nodes: std::ops::Range<usize>| {
            let names: Vec<_> = nodes.map(|node| node.to_string()).collect();
            names.join(",")
        };
        let (old, new) = (0..self.old, self.from..self.nodes);
        match has {
            Has::Old => Place {
                list: list(old.clone()),
                electorate: Electorate::of(Nodes::first(old.len())),
                nodes: old,
            },
            Has::New => Place {
                list: list(new.clone()),
                electorate: Electorate::of(Nodes::first(new.len())),
                nodes: new,
            },
            Has::Both => Place {
                list: format!("{} > {}", list(old.clone()), list(new.clone())),
                electorate: Electorate::joint(old.collect(), new.collect()),
                nodes: 0..self.nodes,
            },
        }
    }

    /// The lists of the agents, in the order of their start: agents with the old list, one of which starts
    /// late; agents with both; agents with the new one.
    pub(crate) fn generations(self) -> Vec<Has> {
        let mut all = vec![Has::Old; self.agents + 1];
        all.extend(vec![Has::Both; self.agents]);
        all.extend(vec![Has::New; self.agents]);
        all
    }

    /// Replaces one agent after the other, each when its successor is ready.
    pub(crate) async fn goes_on(
        self,
        agents: Vec<Agent>,
        mut rng: Rng,
        record: Record,
        until: Instant,
    ) {
        let (old, others) = agents.split_at(self.agents);
        let (late, others) = others.split_at(1);
        let (both, new) = others.split_at(self.agents);
        let begins = Instant::now() + Duration::from_millis(rng.u64(..8_000));
        let straggler = {
            let (late, record) = (late[0].clone(), record.clone());
            let comes = begins + RUN.mul_f64(rng.f64() * 0.6);
            let stays = Duration::from_millis(rng.u64(1_000..10_000));
            let wanted = rng.bool();
            tokio::spawn(async move {
                if wanted && comes + stays < until {
                    sleep_until(comes).await;
                    record.note("an agent with only the old list starts late");
                    late.comes();
                    sleep(stays).await;
                    record.note("it goes");
                    late.goes();
                }
            })
        };
        sleep_until(begins).await;
        let mut replaced = self
            .replace(old, both, &mut rng, &record, until, || {})
            .await;
        // Some agents start too early, before the old list is closed.
        let waits = match rng.bool() {
            true => LONGEST_TERM + Duration::from_millis(rng.u64(..6_000)),
            false => Duration::from_millis(rng.u64(..3_000)),
        };
        sleep_until((Instant::now() + waits).min(until)).await;
        // The servers refuse the straggler as long as agents have both lists.
        let none_is_left = || {
            straggler.abort();
            late[0].goes();
        };
        replaced = replaced
            && self
                .replace(both, new, &mut rng, &record, until, none_is_left)
                .await;
        record.note(match replaced {
            true => "all agents have the new list",
            false => "the list is still being changed",
        });
        // The task may have been aborted.
        let _ = straggler.await;
    }

    async fn replace(
        self,
        those: &[Agent],
        by: &[Agent],
        rng: &mut Rng,
        record: &Record,
        until: Instant,
        before_the_last_goes: impl Fn(),
    ) -> bool {
        for (n, (gone, new)) in those.iter().zip(by).enumerate() {
            record.note("an agent comes with another list");
            new.comes();
            while !new.is_dead() && !new.is_ready().await {
                if Instant::now() >= until {
                    return false;
                }
                sleep(Duration::from_millis(300)).await;
            }
            if n + 1 == those.len() {
                before_the_last_goes();
            }
            record.note("it is ready, and another goes");
            gone.goes();
            let pause = Duration::from_millis(rng.u64(..2_000));
            sleep_until((Instant::now() + pause).min(until)).await;
        }
        true
    }
}
