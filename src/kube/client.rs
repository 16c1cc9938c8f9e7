//! The connection to the Kubernetes API server.

use crate::causes;
use kube::{Client, Config, config::KubeConfigOptions};

/// A client of the API server: by the pod's service account, whose token is read again as it is rotated, or
/// by the kubeconfig that `KUBECONFIG` names (else `~/.kube/config`). Nothing is asked yet.
///
/// # Errors
/// Says which file or variable is missing or wrong.
pub async fn connect(in_cluster: bool) -> Result<Client, String> {
    let config = match in_cluster {
        true => Config::incluster().map_err(|error| {
            format!(
                "{} (outside a cluster set EA_KUBE_IN_CLUSTER=false and KUBECONFIG)",
                causes(&error)
            )
        })?,
        false => Config::from_kubeconfig(&KubeConfigOptions::default())
            .await
            .map_err(|error| format!("the kubeconfig cannot be used: {}", causes(&error)))?,
    };
    Client::try_from(config)
        .map_err(|error| format!("the configuration cannot be used: {}", causes(&error)))
}
