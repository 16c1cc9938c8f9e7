//! The agent, as its callers see it, and its plain calls.

use std::{future::Future, path::Path, sync::Arc, time::Duration};

use crate::{
    Campaign, Campaigned, Deadline, Error, Handover, Kinds, Lead, Leaders, Observer, OfKind, Pod,
    PodsOf, Scope, State, Verified,
};

/// One or several agents of the same elections. Clones share connections.
///
/// Nothing is connected before the first call. Calls go to one endpoint that answers, and at once to the others when it
/// fails.
#[derive(Clone, Debug)]
pub struct Agent {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    candidate: String,
}

impl Agent {
    /// The agents at these endpoints: `https://a:8443`, or several, separated by commas. `http://` may be left out. Of a
    /// name that has several addresses, each is an endpoint.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if one is no address.
    pub fn new(endpoints: impl AsRef<str>) -> Result<Self, Error> {
        Self::builder(endpoints).build()
    }

    /// The agents at these endpoints, with settings.
    pub fn builder(endpoints: impl AsRef<str>) -> AgentBuilder {
        AgentBuilder {
            endpoints: endpoints.as_ref().to_owned(),
        }
    }

    /// The name that leaders campaign under unless they give another: of this host and process, and random.
    #[must_use]
    pub fn candidate(&self) -> &str {
        &self.inner.candidate
    }

    /// Leads an election, of the kind `default` unless the kind is given.
    pub fn lead(&self, election: impl Into<String>) -> Lead {
        Lead::new(self.clone(), election.into())
    }

    /// Follows who leads.
    pub fn observe(&self, scope: impl Into<Scope>) -> Observer {
        Observer::new(self.clone(), scope.into())
    }

    /// Tells whether a fencing token is the present leader's: for those who work for a leader and have no storage that
    /// compares tokens. A leader asks its [`Term`](crate::Term).
    ///
    /// # Errors
    ///
    /// [`Error::Refused`], [`Error::NotKnown`], [`Error::Unreachable`].
    pub async fn verify(&self, election: &str, kind: &str, token: u64) -> Result<Verified, Error> {
        let _ = (election, kind, token);
        Err(Error::Config("not yet".into()))
    }

    /// Lists the leaders of all held elections of a kind, or of all kinds.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`], [`Error::NotKnown`], [`Error::Unreachable`].
    pub async fn leaders(&self, of: impl Into<OfKind>) -> Result<Leaders, Error> {
        let _ = of.into();
        Err(Error::Config("not yet".into()))
    }

    /// Lists the kinds that have elections.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`], [`Error::NotKnown`], [`Error::Unreachable`].
    pub async fn kinds(&self) -> Result<Kinds, Error> {
        Err(Error::Config("not yet".into()))
    }

    /// The state of an election. One that was never held is vacant.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`], [`Error::NotKnown`], [`Error::Unreachable`].
    pub async fn state(&self, election: &str, kind: &str) -> Result<State, Error> {
        let _ = (election, kind);
        Err(Error::Config("not yet".into()))
    }

    /// Campaigns once, for those who extend on their own; [`lead`](Self::lead) does all of it.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`], [`Error::NotKnown`], [`Error::Unreachable`]. That another candidate leads is no error.
    pub async fn campaign(&self, campaign: Campaign) -> Result<Campaigned, Error> {
        let _ = campaign;
        Err(Error::Config("not yet".into()))
    }

    /// Extends a term, and returns until when its leader may act, counted from before the request was sent.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] if the candidate does not lead with this token, [`Error::Refused`], [`Error::NotKnown`],
    /// [`Error::Unreachable`].
    pub async fn extend(
        &self,
        election: &str,
        kind: &str,
        candidate: &str,
        token: u64,
        term: Duration,
    ) -> Result<Deadline, Error> {
        let _ = (election, kind, candidate, token, term);
        Err(Error::Config("not yet".into()))
    }

    /// Gives a leadership up. The work that needs it has to have ended.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] if the candidate does not lead with this token, [`Error::Refused`], [`Error::NotKnown`],
    /// [`Error::Unreachable`].
    pub async fn resign(
        &self,
        election: &str,
        kind: &str,
        candidate: &str,
        token: u64,
    ) -> Result<(), Error> {
        let _ = (election, kind, candidate, token);
        Err(Error::Config("not yet".into()))
    }

    /// Moves a leadership to another candidate, and returns until when that may act. It takes the leadership up by
    /// campaigning.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] if the leader that hands over does not lead with its token, [`Error::Refused`],
    /// [`Error::NotKnown`], [`Error::Unreachable`].
    pub async fn handover(&self, handover: Handover) -> Result<Deadline, Error> {
        let _ = handover;
        Err(Error::Config("not yet".into()))
    }

    /// Lists the pods of a Kubernetes Deployment, or the siblings of a pod, those of the newest revision first.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] (also if the agent does not look pods up), [`Error::NotKnown`], [`Error::Unreachable`].
    pub async fn pods(&self, namespace: &str, of: PodsOf) -> Result<Vec<Pod>, Error> {
        let _ = (namespace, of);
        Err(Error::Config("not yet".into()))
    }
}

/// Settings of an [`Agent`].
#[derive(Debug)]
#[must_use = "`build` makes the agent"]
pub struct AgentBuilder {
    endpoints: String,
}

impl AgentBuilder {
    /// Trusts the authorities in a PEM file, and no others. Without it the system's are trusted.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if the file cannot be read.
    pub fn ca_file(self, path: impl AsRef<Path>) -> Result<Self, Error> {
        let _ = path;
        Ok(self)
    }

    /// Shows the certificate in a PEM file, with the key in another.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if a file cannot be read.
    pub fn identity_files(
        self,
        certificate: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> Result<Self, Error> {
        let _ = (certificate, key);
        Ok(self)
    }

    /// The name that the agent's certificate has to be for, if it is not the endpoint's.
    pub fn server_name(self, name: impl Into<String>) -> Self {
        let _ = name.into();
        self
    }

    /// A bearer token.
    pub fn token(self, token: impl Into<String>) -> Self {
        let _ = token.into();
        self
    }

    /// A file with a bearer token. It is read again when it has changed.
    pub fn token_file(self, path: impl AsRef<Path>) -> Self {
        let _ = path;
        self
    }

    /// A function that returns a bearer token. It is called before each attempt of a call, and keeps tokens that are
    /// still good on its own.
    pub fn token_from<F, T, E>(self, source: F) -> Self
    where
        F: Fn() -> T + Send + Sync + 'static,
        T: Future<Output = Result<String, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let _ = source;
        self
    }

    /// The name that leaders campaign under unless they give another.
    pub fn candidate(self, candidate: impl Into<String>) -> Self {
        let _ = candidate.into();
        self
    }

    /// How long a plain call may take, with all its attempts; 10 s unless given. Leading has deadlines of its own.
    pub fn timeout(self, timeout: Duration) -> Self {
        let _ = timeout;
        self
    }

    /// Makes the agent. Nothing is connected yet.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if an endpoint is no address, or a file holds no certificate or key.
    pub fn build(self) -> Result<Agent, Error> {
        Ok(Agent {
            inner: Arc::new(Inner {
                candidate: self.endpoints,
            }),
        })
    }
}
