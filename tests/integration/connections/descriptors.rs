//! Open files: clients take what is left beside lease nodes and probes.

use std::{
    fs,
    time::{Duration, Instant},
};

use election_proto::election_client::ElectionClient;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};

use tonic::{Code, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::harness::{
    Agent, Authority, Redis, campaign, command_after, eventually, eventually_within, owned,
};

/// The reply to a request over this connection, its head at least; nothing if it is closed.
async fn answer(stream: &mut TcpStream, request: &str) -> String {
    let sent = stream.write_all(request.as_bytes()).await;
    let mut answer = vec![0; 4096];
    let read = timeout(Duration::from_secs(5), stream.read(&mut answer)).await;
    let length = sent.ok().and(read.ok()).and_then(Result::ok).unwrap_or(0);
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

/// The reply to a probe over a connection of its own.
async fn probe(agent: &Agent, path: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(agent.address()).await else {
        return String::new();
    };
    answer(
        &mut stream,
        &format!("GET {path} HTTP/1.1\r\nhost: agent\r\n\r\n"),
    )
    .await
}

/// The limit of open files, soft and hard.
fn limits(agent: &Agent) -> (String, String) {
    let limits = fs::read_to_string(agent.proc("limits")).expect("Linux");
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let mut words = line.expect("a line").split_whitespace();
    let mut word = || words.next().expect("a limit").to_owned();
    (word(), word())
}

const READ: &str = "GET /election/k/e HTTP/1.1\r\nhost: agent\r\n\r\n";

#[tokio::test]
async fn clients_that_take_all_connections_keep_neither_lease_nodes_nor_probes_away() {
    let mut redis = Redis::start().await;
    let settings = owned(&[("EA_REDIS_URLS", &*redis.url()), ("EA_WORKERS", "2")]);
    let agent = Agent::run(command_after("ulimit -n 64", &settings)).await;
    eventually("ready", async || {
        probe(&agent, "/readyz")
            .await
            .starts_with("HTTP/1.1 200")
            .then_some(())
    })
    .await;
    let warned = agent.early_log().iter().find_map(|line| {
        let line = serde_json::from_str::<Value>(line).ok()?;
        let message = line["message"].as_str()?;
        message
            .contains("EA_MAX_CONNECTIONS is 10000")
            .then(|| line.clone())
    });
    let warned = warned.expect("a warning");
    assert_eq!(warned["open_files"], 64, "{warned}");
    let fit = warned["connections"].as_u64().expect("a number");

    // Clients that have asked once and stay, until no more are let in.
    let mut clients = Vec::new();
    for _ in 0..64 {
        let mut client = TcpStream::connect(agent.address()).await.expect("connects");
        let answered = answer(&mut client, READ).await;
        if !answered.starts_with("HTTP/1.1 404") {
            assert!(answered.starts_with("HTTP/1.1 429"), "{answered}");
            assert!(answered.contains("EA_MAX_CONNECTIONS"), "{answered}");
            break;
        }
        clients.push(client);
    }
    let taken = clients.len() as u64;
    // Those that probed before may not have ended yet.
    assert!((8..=fit).contains(&taken), "{taken} of {fit}");
    // And silent ones, in all spare places: they stay for a moment.
    let mut silent = Vec::new();
    for _ in 0..32 {
        silent.push(TcpStream::connect(agent.address()).await.expect("connects"));
    }
    eventually("probes are answered", async || {
        probe(&agent, "/livez")
            .await
            .starts_with("HTTP/1.1 200")
            .then_some(())
    })
    .await;

    redis.kill();
    eventually("not ready", async || {
        probe(&agent, "/readyz")
            .await
            .starts_with("HTTP/1.1 503")
            .then_some(())
    })
    .await;
    sleep(Duration::from_secs(2)).await;
    redis.run().await;
    let limit = Duration::from_secs(20);
    eventually_within(limit, "ready again", async || {
        probe(&agent, "/readyz")
            .await
            .starts_with("HTTP/1.1 200")
            .then_some(())
    })
    .await;
    let body = json!({"candidate": "a", "term": 10_000}).to_string();
    let request = format!(
        "POST /election/k/e HTTP/1.1\r\nhost: agent\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len(),
    );
    // The server has lost its memory, so that nobody is elected for a while; but it gets requests.
    let answered = answer(&mut clients[0], &request).await;
    assert!(
        answered.starts_with("HTTP/1.1"),
        "those that stayed are served: {answered}"
    );
    let open = fs::read_dir(agent.proc("fd")).expect("Linux").count();
    assert!(open <= 64, "{open}");
    let log = agent.logs("open files (ulimit -n)").await.join("\n");
    assert!(!log.contains("cannot accept"), "{log}");
}

/// One client has the only place.
#[tokio::test(flavor = "multi_thread")]
async fn probes_of_every_protocol_have_a_moment_when_all_places_are_taken_and_nothing_else_has() {
    let authority = Authority::new();
    authority.issue("localhost");
    for tls in [false, true] {
        let mut settings = owned(&[("EA_MAX_CONNECTIONS", "1"), ("EA_LOG_LEVEL", "info")]);
        if tls {
            settings.extend(authority.settings());
        }
        let agent = Agent::start(&settings).await;
        let channel = async || {
            let scheme = if tls { "https" } else { "http" };
            let endpoint = Endpoint::from_shared(format!("{scheme}://{}", agent.address()));
            let endpoint = endpoint.expect("a URL");
            let endpoint = match tls {
                true => endpoint.tls_config(authority.client()).expect("valid"),
                false => endpoint,
            };
            endpoint.connect().await
        };
        let only = channel().await.expect("connects");
        let request = campaign("e", "a", 60_000);
        let elected = ElectionClient::new(only.clone()).campaign(request).await;
        assert!(elected.expect("an answer").into_inner().elected);

        eventually("both are asked while the moment lasts", async || {
            let began = Instant::now();
            let probe = channel().await.ok()?;
            let health = HealthClient::new(probe.clone())
                .check(HealthCheckRequest::default())
                .await;
            let refused = ElectionClient::new(probe)
                .campaign(campaign("f", "a", 60_000))
                .await;
            if began.elapsed() >= Duration::from_secs(1) {
                return None;
            }
            assert!(health.is_ok(), "{health:?}");
            let refused = refused.expect_err("no place");
            assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
            Some(())
        })
        .await;

        // Silent clients have the spare places for a moment only.
        let mut silent = Vec::new();
        for _ in 0..8 {
            silent.push(TcpStream::connect(agent.address()).await.expect("connects"));
        }
        for mut stream in silent {
            let mut answer = [0; 64];
            let ended = timeout(Duration::from_secs(5), stream.read(&mut answer));
            ended.await.expect("ended by the agent").unwrap_or_default();
        }
        let health = HealthClient::new(channel().await.expect("connects"))
            .check(HealthCheckRequest::default())
            .await;
        assert!(health.is_ok(), "{health:?}");
        agent.logs("\"limit\":\"EA_MAX_CONNECTIONS\"").await;
        // The one that has a place keeps it.
        let led = ElectionClient::new(only)
            .campaign(campaign("e", "b", 60_000))
            .await;
        assert!(!led.expect("an answer").into_inner().elected);
    }
}

#[tokio::test]
async fn a_low_limit_of_open_files_is_raised_as_far_as_it_may_be() {
    let settings = owned(&[("EA_MAX_CONNECTIONS", "100")]);
    let agent = Agent::run(command_after("ulimit -S -n 64", &settings)).await;
    let (soft, hard) = limits(&agent);
    assert_eq!(soft, hard);
    assert_ne!(soft, "64", "the test can tell");
    let log = agent.early_log().join("\n");
    assert!(!log.contains("EA_MAX_CONNECTIONS"), "{log}");
}
