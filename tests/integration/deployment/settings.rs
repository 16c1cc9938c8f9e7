//! Settings that deployments give exist, and their values are valid; rights are those that are documented.

use std::collections::{BTreeMap, BTreeSet};

use election_agent::config;
use serde_json::Value;

use super::{COMPONENTS, OVERLAYS, items, name, of_kind, render, renders, yaml};
use crate::harness::{command_output, committed};

/// The agent's own variables among these.
fn unknown<'a>(variables: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let known: BTreeSet<_> = config::settings()
        .flat_map(|setting| [Some(setting.variable), setting.alias])
        .flatten()
        .chain(["EA_CONFIG_FILE"])
        .collect();
    variables
        .into_iter()
        .filter(|variable| variable.starts_with("EA_") && !known.contains(variable))
        .collect()
}

/// The output of `election-agent config` for these.
fn accepted(what: &str, settings: &BTreeMap<String, String>) {
    let settings: Vec<_> = settings
        .iter()
        .filter(|(name, _)| name.starts_with("EA_"))
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    assert!(settings.len() >= 4, "{what}: {settings:?}");
    let output = command_output(&["config"], &settings);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {told}");
}

/// The agent's ConfigMap.
pub(super) fn given(objects: &[Value]) -> BTreeMap<String, String> {
    let maps: Vec<_> = of_kind(objects, "ConfigMap")
        .filter(|map| map["data"].get("EA_HTTP_PORT").is_some())
        .collect();
    assert_eq!(maps.len(), 1);
    serde_json::from_value(maps[0]["data"].clone()).expect("text")
}

/// `NAME=value` lines; also those in comments.
fn lines(text: &str, comments: bool) -> impl Iterator<Item = (&str, &str)> {
    text.lines()
        .map(move |line| {
            if comments {
                line.trim_start_matches(['#', ' '])
            } else {
                line
            }
        })
        .filter(|line| line.starts_with("EA_"))
        .filter_map(|line| line.split_once('='))
}

fn compose() -> Value {
    yaml(&committed("deploy/compose.yaml")).remove(0)
}

#[test]
fn settings_in_manifests_exist_and_are_valid() {
    for (what, objects) in renders() {
        let given = given(objects);
        assert_eq!(
            unknown(given.keys().map(String::as_str)),
            Vec::<&str>::new(),
            "{what}"
        );
    }
    for overlay in OVERLAYS {
        // Without those that name files of Secrets.
        for components in COMPONENTS
            .into_iter()
            .filter(|components| !components.contains(&"tls"))
        {
            let objects = render(overlay, components);
            accepted(&format!("{overlay} with {components:?}"), &given(&objects));
        }
    }
}

#[test]
fn settings_of_compose_exist_and_are_valid() {
    let environment = compose()["services"]["election-agent"]["environment"].clone();
    let given: BTreeMap<String, String> = serde_json::from_value(environment).expect("text");
    assert_eq!(
        unknown(given.keys().map(String::as_str)),
        Vec::<&str>::new()
    );
    accepted("compose", &given);
}

#[test]
fn settings_of_the_unit_exist_and_are_valid() {
    let file = committed("deploy/systemd/election-agent.env");
    let given: BTreeMap<_, _> = lines(&file, false)
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    accepted("systemd", &given);
    let all: Vec<_> = lines(&file, true).map(|(name, _)| name).collect();
    assert!(all.contains(&"EA_TLS_CERT_FILE"), "{all:?}");
    assert_eq!(unknown(all), Vec::<&str>::new());

    let unit = committed("deploy/systemd/election-agent.service");
    let value = |key: &str| {
        let line = unit
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("{key} is missing"))
            .to_owned()
    };
    let seconds = |text: &str| {
        humantime::parse_duration(text)
            .expect("a duration")
            .as_secs()
    };
    // And a second for roll-backs.
    let grace = seconds(&given["EA_SHUTDOWN_GRACE"]) + 1;
    assert!(seconds(&value("TimeoutStopSec")) > grace);
    let state = format!("/var/lib/{}/", value("StateDirectory"));
    assert!(given["EA_EMBEDDED_PATH"].starts_with(&state));
    assert!(value("EnvironmentFile").ends_with("/election-agent.env"));
}

#[test]
fn variables_that_are_no_settings_are_found() {
    assert_eq!(
        unknown(["EA_REDIS_URL", "EA_REDIS_URLS", "OTEL_X"]),
        ["EA_REDIS_URL"]
    );
}

/// The rows `| group | resources | verbs |` after this heading of docs/KUBERNETES.md.
fn documented(heading: &str) -> BTreeMap<(String, String), BTreeSet<String>> {
    let document = committed("docs/KUBERNETES.md");
    let (_, section) = document
        .split_once(heading)
        .unwrap_or_else(|| panic!("{heading}"));
    let words = |cell: &str| -> Vec<String> {
        let cells = cell.split('`').skip(1).step_by(2);
        cells
            .map(|word| word.trim_matches('"').to_owned())
            .collect()
    };
    section
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|row| {
            let cells: Vec<_> = row.trim_matches('|').split('|').map(words).collect();
            (
                (cells[0].concat(), cells[1].concat()),
                cells[2].iter().cloned().collect(),
            )
        })
        .collect()
}

#[test]
fn rights_are_exactly_those_that_are_documented() {
    for (component, heading) in [
        ("pods-watch", "To watch ("),
        ("pods-on-demand", "To read on demand:"),
    ] {
        let objects = render("single", &[component]);
        let role = of_kind(&objects, "ClusterRole").next().expect("a role");
        let mut granted: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
        for rule in items(&role["rules"]) {
            let words = |member: &str| -> Vec<String> {
                serde_json::from_value(rule[member].clone()).expect("words")
            };
            for group in words("apiGroups") {
                for resource in words("resources") {
                    let verbs = granted.entry((group.clone(), resource)).or_default();
                    verbs.extend(words("verbs"));
                }
            }
        }
        let documented = documented(heading);
        assert_eq!(documented.len(), 3, "{documented:?}");
        assert_eq!(granted, documented, "{component}");
    }
}

#[test]
fn rights_are_bound_to_the_agents_service_account_alone() {
    for (what, objects) in renders() {
        for binding in of_kind(objects, "ClusterRoleBinding") {
            let subjects: Vec<_> = items(&binding["subjects"]).collect();
            assert_eq!(subjects.len(), 1, "{what}");
            assert_eq!(subjects[0]["name"], "election-agent", "{what}");
            assert_eq!(subjects[0]["namespace"], "election-agent", "{what}");
            let role = binding["roleRef"]["name"].as_str().expect("a role");
            assert!(
                role == "system:auth-delegator"
                    || of_kind(objects, "ClusterRole").any(|object| name(object) == role),
                "{what}: {role}"
            );
        }
        let bound = of_kind(objects, "ClusterRoleBinding").next().is_some();
        let deployment = of_kind(objects, "Deployment").next().expect("one");
        // A token only for pods that call the API server.
        let token = &deployment["spec"]["template"]["spec"]["automountServiceAccountToken"];
        assert_eq!(*token, bound, "{what}");
    }
}
