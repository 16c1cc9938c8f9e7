//! The contents of URLs: the addresses of servers and how to connect to them.

use std::{fmt, sync::Arc};

use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, ProtocolVersion,
    RedisConnectionInfo, RedisResult, TlsCertificates,
};
use url::{Host, Url};

const DEFAULT_PORT: u16 = 6379;

/// A host's name or IP address, and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Address {
    pub(super) host: Arc<str>,
    pub(super) port: u16,
}

impl Address {
    pub(super) fn new(host: &str, port: u16) -> Self {
        Self {
            host: host.into(),
            port,
        }
    }

    fn of(url: &Url) -> Option<Self> {
        let host = match url.host()? {
            Host::Domain("") => return None,
            Host::Ipv6(ip) => ip.to_string(),
            host => host.to_string(),
        };
        Some(Self::new(&host, url.port().unwrap_or(DEFAULT_PORT)))
    }

    /// Reads `host:port`, as servers write it in a redirection: IPv6 without brackets; no host means the server's own.
    pub(super) fn parse(text: &str, own: &Self) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = match host {
            "" => &own.host,
            host => host.trim_start_matches('[').trim_end_matches(']'),
        };
        Some(Self::new(host, port.parse().ok()?))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// The address of a Redis server and how to connect to it. The value is validated, but not connected.
#[derive(Clone)]
pub struct Server {
    name: String,
    address: Address,
    client: Client,
}

impl Server {
    /// Reads `redis[s]://[[user]:password@]host[:port][/db]`; `ca` is a PEM file's content that
    /// replaces the system's trusted roots for `rediss`.
    ///
    /// # Errors
    /// Says what is wrong with the URL. The text never holds the URL's credentials.
    pub fn from_url(url: &str, ca: Option<&[u8]>) -> Result<Self, String> {
        let url = parse(url)?;
        match url.query() {
            None => Self::new(url, ca),
            Some(_) => Err(format!("it has a \"?\": {EXPECTED}")),
        }
    }

    /// Reads a cluster's URL, `redis[s]://[[user]:password@]host[:port][?addr=host:port…]`: the members to query for
    /// all others, at least one. They share credentials and TLS.
    ///
    /// # Errors
    /// See [`from_url`](Self::from_url).
    pub fn members_from_url(url: &str, ca: Option<&[u8]>) -> Result<Vec<Self>, String> {
        let mut url = parse(url)?;
        let others: Vec<_> = url
            .query_pairs()
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect();
        url.set_query(None);
        let first = Self::new(url, ca)?;
        if first.db() != 0 {
            return Err(
                "a Redis Cluster has no numbered databases: leave the number out".to_owned(),
            );
        }
        let mut members = vec![first];
        for (name, value) in others {
            if name != "addr" {
                return Err("it has another query than addr=host:port".to_owned());
            }
            // Parsed as part of a URL, so that brackets and the default port have the meaning that they have there.
            let address = Url::parse(&format!("redis://{value}"))
                .ok()
                .filter(|url| url.username().is_empty() && url.password().is_none())
                .filter(|url| matches!(url.path(), "" | "/") && url.query().is_none())
                .and_then(|url| Address::of(&url));
            let Some(address) = address else {
                return Err("what follows addr= is not host:port".to_owned());
            };
            if members.iter().any(|member| member.address == address) {
                return Err(format!("it names {address} twice: name each member once"));
            }
            let member = members[0].at(&address)?;
            members.push(member);
        }
        Ok(members)
    }

    fn new(url: Url, ca: Option<&[u8]>) -> Result<Self, String> {
        let refuse = |what: &str| Err(format!("{what}: {EXPECTED}"));
        let Some(address) = Address::of(&url) else {
            return refuse("it names no host");
        };
        let db = url.path().trim_start_matches('/');
        if !db.is_empty() && db.parse::<u16>().is_err() {
            return refuse("what follows the host is not the number of a database");
        }
        let name = match db {
            "" | "0" => address.to_string(),
            db => format!("{address}/{db}"),
        };

        let tls = url.scheme() == "rediss";
        let info = url
            .into_connection_info()
            .map_err(|_| format!("it is no Redis URL: {EXPECTED}"))?;
        // Without `TCP_NODELAY`, every small reply waits for the acknowledgement of the one before.
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
        Ok(Self {
            name,
            address,
            client,
        })
    }

    /// `host:port`, and the database when it is not 0.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether both are the same server, even with different databases.
    #[must_use]
    pub fn is_same_place(&self, other: &Self) -> bool {
        self.address == other.address
    }

    /// Whether both are reached in the same way: user, password, database and TLS.
    #[must_use]
    pub fn has_same_access(&self, other: &Self) -> bool {
        let access = |server: &Self| {
            let info = server.info();
            let tls = matches!(info.addr(), ConnectionAddr::TcpTls { .. });
            let redis = info.redis_settings();
            (
                tls,
                redis.username().map(ToOwned::to_owned),
                redis.password().map(ToOwned::to_owned),
                redis.db(),
            )
        };
        access(self) == access(other)
    }

    /// The same server with other credentials, without a database.
    ///
    /// # Errors
    /// When there is no such client, which should not happen.
    pub fn with_credentials(
        &self,
        user: Option<&str>,
        password: Option<&str>,
    ) -> Result<Self, String> {
        let mut redis = RedisConnectionInfo::default();
        if let Some(user) = user {
            redis = redis.set_username(user);
        }
        if let Some(password) = password {
            redis = redis.set_password(password);
        }
        let info = self.info().clone().set_redis_settings(redis);
        Ok(Self {
            name: self.address.to_string(),
            address: self.address.clone(),
            client: Client::open(info).map_err(|error| error.to_string())?,
        })
    }

    /// Another server that is reached in the same way.
    pub(super) fn at(&self, address: &Address) -> Result<Self, String> {
        let (host, port) = (address.host.to_string(), address.port);
        let info = self.info().clone();
        let there = match info.addr() {
            ConnectionAddr::TcpTls {
                insecure,
                tls_params,
                ..
            } => ConnectionAddr::TcpTls {
                host,
                port,
                insecure: *insecure,
                tls_params: tls_params.clone(),
            },
            ConnectionAddr::Tcp(..) | ConnectionAddr::Unix(_) | _ => {
                ConnectionAddr::Tcp(host, port)
            }
        };
        Ok(Self {
            name: address.to_string(),
            address: address.clone(),
            client: Client::open(info.set_addr(there)).map_err(|error| error.to_string())?,
        })
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// A client whose connections receive what the server pushes.
    ///
    /// # Errors
    /// When there is no such client, which should not happen.
    pub(super) fn pushed_client(&self) -> RedisResult<Client> {
        let settings = self.info().redis_settings().clone();
        let settings = settings.set_protocol(ProtocolVersion::RESP3);
        Client::open(self.info().clone().set_redis_settings(settings))
    }

    pub(super) fn info(&self) -> &ConnectionInfo {
        self.client.get_connection_info()
    }

    fn db(&self) -> i64 {
        self.info().redis_settings().db()
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Server").field(&self.name).finish()
    }
}

// Errors quote nothing of a URL: wherever it is malformed, it may hold a password.
const EXPECTED: &str = "write redis[s]://user:password@host:port/db, with reserved characters in user \
                        and password percent-encoded";

fn parse(url: &str) -> Result<Url, String> {
    let refuse = |what: &str| Err(format!("{what}: {EXPECTED}"));
    let Ok(url) = Url::parse(url) else {
        return refuse("it is no URL");
    };
    if !matches!(url.scheme(), "redis" | "rediss") {
        return refuse("its scheme is not redis or rediss");
    }
    if url.fragment().is_some() {
        return refuse("it has a \"#\"");
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(url: &str) -> Result<Vec<String>, String> {
        let members = Server::members_from_url(url, None)?;
        Ok(members.iter().map(|member| member.name.clone()).collect())
    }

    #[test]
    fn a_clusters_url_names_one_member_or_more() {
        assert_eq!(members("redis://one"), Ok(vec!["one:6379".to_owned()]));
        let three = members("redis://u:p@one:1?addr=two:2&addr=[::1]:3");
        let expected = ["one:1", "two:2", "[::1]:3"].map(ToOwned::to_owned);
        assert_eq!(three, Ok(expected.to_vec()));
        for (url, named) in [
            ("redis://one/1", "no numbered databases"),
            ("redis://one?address=two", "addr=host:port"),
            ("redis://one?addr=", "not host:port"),
            ("redis://one?addr=u:s3cret@two", "not host:port"),
            ("redis://one?addr=two/1", "not host:port"),
            ("redis://one?addr=one:6379", "twice"),
        ] {
            let refused = members(url).expect_err(url);
            assert!(refused.contains(named), "{url}: {refused}");
            assert!(!refused.contains("s3cret"), "{refused}");
        }
    }

    #[test]
    fn another_server_of_the_same_deployment_is_talked_to_in_the_same_way() {
        let one = Server::from_url("rediss://user:secret@one:1/2", None).expect("valid");
        let two = one.at(&Address::new("two", 7)).expect("valid");
        assert!(two.has_same_access(&one) && !two.is_same_place(&one));
        let sentinel = one.with_credentials(None, Some("other")).expect("valid");
        assert!(sentinel.is_same_place(&one) && !sentinel.has_same_access(&one));
        assert_eq!(sentinel.db(), 0);
    }

    #[test]
    fn redirections_name_a_host_or_mean_the_server_itself() {
        let own = Address::new("one", 1);
        let parse = |text| Address::parse(text, &own).map(|address| address.to_string());
        assert_eq!(parse("two:2").as_deref(), Some("two:2"));
        assert_eq!(parse(":2").as_deref(), Some("one:2"));
        assert_eq!(parse("fe80::1:2").as_deref(), Some("[fe80::1]:2"));
        assert_eq!(parse("two"), None);
    }
}
