//! The Redis node: every operation is one Lua script, so the server runs it atomically.

mod askers;
mod changes;
mod cluster;
mod health;
mod index;
mod keys;
mod listing;
mod reach;
mod refusal;
mod script;
mod sentinel;
mod server;
mod single;
mod together;

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use election_core::{
    lease::{
        Absence, Bounds, Extend, ExtendReply, Grant, GrantReply, Incarnation, Kinds, Lease,
        LeaseNode, Listener, NodeError, Onto, Page, Probe, ProbeRequest, Reading, Refusal, Repair,
        Replaces, Resign, ResignReply, Settings, System, Unrecorded,
    },
    types::{self, Candidate, ElectionId, Kind, RequestId, Token, millis},
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use parking_lot::Mutex;
use redis::{FromRedisValue, RedisWrite, ToRedisArgs, ToSingleRedisArg, Value};

use tokio::time::Instant;

pub use askers::Askers;
use cluster::Cluster;
use health::{LastReport, Swept};
use index::Index;
use keys::Keys;
pub use reach::Names;
use reach::Reach;
use script::{Call, SCRIPTS};
use sentinel::Failover;
pub use sentinel::Sentinels;
pub use server::Server;
use single::{Expect, Link};

/// How long a report of the serving primary counts, by a majority of Sentinels or of a cluster's primaries.
const CONFIRMED_FOR: Duration = Duration::from_secs(5);
/// How often Sentinels or members are queried, and the least time between two queries.
const ASK_EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(100));
/// Stands for an unknown clock.
const NO_CLOCK: i64 = i64::MIN;
/// How many partitions are called at once when all have to be.
const AT_ONCE: usize = 64;

/// How many members the smallest Redis Cluster with replicas has.
const SMALLEST_CLUSTER: usize = 6;

/// The servers that make up one node.
#[derive(Debug, Clone)]
pub enum Deployment {
    /// A standalone server.
    Server(Server),
    /// A primary with replicas that Sentinels fail over.
    Failover(Sentinels),
    /// A Redis Cluster.
    Cluster {
        /// Members to query for the others; at least one.
        members: Vec<Server>,
        /// How many partitions elections are spread over (1 to 16384); the same for every agent.
        partitions: u16,
    },
}

impl Deployment {
    /// The node's name in logs and in `/readyz`.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Server(server) => server.name(),
            Self::Failover(sentinels) => &sentinels.master,
            Self::Cluster { members, .. } => members.first().map_or("", Server::name),
        }
    }

    /// The properties of this node on which all agents must agree.
    #[must_use]
    pub fn identity(&self) -> String {
        match self {
            Self::Server(server) => server.name().to_owned(),
            Self::Failover(sentinels) => format!("{} of its Sentinels", sentinels.master),
            Self::Cluster { partitions, .. } => {
                format!("{} in {partitions} partitions", self.name())
            }
        }
    }

    /// How much longer than the longest term a node is in quarantine after it may have lost its memory: an agent may
    /// have used the previous server for this long.
    #[must_use]
    pub fn overlap(&self) -> Duration {
        match self {
            Self::Server(_) => Duration::ZERO,
            Self::Failover(_) | Self::Cluster { .. } => CONFIRMED_FOR,
        }
    }

    /// The number of connections to the node from this many runtimes. The number of members of a cluster is unknown
    /// before the first query: it is at least the number of configured members, and of members of the smallest cluster
    /// with replicas.
    #[must_use]
    pub fn connections(&self, askers: usize) -> usize {
        match self {
            Self::Server(_) => askers,
            // A Sentinel takes one connection for queries and another for its announcements.
            Self::Failover(sentinels) => askers + 2 * sentinels.sentinels.len(),
            Self::Cluster { members, .. } => askers * members.len().max(SMALLEST_CLUSTER),
        }
    }

    fn partitions(&self) -> u16 {
        match self {
            Self::Server(_) | Self::Failover(_) => 1,
            Self::Cluster { partitions, .. } => *partitions,
        }
    }
}

/// The purpose of a node, and the nodes that it is used with.
#[derive(Debug, Clone)]
pub struct Use {
    /// The prefix of all keys.
    pub prefix: String,
    /// The list on which all agents must agree: the names of all voting nodes, in order. While agents move from one
    /// list to another, both lists, with ` > ` between them.
    pub nodes: String,
    /// The longest term that is granted.
    pub max_term: Duration,
    /// Whether a server may drop leases when its memory is full.
    pub allow_eviction: bool,
    /// The names that errors use for the settings.
    pub names: Names,
}

/// Leases on Redis.
#[derive(Debug)]
pub struct Redis {
    name: String,
    connections: Connections,
    usage: Use,
    /// The keys of each partition.
    keys: Vec<Keys>,
    settings: Settings,
    known: Mutex<LastReport>,
    /// The upper bound of how many ms the clock of each partition's server is ahead of [`Self::started`]; [`NO_CLOCK`]
    /// before the first probe.
    clocks: Vec<AtomicI64>,
    started: Instant,
    /// How long a server may take to reply to a probe.
    limit: Duration,
    /// What is known of each server's incarnation records.
    swept: Mutex<HashMap<String, Swept>>,
    /// What may be missing in the index from which listings are made.
    index: Arc<Index>,
}

/// The connections to a partition's server.
#[derive(Debug)]
enum Connections {
    Server(Link),
    Failover(Failover),
    Cluster(Cluster),
}

/// A server and the partitions that it serves.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shard {
    server: String,
    partitions: Vec<u16>,
}

impl Connections {
    async fn run<T: FromRedisValue>(&self, partition: u16, call: &Call) -> Result<T, NodeError> {
        match self {
            Self::Server(link) => link.run(call).await,
            Self::Failover(failover) => failover.run(call).await,
            Self::Cluster(cluster) => cluster.run(partition, call).await,
        }
    }

    /// Returns the servers with their partitions, and why some partitions have none.
    fn shards(&self) -> (Vec<Shard>, Option<String>) {
        let one = |server: String| {
            let shard = Shard {
                server,
                partitions: vec![0],
            };
            (vec![shard], None)
        };
        match self {
            Self::Server(link) => one(link.name().to_owned()),
            // Without a primary, a script that runs there returns the reason.
            Self::Failover(failover) => one(failover.primary().unwrap_or_default()),
            Self::Cluster(cluster) => cluster.shards(),
        }
    }

    /// The servers that scripts run on with the partitions that they serve, or why some are not known.
    fn serving(&self) -> Result<Vec<(Server, Vec<u16>)>, String> {
        match self {
            Self::Server(link) => Ok(vec![(link.server().clone(), vec![0])]),
            Self::Failover(failover) => Ok(vec![(failover.serving()?, vec![0])]),
            Self::Cluster(cluster) => cluster.serving(),
        }
    }

    fn server(&self, partition: u16) -> Option<String> {
        match self {
            Self::Server(link) => Some(link.name().to_owned()),
            Self::Failover(failover) => failover.primary(),
            Self::Cluster(cluster) => cluster.server(partition),
        }
    }
}

impl Redis {
    /// Starts connecting, and returns when the first attempt has ended, successfully or not. `limit` bounds attempts to
    /// connect and pings. Each of the askers has connections of its own.
    pub async fn start(
        deployment: Deployment,
        usage: Use,
        limit: Duration,
        settings: Settings,
        askers: Askers,
    ) -> Self {
        let name = deployment.name().to_owned();
        let keys: Vec<_> = (0..deployment.partitions())
            .map(|partition| Keys::new(&usage.prefix, partition))
            .collect();
        let longest_term = usage.max_term.max(settings.guard.unwrap_or_default());
        let index = Arc::new(Index::new(longest_term, deployment.partitions()));
        let reach = Reach {
            askers,
            limit,
            names: usage.names,
        };
        let connections = match deployment {
            Deployment::Server(server) => {
                Connections::Server(Link::start(&server, Expect::Server, reach))
            }
            Deployment::Failover(sentinels) => {
                Connections::Failover(Failover::start(sentinels, reach))
            }
            Deployment::Cluster {
                members,
                partitions,
            } => Connections::Cluster(Cluster::start(
                members,
                partitions,
                Arc::clone(&index),
                reach,
            )),
        };
        match &connections {
            Connections::Server(link) => link.attempted().await,
            Connections::Failover(failover) => failover.attempted().await,
            Connections::Cluster(cluster) => cluster.attempted().await,
        }
        Self {
            name,
            connections,
            usage,
            clocks: keys.iter().map(|_| AtomicI64::new(NO_CLOCK)).collect(),
            started: Instant::now(),
            keys,
            settings,
            known: Mutex::default(),
            limit,
            swept: Mutex::default(),
            index,
        }
    }

    /// The partition of an election, and its keys.
    fn keys(&self, election: &ElectionId) -> (u16, &Keys) {
        // There are no more partitions than slots.
        let partition = match u16::try_from(self.keys.len()) {
            Ok(2..) => cluster::partition(election.path(), self.keys.len() as u16),
            _ => 0,
        };
        (partition, &self.keys[usize::from(partition)])
    }

    /// Converts an instant to the clock of the partition's server, in ms since the epoch. The result is late by at most
    /// the duration of the probe that read the clock. Returns [`None`] before the first probe.
    fn by_its_clock(&self, partition: u16, instant: Instant) -> Option<i64> {
        let ahead = self.clocks[usize::from(partition)].load(Ordering::Relaxed);
        let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 4);
        let after = instant.saturating_duration_since(self.started);
        let before = self.started.saturating_duration_since(instant);
        (ahead != NO_CLOCK).then(|| ahead + ms(after) - ms(before))
    }

    /// Whether a server without a lease would know of one; [`None`] if the reply is something else.
    fn absence(&self, partition: u16, word: &str) -> Option<Absence> {
        match word {
            "missing" => Some(Absence::Known),
            // Where no agent wants a guard, there are no records.
            "unmarked" if self.settings.guard.is_none() => Some(Absence::Known),
            "unmarked" => {
                self.doubt(partition);
                Some(Absence::Unrecorded)
            }
            "quarantined" => Some(Absence::NotKnown),
            _ => None,
        }
    }

    fn retention_ms(&self) -> u64 {
        millis(self.settings.retention)
    }

    /// Runs a script and returns its reply.
    async fn reply(&self, partition: u16, call: &Call) -> Result<String, NodeError> {
        let reply: Value = self.connections.run(partition, call).await?;
        // Data that was written by hand need not be text: the connection is not at fault.
        let text = match reply {
            Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
            reply => redis::from_redis_value::<Option<String>>(reply)
                .map(Option::unwrap_or_default)
                .ok(),
        };
        text.ok_or_else(|| NodeError::unknown(format!("{}: a reply is no text", self.name)))
    }

    /// Parses the reply of read.lua.
    fn reading(&self, partition: u16, reply: &str) -> Result<Reading, NodeError> {
        let known = match word(reply) {
            ("lease", held) => lease(held).map(Reading::Held),
            (absent, mark) => self
                .absence(partition, absent)
                .map(|absence| match absence {
                    Absence::Known => Reading::Vacant(token(mark)),
                    Absence::NotKnown => Reading::NotKnown,
                    Absence::Unrecorded => Reading::Unrecorded,
                }),
        };
        known.ok_or_else(|| self.unexpected("read", reply))
    }

    /// Parses the reply of extend.lua.
    fn extended(
        &self,
        partition: u16,
        election: &ElectionId,
        reply: &str,
    ) -> Result<ExtendReply, NodeError> {
        let known = match word(reply) {
            ("renewed", renewed) => token(renewed).map(ExtendReply::Renewed),
            ("held", "") => Some(ExtendReply::Refused(Refusal::Held)),
            ("stale", "") => Some(ExtendReply::Refused(Refusal::Stale)),
            ("behind", "") => Some(ExtendReply::Behind),
            (absent, _) => self
                .absence(partition, absent)
                .map(|absence| ExtendReply::Refused(absence.into())),
        };
        if let Some(ExtendReply::Renewed(_)) = known {
            self.index.extended(partition, election);
        }
        known.ok_or_else(|| self.unexpected("extend", reply))
    }

    fn unexpected(&self, script: &str, reply: impl fmt::Debug) -> NodeError {
        NodeError::unknown(format!(
            "{}: the {script} script answered {reply:?}, which this version does not know",
            self.name
        ))
    }
}

/// An optional argument: empty when it is missing.
struct OrEmpty<T>(Option<T>);

impl<T: ToSingleRedisArg> ToRedisArgs for OrEmpty<T> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        match &self.0 {
            Some(argument) => argument.write_redis_args(out),
            None => out.write_arg(b""),
        }
    }
}

/// Waits for all futures, of which only a limited number run at once. Fails with the first that fails.
async fn at_once<T>(
    all: Vec<impl Future<Output = Result<T, NodeError>>>,
) -> Result<Vec<T>, NodeError> {
    stream::iter(all)
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

/// Adds the arguments that only unusual grants need.
fn more_of_grant(call: Call, grant: &Grant, replaces: &Replaces) -> Call {
    let (replaces, leader, token) = match replaces {
        Replaces::Nothing => ("vacant", "", None),
        Replaces::Own => ("own", "", None),
        Replaces::Of(leader, token) => ("leader", leader.as_str(), *token),
        Replaces::Anything => ("anyone", "", None),
        Replaces::AnyLeader => ("any leader", "", None),
        Replaces::NothingHeld => ("nobody", "", None),
    };
    call.arg(grant.value.as_str())
        .arg(grant.request_id.as_ref().map_or("", RequestId::as_str))
        .arg(if grant.repeat { "1" } else { "0" })
        .arg(replaces)
        .arg(leader)
        .arg(optional(token))
}

fn optional(token: Option<Token>) -> u64 {
    token.map_or(0, Token::get)
}

/// Parses a lease from the lines that the scripts' `lines` function returns.
fn lease(lines: &str) -> Option<Lease> {
    let mut rest = lines;
    let mut line = || {
        let (line, next) = split_line(rest);
        rest = next?;
        Some(line)
    };
    Some(Lease {
        token: token(line()?)?,
        elected_at: line()?.parse().ok()?,
        remaining: Duration::from_millis(line()?.parse().ok()?),
        leader: Candidate::new("leader", line()?).ok()?,
        value: types::Value::new(rest).ok()?,
    })
}

/// Returns a reply's first line, and the rest.
fn word(reply: &str) -> (&str, &str) {
    let (word, rest) = split_line(reply);
    (word, rest.unwrap_or_default())
}

/// Returns the first line, and the rest after its end, if it has one. Lines are short: a search byte by byte takes
/// fewer instructions than [`str::split_once`], which is made for long ones.
fn split_line(text: &str) -> (&str, Option<&str>) {
    match text.bytes().position(|byte| byte == b'\n') {
        Some(end) => (&text[..end], Some(&text[end + 1..])),
        None => (text, None),
    }
}

fn token(text: &str) -> Option<Token> {
    Token::new(text.parse().ok()?)
}

#[async_trait]
impl LeaseNode for Redis {
    fn name(&self) -> &str {
        &self.name
    }

    fn role(&self) -> &'static str {
        match self.connections {
            Connections::Server(_) => "redis",
            Connections::Failover(_) => "sentinel",
            Connections::Cluster(_) => "cluster",
        }
    }

    fn system(&self) -> System {
        System::Scripts {
            database: "redis",
            command: "EVALSHA",
            suffix: ".lua",
        }
    }

    async fn grant(&self, grant: &Grant) -> Result<GrantReply, NodeError> {
        let (partition, keys) = self.keys(&grant.election);
        let Some(not_after) = self.by_its_clock(partition, grant.not_after) else {
            return Ok(GrantReply::Unregistered);
        };
        let keys_of_grant = [
            keys.lease(&grant.election),
            keys.high_water_mark(&grant.election),
            (&keys.incarnation_record).into(),
            (&keys.index).into(),
            (&keys.expiry).into(),
        ];
        let call = Call::new(&SCRIPTS.grant, keys_of_grant)
            .arg(grant.election.path())
            .arg(grant.candidate.as_str())
            .arg(grant.token.get())
            .arg(grant.term.millis())
            .arg(grant.elected_at)
            .arg(self.retention_ms())
            .arg(OrEmpty(grant.bounds.guard.map(millis)))
            .arg(grant.grant_id)
            .arg(millis(grant.bounds.vote))
            .arg(not_after);
        let usual = grant.value.as_str().is_empty() && grant.request_id.is_none();
        let call = match &grant.replaces {
            Replaces::Own if usual => call,
            replaces => more_of_grant(call, grant, replaces),
        };
        let reply = self.reply(partition, &call).await?;
        let (word, rest) = word(&reply);
        let known = match word {
            "granted" => token(rest).map(GrantReply::Granted),
            "held" => lease(rest).map(GrantReply::Held),
            "mismatch" => Some(GrantReply::TokenMismatch),
            "vacant" => Some(GrantReply::Vacant),
            "used" => Some(GrantReply::Used),
            "late" => Some(GrantReply::Late),
            "unregistered" => {
                self.doubt(partition);
                Some(GrantReply::Unregistered)
            }
            "stale" => token(rest).map(GrantReply::Stale),
            "unmarked" => {
                self.doubt(partition);
                Some(GrantReply::Unrecorded)
            }
            "guarded" => rest
                .parse()
                .ok()
                .map(|ms| GrantReply::Guarded(Duration::from_millis(ms))),
            _ => None,
        };
        known.ok_or_else(|| self.unexpected("grant", &reply))
    }

    async fn extend(&self, extend: &Extend) -> Result<ExtendReply, NodeError> {
        let (partition, keys) = self.keys(&extend.election);
        let keys_of_extension = [
            keys.lease(&extend.election),
            keys.high_water_mark(&extend.election),
        ];
        let call = Call::new(&SCRIPTS.extend, keys_of_extension)
            .arg(extend.leader.as_str())
            .arg(optional(extend.token))
            .arg(extend.term.millis())
            .arg(self.retention_ms());
        let reply = self.reply(partition, &call).await?;
        self.extended(partition, &extend.election, &reply)
    }

    async fn extend_many(&self, extends: &[Arc<Extend>]) -> Vec<Result<ExtendReply, NodeError>> {
        self.together(extends).await
    }

    async fn repair(&self, repair: &Repair) -> Result<bool, NodeError> {
        let (partition, keys) = self.keys(&repair.election);
        let keys_of_lease = [
            keys.lease(&repair.election),
            keys.high_water_mark(&repair.election),
            (&keys.index).into(),
            (&keys.expiry).into(),
            (&keys.incarnation_record).into(),
        ];
        let Some(not_after) = self.by_its_clock(partition, repair.not_after) else {
            return Ok(false);
        };
        let call = Call::new(&SCRIPTS.repair, keys_of_lease)
            .arg(repair.election.path())
            .arg(repair.lease.leader.as_str())
            .arg(repair.lease.token.get())
            .arg(repair.term.millis())
            .arg(repair.lease.value.as_str())
            .arg(repair.lease.elected_at)
            .arg(self.retention_ms())
            .arg(&repair.incarnation)
            .arg(match repair.onto {
                Onto::Own => "own",
                Onto::Vacant => "vacant",
                Onto::Unacknowledged => "unacknowledged",
            })
            .arg(OrEmpty(repair.bounds.guard.map(millis)))
            .arg(millis(repair.bounds.vote))
            .arg(not_after);
        match &*self.reply(partition, &call).await? {
            "1" => Ok(true),
            "0" => Ok(false),
            reply => Err(self.unexpected("heal", reply)),
        }
    }

    async fn resign(&self, resign: &Resign) -> Result<ResignReply, NodeError> {
        let (partition, keys) = self.keys(&resign.election);
        let keys_of_lease = [
            keys.lease(&resign.election),
            (&keys.index).into(),
            (&keys.expiry).into(),
        ];
        let call = Call::new(&SCRIPTS.resign, keys_of_lease)
            .arg(resign.election.path())
            .arg(resign.leader.as_str())
            .arg(optional(resign.token))
            .arg(self.retention_ms());
        match &*self.reply(partition, &call).await? {
            "resigned" => Ok(ResignReply::Resigned),
            "held" => Ok(ResignReply::Refused(Refusal::Held)),
            "stale" => Ok(ResignReply::Refused(Refusal::Stale)),
            reply => match self.absence(partition, word(reply).0) {
                Some(absence) => Ok(ResignReply::Refused(absence.into())),
                None => Err(self.unexpected("resign", reply)),
            },
        }
    }

    async fn roll_back(&self, grant: &Grant) -> Result<(), NodeError> {
        let (partition, keys) = self.keys(&grant.election);
        let keys_of_lease = [
            keys.lease(&grant.election),
            keys.high_water_mark(&grant.election),
            (&keys.index).into(),
            (&keys.expiry).into(),
        ];
        // By its server's clock the grant may arrive later than by this one, by as much as a probe takes.
        let left = grant.not_after.saturating_duration_since(Instant::now());
        let call = Call::new(&SCRIPTS.roll_back, keys_of_lease)
            .arg(grant.election.path())
            .arg(grant.grant_id)
            .arg(grant.token.get())
            .arg(millis(left + 2 * self.limit))
            .arg(grant.request_id.as_ref().map_or("", RequestId::as_str));
        self.reply(partition, &call).await.map(drop)
    }

    async fn read(&self, election: &ElectionId) -> Result<Reading, NodeError> {
        let (partition, keys) = self.keys(election);
        let call = Call::new(&SCRIPTS.read, [keys.lease(election)]);
        let reply = self.reply(partition, &call).await?;
        self.reading(partition, &reply)
    }

    async fn read_many(&self, elections: &[ElectionId]) -> Vec<Result<Reading, NodeError>> {
        self.together(elections).await
    }

    async fn listen(&self, listener: &dyn Listener) -> NodeError {
        changes::listen(self, listener).await
    }

    async fn list(
        &self,
        kind: Option<&Kind>,
        after: Option<&ElectionId>,
        limit: usize,
    ) -> Result<Page, NodeError> {
        self.list_partitions(kind, after, limit).await
    }

    async fn kinds(&self, after: Option<&Kind>, limit: usize) -> Result<Kinds, NodeError> {
        self.kinds_of_partitions(after, limit).await
    }

    async fn mark(
        &self,
        unrecorded: &[Unrecorded],
        wait: Duration,
        bounds: Bounds,
    ) -> Result<usize, NodeError> {
        self.write_incarnation_records(unrecorded, wait, bounds)
            .await
    }

    async fn probe(&self, request: ProbeRequest) -> Result<Probe, NodeError> {
        self.check_health(request).await
    }

    fn incarnation(&self, election: &ElectionId) -> Option<Incarnation> {
        self.incarnation_of(self.keys(election).0)
    }
}
