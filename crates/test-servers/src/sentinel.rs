//! A primary and its replicas, monitored by three Sentinels.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use parking_lot::Mutex;
use redis::{aio::PubSub, cmd};
use tokio::task::AbortHandle;

use super::{Redis, eventually_within};

const SENTINELS: usize = 3;
/// Sentinels make a former primary follow the new one only after eight seconds, and check replicas every ten.
const SETTLING: Duration = Duration::from_secs(40);

/// What to start.
#[derive(Default)]
pub struct Deployment<'a> {
    /// Additional arguments of the servers.
    pub arguments: &'a [&'a str],
    /// User and password of the servers; `None`: no authentication.
    pub servers: Option<(&'a str, &'a str)>,
    /// User and password of the Sentinels; `None`: no authentication.
    pub sentinels: Option<(&'a str, &'a str)>,
}

/// One primary, two replicas and three Sentinels; all are killed when dropped.
pub struct Sentinels {
    /// The primary is first until a failover.
    pub servers: Vec<Redis>,
    /// The Sentinels that monitor the servers.
    pub sentinels: Vec<Redis>,
    sentinel_login: String,
    switches: Arc<Mutex<Vec<Switch>>>,
    listening: Vec<AbortHandle>,
}

/// A failover that a Sentinel reported.
#[derive(Debug, Clone, Copy)]
struct Switch {
    at: Instant,
    from: u16,
}

impl Sentinels {
    /// Starts servers and Sentinels without authentication.
    pub async fn start() -> Self {
        Self::with(Deployment::default()).await
    }

    /// Starts the deployment and waits until it has settled.
    pub async fn with(deployment: Deployment<'_>) -> Self {
        let mut servers: Vec<Redis> = Vec::new();
        for _ in 0..3 {
            let mut arguments = vec!["--repl-diskless-sync-delay 0".to_owned()];
            if let Some(primary) = servers.first() {
                arguments.push(format!("--replicaof 127.0.0.1 {}", primary.port()));
            }
            if let Some((user, password)) = deployment.servers {
                arguments.push(format!("--masteruser {user} --masterauth {password}"));
                arguments.push(format!("--user {user} on >{password} ~* &* +@all"));
                arguments.push("--user default off".to_owned());
            }
            let arguments = arguments.join(" ");
            let all: Vec<_> = arguments
                .split(' ')
                .chain(deployment.arguments.iter().copied())
                .collect();
            let login = login(deployment.servers);
            servers.push(Redis::with_login(&login, &all).await);
        }
        // A Sentinel that checks too early finds no replicas, and checks again only ten seconds later.
        let primary = servers[0].port();
        for replica in &servers[1..] {
            eventually_within(SETTLING, "a replica in sync", async || {
                follows(replica, primary).await.then_some(())
            })
            .await;
        }

        let config = config(primary, &deployment);
        let sentinel_login = login(deployment.sentinels);
        let mut sentinels = Vec::new();
        for _ in 0..SENTINELS {
            sentinels.push(Redis::sentinel(config.clone(), &sentinel_login).await);
        }
        let switches = Arc::default();
        let mut listening = Vec::new();
        for sentinel in &sentinels {
            let client = sentinel.client();
            let subscribed = subscribe(&client).await.expect("subscribes");
            let note = note_switches(client, subscribed, Arc::clone(&switches));
            listening.push(tokio::spawn(note).abort_handle());
        }
        let started = Self {
            servers,
            sentinels,
            sentinel_login,
            switches,
            listening,
        };
        started.settled().await;
        started
    }

    /// Returns the Sentinels' name for the primary.
    pub fn name(&self) -> &'static str {
        "elections"
    }

    /// Returns the URLs of the Sentinels, comma separated.
    pub fn urls(&self) -> String {
        let urls: Vec<_> = self.sentinels.iter().map(Redis::url).collect();
        urls.join(",")
    }

    /// Returns the primary if the Sentinels that reply agree on it.
    pub async fn primary(&self) -> Option<usize> {
        let mut told = None;
        for sentinel in running(&self.sentinels) {
            let mut question = cmd("SENTINEL");
            question.arg("GET-MASTER-ADDR-BY-NAME").arg(self.name());
            if let Ok((_, port)) = sentinel.ask::<(String, u16)>(&question).await
                && told.replace(port).is_some_and(|other| other != port)
            {
                return None;
            }
        }
        self.servers
            .iter()
            .position(|server| Some(server.port()) == told)
    }

    /// Waits until every other running server follows the primary, and every running Sentinel sees all of them and the
    /// other Sentinels. Returns the primary.
    pub async fn settled(&self) -> usize {
        eventually_within(SETTLING, "servers and Sentinels agree", async || {
            let primary = self.primary().await?;
            if !self.servers[primary].is_running() {
                return None;
            }
            let port = self.servers[primary].port();
            for replica in running(&self.servers).filter(|server| server.port() != port) {
                if !follows(replica, port).await {
                    return None;
                }
            }
            for sentinel in running(&self.sentinels) {
                let replicas = self.healthy(sentinel, "REPLICAS").await?;
                let others = self.healthy(sentinel, "SENTINELS").await?;
                if replicas + 1 < running(&self.servers).count()
                    || others + 1 < running(&self.sentinels).count()
                {
                    return None;
                }
            }
            Some(primary)
        })
        .await
    }

    /// Returns how many of the others a Sentinel reports as healthy.
    async fn healthy(&self, sentinel: &Redis, whom: &str) -> Option<usize> {
        let mut question = cmd("SENTINEL");
        question.arg(whom).arg(self.name());
        let seen: Vec<HashMap<String, String>> = sentinel.ask(&question).await.ok()?;
        let healthy = seen
            .iter()
            .filter(|one| ["slave", "sentinel"].contains(&one["flags"].as_str()));
        Some(healthy.count())
    }

    /// Waits until a Sentinel has reported, at `since` or later, that this server is no longer the primary. Returns the
    /// time of the first report.
    pub async fn failed_over_from(&self, server: usize, since: Instant) -> Instant {
        let port = self.servers[server].port();
        eventually_within(SETTLING, "a failover", async || {
            let switches = self.switches.lock();
            switches
                .iter()
                .filter(|switch| switch.from == port && switch.at >= since)
                .map(|switch| switch.at)
                .min()
        })
        .await
    }

    /// Returns `user:password@` of the Sentinels.
    pub fn sentinel_login(&self) -> &str {
        &self.sentinel_login
    }
}

impl Drop for Sentinels {
    fn drop(&mut self) {
        for listening in &self.listening {
            listening.abort();
        }
    }
}

fn login(credentials: Option<(&str, &str)>) -> String {
    credentials.map_or_else(String::new, |(user, password)| {
        format!("{user}:{password}@")
    })
}

fn config(primary: u16, deployment: &Deployment<'_>) -> String {
    let name = "elections";
    let mut lines = vec![
        format!("sentinel monitor {name} 127.0.0.1 {primary} 2"),
        format!("sentinel down-after-milliseconds {name} 1000"),
        // After a failed failover, a Sentinel waits twice this time for the next try.
        format!("sentinel failover-timeout {name} 2000"),
    ];
    if let Some((user, password)) = deployment.servers {
        lines.push(format!("sentinel auth-user {name} {user}"));
        lines.push(format!("sentinel auth-pass {name} {password}"));
    }
    if let Some((user, password)) = deployment.sentinels {
        lines.push(format!("user {user} on >{password} ~* &* +@all"));
        lines.push("user default off".to_owned());
        lines.push(format!("sentinel sentinel-user {user}"));
        lines.push(format!("sentinel sentinel-pass {password}"));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn running(all: &[Redis]) -> impl Iterator<Item = &Redis> {
    all.iter().filter(|redis| redis.is_running())
}

/// Returns whether a server is a replica of the one on this port, and in sync.
async fn follows(replica: &Redis, port: u16) -> bool {
    replica.info("replication", "master_port").await == Some(port.to_string())
        && replica
            .info("replication", "master_link_status")
            .await
            .as_deref()
            == Some("up")
}

async fn subscribe(client: &redis::Client) -> redis::RedisResult<PubSub> {
    let mut subscribed = client.get_async_pubsub().await?;
    subscribed.subscribe("+switch-master").await?;
    Ok(subscribed)
}

/// Records the failovers that a Sentinel reports, forever.
async fn note_switches(
    client: redis::Client,
    mut subscribed: PubSub,
    switches: Arc<Mutex<Vec<Switch>>>,
) {
    loop {
        while let Some(message) = subscribed.on_message().next().await {
            let at = Instant::now();
            let text: String = message.get_payload().expect("text");
            // The name, and the address and port of the old and of the new primary.
            let from = text.split(' ').nth(2).and_then(|port| port.parse().ok());
            switches.lock().push(Switch {
                at,
                from: from.expect("a port"),
            });
        }
        // The Sentinel was killed, and may be started again.
        subscribed = loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if let Ok(subscribed) = subscribe(&client).await {
                break subscribed;
            }
        };
    }
}
