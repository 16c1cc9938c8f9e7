//! Campaigns that waited for a vacancy.

use std::time::Duration;

use election_core::{
    election::{Campaign, Outcome},
    types::{Term, Value},
};
use tokio::time::{Instant, sleep};

use super::{LONGEST, PATIENCE, SECOND, Scene, candidate, ms};
use crate::{
    agent::Agent,
    candidate::{counted_from, waited},
    election,
    handle::{Fate, To},
};

/// A candidate: how long it waits, how fast its clock is, and how late it reads the reply.
struct Waiter {
    wait: Duration,
    clock: f64,
    late: Duration,
}

impl Waiter {
    /// Is elected after its wait.
    async fn wins(&self, scene: &Scene, agent: &Agent, name: &str) {
        let asked = Instant::now();
        let request = Campaign {
            election: election(),
            candidate: candidate(name),
            term: Term::from_millis(6_000, agent.longest).expect("in range"),
            value: Value::default(),
            request_id: None,
            wait: None,
        };
        sleep(self.wait).await;
        let request = waited(request, asked);
        let deadline = Instant::now() + PATIENCE;
        let answer = agent.elections.campaign(&request, deadline).await;
        let Ok(Outcome::Elected {
            token,
            valid_for,
            provisional: true,
            ..
        }) = answer
        else {
            panic!("{answer:?}");
        };
        sleep(self.late).await;
        let until = counted_from(asked) + valid_for.div_f64(self.clock);
        scene.record.elected(name, Some(token), asked, until);
    }
}

/// The candidate's clock is as slow as the algorithm permits, and it waits for long.
pub(crate) async fn candidates_clock_is_slow() {
    let scene = Scene::of(1);
    let agent = scene.agent_of(LONGEST, SECOND).await;
    let waiter = Waiter {
        wait: 30 * SECOND,
        clock: 0.99,
        late: Duration::ZERO,
    };
    waiter.wins(&scene, &agent, "c1").await;
    scene.campaigns_while_leads(&agent, "c2", "c1").await;
}

/// The replies to the grants take long.
pub(crate) async fn votes_are_slow() {
    let scene = Scene::of(1);
    let agent = scene.agent_of(LONGEST, SECOND).await;
    let waiter = Waiter {
        wait: SECOND,
        clock: 1.0,
        late: Duration::ZERO,
    };
    agent.handles[0].plan(To::Grant, Fate::Late(ms(1), ms(500)));
    waiter.wins(&scene, &agent, "c1").await;
    scene.campaigns_while_leads(&agent, "c2", "c1").await;
}

/// The candidate stands still while the reply arrives.
pub(crate) async fn reply_is_read_late() {
    let scene = Scene::of(1);
    let agent = scene.agent_of(LONGEST, SECOND).await;
    let waiter = Waiter {
        wait: SECOND,
        clock: 1.0,
        late: ms(300),
    };
    waiter.wins(&scene, &agent, "c1").await;
    scene.campaigns_while_leads(&agent, "c2", "c1").await;
}
