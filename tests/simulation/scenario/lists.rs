//! Agents with other lists of nodes.

use election_agent::lease::{
    policy::{Electorate, Nodes},
    quorum::Quorum,
};

use super::{LONGEST, SECOND, Scene};
use crate::{
    agent::{Plan, clock},
    handle::{Fate, To},
};

/// Two agents use three nodes each, of which they share one.
pub(crate) async fn lists_differ() {
    let scene = Scene::of(5);
    let plan = |list| Plan {
        list: Some(list),
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
    let passing = plan.agent_of(&scene.servers, clock(vec![0]), |nodes, options| {
        Quorum::of(nodes, electorate, options)
    });
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
