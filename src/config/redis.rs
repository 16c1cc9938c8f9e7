//! Where leases are kept.

use std::{path::PathBuf, time::Duration};

use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use url::Url;

use super::{Secret, Setting, setting, values::Reader};
use crate::lease::{guard::RestartGuard, redis::Server};

pub(super) const SETTINGS: &[Setting] = &[
    setting(
        "EA_REDIS_MODE",
        "single",
        "how Redis is run: `single`: every URL is an independent server; `failover` and `cluster` are not part of this version yet",
    ),
    Setting {
        secret: Secret::Urls,
        ..setting(
            "EA_REDIS_URLS",
            "",
            "Redis servers that keep the leases, comma separated, each `redis[s]://user:password@host:port/db` and independent of the others; a majority of them decides, so give 1, 3 or 5, and the same list to every agent; none: the agent itself keeps them",
        )
    },
    setting(
        "EA_REDIS_MASTER",
        "",
        "name of the primary for `failover`; not part of this version yet",
    ),
    Setting {
        alias: Some("EA_KEY_PREFIX"),
        ..setting(
            "EA_REDIS_PREFIX",
            "ela",
            "what all Redis keys begin with: 1 to 64 printable ASCII characters without spaces and braces",
        )
    },
    setting(
        "EA_REDIS_OPERATION_TIMEOUT",
        "3s",
        "how long a lease node may take to answer (10ms to 1m)",
    ),
    setting(
        "EA_REDIS_TLS_CA_FILE",
        "",
        "PEM file of the certificate authorities trusted for `rediss` URLs, instead of the system's",
    ),
    setting(
        "EA_EMBEDDED_PATH",
        "",
        "file in which the agent itself keeps leases when no Redis is configured, so that they survive its restart; none: memory",
    ),
    setting(
        "EA_RESTART_GUARD",
        "on",
        "what happens when a lease node may have lost its memory: `on`: it abstains from new grants for EA_MAX_TERM, except on a first start; `strict`: on a first start, too; `off`: nothing, and two leaders may have time left after a restart without data",
    ),
    setting(
        "EA_ALLOW_EVICTION",
        "false",
        "use Redis servers whose maxmemory-policy is not `noeviction`, which may drop the lease of a leader that has time left",
    ),
    setting(
        "EA_TOKEN_RETENTION",
        "168h",
        "how long the last fencing token of an election is remembered after it was last granted or extended (1h to 87600h)",
    ),
];

/// Where leases are kept.
#[derive(Debug, Clone)]
pub struct Store {
    /// The Redis servers, each an independent node; none: the agent itself keeps leases.
    pub servers: Vec<Server>,
    /// What all Redis keys begin with.
    pub prefix: String,
    /// How long a node may take to answer.
    pub operation_timeout: Duration,
    /// The file of the in-process node.
    pub embedded_path: Option<PathBuf>,
    /// What is done about nodes that may have lost their memory.
    pub restart_guard: RestartGuard,
    /// Whether servers may be used that drop keys when their memory is full.
    pub allow_eviction: bool,
    /// How long a floor outlives the last term.
    pub token_retention: Duration,
}

impl Store {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        reader.with("EA_REDIS_MODE", |raw| match raw {
            "single" => Ok(()),
            "failover" | "cluster" => {
                Err("this version keeps leases on independent servers only: give single".to_owned())
            }
            _ => Err("give single".to_owned()),
        });
        let ca = read_ca(reader);
        let servers = read_urls(reader, ca.as_deref());
        let prefix = reader.with("EA_REDIS_PREFIX", |raw| {
            let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '{' | '}');
            if (1..=64).contains(&raw.len()) && raw.chars().all(plain) {
                Ok(raw.to_owned())
            } else {
                Err("give 1 to 64 printable ASCII characters without spaces and braces".to_owned())
            }
        });
        let operation_timeout = reader.duration(
            "EA_REDIS_OPERATION_TIMEOUT",
            Duration::from_millis(10),
            Duration::from_secs(60),
        );
        let hour = Duration::from_secs(3600);
        let token_retention = reader.duration("EA_TOKEN_RETENTION", hour, 87_600 * hour);
        let restart_guard = reader.parsed("EA_RESTART_GUARD");
        let allow_eviction = reader.bool("EA_ALLOW_EVICTION");
        let embedded_path = match reader.raw("EA_EMBEDDED_PATH") {
            "" => None,
            path => Some(PathBuf::from(path)),
        };
        if embedded_path.is_some() && !reader.raw("EA_REDIS_URLS").is_empty() {
            reader.mistake(
                "EA_EMBEDDED_PATH",
                "leases are kept on EA_REDIS_URLS or in this file, not on both: set one of them",
            );
        }
        Some(Self {
            servers: servers?,
            prefix: prefix?,
            operation_timeout: operation_timeout?,
            embedded_path,
            restart_guard: restart_guard?,
            allow_eviction: allow_eviction?,
            token_retention: token_retention?,
        })
    }
}

fn read_ca(reader: &mut Reader<'_>) -> Option<Vec<u8>> {
    let path = reader.raw("EA_REDIS_TLS_CA_FILE");
    if path.is_empty() {
        return None;
    }
    let read = std::fs::read(path).map_err(|error| format!("cannot read {path}: {error}"));
    let checked = read.and_then(|pem| {
        let certificates = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
        match certificates {
            Ok(certificates) if !certificates.is_empty() => Ok(pem),
            Ok(_) => Err(format!("{path} holds no certificate: give a PEM file")),
            Err(error) => Err(format!("{path} is no PEM file of certificates: {error}")),
        }
    });
    if !reader.raw("EA_REDIS_URLS").contains("rediss://") {
        reader.mistake(
            "EA_REDIS_TLS_CA_FILE",
            "EA_REDIS_URLS has no rediss:// URL that would use it: leave it out",
        );
    }
    checked
        .map_err(|what| reader.mistake("EA_REDIS_TLS_CA_FILE", what))
        .ok()
}

/// Mistakes never quote a URL: it may hold a password wherever it is malformed.
fn read_urls(reader: &mut Reader<'_>, ca: Option<&[u8]>) -> Option<Vec<Server>> {
    let urls: Vec<_> = split(reader.raw("EA_REDIS_URLS")).collect();
    let mut servers: Vec<Server> = Vec::new();
    let mut valid = true;
    for (index, url) in urls.iter().enumerate() {
        let nth = index + 1;
        let what = match Server::from_url(url, ca) {
            Ok(server) => match servers
                .iter()
                .position(|other| other.name() == server.name())
            {
                None => {
                    servers.push(server);
                    continue;
                }
                Some(first) => format!(
                    "URLs {} and {nth} name the same server, {}: it would vote twice; name each once",
                    first + 1,
                    server.name()
                ),
            },
            Err(what) => format!("URL {nth} of {} is not valid: {what}", urls.len()),
        };
        reader.mistake("EA_REDIS_URLS", what);
        valid = false;
    }
    if urls.is_empty() && reader.is_given("EA_REDIS_URLS") {
        reader.mistake(
            "EA_REDIS_URLS",
            "it holds no URL: give one, or leave it out",
        );
        valid = false;
    }
    valid.then_some(servers)
}

fn split(urls: &str) -> impl Iterator<Item = &str> {
    urls.split(',').map(str::trim).filter(|url| !url.is_empty())
}

/// The URLs without the passwords in them; what is no URL of a server is hidden whole.
pub(super) fn hide_credentials(urls: &str) -> String {
    let hidden: Vec<_> = urls
        .split(',')
        .map(|url| match Url::parse(url.trim()) {
            Ok(mut url) if Server::from_url(url.as_str(), None).is_ok() => {
                if url.password().is_some() && url.set_password(Some("***")).is_err() {
                    return "***".to_owned();
                }
                url.to_string()
            }
            _ => "***".to_owned(),
        })
        .collect();
    hidden.join(",")
}
