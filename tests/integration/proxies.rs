//! Agents behind other people's proxies, configured as docs/PROXIES.md has it.

use std::{
    fs,
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use election_proto::{CampaignRequest, CampaignResult, election_client::ElectionClient};
use prost::Message as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::transport::Endpoint;

use crate::{
    clients::tool,
    harness::{
        Agent, CAMPAIGN, GRPC_WEB, InProcess, Redis, campaign, committed, eventually, framed,
        free_port, unframed,
    },
};

/// A proxy; killed when dropped.
struct Proxy {
    child: Child,
    _directory: TempDir,
}

impl Proxy {
    /// Runs a program with a configuration, which may name the directory that is there for it alone.
    fn run(program: &str, configuration: impl FnOnce(&str) -> String) -> Self {
        let directory = TempDir::new().expect("a directory");
        let at = directory.path().display().to_string();
        let path = directory.path().join("configuration.yaml");
        fs::write(&path, configuration(&at)).expect("written");
        let nginx = format!("daemon off; master_process off; pid {at}/pid; error_log {at}/log;");
        let (program, arguments) = match program {
            "nginx" => (program.into(), vec!["-g", &nginx, "-c"]),
            // Without the files that processes on one host share to pass connections on.
            "envoy" => (
                tool("python/bin/envoy"),
                vec!["--disable-hot-restart", "--concurrency", "2", "-c"],
            ),
            _ => (program.into(), vec!["-db", "-f"]),
        };
        // Debian keeps servers where not every user's shell looks.
        let search = std::env::var("PATH").unwrap_or_default();
        let child = Command::new(&program)
            .args(arguments)
            .arg(&path)
            .env("PATH", format!("{search}:/usr/sbin"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        Self {
            child,
            _directory: directory,
        }
    }
}

/// An agent in the example for Envoy.
const ENVOY_ENDPOINT: &str = "\n              - endpoint: { address: { socket_address: { address: election-agent, port_value: 8443 } } }";

/// A proxy before two agents.
struct Proxied {
    agents: [Agent; 2],
    grpc: u16,
    http: u16,
    _proxy: Proxy,
    _redis: Redis,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The example of this language in docs/PROXIES.md.
fn example(language: &str) -> String {
    let text = committed("docs/PROXIES.md");
    let (_, rest) = text
        .split_once(&format!("```{language}\n"))
        .expect("an example");
    let (example, _) = rest.split_once("```").expect("its end");
    example.to_owned()
}

/// Puts the addresses of this test in the place of those in the example.
fn replaced(mut text: String, all: &[(&str, String)]) -> String {
    for (example, here) in all {
        assert!(text.contains(example), "{example} is not in the example");
        text = text.replace(example, here);
    }
    text
}

impl Proxied {
    async fn start(program: &str) -> Self {
        let redis = Redis::start().await;
        let settings = [("EA_TRUSTED_PROXIES", "127.0.0.0/8")];
        let agents = [
            Agent::on(&redis, &settings).await,
            Agent::on(&redis, &settings).await,
        ];
        let [a, b] = agents.each_ref().map(|agent| agent.address().to_string());
        let (grpc, mut http) = (free_port(), free_port());
        let listens = |port| SocketAddr::from(([127, 0, 0, 1], port)).to_string();
        let mut places = vec![
            ("10.0.0.1:8443", a.clone()),
            ("10.0.0.2:8443", b.clone()),
            ("10.0.0.1:8080", a),
            ("10.0.0.2:8080", b),
            ("127.0.0.1:7443", listens(grpc)),
            ("127.0.0.1:7080", listens(http)),
        ];
        if program == "envoy" {
            // One port for all protocols, and a name with all agents' addresses, which have one port each here.
            http = grpc;
            let endpoints = agents.each_ref().map(|agent| {
                let port = agent.address().port().to_string();
                let address = ENVOY_ENDPOINT.replace("election-agent", "127.0.0.1");
                address.replace("8443", &port)
            });
            places = vec![
                ("port_value: 7443", format!("port_value: {grpc}")),
                (ENVOY_ENDPOINT, endpoints.join("")),
            ];
        }
        let proxy = Proxy::run(program, |at| {
            if program == "nginx" {
                // What a package keeps where only root may write.
                let kept = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
                let kept = kept
                    .map(|what| format!("{what}_temp_path {at}/{what};"))
                    .join(" ");
                places.push((
                    "\nhttp {\n",
                    format!("\nhttp {{\n  access_log off; {kept}\n"),
                ));
            }
            let language = if program == "envoy" { "yaml" } else { program };
            replaced(example(language), &places)
        });
        let proxied = Self {
            agents,
            grpc,
            http,
            _proxy: proxy,
            _redis: redis,
        };
        eventually("the proxy passes requests on", async || {
            let answer = reqwest::get(proxied.url("/livez")).await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
        proxied
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.http)
    }

    async fn client(&self) -> ElectionClient<tonic::transport::Channel> {
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{}", self.grpc));
        let connected = endpoint.expect("a URL").connect().await;
        ElectionClient::new(connected.expect("connects"))
    }
}

/// Campaigns over REST, and returns the reply.
async fn rest(proxied: &Proxied, election: &str) -> Option<Value> {
    let http = reqwest::Client::new();
    let campaign = json!({"candidate": "a", "term": 60_000}).to_string();
    let asked = http
        .post(proxied.url(&format!("/election/{election}")))
        .header("content-type", "application/json")
        .body(campaign);
    let answer = asked.send().await.ok()?;
    serde_json::from_str(&answer.text().await.ok()?).ok()
}

async fn grpc_web(proxied: &Proxied, request: &CampaignRequest) -> CampaignResult {
    let answer = reqwest::Client::new()
        .post(proxied.url(CAMPAIGN))
        .header("content-type", GRPC_WEB)
        .body(framed(&request.encode_to_vec()))
        .send()
        .await
        .expect("an answer");
    let bytes = answer.bytes().await.expect("a body");
    let (message, trailers) = unframed(&bytes);
    assert!(trailers.contains("grpc-status:0"), "{trailers}");
    CampaignResult::decode(message).expect("a result")
}

async fn agents_are_reached(program: &str) {
    let mut proxied = Proxied::start(program).await;
    let mut client = proxied.client().await;
    // Enough for both agents to be asked.
    for n in 0..20 {
        let won = client
            .campaign(campaign(&format!("g{n}"), "a", 60_000))
            .await;
        assert!(won.expect("an answer").into_inner().elected);
        let won = rest(&proxied, &format!("r{n}")).await.expect("an answer");
        assert_eq!(won["elected"], true, "{won}");
        let request = campaign(&format!("w{n}"), "a", 60_000);
        assert!(grpc_web(&proxied, &request).await.elected);
    }
    for agent in &proxied.agents {
        let metrics = agent.get("/metrics").await.body.to_string();
        let asked = "election_agent_request_duration_seconds_count{action=\\\"campaign\\\"";
        assert!(metrics.contains(asked), "an agent was not asked: {metrics}");
    }
    // Refusals come through as they are.
    let refused = client.campaign(campaign("", "a", 60_000)).await;
    assert_eq!(
        refused.expect_err("no name").code(),
        tonic::Code::InvalidArgument
    );

    // One agent ends after its signal; the other goes on replying.
    proxied.agents[0].signal("TERM");
    assert!(proxied.agents[0].exit().await.success());
    eventually("the proxy asks the other alone", async || {
        for n in 0..10 {
            let mut client = proxied.client().await;
            let asked = client
                .campaign(campaign(&format!("g{n}"), "a", 60_000))
                .await;
            if !asked.is_ok_and(|answer| answer.into_inner().elected) {
                return None;
            }
            if rest(&proxied, &format!("r{n}")).await?["elected"] != true {
                return None;
            }
        }
        Some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_reached_through_haproxy() {
    agents_are_reached("haproxy").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_reached_through_nginx() {
    agents_are_reached("nginx").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_reached_through_envoy() {
    agents_are_reached("envoy").await;
}

/// As operators have it before they read the document.
#[tokio::test]
async fn checks_of_health_by_http_1_0_find_agents_well() {
    let agent = Agent::on(&InProcess, &[]).await;
    let (port, stats) = (free_port(), free_port());
    let configuration = format!(
        "defaults\n mode http\n timeout connect 2s\n timeout client 9s\n timeout server 9s\n\
         frontend f\n bind 127.0.0.1:{port}\n default_backend b\n\
         backend b\n option httpchk /readyz\n default-server check inter 100ms fall 1 rise 1\n server a {}\n\
         listen stats\n bind 127.0.0.1:{stats}\n stats enable\n stats uri /stats\n",
        agent.address(),
    );
    let _proxy = Proxy::run("haproxy", |_| configuration);
    eventually("it has been found well", async || {
        let answer = reqwest::get(format!("http://127.0.0.1:{stats}/stats;csv"))
            .await
            .ok()?;
        let text = answer.text().await.ok()?;
        let server = text.lines().find(|line| line.starts_with("b,a,"))?;
        assert!(!server.contains(",DOWN"), "{server}");
        server.contains("L7OK").then_some(())
    })
    .await;
}
