//! The command line, and what refuses to start.

use std::net::TcpListener;

use serde_json::Value;

use crate::harness::{Agent, Authority, command_output, owned};

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

#[test]
fn help_lists_every_setting_with_its_default() {
    let help = stdout(&["--help"], &[]);
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
    let agent = Agent::start(&[("EA_REDIS_URL".to_owned(), "redis://localhost".to_owned())]).await;
    assert_eq!(agent.get("/livez").await.status, 200);
    let warned = agent.early_log().iter().any(|line| {
        let line: Value = serde_json::from_str(line).expect("logs are JSON in production");
        line["level"] == "WARN" && line["variable"] == "EA_REDIS_URL"
    });
    assert!(warned, "{:?}", agent.early_log());
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
        let mut settings = owned(&[]);
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
    let agent = Agent::start(&owned(&[("EA_REDIS_URLS", "redis://127.0.0.1:1")])).await;
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
