//! An agent that pauses while its vote is counted.

use std::{sync::Arc, time::Duration};

use election_core::{
    lease::{
        Bounds, Grant, Incarnation, LeaseNode as _, Replaces,
        policy::{
            Call, Electorate, Event, Machine as _, Nodes, Reply, Step, View, claim::Claiming,
        },
        quorum::{Claim, Claimed},
    },
    types::{ElectionId, Term, Token, Value},
};
use tokio::time::Instant;

use super::{SECOND, Scene, at, candidate, ended, ms};
use crate::{
    election,
    handle::{Fate, To},
};

const VOTE: Duration = Duration::from_secs(2);
/// More than twice the duration of the vote, which is subtracted from the candidate's term.
const LONGEST: Duration = Duration::from_secs(12);

/// The view of the paused agent.
struct Knows;

impl View for Knows {
    fn electorate(&self) -> Electorate {
        Electorate::of(Nodes::first(3))
    }
    fn bounds(&self) -> Bounds {
        Bounds {
            guard: Some(LONGEST),
            vote: VOTE,
        }
    }
    fn longest(&self) -> Bounds {
        self.bounds()
    }
    fn token(&self, _: Option<Token>) -> Option<Token> {
        Token::new(1_900_000_000_000_000)
    }
    fn unix_millis(&self) -> u64 {
        0
    }
    fn random(&self) -> u64 {
        7
    }
    fn incarnation(&self, _: usize, _: &ElectionId) -> Option<Incarnation> {
        None
    }
    fn probed_since(&self, _: usize, _: Instant) -> bool {
        true
    }
}

/// One server votes at once, restarts, and is repaired when the vote no longer counts. The clock of another
/// was set back after the agent's request, so that it votes late. The agent reads both replies when it
/// resumes.
pub(crate) async fn votes_are_counted_late() {
    let scene = Scene::of(3);
    let agent = scene.agent_of(LONGEST, VOTE).await;
    let pausing = scene.agent_of(LONGEST, VOTE).await;
    scene.servers[1].save();
    scene.servers[2].set_clock(-3_600_000);
    agent.quorum.status().await;
    agent.handles[1].cut(true);
    let token = scene.wins_without(&agent, "c1", 1_100, &[]).await;
    let t = Instant::now();

    let claim = Claim {
        election: election(),
        candidate: candidate("c2"),
        term: Term::from_millis(12_000, LONGEST).expect("in range"),
        value: Value::default(),
        waited_since: None,
        request_id: None,
        replaces: Replaces::Own,
    };
    let mut machine = Claiming::new(claim, t, t + 5 * SECOND);
    let mut steps = Vec::new();
    machine.on(Event::Begin, t, &Knows, &mut steps);
    let grant = steps.iter().find_map(|step| match step {
        Step::Ask {
            tag,
            call: Call::Grant(grant),
            ..
        } => Some((*tag, Arc::clone(grant))),
        _ => None,
    });
    let (tag, grant) = grant.expect("it requests votes");
    let late = Fate::Late(ms(3_450), Duration::ZERO);
    pausing.handles[2].plan(To::Grant, late);
    let ask = |node: usize, grant: Arc<Grant>| {
        let handle = pausing.handles[node].clone();
        tokio::spawn(async move { handle.grant(&grant).await })
    };
    let votes = [(1, ask(1, Arc::clone(&grant))), (2, ask(2, grant))];

    at(t, 50).await;
    scene.servers[1].go_back(0);
    agent.handles[1].cut(false);
    agent.quorum.status().await;
    agent.quorum.status().await;
    let extends = async |after| {
        at(t, after).await;
        let token = Some(token);
        let _ = scene.extend(&agent, "c1", token, 1_100, ms(400)).await;
    };
    for after in [400, 900, 1_400, 1_900, 2_300] {
        extends(after).await;
    }
    agent.handles[2].plan(To::Extend, Fate::Lost);
    extends(3_200).await;

    at(t, 3_600).await;
    let mut steps = Vec::new();
    for (node, vote) in votes {
        let reply = ended(vote).await.map(Reply::Grant);
        let event = Event::Replied { tag, node, reply };
        machine.on(event, Instant::now(), &Knows, &mut steps);
    }
    for step in steps {
        if let Step::Answer(Ok(Claimed::Won { token, valid_for })) = step {
            scene.record.elected("c2", Some(token), t, t + valid_for);
        }
    }
}
