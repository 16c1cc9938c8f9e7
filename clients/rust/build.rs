//! Compiles the protobuf contract without `protoc`.

use std::error::Error;

/// The path of the contract: a link in the repository, a directory in the package.
const PROTO: &str = "proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={PROTO}/election_agent/v1/election_agent.proto");
    let descriptors = protox::compile(["election_agent/v1/election_agent.proto"], [PROTO])?;
    tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false)
        // No call has it any more.
        .extern_path(".grpc.election_agent.v1.Empty", "()")
        .compile_fds(descriptors)?;
    Ok(())
}
