//! Requests that arrive twice, or again after what they were about is over.

use election_proto::CampaignRequest;
use reqwest::Method;
use serde_json::json;
use tonic::Code;

use crate::harness::{Agent, Nodes, campaign, eventually, handover};

const TERM: i32 = 30_000;

fn with_id(candidate: &str, request_id: &str) -> CampaignRequest {
    CampaignRequest {
        request_id: request_id.to_owned(),
        ..campaign("e", candidate, TERM)
    }
}

async fn is_vacant(agent: &Agent) {
    let vacant = agent.leader("e").await.expect_err("nobody leads");
    assert_eq!(vacant.code(), Code::NotFound, "{vacant}");
}

/// A repeated request has the token of its first try, or none: with another one the first answer, which may be
/// in use, would be fenced.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_does_not_hear_of_its_first_token_gets_no_other() {
    let nodes = Nodes::start(3).await;
    let settings = [("EA_REDIS_OPERATION_TIMEOUT", "1s")];
    let agent = nodes.agent("first-agent", &settings).await;
    let other = nodes.agent("second-agent", &settings).await;
    agent.serves().await;
    other.serves().await;

    // Two of three servers have the first token; then one of these is silent.
    nodes.gate("first-agent", 2).cut();
    eventually("the third server is out of reach", async || {
        let ready = agent.get("/readyz").await;
        (ready.body["nodes"][2]["up"] == false).then_some(())
    })
    .await;
    let request = with_id("a", "try");
    let first = eventually("elected", async || {
        agent.try_campaign(request.clone()).await.ok()
    })
    .await;
    assert!(first.elected);
    nodes.gate("first-agent", 2).open();
    agent.serves().await;
    nodes.servers[1].signal("STOP");
    for agent in [&agent, &other] {
        match agent.try_campaign(request.clone()).await {
            Ok(retried) => assert_eq!((retried.elected, retried.token), (true, first.token)),
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
        }
    }
    nodes.servers[1].signal("CONT");
    let retried = eventually("the retry is answered", async || {
        agent.try_campaign(request.clone()).await.ok()
    })
    .await;
    assert_eq!((retried.elected, retried.token), (true, first.token));
    assert!(agent.extend("e", "a", TERM, first.token).await.value);
}

/// A duplicate of a campaign whose leader has resigned elects nobody: its sender knows nothing of a new term.
async fn a_late_campaign_elects_nobody(servers: usize) {
    let nodes = Nodes::start(servers).await;
    let agents = [
        nodes.agent("first-agent", &[]).await,
        nodes.agent("second-agent", &[]).await,
    ];
    agents[0].serves().await;
    agents[1].serves().await;
    let request = with_id("a", "once");
    let won = agents[0].try_campaign(request.clone()).await;
    let won = won.expect("an answer");
    assert!(won.elected);
    assert!(agents[0].resign("e", "a", won.token).await.value);
    for agent in &agents {
        let again = agent.try_campaign(request.clone()).await;
        let elected = again.as_ref().is_ok_and(|again| again.elected);
        assert!(!elected, "elected by a duplicate: {again:?}");
        is_vacant(agent).await;
    }
    // Also after somebody else has led.
    let next = agents[1].campaign("e", "b", TERM).await;
    assert!(next.elected && next.token > won.token);
    assert!(agents[1].resign("e", "b", next.token).await.value);
    let again = agents[0].try_campaign(request).await;
    let elected = again.as_ref().is_ok_and(|again| again.elected);
    assert!(!elected, "elected by a duplicate: {again:?}");
    is_vacant(&agents[0]).await;
    // The same candidate is elected by a request of its own.
    let anew = agents[0].try_campaign(with_id("a", "another")).await;
    assert!(anew.expect("an answer").elected);
}

/// One server remembers which requests were acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_of_a_campaign_that_is_over_elects_nobody_on_one_server() {
    a_late_campaign_elects_nobody(1).await;
}

/// Three servers remember which requests were acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_of_a_campaign_that_is_over_elects_nobody_on_three_servers() {
    a_late_campaign_elects_nobody(3).await;
}

/// A handover that names a leader or its token is by that leader: on a vacant election its time is over, and
/// the request may be a late duplicate.
#[tokio::test(flavor = "multi_thread")]
async fn a_handover_by_a_leader_whose_term_is_over_elects_nobody() {
    let nodes = Nodes::start(3).await;
    let agent = nodes.agent("first-agent", &[]).await;
    agent.serves().await;
    let won = agent.campaign("e", "a", TERM).await;
    assert!(won.elected);
    assert!(agent.resign("e", "a", won.token).await.value);
    for (current_leader, token) in [("a", won.token), ("a", 0), ("", won.token)] {
        let request = handover("e", (current_leader, token), "b", TERM);
        let refused = agent.try_handover(request).await.expect("an answer");
        let told = (refused.value, refused.reason.as_str());
        assert_eq!(
            told,
            (false, "NO_TERM"),
            "by {current_leader:?} with {token}"
        );
        is_vacant(&agent).await;
    }
    let body = json!({"leader": "b", "term": TERM, "current_leader": "a", "token": won.token});
    let refused = agent.rest(Method::PUT, "/election/e", Some(body)).await;
    assert!(matches!(refused.status, 404 | 409), "{refused:?}");
    assert!(refused.body.to_string().contains("NO_TERM"), "{refused:?}");
    is_vacant(&agent).await;
    // One that names nobody grants what is vacant.
    let request = handover("e", ("", 0), "b", TERM);
    let granted = agent.try_handover(request).await.expect("an answer");
    assert!(granted.value);
}
