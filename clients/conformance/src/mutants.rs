//! Faults that a client may have, each with a scenario and the check of it that has to find it.

use std::{fmt, str::FromStr};

macro_rules! mutants {
    ($($(#[$doc:meta])* $name:ident: $($scenario:ident / $check:ident),+;)*) => {
        /// A fault of a client.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutant {
            $($(#[$doc])* $name,)*
        }

        /// Each mutant, and who has to find it: a scenario and its check.
        pub const FOUND_BY: &[(Mutant, &str, &str)] =
            &[$($((Mutant::$name, stringify!($scenario), stringify!($check))),+),*];

        impl FromStr for Mutant {
            type Err = String;

            fn from_str(name: &str) -> Result<Self, String> {
                match name {
                    $(stringify!($name) => Ok(Self::$name),)*
                    _ => Err(format!("there is no mutant {name}")),
                }
            }
        }
    };
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

mutants! {
    /// Counts `valid_for` from when the answer arrives.
    CountsFromReceipt: steady/validity_is_as_promised, unary_fallback/validity_is_as_promised,
        stopped_while_waiting/the_stopped_is_passed_over;
    /// Takes a term for twice as long as it was promised.
    TermsAreTwiceAsLong: black_hole/acts_alone;
    /// Does not report losses.
    NeverReportsLoss:
        black_hole/loss_is_reported_in_time,
        refused_connections/loss_is_reported_in_time,
        quorum_loss/loss_is_reported_in_time,
        client_stopped/loss_is_reported;
    /// Looks at a flag that a timer sets, which is late after a stop.
    SlowToStop:
        client_stopped/acts_within_validity,
        black_hole/acts_within_validity,
        black_hole/body_is_cancelled_in_time;
    /// Looks at no clock, but at a flag that a timer of the event loop sets.
    TimerOfTheRuntime: body_blocks/acts_within_validity, body_blocks/acts_alone;
    /// Notices the loss only when a call has returned.
    WaitsForTheCall: agent_stopped/loss_is_reported_in_time;
    /// Counts by a clock that stops during suspension.
    MonotonicClock: suspended/acts_within_validity, suspended/acts_alone;
    /// Counts by the wall clock.
    WallClock: wall_clock_jumps/nothing_is_lost;
    /// Resigns when the loss is noticed, under a body that goes on.
    ResignsUnderTheBody: body_ignores_loss/body_ends_before_resign;
    /// Resigns when the body is to end, and lets it end after that.
    ResignsFirst: steady/body_ends_before_resign;
    /// Lets the term lapse instead.
    NeverResigns: steady/resigns_at_the_end, unary_fallback/resigns_at_the_end;
    /// Goes on extending after it has resigned.
    ExtendsAfterResign:
        steady/no_extension_after_resign,
        resigns_while_cut_off/gives_up_what_was_cut_off;
    /// Gives up by name, also what another process of this name leads.
    ResignsByName: steady/tokens_are_named;
    /// Extends by name.
    ExtendsByName: steady/tokens_are_named;
    /// Waits no longer for an answer when the one before did not come in time.
    Impatient: slow_agent/nothing_is_lost, slow_agent/is_renewed;
    /// Does not extend terms.
    NeverExtends:
        steady/is_renewed,
        chaos/somebody_leads_after_all,
        chaos_of_calls/somebody_leads_after_all;
    /// Names each repetition of an attempt anew.
    NewRequestId: request_ids/request_ids_name_attempts;
    /// Names all attempts alike.
    OneRequestId: request_ids_of_calls/request_ids_name_attempts;
    /// Uses the first agent only.
    NoFailover:
        failover/fails_over_within_a_second,
        failover_of_calls/fails_over_within_a_second,
        silent_agent/nothing_is_lost,
        silent_endpoint/is_elected,
        waits_at_a_silent_agent/the_next_leads,
        observes_a_silent_agent/the_change_is_told;
    /// Takes the end of a stream for a loss.
    StreamEndIsLoss: connection_age/nothing_is_lost, resets/nothing_is_lost;
    /// Does not try again when an extension has failed.
    GivesUp: resets/is_renewed_after_the_fault;
    /// Takes an extension whose outcome is not known for a loss.
    JeopardyIsLoss: quorum_returns/nothing_is_lost;
    /// Takes the loss of one election for the loss of all.
    LosesAll: two_elections/one_loss_is_not_anothers;
    /// Does not report that a term could not be extended.
    NoJeopardy: black_hole/jeopardy_is_reported;
    /// Does not wait for the election to become vacant.
    DoesNotWait: hung_application/the_next_leads;
    /// Extends the term of an application that is not alive.
    IgnoresAlive: hung_application/stops_to_extend_when_not_alive;
    /// Does not extend the term for a body that goes on after the loss.
    NoGrace: body_ignores_loss/keeps_the_term_for_the_grace;
    /// Extends the term after the grace.
    EndlessGrace: body_ignores_loss/lets_the_term_lapse_after_the_grace;
    /// Does not lead by calls if the agent has no streams.
    StreamsOnly: unary_fallback/nothing_is_lost;
    /// Takes a refusal for a loss.
    RefusalIsLoss: refused_extension/a_refusal_is_no_loss;
    /// Takes a denial for a failure.
    IgnoresDenial: fenced/is_told_of_its_fencing;
    /// Reports an election that could not be decided as lost to another.
    UnknownIsDenied: unknown_outcome/unknown_is_not_denied;
    /// Takes each token for the present one.
    BelievesTokens: verification/tokens_are_verified;
    /// Reports a vacancy when states are uncertain.
    GuessesVacancies: quorum_loss/no_vacancy_is_guessed;
    /// Does not report that states are uncertain.
    AlwaysCertain: quorum_loss/uncertainty_is_reported;
    /// Does not report why a state is told.
    ForgetsCauses: observer/states_are_told_in_order;
}
