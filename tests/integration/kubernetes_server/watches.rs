//! Watches.

use std::{pin::pin, time::Duration};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{WatchEvent, WatchParams},
    runtime::watcher::{self, Event, watcher},
};
use tokio::time::timeout;

use super::{client, refused};
use crate::harness::{ApiServer, Gone, eventually, fixtures};

/// The events of a watch, as `ADDED name@version`.
fn told(event: Option<Result<WatchEvent<Pod>, kube::Error>>) -> String {
    let object = |kind: &str, pod: &Pod| {
        let version = pod.resource_version().unwrap_or_default();
        format!("{kind} {}@{version}", pod.name_any())
    };
    match event {
        None => "the end".to_owned(),
        Some(Err(error)) => format!("broken: {error}"),
        Some(Ok(WatchEvent::Added(pod))) => object("ADDED", &pod),
        Some(Ok(WatchEvent::Modified(pod))) => object("MODIFIED", &pod),
        Some(Ok(WatchEvent::Deleted(pod))) => object("DELETED", &pod),
        Some(Ok(WatchEvent::Bookmark(mark))) => {
            format!("BOOKMARK {}", mark.metadata.resource_version)
        }
        Some(Ok(WatchEvent::Error(status))) => format!("ERROR {} {}", status.code, status.reason),
    }
}

pub(super) fn pod(namespace: &str, name: &str) -> serde_json::Value {
    let mut pod = fixtures::bare_pod();
    pod["metadata"]["namespace"] = namespace.into();
    pod["metadata"]["name"] = name.into();
    pod
}

/// Starts a watch, and expects these events.
pub(super) async fn expect(api: &Api<Pod>, params: &WatchParams, version: u64, expected: &[&str]) {
    let stream = api.watch(params, &version.to_string()).await;
    let mut stream = pin!(stream.expect("a stream"));
    for expected in expected {
        let event = timeout(Duration::from_secs(10), stream.next()).await;
        assert_eq!(told(event.expect("an event")), *expected);
    }
}

#[tokio::test]
async fn what_happened_since_a_version_is_told_again() {
    let server = ApiServer::start().await;
    let begin = server.version();
    server.apply(pod("x", "a"));
    server.apply(pod("y", "b"));
    server.update("Pod", "x", "a", |pod| {
        pod["metadata"]["labels"]["run"] = "other".into();
    });
    server.update("Pod", "x", "a", |_| {});
    server.delete("Pod", "x", "a");
    let everywhere: Api<Pod> = Api::all(client(&server).await);
    let here: Api<Pod> = Api::namespaced(everywhere.clone().into_client(), "x");
    let params = WatchParams::default();
    let all = [
        "ADDED a@1001",
        "ADDED b@1002",
        "MODIFIED a@1003",
        "DELETED a@1004",
    ];
    expect(&everywhere, &params, begin, &all).await;
    expect(&everywhere, &params, begin + 2, &all[2..]).await;
    expect(
        &here,
        &params,
        begin,
        &["ADDED a@1001", "MODIFIED a@1003", "DELETED a@1004"],
    )
    .await;
    // By labels, an object comes and goes as they change.
    let labelled = params.clone().labels("run=other");
    expect(&here, &labelled, begin, &["ADDED a@1003", "DELETED a@1004"]).await;
    let labelled = params.clone().labels("run=debug");
    expect(&here, &labelled, begin, &["ADDED a@1001", "DELETED a@1003"]).await;
    // From no version in particular: what there is.
    expect(&everywhere, &params, 0, &["ADDED b@1002"]).await;
    // With streaming lists, a watcher requests more; they are off, as they are by default.
    let streaming = watcher::Config::default().streaming_lists();
    let mut streaming = pin!(watcher(everywhere, streaming));
    let refusal = match streaming.next().await.expect("an event") {
        Err(watcher::Error::WatchStartFailed(error)) => refused::<()>(Err(error)),
        other => panic!("{other:?}"),
    };
    assert_eq!((refusal.code, &*refusal.reason), (422, "Invalid"));
}

#[tokio::test]
async fn bookmarks_come_on_demand_and_at_the_end() {
    let server = ApiServer::start().await;
    let begin = server.version().to_string();
    let pods: Api<Pod> = Api::namespaced(client(&server).await, "x");
    {
        let stream = pods.watch(&WatchParams::default(), &begin).await;
        let mut stream = pin!(stream.expect("headers come before any event"));
        let running = (server.watching("pods"), server.watching("deployments"));
        assert_eq!(running, (1, 0));
        server.apply(pod("y", "elsewhere"));
        server.bookmarks();
        assert_eq!(told(stream.next().await), "BOOKMARK 1001");
    }
    // Its client is gone.
    let ended = async || (server.watching("pods") == 0).then_some(());
    eventually("nobody watches", ended).await;

    let short = WatchParams::default().timeout(1);
    let stream = pods.watch(&short, &begin).await;
    let mut stream = pin!(stream.expect("a stream"));
    assert_eq!(told(stream.next().await), "BOOKMARK 1001");
    assert_eq!(told(stream.next().await), "the end");
    eventually("nobody watches", ended).await;

    let stream = pods.watch(&short.disable_bookmarks(), &begin).await;
    let mut stream = pin!(stream.expect("a stream"));
    server.bookmarks();
    assert_eq!(told(stream.next().await), "the end");
}

#[tokio::test]
async fn what_was_before_the_history_is_gone_in_either_way() {
    let server = ApiServer::start().await;
    let begin = server.version();
    server.apply(pod("x", "a"));
    let pods: Api<Pod> = Api::all(client(&server).await);
    let params = WatchParams::default();
    server.compact(Gone::Event);
    expect(&pods, &params, begin, &["ERROR 410 Expired", "the end"]).await;
    server.compact(Gone::Status);
    let refusal = refused(pods.watch(&params, &begin.to_string()).await.map(drop));
    assert_eq!((refusal.code, &*refusal.reason), (410, "Expired"));
    assert_eq!(refusal.message, "too old resource version: 1000 (1001)");
    // What is still known is sent.
    server.apply(pod("x", "b"));
    expect(&pods, &params, begin + 1, &["ADDED b@1002"]).await;
}

#[tokio::test]
async fn a_watcher_sees_all_and_lists_again_when_it_is_too_far_behind() {
    let server = ApiServer::start().await;
    server.bulk(3, 4);
    let pods: Api<Pod> = Api::all(client(&server).await);
    let mut events = pin!(watcher(pods, watcher::Config::default().page_size(5)));
    let mut listed = 0;
    let mut next = async || events.next().await.expect("endless");
    loop {
        match next().await {
            Ok(Event::Init) => {}
            Ok(Event::InitApply(_)) => listed += 1,
            Ok(Event::InitDone) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((listed, server.count("list", "pods")), (12, 3));
    server.apply(pod("x", "a"));
    assert!(matches!(next().await, Ok(Event::Apply(pod)) if pod.name_any() == "a"));
    server.delete("Pod", "x", "a");
    assert!(matches!(next().await, Ok(Event::Delete(pod)) if pod.name_any() == "a"));
    // Ended or broken off: it goes on from where it was.
    server.end_watches();
    eventually("it ends", async || {
        (server.watching("pods") == 0).then_some(())
    })
    .await;
    server.apply(pod("x", "b"));
    assert!(matches!(next().await, Ok(Event::Apply(pod)) if pod.name_any() == "b"));
    assert_eq!(server.count("list", "pods"), 3);
    server.expire_watches();
    assert!(matches!(next().await, Err(watcher::Error::WatchError(status)) if status.code == 410));
    assert!(matches!(next().await, Ok(Event::Init)));
}
