//! Alertmanager accepts its configuration, and inhibits what another alert reports already.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    sync::mpsc,
};

use serde_json::{Value, json};

use super::{Ended, alerts, severity, text, yaml};
use crate::harness::{eventually, repository};

const CONFIGURATION: &str = "observability/alertmanager.yaml";
const INSTALL: &str = "run scripts/install-test-tools, which installs it";

#[test]
fn amtool_takes_the_configuration() {
    let output = Command::new("amtool")
        .arg("check-config")
        .arg(repository(CONFIGURATION))
        .output()
        .unwrap_or_else(|error| panic!("amtool: {error}: {INSTALL}"));
    let printed = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&printed)
    );
}

/// The value that a list of matchers wants of a label, and whether it is an expression.
fn wanted<'a>(matchers: &'a Value, label: &str) -> Option<(&'a str, bool)> {
    let matchers = matchers.as_array().expect("a list");
    matchers.iter().find_map(|matcher| {
        let rest = matcher.as_str()?.strip_prefix(label)?;
        let expression = rest.starts_with("=~");
        Some((
            rest.trim_start_matches(['=', '~']).trim_matches('"'),
            expression,
        ))
    })
}

/// The names that matchers on `alertname` match, of these alerts: `A`, or `Prefix(B|C)`.
fn matched(matchers: &Value) -> BTreeSet<String> {
    let (value, _) = wanted(matchers, "alertname").expect("a name");
    match value.trim_end_matches(')').split_once('(') {
        None => BTreeSet::from([value.to_owned()]),
        Some((prefix, rest)) => rest
            .split('|')
            .map(|name| format!("{prefix}{name}"))
            .collect(),
    }
}

#[test]
fn inhibition_names_alerts_that_exist_and_only_critical_ones_inhibit() {
    let alerts = alerts();
    let severities = |name: &str| -> BTreeSet<&str> {
        let named = alerts.iter().filter(|alert| text(alert, "alert") == name);
        named.map(severity).collect()
    };
    let rules = yaml(CONFIGURATION)["inhibit_rules"].clone();
    let rules = rules.as_array().expect("a list");
    assert!(rules.len() > 4);
    for rule in rules {
        let (source, target) = (&rule["source_matchers"], &rule["target_matchers"]);
        for name in matched(source).union(&matched(target)) {
            assert!(!severities(name).is_empty(), "there is no alert {name}");
        }
        let window = wanted(source, "window").map(|(window, _)| window);
        let given = wanted(source, "severity").map(|(severity, _)| severity);
        for name in matched(source) {
            let inhibits = alerts.iter().filter(|alert| {
                text(alert, "alert") == name
                    && window.is_none_or(|window| alert["labels"]["window"] == window)
                    && given.is_none_or(|given| severity(alert) == given)
            });
            let inhibits: BTreeSet<_> = inhibits.map(severity).collect();
            assert_eq!(inhibits, BTreeSet::from(["critical"]), "{rule}");
        }
    }
}

/// An Alertmanager with the configuration: its URL, and the process, which ends when it is dropped.
async fn alertmanager(storage: &tempfile::TempDir) -> (String, Ended) {
    // Debian's package has it under a name of its own.
    let programs = ["prometheus-alertmanager", "alertmanager"];
    let started = programs.into_iter().find_map(|program| {
        Command::new(program)
            .arg(format!(
                "--config.file={}",
                repository(CONFIGURATION).display()
            ))
            .arg(format!("--storage.path={}", storage.path().display()))
            .args([
                "--web.listen-address=127.0.0.1:0",
                "--cluster.listen-address=",
            ])
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .ok()
    });
    let mut child = started.unwrap_or_else(|| panic!("alertmanager is missing: {INSTALL}"));
    let log = BufReader::new(child.stderr.take().expect("piped"));
    let ended = Ended(child);
    let (sender, addresses) = mpsc::channel();
    std::thread::spawn(move || {
        // To the end, so that it can write.
        for line in log.lines().map_while(Result::ok) {
            let address = line.split("address=").nth(1);
            let address = address.filter(|_| line.contains("Listening on"));
            if let Some(address) = address.map(str::trim) {
                // The test may be over.
                let _ = sender.send(address.to_owned());
            }
        }
    });
    let address = eventually("it listens", async || addresses.try_recv().ok()).await;
    (format!("http://{address}/api/v2/alerts"), ended)
}

/// Which of these alerts, all of which fire, are kept back.
async fn kept_back(firing: &[&[(&str, &str)]]) -> BTreeSet<String> {
    const LAST: &str = "told last";
    let storage = tempfile::TempDir::new().expect("a directory");
    let (url, _alertmanager) = alertmanager(&storage).await;
    // The client wants one, also for what is not encrypted.
    election_agent::tls::install_provider();
    let client = reqwest::Client::new();
    // Alertmanager's inhibitor receives alerts in their order, and after they have been accepted. When it inhibits the
    // last, it knows them all.
    let last = [
        [
            ("alertname", "ElectionAgentStoreFull"),
            ("severity", "critical"),
            ("job", LAST),
        ],
        [
            ("alertname", "ElectionAgentNodeMemoryHigh"),
            ("severity", "warning"),
            ("job", LAST),
        ],
    ];
    for firing in [firing, &last.each_ref().map(|labels| &labels[..])] {
        let alerts = firing.iter().map(|labels| {
            let labels = labels.iter();
            let labels = labels.map(|(label, value)| ((*label).to_owned(), json!(value)));
            json!({ "labels": labels.collect::<serde_json::Map<_, _>>() })
        });
        let alerts: Vec<Value> = alerts.collect();
        let taken = client.post(&url).json(&alerts).send().await.expect("asked");
        assert!(taken.status().is_success(), "{taken:?}");
    }
    let suppressed = async || -> Option<Vec<Value>> {
        let listed = client.get(&url).send().await.ok()?;
        let mut listed: Vec<Value> = listed.json().await.ok()?;
        assert_eq!(listed.len(), firing.len() + last.len(), "{listed:?}");
        listed.retain(|alert| alert["status"]["state"] == "suppressed");
        Some(listed)
    };
    let is_last = |alert: &Value| alert["labels"]["job"] == LAST;
    eventually("the last is kept back", async || {
        suppressed().await?.iter().any(is_last).then_some(())
    })
    .await;
    // Each answer is made from what the inhibitor knows at that time, so the next one is made of all.
    let suppressed = suppressed().await.expect("answered");
    let others = suppressed.iter().filter(|alert| !is_last(alert));
    let described = others.map(|alert| {
        let label = |label: &str| alert["labels"][label].as_str().unwrap_or_default();
        let name = label("alertname").replace("ElectionAgent", "");
        let parts = [&name, label("severity"), label("job"), label("window")];
        parts.join(" ").trim().to_owned()
    });
    described.collect()
}

#[tokio::test]
async fn a_lost_quorum_keeps_back_what_follows_from_it_in_its_own_deployment() {
    const QUORUM: &[(&str, &str)] = &[
        ("alertname", "ElectionAgentQuorumLost"),
        ("severity", "critical"),
        ("job", "a"),
    ];
    let warning = |name, job| [("alertname", name), ("severity", "warning"), ("job", job)];
    let burn = [
        ("alertname", "ElectionAgentErrorBudgetBurn"),
        ("severity", "critical"),
        ("job", "a"),
        ("window", "1h"),
    ];
    let follows = [
        warning("ElectionAgentNodeDown", "a"),
        warning("ElectionAgentNotReady", "a"),
        warning("ElectionAgentGuardActive", "a"),
    ];
    let others = [
        warning("ElectionAgentNodeDown", "b"),
        // Another team has to act on it.
        warning("ElectionAgentCertificateExpiry", "a"),
        warning("ElectionAgentDown", "a"),
    ];
    let mut firing: Vec<&[(&str, &str)]> = vec![QUORUM, &burn];
    firing.extend(follows.iter().chain(&others).map(|alert| &alert[..]));
    let kept = kept_back(&firing).await;
    let expected = [
        "ErrorBudgetBurn critical a 1h",
        "GuardActive warning a",
        "NodeDown warning a",
        "NotReady warning a",
    ];
    assert_eq!(kept, expected.map(str::to_owned).into());
}

#[tokio::test]
async fn a_full_store_keeps_back_what_follows_from_it_in_its_own_deployment() {
    let alert = |name, severity, job| [("alertname", name), ("severity", severity), ("job", job)];
    let firing = [
        alert("ElectionAgentStoreFull", "critical", "a"),
        alert("ElectionAgentNodeMemoryHigh", "warning", "a"),
        alert("ElectionAgentNodeCallErrors", "warning", "a"),
        alert("ElectionAgentErrorBudgetBurn", "critical", "a"),
        alert("ElectionAgentNodeMemoryHigh", "warning", "b"),
        alert("ElectionAgentNodeDown", "warning", "a"),
    ];
    let kept = kept_back(&firing.each_ref().map(|alert| &alert[..])).await;
    let expected = [
        "ErrorBudgetBurn critical a",
        "NodeCallErrors warning a",
        "NodeMemoryHigh warning a",
    ];
    assert_eq!(kept, expected.map(str::to_owned).into());
}

#[tokio::test]
async fn the_more_urgent_of_two_alerts_about_the_same_tells() {
    let instance = |name, severity, instance| {
        vec![
            ("alertname", name),
            ("severity", severity),
            ("job", "a"),
            ("instance", instance),
        ]
    };
    let burn = |severity, window| {
        vec![
            ("alertname", "ElectionAgentErrorBudgetBurn"),
            ("severity", severity),
            ("job", "a"),
            ("window", window),
        ]
    };
    let firing = [
        instance("ElectionAgentCertificateExpiry", "critical", "1"),
        instance("ElectionAgentCertificateExpiry", "warning", "1"),
        instance("ElectionAgentOverloaded", "critical", "1"),
        instance("ElectionAgentNearInFlightLimit", "warning", "1"),
        instance("ElectionAgentDown", "warning", "1"),
        burn("critical", "1h"),
        burn("critical", "6h"),
        burn("warning", "3d"),
        // About all jobs, so it has none.
        vec![
            ("alertname", "ElectionAgentAbsent"),
            ("severity", "critical"),
        ],
    ];
    let firing: Vec<_> = firing.iter().map(|labels| &labels[..]).collect();
    let kept = kept_back(&firing).await;
    let expected = [
        "CertificateExpiry warning a",
        "Down warning a",
        "ErrorBudgetBurn critical a 6h",
        "ErrorBudgetBurn warning a 3d",
        "NearInFlightLimit warning a",
    ];
    assert_eq!(kept, expected.map(str::to_owned).into());

    // Of another agent it is not the same.
    let firing = [
        instance("ElectionAgentCertificateExpiry", "critical", "1"),
        instance("ElectionAgentCertificateExpiry", "warning", "2"),
        instance("ElectionAgentOverloaded", "critical", "1"),
        instance("ElectionAgentNearInFlightLimit", "warning", "2"),
    ];
    let firing: Vec<_> = firing.iter().map(|labels| &labels[..]).collect();
    assert_eq!(kept_back(&firing).await, BTreeSet::new());
}
