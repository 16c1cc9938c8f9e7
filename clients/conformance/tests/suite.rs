//! Plays every scenario with every registered program, and those that have to find mutants with these.

#![expect(
    clippy::expect_used,
    reason = "a test that cannot go on should say where"
)]

use std::{
    process::ExitCode,
    sync::{Arc, OnceLock},
};

use client_conformance::{
    Program, Stage,
    mutants::{FOUND_BY, Mutant},
    scenarios::{ALL, Scenario},
};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;

/// How many scenarios are played at once: they wait most of the time.
const AT_ONCE: usize = 24;

/// Set in the environment: what happened is written also of scenarios that pass.
const SHOW: &str = "CONFORMANCE_SHOW";

const MUTANT: &str = env!("CARGO_BIN_EXE_conformance-mutant");

/// The programs of languages. Another language adds its program here.
fn programs() -> Vec<Program> {
    vec![
        Program::new("rust", env!("CARGO_BIN_EXE_conformance-rust"), &[]),
        // The client of which mutants are made: without a fault, nothing is found.
        Program::new("none", MUTANT, &[]),
    ]
}

/// What all trials share.
#[derive(Clone)]
struct Shared {
    runtime: Arc<Runtime>,
    /// Set up by the first trial: to list them, no agent is needed.
    stage: Arc<OnceLock<Stage>>,
}

/// The scenario finds nothing.
fn passes(shared: &Shared, scenario: Scenario, program: &Program) -> Result<(), Failed> {
    let play = scenario.run(shared.stage.get_or_init(Stage::new), program);
    let (findings, record) = shared.runtime.block_on(play);
    if std::env::var_os(SHOW).is_some() {
        println!("{} {}\n{record}", program.name, scenario.name);
    }
    if findings.is_empty() {
        return Ok(());
    }
    Err(format!("{findings:#?}\n{record}").into())
}

/// The scenario's check finds the mutant.
fn finds(shared: &Shared, scenario: Scenario, check: &str, mutant: Mutant) -> Result<(), Failed> {
    let name = mutant.to_string();
    let program = Program::new(name.as_str(), MUTANT, &["--mutant", &name]);
    let play = scenario.run(shared.stage.get_or_init(Stage::new), &program);
    let (findings, record) = shared.runtime.block_on(play);
    if findings.iter().any(|finding| finding.check == check) {
        return Ok(());
    }
    Err(format!("{check} has not found it, but: {findings:#?}\n{record}").into())
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_ONCE);
    let shared = Shared {
        runtime: Arc::new(Runtime::new().expect("a runtime")),
        stage: Arc::default(),
    };
    let mut trials = Vec::new();
    for program in programs() {
        for scenario in ALL {
            let (shared, program) = (shared.clone(), program.clone());
            let name = format!("{}::{}", program.name, scenario.name);
            let play = move || passes(&shared, *scenario, &program);
            trials.push(Trial::test(name, play));
        }
    }
    for (mutant, name, check) in FOUND_BY.iter().copied() {
        let mut scenarios = ALL.iter().copied();
        let scenario = scenarios.find(|scenario| scenario.name == name);
        let scenario = scenario.expect("a scenario of this name");
        let shared = shared.clone();
        let play = move || finds(&shared, scenario, check, mutant);
        trials.push(Trial::test(
            format!("mutant::{mutant}::{name}::{check}"),
            play,
        ));
    }
    // The agent ends with what is shared.
    libtest_mimic::run(&arguments, trials).exit_code()
}
