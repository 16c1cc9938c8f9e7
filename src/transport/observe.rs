//! Streams of the states of elections, the same over every protocol.

use std::{collections::HashMap, sync::Arc, time::Duration};

use election_core::{
    board::{Cause, Doubt, Event, MOST_ELECTIONS, Observation, Patience, Scope, Seen},
    election::state::Position,
    lease::State,
    types::{ElectionId, Invalid, Kind},
};
use futures_util::{Stream, stream};
use http::Extensions;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};

use super::stream::{Goodbye, Life, Reason, Turn};
use crate::{
    auth::{Identity, gate::Gate},
    status::{Code, Problem},
};

/// The default pause before a heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// The pauses that callers may request, in ms.
const HEARTBEATS: std::ops::RangeInclusive<i64> = 1_000..=60_000;
/// What a caller wants to observe.
#[derive(Debug, Clone, Copy)]
pub enum What<'a> {
    /// One election of the kind.
    Election(&'a str),
    /// Those of the kind whose names begin with this.
    Prefix(&'a str),
    /// All of the kind.
    Kind,
    /// All elections.
    All,
}

/// A validated request to observe.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The elections.
    pub scope: Scope,
    heartbeat: Duration,
    /// The position that the caller has; empty for none.
    after: String,
}

impl Wanted {
    /// Validates a request. `heartbeat` is in ms; 0 means 5000. `after` is a position, of one election only.
    ///
    /// # Errors
    /// [`Invalid`] names what is out of range.
    pub fn new(kind: &str, what: What<'_>, heartbeat: i64, after: &str) -> Result<Self, Invalid> {
        let scope = match what {
            What::Election(name) => Scope::One(ElectionId::new(kind, name)?.into()),
            What::Prefix(prefix) => Scope::Kind(Kind::new(kind)?, valid(prefix)?.into()),
            What::Kind => Scope::Kind(Kind::new(kind)?, "".into()),
            What::All if kind.is_empty() => Scope::All,
            What::All => {
                return Err(Invalid(
                    "`kind` is given with all_kinds: leave one of them out".to_owned(),
                ));
            }
        };
        if !after.is_empty() && !matches!(scope, Scope::One(_)) {
            return Err(Invalid(
                "`after` is given without an election: leave it out".to_owned(),
            ));
        }
        let heartbeat = match heartbeat {
            0 => HEARTBEAT,
            ms if HEARTBEATS.contains(&ms) => Duration::from_millis(ms.unsigned_abs()),
            ms => {
                return Err(Invalid(format!(
                    "`heartbeat` is {ms}: give 1000 to 60000 milliseconds, or 0 for 5000"
                )));
            }
        };
        Ok(Self {
            scope,
            heartbeat,
            after: after.to_owned(),
        })
    }
}

/// Validates a prefix of names: a prefix must itself be a valid name.
fn valid(prefix: &str) -> Result<&str, Invalid> {
    match ElectionId::new("", prefix) {
        Ok(_) => Ok(prefix),
        Err(Invalid(wrong)) => Err(Invalid(wrong.replace("`election`", "`prefix`"))),
    }
}

/// A message of a stream.
#[derive(Debug, Clone)]
pub enum Said {
    /// The state of an election.
    State {
        /// The state.
        seen: Arc<Seen>,
        /// Why it is reported.
        cause: Cause,
        /// Whether others may have led between the previously reported state and this one.
        missed: bool,
    },
    /// All present states have been sent.
    Synced,
    /// Whether the states sent last are known to be the present ones.
    Certainty(Option<Doubt>),
    /// Nothing has happened for a while.
    Heartbeat,
    /// The stream ends soon.
    Goodbye(Goodbye),
}

/// A stream.
pub struct Observing {
    gate: Gate,
    life: Life,
    wanted: Wanted,
    observation: Observation,
    /// Of all kinds: whether the caller may list a kind.
    may_list: HashMap<Box<str>, bool>,
    heartbeat: Interval,
}

impl Observing {
    /// Begins a stream for the caller of the request with these extensions.
    ///
    /// # Errors
    /// The caller may not observe these elections.
    pub fn begin(gate: &Gate, wanted: Wanted, extensions: &Extensions) -> Result<Self, Problem> {
        let life = Life::begin(extensions)?;
        let observation = gate.observe(life.caller(), wanted.scope.clone())?;
        let mut heartbeat = interval_at(Instant::now() + wanted.heartbeat, wanted.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            gate: gate.clone(),
            life,
            wanted,
            observation,
            may_list: HashMap::new(),
            heartbeat,
        })
    }

    /// Returns the messages until the stream ends. An error ends it: there are more elections than a stream covers.
    pub fn stream(self) -> impl Stream<Item = Result<Said, Problem>> + Send + 'static {
        stream::unfold(Some(self), async |state| {
            let mut observing = state?;
            match observing.next().await? {
                Ok(said) => {
                    observing.heartbeat.reset();
                    Some((Ok(said), Some(observing)))
                }
                Err(problem) => Some((Err(problem), None)),
            }
        })
    }

    async fn next(&mut self) -> Option<Result<Said, Problem>> {
        loop {
            tokio::select! {
                biased;
                turn = self.life.next() => match turn {
                    Turn::Over => return None,
                    Turn::Ends(reason) => return Some(Ok(self.goodbye(reason))),
                    Turn::Checked if self.gate.may_observe(self.life.caller(), &self.wanted.scope) => {
                        self.may_list.clear();
                    }
                    Turn::Checked => return Some(Ok(self.goodbye(Reason::Unauthenticated))),
                },
                event = self.observation.next() => match event {
                    Event::State { ref seen, .. } if !self.shows(seen) || self.has(seen) => {}
                    Event::State { seen, cause, missed } => {
                        return Some(Ok(Said::State { seen, cause, missed }));
                    }
                    Event::Synced => return Some(Ok(Said::Synced)),
                    Event::Certainty(doubt) => return Some(Ok(Said::Certainty(doubt))),
                    Event::Slow => return Some(Ok(self.goodbye(Reason::Slow))),
                    Event::TooMany => return Some(Err(too_many())),
                },
                _ = self.heartbeat.tick() => return Some(Ok(Said::Heartbeat)),
            }
        }
    }

    fn goodbye(&mut self, reason: Reason) -> Said {
        Said::Goodbye(self.life.goodbye(reason))
    }

    /// Whether the caller already has this state. Checks the first state only.
    fn has(&mut self, seen: &Seen) -> bool {
        let after = std::mem::take(&mut self.wanted.after);
        !after.is_empty() && after == seen.position().to_string()
    }

    /// Whether the caller may see the election.
    fn shows(&mut self, seen: &Seen) -> bool {
        if !matches!(self.wanted.scope, Scope::All) {
            return true;
        }
        let kind = seen.election.kind();
        if let Some(may) = self.may_list.get(kind) {
            return *may;
        }
        let may = Kind::new(kind).is_ok_and(|kind| self.gate.may_list(self.life.caller(), &kind));
        self.may_list.insert(kind.into(), may);
        may
    }
}

/// Waits until the state of the election is at another position than `read`, and returns it. At the end of the wait,
/// returns `read`.
///
/// # Errors
/// The caller may not observe the election, or the state is not known at the end of the wait.
pub async fn change(
    gate: &Gate,
    caller: &Identity,
    election: &ElectionId,
    read: State,
    patience: Patience,
) -> Result<State, Problem> {
    let scope = Scope::One(Arc::new(election.clone()));
    let mut observation = gate.observe(caller, scope)?;
    let known = Position::of(&read);
    let mut doubt = None;
    loop {
        let event = tokio::select! {
            biased;
            () = sleep_until(patience.until) => break,
            () = patience.ending.cancelled() => break,
            event = observation.next() => event,
        };
        match event {
            // A state that the board knew before may be older than `read`.
            Event::State { seen, cause, .. }
                if known.precedes(seen.position())
                    || (cause == Cause::RolledBack && known != seen.position()) =>
            {
                return Ok(seen.state(Instant::now()));
            }
            Event::Certainty(uncertain) => doubt = uncertain,
            Event::State { .. } | Event::Synced | Event::Slow | Event::TooMany => {}
        }
    }
    match doubt {
        Some(doubt) => Err(doubt.error.into()),
        None => Ok(read),
    }
}

/// Returns how long the states have not been confirmed, and why.
#[must_use]
pub fn doubt(doubt: &Doubt) -> (Duration, String) {
    (doubt.since.elapsed(), doubt.error.to_string())
}

fn too_many() -> Problem {
    Problem::new(
        Code::Overloaded,
        format!(
            "there are more than {} elections to observe: give a prefix or a kind with fewer",
            MOST_ELECTIONS
        ),
    )
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use tokio::time::{advance, sleep, timeout};

    use super::*;
    use crate::transport::{
        scene::{Scene, listed, permitting},
        stream::CHECK_EVERY,
    };

    const SECOND: Duration = Duration::from_secs(1);

    impl Scene {
        fn observe(&self, what: What<'_>) -> Observed {
            let wanted = Wanted::new("", what, 60_000, "").expect("valid");
            let observing = Observing::begin(&self.gate, wanted, &self.extensions);
            Observed(Box::pin(observing.expect("permitted").stream()))
        }
    }

    struct Observed(std::pin::Pin<Box<dyn Stream<Item = Result<Said, Problem>> + Send>>);

    impl Observed {
        /// Returns the next message besides heartbeats, within two minutes.
        async fn next(&mut self) -> String {
            let next = async {
                loop {
                    return match self.0.next().await {
                        Some(Ok(Said::Heartbeat)) => continue,
                        Some(Ok(Said::State { seen, .. })) => seen.election.path().to_string(),
                        Some(Ok(Said::Synced)) => "synced".to_owned(),
                        Some(Ok(Said::Certainty(doubt))) => format!("certain {}", doubt.is_none()),
                        Some(Ok(Said::Goodbye(goodbye))) => <&str>::from(goodbye.reason).to_owned(),
                        Some(Err(problem)) => problem.to_string(),
                        None => "end".to_owned(),
                    };
                }
            };
            timeout(120 * SECOND, next)
                .await
                .unwrap_or_else(|_| "nothing".to_owned())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_when_its_credential_or_its_right_is_gone() {
        type Change = fn(&Scene);
        let withdrawn: Change = |scene| {
            scene.tokens.send_replace(listed(&[]));
        };
        let denied: Change = |scene| {
            scene.policies.send_replace(permitting(
                r#"permit (principal, action == ElectionAgent::Action::"read", resource);"#,
            ));
        };
        for change in [withdrawn, denied] {
            let scene = Scene::new();
            let mut observed = scene.observe(What::Election("e"));
            assert_eq!(observed.next().await, "default/e");
            assert_eq!(observed.next().await, "synced");
            assert_eq!(observed.next().await, "nothing", "both are still good");
            change(&scene);
            let began = Instant::now();
            assert_eq!(observed.next().await, "UNAUTHENTICATED");
            assert!(began.elapsed() <= CHECK_EVERY, "{:?}", began.elapsed());
            assert_eq!(observed.next().await, "end");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_all_kinds_those_are_shown_that_the_caller_may_list_now() {
        let scene = Scene::new();
        let only = |kind| {
            permitting(&format!(
                r#"permit (principal, action == ElectionAgent::Action::"observe", resource);
                permit (principal, action, resource in ElectionAgent::Kind::"{kind}");"#
            ))
        };
        scene.policies.send_replace(only("one"));
        scene.elect("one", "e").await;
        scene.elect("two", "e").await;
        let mut observed = scene.observe(What::All);
        assert_eq!(observed.next().await, "one/e");
        assert_eq!(observed.next().await, "synced");
        scene.policies.send_replace(only("two"));
        advance(CHECK_EVERY).await;
        assert_eq!(observed.next().await, "nothing");
        scene.elect("one", "f").await;
        scene.elect("two", "f").await;
        assert_eq!(observed.next().await, "two/f");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_says_goodbye_once_and_goes_on_until_the_next_one_is_open() {
        for (shuts_down, reason) in [(false, "AGE"), (true, "SHUTDOWN")] {
            let scene = Scene::new();
            let mut observed = scene.observe(What::Kind);
            assert_eq!(observed.next().await, "synced");
            if shuts_down {
                scene.peer.shutdown.cancel();
            }
            scene.peer.ending.cancel();
            assert_eq!(observed.next().await, reason);
            scene.elect("", "e").await;
            assert_eq!(observed.next().await, "default/e");
            assert_eq!(observed.next().await, "end");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_is_told_so_at_last() {
        let scene = Scene::new();
        let mut observed = scene.observe(What::Kind);
        assert_eq!(observed.next().await, "synced");
        for name in ["e", "f"] {
            scene.elect("", name).await;
            // The board is notified and reads the election.
            sleep(40 * SECOND).await;
        }
        assert_eq!(observed.next().await, "SLOW");
        assert_eq!(observed.next().await, "end");
    }
}
