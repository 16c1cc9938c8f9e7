//! Third-party clients: connect-web under Node, grpcio on its C core, and schemathesis, which sends what the OpenAPI
//! document allows and forbids.

mod credentials;

use std::{fs, path::PathBuf, process::Command};

use election_agent::transport::rest::openapi;
use election_proto as proto;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Agent, Authority, Fixture, Store, free_port, new_token, owned, repository};

/// A file of what `make test` installs, below `target/test-tools`.
pub(crate) fn tool(path: &str) -> PathBuf {
    let tool = repository("target/test-tools").join(path);
    assert!(
        tool.exists(),
        "{} is missing: run `make test`, which installs it",
        tool.display()
    );
    tool
}

/// A file beside the clients' scripts.
pub(crate) fn script(name: &str) -> PathBuf {
    repository("tests/clients").join(name)
}

/// What a client printed, and how it ended.
fn run(command: &mut Command) -> (String, bool) {
    let output = command.output().unwrap_or_else(|error| {
        panic!("{command:?}: {error}: run `make test`, which installs it");
    });
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed).into_owned();
    (printed, output.status.success())
}

/// The cases that a script reported, each with its error, if any. Other lines are the output of its libraries.
fn cases(printed: &str) -> Vec<(String, String)> {
    let text = |case: &Value, member: &str| case[member].as_str().expect("text").to_owned();
    printed
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| {
            let case: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{printed}"));
            (text(&case, "case"), text(&case, "error"))
        })
        .collect()
}

/// Exactly these cases were run, and all went well.
fn assert_all_passed((printed, fine): (String, bool), expected: &[&str]) {
    let cases = cases(&printed);
    for (case, error) in &cases {
        assert!(error.is_empty(), "{case}: {error}");
    }
    let names: Vec<_> = cases.iter().map(|(case, _)| case.as_str()).collect();
    assert_eq!(names, expected, "{printed}");
    assert!(fine, "{printed}");
}

/// Runs connect-web against the agent at this URL.
fn connect_web(url: &str, authority: Option<&Authority>) -> (String, bool) {
    connect_web_with(url, authority, &[], &[])
}

/// As [`connect_web`], with these flags and variables of its script.
fn connect_web_with(
    url: &str,
    authority: Option<&Authority>,
    flags: &[&str],
    variables: &[(&str, &str)],
) -> (String, bool) {
    tool("node/node_modules/@connectrpc/connect-web");
    let directory = TempDir::new().expect("a directory");
    let descriptors = directory.path().join("descriptors.bin");
    // One after the other, two sets are one set: so protobuf merges messages.
    let services = [proto::DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET].concat();
    fs::write(&descriptors, services).expect("written");
    let mut node = Command::new("node");
    node.arg(script("connect_web.mjs"))
        .arg(url)
        .arg(&descriptors)
        .args(flags)
        .envs(variables.iter().copied());
    if let Some(authority) = authority {
        node.env("NODE_EXTRA_CA_CERTS", authority.path("ca.pem"));
    }
    run(&mut node)
}

/// Runs grpcio against the agent.
fn grpcio(agent: &Agent, arguments: &[&str]) -> (String, bool) {
    let mut python = Command::new(tool("python/bin/python"));
    python
        .arg(script("grpcio_client.py"))
        .args(["--target", &agent.address().to_string()])
        .args(arguments);
    run(&mut python)
}

const CONNECT_WEB_CASES: [&str; 19] = [
    "campaign",
    "token_is_that_of_rest",
    "campaign_lost",
    "get_leader",
    "list_leaders",
    "extend_elected_term",
    "extend_refused",
    "handover",
    "resign",
    "get_leader_of_a_vacant_election",
    "list_changes_and_waiters",
    "about_the_agent",
    "get_pods",
    "invalid_argument",
    "unknown_method",
    "too_large",
    "messages_in_json",
    "health_check",
    "health_watch",
];

const GRPCIO_CASES: [&str; 19] = [
    "health_check",
    "campaign",
    "campaign_again_with_the_same_id",
    "campaign_lost",
    "get_leader",
    "list_leaders",
    "extend_elected_term",
    "extend_refused",
    "handover",
    "resign",
    "get_leader_of_a_vacant_election",
    "get_pods",
    "invalid_argument",
    "unknown_method",
    "too_large",
    "deadline",
    "health_check_of_nothing",
    "health_watch",
    "reflection",
];

#[tokio::test(flavor = "multi_thread")]
async fn connect_web_makes_every_call_over_http_and_https() {
    let plain = Fixture::on(Store::Memory).await.agent;
    let url = format!("http://{}", plain.address());
    assert_all_passed(connect_web(&url, None), &CONNECT_WEB_CASES);

    let authority = Authority::new();
    authority.issue("localhost");
    let encrypted = Agent::start(&authority.settings()).await;
    let url = format!("https://{}", encrypted.address());
    assert_all_passed(connect_web(&url, Some(&authority)), &CONNECT_WEB_CASES);
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcio_makes_every_call_over_plaintext_and_tls() {
    let plain = Fixture::on(Store::Memory).await.agent;
    assert_all_passed(grpcio(&plain, &[]), &GRPCIO_CASES);

    let authority = Authority::new();
    authority.issue("localhost");
    let ca = authority.path("ca.pem");
    let encrypted = Agent::start(&authority.settings()).await;
    assert_all_passed(grpcio(&encrypted, &["--ca", &ca]), &GRPCIO_CASES);
}

/// The C core has the whole list for the authority of its requests.
#[tokio::test(flavor = "multi_thread")]
async fn grpcio_makes_every_call_with_a_list_of_addresses() {
    let agent = Fixture::on(Store::Memory).await.agent;
    let list = format!("ipv4:{},127.0.0.1:{}", agent.address(), free_port());
    assert_all_passed(grpcio(&agent, &["--target", &list]), &GRPCIO_CASES);
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcio_shows_a_client_certificate() {
    let authority = Authority::new();
    authority.issue("localhost");
    authority.issue("worker");
    let ca = authority.path("ca.pem");
    let mut settings = authority.settings();
    settings.push(("EA_TLS_CLIENT_CA_FILE".to_owned(), ca.clone()));
    let agent = Agent::start(&settings).await;
    let (cert, key) = (authority.path("worker.crt"), authority.path("worker.key"));
    let shown = ["--ca", &ca, "--cert", &cert, "--key", &key];
    assert_all_passed(grpcio(&agent, &shown), &GRPCIO_CASES);

    // The agent requires one: without it nothing is answered.
    let (printed, _) = grpcio(&agent, &["--ca", &ca]);
    let (case, error) = &cases(&printed)[0];
    assert_eq!(case, "health_check");
    assert!(error.contains("StatusCode.UNAVAILABLE"), "{printed}");
}

/// Runs schemathesis against the agent, with these arguments and variables besides.
fn schemathesis(agent: &Agent, arguments: &[&str], variables: &[(&str, &str)]) -> (String, bool) {
    // It leaves notes where it is run.
    let directory = TempDir::new().expect("a directory");
    let mut schemathesis = Command::new(tool("python/bin/schemathesis"));
    schemathesis
        .current_dir(&directory)
        .env("SCHEMATHESIS_HOOKS", script("schemathesis_hooks.py"))
        .envs(variables.iter().copied())
        .arg("--no-color")
        .arg("--config-file")
        .arg(script("schemathesis.toml"))
        .args(["run", "--seed=1", "--generation-database=none"])
        .args(arguments)
        .arg(format!("http://{}/openapi.json", agent.address()));
    run(&mut schemathesis)
}

/// The operations whose answers have no end, which schemathesis would wait for.
const STREAMS: usize = 2;

/// Every operation was tested, and nothing was found.
fn assert_nothing_found((printed, fine): (String, bool)) {
    assert!(fine, "{printed}");
    let operations: usize = openapi::documented().values().map(Vec::len).sum();
    let operations = operations - STREAMS;
    assert!(
        printed.contains(&format!("Tested: {operations}\n")),
        "not {operations} operations were tested: {printed}"
    );
}

/// `SCHEMATHESIS_EXAMPLES` is for each operation; the seed is fixed, so a failure comes again.
fn examples() -> usize {
    let examples = std::env::var("SCHEMATHESIS_EXAMPLES");
    examples.map_or(50, |given| given.parse().expect("a number"))
}

// The document allows every term that an agent may be configured to allow.
const LONGEST_TERM: (&str, &str) = ("EA_MAX_TERM", "24h");

// The test waits as long as the agent does.
const SHORT_WAITS: (&str, &str) = ("EA_MAX_WAIT", "1s");

/// Whatever names schemathesis makes up, and whatever it requests.
fn permit_everything(directory: &TempDir) {
    let all = "permit (principal, action, resource);";
    fs::write(directory.path().join("all.cedar"), all).expect("written");
}

#[tokio::test(flavor = "multi_thread")]
async fn schemathesis_finds_nothing_that_the_openapi_document_does_not_say() {
    let directory = TempDir::new().expect("a directory");
    permit_everything(&directory);
    let policies = directory.path().display().to_string();
    let settings = owned(&[LONGEST_TERM, SHORT_WAITS, ("EA_AUTH_POLICY_DIR", &policies)]);
    let agent = Agent::start(&settings).await;
    let examples = format!("--max-examples={}", examples());
    assert_nothing_found(schemathesis(&agent, &["--checks=all", &examples], &[]));
}

#[tokio::test(flavor = "multi_thread")]
async fn schemathesis_finds_nothing_where_credentials_are_needed_and_no_way_around_them() {
    let directory = TempDir::new().expect("a directory");
    let at = |name: &str| directory.path().join(name).display().to_string();
    let (token, line) = new_token(&["worker"]);
    fs::write(at("tokens"), line).expect("written");
    permit_everything(&directory);
    let start = async |modes: &str| {
        Agent::start(&[
            LONGEST_TERM,
            SHORT_WAITS,
            ("EA_AUTH_MODES", modes),
            ("EA_AUTH_TOKEN_FILE", &at("tokens")),
            (
                "EA_AUTH_POLICY_DIR",
                &directory.path().display().to_string(),
            ),
        ])
        .await
    };
    let bearer = format!("Authorization: Bearer {token}");
    let shown = ["--header", &bearer];
    let needed = [("CREDENTIALS_NEEDED", "1")];
    let agent = start("token").await;
    let examples = format!("--max-examples={}", (examples() / 5).max(1));
    let all = [&["--checks=all", &examples][..], &shown].concat();
    assert_nothing_found(schemathesis(&agent, &all, &needed));

    // A stranger gets 401, as documented; that it gets nothing else is no reason for a warning.
    let stranger = ["--checks=all", "--max-examples=3", "--warnings=off"];
    assert_nothing_found(schemathesis(&agent, &stranger, &needed));

    // It would have noticed an admitted request without a credential.
    let agent = start("none,token").await;
    let one = [
        "--checks=ignored_auth",
        "--max-examples=1",
        "--include-path=/elections",
    ];
    let (printed, fine) = schemathesis(&agent, &[&one[..], &shown].concat(), &needed);
    assert!(!fine, "{printed}");
    assert!(
        printed.contains("API accepts requests without authentication"),
        "{printed}"
    );
}
