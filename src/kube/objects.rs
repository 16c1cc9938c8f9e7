//! What is kept of Kubernetes' objects: what answers need, and nothing else.

use std::borrow::Cow;

use k8s_openapi::{
    api::{
        apps::v1::{Deployment as FullDeployment, ReplicaSet as FullReplicaSet},
        core::v1::Pod as FullPod,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};

/// Set by the Deployment controller: the rollout that a ReplicaSet is of, and how many pods the Deployment
/// wants and allows.
const REVISION: &str = "deployment.kubernetes.io/revision";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Set by the Deployment controller on ReplicaSets and their pods: what it appends to the Deployment's name to
/// name the ReplicaSet.
const HASH: &str = "pod-template-hash";
/// Why the node controller deletes the pods of a node that does not answer. They may run on for ever.
const NODE_LOST: &str = "NodeLost";

/// The controller that an object belongs to.
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
    /// The Deployment, if one controls it.
    pub(super) owner: Option<Owner>,
    pub(super) counts: Counts,
}

/// A ReplicaSet's revision and counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// The rollout: larger is newer; 0 when unknown.
    pub revision: i32,
    /// Available pods.
    pub available: i32,
    /// Pods that have all labels of the template.
    pub fully_labeled: i32,
    /// Ready pods.
    pub ready: i32,
    /// Pods.
    pub replicas: i32,
    /// Pods that the Deployment wants.
    pub desired: i32,
    /// Pods that the Deployment allows during a rollout.
    pub max: i32,
}

#[derive(Debug, Clone)]
pub(super) struct Pod {
    /// In seconds since the Unix epoch.
    pub(super) created: i64,
    /// The ReplicaSet, if one controls it.
    pub(super) owner: Option<Owner>,
    /// How much of the ReplicaSet's name is the Deployment's, by the Deployment controller's way to name it.
    pub(super) deployment_length: Option<u8>,
    pub(super) ip: Box<str>,
    pub(super) status: PodStatus,
}

/// How a pod is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodStatus {
    /// Pending, Running, Succeeded, Failed or Unknown.
    pub phase: Cow<'static, str>,
    /// Why it is in this phase; mostly empty.
    pub reason: Cow<'static, str>,
    /// Whether its deletion was asked for, unless because its node is lost.
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

/// An object as it comes from the API server.
pub(super) trait Fold {
    type Folded: Send + Sync + 'static;

    fn fold(self) -> Self::Folded;
}

impl Fold for FullDeployment {
    type Folded = Deployment;

    fn fold(self) -> Deployment {
        Deployment {
            created: created(&self.metadata),
            uid: self.metadata.uid.unwrap_or_default().into(),
        }
    }
}

impl Fold for FullReplicaSet {
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
            available: status.available_replicas.unwrap_or(0),
            fully_labeled: status.fully_labeled_replicas.unwrap_or(0),
            ready: status.ready_replicas.unwrap_or(0),
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

impl Fold for FullPod {
    type Folded = Pod;

    fn fold(self) -> Pod {
        let metadata = &self.metadata;
        let owner = controller(metadata, "ReplicaSet");
        let hash = metadata.labels.as_ref().and_then(|labels| labels.get(HASH));
        let deployment_length = owner.as_ref().zip(hash).and_then(|(owner, hash)| {
            let deployment = owner.name.strip_suffix(hash.as_str())?.strip_suffix('-')?;
            u8::try_from(deployment.len()).ok()
        });
        let status = self.status.unwrap_or_default();
        let reason = status.reason.unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let is_true = |name: &str| {
            let mut all = conditions.iter();
            all.any(|condition| condition.type_ == name && condition.status == "True")
        };
        Pod {
            created: created(metadata),
            owner,
            deployment_length,
            ip: status.pod_ip.unwrap_or_default().into(),
            status: PodStatus {
                terminating: metadata.deletion_timestamp.is_some() && reason != NODE_LOST,
                scheduled: is_true("PodScheduled"),
                initialized: is_true("Initialized"),
                ready: is_true("Ready"),
                containers_ready: is_true("ContainersReady"),
                phase: interned(status.phase.unwrap_or_default()),
                reason: interned(reason),
            },
        }
    }
}

/// The words that almost every pod has cost no memory of their own.
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

/// The controller of an object, if it is of this kind of the group `apps`.
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
    /// The Deployment that has named the pod's ReplicaSet.
    pub(super) fn named_deployment(&self) -> Option<&str> {
        self.owner
            .as_ref()?
            .name
            .get(..self.deployment_length?.into())
    }
}
