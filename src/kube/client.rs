//! The connection to the Kubernetes API server.

use std::time::Duration;

use http::{Request, Response};
use kube::{
    Client, Config,
    client::{Body, ClientBuilder, DynBody},
    config::KubeConfigOptions,
};
use tower::{BoxError, Service};

use crate::causes;

/// How to reach the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// By the pod's service account, whose token is read again as it is rotated; else by the kubeconfig that
    /// `KUBECONFIG` names (`~/.kube/config` if it is not set).
    pub in_cluster: bool,
    /// The kubeconfig's context, if it is not to be the current one.
    pub context: Option<String>,
}

impl Access {
    /// A client of the API server. Nothing is asked yet.
    ///
    /// # Errors
    /// Says which file or variable is missing or wrong.
    pub async fn connect(&self) -> Result<Client, String> {
        let config = self.config().await?;
        Client::try_from(config).map_err(|error| unusable(&error))
    }

    /// A client to put layers around, whose requests fail when nothing is heard for this long.
    ///
    /// # Errors
    /// As [`Access::connect`].
    pub(super) async fn builder(
        &self,
        silence: Duration,
    ) -> Result<
        ClientBuilder<
            impl Service<
                Request<Body>,
                Response = Response<Box<DynBody>>,
                Error = BoxError,
                Future: Send,
            > + Send
            + 'static,
        >,
        String,
    > {
        let mut config = self.config().await?;
        config.read_timeout = Some(silence);
        // Else the time that a connection was not used would count, too.
        config.reset_reader_on_write = true;
        ClientBuilder::try_from(config).map_err(|error| unusable(&error))
    }

    async fn config(&self) -> Result<Config, String> {
        if self.in_cluster {
            return Config::incluster().map_err(|error| {
                format!(
                    "{} (outside a cluster set EA_KUBE_IN_CLUSTER=false and KUBECONFIG)",
                    causes(&error)
                )
            });
        }
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        Config::from_kubeconfig(&options)
            .await
            .map_err(|error| format!("the kubeconfig cannot be used: {}", causes(&error)))
    }
}

/// Whether the API server did not know who asks: its token may have been replaced, and is read again only once
/// in a minute by a client that is there already.
pub(super) fn is_unauthorized(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 401)
}

fn unusable(error: &kube::Error) -> String {
    format!("the configuration cannot be used: {}", causes(error))
}
