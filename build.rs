//! Compiles the protobuf contract without `protoc` and keeps its descriptors for gRPC reflection.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const PROTO: &str = "election_agent/v1/election_agent.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile([PROTO], ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("election_agent.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .codec_path("crate::transport::grpc::codec::StrictCodec")
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
