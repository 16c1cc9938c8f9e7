//! An `election-agent` process.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc,
    time::Duration,
};

use election_proto::election_client::ElectionClient;
use reqwest::Method;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::Value;
use tonic::transport::{Channel, Endpoint};

use super::{eventually, eventually_within, signal};

/// A running agent; killed when dropped.
pub(crate) struct Agent {
    child: Child,
    address: SocketAddr,
    early_log: Vec<String>,
    log: mpsc::Receiver<String>,
    http: reqwest::Client,
    channel: Channel,
}

/// An answer over REST.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    pub(crate) fn text(&self, member: &str) -> &str {
        self.body[member].as_str().unwrap_or_default()
    }
}

/// The settings of the store.
const STORES: [&str; 3] = ["EA_STORE", "EA_REDIS_URLS", "EA_EMBEDDED_PATH"];

/// The agent's binary, with only these settings; in memory, unless they say where leases are kept.
pub(crate) fn command(settings: &[(String, String)]) -> Command {
    let mut command = bare_command();
    if !settings
        .iter()
        .any(|(name, _)| STORES.contains(&name.as_str()))
    {
        command.env("EA_STORE", "memory");
    }
    command
        .env("EA_BIND_ADDRESS", "127.0.0.1")
        .env("EA_HTTP_PORT", "0")
        .env("EA_GRPC_PORT", "0")
        .envs(settings.iter().map(|(name, value)| (name, value)));
    command
}

/// The agent's binary, without any setting.
pub(crate) fn bare_command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_election-agent"));
    command.env_clear();
    command
}

/// Settings as an agent is started with.
pub(crate) fn owned(settings: &[(impl AsRef<str>, impl AsRef<str>)]) -> Vec<(String, String)> {
    let owned = settings
        .iter()
        .map(|(name, value)| (name.as_ref().to_owned(), value.as_ref().to_owned()));
    owned.collect()
}

/// Runs the agent's binary to its end.
pub(crate) fn output(arguments: &[&str], settings: &[(&str, &str)]) -> Output {
    command(&owned(settings))
        .args(arguments)
        .output()
        .expect("runs")
}

/// A bearer token, and the line that knows it, as `token new` makes them.
pub(crate) fn new_token(arguments: &[&str]) -> (String, String) {
    let output = output(&[&["token", "new"], arguments].concat(), &[]);
    assert!(output.status.success(), "{output:?}");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text").trim().to_owned();
    let told = text(output.stderr);
    let token = told
        .lines()
        .find_map(|line| line.strip_prefix("export TOKEN="));
    let token = token.unwrap_or_else(|| panic!("no token in: {told}"));
    (token.to_owned(), text(output.stdout))
}

/// The agent's binary, with only these settings, after a shell's command such as `ulimit`, which it inherits.
pub(crate) fn command_after(shell: &str, settings: &[(String, String)]) -> Command {
    let agent = command(settings);
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("{shell} && exec \"$0\"")])
        .arg(agent.get_program())
        .env_clear()
        .envs(
            agent
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
    command
}

impl Agent {
    pub(crate) async fn start(settings: &[(impl AsRef<str>, impl AsRef<str>)]) -> Self {
        Self::run(command(&owned(settings))).await
    }

    pub(crate) async fn run(mut command: Command) -> Self {
        // For the clients of the tests.
        election_agent::tls::install_provider();
        let mut child = command.stderr(Stdio::piped()).spawn().expect("starts");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (sender, log) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut early_log = Vec::new();
        let limit = Duration::from_secs(20);
        // Without blocking servers of the test, which the agent may be calling.
        let address = eventually_within(limit, "the agent says where it listens", async || {
            loop {
                let line = match log.try_recv() {
                    Ok(line) => line,
                    Err(mpsc::TryRecvError::Empty) => return None,
                    Err(mpsc::TryRecvError::Disconnected) => panic!("it has ended: {early_log:?}"),
                };
                early_log.push(line.clone());
                let line: Value = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if line["message"] == "listening" {
                    let address = line["address"].as_str().expect("an address");
                    return Some(address.parse().expect("an address"));
                }
            }
        })
        .await;
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .expect("a URL")
            .connect_lazy();
        Self {
            child,
            address,
            early_log,
            log,
            http: reqwest::Client::new(),
            channel,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(crate) fn grpc(&self) -> ElectionClient<Channel> {
        ElectionClient::new(self.channel())
    }

    pub(crate) async fn rest(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let mut request = self
            .http
            .request(method, format!("http://{}{path}", self.address));
        if let Some(body) = body {
            request = request.json(&body);
        }
        self.send(request).await
    }

    pub(crate) async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        let response = request.send().await.expect("an answer");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.expect("a body");
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Answer {
            status,
            headers,
            body,
        }
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http
            .request(method, format!("http://{}{path}", self.address))
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.rest(Method::GET, path, None).await
    }

    /// Waits until `/readyz` has the status, and reports all of this.
    pub(crate) async fn readiness(&self, status: u16, says: &[&str]) {
        eventually(&format!("{status} and {says:?}"), async || {
            let answer = self.get("/readyz").await;
            let body = answer.body.to_string();
            (answer.status == status && says.iter().all(|text| body.contains(text))).then_some(())
        })
        .await;
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// A file of the agent's process in `/proc`.
    pub(crate) fn proc(&self, file: &str) -> std::path::PathBuf {
        format!("/proc/{}/{file}", self.child.id()).into()
    }

    /// Has every write to a file fail beyond so many bytes, as on a full disk; `None` ends that. The agent has to
    /// have been started with SIGXFSZ ignored.
    pub(crate) fn limit_file_size(&self, bytes: Option<u64>) {
        let limit = Rlimit {
            current: bytes,
            maximum: None,
        };
        let pid = self.child.id().try_into().ok().and_then(Pid::from_raw);
        prlimit(pid, Resource::Fsize, limit).expect("a limit of its own");
    }

    /// How much of the agent is in memory, in bytes.
    pub(crate) fn memory(&self) -> usize {
        let status = std::fs::read_to_string(self.proc("status"));
        let status = status.expect("Linux, and an agent that runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
        1_024
            * kilobytes
                .and_then(|kilobytes| kilobytes.parse::<usize>().ok())
                .expect("a number")
    }

    /// Ends the agent at once, as a crash would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("reaped");
    }

    /// Waits for the agent's own end, for a third of the 30 s that requests under way are given unless set otherwise.
    pub(crate) async fn exit(&mut self) -> ExitStatus {
        eventually("the agent exits", async || {
            self.child.try_wait().expect("waits")
        })
        .await
    }

    /// Waits until the log says this; gives all lines until then that were not read before.
    pub(crate) async fn logs(&self, text: &str) -> Vec<String> {
        let mut lines = Vec::new();
        eventually(&format!("the log says {text}"), async || {
            lines.extend(self.log());
            let says = lines.iter().any(|line| line.contains(text));
            says.then_some(())
        })
        .await;
        lines
    }

    /// The log lines until the agent listened.
    pub(crate) fn early_log(&self) -> &[String] {
        &self.early_log
    }

    /// All log lines until now, once.
    pub(crate) fn log(&self) -> Vec<String> {
        self.early_log
            .iter()
            .cloned()
            .chain(self.log.try_iter())
            .collect()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for line in self.log.try_iter() {
                println!("{line}");
            }
        }
        // An agent that has ended cannot be killed, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
