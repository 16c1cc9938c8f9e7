//! The measured processes: started on free ports of 127.0.0.1, and killed when they are dropped.

use std::{
    ffi::OsStr,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use http::StatusCode;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    net::TcpListener,
    process::{Child, ChildStdout, Command},
    time::{Instant, sleep, timeout},
};

use super::{http::get, sink::Sink};

/// The client program for Redis servers.
const CLI: &str = "redis-cli";
/// How long a process may take to start.
const START_WITHIN: Duration = Duration::from_secs(20);
/// How long a killed process may take to exit.
const END_WITHIN: Duration = Duration::from_secs(5);
/// The interval of polls.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often a start is tried, as another process may take the free port first.
const TRIES: u32 = 5;
/// The longest term that an agent grants. Elections must stay held until they have been measured.
pub(crate) const LONG_TERM: Duration = Duration::from_secs(3600);

/// A process with a log; killed when dropped.
#[derive(Debug)]
struct Process {
    child: Child,
    pid: u32,
    log: PathBuf,
}

impl Process {
    /// Starts a program. If the program is missing, the error contains `needs`.
    fn start(mut command: Command, log: PathBuf, needs: &str) -> Result<Self, String> {
        let program = command.as_std().get_program().to_owned();
        let failed =
            |error: std::io::Error| format!("cannot start {}: {error}: {needs}", program.display());
        let stderr = fs::File::create(&log).map_err(failed)?;
        let child = command
            .kill_on_drop(true)
            .stdin(Stdio::null())
            .stderr(stderr)
            .spawn()
            .map_err(failed)?;
        let pid = child.id().unwrap_or_default();
        Ok(Self { child, pid, log })
    }

    /// Returns whether the process runs.
    fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The last lines of its log.
    fn log(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

impl Drop for Process {
    /// Kills the process and waits for its exit, so that it does not disturb the next measurement.
    fn drop(&mut self) {
        let began = Instant::now();
        // A process that cannot be killed has already exited.
        if self.child.start_kill().is_ok() {
            while self.runs() && began.elapsed() < END_WITHIN {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// Polls until there is a result, or the time limit is over.
pub(crate) async fn until<T>(
    limit: Duration,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> Option<T> {
    let began = Instant::now();
    while began.elapsed() < limit {
        // Bounds a poll that hangs.
        if let Ok(Some(found)) = timeout(limit, look()).await {
            return Some(found);
        }
        sleep(LOOK_EVERY).await;
    }
    None
}

/// Checks that a Redis tool is installed, before anything is measured.
///
/// # Errors
/// Returns an error if it is not.
pub(crate) async fn look_for(tool: &str) -> Result<(), String> {
    let version = Command::new(tool)
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .await;
    version.map(drop).map_err(|error| missing(tool, &error))
}

/// The error text for a Redis tool that cannot be started.
pub(crate) fn missing(tool: &str, error: &std::io::Error) -> String {
    format!("cannot start {tool}: {error}: install Redis' tools (`apt-get install redis-tools`)")
}

/// A Redis server without persistence.
#[derive(Debug)]
pub(crate) struct Redis {
    process: Process,
    port: u16,
    _directory: TempDir,
}

impl Redis {
    /// Starts a server.
    ///
    /// # Errors
    /// Returns an error if `redis-server` or `redis-cli` is missing, or the server does not start.
    pub(crate) async fn start() -> Result<Self, String> {
        look_for(CLI).await?;
        let mut log = String::new();
        for _ in 0..TRIES {
            let port = free_port().await?;
            let directory = directory()?;
            let mut command = Command::new("redis-server");
            command
                .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
                .args(["--save", "", "--appendonly", "no"])
                .args(["--maxmemory-policy", "noeviction", "--dir"])
                .arg(directory.path())
                .arg("--logfile")
                .arg(directory.path().join("log"))
                .stdout(Stdio::null());
            let needs = "install Redis (`apt-get install redis-server`)";
            let process = Process::start(command, directory.path().join("log"), needs)?;
            let mut redis = Self {
                process,
                port,
                _directory: directory,
            };
            // Another server could have taken the port. The process id identifies this one.
            let own = format!("process_id:{}\r\n", redis.pid());
            let serves = until(START_WITHIN, async || {
                if !redis.process.runs() {
                    return Some(false);
                }
                let info = redis.ask(["INFO", "server"].map(OsStr::new)).await.ok()?;
                info.contains(&own).then_some(true)
            });
            if serves.await == Some(true) {
                return Ok(redis);
            }
            log = redis.process.log();
        }
        Err(format!("redis-server does not serve; its log ends:\n{log}"))
    }

    /// Starts this number of servers.
    ///
    /// # Errors
    /// As [`Redis::start`].
    pub(crate) async fn start_all(servers: u32) -> Result<Vec<Self>, String> {
        let mut started = Vec::new();
        for _ in 0..servers {
            started.push(Self::start().await?);
        }
        Ok(started)
    }

    /// Sends a command, and returns the reply as `redis-cli` prints it.
    ///
    /// # Errors
    /// Returns an error if there is no reply.
    pub(crate) async fn ask<'a>(
        &self,
        command: impl IntoIterator<Item = &'a OsStr>,
    ) -> Result<String, String> {
        let output = self.cli(command).output().await;
        let output = output.map_err(|error| missing(CLI, &error))?;
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status.success() {
            true => Ok(answer),
            false => Err(format!(
                "{CLI}: {}: {answer}{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            )),
        }
    }

    /// Starts to observe the commands of clients.
    ///
    /// # Errors
    /// Returns an error if the server does not start MONITOR.
    pub(crate) async fn monitor(&self) -> Result<Monitor, String> {
        let mut child = self
            .cli([OsStr::new("MONITOR")])
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| missing(CLI, &error))?;
        let Some(out) = child.stdout.take() else {
            return Err("MONITOR has no output".to_owned());
        };
        let mut monitor = Monitor {
            lines: BufReader::new(out).lines(),
            _child: child,
        };
        // After this reply, it reports every command.
        match monitor.next().await.as_deref() {
            Some("OK") => Ok(monitor),
            other => Err(format!("MONITOR: {}", other.unwrap_or("no answer"))),
        }
    }

    fn cli<'a>(&self, command: impl IntoIterator<Item = &'a OsStr>) -> Command {
        let mut cli = Command::new(CLI);
        cli.args(["-h", "127.0.0.1", "-p", &self.port.to_string()])
            .args(command)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        cli
    }

    /// The server's port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The server's process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

/// Observes the commands that clients send to a server, until it is dropped.
#[derive(Debug)]
pub(crate) struct Monitor {
    lines: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Monitor {
    /// The next command, as MONITOR prints it; `None` after the end.
    pub(crate) async fn next(&mut self) -> Option<String> {
        self.lines.next_line().await.ok().flatten()
    }
}

/// An agent with every layer on: metrics, a trace of one in a hundred requests, and a rate limit far above
/// the load.
#[derive(Debug)]
pub(crate) struct Agent {
    process: Process,
    http: SocketAddr,
    grpc: SocketAddr,
    _directory: TempDir,
}

impl Agent {
    /// Starts an agent with these lease nodes and this receiver of traces, and waits until it is ready.
    ///
    /// # Errors
    /// Returns an error if the binary is missing, or the agent is not ready within 20 s.
    pub(crate) async fn start(
        binary: &Path,
        servers: &[Redis],
        sink: &Sink,
    ) -> Result<Self, String> {
        let urls: Vec<_> = servers.iter().map(Redis::url).collect();
        let term = format!("{}s", LONG_TERM.as_secs());
        let mut line = String::new();
        for _ in 0..TRIES {
            let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
            let (http, grpc) = (address(free_port().await?), address(free_port().await?));
            let directory = directory()?;
            let mut command = Command::new(binary);
            command
                // This program's environment must not configure the agent.
                .env_clear()
                .env("EA_BIND_ADDRESS", "127.0.0.1")
                .env("EA_HTTP_PORT", http.port().to_string())
                .env("EA_GRPC_PORT", grpc.port().to_string())
                .env("EA_REDIS_URLS", urls.join(","))
                .env("EA_KUBE_ENABLE", "false")
                .env("EA_LOG_LEVEL", "warning")
                .env("EA_MAX_TERM", &term)
                .env("EA_RATE_LIMIT_PER_SECOND", "1000000")
                .env("EA_MAX_CONNECTIONS", "1000000")
                .env("EA_MAX_IN_FLIGHT", "1000000")
                .env("OTEL_TRACES_EXPORTER", "otlp")
                .env(
                    "OTEL_EXPORTER_OTLP_ENDPOINT",
                    format!("http://{}", sink.address()),
                )
                .env("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
                .env("OTEL_TRACES_SAMPLER_ARG", "0.01")
                .stdout(Stdio::null());
            let needs = "build it with `cargo build --release`, and name it by --agent";
            let process = Process::start(command, directory.path().join("log"), needs)?;
            let mut agent = Self {
                process,
                http,
                grpc,
                _directory: directory,
            };
            let mut last = "it does not listen".to_owned();
            let ready = until(START_WITHIN, async || {
                if !agent.process.runs() {
                    "it has ended".clone_into(&mut last);
                    return Some(false);
                }
                let (status, body) = get(http, "/readyz").await.ok()?;
                last = String::from_utf8_lossy(&body).into_owned();
                (status == StatusCode::OK).then_some(true)
            });
            let ready = ready.await;
            if ready == Some(true) && agent.process.runs() {
                return Ok(agent);
            }
            line = format!(
                "the agent {} is not ready: {last}; its log ends:\n{}",
                binary.display(),
                agent.process.log()
            );
            if ready.is_none() {
                break;
            }
        }
        Err(line)
    }

    /// The address for HTTP/1.1.
    pub(crate) fn http(&self) -> SocketAddr {
        self.http
    }

    /// The address for gRPC.
    pub(crate) fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid
    }

    /// The last lines of its log.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }
}

/// The floor: a bare tonic server in another process of this program.
#[derive(Debug)]
pub(crate) struct Floor {
    process: Process,
    address: SocketAddr,
    _directory: TempDir,
}

impl Floor {
    /// Starts the floor.
    ///
    /// # Errors
    /// Returns an error if it does not report its address.
    pub(crate) async fn start() -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let directory = directory()?;
        let mut command = Command::new(program);
        command.arg("floor").stdout(Stdio::piped());
        let needs = "is this program still where it was?";
        let mut process = Process::start(command, directory.path().join("log"), needs)?;
        let mut lines = process
            .child
            .stdout
            .take()
            .map(|out| BufReader::new(out).lines());
        let line = async { lines.as_mut()?.next_line().await.ok()? };
        let line = timeout(START_WITHIN, line).await.ok().flatten();
        let address = line.as_deref().and_then(|line| {
            let (_, address) = line.split_once("http://")?;
            address.split(',').next()?.parse().ok()
        });
        match address {
            Some(address) => Ok(Self {
                process,
                address,
                _directory: directory,
            }),
            None => Err(format!(
                "the floor does not say where it listens: {}",
                process.log()
            )),
        }
    }

    /// The address that it listens on.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid
    }
}

async fn free_port() -> Result<u16, String> {
    let failed = |error: std::io::Error| format!("no free port: {error}");
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
    Ok(listener.local_addr().map_err(failed)?.port())
}

fn directory() -> Result<TempDir, String> {
    TempDir::new().map_err(|error| format!("no temporary directory: {error}"))
}
