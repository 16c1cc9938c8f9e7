//! Compiles the service of the protobuf contract, without `protoc`, for the agent's own codec. The messages
//! are those of `crates/proto`. Embeds the dashboard, if `make ui` has built it. Records the commit that is built.

use std::{
    env,
    error::Error,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use flate2::{Compression, write::GzEncoder};

/// The variable that names the commit, for this script and for the built code.
const COMMIT: &str = "ELECTION_AGENT_COMMIT";
const PROTO: &str = "election_agent/v1/election_agent.proto";
/// Where `make ui` puts the dashboard.
const DASHBOARD: &str = "ui/dist";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    tonic_prost_build::configure()
        .codec_path("crate::transport::grpc::codec::StrictCodec")
        .extern_path(".grpc.election_agent.v1", "::election_proto")
        .build_client(false)
        .build_transport(false)
        .compile_fds(protox::compile([PROTO], ["proto"])?)?;
    println!("cargo:rustc-env={COMMIT}={}", commit());
    embed_dashboard()
}

/// Writes the list of the dashboard's files, each compressed once.
fn embed_dashboard() -> Result<(), Box<dyn Error>> {
    let root = Path::new(DASHBOARD);
    // Cargo counts a missing file as changed, so a directory that is not there yet cannot be watched: `make ui` touches
    // the first of these.
    for watched in ["ui/package.json", DASHBOARD] {
        if Path::new(watched).exists() {
            println!("cargo:rerun-if-changed={watched}");
        }
    }
    let mut files = Vec::new();
    if root.is_dir() {
        find(root, &mut files)?;
    }
    files.sort();
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut list = "&[\n".to_owned();
    for (number, path) in files.iter().enumerate() {
        let compressed = out.join(format!("dashboard-{number}.gz"));
        let mut encoder = GzEncoder::new(fs::File::create(&compressed)?, Compression::best());
        encoder.write_all(&fs::read(path)?)?;
        encoder.finish()?;
        let name = path.strip_prefix(root)?.to_str().ok_or("a name in UTF-8")?;
        list += &format!("({name:?}, include_bytes!({compressed:?})),\n");
    }
    fs::write(out.join("dashboard.rs"), list + "]")?;
    Ok(())
}

/// Finds all files below a directory.
fn find(directory: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        match path.is_dir() {
            true => find(&path, files)?,
            false => files.push(path),
        }
    }
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
