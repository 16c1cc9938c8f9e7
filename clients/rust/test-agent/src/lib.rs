//! A real agent for the tests and examples of clients: its binary, in memory, on a free port.

#![expect(
    clippy::expect_used,
    reason = "a test that cannot go on should say where"
)]

use std::{
    env,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

/// Where the agent's binary is, if it is not beside the test's.
const BINARY: &str = "ELECTION_AGENT_BINARY";

/// How long an agent may take to start.
const START: Duration = Duration::from_secs(20);

/// A running agent; killed when dropped.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    address: String,
}

impl Default for Agent {
    fn default() -> Self {
        Self::start()
    }
}

impl Agent {
    /// An agent that keeps its leases in memory.
    ///
    /// # Panics
    ///
    /// If it does not start.
    #[must_use]
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// As [`start`](Self::start), with settings.
    ///
    /// # Panics
    ///
    /// If it does not start.
    #[must_use]
    pub fn with(settings: &[(&str, &str)]) -> Self {
        let mut command = Command::new(binary());
        command
            .env_clear()
            .env("EA_ENV", "development")
            .env("EA_LOG_LEVEL", "info")
            .env("EA_STORE", "memory")
            .env("EA_KUBE_ENABLE", "false")
            .env("EA_BIND_ADDRESS", "127.0.0.1")
            .env("EA_HTTP_PORT", "0")
            .env("EA_GRPC_PORT", "0")
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the agent's binary runs");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (sender, lines) = mpsc::channel();
        // Reads on until the agent ends, which would stop at a full pipe.
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut log = Vec::new();
        let address = loop {
            match lines.recv_timeout(START) {
                Ok(line) => {
                    let address = address(&line);
                    log.push(line);
                    if let Some(address) = address {
                        break address;
                    }
                }
                Err(error) => {
                    let _ = child.kill();
                    panic!("the agent does not listen: {error}: {log:#?}");
                }
            }
        };
        Self { child, address }
    }

    /// Where it listens: `127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where it listens, as an endpoint of clients.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The number of its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it at once, as a crash would.
    ///
    /// # Panics
    ///
    /// If that fails.
    pub fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("reaped");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // One that has ended cannot be killed, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The address in the line that says where the agent listens.
fn address(line: &str) -> Option<String> {
    if !line.contains("\"listening\"") && !line.contains(" listening") {
        return None;
    }
    let start = line.find("127.0.0.1:")?;
    let rest = &line[start..];
    let end = rest
        .char_indices()
        .find(|(_, char)| !char.is_ascii_digit() && !matches!(char, '.' | ':'));
    let end = end.map_or(rest.len(), |(at, _)| at);
    Some(rest[..end].to_owned())
}

/// The agent's binary: the one of the environment, or beside the test's, or in the workspace's target directory, where
/// it is built if it is missing.
#[must_use]
pub fn binary() -> PathBuf {
    if let Some(path) = env::var_os(BINARY) {
        return path.into();
    }
    let test = env::current_exe().expect("a path");
    let beside = test
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join("election-agent"));
    if let Some(found) = beside.into_iter().find(|path| path.is_file()) {
        return found;
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let target =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    let agent = target.join("debug/election-agent");
    if !agent.is_file() {
        let mut build = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build
            .args([
                "build",
                "--package",
                "election-agent",
                "--bin",
                "election-agent",
                "--target-dir",
            ])
            .arg(&target)
            .current_dir(&workspace);
        assert!(
            build.status().expect("cargo runs").success(),
            "the agent is built"
        );
    }
    agent
}

#[cfg(test)]
mod tests {
    use super::address;

    #[test]
    fn the_line_that_says_where_an_agent_listens_is_found() {
        let line = r#"{"level":"INFO","message":"listening","address":"127.0.0.1:35741"}"#;
        assert_eq!(address(line).as_deref(), Some("127.0.0.1:35741"));
        assert_eq!(
            address(r#"{"message":"starting","address":"127.0.0.1:1"}"#),
            None
        );
    }
}
