//! Generated code of `proto/election_agent/v1`: messages, client and server.
//!
//! The server is the one that tonic generates. The agent compiles its own server from the same contract, with
//! a codec that treats malformed messages as the caller's error. Both use these messages.

#[expect(
    missing_docs,
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated; the .proto's comments are the reference"
)]
mod generated {
    tonic::include_proto!("grpc.election_agent.v1");
}

pub use generated::*;

/// The descriptors of the contract, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/election_agent.bin"));
