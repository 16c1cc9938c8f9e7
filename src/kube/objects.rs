//! Extracts the parts of Kubernetes objects that the lookup needs.

use std::{borrow::Cow, collections::BTreeMap, marker::PhantomData, sync::Arc};

use k8s_openapi::{
    api::{apps::v1 as apps, core::v1 as core},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time},
};
use kube::Resource;
use serde::{Deserialize, Deserializer, de::IgnoredAny};
use tokio::time::Instant;

/// Annotations that the Deployment controller sets on a ReplicaSet: the revision of its rollout, and how many pods the
/// Deployment wants and allows.
const REVISION: &str = "deployment.kubernetes.io/revision";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Label that the Deployment controller sets on ReplicaSets and their pods. The ReplicaSet's name is the Deployment's
/// name followed by this value.
const HASH: &str = "pod-template-hash";
/// Reason that the node controller sets when it deletes the pods of an unreachable node. Such pods may keep running.
const NODE_LOST: &str = "NodeLost";

/// The controller that owns an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) name: Box<str>,
    pub(super) uid: Box<str>,
}

#[derive(Debug, Clone)]
pub(super) struct Deployment {
    pub(super) uid: Box<str>,
    /// In seconds since the Unix epoch.
    pub(super) created: i64,
}

#[derive(Debug, Clone)]
pub(super) struct ReplicaSet {
    pub(super) uid: Box<str>,
    /// The Deployment that controls the ReplicaSet, if there is one.
    pub(super) owner: Option<Owner>,
    pub(super) counts: Counts,
}

/// A ReplicaSet's revision and counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// The revision of the rollout: higher is newer; 0 if unknown.
    pub revision: i32,
    /// Number of available pods.
    pub available: i32,
    /// Number of pods that have all labels of the template.
    pub fully_labeled: i32,
    /// Number of ready pods.
    pub ready: i32,
    /// Number of pods.
    pub replicas: i32,
    /// Number of pods that the Deployment wants.
    pub desired: i32,
    /// Number of pods that the Deployment allows during a rollout.
    pub max: i32,
}

/// A ReplicaSet that controls pods.
#[derive(Debug)]
pub(super) struct PodOwner {
    pub(super) set: Owner,
    /// When the ReplicaSet was first known to exist or to have existed: a ReplicaSet is created before its pods.
    pub(super) seen: Instant,
    /// Length of the Deployment's name within the ReplicaSet's name, if the ReplicaSet is named as the Deployment
    /// controller names it.
    deployment_length: Option<u8>,
}

#[derive(Debug, Clone)]
pub(super) struct Pod {
    /// In seconds since the Unix epoch.
    pub(super) created: i64,
    /// The ReplicaSet that controls the pod, if there is one.
    pub(super) owner: Option<Arc<PodOwner>>,
    pub(super) ip: Box<str>,
    pub(super) status: PodStatus,
}

/// A pod's phase and conditions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodStatus {
    /// Pending, Running, Succeeded, Failed or Unknown.
    pub phase: Cow<'static, str>,
    /// The reason for the phase; usually empty.
    pub reason: Cow<'static, str>,
    /// Whether the pod's deletion was requested for a reason other than a lost node.
    pub terminating: bool,
    /// The condition PodScheduled.
    pub scheduled: bool,
    /// The condition Initialized.
    pub initialized: bool,
    /// The condition Ready.
    pub ready: bool,
    /// The condition ContainersReady.
    pub containers_ready: bool,
}

/// An object of the kind `K` as the API server sends it, reduced to the needed fields. Deserialization skips the other
/// fields: they make up most of an object, and storing them would fragment memory.
#[derive(Debug, Clone, Deserialize)]
#[serde(bound = "S: Deserialize<'de>")]
pub(super) struct Seen<K, S> {
    #[serde(deserialize_with = "metadata")]
    metadata: ObjectMeta,
    #[serde(default = "Option::default")]
    status: Option<S>,
    #[serde(skip)]
    kind: PhantomData<fn() -> K>,
}

pub(super) type SeenDeployment = Seen<apps::Deployment, IgnoredAny>;
pub(super) type SeenReplicaSet = Seen<apps::ReplicaSet, SeenReplicaSetStatus>;
pub(super) type SeenPod = Seen<core::Pod, SeenPodStatus>;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct SeenReplicaSetStatus {
    replicas: i32,
    available_replicas: i32,
    fully_labeled_replicas: i32,
    ready_replicas: i32,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct SeenPodStatus {
    phase: String,
    reason: String,
    #[serde(rename = "podIP")]
    pod_ip: Box<str>,
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Deserialize)]
struct Condition {
    r#type: String,
    status: String,
}

/// Deserializes the needed metadata fields.
fn metadata<'de, D: Deserializer<'de>>(from: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        creation_timestamp: Option<Time>,
        deletion_timestamp: Option<Time>,
        labels: Option<BTreeMap<String, String>>,
        annotations: Option<BTreeMap<String, String>>,
        owner_references: Option<Vec<OwnerReference>>,
    }
    let seen = Metadata::deserialize(from)?;
    Ok(ObjectMeta {
        name: seen.name,
        namespace: seen.namespace,
        uid: seen.uid,
        resource_version: seen.resource_version,
        creation_timestamp: seen.creation_timestamp,
        deletion_timestamp: seen.deletion_timestamp,
        labels: seen.labels,
        annotations: seen.annotations,
        owner_references: seen.owner_references,
        ..ObjectMeta::default()
    })
}

impl<K: Resource<DynamicType = ()>, S> Resource for Seen<K, S> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Reduces an object to the form that the tables store.
pub(super) trait Fold {
    type Folded: Send + Sync + 'static;

    fn fold(self) -> Self::Folded;
}

impl Fold for SeenDeployment {
    type Folded = Deployment;

    fn fold(self) -> Deployment {
        Deployment::of(self.metadata)
    }
}

impl Deployment {
    pub(super) fn of(metadata: ObjectMeta) -> Self {
        Self {
            created: created(&metadata),
            uid: metadata.uid.unwrap_or_default().into(),
        }
    }
}

impl Fold for SeenReplicaSet {
    type Folded = ReplicaSet;

    fn fold(self) -> ReplicaSet {
        let number = |annotation| {
            let annotations = self.metadata.annotations.as_ref();
            let value = annotations.and_then(|annotations| annotations.get(annotation));
            value.and_then(|value| value.parse().ok()).unwrap_or(0)
        };
        let status = self.status.unwrap_or_default();
        let counts = Counts {
            revision: number(REVISION),
            available: status.available_replicas,
            fully_labeled: status.fully_labeled_replicas,
            ready: status.ready_replicas,
            replicas: status.replicas,
            desired: number(DESIRED),
            max: number(MAX),
        };
        ReplicaSet {
            owner: controller(&self.metadata, "Deployment"),
            uid: self.metadata.uid.unwrap_or_default().into(),
            counts,
        }
    }
}

impl Fold for SeenPod {
    type Folded = Pod;

    fn fold(self) -> Pod {
        let metadata = &self.metadata;
        let owner = controller(metadata, "ReplicaSet").map(|set| {
            let hash = metadata.labels.as_ref().and_then(|labels| labels.get(HASH));
            let deployment_length = hash.and_then(|hash| {
                let deployment = set.name.strip_suffix(hash.as_str())?.strip_suffix('-')?;
                u8::try_from(deployment.len()).ok()
            });
            Arc::new(PodOwner {
                set,
                seen: Instant::now(),
                deployment_length,
            })
        });
        let status = self.status.unwrap_or_default();
        let is_true = |name: &str| {
            let mut all = status.conditions.iter();
            all.any(|condition| condition.r#type == name && condition.status == "True")
        };
        Pod {
            created: created(metadata),
            owner,
            status: PodStatus {
                terminating: metadata.deletion_timestamp.is_some() && status.reason != NODE_LOST,
                scheduled: is_true("PodScheduled"),
                initialized: is_true("Initialized"),
                ready: is_true("Ready"),
                containers_ready: is_true("ContainersReady"),
                phase: interned(status.phase),
                reason: interned(status.reason),
            },
            ip: status.pod_ip,
        }
    }
}

/// Returns common words as static strings, so that they use no memory per pod.
fn interned(word: String) -> Cow<'static, str> {
    const WORDS: [&str; 8] = [
        "",
        "Running",
        "Pending",
        "Succeeded",
        "Failed",
        "Unknown",
        "Evicted",
        NODE_LOST,
    ];
    match WORDS.into_iter().find(|known| *known == word) {
        Some(known) => known.into(),
        None => word.into_boxed_str().into_string().into(),
    }
}

/// Returns the controller of an object, if it is of this kind in the group `apps`.
fn controller(metadata: &ObjectMeta, kind: &str) -> Option<Owner> {
    let of_kind = |owner: &&OwnerReference| {
        owner.controller == Some(true)
            && owner.kind == kind
            && owner.api_version.starts_with("apps/")
    };
    let owner = metadata.owner_references.iter().flatten().find(of_kind)?;
    Some(Owner {
        name: owner.name.as_str().into(),
        uid: owner.uid.as_str().into(),
    })
}

fn created(metadata: &ObjectMeta) -> i64 {
    let created = metadata.creation_timestamp.as_ref();
    created.map_or(0, |created| created.0.as_second())
}

impl Pod {
    /// Returns the Deployment that the pod's ReplicaSet is named after.
    pub(super) fn named_deployment(&self) -> Option<&str> {
        let owner = self.owner.as_ref()?;
        owner.set.name.get(..owner.deployment_length?.into())
    }

    /// Returns the ReplicaSet that controls the pod.
    pub(super) fn set(&self) -> Option<&Owner> {
        Some(&self.owner.as_ref()?.set)
    }
}
