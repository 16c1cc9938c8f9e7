//! The layers around the mux, one a file; `crate::stack` has their order.

pub mod authenticate;
pub mod authorize;
pub mod body_limit;
pub mod catch_panic;
pub mod cors;
pub mod deadline;
pub mod in_flight;
pub mod measure;
pub mod origin;
pub mod rate_limit;
pub mod respond;
pub mod trace;
