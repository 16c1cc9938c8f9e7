//! A small client that leads by calls, and has on request one fault: `--mutant NAME`. Without, it keeps to the rules
//! that the suite checks; with one, a scenario has to find it.

use std::{
    collections::HashMap,
    str::FromStr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use client_conformance::{
    mutants::Mutant,
    protocol::{Body, Command, Event, Lead, Name, commands, now},
};
use election_proto::{
    CampaignRequest, CampaignResult, ExtendElectedTermRequest, Hello, Join, LeadRequest,
    ObserveRequest, Ping, ResignRequest, VerifyTokenRequest, election_client::ElectionClient,
    lead_event, lead_request, leadership_client::LeadershipClient, observation, observe_request,
    standing::Is, state::Phase,
};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

const MS: u64 = 1_000_000;

/// Whether a leadership of this process was lost.
static ANY_LOST: AtomicBool = AtomicBool::new(false);

static MUTANT: OnceLock<Mutant> = OnceLock::new();

/// Whether the client has this fault.
fn is(mutant: Mutant) -> bool {
    MUTANT.get() == Some(&mutant)
}

/// What commands say to a body.
struct Orders {
    alive: AtomicBool,
    block: AtomicU64,
    end: watch::Sender<bool>,
}

type All = Arc<Mutex<HashMap<u64, Arc<Orders>>>>;

fn orders(all: &All, id: u64) -> Arc<Orders> {
    let mut all = all.lock();
    let new = || {
        Arc::new(Orders {
            alive: AtomicBool::new(true),
            block: AtomicU64::new(0),
            end: watch::Sender::new(false),
        })
    };
    Arc::clone(all.entry(id).or_insert_with(new))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    if let Some(name) = std::env::args().nth(2) {
        let _ = MUTANT.set(Mutant::from_str(&name)?);
    }
    let all = All::default();
    let (sender, mut asynchronous) = mpsc::unbounded_channel();
    let told = Arc::clone(&all);
    commands(move |command| match command {
        Command::EndBody { id } => _ = orders(&told, id).end.send_replace(true),
        Command::Block { id, ms } => orders(&told, id).block.store(ms, Ordering::SeqCst),
        Command::Alive { id, alive } => orders(&told, id).alive.store(alive, Ordering::SeqCst),
        other => _ = sender.send(other),
    });
    Event::new(Name::Ready, 0).send();
    let mut client = None;
    while let Some(command) = asynchronous.recv().await {
        if let Command::Connect { agents } = &command {
            client = Some(Arc::new(Client::new(agents)?));
            continue;
        }
        let Some(client) = client.clone() else {
            return Err("`connect` comes first".into());
        };
        match command {
            Command::Lead(lead) => {
                let orders = orders(&all, lead.id);
                tokio::spawn(leads(client, lead, orders));
            }
            Command::Observe { id, kind, election } => {
                tokio::spawn(observes(client, id, kind, election));
            }
            Command::Verify {
                id,
                kind,
                election,
                token,
            } => {
                tokio::spawn(verifies(client, id, kind, election, token));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Channels to the agents, and which one answered last.
struct Client {
    channels: Vec<Channel>,
    preferred: AtomicUsize,
}

impl Client {
    fn new(agents: &str) -> Result<Self, tonic::transport::Error> {
        let mut channels = Vec::new();
        for agent in agents.split(',') {
            channels.push(Endpoint::from_shared(format!("http://{agent}"))?.connect_lazy());
        }
        if is(Mutant::NoFailover) {
            channels.truncate(1);
        }
        Ok(Self {
            channels,
            preferred: AtomicUsize::new(0),
        })
    }

    fn channel(&self) -> Channel {
        let index = self.preferred.load(Ordering::SeqCst) % self.channels.len();
        self.channels[index].clone()
    }

    fn election(&self) -> ElectionClient<Channel> {
        ElectionClient::new(self.channel())
    }

    fn fails(&self) {
        self.preferred.fetch_add(1, Ordering::SeqCst);
    }
}

/// What is known of a term.
struct Term {
    id: u64,
    token: u64,
    margin: u64,
    /// By CLOCK_BOOTTIME, and the same by the clocks of mutants.
    valid_until: Mutex<(u64, Instant, SystemTime)>,
    lost: watch::Sender<Option<(&'static str, u64)>>,
}

impl Term {
    fn extend(&self, sent: u64, valid_for: i32) {
        let valid_for = u64::try_from(valid_for).unwrap_or(0) * MS;
        let valid_for = if is(Mutant::TermsAreTwiceAsLong) {
            2 * valid_for
        } else {
            valid_for
        };
        let from = if is(Mutant::CountsFromReceipt) {
            now()
        } else {
            sent
        };
        let mut until = self.valid_until.lock();
        if from + valid_for > until.0 {
            until.0 = from + valid_for;
            let left = Duration::from_nanos(until.0.saturating_sub(now()));
            until.1 = Instant::now() + left;
            until.2 = SystemTime::now() + left;
        }
    }

    fn until(&self) -> u64 {
        let until = self.valid_until.lock();
        until.0
    }

    fn is_over(&self) -> bool {
        let until = *self.valid_until.lock();
        let margin = Duration::from_nanos(self.margin);
        if is(Mutant::MonotonicClock) {
            Instant::now() + margin >= until.1
        } else if is(Mutant::WallClock) {
            SystemTime::now() + margin >= until.2
        } else {
            now() + self.margin >= until.0
        }
    }

    fn lose(&self, why: &'static str) {
        let first = self.lost.send_if_modified(|lost| {
            let first = lost.is_none();
            *lost = lost.or(Some((why, now())));
            first
        });
        ANY_LOST.store(true, Ordering::SeqCst);
        if first && !is(Mutant::NeverReportsLoss) {
            Event::new(Name::Lost, self.id).because(why).send();
        }
    }

    fn lost(&self) -> Option<&'static str> {
        self.lost.borrow().map(|(why, _)| why)
    }

    fn may_act(&self) -> bool {
        if is(Mutant::SlowToStop) {
            // A loss is noticed by another thread, and what it says is looked at now and then.
            let lost = *self.lost.borrow();
            return lost.is_none_or(|(_, at)| now() < at + 500 * MS);
        }
        self.lost().is_none() && (is(Mutant::TimerOfTheRuntime) || !self.is_over())
    }

    /// The timer of the loss: it depends on nothing else.
    fn watch(self: &Arc<Self>) {
        let term = Arc::downgrade(self);
        if is(Mutant::TimerOfTheRuntime) {
            tokio::spawn(async move {
                while let Some(term) = term.upgrade().filter(|term| term.lost().is_none()) {
                    if term.is_over() {
                        term.lose("term_over");
                    }
                    drop(term);
                    sleep(Duration::from_millis(5)).await;
                }
            });
            return;
        }
        std::thread::spawn(move || {
            while let Some(term) = term.upgrade() {
                if term.lost().is_some() {
                    return;
                }
                let others = is(Mutant::LosesAll) && ANY_LOST.load(Ordering::SeqCst);
                if term.is_over() || others {
                    term.lose("term_over");
                }
                drop(term);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
    }
}

fn request_id() -> String {
    if is(Mutant::OneRequestId) {
        return format!("{}", std::process::id());
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!(
        "{}-{}-{}",
        std::process::id(),
        now.as_nanos(),
        fastrand::u64(..)
    )
}

/// Waits until elected: the answer, and when it was asked for.
async fn campaign(client: &Client, lead: &Lead) -> Result<(CampaignResult, u64), &'static str> {
    let begin = Instant::now();
    let mut id = request_id();
    let mut failed = 0;
    loop {
        let over = lead
            .wait_ms
            .is_some_and(|wait| begin.elapsed() >= Duration::from_millis(wait));
        let wait = if over || is(Mutant::DoesNotWait) {
            0
        } else {
            4_000
        };
        let request = CampaignRequest {
            election: lead.election.clone(),
            candidate: lead.candidate.clone(),
            term: i32::try_from(lead.term_ms).unwrap_or(i32::MAX),
            kind: lead.kind.clone(),
            request_id: id.clone(),
            wait,
            ..CampaignRequest::default()
        };
        let sent = now();
        let mut election = client.election();
        let answer = timeout(Duration::from_secs(6), election.campaign(request)).await;
        match answer {
            Ok(Ok(answer)) => {
                let result = answer.into_inner();
                if result.elected {
                    return Ok((result, sent));
                }
                if over || is(Mutant::DoesNotWait) {
                    return Err("not_elected");
                }
                id = request_id();
            }
            Ok(Err(status)) if status.code() == Code::AlreadyExists => id = request_id(),
            _ => {
                client.fails();
                failed += 1;
                if lead.wait_ms == Some(0) && failed > 2 {
                    return Err(if is(Mutant::UnknownIsDenied) {
                        "not_elected"
                    } else {
                        "not_known"
                    });
                }
                if is(Mutant::NewRequestId) {
                    id = request_id();
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn leads(client: Arc<Client>, lead: Lead, orders: Arc<Orders>) {
    let id = lead.id;
    if is(Mutant::StreamsOnly) && !has_streams(&client).await {
        Event::new(Name::Error, id).because("refused").send();
        return;
    }
    let (term, took) = loop {
        let (granted, sent) = match campaign(&client, &lead).await {
            Ok(granted) => granted,
            Err(why) => {
                Event::new(Name::Error, id).because(why).send();
                return;
            }
        };
        let term = Arc::new(Term {
            id,
            token: granted.token,
            margin: lead.margin_ms.unwrap_or((lead.term_ms / 10).min(1_000)) * MS,
            valid_until: Mutex::new((0, Instant::now(), SystemTime::now())),
            lost: watch::Sender::new(None),
        });
        term.extend(sent, granted.valid_for);
        // A grant after a wait counts from its extension.
        let took = match granted.provisional {
            true => Duration::ZERO,
            false => Duration::from_nanos(now().saturating_sub(sent)),
        };
        if granted.provisional && !term.is_over() {
            // The first extension makes it a full term.
            let third = Duration::from_millis(lead.term_ms / 3);
            extend(&client, &lead, &term, third).await;
        }
        if !term.is_over() {
            break (term, took);
        }
    };
    if !is(Mutant::WaitsForTheCall) {
        term.watch();
    }
    let keeping = tokio::spawn(keep(
        Arc::clone(&client),
        lead.clone(),
        Arc::clone(&term),
        Arc::clone(&orders),
        took,
    ));
    let stream = (is(Mutant::StreamEndIsLoss)).then(|| {
        tokio::spawn(follow_stream(
            Arc::clone(&client),
            lead.clone(),
            Arc::clone(&term),
        ))
    });
    let grace = Duration::from_millis(lead.grace_ms);
    let mut lost = term.lost.subscribe();
    let ends = Ends(id);
    {
        let too_long = async {
            let _ = lost.wait_for(Option::is_some).await;
            if is(Mutant::ResignsUnderTheBody) {
                resign(&client, &lead, term.token).await;
            }
            sleep(grace).await;
        };
        tokio::select! {
            biased;
            () = works(&lead, &term, &orders) => {}
            () = too_long => {}
        }
    }
    let in_time = term.lost().is_none();
    if is(Mutant::ResignsFirst) {
        resign(&client, &lead, term.token).await;
    }
    drop(ends);
    if let Some(stream) = stream {
        stream.abort();
    }
    if !is(Mutant::ExtendsAfterResign) && !is(Mutant::EndlessGrace) {
        keeping.abort();
        let _ = keeping.await;
    }
    if !is(Mutant::NeverResigns) && in_time && resign(&client, &lead, term.token).await {
        Event::new(Name::Resigned, id).send();
    }
    if in_time {
        Event::new(Name::Done, id).send();
    } else {
        Event::new(Name::Error, id).because("lost").send();
    }
    if is(Mutant::ExtendsAfterResign) {
        // It has no end of its own as long as somebody looks at the term.
        sleep(Duration::from_secs(60)).await;
    }
}

async fn resign(client: &Client, lead: &Lead, token: u64) -> bool {
    for _ in 0..3 {
        let request = ResignRequest {
            election: lead.election.clone(),
            leader: lead.candidate.clone(),
            kind: lead.kind.clone(),
            token: if is(Mutant::ResignsByName) { 0 } else { token },
        };
        let answer = timeout(Duration::from_secs(1), client.election().resign(request)).await;
        if let Ok(Ok(answer)) = answer {
            return answer.get_ref().value;
        }
        client.fails();
    }
    false
}

/// How an extension ended.
enum Extended {
    Yes,
    Denied(&'static str),
    Refused(String),
    NotKnown,
}

async fn extend(client: &Client, lead: &Lead, term: &Term, within: Duration) -> Extended {
    let request = ExtendElectedTermRequest {
        election: lead.election.clone(),
        leader: lead.candidate.clone(),
        term: i32::try_from(lead.term_ms).unwrap_or(i32::MAX),
        kind: lead.kind.clone(),
        token: if is(Mutant::ExtendsByName) {
            0
        } else {
            term.token
        },
        ..ExtendElectedTermRequest::default()
    };
    let sent = now();
    let mut election = client.election();
    let answer = timeout(within, election.extend_elected_term(request)).await;
    match answer {
        Ok(Ok(answer)) if answer.get_ref().value => {
            term.extend(sent, answer.get_ref().valid_for);
            Extended::Yes
        }
        Ok(Ok(answer)) => Extended::Denied(match answer.get_ref().reason.as_str() {
            "HELD_BY_OTHER" => "held_by_other",
            "STALE_TOKEN" => "stale_token",
            _ => "no_term",
        }),
        Ok(Err(status)) => match status.code() {
            Code::PermissionDenied | Code::InvalidArgument | Code::Unimplemented => {
                Extended::Refused(status.message().to_owned())
            }
            _ => Extended::NotKnown,
        },
        Err(_) => Extended::NotKnown,
    }
}

/// Extends the term every third of it, and for the grace after a loss. The grant took so long to come.
async fn keep(
    client: Arc<Client>,
    lead: Lead,
    term: Arc<Term>,
    orders: Arc<Orders>,
    took: Duration,
) {
    let third = Duration::from_millis(lead.term_ms / 3);
    let mut lost = term.lost.subscribe();
    let grace = Duration::from_millis(lead.grace_ms);
    let over = async {
        let _ = lost.wait_for(Option::is_some).await;
        if is(Mutant::EndlessGrace) {
            std::future::pending::<()>().await;
        }
        if !is(Mutant::NoGrace) {
            sleep(grace).await;
        }
    };
    let extending = async {
        let mut refused = false;
        let mut jeopardy = false;
        // However long the answer took.
        let mut at = tokio::time::Instant::now() + third.saturating_sub(took);
        let mut patience = third / 3;
        loop {
            tokio::time::sleep_until(at).await;
            if is(Mutant::NeverExtends) {
                return std::future::pending().await;
            }
            if !orders.alive.load(Ordering::SeqCst) && !is(Mutant::IgnoresAlive) {
                at = tokio::time::Instant::now() + third / 8;
                continue;
            }
            let asked = tokio::time::Instant::now();
            let within = if is(Mutant::WaitsForTheCall) {
                Duration::from_secs(20)
            } else {
                patience
            };
            let mut extended = extend(&client, &lead, &term, within).await;
            if is(Mutant::WaitsForTheCall) && term.is_over() {
                term.lose("term_over");
            }
            let deaf = is(Mutant::IgnoresDenial) || is(Mutant::ExtendsAfterResign);
            if deaf && matches!(extended, Extended::Denied(_)) {
                extended = Extended::NotKnown;
            }
            if is(Mutant::RefusalIsLoss) && matches!(extended, Extended::Refused(_)) {
                extended = Extended::Denied("no_term");
            }
            match extended {
                Extended::Yes => {
                    jeopardy = false;
                    if term.lost().is_none() {
                        let mut event = Event::new(Name::Renewed, lead.id);
                        event.valid_until = Some(term.until());
                        event.send();
                    }
                    at = asked + third;
                    continue;
                }
                Extended::Denied(why) => {
                    term.lose(why);
                    return std::future::pending().await;
                }
                Extended::Refused(message) => {
                    if !refused {
                        Event::new(Name::Refused, lead.id).because(message).send();
                    }
                    refused = true;
                }
                Extended::NotKnown => {}
            }
            if is(Mutant::JeopardyIsLoss) {
                term.lose("no_term");
            }
            client.fails();
            if !is(Mutant::Impatient) {
                // The agent may be slow rather than gone.
                patience = (patience * 2).min(third);
            }
            if !jeopardy && !is(Mutant::NoJeopardy) {
                Event::new(Name::Jeopardy, lead.id).send();
            }
            jeopardy = true;
            if is(Mutant::GivesUp) {
                return std::future::pending().await;
            }
            at = tokio::time::Instant::now() + Duration::from_millis(50);
        }
    };
    tokio::select! {
        () = over => {}
        () = extending => {}
    }
}

/// Reports the end of the body, however it ends.
struct Ends(u64);

impl Drop for Ends {
    fn drop(&mut self) {
        Event::new(Name::BodyEnded, self.0).send();
    }
}

async fn works(lead: &Lead, term: &Term, orders: &Orders) {
    let (id, until) = (lead.id, term.until());
    Event::new(Name::Leading, id).term(term.token, until).send();
    let mut end = orders.end.subscribe();
    let mut lost = term.lost.subscribe();
    let act = || {
        let (at, until) = (now(), term.until());
        if term.may_act() {
            let mut event = Event::new(Name::Acting, id).term(term.token, until);
            event.at = at;
            event.send();
        }
    };
    // It goes on for as long as it is told that it may act.
    let ends = lead.body == Body::Cooperative && !is(Mutant::SlowToStop);
    loop {
        tokio::select! {
            biased;
            Ok(_) = end.wait_for(|end| *end) => return,
            Ok(_) = lost.wait_for(Option::is_some), if ends => return,
            () = sleep(Duration::from_millis(20)) => {
                act();
                let block = orders.block.swap(0, Ordering::SeqCst);
                if block > 0 {
                    std::thread::sleep(Duration::from_millis(block));
                    act();
                }
            }
        }
    }
}

fn ask(what: lead_request::What) -> LeadRequest {
    LeadRequest { what: Some(what) }
}

/// Whether the agent has streams to lead by.
async fn has_streams(client: &Client) -> bool {
    let (sender, receiver) = mpsc::unbounded_channel();
    let hello = Hello {
        candidate: "asks".to_owned(),
        ..Hello::default()
    };
    let _ = sender.send(ask(lead_request::What::Hello(hello)));
    let mut leadership = LeadershipClient::new(client.channel());
    let asked = leadership.lead(UnboundedReceiverStream::new(receiver));
    match asked.await {
        Ok(answer) => answer.into_inner().message().await.is_ok(),
        Err(_) => false,
    }
}

/// Leads by a stream besides, and takes its end for a loss.
async fn follow_stream(client: Arc<Client>, lead: Lead, term: Arc<Term>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let third = lead.term_ms / 3;
    let hello = Hello {
        candidate: lead.candidate.clone(),
        ping_every: i32::try_from(third).unwrap_or(i32::MAX),
    };
    let join = Join {
        kind: lead.kind.clone(),
        election: lead.election.clone(),
        term: i32::try_from(lead.term_ms).unwrap_or(i32::MAX),
        token: term.token,
        ..Join::default()
    };
    let _ = sender.send(ask(lead_request::What::Hello(hello)));
    let _ = sender.send(ask(lead_request::What::Join(join)));
    let mut leadership = LeadershipClient::new(client.channel());
    if let Ok(answer) = leadership
        .lead(UnboundedReceiverStream::new(receiver))
        .await
    {
        let mut stream = answer.into_inner();
        let mut seq = 0;
        loop {
            let message = timeout(Duration::from_millis(third), stream.message()).await;
            match message {
                Err(_) => {
                    seq += 1;
                    let _ = sender.send(ask(lead_request::What::Ping(Ping { seq })));
                }
                Ok(Ok(Some(event))) => match event.what {
                    Some(lead_event::What::Goodbye(_)) => break,
                    Some(lead_event::What::Standing(standing)) if standing.is() == Is::Lost => {
                        break;
                    }
                    _ => {}
                },
                Ok(_) => break,
            }
        }
    }
    term.lose("no_term");
}

async fn observes(client: Arc<Client>, id: u64, kind: String, election: String) {
    let mut last = None;
    let silence = Duration::from_secs(5);
    loop {
        let request = ObserveRequest {
            kind: kind.clone(),
            what: Some(observe_request::What::Election(election.clone())),
            heartbeat: 2_000,
            ..ObserveRequest::default()
        };
        let opened = LeadershipClient::new(client.channel())
            .observe(request)
            .await;
        let Ok(opened) = opened else {
            client.fails();
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let mut stream = opened.into_inner();
        while let Ok(Ok(Some(observed))) = timeout(silence, stream.message()).await {
            match observed.what {
                Some(observation::What::State(state)) => {
                    let held = state.phase() == Phase::Held;
                    let cause = state.cause().as_str_name().to_lowercase();
                    let mut event = Event::new(Name::State, id);
                    event.phase = Some(if held { "held" } else { "vacant" }.to_owned());
                    event.cause = Some(if is(Mutant::ForgetsCauses) {
                        "present".to_owned()
                    } else {
                        cause
                    });
                    event.token = Some(state.token);
                    event.leader = state.leader.filter(|_| held).map(|leader| leader.name);
                    event.send();
                    last = event.token;
                }
                Some(observation::What::Synced(_)) => Event::new(Name::Synced, id).send(),
                Some(observation::What::Certainty(certainty)) => {
                    if is(Mutant::GuessesVacancies) && !certainty.certain {
                        let mut event = Event::new(Name::State, id);
                        event.phase = Some("vacant".to_owned());
                        event.cause = Some("expiry".to_owned());
                        event.token = last;
                        event.send();
                    }
                    if !is(Mutant::AlwaysCertain) {
                        let mut event = Event::new(Name::Certainty, id).because(certainty.reason);
                        event.certain = Some(certainty.certain);
                        event.send();
                    }
                }
                Some(observation::What::Goodbye(_)) => break,
                _ => {}
            }
        }
        client.fails();
    }
}

async fn verifies(client: Arc<Client>, id: u64, kind: String, election: String, token: u64) {
    let request = VerifyTokenRequest {
        election,
        kind,
        token,
    };
    let mut event = Event::new(Name::Verified, id);
    match client.election().verify_token(request).await {
        Ok(answer) => {
            let result = answer.into_inner();
            event.current = Some(result.current || is(Mutant::BelievesTokens));
            if event.current == Some(false) {
                event.reason = Some(result.reason.to_lowercase());
            }
            event.at = now();
        }
        Err(_) => event = Event::new(Name::Error, id).because("not_known"),
    }
    event.send();
}
