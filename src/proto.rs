//! The services of `proto/election_agent/v1`, decoded by the agent's own codec. The messages are those of
//! [`election_proto`].

#[expect(
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated; the .proto's comments are the reference"
)]
mod generated {
    tonic::include_proto!("grpc.election_agent.v1");
}

pub use generated::{agent_server, election_server, leadership_server};
