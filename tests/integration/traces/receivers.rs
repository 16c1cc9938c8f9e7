//! Receivers that hang, refuse, die and come back, and what is sent to those that work.

use std::time::Duration;

use http::Response;

use super::SERVER;
use crate::harness::{
    Agent, Authority, Collector, HttpServer, InProcess, Mood, Received, eventually,
};

const PROTOCOLS: [&str; 2] = ["grpc", "http/protobuf"];

async fn campaigns(agent: &Agent, count: usize) {
    for n in 0..count {
        assert!(agent.campaign(&format!("e{n}"), "a", 60_000).await.elected);
    }
}

fn requests(collector: &Collector) -> usize {
    let spans = collector.spans();
    spans.iter().filter(|span| span.kind() == SERVER).count()
}

#[tokio::test]
async fn headers_and_attributes_arrive_over_both_protocols() {
    for protocol in PROTOCOLS {
        let collector = Collector::start().await;
        let settings = [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            (
                "OTEL_EXPORTER_OTLP_HEADERS",
                "authorization=Bearer%20s3cret",
            ),
            ("OTEL_SERVICE_NAME", "mine"),
            ("OTEL_RESOURCE_ATTRIBUTES", "zone=a"),
        ];
        let agent = collector.agent(&InProcess, &settings).await;
        campaigns(&agent, 1).await;
        collector.span("a span", |span| span.kind() == SERVER).await;
        let headers = collector.headers().remove(0);
        assert_eq!(headers["authorization"], "Bearer s3cret");
        let content_type = match protocol {
            "grpc" => "application/grpc",
            _ => "application/x-protobuf",
        };
        assert_eq!(headers["content-type"], content_type);
        let resource = collector.resources().remove(0);
        assert_eq!(
            (&*resource["service.name"], &*resource["zone"]),
            ("mine", "a")
        );
        assert!(!agent.log().join("\n").contains("s3cret"));
    }
}

#[tokio::test]
async fn spans_are_compressed_if_that_is_set() {
    let collector = Collector::start().await;
    let agent = collector
        .agent(&InProcess, &[("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")])
        .await;
    campaigns(&agent, 1).await;
    collector.span("a span", |span| span.kind() == SERVER).await;
    assert_eq!(collector.headers()[0]["grpc-encoding"], "gzip");
}

#[tokio::test]
async fn what_waits_is_sent_before_the_end() {
    for protocol in PROTOCOLS {
        let collector = Collector::start().await;
        let settings = [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            // Later than the test waits.
            ("OTEL_BSP_SCHEDULE_DELAY", "600000"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "100"),
        ];
        let mut agent = collector.agent(&InProcess, &settings).await;
        campaigns(&agent, 10).await;
        assert_eq!(collector.requests(), 0);
        agent.signal("TERM");
        assert!(agent.exit().await.success());
        assert_eq!(requests(&collector), 10, "{protocol}");
    }
}

#[tokio::test]
async fn a_receiver_that_hangs_does_not_hold_the_end_up() {
    let collector = Collector::start().await;
    collector.set(Mood::Hangs);
    let mut agent = collector.agent(&InProcess, &[]).await;
    campaigns(&agent, 1).await;
    eventually("the receiver is asked", async || {
        (collector.requests() > 0).then_some(())
    })
    .await;
    agent.signal("TERM");
    assert!(agent.exit().await.success(), "within ten seconds");
    assert!(agent.log().join("\n").contains("are lost"));
}

#[tokio::test]
async fn a_receiver_that_hangs_costs_requests_nothing() {
    const QUEUE: usize = 64;
    for protocol in PROTOCOLS {
        let collector = Collector::start().await;
        collector.set(Mood::Hangs);
        let settings = [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "600000"),
            ("OTEL_BSP_EXPORT_TIMEOUT", "600000"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", &QUEUE.to_string()),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "32"),
        ];
        let agent = collector.agent(&InProcess, &settings).await;
        campaigns(&agent, 1).await;
        eventually("the receiver is asked", async || {
            (collector.requests() > 0).then_some(())
        })
        .await;
        // Two spans each, many times what the queue holds; the call of the client's gives up after ten minutes.
        let answered = campaigns(&agent, 1_000);
        let in_time = tokio::time::timeout(Duration::from_secs(60), answered).await;
        in_time.expect("nobody waits for the receiver");
        collector.die();
        assert_eq!(requests(&collector), 0);
    }
}

#[tokio::test]
async fn a_receiver_that_refuses_or_dies_gets_spans_when_it_is_back_and_is_told_once() {
    for protocol in PROTOCOLS {
        let mut collector = Collector::start().await;
        collector.set(Mood::Refuses);
        let settings = [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "300"),
        ];
        let agent = collector.agent(&InProcess, &settings).await;
        for asked in 1..4 {
            campaigns(&agent, 1).await;
            eventually("refused", async || {
                (collector.requests() >= asked).then_some(())
            })
            .await;
        }
        collector.die();
        campaigns(&agent, 3).await;
        collector.set(Mood::Takes);
        collector.revive().await;
        eventually("spans are sent again", async || {
            campaigns(&agent, 1).await;
            collector
                .spans()
                .into_iter()
                .find(|span: &Received| span.kind() == SERVER)
        })
        .await;
        let log = agent.logs("spans are sent again").await;
        let told = log.iter().filter(|line| line.contains("cannot be sent"));
        assert_eq!(told.count(), 1, "{log:#?}");
    }
}

#[tokio::test]
async fn an_agent_starts_without_its_receiver() {
    let mut collector = Collector::start().await;
    collector.die();
    let url = collector.url();
    let settings = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "300"),
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
    ];
    let agent = Agent::start(&settings).await;
    campaigns(&agent, 1).await;
    collector.revive().await;
    eventually("spans arrive", async || {
        campaigns(&agent, 1).await;
        (requests(&collector) > 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receivers_certificate_is_checked_over_both_protocols() {
    let authority = Authority::new();
    let ca = authority.path("ca.pem");
    for protocol in PROTOCOLS {
        let server = HttpServer::start_tls(&authority, |_| Response::default()).await;
        let url = server.url("").replace("127.0.0.1", "localhost");
        let settings = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1000"),
            ("OTEL_BSP_SCHEDULE_DELAY", "20"),
        ];
        let stranger = Agent::start(&settings).await;
        campaigns(&stranger, 1).await;
        stranger.logs("cannot be sent").await;
        assert_eq!(server.answered(), 0, "{protocol}");
        let trusting = [&settings[..], &[("OTEL_EXPORTER_OTLP_CERTIFICATE", &ca)]].concat();
        let agent = Agent::start(&trusting).await;
        campaigns(&agent, 1).await;
        eventually("spans arrive", async || {
            (server.answered() > 0).then_some(())
        })
        .await;
    }
}
