//! Leader election as a service over gRPC, gRPC-Web and REST.
//!
//! # The request path
//!
//! Outermost first; each step is a module, in this order:
//!
//! 1. [`listener`] accepts a connection and gives it to one of the [`workers`], where it stays; with [`tls`]
//!    if that is configured, it speaks HTTP/1.1 or HTTP/2 on it; its clients have to be quick, and every request tells its [`peer`]. Every port serves the same
//!    service.
//! 2. [`stack`] is the order of the [`layers`]: classify the request ([`endpoint`]), name it, let pages of other origins ask, record and
//!    measure it, catch panics, render errors in the caller's protocol, refuse what is too much, find out
//!    who asks, count how often they do, set the request's deadline, bound its body.
//! 3. [`transport`] sends it to gRPC (and gRPC-Web) or to the HTTP routes. [`transport::grpc`] and
//!    [`transport::rest`] convert messages to the domain's types and back;
//!    [`status`] is the one error table.
//! 4. [`auth::gate`] lets through what the caller may do, by [`auth::policy`].
//! 5. [`election_core`] is the domain: elections, and the quorum of lease nodes that decides them.
//! 6. [`LeaseNode`](election_core::lease::LeaseNode) is what a node does: [`election_redis`] on Redis,
//!    [`embedded`](election_core::lease::embedded) in this process.
//!
//! Around it: [`config`] reads and validates all settings, [`app`] builds everything from them,
//! [`reload`] follows files that change, [`readiness`] and [`telemetry`] tell operators how it does, [`shutdown`] ends it well.

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

/// An error with its causes, where they add something.
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
