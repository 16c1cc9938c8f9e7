//! `eactl`, against real agents.

#![expect(
    clippy::expect_used,
    reason = "a test that cannot go on should say where"
)]

mod commands;
mod examples;
mod faults;
mod input;
mod running;
mod signals;
mod support;
mod terminal;
mod tls;
