//! A `redis-server` process: a server alone, a member of a cluster, or a Sentinel.

use std::{
    collections::HashSet,
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::LazyLock,
    time::Duration,
};

use parking_lot::Mutex;
use redis::{AsyncConnectionConfig, Cmd, FromRedisValue, RedisResult, aio::MultiplexedConnection};
use tempfile::TempDir;

use super::{Clock, eventually};

const LOG: &str = "server.log";
const SNAPSHOT: &str = "dump.rdb";
const SENTINEL_CONFIG: &str = "sentinel.conf";
/// The log lines of a server and of a Sentinel that listens and has loaded its data.
const READY: [&str; 2] = ["Ready to accept connections", "Sentinel ID is"];
/// Timeout of the harness's own commands; a stopped server does not reply.
const ASK_LIMIT: Duration = Duration::from_millis(500);

/// A running Redis server; killed when dropped.
pub struct Redis {
    child: Option<Child>,
    kind: Kind,
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
    port: u16,
    /// `user:password@` for the harness's own commands.
    login: String,
    directory: TempDir,
}

enum Kind {
    Server,
    Tls,
    Member { bus: u16 },
    Sentinel { config: String },
}

impl Redis {
    /// Starts a server without persistence.
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// Starts a server with these additional arguments.
    pub async fn with(arguments: &[&str]) -> Self {
        Self::new(Kind::Server, arguments, "").begin().await
    }

    /// Starts this many servers, each with these additional arguments.
    pub async fn several(number: usize, arguments: &[&str]) -> Vec<Self> {
        let mut servers = Vec::new();
        for _ in 0..number {
            servers.push(Self::with(arguments).await);
        }
        servers
    }

    /// Starts a server that the harness logs in to with `user:password@`.
    pub async fn with_login(login: &str, arguments: &[&str]) -> Self {
        Self::new(Kind::Server, arguments, login).begin().await
    }

    /// Starts a server with this clock.
    pub async fn with_clock(clock: &Clock) -> Self {
        let mut redis = Self::new(Kind::Server, &[], "");
        redis.environment.extend(clock.environment());
        redis.begin().await
    }

    /// Starts a server that speaks only TLS, with this certificate and key.
    pub async fn with_tls(certificate: &str, key: &str, arguments: &[&str]) -> Self {
        let mut redis = Self::new(Kind::Tls, arguments, "");
        let (certificate_file, key_file) = (
            redis.directory.path().join("server.crt"),
            redis.directory.path().join("server.key"),
        );
        std::fs::write(&certificate_file, certificate).expect("written");
        std::fs::write(&key_file, key).expect("written");
        redis.arguments.extend([
            "--tls-cert-file".to_owned(),
            certificate_file.display().to_string(),
            "--tls-key-file".to_owned(),
            key_file.display().to_string(),
            "--tls-auth-clients".to_owned(),
            "no".to_owned(),
        ]);
        redis.begin().await
    }

    /// Starts a server that may join a cluster.
    pub(crate) async fn member(arguments: &[&str]) -> Self {
        Self::new(Kind::Member { bus: 0 }, arguments, "")
            .begin()
            .await
    }

    /// Starts a Sentinel with this configuration, which it updates itself.
    pub(crate) async fn sentinel(config: String, login: &str) -> Self {
        Self::new(Kind::Sentinel { config }, &[], login)
            .begin()
            .await
    }

    fn new(kind: Kind, arguments: &[&str], login: &str) -> Self {
        Self {
            child: None,
            kind,
            arguments: arguments
                .iter()
                .map(|argument| (*argument).to_owned())
                .collect(),
            environment: Vec::new(),
            port: 0,
            login: login.to_owned(),
            directory: TempDir::new().expect("a directory"),
        }
    }

    /// Starts the server for the first time, on free ports.
    async fn begin(mut self) -> Self {
        for _ in 0..10 {
            self.port = free_port();
            if let Kind::Member { bus } = &mut self.kind {
                *bus = free_port();
            }
            if self.launch(&[]).await {
                return self;
            }
            // Another process took the port first.
        }
        panic!("redis-server does not start:\n{}", self.log());
    }

    /// Starts the server again on the same port, with its persisted data.
    pub async fn run(&mut self) {
        let started = self.launch(&[]).await;
        assert!(started, "redis-server does not start:\n{}", self.log());
    }

    /// Returns the server's present data, as on its disk.
    pub async fn snapshot(&self) -> Vec<u8> {
        eventually("saved", async || {
            // Refused while the server rewrites its log.
            self.ask::<()>(&redis::cmd("SAVE")).await.ok()
        })
        .await;
        std::fs::read(self.directory.path().join(SNAPSHOT)).expect("a snapshot")
    }

    /// Starts a stopped server with a snapshot instead of its persisted data.
    pub async fn run_from(&mut self, snapshot: &[u8]) {
        self.forget();
        std::fs::write(self.directory.path().join(SNAPSHOT), snapshot).expect("written");
        // A server with an append-only log ignores snapshots.
        let started = self.launch(&["--appendonly", "no"]).await;
        assert!(started, "redis-server does not start:\n{}", self.log());
        if self
            .arguments
            .iter()
            .any(|argument| argument == "--appendonly")
        {
            let mut append = redis::cmd("CONFIG");
            append.arg(&["SET", "appendonly", "yes"]);
            self.ask::<()>(&append).await.expect("appends");
        }
    }

    /// Starts the process, and waits until it is ready; false if it ended before.
    async fn launch(&mut self, besides: &[&str]) -> bool {
        assert!(self.child.is_none(), "it is running");
        let directory = self.directory.path();
        let log = directory.join(LOG);
        // The log of an earlier process does not count.
        let _ = std::fs::remove_file(&log);
        let port = self.port.to_string();
        let mut command = Command::new("redis-server");
        match &self.kind {
            Kind::Server => {
                command.args(["--port", &port]);
            }
            Kind::Tls => {
                command.args(["--port", "0", "--tls-port", &port]);
            }
            Kind::Member { bus } => {
                command.args(["--port", &port, "--cluster-enabled", "yes"]);
                command.args(["--cluster-port", &bus.to_string()]);
            }
            Kind::Sentinel { config } => {
                let file = directory.join(SENTINEL_CONFIG);
                if !file.exists() {
                    std::fs::write(&file, config).expect("written");
                }
                command.arg(file).args(["--sentinel", "--port", &port]);
            }
        }
        if !matches!(self.kind, Kind::Sentinel { .. }) {
            command.args(["--save", "", "--appendonly", "no"]);
        }
        let child = command
            .args(["--bind", "127.0.0.1", "--logfile"])
            .arg(&log)
            .arg("--dir")
            .arg(directory)
            .args(&self.arguments)
            .args(besides)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server starts: `make test` installs it");
        let child = self.child.insert(child);
        let ready = eventually("redis-server is ready", async || {
            if child.try_wait().expect("waits").is_some() {
                return Some(false);
            }
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            READY.iter().any(|line| log.contains(line)).then_some(true)
        })
        .await;
        if !ready {
            self.child = None;
        }
        ready
    }

    /// Returns the server's log since its last start.
    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join(LOG)).unwrap_or_default()
    }

    /// Ends the server at once, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("killed");
            child.wait().expect("reaped");
        }
    }

    /// Returns whether the server was started and has not been killed since.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Deletes the persisted data of a stopped server.
    pub fn forget(&mut self) {
        assert!(self.child.is_none(), "it is running");
        self.directory = TempDir::new().expect("a directory");
    }

    /// Sends the process a signal, such as `STOP`.
    pub fn signal(&self, name: &str) {
        let child = self.child.as_ref().expect("running");
        super::signal(child.id(), name);
    }

    /// Returns the port that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the port for the other members of its cluster.
    pub(crate) fn bus(&self) -> u16 {
        match self.kind {
            Kind::Member { bus } => bus,
            _ => panic!("not a member of a cluster"),
        }
    }

    /// Returns the URL, without credentials.
    pub fn url(&self) -> String {
        self.url_as("")
    }

    /// Returns the URL with these credentials: `user:password@`.
    pub fn url_as(&self, credentials: &str) -> String {
        match self.kind {
            Kind::Tls => format!("rediss://{credentials}localhost:{}", self.port),
            _ => format!("redis://{credentials}127.0.0.1:{}", self.port),
        }
    }

    pub(crate) fn client(&self) -> redis::Client {
        redis::Client::open(self.url_as(&self.login)).expect("a URL")
    }

    /// Opens a connection, separate from the agent's.
    pub async fn connect(&self) -> MultiplexedConnection {
        self.client()
            .get_multiplexed_async_connection()
            .await
            .expect("connects")
    }

    /// Sends one command on a new connection.
    pub async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ASK_LIMIT))
            .set_response_timeout(Some(ASK_LIMIT));
        let mut connection = self
            .client()
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        command.query_async(&mut connection).await
    }

    /// Returns the keys whose values contain this word, and in how many ms they expire (-1: never); `None` if the
    /// server does not reply.
    pub async fn keys_with(&self, word: &str) -> Option<Vec<(String, i64)>> {
        let ask = async |command: &str, key: &str| -> Option<redis::Value> {
            self.ask(redis::cmd(command).arg(key)).await.ok()
        };
        let keys: Vec<String> = self.ask(redis::cmd("KEYS").arg("*")).await.ok()?;
        let mut found = Vec::new();
        for key in keys {
            let kind: String = self.ask(redis::cmd("TYPE").arg(&key)).await.ok()?;
            let content = match kind.as_str() {
                "hash" => ask("HVALS", &key).await?,
                "string" => ask("GET", &key).await?,
                _ => continue,
            };
            if values_contain(&content, word) {
                let lapses = self.ask(redis::cmd("PTTL").arg(&key)).await.ok()?;
                found.push((key, lapses));
            }
        }
        Some(found)
    }

    /// Returns how often the server has executed a command.
    pub async fn calls(&self, command: &str) -> u64 {
        let field = format!("cmdstat_{command}");
        let line = self.info("commandstats", &field).await;
        let line = line.unwrap_or_default();
        let calls = line.split(',').next().unwrap_or_default();
        let calls = calls.trim_start_matches("calls=");
        calls.parse().unwrap_or_default()
    }

    /// Returns a field of `INFO`, if the server replies.
    pub async fn info(&self, section: &str, field: &str) -> Option<String> {
        let info: String = self.ask(redis::cmd("INFO").arg(section)).await.ok()?;
        value_of(&info, field).map(str::to_owned)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

fn values_contain(content: &redis::Value, word: &str) -> bool {
    match content {
        redis::Value::Array(values) => values.iter().any(|value| values_contain(value, word)),
        redis::Value::BulkString(bytes) => {
            let mut windows = bytes.windows(word.len());
            windows.any(|window| window == word.as_bytes())
        }
        redis::Value::SimpleString(text) => text.contains(word),
        _ => false,
    }
}

/// Returns the value in the line `field:value`.
pub(crate) fn value_of<'a>(lines: &'a str, field: &str) -> Option<&'a str> {
    lines
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find_map(|(name, value)| (name == field).then_some(value))
}

/// Ports that are taken: a killed server must find its port free again.
static GIVEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);

/// Returns a free port below the range that systems use for outgoing connections.
fn free_port() -> u16 {
    let mut given = GIVEN.lock();
    (0..1_000)
        .map(|_| fastrand::u16(10_000..32_000))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok() && given.insert(*port))
        .expect("a free port")
}
