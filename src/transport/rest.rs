//! REST: JSON over HTTP/1.1 and HTTP/2, probes, metrics, and the OpenAPI document.

mod dto;
mod extract;
mod null;
pub mod openapi;
mod routes;
mod whole;

pub(crate) use routes::ALIVE;
pub use routes::{Sources, router};
