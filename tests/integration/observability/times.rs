//! Alerts fire in time: not after their condition is over, and not for what is over by itself sooner.

use std::{collections::BTreeMap, time::Duration};

use election_agent::config;
use serde_json::Value;

use super::{alerts, severity, text, yaml};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long an alert's condition holds.
enum Holds {
    /// Until a person acts.
    UntilMended,
    /// For this long, and then it is over.
    For(Duration),
    /// For the shortest window that the expression looks back over, after the last event.
    Window,
    /// For longer, but a notification later than this is too late.
    LateAfter(Duration),
}

/// What the default of a setting is.
fn default(variable: &str) -> Duration {
    let setting = config::settings().find(|setting| setting.variable == variable);
    let default = setting.unwrap_or_else(|| panic!("{variable}")).default;
    humantime::parse_duration(default).expect("a duration")
}

/// For each alert, by name, severity and window: what is shorter and must not make it fire, and how long its condition
/// holds.
fn bounds() -> BTreeMap<&'static str, (Duration, Holds)> {
    // Leaders that cannot extend stop, and guards end, after it.
    let term = default("EA_MAX_TERM");
    // And the second for roll-backs.
    let stops = default("EA_SHUTDOWN_GRACE") + SECOND;
    let nothing = Duration::ZERO;
    BTreeMap::from([
        (
            "ElectionAgentQuorumLost critical",
            (nothing, Holds::LateAfter(term)),
        ),
        (
            "ElectionAgentNodeDown warning",
            (default("EA_REDIS_OPERATION_TIMEOUT"), Holds::UntilMended),
        ),
        (
            "ElectionAgentSlowNode warning",
            (nothing, Holds::UntilMended),
        ),
        (
            "ElectionAgentGuardActive warning",
            (nothing, Holds::For(term)),
        ),
        (
            "ElectionAgentGuardBlocksGrants critical",
            (nothing, Holds::For(term)),
        ),
        (
            "ElectionAgentLeadershipFlapping warning",
            (nothing, Holds::Window),
        ),
        (
            "ElectionAgentErrorBudgetBurn critical 1h",
            (nothing, Holds::Window),
        ),
        (
            "ElectionAgentErrorBudgetBurn critical 6h",
            (nothing, Holds::Window),
        ),
        (
            "ElectionAgentErrorBudgetBurn warning 3d",
            (nothing, Holds::Window),
        ),
        ("ElectionAgentDown warning", (stops, Holds::UntilMended)),
        ("ElectionAgentAbsent critical", (stops, Holds::UntilMended)),
        ("ElectionAgentNotReady warning", (stops, Holds::UntilMended)),
        (
            "ElectionAgentOverloaded critical",
            (nothing, Holds::LateAfter(term)),
        ),
        (
            "ElectionAgentNearInFlightLimit warning",
            (nothing, Holds::Window),
        ),
        (
            "ElectionAgentConnectionsRefused warning",
            (nothing, Holds::Window),
        ),
        // What the other severity's threshold leaves.
        (
            "ElectionAgentCertificateExpiry warning",
            (nothing, Holds::LateAfter(6 * DAY)),
        ),
        (
            "ElectionAgentCertificateExpiry critical",
            (nothing, Holds::LateAfter(DAY)),
        ),
        (
            "ElectionAgentTraceExportFailing warning",
            (nothing, Holds::UntilMended),
        ),
        (
            "ElectionAgentNodeCallErrors warning",
            (nothing, Holds::Window),
        ),
        (
            "ElectionAgentNodeMemoryHigh warning",
            (nothing, Holds::UntilMended),
        ),
        ("ElectionAgentStoreFull critical", (nothing, Holds::Window)),
        (
            "ElectionAgentLogLinesLost warning",
            (nothing, Holds::Window),
        ),
        // An agent that has lost its connection to a channel connects again within a second or two.
        (
            "ElectionAgentDeaf warning",
            (5 * SECOND, Holds::UntilMended),
        ),
        (
            "ElectionAgentKubeCacheStale warning",
            (nothing, Holds::Window),
        ),
    ])
}

/// Prometheus' way to write a duration, as far as these files use it.
fn duration(value: &Value) -> Option<Duration> {
    let text = value.as_str()?;
    Some(humantime::parse_duration(text).unwrap_or_else(|error| panic!("{text}: {error}")))
}

/// The windows that an expression looks back over, by itself or by a recording rule that is named for its window.
fn windows(expression: &str) -> impl Iterator<Item = Duration> {
    let ranges = expression.split('[').skip(1);
    let ranges = ranges.filter_map(|rest| rest.split([']', ':']).next());
    let recorded = expression.split("rate").skip(1);
    let recorded = recorded.filter_map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric())?;
        Some(&rest[..end])
    });
    ranges
        .chain(recorded)
        .filter_map(|window| humantime::parse_duration(window).ok())
}

/// An alert's name, its severity, and its window if it has one.
fn name(alert: &Value) -> String {
    let name = format!("{} {}", text(alert, "alert"), severity(alert));
    match alert["labels"]["window"].as_str() {
        Some(window) => format!("{name} {window}"),
        None => name,
    }
}

fn held(alert: &Value) -> Duration {
    duration(&alert["for"]).unwrap_or_default()
}

/// How often agents are scraped, and how often alerts are evaluated whose condition may be over soon.
fn intervals() -> (Duration, Duration) {
    let global = &yaml("observability/prometheus.yaml")["global"];
    let scrape = duration(&global["scrape_interval"]).expect("an interval");
    let groups = super::RULES.map(|path| yaml(path)["groups"].clone());
    let groups = groups.iter().filter_map(Value::as_array).flatten();
    let intervals = groups.filter_map(|group| {
        let alerts = group["rules"].as_array().into_iter().flatten();
        let mut names = alerts.filter_map(|rule| rule["alert"].as_str());
        // What these alerts must not miss is as short as a term.
        names.find(|name| ["ElectionAgentQuorumLost", "ElectionAgentOverloaded"].contains(name))?;
        Some(duration(&group["interval"]).expect("an interval of its own"))
    });
    let evaluation = intervals.max().expect("groups");
    (scrape, evaluation)
}

#[test]
fn every_alert_fires_before_what_it_tells_of_is_over_or_too_late() {
    let mut bounds = bounds();
    let (scrape, evaluation) = intervals();
    // How much later than its condition an alert may become pending.
    let seen = scrape + evaluation;
    for alert in alerts() {
        let name = name(&alert);
        let bound = bounds.remove(name.as_str());
        let (shorter, holds) = bound.unwrap_or_else(|| panic!("{name} has no bounds here"));
        let held = held(&alert);
        let limit = match holds {
            Holds::UntilMended => Duration::MAX,
            Holds::For(limit) | Holds::LateAfter(limit) => limit,
            Holds::Window => {
                let shortest = windows(text(&alert, "expr")).min();
                shortest.unwrap_or_else(|| panic!("{name} looks back over no window"))
            }
        };
        assert!(
            held + seen <= limit,
            "{name} fires {held:?} and up to {seen:?} after what holds for {limit:?}"
        );
        // A sample that is taken just before the end stands until the next one.
        assert!(
            shorter.is_zero() || held >= shorter + scrape,
            "{name} fires after {held:?} for what takes {shorter:?} as a rule"
        );
    }
    assert!(
        bounds.is_empty(),
        "there are no such alerts: {:?}",
        bounds.keys()
    );
}

#[test]
fn the_warning_of_a_limit_comes_no_later_than_the_alert_that_it_is_reached() {
    let held = |wanted: &str| {
        let alert = alerts().into_iter().find(|alert| name(alert) == wanted);
        held(&alert.unwrap_or_else(|| panic!("{wanted}")))
    };
    assert!(
        held("ElectionAgentNearInFlightLimit warning") <= held("ElectionAgentOverloaded critical")
    );
}

/// Alertmanager sends a group again every `group_interval`, and nothing of what is over by then.
#[test]
fn alerts_about_what_ends_by_itself_are_kept_until_they_have_been_sent() {
    let route = yaml("observability/alertmanager.yaml")["route"].clone();
    let waits = ["group_wait", "group_interval"].map(|member| duration(&route[member]));
    let longest = waits.into_iter().flatten().max().expect("waits");
    let bounds = bounds();
    for alert in alerts() {
        let name = name(&alert);
        let (_, holds) = &bounds[name.as_str()];
        let kept = duration(&alert["keep_firing_for"]);
        match holds {
            Holds::For(_) => assert!(kept > Some(longest), "{name}: {kept:?}, {longest:?}"),
            Holds::UntilMended | Holds::Window | Holds::LateAfter(_) => {
                assert_eq!(kept, None, "{name}");
            }
        }
    }
}
