//! Requests that arrive late or twice, or are repeated.

use election_core::{
    election::{Denial, Error, Handover, Outcome},
    types::{Term, Token},
};
use tokio::time::{Instant, sleep};

use super::{LONGEST, PATIENCE, SECOND, Scene, candidate, grants::repeated, ms};
use crate::{
    agent::Agent,
    election,
    handle::{Fate, To},
};

/// A copy of a resignation arrives when its candidate leads again.
pub(crate) async fn resignation_comes_twice() {
    let scene = Scene::of(1);
    let agent = scene.agent_of(LONGEST, SECOND).await;
    let token = scene.wins_without(&agent, "c1", 6_000, &[]).await;
    agent.handles[0].plan(To::Resign, Fate::Copied(ms(500)));
    scene.resign(&agent, "c1", token).await;
    scene.wins_without(&agent, "c1", 6_000, &[]).await;
    scene.campaigns_while_leads(&agent, "c2", "c1").await;
}

async fn hands_over(scene: &Scene, agent: &Agent, token: Token) -> Result<(), Error> {
    let asked = Instant::now();
    let term = Term::from_millis(6_000, LONGEST).expect("in range");
    let handover = Handover {
        election: election(),
        leader: candidate("c2"),
        term,
        current_leader: Some(candidate("c1")),
        token: Some(token),
    };
    let deadline = asked + PATIENCE;
    let answer = agent.elections.handover(handover, false, deadline).await;
    if answer.is_ok() {
        scene.record.elected("c2", None, asked, asked + SECOND);
    }
    answer.map(drop)
}

/// A process hands over after another process with the same name has succeeded it.
pub(crate) async fn handover_by_who_was_followed() {
    let scene = Scene::of(1);
    let agent = scene.agent_of(LONGEST, SECOND).await;
    let token = scene.wins_without(&agent, "c1", 6_000, &[]).await;
    scene.wins_without(&agent, "c1", 6_000, &[]).await;
    let answer = hands_over(&scene, &agent, token).await;
    assert_eq!(answer, Err(Error::Denied(Denial::StaleToken)));
}

/// A leader hands over a leadership that it has given up.
pub(crate) async fn handover_of_nothing() {
    let scene = Scene::of(1);
    let agent = scene.agent_of(LONGEST, SECOND).await;
    let token = scene.wins_without(&agent, "c1", 6_000, &[]).await;
    scene.resign(&agent, "c1", token).await;
    let _ = hands_over(&scene, &agent, token).await;
    scene.nobody_is_said_to_lead(&agent).await;
}

/// A copy of a campaign arrives through another agent after its candidate has resigned.
pub(crate) async fn campaign_comes_twice() {
    let scene = Scene::of(3);
    let agent = scene.agent_of(LONGEST, SECOND).await;
    let other = scene.agent_of(LONGEST, SECOND).await;
    let won = scene.ask(&agent, "c1", 6_000, "request", SECOND).await;
    let Ok(Outcome::Elected { token, .. }) = won else {
        panic!("{won:?}");
    };
    scene.resign(&agent, "c1", token).await;
    sleep(ms(100)).await;
    let _ = scene.ask(&other, "c1", 6_000, "request", SECOND).await;
    scene.nobody_is_said_to_lead(&agent).await;
}

/// The second of the servers that elected the leader is unreachable when the request is repeated.
pub(crate) async fn retry_while_a_server_is_gone() {
    let (scene, first, second) = repeated().await;
    second.handles[1].cut(true);
    gets_the_same_token(&scene, &first, &second).await;
}

/// The second server's reply is lost when the request is repeated.
pub(crate) async fn retry_loses_a_reply() {
    let (scene, first, second) = repeated().await;
    second.handles[1].plan(To::Grant, Fate::Unanswered);
    gets_the_same_token(&scene, &first, &second).await;
}

async fn gets_the_same_token(scene: &Scene, first: &Agent, second: &Agent) {
    let token = |answer| match answer {
        Ok(Outcome::Elected { token, .. }) => Ok(token),
        other => Err(other),
    };
    let told = token(scene.ask(first, "c1", 6_000, "request", SECOND).await);
    let again = token(scene.ask(second, "c1", 6_000, "request", PATIENCE).await);
    assert!(told.is_ok(), "{told:?}");
    assert_eq!(told, again, "a request and its retry get different replies");
}
