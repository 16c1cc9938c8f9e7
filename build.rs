//! Compiles the service of the protobuf contract, without `protoc`, for the agent's own codec. The messages
//! are those of `crates/proto`. Records the commit that is built.

use std::{env, error::Error, path::Path, process::Command};

/// The variable that names the commit, for this script and for the built code.
const COMMIT: &str = "ELECTION_AGENT_COMMIT";
const PROTO: &str = "election_agent/v1/election_agent.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    tonic_prost_build::configure()
        .codec_path("crate::transport::grpc::codec::StrictCodec")
        .extern_path(".grpc.election_agent.v1", "::election_proto")
        .build_client(false)
        .build_transport(false)
        .compile_fds(protox::compile([PROTO], ["proto"])?)?;
    println!("cargo:rustc-env={COMMIT}={}", commit());
    Ok(())
}

/// The commit that is built, if it is known: `ELECTION_AGENT_COMMIT`, for builds without the repository, else
/// the checked-out commit. Debug builds omit it: every new commit would cause a full rebuild.
fn commit() -> String {
    println!("cargo:rerun-if-env-changed={COMMIT}");
    let named = env::var(COMMIT).ok().filter(|commit| !commit.is_empty());
    if let Some(commit) = named {
        return commit;
    }
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let found = is_release.then(|| {
        // Git writes these files whenever another commit is checked out. Cargo counts a missing file as
        // changed.
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
