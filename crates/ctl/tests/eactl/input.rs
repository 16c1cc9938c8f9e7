//! What is wrong is told, with what to change, and nothing is done.

use std::{fs, path::PathBuf};

use test_agent::Agent;

use crate::support::{eactl, file, finished, output, text};

/// Runs a command that leaves a mark, and checks that it was not run, and what was told.
#[track_caller]
fn refused(agent: &str, options: &[&str], code: i32, says: &[&str]) {
    refused_with(agent, options, &["touch", "ran"], code, says);
}

#[track_caller]
fn refused_with(agent: &str, options: &[&str], command: &[&str], code: i32, says: &[&str]) {
    let directory = tempfile::tempdir().expect("a directory");
    let arguments = [&["run", "--election", "a"], options, &["--"], command].concat();
    let output = finished(eactl(agent, &arguments).current_dir(directory.path()));
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{told}");
    for part in says {
        assert!(told.contains(part), "{part:?} is not in: {told}");
    }
    assert!(
        fs::read_dir(directory.path())
            .expect("there")
            .next()
            .is_none(),
        "it ran"
    );
}

/// No election is held.
#[track_caller]
fn untouched(agent: &Agent) {
    let listed = output(&agent.url(), &["leaders", "--all-kinds", "--json"]);
    assert_eq!(
        (listed.status.code(), text(&listed.stdout).as_str()),
        (Some(0), ""),
        "{listed:?}"
    );
}

#[test]
fn what_can_be_known_is_told_without_an_agent() {
    let nowhere = "http://127.0.0.1:1";
    refused(
        nowhere,
        &["--term", "10s", "--grace", "5s"],
        125,
        &["--term 11s", "--grace 4s 500ms"],
    );
    refused(
        nowhere,
        &["--status-fd", "77"],
        125,
        &["--status-fd 77", "not open", "77>FILE"],
    );
    refused(
        nowhere,
        &["--status-fd", "0"],
        125,
        &["--status-fd 0", "not open for writing"],
    );
    refused(nowhere, &["--term", "15"], 125, &["--term", "15s"]);
    refused(nowhere, &["--wait", "never"], 125, &["--wait", "forever"]);
    refused(
        nowhere,
        &["--token-file", "/nothing/there"],
        125,
        &["--token-file /nothing/there"],
    );
    refused(
        nowhere,
        &["--ca", "/nothing/there"],
        125,
        &["/nothing/there"],
    );
    refused(nowhere, &["--cert", "/nothing/there"], 125, &["--key"]);
    refused_with(
        nowhere,
        &[],
        &["no-such-command"],
        127,
        &["no-such-command", "PATH"],
    );
    refused_with(
        nowhere,
        &[],
        &["/no/such/command"],
        127,
        &["/no/such/command"],
    );
    refused_with(
        nowhere,
        &[],
        &["/etc/passwd"],
        126,
        &["/etc/passwd", "chmod +x"],
    );
    refused_with(nowhere, &[], &["/etc"], 126, &["a directory"]);

    let unnamed = eactl("", &["leaders"])
        .env_remove("ELECTION_AGENT_URL")
        .output()
        .expect("runs");
    assert_eq!(unnamed.status.code(), Some(125));
    assert!(
        text(&unnamed.stderr).contains("ELECTION_AGENT_URL"),
        "{unnamed:?}"
    );
}

#[test]
fn every_agent_that_is_not_reached_is_named() {
    let both = "http://127.0.0.1:1,http://127.0.0.1:2";
    let says = ["127.0.0.1:1: ", "127.0.0.1:2: ", "refused"];
    refused(both, &[], 125, &says);
    refused(both, &["--wait", "forever"], 125, &says);
    refused(both, &["--again"], 125, &says);
    assert_eq!(
        output(both, &["verify", "a", "--token", "5"]).status.code(),
        Some(3),
        "not known"
    );
}

#[test]
fn an_agent_without_tls_is_not_taken_for_one_with() {
    let agent = Agent::start();
    let url = format!("https://{}", agent.address());
    refused(&url, &["--wait", "forever"], 125, &[agent.address()]);
    untouched(&agent);
}

#[test]
fn terms_and_names_are_the_agents_to_judge() {
    let agent = Agent::start();
    refused(&agent.url(), &["--term", "90s"], 125, &["term"]);
    refused(
        &agent.url(),
        &["--term", "500ms", "--grace", "0"],
        125,
        &["term"],
    );
    refused(
        &agent.url(),
        &["--wait", "forever", "--term", "90s"],
        125,
        &["term"],
    );
    refused(&agent.url(), &["--kind", "a/b"], 125, &["kind"]);
    refused(
        &agent.url(),
        &["--candidate", "a\u{7}b"],
        125,
        &["candidate"],
    );
    untouched(&agent);
}

/// A bearer token, and the line that knows it.
const TOKEN: &str = "ea_7wL3tsVui-92A9YDUWPB2yVk-fik-3Z2-_VN2p4UjC0";
const KNOWN: &str =
    "right sha256:6115b1783b3ca2db4f784d433ab662b1d51b4c6041a4c781a4fcfd7549837c53 a\n";

#[test]
fn wrong_tokens_and_forbidden_names_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |path: PathBuf| path.to_str().expect("text").to_owned();
    let known = path(file(directory.path(), "known", KNOWN, 0o600));
    let right = path(file(directory.path(), "right", TOKEN, 0o600));
    let wrong = path(file(directory.path(), "wrong", "ea_wrong", 0o600));
    let agent = Agent::with(&[("EA_AUTH_MODES", "token"), ("EA_AUTH_TOKEN_FILE", &known)]);
    let url = agent.url();
    refused(&url, &[], 125, &["UNAUTHENTICATED"]);
    refused(
        &url,
        &["--token-file", &wrong, "--wait", "forever"],
        125,
        &["UNAUTHENTICATED"],
    );
    // Callers campaign under their own names.
    let forbidden = ["--token-file", &right, "--candidate", "other"];
    refused(&url, &forbidden, 125, &["PERMISSION_DENIED"]);
    refused(
        &url,
        &[&forbidden[..], &["--wait", "forever"]].concat(),
        125,
        &["PERMISSION_DENIED"],
    );

    let script = "echo $ELECTION_AGENT_CANDIDATE; exit 8";
    let arguments = [
        "run",
        "--election",
        "a",
        "--candidate",
        "right/1",
        "--",
        "sh",
        "-c",
        script,
    ];
    let allowed = eactl(&url, &arguments)
        .env("ELECTION_AGENT_TOKEN_FILE", &right)
        .output()
        .expect("runs");
    assert_eq!(
        (allowed.status.code(), text(&allowed.stdout).trim()),
        (Some(8), "right/1"),
        "{allowed:?}"
    );
}

#[test]
fn a_script_without_an_interpreter_is_not_run() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().expect("a directory");
    let no_line = file(directory.path(), "no-line", "touch ran\n", 0o755);
    let no_interpreter = file(
        directory.path(),
        "no-interpreter",
        "#!/no/such/interpreter\n",
        0o755,
    );
    let path = |path: &std::path::Path| path.to_str().expect("text").to_owned();
    refused_with(&agent.url(), &[], &[&path(&no_line)], 126, &["#!/bin/sh"]);
    refused_with(
        &agent.url(),
        &[],
        &[&path(&no_interpreter)],
        126,
        &["interpreter"],
    );
    untouched(&agent);
}
