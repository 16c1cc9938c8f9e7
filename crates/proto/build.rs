//! Compiles the protobuf contract without `protoc` and keeps its descriptors for gRPC reflection.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

/// The path of the contract, relative to this crate.
const PROTO: &str = "../../proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={PROTO}");
    let descriptors = protox::compile(["election_agent/v1/election_agent.proto"], [PROTO])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("election_agent.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_transport(false)
        // The servers of tests and of the load test have some methods only; the agent's own service has all.
        .generate_default_stubs(true)
        .compile_fds(descriptors)?;
    Ok(())
}
