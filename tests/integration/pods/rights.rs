//! What the agent may do decides how it looks pods up.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use serde_json::json;

use super::{agent, another, eventually_web, filled, has, lookup, names, server, web};
use crate::harness::{Agent, ApiServer, CONTEXT, Right, command_output, eventually, fixtures};

/// How often each verb was used on each resource.
fn asked(api: &ApiServer) -> BTreeMap<(String, String), usize> {
    let mut asked = BTreeMap::new();
    for request in api.requests() {
        *asked
            .entry((request.verb.to_owned(), request.resource))
            .or_default() += 1;
    }
    asked
}

#[tokio::test]
async fn with_the_right_to_watch_an_answer_costs_the_api_server_nothing() {
    let api = server(Right::watching()).await;
    let agent = agent(&api, &[]).await;
    filled(&agent).await;
    eventually("three watches", async || {
        let watching = ["pods", "replicasets", "deployments"].map(|it| api.watching(it));
        (watching == [1; 3]).then_some(())
    })
    .await;
    let before = api.requests().len();
    for _ in 0..200 {
        assert_eq!(web(&agent).await.status, 200);
        assert_eq!(agent.get("/kube/shop/gone/pods").await.status, 404);
    }
    let more: Vec<_> = api.requests().split_off(before);
    // A watch may have come to its end in the meantime.
    assert!(
        more.iter().all(|request| request.verb == "watch"),
        "{more:?}"
    );
    let told = lookup(&agent).await;
    assert_eq!(told["namespaces"][0]["mode"], "watch");
    assert_eq!(told["namespaces"][0]["pods"], 4);
    assert_eq!(told["namespaces"][0]["namespace"], "");
}

#[tokio::test]
async fn with_fewer_rights_pods_are_read_once_for_all_who_ask() {
    let api = server(Right::looking_up()).await;
    let agent = agent(&api, &[("EA_KUBE_CACHE_TTL", "1m")]).await;
    let once = agent.early_log().join("\n");
    assert_eq!(
        once.matches("are read on demand and cached").count(),
        1,
        "{once}"
    );
    assert!(once.contains("watch pods"), "{once}");

    // At once: one reading for all of them.
    let answers = join_all((0..50).map(|_| web(&agent))).await;
    let mut expected = Vec::new();
    for answer in &answers {
        assert_eq!(answer.status, 200, "{answer:?}");
        expected = names(answer.body["items"].as_array().expect("items"));
        assert_eq!(expected.len(), 4);
        assert_eq!(answer.body, answers[0].body);
    }
    assert_eq!(expected[0], "web-7d4b9c6f5d-9wjlr", "the newest first");
    let reading = |asked: BTreeMap<(String, String), usize>| {
        [
            "get deployments",
            "list pods",
            "get replicasets",
            "get pods",
        ]
        .map(|wanted| {
            let (verb, resource) = wanted.split_once(' ').expect("two words");
            asked
                .get(&(verb.to_owned(), resource.to_owned()))
                .copied()
                .unwrap_or(0)
        })
    };
    assert_eq!(reading(asked(&api)), [1, 1, 2, 0]);
    // Also when there is nothing: made-up names are requested once. The siblings of the pods are known.
    for _ in 0..10 {
        assert_eq!(agent.get("/kube/shop/gone/pods").await.status, 404);
        assert_eq!(agent.get("/kube/shop/pods/gone/siblings").await.status, 404);
        for pod in &expected {
            let siblings = agent.get(&format!("/kube/shop/pods/{pod}/siblings")).await;
            assert_eq!(siblings.body, answers[0].body);
        }
    }
    assert_eq!(reading(asked(&api)), [2, 1, 2, 1]);
    // A pod that came later is among its siblings.
    let pod = "web-7d4b9c6f5d-newer";
    api.apply(another(pod));
    for _ in 0..10 {
        let siblings = agent.get(&format!("/kube/shop/pods/{pod}/siblings")).await;
        assert_eq!(
            has(siblings.body["items"].as_array().expect("items"), pod),
            Some(())
        );
    }
    assert_eq!(reading(asked(&api)), [3, 2, 5, 2]);
    let told = lookup(&agent).await;
    assert_eq!(told["namespaces"][0]["mode"], "on demand");
    assert_eq!(
        agent
            .log()
            .join("\n")
            .matches("are read on demand and cached")
            .count(),
        1
    );
    assert_eq!(
        api.count("watch", "pods") + api.count("list", "replicasets"),
        0
    );
}

#[tokio::test]
async fn what_was_read_is_read_again_when_it_is_old() {
    let api = server(Right::looking_up()).await;
    let agent = agent(&api, &[("EA_KUBE_CACHE_TTL", "100ms")]).await;
    assert_eq!(
        web(&agent).await.body["items"].as_array().map(Vec::len),
        Some(4)
    );
    api.delete("Pod", "shop", "web-6bb5d7c9f8-q4nhd");
    eventually_web(&agent, "three pods", |items| {
        (items.len() == 3).then_some(())
    })
    .await;
    // A ReplicaSet that has gone fails nothing.
    api.delete("ReplicaSet", "shop", "web-6bb5d7c9f8");
    eventually_web(&agent, "a pod without its replica set", |items| {
        let set = &items
            .iter()
            .find(|pod| pod["name"] == "web-6bb5d7c9f8-k8mzt")?["replicaSet"];
        (set["name"] == "" && items.len() == 3).then_some(())
    })
    .await;
    let path = "/kube/shop/pods/web-6bb5d7c9f8-k8mzt/siblings";
    let siblings = agent.get(path).await;
    assert_eq!(siblings.body["items"].as_array().map(Vec::len), Some(3));
}

#[tokio::test]
async fn only_the_namespaces_that_are_named_are_looked_at_each_by_its_own_rights() {
    let mut rights = Right::watching_within("shop");
    for (verb, resource) in [
        ("get", "pods"),
        ("list", "pods"),
        ("get", "deployments"),
        ("get", "replicasets"),
    ] {
        rights.push(Right::within("team", verb, resource));
    }
    let api = server(rights).await;
    let mut elsewhere = fixtures::web_rollout();
    for object in &mut elsewhere {
        object["metadata"]["namespace"] = "team".into();
        api.apply(object.clone());
    }
    let agent = agent(&api, &[("EA_KUBE_NAMESPACES", "team, shop")]).await;
    filled(&agent).await;
    for path in ["/kube/shop/web/pods", "/kube/team/web/pods"] {
        let told = agent.get(path).await;
        assert_eq!(
            told.body["items"].as_array().map(Vec::len),
            Some(4),
            "{told:?}"
        );
    }
    let told = agent.get("/kube/other/web/pods").await;
    assert_eq!(told.status, 404);
    assert!(
        told.text("message").contains("EA_KUBE_NAMESPACES"),
        "{told:?}"
    );
    let told = lookup(&agent).await;
    let modes: Vec<_> = told["namespaces"]
        .as_array()
        .expect("namespaces")
        .iter()
        .collect();
    let of = |at: usize| (modes[at]["namespace"].clone(), modes[at]["mode"].clone());
    assert_eq!(
        [of(0), of(1)],
        [
            (json!("shop"), json!("watch")),
            (json!("team"), json!("on demand"))
        ]
    );
    // No request went outside of them.
    let asked = api.requests();
    let outside = asked
        .iter()
        .filter(|asked| asked.verb != "create" && asked.namespace.is_none());
    assert_eq!(outside.count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_missing_right_is_named_with_its_verb_resource_and_namespace() {
    let api = server(Right::watching_within("shop")).await;
    let settings: Vec<_> = api.settings();
    let given = |more: &'static [(&'static str, &'static str)]| {
        let known = settings
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        known.chain(more.iter().copied()).collect::<Vec<_>>()
    };
    for (more, told) in [
        (
            &[("EA_KUBE_ENABLE", "true")][..],
            &[
                "in all namespaces it may not list pods, ",
                "watch deployments.apps",
                "get replicasets.apps",
                "the API server says: no role says so)",
                "or set EA_KUBE_NAMESPACES",
            ][..],
        ),
        (
            &[
                ("EA_KUBE_ENABLE", "true"),
                ("EA_KUBE_NAMESPACES", "shop,team"),
            ],
            &["in the namespace team it may not list pods, "],
        ),
    ] {
        let output = command_output(&[], &given(more));
        let printed = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{printed}");
        assert!(
            printed.contains("EA_KUBE_ENABLE is true, but "),
            "{printed}"
        );
        for text in told {
            assert!(printed.contains(text), "{text}: {printed}");
        }
    }
    // The lookup is not configured: everything else works, and requests for pods get the same reason.
    let agent = Agent::start(&settings).await;
    let told = eventually("it is reported", async || {
        let told = web(&agent).await;
        (told.status == 501).then_some(told)
    })
    .await;
    assert_eq!(told.text("code"), "Disabled");
    assert!(
        told.text("message")
            .contains("in all namespaces it may not list pods"),
        "{told:?}"
    );
    let told = lookup(&agent).await["off"].to_string();
    assert!(
        told.contains("in all namespaces it may not list pods"),
        "{told}"
    );
    assert!(
        agent
            .log()
            .join("\n")
            .contains("pods cannot be looked up: in all namespaces")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_kubernetes_that_does_not_answer_keeps_only_those_from_starting_that_must_have_it() {
    let mut api = server(Right::watching()).await;
    let settings = api.settings();
    api.stop();
    let given: Vec<_> = settings
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .collect();
    let required = [&given[..], &[("EA_KUBE_ENABLE", "true")]].concat();
    let output = command_output(&[], &required);
    let printed = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{printed}");
    assert!(
        printed.contains("the Kubernetes API server has not reported"),
        "{printed}"
    );

    let agent = Agent::start(&settings).await;
    let told = web(&agent).await;
    assert_eq!((told.status, told.text("code")), (503, "Unavailable"));
    api.start_again().await;
    eventually_web(&agent, "four pods", |items| {
        (items.len() == 4).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_context_says_which_kubernetes_is_meant() {
    let api = server(Right::watching()).await;
    let mut settings = api.settings_with_wrong_context();
    settings.push(("EA_KUBE_ENABLE".to_owned(), "true".to_owned()));
    let given: Vec<_> = settings
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .collect();
    let output = command_output(&[], &given);
    assert_eq!(output.status.code(), Some(2));
    let output = command_output(
        &[],
        &[&given[..], &[("EA_KUBE_CONTEXT", "none-such")]].concat(),
    );
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(2) && printed.contains("none-such"),
        "{printed}"
    );

    settings.push(("EA_KUBE_CONTEXT".to_owned(), CONTEXT.to_owned()));
    let agent = Agent::start(&settings).await;
    eventually_web(&agent, "four pods", |items| {
        (items.len() == 4).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_lookup_that_is_off_says_so() {
    let api = server(Right::watching()).await;
    let off = agent(&api, &[("EA_KUBE_ENABLE", "false")]).await;
    let told = web(&off).await;
    assert_eq!((told.status, told.text("code")), (501, "Disabled"));
    assert!(
        told.text("message").contains("EA_KUBE_ENABLE=false"),
        "{told:?}"
    );
    assert_eq!(api.requests().len(), 0);
}

#[tokio::test]
async fn rights_that_the_api_server_does_not_know_of_are_asked_for_again() {
    let api = server(Vec::new()).await;
    api.lose_authorizer(true);
    let agent = Agent::start(&api.settings()).await;
    let told = eventually("it is reported", async || {
        let told = lookup(&agent).await["off"].to_string();
        agent_log_has(&agent, "context deadline exceeded").then_some(told)
    })
    .await;
    assert!(told.contains("has not reported"), "{told}");
    assert_eq!(web(&agent).await.status, 503, "it is not off");
    api.lose_authorizer(false);
    api.set_rights(Right::watching());
    eventually_web(&agent, "four pods", |items| {
        (items.len() == 4).then_some(())
    })
    .await;
}

fn agent_log_has(agent: &Agent, text: &str) -> bool {
    agent.log().iter().any(|line| line.contains(text))
}
