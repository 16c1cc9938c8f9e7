//! What agents report about themselves and remember, over gRPC and REST: what a dashboard shows.
//! tests/clients/connect_web.mjs requests it over gRPC-Web.

use std::{fs, pin::pin};

use election_proto::{
    AgentState, GetAgentRequest, GetConfigurationRequest, ListChangesRequest, ListNodesRequest,
    ListPermissionsRequest, ListWaitersRequest, Nodes, agent_client::AgentClient,
};
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::{Code, Request, transport::Channel};

use crate::harness::{Agent, Redis, eventually, new_token, owned as settings};

fn client(agent: &Agent) -> AgentClient<Channel> {
    AgentClient::new(agent.channel())
}

async fn state(agent: &Agent) -> AgentState {
    let state = client(agent).get_agent(GetAgentRequest {}).await;
    state.expect("a state").into_inner()
}

async fn nodes(agent: &Agent) -> Nodes {
    let nodes = client(agent).list_nodes(ListNodesRequest {}).await;
    nodes.expect("nodes").into_inner()
}

/// Sends a REST request, and expects a reply.
async fn got(agent: &Agent, path: &str) -> Value {
    let answer = agent.get(path).await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer.body
}

async fn campaigns(agent: &Agent, candidate: &str, wait: u32) -> Value {
    let body = json!({"candidate": candidate, "term": 30_000, "wait": wait});
    let answer = agent
        .rest(Method::POST, "/election/batch/nightly", Some(body))
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

#[tokio::test]
async fn an_agent_tells_who_it_is_and_how_near_it_is_to_its_limits() {
    let agent = Agent::start(&settings(&[
        ("EA_MAX_STREAMS", "7"),
        ("EA_MAX_TERM", "90s"),
    ]))
    .await;
    let told = state(&agent).await;
    assert_eq!(told.version, env!("CARGO_PKG_VERSION"));
    assert!(told.ready && told.reason.is_empty(), "{told:?}");
    assert_eq!((told.max_term, told.caller.as_str()), (90_000, "anonymous"));
    assert!(!told.authentication && !told.pods, "{told:?}");
    assert!(
        told.uptime >= 0 && told.started_at > 1_700_000_000_000,
        "{told:?}"
    );
    let limit = |state: &AgentState, setting: &str| {
        let limit = state.limits.iter().find(|limit| limit.setting == setting);
        limit
            .map(|limit| (limit.used, limit.limit))
            .expect("a limit")
    };
    assert_eq!(limit(&told, "EA_MAX_STREAMS"), (0, 7));
    // This very request.
    assert_eq!(limit(&told, "EA_MAX_IN_FLIGHT").0, 1);
    assert!(limit(&told, "EA_MAX_CONNECTIONS").0 >= 1);

    campaigns(&agent, "a", 0).await;
    let waiting = campaigns(&agent, "b", 20_000);
    let counted = async {
        eventually("the wait is counted", async || {
            (limit(&state(&agent).await, "EA_MAX_STREAMS").0 == 1).then_some(())
        })
        .await;
    };
    tokio::select! {
        answer = waiting => panic!("answered: {answer}"),
        () = counted => {}
    }

    let rest = got(&agent, "/agent").await;
    for (member, value) in [
        ("name", json!(told.name)),
        ("version", json!(told.version)),
        ("commit", json!(told.commit)),
        ("started_at", json!(told.started_at)),
        ("configuration", json!(told.configuration)),
        ("ready", json!(true)),
        ("max_term", json!(90_000)),
    ] {
        assert_eq!(rest[member], value, "{member}");
    }
}

#[tokio::test]
async fn nodes_are_told_with_what_may_still_fail() {
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(Redis::start().await);
    }
    let agent = Agent::on(&servers[..], &[("EA_REDIS_OPERATION_TIMEOUT", "200ms")]).await;
    agent.readiness(200, &["\"guard\":0"]).await;
    let told = nodes(&agent).await;
    assert_eq!((told.needed, told.voting, told.survivable), (2, 3, 1));
    assert!(
        told.quorum && told.checked >= 0 && told.checked < 20_000,
        "{told:?}"
    );
    for node in &told.nodes {
        assert!(node.up && node.voting && node.unfit.is_empty(), "{node:?}");
        assert_eq!((node.role.as_str(), node.quarantine), ("redis", 0));
        assert!(node.latency > 0 && node.memory_used > 0, "{node:?}");
    }

    servers[0].signal("STOP");
    let told = eventually("one is down", async || {
        let told = nodes(&agent).await;
        (told.voting == 2).then_some(told)
    })
    .await;
    assert_eq!((told.quorum, told.survivable), (true, 0));
    let down = &told.nodes[0];
    assert!(!down.up && !down.voting && down.latency == 0, "{down:?}");
    assert!(!down.unfit.is_empty(), "{down:?}");

    servers[1].signal("STOP");
    let told = eventually("two are down", async || {
        let told = got(&agent, "/agent/nodes").await;
        (told["voting"] == 1).then_some(told)
    })
    .await;
    assert_eq!(
        (&told["quorum"], &told["survivable"]),
        (&json!(false), &json!(0))
    );
    let told = state(&agent).await;
    assert!(
        !told.ready && told.reason.contains("lease nodes"),
        "{told:?}"
    );
}

#[tokio::test]
async fn changes_are_remembered_and_waiters_are_listed() {
    let agent = Agent::start(&settings(&[("EA_STORE", "memory")])).await;
    campaigns(&agent, "a", 0).await;
    let nobody = ListWaitersRequest {
        all_kinds: true,
        ..ListWaitersRequest::default()
    };
    let none = agent
        .grpc()
        .list_waiters(nobody.clone())
        .await
        .expect("a page");
    assert!(none.into_inner().waiters.is_empty());

    let (second, third) = (
        campaigns(&agent, "b", 20_000),
        campaigns(&agent, "c", 20_000),
    );
    let waiters = async {
        let told = eventually("two wait", async || {
            let page = agent.grpc().list_waiters(nobody.clone()).await;
            let waiters = page.expect("a page").into_inner().waiters;
            (waiters.len() == 2).then_some(waiters)
        })
        .await;
        for waiter in &told {
            assert_eq!((&*waiter.kind, &*waiter.election), ("batch", "nightly"));
            assert!((0..20_000).contains(&waiter.waiting_for), "{waiter:?}");
        }
        // Page by page, over REST, and of other kinds and elections.
        let first = got(&agent, "/waiters?kind=batch&page_size=1").await;
        let next = first["next_page_token"].as_str().expect("text");
        let second = got(
            &agent,
            &format!("/waiters?kind=batch&page_size=1&page_token={next}"),
        )
        .await;
        assert_eq!(second["next_page_token"], "");
        let paged = [&first, &second].map(|page| &page["waiters"][0]["candidate"]);
        let listed: Vec<_> = told.iter().map(|waiter| json!(waiter.candidate)).collect();
        assert_eq!(paged.map(Clone::clone).to_vec(), listed);
        let one = got(&agent, "/waiters?kind=batch&election=nightly").await;
        assert_eq!(one["waiters"].as_array().map(Vec::len), Some(2));
        for path in [
            "/waiters",
            "/waiters?kind=batch&election=other",
            "/waiters?kind=other",
        ] {
            assert_eq!(got(&agent, path).await["waiters"], json!([]), "{path}");
        }
        let resigned = agent
            .rest(Method::DELETE, "/election/batch/nightly?leader=a", None)
            .await;
        assert_eq!(resigned.status, 200, "{resigned:?}");
    };
    let (mut second, mut third) = (pin!(second), pin!(third));
    let elected = async {
        tokio::select! {
            won = second.as_mut() => (won, third),
            won = third.as_mut() => (won, second),
        }
    };
    let ((), (won, waits)) = tokio::join!(waiters, elected);
    assert_eq!(won["elected"], true, "{won}");
    // While the other waits, the board goes on watching the election.
    tokio::select! {
        answer = waits => panic!("answered: {answer}"),
        () = remembers(&agent) => {}
    }
}

/// What the agent remembers of the election after a resignation and the next grant.
async fn remembers(agent: &Agent) {
    let request = ListChangesRequest {
        election: "nightly".to_owned(),
        kind: "batch".to_owned(),
    };
    let changes = eventually("the grant is remembered", async || {
        let changes = agent.grpc().list_changes(request.clone()).await;
        let changes = changes.expect("changes").into_inner().changes;
        let newest = changes.first()?.state.as_ref()?;
        newest.leader.is_some().then_some(changes)
    })
    .await;
    let rest = got(agent, "/election/batch/nightly/changes").await;
    let rest = rest["changes"].as_array().expect("a list");
    assert_eq!(rest.len(), changes.len());
    for (change, rest) in changes.iter().zip(rest) {
        let state = change.state.as_ref().expect("a state");
        assert_eq!(rest["state"]["token"], json!(state.token));
        assert_eq!(rest["state"]["cause"], json!(state.cause().as_str_name()));
        assert!(change.at > 1_700_000_000_000, "{change:?}");
        let remaining = state.leader.as_ref().map_or(0, |leader| leader.remaining);
        assert_eq!(remaining, 0, "it says who led, and not for how long");
    }
    let tokens: Vec<_> = changes
        .iter()
        .filter_map(|change| Some(change.state.as_ref()?.token))
        .collect();
    assert!(
        tokens.is_sorted_by(|newer, older| newer >= older),
        "{tokens:?}"
    );
    let other = got(agent, "/election/batch/other/changes").await;
    assert_eq!(other, json!({"changes": []}));
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused_with_what_to_change() {
    let agent = Agent::start(&settings(&[("EA_STORE", "memory")])).await;
    for (path, told) in [
        ("/waiters?kind=a&all_kinds=true", "beside `all_kinds`"),
        ("/waiters?election=a&all_kinds=true", "beside `all_kinds`"),
        (
            "/waiters?page_size=1001",
            "`page_size` is 1001: give 1 to 1000",
        ),
        ("/waiters?page_token=x", "`page_token` is not one"),
        ("/waiters?page_token=-1", "`page_token` is not one"),
        ("/waiters?colour=red", "colour"),
        ("/election/a%00/b/changes", "control character"),
        ("/agent/permissions?kind=a", "name the election, too"),
        ("/agent/permissions?candidate=a", "name the election, too"),
    ] {
        let refused = agent.get(path).await;
        assert_eq!(refused.status, 400, "{path}: {refused:?}");
        assert!(
            refused.text("message").contains(told),
            "{path}: {refused:?}"
        );
    }
    let refused = agent.rest(Method::POST, "/agent", Some(json!({}))).await;
    assert_eq!((refused.status, refused.header("allow")), (405, "GET,HEAD"));
}

/// An agent that requires tokens, and the tokens of three callers: one may read, one may do everything, one may do
/// nothing.
async fn guarded(directory: &TempDir) -> (Agent, [String; 3]) {
    let made = ["reader", "boss", "nobody"].map(|name| new_token(&[name]));
    let lines: Vec<_> = made.iter().map(|(_, line)| line.as_str()).collect();
    let at = |name: &str| directory.path().join(name).display().to_string();
    fs::write(at("tokens"), lines.join("\n")).expect("written");
    fs::create_dir(at("policies")).expect("created");
    let policy = r#"
        permit (principal, action in [ElectionAgent::Action::"read", ElectionAgent::Action::"observe"], resource)
        when { principal.name == "reader" };
        permit (principal, action, resource) when { principal.name == "boss" };
    "#;
    fs::write(at("policies/test.cedar"), policy).expect("written");
    let agent = Agent::start(&settings(&[
        ("EA_AUTH_MODES", "token"),
        ("EA_AUTH_TOKEN_FILE", &at("tokens")),
        ("EA_AUTH_POLICY_DIR", &at("policies")),
        ("EA_REDIS_SENTINEL_PASSWORD", ""),
    ]))
    .await;
    (agent, made.map(|(token, _)| token))
}

#[tokio::test]
async fn policies_decide_who_is_told_what() {
    let directory = TempDir::new().expect("a directory");
    let (agent, tokens) = guarded(&directory).await;
    let asked = async |path: &str, token: Option<&String>| {
        let request = agent.request(Method::GET, path);
        let request = match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        agent.send(request).await
    };
    for (path, expected) in [
        ("/agent", [200, 200, 403]),
        ("/agent/nodes", [200, 200, 403]),
        ("/agent/configuration", [403, 200, 403]),
        ("/election/a/b/changes", [200, 200, 403]),
        ("/waiters?kind=a", [403, 200, 403]),
        ("/waiters?kind=a&election=b", [200, 200, 403]),
        ("/waiters?all_kinds=true", [403, 200, 403]),
        ("/agent/permissions", [200, 200, 200]),
    ] {
        assert_eq!(asked(path, None).await.status, 401, "{path}");
        for (token, expected) in tokens.iter().zip(expected) {
            let answer = asked(path, Some(token)).await;
            assert_eq!(answer.status, expected, "{path}: {answer:?}");
        }
    }
    let all = json!([
        "campaign", "extend", "resign", "handover", "read", "verify", "observe"
    ]);
    for (path, permitted) in [
        (
            "/agent/permissions?election=b&kind=a&candidate=x",
            [json!(["read", "observe"]), all, json!([])],
        ),
        (
            "/agent/permissions",
            [
                json!(["observe", "read"]),
                json!(["observe", "read", "listKinds", "admin"]),
                json!([]),
            ],
        ),
    ] {
        for (token, permitted) in tokens.iter().zip(permitted) {
            assert_eq!(
                asked(path, Some(token)).await.body["actions"],
                permitted,
                "{path}"
            );
        }
    }
    let mut request = Request::new(GetConfigurationRequest {});
    let bearer = format!("bearer {}", tokens[0]).parse().expect("metadata");
    request.metadata_mut().insert("authorization", bearer);
    let refused = client(&agent).get_configuration(request).await;
    assert_eq!(refused.expect_err("refused").code(), Code::PermissionDenied);
    let told = asked("/agent", Some(&tokens[1])).await;
    assert_eq!(
        (&told.body["caller"], &told.body["authentication"]),
        (&json!("boss"), &json!(true))
    );

    let settings = asked("/agent/configuration", Some(&tokens[1])).await.body;
    let settings = settings["settings"].as_array().expect("a list").clone();
    let setting = |variable: &str| {
        let found = settings.iter().find(|it| it["variable"] == variable);
        let found = found.expect("the setting");
        (found["value"].clone(), found["source"].clone())
    };
    assert_eq!(
        setting("EA_AUTH_MODES"),
        (json!("token"), json!("environment"))
    );
    assert_eq!(setting("EA_MAX_TERM"), (json!("60s"), json!("default")));
}

#[tokio::test]
async fn without_authentication_all_is_permitted_but_administration() {
    let secret = "redis://:hunter2@127.0.0.1:1";
    let agent = Agent::start(&settings(&[
        ("EA_REDIS_URLS", secret),
        ("EA_STORE", "redis"),
    ]))
    .await;
    let refused = client(&agent)
        .get_configuration(GetConfigurationRequest {})
        .await;
    assert_eq!(refused.expect_err("refused").code(), Code::PermissionDenied);
    let of = async |election: &str| {
        let request = ListPermissionsRequest {
            election: election.to_owned(),
            ..ListPermissionsRequest::default()
        };
        let permitted = client(&agent).list_permissions(request).await;
        permitted.expect("an answer").into_inner().actions
    };
    assert_eq!(of("").await, ["observe", "read", "listKinds"]);
    assert_eq!(of("e").await.len(), 7);
    let told = nodes(&agent).await;
    assert!(!told.quorum && !told.nodes[0].up, "{told:?}");
    assert!(!format!("{told:?}").contains("hunter2"), "{told:?}");
}
