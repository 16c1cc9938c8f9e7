//! Checks the agent's own algorithm in every order of events: three nodes, two agents, two candidates for one
//! election, and a third candidate that campaigns after all others have stopped.
//!
//! A newcomer reads [`world`] (the parameters of a check), [`state`] (the state of the checker), then
//! [`election`] (the steps and the properties). The checks below say what each covers. `cargo test -p
//! election-core --features weaken --test model -- --nocapture` prints the number of states of each, and
//! every counterexample. `make test-model` checks more, and takes minutes.
//!
//! # What is the agent's own code
//! - A node is [`Memory`](election_core::lease::memory::Memory), that of the in-process node.
//! - Campaigns, handovers, extensions with their repairs, and resignations are the state machines of
//!   [`policy`](election_core::lease::policy) that the quorum drives.
//! - Each rule of [`rules`](election_core::lease::rules) within the reach of the model is disabled once, to
//!   verify that the checker then finds the failure that the rule prevents.
//!
//! # What is modelled
//! - Time in whole ticks. A leader counts its term from before its request, a node from the receipt of the
//!   request. Some requests wait before the agent claims.
//! - A network that is a set of requests: each is executed at any time, in any order, or never. A reply
//!   arrives as soon as the request is executed, or is lost. A later arrival adds nothing: a leader learns of
//!   its term later, but the term does not last longer.
//! - Faults: a reply that is lost, a request that is executed twice or after its sender has stopped waiting,
//!   a caller that stops waiting before its vote is decided.
//! - Restarts that wipe a node's memory or set it back to a saved state.
//! - Probes, and the records that they write, of all nodes at one instant. The simulation has them one by
//!   one.
//! - Agents with other terms and vote lifetimes, agents that start late, and agents that have other lists of
//!   nodes.
//!
//! # What is not modelled
//! Clocks that drift; token high-water marks that expire; first starts; leases that count for their full term
//! after a restart (a database file); campaigns of more than a few votes. The simulation has those.
//!
//! # What is checked
//! Every state within the budget of a check, breadth first, so that a counterexample is a shortest one.

#![expect(
    clippy::expect_used,
    reason = "a check that does not find what it should find says so"
)]

mod election;
mod state;
mod world;

use std::{collections::BTreeSet, time::Instant};

use election_core::lease::{
    policy::{Electorate, Nodes},
    rules::Rule,
};
use stateright::{Checker, Expectation, HasDiscoveries, Model};

use election::{CLEAN, EXCLUSION, Election, RISING};
use world::{Budget, Plan, World, campaigns, world};

/// The maximum number of states in the search for a counterexample.
const SEARCH: usize = 10_000_000;

fn election(world: World, budget: Budget) -> Election {
    Election {
        world,
        budget,
        remains: false,
        without: None,
    }
}

/// As [`election`], with the checks of leftovers.
fn remains(world: World, budget: Budget) -> Election {
    Election {
        remains: true,
        ..election(world, budget)
    }
}

/// Explores every state.
fn check(election: &Election) {
    let begun = Instant::now();
    let checker = election.clone().checker().threads(1).spawn_bfs().join();
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
        "{} states, {} steps, depth {}, {:.1?}: {:?}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        begun.elapsed(),
        election.budget,
    );
}

/// Asserts that a property does not hold without a rule, and prints the counterexample.
fn find(property: &'static str, rule: Rule, election: Election) {
    let begun = Instant::now();
    let election = Election {
        without: Some(rule),
        ..election
    };
    let checker = election.checker().threads(1).target_state_count(SEARCH);
    let found = HasDiscoveries::AnyOf(BTreeSet::from([property]));
    let checker = checker.finish_when(found).spawn_bfs().join();
    println!(
        "{rule:?}: {} states, {:.1?}",
        checker.unique_state_count(),
        begun.elapsed(),
    );
    let path = checker.discovery(property).expect("a counterexample");
    for action in path.into_actions() {
        println!("  {action:?}");
    }
}

/// An agent with longer terms and votes, together with an agent of the usual kind.
fn unequal(late: bool) -> Vec<Plan> {
    let longer = Plan {
        longest: 3,
        vote: 2,
        late,
        ..Plan::of(3)
    };
    vec![Plan::of(3), longer]
}

/// Agents during the change of a list of nodes: one has both lists, one only the new list.
fn passing() -> World {
    let nodes = |numbers: &[usize]| numbers.iter().copied().collect::<Nodes>();
    let (old, new) = (nodes(&[0, 1, 2]), nodes(&[1, 2, 3]));
    let both = Plan {
        electorate: Electorate::joint(old, new),
        ..Plan::of(3)
    };
    let last = Plan {
        electorate: Electorate::of(new),
        ..Plan::of(3)
    };
    World {
        nodes: 4,
        ..world().agents(vec![both, last])
    }
}

fn request_ids() -> World {
    World {
        request_ids: true,
        ..world()
    }
}

fn no_clocks() -> World {
    World {
        clocks: false,
        ..world()
    }
}

/// Two campaigns that interleave in every way, and hold a second vote if the first is split.
#[test]
fn of_candidates_that_campaign_at_once_one_leads_and_tokens_rise() {
    check(&election(world().votes(1).ticks(2), campaigns(2)));
    check(&election(no_clocks().votes(1).ticks(2), campaigns(2)));
}

/// A reply is lost, a request arrives twice or late, or a caller stops waiting.
#[test]
fn nothing_that_the_network_or_the_callers_do_makes_two_leaders() {
    check(&election(world().votes(1).ticks(2), campaigns(1).faults(2)));
    check(&election(
        request_ids().votes(1).ticks(1),
        campaigns(1).faults(2),
    ));
}

/// A node restarts with empty memory, or with the memory that it had at the beginning.
#[test]
fn nodes_that_forget_or_are_set_back_make_no_second_leader() {
    check(&election(
        world().led().votes(1).ticks(3),
        campaigns(1).restarts(1),
    ));
}

/// Leaders that extend, and whose lease is repaired, while others campaign.
#[test]
fn extensions_and_repairs_make_no_second_leader() {
    check(&election(
        world().led().votes(1).ticks(3),
        campaigns(1).extensions(1),
    ));
    let budget = Budget::default().extensions(1).restarts(1).looks(1);
    check(&election(world().led().votes(1).ticks(2), budget));
}

/// Candidates that claim after a wait, and count their time from before it. Their leases are provisional.
#[test]
fn campaigns_that_waited_make_no_second_leader() {
    let waits = |waits| Budget::default().waits(waits);
    check(&election(world().led().votes(1).ticks(4), waits(2)));
    check(&election(world().votes(1).ticks(3), waits(2)));
    check(&election(world().votes(1).ticks(3), waits(1).extensions(1)));
    let unequal = || world().agents(unequal(false)).votes(1);
    check(&election(unequal().ticks(3), waits(2)));
    check(&election(unequal().ticks(2), waits(1).faults(1)));
}

/// Leaders that resign or hand over.
#[test]
fn resignations_and_handovers_make_no_second_leader() {
    check(&election(
        world().led().votes(1).ticks(1),
        campaigns(1).resignations(1),
    ));
    check(&election(
        world().led().votes(1).ticks(1),
        campaigns(1).handovers(1),
    ));
}

/// Agents with different terms and vote lifetimes. One starts when the other has run for a while.
#[test]
fn agents_that_differ_make_no_second_leader() {
    let unequal = |late| World {
        terms: [2, 3],
        ..world().agents(unequal(late)).votes(1).ticks(3)
    };
    check(&election(unequal(false), campaigns(1).restarts(1)));
    check(&election(unequal(true), campaigns(1).restarts(1).looks(1)));
}

/// Agents change from one list of nodes to another.
#[test]
fn agents_with_both_lists_and_with_the_new_one_make_no_second_leader() {
    check(&election(passing().votes(1).ticks(2), campaigns(2)));
}

/// Checked from every state that faults and restarts lead to.
#[test]
fn nothing_is_left_behind_and_a_vacant_election_can_be_won() {
    check(&remains(world().votes(1).ticks(1), campaigns(1).faults(1)));
    check(&remains(
        world().votes(1).ticks(2),
        campaigns(1).restarts(1),
    ));
}

/// Tests whether the properties of small worlds hold in larger ones: each has one number larger than above.
#[cfg(feature = "deep-model")]
mod larger {
    use super::*;

    macro_rules! worlds {
        ($($name:ident: $model:expr;)+) => {
            $(#[test]
            fn $name() {
                check(&$model);
            })+
        };
    }

    worlds! {
        agents_that_differ: election(differing(false), campaigns(2));
        agents_that_differ_and_one_is_late: election(differing(true), campaigns(2).looks(1));
        three_campaigns: election(world().votes(1).ticks(1), campaigns(3));
        two_campaigns_and_a_fault: election(world().votes(1).ticks(2), campaigns(2).faults(1));
        two_votes_each: election(world().ticks(2), campaigns(2));
        two_retries_and_a_fault: election(request_ids().votes(1).ticks(1), campaigns(2).faults(1));
        two_campaigns_and_a_restart: election(world().votes(1).ticks(2), campaigns(2).restarts(1));
        two_extensions_and_a_restart: election(
            world().led().votes(1).ticks(3),
            campaigns(1).extensions(2).restarts(1),
        );
        two_campaigns_and_a_resignation: election(
            world().led().votes(1).ticks(2),
            campaigns(2).resignations(1),
        );
        a_handover_and_an_extension: election(
            world().led().votes(1).ticks(2),
            campaigns(1).handovers(1).extensions(1),
        );
        campaigns_while_the_list_changes: election(passing().votes(1).ticks(4), campaigns(2));
        what_two_campaigns_and_a_fault_leave: remains(
            world().votes(1).ticks(2),
            campaigns(2).faults(1),
        );
    }

    fn differing(late: bool) -> World {
        World {
            terms: [2, 3],
            ..world().agents(unequal(late)).votes(1).ticks(4)
        }
    }
}

#[test]
fn rules_whose_absence_a_small_world_shows() {
    find(
        RISING,
        Rule::HighWaterMark,
        election(no_clocks().votes(1).ticks(2), campaigns(2).resignations(1)),
    );
    let waited = |plans| world().agents(plans).votes(1).ticks(3);
    find(
        EXCLUSION,
        Rule::CountsFromTheRequest,
        election(waited(vec![Plan::of(3); 2]), campaigns(1).waits(1)),
    );
    find(
        EXCLUSION,
        Rule::TermBeginsWithTheVote,
        election(waited(unequal(false)), campaigns(1).waits(1)),
    );
    find(
        EXCLUSION,
        Rule::HandoversToken,
        election(world().led().votes(1).ticks(0), campaigns(1).handovers(1)),
    );
    find(
        CLEAN,
        Rule::Rollbacks,
        remains(world().votes(1).ticks(1), campaigns(1).faults(1)),
    );
    find(
        CLEAN,
        Rule::RolledBackByName,
        remains(world().votes(1).ticks(1), campaigns(1).faults(2)),
    );
    find(
        EXCLUSION,
        Rule::RestoresWhatWasBefore,
        election(world().led().votes(1).ticks(1), campaigns(2).faults(1)),
    );
    find(
        EXCLUSION,
        Rule::JointMajorities,
        election(passing().votes(1).ticks(0), campaigns(2)),
    );
}

/// These need more steps. The states of repairs exceed the memory: the simulation has a scenario for each.
#[cfg(feature = "deep-model")]
#[test]
fn rules_whose_absence_a_larger_world_shows() {
    let led = || world().led().votes(1);
    find(
        EXCLUSION,
        Rule::ResignationsToken,
        election(led().ticks(0), campaigns(2).resignations(1)),
    );
    find(
        EXCLUSION,
        Rule::OwnLeaseGuarded,
        election(led().ticks(0), campaigns(2).resignations(1).restarts(1)),
    );
}
