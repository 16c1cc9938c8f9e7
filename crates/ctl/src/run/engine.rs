//! Decides what a supervisor does when, without I/O: events in, actions out.
//!
//! ```text
//! valid_until - 0.5 s - grace    SIGTERM, unless the term has been extended
//! valid_until - 0.5 s            SIGKILL: the deadline, by which no process of the group is left to act
//! valid_until                    another candidate may lead
//! ```

use std::time::Duration;

use super::clock::Instant;

/// How long before the end of the term the group is killed.
pub(crate) const MARGIN: Duration = Duration::from_millis(500);

/// The longest time a group is given after its leadership was lost to another.
const LOSS_GRACE: Duration = Duration::from_secs(1);

/// Why a group was ended that would have gone on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The term could not be extended in time.
    NotExtended,
    /// The agent has reported that another leads, or that the term is over.
    Lost(String),
    /// It was asked to end, and asked again.
    Asked,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The term is now valid until this instant.
    Extended(Instant),
    /// The leadership is lost, as the agent reports.
    Lost(String),
    /// SIGTERM has come.
    Terminate,
    /// The group's leader, the command itself, has ended.
    LeaderEnded,
    /// Time has passed.
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Have the deadman kill the group at this instant.
    Publish(Instant),
    /// Send SIGTERM, and SIGCONT so that stopped processes receive it.
    Terminate,
    /// Send SIGKILL to the whole group. Nothing follows it.
    Kill,
}

/// The state of a group under a term.
#[derive(Debug)]
pub(crate) struct Engine {
    grace: Duration,
    valid_until: Instant,
    /// When those that were asked to end are killed.
    kill_at: Option<Instant>,
    cause: Option<Cause>,
    asked: bool,
    leader_ended: bool,
    killed: bool,
}

impl Engine {
    pub(crate) fn new(grace: Duration, valid_until: Instant) -> Self {
        Self {
            grace,
            valid_until,
            kill_at: None,
            cause: None,
            asked: false,
            leader_ended: false,
            killed: false,
        }
    }

    /// The instant by which the group is killed, whatever comes.
    pub(crate) fn deadline(&self) -> Instant {
        let end = self.valid_until - MARGIN;
        self.kill_at.map_or(end, |at| at.min(end))
    }

    /// When the next [`Event::Tick`] is due.
    pub(crate) fn wake(&self) -> Instant {
        if self.kill_at.is_some() || self.leader_ended {
            self.deadline()
        } else {
            self.deadline() - self.grace
        }
    }

    /// Why the group was ended, if it did not end by itself.
    pub(crate) fn cause(&self) -> Option<&Cause> {
        self.cause.as_ref()
    }

    pub(crate) fn killed(&self) -> bool {
        self.killed
    }

    pub(crate) fn on(&mut self, event: Event, now: Instant) -> Vec<Action> {
        if self.killed {
            return Vec::new();
        }
        match event {
            // Seen too late, as by a process that was stopped: the deadman has killed the group, or is about to.
            Event::Extended(_) if now >= self.deadline() => self.kill(Cause::NotExtended),
            Event::Extended(until) => {
                // A promise that lasts longer still holds.
                self.valid_until = self.valid_until.max(until);
                vec![Action::Publish(self.deadline())]
            }
            Event::Lost(why) => {
                let grace = self.grace.min(LOSS_GRACE);
                self.end(Cause::Lost(why), now + grace)
            }
            Event::Terminate if self.asked => self.kill(Cause::Asked),
            Event::Terminate => {
                self.asked = true;
                Vec::new()
            }
            Event::LeaderEnded if self.leader_ended => Vec::new(),
            Event::LeaderEnded => {
                self.leader_ended = true;
                if self.kill_at.is_some() {
                    return Vec::new();
                }
                self.kill_at = Some(now + self.grace);
                vec![Action::Publish(self.deadline()), Action::Terminate]
            }
            Event::Tick if now >= self.deadline() => self.kill(Cause::NotExtended),
            Event::Tick if now >= self.wake() => {
                self.end(Cause::NotExtended, self.valid_until - MARGIN)
            }
            Event::Tick => Vec::new(),
        }
    }

    /// Asks the group to end, and has it killed at this instant; never later than what was decided before.
    fn end(&mut self, cause: Cause, at: Instant) -> Vec<Action> {
        let first = self.kill_at.is_none();
        self.kill_at = Some(self.kill_at.map_or(at, |before| before.min(at)));
        // A command that has ended by itself has its own exit code, whatever became of what it left behind.
        if self.cause.is_none() && !self.leader_ended {
            self.cause = Some(cause);
        }
        let mut actions = vec![Action::Publish(self.deadline())];
        if first {
            actions.push(Action::Terminate);
        }
        actions
    }

    fn kill(&mut self, cause: Cause) -> Vec<Action> {
        self.killed = true;
        if self.cause.is_none() && !self.leader_ended {
            self.cause = Some(cause);
        }
        vec![Action::Kill]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(5);

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    fn engine() -> Engine {
        Engine::new(GRACE, at(15_000))
    }

    fn lost() -> Event {
        Event::Lost("HELD_BY_OTHER".to_owned())
    }

    #[test]
    fn a_term_that_is_not_extended_ends_in_two_steps() {
        let mut engine = engine();
        assert_eq!(engine.wake(), at(9_500));
        assert_eq!(engine.on(Event::Tick, at(9_499)), []);
        assert_eq!(
            engine.on(Event::Tick, at(9_500)),
            [Action::Publish(at(14_500)), Action::Terminate]
        );
        assert_eq!(engine.wake(), at(14_500));
        assert_eq!(engine.on(Event::Tick, at(14_499)), []);
        assert_eq!(engine.on(Event::Tick, at(14_500)), [Action::Kill]);
        assert_eq!(engine.cause(), Some(&Cause::NotExtended));
        assert_eq!(engine.on(Event::Tick, at(14_501)), []);
    }

    #[test]
    fn an_extension_moves_both_steps() {
        let mut engine = engine();
        assert_eq!(
            engine.on(Event::Extended(at(20_000)), at(5_000)),
            [Action::Publish(at(19_500))]
        );
        assert_eq!(engine.wake(), at(14_500));
        assert_eq!(
            engine.on(Event::Extended(at(18_000)), at(5_001)),
            [Action::Publish(at(19_500))],
            "an earlier promise holds"
        );
    }

    #[test]
    fn an_extension_does_not_save_a_group_that_was_asked_to_end() {
        let mut engine = engine();
        engine.on(Event::Tick, at(9_500));
        assert_eq!(
            engine.on(Event::Extended(at(25_000)), at(10_000)),
            [Action::Publish(at(14_500))]
        );
        assert_eq!(engine.on(Event::Tick, at(14_500)), [Action::Kill]);
    }

    #[test]
    fn an_extension_that_is_seen_after_the_deadline_saves_nothing() {
        let mut engine = engine();
        assert_eq!(
            engine.on(Event::Extended(at(25_000)), at(14_500)),
            [Action::Kill]
        );
        assert_eq!(engine.cause(), Some(&Cause::NotExtended));
        assert_eq!(engine.deadline(), at(14_500));
    }

    #[test]
    fn a_loss_leaves_a_second_and_never_more_than_the_term() {
        let mut early = engine();
        assert_eq!(
            early.on(lost(), at(1_000)),
            [Action::Publish(at(2_000)), Action::Terminate]
        );
        assert_eq!(early.on(Event::Tick, at(2_000)), [Action::Kill]);

        let mut late = engine();
        assert_eq!(
            late.on(lost(), at(14_000)),
            [Action::Publish(at(14_500)), Action::Terminate]
        );

        let mut short = Engine::new(Duration::from_millis(200), at(15_000));
        assert_eq!(
            short.on(lost(), at(1_000)),
            [Action::Publish(at(1_200)), Action::Terminate]
        );
    }

    #[test]
    fn a_loss_hastens_what_the_clock_has_begun_without_a_second_term_signal() {
        let mut engine = engine();
        engine.on(Event::Tick, at(9_500));
        assert_eq!(engine.on(lost(), at(10_000)), [Action::Publish(at(11_000))]);
        assert_eq!(engine.on(Event::Tick, at(11_000)), [Action::Kill]);
    }

    #[test]
    fn what_outlives_its_leader_has_the_grace_and_never_more_than_the_term() {
        let mut engine = engine();
        assert_eq!(
            engine.on(Event::LeaderEnded, at(1_000)),
            [Action::Publish(at(6_000)), Action::Terminate]
        );
        assert_eq!(engine.on(Event::LeaderEnded, at(1_001)), []);
        assert_eq!(engine.on(Event::Tick, at(6_000)), [Action::Kill]);
        assert_eq!(engine.cause(), None, "the command ended by itself");

        let mut late = self::engine();
        late.on(Event::LeaderEnded, at(13_000));
        assert_eq!(late.wake(), at(14_500));
    }

    #[test]
    fn the_second_request_to_end_kills() {
        let mut engine = engine();
        assert_eq!(engine.on(Event::Terminate, at(1)), []);
        assert_eq!(engine.wake(), at(9_500), "the term is extended meanwhile");
        assert_eq!(engine.on(Event::Terminate, at(2)), [Action::Kill]);
        assert_eq!(engine.cause(), Some(&Cause::Asked));
    }

    #[test]
    fn a_machine_that_was_suspended_past_the_deadline_kills_at_once() {
        let mut engine = engine();
        assert_eq!(engine.on(Event::Tick, at(60_000)), [Action::Kill]);
        assert_eq!(engine.cause(), Some(&Cause::NotExtended));
    }
}
