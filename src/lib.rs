//! Leader election as a service over gRPC, gRPC-Web and REST.
//!
//! # The request path
//!
//! Outermost first; each step is a module, in this order:
//!
//! 1. [`listener`] accepts a connection and gives it to one of the [`workers`], where it stays. It speaks HTTP/1.1 or
//!    HTTP/2, with [`tls`] if that is configured, enforces time limits on clients, and attaches the [`peer`] to every
//!    request. All ports serve the same service.
//! 2. [`stack`] orders the [`layers`]: classify the request ([`endpoint`]), assign an id, apply CORS, trace and measure
//!    it, catch panics, render errors in the caller's protocol, refuse excess load, authenticate the caller, limit its
//!    rate, set the deadline, and bound the body.
//! 3. [`transport`] routes it to gRPC (and gRPC-Web) or to the HTTP routes. [`transport::grpc`] and [`transport::rest`]
//!    convert messages to the domain's types and back; [`status`] is the only error table.
//! 4. [`auth::gate`] authorizes the request by [`auth::policy`].
//! 5. [`election_core`] is the domain: elections, and the quorum of lease nodes that decides them.
//! 6. [`LeaseNode`](election_core::lease::LeaseNode) is the interface of a node, implemented by [`election_redis`] on
//!    Redis and by [`embedded`](election_core::lease::embedded) in this process.
//!
//! Around it: [`config`] reads and validates all settings, [`app`] builds everything from them, [`reload`] follows
//! files that change, [`readiness`] and [`telemetry`] report the agent's state to operators, and [`shutdown`] drains
//! it.

pub mod app;
pub mod auth;
mod body;
pub mod cli;
pub mod config;
pub mod descriptors;
pub mod endpoint;
pub mod kube;
pub mod layers;
pub mod listener;
pub mod outcomes;
pub mod output;
pub mod peer;
pub mod proto;
pub mod readiness;
pub mod reload;
pub mod shutdown;
pub mod stack;
pub mod status;
pub mod telemetry;
pub mod tls;
pub mod transport;
pub mod workers;

/// Formats an error with its causes, omitting causes that add nothing.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
