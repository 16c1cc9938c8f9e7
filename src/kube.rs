//! Looks up the pods of a Deployment and orders them by revision.
//!
//! The transports use [`Lookup`] through the [gate](crate::auth::gate). If the agent may list and watch, the lookup
//! answers from a [cache] that [watches](watched) keep up to date; a request then causes no call to the API server.
//! With fewer rights it [reads on demand](on_demand), at most once per `EA_KUBE_CACHE_TTL` for all callers. Elections
//! do not depend on this module.

mod cache;
pub mod client;
mod flights;
mod freshness;
pub(crate) mod names;
mod objects;
mod on_demand;
mod reading;
mod rights;
mod scope;
mod table;
mod trouble;
mod watched;

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use election_core::types::Invalid;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};

pub use objects::{Counts, PodStatus};
pub use scope::{LookupMode, Status};

use crate::telemetry::metrics::Looked;
use client::Access;
use scope::Scope;
use trouble::Trouble;

/// Timeout for building a client. A kubeconfig may run a program to obtain credentials.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of namespaces whose rights are reviewed concurrently.
const NAMESPACES_AT_ONCE: usize = 8;
/// Delay before the next attempt when the API server is unreachable.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Delay before the next attempt when the API server has denied a required right.
const ASK_FOR_RIGHTS_AGAIN: Duration = Duration::from_secs(60);

/// Selects the pods to look up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// The pods of a Deployment.
    Deployment {
        /// The Deployment's namespace.
        namespace: String,
        /// The Deployment's name.
        name: String,
    },
    /// The pods of the Deployment that a pod belongs to.
    Siblings {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        pod: String,
    },
}

impl Wanted {
    /// Validates a Deployment's namespace and name.
    ///
    /// # Errors
    /// [`Invalid`] names the field that is not a valid Kubernetes name.
    pub fn deployment(namespace: &str, name: &str) -> Result<Self, Invalid> {
        names::namespace(namespace)?;
        names::object("deployment", name)?;
        Ok(Self::Deployment {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }

    /// Validates a pod's namespace and name. `field` is the request's name for the pod field.
    ///
    /// # Errors
    /// [`Invalid`] names the field that is not a valid Kubernetes name.
    pub fn siblings(namespace: &str, field: &str, pod: &str) -> Result<Self, Invalid> {
        names::namespace(namespace)?;
        names::object(field, pod)?;
        Ok(Self::Siblings {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
        })
    }

    fn namespace(&self) -> &str {
        match self {
            Self::Deployment { namespace, .. } | Self::Siblings { namespace, .. } => namespace,
        }
    }
}

/// A pod of a Deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// The pod's name.
    pub name: String,
    /// The Deployment's name.
    pub deployment: String,
    /// The pod's IP address; empty until Kubernetes assigns one.
    pub ip: String,
    /// The pod's phase and conditions.
    pub status: PodStatus,
    /// The name and counts of the pod's ReplicaSet; empty if the ReplicaSet no longer exists.
    pub replica_set: (String, Counts),
}

/// Pods and the staleness of the data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pods {
    /// The pods, newest revision first, then by name.
    pub pods: Vec<Pod>,
    /// Time since the API server last confirmed the data.
    pub age: Duration,
}

/// Why the lookup returns no pods.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The lookup is off; the text states the reason.
    #[error("this agent does not look up pods: {0}")]
    Disabled(String),
    /// The Deployment or pod does not exist, as far as the known data shows.
    #[error("{0}")]
    NotFound(String),
    /// The known data is too stale, or there is none yet.
    #[error("{0}")]
    Unavailable(String),
    /// The caller's deadline has passed.
    #[error("the deadline passed before the Kubernetes API server answered")]
    DeadlineExceeded,
}

/// Configuration of the pod lookup.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whether the lookup is enabled.
    pub enable: bool,
    /// Whether the configuration enables the lookup explicitly. If so, the agent does not start without it.
    pub required: bool,
    /// How to reach the API server.
    pub access: Access,
    /// The namespaces to look up pods in; empty for all namespaces.
    pub namespaces: Vec<String>,
    /// How long pods that were read on demand stay cached: 100 ms to 1 minute.
    pub cache_ttl: Duration,
    /// The maximum staleness of returned pods: 5 seconds to 1 hour.
    pub max_staleness: Duration,
}

/// State of the lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// The lookup cannot answer.
    Off {
        /// The reason.
        reason: String,
    },
    /// The lookup serves these namespaces; an empty name stands for all namespaces.
    On(BTreeMap<String, Status>),
}

impl Report {
    /// The state that the metrics report for each namespace.
    #[must_use]
    pub fn looked(&self) -> Vec<Looked<'_>> {
        let Self::On(namespaces) = self else {
            return Vec::new();
        };
        let looked = namespaces.iter().map(|(namespace, status)| Looked {
            namespace,
            pods: status.pods,
            age: status.age,
        });
        looked.collect()
    }
}

/// The pod lookup. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lookup(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    scopes: OnceLock<Scopes>,
    /// Why there are no scopes.
    without: Mutex<Error>,
}

/// The namespaces in scope.
#[derive(Debug)]
enum Scopes {
    All(Scope),
    These(BTreeMap<String, Scope>),
}

impl Lookup {
    /// Creates a lookup that is off, for this reason.
    #[must_use]
    pub fn off(reason: impl Into<String>) -> Self {
        Self(Arc::new(Inner {
            scopes: OnceLock::new(),
            without: Mutex::new(Error::Disabled(reason.into())),
        }))
    }

    /// Starts the lookup. If the configuration does not enable it explicitly, a missing Kubernetes turns the lookup
    /// off, and an unreachable API server or missing rights are retried in the background.
    ///
    /// # Errors
    /// If the configuration enables the lookup explicitly: Kubernetes is unreachable, or a right is missing.
    pub async fn start(settings: &Settings) -> Result<Self, String> {
        if !settings.enable {
            return Ok(Self::off("EA_KUBE_ENABLE=false"));
        }
        if let Err(what) = settings.access.connect().await {
            if settings.required {
                return Err(what);
            }
            tracing::warn!("pods cannot be looked up: {what}; EA_KUBE_ENABLE=false silences this");
            return Ok(Self::off("it has found no Kubernetes"));
        }
        let lookup = Self::off("it is starting");
        if settings.required {
            let opened = Scopes::open(settings).await;
            lookup.set(opened.map_err(|without| without.what)?);
        } else {
            lookup.wait(&Without::unreachable("it has not answered yet"));
            tokio::spawn(lookup.clone().open(settings.clone()));
        }
        Ok(lookup)
    }

    /// Checks that the lookup is not permanently off.
    ///
    /// # Errors
    /// [`Error::Disabled`], with the reason.
    pub fn is_on(&self) -> Result<(), Error> {
        match self.0.scopes.get() {
            Some(_) => Ok(()),
            None => match self.without() {
                off @ Error::Disabled(_) => Err(off),
                _ => Ok(()),
            },
        }
    }

    /// Returns the pods and their staleness.
    ///
    /// # Errors
    /// See [`Error`]. Data older than the maximum staleness is an error.
    pub async fn pods(&self, wanted: &Wanted, deadline: Instant) -> Result<Pods, Error> {
        let Some(scopes) = self.0.scopes.get() else {
            return Err(self.without());
        };
        scopes.of(wanted.namespace())?.pods(wanted, deadline).await
    }

    /// Returns the state of the lookup.
    #[must_use]
    pub fn report(&self) -> Report {
        match self.0.scopes.get() {
            None => Report::Off {
                reason: self.without().to_string(),
            },
            Some(Scopes::All(scope)) => {
                Report::On(BTreeMap::from([(String::new(), scope.status())]))
            }
            Some(Scopes::These(scopes)) => {
                let status = |(name, scope): (&String, &Scope)| (name.clone(), scope.status());
                Report::On(scopes.iter().map(status).collect())
            }
        }
    }

    /// Retries until the agent has the rights, then opens the scopes.
    async fn open(self, settings: Settings) {
        let mut trouble = Trouble::default();
        loop {
            match Scopes::open(&settings).await {
                Ok(scopes) => return self.set(scopes),
                Err(without) => {
                    if trouble.add(without.what.clone()) {
                        tracing::warn!("pods cannot be looked up: {}", without.what);
                    }
                    self.wait(&without);
                    sleep(without.again).await;
                }
            }
        }
    }

    fn set(&self, scopes: Scopes) {
        // This task is the only one that sets the scopes.
        let _ = self.0.scopes.set(scopes);
    }

    fn wait(&self, without: &Without) {
        let mut error = self.0.without.lock();
        *error = without.error.clone();
    }

    fn without(&self) -> Error {
        let error = self.0.without.lock();
        error.clone()
    }
}

/// Why pods cannot be looked up yet.
#[derive(Debug)]
struct Without {
    /// The text for the operator.
    what: String,
    /// The error for callers.
    error: Error,
    /// Delay before the next attempt.
    again: Duration,
}

impl Without {
    fn unreachable(what: impl Into<String>) -> Self {
        Self {
            what: format!("the Kubernetes API server has not reported the agent's rights: {}", what.into()),
            error: Error::Unavailable(
                "the Kubernetes API server has not reported the agent's rights yet; the log has the cause".into(),
            ),
            again: ASK_AGAIN,
        }
    }

    fn forbidden(what: String) -> Self {
        Self {
            error: Error::Disabled(what.clone()),
            what,
            again: ASK_FOR_RIGHTS_AGAIN,
        }
    }
}

impl Scopes {
    /// Reviews the agent's rights and opens the scopes that they permit.
    async fn open(settings: &Settings) -> Result<Self, Without> {
        let connecting = timeout(CONNECT_TIMEOUT, settings.access.connect()).await;
        let connected = connecting.unwrap_or_else(|_| Err("it takes too long".to_owned()));
        let client = &connected.map_err(Without::unreachable)?;
        if settings.namespaces.is_empty() {
            let mode = rights::mode(client, None).await?;
            return Ok(Self::All(Scope::start(settings, client, &mode, None)));
        }
        // All namespaces must pass before any scope starts.
        let asked = settings.namespaces.iter();
        let asked: Vec<_> = asked
            .map(|namespace| rights::mode(client, Some(namespace)))
            .collect();
        let asked = stream::iter(asked).buffered(NAMESPACES_AT_ONCE);
        let modes: Vec<_> = asked.try_collect().await?;
        let scopes = settings
            .namespaces
            .iter()
            .zip(&modes)
            .map(|(namespace, mode)| {
                let scope = Scope::start(settings, client, mode, Some(namespace));
                (namespace.clone(), scope)
            });
        Ok(Self::These(scopes.collect()))
    }

    fn of(&self, namespace: &str) -> Result<&Scope, Error> {
        match self {
            Self::All(scope) => Ok(scope),
            Self::These(scopes) => scopes.get(namespace).ok_or_else(|| {
                Error::NotFound(format!(
                    "this agent does not look up pods in the namespace {namespace} (EA_KUBE_NAMESPACES)"
                ))
            }),
        }
    }
}
