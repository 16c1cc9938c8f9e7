//! The algorithm of `src/lease`, small enough to try every order of events: three nodes, two agents, two
//! candidates that want one election, and a third one that asks when all others have stopped.
//!
//! A newcomer reads [`setting`] (what a check chooses), [`node`] (what a node does), [`agents`] (what an
//! agent makes of the replies), then [`election`] (what may happen, and what must hold). The checks below
//! say what each covers, in how many states and steps from the first one; `cargo test --test model --
//! --nocapture` prints that, and each counterexample. `make test-model` checks more, and takes minutes.
//!
//! # What is modelled
//! - A node's operations `grant`, `extend`, `heal`, `withdraw` and `mark`, rule by rule, with the attempt
//!   that a lease carries and the lease it goes back to; and an agent's votes, extensions, raising of
//!   leases, heals, withdrawals and marking.
//! - Time in whole ticks; everything stored counts down, so that states do not depend on when they are
//!   reached. A leader counts its time from before it asked, a node from when it was asked.
//! - A network that is a set of requests: each is executed at any time, in any order, or never. A reply is
//!   heard as soon as the request is executed, or lost: hearing it later only makes a leader know later
//!   what lets it lead no longer.
//! - Faults: a reply that is lost, a request that is executed twice or when its sender has stopped waiting,
//!   a caller that goes away before its vote is decided.
//! - Restarts that wipe a node's memory or set it back to an earlier state of it, and probes right after.
//! - Tokens from clocks that agree to the tick, or without any clock.
//!
//! # What is not
//! Resignations and handovers; terms of different lengths; clocks that drift; floors that lapse; more than
//! one operation of an agent at a time; leases that count for their full term after a restart (a database
//! file); an agent's retries but those after which a vote differs (new nodes, and a request id that some
//! nodes know); how long a withdrawal is repeated: it arrives some time, or never.
//!
//! # What is checked
//! Every state that the budget of a check allows, breadth first, so that a counterexample is a shortest
//! one. Each rule is also taken away, to see that the checker then finds what the rule prevents. States
//! that differ in the nodes' order are one state, and names are given in the order of their first use.

#![expect(
    clippy::expect_used,
    reason = "a check that does not find what it should find says so"
)]

mod agents;
mod election;
mod node;
mod setting;
mod state;

use std::{collections::BTreeSet, time::Instant};

use stateright::{Checker as _, Expectation, HasDiscoveries, Model as _};

use election::{CLEAN, EXCLUSION, Election, Look, RISING, WINNABLE};
use setting::{Budget, Guard, RULES, Rules, Start, WORLD, Withdrawal, World, campaigns};

const LED: World = World {
    start: Start::Led,
    ..WORLD
};
const NEW: World = World {
    start: Start::New,
    ..WORLD
};
const NO_CLOCKS: World = World {
    clocks: false,
    ..WORLD
};
const REQUEST_IDS: World = World {
    request_ids: true,
    ..WORLD
};
const NO_TOKENS: World = World {
    tokens_given: false,
    ..WORLD
};
/// How many steps a search for a counterexample may try.
const SEARCH: usize = 40_000_000;

fn election(world: World, budget: Budget) -> Election {
    Election {
        rules: RULES,
        world,
        budget,
        look: Look::Leaders,
    }
}

fn remains(world: World, budget: Budget) -> Election {
    Election {
        look: Look::Remains,
        ..election(world, budget)
    }
}

/// Tries everything that the budget allows: what must hold holds, and what is to be seen is seen.
fn check(election: Election) {
    let begun = Instant::now();
    // One thread, so that the search is truly breadth first; tests run beside each other anyway.
    let checker = election.checker().threads(1);
    let checker = checker
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    for property in election.properties() {
        let found = checker.discovery(property.name);
        match (property.expectation, found) {
            (Expectation::Sometimes, found) => {
                assert!(found.is_some(), "never seen: {}", property.name);
            }
            (_, Some(path)) => {
                let steps = path.into_actions();
                panic!("not so: {}, after {steps:#?}", property.name);
            }
            (_, None) => {}
        }
    }
    assert!(checker.is_done(), "not every state was tried");
    println!(
        "{} states, {} steps, depth {}, {:.1?}: {:?} {:?}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        begun.elapsed(),
        election.world,
        election.budget,
    );
}

/// Expects that a property does not hold under these rules, and prints how.
fn find(property: &'static str, rules: Rules, election: Election) {
    let begun = Instant::now();
    let election = Election { rules, ..election };
    let checker = election.checker().threads(1).target_state_count(SEARCH);
    let found = HasDiscoveries::AnyOf(BTreeSet::from([property]));
    let checker = checker.finish_when(found).spawn_bfs().join();
    let path = checker.discovery(property).expect("a counterexample");
    println!(
        "{} states, {} steps, {:.1?}, not so: {property}, after",
        checker.unique_state_count(),
        checker.state_count(),
        begun.elapsed(),
    );
    for action in path.into_actions() {
        println!("  {action:?}");
    }
}

/// Three campaigns that meet each other in every way.
/// 39,188 states, depth 16.
#[test]
fn of_candidates_that_campaign_at_once_one_leads_and_tokens_rise() {
    check(election(WORLD, campaigns(3)));
}

/// A reply is lost, a request comes twice or late, a caller goes away: any two of these; or less, but
/// tokens do not come from clocks.
/// 18,730 states, depth 12; 38,287, depth 16; 5,108, depth 12.
#[test]
fn nothing_that_the_network_or_the_callers_do_makes_two_leaders() {
    check(election(WORLD, campaigns(2).faults(2)));
    check(election(NO_CLOCKS, campaigns(3)));
    check(election(NO_CLOCKS, campaigns(2).faults(1)));
}

/// Campaigns with a request id that are repeated while the first try is on its way, or withdrawn.
/// 33,238 states, depth 20; 21,593, depth 21.
#[test]
fn a_retry_finds_the_first_try_and_is_not_withdrawn_with_it() {
    check(election(REQUEST_IDS, campaigns(2).faults(1)));
    let short_votes = World {
        vote: 1,
        ..REQUEST_IDS
    };
    check(election(short_votes, campaigns(3)));
}

/// Two restarts, of two nodes or of one, each with its memory wiped or set back to any earlier state.
/// 152,918 states, depth 15; 51,564, depth 13.
#[test]
fn nodes_that_forget_or_are_set_back_make_no_second_leader() {
    check(election(WORLD, campaigns(2).restarts(2).snapshots(2)));
    check(election(WORLD, campaigns(2).restarts(1).faults(1)));
}

/// Leaders that extend, and are raised and healed, while a node restarts and others campaign; a vote
/// lasts for half a term, so that a node that abstains may be healed.
/// 318,908 states, depth 18; 492,617, depth 20.
#[test]
fn extensions_and_heals_make_no_second_leader() {
    check(election(WORLD, campaigns(2).extensions(1).restarts(1)));
    let budget = campaigns(1).extensions(2).restarts(1);
    check(election(World { vote: 1, ..LED }, budget));
}

/// A candidate extends although it does not know whether it leads.
/// 61,894 states, depth 18; 24,830, depth 14.
#[test]
fn extensions_without_a_token_make_no_second_leader() {
    check(election(NO_TOKENS, campaigns(2).extensions(1)));
    let led = World {
        start: Start::Led,
        ..NO_TOKENS
    };
    check(election(led, campaigns(1).extensions(1).faults(1)));
}

/// Nodes that nobody has ever seen a marker of; one of them restarts.
/// 295,967 states, depth 25.
#[test]
fn a_first_start_makes_no_second_leader() {
    check(election(NEW, campaigns(2).restarts(1)));
}

/// All nodes and all agents forget everything at once.
/// 6,031 states, depth 16.
#[test]
fn a_strict_guard_outlasts_the_loss_of_everything() {
    let election = election(LED, campaigns(2).outages(1));
    let rules = Rules {
        guard: Guard::Strict,
        ..RULES
    };
    check(Election { rules, ..election });
}

/// From every state that faults, restarts and extensions lead to.
/// 17,928 states, depth 15; 37,001, depth 16; 40,035, depth 18; 419, depth 17.
#[test]
fn a_vacant_election_can_always_be_won() {
    check(remains(WORLD, campaigns(2).faults(1)));
    check(remains(WORLD, campaigns(2).restarts(1)));
    check(remains(WORLD, campaigns(2).extensions(1)));
    check(remains(NEW, campaigns(1).faults(1)));
}

/// What the checks above cover, with one or two more of each.
/// Up to 4.5 million states each, depth 16 to 26.
#[cfg(feature = "deep-model")]
#[test]
fn what_holds_holds_in_larger_worlds() {
    check(election(NO_CLOCKS, campaigns(3).faults(1)));
    check(election(WORLD, campaigns(3).faults(2)));
    check(election(WORLD, campaigns(2).extensions(1).restarts(2)));
    check(election(NEW, campaigns(2).faults(1).restarts(1)));
    check(election(LED, campaigns(1).extensions(2).restarts(2)));
    check(election(LED, campaigns(2).extensions(1).restarts(1)));
    let finer = World {
        term: 3,
        vote: 2,
        ..LED
    };
    check(election(finer, campaigns(1).extensions(2).restarts(1)));
    let short_votes = World { vote: 1, ..LED };
    check(election(
        short_votes,
        campaigns(1).extensions(3).restarts(1),
    ));
    check(election(REQUEST_IDS, campaigns(2).faults(2)));
    check(election(NO_TOKENS, campaigns(2).extensions(1).faults(1)));
    check(remains(NEW, campaigns(2).faults(1)));
}

/// A node forgets the leader, and votes again.
#[test]
fn without_the_guard_there_are_two_leaders() {
    let rules = Rules {
        guard: Guard::Off,
        ..RULES
    };
    find(EXCLUSION, rules, election(WORLD, campaigns(2).restarts(1)));
}

/// An agent that knows no clock and has seen no token begins at 1 again.
#[test]
fn without_the_floor_tokens_fall() {
    let rules = Rules {
        floor: false,
        ..RULES
    };
    find(RISING, rules, election(NO_CLOCKS, campaigns(3)));
}

/// Two votes split the nodes, and what they were granted stays.
#[test]
fn without_withdrawals_votes_leave_leases_behind() {
    let rules = Rules {
        withdrawal: Withdrawal::None,
        ..RULES
    };
    find(CLEAN, rules, remains(WORLD, campaigns(2)));
}

/// A retry was told that it leads by the leases that the first try's withdrawal then deletes.
#[test]
fn withdrawals_by_candidate_and_token_depose_a_leader() {
    let rules = Rules {
        withdrawal: Withdrawal::OfToken,
        ..RULES
    };
    let world = World {
        vote: 1,
        ..REQUEST_IDS
    };
    find(EXCLUSION, rules, election(world, campaigns(3).faults(1)));
}

/// Nodes that have lost their markers abstain for ever.
#[test]
fn without_marking_an_election_cannot_be_won() {
    let rules = Rules {
        marking: false,
        ..RULES
    };
    find(WINNABLE, rules, remains(WORLD, campaigns(1).restarts(2)));
}

/// A node votes, forgets that, and is healed for the leader of before: both count on it.
#[test]
fn heals_of_a_node_that_may_have_voted_make_two_leaders() {
    let rules = Rules {
        heals_wait: false,
        ..RULES
    };
    find(
        EXCLUSION,
        rules,
        election(LED, campaigns(1).extensions(2).restarts(1)),
    );
}

/// A heal that was decided before the node voted for another and forgot that arrives after it.
#[cfg(feature = "deep-model")]
#[test]
fn heals_that_outlive_a_run_make_two_leaders() {
    let rules = Rules {
        bound_to_run: false,
        ..RULES
    };
    find(
        EXCLUSION,
        rules,
        election(LED, campaigns(1).extensions(3).restarts(1)),
    );
}

/// A doubled mark of a new node makes it ready when it has voted and forgotten that.
#[test]
fn marks_that_outlive_a_run_make_two_leaders() {
    let rules = Rules {
        bound_to_run: false,
        ..RULES
    };
    let world = World { vote: 1, ..NEW };
    let budget = campaigns(2).faults(1).restarts(1);
    find(EXCLUSION, rules, election(world, budget));
}

/// Long after its quorum extended, an agent heals a node from one that has the lease still.
#[cfg(feature = "deep-model")]
#[test]
fn heals_after_the_extended_term_make_two_leaders() {
    let rules = Rules {
        heals_in_time: false,
        ..RULES
    };
    let world = World { vote: 1, ..LED };
    find(
        EXCLUSION,
        rules,
        election(world, campaigns(1).extensions(3).restarts(1)),
    );
}

/// A node had an older lease of the leader when it was asked, but has voted for another since and
/// forgotten both: what is written there is no vote of those that had the lease.
#[cfg(feature = "deep-model")]
#[test]
fn raising_that_makes_leases_makes_two_leaders() {
    let rules = Rules {
        raises_only: false,
        ..RULES
    };
    let world = World { vote: 1, ..LED };
    find(
        EXCLUSION,
        rules,
        election(world, campaigns(2).extensions(1).restarts(1)),
    );
}

/// Each node had no marker when it was asked, but the first ones have been marked, and have voted, when
/// the last one is asked: it has forgotten its vote.
#[test]
fn nodes_that_lack_markers_one_after_the_other_are_not_new() {
    let rules = Rules {
        new_at_one_instant: false,
        ..RULES
    };
    find(EXCLUSION, rules, election(NEW, campaigns(2).restarts(1)));
}

/// The one node that has been marked votes and forgets that, and none has a marker.
#[cfg(feature = "deep-model")]
#[test]
fn votes_before_all_new_nodes_are_marked_make_two_leaders() {
    let rules = Rules {
        all_are_marked: false,
        ..RULES
    };
    let world = World { vote: 1, ..NEW };
    let budget = campaigns(2).faults(1).restarts(1);
    find(EXCLUSION, rules, election(world, budget));
}

/// What `on` risks and `strict` does not.
#[test]
fn the_loss_of_everything_is_taken_for_a_first_start() {
    find(EXCLUSION, RULES, election(LED, campaigns(2).outages(1)));
}
