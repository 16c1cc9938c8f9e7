//! What operators are given: configurations that their tools take, alerts that fire when they should, and
//! everywhere only metrics that exist.

mod notifications;
mod panels;
mod times;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
};

use serde_json::{Value, json};

use crate::harness::{Agent, Fixture, Store, committed, eventually, repository};

const RULES: [&str; 2] = [
    "observability/rules/alerts.yaml",
    "observability/rules/recording.yaml",
];
const DASHBOARD: &str = "observability/grafana/election-agent.json";
const RUNBOOK: &str = "docs/RUNBOOK.md";
/// How many columns Grafana lays panels out in.
const COLUMNS: u64 = 24;

fn yaml(path: &str) -> Value {
    yaml_serde::from_str(&committed(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The files of rules' tests.
fn rule_tests() -> Vec<String> {
    let directory = "observability/rules/tests";
    let files = fs::read_dir(repository(directory)).expect("a directory");
    let names = files.map(|file| file.expect("a file").file_name());
    let mut paths: Vec<_> = names
        .map(|name| format!("{directory}/{}", name.display()))
        .collect();
    paths.sort();
    paths
}

/// Runs Prometheus's own checks.
fn promtool(arguments: &[&str]) {
    let output = Command::new("promtool")
        .args(arguments)
        .current_dir(repository(""))
        .output()
        .unwrap_or_else(|error| {
            panic!("promtool: {error}: run scripts/install-test-tools, which installs it")
        });
    let printed = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success(),
        "promtool {arguments:?}: {}",
        String::from_utf8_lossy(&printed)
    );
}

#[test]
fn prometheus_takes_the_configuration_and_the_rules() {
    promtool(&["check", "config", "observability/prometheus.yaml"]);
    promtool(&["check", "rules", RULES[0], RULES[1]]);
}

#[test]
fn alerts_fire_when_they_should_and_only_then() {
    let files = rule_tests();
    let mut arguments = vec!["test", "rules"];
    arguments.extend(files.iter().map(String::as_str));
    promtool(&arguments);

    let cases: String = files.iter().map(|file| committed(file)).collect();
    for alert in alerts() {
        let name = text(&alert, "alert");
        let severity = severity(&alert);
        let fires = match alert["labels"]["window"].as_str() {
            None => format!("alertname=\"{name}\", severity=\"{severity}\""),
            Some(window) => format!("window=\"{window}\", severity=\"{severity}\""),
        };
        assert!(
            cases.contains(&fires),
            "no test has {name} fire: {fires} is expected nowhere"
        );
    }
}

/// The member of a rule that is a text.
fn text<'a>(rule: &'a Value, member: &str) -> &'a str {
    let value = rule[member].as_str();
    value.unwrap_or_else(|| panic!("{member} is missing: {rule}"))
}

fn severity(alert: &Value) -> &str {
    text(&alert["labels"], "severity")
}

fn rules() -> Vec<Value> {
    let groups = RULES.map(|path| yaml(path)["groups"].clone());
    let groups = groups.iter().filter_map(Value::as_array).flatten();
    let rules = groups.filter_map(|group| group["rules"].as_array());
    rules.flatten().cloned().collect()
}

fn alerts() -> Vec<Value> {
    let mut rules = rules();
    rules.retain(|rule| rule.get("alert").is_some());
    assert!(rules.len() >= 15, "{} alerts", rules.len());
    rules
}

#[test]
fn every_alert_says_what_is_wrong_and_what_to_do() {
    let runbook = committed(RUNBOOK);
    let sections: BTreeMap<_, _> = runbook
        .split("\n## ")
        .skip(1)
        .filter_map(|section| section.split_once('\n'))
        .collect();
    let mut named = BTreeSet::new();
    for alert in alerts() {
        let name = text(&alert, "alert").to_owned();
        assert!(
            ["critical", "warning"].contains(&severity(&alert)),
            "{name}: {alert}"
        );
        let annotations = &alert["annotations"];
        assert!(text(annotations, "summary").len() > 20, "{name}: {alert}");
        assert!(
            text(annotations, "description").len() > 100,
            "{name}: {alert}"
        );
        let section = sections.get(name.as_str());
        let section = section.unwrap_or_else(|| panic!("{RUNBOOK} has no section {name}"));
        for part in ["**Users notice**", "**Safe:**", "**Look**", "**do"] {
            let found = section.contains(part) || section.to_lowercase().contains(part);
            assert!(found, "{name} has no {part}");
        }
        let anchor = format!("{RUNBOOK}#{}", name.to_lowercase());
        assert_eq!(text(annotations, "runbook_url"), anchor, "{name}");
        named.insert(name);
    }
    let kept: BTreeSet<_> = sections
        .keys()
        .filter(|section| section.starts_with("ElectionAgent"))
        .map(|section| (*section).to_owned())
        .collect();
    assert_eq!(kept, named, "{RUNBOOK} has a section for each alert alone");
}

/// The names in a text that begin as the agent's metrics do, and those of recording rules about them.
fn named(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | ':')));
    words
        .map(|word| word.trim_matches(':'))
        // Targets of the log are written so.
        .filter(|word| word.contains("election_agent_") && !word.contains("::"))
        .collect()
}

/// The series of the metrics that docs/METRICS.md lists.
fn documented() -> BTreeSet<String> {
    let page = committed("docs/METRICS.md");
    let mut series = BTreeSet::new();
    for row in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let name = format!("election_agent_{}", cells[1].trim_matches('`'));
        match cells[2] {
            "histogram" => {
                series.extend(["bucket", "sum", "count"].map(|part| format!("{name}_{part}")));
            }
            "counter" | "gauge" => {
                series.insert(name);
            }
            // A row of another table.
            _ => {}
        }
    }
    assert!(series.len() > 20, "docs/METRICS.md has {series:?}");
    series
}

/// The series that an agent serves.
async fn served() -> BTreeSet<String> {
    let fixture = Fixture::on(Store::Redis).await;
    fixture.agent.campaign("e", "c", 10_000).await;
    let metrics = fixture.agent.get("/metrics").await;
    let metrics = metrics.body.as_str().expect("text");
    for histogram in ["request", "node_call"] {
        let bucket = format!("election_agent_{histogram}_duration_seconds_bucket{{");
        let mut buckets = metrics.lines().filter(|line| line.starts_with(&bucket));
        // Quantiles are of no number without.
        assert!(buckets.any(|line| line.contains("le=\"+Inf\"")), "{bucket}");
    }
    let samples = metrics.lines().filter(|line| !line.starts_with('#'));
    let names = samples.filter_map(|line| line.split(['{', ' ']).next());
    names.map(str::to_owned).collect()
}

#[tokio::test]
async fn rules_dashboard_and_runbook_name_only_metrics_that_exist() {
    let (documented, served) = (documented(), served().await);
    let recorded: BTreeSet<_> = rules()
        .iter()
        .filter_map(|rule| rule["record"].as_str().map(str::to_owned))
        .collect();
    assert!(recorded.len() > 10, "{recorded:?}");
    let pages = vec![DASHBOARD, RUNBOOK, "docs/OPERATING.md"];
    let mut paths = [RULES.to_vec(), pages].concat();
    let tests = rule_tests();
    paths.extend(tests.iter().map(String::as_str));
    let mut all = BTreeSet::new();
    for path in paths {
        let text = committed(path);
        for name in named(&text) {
            let exists = match name.contains(':') {
                true => recorded.contains(name),
                // What a pattern for many begins with.
                false if name.ends_with('_') => {
                    documented.iter().any(|series| series.starts_with(name))
                }
                false => documented.contains(name) || served.contains(name),
            };
            assert!(exists, "{path} names {name}, which does not exist");
            all.insert(name.to_owned());
        }
    }
    for series in ["election_agent_node_up", "election_agent_ready"] {
        assert!(all.contains(series), "{series}: {all:?}");
        assert!(served.contains(series), "{series}: {served:?}");
    }
}

#[test]
fn the_dashboard_is_one_that_grafana_shows() {
    let dashboard: Value = serde_json::from_str(&committed(DASHBOARD)).expect("JSON");
    assert!(
        dashboard["schemaVersion"].as_u64() >= Some(39),
        "its variables' definitions"
    );
    let variables = dashboard["templating"]["list"].as_array().expect("a list");
    let variables: BTreeSet<_> = variables
        .iter()
        .filter_map(|one| one["name"].as_str())
        .collect();
    assert_eq!(variables, BTreeSet::from(["datasource", "instance", "job"]));

    let panels = dashboard["panels"].as_array().expect("a list");
    let (mut ids, mut rows, mut taken) = (BTreeSet::new(), Vec::new(), BTreeSet::new());
    let source = json!({"type": "prometheus", "uid": "${datasource}"});
    for panel in panels {
        let title = text(panel, "title");
        assert!(
            ids.insert(panel["id"].as_u64()),
            "{title}: its id is another's"
        );
        let place = |member: &str| panel["gridPos"][member].as_u64().expect("a number");
        let (x, y, width, height) = (place("x"), place("y"), place("w"), place("h"));
        assert!(width > 0 && x + width <= COLUMNS, "{title} is outside");
        for cell in (y..y + height).flat_map(|row| (x..x + width).map(move |column| (column, row)))
        {
            assert!(taken.insert(cell), "{title} overlaps another at {cell:?}");
        }
        if panel["type"] == "row" {
            rows.push(title);
            continue;
        }
        assert_eq!(panel["datasource"], source, "{title}");
        let targets = panel["targets"].as_array().expect("targets");
        assert!(!targets.is_empty(), "{title}");
        for target in targets {
            assert_eq!(target["datasource"], source, "{title}");
            let buckets = text(target, "expr").contains("_duration_seconds_bucket");
            let exemplars = target["exemplar"] == true;
            assert_eq!(buckets, exemplars, "{title}: latencies have exemplars");
        }
    }
    let expected = [
        "Is it well?",
        "Traffic",
        "Leadership",
        "Waiting and observing",
        "Nodes",
        "Clients",
        "Pods",
        "Agent",
    ];
    assert_eq!(rows, expected);
}

#[test]
fn the_dashboards_queries_are_queries() {
    let dashboard: Value = serde_json::from_str(&committed(DASHBOARD)).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("a list");
    let targets = panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array());
    let rules: Vec<_> = targets
        .flatten()
        .zip(0..)
        .map(|(target, number)| {
            // What Grafana puts in.
            let query = text(target, "expr")
                .replace("$__rate_interval", "1m")
                .replace("$__range", "1h");
            json!({"record": format!("panel:query:{number}"), "expr": query})
        })
        .collect();
    assert!(rules.len() > 30, "{} queries", rules.len());
    let directory = tempfile::TempDir::new().expect("a directory");
    let path = directory.path().join("panels.yaml");
    // JSON is YAML.
    let file = json!({"groups": [{"name": "panels", "rules": rules}]}).to_string();
    fs::write(&path, file).expect("written");
    promtool(&["check", "rules", &path.display().to_string()]);
}

#[test]
fn the_collector_limits_its_memory_first_and_uses_all_that_it_configures() {
    let collector = yaml("observability/otel-collector.yaml");
    let service = &collector["service"];
    let pipeline = &service["pipelines"]["traces"];
    assert_eq!(pipeline["processors"][0], "memory_limiter");
    for (section, used) in [
        ("receivers", &pipeline["receivers"]),
        ("processors", &pipeline["processors"]),
        ("exporters", &pipeline["exporters"]),
        ("extensions", &service["extensions"]),
    ] {
        let configured = collector[section].as_object().expect("an object");
        let configured: BTreeSet<_> = configured.keys().map(String::as_str).collect();
        let used = used.as_array().expect("a list");
        let used: BTreeSet<_> = used.iter().filter_map(Value::as_str).collect();
        assert_eq!(configured, used, "{section}");
    }
}

/// The process is ended when this is dropped.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn spans_are_shown_over_both_protocols() {
    let python = repository("target/test-tools/python/bin/python");
    assert!(
        Path::new(&python).exists(),
        "{python:?} is missing: run `make test`, which installs it"
    );
    let child = Command::new(python)
        .arg(repository("observability/show_spans.py"))
        .args(["0", "0"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut receiver = Ended(child);
    let printed = BufReader::new(receiver.0.stdout.take().expect("piped"));
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in printed.lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let listening = eventually("it listens", async || lines.try_recv().ok()).await;
    let ports: Vec<_> = listening
        .split(|c: char| !c.is_ascii_digit())
        .filter(|number| number.len() > 3)
        .collect();
    let [grpc, http] = ports[..] else {
        panic!("{listening}")
    };
    for (protocol, port) in [("grpc", grpc), ("http/protobuf", http)] {
        let endpoint = format!("http://127.0.0.1:{port}");
        let agent = Agent::start(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_BSP_SCHEDULE_DELAY", "100"),
        ])
        .await;
        agent.campaign("e", "c", 10_000).await;
        eventually("the campaign is shown", async || {
            lines
                .try_iter()
                .find(|line| line.contains("Election/Campaign") && line.contains("(server, "))
        })
        .await;
    }
}
