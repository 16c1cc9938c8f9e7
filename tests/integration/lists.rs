//! Agents pass from one list of servers to another while a leader leads.

use std::time::Duration;

use crate::harness::{
    Agent, Place as _, Redis, campaign, eventually, eventually_within, extension,
};

/// The longest term, and so how long an agent with the old list alone counts after it has gone.
const MAX_TERM: &str = "3s";
const TERM: i32 = 3_000;

async fn agent(now: &[&Redis], next: &[&Redis]) -> Agent {
    let next = next.settings();
    let mut settings = vec![
        ("EA_MAX_TERM", MAX_TERM),
        ("EA_REDIS_OPERATION_TIMEOUT", "500ms"),
    ];
    if let [(_, urls)] = &next[..]
        && !urls.is_empty()
    {
        settings.push(("EA_REDIS_URLS_NEXT", urls));
    }
    Agent::on(now, &settings).await
}

/// The leader extends, soon enough to keep its term; others campaign in vain.
async fn leads(agent: &Agent, token: u64) {
    eventually_within(Duration::from_secs(3), "the leader extends", async || {
        let request = extension("e", "leader", TERM, token);
        let extended = agent.try_extend(request).await;
        let extended = extended.ok()?;
        assert!(extended.value, "{extended:?}");
        Some(())
    })
    .await;
    let other = agent.try_campaign(campaign("e", "other", TERM));
    if let Ok(answer) = other.await {
        assert!(!answer.elected, "beside the leader");
    }
}

/// A list is changed by majorities of both: the leader leads on, an agent with the new list alone waits until the old
/// one is closed, and one with the old list alone does not come back.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_changed_while_a_leader_leads() {
    let servers = Redis::several(5, &[]).await;
    let [a, b, c, d, e] = [0, 1, 2, 3, 4].map(|n: usize| &servers[n]);
    let (old, new) = ([a, b, c], [c, d, e]);

    let mut before = agent(&old, &[]).await;
    let won = before.campaign("e", "leader", TERM).await;
    assert!(won.elected);
    let joint = agent(&old, &new).await;
    leads(&before, won.token).await;
    leads(&joint, won.token).await;

    // Too early: an agent with the old list alone is about.
    let early = agent(&new, &[]).await;
    let refused = early.get("/readyz").await;
    assert_eq!(refused.status, 503, "{refused:?}");
    let refused = refused.body.to_string();
    assert!(refused.contains("another list of servers"), "{refused}");
    let asked = early.try_campaign(campaign("e", "early", TERM));
    assert!(asked.await.is_err());
    leads(&joint, won.token).await;

    before.kill();
    let ready = eventually_within(Duration::from_secs(30), "the new list serves", async || {
        leads(&joint, won.token).await;
        (early.get("/readyz").await.status == 200).then_some(())
    });
    ready.await;
    leads(&early, won.token).await;

    // The old list is closed.
    let late = agent(&old, &[]).await;
    assert_eq!(late.get("/readyz").await.status, 503);
    drop((late, joint));
    for _ in 0..5 {
        leads(&early, won.token).await;
    }
    assert_eq!(early.leader("e").await.expect("held"), "leader");
    let resigned = early.resign("e", "leader", won.token).await;
    assert!(resigned.value, "{resigned:?}");
    eventually("another is elected by the new list", async || {
        let asked = early.try_campaign(campaign("e", "other", TERM));
        let answer = asked.await.ok()?;
        (answer.elected && answer.token > won.token).then_some(())
    })
    .await;
}
