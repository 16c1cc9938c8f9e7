//! Documentation, committed or served, matches the code.

use std::{collections::BTreeSet, fs, process::Command};

use election_agent::{config, telemetry::metrics::table, transport::rest::openapi};
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Agent, Fixture, InProcess, Store, committed, repository};

#[test]
fn the_committed_openapi_document_is_the_codes() {
    let emitted = openapi::yaml(&openapi::document());
    assert!(
        committed("openapi/openapi_v3.yaml") == emitted,
        "openapi/openapi_v3.yaml is not what the code emits: run `make openapi` and commit"
    );
}

#[test]
fn what_may_be_refused_to_strangers_is_documented_to_take_a_bearer_token_or_none() {
    let document = serde_json::to_value(openapi::document()).expect("JSON");
    assert_eq!(
        document["components"]["securitySchemes"]["bearer"]["scheme"],
        "bearer"
    );
    let mut taken = 0;
    for (path, methods) in openapi::documented() {
        for method in methods {
            let operation = &document["paths"][&path][method.to_lowercase()];
            let expected = match operation["responses"].get("401") {
                Some(_) => json!([{}, {"bearer": []}]),
                None => Value::Null,
            };
            assert_eq!(operation["security"], expected, "{method} {path}");
            taken += usize::from(!expected.is_null());
        }
    }
    assert!(taken >= 13, "{taken}");
}

#[tokio::test]
async fn the_document_is_served_with_a_user_interface() {
    let fixture = Fixture::on(Store::Memory).await;
    let agent = &fixture.agent;
    let yaml = agent.get("/openapi_v3.yaml").await;
    assert_eq!(
        (yaml.status, yaml.header("content-type")),
        (200, "application/yaml")
    );
    assert_eq!(
        yaml.body.as_str().expect("text"),
        openapi::yaml(&openapi::document())
    );
    let json = agent.get("/openapi.json").await;
    assert_eq!(json.body["info"]["title"], "Election Agent");
    let page = agent.get("/swagger-ui/").await;
    assert_eq!(
        (page.status, page.header("content-type")),
        (200, "text/html")
    );
    assert_eq!(
        agent.get("/swagger-ui/swagger-ui-bundle.js").await.status,
        200
    );
    let settings = agent.get("/swagger-ui/swagger-initializer.js").await;
    assert!(
        settings
            .body
            .as_str()
            .is_some_and(|text| text.contains("/openapi.json"))
    );
}

#[tokio::test]
async fn every_documented_operation_exists_with_its_methods_and_no_other() {
    let fixture = Fixture::on(Store::Memory).await;
    for (path, methods) in openapi::documented() {
        let example = path.replace(['{', '}'], "");
        let refused = fixture.agent.rest(Method::OPTIONS, &example, None).await;
        assert_eq!(refused.status, 405, "{path} is documented, but not routed");
        let allowed: BTreeSet<_> = refused.header("allow").split(',').map(str::trim).collect();
        let mut documented: BTreeSet<_> = methods.into_iter().collect();
        if documented.contains("GET") {
            documented.insert("HEAD");
        }
        assert_eq!(allowed, documented, "{path}");
    }
}

#[test]
fn the_committed_table_of_settings_is_the_codes() {
    assert!(
        committed("docs/CONFIGURATION.md").contains(&config::markdown()),
        "the table in docs/CONFIGURATION.md is not the code's: replace it by what `cargo run -- settings` \
         prints"
    );
}

#[test]
fn the_committed_list_of_metrics_is_the_codes() {
    assert!(
        committed("docs/METRICS.md") == table::markdown(),
        "docs/METRICS.md is not what the code emits: replace it by what `cargo run -- metrics` prints"
    );
}

/// The agent that `make run` builds.
const BUILT: &str = "target/release/election-agent";

/// The commands of the README's tour, with the output that it prints below each.
fn tour() -> Vec<(String, String)> {
    let readme = committed("README.md");
    let blocks = readme.split("```console\n").skip(1);
    let mut steps: Vec<(String, String)> = Vec::new();
    for block in blocks.filter_map(|block| block.split("\n```").next()) {
        for line in block.lines() {
            match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => steps.push((command.to_owned(), String::new())),
                (None, Some((command, _))) if command.ends_with('\\') => {
                    command.push('\n');
                    command.push_str(line);
                }
                (None, Some((_, output))) => {
                    output.push_str(line);
                    output.push('\n');
                }
                (None, None) => panic!("output before the first command: {line}"),
            }
        }
    }
    steps
}

/// Numbers of three digits or more differ from run to run.
fn without_numbers(text: &str) -> String {
    let mut shown = String::new();
    let mut digits = String::new();
    for c in text.trim().chars().chain(['\0']) {
        if c.is_ascii_digit() {
            digits.push(c);
            continue;
        }
        shown.push_str(if digits.len() >= 3 { "N" } else { &digits });
        digits.clear();
        shown.push(c);
    }
    shown
}

#[tokio::test]
async fn the_readmes_tour_works_as_printed() {
    let agent = Agent::on(&InProcess, &[]).await;
    let address = agent.address().to_string();
    let mut curls = 0;
    for (command, printed) in tour() {
        // A test cannot rely on grpcurl; the reflection tests do what it does.
        if !command.starts_with("curl ") && !command.starts_with(BUILT) {
            continue;
        }
        let here = command.replace("localhost:8080", &address);
        let here = here.replace("localhost:8443", &address);
        let here = here.replace(BUILT, env!("CARGO_BIN_EXE_election-agent"));
        let output = Command::new("sh")
            .args(["-c", &here])
            .output()
            .expect("runs");
        let output = String::from_utf8(output.stdout).expect("UTF-8");
        assert_eq!(
            without_numbers(&output),
            without_numbers(&printed),
            "{command}"
        );
        curls += 1;
    }
    assert!(curls >= 5, "the tour has {curls} steps");
}

/// The text of every Rust file below a directory of the repository.
fn code(directory: &str) -> String {
    let mut text = String::new();
    let mut left = vec![repository(directory)];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("a directory");
            left.extend(entries.map(|entry| entry.expect("an entry").path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path).expect("text"));
        }
    }
    text
}

#[test]
fn the_safety_argument_names_tests_that_exist() {
    let code = code("src") + &code("tests") + &code("crates");
    let argument = committed("docs/SAFETY.md");
    let named: Vec<_> = argument
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| word.matches('_').count() >= 4)
        .filter(|word| {
            word.bytes()
                .all(|byte| byte.is_ascii_lowercase() || matches!(byte, b'_' | b'0'..=b'9'))
        })
        .collect();
    assert!(named.len() > 25, "{named:?}");
    for test in named {
        assert!(
            code.contains(&format!("fn {test}(")),
            "docs/SAFETY.md names {test}"
        );
    }
}

/// What operators and callers read.
const DOCUMENTS: [&str; 24] = [
    "README.md",
    "CHANGELOG.md",
    "deploy/README.md",
    "loadtest/README.md",
    "docs/ARCHITECTURE.md",
    "docs/AUTHORIZATION.md",
    "docs/COMMAND_LINE.md",
    "docs/CONFIGURATION.md",
    "docs/DASHBOARD.md",
    "docs/DEVELOPING.md",
    "docs/FENCING.md",
    "docs/KUBERNETES.md",
    "docs/LEADING.md",
    "docs/METRICS.md",
    "docs/OBSERVING.md",
    "docs/OPERATING.md",
    "docs/PERFORMANCE.md",
    "docs/PROXIES.md",
    "docs/RUNBOOK.md",
    "docs/SAFETY.md",
    "docs/SECURITY.md",
    "docs/STORES.md",
    "docs/TRACES.md",
    "docs/UPGRADING.md",
];

/// The anchors of a document's headings, as GitHub makes them.
fn anchors(document: &str) -> BTreeSet<String> {
    let headings = document.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            let kept = heading.chars().filter_map(|c| match c {
                ' ' => Some('-'),
                c if c.is_alphanumeric() || matches!(c, '-' | '_') => Some(c),
                _ => None,
            });
            kept.collect()
        })
        .collect()
}

#[test]
fn links_between_documents_lead_to_files_and_headings_that_exist() {
    let entries = fs::read_dir(repository("docs"));
    for entry in entries.expect("a directory") {
        let name = entry.expect("an entry").file_name();
        let path = format!("docs/{}", name.display());
        if path.ends_with(".png") {
            continue;
        }
        assert!(DOCUMENTS.contains(&path.as_str()), "{path}");
    }
    let mut followed = 0;
    for document in DOCUMENTS {
        let text = committed(document);
        let directory = document
            .rsplit_once('/')
            .map_or("", |(directory, _)| directory);
        let links = text.split("](").skip(1);
        let links = links.filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => document.to_owned(),
                path => format!("{directory}/{path}")
                    .trim_start_matches('/')
                    .to_owned(),
            };
            assert!(repository(&target).exists(), "{document} links to {link}");
            assert!(
                anchor.is_empty() || anchors(&committed(&target)).contains(anchor),
                "{document} links to {link}: no heading is called so"
            );
            followed += 1;
        }
    }
    assert!(followed > 30, "{followed}");
}

#[test]
fn documents_name_settings_that_exist() {
    let settings: BTreeSet<_> = config::settings()
        .flat_map(|setting| [Some(setting.variable), setting.alias])
        .flatten()
        // The first is no setting, as it says where settings are; the others show names that are not read.
        .chain(["EA_CONFIG_FILE", "EA_REDIS_URL", "EA_WEB_SERVICE_HOST"])
        .collect();
    let mut named = 0;
    for document in DOCUMENTS {
        let text = committed(document);
        let words =
            text.split(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'));
        for word in words.filter(|word| word.starts_with("EA_")) {
            // What stands for several ends so: `EA_KUBE_*`.
            let exists = match word.ends_with('_') {
                true => settings.iter().any(|setting| setting.starts_with(word)),
                false => settings.contains(word),
            };
            assert!(exists, "{document} names {word}, which is no setting");
            named += 1;
        }
    }
    assert!(named > 100, "{named}");
}
