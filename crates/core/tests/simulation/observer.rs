//! An observer of the election, through an agent's board.

use election_core::{
    board::{Cause, Event, Scope},
    election::state::Position,
    lease::State,
    types::Kind,
};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::{agent::Agent, election, record::Record};

/// Observes the election, or its kind, from the agent's start until then.
///
/// States must follow each other. After a vacancy, nobody may act as leader with the token that was held before.
pub(crate) async fn observe(agent: Agent, of_kind: bool, until: Instant, record: Record) {
    sleep_until(agent.starts).await;
    let scope = match of_kind {
        true => Scope::Kind(Kind::new(election().kind()).expect("valid"), "".into()),
        false => Scope::One(election().into()),
    };
    let mut observation = agent.board.observe(scope);
    let (mut last, mut held) = (None::<Position>, None);
    while let Ok(event) = timeout_at(until, observation.next()).await {
        let Event::State { seen, cause, .. } = event else {
            continue;
        };
        let position = seen.position();
        let follows = last.is_none_or(|last| {
            last.precedes(position) || (cause == Cause::RolledBack && last != position)
        });
        assert!(
            follows,
            "{position} was reported after {last:?} for {cause:?}:\n{}",
            record.history()
        );
        record.observed(&format!("{position} for {cause:?}"));
        match &seen.state {
            State::Held(lease) => held = Some(lease.token),
            State::Vacant(_) => {
                if let Some(token) = held {
                    record.is_over(token);
                }
            }
        }
        last = Some(position);
    }
}
