//! Ports, protocols, connections, and a shutdown that loses nothing.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use election_proto::{CampaignResult, election_client::ElectionClient};
use futures_util::{StreamExt as _, stream};
use prost::Message as _;
use reqwest::Method;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};
use tonic::{Code, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest,
};

use crate::harness::{
    Agent, CAMPAIGN, Fixture, GRPC_WEB, Redis, Store, campaign, eventually, framed, free_port,
    unframed,
};

async fn agent(settings: &[(&str, &str)]) -> Agent {
    Fixture::with(Store::Memory, settings).await.agent
}

#[tokio::test]
async fn http_1_http_2_and_grpc_share_a_port() {
    let agent = agent(&[]).await;
    assert!(agent.campaign("e", "a", 30_000).await.elected);
    let h2c = reqwest::Client::builder()
        .http2_prior_knowledge()
        .build()
        .expect("a client");
    let url = format!("http://{}/election/e", agent.address());
    for (client, version) in [
        (reqwest::Client::new(), reqwest::Version::HTTP_11),
        (h2c, reqwest::Version::HTTP_2),
    ] {
        let answer = client.get(&url).send().await.expect("an answer");
        assert_eq!((answer.status().as_u16(), answer.version()), (200, version));
        assert!(
            answer
                .text()
                .await
                .expect("text")
                .contains("\"leader\":\"a\"")
        );
    }
}

#[tokio::test]
async fn both_ports_serve_the_same() {
    let (grpc, http) = (free_port(), free_port());
    let (grpc_text, http_text) = (grpc.to_string(), http.to_string());
    let _agent = agent(&[("EA_GRPC_PORT", &grpc_text), ("EA_HTTP_PORT", &http_text)]).await;
    for (n, port) in [grpc, http].into_iter().enumerate() {
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("a URL");
        let mut client = ElectionClient::new(endpoint.connect().await.expect("connects"));
        let election = format!("e{n}");
        let won = client
            .campaign(campaign(&election, "a", 30_000))
            .await
            .expect("an answer");
        assert!(won.into_inner().elected);
    }
    for port in [grpc, http] {
        let url = format!("http://127.0.0.1:{port}/election/e1");
        assert_eq!(reqwest::get(url).await.expect("an answer").status(), 200);
    }
}

#[tokio::test]
async fn grpc_web_works_over_http_1() {
    let agent = agent(&[]).await;
    let request = campaign("e", "a", 30_000).encode_to_vec();
    let answer = agent
        .request(Method::POST, CAMPAIGN)
        .header("content-type", GRPC_WEB)
        .body(framed(&request))
        .send()
        .await
        .expect("an answer");
    assert_eq!(answer.headers()["content-type"], GRPC_WEB);
    let body = answer.bytes().await.expect("a body");
    let (message, trailers) = unframed(&body);
    let result = CampaignResult::decode(message).expect("a message");
    assert!(result.elected && result.token > 0);
    assert!(trailers.contains("grpc-status:0"), "{trailers}");
}

#[tokio::test]
async fn grpc_web_is_answered_as_it_asks_and_else_as_it_has_asked() {
    use base64::{Engine as _, prelude::BASE64_STANDARD};

    let agent = agent(&[]).await;
    let message = campaign("e", "a", 30_000).encode_to_vec();
    let frame = framed(&message);
    let text = BASE64_STANDARD.encode(&frame).into_bytes();
    const TEXT: &str = "application/grpc-web-text+proto";
    for (asks, accepts, answered) in [
        (GRPC_WEB, "", GRPC_WEB),
        (GRPC_WEB, "*/*", GRPC_WEB),
        (TEXT, "", TEXT),
        (TEXT, "*/*", TEXT),
        (TEXT, TEXT, TEXT),
        (TEXT, GRPC_WEB, GRPC_WEB),
    ] {
        let mut request = agent
            .request(Method::POST, CAMPAIGN)
            .header("content-type", asks)
            .body(if asks == TEXT {
                text.clone()
            } else {
                frame.clone()
            });
        if !accepts.is_empty() {
            request = request.header("accept", accepts);
        }
        let answer = request.send().await.expect("an answer");
        assert_eq!(
            answer.headers()["content-type"],
            answered,
            "{asks} {accepts}"
        );
        let body = answer.bytes().await.expect("a body");
        // A message's frame begins with a zero.
        assert_eq!(
            body[0] == 0,
            answered == GRPC_WEB,
            "{asks} {accepts}: {body:?}"
        );
    }
}

#[tokio::test]
async fn what_is_switched_off_says_so_and_probes_stay() {
    let without_grpc = agent(&[("EA_GRPC_ENABLE", "false")]).await;
    let refused = without_grpc
        .try_campaign(campaign("e", "a", 1_000))
        .await
        .expect_err("off");
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(refused.message().contains("EA_GRPC_ENABLE"), "{refused:?}");
    let mut health = HealthClient::new(without_grpc.channel());
    assert!(health.check(HealthCheckRequest::default()).await.is_ok());
    assert_eq!(
        without_grpc.get("/election/e").await.text("code"),
        "NotFound"
    );
    let won = without_grpc.campaign_over_rest("/election/e", "a", 1_000);
    assert_eq!(won.await.status, 200);

    let without_http = agent(&[("EA_HTTP_ENABLE", "false"), ("EA_METRIC_ENABLE", "false")]).await;
    assert!(without_http.campaign("e", "a", 1_000).await.elected);
    for (path, status) in [
        ("/election/e", 404),
        ("/swagger-ui/", 404),
        ("/metrics", 404),
        ("/livez", 200),
        ("/readyz", 200),
    ] {
        assert_eq!(without_http.get(path).await.status, status, "{path}");
    }
}

#[tokio::test]
async fn requests_carry_an_id_and_are_measured() {
    let agent = agent(&[("EA_METRIC_REQUEST_DURATION_BUCKETS", "0.5,7")]).await;
    let named = agent
        .request(Method::GET, "/election/e")
        .header("x-request-id", "mine");
    assert_eq!(agent.send(named).await.header("x-request-id"), "mine");
    assert_eq!(
        agent.get("/election/e").await.header("x-request-id").len(),
        32
    );
    agent.campaign("e", "a", 30_000).await;
    agent
        .rest(Method::POST, "/election/e", Some(json!({"candidate": "b"})))
        .await;
    let metrics = agent.get("/metrics").await;
    assert!(
        metrics
            .header("content-type")
            .starts_with("text/plain; version=0.0.4")
    );
    let metrics = metrics.body.as_str().expect("text").to_owned();
    for line in [
        "election_agent_request_duration_seconds_count{action=\"leader\",status=\"not_found\"} 2",
        "election_agent_request_duration_seconds_count{action=\"campaign\",status=\"ok\"} 1",
        "election_agent_request_duration_seconds_count{action=\"campaign\",status=\"invalid_argument\"} 1",
        "election_agent_request_duration_seconds_bucket{le=\"7.0\",action=\"campaign\",status=\"ok\"} 1",
        "election_agent_requests_in_flight{action=\"campaign\"} 0",
        "election_agent_unavailable_total 0",
        "election_agent_disconnected_redis_backends 0",
    ] {
        assert!(
            metrics.lines().any(|other| other == line),
            "{line} is not in:\n{metrics}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_under_load_loses_no_answered_request() {
    let directory = tempfile::TempDir::new().expect("a directory");
    let path = directory.path().join("leases.redb").display().to_string();
    let settings = vec![("EA_EMBEDDED_PATH".to_owned(), path)];
    let mut agent = Agent::start(&settings).await;
    let stopping = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..16)
        .map(|worker| {
            let (mut client, stopping) = (agent.grpc(), Arc::clone(&stopping));
            tokio::spawn(async move {
                let mut answered = HashMap::new();
                for n in 0.. {
                    let election = format!("w{worker}n{n}");
                    match client.campaign(campaign(&election, "a", 60_000)).await {
                        Ok(result) => {
                            let result = result.into_inner();
                            assert!(result.elected);
                            answered.insert(election, result.token);
                        }
                        Err(status) => {
                            assert!(
                                stopping.load(Ordering::SeqCst),
                                "before the signal: {status}"
                            );
                            return (answered, election);
                        }
                    }
                }
                unreachable!("a worker goes on until it is refused")
            })
        })
        .collect();
    eventually("work is under way", async || {
        let page = agent.get("/elections?page_size=1000").await;
        (page.body["leaders"].as_array()?.len() > 100).then_some(())
    })
    .await;
    stopping.store(true, Ordering::SeqCst);
    agent.signal("TERM");
    assert!(agent.exit().await.success());

    let again = Agent::start(&settings).await;
    let mut checked = 0;
    for worker in workers {
        let (answered, refused) = worker.await.expect("no panic");
        let vacant = again
            .leader(&refused)
            .await
            .expect_err("carried out, but not answered");
        assert_eq!(vacant.code(), Code::NotFound);
        for (election, token) in answered {
            let leader = again.get(&format!("/election/{election}")).await;
            assert_eq!(leader.body["token"], token, "{election}");
            checked += 1;
        }
    }
    assert!(checked > 100, "{checked}");
}

#[tokio::test]
async fn a_shutdown_tells_probes_and_does_not_wait_for_their_streams() {
    let mut agent = agent(&[]).await;
    let mut health = HealthClient::new(agent.channel());
    let watch = HealthCheckRequest {
        service: "readiness".to_owned(),
    };
    let mut updates = health.watch(watch).await.expect("a stream").into_inner();
    let first = updates.message().await.expect("open").expect("a status");
    assert_eq!(first.status().as_str_name(), "SERVING");
    agent.signal("INT");
    let last = updates.message().await.expect("open").expect("a status");
    assert_eq!(last.status().as_str_name(), "NOT_SERVING");
    assert!(updates.message().await.expect("an orderly end").is_none());
    assert!(agent.exit().await.success());
}

/// It would last as long as the client likes, which here is for ever.
#[tokio::test]
async fn a_shutdown_ends_a_reflection_stream_on_which_nothing_is_asked() {
    let mut agent = agent(&[("EA_SHUTDOWN_GRACE", "1h")]).await;
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let asked = stream::iter([ask]).chain(stream::pending());
    let mut reflection = ServerReflectionClient::new(agent.channel());
    let answers = reflection.server_reflection_info(asked).await;
    let mut answers = answers.expect("a stream").into_inner();
    assert!(answers.message().await.expect("open").is_some());
    agent.signal("TERM");
    let end = timeout(Duration::from_secs(10), answers.message()).await;
    let end = end.expect("an end").expect("an orderly end");
    assert!(end.is_none());
    assert!(agent.exit().await.success());
}

/// A connection whose request's headers are in and whose body never comes: it is under way for ever.
async fn stuck(agent: &Agent) -> tokio::net::TcpStream {
    let mut stream = tokio::net::TcpStream::connect(agent.address())
        .await
        .expect("connects");
    let head = "POST /election/e HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                content-length: 9\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.expect("sent");
    campaign_under_way(agent).await;
    stream
}

async fn campaign_under_way(agent: &Agent) {
    eventually("the request is under way", async || {
        let metrics = agent.get("/metrics").await;
        let under_way = "election_agent_requests_in_flight{action=\"campaign\"} 1";
        metrics.body.as_str()?.contains(under_way).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_shutdown_ends_within_its_grace_whatever_a_client_does() {
    let mut agent = agent(&[("EA_SHUTDOWN_GRACE", "300ms")]).await;
    let _stuck = stuck(&agent).await;
    let asked = Instant::now();
    agent.signal("TERM");
    assert!(agent.exit().await.success());
    let took = asked.elapsed();
    assert!(took >= Duration::from_millis(290), "{took:?}");
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_connections_without_requests() {
    let mut agent = agent(&[]).await;
    let mut half = tokio::net::TcpStream::connect(agent.address())
        .await
        .expect("connects");
    half.write_all(b"GET /livez HTTP/1.1\r\nhost:")
        .await
        .expect("sent");
    // An HTTP/2 client that has silently gone: it answers no ping.
    let mut gone = tokio::net::TcpStream::connect(agent.address())
        .await
        .expect("connects");
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    gone.write_all(&[&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &settings].concat())
        .await
        .expect("sent");
    let mut answer = [0; 9];
    gone.read_exact(&mut answer)
        .await
        .expect("the server's settings");
    agent.signal("TERM");
    assert!(agent.exit().await.success());
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let mut agent = agent(&[]).await;
    let _stuck = stuck(&agent).await;
    agent.signal("TERM");
    agent.logs("shutting down").await;
    agent.signal("TERM");
    assert!(agent.exit().await.success());
}

#[tokio::test]
async fn more_requests_than_are_taken_are_refused_at_once_in_every_protocol_but_probes_are_not() {
    let redis = Redis::start().await;
    let settings = [
        ("EA_MAX_IN_FLIGHT", "1"),
        ("EA_REDIS_OPERATION_TIMEOUT", "20s"),
    ];
    let agent = Agent::on(&redis, &settings).await;
    assert!(agent.campaign("e", "a", 60_000).await.elected);
    // It does not answer, so the next request stays under way.
    redis.signal("STOP");
    let mut client = agent.grpc();
    let waiting = tokio::spawn(async move { client.campaign(campaign("e", "b", 1_000)).await });
    campaign_under_way(&agent).await;
    let over_rest = eventually("refused", async || {
        let answer = agent.request(Method::GET, "/election/e");
        let answer = answer
            .timeout(Duration::from_millis(200))
            .send()
            .await
            .ok()?;
        (answer.status().as_u16() == 429).then_some(answer)
    })
    .await;
    assert_eq!(over_rest.headers()["retry-after"], "1");
    let problem: serde_json::Value = over_rest.json().await.expect("JSON");
    assert_eq!(problem["code"], "Overloaded");
    let over_grpc = agent.try_campaign(campaign("e", "c", 1_000)).await;
    let over_grpc = over_grpc.expect_err("refused");
    assert_eq!(over_grpc.code(), Code::ResourceExhausted);
    assert!(
        over_grpc.message().contains("EA_MAX_IN_FLIGHT"),
        "{over_grpc}"
    );
    let over_web = agent
        .request(Method::POST, CAMPAIGN)
        .header("content-type", GRPC_WEB);
    let over_web = agent.send(over_web).await;
    assert_eq!(
        (over_web.status, over_web.header("grpc-status")),
        (200, "8")
    );
    assert_eq!(agent.get("/livez").await.status, 200);
    assert_eq!(agent.get("/metrics").await.status, 200);
    redis.signal("CONT");
    waiting.await.expect("no panic").expect("answered");
    assert_eq!(agent.leader("e").await.expect("taken again"), "a");
}

#[tokio::test]
async fn streams_are_under_way_until_they_end_and_what_is_answered_at_once_passes() {
    let agent = agent(&[("EA_MAX_IN_FLIGHT", "2")]).await;
    let readiness = || HealthCheckRequest {
        service: "readiness".to_owned(),
    };
    let mut health = HealthClient::new(agent.channel());
    let mut streams = Vec::new();
    for _ in 0..2 {
        let stream = health.watch(readiness()).await.expect("a place");
        let mut stream = stream.into_inner();
        assert!(stream.message().await.expect("open").is_some());
        streams.push(stream);
    }
    let refused = health.watch(readiness()).await.expect_err("a third");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    // Monitoring the agent blocks no elections.
    assert_eq!(agent.get("/election/e").await.status, 404);
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(agent.get(path).await.status, 200, "{path}");
    }
    health.check(readiness()).await.expect("answered");
    streams.pop();
    eventually("a place is free again", async || {
        health.watch(readiness()).await.ok().map(|_| ())
    })
    .await;
}
