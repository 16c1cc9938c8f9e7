//! Traces, as a receiver gets them.

mod nodes;
mod receivers;

use http::Method;
use serde_json::json;

use crate::harness::{
    Ask, Collector, InProcess, Protocol, Received, Redis, campaign, command_output, eventually,
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";
/// The kinds of spans, by their numbers in the protocol.
const SERVER: i32 = 2;
const CLIENT: i32 = 3;

fn parent(sampled: bool) -> String {
    format!("00-{TRACE}-{SPAN}-0{}", u8::from(sampled))
}

#[tokio::test]
async fn a_callers_trace_goes_on_over_every_protocol() {
    let collector = Collector::start().await;
    let agent = collector
        .agent(&InProcess, &[("EA_ENV", "production")])
        .await;
    for (n, protocol) in Protocol::ALL.into_iter().enumerate() {
        let id = format!("request-{n}");
        let (code, headers) = Ask::new(protocol)
            .with("traceparent", &parent(true))
            .with("tracestate", "vendor=x")
            .with("x-request-id", &id)
            .told(agent.address())
            .await;
        assert_eq!(code, tonic::Code::Ok);
        assert_eq!(headers["x-request-id"], id);
        let is = |span: &Received| span.get("election_agent.request_id") == id;
        let span = collector.span("the request's span", is).await;
        assert_eq!((span.trace(), span.parent()), (TRACE.into(), SPAN.into()));
        assert_eq!((span.kind(), span.state()), (SERVER, "vendor=x"));
        let expected: &[_] = match protocol {
            Protocol::Rest => &[
                ("http.request.method", "POST"),
                ("http.route", "/election/{name}"),
                ("http.response.status_code", "200"),
                ("url.scheme", "http"),
                ("rpc.system", ""),
            ],
            Protocol::Grpc | Protocol::GrpcWeb => &[
                ("rpc.system", "grpc"),
                ("rpc.service", "grpc.election_agent.v1.Election"),
                ("rpc.method", "Campaign"),
                ("rpc.grpc.status_code", "0"),
                ("http.route", ""),
            ],
        };
        for (key, value) in expected {
            assert_eq!(span.get(key), *value, "{key} of {span:?}");
        }
        let (name, version) = match protocol {
            Protocol::Grpc => ("grpc.election_agent.v1.Election/Campaign", "2"),
            Protocol::GrpcWeb => ("grpc.election_agent.v1.Election/Campaign", "1.1"),
            Protocol::Rest => ("POST /election/{name}", "1.1"),
        };
        assert_eq!(span.name(), name);
        assert_eq!(span.get("network.protocol.version"), version);
        assert_eq!(span.get("client.address"), "127.0.0.1");
        assert_eq!(span.get("server.address"), "127.0.0.1");
        assert_eq!(span.get("server.port"), agent.address().port().to_string());
        assert!(!span.is_error());
        let node = collector.span("the node's span", |other| other.parent() == span.id());
        let node = node.await;
        assert_eq!((node.name(), node.trace()), ("grant", TRACE.to_owned()));
        assert_eq!(node.get("db.system.name"), "election_agent");
    }
    let resource = collector.resources().remove(0);
    assert_eq!(resource["service.name"], "election-agent");
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
    // Of the log the audit trail alone names traces: of each election that changed hands.
    let log = agent.log();
    let (audit, others): (Vec<_>, Vec<_>) = log
        .iter()
        .filter(|line| line.contains(TRACE))
        .partition(|line| line.contains("\"target\":\"election_agent::audit\""));
    assert_eq!((audit.len(), others), (Protocol::ALL.len(), Vec::new()));
    let named = format!("\"trace_id\":\"{TRACE}\"");
    assert!(audit.iter().all(|line| line.contains(&named)), "{audit:?}");
}

/// The `service.instance.id` of all that a fresh agent with these settings sends.
async fn instance_id(settings: &[(&str, &str)]) -> String {
    let collector = Collector::start().await;
    let agent = collector.agent(&InProcess, settings).await;
    for election in ["e", "f"] {
        agent.campaign(election, "a", 60_000).await;
        collector
            .wait_for("spans in several batches", 1, |span| span.kind() == SERVER)
            .await;
    }
    eventually("a second batch", async || {
        agent.campaign("g", "a", 60_000).await;
        (collector.resources().len() > 1).then_some(())
    })
    .await;
    let resources = collector.resources();
    let ids = resources
        .iter()
        .map(|resource| resource.get("service.instance.id").cloned());
    let ids: std::collections::BTreeSet<_> = ids.collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    ids.into_iter().flatten().next().expect("an id")
}

#[tokio::test]
async fn agents_are_told_apart_and_keep_their_id() {
    let (one, other) = (instance_id(&[]).await, instance_id(&[]).await);
    assert_ne!(one, other, "two agents of one host");
    assert!(one.len() >= 32, "{one}");

    let host = hostname::get().expect("a host").into_string();
    let pod = instance_id(&[
        ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
        ("EA_KUBE_ENABLE", "false"),
    ]);
    assert_eq!(Ok(pod.await), host, "in a pod its name");

    let given = (
        "OTEL_RESOURCE_ATTRIBUTES",
        "service.instance.id=mine,zone=a",
    );
    let kubernetes = ("KUBERNETES_SERVICE_HOST", "10.96.0.1");
    let settings = [given, kubernetes, ("EA_KUBE_ENABLE", "false")];
    assert_eq!(instance_id(&settings).await, "mine");
}

#[tokio::test]
async fn tonics_own_client_is_continued_and_its_refusals_told() {
    let collector = Collector::start().await;
    let agent = collector.agent(&InProcess, &[]).await;
    let mut request = tonic::Request::new(campaign("e", "", 1_000));
    let value = parent(true).parse().expect("a value");
    request.metadata_mut().insert("traceparent", value);
    let refused = agent.try_campaign(request).await.expect_err("refused");
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    let span = collector
        .span("the span", |span| span.parent() == SPAN)
        .await;
    assert_eq!(span.get("rpc.grpc.status_code"), "3");
    assert!(
        !span.is_error(),
        "the caller's mistakes are none of the server"
    );
}

#[tokio::test]
async fn made_up_paths_and_methods_make_up_no_names() {
    let collector = Collector::start().await;
    let agent = collector.agent(&InProcess, &[]).await;
    for protocol in [Protocol::Grpc, Protocol::Rest] {
        Ask::new(protocol)
            .at("/made.Up/Path", "/made/up/path")
            .told(agent.address())
            .await;
    }
    let spans = collector
        .wait_for("both", 2, |span| span.kind() == SERVER)
        .await;
    let mut names: Vec<_> = spans.iter().map(Received::name).collect();
    names.sort_unstable();
    assert_eq!(names, ["POST", "_OTHER"]);
    let grpc = spans.iter().find(|span| span.name() == "_OTHER");
    assert!(grpc.expect("there").is_error(), "UNIMPLEMENTED");
    let made_up = collector.bytes();
    for part in ["made", "Path", "path"] {
        assert!(!has(&made_up, part), "{part}");
    }
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn probes_and_scrapes_are_recorded_only_for_who_records_them() {
    let collector = Collector::start().await;
    let agent = collector.agent(&InProcess, &[]).await;
    for path in ["/livez", "/readyz", "/metrics", "/readyz"] {
        agent.get(path).await;
    }
    for (path, sampled) in [("/readyz", false), ("/livez", true)] {
        let request = agent.request(Method::GET, path);
        agent
            .send(request.header("traceparent", parent(sampled)))
            .await;
    }
    collector
        .span("the probe", |span| span.parent() == SPAN)
        .await;
    assert_eq!(collector.spans().len(), 1);
    assert_eq!(collector.spans()[0].name(), "GET /livez");
}

#[tokio::test]
async fn a_ratio_draws_and_the_callers_decision_wins() {
    const REQUESTS: usize = 2_000;
    let collector = Collector::start().await;
    let never = ("OTEL_TRACES_SAMPLER_ARG", "0");
    let hardly = ("OTEL_TRACES_SAMPLER_ARG", "0.01");
    for (sampler, ratio, least, most) in [
        ("parentbased_traceidratio", never, 0, 0),
        // Nearly six standard deviations above: 1 in 10^7 runs has more. Fewer than one: 1 in 10^8.
        ("parentbased_traceidratio", hardly, 1, 45),
        ("parentbased_always_off", never, 0, 0),
    ] {
        let agent = collector
            .agent(&InProcess, &[("OTEL_TRACES_SAMPLER", sampler), ratio])
            .await;
        let before = collector.spans().len();
        let client = reqwest::Client::new();
        let url = format!("http://{}/election/e", agent.address());
        for n in 0..REQUESTS {
            let request = client.get(&url);
            let request = match n % 2 {
                0 => request,
                _ => request.header("traceparent", parent(false)),
            };
            request.send().await.expect("an answer");
            if n % 2 == 0 {
                client.get(&url).send().await.expect("an answer");
            }
        }
        let sampled = client.get(&url).header("traceparent", parent(true));
        sampled.send().await.expect("an answer");
        let is = |span: &Received| span.parent() == SPAN;
        let found = eventually("the caller's", async || {
            let spans = collector.spans().split_off(before);
            spans.iter().any(is).then_some(spans)
        });
        let found = found.await;
        let servers = found.iter().filter(|span| span.kind() == SERVER);
        let own = servers.clone().filter(|span| !is(span)).count();
        assert_eq!(
            servers.filter(|span| is(span)).count(),
            1,
            "unsampled ones are not"
        );
        assert!((least..=most).contains(&own), "{sampler} {ratio:?}: {own}");
    }
}

#[tokio::test]
async fn names_are_told_only_if_that_is_set() {
    let collector = Collector::start().await;
    let redis = Redis::start().await;
    for (keys, told) in [("false", false), ("true", true)] {
        let agent = collector.agent(&redis, &[("EA_TRACE_KEYS", keys)]).await;
        let before = collector.spans().len();
        let body = json!({"candidate": "zweistein", "term": 1_000, "value": "gedoens"});
        let path = "/election/fantasia/xanadu";
        for body in [
            body,
            json!({"candidate": "zweistein"}),
            json!({"candidate": "x y"}),
        ] {
            agent.rest(Method::POST, path, Some(body)).await;
        }
        agent.get(path).await;
        agent.get("/elections?kind=fantasia").await;
        let mut client = agent.grpc();
        let refused = client.campaign(campaign("xanadu", "zweistein", -1));
        refused.await.expect_err("no term");
        let mut request = campaign("xanadu", "zweistein", 1_000);
        request.kind = "fantasia".to_owned();
        agent.try_campaign(request).await.expect("an answer");
        agent.get("/kube/fantasia/xanadu/pods").await;
        let servers = |span: &Received| span.kind() == SERVER;
        eventually("all spans", async || {
            let spans = collector.spans().split_off(before);
            (spans.iter().filter(|span| servers(span)).count() == 8).then_some(())
        })
        .await;
        collector
            .span("a node's", |span| {
                span.get("db.stored_procedure.name") == "grant.lua"
            })
            .await;
        for name in ["xanadu", "zweistein", "fantasia"] {
            assert_eq!(has(&collector.bytes(), name), told, "{name}");
        }
        assert!(!has(&collector.bytes(), "gedoens"), "values are never told");
    }
}

#[tokio::test]
async fn mistakes_are_told_before_anything_is_traced() {
    let output = command_output(
        &[],
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
            ("OTEL_TRACES_SAMPLER", "sometimes"),
        ],
    );
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8_lossy(&output.stderr);
    for name in ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_SAMPLER"] {
        assert!(told.contains(name), "{told}");
    }
}
