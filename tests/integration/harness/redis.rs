//! A `redis-server` process.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use super::eventually;

/// A running Redis server; killed when dropped.
pub(crate) struct Redis {
    child: Option<Child>,
    arguments: Vec<String>,
    port: u16,
    tls: bool,
    directory: TempDir,
}

impl Redis {
    /// A server without persistence.
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    /// A server with these arguments besides.
    pub(crate) async fn with(arguments: &[&str]) -> Self {
        let mut redis = Self {
            child: None,
            arguments: arguments
                .iter()
                .map(|argument| (*argument).to_owned())
                .collect(),
            port: 0,
            tls: false,
            directory: TempDir::new().expect("a directory"),
        };
        redis.port = free_port();
        redis.run().await;
        redis
    }

    /// A server that speaks TLS only, with this certificate and key.
    pub(crate) async fn with_tls(certificate: &str, key: &str, arguments: &[&str]) -> Self {
        let directory = TempDir::new().expect("a directory");
        let (certificate_file, key_file) = (
            directory.path().join("server.crt"),
            directory.path().join("server.key"),
        );
        std::fs::write(&certificate_file, certificate).expect("written");
        std::fs::write(&key_file, key).expect("written");
        let port = free_port();
        let mut all = vec![
            "--tls-port".to_owned(),
            port.to_string(),
            "--tls-cert-file".to_owned(),
            certificate_file.display().to_string(),
            "--tls-key-file".to_owned(),
            key_file.display().to_string(),
            "--tls-auth-clients".to_owned(),
            "no".to_owned(),
        ];
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        let mut redis = Self {
            child: None,
            arguments: all,
            port,
            tls: true,
            directory,
        };
        redis.run().await;
        redis
    }

    /// Starts the server again on the same port, with whatever it kept.
    pub(crate) async fn run(&mut self) {
        let port = if self.tls {
            "0".to_owned()
        } else {
            self.port.to_string()
        };
        let child = Command::new("redis-server")
            .args([
                "--bind",
                "127.0.0.1",
                "--port",
                &port,
                "--save",
                "",
                "--appendonly",
                "no",
            ])
            .arg("--dir")
            .arg(self.directory.path())
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server starts: `make test` installs it");
        self.child = Some(child);
        let port = self.port;
        eventually("redis-server listens", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port))
                .await
                .ok()
        })
        .await;
    }

    /// Ends the server at once, as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("killed");
            child.wait().expect("reaped");
        }
    }

    /// Deletes what a server that is not running has kept.
    pub(crate) fn forget(&mut self) {
        assert!(self.child.is_none(), "it is running");
        self.directory = TempDir::new().expect("a directory");
    }

    pub(crate) fn signal(&self, name: &str) {
        let child = self.child.as_ref().expect("running");
        super::agent::signal(child.id(), name);
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        self.url_as("")
    }

    /// The URL with these credentials: `user:password@`.
    pub(crate) fn url_as(&self, credentials: &str) -> String {
        match self.tls {
            true => format!("rediss://{credentials}localhost:{}", self.port),
            false => format!("redis://{credentials}127.0.0.1:{}", self.port),
        }
    }

    /// A connection beside the agent's.
    pub(crate) async fn connect(&self) -> redis::aio::MultiplexedConnection {
        redis::Client::open(self.url())
            .expect("a URL")
            .get_multiplexed_async_connection()
            .await
            .expect("connects")
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.local_addr().expect("an address").port()
}
