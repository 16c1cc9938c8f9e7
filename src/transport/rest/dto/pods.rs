//! The documents of the pods.

use election_core::types::{Invalid, millis};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::kube::{self, Wanted};

/// Names a Deployment in a path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(in crate::transport::rest) struct DeploymentPath {
    /// The namespace: a DNS label.
    #[param(max_length = 63, pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
    namespace: String,
    /// The Deployment: DNS labels with dots between them.
    #[param(
        max_length = 253,
        pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$"
    )]
    deployment: String,
}

impl DeploymentPath {
    pub(in crate::transport::rest) fn wanted(&self) -> Result<Wanted, Invalid> {
        Wanted::deployment(&self.namespace, &self.deployment)
    }
}

/// Names a pod in a path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(in crate::transport::rest) struct PodPath {
    /// The namespace: a DNS label.
    #[param(max_length = 63, pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
    namespace: String,
    /// The pod: DNS labels with dots between them.
    #[param(
        max_length = 253,
        pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$"
    )]
    pod: String,
}

impl PodPath {
    pub(in crate::transport::rest) fn wanted(&self) -> Result<Wanted, Invalid> {
        Wanted::siblings(&self.namespace, "pod", &self.pod)
    }
}

/// The pods of a Deployment; every member is always present.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::transport::rest) struct Pods {
    /// The pods.
    items: Vec<Pod>,
}

/// A pod of a Deployment.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "name": "web-7d4b9c-x2x7p", "deployment": "web", "ip": "10.0.0.7",
    "status": {"phase": "Running", "reason": "", "terminating": false, "podScheduled": true,
        "podInitialized": true, "podReady": true, "containersReady": true},
    "replicaSet": {"name": "web-7d4b9c", "revision": 4, "availableReplicas": 3,
        "fullyLabeledReplicas": 3, "readyReplicas": 3, "replicas": 3, "desiredReplicas": 3,
        "maxReplicas": 4}
}))]
pub(in crate::transport::rest) struct Pod {
    /// The pod's name.
    name: String,
    /// The Deployment that the pod belongs to.
    deployment: String,
    /// The pod's address; empty while it has none.
    ip: String,
    /// The pod's status.
    status: PodStatus,
    /// The ReplicaSet that the pod belongs to.
    replica_set: ReplicaSet,
}

/// The status of a pod.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::transport::rest) struct PodStatus {
    /// Pending, Running, Succeeded, Failed or Unknown.
    phase: String,
    /// Why the pod is in this phase; mostly empty.
    reason: String,
    /// Whether its deletion was requested; the phase may still be Running.
    terminating: bool,
    /// The condition PodScheduled.
    pod_scheduled: bool,
    /// The condition Initialized.
    pod_initialized: bool,
    /// The condition Ready.
    pod_ready: bool,
    /// The condition ContainersReady.
    containers_ready: bool,
}

/// A revision of a Deployment.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::transport::rest) struct ReplicaSet {
    /// The ReplicaSet's name.
    name: String,
    /// The rollout's revision: larger is newer.
    revision: i32,
    /// Available pods.
    available_replicas: i32,
    /// Pods that have the template's labels.
    fully_labeled_replicas: i32,
    /// Ready pods.
    ready_replicas: i32,
    /// Pods.
    replicas: i32,
    /// Pods that the Deployment wants.
    desired_replicas: i32,
    /// Pods that the Deployment allows during a rollout.
    max_replicas: i32,
}

impl From<kube::Pods> for Pods {
    fn from(pods: kube::Pods) -> Self {
        Self {
            items: pods.pods.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<kube::Pod> for Pod {
    fn from(pod: kube::Pod) -> Self {
        let (name, counts) = pod.replica_set;
        Self {
            name: pod.name,
            deployment: pod.deployment,
            ip: pod.ip,
            status: PodStatus {
                phase: pod.status.phase.into_owned(),
                reason: pod.status.reason.into_owned(),
                terminating: pod.status.terminating,
                pod_scheduled: pod.status.scheduled,
                pod_initialized: pod.status.initialized,
                pod_ready: pod.status.ready,
                containers_ready: pod.status.containers_ready,
            },
            replica_set: ReplicaSet {
                name,
                revision: counts.revision,
                available_replicas: counts.available,
                fully_labeled_replicas: counts.fully_labeled,
                ready_replicas: counts.ready,
                replicas: counts.replicas,
                desired_replicas: counts.desired,
                max_replicas: counts.max,
            },
        }
    }
}

/// The state of the lookup of pods.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::transport::rest) struct PodLookup {
    /// Why the lookup cannot answer: it is off, is starting, or does not know the agent's rights yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    off: Option<String>,
    /// The namespaces that it covers.
    namespaces: Vec<LookedAt>,
}

/// A namespace whose pods are looked up, or all of them.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::transport::rest) struct LookedAt {
    /// The namespace; empty for all.
    namespace: String,
    /// How: "watch" from a cache, "on demand" by reading.
    mode: &'static str,
    /// The maximum age of the data, in ms; left out while there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    age: Option<u64>,
    /// How many pods are known.
    pods: usize,
    /// Why the API server does not respond.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    error: Option<String>,
}

impl From<kube::Report> for PodLookup {
    fn from(report: kube::Report) -> Self {
        let looked_at = |(namespace, status): (String, kube::Status)| LookedAt {
            namespace,
            mode: match status.mode {
                kube::LookupMode::Watch => "watch",
                kube::LookupMode::OnDemand => "on demand",
            },
            age: status.age.map(millis),
            pods: status.pods,
            error: status.error,
        };
        match report {
            kube::Report::Off { reason } => Self {
                off: Some(reason),
                namespaces: Vec::new(),
            },
            kube::Report::On(namespaces) => Self {
                off: None,
                namespaces: namespaces.into_iter().map(looked_at).collect(),
            },
        }
    }
}
