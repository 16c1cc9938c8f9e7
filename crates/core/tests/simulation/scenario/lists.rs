//! Agents with different lists of nodes.

use election_core::lease::policy::{Electorate, Nodes};
use tokio::time::{Instant, sleep};

use super::{LONGEST, SECOND, Scene, at, ended, ms};
use crate::{
    agent::{Plan, clock},
    handle::{Fate, To},
};

/// Two agents use three nodes each, and share one of them.
pub(crate) async fn lists_differ() {
    let scene = Scene::of(5);
    let plan = |list: &str| Plan {
        list: Some(list.to_owned()),
        ..Plan::new(LONGEST, SECOND)
    };
    // The nodes of both lists were used before.
    scene.agent_of(LONGEST, SECOND).await;
    let first = plan("012").agent(&scene.servers[..3]);
    let second = plan("234").agent(&scene.servers[2..]);
    first.quorum.status().await;
    first.quorum.status().await;
    scene.wins_without(&first, "c1", 6_000, &[]).await;
    second.quorum.status().await;
    second.quorum.status().await;
    scene.campaigns_while_leads(&second, "c2", "c1").await;
}

/// One agent changes from a list to another, which a second agent already uses alone.
pub(crate) async fn list_changes() {
    let scene = Scene::of(5);
    scene.agent_of(LONGEST, SECOND).await;
    let plan = Plan::new(LONGEST, SECOND);
    let electorate = Electorate::joint(Nodes::first(3), (2..5).collect());
    let passing = plan.agent_of(&scene.servers, electorate, clock(vec![0]));
    let arrived = plan.agent(&scene.servers[2..]);
    for agent in [&passing, &arrived] {
        agent.quorum.status().await;
        agent.quorum.status().await;
    }
    for handle in &passing.handles[2..] {
        (0..20).for_each(|_| handle.plan(To::Grant, Fate::Lost));
    }
    scene.campaign(&passing, "c1", 6_000).await;
    scene.campaign(&arrived, "c2", 6_000).await;
}

/// One agent has the old list, one changes from it to the new one, and a third uses the new one too early.
/// The lists share no node.
pub(crate) async fn new_list_is_used_too_early() {
    let scene = Scene::of(6);
    scene.agent_of(LONGEST, SECOND).await;
    let plan = |list: &str| Plan {
        list: Some(list.to_owned()),
        ..Plan::new(LONGEST, SECOND)
    };
    let before = plan("012").agent(&scene.servers[..3]);
    let electorate = Electorate::joint(Nodes::first(3), (3..6).collect());
    let passing = plan("012 > 345").agent_of(&scene.servers, electorate, clock(vec![0]));
    let early = plan("345").agent(&scene.servers[3..]);
    for agent in [&before, &passing, &early] {
        agent.quorum.status().await;
        agent.quorum.status().await;
    }
    scene.wins_without(&before, "c1", 6_000, &[]).await;
    scene.campaigns_while_leads(&early, "c2", "c1").await;
}

/// A server that is the whole new list lacks the leader's lease. Before the lease is written there, a
/// candidate obtains an unacknowledged grant, which it finds again when it repeats its request.
pub(crate) async fn new_list_has_a_grant_nobody_knows() {
    let scene = Scene::of(4);
    scene.agent_of(LONGEST, SECOND).await;
    let before = Plan::new(LONGEST, SECOND).agent(&scene.servers[..3]);
    let electorate = Electorate::joint(Nodes::first(3), Nodes::one(3));
    let plan = Plan::new(LONGEST, SECOND);
    let passing = plan.agent_of(&scene.servers, electorate, clock(vec![0]));
    let dies = plan.agent(&scene.servers[3..]);
    let arrived = plan.agent(&scene.servers[3..]);
    for agent in [&before, &passing, &dies, &arrived] {
        for _ in 0..3 {
            agent.quorum.status().await;
        }
    }
    let t = Instant::now();
    let token = scene.wins_without(&before, "c1", 1_100, &[]).await;
    passing.handles[3].plan(To::Repair, Fate::Late(ms(100), ms(1)));
    let (asking, through) = (scene.clone(), passing.clone());
    let extending = tokio::spawn(async move {
        // The extension may fail: its success is what this scenario tests.
        let _ = asking
            .extend(&through, "c1", Some(token), 6_000, SECOND)
            .await;
    });
    sleep(ms(50)).await;
    dies.handles[0].plan(To::Grant, Fate::Unanswered);
    let (asking, through) = (scene.clone(), dies.clone());
    tokio::spawn(async move { asking.campaign(&through, "c2", 5_000).await });
    sleep(ms(10)).await;
    dies.handles[0].cut(true);
    ended(extending).await;
    at(t, 1_200).await;
    let elected = scene.campaign(&arrived, "c2", 5_000).await;
    assert!(elected.is_some(), "nobody else has the new list's server");
}
