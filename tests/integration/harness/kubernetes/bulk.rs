//! Many deployments, quickly: texts are filled in, not made anew.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    ApiServer, fixtures,
    store::{Labels, Resource, Store},
};

/// Over how many namespaces they are spread.
const NAMESPACES: usize = 50;
/// Of what pods' names end in.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// What is in a text only until it is filled in.
const BLANKS: [&str; 7] = [
    "@namespace@",
    "@deployment@",
    "@hash@",
    "@pod@",
    "@uid@",
    "@owner@",
    "@version@",
];

/// What a fixture has where an object of the bulk has something of its own, and the blank for that.
fn blank(fixture: &Value, own: &str) -> Template {
    let mut object = fixture.clone();
    let members = object.as_object_mut().expect("an object");
    members.shift_remove("kind");
    members.shift_remove("apiVersion");
    let name = object["metadata"]["name"]
        .as_str()
        .expect("a name")
        .to_owned();
    let hash = object["metadata"]["labels"]["pod-template-hash"].as_str();
    let hash = hash.unwrap_or("no-hash-at-all").to_owned();
    let uid = object["metadata"]["uid"]
        .as_str()
        .expect("a uid")
        .to_owned();
    let owned_by = object["metadata"]["ownerReferences"][0]["uid"].as_str();
    let owned_by = owned_by.unwrap_or("nobody-at-all").to_owned();
    object["metadata"]["resourceVersion"] = "@version@".into();
    object["metadata"]["namespace"] = "@namespace@".into();
    let text = object.to_string().split_off(1);
    let text = text
        .replace(&format!("\"{name}\""), &format!("\"{own}\""))
        .replace(&hash, "@hash@")
        .replace(&uid, "@uid@")
        .replace(&owned_by, "@owner@")
        .replace("\"web-@hash@\"", "\"@deployment@-@hash@\"")
        .replace("\"web-@hash@-\"", "\"@deployment@-@hash@-\"")
        .replace("\"web\"", "\"@deployment@\"");
    Template::new(&text)
}

/// A text with blanks.
struct Template(Vec<(String, Option<usize>)>);

impl Template {
    fn new(text: &str) -> Self {
        let (mut parts, mut rest) = (Vec::new(), text);
        loop {
            let found = BLANKS.iter().enumerate();
            let found = found.filter_map(|(n, blank)| Some((rest.find(blank)?, n)));
            let Some((at, n)) = found.min() else {
                parts.push((rest.to_owned(), None));
                return Self(parts);
            };
            parts.push((rest[..at].to_owned(), Some(n)));
            rest = &rest[at + BLANKS[n].len()..];
        }
    }

    fn fill(&self, values: &[&str; BLANKS.len()]) -> String {
        let mut text = String::new();
        for (part, blank) in &self.0 {
            text.push_str(part);
            text.push_str(blank.map_or("", |n| values[n]));
        }
        text
    }
}

/// What the objects of the bulk are made of.
struct Templates {
    deployment: Template,
    set: Template,
    pod: Template,
}

impl Templates {
    fn new(pods_each: usize) -> Self {
        let mut fixtures = fixtures::web_rollout();
        let [deployment, _, set, _, pod, ..] = &mut fixtures[..] else {
            panic!("the fixtures are there");
        };
        for object in [&mut *deployment, &mut *set] {
            object["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "1".into();
            object["spec"]["replicas"] = pods_each.into();
            for count in ["replicas", "readyReplicas", "availableReplicas"] {
                object["status"][count] = pods_each.into();
            }
        }
        deployment["status"]["updatedReplicas"] = pods_each.into();
        let status = deployment["status"].as_object_mut().expect("a status");
        status.shift_remove("unavailableReplicas");
        set["status"]["fullyLabeledReplicas"] = pods_each.into();
        // The usual size.
        pod["metadata"]["managedFields"] = json!([pod["metadata"]["managedFields"][1]]);
        Self {
            deployment: blank(deployment, "@deployment@"),
            set: blank(set, "@deployment@-@hash@"),
            pod: blank(pod, "@pod@"),
        }
    }
}

impl ApiServer {
    /// Adds deployments with one ReplicaSet and as many running pods each, `app-0` and so on in the namespaces
    /// `team-0` and so on, of realistic size. Pods are labelled `app=app-0` and so on. Says the pods' namespaces
    /// and names.
    pub(crate) fn bulk(&self, deployments: usize, pods_each: usize) -> Vec<(String, String)> {
        let templates = Templates::new(pods_each);
        let mut pods = Vec::new();
        self.change(|store| {
            for n in 0..deployments {
                let (namespace, name) = (format!("team-{}", n % NAMESPACES), format!("app-{n}"));
                let hash = letters(n, 5) + &letters(n + 1, 5);
                let (own_uid, set_uid) = (uid(n, 0, 0), uid(n, 1, 0));
                let (set_name, of) = (format!("{name}-{hash}"), labels(&name, None));
                let filled = [&*namespace, &name, &hash, &name, &own_uid, ""];
                put(
                    store,
                    Resource::Deployments,
                    &templates.deployment,
                    of,
                    filled,
                );
                let of = labels(&name, Some(&hash));
                let filled = [&*namespace, &name, &hash, &set_name, &set_uid, &own_uid];
                put(
                    store,
                    Resource::ReplicaSets,
                    &templates.set,
                    Arc::clone(&of),
                    filled,
                );
                for one in 0..pods_each {
                    let pod = format!("{set_name}-{}", letters(n * pods_each + one, 5));
                    let filled = [&*namespace, &name, &hash, &pod, &uid(n, 2, one), &set_uid];
                    put(
                        store,
                        Resource::Pods,
                        &templates.pod,
                        Arc::clone(&of),
                        filled,
                    );
                    pods.push((namespace.clone(), pod));
                }
            }
        });
        pods
    }
}

fn labels(deployment: &str, hash: Option<&str>) -> Arc<Labels> {
    let labels = [
        ("app", Some(deployment)),
        ("app.kubernetes.io/component", Some("frontend")),
        ("app.kubernetes.io/name", Some(deployment)),
        ("app.kubernetes.io/part-of", Some("shop")),
        ("pod-template-hash", hash),
    ];
    let labels = labels.into_iter();
    let labels = labels.filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
    Arc::new(labels.collect())
}

fn put(
    store: &mut Store,
    resource: Resource,
    template: &Template,
    labels: Arc<Labels>,
    [namespace, deployment, hash, object, uid, owner]: [&str; 6],
) {
    let version = (store.version() + 1).to_string();
    let text = template.fill(&[namespace, deployment, hash, object, uid, owner, &version]);
    store.insert(
        resource,
        format!("{namespace}/{object}"),
        labels,
        text,
        false,
    );
}

/// A uid of its own for each object.
fn uid(deployment: usize, kind: usize, number: usize) -> String {
    format!("{deployment:08x}-{kind:04x}-4c1d-9b7e-{number:012x}")
}

/// As names end in them; different for different numbers below 27 to the power of 5.
fn letters(number: usize, count: usize) -> String {
    // So that neighbours do not look alike.
    let mut rest = number * 7_368_787 % 14_348_907;
    let mut next = || {
        let letter = ALPHABET[rest % ALPHABET.len()];
        rest /= ALPHABET.len();
        char::from(letter)
    };
    (0..count).map(|_| next()).collect()
}
