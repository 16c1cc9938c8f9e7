//! A namespace that is looked at, or all of them.

use std::time::Duration;

use kube::Client;
use tokio::time::Instant;

use super::{Error, Pods, Wanted, on_demand::OnDemand, rights, watched::Watched};
use crate::config;

/// How pods are looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// From a cache that watches keep.
    Watch,
    /// By reading them when they are asked for.
    OnDemand,
}

/// How the lookup does in a namespace, or in all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// How pods are looked up.
    pub mode: Mode,
    /// For how long the API server has not been heard to agree with what is known; [`None`] as long as nothing
    /// is.
    pub age: Option<Duration>,
    /// How many pods are known.
    pub pods: usize,
    /// Why the API server does not answer.
    pub error: Option<String>,
}

#[derive(Debug)]
pub(super) enum Scope {
    Watched(Watched),
    OnDemand(OnDemand),
}

impl Scope {
    /// Starts to look at a namespace, or at all, as the agent may.
    pub(super) fn start(
        config: &config::Kube,
        client: &Client,
        (mode, no_watch): &(Mode, Vec<String>),
        namespace: Option<&str>,
    ) -> Self {
        match mode {
            Mode::Watch => Self::Watched(Watched::start(config, namespace)),
            Mode::OnDemand => {
                rights::warn(namespace, no_watch);
                Self::OnDemand(OnDemand::new(config, client.clone()))
            }
        }
    }

    pub(super) async fn pods(&self, wanted: &Wanted, deadline: Instant) -> Result<Pods, Error> {
        match self {
            Self::Watched(watched) => watched.pods(wanted),
            Self::OnDemand(on_demand) => on_demand.pods(wanted, deadline).await,
        }
    }

    pub(super) fn status(&self) -> Status {
        match self {
            Self::Watched(watched) => watched.status(),
            Self::OnDemand(on_demand) => on_demand.status(),
        }
    }
}

/// The error of pods that are known, but too old to tell.
pub(super) fn too_old(age: Duration, most: Duration) -> Error {
    Error::Unavailable(format!(
        "what is known of the pods is {} s old, more than EA_KUBE_MAX_STALENESS ({}): the Kubernetes API server \
         has not confirmed it since, and the agent's log says more",
        age.as_secs(),
        humantime::format_duration(most)
    ))
}
