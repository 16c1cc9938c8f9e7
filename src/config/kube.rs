//! Kubernetes.

use super::{Setting, setting, values::Reader};

pub(super) const SETTINGS: &[Setting] = &[
    setting(
        "EA_KUBE_ENABLE",
        "true",
        "look up pods; this version cannot yet: it answers that the lookup is disabled, and refuses to start when this is set to true",
    ),
    setting(
        "EA_KUBE_IN_CLUSTER",
        "true",
        "reach Kubernetes by the pod's service account rather than by a kubeconfig (KUBECONFIG)",
    ),
];

/// Kubernetes.
#[derive(Debug, Clone)]
pub struct Kube {
    /// Whether pods are to be looked up.
    pub enable: bool,
    /// Whether by the pod's service account rather than a kubeconfig.
    pub in_cluster: bool,
}

impl Kube {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let enable = reader.bool("EA_KUBE_ENABLE");
        let in_cluster = reader.bool("EA_KUBE_IN_CLUSTER");
        let required = enable == Some(true) && reader.is_given("EA_KUBE_ENABLE");
        if required {
            reader.mistake(
                "EA_KUBE_ENABLE",
                "this version cannot look up pods yet: leave it out or set it to false",
            );
        }
        Some(Self {
            enable: enable?,
            in_cluster: in_cluster?,
        })
    }
}
