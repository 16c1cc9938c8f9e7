//! Plays every scenario with every registered program, and with its mutants those that have to find them.

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
const AT_ONCE: usize = 32;

/// Set in the environment: what happened is written also of scenarios that pass.
const SHOW: &str = "CONFORMANCE_SHOW";

const MUTANT: &str = env!("CARGO_BIN_EXE_conformance-mutant");

/// Set in the environment: programs that are not of this repository, as `NAME=FILE ARGUMENT…`, separated by `;`.
const OTHERS: &str = "CONFORMANCE_PROGRAMS";

/// The name of the program that every scenario of every mutant is played with. Of a language's mutant one scenario is
/// enough to show that the suite sees it.
const ALL_MUTANTS: &str = "mutant";

/// Faults that cannot be made in the library: no single place keeps it from them.
const NOT_OF_PYTHON: &[Mutant] = &[
    Mutant::SlowToStop,
    Mutant::WaitsForTheCall,
    Mutant::ResignsFirst,
    Mutant::Impatient,
    Mutant::GivesUp,
];
/// The synchronous twin's body does not block the loop of its timers.
const NOT_OF_THREADS: &[Mutant] = &[Mutant::TimerOfTheRuntime];
const NOT_OF_TYPESCRIPT: &[Mutant] = &[
    Mutant::SlowToStop,
    Mutant::WaitsForTheCall,
    Mutant::ResignsFirst,
    Mutant::Impatient,
    Mutant::NeverExtends,
    Mutant::GivesUp,
];

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
        "/../../target/typescript/conformance.js"
    );
    let mut programs = vec![
        Program::new("rust", env!("CARGO_BIN_EXE_conformance-rust"), &[]),
        Program::new("python", PYTHON, &[OF_PYTHON]).with_mutants_but(NOT_OF_PYTHON),
        Program::new("python-sync", PYTHON, &[OF_PYTHON, "--sync"])
            .with_mutants_but(&[NOT_OF_PYTHON, NOT_OF_THREADS].concat()),
        Program::new("typescript", "node", &[OF_TYPESCRIPT]).with_mutants_but(NOT_OF_TYPESCRIPT),
        // The client that is written for mutants: without a fault, nothing is found.
        Program::new(ALL_MUTANTS, MUTANT, &[]).with_mutants_but(&[]),
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

/// Scenarios that take long, mostly to wait: they begin in the first half, so that none goes on alone at the end. All of
/// the client that is written for mutants do, which costs the processor little.
const LONG: [&str; 4] = [
    "::quorum_loss",
    "::hung_application",
    "::chaos",
    "::chaos_of_calls",
];

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

/// The scenario finds the mutant: by all of the checks, or by one of them.
fn finds(
    shared: &Shared,
    scenario: Scenario,
    program: &Program,
    checks: &[&str],
    by_all: bool,
) -> Result<(), Failed> {
    play(shared, scenario, program, |findings| {
        let has = |check: &&str| findings.iter().any(|finding| finding.check == *check);
        if by_all {
            checks.iter().all(has)
        } else {
            checks.iter().any(has)
        }
    })
}

/// The scenarios that have to find the mutant, each with its checks.
fn finders(mutant: Mutant) -> Vec<(Scenario, Vec<&'static str>)> {
    let mut finders: Vec<(Scenario, Vec<_>)> = Vec::new();
    for (_, name, check) in FOUND_BY.iter().filter(|(of, ..)| *of == mutant) {
        match finders
            .iter_mut()
            .find(|(scenario, _)| scenario.name == *name)
        {
            Some((_, checks)) => checks.push(*check),
            None => {
                let scenario = ALL.iter().find(|scenario| scenario.name == *name);
                finders.push((*scenario.expect("a scenario of this name"), vec![*check]));
            }
        }
    }
    finders
}

/// What is played with a program, and with its mutants.
fn trials_of(program: &Program, shared: &Shared) -> Vec<Trial> {
    let mut trials = Vec::new();
    for scenario in ALL {
        let (shared, program) = (shared.clone(), program.clone());
        let name = format!("{}::{}", program.name, scenario.name);
        let play = move || passes(&shared, *scenario, &program);
        trials.push(Trial::test(name, play));
    }
    let plays_all = program.name == ALL_MUTANTS;
    for mutant in program.mutants.iter().copied() {
        let scenarios = if plays_all { usize::MAX } else { 1 };
        for (scenario, checks) in finders(mutant).into_iter().take(scenarios) {
            let (shared, program) = (shared.clone(), program.mutant(mutant));
            let name = format!("{}::{}", program.name, scenario.name);
            let play = move || finds(&shared, scenario, &program, &checks, plays_all);
            trials.push(Trial::test(name, play));
        }
    }
    trials
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
        let of_program = trials_of(&program, &shared);
        let number = of_program.len();
        // All along: programs of some languages take much of the processor when they start, and others wait meanwhile.
        let placed = of_program.into_iter().enumerate().map(|(index, trial)| {
            let place = index * 1_000 / number;
            let is_long =
                program.name == ALL_MUTANTS || LONG.iter().any(|name| trial.name().ends_with(name));
            (if is_long { place / 2 } else { place }, trial)
        });
        trials.extend(placed);
    }
    trials.sort_by_key(|(place, _)| *place);
    let trials = trials.into_iter().map(|(_, trial)| trial).collect();
    // The agent ends with what is shared.
    libtest_mimic::run(&arguments, trials).exit_code()
}
