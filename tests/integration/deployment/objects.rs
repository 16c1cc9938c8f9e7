//! Every object is one that Kubernetes 1.33 knows, field by field.

use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::Job,
    core::v1::{ConfigMap, Namespace, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
    rbac::v1::{ClusterRole, ClusterRoleBinding},
    scheduling::v1::PriorityClass,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{kind, name, render, renders};

/// As much of the Prometheus Operator's kind as is used.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ServiceMonitor {
    api_version: String,
    kind: String,
    metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    spec: Monitoring,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Monitoring {
    selector: k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
    endpoints: Vec<Scrape>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Scrape {
    port: String,
    path: String,
    interval: String,
    honor_labels: bool,
    relabelings: Vec<Relabeling>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scheme: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_config: Option<TlsConfig>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TlsConfig {
    ca: Authority,
    server_name: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Authority {
    secret: k8s_openapi::api::core::v1::SecretKeySelector,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Relabeling {
    source_labels: Vec<String>,
    target_label: String,
    replacement: String,
}

/// What of `given` is not in `kept`, or otherwise: the path of each.
pub(super) fn lost(given: &Value, kept: &Value, path: &str, found: &mut Vec<String>) {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => {
            for (member, value) in given {
                let path = format!("{path}.{member}");
                match kept.get(member) {
                    Some(kept) => lost(value, kept, &path, found),
                    None => found.push(path),
                }
            }
        }
        (Value::Array(given), Value::Array(kept)) if given.len() == kept.len() => {
            for (place, (given, kept)) in given.iter().zip(kept).enumerate() {
                lost(given, kept, &format!("{path}[{place}]"), found);
            }
        }
        _ if given == kept => {}
        _ => found.push(format!("{path}: {given} became {kept}")),
    }
}

/// What Kubernetes would not take of an object, or would take for something else.
fn mistakes(object: &Value) -> Vec<String> {
    fn through<T: Serialize + DeserializeOwned>(object: &Value) -> Vec<String> {
        let kept = serde_json::from_value::<T>(object.clone()).and_then(serde_json::to_value);
        let mut found = Vec::new();
        match kept {
            Ok(kept) => lost(object, &kept, "", &mut found),
            Err(error) => found.push(error.to_string()),
        }
        found
    }
    match kind(object) {
        "ClusterRole" => through::<ClusterRole>(object),
        "ClusterRoleBinding" => through::<ClusterRoleBinding>(object),
        "ConfigMap" => through::<ConfigMap>(object),
        "Deployment" => through::<Deployment>(object),
        "HorizontalPodAutoscaler" => through::<HorizontalPodAutoscaler>(object),
        "Job" => through::<Job>(object),
        "Namespace" => through::<Namespace>(object),
        "NetworkPolicy" => through::<NetworkPolicy>(object),
        "PodDisruptionBudget" => through::<PodDisruptionBudget>(object),
        "PriorityClass" => through::<PriorityClass>(object),
        "Service" => through::<Service>(object),
        "ServiceAccount" => through::<ServiceAccount>(object),
        "ServiceMonitor" => through::<ServiceMonitor>(object),
        "StatefulSet" => through::<StatefulSet>(object),
        other => vec![format!("{other} is no kind that this test knows")],
    }
}

#[test]
fn kubernetes_knows_every_field_of_every_object() {
    for (what, objects) in renders() {
        assert!(objects.len() > 8, "{what}: {}", objects.len());
        for object in objects {
            let found = mistakes(object);
            assert!(
                found.is_empty(),
                "{what}: {} {}: {found:?}",
                kind(object),
                name(object)
            );
        }
    }
}

#[test]
fn a_field_that_kubernetes_does_not_know_is_found_and_a_wrong_type_too() {
    let objects = render("single", &[]);
    let deployment = objects
        .iter()
        .find(|object| kind(object) == "Deployment")
        .expect("one");
    for (path, value, told) in [
        (
            "/spec/template/spec/containers/0/readynessProbe",
            json!({}),
            "readynessProbe",
        ),
        (
            "/spec/template/spec/securityContext/runAsNonRoots",
            json!(true),
            "runAsNonRoots",
        ),
        ("/spec/minReadySeconds", json!("5"), "invalid type"),
        ("/apiVersion", json!("apps/v2"), "apps/v"),
    ] {
        let mut wrong = deployment.clone();
        let (parent, member) = path.rsplit_once('/').expect("a path");
        wrong.pointer_mut(parent).expect("a parent")[member] = value;
        let found = mistakes(&wrong);
        assert!(
            found.len() == 1 && found.concat().contains(told),
            "{path}: {found:?}"
        );
    }
}
