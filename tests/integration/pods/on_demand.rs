//! Pods that are read on demand, of an API server that does not answer.

use std::time::Duration;

use election_proto::GetPodsRequest;
use futures_util::future::join_all;
use tonic::{Code, Request};

use super::{LONG, age, agent, eventually_web, server, told_of, web};
use crate::harness::{Agent, ApiServer, Right, eventually_within};

/// An agent that has listed four pods, and reads them anew soon.
async fn with_four_pods() -> (ApiServer, Agent) {
    let api = server(Right::looking_up()).await;
    let agent = agent(&api, &[("EA_KUBE_CACHE_TTL", "100ms")]).await;
    eventually_web(&agent, "four pods", |items| {
        (items.len() == 4).then_some(())
    })
    .await;
    (api, agent)
}

#[tokio::test]
async fn the_last_state_is_told_to_all_who_ask_while_the_api_server_is_away() {
    let (mut api, agent) = with_four_pods().await;
    api.stop();
    eventually_within(LONG, "it is old", async || {
        let answers = join_all((0..20).map(|_| web(&agent))).await;
        for answer in &answers {
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        (age(&answers[0]) > 2_000).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_last_state_is_told_in_time_while_the_api_server_hangs() {
    let (api, agent) = with_four_pods().await;
    api.hold();
    eventually_within(LONG, "it is old", async || {
        let mut request = Request::new(GetPodsRequest {
            namespace: "shop".to_owned(),
            pod_name: "web-7d4b9c6f5d-x2x7p".to_owned(),
            ..GetPodsRequest::default()
        });
        // Less than the API server is given.
        request.set_timeout(Duration::from_secs(4));
        let answer = agent
            .grpc()
            .get_pods(request)
            .await
            .expect("the last state");
        let age = answer.metadata().get("x-election-agent-cache-age")?;
        let age: u64 = age.to_str().ok()?.parse().ok()?;
        (age > 2_000).then_some(())
    })
    .await;
    api.release();
    eventually_within(LONG, "it is young", async || {
        (age(&web(&agent).await) < 2_000).then_some(())
    })
    .await;
}

#[tokio::test]
async fn made_up_names_are_no_burden() {
    let (api, agent) = with_four_pods().await;
    api.hold();
    let before = api.requests().len();
    let ask = async |n: usize| {
        let mut request = Request::new(GetPodsRequest {
            namespace: "shop".to_owned(),
            deployment: format!("made-up-{n}"),
            ..GetPodsRequest::default()
        });
        request.set_timeout(Duration::from_secs(8));
        let refused = agent.grpc().get_pods(request).await.expect_err("none such");
        (refused.code(), refused.message().to_owned())
    };
    let refused = join_all((0..300).map(ask)).await;
    for (code, message) in &refused {
        assert_eq!(*code, Code::Unavailable, "{message}");
    }
    let at_once = refused
        .iter()
        .filter(|(_, message)| message.starts_with("too much is read"));
    assert!(at_once.count() >= 200);
    let asked = api.requests().len() - before;
    assert!(asked <= 40, "{asked}");
    // They are forgotten, and what was known before is not.
    assert_eq!(web(&agent).await.status, 200);
    api.apply(super::another("web-7d4b9c6f5d-newer"));
    api.release();
    told_of(&agent, "web-7d4b9c6f5d-newer").await;
}
