//! Which pods belong to a Deployment, and which of them are newer.
//!
//! [`Lookup`] is what the transports ask, through the [gate](crate::auth::gate). With the rights to list and
//! watch it answers from a [cache] that [watches](watched) keep, and the API server is asked nothing for
//! a request; with less it [reads on demand](on_demand), once for all who ask in `EA_KUBE_CACHE_TTL`. Elections
//! depend on none of this.

mod cache;
pub mod client;
mod flights;
mod heard;
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

use election_core::election::types::Invalid;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};

pub use objects::{Counts, PodStatus};
pub use scope::{Mode, Status};

use crate::telemetry::metrics::Looked;
use client::Access;
use scope::Scope;
use trouble::Trouble;

/// How long it may take to make a client, for which a kubeconfig may have a program run.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Of how many namespaces the API server is asked at once what the agent may do.
const NAMESPACES_AT_ONCE: usize = 8;
/// How soon it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// How soon it is asked again when it has said that the agent may not look.
const ASK_FOR_RIGHTS_AGAIN: Duration = Duration::from_secs(60);

/// Whose pods are asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// Those of a Deployment.
    Deployment {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Those of a pod's Deployment.
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
    /// [`Invalid`] names the field that is no name in Kubernetes.
    pub fn deployment(namespace: &str, name: &str) -> Result<Self, Invalid> {
        names::namespace(namespace)?;
        names::object("deployment", name)?;
        Ok(Self::Deployment {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }

    /// Validates a pod's namespace and name, which a request calls `field`.
    ///
    /// # Errors
    /// [`Invalid`] names the field that is no name in Kubernetes.
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
    /// Its name.
    pub name: String,
    /// The Deployment's name.
    pub deployment: String,
    /// Its address; empty while it has none.
    pub ip: String,
    /// How it is.
    pub status: PodStatus,
    /// The name and the counts of its ReplicaSet; empty when that has gone.
    pub replica_set: (String, Counts),
}

/// Pods, and how old what is said of them is at the most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pods {
    /// Those of the newest revision first, then in the order of their names.
    pub pods: Vec<Pod>,
    /// For how long the API server has not been heard to agree.
    pub age: Duration,
}

/// Why there are no pods to tell.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The lookup is off; the text says why.
    #[error("this agent does not look up pods: {0}")]
    Disabled(String),
    /// There is no such Deployment or pod, as far as is known.
    #[error("{0}")]
    NotFound(String),
    /// What is known is too old, or nothing is known yet.
    #[error("{0}")]
    Unavailable(String),
    /// The caller's deadline has passed.
    #[error("the deadline passed before the Kubernetes API server answered")]
    DeadlineExceeded,
}

/// What the lookup of pods is made with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whether pods are to be looked up.
    pub enable: bool,
    /// Whether somebody asked for that, so that the agent must not start without.
    pub required: bool,
    /// How to reach the API server.
    pub access: Access,
    /// Whose pods are looked up; none: those of all namespaces.
    pub namespaces: Vec<String>,
    /// How long pods are kept that were read on demand: 100 ms to a minute.
    pub cache_ttl: Duration,
    /// How old pods may be that are told: 5 seconds to an hour.
    pub max_staleness: Duration,
}

/// How the lookup does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// It cannot answer.
    Off {
        /// Why not.
        reason: String,
    },
    /// It answers for these namespaces; a name that is empty stands for all.
    On(BTreeMap<String, Status>),
}

impl Report {
    /// What metrics tell of each namespace.
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

/// Looks pods up. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lookup(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    scopes: OnceLock<Scopes>,
    /// Why there are no scopes.
    without: Mutex<Error>,
}

/// Namespaces that are looked at.
#[derive(Debug)]
enum Scopes {
    All(Scope),
    These(BTreeMap<String, Scope>),
}

impl Lookup {
    /// A lookup that answers nothing, for this reason.
    #[must_use]
    pub fn off(reason: impl Into<String>) -> Self {
        Self(Arc::new(Inner {
            scopes: OnceLock::new(),
            without: Mutex::new(Error::Disabled(reason.into())),
        }))
    }

    /// Looks up what the configuration says. If nobody said so, it goes on without: where there is no
    /// Kubernetes it is off, and where the API server gives no answer or no rights it asks again.
    ///
    /// # Errors
    /// If somebody did: Kubernetes cannot be reached, or a right is missing.
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

    /// Whether it may ever answer.
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

    /// The pods, and how old what is said of them is.
    ///
    /// # Errors
    /// [`Error`]: also when it is too old.
    pub async fn pods(&self, wanted: &Wanted, deadline: Instant) -> Result<Pods, Error> {
        let Some(scopes) = self.0.scopes.get() else {
            return Err(self.without());
        };
        scopes.of(wanted.namespace())?.pods(wanted, deadline).await
    }

    /// How it does.
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

    /// Asks for rights until they are there.
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
        // Nobody else sets it.
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
    /// For the operator.
    what: String,
    /// For callers.
    error: Error,
    /// When to try again.
    again: Duration,
}

impl Without {
    fn unreachable(what: impl Into<String>) -> Self {
        Self {
            what: format!("the Kubernetes API server cannot be asked: {}", what.into()),
            error: Error::Unavailable(
                "the Kubernetes API server has not said yet what the agent may do; the agent's log says more".into(),
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
    /// Asks what the agent may do, and starts to do it.
    async fn open(settings: &Settings) -> Result<Self, Without> {
        let connecting = timeout(CONNECT_TIMEOUT, settings.access.connect()).await;
        let connected = connecting.unwrap_or_else(|_| Err("it takes too long".to_owned()));
        let client = &connected.map_err(Without::unreachable)?;
        if settings.namespaces.is_empty() {
            let mode = rights::mode(client, None).await?;
            return Ok(Self::All(Scope::start(settings, client, &mode, None)));
        }
        // None is started before all may be.
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
                    "this agent does not look at the namespace {namespace} (EA_KUBE_NAMESPACES)"
                ))
            }),
        }
    }
}
