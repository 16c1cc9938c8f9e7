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
    checks::SAFETY,
    mutants::{FOUND_BY, Mutant},
    scenarios::{ALL, Finding, Scenario},
};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;

/// How many scenarios are played at once: they wait most of the time.
const AT_ONCE: usize = 24;

/// Set in the environment: what happened is written also of scenarios that pass.
const SHOW: &str = "CONFORMANCE_SHOW";

const MUTANT: &str = env!("CARGO_BIN_EXE_conformance-mutant");

/// Set in the environment: programs that are not of this repository, as `NAME=FILE ARGUMENT…`, separated by `;`.
const OTHERS: &str = "CONFORMANCE_PROGRAMS";

/// The programs of languages. Another language adds its program here.
fn programs() -> Vec<Program> {
    // Made by scripts/build-clients.
    const PYTHON: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../target/python/venv/bin/python"
    );
    const OF_PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../python/conformance.py");
    const OF_TYPESCRIPT: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../typescript/conformance/conformance.mjs"
    );
    let mut programs = vec![
        Program::new("rust", env!("CARGO_BIN_EXE_conformance-rust"), &[]),
        Program::new("python", PYTHON, &[OF_PYTHON]),
        Program::new("python-sync", PYTHON, &[OF_PYTHON, "--sync"]),
        Program::new("typescript", "node", &[OF_TYPESCRIPT]),
        // The client of which mutants are made: without a fault, nothing is found.
        Program::new("none", MUTANT, &[]),
    ];
    let others = std::env::var(OTHERS).unwrap_or_default();
    for other in others.split(';').filter(|other| !other.trim().is_empty()) {
        let (name, command) = other.split_once('=').expect("NAME=FILE ARGUMENT…");
        let words: Vec<_> = command.split_whitespace().collect();
        let (file, arguments) = words.split_first().expect("a file");
        programs.push(Program::new(name.trim(), *file, arguments));
    }
    programs
}

/// What all trials share.
#[derive(Clone)]
struct Shared {
    runtime: Arc<Runtime>,
    /// Set up by the first trial: to list them, no agent is needed.
    stage: Arc<OnceLock<Stage>>,
}

/// How often a scenario is played at the most, if the machine is busy.
const PLAYS: usize = 3;

/// Whether so much waits for the machine's cores that clients cannot keep to times: more than two for each, by Linux's
/// average of a minute.
fn is_busy() -> bool {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = load
        .split(' ')
        .next()
        .and_then(|load| load.parse().ok())
        .unwrap_or(0.0);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    load > 2.0 * cores as f64
}

/// Plays a scenario until it comes out well. Again only on a busy machine, and never what two leaders could come of.
fn play(
    shared: &Shared,
    scenario: Scenario,
    program: &Program,
    is_good: impl Fn(&[Finding]) -> bool,
) -> Result<(), Failed> {
    for played in 1.. {
        let stage = shared.stage.get_or_init(Stage::new);
        let (findings, record) = shared.runtime.block_on(scenario.run(stage, program));
        if std::env::var_os(SHOW).is_some() {
            println!("{} {}\n{record}", program.name, scenario.name);
        }
        if is_good(&findings) {
            break;
        }
        let is_unsafe = findings
            .iter()
            .any(|finding| SAFETY.iter().any(|(check, _)| *check == finding.check));
        if is_unsafe || played >= PLAYS || !is_busy() {
            return Err(format!("{findings:#?}\n{record}").into());
        }
    }
    Ok(())
}

/// The scenario finds nothing.
fn passes(shared: &Shared, scenario: Scenario, program: &Program) -> Result<(), Failed> {
    play(shared, scenario, program, <[Finding]>::is_empty)
}

/// The scenario's check finds the mutant.
fn finds(shared: &Shared, scenario: Scenario, check: &str, mutant: Mutant) -> Result<(), Failed> {
    let name = mutant.to_string();
    let program = Program::new(name.as_str(), MUTANT, &["--mutant", &name]);
    let found = |findings: &[Finding]| findings.iter().any(|finding| finding.check == check);
    play(shared, scenario, &program, found)
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
