//! REST: JSON over HTTP/1.1 and HTTP/2, probes, metrics, and the OpenAPI document.

pub mod dashboard;
mod dto;
mod events;
mod extract;
mod null;
pub mod openapi;
mod router;
mod routes;
mod whole;

pub use router::{Sources, router};
pub(crate) use routes::ALIVE;
