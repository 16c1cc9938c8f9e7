//! What `/metrics` serves, as scrapers read it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    process::{Command, Stdio},
    time::Duration,
};

use election_agent::{
    endpoint::Action,
    telemetry::metrics::{Format, Metrics, ResponseStatus, table::TABLE},
};
use reqwest::{Method, header};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::{
    clients::{script, tool},
    harness::{
        Agent, ApiServer, Authority, Redis, eventually, eventually_within, fixtures, new_token,
    },
};

const OPENMETRICS: &str = "application/openmetrics-text;version=1.0.0";

/// What a scraper that accepts this gets.
async fn scraped(agent: &Agent, accept: &str) -> (String, String) {
    let request = agent.request(Method::GET, "/metrics");
    let answer = agent.send(request.header(header::ACCEPT, accept)).await;
    assert_eq!((answer.status, answer.header("vary")), (200, "accept"));
    let text = answer.body.as_str().expect("text").to_owned();
    (answer.header("content-type").to_owned(), text)
}

/// The metrics as text.
async fn metrics(agent: &Agent) -> String {
    scraped(agent, "text/plain").await.1
}

/// The value of a series, without the names' prefix.
fn value(text: &str, series: &str) -> Option<f64> {
    let line = format!("election_agent_{series} ");
    let mut values = text.lines().filter_map(|other| other.strip_prefix(&line));
    values.next()?.parse().ok()
}

/// What a program prints that is given this text, if it ends well.
fn fed(command: &mut Command, text: &str) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}: run `make test`, which installs it"));
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(text.as_bytes()).expect("written");
    drop(stdin);
    let output = child.wait_with_output().expect("ends");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}{told}\nof:\n{text}");
    assert_eq!(told, "", "of:\n{text}");
    printed
}

/// The families that Prometheus' own parser finds.
fn parsed(format: &str, text: &str) -> BTreeMap<String, Value> {
    let mut python = Command::new(tool("python/bin/python"));
    let printed = fed(python.arg(script("openmetrics.py")).arg(format), text);
    serde_json::from_str(&printed).expect("JSON")
}

/// Requests of every action, over REST.
async fn ask_everything(agent: &Agent, election: &str, candidate: &str) {
    let path = format!("/election/{election}");
    let term = json!({"candidate": candidate, "term": 30_000});
    let won = agent.rest(Method::POST, &path, Some(term)).await;
    assert_eq!(won.body["elected"], true, "{won:?}");
    let held = json!({"candidate": "another", "term": 30_000});
    agent.rest(Method::POST, &path, Some(held)).await;
    let extend = json!({"leader": candidate, "term": 30_000});
    agent.rest(Method::PATCH, &path, Some(extend)).await;
    agent.get(&path).await;
    let handover = json!({"leader": "next", "term": 30_000, "current_leader": candidate});
    let handed = agent.rest(Method::PUT, &path, Some(handover)).await;
    assert_eq!(handed.status, 200, "{handed:?}");
    let resign = json!({"leader": "next"});
    let resigned = agent.rest(Method::DELETE, &path, Some(resign)).await;
    assert_eq!(resigned.status, 200, "{resigned:?}");
    for path in [
        &path,
        "/elections",
        "/kube/shop/web/pods",
        "/readyz",
        &format!("/{candidate}"),
        &format!("/election/{election}/{candidate}/x"),
    ] {
        agent.get(path).await;
    }
}

struct Three {
    servers: Vec<Redis>,
    agent: Agent,
}

impl Three {
    /// An agent on three servers of Redis, with these settings.
    async fn start(settings: &[(&str, &str)]) -> Self {
        let servers = Redis::several(3, &["--maxmemory", "100mb"]).await;
        let agent = Agent::on(&servers[..], settings).await;
        agent.readiness(200, &[]).await;
        Self { servers, agent }
    }

    /// How metrics call the server.
    fn node(&self, server: usize) -> String {
        self.servers[server].url().replace("redis://", "")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_there_with_its_type_and_labels_as_two_parsers_read_it() {
    let api = ApiServer::start().await;
    for object in fixtures::web_rollout() {
        api.apply(object);
    }
    let kubernetes = api.settings();
    let kubernetes = kubernetes.iter().map(|(name, value)| (&**name, &**value));
    let others = [
        ("EA_KUBE_ENABLE", "true"),
        ("EA_METRICS_PER_ELECTION", "default"),
    ];
    let settings: Vec<_> = kubernetes.chain(others).collect();
    let three = Three::start(&settings).await;
    let agent = &three.agent;
    eventually("the pods are listed", async || {
        (agent.get("/kube/shop/web/pods").await.status == 200).then_some(())
    })
    .await;
    ask_everything(agent, "e", "a").await;
    eventually(
        "new servers are asked again, and have markers",
        async || {
            let text = metrics(agent).await;
            let guards = text.matches("election_agent_node_guard_remaining_seconds{");
            (guards.count() == 3).then_some(())
        },
    )
    .await;

    let (content_type, text) = scraped(agent, "*/*").await;
    assert_eq!(content_type, "text/plain; version=0.0.4; charset=utf-8");
    let checked = fed(Command::new("promtool").args(["check", "metrics"]), &text);
    assert_eq!(checked, "", "of:\n{text}");
    let (content_type, open_metrics) = scraped(agent, OPENMETRICS).await;
    assert_eq!(
        content_type,
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    let as_text = parsed("text", &text);
    let as_open_metrics = parsed("openmetrics", &open_metrics);
    assert_eq!(
        as_text.keys().collect::<Vec<_>>(),
        as_open_metrics.keys().collect::<Vec<_>>()
    );

    let mut without_series = Vec::new();
    for row in TABLE {
        // Parsers call counters without the suffix of their samples.
        let family = row.full_name();
        let family = family.trim_end_matches("_total");
        for families in [&as_text, &as_open_metrics] {
            let Some(family) = families.get(family) else {
                without_series.push(row.name);
                continue;
            };
            assert_eq!(family["type"], row.kind.name(), "{}", row.name);
            let samples = family["samples"].as_array().expect("samples");
            assert!(!samples.is_empty(), "{}", row.name);
            for sample in samples {
                let labels = sample[1].as_object().expect("labels").keys();
                let labels: BTreeSet<_> = labels
                    .map(String::as_str)
                    .filter(|label| *label != "le")
                    .collect();
                let expected: BTreeSet<_> = row.labels.iter().copied().collect();
                assert_eq!(labels, expected, "{}", row.name);
            }
        }
    }
    without_series.dedup();
    // Without TLS.
    assert_eq!(without_series, ["certificate_expiry_timestamp_seconds"]);
    let there = TABLE.len() - without_series.len();
    assert_eq!(as_text.len(), there, "every family is in the table");

    for (series, least) in [
        (
            "request_duration_seconds_count{action=\"pods\",status=\"ok\"}",
            1.0,
        ),
        ("kube_cache_pods{namespace=\"*\"}", 1.0),
        ("connections", 1.0),
        ("ready", 1.0),
    ] {
        let value = value(&text, series).unwrap_or_else(|| panic!("{series}: {text}"));
        assert!(value >= least, "{series} {value}");
    }
    for server in 0..3 {
        let node = three.node(server);
        for (series, expected) in [
            (format!("node_up{{node=\"{node}\"}}"), 1.0),
            (
                format!("node_guard_remaining_seconds{{node=\"{node}\"}}"),
                0.0,
            ),
        ] {
            assert_eq!(value(&text, &series), Some(expected), "{series}: {text}");
        }
        for operation in ["grant", "extend", "resign", "mark", "probe"] {
            let labels = format!("{{node=\"{node}\",operation=\"{operation}\"}}");
            let count = value(&text, &format!("node_call_duration_seconds_count{labels}"));
            assert!(count.is_some_and(|count| count > 0.0), "{labels}: {text}");
        }
    }
    assert!(!text.contains("another"), "no candidate is named: {text}");
}

#[test]
fn exemplars_are_as_a_parser_of_openmetrics_wants_them() {
    let metrics = Metrics::new(&[0.5, 1.0]);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let (status, code) = (tonic::Code::Ok, None);
    let request = metrics.begin(Action::Campaign);
    request.answered(
        ResponseStatus { status, code },
        Duration::from_millis(600),
        Some(trace),
    );
    let families = parsed("openmetrics", &metrics.text(Format::OpenMetrics));
    let family = &families["election_agent_request_duration_seconds"];
    assert_eq!(family["exemplars"], json!([{"trace_id": trace}]));
    assert_eq!(family["unit"], "seconds");
    let text = metrics.text(Format::Text);
    fed(Command::new("promtool").args(["check", "metrics"]), &text);
    assert!(parsed("text", &text).contains_key("election_agent_request_duration_seconds"));
}

#[tokio::test(flavor = "multi_thread")]
async fn series_do_not_grow_with_what_callers_make_up() {
    let three = Three::start(&[]).await;
    let names = |text: &str| -> BTreeSet<String> {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let series = samples.filter_map(|line| line.rsplit_once(' '));
        series.map(|(series, _)| series.to_owned()).collect()
    };
    ask_everything(&three.agent, "e", "a").await;
    // The metrics count themselves.
    metrics(&three.agent).await;
    let before = names(&metrics(&three.agent).await);
    for number in 0..30 {
        ask_everything(
            &three.agent,
            &format!("made-up-{number}"),
            &format!("candidate-{number}"),
        )
        .await;
    }
    let after = metrics(&three.agent).await;
    assert!(
        !after.contains("made-up") && !after.contains("candidate-"),
        "{after}"
    );
    let after = names(&after);
    let new: Vec<_> = after.difference(&before).collect();
    assert_eq!(new, [""; 0]);
    assert!(after.len() > 500, "{}", after.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_dies_and_forgets_is_told_apart() {
    let mut three = Three::start(&[("EA_REDIS_OPERATION_TIMEOUT", "1s")]).await;
    let (well, ill) = (three.node(0), three.node(2));
    let of = |node: &str, rest: &str| format!("{{node=\"{node}\"{rest}}}");
    let errors = |node: &str, operation: &str, error: &str| {
        let labels = format!(",operation=\"{operation}\",error=\"{error}\"");
        format!("node_call_errors_total{}", of(node, &labels))
    };
    let won = three.agent.campaign("e", "a", 60_000).await;
    assert!(won.elected);

    three.servers[2].signal("STOP");
    assert!(three.agent.extend("e", "a", 60_000, won.token).await.value);
    eventually("the extension is counted as timed out", async || {
        let count = value(
            &metrics(&three.agent).await,
            &errors(&ill, "extend", "timeout"),
        )?;
        (count >= 1.0).then_some(())
    })
    .await;
    eventually("the node is reported down", async || {
        let text = metrics(&three.agent).await;
        let up = value(&text, &format!("node_up{}", of(&ill, "")))?;
        let guard = value(
            &text,
            &format!("node_guard_remaining_seconds{}", of(&ill, "")),
        );
        (up == 0.0 && guard.is_none()).then_some(())
    })
    .await;
    let text = metrics(&three.agent).await;
    assert_eq!(value(&text, "disconnected_redis_backends"), Some(1.0));
    assert_eq!(value(&text, "ready"), Some(1.0), "two are a quorum");
    let extend = ",operation=\"extend\"";
    let slow = format!("node_call_duration_seconds_sum{}", of(&ill, extend));
    assert!(value(&text, &slow) >= Some(1.0), "{text}");
    for operation in ["grant", "extend", "probe"] {
        // On a slow day any server may be late.
        for error in ["failed", "not_sent"] {
            assert_eq!(
                value(&text, &errors(&well, operation, error)),
                Some(0.0),
                "{text}"
            );
        }
    }

    three.servers[2].signal("CONT");
    three.servers[2].kill();
    eventually("calls are counted as not sent", async || {
        let _ = three.agent.extend("e", "a", 60_000, won.token).await;
        let count = value(
            &metrics(&three.agent).await,
            &errors(&ill, "extend", "not_sent"),
        )?;
        (count >= 1.0).then_some(())
    })
    .await;

    three.servers[2].forget();
    three.servers[2].run().await;
    eventually("the node is reported up, and in quarantine", async || {
        let text = metrics(&three.agent).await;
        let guard = value(
            &text,
            &format!("node_guard_remaining_seconds{}", of(&ill, "")),
        )?;
        let up = value(&text, &format!("node_up{}", of(&ill, "")))?;
        (up == 1.0 && guard > 1.0 && guard <= 60.0).then_some(())
    })
    .await;
    eventually_within(Duration::from_secs(20), "the lease is healed", async || {
        let _ = three.agent.extend("e", "a", 60_000, won.token).await;
        value(&metrics(&three.agent).await, "heals_total").filter(|heals| *heals > 0.0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_counted_by_their_reason_over_every_protocol() {
    let mut file = NamedTempFile::new().expect("a file");
    let (_, line) = new_token(&["a"]);
    writeln!(file, "{line}").expect("written");
    let path = file.path().display().to_string();
    let agent = Agent::start(&[
        ("EA_AUTH_MODES", "token"),
        ("EA_AUTH_TOKEN_FILE", &path),
        ("EA_AUTH_PUBLIC", "probes,metrics"),
    ])
    .await;
    let told = agent.get("/election/e").await;
    assert_eq!(told.status, 401);
    let told = agent.leader("e").await.expect_err("refused");
    assert_eq!(told.code(), tonic::Code::Unauthenticated);
    let text = metrics(&agent).await;
    for (reason, count) in [
        ("unauthenticated", 2.0),
        ("denied", 0.0),
        ("overloaded", 0.0),
    ] {
        let series = format!("requests_refused_total{{reason=\"{reason}\"}}");
        assert_eq!(value(&text, &series), Some(count), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificates_expiry_is_told() {
    let authority = Authority::new();
    authority.issue("localhost");
    let agent = Agent::start(&authority.settings()).await;
    let ca = reqwest::Certificate::from_pem(authority.pem("ca.pem").as_bytes()).expect("PEM");
    let client = reqwest::Client::builder().tls_certs_only([ca]);
    let client = client.build().expect("a client");
    let url = format!("https://{}/metrics", agent.address());
    let answer = client.get(&url).send().await.expect("an answer");
    let text = answer.text().await.expect("text");
    // What the authority issues is valid until the year 4096.
    let expiry = value(&text, "certificate_expiry_timestamp_seconds");
    assert_eq!(expiry, Some(67_090_118_400.0), "{text}");
}
