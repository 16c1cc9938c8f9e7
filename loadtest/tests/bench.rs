//! `loadtest bench`, `growth`, `wait`, `observe` and `lead`, with real servers and a real agent. The figures
//! mean nothing here: builds are debug builds, and loads are short.

#![expect(
    clippy::expect_used,
    reason = "a test that cannot go on should say where"
)]

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

fn loadtest(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.args(arguments);
    command
}

/// As above, with a limit of the shell's `ulimit`.
fn limited(limit: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit {limit} && exec \"$@\""), "sh"]);
    command.arg(env!("CARGO_BIN_EXE_loadtest")).args(arguments);
    command
}

fn printed(output: &Output) -> String {
    let printed = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8(printed).expect("text")
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

#[test]
fn bench_measures_five_figures_beside_their_bars() {
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("bench.json");
    let output = loadtest(&["bench", "--rounds", "1", "--duration", "1s"])
        .args(["--clients", "10", "--open", "50", "--agent"])
        .arg(test_agent::binary())
        .arg("--json")
        .arg(&file)
        // The environment must not configure the agent.
        .env("EA_REDIS_URLS", "redis://127.0.0.1:1")
        .output()
        .expect("it runs");
    let text = printed(&output);
    let document = fs::read_to_string(&file).expect(&text);
    let document: Value = serde_json::from_str(&document).expect("JSON");

    let figures = document["figures"].as_array().expect("figures");
    assert_eq!(figures.len(), 5, "{text}");
    for figure in figures {
        assert!(number(&figure["measured"]["median"]) > 0.0, "{figure}");
        assert!(number(&figure["bar"]) > 0.0, "{figure}");
        let name = figure["name"].as_str().expect("a name");
        let row = text.lines().find(|line| line.contains(name)).expect(name);
        let met = if figure["met"] == true { "yes" } else { "NO" };
        assert!(row.trim_end().ends_with(&format!("| {met:<4} |")), "{row}");
    }
    let ratios = figures.iter().filter(|figure| !figure["beside"].is_null());
    let ratios: Vec<_> = ratios
        .map(|figure| number(&figure["beside"]["ratio"]["median"]))
        .collect();
    assert_eq!(ratios.len(), 4, "{text}");
    assert!(ratios.iter().all(|ratio| *ratio > 0.0), "{text}");

    let rounds = document["rounds"].as_array().expect("rounds");
    assert_eq!(rounds.len(), 1);
    for load in ["floor", "health", "grpc", "rest"] {
        let report = &rounds[0][load];
        assert!(number(&report["requests"]) > 0.0, "{load}: {report}");
        assert_eq!(
            report["errors"],
            Value::Object(Default::default()),
            "{load}"
        );
    }
    assert_eq!(rounds[0]["grpc"]["redis"].as_array().map(Vec::len), Some(3));

    let all = figures.iter().all(|figure| figure["met"] == true);
    assert_eq!(document["met"], all);
    assert_eq!(
        output.status.code(),
        Some(if all { 0 } else { 1 }),
        "{text}"
    );
    let last = text.contains(if all { "all bars met" } else { "missed: " });
    assert!(last, "{text}");
}

#[test]
fn growth_has_a_row_for_each_step() {
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("growth.json");
    // It raises the limit as far as it may.
    let output = limited(
        "-Sn 100",
        &["growth", "--duration", "200ms", "--clients", "2,150"],
    )
    .args(["--nodes", "1", "--elections", "500,300", "--agent"])
    .arg(test_agent::binary())
    .arg("--json")
    .arg(&file)
    .output()
    .expect("it runs");
    let text = printed(&output);
    assert!(output.status.success(), "{text}");
    let document = fs::read_to_string(&file).expect("written");
    let document: Value = serde_json::from_str(&document).expect("JSON");
    let numbers = |what: &str| {
        let rows = document[what].as_array().expect(what);
        let number = rows.iter().map(|row| number(&row["number"]));
        number.collect::<Vec<_>>()
    };
    assert_eq!(numbers("clients"), [2.0, 150.0]);
    assert_eq!(numbers("nodes"), [1.0]);
    // 300 are rounded up to 400: each of 200 clients wins the same number.
    assert_eq!(numbers("elections"), [400.0, 500.0]);
    let held = &document["elections"][1];
    assert!(number(&held["documents"]["page"]) > 0.0, "{held}");
    assert_eq!(text.matches("requests/s").count(), 3, "{text}");
}

/// Checks that the table agrees with the document on each figure, and returns the values by name.
fn figures<'a>(document: &'a Value, text: &str) -> BTreeMap<&'a str, f64> {
    let figures = document.as_array().expect("figures");
    let values = figures.iter().map(|figure| {
        let name = figure["name"].as_str().expect("a name");
        let row = text.lines().find(|line| line.contains(name)).expect(name);
        let within = match figure["goal"].as_f64() {
            None => "",
            Some(goal) if number(&figure["value"]) <= goal => "yes",
            Some(_) => "NO",
        };
        assert!(
            row.trim_end().ends_with(&format!("| {within:<4} |")),
            "{row}"
        );
        (name, number(&figure["value"]))
    });
    values.collect()
}

/// Runs a measurement of the agent, and returns the figures that it writes to a file.
fn written(arguments: &[&str], agent: &Path) -> (Output, Value) {
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("figures.json");
    let output = loadtest(arguments)
        .arg("--agent")
        .arg(agent)
        .arg("--json")
        .arg(&file)
        .output()
        .expect("it runs");
    let text = printed(&output);
    let document = fs::read_to_string(&file).expect(&text);
    (output, serde_json::from_str(&document).expect("JSON"))
}

/// Creates a script that starts an agent with other settings than the measurement's.
fn agent_with(directory: &TempDir, settings: &str) -> PathBuf {
    let script = directory.path().join("agent");
    let text = format!(
        "#!/bin/sh\n{settings} exec {}\n",
        test_agent::binary().display()
    );
    fs::write(&script, text).expect("written");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("a program");
    script
}

const WAIT: [&str; 11] = [
    "wait",
    "--waiters",
    "40",
    "--elections",
    "4",
    "--connections",
    "4",
    "--wait",
    "3s",
    "--idle",
    "1s",
];

#[test]
fn wait_measures_changes_and_waiters_beside_their_goals() {
    let more = ["--agents", "1,2", "--changes", "8"];
    let (output, document) = written(&[&WAIT[..], &more].concat(), &test_agent::binary());
    let text = printed(&output);
    // A missed goal is no error: this is a debug build.
    assert!(output.status.success(), "{text}");
    for (agents, claims) in [("1", 0.5), ("2", 0.25)] {
        let table = text.split("Agents: ").find(|table| {
            table.starts_with(&format!("{agents}; waiting campaigns: 40;")) && table.contains('|')
        });
        let found = figures(&document[agents], table.expect(&text));
        for change in ["resign → next leader", "end of term → next leader"] {
            let of = |what: &str| found[&*format!("{change}: {what}")];
            assert!(of("p50") <= of("p99") && of("p99") <= of("max"), "{text}");
            assert!(of("p50") > 0.0 && of("CPU of this tool") > 0.0, "{text}");
            // One agent claims every change but those that a renewed campaign meets; another may learn of it first.
            assert!(of("claims an agent") >= claims, "{text}");
        }
        assert!(
            found["idle, waits are renewed: how many a second"] > 0.0,
            "{text}"
        );
        assert!(found.contains_key("idle: CPU of an agent"), "{text}");
        assert!(found.contains_key("idle: memory of a waiter"), "{text}");
    }
}

#[test]
fn two_leaders_are_no_measure() {
    let directory = TempDir::new().expect("a directory");
    // Each agent has its own leases.
    let apart = agent_with(&directory, "unset EA_REDIS_URLS; EA_STORE=memory");
    let output = loadtest(&WAIT)
        .args(["--agents", "2", "--agent"])
        .arg(apart)
        .output()
        .expect("it runs");
    let text = printed(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("has two leaders"), "{text}");
}

#[test]
fn observe_measures_changes_and_commands_beside_their_goals() {
    let arguments = [
        "observe",
        "--observers",
        "40",
        "--connections",
        "4",
        "--changes",
        "3",
        "--watched",
        "20",
        "--idle",
        "2s",
    ];
    let (output, document) = written(&arguments, &test_agent::binary());
    let text = printed(&output);
    assert!(output.status.success(), "{text}");
    let found = figures(&document, &text);
    let of = |what: &str| found[&*format!("change → the last observer has it: {what}")];
    assert!(of("p50") > 0.0 && of("p50") <= of("max"), "{text}");
    let each = "an observer and change: CPU of this tool";
    assert!(found[each] > 0.0, "{text}");
    // Twenty leaders extend every five seconds at three servers.
    let extensions = found["Redis commands a second: without it"];
    assert!(extensions > 0.0, "{text}");
    for name in [
        "an observer and change: CPU of the agent",
        "idle: memory of an observer",
        "Redis commands a second: for the observer",
    ] {
        assert!(found.contains_key(name), "{text}");
    }
}

#[test]
fn lead_measures_extensions_beside_their_goals() {
    let arguments = ["lead", "--elections", "150", "--pings", "5", "--idle", "6s"];
    let (output, document) = written(&arguments, &test_agent::binary());
    let text = printed(&output);
    assert!(output.status.success(), "{text}");
    let found = figures(&document, &text);
    for elections in [100, 150] {
        let of = |what: &str| found[&*format!("{elections} elections: {what}")];
        assert!(of("CPU of an extension") > 0.0, "{text}");
        assert!(
            of("ping → pong, median") <= of("ping → pong, p99"),
            "{text}"
        );
        // One script takes a hundred.
        let scripts = of("Redis commands of a ping and node");
        assert!(scripts >= f64::from(elections / 100), "{text}");
    }
    assert!(
        found.contains_key("150 terms are kept: CPU of the agent"),
        "{text}"
    );
}

#[test]
fn observers_that_are_refused_are_no_measure() {
    let directory = TempDir::new().expect("a directory");
    let few = agent_with(&directory, "EA_MAX_STREAMS=10");
    let output = loadtest(&["observe", "--observers", "11", "--agent"])
        .arg(few)
        .output()
        .expect("it runs");
    let text = printed(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("ResourceExhausted"), "{text}");
}

#[test]
fn what_is_missing_is_told() {
    let nothing = loadtest(&["bench", "--open", "1", "--agent", "/nowhere/agent"]).output();
    let text = printed(&nothing.expect("it runs"));
    assert!(text.contains("/nowhere/agent"), "{text}");
    assert!(text.contains("--agent"), "{text}");

    let empty = TempDir::new().expect("a directory");
    let lacks = loadtest(&["bench", "--open", "1", "--agent"])
        .arg(test_agent::binary())
        .env("PATH", empty.path())
        .output()
        .expect("it runs");
    let text = printed(&lacks);
    assert!(!lacks.status.success());
    assert!(text.contains("apt-get install redis-"), "{text}");

    let ends = loadtest(&["bench", "--open", "1", "--agent", "/bin/false"]).output();
    let text = printed(&ends.expect("it runs"));
    assert!(text.contains("is not ready: it has ended"), "{text}");

    let many = limited("-n 1000", &["growth", "clients", "--agent", "/bin/false"]).output();
    let text = printed(&many.expect("it runs"));
    assert!(text.contains("10000 connections need"), "{text}");
    assert!(text.contains("the limit is 1000"), "{text}");

    // With redis-server and without redis-benchmark.
    let path = std::env::var_os("PATH").expect("a path");
    let mut servers = std::env::split_paths(&path).map(|path| path.join("redis-server"));
    let server = servers.find(|server| server.exists()).expect("installed");
    std::os::unix::fs::symlink(server, empty.path().join("redis-server")).expect("linked");
    let lacks = loadtest(&["bench", "--open", "1", "--agent", "/bin/false"])
        .env("PATH", empty.path())
        .output();
    let text = printed(&lacks.expect("it runs"));
    assert!(text.contains("apt-get install redis-tools"), "{text}");
}

#[test]
fn what_was_started_ends_with_a_signal() {
    let mut bench = loadtest(&[
        "bench",
        "--rounds",
        "1000",
        "--open",
        "1",
        "--duration",
        "1s",
    ])
    .arg("--agent")
    .arg(test_agent::binary())
    .stdout(Stdio::null())
    .stderr(Stdio::null())
    .spawn()
    .expect("it runs");
    let began = Instant::now();
    // Three servers, the floor and an agent.
    let started = loop {
        let started = children(bench.id());
        if started.len() >= 5 {
            break started;
        }
        assert!(bench.try_wait().expect("waits").is_none(), "it has ended");
        assert!(began.elapsed() < Duration::from_secs(60), "{started:?}");
        sleep(Duration::from_millis(20));
    };
    let kill = format!("kill -TERM {}", bench.id());
    let sent = Command::new("sh").args(["-c", &kill]).status();
    assert!(sent.expect("sh runs").success());
    let status = bench.wait().expect("it ends");
    assert_eq!(status.code(), Some(1));
    for pid in started {
        let left = fs::read_to_string(format!("/proc/{pid}/stat"));
        assert!(left.is_err(), "{left:?} is left");
    }
}

/// Returns the running child processes of a process.
fn children(parent: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("Linux");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let of_parent = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        let mut fields = fields.split(' ');
        let state = fields.next();
        state != Some("Z") && fields.next() == Some(&*parent.to_string())
    };
    pids.filter(of_parent).collect()
}

/// An agent that is killed when dropped, and its address.
struct Running {
    child: std::process::Child,
    address: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts an agent that keeps leases itself.
fn run_agent(settings: &[(&str, &str)], directory: &TempDir) -> Running {
    let log = directory.path().join("agent.log");
    let child = Command::new(test_agent::binary())
        .env_clear()
        .envs([
            ("EA_BIND_ADDRESS", "127.0.0.1"),
            ("EA_KUBE_ENABLE", "false"),
            ("EA_STORE", "memory"),
        ])
        .envs([("EA_HTTP_PORT", "0"), ("EA_GRPC_PORT", "0")])
        .envs(settings.iter().copied())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log).expect("a file"))
        .spawn()
        .expect("it runs");
    let mut running = Running {
        child,
        address: String::new(),
    };
    let began = Instant::now();
    while running.address.is_empty() {
        let text = fs::read_to_string(&log).expect("a log");
        assert!(began.elapsed() < Duration::from_secs(30), "{text}");
        if let Some(at) = text.find("127.0.0.1:") {
            let address = text[at..].split(|c: char| !c.is_ascii_digit() && c != '.' && c != ':');
            running.address = address.take(1).collect();
        }
        std::thread::yield_now();
    }
    running
}

#[test]
fn the_owner_of_a_token_measures_with_candidates_of_its_own_name() {
    let directory = TempDir::new().expect("a directory");
    let made = Command::new(test_agent::binary())
        .args(["token", "new", "worker-1"])
        .output()
        .expect("it runs");
    let tokens = directory.path().join("tokens");
    fs::write(&tokens, &made.stdout).expect("written");
    let usage = String::from_utf8(made.stderr).expect("text");
    let token = usage
        .lines()
        .find_map(|line| line.strip_prefix("export TOKEN="));
    let token = token.expect("a token");
    let tokens = tokens.display().to_string();
    let settings = [
        ("EA_AUTH_MODES", "token"),
        ("EA_AUTH_TOKEN_FILE", tokens.as_str()),
    ];
    let agent = run_agent(&settings, &directory);
    let host = format!("http://{}", agent.address);
    for protocol in ["grpc", "rest", "grpc-web"] {
        let measure = |more: &[&str]| {
            let mut command = loadtest(&[protocol, "-q", "-c", "2", "-i", "10", "--host", &host]);
            let output = command.args(more).env("LOADTEST_TOKEN", token).output();
            let output = output.expect("it runs");
            (output.status.code(), printed(&output))
        };
        let (code, text) = measure(&["--candidate", "worker-1"]);
        assert!(
            code == Some(0) && text.contains("20") && !text.contains(" × "),
            "{text}"
        );
        let (code, text) = measure(&[]);
        assert_eq!(code, Some(1), "{text}");
        assert!(
            text.contains("403") || text.contains("PermissionDenied"),
            "{text}"
        );
    }
}

/// Returns the agent's metrics.
fn metrics(address: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    let request = "GET /metrics HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    answer
}

#[test]
fn what_clients_saw_is_told_although_the_agent_has_ended() {
    let directory = TempDir::new().expect("a directory");
    let mut agent = run_agent(&[], &directory);
    let host = format!("http://{}", agent.address);
    let pid = agent.child.id().to_string();
    let file = directory.path().join("result.json");
    let measuring = loadtest(&["grpc", "-q", "-c", "2", "--duration", "5s", "--host", &host])
        .args(["--agent-pid", &pid, "--json"])
        .arg(&file)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    let began = Instant::now();
    let extended = "election_agent_outcomes_total{action=\"extend\"";
    while !metrics(&agent.address).contains(extended) {
        assert!(began.elapsed() < Duration::from_secs(30), "it asks");
        std::thread::yield_now();
    }
    agent.child.kill().expect("it runs");
    agent.child.wait().expect("it ends");
    let output = measuring.wait_with_output().expect("it ends");
    let text = printed(&output);
    assert!(text.contains("CPU and memory are not reported"), "{text}");
    let document = fs::read_to_string(&file).expect(&text);
    let document: Value = serde_json::from_str(&document).expect("JSON");
    assert_eq!(document["agent_cpu_micros"], Value::Null, "{text}");
    assert!(
        !document["errors"].as_object().expect("errors").is_empty(),
        "{text}"
    );
}
