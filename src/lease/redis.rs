//! The Redis node: every operation is one Lua script, so the server runs it atomically.

mod cluster;
mod health;
mod keys;
mod script;
mod sentinel;
mod server;
mod single;

use std::{collections::HashMap, fmt, sync::Mutex, time::Duration};

use async_trait::async_trait;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use redis::{FromRedisValue, RedisWrite, ToRedisArgs, ToSingleRedisArg};

use super::{
    Extend, ExtendReply, Grant, GrantReply, Heal, LIST_EXAMINES, Lease, LeaseNode, NodeError, Over,
    Page, Probe, Resign, ResignReply, Settings, Unmarked, guard::LongestGuard, merge::merge,
};
use crate::{
    election::types::{Candidate, ElectionId, Kind, RequestId, Token, Value, millis},
    workers::Workers,
};
use cluster::Cluster;
use health::{Known, Swept};
use keys::Keys;
use script::{Call, SCRIPTS};
use sentinel::Failover;
pub use sentinel::Sentinels;
pub use server::Server;
use single::{Expect, Link};

/// How long the word of a majority counts, of Sentinels or of a cluster's primaries, on who serves.
const CONFIRMED_FOR: Duration = Duration::from_secs(5);
/// How often they are asked, and the least time between two questions.
const ASK_EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(100));
/// How many partitions are asked at once when all have to be.
const AT_ONCE: usize = 64;

/// What makes up one node.
#[derive(Debug, Clone)]
pub enum Deployment {
    /// A server of its own.
    Server(Server),
    /// A primary with replicas that Sentinels fail over.
    Failover(Sentinels),
    /// A Redis Cluster.
    Cluster {
        /// Members to ask for the others; at least one.
        members: Vec<Server>,
        /// How many partitions elections are spread over (1 to 16384); the same for every agent.
        partitions: u16,
    },
}

impl Deployment {
    /// What logs and `/readyz` call it.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Server(server) => server.name(),
            Self::Failover(sentinels) => &sentinels.master,
            Self::Cluster { members, .. } => members.first().map_or("", Server::name),
        }
    }

    /// What all agents have to agree on about this node.
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

    /// How much longer than the longest term a node abstains that may have lost its memory: an agent may
    /// have used the server before for so long.
    #[must_use]
    pub fn overlap(&self) -> Duration {
        match self {
            Self::Server(_) => Duration::ZERO,
            Self::Failover(_) | Self::Cluster { .. } => CONFIRMED_FOR,
        }
    }

    fn partitions(&self) -> u16 {
        match self {
            Self::Server(_) | Self::Failover(_) => 1,
            Self::Cluster { partitions, .. } => *partitions,
        }
    }
}

/// What a node is used for, and with which others.
#[derive(Debug, Clone)]
pub struct Use {
    /// What all keys begin with.
    pub prefix: String,
    /// What all agents must agree on: the names of all nodes that vote, in order.
    pub nodes: String,
    /// The longest term that is granted.
    pub max_term: Duration,
    /// Whether a server may drop leases when its memory is full.
    pub allow_eviction: bool,
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
    longest_guard: LongestGuard,
    known: Mutex<Known>,
    /// How long a server may take to say how it does.
    limit: Duration,
    /// What is known of each server's markers.
    swept: Mutex<HashMap<String, Swept>>,
}

/// The ways to a partition's server.
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

    /// The servers with their partitions, and why some partitions have none.
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
            // Without a primary the script that is run there says why.
            Self::Failover(failover) => one(failover.primary().unwrap_or_default()),
            Self::Cluster(cluster) => cluster.shards(),
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
    /// Starts connecting and returns when the first attempt has ended, well or not; `limit` bounds
    /// attempts to connect and pings. Each worker has connections of its own.
    pub async fn start(
        deployment: Deployment,
        usage: Use,
        limit: Duration,
        settings: Settings,
        workers: &Workers,
    ) -> Self {
        let name = deployment.name().to_owned();
        let keys = (0..deployment.partitions())
            .map(|partition| Keys::new(&usage.prefix, partition))
            .collect();
        let connections = match deployment {
            Deployment::Server(server) => {
                Connections::Server(Link::start(&server, Expect::Server, limit, workers))
            }
            Deployment::Failover(sentinels) => {
                Connections::Failover(Failover::start(sentinels, limit, workers.clone()))
            }
            Deployment::Cluster {
                members,
                partitions,
            } => Connections::Cluster(Cluster::start(members, partitions, limit, workers.clone())),
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
            keys,
            settings,
            known: Mutex::default(),
            limit,
            longest_guard: LongestGuard::new(settings.guard.unwrap_or_default()),
            swept: Mutex::default(),
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

    /// How long the node abstains that may have lost its memory, in ms: as long as the agent wants that has
    /// the longest terms.
    fn guard_arg(&self) -> OrEmpty<u64> {
        let guard = self.settings.guard;
        OrEmpty(guard.map(|_| millis(self.longest_guard.get())))
    }

    fn retention_ms(&self) -> u64 {
        millis(self.settings.retention)
    }

    /// Runs a script and gives its reply.
    async fn reply(&self, partition: u16, call: &Call) -> Result<String, NodeError> {
        let reply: Option<String> = self.connections.run(partition, call).await?;
        Ok(reply.unwrap_or_default())
    }

    fn unexpected(&self, script: &str, reply: impl fmt::Debug) -> NodeError {
        NodeError::unknown(format!(
            "{}: the {script} script answered {reply:?}, which this version does not know",
            self.name
        ))
    }
}

/// An argument that may be missing: an empty one then.
struct OrEmpty<T>(Option<T>);

impl<T: ToSingleRedisArg> ToRedisArgs for OrEmpty<T> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        match &self.0 {
            Some(argument) => argument.write_redis_args(out),
            None => out.write_arg(b""),
        }
    }
}

/// Waits for all, of which not too many are under way at once; fails with the first that fails.
async fn at_once<T>(
    all: Vec<impl Future<Output = Result<T, NodeError>>>,
) -> Result<Vec<T>, NodeError> {
    stream::iter(all)
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

/// What only unusual grants need.
fn more_of_grant(call: Call, grant: &Grant, over: &Over) -> Call {
    let (over, leader, token) = match over {
        Over::Vacant => ("vacant", "", None),
        Over::Own => ("own", "", None),
        Over::Leader(leader, token) => ("leader", leader.as_str(), *token),
        Over::Anyone => ("anyone", "", None),
    };
    call.arg(grant.value.as_str())
        .arg(grant.request_id.as_ref().map_or("", RequestId::as_str))
        .arg(if grant.repeat { "1" } else { "0" })
        .arg(over)
        .arg(leader)
        .arg(optional(token))
}

fn optional(token: Option<Token>) -> u64 {
    token.map_or(0, Token::get)
}

/// A lease from the lines that the scripts' `lines` gives.
fn lease(lines: &str) -> Option<Lease> {
    let mut lines = lines.splitn(5, '\n');
    let mut line = || lines.next();
    Some(Lease {
        token: token(line()?)?,
        elected_at: line()?.parse().ok()?,
        remaining: Duration::from_millis(line()?.parse().ok()?),
        leader: Candidate::new("leader", line()?).ok()?,
        value: Value::new(line()?).ok()?,
    })
}

/// A reply's first line, and what follows it.
fn word(reply: &str) -> (&str, &str) {
    reply.split_once('\n').unwrap_or((reply, ""))
}

fn token(text: &str) -> Option<Token> {
    Token::new(text.parse().ok()?)
}

#[async_trait]
impl LeaseNode for Redis {
    fn name(&self) -> &str {
        &self.name
    }

    async fn grant(&self, grant: &Grant) -> Result<GrantReply, NodeError> {
        let (partition, keys) = self.keys(&grant.election);
        let keys_of_grant = [
            keys.lease(&grant.election),
            keys.floor(&grant.election),
            (&keys.marker).into(),
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
            .arg(self.guard_arg())
            .arg(grant.attempt);
        let usual = grant.value.as_str().is_empty() && grant.request_id.is_none();
        let call = match &grant.over {
            Over::Own if usual => call,
            over => more_of_grant(call, grant, over),
        };
        let reply = self.reply(partition, &call).await?;
        let (word, rest) = word(&reply);
        let known = match word {
            "granted" => token(rest).map(GrantReply::Granted),
            "held" => lease(rest).map(GrantReply::Held),
            "mismatch" => Some(GrantReply::TokenMismatch),
            "stale" => token(rest).map(GrantReply::Stale),
            "unmarked" => {
                self.doubt(partition);
                Some(GrantReply::Unmarked)
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
        let keys_of_extension = [keys.lease(&extend.election), keys.floor(&extend.election)];
        let call = Call::new(&SCRIPTS.extend, keys_of_extension)
            .arg(extend.leader.as_str())
            .arg(optional(extend.token))
            .arg(extend.term.millis())
            .arg(self.retention_ms());
        let reply = self.reply(partition, &call).await?;
        let known = match word(&reply) {
            ("renewed", renewed) => token(renewed).map(ExtendReply::Renewed),
            ("missing", "") => Some(ExtendReply::Missing),
            ("held", "") => Some(ExtendReply::Held),
            ("stale", "") => Some(ExtendReply::Stale),
            ("behind", "") => Some(ExtendReply::Behind),
            _ => None,
        };
        known.ok_or_else(|| self.unexpected("extend", &reply))
    }

    async fn heal(&self, heal: &Heal) -> Result<bool, NodeError> {
        let (partition, keys) = self.keys(&heal.election);
        let keys_of_lease = [
            keys.lease(&heal.election),
            keys.floor(&heal.election),
            (&keys.index).into(),
            (&keys.expiry).into(),
            (&keys.marker).into(),
        ];
        let call = Call::new(&SCRIPTS.heal, keys_of_lease)
            .arg(heal.election.path())
            .arg(heal.lease.leader.as_str())
            .arg(heal.lease.token.get())
            .arg(heal.term.millis())
            .arg(heal.lease.value.as_str())
            .arg(heal.lease.elected_at)
            .arg(self.retention_ms())
            .arg(&heal.run)
            .arg(if heal.existing { "1" } else { "0" })
            .arg(self.guard_arg());
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
            .arg(optional(resign.token));
        match &*self.reply(partition, &call).await? {
            "resigned" => Ok(ResignReply::Resigned),
            "missing" => Ok(ResignReply::Missing),
            "held" => Ok(ResignReply::Held),
            "stale" => Ok(ResignReply::Stale),
            reply => Err(self.unexpected("resign", reply)),
        }
    }

    async fn withdraw(&self, grant: &Grant) -> Result<(), NodeError> {
        let (partition, keys) = self.keys(&grant.election);
        let keys_of_lease = [
            keys.lease(&grant.election),
            keys.floor(&grant.election),
            (&keys.index).into(),
            (&keys.expiry).into(),
        ];
        let call = Call::new(&SCRIPTS.withdraw, keys_of_lease)
            .arg(grant.election.path())
            .arg(grant.attempt)
            .arg(grant.token.get())
            .arg(self.retention_ms());
        self.reply(partition, &call).await.map(drop)
    }

    async fn read(&self, election: &ElectionId) -> Result<Option<Lease>, NodeError> {
        let (partition, keys) = self.keys(election);
        let call = Call::new(&SCRIPTS.read, [keys.lease(election)]);
        let reply = self.reply(partition, &call).await?;
        if reply.is_empty() {
            return Ok(None);
        }
        lease(&reply)
            .map(Some)
            .ok_or_else(|| self.unexpected("read", &reply))
    }

    async fn list(
        &self,
        kind: &Kind,
        after: Option<&ElectionId>,
        limit: usize,
    ) -> Result<Page, NodeError> {
        let partitions = self.keys.len();
        // Elections spread evenly, so a few of each partition make up a page.
        let few = (8 * limit).div_ceil(partitions).max(4).min(limit);
        let asked = (0..).zip(&self.keys);
        let asked =
            asked.map(|(partition, keys)| self.list_partition(partition, keys, kind, after, few));
        let pages = at_once(asked.collect()).await?;
        // An election is in one partition only.
        Ok(merge(&pages, 1, limit).0)
    }

    async fn mark(&self, unmarked: &[Unmarked], wait: Duration) -> Result<usize, NodeError> {
        self.write_markers(unmarked, wait).await
    }

    async fn probe(&self) -> Result<Probe, NodeError> {
        self.look_after().await
    }

    fn settled_run(&self, election: &ElectionId, vote: Duration) -> Option<String> {
        self.settled(self.keys(election).0, vote)
    }
}

impl Redis {
    async fn list_partition(
        &self,
        partition: u16,
        keys: &Keys,
        kind: &Kind,
        after: Option<&ElectionId>,
        limit: usize,
    ) -> Result<Page, NodeError> {
        let least = match after {
            Some(after) => format!("({}", after.path()),
            None => format!("[{}/", kind.as_str()),
        };
        // "0" follows "/": every path of the kind, and of no other, is below.
        let greatest = format!("({}0", kind.as_str());
        let keys_of_index = [(&keys.index).into(), (&keys.expiry).into()];
        let call = Call::new(&SCRIPTS.list, keys_of_index)
            .arg(least)
            .arg(greatest)
            .arg(limit)
            .arg(LIST_EXAMINES)
            .arg(keys.lease_prefix());
        let reply: Vec<String> = self.connections.run(partition, &call).await?;
        page(&reply).ok_or_else(|| self.unexpected("list", &reply))
    }
}

fn page(reply: &[String]) -> Option<Page> {
    let (last, leases) = reply.split_first()?;
    let leases = leases
        .iter()
        .map(|entry| {
            let (path, held) = entry.split_once('\n')?;
            Some((ElectionId::from_path(path).ok()?, lease(held)?))
        })
        .collect::<Option<Vec<_>>>()?;
    let next = match last.as_str() {
        "" => None,
        last => Some(ElectionId::from_path(last).ok()?),
    };
    Some(Page { leases, next })
}
