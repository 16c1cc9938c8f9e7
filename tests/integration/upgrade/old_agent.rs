//! What an agent of version 0.1.0 does to its servers: its scripts, its keys and arguments, and how it counts votes.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use election_proto::election_server::{Election, ElectionServer};
use election_proto::{
    BoolValue, CampaignRequest, CampaignResult, ExtendElectedTermRequest, GetLeaderRequest,
    GetPodsRequest, HandoverRequest, Leaders, ListLeadersRequest, Pods, ResignRequest, StringValue,
};
use futures_util::future::join_all;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use parking_lot::{Mutex, MutexGuard};
use redis::{AsyncConnectionConfig, Client, FromRedisValue, cmd};
use tokio::{net::TcpListener, sync::oneshot, task::JoinSet};
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint},
};

use crate::harness::Redis;

/// A script as the old agent put it together.
macro_rules! script {
    ($($file:literal)+) => {
        concat!($(include_str!(concat!("../fixtures/v0_1_0/", $file, ".lua"))),+)
    };
}

const GRANT: &str = script!("common" "grant");
const EXTEND: &str = script!("extend");
const HEAL: &str = script!("common" "heal");
const RESIGN: &str = script!("resign");
const WITHDRAW: &str = script!("common" "withdraw");
const READ: &str = script!("common" "read");
const LIST: &str = script!("common" "list");
const MARK: &str = script!("common" "mark");
const PROBE: &str = script!("common" "probe");
const REGISTER: &str = script!("common" "register");

/// `EA_REDIS_OPERATION_TIMEOUT`, within which votes count.
pub(crate) const OPERATION_TIMEOUT: Duration = Duration::from_millis(500);
/// `EA_TOKEN_RETENTION`, in ms.
const RETENTION: u64 = 86_400_000;
/// How long a campaign may take.
const DEADLINE: Duration = Duration::from_secs(3);
const TEND_EVERY: Duration = Duration::from_secs(1);

/// An agent of version 0.1.0 with the default prefix, without its processes and connections. Cheap to clone; it
/// probes its servers until all clones are dropped.
#[derive(Clone)]
pub(crate) struct OldAgent {
    knows: Arc<Knows>,
    _looking: Arc<JoinSet<()>>,
}

struct Knows {
    clients: Vec<Client>,
    /// What it registers as its list of nodes.
    list: String,
    /// `EA_MAX_TERM`, which is its restart guard.
    max_term: Duration,
    /// The longest restart guard that it has read, and when.
    heard: Mutex<(Duration, Instant)>,
    /// Whether it has ever seen an incarnation record.
    seen: AtomicBool,
    /// The largest token that it has proposed or seen.
    token: AtomicU64,
}

/// A candidate's request.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) election: String,
    pub(crate) candidate: String,
    /// In ms.
    pub(crate) term: u64,
    pub(crate) request_id: String,
    /// The leader that hands over, and its token (0: not given).
    pub(crate) over: Option<(String, u64)>,
}

/// A grant that was requested.
#[derive(Debug, Clone)]
pub(crate) struct Grant {
    claim: Claim,
    pub(crate) token: u64,
    attempt: u64,
}

/// The verdict of a majority on a claim.
#[derive(Debug)]
pub(crate) enum Claimed {
    Won {
        grant: Grant,
        token: u64,
        valid_for: Duration,
    },
    Lost(String),
    TokenMismatch,
}

/// The keys of an election and of what its servers keep for all.
fn key(name: &str) -> String {
    format!("ela:{{0}}:{name}")
}

fn path(election: &str) -> String {
    format!("default/{election}")
}

fn lease_and_high_water_mark(election: &str) -> [String; 2] {
    [
        key(&format!("lease:default/{election}")),
        key(&format!("floor:default/{election}")),
    ]
}

fn drift(term: u64) -> Duration {
    Duration::from_millis(term / 100 + 2)
}

fn since_epoch() -> Duration {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("a clock after 1970")
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("short")
}

/// The token behind a reply's first line.
fn token_of(reply: &str) -> u64 {
    let (_, token) = reply.split_once('\n').expect("two lines");
    token.parse().expect("a token")
}

/// The leader in the lines of a lease: token, time, remaining ms, leader, value.
fn leader_of(lease: &str) -> String {
    lease.split('\n').nth(3).expect("a leader").to_owned()
}

impl Claim {
    pub(crate) fn new(election: &str, candidate: &str, term: u64) -> Self {
        Self {
            election: election.to_owned(),
            candidate: candidate.to_owned(),
            term,
            request_id: String::new(),
            over: None,
        }
    }
}

impl OldAgent {
    /// Starts to probe the servers, at once and then every second.
    pub(crate) async fn start(servers: &[Redis], max_term: Duration) -> Self {
        let mut names: Vec<_> = servers
            .iter()
            .map(|server| format!("127.0.0.1:{}", server.port()))
            .collect();
        names.sort_unstable();
        let clients = servers
            .iter()
            .map(|server| Client::open(server.url()).expect("a URL"));
        let knows = Arc::new(Knows {
            clients: clients.collect(),
            list: names.join(","),
            max_term,
            heard: Mutex::new((max_term, Instant::now())),
            seen: AtomicBool::new(false),
            token: AtomicU64::new(0),
        });
        knows.tend(false).await;
        let mut looking = JoinSet::new();
        let looked_after = Arc::clone(&knows);
        looking.spawn(async move {
            let mut pace = tokio::time::interval(TEND_EVERY);
            loop {
                pace.tick().await;
                looked_after.tend(false).await;
            }
        });
        Self {
            knows,
            _looking: Arc::new(looking),
        }
    }

    /// Campaigns, or hands over, as the old agent does.
    pub(crate) async fn claim(&self, claim: Claim) -> Result<Claimed, String> {
        self.knows.claim(claim).await
    }

    /// Campaigns once, and gives the token and until when the leader may act.
    ///
    /// # Panics
    /// When it is not elected.
    pub(crate) async fn elect(&self, election: &str, candidate: &str, term: u64) -> (u64, Instant) {
        let asked = Instant::now();
        match self.claim(Claim::new(election, candidate, term)).await {
            Ok(Claimed::Won {
                token, valid_for, ..
            }) => (token, asked + valid_for),
            other => panic!("{candidate} is not elected: {other:?}"),
        }
    }

    /// Requests a grant from one server alone, and returns its reply.
    pub(crate) async fn grant_on(&self, node: usize, claim: Claim) -> (Grant, String) {
        let grant = self.knows.grant(claim);
        let reply = self.knows.ask_for(node, &grant, true).await;
        (grant, reply.expect("a reply"))
    }

    /// Rolls a grant back on all servers.
    pub(crate) async fn withdraw(&self, grant: &Grant) {
        self.knows.withdraw(grant).await;
    }

    /// Whether the term is extended, if that is known.
    pub(crate) async fn extend(
        &self,
        election: &str,
        leader: &str,
        term: u64,
        token: u64,
    ) -> Result<bool, String> {
        self.knows.extend(election, leader, term, token).await
    }

    pub(crate) async fn resign(
        &self,
        election: &str,
        leader: &str,
        token: u64,
    ) -> Result<bool, String> {
        self.knows.resign(election, leader, token).await
    }

    /// Who leads, if that is known.
    pub(crate) async fn leader(&self, election: &str) -> Result<Option<String>, String> {
        self.knows.leader(election).await
    }

    /// The elections and leaders that a majority lists.
    pub(crate) async fn list(&self) -> Vec<(String, String)> {
        self.knows.list().await
    }

    /// Serves the old agent's part of the contract; a connection to that.
    pub(crate) async fn serve(&self) -> Channel {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a port");
        let address: SocketAddr = listener.local_addr().expect("an address");
        let agent = self.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("accepts");
                let service = TowerToHyperService::new(ElectionServer::new(agent.clone()));
                tokio::spawn(async move {
                    let server = Builder::new(TokioExecutor::new());
                    // How a connection ends is the candidate's affair.
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        let endpoint = Endpoint::from_shared(format!("http://{address}"));
        endpoint.expect("a URL").connect_lazy()
    }
}

impl Knows {
    /// Runs a script; `None` when the server does not answer.
    ///
    /// # Panics
    /// When the script fails.
    async fn run<T: FromRedisValue>(
        &self,
        node: usize,
        script: &str,
        keys: &[String],
        arguments: &[String],
    ) -> Option<T> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(OPERATION_TIMEOUT))
            .set_response_timeout(Some(OPERATION_TIMEOUT));
        let connecting = self.clients[node].get_multiplexed_async_connection_with_config(&config);
        let mut connection = connecting.await.ok()?;
        let mut call = cmd("EVAL");
        call.arg(script).arg(keys.len()).arg(keys).arg(arguments);
        match call.query_async(&mut connection).await {
            Ok(reply) => Some(reply),
            Err(error) => {
                assert_eq!(error.code(), None, "an old script fails: {error}");
                None
            }
        }
    }

    /// Runs a script on every server.
    async fn run_on_all(
        &self,
        script: &str,
        keys: &[String],
        arguments: &[String],
    ) -> Vec<Option<String>> {
        let nodes = 0..self.clients.len();
        let all = nodes.map(|node| self.run::<String>(node, script, keys, arguments));
        join_all(all).await
    }

    fn quorum(&self) -> usize {
        self.clients.len() / 2 + 1
    }

    fn heard(&self) -> MutexGuard<'_, (Duration, Instant)> {
        self.heard.lock()
    }

    fn note_guard(&self, guard: Duration) {
        let mut heard = self.heard();
        if guard >= heard.0 || heard.1.elapsed() > heard.0 {
            *heard = (guard, Instant::now());
        }
    }

    fn longest_guard(&self) -> Duration {
        let (guard, at) = *self.heard();
        match at.elapsed() > guard {
            true => self.max_term,
            false => guard.max(self.max_term),
        }
    }

    fn seen(&self, token: u64) {
        self.token.fetch_max(token, Ordering::Relaxed);
    }

    /// Registers, reads the incarnation records, and writes missing ones if the reason of their absence is known.
    async fn tend(&self, wanted: bool) {
        let guard = millis(self.longest_guard()).to_string();
        let incarnation_record = [key("marker")];
        let probes = self.run_on_all(PROBE, &incarnation_record, &[guard]).await;
        let own = millis(self.max_term).to_string();
        let registers = [self.list.clone(), own.clone(), own];
        let registered = self
            .run_on_all(REGISTER, &[key("agents")], &registers)
            .await;
        for reply in registered.into_iter().flatten() {
            let (guard, list) = reply.split_once('\n').expect("two lines");
            self.note_guard(Duration::from_millis(guard.parse().expect("a guard")));
            assert_eq!(list, self.list, "an old agent sees another list");
        }
        let is_new = probes
            .iter()
            .all(|probe| probe.as_ref().is_some_and(|probe| probe.starts_with('\n')));
        let is_new = is_new && !self.seen.load(Ordering::Relaxed);
        if probes
            .iter()
            .flatten()
            .any(|probe| !probe.starts_with('\n'))
        {
            self.seen.store(true, Ordering::Relaxed);
        }
        let wait = match is_new {
            true => Duration::ZERO,
            false if wanted || self.seen.load(Ordering::Relaxed) => self.longest_guard(),
            false => return,
        };
        for (node, probe) in probes.iter().enumerate() {
            if let Some(probe) = probe
                && probe.starts_with('\n')
            {
                let run = probe.split('\n').nth(1).expect("a run").to_owned();
                let marks = [millis(wait).to_string(), run];
                self.run::<String>(node, MARK, &incarnation_record, &marks)
                    .await;
            }
        }
    }

    fn grant(&self, claim: Claim) -> Grant {
        let now = u64::try_from(since_epoch().as_micros()).expect("this age");
        let above = |last: u64| now.max(last + 1);
        let raised = self
            .token
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                Some(above(last))
            });
        Grant {
            claim,
            token: above(raised.unwrap_or_else(|last| last)),
            attempt: fastrand::u64(..),
        }
    }

    async fn ask_for(&self, node: usize, grant: &Grant, repeat: bool) -> Option<String> {
        let claim = &grant.claim;
        let [lease, high_water_mark] = lease_and_high_water_mark(&claim.election);
        let keys = [
            lease,
            high_water_mark,
            key("marker"),
            key("index"),
            key("expiry"),
        ];
        let mut arguments = vec![
            path(&claim.election),
            claim.candidate.clone(),
            grant.token.to_string(),
            claim.term.to_string(),
            millis(since_epoch()).to_string(),
            RETENTION.to_string(),
            millis(self.longest_guard()).to_string(),
            grant.attempt.to_string(),
        ];
        if claim.over.is_some() || !claim.request_id.is_empty() {
            let (over, leader, token) = match &claim.over {
                None => ("own", "", 0),
                Some((leader, token)) => ("leader", leader.as_str(), *token),
            };
            arguments.extend([
                String::new(),
                claim.request_id.clone(),
                if repeat { "1" } else { "0" }.to_owned(),
                over.to_owned(),
                leader.to_owned(),
                token.to_string(),
            ]);
        }
        self.run(node, GRANT, &keys, &arguments).await
    }

    async fn claim(&self, claim: Claim) -> Result<Claimed, String> {
        let deadline = Instant::now() + DEADLINE;
        let mut repeat = true;
        for attempt in 0.. {
            let grant = self.grant(claim.clone());
            let started = Instant::now();
            let nodes = 0..self.clients.len();
            let replies = join_all(nodes.map(|node| self.ask_for(node, &grant, repeat))).await;
            let took = started.elapsed();
            let said = |word: &str| {
                let said = replies.iter().flatten();
                let said = said.filter(|reply| reply.split('\n').next() == Some(word));
                said.map(String::as_str).collect::<Vec<_>>()
            };
            let granted: Vec<_> = said("granted").into_iter().map(token_of).collect();
            let votes = |token: u64| granted.iter().filter(|it| **it == token).count();
            if let Some(token) = granted.iter().find(|token| votes(**token) >= self.quorum()) {
                let valid_for =
                    Duration::from_millis(claim.term).checked_sub(took + drift(claim.term));
                if let Some(valid_for) = valid_for
                    && took <= OPERATION_TIMEOUT
                {
                    self.seen.store(true, Ordering::Relaxed);
                    if *token != grant.token {
                        // Some servers have written a new lease for a repeated request.
                        self.withdraw(&grant).await;
                    }
                    return Ok(Claimed::Won {
                        token: *token,
                        grant,
                        valid_for,
                    });
                }
                self.withdraw(&grant).await;
                return Err("too slow".to_owned());
            }
            let fresh = granted
                .iter()
                .filter(|token| **token == grant.token)
                .count();
            repeat &= fresh == 0 || fresh == granted.len();
            if !granted.is_empty() || replies.contains(&None) {
                self.withdraw(&grant).await;
            }
            let leases = said("held");
            let leases = leases
                .iter()
                .map(|held| held.split_once('\n').expect("a lease").1);
            let leaders: Vec<_> = leases.map(leader_of).collect();
            for leader in &leaders {
                if leaders.iter().filter(|it| *it == leader).count() >= self.quorum() {
                    return Ok(Claimed::Lost(leader.clone()));
                }
            }
            if said("mismatch").len() >= self.quorum() {
                return Ok(Claimed::TokenMismatch);
            }
            if !said("unmarked").is_empty() {
                self.tend(true).await;
            }
            for high_water_mark in said("stale") {
                self.seen(token_of(high_water_mark));
            }
            if said("guarded").len() + replies.iter().filter(|reply| reply.is_none()).count()
                >= self.quorum()
            {
                return Err(format!("abstaining or not reached: {replies:?}"));
            }
            if Instant::now() >= deadline {
                break;
            }
            let pause = Duration::from_millis(5 << attempt.min(5));
            tokio::time::sleep(pause.mul_f64(fastrand::f64())).await;
        }
        Err("no majority before the deadline".to_owned())
    }

    async fn withdraw(&self, grant: &Grant) {
        let election = &grant.claim.election;
        let [lease, high_water_mark] = lease_and_high_water_mark(election);
        let keys = [lease, high_water_mark, key("index"), key("expiry")];
        let arguments = [
            path(election),
            grant.attempt.to_string(),
            grant.token.to_string(),
            RETENTION.to_string(),
        ];
        self.run_on_all(WITHDRAW, &keys, &arguments).await;
    }

    async fn extend(
        &self,
        election: &str,
        leader: &str,
        term: u64,
        token: u64,
    ) -> Result<bool, String> {
        let started = Instant::now();
        let arguments = [
            leader.to_owned(),
            token.to_string(),
            term.to_string(),
            RETENTION.to_string(),
        ];
        let replies = self
            .run_on_all(EXTEND, &lease_and_high_water_mark(election), &arguments)
            .await;
        let nodes = |words: &[&str]| -> Vec<usize> {
            let said = |node: &usize| {
                let reply = replies[*node].as_deref();
                reply
                    .is_some_and(|reply| words.contains(&reply.split('\n').next().unwrap_or(reply)))
            };
            (0..replies.len()).filter(said).collect()
        };
        let renewed = nodes(&["renewed"]);
        let behind = nodes(&["behind"]);
        let unknown = replies.iter().filter(|reply| reply.is_none()).count();
        if renewed.len() >= self.quorum() {
            let lacking = nodes(&["missing", "behind"]);
            self.repair(election, leader, term, renewed[0], &lacking, false)
                .await;
        } else if !renewed.is_empty() && renewed.len() + behind.len() >= self.quorum() {
            let raised = self
                .repair(election, leader, term, renewed[0], &behind, true)
                .await;
            if renewed.len() + raised < self.quorum() {
                return Err("no majority could be raised".to_owned());
            }
        } else if renewed.len() + unknown < self.quorum() {
            return Ok(false);
        } else {
            return Err(format!("undecided: {replies:?}"));
        }
        match started.elapsed() + drift(term) < Duration::from_millis(term) {
            true => Ok(true),
            false => Err("too slow".to_owned()),
        }
    }

    /// Writes the lease of the source to servers that lack it, or raises what they have; gives how many took it.
    async fn repair(
        &self,
        election: &str,
        leader: &str,
        term: u64,
        source: usize,
        lacking: &[usize],
        existing: bool,
    ) -> usize {
        let guard = millis(self.longest_guard());
        let mut repaired = 0;
        for node in lacking {
            let probes = [guard.to_string()];
            let incarnation_record = [key("marker")];
            let probe = self.run::<String>(*node, PROBE, &incarnation_record, &probes);
            let Some(probe) = probe.await else { continue };
            let mut lines = probe.split('\n');
            let (wait, run) = (lines.next(), lines.next().expect("a run"));
            let Some(wait) = wait.and_then(|wait| wait.parse::<u64>().ok()) else {
                continue;
            };
            if wait > 0 && wait + millis(OPERATION_TIMEOUT) > guard {
                continue;
            }
            let [lease, high_water_mark] = lease_and_high_water_mark(election);
            let read = self.run::<String>(source, READ, std::slice::from_ref(&lease), &[]);
            let Some(read) = read.await else { continue };
            let mut lines = read.splitn(5, '\n');
            let mut line = || lines.next().unwrap_or_default().to_owned();
            let (token, elected_at, _, held_by, value) = (line(), line(), line(), line(), line());
            if held_by != leader {
                continue;
            }
            let keys = [
                lease,
                high_water_mark,
                key("index"),
                key("expiry"),
                key("marker"),
            ];
            let arguments = [
                path(election),
                leader.to_owned(),
                token,
                term.to_string(),
                value,
                elected_at,
                RETENTION.to_string(),
                run.to_owned(),
                if existing { "1" } else { "0" }.to_owned(),
                guard.to_string(),
            ];
            let reply = self.run::<String>(*node, HEAL, &keys, &arguments).await;
            repaired += usize::from(reply.as_deref() == Some("1"));
        }
        repaired
    }

    async fn resign(&self, election: &str, leader: &str, token: u64) -> Result<bool, String> {
        let [lease, _] = lease_and_high_water_mark(election);
        let keys = [lease, key("index"), key("expiry")];
        let arguments = [path(election), leader.to_owned(), token.to_string()];
        let replies = self.run_on_all(RESIGN, &keys, &arguments).await;
        let count = |word: Option<&str>| {
            let said = replies.iter().filter(|reply| reply.as_deref() == word);
            said.count()
        };
        let resigned = count(Some("resigned"));
        if resigned > 0 && resigned + count(Some("missing")) >= self.quorum() {
            Ok(true)
        } else if resigned + count(None) < self.quorum() {
            Ok(false)
        } else {
            Err(format!("undecided: {replies:?}"))
        }
    }

    async fn leader(&self, election: &str) -> Result<Option<String>, String> {
        let [lease, _] = lease_and_high_water_mark(election);
        let replies = self.run_on_all(READ, &[lease], &[]).await;
        let leases = replies.iter().flatten().filter(|lease| !lease.is_empty());
        let leaders: Vec<_> = leases.map(|lease| leader_of(lease)).collect();
        let votes = |leader: &String| leaders.iter().filter(|it| *it == leader).count();
        let most = leaders.iter().max_by_key(|leader| votes(leader));
        let unknown = replies.iter().filter(|reply| reply.is_none()).count();
        match most {
            Some(leader) if votes(leader) >= self.quorum() => Ok(Some(leader.clone())),
            _ if most.map_or(0, votes) + unknown < self.quorum() => Ok(None),
            _ => Err(format!("undecided: {replies:?}")),
        }
    }

    async fn list(&self) -> Vec<(String, String)> {
        let keys = [key("index"), key("expiry")];
        let arguments = ["[default/", "(default0", "100", "1000", "ela:{0}:lease:"];
        let arguments = arguments.map(str::to_owned);
        let nodes = 0..self.clients.len();
        let asked = nodes.map(|node| self.run::<Vec<String>>(node, LIST, &keys, &arguments));
        let mut listed = Vec::new();
        for page in join_all(asked).await.into_iter().flatten() {
            listed.extend(page.into_iter().skip(1).map(|entry| {
                let (path, lease) = entry.split_once('\n').expect("a lease");
                let election = path.strip_prefix("default/").expect("of the kind");
                (election.to_owned(), leader_of(lease))
            }));
        }
        listed.sort_unstable();
        let votes = |entry: &(String, String)| listed.iter().filter(|it| *it == entry).count();
        let mut held: Vec<_> = listed.clone();
        held.retain(|entry| votes(entry) >= self.quorum());
        held.dedup();
        held
    }
}

fn answer(value: Result<bool, String>) -> Result<Response<BoolValue>, Status> {
    let value = value.map_err(Status::unavailable)?;
    Ok(Response::new(BoolValue {
        value,
        ..BoolValue::default()
    }))
}

fn term_of(term: i32) -> u64 {
    u64::try_from(term).expect("not negative")
}

impl OldAgent {
    /// Goes on when the caller has gone away, and rolls back then what was granted.
    async fn claim_for_caller(&self, claim: Claim) -> Result<Claimed, Status> {
        let (send, receive) = oneshot::channel();
        let agent = self.clone();
        tokio::spawn(async move {
            let claimed = agent.claim(claim).await;
            if let Err(Ok(Claimed::Won { grant, .. })) = send.send(claimed) {
                agent.withdraw(&grant).await;
            }
        });
        let claimed = receive.await.map_err(|_| Status::internal("a panic"))?;
        claimed.map_err(Status::unavailable)
    }
}

#[tonic::async_trait]
impl Election for OldAgent {
    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResult>, Status> {
        let request = request.into_inner();
        let term = term_of(request.term);
        let claim = Claim {
            request_id: request.request_id,
            ..Claim::new(&request.election, &request.candidate, term)
        };
        let result = match self.claim_for_caller(claim).await? {
            Claimed::Won {
                token, valid_for, ..
            } => CampaignResult {
                elected: true,
                leader: request.candidate,
                token,
                valid_for: i32::try_from(valid_for.as_millis()).expect("short"),
                ..CampaignResult::default()
            },
            Claimed::Lost(leader) => CampaignResult {
                leader,
                ..CampaignResult::default()
            },
            Claimed::TokenMismatch => return Err(Status::internal("only handovers have a token")),
        };
        Ok(Response::new(result))
    }

    async fn extend_elected_term(
        &self,
        request: Request<ExtendElectedTermRequest>,
    ) -> Result<Response<BoolValue>, Status> {
        let request = request.into_inner();
        let (election, leader) = (&request.election, &request.leader);
        let term = term_of(request.term);
        answer(self.extend(election, leader, term, request.token).await)
    }

    async fn resign(&self, request: Request<ResignRequest>) -> Result<Response<BoolValue>, Status> {
        let request = request.into_inner();
        let (election, leader) = (&request.election, &request.leader);
        answer(Self::resign(self, election, leader, request.token).await)
    }

    async fn handover(
        &self,
        request: Request<HandoverRequest>,
    ) -> Result<Response<BoolValue>, Status> {
        let request = request.into_inner();
        let claim = Claim {
            over: Some((request.current_leader, request.token)),
            ..Claim::new(&request.election, &request.leader, term_of(request.term))
        };
        let claimed = self.claim_for_caller(claim).await?;
        answer(Ok(matches!(claimed, Claimed::Won { .. })))
    }

    async fn get_leader(
        &self,
        request: Request<GetLeaderRequest>,
    ) -> Result<Response<StringValue>, Status> {
        let leader = self.leader(&request.into_inner().election).await;
        match leader.map_err(Status::unavailable)? {
            Some(value) => Ok(Response::new(StringValue { value })),
            None => Err(Status::not_found("vacant")),
        }
    }

    async fn list_leaders(
        &self,
        _request: Request<ListLeadersRequest>,
    ) -> Result<Response<Leaders>, Status> {
        Err(Status::unimplemented("tests list without it"))
    }

    async fn get_pods(&self, _request: Request<GetPodsRequest>) -> Result<Response<Pods>, Status> {
        Err(Status::unimplemented("it has no pods"))
    }
}
