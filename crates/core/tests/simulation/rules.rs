//! Disables each rule of the algorithm, and verifies that the simulation detects it.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    pin::Pin,
    sync::Once,
};

use election_core::lease::rules::{Rule, weaken};
use strum::VariantArray;

use crate::{
    in_simulated_time, number, run,
    scenario::{grants, guards, lists, new_nodes, paused, repairs, requests, waits},
};

/// A scenario and its name.
type Scenario = (&'static str, fn() -> Pin<Box<dyn Future<Output = ()>>>);

macro_rules! scenario {
    ($module:ident :: $name:ident) => {{
        fn play() -> Pin<Box<dyn Future<Output = ()>>> {
            Box::pin($module::$name())
        }
        (stringify!($name), play as fn() -> _)
    }};
}

/// The scenario for a rule.
fn scenario(rule: Rule) -> Scenario {
    match rule {
        Rule::Drift => scenario!(grants::clock_is_fast),
        Rule::DriftOfTheWait => scenario!(waits::candidates_clock_is_slow),
        Rule::TermBeginsWithTheVote => scenario!(waits::votes_are_slow),
        Rule::CountsFromTheRequest => scenario!(waits::reply_is_read_late),
        Rule::HighWaterMark => scenario!(grants::agents_clock_is_slow),
        Rule::OwnLeaseGuarded => scenario!(guards::own_lease_comes_back),
        Rule::NodeDecidesGuard => scenario!(guards::caller_knows_less_than_the_server),
        Rule::WaitsAreLengthened => scenario!(guards::longer_guard_comes_late),
        Rule::WaitsAreBounded => scenario!(guards::clock_is_set_back),
        Rule::BoundsAreRegistered => scenario!(guards::bounds_are_lost),
        Rule::BoundsArePassedOn => scenario!(guards::agent_with_the_longer_guard_dies),
        Rule::ProbedBeforeVoting => scenario!(guards::new_agent_asks_at_once),
        Rule::ProbedBeforeExtending => scenario!(guards::new_agent_extends_at_once),
        Rule::ReadBeforeWriting => scenario!(guards::new_agent_looks_and_dies),
        Rule::VotesAreBounded => scenario!(paused::votes_are_counted_late),
        Rule::GrantsNotAfter => scenario!(grants::grants_are_late),
        Rule::RepairInTheSameIncarnation => {
            scenario!(repairs::repair_is_of_an_earlier_incarnation)
        }
        Rule::RepairWhenSettled => scenario!(repairs::vote_is_still_counted),
        Rule::RepairKnowsBounds => scenario!(repairs::longer_votes_are_not_known),
        Rule::RepairInForce => scenario!(repairs::repair_is_late),
        Rule::RaisingMakesNothing => scenario!(repairs::raised_lease_is_gone),
        Rule::CountedRepairsOnTop => scenario!(lists::new_list_has_a_grant_nobody_knows),
        Rule::RepairNothingOver => scenario!(repairs::repair_after_the_resignation),
        Rule::Repair => scenario!(repairs::server_lacks_the_lease),
        Rule::NewNodesAreLookedAtTwice => scenario!(new_nodes::marked_while_it_looks),
        Rule::AllNewNodesAreRecorded => scenario!(new_nodes::marked_without_an_answer),
        Rule::NewOnlyIfNoneIsRecorded => scenario!(new_nodes::one_of_three_forgets),
        Rule::Rollbacks => scenario!(grants::grants_are_not_answered),
        Rule::RollbacksName => scenario!(grants::retry_is_rolled_back),
        Rule::RolledBackByName => scenario!(grants::grants_come_twice),
        Rule::RestoresWhatWasBefore => scenario!(grants::leader_gets_no_answer),
        Rule::HighWaterMarkGoesBack => scenario!(requests::retry_while_a_server_is_gone),
        Rule::NeverShorter => scenario!(grants::shorter_extension),
        Rule::ResignationsToken => scenario!(requests::resignation_comes_twice),
        Rule::HandoversToken => scenario!(requests::handover_by_who_was_followed),
        Rule::HandoversNeedALeader => scenario!(requests::handover_of_nothing),
        Rule::RequestIdsOutliveLeases => scenario!(requests::campaign_comes_twice),
        Rule::RetriesGetTheirToken => scenario!(requests::retry_loses_a_reply),
        Rule::ForgettingIsNotVacancy => scenario!(guards::most_servers_forget),
        Rule::OtherListsStopTheAgent => scenario!(lists::lists_differ),
        Rule::JointMajorities => scenario!(lists::list_changes),
        Rule::OldListIsClosed => scenario!(lists::new_list_is_used_too_early),
    }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// The message of a failure without a rule, or with all rules; [`None`] if nothing fails.
fn failure(without: Option<Rule>, what: impl FnOnce()) -> Option<String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let hook = take_hook();
        set_hook(Box::new(move |info| {
            if !QUIET.get() {
                hook(info);
            }
        }));
    });
    QUIET.set(true);
    weaken(without);
    fastrand::seed(1);
    let outcome = catch_unwind(AssertUnwindSafe(what));
    weaken(None);
    QUIET.set(false);
    let panic = outcome.err()?;
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    Some(text.unwrap_or_else(|| "it panics".to_owned()))
}

/// The number of the first random run, among `seeds`, that fails without the rule.
fn found_at_random(rule: Rule, seeds: u64) -> Option<u64> {
    (0..seeds).find(|seed| {
        let run = || drop(in_simulated_time(run::run(*seed)));
        failure(Some(rule), run).is_some()
    })
}

const SAFETY: &str = include_str!("../../../../docs/SAFETY.md");

/// `SIM_RULE_SEEDS` is the number of random runs for each rule, in addition to its scenario.
#[test]
fn every_rule_is_missed_when_it_is_taken_away() {
    let seeds = number("SIM_RULE_SEEDS").unwrap_or(0);
    let mut wrong = Vec::new();
    println!(
        "{:<28} {:<38} {:<14} what is found",
        "without", "scenario", "random seeds"
    );
    for rule in Rule::VARIANTS.iter().copied() {
        let name = format!("{rule:?}");
        let (scenario, play) = scenario(rule);
        let play = || in_simulated_time(play());
        if let Some(why) = failure(None, play) {
            wrong.push(format!("{scenario} fails with all rules: {why}"));
        }
        let found = failure(Some(rule), play);
        let random = match found_at_random(rule, seeds) {
            Some(seed) => format!("found by {seed}"),
            None => format!("not in {seeds}"),
        };
        let what = found.as_deref().unwrap_or("NOTHING");
        let what = what.lines().next().unwrap_or_default();
        println!("{name:<28} {scenario:<38} {random:<14} {what}");
        if found.is_none() {
            wrong.push(format!("{scenario} passes without {name}"));
        }
        let mut rows = SAFETY.lines();
        if !rows.any(|row| {
            row.starts_with(&format!("| `{name}` |")) && row.contains(&format!("`{scenario}`"))
        }) {
            wrong.push(format!(
                "docs/SAFETY.md has no row of {name} and {scenario}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// An agent does not treat nodes as new that it has marked, even if all of them have forgotten it.
#[test]
fn marked_nodes_are_never_new_again() {
    let play = || in_simulated_time(new_nodes::marked_and_forgotten());
    assert_eq!(failure(None, play), None);
}

/// A roll-back does not lower the high-water mark below an acknowledged token.
#[test]
fn tokens_rise_after_the_first_try_of_a_request_is_rolled_back() {
    let play = || in_simulated_time(grants::first_try_is_rolled_back_late());
    assert_eq!(failure(None, play), None);
}

/// An extension promises the time that is certainly stored, less the duration of the replies.
#[test]
fn an_extension_is_valid_for_what_slow_replies_leave_of_it() {
    let play = || in_simulated_time(grants::extensions_are_slow());
    assert_eq!(failure(None, play), None);
}
