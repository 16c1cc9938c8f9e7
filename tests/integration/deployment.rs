//! What `deploy/` holds fits together, and fits the agent.

mod containers;
mod fit;
mod helm;
mod objects;
mod placement;
mod reach;
mod settings;

use std::{fs, process::Command, sync::LazyLock};

use crate::harness::repository;
use serde::Deserialize as _;
use serde_json::Value;
use tempfile::TempDir;

const OVERLAYS: [&str; 4] = ["single", "three-redis", "sentinel", "cluster"];

/// Components that go together with every overlay.
const COMPONENTS: [&[&str]; 8] = [
    &[],
    &["pods-watch", "service-monitor"],
    &["pods-on-demand", "traces"],
    &["tls"],
    &["tokens", "tls", "pods-watch"],
    &["token-review", "pods-on-demand"],
    // In either order.
    &["service-monitor", "tls"],
    &["tls", "service-monitor"],
];

/// A file of the repository.
fn yaml(text: &str) -> Vec<Value> {
    yaml_serde::Deserializer::from_str(text)
        .map(|document| {
            Value::deserialize(document).unwrap_or_else(|error| panic!("{error}: {text}"))
        })
        .filter(|value| !value.is_null())
        .collect()
}

/// The objects of an overlay with these components.
fn render(overlay: &str, components: &[&str]) -> Vec<Value> {
    let kubectl = repository("target/test-tools/kubectl");
    assert!(
        kubectl.exists(),
        "{} is missing: run `make test`, which installs it",
        kubectl.display()
    );
    // A kustomization names its bases by relative paths.
    let target = repository("target");
    let directory = TempDir::new_in(&target).expect("a directory");
    let base = "../../deploy/kubernetes";
    let mut kustomization = format!("resources: [{base}/overlays/{overlay}]\ncomponents:\n");
    for component in components {
        kustomization.push_str(&format!("  - {base}/components/{component}\n"));
    }
    fs::write(directory.path().join("kustomization.yaml"), kustomization).expect("written");
    let output = Command::new(kubectl)
        .arg("kustomize")
        .arg(directory.path())
        .output()
        .expect("kubectl runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{overlay} {components:?}: {told}");
    assert!(
        told.is_empty(),
        "kubectl warns of {overlay} {components:?}: {told}"
    );
    yaml(&String::from_utf8(output.stdout).expect("UTF-8"))
}

/// Every overlay with every set of components, and what they are.
static RENDERED: LazyLock<Vec<(String, Vec<Value>)>> = LazyLock::new(|| {
    let sets = OVERLAYS
        .into_iter()
        .flat_map(|overlay| COMPONENTS.map(|components| (overlay, components)));
    sets.map(|(overlay, components)| {
        let what = format!("{overlay} with {components:?}");
        (what, render(overlay, components))
    })
    .collect()
});

fn renders() -> impl Iterator<Item = (&'static str, &'static [Value])> {
    let rendered = RENDERED.iter();
    rendered.map(|(what, objects)| (what.as_str(), objects.as_slice()))
}

fn kind(object: &Value) -> &str {
    object["kind"].as_str().unwrap_or_default()
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

fn of_kind<'a>(objects: &'a [Value], wanted: &'a str) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter(move |object| kind(object) == wanted)
}

/// The elements of an array; none where there is no array.
fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// What starts pods.
fn workloads(objects: &[Value]) -> impl Iterator<Item = &Value> {
    let kinds = ["Deployment", "StatefulSet", "Job"];
    objects
        .iter()
        .filter(move |object| kinds.contains(&kind(object)))
}

#[test]
fn every_component_and_overlay_is_tested() {
    let listed = |directory: &str| {
        let entries = fs::read_dir(repository(directory)).expect("a directory");
        let mut names: Vec<_> = entries
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .into_string()
                    .expect("UTF-8")
            })
            .collect();
        names.sort_unstable();
        names
    };
    let mut overlays = OVERLAYS.to_vec();
    overlays.sort_unstable();
    assert_eq!(listed("deploy/kubernetes/overlays"), overlays);
    let mut components = COMPONENTS.concat();
    components.sort_unstable();
    components.dedup();
    assert_eq!(listed("deploy/kubernetes/components"), components);
}
