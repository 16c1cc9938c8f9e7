//! The client against real agents, and against faults between the two.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

mod support;

mod api;
mod calls;
mod cost;
mod fake;
mod lead;
mod observe;
mod rules;
mod streams;
mod tls;
