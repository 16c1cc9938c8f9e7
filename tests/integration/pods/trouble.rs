//! What becomes of answers when only some of the watches fail, and of watches that fail for long.

use std::time::Instant;

use super::{LONG, agent, another, filled, has, lookup, server, told_of, watched, web};
use crate::harness::{Fault, Right, eventually_within, fixtures};

#[tokio::test]
async fn a_pod_that_is_known_before_its_replica_set_is_not_told_as_one_whose_replica_set_has_gone()
{
    let api = server(Right::watching()).await;
    let agent = agent(&api, &[]).await;
    filled(&agent).await;
    watched(&api).await;
    api.fail(Fault::lasting().of("watch", "replicasets"));
    api.reset_watches();
    eventually_within(LONG, "only those are not watched", async || {
        let watching = ["pods", "replicasets", "deployments"].map(|it| api.watching(it));
        (watching == [1, 0, 1]).then_some(())
    })
    .await;
    // A rollout to revision 4 begins.
    let name = "web-5c9f8d7b6c";
    let mut set = fixtures::web_rollout().swap_remove(3);
    set["metadata"]["name"] = name.into();
    set["metadata"]["uid"] = "0d6c5f0e-5f2a-4b0e-9d1f-3b8f4f1f2a77".into();
    set["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "4".into();
    let mut pod = another(&format!("{name}-abcde"));
    let owner = &mut pod["metadata"]["ownerReferences"][0];
    owner["name"] = name.into();
    owner["uid"] = set["metadata"]["uid"].clone();
    pod["metadata"]["labels"]["pod-template-hash"] = "5c9f8d7b6c".into();
    api.apply(set);
    api.apply(pod);
    api.apply(another("web-7d4b9c6f5d-later"));
    let told = async || {
        let answer = web(&agent).await;
        let items = answer.body["items"].as_array().cloned().expect("items");
        for pod in &items {
            assert_ne!(pod["replicaSet"]["name"], "", "{pod}");
        }
        items
    };
    eventually_within(LONG, "what came later is listed", async || {
        has(&told().await, "web-7d4b9c6f5d-later")
    })
    .await;
    assert_eq!(told().await.len(), 5);
    let siblings = agent
        .get(&format!("/kube/shop/pods/{name}-abcde/siblings"))
        .await;
    assert_eq!(
        (siblings.status, siblings.text("code")),
        (503, "Unavailable")
    );
    api.mend("watch", "replicasets");
    eventually_within(LONG, "it is listed with its replica set", async || {
        let items = told().await;
        (items.len() == 6 && items[0]["replicaSet"]["revision"] == 4).then_some(())
    })
    .await;
}

#[tokio::test]
async fn rights_that_are_taken_away_are_told_and_waited_for() {
    let api = server(Right::watching()).await;
    let agent = agent(&api, &[]).await;
    filled(&agent).await;
    watched(&api).await;
    api.set_rights(Vec::new());
    api.reset_watches();
    eventually_within(LONG, "nobody watches", async || {
        (api.watching("pods") == 0).then_some(())
    })
    .await;
    api.apply(another("web-7d4b9c6f5d-newer"));
    eventually_within(LONG, "it is listed", async || {
        let told = lookup(&agent).await["namespaces"][0]["error"].to_string();
        told.contains("is forbidden").then_some(())
    })
    .await;
    // Until it is too old, what was known is.
    let answer = web(&agent).await;
    let items = answer.body["items"].as_array().expect("items");
    assert_eq!(has(items, "web-7d4b9c6f5d-newer"), None);
    api.set_rights(Right::watching());
    told_of(&agent, "web-7d4b9c6f5d-newer").await;
}

#[tokio::test]
async fn an_api_server_that_refuses_for_long_is_asked_less_and_less_often() {
    let api = server(Right::watching()).await;
    let agent = agent(&api, &[]).await;
    filled(&agent).await;
    watched(&api).await;
    let lists = api.count("list", "pods");
    let began = Instant::now();
    api.refuse_tokens();
    api.reset_watches();
    eventually_within(LONG, "it is asked again and again", async || {
        (api.count("list", "pods") >= lists + 5).then_some(())
    })
    .await;
    // At least half of 0.5, 1, 2, 4 and 8 seconds.
    assert!(began.elapsed().as_secs() >= 7, "{:?}", began.elapsed());
    let told = lookup(&agent).await["namespaces"][0]["error"].to_string();
    assert!(told.contains("Unauthorized"), "{told}");
    api.apply(another("web-7d4b9c6f5d-newer"));
    api.rotate_token("the-agents-new-one");
    told_of(&agent, "web-7d4b9c6f5d-newer").await;
}

#[tokio::test]
async fn watches_that_end_at_once_are_spaced() {
    let api = server(Right::watching()).await;
    let agent = agent(&api, &[]).await;
    filled(&agent).await;
    watched(&api).await;
    api.end_watches_at_once(true);
    api.end_watches();
    let (watches, began) = (api.count("watch", "pods"), Instant::now());
    eventually_within(LONG, "five more", async || {
        (api.count("watch", "pods") >= watches + 5).then_some(())
    })
    .await;
    assert!(began.elapsed().as_secs() >= 3, "{:?}", began.elapsed());
    api.apply(another("web-7d4b9c6f5d-newer"));
    told_of(&agent, "web-7d4b9c6f5d-newer").await;
}
