//! Objects as `kubectl get -o json --show-managed-fields` prints them, all in the namespace `shop`.

use serde_json::Value;

/// The namespace of the fixtures.
pub(crate) const NAMESPACE: &str = "shop";

macro_rules! fixture {
    ($file:literal) => {
        parsed(include_str!(concat!("../../fixtures/kubernetes/", $file)))
    };
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

/// Deployment `web` of three replicas in the middle of a rollout from revision 2 to 3: it, its three
/// ReplicaSets (the first scaled to none), and their pods, in the order of an API server's lists. At most one
/// pod may be missing and one too many (maxUnavailable 1, maxSurge 1). Revision 2 has a pod that is ready
/// (`web-6bb5d7c9f8-k8mzt`), and one that terminates but is ready still (`-q4nhd`); revision 3 has one that is
/// ready (`web-7d4b9c6f5d-x2x7p`), and one that no node has room for yet (`-9wjlr`).
pub(crate) fn web_rollout() -> Vec<Value> {
    vec![
        fixture!("web/deployment.json"),
        fixture!("web/replicaset-revision-1.json"),
        fixture!("web/replicaset-revision-2.json"),
        fixture!("web/replicaset-revision-3.json"),
        fixture!("web/pod-revision-2-running.json"),
        fixture!("web/pod-revision-2-terminating.json"),
        fixture!("web/pod-revision-3-pending.json"),
        fixture!("web/pod-revision-3-ready.json"),
    ]
}

/// A pod of `web`'s revision 2 whose node is lost: it terminates for ever, with what was last known of it.
pub(crate) fn pod_of_lost_node() -> Value {
    fixture!("web/pod-node-lost.json")
}

/// A pod of `web`'s revision 2 that its node evicted.
pub(crate) fn evicted_pod() -> Value {
    fixture!("web/pod-evicted.json")
}

/// Pod `debug`, which nothing owns.
pub(crate) fn bare_pod() -> Value {
    fixture!("pod-bare.json")
}

/// Pod `db-0` of a StatefulSet.
pub(crate) fn stateful_pod() -> Value {
    fixture!("pod-of-stateful-set.json")
}

/// A pod of a Job.
pub(crate) fn job_pod() -> Value {
    fixture!("pod-of-job.json")
}

/// A pod whose second init container runs still, of a ReplicaSet that is none of the fixtures.
pub(crate) fn initializing_pod() -> Value {
    fixture!("pod-initializing.json")
}
