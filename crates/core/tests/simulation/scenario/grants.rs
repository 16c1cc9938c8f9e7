//! Grants, and how they are rolled back.

use std::time::Duration;

use election_core::{
    election::{Error, Outcome, Retry},
    lease::Extend,
    types::Term,
};
use tokio::time::{Instant, sleep};

use super::{LONGEST, SECOND, Scene, candidate, ms};
use crate::{
    agent::{Agent, Plan},
    election,
    handle::{Fate, To},
};

/// A term that outlives every scenario.
const MINUTE: Duration = Duration::from_secs(60);

/// A server's clock is as fast as the algorithm permits.
pub(crate) async fn clock_is_fast() {
    let scene = Scene::with_clocks(1, 0.01);
    let agent = scene.agent_of(LONGEST, SECOND).await;
    scene.wins_without(&agent, "c1", 6_000, &[]).await;
    scene.campaigns_while_leads(&agent, "c2", "c1").await;
}

/// The second agent's clock is half an hour slow.
pub(crate) async fn agents_clock_is_slow() {
    let scene = Scene::of(1);
    let agent = scene.agent_of(LONGEST, SECOND).await;
    let plan = Plan {
        off: -1_800,
        ..Plan::new(LONGEST, SECOND)
    };
    let slow = scene.agent(&plan).await;
    let token = scene.wins_without(&agent, "c1", 6_000, &[]).await;
    scene.resign(&agent, "c1", token).await;
    scene.wins_without(&slow, "c2", 6_000, &[]).await;
}

/// An extension asks for a shorter term than the current one.
pub(crate) async fn shorter_extension() {
    let scene = Scene::of(1);
    let agent = scene.agent_of(LONGEST, SECOND).await;
    let token = scene.wins_without(&agent, "c1", 6_000, &[]).await;
    let extended = scene.extend(&agent, "c1", Some(token), 1_050, SECOND).await;
    assert_eq!(extended, Ok(()));
    scene.campaigns_while_leads(&agent, "c2", "c1").await;
}

/// A campaign that gets no reply, and its leftovers.
async fn no_answer(vote: Duration, fate: Fate) {
    let scene = Scene::of(3);
    let agent = scene.agent_of(MINUTE, vote).await;
    for handle in &agent.handles {
        handle.plan(To::Grant, fate);
    }
    let patience = vote / 2;
    let answer = scene.ask(&agent, "c1", 60_000, "", patience).await;
    assert!(answer.is_err(), "{answer:?}");
    sleep(10 * SECOND).await;
    scene.nobody_is_said_to_lead(&agent).await;
}

pub(crate) async fn grants_are_late() {
    no_answer(SECOND, Fate::Late(8 * SECOND, Duration::ZERO)).await;
}

pub(crate) async fn grants_are_not_answered() {
    no_answer(SECOND, Fate::Unanswered).await;
}

pub(crate) async fn grants_come_twice() {
    no_answer(2 * SECOND, Fate::CopiedUnanswered(ms(1_800))).await;
}

/// A leader campaigns again and gets no reply. It leads by its earlier grant.
pub(crate) async fn leader_gets_no_answer() {
    let scene = Scene::of(3);
    let agent = scene.agent_of(LONGEST, SECOND).await;
    scene.wins_without(&agent, "c1", 6_000, &[]).await;
    for handle in &agent.handles {
        handle.plan(To::Grant, Fate::Unanswered);
    }
    let again = scene.ask(&agent, "c1", 6_000, "", ms(500)).await;
    assert!(again.is_err(), "{again:?}");
    scene.campaigns_while_leads(&agent, "c2", "c1").await;
}

/// A candidate is elected by the first two of three servers. Then its request is repeated through another
/// agent, which finds the grant on the first.
pub(super) async fn repeated() -> (Scene, Agent, Agent) {
    let scene = Scene::of(3);
    let first = scene.agent_of(LONGEST, SECOND).await;
    // The second agent's tokens are larger.
    let plan = Plan {
        off: 60,
        ..Plan::new(LONGEST, SECOND)
    };
    let second = scene.agent(&plan).await;
    first.handles[2].plan(To::Grant, Fate::Lost);
    (scene, first, second)
}

/// The retry's own renewal is rolled back, but not the acknowledged grant.
pub(crate) async fn retry_is_rolled_back() {
    let (scene, first, second) = repeated().await;
    let won = scene.ask(&first, "c1", 6_000, "request", SECOND).await;
    assert!(won.is_ok(), "{won:?}");
    second.handles[1].plan(To::Grant, Fate::Unanswered);
    second.handles[0].plan(To::Grant, Fate::Quick);
    second.handles[2].plan(To::Grant, Fate::Quick);
    for handle in &second.handles {
        handle.plan(To::Grant, Fate::Unanswered);
    }
    let again = scene.ask(&second, "c1", 6_000, "request", ms(600)).await;
    assert!(again.is_err(), "{again:?}");
    sleep(ms(200)).await;
    scene.campaigns_while_leads(&first, "c2", "c1").await;
}

/// The first try of a request is rolled back after its retry was answered: its token is acknowledged.
pub(crate) async fn first_try_is_rolled_back_late() {
    let scene = Scene::of(1);
    let first = scene.agent_of(LONGEST, SECOND).await;
    let second = scene.agent_of(LONGEST, SECOND).await;
    let plan = Plan {
        off: -60,
        ..Plan::new(LONGEST, SECOND)
    };
    let slow = scene.agent(&plan).await;
    first.handles[0].plan(To::Grant, Fate::Unanswered);
    first.handles[0].plan(To::RollBack, Fate::Late(ms(300), Duration::ZERO));
    let won = scene.ask(&first, "c1", 1_500, "request", ms(500)).await;
    assert!(won.is_err(), "{won:?}");
    let won = scene.ask(&second, "c1", 1_500, "request", SECOND).await;
    let Ok(Outcome::Elected { token, .. }) = won else {
        panic!("{won:?}");
    };
    sleep(2 * SECOND).await;
    let next = scene.wins_without(&slow, "c2", 1_500, &[]).await;
    assert!(next > token, "{next} after {token}");
}

/// Extensions whose replies are slow, or arrive only for a retry.
pub(crate) async fn extensions_are_slow() {
    let scene = Scene::of(3);
    let agent = scene.agent_of(LONGEST, SECOND).await;
    let token = scene.wins_without(&agent, "c1", 6_000, &[]).await;
    let extend = async |term, retries, fate: Option<Fate>| {
        for handle in fate.iter().flat_map(|_| &agent.handles) {
            handle.plan(To::Extend, fate.expect("there is one"));
        }
        let request = Extend {
            election: election(),
            leader: candidate("c1"),
            token: Some(token),
            term: Term::from_millis(term, LONGEST).expect("in range"),
        };
        let retry = Retry::new(retries, 50).expect("in range");
        let deadline = Instant::now() + 4 * SECOND;
        let valid_for = agent.elections.extend(request, retry, deadline).await;
        valid_for.map(|valid_for| valid_for.as_millis())
    };
    // The drift is 1 % of the term and 2 ms. The network takes 0.1 ms each way, and timers are exact to the ms.
    assert_eq!(extend(6_000, 0, None).await, Ok(6_000 - 62 - 2));
    let slow = Some(Fate::Late(ms(100), ms(200)));
    assert_eq!(extend(6_000, 0, slow).await, Ok(6_000 - 62 - 300));
    // The retry begins a second later. The time counts from before the first try, so it ends that much earlier.
    assert_eq!(extend(6_000, 1, Some(Fate::Lost)).await, Ok(6_000 - 62 - 2));
    // Nothing is left when the reply arrives.
    for (retries, fate) in [(0, Fate::Late(ms(300), ms(300))), (1, Fate::Lost)] {
        let late = extend(1_050, retries, Some(fate)).await;
        assert!(matches!(late, Err(Error::Unavailable { .. })), "{late:?}");
    }
}
