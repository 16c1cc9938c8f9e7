//! Agents as separate processes on real stores, called by real clients.

#![expect(
    clippy::expect_used,
    reason = "a test that cannot go on should say where"
)]

mod about;
mod acl;
mod auth;
mod authz;
mod bad_input;
mod browsers;
mod clients;
mod clocks;
mod commands;
mod connections;
mod contention;
mod contract;
mod dashboard;
mod deadlines;
mod deployment;
mod documents;
mod duplicates;
mod durability;
mod faults;
mod fencing;
mod forgotten;
mod full;
mod full_disk;
mod harness;
mod kubernetes_server;
mod late;
mod leading;
mod limits;
mod listing;
mod lists;
mod logs;
mod metrics;
mod modes;
mod observability;
mod observing;
mod old_clients;
mod pods;
mod proxies;
mod push_faults;
mod quorum;
mod quotas;
mod reflection;
mod refusals;
mod repair;
mod serving;
mod starting;
mod survival;
mod terms;
mod tls;
mod topologies;
mod traces;
mod unequal;
mod unwelcome;
mod upgrade;
mod waiting;
mod workers;
