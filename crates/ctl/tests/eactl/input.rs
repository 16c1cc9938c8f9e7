//! Mistakes are reported with what to change, and nothing is done.

use std::{fs, path::PathBuf};

use test_agent::Agent;

use crate::support::{eactl, file, finished, json, output, text};

/// Runs a command that leaves a mark, and checks that it did not run, and the message.
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

#[test]
fn what_the_kernel_does_not_know_is_not_given_to_a_shell() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().expect("a directory");
    let unknown = file(
        directory.path(),
        "unknown",
        b"\0\x01\ntouch ran\nexit 0\n",
        0o755,
    );
    let path = unknown.to_str().expect("text");
    refused_with(&agent.url(), &[], &[path], 126, &["unknown", "format"]);
    untouched(&agent);
}

#[test]
fn empty_variables_count_as_none_and_empty_files_are_told() {
    let agent = Agent::start();
    let unset = |arguments: &[&str]| {
        let mut command = eactl(&agent.url(), arguments);
        finished(command.env("ELECTION_AGENT_TOKEN_FILE", ""))
    };
    for arguments in [&["leaders"][..], &["man"]] {
        let done = unset(arguments);
        assert_eq!(done.status.code(), Some(0), "{done:?}");
    }
    let nobody = output("", &["leaders"]);
    assert!(
        text(&nobody.stderr).contains("ELECTION_AGENT_URL"),
        "{nobody:?}"
    );
    let directory = tempfile::tempdir().expect("a directory");
    let empty = file(directory.path(), "empty", "\n", 0o600);
    let empty = empty.to_str().expect("text");
    refused(
        &agent.url(),
        &["--token-file", empty],
        125,
        &["--token-file", "empty"],
    );
    refused(&agent.url(), &["--token-file", ""], 125, &["--token-file"]);
    let https = "https://127.0.0.1:1";
    refused(
        https,
        &["--ca", empty],
        125,
        &[empty, "there is no certificate in it"],
    );
    refused(
        https,
        &["--cert", empty, "--key", empty],
        125,
        &[empty, "there is no certificate in it"],
    );
    untouched(&agent);
}

#[test]
fn addresses_that_are_none_are_told() {
    for wrong in [
        "http://127.0.0.1:99999",
        "http://127.0.0.1:0",
        "http://127.0.0.1:",
        "http://host:port",
    ] {
        refused(wrong, &[], 125, &[wrong, "port"]);
    }
}

#[test]
fn a_terminal_obeys_nothing_of_what_is_told() {
    let nowhere = "http://127.0.0.1:1";
    let directory = tempfile::tempdir().expect("a directory");
    let name = directory.path().join("a\u{1b}[31mb");
    let arguments = ["run", "--election", "a", "--", name.to_str().expect("text")];
    let told = output(nowhere, &arguments);
    assert_eq!(told.status.code(), Some(127), "{told:?}");
    assert!(text(&told.stderr).contains("a\u{fffd}[31mb"), "{told:?}");
}

#[test]
fn errors_are_lines_of_json_too() {
    let failed = output("http://127.0.0.1:1", &["leaders", "--json"]);
    assert_eq!(failed.status.code(), Some(3), "{failed:?}");
    let told = json(&failed.stderr);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0]["exit_code"], 3);
    let error = told[0]["error"].as_str().expect("text");
    assert!(error.contains("http://127.0.0.1:1"), "{error}");
    assert!(failed.stdout.is_empty());
}
