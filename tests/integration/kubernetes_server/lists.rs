//! Lists, by pages and selectors.

use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::Pod,
};
use kube::{Api, ResourceExt as _, api::ListParams};
use serde_json::json;

use super::{apply_all, client, names, refused};
use crate::harness::{
    ApiServer, Gone,
    fixtures::{self, NAMESPACE},
};

fn pod(namespace: &str, name: &str, app: &str) -> serde_json::Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": app}},
        "spec": {"containers": []}, "status": {"phase": "Pending"},
    })
}

#[tokio::test]
async fn pages_show_the_state_at_the_first_one() {
    let server = ApiServer::start().await;
    for name in ["e", "c", "a", "d", "b"] {
        server.apply(pod("y", name, "web"));
    }
    let latest = server.apply(pod("x-y", "z", "web"));
    let pods: Api<Pod> = Api::all(client(&server).await);
    let first = pods
        .list(&ListParams::default().limit(2))
        .await
        .expect("a page");
    assert_eq!(names(&first.items), ["z", "a"], "by namespace and name");
    assert_eq!(first.metadata.resource_version, Some(latest.to_string()));
    assert_eq!(first.metadata.remaining_item_count, Some(4));
    server.delete("Pod", "y", "b");
    server.apply(pod("y", "bb", "web"));
    let changed = server.update("Pod", "y", "c", |pod| {
        pod["status"]["phase"] = "Running".into();
    });
    let token = first.metadata.continue_.expect("more");
    let next = ListParams::default().limit(2).continue_token(&token);
    let second = pods.list(&next).await.expect("a page");
    assert_eq!(names(&second.items), ["b", "c"]);
    assert_eq!(second.metadata.resource_version, Some(latest.to_string()));
    let phase = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.clone());
    assert_eq!(phase(&second.items[1]).as_deref(), Some("Pending"));
    let token = second.metadata.continue_.expect("more");
    let next = ListParams::default().limit(2).continue_token(&token);
    let last = pods.list(&next).await.expect("a page");
    assert_eq!(names(&last.items), ["d", "e"]);
    assert_eq!(last.metadata.continue_, None);

    let here: Api<Pod> = Api::namespaced(pods.into_client(), "y");
    let now = here.list(&ListParams::default()).await.expect("a list");
    assert_eq!(names(&now.items), ["a", "bb", "c", "d", "e"]);
    assert_eq!(now.items[2].resource_version(), Some(changed.to_string()));
    let cached = here
        .list(&ListParams::default().match_any())
        .await
        .expect("a list");
    assert_eq!(names(&cached.items), names(&now.items));

    server.compact(Gone::Event);
    let gone = refused(here.list(&next).await);
    assert_eq!((gone.code, &*gone.reason), (410, "Expired"));
    // As far as it goes, at least.
    let token = gone
        .metadata
        .and_then(|metadata| metadata.continue_)
        .expect("a token");
    let rest = here
        .list(&ListParams::default().continue_token(&token))
        .await
        .expect("a page");
    assert_eq!(names(&rest.items), ["d", "e"]);
}

#[tokio::test]
async fn selectors_choose_among_labels() {
    let server = ApiServer::start().await;
    apply_all(&server, fixtures::web_rollout());
    let pods: Api<Pod> = Api::namespaced(client(&server).await, NAMESPACE);
    for (selector, found) in [
        ("app=web", 4),
        ("app=web,pod-template-hash in (6bb5d7c9f8,7d4b9c6f5d)", 4),
        ("app=web,pod-template-hash=7d4b9c6f5d", 2),
        ("app in (api,db)", 0),
    ] {
        let selected = pods.list(&ListParams::default().labels(selector)).await;
        assert_eq!(selected.expect("a list").items.len(), found, "{selector}");
    }
    let malformed = refused(pods.list(&ListParams::default().labels("app in (")).await);
    assert_eq!(malformed.code, 400);
}

#[tokio::test]
async fn a_large_cluster_is_listed_page_by_page() {
    let server = ApiServer::start().await;
    let made = server.bulk(300, 4);
    assert_eq!(made.len(), 1_200);
    let client = client(&server).await;
    let pods: Api<Pod> = Api::all(client.clone());
    let (mut found, mut token) = (Vec::new(), None);
    loop {
        let page = ListParams {
            limit: Some(500),
            continue_token: token,
            ..ListParams::default()
        };
        let page = pods.list(&page).await.expect("a page");
        found.extend(
            page.items
                .iter()
                .map(|pod| (pod.namespace().unwrap_or_default(), pod.name_any())),
        );
        token = page.metadata.continue_;
        if token.is_none() {
            break;
        }
    }
    let mut expected = made.clone();
    expected.sort_by_key(|(namespace, name)| format!("{namespace}/{name}"));
    assert_eq!(found, expected);

    let (namespace, name) = &made[7];
    let of_one: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let of_app = of_one
        .list(&ListParams::default().labels("app=app-1"))
        .await
        .expect("a list");
    assert_eq!(of_app.items.len(), 4);
    let pod = of_app
        .items
        .iter()
        .find(|pod| pod.name_any() == *name)
        .expect("listed");
    let owner = |references: Option<&[_]>| match references {
        Some([owner]) => Clone::clone(owner),
        other => panic!("{other:?}"),
    };
    let set: k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference =
        owner(pod.metadata.owner_references.as_deref());
    let sets: Api<ReplicaSet> = Api::namespaced(client.clone(), namespace);
    let sets = sets
        .list(&ListParams::default().labels("app=app-1"))
        .await
        .expect("a list");
    assert_eq!(sets.items[0].name_any(), set.name);
    assert_eq!(sets.items[0].uid(), Some(set.uid));
    let deployment = owner(sets.items[0].metadata.owner_references.as_deref());
    let deployments: Api<Deployment> = Api::namespaced(client, namespace);
    let deployments = deployments
        .list(&ListParams::default())
        .await
        .expect("a list");
    let of_app = deployments
        .items
        .iter()
        .find(|one| one.name_any() == "app-1")
        .expect("listed");
    assert_eq!(
        (of_app.uid(), "app-1"),
        (Some(deployment.uid), &*deployment.name)
    );
}
