//! Agents as separate processes on real stores, asked by real clients.

#![expect(
    clippy::expect_used,
    reason = "a test that cannot go on should say where"
)]

mod auth;
mod authz;
mod bad_input;
mod browsers;
mod clients;
mod commands;
mod connections;
mod contention;
mod contract;
mod deadlines;
mod deployment;
mod differential;
mod documents;
mod durability;
mod faults;
mod harness;
mod kubernetes_server;
mod limits;
mod logs;
mod metrics;
mod modes;
mod observability;
mod pods;
mod quorum;
mod reflection;
mod refusals;
mod serving;
mod survival;
mod terms;
mod tls;
mod topologies;
mod traces;
mod workers;
