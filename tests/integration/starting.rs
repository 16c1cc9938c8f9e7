//! What an agent does before it serves, and how it ends then and later.

use std::{
    fs::File,
    net::TcpListener,
    process::{Child, Stdio},
};

use reqwest::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::{Code, transport::Endpoint};

use crate::harness::{campaign, command, eventually, free_port, owned, preload, signal};

/// How long agents of these tests would wait for a server that does not answer: longer than tests wait for their end.
const LONG: (&str, &str) = ("EA_REDIS_OPERATION_TIMEOUT", "50s");

/// An agent that need not get as far as serving.
struct Started {
    child: Child,
    port: u16,
    log: TempDir,
}

impl Started {
    fn with(settings: &[(&str, &str)]) -> Self {
        // For the clients of the tests.
        election_agent::tls::install_provider();
        let port = free_port();
        let log = TempDir::new().expect("a directory");
        let mut settings = owned(settings);
        settings.push(("EA_HTTP_PORT".to_owned(), port.to_string()));
        settings.push(("EA_GRPC_PORT".to_owned(), port.to_string()));
        let child = command(&settings)
            .stderr(File::create(log.path().join("log")).expect("created"))
            .stdout(Stdio::null())
            .spawn()
            .expect("starts");
        Self { child, port, log }
    }

    async fn get(&self, path: &str) -> Option<(StatusCode, String)> {
        let answer = reqwest::get(format!("http://127.0.0.1:{}{path}", self.port)).await;
        let answer = answer.ok()?;
        Some((answer.status(), answer.text().await.ok()?))
    }

    /// Waits until the port is bound.
    async fn is_live(&self) {
        let live = eventually("it is live", async || self.get("/livez").await).await;
        assert_eq!(live, (StatusCode::OK, "ok\n".to_owned()));
    }

    fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    async fn ends(&mut self, with: Option<i32>) {
        let ended = eventually("it ends", async || self.child.try_wait().expect("waits")).await;
        assert_eq!(ended.code(), with, "{}", self.log());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.log.path().join("log")).expect("a log")
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server that accepts connections and sends nothing.
fn silent() -> TcpListener {
    TcpListener::bind(("127.0.0.1", 0)).expect("a port")
}

fn redis_of(silent: &TcpListener) -> String {
    format!("redis://{}", silent.local_addr().expect("an address"))
}

#[tokio::test]
async fn an_agent_is_live_and_not_ready_while_it_starts() {
    let redis = silent();
    let mut agent = Started::with(&[("EA_REDIS_URLS", &redis_of(&redis)), LONG]);
    agent.is_live().await;
    let (status, body) = agent.get("/readyz").await.expect("an answer");
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(body["message"], json!("the agent is starting: try again"));
    let (status, _) = agent.get("/election/e").await.expect("an answer");
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{}", agent.port));
    let channel = endpoint.expect("a URL").connect().await.expect("connects");
    let mut client = election_proto::election_client::ElectionClient::new(channel);
    let refused = client.campaign(campaign("e", "a", 1_000)).await;
    let refused = refused.expect_err("it cannot know");
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.message().contains("starting"), "{refused:?}");
    agent.signal("TERM");
    agent.ends(Some(0)).await;
    assert!(
        agent.log().contains("ended while starting"),
        "{}",
        agent.log()
    );
}

#[tokio::test]
async fn signals_end_an_agent_that_waits_for_a_server_while_it_starts() {
    let redis = silent();
    let kubernetes = silent();
    let directory = TempDir::new().expect("a directory");
    let kubeconfig = directory.path().join("kubeconfig");
    let server = format!("http://{}", kubernetes.local_addr().expect("an address"));
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    });
    std::fs::write(&kubeconfig, config.to_string()).expect("written");
    let kubeconfig = kubeconfig.display().to_string();
    let urls = redis_of(&redis);
    let waiting: [&[(&str, &str)]; 2] = [
        &[("EA_REDIS_URLS", &urls), LONG],
        &[
            ("EA_KUBE_ENABLE", "true"),
            ("EA_KUBE_IN_CLUSTER", "false"),
            ("KUBECONFIG", &kubeconfig),
        ],
    ];
    for settings in waiting {
        for name in ["TERM", "INT"] {
            let mut agent = Started::with(settings);
            agent.is_live().await;
            agent.signal(name);
            agent.ends(Some(0)).await;
        }
    }
}

#[tokio::test]
async fn a_name_lookup_that_gets_no_answer_does_not_hold_the_end() {
    let directory = TempDir::new().expect("a directory");
    let library = directory.path().join("resolver.so");
    let never = "#include <unistd.h>\nint getaddrinfo(void) { for (;;) pause(); }\n";
    preload(never, &library);
    let library = library.display().to_string();
    let mut agent = Started::with(&[
        ("EA_REDIS_URLS", "redis://lookup.invalid:6379"),
        ("EA_REDIS_OPERATION_TIMEOUT", "100ms"),
        ("LD_PRELOAD", &library),
    ]);
    // It has started, and looks the name up again and again.
    eventually("it reports why", async || {
        let (_, body) = agent.get("/readyz").await?;
        body.contains("lease nodes answer").then_some(())
    })
    .await;
    agent.signal("TERM");
    agent.ends(Some(0)).await;
}
