//! How many elections identities may hold, and how many of a kind.

use std::fs;

use election_proto::CampaignRequest;
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::{Code, Request};

use crate::harness::{Agent, Answer, Redis, campaign, eventually, new_token};

/// Two callers with tokens, `ann` and `bob`.
struct Callers {
    ann: String,
    bob: String,
    directory: TempDir,
}

impl Callers {
    fn new() -> Self {
        let directory = TempDir::new().expect("a directory");
        let (ann, of_ann) = new_token(&["ann"]);
        let (bob, of_bob) = new_token(&["bob"]);
        let tokens = directory.path().join("tokens");
        fs::write(tokens, format!("{of_ann}\n{of_bob}\n")).expect("written");
        Self {
            ann,
            bob,
            directory,
        }
    }

    async fn agent(&self, settings: &[(&str, &str)]) -> Agent {
        let tokens = self.directory.path().join("tokens").display().to_string();
        let own = [("EA_AUTH_MODES", "token"), ("EA_AUTH_TOKEN_FILE", &*tokens)];
        Agent::start(&[&own, settings].concat()).await
    }
}

/// The reply to a caller.
async fn ask(
    agent: &Agent,
    token: &str,
    method: Method,
    election: &str,
    body: Value,
) -> (u16, Answer) {
    let request = agent.request(method, &format!("/election/{election}"));
    let answer = agent.send(request.bearer_auth(token).json(&body)).await;
    (answer.status, answer)
}

/// The status of a campaign, and whether it was won.
async fn campaigns(agent: &Agent, token: &str, election: &str, candidate: &str) -> (u16, bool) {
    let body = json!({"candidate": candidate, "term": 60_000});
    let (status, answer) = ask(agent, token, Method::POST, election, body).await;
    (status, answer.body["elected"] == true)
}

const WON: (u16, bool) = (200, true);
const LOST: (u16, bool) = (200, false);
const OVER_QUOTA: (u16, bool) = (429, false);
const DENIED: (u16, bool) = (403, false);

/// How many of fifty campaigns at once, each for an election of its own, are won; the others are refused so.
async fn won_of_fifty(agent: &Agent, token: &str, refused: (u16, bool)) -> usize {
    let all = (0..50).map(|number| async move {
        let election = format!("race{number}");
        campaigns(agent, token, &election, "ann").await
    });
    let all = join_all(all).await;
    for told in &all {
        assert!([WON, refused].contains(told), "{told:?}");
    }
    all.into_iter().filter(|told| *told == WON).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_holds_as_many_as_it_may_is_refused_others_are_not_and_its_leaders_go_on() {
    let callers = Callers::new();
    let agent = callers.agent(&[("EA_MAX_HELD_PER_IDENTITY", "2")]).await;
    let (ann, bob) = (&*callers.ann, &*callers.bob);
    for election in ["e1", "e2"] {
        assert_eq!(campaigns(&agent, ann, election, "ann").await, WON);
    }
    let body = json!({"candidate": "ann", "term": 60_000});
    let (_, refused) = ask(&agent, ann, Method::POST, "e3", body).await;
    assert_eq!((refused.status, refused.text("code")), (429, "OverQuota"));
    assert_eq!(refused.text("setting"), "EA_MAX_HELD_PER_IDENTITY");
    assert_eq!(refused.body["limit"], 2);
    for says in ["ann holds 2 elections", "EA_MAX_HELD_PER_IDENTITY"] {
        assert!(refused.text("message").contains(says), "{refused:?}");
    }
    let mut over_grpc = Request::new(campaign("e3", "ann", 60_000));
    let bearer = format!("Bearer {ann}").parse().expect("metadata");
    over_grpc.metadata_mut().insert("authorization", bearer);
    let refused = agent.try_campaign(over_grpc).await.expect_err("refused");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let code = refused.metadata().get("x-election-agent-code");
    assert_eq!(code.expect("a row"), "OverQuota");
    // A handover that names no leader would be a campaign by another name.
    let to_itself = json!({"leader": "ann", "term": 60_000});
    let (status, _) = ask(&agent, ann, Method::PUT, "e3", to_itself).await;
    assert_eq!(status, 429);

    assert_eq!(campaigns(&agent, ann, "e1", "ann").await, WON, "its own");
    let extend = json!({"leader": "ann", "term": 60_000});
    let (status, _) = ask(&agent, ann, Method::PATCH, "e2", extend).await;
    assert_eq!(status, 200);
    assert_eq!(campaigns(&agent, bob, "e3", "bob").await, WON);

    let resign = json!({"leader": "ann"});
    let (status, _) = ask(&agent, ann, Method::DELETE, "e1", resign).await;
    assert_eq!(status, 200);
    assert_eq!(campaigns(&agent, ann, "e3", "ann").await, LOST);
    let what_is_lost_takes_no_place = campaigns(&agent, ann, "e4", "ann").await;
    assert_eq!(what_is_lost_takes_no_place, WON);
    assert_eq!(campaigns(&agent, ann, "e5", "ann").await, OVER_QUOTA);

    let metrics = agent.get("/metrics").await;
    let metrics = metrics.body.as_str().expect("text");
    let count = "election_agent_requests_refused_total{reason=\"over_quota\"} 4";
    assert!(metrics.lines().any(|line| line == count), "{metrics}");
    let limit = "\"limit\":\"EA_MAX_HELD_PER_IDENTITY\"";
    eventually("it is in the audit trail", async || {
        let lines = agent.log();
        let mut denied = lines.iter().filter(|line| line.contains("request denied"));
        let line = denied.find(|line| line.contains(limit))?;
        (line.contains("\"caller\":\"ann\"") && line.contains("default/e3")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_term_that_lapses_gives_its_place_back() {
    let agent = Agent::start(&[("EA_MAX_HELD_PER_IDENTITY", "1")]).await;
    let (won, until) = agent.elect("e1", "a", 1_000).await;
    assert!(won.elected);
    // Callers without a proven name count as one, whatever their candidates are called.
    let refused = agent.try_campaign(campaign("e2", "b", 1_000)).await;
    if std::time::Instant::now() < until {
        assert_eq!(
            refused.expect_err("refused").code(),
            Code::ResourceExhausted
        );
    }
    agent.elect("e2", "b", 1_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_holds_as_many_as_it_may_whatever_their_identities() {
    let callers = Callers::new();
    let agent = callers.agent(&[("EA_MAX_HELD_PER_KIND", "2")]).await;
    let (ann, bob) = (&*callers.ann, &*callers.bob);
    assert_eq!(campaigns(&agent, ann, "batch/1", "ann").await, WON);
    assert_eq!(campaigns(&agent, bob, "batch/2", "bob").await, WON);
    let body = json!({"candidate": "bob", "term": 60_000});
    let (_, refused) = ask(&agent, bob, Method::POST, "batch/3", body).await;
    assert_eq!((refused.status, refused.text("code")), (429, "OverQuota"));
    assert_eq!(refused.text("setting"), "EA_MAX_HELD_PER_KIND");
    assert!(
        refused.text("message").contains("of the kind batch"),
        "{refused:?}"
    );
    assert_eq!(campaigns(&agent, bob, "other/3", "bob").await, WON);
    // A candidate for an election that is held gets the leader.
    assert_eq!(campaigns(&agent, bob, "batch/1", "bob").await, LOST);
}

#[tokio::test(flavor = "multi_thread")]
async fn campaigns_that_come_at_once_get_no_more_than_one_after_the_other() {
    let callers = Callers::new();
    let agent = callers.agent(&[("EA_MAX_HELD_PER_IDENTITY", "10")]).await;
    assert_eq!(won_of_fifty(&agent, &callers.ann, OVER_QUOTA).await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_may_limit_what_is_held_by_whom_they_like() {
    let callers = Callers::new();
    let policies = callers.directory.path().join("policies");
    fs::create_dir(&policies).expect("made");
    let own = election_agent::auth::policy::DEFAULT;
    fs::write(policies.join("own.cedar"), own).expect("written");
    let few = "@id(\"few\") forbid (principal, action == ElectionAgent::Action::\"campaign\", resource) \
               when { principal.name == \"ann\" && context.heldByIdentity >= 10 };";
    fs::write(policies.join("few.cedar"), few).expect("written");
    let policies = policies.display().to_string();
    let agent = callers.agent(&[("EA_AUTH_POLICY_DIR", &policies)]).await;
    assert_eq!(won_of_fifty(&agent, &callers.ann, DENIED).await, 10);
    for number in 0..11 {
        let election = format!("of-bob{number}");
        assert_eq!(campaigns(&agent, &callers.bob, &election, "bob").await, WON);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_has_just_started_counts_what_is_extended_through_it() {
    let redis = Redis::start().await;
    let settings = [("EA_MAX_HELD_PER_IDENTITY", "2")];
    let mut first = Agent::on(&redis, &settings).await;
    let mut tokens = Vec::new();
    for election in ["e1", "e2"] {
        tokens.push(first.campaign(election, "a", 60_000).await.token);
    }
    first.kill();

    let second = Agent::on(&redis, &settings).await;
    second.readiness(200, &[]).await;
    let refused = async |request: CampaignRequest| {
        let refused = second.try_campaign(request).await;
        refused.expect_err("refused").code() == Code::ResourceExhausted
    };
    assert!(second.campaign("e3", "a", 60_000).await.elected);
    for (election, token) in ["e1", "e2"].into_iter().zip(tokens) {
        assert!(second.extend(election, "a", 60_000, token).await.value);
    }
    assert!(second.resign("e3", "a", 0).await.value);
    assert!(refused(campaign("e4", "a", 60_000)).await);
    assert!(second.resign("e2", "a", 0).await.value);
    assert!(second.campaign("e4", "a", 60_000).await.elected);
}
