//! Compiles the protobuf contract without `protoc` and keeps its descriptors for gRPC reflection. Notes the commit
//! that is built.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use prost::Message as _;

/// The variable that names the commit, for this script and for what is built.
const COMMIT: &str = "ELECTION_AGENT_COMMIT";
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
    println!("cargo:rustc-env={COMMIT}={}", commit());
    Ok(())
}

/// The commit that is built, if that is known: `ELECTION_AGENT_COMMIT`, for builds without the repository, else what
/// is checked out. Not of debug builds: every commit would make a developer build all again.
fn commit() -> String {
    println!("cargo:rerun-if-env-changed={COMMIT}");
    let named = env::var(COMMIT).ok().filter(|commit| !commit.is_empty());
    if let Some(commit) = named {
        return commit;
    }
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let found = is_release.then(|| {
        // What is written whenever another commit is checked out. A file that is missing would count as changed.
        for file in ["HEAD", "logs/HEAD"] {
            let path = git(&["rev-parse", "--git-path", file])?;
            if Path::new(&path).exists() {
                println!("cargo:rerun-if-changed={path}");
            }
        }
        git(&["rev-parse", "--short=12", "HEAD"])
    });
    found.flatten().unwrap_or_else(|| "unknown".to_owned())
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
