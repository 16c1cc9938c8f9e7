//! A namespace that is looked at, or all of them.

use std::time::Duration;

use kube::Client;
use tokio::time::Instant;

use super::{Error, Pods, Settings, Wanted, on_demand::OnDemand, rights, watched::Watched};

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
        settings: &Settings,
        client: &Client,
        (mode, no_watch): &(Mode, Vec<String>),
        namespace: Option<&str>,
    ) -> Self {
        match mode {
            Mode::Watch => Self::Watched(Watched::start(settings, namespace)),
            Mode::OnDemand => {
                rights::warn(namespace, no_watch);
                Self::OnDemand(OnDemand::new(settings, client.clone()))
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
