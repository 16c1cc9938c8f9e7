//! Leader election as a service over gRPC, gRPC-Web and REST.
//!
//! # The request path
//!
//! Outermost first; each step is a module, in this order:
//!
//! 1. [`listener`] accepts a connection and speaks HTTP/1.1 or HTTP/2 on it. Every port serves the same
//!    service.
//! 2. [`stack`] is the order of the [`layers`]: catch panics, name the request, measure it, render
//!    errors in the caller's protocol, set its deadline, bound its body.
//! 3. [`transport`] sends it to gRPC (and gRPC-Web) or to the HTTP routes. [`transport::grpc`] and
//!    [`transport::rest`] convert messages to the domain's types and back;
//!    [`transport::status`] is the one error table.
//! 4. [`election`] is the domain: campaign, extend, resign, hand over, read, list.
//! 5. [`lease::quorum`] puts every operation to all lease nodes and decides by a majority.
//! 6. [`lease::LeaseNode`] is what a node does: [`lease::redis`] on a Redis server,
//!    [`lease::embedded`] in this process.
//!
//! Around it: [`config`] reads and validates all settings, [`app`] builds everything from them,
//! [`readiness`] and [`telemetry`] tell operators how it does, [`shutdown`] ends it well.

pub mod app;
pub mod config;
pub mod election;
pub mod layers;
pub mod lease;
pub mod listener;
pub mod proto;
pub mod readiness;
pub mod shutdown;
pub mod stack;
pub mod telemetry;
pub mod transport;
