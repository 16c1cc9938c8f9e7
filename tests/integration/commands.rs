//! The command line, and what refuses to start.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    net::TcpListener,
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{
    Agent, Authority, InProcess, bare_command, command, command_output, committed, owned,
};

fn stdout(arguments: &[&str], settings: &[(&str, &str)]) -> String {
    let output = command_output(arguments, settings);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn refusal(arguments: &[&str], settings: &[(&str, &str)]) -> String {
    let output = command_output(arguments, settings);
    assert_eq!(
        output.status.code(),
        Some(2),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    String::from_utf8(output.stderr).expect("UTF-8")
}

/// Every command that has a help of its own.
const COMMANDS: [&[&str]; 13] = [
    &[],
    &["config"],
    &["openapi"],
    &["metrics"],
    &["probe"],
    &["token"],
    &["token", "new"],
    &["restore"],
    &["authz"],
    &["authz", "schema"],
    &["authz", "default"],
    &["authz", "check"],
    &["authz", "explain"],
];

#[test]
fn help_of_settings_lists_every_setting_with_its_default() {
    for arguments in [["help", "settings"], ["settings", "--help"]] {
        let help = stdout(&arguments, &[]);
        let words: Vec<_> = help.split_whitespace().collect();
        let help = words.join(" ");
        for setting in election_agent::config::settings() {
            assert!(
                help.contains(&format!("--{}", setting.flag())),
                "{}",
                setting.variable
            );
            assert!(help.contains(setting.variable), "{}", setting.variable);
            assert!(help.contains(setting.meaning), "{}", setting.variable);
            if !setting.default.is_empty() {
                assert!(
                    help.contains(&format!("[default: {}]", setting.default)),
                    "{}",
                    setting.variable
                );
            }
        }
        assert!(help.contains("EA_CONFIG_FILE"));
    }
}

#[test]
fn help_fits_two_screens_and_names_what_lists_the_settings() {
    for arguments in COMMANDS {
        let output = bare_command()
            .args(arguments)
            .arg("--help")
            // As narrow as terminals are.
            .env("COLUMNS", "80")
            .output()
            .expect("runs");
        let help = String::from_utf8(output.stdout).expect("UTF-8");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {help}");
        let lines = help.lines().count();
        assert!((3..=48).contains(&lines), "{arguments:?}: {lines} lines");
        assert!(!help.contains("--grpc-max-connection-age"), "{help}");
    }
    let help = stdout(&["--help"], &[]);
    assert!(help.contains("election-agent help settings"), "{help}");
}

#[test]
fn settings_are_flags_of_every_command_though_help_hides_them() {
    for arguments in [
        &["config", "--grpc-port", "1"][..],
        &["--grpc-port", "1", "config"],
    ] {
        let printed = stdout(arguments, &[]);
        assert!(
            printed.contains("grpc_port: \"1\" # EA_GRPC_PORT, flag"),
            "{printed}"
        );
    }
    for arguments in COMMANDS {
        let arguments = [&["--grpc-port", "1"], arguments, &["--help"]].concat();
        assert!(!stdout(&arguments, &[]).is_empty());
    }
    stdout(
        &[
            "authz",
            "check",
            "--auth-public",
            "probes",
            "--max-term",
            "9s",
        ],
        &[],
    );
}

/// Runs the agent with its standard output on this file.
fn into_file(arguments: &[&str], settings: &[(&str, &str)], file: &str) -> Output {
    let out = File::options().write(true).open(file).expect("a file");
    command(&owned(settings))
        .args(arguments)
        .stdout(out)
        .stderr(Stdio::piped())
        .output()
        .expect("runs")
}

/// Runs the agent with its standard output in a pipe that nobody reads.
fn into_closed_pipe(arguments: &[&str], settings: &[(&str, &str)]) -> Output {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    command(&owned(settings))
        .args(arguments)
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .expect("runs")
}

/// What prints something, and the exit status if it can.
const PRINTING: [(&[&str], i32); 13] = [
    (&["--help"], 0),
    (&["--version"], 0),
    (&["help"], 0),
    (&["help", "settings"], 0),
    (&["config"], 0),
    (&["openapi"], 0),
    (&["settings"], 0),
    (&["metrics"], 0),
    (&["authz", "schema"], 0),
    (&["authz", "default"], 0),
    (&["authz", "check"], 0),
    (
        &[
            "authz",
            "explain",
            "--identity=a",
            "--action=campaign",
            "--election=e",
            "--candidate=a",
        ],
        0,
    ),
    (
        &[
            "authz",
            "explain",
            "--identity=a",
            "--action=campaign",
            "--election=e",
            "--candidate=b",
        ],
        1,
    ),
];

#[test]
fn output_into_a_closed_pipe_ends_quietly() {
    for (arguments, code) in PRINTING {
        let output = into_closed_pipe(arguments, &[]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            (output.status.code(), &*told),
            (Some(code), ""),
            "{arguments:?}"
        );
    }
}

#[test]
fn output_that_cannot_be_written_is_told_and_fails() {
    for (arguments, _) in PRINTING {
        let output = into_file(arguments, &[], "/dev/full");
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {told}");
        assert!(
            told.contains("cannot write to the standard output: No space left"),
            "{arguments:?}: {told}"
        );
        assert!(!told.contains("panicked"), "{arguments:?}: {told}");
    }
}

#[test]
fn mistakes_that_nobody_can_hear_end_with_their_exit_status() {
    for (arguments, code) in [
        (&["config", "--max-term", "soon"][..], 2),
        (&["--max-term", "soon"], 2),
        (&["--no-such-flag"], 2),
        (&["authz", "explain"], 2),
        (&["restore", "--from", "/no/such/file"], 2),
        (&["token", "new", "a b"], 2),
        (&["probe", "--url", "http://127.0.0.1:1/livez"], 1),
        // Without the token its line is of no use.
        (&["token", "new", "a"], 1),
    ] {
        let full = File::options().write(true).open("/dev/full").expect("it");
        let output = command(&[])
            .args(arguments)
            .stderr(full)
            .output()
            .expect("runs");
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    }
}

#[test]
fn a_token_whose_line_is_lost_is_not_shown() {
    let full = into_file(&["token", "new", "worker-1"], &[], "/dev/full");
    let closed = into_closed_pipe(&["token", "new", "worker-1"], &[]);
    for (output, why) in [(full, "No space left"), (closed, "Broken pipe")] {
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(
            told.contains("nothing was stored") && told.contains(why),
            "{told}"
        );
        assert!(
            !told.contains("ea_") && !told.contains("panicked"),
            "{told}"
        );
    }
}

#[test]
fn what_was_restored_is_told_wherever_it_can_be() {
    let directory = TempDir::new().expect("a directory");
    let at = |name: &str| directory.path().join(name).display().to_string();
    let (database, copy) = (at("leases.redb"), at("copy.redb"));
    let settings = [("EA_EMBEDDED_PATH", database.as_str())];
    let restore = ["restore", "--from", copy.as_str()];
    // Only the agent makes a database.
    let agent = command(&owned(&settings)).stderr(Stdio::piped()).spawn();
    let mut agent = agent.expect("starts");
    let log = BufReader::new(agent.stderr.take().expect("piped"));
    let listening = log
        .lines()
        .map_while(Result::ok)
        .any(|line| line.contains("listening"));
    assert!(listening);
    agent.kill().expect("killed");
    agent.wait().expect("ended");
    fs::copy(&database, &copy).expect("copied");

    let full = into_file(&restore, &settings, "/dev/full");
    let told = String::from_utf8_lossy(&full.stderr);
    assert_eq!(full.status.code(), Some(1), "{told}");
    let usual = stdout(&restore, &settings);
    let first = usual.lines().next().expect("a line");
    let begins: String = first.chars().take(20).collect();
    assert!(
        told.contains(&begins) && told.contains("No space left"),
        "{begins} is not in: {told}"
    );
    let closed = into_closed_pipe(&restore, &settings);
    assert_eq!(closed.status.code(), Some(0), "{closed:?}");
}

/// The commands of a block of docs/SECURITY.md that has this text.
fn documented_block(text: &str) -> String {
    let document = committed("docs/SECURITY.md");
    let blocks = document.split("```sh\n").skip(1);
    let mut blocks = blocks.filter_map(|block| block.split("\n```").next());
    let block = blocks.find(|block| block.contains(text));
    block
        .unwrap_or_else(|| panic!("no block has {text}"))
        .to_owned()
}

#[tokio::test]
async fn the_documented_token_is_used_by_copy_and_paste() {
    let directory = TempDir::new().expect("a directory");
    let shell = |script: &str| {
        let output = Command::new("sh")
            .args(["-ec", script])
            .current_dir(directory.path())
            .output()
            .expect("sh runs");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (text(output.stdout), text(output.stderr))
    };
    let block = documented_block("token new worker-1");
    let mut lines = block.lines();
    let make = lines
        .find(|line| line.contains("token new"))
        .expect("a line");
    let make = make.replace(
        "target/release/election-agent",
        env!("CARGO_BIN_EXE_election-agent"),
    );
    let (out, told) = shell(&make);
    assert_eq!(out, "", "the line goes to the file");
    let export = told.lines().find(|line| line.starts_with("export TOKEN="));
    let export = export.unwrap_or_else(|| panic!("no line to copy in: {told}"));
    // All of it may be copied.
    assert_eq!(shell(&told), (String::new(), String::new()));

    let start = lines.next().expect("a line").replace(
        "EA_AUTH_TOKEN_FILE=tokens",
        &format!(
            "EA_AUTH_TOKEN_FILE={}",
            directory.path().join("tokens").display()
        ),
    );
    let settings = start.split_whitespace().filter_map(|word| {
        let (name, value) = word.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    });
    let agent = Agent::start(&settings.collect::<Vec<_>>()).await;
    let ask =
        documented_block("Bearer $TOKEN").replace("localhost:8080", &agent.address().to_string());
    let (answer, told) = shell(&format!("{export}\n{ask}"));
    let answer: Value = serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{told}"));
    assert_eq!(answer["leader"], "worker-1");
    assert_eq!(answer["elected"], true);
    let (answer, _) = shell(&format!("TOKEN=wrong\n{ask}"));
    assert!(answer.contains("401"), "{answer}");
}

#[test]
fn config_prints_what_is_in_force_without_secrets() {
    let settings = [
        ("EA_REDIS_URLS", "redis://me:s3cret@localhost:6379/1"),
        ("EA_MAX_TERM", "90s"),
    ];
    let printed = stdout(&["config", "--grpc-port", "8443"], &settings);
    assert!(
        printed.contains("grpc_port: \"8443\" # EA_GRPC_PORT, flag"),
        "{printed}"
    );
    assert!(
        printed.contains("max_term: \"90s\" # EA_MAX_TERM, environment"),
        "{printed}"
    );
    assert!(
        printed.contains("# token_retention: \"168h\" # EA_TOKEN_RETENTION, default"),
        "{printed}"
    );
    assert!(
        printed.contains("redis://me:***@localhost:6379/1"),
        "{printed}"
    );
    assert!(!printed.contains("s3cret"));
}

#[test]
fn every_mistake_is_told_before_anything_starts() {
    let told = refusal(
        &["--max-term", "soon"],
        &[
            ("EA_GRPC_PORT", "seven"),
            ("EA_REDIS_URLS", "redis://me:s3cret@host:port"),
            ("EA_LOG_LEVEL", "loud"),
        ],
    );
    for variable in [
        "EA_MAX_TERM",
        "EA_GRPC_PORT",
        "EA_REDIS_URLS",
        "EA_LOG_LEVEL",
    ] {
        assert!(told.contains(variable), "{variable}: {told}");
    }
    assert!(!told.contains("s3cret"), "{told}");
}

#[test]
fn a_port_that_is_taken_is_told_with_its_setting() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    for variable in ["EA_HTTP_PORT", "EA_GRPC_PORT"] {
        let told = refusal(&[], &[(variable, &port)]);
        assert!(
            told.contains(variable) && told.contains("free port"),
            "{told}"
        );
    }
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    let other = other.local_addr().expect("an address").port().to_string();
    let _held = TcpListener::bind(("127.0.0.1", other.parse::<u16>().expect("a port")));
    let both = [
        ("EA_HTTP_PORT", port.as_str()),
        ("EA_GRPC_PORT", other.as_str()),
    ];
    let told = refusal(&[], &both);
    assert!(
        told.contains("EA_HTTP_PORT") && told.contains("EA_GRPC_PORT"),
        "both at once: {told}"
    );
    let told = refusal(&[], &[("EA_BIND_ADDRESS", "192.0.2.1")]);
    assert!(told.contains("EA_BIND_ADDRESS"), "{told}");
}

#[tokio::test]
async fn a_variable_that_is_no_setting_is_warned_of() {
    let settings = owned(&[
        ("EA_TEAM", "batch"),
        // Of Services called ea-web and ea-http.
        ("EA_WEB_SERVICE_HOST", "10.0.0.1"),
        ("EA_WEB_PORT_80_TCP", "tcp://10.0.0.1:80"),
        ("EA_GRPC_SERVICE_HOST", "10.0.0.1"),
        ("EA_GRPC_PORT", "tcp://10.0.0.1:80"),
        ("EA_HTTP_PORT", "0"),
        ("EA_BIND_ADDRESS", "127.0.0.1"),
    ]);
    // The port that is ignored has a default that not everybody may listen on.
    let arguments = ["config"];
    let output = command(&settings).args(arguments).output().expect("runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let lines: Vec<_> = told.lines().collect();
    assert!(
        lines.len() == 2
            && lines[0].starts_with("EA_GRPC_PORT: Kubernetes made it")
            && lines[1].starts_with("EA_TEAM: no such setting"),
        "{told}"
    );

    let settings: Vec<_> = settings
        .into_iter()
        .filter(|(name, _)| !name.starts_with("EA_GRPC"))
        .collect();
    let agent = Agent::start(&settings).await;
    assert_eq!(agent.get("/livez").await.status, 200);
    let warned: Vec<_> = agent
        .early_log()
        .iter()
        .map(|line| serde_json::from_str(line).expect("logs are JSON in production"))
        .filter(|line: &Value| line["level"] == "WARN" && line["variable"].is_string())
        .collect();
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert_eq!(warned[0]["variable"], "EA_TEAM");
}

#[test]
fn a_variable_that_resembles_a_setting_stops_the_agent_and_config_says_the_same() {
    for (name, value, meant) in [
        ("EA_REDIS_URL", "redis://localhost:6379", "EA_REDIS_URLS"),
        ("ea_redis_urls", "redis://localhost:6379", "EA_REDIS_URLS"),
        (
            "EA_REDIS_SERVERS",
            "redis://localhost:6379",
            "EA_REDIS_URLS",
        ),
        ("EA_MAXTERM", "5s", "EA_MAX_TERM"),
        ("EA_CONFIGFILE", "/etc/agent.yaml", "EA_CONFIG_FILE"),
    ] {
        for env in ["production", "development"] {
            let settings = [(name, value), ("EA_ENV", env), ("EA_STORE", "memory")];
            let told = refusal(&[], &settings);
            assert!(
                told.contains(&format!("{name}: "))
                    && told.contains(&format!("did you mean {meant}?")),
                "{told}"
            );
            assert_eq!(refusal(&["config"], &settings), told);
        }
    }
}

#[test]
fn production_without_a_store_is_refused_and_config_says_the_same() {
    let run = |arguments: &[&str], settings: &[(&str, &str)]| {
        let output = bare_command()
            .args(arguments)
            .envs(settings.iter().copied())
            .output()
            .expect("runs");
        let told = String::from_utf8(output.stderr).expect("UTF-8");
        (output.status.code(), told)
    };
    for settings in [&[][..], &[("EA_REDIS_URLS", "")], &[("EA_STORE", "")]] {
        let (code, told) = run(&[], settings);
        assert_eq!(code, Some(2), "{told}");
        for named in ["EA_REDIS_URLS", "EA_EMBEDDED_PATH", "EA_STORE=memory"] {
            assert!(told.contains(named), "{told}");
        }
        assert_eq!(run(&["config"], settings), (Some(2), told));
    }
    for settings in [("EA_ENV", "development"), ("EA_STORE", "memory")] {
        assert_eq!(run(&["config"], &[settings]), (Some(0), String::new()));
    }
    // These keep no leases.
    assert_eq!(run(&["authz", "check"], &[]), (Some(0), String::new()));
    let (code, told) = run(&["probe", "--url", "http://127.0.0.1:1/livez"], &[]);
    assert!(
        code == Some(1) && told.contains("does not answer"),
        "{told}"
    );
}

#[test]
fn a_file_of_the_wrong_shape_is_refused() {
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("agent.yaml");
    let path = file.display().to_string();
    for (text, told) in [
        ("log_level: [debug]\n", "EA_LOG_LEVEL: "),
        ("redis: {urls: redis://localhost}\n", "write redis_urls"),
        ("redis_url: redis://localhost\n", "did you mean redis_urls?"),
        ("no_such: 1\n", "no setting"),
    ] {
        fs::write(&file, text).expect("written");
        let settings = [("EA_CONFIG_FILE", path.as_str())];
        let refused = refusal(&[], &settings);
        assert!(refused.contains(told), "{text}: {refused}");
        assert_eq!(refusal(&["config"], &settings), refused);
    }
    fs::write(&file, "store: memory\nkube_namespaces: [a, b]\n").expect("written");
    let output = bare_command()
        .args(["config", "--config-file", &path])
        .output();
    let output = output.expect("runs");
    let printed = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(printed.contains("kube_namespaces: \"a,b\""), "{printed}");
}

#[test]
fn the_openapi_document_needs_no_valid_configuration() {
    let document = stdout(
        &["openapi"],
        &[("EA_CONFIG_FILE", "/no/such/file"), ("EA_ENV", "x")],
    );
    assert!(document.starts_with("openapi: 3.1.0"), "{document:.50}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_probe_asks_the_agent_and_says_why_not() {
    let probe = |arguments: &[&str], settings: &[(&str, &str)]| {
        let output = command_output(&[&["probe"], arguments].concat(), settings);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), told)
    };
    let authority = Authority::new();
    authority.issue("localhost");
    for encrypted in [false, true] {
        let mut settings = Vec::new();
        if encrypted {
            settings.extend(authority.settings());
        }
        let agent = Agent::start(&settings).await;
        let port = agent.address().port().to_string();
        let mut given: Vec<_> = settings
            .iter()
            .map(|(name, value)| (&**name, &**value))
            .collect();
        given.push(("EA_HTTP_PORT", &port));
        for arguments in [&[][..], &["--live"]] {
            assert_eq!(probe(arguments, &given), (Some(0), String::new()));
        }
    }

    // One that has no Redis works, and is not ready.
    let agent = Agent::start(&[("EA_REDIS_URLS", "redis://127.0.0.1:1")]).await;
    let url = format!("http://{}", agent.address());
    let (code, told) = probe(&["--url", &format!("{url}/readyz")], &[]);
    assert!(
        code == Some(1) && told.contains("answers 503") && told.contains("127.0.0.1:1"),
        "{told}"
    );
    assert_eq!(probe(&["--url", &format!("{url}/livez")], &[]).0, Some(0));
    drop(agent);
    let (code, told) = probe(&["--url", &format!("{url}/livez")], &[]);
    assert!(
        code == Some(1) && told.contains("does not answer"),
        "{told}"
    );
    let (code, told) = probe(&[], &[]);
    assert!(
        code == Some(1) && told.contains("EA_HTTP_PORT is 0"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_probe_asks_no_proxy() {
    let agent = Agent::on(&InProcess, &[]).await;
    let url = format!("http://{}/readyz", agent.address());
    let port = agent.address().port().to_string();
    for proxy in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        for (arguments, http_port) in [(&["--url", &url][..], "0"), (&[], &port)] {
            let arguments = [&["probe"], arguments].concat();
            let output = command_output(
                &arguments,
                &[(proxy, "http://127.0.0.1:1"), ("EA_HTTP_PORT", http_port)],
            );
            let told = String::from_utf8_lossy(&output.stderr);
            assert_eq!((output.status.code(), &*told), (Some(0), ""), "{proxy}");
        }
    }
}

#[test]
fn a_probe_says_what_is_wrong_with_a_url() {
    for (url, what) in [
        ("localhost:8080/readyz", "begins neither with http://"),
        ("10.0.0.7:8080", "begins neither with http://"),
        ("/readyz", "begins neither with http://"),
        ("", "begins neither with http://"),
        ("grpc://localhost:8443", "http or https, not grpc"),
        ("http://", "empty host"),
        ("http://host:99999/readyz", "invalid port"),
    ] {
        let told = refusal(&["probe", "--url", url], &[]);
        assert!(
            told.contains("--url")
                && told.contains(what)
                && told.contains("http://10.0.0.7:8080/readyz"),
            "{url}: {told}"
        );
    }
}
