//! The log: every change of leadership, and the rest by the present level.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, ChildStderr, Stdio},
    sync::mpsc,
    time::Duration,
};

use election_proto::election_client::ElectionClient;
use futures_util::{StreamExt as _, future::join_all, stream};
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::transport::Endpoint;

use crate::harness::{
    Agent, Collector, InProcess, Redis, campaign as election_of, command, command_output,
    eventually, eventually_within, extension, new_token, owned, signal,
};

/// The new lines of the audit trail with this message.
fn audited(agent: &Agent, message: &str) -> Vec<Value> {
    let lines = agent.log().into_iter();
    let lines = lines.filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    let lines = lines.filter(|line| line["target"] == "election_agent::audit");
    lines.filter(|line| line["message"] == message).collect()
}

/// The changes of leaderships in the audit trail that are new.
fn audit(agent: &Agent) -> Vec<Value> {
    audited(agent, "leadership changed")
}

/// Waits for this many new lines of the audit trail; each as old leader, new leader and cause.
async fn changes(agent: &Agent, count: usize) -> Vec<(String, String, String)> {
    let mut lines = Vec::new();
    eventually("the changes are logged", async || {
        lines.extend(audit(agent));
        (lines.len() >= count).then_some(())
    })
    .await;
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let changes = lines.iter().map(|line| {
        (
            text(&line["old_leader"]),
            text(&line["new_leader"]),
            text(&line["cause"]),
        )
    });
    changes.collect()
}

fn triples(expected: &[(&str, &str, &str)]) -> Vec<(String, String, String)> {
    let owned = expected
        .iter()
        .map(|(a, b, c)| ((*a).into(), (*b).into(), (*c).into()));
    owned.collect()
}

async fn campaign(agent: &Agent, candidate: &str, term: u32) -> Value {
    let answer = agent.campaign_over_rest("/election/k/e", candidate, term);
    answer.await.body
}

#[tokio::test]
async fn every_change_of_a_leadership_is_logged_whatever_the_level() {
    let agent = Agent::start(&[("EA_LOG_LEVEL", "info")]).await;
    let token = campaign(&agent, "a", 60_000).await["token"].clone();
    let line = eventually("it is logged", async || audit(&agent).pop()).await;
    for (member, value) in [
        ("level", json!("INFO")),
        ("message", json!("leadership changed")),
        ("election", json!("k/e")),
        ("old_leader", Value::Null),
        ("new_leader", json!("a")),
        ("token", token),
        ("cause", json!("campaign")),
        // Callers are not authenticated.
        ("caller", json!("anonymous")),
        ("mode", json!("none")),
        ("peer", json!("127.0.0.1")),
    ] {
        assert_eq!(line[member], value, "{member}: {line}");
    }
    assert!(
        line["agent"]
            .as_str()
            .is_some_and(|agent| !agent.is_empty()),
        "{line}"
    );
    assert!(line["timestamp"].is_string(), "{line}");

    // What changes nothing is not logged: another candidate, an extension, a read.
    campaign(&agent, "b", 60_000).await;
    let extend = json!({"leader": "a", "term": 60_000});
    agent
        .rest(Method::PATCH, "/election/k/e", Some(extend))
        .await;
    agent.get("/election/k/e").await;
    let handover = json!({"leader": "b", "term": 60_000, "current_leader": "a"});
    agent
        .rest(Method::PUT, "/election/k/e", Some(handover))
        .await;
    agent
        .rest(Method::DELETE, "/election/k/e?leader=b", None)
        .await;
    let expected = [("a", "b", "handover"), ("b", "-", "resign")];
    assert_eq!(changes(&agent, 2).await, triples(&expected));

    let agent = Agent::start(&[("EA_LOG_LEVEL", "election_agent=info,h2=warn")]).await;
    campaign(&agent, "a", 60_000).await;
    assert_eq!(changes(&agent, 1).await, triples(&[("-", "a", "campaign")]));
}

#[tokio::test]
async fn audit_lines_name_the_caller_its_address_and_its_request() {
    let directory = TempDir::new().expect("a directory");
    let (token, line) = new_token(&["worker"]);
    let file = directory.path().join("tokens");
    fs::write(&file, line).expect("written");
    let agent = Agent::start(&[
        ("EA_AUTH_MODES", "token"),
        ("EA_AUTH_TOKEN_FILE", &file.display().to_string()),
        ("EA_TRUSTED_PROXIES", "127.0.0.1"),
    ])
    .await;
    let ask = async |method, candidate: &str, id: &str, term| {
        let request = agent
            .request(method, "/election/k/e")
            .bearer_auth(&token)
            .header("x-forwarded-for", "198.51.100.1, 203.0.113.9")
            .header("x-request-id", id)
            .json(&json!({"candidate": candidate, "term": term}));
        agent.send(request).await
    };
    let by =
        |line: &Value| ["caller", "mode", "peer", "request_id"].map(|member| line[member].clone());
    assert_eq!(ask(Method::POST, "worker", "r-1", 1_000).await.status, 200);
    let line = eventually("it is logged", async || audit(&agent).pop()).await;
    let expected = ["worker", "token", "203.0.113.9", "r-1"].map(|text| json!(text));
    assert_eq!(by(&line), expected, "{line}");

    // The next candidate after a lapsed term did not cause the lapse.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(ask(Method::POST, "worker", "r-2", 60_000).await.status, 200);
    let mut lines = Vec::new();
    eventually("both are logged", async || {
        lines.extend(audit(&agent));
        (lines.len() >= 2).then_some(())
    })
    .await;
    let lapsed = &lines[0];
    assert_eq!(lapsed["cause"], "expiry", "{lapsed}");
    assert_eq!(by(lapsed), [const { Value::Null }; 4], "{lapsed}");
    assert_eq!(lines[1]["request_id"], "r-2", "{lines:?}");

    // What is denied names all of that, too, and what was asked.
    assert_eq!(ask(Method::POST, "other", "r-3", 1_000).await.status, 403);
    let line = eventually("it is logged", async || {
        audited(&agent, "request denied").pop()
    })
    .await;
    let expected = ["worker", "token", "203.0.113.9", "r-3"].map(|text| json!(text));
    assert_eq!(by(&line), expected, "{line}");
    for (member, value) in [
        ("level", json!("WARN")),
        ("action", json!("campaign")),
        ("resource_type", json!("election")),
        ("resource", json!("k/e")),
        ("candidate", json!("other")),
        ("suppressed", json!(0)),
    ] {
        assert_eq!(line[member], value, "{member}: {line}");
    }

    // However many there are, the log has a few and reports how many it suppressed.
    let many = 300;
    join_all((0..many).map(|_| ask(Method::POST, "other", "r-4", 1_000))).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    ask(Method::POST, "other", "r-5", 1_000).await;
    let mut lines = Vec::new();
    eventually("the last is logged", async || {
        lines.extend(audited(&agent, "request denied"));
        lines
            .iter()
            .any(|line| line["request_id"] == "r-5")
            .then_some(())
    })
    .await;
    let suppressed: u64 = lines
        .iter()
        .filter_map(|line| line["suppressed"].as_u64())
        .sum();
    assert_eq!(lines.len() as u64 + suppressed, many + 1, "none is missing");
    assert!(suppressed > many / 2, "{suppressed} of {many}");
    let metrics = agent
        .send(agent.request(Method::GET, "/metrics").bearer_auth(&token))
        .await;
    let refused = format!(
        "election_agent_requests_refused_total{{reason=\"denied\"}} {}",
        many + 2
    );
    let metrics = metrics.body.as_str().expect("text");
    assert!(
        metrics.lines().any(|line| line == refused),
        "{refused} is not in: {metrics}"
    );
}

#[tokio::test]
async fn a_denied_read_of_the_agent_is_in_the_audit_trail_too() {
    let directory = TempDir::new().expect("a directory");
    let (token, line) = new_token(&["worker"]);
    fs::write(directory.path().join("tokens"), line).expect("written");
    fs::write(
        directory.path().join("a.cedar"),
        "permit (principal, action == ElectionAgent::Action::\"list\", resource);",
    )
    .expect("written");
    let path = directory.path().display().to_string();
    let agent = Agent::start(&[
        ("EA_AUTH_MODES", "token"),
        ("EA_AUTH_PUBLIC", "probes"),
        ("EA_AUTH_TOKEN_FILE", &format!("{path}/tokens")),
        ("EA_AUTH_POLICY_DIR", &path),
    ])
    .await;
    let request = agent.request(Method::GET, "/metrics").bearer_auth(&token);
    assert_eq!(agent.send(request).await.status, 403);
    let line = eventually("it is logged", async || {
        audited(&agent, "request denied").pop()
    })
    .await;
    for (member, value) in [
        ("action", json!("read")),
        ("resource_type", json!("agent")),
        ("caller", json!("worker")),
        ("peer", json!("127.0.0.1")),
    ] {
        assert_eq!(line[member], value, "{member}: {line}");
    }
    assert_eq!(
        line["request_id"].as_str().map(str::len),
        Some(32),
        "{line}"
    );
}

#[tokio::test]
async fn every_line_of_a_traced_request_names_its_trace_and_span() {
    let collector = Collector::start().await;
    let settings = [("EA_LOG_LEVEL", "info,election_agent::requests=debug")];
    let agent = collector.agent(&InProcess, &settings).await;
    let ask = async |id: &str, sampled: u8| {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let request = agent
            .request(Method::POST, &format!("/election/{id}"))
            .header(
                "traceparent",
                format!("00-{trace}-b7ad6b7169203331-0{sampled}"),
            )
            .header("x-request-id", id)
            .json(&json!({"candidate": "a", "term": 60_000}));
        assert_eq!(agent.send(request).await.status, 200);
    };
    ask("unsampled", 0).await;
    ask("sampled", 1).await;
    let span = collector
        .span("the request's", |span| {
            span.get("election_agent.request_id") == "sampled"
        })
        .await;
    let mut lines = Vec::new();
    eventually("both are logged", async || {
        lines.extend(agent.log());
        let answered = lines.iter().filter(|line| line.contains("\"answered\""));
        (answered.count() >= 2).then_some(())
    })
    .await;
    let lines: Vec<Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let of = |message: &str| {
        lines
            .iter()
            .filter(|line| line["message"] == message)
            .collect::<Vec<_>>()
    };
    for message in ["leadership changed", "answered"] {
        let [unsampled, sampled] = of(message)[..] else {
            panic!("{lines:?}");
        };
        assert_eq!(sampled["trace_id"], span.trace(), "{sampled}");
        assert_eq!(sampled["span_id"], span.id(), "{sampled}");
        assert!(unsampled.get("trace_id").is_none(), "{unsampled}");
        assert!(unsampled.get("span_id").is_none(), "{unsampled}");
    }
    assert!(of("answered")[0]["took_ms"].is_number(), "{lines:?}");
    assert!(of("listening")[0].get("trace_id").is_none());
}

#[tokio::test]
async fn the_first_line_says_what_runs_with_which_configuration() {
    let first = async |settings: &[(&str, &str)]| {
        let agent = Agent::start(settings).await;
        let line: Value = serde_json::from_str(&agent.early_log()[0]).expect("JSON");
        line
    };
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("agent.yaml");
    fs::write(&file, "max_term: 50s\n").expect("written");
    let here = [("EA_MAX_TERM", "50s"), ("EA_NO_SUCH_SETTING", "1")];
    // A mistake that is logged, too, comes later.
    let line = first(&here).await;
    assert_eq!(line["message"], "election-agent starts", "{line}");
    assert_eq!(line["version"], env!("CARGO_PKG_VERSION"), "{line}");
    assert!(line["commit"].is_string(), "{line}");
    let fingerprint = line["configuration"].as_str().expect("text").to_owned();
    let there = first(&[("EA_CONFIG_FILE", &file.display().to_string())]).await;
    assert_eq!(
        there["configuration"], *fingerprint,
        "the same settings, of a file"
    );
    let other = first(&[("EA_MAX_TERM", "40s")]).await;
    assert_ne!(other["configuration"], *fingerprint);
    // It is what `config` prints.
    let printed = command_output(
        &["config"],
        &[
            ("EA_MAX_TERM", "50s"),
            ("EA_BIND_ADDRESS", "127.0.0.1"),
            ("EA_HTTP_PORT", "0"),
            ("EA_GRPC_PORT", "0"),
        ],
    );
    let printed = String::from_utf8(printed.stdout).expect("text");
    let expected = format!("# fingerprint: {fingerprint}");
    assert_eq!(printed.lines().next(), Some(&*expected));
}

#[tokio::test]
async fn a_term_that_lapses_while_a_server_is_down_is_logged_as_what_it_is() {
    let mut servers = Redis::several(3, &[]).await;
    let settings = [("EA_REDIS_OPERATION_TIMEOUT", "500ms")];
    let agent = Agent::on(&servers[..], &settings).await;
    agent.readiness(200, &[]).await;
    assert_eq!(campaign(&agent, "a", 1_000).await["elected"], true);
    servers[0].kill();
    // `a` does not extend its term; `b` gets it as soon as it is over.
    let limit = Duration::from_secs(20);
    eventually_within(limit, "b leads", async || {
        (campaign(&agent, "b", 60_000).await["elected"] == true).then_some(())
    })
    .await;
    let expected = [
        ("-", "a", "campaign"),
        ("a", "-", "expiry"),
        ("-", "b", "campaign"),
    ];
    assert_eq!(changes(&agent, 3).await, triples(&expected));
    let metrics = agent.get("/metrics").await;
    let metrics = metrics.body.as_str().expect("text").to_owned();
    for (cause, times) in [
        ("campaign", 2),
        ("expiry", 1),
        ("resign", 0),
        ("handover", 0),
    ] {
        let line = format!("election_agent_leadership_changes_total{{cause=\"{cause}\"}} {times}");
        assert!(
            metrics.lines().any(|other| other == line),
            "{line} is not in: {metrics}"
        );
    }
}

#[tokio::test]
async fn a_hangup_has_the_level_read_again_and_changes_nothing_if_that_fails() {
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("agent.yaml");
    let write = |text: &str| fs::write(&file, text).expect("written");
    write("log_level: info\n");
    let path = file.display().to_string();
    let agent = Agent::start(&[("EA_CONFIG_FILE", &path)]).await;
    let mut log = Vec::new();
    let logged = async |log: &mut Vec<String>, what: &str| {
        eventually(what, async || {
            agent.get("/election/k/e").await;
            log.extend(agent.log());
            log.iter().any(|line| line.contains(what)).then_some(())
        })
        .await;
    };
    const DEBUG: &str = "\"level\":\"DEBUG\"";
    write("log_level: chatty\n");
    agent.signal("HUP");
    logged(&mut log, "SIGHUP: nothing was changed").await;
    agent.get("/election/k/e").await;
    log.extend(agent.log());
    assert!(!log.iter().any(|line| line.contains(DEBUG)), "not before");
    write("log_level: debug\n");
    agent.signal("HUP");
    // In any order: another thread may log at the new level before the one that has read it says so.
    logged(&mut log, "reloaded the log level").await;
    logged(&mut log, DEBUG).await;
}

#[tokio::test]
async fn a_caller_with_admin_rights_sets_the_log_level() {
    let open = Agent::on(&InProcess, &[]).await;
    let debug = || Some(json!({"level": "election_agent=debug,h2=warn"}));
    let refused = open.rest(Method::PUT, "/log", debug()).await;
    assert_eq!(
        (refused.status, refused.text("code")),
        (403, "PermissionDenied")
    );
    assert!(
        refused.text("message").contains("EA_AUTH_MODES"),
        "{refused:?}"
    );

    let directory = TempDir::new().expect("a directory");
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    let (operator, operators_line) = new_token(&["operator"]);
    let (worker, workers_line) = new_token(&["worker"]);
    let tokens = write("tokens", &format!("{operators_line}\n{workers_line}\n"));
    write(
        "admin.cedar",
        "permit (principal, action == ElectionAgent::Action::\"admin\", resource) \
         when { principal.name == \"operator\" };",
    );
    let agent = Agent::start(&[
        ("EA_AUTH_MODES", "token"),
        ("EA_AUTH_TOKEN_FILE", &tokens),
        (
            "EA_AUTH_POLICY_DIR",
            &directory.path().display().to_string(),
        ),
    ])
    .await;
    let put = async |token: &str, body: Value| {
        let request = agent
            .request(Method::PUT, "/log")
            .bearer_auth(token)
            .json(&body);
        agent.send(request).await
    };
    assert_eq!(put("s3cret", debug().expect("some")).await.status, 401);
    assert_eq!(put(&worker, debug().expect("some")).await.status, 403);
    for wrong in ["", "chatty", "election_agent=loud", &"x=info,".repeat(200)] {
        let refused = put(&operator, json!({"level": wrong})).await;
        assert_eq!(
            (refused.status, refused.text("code")),
            (400, "InvalidArgument"),
            "{wrong}"
        );
        assert!(
            refused.text("message").starts_with("`level` is not valid"),
            "{refused:?}"
        );
    }
    let done = put(&operator, debug().expect("some")).await;
    assert_eq!(
        (done.status, &done.body["level"]),
        (200, &json!("election_agent=debug,h2=warn"))
    );
    let mut log = agent.log();
    eventually("who has changed it is logged", async || {
        log.extend(agent.log());
        let changed =
            |line: &String| line.contains("changed the log level") && line.contains("operator");
        log.iter().any(changed).then_some(())
    })
    .await;
}

/// An agent whose log is not read for now.
struct Unread {
    child: Child,
    log: Option<BufReader<ChildStderr>>,
    address: SocketAddr,
    http: reqwest::Client,
}

impl Unread {
    fn start(settings: &[(&str, &str)]) -> Self {
        // For the clients of the tests.
        election_agent::tls::install_provider();
        let mut child = command(&owned(settings))
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut log = BufReader::new(child.stderr.take().expect("piped"));
        let address = loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).expect("text") > 0, "it has ended");
            let line: Value = serde_json::from_str(&line).expect("JSON");
            if line["message"] == "listening" {
                let address = line["address"].as_str().expect("an address");
                break address.parse().expect("an address");
            }
        };
        Self {
            child,
            log: Some(log),
            address,
            http: reqwest::Client::new(),
        }
    }

    async fn text(&self, path: &str) -> String {
        let url = format!("http://{}{path}", self.address);
        let answer = self.http.get(url).send().await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.status(), 200, "{path}");
        answer.text().await.expect("text")
    }

    async fn lost(&self) -> u64 {
        let metrics = self.text("/metrics").await;
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("election_agent_log_lines_lost_total "));
        line.and_then(|count| count.parse().ok()).expect("a count")
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_the_log_that_stalls_stops_nothing_and_what_it_missed_is_counted() {
    let mut agent = Unread::start(&[("EA_LOG_LEVEL", "info,election_agent::requests=debug")]);
    let endpoint = Endpoint::from_shared(format!("http://{}", agent.address)).expect("a URL");
    let channel = endpoint.connect().await.expect("connects");
    let client = ElectionClient::new(channel);
    let leader = client
        .clone()
        .campaign(election_of("led", "a", 60_000))
        .await;
    let leader = leader.expect("an answer").into_inner();
    // More than a pipe holds and than may wait.
    let mut elections = stream::iter(0..12_000).map(|n| {
        let mut client = client.clone();
        async move {
            client
                .campaign(election_of(&format!("e{n}"), "a", 60_000))
                .await
        }
    });
    let mut elections = elections.by_ref().buffer_unordered(50);
    while let Some(answer) = elections.next().await {
        assert!(answer.expect("an answer").into_inner().elected);
    }
    let lost = agent.lost().await;
    assert!(lost > 0, "nothing was lost: the reader did not stall");
    assert_eq!(agent.text("/livez").await, "ok\n");
    let extend = extension("led", "a", 60_000, leader.token);
    let extended = client.clone().extend_elected_term(extend).await;
    assert!(extended.expect("an answer").into_inner().value);

    // The log is read again.
    let (told, read) = mpsc::channel();
    let mut log = agent.log.take().expect("not read yet");
    std::thread::spawn(move || {
        let mut line = String::new();
        while log.read_line(&mut line).is_ok_and(|length| length > 0) {
            if line.contains("log lines were lost") {
                let _ = told.send(std::mem::take(&mut line));
            }
            line.clear();
        }
    });
    let line = eventually("it says so", async || read.try_recv().ok()).await;
    let line: Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(line["lines"], agent.lost().await, "{line}");
    assert_eq!(line["level"], "WARN");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_log_nobody_reads_ends_when_it_is_to() {
    for signals in [1, 2] {
        let mut agent = Unread::start(&[("EA_LOG_LEVEL", "info,election_agent::requests=debug")]);
        while agent.lost().await == 0 {
            let requests = (0..50).map(|_| agent.text("/elections"));
            join_all(requests).await;
        }
        for _ in 0..signals {
            signal(agent.child.id(), "TERM");
        }
        let ended = eventually("it ends", async || agent.child.try_wait().expect("waits")).await;
        assert_eq!(ended.code(), Some(0));
    }
}
