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
    /// Uses the pod's service account and rereads its token when it is rotated. Otherwise uses the kubeconfig that
    /// `KUBECONFIG` names, or `~/.kube/config` if the variable is not set.
    pub in_cluster: bool,
    /// The kubeconfig's context; `None` for the current context.
    pub context: Option<String>,
}

impl Access {
    /// Creates a client of the API server. Sends no request.
    ///
    /// # Errors
    /// The text names the file or variable that is missing or wrong.
    pub async fn connect(&self) -> Result<Client, String> {
        let config = self.config().await?;
        blocking(move || Client::try_from(config)).await
    }

    /// Returns a builder for a client with additional layers. Requests fail after this long without received bytes.
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
        // Without this, the time during which a connection was idle counts as silence.
        config.reset_reader_on_write = true;
        blocking(move || ClientBuilder::try_from(config)).await
    }

    async fn config(&self) -> Result<Config, String> {
        let mut config = self.inferred().await?;
        // The default retry hides refusals by the API server for minutes. Callers retry or report the error themselves.
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

/// Returns whether the API server rejected the client's credentials. The token may have been rotated; an existing
/// client rereads it only once a minute.
pub(super) fn is_unauthorized(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 401)
}

/// Creates a client on a thread that may block: a kubeconfig may run a program to obtain the token.
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
