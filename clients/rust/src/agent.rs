//! The agent, as its callers see it, and its plain calls.

use std::{
    future::Future,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tonic::{Request, Response, Status, transport::Channel};

use crate::{
    Campaign, Campaigned, Deadline, Error, Handover, Kinds, Lead, Leader, Leaders, Lost,
    NotCurrent, Observer, OfKind, Pod, PodsOf, Scope, State, Verified,
    credentials::{Tls, Tokens},
    pool::{Answer, Configured, Failure, Plan, Pool},
    proto::{self, election_client::ElectionClient},
    seats::Seats,
    streams::Streams,
    types::{duration, millis},
    unary::{promised, request_id},
};

/// How long a plain call may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How many leaders or kinds a page of a listing has.
const PAGE: i32 = 1_000;

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
    pool: Arc<Pool>,
    seats: Seats,
    streams: Streams,
    candidate: String,
    timeout: Duration,
}

impl Agent {
    /// The agents at these endpoints: `https://a:8443`, or several, separated by commas. `http://` may be left out. Of
    /// a name that has several addresses, each is an endpoint.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if one is no address.
    pub fn new(endpoints: impl AsRef<str>) -> Result<Self, Error> {
        Self::builder(endpoints).build()
    }

    /// The agents at these endpoints, with settings.
    pub fn builder(endpoints: impl AsRef<str>) -> AgentBuilder {
        AgentBuilder::new(endpoints.as_ref())
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

    /// Returns whether a fencing token is the present leader's: for programs that work for a leader and have no storage
    /// that compares tokens. A leader checks its [`Term`](crate::Term).
    ///
    /// # Errors
    ///
    /// [`Error::Refused`], [`Error::NotKnown`], [`Error::Unreachable`].
    pub async fn verify(&self, election: &str, kind: &str, token: u64) -> Result<Verified, Error> {
        let request = proto::VerifyTokenRequest {
            election: election.to_owned(),
            kind: kind.to_owned(),
            token,
        };
        let answer = self
            .ask(&request, |mut client, request| async move {
                client.verify_token(request).await
            })
            .await?;
        let result = answer.value;
        let reason = (!result.current).then(|| match result.reason.as_str() {
            "NO_TERM" => NotCurrent::NoTerm,
            "STALE_TOKEN" => NotCurrent::StaleToken,
            "NOT_GRANTED" => NotCurrent::NotGranted,
            other => NotCurrent::Other(other.to_owned()),
        });
        Ok(Verified {
            current: result.current,
            reason,
            state: result.state.and_then(State::of),
            valid_until: result
                .current
                .then(|| answer.sent.plus(duration(result.valid_for))),
        })
    }

    /// Lists the leaders of all held elections of a kind, or of all kinds.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`], [`Error::NotKnown`], [`Error::Unreachable`].
    pub async fn leaders(&self, of: impl Into<OfKind>) -> Result<Leaders, Error> {
        let (kind, all_kinds) = match of.into() {
            OfKind::Kind(kind) => (kind, false),
            OfKind::All => (String::new(), true),
        };
        let mut request = proto::ListLeadersRequest {
            kind,
            page_size: PAGE,
            page_token: String::new(),
            all_kinds,
        };
        let mut all = Leaders::default();
        loop {
            let answer = self
                .ask(&request, |mut client, request| async move {
                    client.list_leaders(request).await
                })
                .await?;
            let page = answer.value;
            all.leaders.extend(page.leaders.into_iter().map(Leader::of));
            all.incomplete |= page.incomplete;
            if page.next_page_token.is_empty() {
                return Ok(all);
            }
            request.page_token = page.next_page_token;
        }
    }

    /// Lists the kinds that have elections.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`], [`Error::NotKnown`], [`Error::Unreachable`].
    pub async fn kinds(&self) -> Result<Kinds, Error> {
        let mut request = proto::ListKindsRequest {
            page_size: PAGE,
            page_token: String::new(),
        };
        let mut all = Kinds::default();
        loop {
            let answer = self
                .ask(&request, |mut client, request| async move {
                    client.list_kinds(request).await
                })
                .await?;
            let page = answer.value;
            all.kinds.extend(page.kinds);
            all.incomplete |= page.incomplete;
            if page.next_page_token.is_empty() {
                return Ok(all);
            }
            request.page_token = page.next_page_token;
        }
    }

    /// The state of an election. One that was never held is vacant.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`], [`Error::NotKnown`], [`Error::Unreachable`].
    pub async fn state(&self, election: &str, kind: &str) -> Result<State, Error> {
        let request = proto::GetElectionRequest {
            election: election.to_owned(),
            kind: kind.to_owned(),
        };
        let answer = self
            .ask(&request, |mut client, request| async move {
                client.get_election(request).await
            })
            .await?;
        State::of(answer.value).ok_or_else(|| Error::NotKnown {
            reason: "the agent's reply names neither a leader nor a vacancy".to_owned(),
        })
    }

    /// Campaigns once, for callers that extend on their own; [`lead`](Self::lead) does all of it.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`], [`Error::NotKnown`], [`Error::Unreachable`]. That another candidate leads is no error.
    pub async fn campaign(&self, campaign: Campaign) -> Result<Campaigned, Error> {
        let wait = millis(campaign.wait, "the wait")?;
        let request = proto::CampaignRequest {
            election: campaign.election,
            candidate: campaign.candidate,
            term: millis(campaign.term, "the term")?,
            kind: campaign.kind,
            value: campaign.value,
            request_id: match campaign.request_id {
                Some(id) => id,
                None => request_id()?,
            },
            wait,
        };
        let pool = &self.inner.pool;
        let mut plan = Plan::one_by_one(self.inner.timeout + campaign.wait);
        let mut _guard = None;
        if wait > 0 {
            let (lane, guard) = pool.wait_lane();
            plan.lane = lane;
            plan.attempt += campaign.wait;
            _guard = Some(guard);
        }
        let answer = pool
            .call(plan, &request, |mut client, request| async move {
                client.campaign(request).await
            })
            .await
            .map_err(|failure| failure.of_change())?;
        let result = answer.value;
        Ok(Campaigned {
            elected: result.elected,
            leader: result.leader,
            token: result.token,
            value: result.value,
            valid_until: result
                .elected
                .then(|| answer.sent.plus(duration(result.valid_for))),
            provisional: result.provisional,
        })
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
        let request = proto::ExtendElectedTermRequest {
            election: election.to_owned(),
            leader: candidate.to_owned(),
            term: millis(term, "the term")?,
            kind: kind.to_owned(),
            token,
            retries: 0,
            retry_interval: 0,
        };
        let answer = self
            .inner
            .pool
            .call(
                self.question(),
                &request,
                |mut client, request| async move { client.extend_elected_term(request).await },
            )
            .await
            .map_err(|failure| failure.of_change())?;
        granted(&answer.value)?;
        Ok(answer.sent.plus(promised(&answer.value, term)))
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
        let request = proto::ResignRequest {
            election: election.to_owned(),
            leader: candidate.to_owned(),
            kind: kind.to_owned(),
            token,
        };
        let answer = self
            .inner
            .pool
            .call(
                self.question(),
                &request,
                |mut client, request| async move { client.resign(request).await },
            )
            .await
            .map_err(|failure| failure.of_change())?;
        match granted(&answer.value) {
            // An earlier attempt has done it.
            Err(Error::Lost(Lost::NoTerm)) if answer.uncertain => Ok(()),
            result => result,
        }
    }

    /// Moves a leadership to another candidate, and returns until when that one may act. It gets its token by
    /// campaigning.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] if the leader that hands over does not lead with its token, [`Error::Refused`],
    /// [`Error::NotKnown`], [`Error::Unreachable`].
    pub async fn handover(&self, handover: Handover) -> Result<Deadline, Error> {
        let term = handover.term;
        let request = proto::HandoverRequest {
            election: handover.election,
            leader: handover.to,
            term: millis(term, "the term")?,
            kind: handover.kind,
            current_leader: handover.from,
            token: handover.token,
        };
        let plan = Plan::one_by_one(self.inner.timeout);
        let answer = self
            .inner
            .pool
            .call(plan, &request, |mut client, request| async move {
                client.handover(request).await
            })
            .await
            .map_err(|failure| failure.of_change())?;
        match granted(&answer.value) {
            Ok(()) => Ok(answer.sent.plus(promised(&answer.value, term))),
            // An earlier attempt may have moved it.
            Err(_) if answer.uncertain => Err(Error::NotKnown {
                reason: format!("{}; an earlier attempt got no reply", answer.value.reason),
            }),
            Err(error) => Err(error),
        }
    }

    /// Lists the pods of a Kubernetes Deployment, or the siblings of a pod, those of the newest revision first.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] (also if the agent does not look pods up), [`Error::NotKnown`], [`Error::Unreachable`].
    pub async fn pods(&self, namespace: &str, of: PodsOf) -> Result<Vec<Pod>, Error> {
        let (deployment, pod_name) = match of {
            PodsOf::Deployment(name) => (name, String::new()),
            PodsOf::Pod(name) => (String::new(), name),
        };
        let request = proto::GetPodsRequest {
            namespace: namespace.to_owned(),
            deployment,
            pod_name,
        };
        let answer = self
            .ask(&request, |mut client, request| async move {
                client.get_pods(request).await
            })
            .await?;
        Ok(answer.value.items.into_iter().map(Pod::of).collect())
    }

    /// Sends a request that changes nothing.
    async fn ask<Q, R, F, W>(&self, request: &Q, send: F) -> Result<Answer<R>, Error>
    where
        Q: Clone,
        F: Fn(ElectionClient<Channel>, Request<Q>) -> W,
        W: Future<Output = Result<Response<R>, Status>>,
    {
        let answer = self.inner.pool.call(self.question(), request, send).await;
        answer.map_err(Failure::of_question)
    }

    fn question(&self) -> Plan {
        Plan::idempotent(self.inner.timeout)
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.inner.pool
    }

    pub(crate) fn streams(&self) -> &Streams {
        &self.inner.streams
    }

    pub(crate) fn seats(&self) -> &Seats {
        &self.inner.seats
    }
}

/// # Errors
///
/// Why the agent has denied it.
fn granted(value: &proto::BoolValue) -> Result<(), Error> {
    if value.value {
        return Ok(());
    }
    Err(Error::Lost(
        Lost::of_reason(&value.reason).unwrap_or(Lost::NoTerm),
    ))
}

/// Settings of an [`Agent`].
#[derive(Debug)]
#[must_use = "`build` makes the agent"]
pub struct AgentBuilder {
    endpoints: String,
    tls: Tls,
    tokens: Tokens,
    candidate: Option<String>,
    timeout: Duration,
    streams: bool,
}

impl AgentBuilder {
    fn new(endpoints: &str) -> Self {
        Self {
            endpoints: endpoints.to_owned(),
            tls: Tls::default(),
            tokens: Tokens::None,
            candidate: None,
            timeout: TIMEOUT,
            streams: true,
        }
    }

    /// Trusts the authorities in a PEM file, and no others. Without it the system's are trusted. The file is read again
    /// when it changes, for new connections.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if the file cannot be read, or holds no certificate.
    pub fn ca_file(mut self, path: impl AsRef<Path>) -> Result<Self, Error> {
        self.tls.authorities = Some(path.as_ref().to_owned());
        self.tls.load()?;
        Ok(self)
    }

    /// Shows the certificate in a PEM file, with the key in another. The files are read again when they change, for new
    /// connections.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if a file cannot be read, or holds no certificate or key.
    pub fn identity_files(
        mut self,
        certificate: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> Result<Self, Error> {
        self.tls.identity = Some((certificate.as_ref().to_owned(), key.as_ref().to_owned()));
        self.tls.load()?;
        Ok(self)
    }

    /// The name that the agent's certificate has to be for, if it is not the endpoint's.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.tls.server_name = Some(name.into());
        self
    }

    /// A bearer token.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.tokens = Tokens::Static(token.into());
        self
    }

    /// A file with a bearer token. Each attempt of a call shows the file's present content.
    pub fn token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.tokens = Tokens::File(path.into(), Arc::default());
        self
    }

    /// A function that returns a bearer token. It is called for each attempt of a call: keep a token that is still
    /// good.
    pub fn token_from<F, T, E>(mut self, source: F) -> Self
    where
        F: Fn() -> T + Send + Sync + 'static,
        T: Future<Output = Result<String, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.tokens = Tokens::Function(Arc::new(move || {
            let token = source();
            Box::pin(async move { token.await.map_err(|error| error.into().to_string()) })
        }));
        self
    }

    /// The name that leaders campaign under unless they give another.
    pub fn candidate(mut self, candidate: impl Into<String>) -> Self {
        self.candidate = Some(candidate.into());
        self
    }

    /// How long a plain call may take, with all its attempts; 10 s unless given. Leading has deadlines of its own.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Whether leaders use streams, if the agent offers them: on unless given. Without them each leadership has calls
    /// of its own, which proxies that know no streams in both directions let pass.
    pub fn streams(mut self, streams: bool) -> Self {
        self.streams = streams;
        self
    }

    /// Makes the agent. Nothing is connected yet.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if an endpoint is no address, or a file holds no certificate or key.
    pub fn build(self) -> Result<Agent, Error> {
        let tls = Arc::new(self.tls);
        let mut endpoints = Vec::new();
        for text in self
            .endpoints
            .split(',')
            .map(str::trim)
            .filter(|text| !text.is_empty())
        {
            let endpoint = Configured::new(text, &tls);
            let endpoint =
                endpoint.map_err(|why| Error::Config(format!("the endpoint {text}: {why}")))?;
            if self.tokens.any() && !endpoint.is_encrypted() {
                tracing::warn!(
                    endpoint = text,
                    "the bearer token goes over a connection that is not encrypted"
                );
            }
            endpoints.push(endpoint);
        }
        if endpoints.is_empty() {
            return Err(Error::Config("no endpoint is given".to_owned()));
        }
        let candidate = match self.candidate {
            Some(candidate) => candidate,
            None => name_of_process()?,
        };
        Ok(Agent {
            inner: Arc::new(Inner {
                pool: Arc::new(Pool::new(endpoints, self.tokens)),
                seats: Seats::default(),
                streams: Streams::new(self.streams),
                candidate,
                timeout: self.timeout,
            }),
        })
    }
}

/// The host's name, the process's number, and a random part that distinguishes agents of one process.
fn name_of_process() -> Result<String, Error> {
    #[cfg(unix)]
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    #[cfg(not(unix))]
    let host = std::env::var("COMPUTERNAME").unwrap_or_else(|_| "host".to_owned());
    // Of a host's name, at most what a candidate's name has room for.
    let host: String = host
        .chars()
        .filter(|char| !char.is_control())
        .take(48)
        .collect();
    let random = request_id()?;
    let random = random.get(..8).unwrap_or_default();
    Ok(format!("{host}-{}-{random}", std::process::id()))
}
