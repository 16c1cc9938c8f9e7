//! The quarantine of nodes that may have lost memory, with agents that differ.

use election_core::{
    election::Error,
    lease::{REMEMBER, State},
};
use tokio::time::{Instant, sleep};

use super::{LONGEST, SECOND, Scene, ms};
use crate::{
    agent::{Agent, Plan},
    handle::{Fate, To},
};

/// Three servers. The second has saved its memory when only an agent with a short guard existed. An agent
/// with a long guard has started since.
async fn short_and_long() -> (Scene, Agent, Agent) {
    let scene = Scene::of(3);
    let short = scene.agent_of(2 * SECOND, SECOND).await;
    scene.servers[1].save();
    let long = scene.agent_of(LONGEST, SECOND).await;
    (scene, short, long)
}

/// A candidate leads for the long agent's longest term, and the second server restarts with old data.
async fn forgets_a_leader(scene: &Scene, long: &Agent) {
    scene.wins_without(long, "c1", 6_000, &[2]).await;
    scene.servers[1].go_back(0);
}

fn die(agent: &Agent) {
    for handle in &agent.handles {
        handle.cut(true);
    }
}

/// A server that went back to an old lease of a candidate would vote for it although another leads.
pub(crate) async fn own_lease_comes_back() {
    let scene = Scene::of(3);
    let agent = scene.agent_of(LONGEST, SECOND).await;
    let token = scene.wins_without(&agent, "c1", 6_000, &[]).await;
    scene.servers[1].save();
    scene.resign(&agent, "c1", token).await;
    scene.wins_without(&agent, "c2", 5_000, &[0]).await;
    scene.servers[1].go_back(0);
    scene.campaigns_while_leads(&agent, "c1", "c2").await;
}

/// An agent that has not received the longer guard for a while requests a vote of a server that knows it.
pub(crate) async fn caller_knows_less_than_the_server() {
    let scene = Scene::of(3);
    let long = scene.agent_of(LONGEST, SECOND).await;
    let short = scene.agent_of(2 * SECOND, SECOND).await;
    // The agent no longer counts the other agent's guard.
    sleep(REMEMBER + SECOND).await;
    scene.servers[1].save();
    forgets_a_leader(&scene, &long).await;
    scene.campaigns_while_leads(&short, "c2", "c1").await;
}

/// The longer guard is registered when the server is already in quarantine.
pub(crate) async fn longer_guard_comes_late() {
    let (scene, short, long) = short_and_long().await;
    forgets_a_leader(&scene, &long).await;
    let _ = scene.ask(&short, "c2", 1_050, "", ms(500)).await;
    long.quorum.status().await;
    scene.campaigns_while_leads(&short, "c2", "c1").await;
}

/// The clock of a server in quarantine is set back.
pub(crate) async fn clock_is_set_back() {
    let scene = Scene::of(1);
    let agent = scene.agent_of(LONGEST, SECOND).await;
    scene.servers[0].restart();
    agent.quorum.status().await;
    scene.servers[0].set_clock(-2 * 3_600_000);
    let began = Instant::now();
    while scene.campaign(&agent, "c1", 5_000).await.is_none() {
        sleep(ms(50)).await;
        assert!(
            began.elapsed() < 2 * LONGEST,
            "nobody can be elected although nothing fails"
        );
    }
}

/// A server restarts before the agent with the longer guard has registered it in this incarnation.
pub(crate) async fn bounds_are_lost() {
    let (scene, short, long) = short_and_long().await;
    scene.servers[1].go_back(0);
    let token = scene.wins_without(&long, "c0", 5_000, &[]).await;
    scene.resign(&long, "c0", token).await;
    sleep(LONGEST + SECOND).await;
    for handle in &long.handles[2..] {
        // All votes of the campaign.
        (0..3).for_each(|_| handle.plan(To::Grant, Fate::Lost));
    }
    let token = scene.campaign(&long, "c0", 5_000).await;
    let token = token.expect("two servers grant");
    scene.resign(&long, "c0", token).await;
    scene.servers[1].save();
    let cut = long.handles[2].clone();
    cut.cut(true);
    scene.wins_without(&long, "c1", 6_000, &[]).await;
    scene.servers[1].go_back(0);
    scene.campaigns_while_leads(&short, "c2", "c1").await;
}

/// A server restarts that has forgotten the longer guard, and the agent with that guard is dead.
pub(crate) async fn agent_with_the_longer_guard_dies() {
    let (scene, short, long) = short_and_long().await;
    scene.wins_without(&long, "c1", 6_000, &[2]).await;
    die(&long);
    scene.servers[1].go_back(0);
    short.quorum.status().await;
    short.quorum.status().await;
    scene.campaigns_while_leads(&short, "c2", "c1").await;
}

/// As before, and a new agent requests votes at once.
pub(crate) async fn new_agent_asks_at_once() {
    let (scene, _, long) = short_and_long().await;
    forgets_a_leader(&scene, &long).await;
    die(&long);
    let plan = Plan {
        own_clocks: false,
        ..Plan::new(2 * SECOND, SECOND)
    };
    let new = plan.agent(&scene.servers);
    scene.campaigns_while_leads(&new, "c2", "c1").await;
}

/// An agent with longer terms extends before its first probe of the nodes: other agents would mistake its
/// lease for one of a clock that was set back.
pub(crate) async fn new_agent_extends_at_once() {
    let scene = Scene::of(3);
    let short = scene.agent_of(2 * SECOND, SECOND).await;
    let token = scene.wins_without(&short, "c1", 2_000, &[]).await;
    let long = Plan::new(LONGEST, SECOND).agent(&scene.servers);
    let extended = scene.extend(&long, "c1", Some(token), 6_000, SECOND).await;
    assert_eq!(extended, Ok(()), "nothing fails");
    scene.campaigns_while_leads(&short, "c2", "c1").await;
}

/// As in [`new_agent_asks_at_once`], and the new agent dies after its first probe of the nodes.
pub(crate) async fn new_agent_looks_and_dies() {
    let (scene, short, long) = short_and_long().await;
    forgets_a_leader(&scene, &long).await;
    die(&long);
    let new = Plan::new(2 * SECOND, SECOND).agent(&scene.servers);
    new.quorum.status().await;
    die(&new);
    scene.campaigns_while_leads(&short, "c2", "c1").await;
}

/// A forgotten lease is not a vacancy: the leader must not receive a reply that it does not lead.
pub(crate) async fn most_servers_forget() {
    let scene = Scene::of(3);
    let agent = scene.agent_of(LONGEST, SECOND).await;
    let token = scene.wins_without(&agent, "c1", 6_000, &[]).await;
    scene.servers[1].forget();
    scene.servers[2].forget();
    agent.quorum.status().await;
    let deadline = Instant::now() + SECOND;
    let read = agent.quorum.read(&crate::election(), deadline).await;
    assert!(
        !matches!(read, Ok(State::Vacant(_))),
        "vacant, although c1 leads"
    );
    let extended = scene.extend(&agent, "c1", Some(token), 5_000, SECOND).await;
    assert!(
        !matches!(extended, Err(Error::Denied(_))),
        "c1 does not lead, although it does"
    );
}
