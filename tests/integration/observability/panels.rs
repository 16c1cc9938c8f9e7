//! Panels that are empty when all is well say why; those that are empty without data do not.

use std::{collections::BTreeSet, fs};

use serde_json::{Value, json};

use super::{DASHBOARD, named, promtool, text};
use crate::harness::committed;

fn panels() -> Vec<Value> {
    let dashboard: Value = serde_json::from_str(&committed(DASHBOARD)).expect("JSON");
    let mut panels = dashboard["panels"].as_array().expect("a list").clone();
    panels.retain(|panel| panel["type"] != "row");
    panels
}

fn expressions(panel: &Value) -> impl Iterator<Item = &str> {
    let targets = panel["targets"].as_array().into_iter().flatten();
    targets.map(|target| text(target, "expr"))
}

/// The metrics that every agent has from its start, by docs/METRICS.md.
fn always_there() -> BTreeSet<String> {
    let page = committed("docs/METRICS.md");
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let rows = rows.map(|row| {
        row.trim_matches('|')
            .split('|')
            .map(str::trim)
            .collect::<Vec<_>>()
    });
    rows.filter(|cells| cells.last() == Some(&"always"))
        .map(|cells| format!("election_agent_{}", cells[0].trim_matches('`')))
        .collect()
}

#[test]
fn panels_that_are_empty_where_all_is_well_say_so() {
    let always = always_there();
    assert!(always.len() > 10, "{always:?}");
    let parts = ["_bucket", "_sum", "_count"];
    let there = |name: &str| {
        let histogram = parts.iter().find_map(|part| name.strip_suffix(part));
        always.contains(name) || histogram.is_some_and(|name| always.contains(name))
    };
    let mut said = 0;
    for panel in panels() {
        let title = text(&panel, "title");
        let may_be_empty = expressions(&panel).all(|expression| {
            let names = named(expression);
            // `ALERTS` is no metric of the agent's.
            names.is_empty() || !names.into_iter().all(there)
        });
        let says = panel["fieldConfig"]["defaults"]["noValue"].as_str();
        match may_be_empty {
            true => assert!(
                says.is_some_and(|says| !says.is_empty()),
                "{title} is empty where all is well, and says `No data`"
            ),
            // Emptiness means that Prometheus has no agent.
            false => assert_eq!(says, None, "{title} hides that nothing is seen"),
        }
        said += usize::from(may_be_empty);
    }
    assert!(said > 10, "{said}");
}

#[test]
fn the_share_of_requests_that_failed_is_nought_before_the_first_has_failed() {
    let panels = panels();
    let panel = panels
        .iter()
        .find(|panel| panel["title"] == "Requests about elections that failed")
        .expect("a panel");
    let query = expressions(panel).next().expect("a query");
    let query = query
        .replace("$__rate_interval", "1m")
        .replace("$job", ".+")
        .replace("$instance", ".+");
    let series = |job: &str, status: &str, values: &str| {
        json!({
            "series": format!(
                "election_agent_request_duration_seconds_count{{job=\"{job}\", instance=\"a\", \
                 action=\"extend\", status=\"{status}\"}}"
            ),
            "values": values,
        })
    };
    let sample =
        |job: &str, value: f64| json!({"labels": format!("{{job=\"{job}\"}}"), "value": value});
    let test = json!({
        "rule_files": [],
        "evaluation_interval": "15s",
        "tests": [{
            "interval": "15s",
            "input_series": [
                series("well", "ok", "0+4x40"),
                series("failing", "ok", "0+3x40"),
                series("failing", "unavailable", "0+1x40"),
            ],
            "promql_expr_test": [{
                "expr": query,
                "eval_time": "5m",
                "exp_samples": [sample("well", 0.0), sample("failing", 0.25)],
            }],
        }],
    });
    let directory = tempfile::TempDir::new().expect("a directory");
    let path = directory.path().join("panel.yaml");
    // JSON is YAML.
    fs::write(&path, test.to_string()).expect("written");
    promtool(&["test", "rules", &path.display().to_string()]);
}
