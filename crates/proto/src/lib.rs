//! The generated code's front door: messages, client and server of `proto/election_agent/v1`.
//!
//! The server is tonic's plain one. The agent compiles its own from the same contract, which says whose mistake a
//! malformed message is; its messages are these.

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
