//! Agents with other lists of nodes.

use election_agent::lease::policy::{Electorate, Nodes};

use super::{LONGEST, SECOND, Scene};
use crate::{
    agent::{Plan, clock},
    handle::{Fate, To},
};

/// Two agents use three nodes each, of which they share one.
pub(crate) async fn lists_differ() {
    let scene = Scene::of(5);
    let plan = |list: &str| Plan {
        list: Some(list.to_owned()),
        ..Plan::new(LONGEST, SECOND)
    };
    // Both lists' nodes were used before.
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

/// One agent passes from a list to another that has arrived there.
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

/// One agent has the old list, one passes from it to the new one, and a third has arrived there too early. The lists
/// share no node.
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
