//! Replays what the fuzzer has found (`make fuzz`): every input in `tests/corpus`, those that once failed among
//! them.

#![expect(
    clippy::expect_used,
    reason = "a test that cannot go on should say where"
)]

use std::{cell::Cell, fs, panic, path::Path, sync::Once};

#[path = "fuzz/targets.rs"]
mod targets;

thread_local! {
    /// Tasks and the agent's own layer keep panics from the caller; here they must not go unnoticed.
    static PANICS: Cell<usize> = const { Cell::new(0) };
}

static COUNTING: Once = Once::new();

fn replay(target: &str) {
    COUNTING.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            PANICS.set(PANICS.get() + 1);
            report(panic);
        }));
    });
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(target);
    let entries = fs::read_dir(&directory).expect("a directory of inputs");
    let mut replayed = 0;
    for entry in entries {
        let path = entry.expect("an entry").path();
        let input = fs::read(&path).expect("an input");
        let run = panic::catch_unwind(|| targets::run(target, &input));
        assert!(
            run.is_ok() && PANICS.get() == 0,
            "{} makes the agent fail",
            path.display()
        );
        replayed += 1;
    }
    assert!(replayed > 0, "{} holds no input", directory.display());
}

#[test]
fn every_target_has_its_test() {
    let tested = ["connection", "grpc_frames", "policy", "rest", "settings"];
    assert_eq!(targets::TARGETS.map(|(name, _)| name), tested);
}

#[test]
fn connections_stand_what_the_fuzzer_found() {
    replay("connection");
}

#[test]
fn grpc_stands_what_the_fuzzer_found() {
    replay("grpc_frames");
}

#[test]
fn policies_stand_what_the_fuzzer_found() {
    replay("policy");
}

#[test]
fn rest_stands_what_the_fuzzer_found() {
    replay("rest");
}

#[test]
fn settings_stand_what_the_fuzzer_found() {
    replay("settings");
}
