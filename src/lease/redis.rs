//! The Redis node: every operation is one Lua script, so the server runs it atomically.

mod keys;
mod script;
mod single;

use std::{fmt, time::Duration};

use async_trait::async_trait;
use redis::{Client, IntoConnectionInfo as _, Script, ScriptInvocation, TlsCertificates};

use super::{
    Extend, ExtendReply, Grant, GrantReply, Heal, LIST_EXAMINES, Lease, LeaseNode, NodeError, Over,
    Page, Probe, Resign, ResignReply, Settings,
};
use crate::election::types::{Candidate, ElectionId, Kind, Token, Value, millis};
use keys::Keys;
use script::SCRIPTS;
use single::Link;

/// Where a Redis server is and how to talk to it; validated, but nothing is connected.
#[derive(Clone)]
pub struct Server {
    name: String,
    client: Client,
}

impl Server {
    /// Reads `redis[s]://[[user]:password@]host[:port][/db]`; `ca` is a PEM file's content that
    /// replaces the system's trusted roots for `rediss`.
    ///
    /// # Errors
    /// Says what is wrong with the URL. The text never holds the URL's credentials.
    pub fn from_url(url: &str, ca: Option<&[u8]>) -> Result<Self, String> {
        // Nothing of the URL is quoted: wherever it is malformed, it may hold a password.
        let expected = "write redis[s]://user:password@host:port/db, with reserved characters in user \
                        and password percent-encoded";
        let refuse = |what: &str| Err(format!("{what}: {expected}"));
        let Ok(parsed) = url::Url::parse(url) else {
            return refuse("it is no URL");
        };
        if !matches!(parsed.scheme(), "redis" | "rediss") {
            return refuse("its scheme is not redis or rediss");
        }
        if parsed.fragment().is_some() || parsed.query().is_some() {
            return refuse("it has a \"?\" or \"#\"");
        }
        let Some(host) = parsed.host_str().filter(|host| !host.is_empty()) else {
            return refuse("it names no host");
        };
        let db = parsed.path().trim_start_matches('/');
        if !db.is_empty() && db.parse::<u16>().is_err() {
            return refuse("what follows the host is not the number of a database");
        }
        let name = match db {
            "" | "0" => format!("{host}:{}", parsed.port().unwrap_or(6379)),
            db => format!("{host}:{}/{db}", parsed.port().unwrap_or(6379)),
        };

        let tls = parsed.scheme() == "rediss";
        let info = parsed
            .into_connection_info()
            .map_err(|_| format!("it is no Redis URL: {expected}"))?;
        // Without it every small reply waits for the acknowledgement of the one before.
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        let info = info.set_tcp_settings(tcp);
        let client = match ca.filter(|_| tls) {
            Some(ca) => Client::build_with_tls(
                info,
                TlsCertificates {
                    client_tls: None,
                    root_cert: Some(ca.to_vec()),
                },
            ),
            None => Client::open(info),
        };
        let client = client.map_err(|error| error.to_string())?;
        Ok(Self { name, client })
    }

    /// `host:port`, and the database when it is not 0.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Server").field(&self.name).finish()
    }
}

/// What a server is used for, and with which others.
#[derive(Debug, Clone)]
pub struct Use {
    /// What all keys begin with.
    pub prefix: String,
    /// The names of all servers that vote, in order.
    pub servers: String,
    /// The longest term that is granted.
    pub max_term: Duration,
    /// Whether a server may drop leases when its memory is full.
    pub allow_eviction: bool,
}

/// Leases on one Redis server.
#[derive(Debug)]
pub struct Redis {
    link: Link,
    db: i64,
    usage: Use,
    keys: Keys,
    settings: Settings,
}

impl Redis {
    /// Starts connecting and returns when the first attempt has ended, well or not; `limit` bounds
    /// attempts to connect and pings.
    pub async fn start(server: Server, usage: Use, limit: Duration, settings: Settings) -> Self {
        let node = Self {
            db: server.client.get_connection_info().redis_settings().db(),
            link: Link::start(server.name, server.client, limit),
            keys: Keys::new(&usage.prefix),
            usage,
            settings,
        };
        node.link.attempted().await;
        node
    }

    fn guard_arg(&self) -> String {
        self.settings
            .guard
            .map_or_else(String::new, |guard| millis(guard).to_string())
    }

    fn retention_ms(&self) -> u64 {
        millis(self.settings.retention)
    }

    /// Runs a script and gives its reply's fields; a nil reply has none.
    async fn fields(&self, invocation: &ScriptInvocation<'_>) -> Result<Fields, NodeError> {
        self.link
            .run(async |connection| invocation.invoke_async(connection).await)
            .await
            .map(Option::unwrap_or_default)
    }

    /// Runs a script and gives its only field.
    async fn field(&self, invocation: &ScriptInvocation<'_>) -> Result<Option<String>, NodeError> {
        self.link
            .run(async |connection| invocation.invoke_async(connection).await)
            .await
    }

    fn unexpected(&self, script: &str, reply: impl fmt::Debug) -> NodeError {
        NodeError::unknown(format!(
            "{}: the {script} script answered {reply:?}, which this version does not know",
            self.link.name()
        ))
    }
}

type Fields = Vec<String>;

/// The keys and arguments of a script, in its header's order.
fn invoke<'a>(
    script: &'a Script,
    keys: &[&str],
    args: &[&(dyn AsRef<[u8]> + Sync)],
) -> ScriptInvocation<'a> {
    let mut invocation = script.prepare_invoke();
    for key in keys {
        invocation.key(*key);
    }
    for arg in args {
        invocation.arg(arg.as_ref());
    }
    invocation
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
        self.link.name()
    }

    async fn grant(&self, grant: &Grant) -> Result<GrantReply, NodeError> {
        let (over, over_leader, over_token) = match &grant.over {
            Over::Vacant => ("vacant", "", None),
            Over::Own => ("own", "", None),
            Over::Leader(leader, token) => ("leader", leader.as_str(), *token),
            Over::Anyone => ("anyone", "", None),
        };
        let reply = self
            .fields(&invoke(
                &SCRIPTS.grant,
                &[
                    &self.keys.lease(&grant.election),
                    &self.keys.floor(&grant.election),
                    &self.keys.marker,
                    &self.keys.index,
                    &self.keys.expiry,
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
                    &self.keys.lease_prefix(),
                    &grant.attempt.to_string(),
                    &if grant.repeat { "1" } else { "0" },
                ],
            ))
            .await?;
        let known = match reply.split_first() {
            Some((word, rest)) => match (word.as_str(), rest) {
                ("granted", [granted]) => token(granted).map(GrantReply::Granted),
                ("held", held) => lease(held).map(GrantReply::Held),
                ("mismatch", []) => Some(GrantReply::TokenMismatch),
                ("stale", [floor]) => token(floor).map(GrantReply::Stale),
                ("unmarked", []) => Some(GrantReply::Unmarked),
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
        let reply = self
            .fields(&invoke(
                &SCRIPTS.extend,
                &[
                    &self.keys.lease(&extend.election),
                    &self.keys.floor(&extend.election),
                ],
                &[
                    &extend.leader.as_str(),
                    &optional(extend.token),
                    &extend.term.millis().to_string(),
                    &self.retention_ms().to_string(),
                ],
            ))
            .await?;
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
        let reply = self
            .field(&invoke(
                &SCRIPTS.heal,
                &[
                    &self.keys.lease(&heal.election),
                    &self.keys.floor(&heal.election),
                    &self.keys.index,
                    &self.keys.expiry,
                ],
                &[
                    &heal.election.path(),
                    &heal.lease.leader.as_str(),
                    &heal.lease.token.to_string(),
                    &heal.term.millis().to_string(),
                    &heal.lease.value.as_str(),
                    &heal.lease.elected_at.to_string(),
                    &self.retention_ms().to_string(),
                ],
            ))
            .await?;
        match reply.as_deref() {
            Some("1") => Ok(true),
            Some("0") => Ok(false),
            _ => Err(self.unexpected("heal", &reply)),
        }
    }

    async fn resign(&self, resign: &Resign) -> Result<ResignReply, NodeError> {
        let reply = self
            .field(&invoke(
                &SCRIPTS.resign,
                &[
                    &self.keys.lease(&resign.election),
                    &self.keys.index,
                    &self.keys.expiry,
                ],
                &[
                    &resign.election.path(),
                    &resign.leader.as_str(),
                    &optional(resign.token),
                ],
            ))
            .await?;
        match reply.as_deref() {
            Some("resigned") => Ok(ResignReply::Resigned),
            Some("missing") => Ok(ResignReply::Missing),
            Some("held") => Ok(ResignReply::Held),
            Some("stale") => Ok(ResignReply::Stale),
            _ => Err(self.unexpected("resign", &reply)),
        }
    }

    async fn withdraw(&self, grant: &Grant) -> Result<(), NodeError> {
        self.field(&invoke(
            &SCRIPTS.withdraw,
            &[
                &self.keys.lease(&grant.election),
                &self.keys.floor(&grant.election),
                &self.keys.index,
                &self.keys.expiry,
            ],
            &[
                &grant.election.path(),
                &grant.attempt.to_string(),
                &grant.token.to_string(),
                &self.retention_ms().to_string(),
            ],
        ))
        .await
        .map(|_| ())
    }

    async fn read(&self, election: &ElectionId) -> Result<Option<Lease>, NodeError> {
        let reply = self
            .fields(&invoke(&SCRIPTS.read, &[&self.keys.lease(election)], &[]))
            .await?;
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
        let least = match after {
            Some(after) => format!("({}", after.path()),
            None => format!("[{}/", kind.as_str()),
        };
        // "0" follows "/": every path of the kind, and of no other, is below.
        let greatest = format!("({}0", kind.as_str());
        let invocation = invoke(
            &SCRIPTS.list,
            &[&self.keys.index, &self.keys.expiry],
            &[
                &least,
                &greatest,
                &limit.to_string(),
                &LIST_EXAMINES.to_string(),
                &self.keys.lease_prefix(),
            ],
        );
        let reply: Vec<redis::Value> = self
            .link
            .run(async |connection| invocation.invoke_async(connection).await)
            .await?;
        page(&reply).ok_or_else(|| self.unexpected("list", &reply))
    }

    async fn mark(&self, wait: Duration) -> Result<bool, NodeError> {
        let reply = self
            .field(&invoke(
                &SCRIPTS.mark,
                &[&self.keys.marker],
                &[&millis(wait).to_string()],
            ))
            .await?;
        match reply.as_deref() {
            Some("1") => Ok(true),
            Some("0") => Ok(false),
            _ => Err(self.unexpected("mark", &reply)),
        }
    }

    async fn probe(&self) -> Result<Probe, NodeError> {
        let reply = self
            .fields(&invoke(
                &SCRIPTS.probe,
                &[&self.keys.marker, &self.keys.servers],
                &[
                    &self.guard_arg(),
                    &self.usage.servers,
                    &millis(self.usage.max_term).to_string(),
                ],
            ))
            .await?;
        let [guard, run_id, policy, servers] = &reply[..] else {
            return Err(self.unexpected("probe", &reply));
        };
        let guard = match guard.as_str() {
            "" => None,
            ms => match ms.parse() {
                Ok(ms) => Some(Duration::from_millis(ms)),
                Err(_) => return Err(self.unexpected("probe", &reply)),
            },
        };
        Ok(Probe {
            guard,
            identity: Some(format!("{run_id}/{}", self.db)),
            unfit: self.unfit(policy, servers),
        })
    }
}

impl Redis {
    fn unfit(&self, policy: &str, servers: &str) -> Option<String> {
        let name = self.link.name();
        if servers != self.usage.servers {
            return Some(format!(
                "{name}: agents use it with another list of servers, {servers}, while this one has {}: \
                 majorities of different lists need not meet; give every agent the same EA_REDIS_URLS, or \
                 this one another EA_REDIS_PREFIX",
                self.usage.servers
            ));
        }
        if policy != "noeviction" && !self.usage.allow_eviction {
            return Some(format!(
                "{name}: its maxmemory-policy is {policy}, so it may drop the lease of a leader that has time \
                 left; set it to noeviction, or EA_ALLOW_EVICTION=true if you accept two leaders"
            ));
        }
        None
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
