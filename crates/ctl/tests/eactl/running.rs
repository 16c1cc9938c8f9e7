//! The environment of a command, and the effect of its end.

use std::{
    io::{Read as _, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
};

use rustix::{
    fs::{OFlags, fcntl_setfl},
    process::Pid,
};
use test_agent::Agent;

use crate::support::{
    Run, SHORT, dead, deadman, descriptors, eactl, events, eventually, json, living, output,
    processes, text,
};

fn code(agent: &Agent, command: &[&str]) -> Option<i32> {
    let arguments = [&["run", "--election", "codes", "--"], command].concat();
    output(&agent.url(), &arguments).status.code()
}

#[test]
fn the_commands_code_is_the_supervisors() {
    let agent = Agent::start();
    assert_eq!(code(&agent, &["true"]), Some(0));
    assert_eq!(code(&agent, &["sh", "-c", "exit 42"]), Some(42));
    assert_eq!(code(&agent, &["sh", "-c", "kill -KILL $$"]), Some(137));
    assert_eq!(code(&agent, &["sh", "-c", "kill -SEGV $$"]), Some(139));
    // Each of them has resigned: the next was elected without waiting.
    assert_eq!(
        text(&output(&agent.url(), &["leaders", "--json"]).stdout),
        ""
    );
}

#[test]
fn a_command_that_closes_everything_ends_like_any_other() {
    let agent = Agent::start();
    let script = "exec 0<&- 1>&- 2>&-; sleep 0.1; exit 6";
    assert_eq!(code(&agent, &["sh", "-c", script]), Some(6));
}

#[test]
fn a_command_gets_what_it_was_given_and_nothing_else() {
    let agent = Agent::start();
    let script = r#"
        echo "$1|$2|$ELECTION_AGENT_ELECTION|$ELECTION_AGENT_KIND|$ELECTION_AGENT_CANDIDATE|$ELECTION_AGENT_TOKEN_FILE"
        echo "$ELECTION_AGENT_TOKEN"
        cat
    "#;
    let arguments = ["run", "--election", "e", "--kind", "k", "--candidate", "c"];
    let command = ["--", "sh", "-c", script, "sh", "a b", "$HOME"];
    let mut child = eactl(&agent.url(), &[&arguments[..], &command].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut input = child.stdin.take().expect("piped");
    input.write_all(b"the input").expect("written");
    drop(input);
    let output = child.wait_with_output().expect("ends");
    let text = text(&output.stdout);
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("a b|$HOME|e|k|c|"));
    let token: u64 = lines
        .next()
        .and_then(|line| line.parse().ok())
        .expect("a token");
    assert!(token > 0);
    assert_eq!(lines.next(), Some("the input"));
    assert!(output.status.success());

    // As one has without a supervisor: some test runners leave descriptors open.
    let plain = Command::new("ls")
        .arg("/proc/self/fd")
        .stdin(Stdio::null())
        .output();
    let arguments = ["run", "--election", "e", "--", "ls", "/proc/self/fd"];
    let open = crate::support::output(&agent.url(), &arguments).stdout;
    assert_eq!(
        crate::support::text(&open),
        crate::support::text(&plain.expect("runs").stdout)
    );
}

#[test]
fn two_do_not_run_at_once_and_the_second_says_who_leads() {
    let agent = Agent::start();
    let script = "echo >up; read line <go || sleep 60";
    let run = Run::start(&agent.url(), "a", &["--candidate", "first"], script);
    run.wait_for("up");
    let arguments = [
        "run",
        "--election",
        "a",
        "--candidate",
        "second",
        "--",
        "echo",
        "ran",
    ];
    let refused = output(&agent.url(), &arguments);
    assert_eq!(refused.status.code(), Some(124));
    assert_eq!(text(&refused.stdout), "");
    assert!(text(&refused.stderr).contains("first leads"), "{refused:?}");
    let waits = [&arguments[..1], &["--wait", "300ms"], &arguments[1..]].concat();
    assert_eq!(output(&agent.url(), &waits).status.code(), Some(124));
}

#[test]
fn processes_are_three_and_hold_only_what_they_need() {
    let agent = Agent::start();
    let run = Run::start(
        &agent.url(),
        "a",
        &SHORT,
        "sh -c : & wait; echo $$ >group; sleep 60",
    );
    let group = run.pid_in("group");
    let own = run.pid().as_raw_nonzero().get();
    let children: Vec<_> = processes()
        .into_iter()
        .filter(|process| process.parent == own)
        .collect();
    assert_eq!(children.len(), 2, "{children:?}");
    assert!(
        children.iter().all(|process| process.state != 'Z'),
        "{children:?}"
    );
    assert_ne!(group.as_raw_nonzero().get(), own, "a group of its own");

    let watch = deadman(group).expect("watches");
    let open = descriptors(watch.pid);
    let kinds: Vec<_> = open
        .iter()
        .map(|(_, file)| file.split([':', '[']).next().unwrap_or_default())
        .collect();
    let count = |kind: &str| kinds.iter().filter(|other| other.starts_with(kind)).count();
    assert_eq!(count("socket"), 1, "{open:?}");
    assert_eq!(count("/memfd"), 1, "{open:?}");
    assert_eq!(count("/dev/null"), 1, "{open:?}");
    assert_eq!(
        count("anon_inode"),
        2,
        "a timer, and its group's leader: {open:?}"
    );
    assert_eq!(open.len(), 5, "{open:?}");
    let environment = std::fs::read(format!("/proc/{}/environ", watch.pid)).expect("there");
    assert!(environment.is_empty());
}

/// Runs a script with status lines to this pipe.
fn with_status(agent: &Agent, writer: impl Into<Stdio>, directory: &Path, script: &str) -> Child {
    let exec = r#"exec "$0" "$@" 9>&1 >out 2>&1"#;
    let mut command = Command::new("sh");
    command.args([
        "-c",
        exec,
        env!("CARGO_BIN_EXE_eactl"),
        "run",
        "--election",
        "a",
        "--status-fd",
        "9",
    ]);
    command.args(SHORT).args(["--", "sh", "-c", script]);
    command
        .env("ELECTION_AGENT_URL", agent.url())
        .current_dir(directory);
    command
        .stdin(Stdio::null())
        .stdout(writer)
        .spawn()
        .expect("starts")
}

#[test]
fn status_lines_end_with_the_leadership() {
    let mut agent = Agent::start();
    let directory = tempfile::tempdir().expect("a directory");
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    // The command ignores that it is asked to end, and outlives the stream.
    let script = r#"trap "" TERM; echo $$ >group; while :; do sleep 0.01; done"#;
    let mut child = with_status(&agent, writer, directory.path(), script);
    let group = eventually("it runs", || {
        let group = std::fs::read_to_string(directory.path().join("group")).ok()?;
        Pid::from_raw(group.trim().parse().ok()?)
    });
    agent.kill();
    let mut lines = String::new();
    reader.read_to_string(&mut lines).expect("text");
    assert!(
        !living(group).is_empty(),
        "it has a grace after the end of the stream"
    );
    let lines = json(lines.as_bytes());
    let events: Vec<_> = lines
        .iter()
        .map(|line| line["event"].as_str().expect("text"))
        .collect();
    assert_eq!((events[0], events[events.len() - 1]), ("elected", "over"));
    assert_eq!(
        (lines[0]["kind"].as_str(), lines[0]["election"].as_str()),
        (Some("default"), Some("a"))
    );
    dead(group);
    assert_eq!(child.wait().expect("ends").code(), Some(123));
}

#[test]
fn a_reader_of_status_lines_that_is_full_or_gone_holds_nothing_up() {
    let agent = Agent::start();
    for gone in [true, false] {
        let directory = tempfile::tempdir().expect("a directory");
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        // Filled to the brim: another byte would block.
        fcntl_setfl(&writer, OFlags::NONBLOCK).expect("set");
        while writer.write(&[b'x'; 4096]).is_ok() {}
        let reader = Some(reader).filter(|_| !gone);
        // Longer than a term.
        let mut child = with_status(&agent, writer, directory.path(), "sleep 4; exit 3");
        assert_eq!(child.wait().expect("ends").code(), Some(3), "gone: {gone}");
        drop(reader);
    }
}

#[test]
fn status_lines_go_to_a_socket_too() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().expect("a directory");
    let (mut reader, writer) = std::os::unix::net::UnixStream::pair().expect("sockets");
    let writer = std::os::fd::OwnedFd::from(writer);
    let mut child = with_status(&agent, writer, directory.path(), "exit 3");
    let mut lines = String::new();
    reader.read_to_string(&mut lines).expect("text");
    assert_eq!(child.wait().expect("ends").code(), Some(3));
    let lines = json(lines.as_bytes());
    assert_eq!(lines[0]["event"], "elected");
    assert_eq!(lines[lines.len() - 1]["event"], "over");
}

#[test]
fn status_lines_and_output_do_not_overwrite_each_other() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("both");
    let both = std::fs::File::create(&path).expect("created");
    let arguments = [
        "run",
        "--election",
        "a",
        "--status-fd",
        "1",
        "--",
        "echo",
        r#"{"event":"output"}"#,
    ];
    let mut command = eactl(&agent.url(), &arguments);
    assert!(command.stdout(both).status().expect("runs").success());
    let lines = json(&std::fs::read(path).expect("there"));
    assert_eq!(events(&lines), ["elected", "output", "over"]);
}

#[test]
fn status_lines_go_to_a_pipe_that_may_not_be_opened() {
    // Without rights over files of users that are not the namespace's.
    let unshare = ["unshare", "--user"];
    let possible = Command::new(unshare[0]).args([unshare[1], "true"]).status();
    if !possible.is_ok_and(|status| status.success()) {
        return;
    }
    let agent = Agent::start();
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    rustix::fs::fchmod(&writer, rustix::fs::Mode::empty()).expect("set");
    let mut command = Command::new(unshare[0]);
    command
        .args([unshare[1], env!("CARGO_BIN_EXE_eactl"), "run"])
        .args(["--election", "a", "--status-fd", "1", "--", "true"])
        .env("ELECTION_AGENT_URL", agent.url())
        .stdout(writer);
    let mut child = command.spawn().expect("starts");
    drop(command);
    let mut lines = String::new();
    reader.read_to_string(&mut lines).expect("text");
    assert_eq!(child.wait().expect("ends").code(), Some(0), "{lines}");
    assert_eq!(json(lines.as_bytes())[0]["event"], "elected");
}
