//! The lookup of Kubernetes pods.

use std::time::Duration;

use super::names::{
    EA_KUBE_CACHE_TTL, EA_KUBE_CONTEXT, EA_KUBE_ENABLE, EA_KUBE_IN_CLUSTER, EA_KUBE_MAX_STALENESS,
    EA_KUBE_NAMESPACES,
};
use super::{Setting, list_setting, setting, values::Reader};
use crate::kube::{Settings, client::Access, names};

pub(super) const SETTINGS: &[Setting] = &[
    setting(
        EA_KUBE_ENABLE,
        "true",
        "look up pods; if unset and there is no Kubernetes, the agent warns and reports the lookup as disabled; if set to true, it does not start without the lookup",
    ),
    setting(
        EA_KUBE_IN_CLUSTER,
        "true",
        "reach Kubernetes by the pod's service account rather than by a kubeconfig (KUBECONFIG)",
    ),
    setting(
        EA_KUBE_CONTEXT,
        "",
        "the kubeconfig's context; none: its current one",
    ),
    list_setting(
        EA_KUBE_NAMESPACES,
        "",
        "namespaces whose pods are looked up, comma separated; none: all",
    ),
    setting(
        EA_KUBE_CACHE_TTL,
        "2s",
        "without the right to watch: how long pods that were read stay cached (100ms to 1m)",
    ),
    setting(
        EA_KUBE_MAX_STALENESS,
        "1m",
        "how old the pods in a reply may be while the API server does not respond (5s to 1h)",
    ),
];

pub(super) fn read(reader: &mut Reader<'_>) -> Option<Settings> {
    let enable = reader.bool(EA_KUBE_ENABLE);
    let in_cluster = reader.bool(EA_KUBE_IN_CLUSTER);
    let context = reader.raw(EA_KUBE_CONTEXT);
    let context = (!context.is_empty()).then(|| context.to_owned());
    if in_cluster == Some(true) && context.is_some() {
        reader.mistake(
            EA_KUBE_CONTEXT,
            "contexts are of a kubeconfig: set EA_KUBE_IN_CLUSTER=false, or leave it out",
        );
    }
    let mut namespaces = reader.list(EA_KUBE_NAMESPACES);
    namespaces.sort_unstable();
    namespaces.dedup();
    for namespace in &namespaces {
        if !names::is_label(namespace) {
            reader.mistake(
                EA_KUBE_NAMESPACES,
                format!("{namespace:?} is no namespace: {}", names::LABEL),
            );
        }
    }
    let minute = Duration::from_secs(60);
    let cache_ttl = reader.duration(EA_KUBE_CACHE_TTL, Duration::from_millis(100), minute);
    let max_staleness = reader.duration(EA_KUBE_MAX_STALENESS, Duration::from_secs(5), 60 * minute);
    Some(Settings {
        enable: enable?,
        required: reader.is_given(EA_KUBE_ENABLE),
        access: Access {
            in_cluster: in_cluster?,
            context,
        },
        namespaces,
        cache_ttl: cache_ttl?,
        max_staleness: max_staleness?,
    })
}
