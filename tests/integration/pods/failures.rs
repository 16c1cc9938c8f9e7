//! What becomes of answers when watches break off and the API server fails.

use serde_json::Value;

use super::{
    LONG, age, agent, another, eventually_web, filled, has, lookup, names, server, told_of,
    watched, web,
};
use crate::harness::{ApiServer, Fault, Gone, Right, eventually, eventually_within};

#[tokio::test]
async fn a_watch_that_breaks_off_is_resumed_where_it_was() {
    let api = server(Right::watching()).await;
    let agent = agent(&api, &[]).await;
    filled(&agent).await;
    watched(&api).await;
    let lists = api.count("list", "pods");
    let mut added = Vec::new();
    let breaks: [fn(&ApiServer); 3] = [
        ApiServer::reset_watches,
        ApiServer::end_watches,
        ApiServer::reset_watches_in_next_event,
    ];
    for (at, breaks) in breaks.into_iter().enumerate() {
        api.bookmarks();
        breaks(&api);
        // What happens while no watch runs is not missed.
        let name = format!("web-7d4b9c6f5d-new{at}");
        api.apply(another(&name));
        added.push(name.clone());
        told_of(&agent, &name).await;
        watched(&api).await;
    }
    let answer = web(&agent).await;
    let items = answer.body["items"].as_array().expect("items");
    assert_eq!(items.len(), 4 + added.len());
    assert_eq!(api.count("list", "pods"), lists, "nothing was listed anew");
}

#[tokio::test]
async fn what_the_api_server_has_forgotten_is_listed_anew_and_the_old_is_served_until_then() {
    for gone in [Gone::Event, Gone::Status] {
        let api = server(Right::watching()).await;
        let agent = agent(&api, &[]).await;
        filled(&agent).await;
        watched(&api).await;
        let before = web(&agent).await.body;
        let lists = api.count("list", "pods");
        // As long as lists fail, nothing new can be known.
        api.fail(Fault::internal(2).of("list", "pods"));
        api.fail(Fault::lasting().of("watch", "pods"));
        api.reset_watches();
        eventually("nobody watches", async || {
            (api.watching("pods") == 0).then_some(())
        })
        .await;
        api.delete("Pod", "shop", "web-6bb5d7c9f8-q4nhd");
        api.apply(another("web-7d4b9c6f5d-newer"));
        api.compact(gone);
        api.mend("watch", "pods");
        eventually_within(LONG, "both lists have failed", async || {
            let answer = web(&agent).await;
            let expected = names(before["items"].as_array()?);
            let items = answer.body["items"].as_array()?;
            let new = has(items, "web-7d4b9c6f5d-newer").is_some();
            assert!(
                new || names(items) == expected,
                "neither old nor new: {items:?}"
            );
            (api.count("list", "pods") >= lists + 3 && new).then_some(())
        })
        .await;
        let answer = web(&agent).await;
        let items = answer.body["items"].as_array().expect("items");
        let expected = [
            "web-7d4b9c6f5d-9wjlr",
            "web-7d4b9c6f5d-newer",
            "web-7d4b9c6f5d-x2x7p",
            "web-6bb5d7c9f8-k8mzt",
        ];
        assert_eq!(names(items), expected, "{gone:?}");
    }
}

#[tokio::test]
async fn watches_that_are_told_that_they_are_behind_begin_anew() {
    let api = server(Right::watching()).await;
    let agent = agent(&api, &[]).await;
    filled(&agent).await;
    watched(&api).await;
    let lists = api.count("list", "pods");
    api.expire_watches();
    eventually("they begin anew", async || {
        (api.count("list", "pods") > lists).then_some(())
    })
    .await;
    api.apply(another("web-7d4b9c6f5d-newer"));
    eventually_web(&agent, "the new pod", |items| {
        has(items, "web-7d4b9c6f5d-newer")
    })
    .await;
}

#[tokio::test]
async fn an_api_server_that_refuses_at_first_is_asked_again() {
    let api = server(Right::watching()).await;
    let all = ["pods", "replicasets", "deployments"];
    for resource in all {
        api.fail(Fault::throttled(1).of("list", resource));
        api.fail(Fault::lasting().of("list", resource));
        api.fail(Fault::unavailable(1).of("watch", resource));
    }
    let agent = agent(&api, &[]).await;
    eventually_within(LONG, "it is asked again", async || {
        let told = web(&agent).await;
        assert_eq!((told.status, told.text("code")), (503, "Unavailable"));
        assert_eq!(told.text("message"), "the pods have not been listed yet");
        all.map(|resource| api.count("list", resource) >= 3)
            .iter()
            .all(|asked| *asked)
            .then_some(())
    })
    .await;
    // Its message is reported, and all that differs is logged.
    let told = lookup(&agent).await["namespaces"][0]["error"].to_string();
    assert!(told.contains("etcdserver"), "{told}");
    let mut log = String::new();
    eventually("both are logged", async || {
        log.push_str(&agent.log().join("\n"));
        (log.matches("the pods cannot be watched").count() >= 2).then_some(())
    })
    .await;
    assert_eq!(
        log.matches("the pods cannot be watched").count(),
        2,
        "{log}"
    );
    for resource in all {
        api.mend("list", resource);
    }
    eventually_within(LONG, "four pods", async || {
        let answer = web(&agent).await;
        (answer.body["items"].as_array()?.len() == 4).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_token_that_was_replaced_is_read_again_at_once() {
    for rights in [Right::watching(), Right::looking_up()] {
        let api = server(rights).await;
        let agent = agent(&api, &[("EA_KUBE_CACHE_TTL", "100ms")]).await;
        eventually_web(&agent, "four pods", |items| {
            (items.len() == 4).then_some(())
        })
        .await;
        api.rotate_token("the-agents-new-one");
        api.reset_watches();
        api.apply(another("web-7d4b9c6f5d-newer"));
        // Well before the minute in which the client of the kube crate would read it again.
        told_of(&agent, "web-7d4b9c6f5d-newer").await;
    }
}

#[tokio::test]
async fn without_an_api_server_elections_go_on_and_pods_are_told_until_they_are_too_old() {
    for rights in [Right::watching(), Right::looking_up()] {
        let mut api = server(rights).await;
        let settings = [
            ("EA_KUBE_MAX_STALENESS", "5s"),
            ("EA_KUBE_CACHE_TTL", "100ms"),
        ];
        let agent = agent(&api, &settings).await;
        eventually_web(&agent, "four pods", |items| {
            (items.len() == 4).then_some(())
        })
        .await;
        api.stop();
        let mut ages = Vec::new();
        let refused = eventually_within(LONG, "they are too old", async || {
            let answer = web(&agent).await;
            if answer.status != 200 {
                return Some(answer);
            }
            assert_eq!(answer.body["items"].as_array().map(Vec::len), Some(4));
            ages.push(age(&answer));
            None
        })
        .await;
        // Served as long as they were fresh enough, and not only the fresh ones.
        let oldest = ages.iter().max().copied().expect("answers before that");
        assert!((200..=5_000).contains(&oldest), "{oldest}");
        assert_eq!((refused.status, refused.text("code")), (503, "Unavailable"));
        assert!(
            refused
                .text("message")
                .contains("EA_KUBE_MAX_STALENESS (5s)"),
            "{refused:?}"
        );

        let (election, _) = agent_campaigns(&agent).await;
        assert_eq!(election["elected"], true);
        let told = lookup(&agent).await;
        let namespace = &told["namespaces"][0];
        assert!(namespace["error"].is_string(), "{told}");
        assert!(
            namespace["age"].as_u64().is_some_and(|age| age > 5_000),
            "{told}"
        );

        api.start_again().await;
        api.apply(another("web-7d4b9c6f5d-newer"));
        told_of(&agent, "web-7d4b9c6f5d-newer").await;
        eventually_within(LONG, "the error is over", async || {
            lookup(&agent).await["namespaces"][0]["error"]
                .is_null()
                .then_some(())
        })
        .await;
        let news = ["the pods are watched again", "pods are read again"];
        eventually("it is logged", async || {
            let log = agent.log().join("\n");
            news.iter().any(|news| log.contains(news)).then_some(())
        })
        .await;
    }
}

async fn agent_campaigns(agent: &crate::harness::Agent) -> (Value, u16) {
    let answer = agent
        .campaign_over_rest("/election/e", "worker", 10_000)
        .await;
    (answer.body, answer.status)
}

#[tokio::test]
async fn an_api_server_that_falls_silent_is_noticed() {
    let api = server(Right::watching()).await;
    let agent = agent(&api, &[("EA_KUBE_MAX_STALENESS", "5s")]).await;
    filled(&agent).await;
    watched(&api).await;
    api.hold();
    eventually_within(LONG, "they are too old", async || {
        let answer = web(&agent).await;
        (answer.status == 503
            && answer
                .text("message")
                .contains("EA_KUBE_MAX_STALENESS (5s)"))
        .then_some(())
    })
    .await;
    assert_eq!(agent_campaigns(&agent).await.1, 200);
    api.release();
    eventually_within(LONG, "they are listed again", async || {
        (web(&agent).await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_age_grows_while_the_api_server_is_silent() {
    let api = server(Right::watching()).await;
    let agent = agent(&api, &[("EA_KUBE_MAX_STALENESS", "1m")]).await;
    filled(&agent).await;
    watched(&api).await;
    api.hold();
    // Longer than a watch lasts.
    eventually_within(LONG, "they grow old", async || {
        let answer = web(&agent).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        (age(&answer) > 17_000).then_some(())
    })
    .await;
    api.release();
    eventually_within(LONG, "they are young", async || {
        let answer = web(&agent).await;
        (answer.status == 200 && age(&answer) < 17_000).then_some(())
    })
    .await;
}
