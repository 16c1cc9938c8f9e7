//! Generated code of `proto/election_agent/v1`.

#[expect(
    unreachable_pub,
    unused_qualifications,
    clippy::allow_attributes_without_reason,
    reason = "generated; the .proto's comments are the reference"
)]
mod generated {
    tonic::include_proto!("grpc.election_agent.v1");
}

pub(crate) use generated::*;
