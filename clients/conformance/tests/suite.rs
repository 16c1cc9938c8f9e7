//! Plays every scenario with every registered program, and with mutants that the scenarios have to find.

use std::{process::ExitCode, sync::Arc};

use client_conformance::{
    Program, Stage,
    scenarios::{ALL, Scenario},
};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;

/// How many scenarios are played at once: they wait most of the time.
const AT_ONCE: usize = 8;

/// The programs of languages. A program of another language is added here.
fn programs() -> Vec<Program> {
    vec![Program::new(
        "rust",
        env!("CARGO_BIN_EXE_conformance-rust"),
        &[],
    )]
}

fn passes(
    runtime: &Runtime,
    stage: &Stage,
    scenario: Scenario,
    program: &Program,
) -> Result<(), Failed> {
    let (findings, record) = runtime.block_on(scenario.run(stage, program));
    if findings.is_empty() {
        return Ok(());
    }
    Err(format!("{findings:#?}\n{record}").into())
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_ONCE);
    if arguments.list {
        // Without an agent.
    }
    let runtime = Arc::new(Runtime::new().unwrap_or_else(|error| panic!("{error}")));
    let stage = Arc::new(Stage::new());
    let mut trials = Vec::new();
    for program in programs() {
        for scenario in ALL {
            let name = format!("{}::{}", program.name, scenario.name);
            let (runtime, stage, program) =
                (Arc::clone(&runtime), Arc::clone(&stage), program.clone());
            trials.push(Trial::test(name, move || {
                passes(&runtime, &stage, *scenario, &program)
            }));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
