//! Connections to the agents, and the routing of a call from one to the next.
//!
//! Each address has channels of its own. One address that answered last is preferred; when it fails, or keeps silent
//! for a while, the others are tried at once. A channel whose call got no answer in time is replaced, as its connection
//! may be dead: HTTP/2's own keep-alive, which agents allow every 20 s at most, detects that later.

use std::{
    collections::HashMap,
    error::Error as StdError,
    fmt,
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use hyper_util::rt::TokioIo;
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    net::TcpStream,
    runtime,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use tonic::{
    Request, Response, Status,
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};

use crate::{
    Code, Deadline, Error,
    credentials::{Tls, Tokens, put_trace},
    error::listed,
    proto::election_client::ElectionClient,
};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(2);
/// Agents cut connections that are pinged more often than every 18 s.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(10);
/// How long the addresses of names are good.
const RESOLVED_FOR: Duration = Duration::from_secs(30);
/// How long a name may take to be resolved.
const RESOLVE: Duration = Duration::from_secs(2);
/// Agents accept 1000 streams a connection: waiting calls leave room for others.
const WAITS_A_CHANNEL: usize = 500;

/// How many runtimes have channels at once.
const RUNTIMES: usize = 4;

/// An endpoint as it was configured.
#[derive(Debug)]
pub(crate) struct Configured {
    label: String,
    host: String,
    port: u16,
    /// For new connections, and which version of the files of certificates it holds.
    template: Mutex<(Endpoint, u64)>,
    tls: Option<Arc<Tls>>,
}

impl Configured {
    /// # Errors
    ///
    /// Why this is no endpoint.
    pub(crate) fn new(text: &str, tls: &Arc<Tls>) -> Result<Self, String> {
        let url = if text.contains("://") {
            text.to_owned()
        } else {
            format!("http://{text}")
        };
        let uri: http::Uri = url.parse().map_err(|error| format!("{error}"))?;
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("the scheme is neither http nor https".to_owned()),
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err("an endpoint has no path".to_owned());
        }
        if uri
            .authority()
            .is_some_and(|authority| authority.as_str().contains('@'))
        {
            return Err("an endpoint has no user name".to_owned());
        }
        let host = uri
            .host()
            .filter(|host| !host.is_empty())
            .ok_or("there is no host")?;
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let named = authority
            .rsplit_once(':')
            .map(|(_, port)| port)
            .filter(|port| !port.ends_with(']'));
        let port = match named {
            None if https => 443,
            None => 80,
            Some(port) => match port.parse() {
                Ok(0) | Err(_) => return Err(format!("there is no port {port:?}: 1 to 65535")),
                Ok(port) => port,
            },
        };
        // Its URI is the `:authority` of every call, whatever the address.
        let template = Endpoint::from(uri)
            .user_agent(concat!(
                "election-agent-client-rust/",
                env!("CARGO_PKG_VERSION")
            ))
            .map_err(|error| error.to_string())?
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_ANSWER);
        let template = if https {
            tls.apply(template)?
        } else {
            template
        };
        Ok(Self {
            label: text.to_owned(),
            host,
            port,
            template: Mutex::new((template, 0)),
            tls: https.then(|| Arc::clone(tls)),
        })
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    /// Which version of the files of certificates new connections use.
    fn version(&self) -> u64 {
        self.tls.as_ref().map_or(0, |tls| tls.version())
    }

    /// The addresses of the endpoint's name.
    async fn resolve(&self) -> Result<Vec<SocketAddr>, String> {
        if let Ok(address) = self.host.parse() {
            return Ok(vec![SocketAddr::new(address, self.port)]);
        }
        let lookup = timeout(
            RESOLVE,
            tokio::net::lookup_host((self.host.as_str(), self.port)),
        );
        match lookup.await {
            Ok(Ok(addresses)) => {
                let mut addresses: Vec<_> = addresses.collect();
                // So that the clients of several agents behind a name spread over them.
                fastrand::shuffle(&mut addresses);
                Ok(addresses)
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("its name was not resolved within {RESOLVE:?}")),
        }
    }

    /// A channel to one of its addresses. It connects when it is used.
    fn channel(&self, address: SocketAddr) -> Channel {
        let connector = tower::service_fn(move |_: http::Uri| async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        });
        let mut template = self.template.lock();
        if let Some(tls) = &self.tls {
            let version = tls.version();
            // They were good when they were read.
            if version != template.1
                && let Ok(changed) = tls.apply(template.0.clone())
            {
                *template = (changed, version);
            }
        }
        template.0.connect_with_connector_lazy(connector)
    }
}

/// One of an endpoint's channels: short calls never queue behind those that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    Calls,
    Waits(usize),
}

/// An address to which calls go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Route {
    endpoint: usize,
    address: SocketAddr,
}

/// Which channel.
type Key = (Option<runtime::Id>, Route, Lane);

/// A channel, and which one it is.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) channel: Channel,
    key: Key,
    number: u64,
}

/// All connections of an [`Agent`](crate::Agent).
pub(crate) struct Pool {
    endpoints: Vec<Configured>,
    tokens: Tokens,
    state: Mutex<State>,
    waits: AtomicUsize,
}

#[derive(Default)]
struct State {
    /// Channels live in the runtime in which they were made.
    channels: HashMap<Key, (Channel, u64)>,
    /// The runtimes that have channels, the one that was new last at the end.
    runtimes: Vec<runtime::Id>,
    made: u64,
    /// Of each endpoint, with which version of the files of certificates its channels were made.
    versions: HashMap<usize, u64>,
    /// Of each endpoint, its addresses and when they were looked up.
    addresses: HashMap<usize, (Vec<SocketAddr>, Instant)>,
    preferred: Option<Route>,
}

/// How a call is tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// When to give up.
    pub(crate) until: Instant,
    /// How long one attempt may take.
    pub(crate) attempt: Duration,
    /// After how long of silence another address is tried beside the first. Not for what must not run twice at once.
    pub(crate) hedge: Option<Duration>,
    /// Whether to go round the addresses again when all have failed.
    pub(crate) again: bool,
    /// How often to go round them at the most.
    pub(crate) rounds: u32,
    pub(crate) lane: Lane,
}

impl Plan {
    /// A call that may be repeated as often as one likes, and run several times at once.
    pub(crate) fn idempotent(within: Duration) -> Self {
        let attempt = (within / 2).max(Duration::from_millis(250)).min(within);
        Self {
            until: Instant::now() + within,
            attempt,
            hedge: Some((within / 4).min(Duration::from_millis(300))),
            again: true,
            rounds: u32::MAX,
            lane: Lane::Calls,
        }
    }

    /// A call that is repeated only after the attempt before has ended.
    pub(crate) fn one_by_one(within: Duration) -> Self {
        Self {
            attempt: (within / 3).max(Duration::from_millis(900)).min(within),
            hedge: None,
            ..Self::idempotent(within)
        }
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer<R> {
    pub(crate) value: R,
    /// An instant before the request was sent.
    pub(crate) sent: Deadline,
    /// An earlier attempt may have taken effect, or may take effect later.
    pub(crate) uncertain: bool,
}

/// Why a call has no answer.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) refusal: Option<(Code, String)>,
    /// An attempt may have taken effect, or may take effect later.
    pub(crate) uncertain: bool,
    /// No agent has replied, and none has kept silent: no connection was made, or each ended during its request.
    unheard: bool,
    tried: Vec<(String, String)>,
}

impl Failure {
    /// In words.
    pub(crate) fn reason(&self) -> String {
        match &self.refusal {
            Some((code, message)) => format!("{code}: {message}"),
            None => listed(&self.tried),
        }
    }

    /// The error of a call that changes something: the effect of earlier attempts is not known.
    pub(crate) fn of_change(self) -> Error {
        match self.refusal {
            Some((code, message)) if !self.uncertain => Error::Refused { code, message },
            Some((code, message)) => Error::NotKnown {
                reason: format!("{code}: {message}; before: {}", listed(&self.tried)),
            },
            None if self.uncertain => Error::NotKnown {
                reason: listed(&self.tried),
            },
            None => Error::Unreachable {
                endpoints: self.tried,
            },
        }
    }

    /// The error of a call that changes nothing.
    pub(crate) fn of_question(mut self) -> Error {
        self.uncertain &= self.refusal.is_none() && !self.unheard;
        self.of_change()
    }
}

/// How an attempt failed.
enum Failed {
    /// Nothing was sent.
    Unsent(String),
    /// The agent refused, and changed nothing.
    Refused(Code, String),
    /// The connection ended during the request. Whether it took effect is not known.
    Broken(String),
    /// Whether it took effect is not known.
    Unknown(String),
    /// The same, of an attempt that had less time than others: earlier failures say more.
    CutShort(String),
}

impl Pool {
    pub(crate) fn new(endpoints: Vec<Configured>, tokens: Tokens) -> Self {
        Self {
            endpoints,
            tokens,
            state: Mutex::default(),
            waits: AtomicUsize::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Where calls may go, the best first; and the endpoints whose names have no address.
    pub(crate) async fn routes(&self) -> (Vec<Route>, Vec<(String, String)>) {
        let mut stale = Vec::new();
        {
            let state = self.state();
            for (index, endpoint) in self.endpoints.iter().enumerate() {
                let fresh = state.addresses.get(&index).is_some_and(|(addresses, at)| {
                    !addresses.is_empty() && at.elapsed() < RESOLVED_FOR
                });
                if !fresh {
                    stale.push((index, endpoint));
                }
            }
        }
        let mut wrong = Vec::new();
        if !stale.is_empty() {
            let lookups = stale
                .into_iter()
                .map(|(index, endpoint)| async move { (index, endpoint.resolve().await) });
            let found: Vec<_> = lookups.collect::<FuturesUnordered<_>>().collect().await;
            let mut state = self.state();
            for (index, found) in found {
                let known = state
                    .addresses
                    .entry(index)
                    .or_insert_with(|| (Vec::new(), Instant::now()));
                known.1 = Instant::now();
                match found {
                    Ok(mut addresses) => {
                        // Known addresses keep their places.
                        let mut all = known.0.clone();
                        all.retain(|address| addresses.contains(address));
                        addresses.retain(|address| !all.contains(address));
                        all.extend(addresses);
                        known.0 = all;
                    }
                    // The addresses known before may still be good.
                    Err(why) if known.0.is_empty() => {
                        wrong.push((self.endpoints[index].label.clone(), why));
                    }
                    Err(_) => {}
                }
            }
            let State {
                channels,
                addresses,
                ..
            } = &mut *state;
            channels.retain(|(_, route, _), _| {
                addresses
                    .get(&route.endpoint)
                    .is_some_and(|(known, _)| known.contains(&route.address))
            });
        }
        let state = self.state();
        let mut routes: Vec<_> = (0..self.endpoints.len())
            .flat_map(|endpoint| {
                let known = state
                    .addresses
                    .get(&endpoint)
                    .map_or(&[][..], |(known, _)| known);
                known.iter().map(move |address| Route {
                    endpoint,
                    address: *address,
                })
            })
            .collect();
        if let Some(preferred) = state.preferred {
            routes.sort_by_key(|route| *route != preferred);
        }
        (routes, wrong)
    }

    /// The connection to an address.
    pub(crate) fn connection(&self, route: Route, lane: Lane) -> Connection {
        let runtime = runtime::Handle::try_current()
            .ok()
            .map(|handle| handle.id());
        let key = (runtime, route, lane);
        // Reads files.
        let version = self.endpoints[route.endpoint].version();
        let mut state = self.state();
        if state.versions.insert(route.endpoint, version) != Some(version) {
            // Channels connect anew by themselves, with what they were made with. What is under way goes on.
            state
                .channels
                .retain(|(_, other, _), _| other.endpoint != route.endpoint);
        }
        if let Some((channel, number)) = state.channels.get(&key) {
            return Connection {
                channel: channel.clone(),
                key,
                number: *number,
            };
        }
        let channel = self.endpoints[route.endpoint].channel(route.address);
        if let Some(runtime) = runtime
            && !state.runtimes.contains(&runtime)
        {
            state.runtimes.push(runtime);
            if state.runtimes.len() > RUNTIMES {
                // It has ended, mostly.
                let first = state.runtimes.remove(0);
                state.channels.retain(|(of, ..), _| *of != Some(first));
            }
        }
        state.made += 1;
        let number = state.made;
        state.channels.insert(key, (channel.clone(), number));
        Connection {
            channel,
            key,
            number,
        }
    }

    /// The next to use this address and lane connects anew. What is under way goes on.
    pub(crate) fn discard(&self, connection: &Connection) {
        let mut state = self.state();
        if state
            .channels
            .get(&connection.key)
            .is_some_and(|(_, number)| *number == connection.number)
        {
            state.channels.remove(&connection.key);
        }
    }

    /// The address has answered.
    pub(crate) fn prefer(&self, route: Route) {
        self.state().preferred = Some(route);
    }

    /// Others are tried before this address.
    pub(crate) fn avoid(&self, route: Route) {
        let mut state = self.state();
        if state.preferred == Some(route) || state.preferred.is_none() {
            let mut others = state.addresses.iter().flat_map(|(endpoint, (known, _))| {
                known.iter().map(|address| Route {
                    endpoint: *endpoint,
                    address: *address,
                })
            });
            let other = others.find(|other| *other != route);
            if let Some(other) = other {
                state.preferred = Some(other);
            }
        }
    }

    pub(crate) fn label(&self, route: Route) -> String {
        let configured = &self.endpoints[route.endpoint];
        if configured.host.parse() == Ok(route.address.ip()) {
            configured.label.clone()
        } else {
            format!("{} ({})", configured.label, route.address)
        }
    }

    /// The lane for a call that waits, as long as the guard lives.
    pub(crate) fn wait_lane(self: &Arc<Self>) -> (Lane, WaitGuard) {
        let waiting = self.waits.fetch_add(1, Ordering::Relaxed);
        (
            Lane::Waits(waiting / WAITS_A_CHANNEL),
            WaitGuard(Arc::clone(self)),
        )
    }

    /// Puts in what every request carries.
    ///
    /// # Errors
    ///
    /// Why there is no credential.
    pub(crate) async fn dress(&self, metadata: &mut MetadataMap) -> Result<(), String> {
        put_trace(metadata);
        self.tokens.put(metadata).await
    }

    /// Calls an agent, and the next if it fails or does not offer the call.
    ///
    /// # Errors
    ///
    /// Every attempt has failed, or an agent has refused.
    pub(crate) async fn call<Q, R, F, W>(
        &self,
        plan: Plan,
        message: &Q,
        send: F,
    ) -> Result<Answer<R>, Failure>
    where
        Q: Clone,
        F: Fn(ElectionClient<Channel>, Request<Q>) -> W,
        W: Future<Output = Result<Response<R>, Status>>,
    {
        let mut failures = Failures::default();
        let mut pause = Duration::from_millis(50);
        for round in 1.. {
            let Ok((routes, wrong)) = timeout_at(plan.until, self.routes()).await else {
                break;
            };
            for (label, why) in wrong {
                failures.put_unheard(label, why);
            }
            let mut routes = routes.into_iter();
            let mut attempts = FuturesUnordered::new();
            let begin = |route| self.attempt(plan, route, message, &send);
            attempts.extend(routes.next().map(begin));
            while !attempts.is_empty() {
                let hedge = async {
                    match plan.hedge {
                        Some(after) if routes.len() > 0 => sleep(after).await,
                        _ => std::future::pending().await,
                    }
                };
                let ended = tokio::select! {
                    biased;
                    Some(ended) = attempts.next() => Some(ended),
                    () = hedge => None,
                    () = sleep_until(plan.until) => {
                        failures.uncertain = true;
                        failures.silent();
                        return Err(failures.over());
                    }
                };
                let Some((route, result)) = ended else {
                    attempts.extend(routes.next().map(begin));
                    continue;
                };
                match result {
                    Ok((value, sent)) => {
                        self.prefer(route);
                        return Ok(Answer {
                            value,
                            sent,
                            uncertain: failures.uncertain || !attempts.is_empty(),
                        });
                    }
                    Err(Failed::Refused(code, message)) => {
                        failures.uncertain |= !attempts.is_empty();
                        failures.refusal = Some((code, message));
                        // An older agent has changed nothing, and another may be newer.
                        if code != Code::Unimplemented {
                            return Err(failures.over());
                        }
                    }
                    Err(Failed::Unsent(why)) => failures.put_unheard(self.label(route), why),
                    Err(Failed::Broken(why)) => {
                        failures.uncertain = true;
                        failures.put_unheard(self.label(route), why);
                    }
                    Err(Failed::Unknown(why)) => {
                        failures.uncertain = true;
                        failures.put(self.label(route), why);
                    }
                    Err(Failed::CutShort(why)) => {
                        failures.uncertain = true;
                        failures.put_first(self.label(route), why);
                    }
                }
                attempts.extend(routes.next().map(begin));
            }
            if failures.refusal.is_some() {
                break;
            }
            // All have failed: their names may have other addresses now.
            self.forget_addresses();
            let rest = pause.mul_f64(0.5 + fastrand::f64());
            if !plan.again || round >= plan.rounds || Instant::now() + rest >= plan.until {
                break;
            }
            sleep(rest).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
        Err(failures.over())
    }

    /// Names are resolved again by the next call.
    pub(crate) fn forget_addresses(&self) {
        let mut state = self.state();
        let Some(past) = Instant::now().checked_sub(RESOLVED_FOR) else {
            return;
        };
        for (_, at) in state.addresses.values_mut() {
            *at = past;
        }
    }

    async fn attempt<Q, R, F, W>(
        &self,
        plan: Plan,
        route: Route,
        message: &Q,
        send: &F,
    ) -> (Route, Result<(R, Deadline), Failed>)
    where
        Q: Clone,
        F: Fn(ElectionClient<Channel>, Request<Q>) -> W,
        W: Future<Output = Result<Response<R>, Status>>,
    {
        let until = plan.until.min(Instant::now() + plan.attempt);
        let mut request = Request::new(message.clone());
        match timeout_at(until, self.dress(request.metadata_mut())).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return (route, Err(Failed::Unsent(why))),
            Err(_) => {
                return (
                    route,
                    Err(Failed::Unsent("there was no token in time".to_owned())),
                );
            }
        }
        let left = until.saturating_duration_since(Instant::now());
        put_deadline(request.metadata_mut(), left);
        let connection = self.connection(route, plan.lane);
        let client = ElectionClient::new(connection.channel.clone());
        let sent = Deadline::now();
        let result = match timeout_at(until, send(client, request)).await {
            Ok(Ok(response)) => Ok((response.into_inner(), sent)),
            Ok(Err(status)) => {
                if is_stuck(&status) {
                    self.discard(&connection);
                }
                Err(failed(&status))
            }
            Err(_) => {
                self.discard(&connection);
                let why = format!("no answer within {left:.0?}");
                Err(match left < plan.attempt {
                    true => Failed::CutShort(why),
                    false => Failed::Unknown(why),
                })
            }
        };
        (route, result)
    }
}

/// A whole number of milliseconds: some agents and proxies read nothing else.
pub(crate) fn put_deadline(metadata: &mut MetadataMap, left: Duration) {
    // At most eight digits; more than a day is no deadline.
    let millis = left.as_millis().clamp(1, 99_999_999);
    if let Ok(value) = format!("{millis}m").parse() {
        metadata.insert("grpc-timeout", value);
    }
}

/// Whether the connection gave no answer in time.
fn is_stuck(status: &Status) -> bool {
    status.code() == tonic::Code::Cancelled && status.source().is_some()
}

fn failed(status: &Status) -> Failed {
    if let Some(code) = Code::of(status.code()) {
        return Failed::Refused(code, status.message().to_owned());
    }
    match unsent(status) {
        Some(why) => Failed::Unsent(why),
        // An agent's own reply has no source here.
        None if status.source().is_some() => Failed::Broken(describe(status)),
        None => Failed::Unknown(describe(status)),
    }
}

/// Why there was no connection, if that is what a status says.
pub(crate) fn unsent(status: &Status) -> Option<String> {
    let mut source = status.source();
    while let Some(error) = source {
        if let Some(connect) = error.downcast_ref::<tonic::ConnectError>() {
            let why = deepest(connect.0.as_ref());
            // The reply of an agent without encryption is no TLS message.
            let hint = match why.contains("InvalidContentType") {
                true => ": it speaks no TLS, as an agent at http:// does",
                false => "",
            };
            return Some(format!("{why}{hint}"));
        }
        source = error.source();
    }
    None
}

/// The code and the text of a status, and what caused it.
pub(crate) fn describe(status: &Status) -> String {
    let cause = status
        .source()
        .map(deepest)
        .filter(|cause| cause != status.message());
    // An alert of TLS, or HTTP/1, read as a frame.
    let hint = match &cause {
        Some(cause) if cause.contains("frame with invalid size") => {
            ": it speaks no HTTP/2 without encryption; https:// is for an agent with TLS"
        }
        _ => "",
    };
    let cause = cause.map(|cause| format!(" ({cause})")).unwrap_or_default();
    format!("{:?}: {}{cause}{hint}", status.code(), status.message())
}

/// The innermost cause: those around it only say that there is one.
pub(crate) fn deepest(error: &(dyn StdError + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// What has failed until now: of each endpoint the last.
#[derive(Default)]
struct Failures {
    refusal: Option<(Code, String)>,
    uncertain: bool,
    tried: Vec<Tried>,
}

struct Tried {
    label: String,
    why: String,
    unheard: bool,
}

impl Failures {
    fn put(&mut self, label: String, why: String) {
        self.put_last(label, why, false);
    }

    /// The same, of an endpoint where no agent has replied.
    fn put_unheard(&mut self, label: String, why: String) {
        self.put_last(label, why, true);
    }

    fn put_last(&mut self, label: String, why: String, unheard: bool) {
        let last = Tried {
            label,
            why,
            unheard,
        };
        match self
            .tried
            .iter_mut()
            .find(|tried| tried.label == last.label)
        {
            Some(tried) => *tried = last,
            None => self.tried.push(last),
        }
    }

    /// Unless something is known of this endpoint.
    fn put_first(&mut self, label: String, why: String) {
        if !self.tried.iter().any(|other| other.label == label) {
            self.put(label, why);
        }
    }

    fn silent(&mut self) {
        if self.tried.is_empty() {
            self.put("all".to_owned(), "no answer in time".to_owned());
        }
    }

    fn over(mut self) -> Failure {
        if self.refusal.is_none() {
            self.silent();
        }
        Failure {
            refusal: self.refusal,
            uncertain: self.uncertain,
            unheard: self.tried.iter().all(|endpoint| endpoint.unheard),
            tried: self
                .tried
                .into_iter()
                .map(|endpoint| (endpoint.label, endpoint.why))
                .collect(),
        }
    }
}

/// Counts a call that waits.
pub(crate) struct WaitGuard(Arc<Pool>);

impl Drop for WaitGuard {
    fn drop(&mut self) {
        self.0.waits.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels: Vec<_> = self
            .endpoints
            .iter()
            .map(|endpoint| &endpoint.label)
            .collect();
        f.debug_struct("Pool")
            .field("endpoints", &labels)
            .field("tokens", &self.tokens)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_without_time_does_not_hide_why_those_before_failed() {
        let mut failures = Failures::default();
        failures.put_first("a".to_owned(), "no answer within 2ms".to_owned());
        failures.put("b".to_owned(), "invalid certificate".to_owned());
        failures.put_first("b".to_owned(), "no answer within 1ms".to_owned());
        let told = failures.over().of_question().to_string();
        assert!(told.contains("a: no answer within 2ms"), "{told}");
        assert!(told.contains("b: invalid certificate"), "{told}");
        assert!(!told.contains("1ms"), "{told}");
    }

    #[test]
    fn a_question_that_no_agent_heard_is_no_unknown_outcome() {
        let failed = |put: fn(&mut Failures)| {
            let mut failures = Failures {
                uncertain: true,
                ..Failures::default()
            };
            failures.put_unheard("a".to_owned(), "broken pipe".to_owned());
            put(&mut failures);
            failures.over()
        };
        // An attempt without time changes nothing.
        let unheard = failed(|failures| failures.put_first("a".to_owned(), "no time".to_owned()));
        assert!(matches!(
            unheard.clone().of_question(),
            Error::Unreachable { .. }
        ));
        assert!(matches!(unheard.of_change(), Error::NotKnown { .. }));
        let heard = failed(|failures| failures.put("b".to_owned(), "UNAVAILABLE".to_owned()));
        assert!(matches!(heard.of_question(), Error::NotKnown { .. }));
    }
}
