//! The lookup's scope: one namespace, or all.

use std::time::Duration;

use kube::Client;
use tokio::time::Instant;

use super::{Error, Pods, Settings, Wanted, on_demand::OnDemand, rights, watched::Watched};

/// How pods are looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookupMode {
    /// From a cache that watches keep up to date.
    Watch,
    /// By reading them on demand.
    OnDemand,
}

/// State of the lookup in one namespace, or in all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// How pods are looked up.
    pub mode: LookupMode,
    /// Time since the API server last confirmed the known data; [`None`] while there is none.
    pub age: Option<Duration>,
    /// Number of known pods.
    pub pods: usize,
    /// Why the API server does not respond.
    pub error: Option<String>,
}

#[derive(Debug)]
pub(super) enum Scope {
    Watched(Watched),
    OnDemand(OnDemand),
}

impl Scope {
    /// Starts the lookup in one namespace, or in all, in the mode that the agent's rights permit.
    pub(super) fn start(
        settings: &Settings,
        client: &Client,
        (mode, no_watch): &(LookupMode, Vec<String>),
        namespace: Option<&str>,
    ) -> Self {
        match mode {
            LookupMode::Watch => Self::Watched(Watched::start(settings, namespace)),
            LookupMode::OnDemand => {
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
