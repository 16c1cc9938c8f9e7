//! The lease store.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use election_core::lease::{embedded, guard::RestartGuard};
use election_redis::{Deployment, Sentinels, Server};
use strum::{EnumString, IntoStaticStr, VariantNames};

use super::names::{
    EA_ALLOW_EVICTION, EA_EMBEDDED_PATH, EA_ENV, EA_MAX_TERM, EA_REDIS_MASTER, EA_REDIS_MODE,
    EA_REDIS_OPERATION_TIMEOUT, EA_REDIS_PARTITIONS, EA_REDIS_PREFIX, EA_REDIS_SENTINEL_PASSWORD,
    EA_REDIS_SENTINEL_USERNAME, EA_REDIS_TLS_CA_FILE, EA_REDIS_URLS, EA_REDIS_URLS_NEXT,
    EA_RESTART_GUARD, EA_STORE, EA_TOKEN_RETENTION, Variable,
};
use super::{Environment, Secret, Setting, list_setting, setting, values::Reader};
use crate::tls;

/// Names of the Redis settings in errors of the nodes.
pub const REDIS_NAMES: election_redis::Names = election_redis::Names {
    urls: EA_REDIS_URLS.name(),
    mode: EA_REDIS_MODE.name(),
    master: EA_REDIS_MASTER.name(),
    sentinel_username: EA_REDIS_SENTINEL_USERNAME.name(),
    sentinel_password: EA_REDIS_SENTINEL_PASSWORD.name(),
    prefix: EA_REDIS_PREFIX.name(),
    allow_eviction: EA_ALLOW_EVICTION.name(),
};

/// Names of the settings in errors of the embedded node.
pub const EMBEDDED_NAMES: embedded::Names = embedded::Names {
    path: EA_EMBEDDED_PATH.name(),
    restart_guard: EA_RESTART_GUARD.name(),
    max_term: EA_MAX_TERM.name(),
};

pub(super) const SETTINGS: &[Setting] = &[
    setting(
        EA_STORE,
        "",
        "what keeps leases: `redis` (EA_REDIS_URLS), `file` (EA_EMBEDDED_PATH), or `memory` of the agent itself, lost when it ends and not shared with other agents; none: whichever of these two is given, else memory, which EA_ENV=production requires to be explicit",
    ),
    setting(
        EA_REDIS_MODE,
        "single",
        "how Redis is run: `single`: every URL is an independent server; `failover`: the URLs are the Sentinels of one primary; `cluster`: every URL is an independent Redis Cluster",
    ),
    Setting {
        secret: Secret::Urls,
        ..list_setting(
            EA_REDIS_URLS,
            "",
            "where leases are kept, comma separated, each `redis[s]://user:password@host:port/db`; a majority of the servers or clusters decides, so give 1, 3 or 5, independent of each other, and the same list to every agent; `cluster`: `redis://user:password@host:port?addr=host:port&addr=host:port` names more members of the same cluster; `failover`: the Sentinels, with the credentials and database of the primary; none: the agent itself keeps the leases",
        )
    },
    Setting {
        secret: Secret::Urls,
        ..list_setting(
            EA_REDIS_URLS_NEXT,
            "",
            "`single`, `cluster`: the list that is to take the place of EA_REDIS_URLS: while it is given, majorities of both lists decide; give it to all agents before any of them has it as EA_REDIS_URLS",
        )
    },
    setting(
        EA_REDIS_MASTER,
        "",
        "`failover`: the name by which the Sentinels know the primary",
    ),
    setting(
        EA_REDIS_SENTINEL_USERNAME,
        "",
        "`failover`: the user of the Sentinels, if they require one",
    ),
    Setting {
        secret: Secret::Hidden,
        ..setting(
            EA_REDIS_SENTINEL_PASSWORD,
            "",
            "`failover`: the password of the Sentinels, if they require one",
        )
    },
    setting(
        EA_REDIS_PARTITIONS,
        "1024",
        "`cluster`: how many partitions spread the elections over the cluster's slots (1 to 16384); the same for every agent, and never changed",
    ),
    Setting {
        alias: Some("EA_KEY_PREFIX"),
        ..setting(
            EA_REDIS_PREFIX,
            "ela",
            "what all Redis keys begin with: 1 to 64 printable ASCII characters without spaces and braces",
        )
    },
    setting(
        EA_REDIS_OPERATION_TIMEOUT,
        "3s",
        "how long a lease node may take to answer (10ms to 1m)",
    ),
    setting(
        EA_REDIS_TLS_CA_FILE,
        "",
        "PEM file of the certificate authorities trusted for `rediss` URLs, instead of the system's",
    ),
    setting(
        EA_EMBEDDED_PATH,
        "",
        "file in which the agent itself keeps leases when no Redis is configured, so that they survive its restart; beside it the agent keeps another, `….generation`; none: memory",
    ),
    setting(
        EA_RESTART_GUARD,
        "on",
        "what happens when a lease node may have lost its memory: `on`: it is in quarantine, without new grants, for EA_MAX_TERM, except on a first start; `strict`: on a first start, too; `off`: nothing, and two leaders may have time left after a restart without data",
    ),
    setting(
        EA_ALLOW_EVICTION,
        "false",
        "use Redis servers whose maxmemory-policy is not `noeviction`, which may drop the lease of a leader that has time left",
    ),
    setting(
        EA_TOKEN_RETENTION,
        "168h",
        "how long the last fencing token of an election is remembered after it was last granted or extended (1h to 87600h)",
    ),
];

/// Maximum number of URLs in a list: every decision waits for a majority.
const MOST_NODES: usize = 16;

/// Configuration of the lease store.
#[derive(Debug, Clone)]
pub struct Store {
    /// The Redis deployments, each an independent node; empty if the agent itself keeps the leases.
    pub deployments: Vec<Deployment>,
    /// The deployments that are to replace this list; empty if there is no such change.
    pub next: Vec<Deployment>,
    /// Prefix of all Redis keys.
    pub prefix: String,
    /// Timeout of an operation on a node.
    pub operation_timeout: Duration,
    /// The file of the embedded node.
    pub embedded_path: Option<PathBuf>,
    /// The restart guard: the quarantine of nodes that may have lost their memory.
    pub restart_guard: RestartGuard,
    /// Whether to accept servers that evict keys when their memory is full.
    pub allow_eviction: bool,
    /// How long a token high-water mark outlives the last term.
    pub token_retention: Duration,
}

impl Store {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        read_store(reader);
        let mode = reader.one_of(EA_REDIS_MODE);
        let ca = read_ca(reader);
        let deployments = match mode {
            Some(mode) => read_deployments(reader, mode, ca.as_deref()),
            // Its mistakes are reported nevertheless.
            None => read_urls(reader, EA_REDIS_URLS, Topology::Single, ca.as_deref())
                .map(|_| Vec::new()),
        };
        let next = match (&deployments, mode) {
            (Some(now), Some(mode)) => read_next(reader, mode, ca.as_deref(), now),
            _ => Some(Vec::new()),
        };
        let prefix = reader.with(EA_REDIS_PREFIX, |raw| {
            let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '{' | '}');
            if (1..=64).contains(&raw.len()) && raw.chars().all(plain) {
                Ok(raw.to_owned())
            } else {
                Err("give 1 to 64 printable ASCII characters without spaces and braces".to_owned())
            }
        });
        let operation_timeout = reader.duration(
            EA_REDIS_OPERATION_TIMEOUT,
            Duration::from_millis(10),
            Duration::from_secs(60),
        );
        let hour = Duration::from_secs(3600);
        let token_retention = reader.duration(EA_TOKEN_RETENTION, hour, 87_600 * hour);
        let restart_guard = reader.one_of(EA_RESTART_GUARD);
        let allow_eviction = reader.bool(EA_ALLOW_EVICTION);
        let embedded_path = reader.path(EA_EMBEDDED_PATH);
        if embedded_path.is_some() && !reader.raw(EA_REDIS_URLS).is_empty() {
            reader.mistake(
                EA_EMBEDDED_PATH,
                "leases are kept on EA_REDIS_URLS or in this file, not on both: set one of them",
            );
        }
        Some(Self {
            deployments: deployments?,
            next: next?,
            prefix: prefix?,
            operation_timeout: operation_timeout?,
            embedded_path,
            restart_guard: restart_guard?,
            allow_eviction: allow_eviction?,
            token_retention: token_retention?,
        })
    }
}

/// The kind of lease store (`EA_STORE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "lowercase")]
enum Kind {
    Memory,
    File,
    Redis,
}

/// Reports a mistake if production keeps leases in memory because a setting is missing or misspelled: two agents would
/// then each elect a leader.
pub(super) fn check_store(reader: &mut Reader<'_>) {
    let is_production = reader.raw(EA_ENV).parse() == Ok(Environment::Production);
    let is_said = [EA_STORE, EA_REDIS_URLS, EA_EMBEDDED_PATH]
        .into_iter()
        .any(|variable| reader.is_given(variable));
    // Other modes report a missing EA_REDIS_URLS themselves.
    let is_single = reader.raw(EA_REDIS_MODE) == "single";
    if is_production && !is_said && is_single {
        reader.mistake(
            EA_STORE,
            "nothing says where leases are kept: give EA_REDIS_URLS or EA_EMBEDDED_PATH, or EA_STORE=memory if a leader \
             may be forgotten with the agent and no other agent runs; EA_ENV=development needs none of these",
        );
    }
}

/// Checks that `EA_STORE` agrees with the other settings.
fn read_store(reader: &mut Reader<'_>) {
    let kind = match reader.raw(EA_STORE) {
        "" => None,
        _ => reader.one_of::<Kind>(EA_STORE),
    };
    let Some(kind) = kind else { return };
    for (variable, its) in [(EA_REDIS_URLS, Kind::Redis), (EA_EMBEDDED_PATH, Kind::File)] {
        let what = match (reader.is_given(variable), kind == its) {
            (true, false) => format!("{variable} is given, too: leave one of them out"),
            (false, true) => format!("it needs {variable}"),
            _ => continue,
        };
        let named = reader.raw(EA_STORE);
        reader.mistake(EA_STORE, format!("it is {named}, but {what}"));
    }
}

fn read_ca(reader: &mut Reader<'_>) -> Option<Vec<u8>> {
    let path = reader.raw(EA_REDIS_TLS_CA_FILE);
    if path.is_empty() {
        return None;
    }
    let read = std::fs::read(path).map_err(|error| format!("cannot read {path}: {error}"));
    let checked = read.and_then(|pem| tls::certificates(Path::new(path), &pem).map(|_| pem));
    if !reader.raw(EA_REDIS_URLS).contains("rediss://") {
        reader.mistake(
            EA_REDIS_TLS_CA_FILE,
            "EA_REDIS_URLS has no rediss:// URL that would use it: leave it out",
        );
    }
    checked
        .map_err(|what| reader.mistake(EA_REDIS_TLS_CA_FILE, what))
        .ok()
}

/// The Redis topology (`EA_REDIS_MODE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "lowercase")]
enum Topology {
    Single,
    Failover,
    Cluster,
}

/// The settings that apply to only one mode.
const OF_ONE_MODE: [(Variable, Topology); 4] = [
    (EA_REDIS_MASTER, Topology::Failover),
    (EA_REDIS_SENTINEL_USERNAME, Topology::Failover),
    (EA_REDIS_SENTINEL_PASSWORD, Topology::Failover),
    (EA_REDIS_PARTITIONS, Topology::Cluster),
];

fn read_deployments(
    reader: &mut Reader<'_>,
    mode: Topology,
    ca: Option<&[u8]>,
) -> Option<Vec<Deployment>> {
    for (variable, its) in OF_ONE_MODE {
        if reader.is_given(variable) && mode != its {
            let its = <&str>::from(its);
            reader.mistake(
                variable,
                format!("it is for EA_REDIS_MODE={its} only: leave it out, or set that"),
            );
        }
    }
    let urls = read_urls(reader, EA_REDIS_URLS, mode, ca);
    let partitions = reader.number(EA_REDIS_PARTITIONS, 1..=16_384);
    let master = reader.raw(EA_REDIS_MASTER);
    if mode == Topology::Failover && master.is_empty() {
        reader.mistake(
            EA_REDIS_MASTER,
            "EA_REDIS_MODE=failover needs the name by which the Sentinels know the primary",
        );
    }
    let (urls, partitions) = (urls?, partitions?);
    if mode != Topology::Single && urls.is_empty() {
        reader.mistake(
            EA_REDIS_URLS,
            match mode {
                Topology::Failover => "EA_REDIS_MODE=failover needs the Sentinels' URLs",
                _ => "EA_REDIS_MODE=cluster needs a URL for each cluster",
            },
        );
        return None;
    }
    match mode {
        Topology::Single => Some(urls.into_iter().flatten().map(Deployment::Server).collect()),
        Topology::Cluster => Some(
            urls.into_iter()
                .map(|members| Deployment::Cluster {
                    members,
                    partitions,
                })
                .collect(),
        ),
        Topology::Failover => {
            let servers: Vec<_> = urls.into_iter().flatten().collect();
            let sentinels = read_sentinels(reader, &servers, master)?;
            Some(vec![Deployment::Failover(sentinels)])
        }
    }
}

/// Reads the list that is to replace `now`.
fn read_next(
    reader: &mut Reader<'_>,
    mode: Topology,
    ca: Option<&[u8]>,
    now: &[Deployment],
) -> Option<Vec<Deployment>> {
    if !reader.is_given(EA_REDIS_URLS_NEXT) {
        return Some(Vec::new());
    }
    if mode == Topology::Failover || now.is_empty() {
        reader.mistake(
            EA_REDIS_URLS_NEXT,
            "a list of servers or clusters takes the place of another: give EA_REDIS_URLS, and EA_REDIS_MODE=single \
             or cluster, or leave it out",
        );
        return None;
    }
    let urls = read_urls(reader, EA_REDIS_URLS_NEXT, mode, ca)?;
    let partitions = reader.number(EA_REDIS_PARTITIONS, 1..=16_384)?;
    let next: Vec<_> = match mode {
        Topology::Cluster => urls
            .into_iter()
            .map(|members| Deployment::Cluster {
                members,
                partitions,
            })
            .collect(),
        _ => urls.into_iter().flatten().map(Deployment::Server).collect(),
    };
    if list(&next) == list(now) {
        reader.mistake(
            EA_REDIS_URLS_NEXT,
            "it is the list that EA_REDIS_URLS has: leave it out",
        );
        return None;
    }
    Some(next)
}

/// Returns the canonical text of a list of nodes. All agents must agree on it.
#[must_use]
pub fn list(deployments: &[Deployment]) -> String {
    let mut sorted: Vec<_> = deployments.iter().map(Deployment::identity).collect();
    sorted.sort_unstable();
    sorted.join(",")
}

fn read_sentinels(reader: &mut Reader<'_>, servers: &[Server], master: &str) -> Option<Sentinels> {
    let access = servers.first()?.clone();
    if let Some(other) = (1..servers.len()).find(|n| !servers[*n].has_same_access(&access)) {
        reader.mistake(
            EA_REDIS_URLS,
            format!(
                "URLs 1 and {} have different users, passwords, databases or TLS, which in EA_REDIS_MODE=\
                 failover are those of the primary: write the same in each",
                other + 1
            ),
        );
        return None;
    }
    let given = |variable| Some(reader.raw(variable)).filter(|value| !value.is_empty());
    let user = given(EA_REDIS_SENTINEL_USERNAME);
    let password = given(EA_REDIS_SENTINEL_PASSWORD);
    let sentinels = servers
        .iter()
        .map(|server| server.with_credentials(user, password))
        .collect::<Result<_, _>>();
    match sentinels {
        Ok(sentinels) => Some(Sentinels {
            sentinels,
            access,
            master: master.to_owned(),
        }),
        Err(what) => {
            reader.mistake(EA_REDIS_URLS, what);
            None
        }
    }
}

/// Reads the servers in each URL. Mistakes never quote a URL: a malformed one may contain a password anywhere.
fn read_urls(
    reader: &mut Reader<'_>,
    variable: Variable,
    mode: Topology,
    ca: Option<&[u8]>,
) -> Option<Vec<Vec<Server>>> {
    let urls: Vec<_> = split(reader.raw(variable)).collect();
    let mut servers: Vec<(usize, Vec<Server>)> = Vec::new();
    let mut valid = true;
    for (url, nth) in urls.iter().zip(1..) {
        let read = match mode {
            Topology::Single | Topology::Failover => {
                Server::from_url(url, ca).map(|server| vec![server])
            }
            Topology::Cluster => Server::members_from_url(url, ca),
        };
        let what = match read {
            Ok(own) => match same_place(&servers, &own) {
                None => {
                    servers.push((nth, own));
                    continue;
                }
                Some((first, name)) => format!(
                    "URLs {first} and {nth} name the same server, {name}: it would vote twice; name each once"
                ),
            },
            Err(what) => format!("URL {nth} of {} is not valid: {what}", urls.len()),
        };
        reader.mistake(variable, what);
        valid = false;
    }
    if urls.is_empty() && reader.is_given(variable) {
        reader.mistake(variable, "it holds no URL: give one, or leave it out");
        valid = false;
    }
    if urls.len() > MOST_NODES {
        let what = format!("it holds {} URLs: give at most {MOST_NODES}", urls.len());
        reader.mistake(variable, what);
        valid = false;
    }
    let servers = servers.into_iter().map(|(_, servers)| servers).collect();
    valid.then_some(servers)
}

/// Returns an earlier URL that names one of these servers, and that server.
fn same_place<'a>(known: &[(usize, Vec<Server>)], own: &'a [Server]) -> Option<(usize, &'a str)> {
    known.iter().find_map(|(nth, servers)| {
        let again = own
            .iter()
            .find(|server| servers.iter().any(|known| known.is_same_place(server)))?;
        Some((*nth, again.name()))
    })
}

fn split(urls: &str) -> impl Iterator<Item = &str> {
    urls.split(',').map(str::trim).filter(|url| !url.is_empty())
}
