//! The targets, built once for all of the fuzzer's binaries.

#[path = "../../tests/fuzz/targets.rs"]
mod targets;

/// Runs the target of this name on an input.
///
/// # Panics
/// When the agent does what it must not.
pub fn run(target: &str, data: &[u8]) {
    targets::run(target, data);
}
