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
use redis::FromRedisValue;

use super::{
    Extend, ExtendReply, Grant, GrantReply, Heal, LIST_EXAMINES, Lease, LeaseNode, NodeError, Over,
    Page, Probe, Resign, ResignReply, Settings, Unmarked, guard::LongestGuard, merge::merge,
};
use crate::election::types::{Candidate, ElectionId, Kind, Token, Value, millis};
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
    async fn run<T: FromRedisValue>(
        &self,
        partition: u16,
        call: &Call<'_>,
    ) -> Result<T, NodeError> {
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
    /// attempts to connect and pings.
    pub async fn start(
        deployment: Deployment,
        usage: Use,
        limit: Duration,
        settings: Settings,
    ) -> Self {
        let name = deployment.name().to_owned();
        let keys = (0..deployment.partitions())
            .map(|partition| Keys::new(&usage.prefix, partition))
            .collect();
        let connections = match deployment {
            Deployment::Server(server) => {
                Connections::Server(Link::start(&server, Expect::Server, limit))
            }
            Deployment::Failover(sentinels) => {
                Connections::Failover(Failover::start(sentinels, limit))
            }
            Deployment::Cluster {
                members,
                partitions,
            } => Connections::Cluster(Cluster::start(members, partitions, limit)),
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
    fn guard_arg(&self) -> String {
        match self.settings.guard {
            Some(_) => millis(self.longest_guard.get()).to_string(),
            None => String::new(),
        }
    }

    fn retention_ms(&self) -> u64 {
        millis(self.settings.retention)
    }

    /// Runs a script and gives its reply's fields; a nil reply has none.
    async fn fields(&self, partition: u16, call: &Call<'_>) -> Result<Fields, NodeError> {
        let reply: Option<Fields> = self.connections.run(partition, call).await?;
        Ok(reply.unwrap_or_default())
    }

    /// Runs a script and gives its only field.
    async fn field(&self, partition: u16, call: &Call<'_>) -> Result<Option<String>, NodeError> {
        self.connections.run(partition, call).await
    }

    fn unexpected(&self, script: &str, reply: impl fmt::Debug) -> NodeError {
        NodeError::unknown(format!(
            "{}: the {script} script answered {reply:?}, which this version does not know",
            self.name
        ))
    }
}

type Fields = Vec<String>;

/// Waits for all, of which not too many are under way at once; fails with the first that fails.
async fn at_once<T>(
    all: Vec<impl Future<Output = Result<T, NodeError>>>,
) -> Result<Vec<T>, NodeError> {
    stream::iter(all)
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

fn optional(token: Option<Token>) -> String {
    token.map_or(0, Token::get).to_string()
}

/// A lease from the fields that the scripts' `read_lease` gives.
fn lease(fields: &[String]) -> Option<Lease> {
    let [leader, token, value, elected_at, remaining] = fields else {
        return None;
    };
    Some(Lease {
        leader: Candidate::new("leader", leader).ok()?,
        token: Token::new(token.parse().ok()?)?,
        value: Value::new(value).ok()?,
        elected_at: elected_at.parse().ok()?,
        remaining: Duration::from_millis(remaining.parse().ok()?),
    })
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
        let (over, over_leader, over_token) = match &grant.over {
            Over::Vacant => ("vacant", "", None),
            Over::Own => ("own", "", None),
            Over::Leader(leader, token) => ("leader", leader.as_str(), *token),
            Over::Anyone => ("anyone", "", None),
        };
        let (partition, keys) = self.keys(&grant.election);
        let call = Call::new(
            &SCRIPTS.grant,
            &[
                &keys.lease(&grant.election),
                &keys.floor(&grant.election),
                &keys.marker,
                &keys.index,
                &keys.expiry,
            ],
            &[
                &grant.election.path(),
                &grant.candidate.as_str(),
                &grant.token.to_string(),
                &grant.term.millis().to_string(),
                &grant.value.as_str(),
                &grant.request_id.as_ref().map_or("", |id| id.as_str()),
                &grant.elected_at.to_string(),
                &self.retention_ms().to_string(),
                &self.guard_arg(),
                &over,
                &over_leader,
                &optional(over_token),
                &keys.lease_prefix(),
                &grant.attempt.to_string(),
                &if grant.repeat { "1" } else { "0" },
            ],
        );
        let reply = self.fields(partition, &call).await?;
        let known = match reply.split_first() {
            Some((word, rest)) => match (word.as_str(), rest) {
                ("granted", [granted]) => token(granted).map(GrantReply::Granted),
                ("held", held) => lease(held).map(GrantReply::Held),
                ("mismatch", []) => Some(GrantReply::TokenMismatch),
                ("stale", [floor]) => token(floor).map(GrantReply::Stale),
                ("unmarked", []) => {
                    self.doubt(partition);
                    Some(GrantReply::Unmarked)
                }
                ("guarded", [ms]) => ms
                    .parse()
                    .ok()
                    .map(|ms| GrantReply::Guarded(Duration::from_millis(ms))),
                _ => None,
            },
            None => None,
        };
        known.ok_or_else(|| self.unexpected("grant", &reply))
    }

    async fn extend(&self, extend: &Extend) -> Result<ExtendReply, NodeError> {
        let (partition, keys) = self.keys(&extend.election);
        let call = Call::new(
            &SCRIPTS.extend,
            &[&keys.lease(&extend.election), &keys.floor(&extend.election)],
            &[
                &extend.leader.as_str(),
                &optional(extend.token),
                &extend.term.millis().to_string(),
                &self.retention_ms().to_string(),
            ],
        );
        let reply = self.fields(partition, &call).await?;
        let known = match reply.split_first() {
            Some((word, rest)) => match (word.as_str(), rest) {
                ("renewed", [renewed]) => token(renewed).map(ExtendReply::Renewed),
                ("missing", []) => Some(ExtendReply::Missing),
                ("held", []) => Some(ExtendReply::Held),
                ("stale", []) => Some(ExtendReply::Stale),
                ("behind", []) => Some(ExtendReply::Behind),
                _ => None,
            },
            None => None,
        };
        known.ok_or_else(|| self.unexpected("extend", &reply))
    }

    async fn heal(&self, heal: &Heal) -> Result<bool, NodeError> {
        let (partition, keys) = self.keys(&heal.election);
        let call = Call::new(
            &SCRIPTS.heal,
            &[
                &keys.lease(&heal.election),
                &keys.floor(&heal.election),
                &keys.index,
                &keys.expiry,
                &keys.marker,
            ],
            &[
                &heal.election.path(),
                &heal.lease.leader.as_str(),
                &heal.lease.token.to_string(),
                &heal.term.millis().to_string(),
                &heal.lease.value.as_str(),
                &heal.lease.elected_at.to_string(),
                &self.retention_ms().to_string(),
                &heal.run,
                &if heal.existing { "1" } else { "0" },
                &self.guard_arg(),
            ],
        );
        let reply = self.field(partition, &call).await?;
        match reply.as_deref() {
            Some("1") => Ok(true),
            Some("0") => Ok(false),
            _ => Err(self.unexpected("heal", &reply)),
        }
    }

    async fn resign(&self, resign: &Resign) -> Result<ResignReply, NodeError> {
        let (partition, keys) = self.keys(&resign.election);
        let call = Call::new(
            &SCRIPTS.resign,
            &[&keys.lease(&resign.election), &keys.index, &keys.expiry],
            &[
                &resign.election.path(),
                &resign.leader.as_str(),
                &optional(resign.token),
            ],
        );
        let reply = self.field(partition, &call).await?;
        match reply.as_deref() {
            Some("resigned") => Ok(ResignReply::Resigned),
            Some("missing") => Ok(ResignReply::Missing),
            Some("held") => Ok(ResignReply::Held),
            Some("stale") => Ok(ResignReply::Stale),
            _ => Err(self.unexpected("resign", &reply)),
        }
    }

    async fn withdraw(&self, grant: &Grant) -> Result<(), NodeError> {
        let (partition, keys) = self.keys(&grant.election);
        let call = Call::new(
            &SCRIPTS.withdraw,
            &[
                &keys.lease(&grant.election),
                &keys.floor(&grant.election),
                &keys.index,
                &keys.expiry,
            ],
            &[
                &grant.election.path(),
                &grant.attempt.to_string(),
                &grant.token.to_string(),
                &self.retention_ms().to_string(),
            ],
        );
        self.field(partition, &call).await.map(|_| ())
    }

    async fn read(&self, election: &ElectionId) -> Result<Option<Lease>, NodeError> {
        let (partition, keys) = self.keys(election);
        let call = Call::new(&SCRIPTS.read, &[&keys.lease(election)], &[]);
        let reply = self.fields(partition, &call).await?;
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
        let call = Call::new(
            &SCRIPTS.list,
            &[&keys.index, &keys.expiry],
            &[
                &least,
                &greatest,
                &limit.to_string(),
                &LIST_EXAMINES.to_string(),
                &keys.lease_prefix(),
            ],
        );
        let reply: Vec<redis::Value> = self.connections.run(partition, &call).await?;
        page(&reply).ok_or_else(|| self.unexpected("list", &reply))
    }
}

fn page(reply: &[redis::Value]) -> Option<Page> {
    let (last, leases) = reply.split_first()?;
    let last: String = redis::from_redis_value_ref(last).ok()?;
    let leases = leases
        .iter()
        .map(|entry| {
            let fields: Fields = redis::from_redis_value_ref(entry).ok()?;
            let (path, held) = fields.split_first()?;
            Some((ElectionId::from_path(path).ok()?, lease(held)?))
        })
        .collect::<Option<Vec<_>>>()?;
    let next = match last.as_str() {
        "" => None,
        last => Some(ElectionId::from_path(last).ok()?),
    };
    Some(Page { leases, next })
}
