//! What the fuzzer runs (`make fuzz`), and what `tests/corpus.rs` replays: bytes go in, and the agent must not
//! panic, hang, or take the blame for what a stranger sent.
//!
//! An input that begins with `>` is taken as it is: for the services a request as text, for the settings a file,
//! for the connection what the client sends (with `<` in pieces, and without an end). Every other input is read as choices between things that make sense, so
//! that it gets further than the first check.

mod connection;
mod grpc_frames;
mod input;
mod policy;
mod rest;
mod settings;
mod tree;

/// A target's name, which is that of its corpus, and what it does with an input.
type Target = (&'static str, fn(&[u8]));

/// Every target.
pub(crate) const TARGETS: [Target; 5] = [
    ("connection", connection::run),
    ("grpc_frames", grpc_frames::run),
    ("policy", policy::run),
    ("rest", rest::run),
    ("settings", settings::run),
];

/// Runs the target of this name on an input.
///
/// # Panics
/// When the agent does what it must not, and when there is no such target.
pub(crate) fn run(target: &str, data: &[u8]) {
    let found = TARGETS.iter().find(|(name, _)| *name == target);
    let (_, run) = found.unwrap_or_else(|| panic!("there is no target {target}"));
    run(data);
}
