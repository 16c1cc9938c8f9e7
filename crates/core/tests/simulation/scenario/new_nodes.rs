//! The detection of new nodes.

use std::time::Duration;

use super::{LONGEST, SECOND, Scene, at, ended, ms};
use crate::{
    agent::Plan,
    handle::{Fate, To},
};
use tokio::time::Instant;

/// During an agent's first probe, another agent marks the nodes. One of them votes and forgets everything.
pub(crate) async fn marked_while_it_looks() {
    let scene = Scene::of(3);
    let plan = Plan::new(LONGEST, SECOND);
    let slow = plan.agent(&scene.servers);
    for handle in &slow.handles[..2] {
        for fate in [Fate::Quick, Fate::Quick, Fate::Lost] {
            handle.plan(To::Probe, fate);
        }
    }
    slow.handles[2].plan(To::Probe, Fate::Quick);
    slow.handles[2].plan(To::Probe, Fate::Late(ms(400), Duration::ZERO));
    let began = Instant::now();
    let quorum = slow.quorum.clone();
    let probing = tokio::spawn(async move { quorum.status().await });
    at(began, 50).await;
    let quick = scene.agent(&plan).await;
    scene.wins_without(&quick, "c1", 6_000, &[1]).await;
    at(began, 300).await;
    scene.servers[2].forget();
    ended(probing).await;
    scene.campaigns_while_leads(&slow, "c2", "c1").await;
}

/// An agent does not receive the reply that it has marked a node, and all servers forget everything.
pub(crate) async fn marked_without_an_answer() {
    forgotten_by_all(Some(Fate::Unanswered)).await;
}

/// An agent has marked the nodes, and all servers forget everything before its next probe.
pub(crate) async fn marked_and_forgotten() {
    forgotten_by_all(None).await;
}

async fn forgotten_by_all(fate: Option<Fate>) {
    let scene = Scene::of(3);
    let plan = Plan::new(LONGEST, SECOND);
    let first = plan.agent(&scene.servers);
    if let Some(fate) = fate {
        first.handles[2].plan(To::Mark, fate);
    }
    first.quorum.status().await;
    let second = scene.agent(&plan).await;
    scene.wins_without(&second, "c1", 6_000, &[]).await;
    scene.servers.iter().for_each(|server| server.forget());
    first.quorum.status().await;
    scene.campaigns_while_leads(&first, "c2", "c1").await;
}

/// A node that has voted forgets everything, and an agent starts that has never seen it.
pub(crate) async fn one_of_three_forgets() {
    let scene = Scene::of(3);
    let agent = scene.agent_of(LONGEST, SECOND).await;
    scene.wins_without(&agent, "c1", 6_000, &[1]).await;
    scene.servers[2].forget();
    let new = scene.agent_of(LONGEST, SECOND).await;
    scene.campaigns_while_leads(&new, "c2", "c1").await;
}
