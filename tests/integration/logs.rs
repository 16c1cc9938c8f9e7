//! What is logged: every leadership that changes, and the rest as it is wanted just now.

use std::{fs, time::Duration};

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Agent, Redis, eventually, eventually_within, new_token, owned};

/// The lines of the audit trail that are new.
fn audit(agent: &Agent) -> Vec<Value> {
    let lines = agent.log().into_iter();
    let lines = lines.filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    lines
        .filter(|line| line["target"] == "election_agent::audit")
        .collect()
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
    let campaign = json!({"candidate": candidate, "term": term});
    agent
        .rest(Method::POST, "/election/k/e", Some(campaign))
        .await
        .body
}

#[tokio::test]
async fn every_change_of_a_leadership_is_logged_whatever_the_level() {
    let agent = Agent::start(&owned(&[("EA_LOG_LEVEL", "info")])).await;
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

    let agent = Agent::start(&owned(&[("EA_LOG_LEVEL", "election_agent=info,h2=warn")])).await;
    campaign(&agent, "a", 60_000).await;
    assert_eq!(changes(&agent, 1).await, triples(&[("-", "a", "campaign")]));
}

#[tokio::test]
async fn a_term_that_lapses_while_a_server_is_down_is_logged_as_what_it_is() {
    let (mut first, second, third) = (
        Redis::start().await,
        Redis::start().await,
        Redis::start().await,
    );
    let urls = [first.url(), second.url(), third.url()].join(",");
    let settings = owned(&[
        ("EA_REDIS_URLS", &urls),
        ("EA_REDIS_OPERATION_TIMEOUT", "500ms"),
    ]);
    let agent = Agent::start(&settings).await;
    agent.readiness(200, &[]).await;
    assert_eq!(campaign(&agent, "a", 1_000).await["elected"], true);
    first.kill();
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
    let agent = Agent::start(&owned(&[("EA_CONFIG_FILE", &path)])).await;
    let mut log = Vec::new();
    let mut logged = async |what: &str| {
        eventually(what, async || {
            agent.get("/election/k/e").await;
            log.extend(agent.log());
            log.iter().position(|line| line.contains(what))
        })
        .await
    };
    write("log_level: chatty\n");
    agent.signal("HUP");
    logged("SIGHUP: nothing was changed").await;
    write("log_level: debug\n");
    agent.signal("HUP");
    let read = logged("what is logged was read again").await;
    let debug = logged("\"level\":\"DEBUG\"").await;
    assert!(debug > read, "not before");
}

#[tokio::test]
async fn whoever_may_administer_the_agent_says_what_is_logged() {
    let open = Agent::start(&owned(&[])).await;
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
    let agent = Agent::start(&owned(&[
        ("EA_AUTH_MODES", "token"),
        ("EA_AUTH_TOKEN_FILE", &tokens),
        (
            "EA_AUTH_POLICY_DIR",
            &directory.path().display().to_string(),
        ),
    ]))
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
        let changed = |line: &String| {
            line.contains("what is logged was changed") && line.contains("operator")
        };
        log.iter().any(changed).then_some(())
    })
    .await;
}
