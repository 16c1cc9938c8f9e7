//! Repairs, and votes that a restarted server has forgotten.
//!
//! In most of these, a candidate's vote is in transit for long. Of three servers, the first and the third
//! hold the leader's lease. The second has voted for the candidate and forgotten that. The leader's lease is
//! extended by the first two and expires on the third. Then the candidate's request reaches the third, and
//! must not obtain a majority of the second and the third.

use std::time::Duration;

use election_core::{lease::LeaseNode as _, types::Token};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{LONGEST, SECOND, Scene, at, ended, ms};
use crate::{
    agent::Agent,
    handle::{Fate, To},
    run::leader_at,
};

/// The leader's agent, and its token.
struct Leading {
    scene: Scene,
    agent: Agent,
    token: Token,
}

impl Leading {
    /// Creates a leader that the first and the third server have elected, for 1.1 s.
    async fn new(scene: &Scene, agent: Agent) -> Self {
        let token = scene.wins_without(&agent, "c1", 1_100, &[1]).await;
        Self {
            scene: scene.clone(),
            agent,
            token,
        }
    }

    /// Extends the term. The third server receives the request only if `third` is set.
    async fn extends(&self, term: i64, third: bool) {
        if !third {
            self.agent.handles[2].plan(To::Extend, Fate::Lost);
        }
        let token = Some(self.token);
        // The extension may fail: its success is what the scenarios test.
        let extended = self.scene.extend(&self.agent, "c1", token, term, ms(400));
        let _ = extended.await;
    }
}

/// A vote to which the second server replies at once, and the third after 1.5 s.
fn slow_vote(scene: &Scene, agent: &Agent) -> JoinHandle<()> {
    agent.handles[0].plan(To::Grant, Fate::Lost);
    agent.handles[2].plan(To::Grant, Fate::Late(ms(1_500), Duration::ZERO));
    let (scene, agent) = (scene.clone(), agent.clone());
    tokio::spawn(async move {
        let _ = scene.ask(&agent, "c2", 5_000, "", ms(1_900)).await;
    })
}

/// The second server votes for a challenger of a leader that the others elected, and restarts without that
/// vote 50 ms later. Returns the vote, and the instant of its start, 100 ms ago.
async fn forgets_a_slow_vote() -> (Leading, JoinHandle<()>, Instant) {
    let scene = Scene::of(3);
    let agent = scene.agent_of(LONGEST, 2 * SECOND).await;
    let challenger = scene.agent_of(LONGEST, 2 * SECOND).await;
    scene.servers[1].save();
    let leading = Leading::new(&scene, agent).await;
    sleep(ms(600)).await;
    let t = Instant::now();
    let vote = slow_vote(&scene, &challenger);
    at(t, 50).await;
    scene.servers[1].go_back(0);
    leading.agent.quorum.status().await;
    leading.agent.quorum.status().await;
    at(t, 100).await;
    (leading, vote, t)
}

/// The server is repaired before the vote that it has forgotten is over.
pub(crate) async fn vote_is_still_counted() {
    let (leading, vote, t) = forgets_a_slow_vote().await;
    leading.extends(1_100, true).await;
    at(t, 1_000).await;
    leading.extends(1_100, false).await;
    ended(vote).await;
}

/// An agent that does not know of longer votes decides on a repair before the server restarts.
pub(crate) async fn repair_is_of_an_earlier_incarnation() {
    let scene = Scene::of(3);
    let agent = scene.agent_of(LONGEST, ms(300)).await;
    let other = scene.agent_of(LONGEST, ms(300)).await;
    scene.servers[1].save();
    let leading = Leading::new(&scene, agent).await;
    let challenger = scene.agent_of(LONGEST, 2 * SECOND).await;
    sleep(ms(600)).await;
    let repair = Fate::Late(ms(500), Duration::ZERO);
    leading.agent.handles[1].plan(To::Repair, repair);
    leading.extends(1_100, true).await;
    sleep(ms(50)).await;
    let t = Instant::now();
    let vote = slow_vote(&scene, &challenger);
    at(t, 50).await;
    scene.servers[1].go_back(0);
    other.quorum.status().await;
    at(t, 950).await;
    leading.extends(1_100, false).await;
    ended(vote).await;
}

/// The repair relies on replies to requests from before the start of an agent with longer votes.
pub(crate) async fn longer_votes_are_not_known() {
    let scene = Scene::of(3);
    let agent = scene.agent_of(LONGEST, ms(300)).await;
    scene.servers[1].save();
    let leading = Leading::new(&scene, agent).await;
    let t = Instant::now() + ms(600);
    let quorum = leading.agent.quorum.clone();
    let probe = Fate::Late(ms(660), Duration::ZERO);
    leading.agent.handles[1].plan(To::Probe, probe);
    let probing = tokio::spawn(async move { quorum.status().await });
    sleep(ms(100)).await;
    let challenger = scene.agent_of(LONGEST, 2 * SECOND).await;
    at(t, 0).await;
    let vote = slow_vote(&scene, &challenger);
    at(t, 50).await;
    scene.servers[1].go_back(0);
    ended(probing).await;
    at(t, 100).await;
    let repair = Fate::Late(ms(400), Duration::ZERO);
    leading.agent.handles[1].plan(To::Repair, repair);
    leading.extends(1_100, true).await;
    at(t, 1_000).await;
    leading.extends(1_100, false).await;
    ended(vote).await;
}

/// The repair reaches the server when the extension is over, and another candidate leads.
pub(crate) async fn repair_is_late() {
    let (leading, vote, t) = forgets_a_slow_vote().await;
    let repair = Fate::Late(ms(2_100), Duration::ZERO);
    leading.agent.handles[1].plan(To::Repair, repair);
    leading.extends(1_100, true).await;
    at(t, 1_000).await;
    leading.agent.handles[1].plan(To::Extend, Fate::Lost);
    leading.extends(5_000, false).await;
    ended(vote).await;
    at(t, 2_300).await;
    leading.extends(5_000, true).await;
}

/// A server votes for another candidate, and forgets that, while an agent finds an older token of the leader
/// on it.
pub(crate) async fn raised_lease_is_gone() {
    let scene = Scene::of(3);
    let agent = scene.agent_of(LONGEST, 2 * SECOND).await;
    let challenger = scene.agent_of(LONGEST, 2 * SECOND).await;
    let dies = scene.agent_of(LONGEST, 2 * SECOND).await;
    scene.servers[1].save();
    let won = Instant::now();
    scene.wins_without(&agent, "c1", 1_100, &[]).await;
    at(won, 500).await;
    // The grant with a new token reaches one server.
    dies.handles[1].cut(true);
    dies.handles[2].cut(true);
    dies.handles[0].plan(To::Grant, Fate::Unanswered);
    let asking = scene.clone();
    let dying = dies.clone();
    tokio::spawn(async move { asking.campaign(&dying, "c1", 6_000).await });
    sleep(ms(10)).await;
    dies.handles[0].cut(true);
    let held = scene.servers[0].memory().read(&crate::election()).await;
    let Ok(election_core::lease::Reading::Held(lease)) = held else {
        panic!("{held:?}");
    };
    at(won, 1_095).await;
    let t = Instant::now();
    agent.handles[2].plan(To::Extend, Fate::Late(ms(1), ms(1_800)));
    agent.handles[1].plan(To::Repair, Fate::Late(ms(300), Duration::ZERO));
    let (asking, leading) = (scene.clone(), agent.clone());
    let extending = tokio::spawn(async move {
        let token = Some(lease.token);
        let _ = asking
            .extend(&leading, "c1", token, 6_000, 4 * SECOND)
            .await;
    });
    at(t, 10).await;
    scene.campaign(&challenger, "c2", 5_000).await;
    at(t, 20).await;
    scene.servers[1].go_back(0);
    agent.quorum.status().await;
    agent.quorum.status().await;
    ended(extending).await;
}

/// The repair reaches a server after the leader has resigned.
pub(crate) async fn repair_after_the_resignation() {
    let scene = Scene::of(3);
    let agent = scene.agent_of(LONGEST, SECOND).await;
    let token = scene.wins_without(&agent, "c1", 6_000, &[2]).await;
    agent.handles[2].plan(To::Repair, Fate::Late(ms(500), Duration::ZERO));
    let extended = scene.extend(&agent, "c1", Some(token), 6_000, SECOND).await;
    assert_eq!(extended, Ok(()));
    sleep(ms(100)).await;
    agent.handles[0].plan(To::Resign, Fate::Lost);
    scene.resign(&agent, "c1", token).await;
    sleep(SECOND).await;
    scene.nobody_is_said_to_lead(&agent).await;
}

/// A server has missed a leader's grant.
pub(crate) async fn server_lacks_the_lease() {
    let scene = Scene::of(3);
    let agent = scene.agent_of(LONGEST, SECOND).await;
    let token = scene.wins_without(&agent, "c1", 6_000, &[2]).await;
    for _ in 0..2 {
        let extended = scene.extend(&agent, "c1", Some(token), 6_000, SECOND).await;
        assert_eq!(extended, Ok(()));
        sleep(ms(100)).await;
    }
    let leader = leader_at(&scene.servers[2]).await;
    assert_eq!(leader.as_deref(), Some("c1"), "on the third server");
}
