//! The connection to the Kubernetes API server.

use std::time::Duration;

use http::{Request, Response};
use kube::{
    Client, Config,
    client::{Body, ClientBuilder, DynBody},
    config::KubeConfigOptions,
};
use tokio::task::spawn_blocking;
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
        blocking(move || Client::try_from(config)).await
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
        blocking(move || ClientBuilder::try_from(config)).await
    }

    async fn config(&self) -> Result<Config, String> {
        let mut config = self.inferred().await?;
        // Else the client hides for minutes that the API server refuses. Whoever asks tries again, or tells.
        config.default_retry = false;
        Ok(config)
    }

    async fn inferred(&self) -> Result<Config, String> {
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

/// Makes a client where it may block: a kubeconfig may name a program that tells the token, and is waited for.
async fn blocking<T: Send + 'static>(
    make: impl FnOnce() -> kube::Result<T> + Send + 'static,
) -> Result<T, String> {
    match spawn_blocking(make).await {
        Ok(made) => {
            made.map_err(|error| format!("the configuration cannot be used: {}", causes(&error)))
        }
        Err(_) => Err("the client could not be made".to_owned()),
    }
}
