//! Holds client libraries to the rules that all of them share. README.md says how, and what a language adds.

#![expect(
    clippy::expect_used,
    reason = "a test that cannot go on should say where"
)]

pub mod checks;
mod forwarder;
pub mod mutants;
pub mod protocol;
mod proxy;
mod record;
pub mod scenarios;
mod stage;

pub use forwarder::Forwarder;
pub use proxy::Proxy;
pub use record::{Book, Call, Promise, Record, Seen, What};
pub use stage::{Front, KIND, PATIENCE, Play, Player, Program, Stage, agent_on, agent_with};
