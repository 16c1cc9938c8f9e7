//! A Redis Cluster: three primaries, each with a replica.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use redis::{Cmd, cmd};

use super::{Redis, eventually_within, redis::value_of};

const SHARDS: usize = 3;
const SLOTS: u16 = 16_384;
const SETTLING: Duration = Duration::from_secs(30);

/// The six servers of one cluster; all are killed when dropped.
pub struct Cluster {
    /// The first three are the primaries until one fails.
    pub nodes: Vec<Redis>,
}

/// A node's view of another node or of itself.
struct Seen {
    id: String,
    /// The id of the primary that it replicates.
    follows: String,
    port: u16,
    primary: bool,
    failed: bool,
    epoch: u64,
    slots: Vec<(u16, u16)>,
}

impl Seen {
    /// Parses a line of `CLUSTER NODES`.
    fn parse(line: &str) -> Option<Self> {
        let words: Vec<_> = line.split(' ').collect();
        let address = words.get(1)?.split('@').next()?;
        let flags: Vec<_> = words.get(2)?.split(',').collect();
        // Moving slots are in brackets.
        let slots = words.iter().skip(8).filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some((first.parse().ok()?, last.parse().ok()?))
        });
        Some(Self {
            id: (*words.first()?).to_owned(),
            follows: (*words.get(3)?).to_owned(),
            port: address.rsplit(':').next()?.parse().ok()?,
            primary: flags.contains(&"master"),
            failed: flags.iter().any(|flag| flag.starts_with("fail")),
            epoch: words.get(6)?.parse().ok()?,
            slots: slots.collect(),
        })
    }

    fn serves(&self, slot: u16) -> bool {
        self.primary
            && !self.failed
            && self
                .slots
                .iter()
                .any(|(first, last)| (*first..=*last).contains(&slot))
    }
}

impl Cluster {
    /// Starts a cluster and waits until it has settled.
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// Starts a cluster of servers with these additional arguments.
    pub async fn with(arguments: &[&str]) -> Self {
        let common = [
            "--cluster-node-timeout",
            "1500",
            "--repl-diskless-sync-delay",
            "0",
        ];
        let arguments = [&common[..], arguments].concat();
        let mut nodes = Vec::new();
        for _ in 0..2 * SHARDS {
            nodes.push(Redis::member(&arguments).await);
        }
        let cluster = Self { nodes };
        cluster.join().await;
        cluster.settled().await;
        cluster
    }

    /// Joins independent servers into a cluster.
    async fn join(&self) {
        for (n, node) in self.nodes.iter().enumerate() {
            // Different initial epochs avoid a later conflict.
            told(node, cluster("SET-CONFIG-EPOCH").arg(n + 1)).await;
        }
        let shard = SLOTS / u16::try_from(SHARDS).expect("few");
        for (n, primary) in (0..).zip(&self.nodes[..SHARDS]) {
            let last = if usize::from(n) + 1 == SHARDS {
                SLOTS
            } else {
                (n + 1) * shard
            };
            told(
                primary,
                cluster("ADDSLOTSRANGE").arg(n * shard).arg(last - 1),
            )
            .await;
        }
        for (one, other) in pairs(&self.nodes) {
            // Every node meets every other: gossip alone would take longer.
            let mut meet = cluster("MEET");
            meet.arg("127.0.0.1").arg(other.port()).arg(other.bus());
            told(one, &meet).await;
        }
        for (primary, replica) in self.nodes.iter().zip(&self.nodes[SHARDS..]) {
            let id: String = primary.ask(&cluster("MYID")).await.expect("an id");
            eventually_within(SETTLING, "a replica has met its primary", async || {
                let replicate = replica.ask::<()>(cluster("REPLICATE").arg(&id)).await;
                replicate.ok()
            })
            .await;
        }
    }

    /// Returns one URL that names all nodes.
    pub fn url(&self) -> String {
        let others: Vec<_> = self.nodes[1..]
            .iter()
            .map(|node| format!("addr=127.0.0.1:{}", node.port()))
            .collect();
        format!("{}?{}", self.nodes[0].url(), others.join("&"))
    }

    /// Waits until every running node knows every other, has all slots served, and follows its primary if
    /// it is a replica.
    pub async fn settled(&self) {
        eventually_within(SETTLING, "the cluster is whole", async || {
            let running: Vec<_> = self.nodes.iter().filter(|node| node.is_running()).collect();
            for node in &running {
                let info: String = node.ask(&cluster("INFO")).await.ok()?;
                let healthy = self.seen_by(node).await?;
                let healthy = healthy.iter().filter(|seen| !seen.failed).count();
                if value_of(&info, "cluster_state")? != "ok"
                    || value_of(&info, "cluster_slots_ok")? != SLOTS.to_string()
                    || healthy < running.len()
                {
                    return None;
                }
                let role = node.info("replication", "role").await?;
                if role == "slave" && node.info("replication", "master_link_status").await? != "up"
                {
                    return None;
                }
            }
            Some(())
        })
        .await;
    }

    /// Returns the primary of a slot according to the nodes that reply; if they name several, the newest one. `None`
    /// while the slot's primary is known to have failed.
    pub async fn primary_of(&self, slot: u16) -> Option<usize> {
        let mut newest: Option<Seen> = None;
        for node in self.nodes.iter().filter(|node| node.is_running()) {
            let all = self.seen_by(node).await.unwrap_or_default();
            for seen in all.into_iter().filter(|seen| seen.serves(slot)) {
                if newest
                    .as_ref()
                    .is_none_or(|newest| seen.epoch > newest.epoch)
                {
                    newest = Some(seen);
                }
            }
        }
        self.at(newest?.port)
    }

    /// Returns the primaries that serve slots.
    pub async fn primaries(&self) -> Vec<usize> {
        let mut primaries = Vec::new();
        for (n, node) in self.nodes.iter().enumerate() {
            let seen = match node.is_running() {
                true => self.seen_by(node).await.unwrap_or_default(),
                false => Vec::new(),
            };
            let own = seen.iter().find(|seen| seen.port == node.port());
            if own.is_some_and(|own| own.primary && !own.slots.is_empty()) {
                primaries.push(n);
            }
        }
        primaries
    }

    /// Returns a replica of a primary, as the primary reports it.
    pub async fn replica_of(&self, primary: usize) -> Option<usize> {
        let node = &self.nodes[primary];
        let seen = self.seen_by(node).await?;
        let own = seen.iter().find(|seen| seen.port == node.port())?;
        let replica = seen
            .iter()
            .find(|seen| seen.follows == own.id && !seen.failed)?;
        self.at(replica.port)
    }

    /// Returns the slots of all keys that match a pattern.
    pub async fn slots_with(&self, pattern: &str) -> BTreeSet<u16> {
        let mut slots = BTreeSet::new();
        for primary in self.primaries().await {
            let node = &self.nodes[primary];
            let keys: Vec<String> = node.ask(cmd("KEYS").arg(pattern)).await.expect("keys");
            for key in keys {
                let slot = node.ask(cluster("KEYSLOT").arg(key)).await;
                slots.insert(slot.expect("a slot"));
            }
        }
        slots
    }

    /// Waits until another node than this is the primary of a slot and serves it. Returns that node, and when this was
    /// observed.
    pub async fn failed_over_from(&self, node: usize, slot: u16) -> (usize, Instant) {
        eventually_within(SETTLING, "a replica is promoted", async || {
            let primary = self.primary_of(slot).await.filter(|other| *other != node)?;
            let state: String = self.nodes[primary].ask(&cluster("INFO")).await.ok()?;
            (value_of(&state, "cluster_state")? == "ok").then(|| (primary, Instant::now()))
        })
        .await
    }

    /// Moves a slot and its keys to another primary, while the cluster serves.
    pub async fn move_slot(&self, slot: u16, to: usize) {
        let from = self.primary_of(slot).await.expect("a primary");
        let moving = self.open_slot(slot, from, to).await;
        loop {
            let keys = moving.keys().await;
            if keys.is_empty() {
                break;
            }
            moving.migrate(&keys).await;
        }
        moving.give().await;
    }

    /// Begins to move a slot from one primary to another. Moves no keys yet.
    pub async fn open_slot(&self, slot: u16, from: usize, to: usize) -> MovingSlot<'_> {
        assert_ne!(from, to, "it is there");
        let (source, target) = (&self.nodes[from], &self.nodes[to]);
        let id = |node| async move { Redis::ask::<String>(node, &cluster("MYID")).await };
        let moving = MovingSlot {
            cluster: self,
            slot,
            source,
            target,
            target_id: id(target).await.expect("an id"),
        };
        let source_id = id(source).await.expect("an id");
        told(target, moving.set("IMPORTING").arg(&source_id)).await;
        told(source, moving.set("MIGRATING").arg(&moving.target_id)).await;
        moving
    }

    /// Returns all members as this one reports them, if it replies.
    async fn seen_by(&self, node: &Redis) -> Option<Vec<Seen>> {
        let text: String = node.ask(&cluster("NODES")).await.ok()?;
        Some(text.lines().filter_map(Seen::parse).collect())
    }

    fn at(&self, port: u16) -> Option<usize> {
        self.nodes.iter().position(|node| node.port() == port)
    }
}

/// A slot that moves from one primary to another.
pub struct MovingSlot<'a> {
    cluster: &'a Cluster,
    slot: u16,
    source: &'a Redis,
    target: &'a Redis,
    target_id: String,
}

impl MovingSlot<'_> {
    fn set(&self, how: &str) -> Cmd {
        let mut set = cluster("SETSLOT");
        set.arg(self.slot).arg(how);
        set
    }

    /// Returns some of the keys that have not moved; empty when all have.
    pub async fn keys(&self) -> Vec<String> {
        let mut keys = cluster("GETKEYSINSLOT");
        keys.arg(self.slot).arg(100);
        self.source.ask(&keys).await.expect("keys")
    }

    /// Moves these keys.
    pub async fn migrate(&self, keys: &[String]) {
        let mut migrate = cmd("MIGRATE");
        migrate.arg("127.0.0.1").arg(self.target.port());
        migrate.arg("").arg(0).arg(5_000);
        migrate.arg("REPLACE").arg("KEYS").arg(keys);
        told(self.source, &migrate).await;
    }

    /// Sends a command to the importing primary.
    pub async fn ask_importing(&self, command: &Cmd) -> redis::Value {
        let mut connection = self.target.connect().await;
        let mut both = redis::pipe();
        both.cmd("ASKING").ignore().add_command(command.clone());
        let (reply,) = both.query_async(&mut connection).await.expect("an answer");
        reply
    }

    /// Gives the slot to the importing primary, which has all keys.
    pub async fn give(self) {
        // The new owner first, so that no node redirects clients to one that does not own the slot yet.
        for node in [self.target, self.source] {
            told(node, self.set("NODE").arg(&self.target_id)).await;
        }
        eventually_within(SETTLING, "all nodes know where the slot is", async || {
            let nodes = self.cluster.nodes.iter();
            for node in nodes.filter(|node| node.is_running()) {
                let seen = self.cluster.seen_by(node).await?;
                let owner = seen.iter().find(|seen| seen.serves(self.slot))?;
                if owner.id != self.target_id {
                    return None;
                }
            }
            Some(())
        })
        .await;
    }

    /// Cancels the move of the slot. Keys that have moved stay moved.
    pub async fn give_up(self) {
        for node in [self.source, self.target] {
            told(node, &self.set("STABLE")).await;
        }
    }
}

fn cluster(what: &str) -> Cmd {
    let mut command = cmd("CLUSTER");
    command.arg(what);
    command
}

async fn told(node: &Redis, command: &Cmd) {
    let answer = node.ask::<redis::Value>(command).await;
    answer.expect("the node executes the command");
}

fn pairs(nodes: &[Redis]) -> impl Iterator<Item = (&Redis, &Redis)> {
    (0..nodes.len())
        .flat_map(move |one| (one + 1..nodes.len()).map(move |other| (&nodes[one], &nodes[other])))
}
