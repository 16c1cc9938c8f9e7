//! The other commands.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use test_agent::Agent;

use crate::support::{
    Run, SOON, descriptors, eactl, eventually, json, on_a_terminal, output, text,
};

/// A program whose lines are read as they come.
struct Lines {
    child: Child,
    lines: mpsc::Receiver<String>,
    errors: mpsc::Receiver<String>,
}

impl Lines {
    fn of(agent: &str, arguments: &[&str]) -> Self {
        let mut command = eactl(agent, arguments);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let lines = lines(child.stdout.take().expect("piped"));
        let errors = lines_of_errors(&mut child);
        Self {
            child,
            lines,
            errors,
        }
    }

    fn next(&self) -> String {
        self.lines.recv_timeout(SOON).expect("a line")
    }

    fn next_json(&self) -> Value {
        serde_json::from_str(&self.next()).expect("JSON")
    }

    fn ended_by(mut self, signal: Signal) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), signal).expect("there");
        eventually("it ends", || self.child.try_wait().expect("waits")).code()
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(from: impl std::io::Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

fn lines_of_errors(child: &mut Child) -> mpsc::Receiver<String> {
    lines(child.stderr.take().expect("piped"))
}

/// A leader under this name, and its token.
fn leader(agent: &Agent, election: &str, name: &str) -> (Lines, String) {
    let arguments = [
        "elect",
        "--election",
        election,
        "--candidate",
        name,
        "--value",
        "v",
        "--json",
    ];
    let elected = Lines::of(&agent.url(), &arguments);
    let line = elected.next_json();
    assert_eq!(line["event"], "elected");
    assert_eq!(line["candidate"], name);
    let token = line["token"].to_string();
    (elected, token)
}

#[test]
fn leaders_and_kinds_are_listed() {
    let agent = Agent::start();
    let empty = output(&agent.url(), &["leaders"]);
    assert_eq!(
        text(&empty.stdout),
        "KIND  ELECTION  LEADER  TOKEN  LEFT  VALUE\n"
    );
    let (_leader, token) = leader(&agent, "nightly", "worker 1");
    let table = text(&output(&agent.url(), &["leaders"]).stdout);
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(lines.len(), 2, "{table}");
    assert!(
        lines[0].starts_with("KIND     ELECTION  LEADER    TOKEN"),
        "{table}"
    );
    assert!(
        lines[1].starts_with(&format!("default  nightly   worker 1  {token}  ")),
        "{table}"
    );
    assert!(!table.contains('\u{1b}'), "{table:?}");

    let listed = json(&output(&agent.url(), &["leaders", "--all-kinds", "--json"]).stdout);
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["leader"], "worker 1");
    assert_eq!(listed[0]["token"].to_string(), token);
    assert_eq!(listed[0]["value"], "v");
    assert!(
        listed[0]["remaining"]
            .as_u64()
            .is_some_and(|left| (1..=15_000).contains(&left))
    );
    assert_eq!(
        json(&output(&agent.url(), &["kinds", "--json"]).stdout),
        [json!({ "kind": "default" })]
    );
    assert_eq!(text(&output(&agent.url(), &["kinds"]).stdout), "default\n");
    assert_eq!(
        text(&output(&agent.url(), &["leaders", "--kind", "other", "--json"]).stdout),
        ""
    );
}

#[test]
fn a_token_is_current_or_not_or_not_known() {
    let mut agent = Agent::start();
    let (_leader, token) = leader(&agent, "a", "first");
    let verify = |token: &str, more: &[&str]| {
        let arguments = [&["verify", "a", "--token", token], more].concat();
        let output = output(&agent.url(), &arguments);
        (output.status.code(), text(&output.stdout))
    };
    let (code, told) = verify(&token, &[]);
    assert_eq!(code, Some(0));
    assert!(told.starts_with("current: first leads"), "{told}");
    let (code, told) = verify(&token, &["--json"]);
    assert_eq!(code, Some(0));
    let told = json(told.as_bytes());
    assert_eq!(
        (&told[0]["current"], &told[0]["leader"]["leader"]),
        (&json!(true), &json!("first"))
    );
    let (code, told) = verify("5", &["--json"]);
    assert_eq!(code, Some(1));
    assert_eq!(json(told.as_bytes())[0]["reason"], "STALE_TOKEN");
    assert_eq!(verify("0", &[]).0, Some(125), "no token");
    agent.kill();
    let unknown = output(&agent.url(), &["verify", "a", "--token", &token]);
    assert_eq!(
        (unknown.status.code(), text(&unknown.stdout).as_str()),
        (Some(3), "")
    );
}

#[test]
fn a_leadership_is_given_up_or_handed_over_by_its_token() {
    let agent = Agent::start();
    let (_first, token) = leader(&agent, "a", "first");
    let stale = output(&agent.url(), &["resign", "a", "--token", "5"]);
    assert_eq!(stale.status.code(), Some(1));
    assert!(text(&stale.stderr).contains("first leads"), "{stale:?}");
    let named = output(
        &agent.url(),
        &["resign", "a", "--token", "5", "--candidate", "first"],
    );
    assert_eq!(named.status.code(), Some(1), "{named:?}");

    let handed = output(
        &agent.url(),
        &[
            "handover", "a", "--to", "second", "--token", &token, "--json",
        ],
    );
    assert_eq!(handed.status.code(), Some(0), "{handed:?}");
    assert_eq!(json(&handed.stdout)[0]["to"], "second");
    let listed = json(&output(&agent.url(), &["leaders", "--json"]).stdout);
    assert_eq!(listed[0]["leader"], "second");

    let token = listed[0]["token"].to_string();
    let resigned = output(&agent.url(), &["resign", "a", "--token", &token]);
    assert_eq!(
        (resigned.status.code(), text(&resigned.stdout).as_str()),
        (Some(0), "second has resigned\n")
    );
    let again = output(&agent.url(), &["resign", "a", "--token", &token]);
    assert_eq!(again.status.code(), Some(1), "{again:?}");
}

#[test]
fn a_leader_without_a_command_resigns_when_asked() {
    let agent = Agent::start();
    let (first, _) = leader(&agent, "a", "first");
    let second = output(
        &agent.url(),
        &["elect", "--election", "a", "--candidate", "second"],
    );
    assert_eq!(second.status.code(), Some(124));
    assert!(text(&second.stderr).contains("first leads"), "{second:?}");
    assert_eq!(first.ended_by(Signal::INT), Some(0));
    let (third, token) = leader(&agent, "a", "third");
    let handed = output(
        &agent.url(),
        &["handover", "a", "--to", "other", "--token", &token],
    );
    assert!(handed.status.success());
    let events: Vec<Value> = (0..)
        .map(|_| third.next_json())
        .take_while(|line| line["event"] != "lost")
        .collect();
    assert!(
        events.iter().all(|line| line["event"] == "extended"),
        "{events:?}"
    );
    let mut third = third;
    assert_eq!(
        eventually("it ends", || third.child.try_wait().expect("waits")).code(),
        Some(123)
    );
}

#[test]
fn observers_hear_of_changes() {
    let agent = Agent::start();
    let (first, token) = leader(&agent, "a", "first");
    let one = Lines::of(&agent.url(), &["observe", "a", "--json"]);
    let all = Lines::of(&agent.url(), &["observe", "--all-kinds"]);
    let state = one.next_json();
    assert_eq!(
        (&state["leader"], &state["cause"]),
        (&json!("first"), &json!("present"))
    );
    assert_eq!(state["token"].to_string(), token);
    assert_eq!(one.next_json(), json!({ "event": "synced" }));
    let line = all.next();
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(words, ["default/a", "first", &token, "present"]);
    assert_eq!(first.ended_by(Signal::TERM), Some(0));
    let state = one.next_json();
    assert_eq!(
        (&state["leader"], &state["cause"]),
        (&Value::Null, &json!("resign"))
    );
    let line = all.next();
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(words, ["default/a", "(vacant)", &token, "resign"]);
}

#[test]
fn an_observer_on_a_terminal_shows_a_table_with_the_time_that_is_left() {
    let agent = Agent::start();
    let (_first, token) = leader(&agent, "a", "first");
    let (printed, code) = on_a_terminal(&agent.url(), "exec $EACTL observe", &token, b"\x03");
    assert_eq!(code, Some(130), "{printed}");
    assert!(printed.contains("KIND"), "{printed}");
    assert!(printed.contains(&token), "{printed}");
    assert!(printed.contains('\u{1b}'), "{printed:?}");
}

/// `GET /` of a sidecar.
fn get(address: &str, path: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(address).expect("connected");
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
    )
    .expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .expect("a status");
    (status, serde_json::from_str(body).unwrap_or_default())
}

#[test]
fn a_sidecar_tells_who_leads() {
    let agent = Agent::start();
    let start = |name: &str| {
        let arguments = [
            "elect",
            "--election",
            "a",
            "--candidate",
            name,
            "--http",
            "127.0.0.1:0",
        ];
        let sidecar = Lines::of(&agent.url(), &arguments);
        let told = sidecar.errors.recv_timeout(SOON).expect("an address");
        let address = told
            .split("http://")
            .nth(1)
            .expect("a URL")
            .trim_end_matches('/')
            .to_owned();
        (sidecar, address)
    };
    let (first, one) = start("first");
    first.next();
    let (second, two) = start("second");
    let (status, answer) = get(&one, "/");
    assert_eq!(status, 200);
    assert_eq!(
        (&answer["name"], &answer["leading"]),
        (&json!("first"), &json!(true))
    );
    assert!(answer["valid_for"].as_u64().is_some_and(|left| left > 0));
    eventually("the second has observed it", || {
        let answer = get(&two, "/").1;
        let expected =
            json!({ "name": "first", "token": answer["token"], "leading": false, "valid_for": 0 });
        (answer == expected).then_some(())
    });
    assert_eq!(get(&one, "/other").0, 404);
    assert_eq!(first.ended_by(Signal::TERM), Some(0));
    second.next();
    let answer = get(&two, "/").1;
    assert_eq!(
        (&answer["name"], &answer["leading"]),
        (&json!("second"), &json!(true))
    );
    // As soon as it observes that another leads, and before its term is to be extended.
    let token = answer["token"].to_string();
    let handed = output(
        &agent.url(),
        &["handover", "a", "--to", "third", "--token", &token],
    );
    assert!(handed.status.success(), "{handed:?}");
    eventually("the third leads", || {
        let answer = get(&two, "/").1;
        (answer["name"] == "third" && answer["leading"] == false).then_some(())
    });
}

#[test]
fn a_sidecars_address_in_use_is_told() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let output = output(
        "http://127.0.0.1:1",
        &["elect", "--election", "a", "--http", &address],
    );
    assert_eq!(output.status.code(), Some(125));
    assert!(
        text(&output.stderr).contains(&format!("--http {address}")),
        "{output:?}"
    );
}

#[test]
fn pods_are_asked_for_by_namespace_and_deployment() {
    let agent = Agent::start();
    let off = output(&agent.url(), &["pods", "shop/worker"]);
    assert_eq!(off.status.code(), Some(125));
    assert!(text(&off.stderr).contains("UNIMPLEMENTED"), "{off:?}");
    let wrong = output(&agent.url(), &["pods", "worker"]);
    assert_eq!(wrong.status.code(), Some(125));
    assert!(
        text(&wrong.stderr).contains("NAMESPACE/DEPLOYMENT"),
        "{wrong:?}"
    );
}

#[test]
fn completions_and_the_manual_page_name_every_command() {
    let commands = [
        "run", "elect", "observe", "leaders", "kinds", "resign", "handover", "verify", "pods",
    ];
    for shell in ["bash", "zsh", "fish"] {
        let output = output("", &["completions", shell]);
        assert!(output.status.success());
        let script = text(&output.stdout);
        for command in commands {
            assert!(script.contains(command), "{shell}: {command}");
        }
        assert!(!script.contains("__exec") && !script.contains("__deadman"));
    }
    let bash = text(&output("", &["completions", "bash"]).stdout);
    let syntax = Command::new("bash")
        .args(["-n", "-c", &bash])
        .status()
        .expect("runs");
    assert!(syntax.success());
    let page = text(&output("", &["man"]).stdout);
    for command in commands {
        assert!(
            page.contains(&format!(".SH {}", command.to_uppercase())),
            "{command}"
        );
    }
    for code in ["123", "124", "125", "126", "127"] {
        assert!(page.contains(&format!("\\fB{code}\\fR")), "{code}");
    }
    assert_eq!(
        output("", &["completions", "tcsh"]).status.code(),
        Some(125)
    );
}

#[test]
fn a_copy_works_and_replaces_one_that_runs() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("copy");
    let to = path.to_str().expect("text");
    for _ in 0..2 {
        assert_eq!(output("", &["install", to]).status.code(), Some(0));
        let version = Command::new(&path).arg("--version").output().expect("runs");
        assert!(text(&version.stdout).starts_with("eactl "), "{version:?}");
    }
    let agent = Agent::start();
    let mut command = Command::new(&path);
    command.args([
        "run",
        "--agent",
        &agent.url(),
        "--election",
        "a",
        "--",
        to,
        "install",
        to,
    ]);
    assert_eq!(command.status().expect("runs").code(), Some(0));
    assert_eq!(
        std::fs::read_dir(directory.path()).expect("there").count(),
        1
    );
    let nowhere = output("", &["install", "/nothing/there"]);
    assert_eq!(nowhere.status.code(), Some(125));
    assert!(
        text(&nowhere.stderr).contains("/nothing/there"),
        "{nowhere:?}"
    );
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    let agent = Agent::start();
    let run = Run::start(&agent.url(), "a", &[], "echo >up; exec sleep 60");
    run.wait_for("up");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = eactl(&agent.url(), &["leaders"]);
    let child = command
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let output = child.wait_with_output().expect("ends");
    assert_eq!(
        (output.status.code(), text(&output.stderr).as_str()),
        (Some(0), "")
    );
}

#[test]
fn a_leader_whose_output_fails_gives_its_leadership_up() {
    let agent = Agent::start();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let full = std::fs::File::options().write(true).open("/dev/full");
    let arguments = ["elect", "--election", "a", "--term", "30s", "--json"];
    drop(reader);
    let outputs = [
        (Stdio::from(writer), 0),
        (Stdio::from(full.expect("Linux")), 125),
    ];
    for (stdout, code) in outputs {
        let mut command = eactl(&agent.url(), &arguments);
        let status = command.stdout(stdout).stderr(Stdio::null()).status();
        assert_eq!(status.expect("runs").code(), Some(code));
        let held = output(&agent.url(), &["leaders", "--json"]);
        assert_eq!(text(&held.stdout), "", "the next may lead");
    }
}

#[test]
fn a_sidecar_says_what_it_takes_and_has_room_for_itself() {
    let agent = Agent::start();
    let arguments = ["elect", "--election", "a", "--http", "127.0.0.1:0"];
    let sidecar = Lines::of(&agent.url(), &arguments);
    let told = sidecar.errors.recv_timeout(SOON).expect("an address");
    let address = told.split("http://").nth(1).expect("a URL");
    let address = address.trim_end_matches('/');
    let connect = || TcpStream::connect(address).expect("listens");
    let mut posted = connect();
    std::io::Write::write_all(
        &mut posted,
        b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    )
    .expect("sent");
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut posted, &mut answer).expect("text");
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    assert!(answer.contains("allow: GET, HEAD"), "{answer}");
    let pid = i32::try_from(sidecar.child.id()).expect("a number");
    let before = descriptors(pid).len();
    let idle: Vec<_> = (0..320).map(|_| connect()).collect();
    let open = eventually("they are accepted", || {
        let open = descriptors(pid).len();
        (open >= before + 256).then_some(open)
    });
    // A few more for the agent.
    assert!(open < before + 280, "{open} files, {before} before");
    drop(idle);
    assert_eq!(get(address, "/").0, 200);
}
