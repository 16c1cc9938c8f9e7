//! The Helm chart makes the objects that kustomize makes.

use std::{
    collections::BTreeMap,
    process::{Command, Output},
};

use serde_json::{Value, json};

use super::{kind, name, objects::lost, of_kind, render, yaml};
use crate::harness::repository;

const CHART: &str = "deploy/helm/election-agent";

/// Runs Helm on the chart with these values.
fn helm(arguments: &[&str], values: &Value) -> Output {
    let helm = repository("target/test-tools/helm");
    assert!(
        helm.exists(),
        "{} is missing: run `make test`, which installs it",
        helm.display()
    );
    let directory = tempfile::TempDir::new().expect("a directory");
    let file = directory.path().join("values.yaml");
    // JSON is YAML.
    std::fs::write(&file, values.to_string()).expect("written");
    Command::new(helm)
        .args(arguments)
        .arg(repository(CHART))
        .arg("--values")
        .arg(&file)
        // Helm keeps what it downloads, and plugins, in the home directory; none is wanted.
        .env("HOME", directory.path())
        .output()
        .expect("helm runs")
}

/// The chart's objects, as a release in the namespace of the manifests.
fn charted(values: &Value) -> Vec<Value> {
    let arguments = ["template", "any-name", "--namespace", "election-agent"];
    let output = helm(&arguments, values);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{values}: {told}");
    yaml(&String::from_utf8(output.stdout).expect("UTF-8"))
}

/// Replaces names by others, wherever they are values.
fn rename(value: &mut Value, names: &BTreeMap<String, String>) {
    match value {
        Value::String(text) => {
            if let Some(new) = names.get(text) {
                new.clone_into(text);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, names)),
        Value::Object(members) => members
            .values_mut()
            .for_each(|member| rename(member, names)),
        _ => {}
    }
}

/// Takes a member out of an object, and the object if nothing is left in it.
fn remove(value: &mut Value, pointer: &str, member: &str) {
    let (parent, own) = pointer.rsplit_once('/').expect("a path");
    let Some(Value::Object(object)) = value.pointer_mut(pointer) else {
        return;
    };
    object.remove(member);
    if object.is_empty()
        && let Some(Value::Object(parent)) = value.pointer_mut(parent)
    {
        parent.remove(own);
    }
}

/// Objects by kind and name, without what Helm and kustomize do each in its way.
fn comparable(mut objects: Vec<Value>) -> BTreeMap<String, Value> {
    // Kustomize ends names in a hash of the contents, so that a change is a rollout; the chart has an annotation for that.
    let hashed = |name: &str| {
        let (stem, hash) = name.rsplit_once('-')?;
        let is_hash = hash.len() == 10 && hash.bytes().all(|byte| byte.is_ascii_alphanumeric());
        is_hash.then(|| (name.to_owned(), stem.to_owned()))
    };
    let names = of_kind(&objects, "ConfigMap").filter_map(|map| hashed(name(map)));
    let names: BTreeMap<_, _> = names.collect();
    for object in &mut objects {
        rename(object, &names);
        for label in ["app.kubernetes.io/managed-by", "helm.sh/chart"] {
            remove(object, "/metadata/labels", label);
        }
        remove(
            object,
            "/spec/template/metadata/annotations",
            "checksum/settings",
        );
        // By which components know about each other.
        remove(object, "/metadata/annotations", "election-agent/scheme");
    }
    objects
        .into_iter()
        // Helm makes it with `--create-namespace`.
        .filter(|object| kind(object) != "Namespace")
        .map(|object| (format!("{} {}", kind(&object), name(&object)), object))
        .collect()
}

/// The values that stand for a component.
fn values(overlay: &str, components: &[&str]) -> Value {
    let servers = match overlay {
        "single" => 1,
        _ => 3,
    };
    let mut values = json!({ "redis": { "servers": servers } });
    for component in components {
        let on = json!({ "enabled": true });
        let (key, value) = match *component {
            "pods-watch" => ("podLookup", json!("watch")),
            "pods-on-demand" => ("podLookup", json!("on-demand")),
            "token-review" => ("tokenReview", on),
            "service-monitor" => ("serviceMonitor", on),
            other => (other, on),
        };
        values[key] = value;
    }
    values
}

#[test]
fn the_chart_makes_the_objects_of_the_manifests() {
    for overlay in ["single", "three-redis"] {
        for components in super::COMPONENTS {
            let values = values(overlay, components);
            let expected = comparable(render(overlay, components));
            let made = comparable(charted(&values));
            let names = |objects: &BTreeMap<String, Value>| -> Vec<String> {
                objects.keys().cloned().collect()
            };
            assert_eq!(names(&made), names(&expected), "{values}");
            for (name, object) in &expected {
                let mut differences = Vec::new();
                lost(object, &made[name], "manifests", &mut differences);
                lost(&made[name], object, "chart", &mut differences);
                assert!(differences.is_empty(), "{values}: {name}: {differences:#?}");
            }
        }
    }
}

#[test]
fn a_chart_without_redis_has_the_agents_alone_and_the_settings_that_are_given() {
    let url = "redis://redis.example:6379/0";
    let values = json!({
        "redis": { "servers": 0 },
        "settings": { "EA_REDIS_URLS": url, "EA_MAX_TERM": "90s" },
        "tokens": { "enabled": true },
        "tokenReview": { "enabled": true },
        "priorityClass": { "create": false, "name": "business-critical" },
        "image": { "repository": "registry.example/election-agent", "digest": format!("sha256:{}", "0".repeat(64)) },
    });
    let objects = charted(&values);
    assert_eq!(of_kind(&objects, "StatefulSet").count(), 0);
    assert_eq!(of_kind(&objects, "PriorityClass").count(), 0);
    let settings = super::settings::given(&objects);
    assert_eq!(settings["EA_REDIS_URLS"], url);
    assert_eq!(settings["EA_MAX_TERM"], "90s");
    assert_eq!(settings["EA_AUTH_MODES"], "token,kubernetes");
    let pod = |objects: &[Value]| {
        let deployment = of_kind(objects, "Deployment").next().expect("one");
        deployment["spec"]["template"].clone()
    };
    let spec = &pod(&objects)["spec"];
    assert_eq!(spec["priorityClassName"], "business-critical");
    let image = spec["containers"][0]["image"].as_str().expect("an image");
    assert!(
        image.starts_with("registry.example/election-agent@sha256:0"),
        "{image}"
    );

    // A change of settings is a rollout.
    let mut changed = values;
    changed["settings"]["EA_MAX_TERM"] = json!("91s");
    let annotations = |pod: &Value| pod["metadata"]["annotations"].clone();
    assert_ne!(
        annotations(&pod(&charted(&changed))),
        annotations(&pod(&objects))
    );
}

#[test]
fn helm_finds_no_fault_with_the_chart_and_refuses_values_that_it_does_not_have() {
    let output = helm(&["lint", "--strict"], &json!({}));
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}");
    for (wrong, told) in [
        (json!({ "redis": { "server": 3 } }), "server"),
        // No majority of two.
        (json!({ "redis": { "servers": 2 } }), "servers"),
        (json!({ "podLookup": "list" }), "podLookup"),
        // Helm would write 1e+06.
        (
            json!({ "settings": { "EA_MAX_IN_FLIGHT": 1_000_000 } }),
            "EA_MAX_IN_FLIGHT",
        ),
        // Probes and Services know the ports.
        (
            json!({ "settings": { "EA_HTTP_PORT": "80" } }),
            "EA_HTTP_PORT",
        ),
    ] {
        let output = helm(&["template", "any-name"], &wrong);
        let printed = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{wrong}");
        assert!(printed.contains(told), "{wrong}: {printed}");
    }
}
