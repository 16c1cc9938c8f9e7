//! What goes wrong, as the client sees it.

use std::{pin::pin, time::Duration};

use futures_util::StreamExt as _;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api,
    api::{ListParams, WatchParams},
};
use reqwest::Response;
use tokio::time::timeout;

use super::{
    client,
    watches::{expect, pod},
};
use crate::harness::{
    ApiServer, Fault, Right, eventually,
    fixtures::{self, NAMESPACE},
};

/// Sends a plain HTTP request, without retries.
async fn ask(server: &ApiServer, path: &str) -> reqwest::Result<Response> {
    let request = reqwest::Client::new().get(format!("{}{path}", server.url()));
    request.bearer_auth("the-agents-own").send().await
}

#[tokio::test]
async fn some_of_the_next_requests_fail() {
    let server = ApiServer::start().await;
    let statuses = async |path: &str, count: usize| {
        let mut statuses = Vec::new();
        for _ in 0..count {
            statuses.push(
                ask(&server, path)
                    .await
                    .expect("an answer")
                    .status()
                    .as_u16(),
            );
        }
        statuses
    };
    let (pods, deployments) = ("/api/v1/pods", "/apis/apps/v1/deployments");
    server.fail(Fault::internal(2).of("list", "deployments"));
    server.fail(Fault::unavailable(1));
    assert_eq!(statuses(pods, 2).await, [503, 200]);
    assert_eq!(statuses(deployments, 3).await, [500, 500, 200]);
    server.fail(Fault::throttled(1));
    let throttled = ask(&server, pods).await.expect("an answer");
    assert_eq!(throttled.status(), 429);
    assert_eq!(throttled.headers()["retry-after"], "1");
    assert_eq!(
        statuses(&format!("{pods}?resourceVersion=9999"), 1).await,
        [504]
    );
    assert_eq!(statuses("/apis/apps/v1/daemonsets", 1).await, [404]);
    assert_eq!(server.count("list", "pods"), 4);
}

#[tokio::test]
async fn connections_are_reset_in_the_middle_of_a_line() {
    let server = ApiServer::start().await;
    let begin = server.version();
    let path = format!("/api/v1/pods?watch=1&allowWatchBookmarks=true&resourceVersion={begin}");
    for in_next_event in [false, true] {
        let mut answer = ask(&server, &path).await.expect("an answer");
        let expected = match in_next_event {
            false => {
                server.reset_watches();
                r#"{"type":"BOOKMARK","#
            }
            true => {
                server.reset_watches_in_next_event();
                server.apply(pod("x", "a"));
                r#"{"type":"ADDED","#
            }
        };
        let half = answer.chunk().await.expect("a chunk").expect("a chunk");
        assert!(half.starts_with(expected.as_bytes()), "{half:?}");
        assert!(!half.ends_with(b"\n"), "{half:?}");
        answer.chunk().await.expect_err("broken off");
        assert_eq!(server.watching("pods"), 0);
    }
    // A repeated request gets what was lost.
    let pods: Api<Pod> = Api::all(client(&server).await);
    expect(&pods, &WatchParams::default(), begin, &["ADDED a@1001"]).await;
}

#[tokio::test]
async fn nothing_is_answered_or_told_until_it_is_released() {
    let server = ApiServer::start().await;
    let begin = server.version().to_string();
    let pods: Api<Pod> = Api::all(client(&server).await);
    let stream = pods.watch(&WatchParams::default(), &begin).await;
    let mut stream = pin!(stream.expect("a stream"));
    server.hold();
    server.apply(pod("x", "a"));
    let all = ListParams::default();
    let asking = tokio::spawn({
        let pods = pods.clone();
        async move { pods.list(&ListParams::default()).await }
    });
    eventually("it is asked", async || {
        (server.count("list", "pods") == 1).then_some(())
    })
    .await;
    let told = timeout(Duration::from_millis(100), stream.next()).await;
    assert!(told.is_err(), "it received what happened");
    assert!(!asking.is_finished());
    server.release();
    let list = asking.await.expect("no panic").expect("a list");
    assert_eq!(list.items.len(), 1);
    assert!(stream.next().await.is_some_and(|event| event.is_ok()));
    pods.list(&all).await.expect("a list");
}

#[tokio::test]
async fn a_server_that_stopped_starts_again_with_all_that_it_kept() {
    let mut server = ApiServer::start().await;
    let rights = [Right::watching(), Right::looking_up()];
    server.set_rights(rights.concat());
    server.apply(fixtures::web_rollout().swap_remove(0));
    let web: Api<Deployment> = Api::namespaced(client(&server).await, NAMESPACE);
    let before = web.get("web").await.expect("there");
    assert_eq!(
        server
            .object("Deployment", NAMESPACE, "web")
            .expect("there")["metadata"]["uid"],
        before.metadata.uid.clone().expect("a uid"),
    );
    let stream = web.watch(&WatchParams::default(), "1001").await;
    let mut stream = pin!(stream.expect("a stream"));
    server.stop();
    eventually("nobody answers", async || web.get("web").await.err()).await;
    while let Some(event) = stream.next().await {
        event.expect_err("no more events");
    }
    assert_eq!(server.watching("deployments"), 0);
    server.start_again().await;
    assert_eq!(web.get("web").await.expect("there"), before);
}
