//! An agent that does what a test tells it, and remembers what it was asked.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use election_agent_client::Deadline;
use election_proto::{
    BoolValue, CampaignRequest, CampaignResult, ExtendElectedTermRequest, GetElectionRequest,
    Goodbye, LeadEvent, LeadRequest, Observation, ObserveRequest, Pong, ResignRequest, Standing,
    State, Welcome,
    election_server::{Election, ElectionServer},
    lead_event, lead_request,
    leadership_server::{Leadership, LeadershipServer},
    standing::Is,
};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc},
    task::JoinHandle,
};
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming, codegen::BoxStream, metadata::MetadataMap};

use crate::support::{Log, soon};

/// The term of the tests, in ms, and for how long it is good.
pub(crate) const TERM: Duration = Duration::from_millis(1_500);
pub(crate) const VALID_FOR: i32 = 1_450;

/// What the agent was asked, and when.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) at: Deadline,
    pub(crate) what: What,
    pub(crate) metadata: MetadataMap,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    Campaign(CampaignRequest),
    Extend(ExtendElectedTermRequest),
    Resign(ResignRequest),
    State(GetElectionRequest),
}

type Answers<T> = Arc<Mutex<Box<dyn FnMut(usize) -> (Duration, Result<T, Status>) + Send>>>;

/// How an agent answers: to the first, second, third ... call of the kind, after a while.
fn answers<T>(
    answer: impl FnMut(usize) -> (Duration, Result<T, Status>) + Send + 'static,
) -> Answers<T> {
    Arc::new(Mutex::new(Box::new(answer)))
}

pub(crate) fn elected() -> Result<CampaignResult, Status> {
    Ok(CampaignResult {
        elected: true,
        leader: "me".into(),
        kind: "default".into(),
        token: 7,
        valid_for: VALID_FOR,
        ..CampaignResult::default()
    })
}

pub(crate) fn held() -> Result<CampaignResult, Status> {
    Ok(CampaignResult {
        elected: false,
        leader: "other".into(),
        kind: "default".into(),
        token: 6,
        ..CampaignResult::default()
    })
}

pub(crate) fn yes() -> Result<BoolValue, Status> {
    Ok(BoolValue {
        value: true,
        reason: String::new(),
        valid_for: VALID_FOR,
    })
}

pub(crate) fn no(reason: &str) -> Result<BoolValue, Status> {
    Ok(BoolValue {
        value: false,
        reason: reason.into(),
        valid_for: 0,
    })
}

/// The agent.
pub(crate) struct Fake {
    pub(crate) address: String,
    pub(crate) asked: Log<Asked>,
    changed: Arc<Notify>,
    streams: mpsc::UnboundedReceiver<Lead>,
    observers: mpsc::UnboundedReceiver<Observer>,
    server: JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The answers of an agent.
#[derive(Clone)]
pub(crate) struct Script {
    campaign: Answers<CampaignResult>,
    extend: Answers<BoolValue>,
    resign: Answers<BoolValue>,
    state: Answers<State>,
    streams: bool,
    older: bool,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            campaign: answers(|_| (Duration::ZERO, elected())),
            extend: answers(|_| (Duration::ZERO, yes())),
            resign: answers(|_| (Duration::ZERO, yes())),
            state: answers(|_| (Duration::ZERO, Err(Status::unavailable("no quorum")))),
            streams: false,
            older: false,
        }
    }
}

impl Script {
    pub(crate) fn campaign(
        mut self,
        answer: impl FnMut(usize) -> (Duration, Result<CampaignResult, Status>) + Send + 'static,
    ) -> Self {
        self.campaign = answers(answer);
        self
    }

    pub(crate) fn extend(
        mut self,
        answer: impl FnMut(usize) -> (Duration, Result<BoolValue, Status>) + Send + 'static,
    ) -> Self {
        self.extend = answers(answer);
        self
    }

    pub(crate) fn resign(
        mut self,
        answer: impl FnMut(usize) -> (Duration, Result<BoolValue, Status>) + Send + 'static,
    ) -> Self {
        self.resign = answers(answer);
        self
    }

    pub(crate) fn state(
        mut self,
        answer: impl FnMut(usize) -> (Duration, Result<State, Status>) + Send + 'static,
    ) -> Self {
        self.state = answers(answer);
        self
    }

    pub(crate) fn streams(mut self) -> Self {
        self.streams = true;
        self
    }

    /// As an agent answers that knows of campaigns, extensions and resignations only.
    pub(crate) fn older(mut self) -> Self {
        self.older = true;
        self.state(|_| (Duration::ZERO, Err(Status::unimplemented("not known"))))
    }

    pub(crate) async fn start(self) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let (sender, streams) = mpsc::unbounded_channel();
        let (observing, observers) = mpsc::unbounded_channel();
        let changed = Arc::new(Notify::new());
        let handler = Handler {
            script: self,
            asked: Log::new(),
            changed: Arc::clone(&changed),
            streams: sender,
            observers: observing,
        };
        let asked = handler.asked.clone();
        let server = tonic::transport::Server::builder()
            .add_service(ElectionServer::new(handler.clone()))
            .add_service(LeadershipServer::new(handler))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(async move { server.await.expect("serves") });
        Fake {
            address,
            asked,
            changed,
            streams,
            observers,
            server,
        }
    }
}

impl Fake {
    /// Waits until there are so many calls of a kind, and returns them.
    pub(crate) async fn calls<T>(
        &self,
        number: usize,
        kind: impl Fn(&What) -> Option<T>,
    ) -> Vec<(Deadline, T)> {
        soon("calls", async {
            loop {
                let changed = self.changed.notified();
                let calls = self.asked.all();
                let calls: Vec<_> = calls
                    .iter()
                    .filter_map(|asked| Some((asked.at, kind(&asked.what)?)))
                    .collect();
                if calls.len() >= number {
                    return calls;
                }
                changed.await;
            }
        })
        .await
    }

    /// The next stream to lead by, after Hello and Welcome.
    pub(crate) async fn stream(&mut self) -> Lead {
        let lead = self.stream_before_welcome().await;
        lead.welcome();
        lead
    }

    /// The next stream to lead by, after Hello.
    pub(crate) async fn stream_before_welcome(&mut self) -> Lead {
        let mut lead = soon("a stream", self.streams.recv()).await.expect("serves");
        let lead_request::What::Hello(hello) = lead.next().await else {
            panic!("Hello first");
        };
        lead.hello = Some((Deadline::now(), hello));
        lead
    }

    /// The next observer.
    pub(crate) async fn observer(&mut self) -> Observer {
        soon("an observer", self.observers.recv())
            .await
            .expect("serves")
    }

    /// Whether a stream is opened in this time.
    pub(crate) async fn opens_stream_within(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.streams.recv())
            .await
            .is_ok()
    }
}

pub(crate) fn campaigns(what: &What) -> Option<CampaignRequest> {
    match what {
        What::Campaign(request) => Some(request.clone()),
        _ => None,
    }
}

pub(crate) fn extensions(what: &What) -> Option<ExtendElectedTermRequest> {
    match what {
        What::Extend(request) => Some(request.clone()),
        _ => None,
    }
}

pub(crate) fn questions(what: &What) -> Option<GetElectionRequest> {
    match what {
        What::State(request) => Some(request.clone()),
        _ => None,
    }
}

pub(crate) fn resignations(what: &What) -> Option<ResignRequest> {
    match what {
        What::Resign(request) => Some(request.clone()),
        _ => None,
    }
}

/// A stream to lead by, from the agent's side.
#[derive(Debug)]
pub(crate) struct Lead {
    requests: Streaming<LeadRequest>,
    events: mpsc::UnboundedSender<Result<LeadEvent, Status>>,
    pub(crate) hello: Option<(Deadline, election_proto::Hello)>,
}

impl Lead {
    /// The next message.
    pub(crate) async fn next(&mut self) -> lead_request::What {
        self.next_or_end().await.expect("goes on")
    }

    /// The next message, or `None` at the end of the stream.
    pub(crate) async fn next_or_end(&mut self) -> Option<lead_request::What> {
        let message = soon("a message", self.requests.message()).await;
        Some(message.ok()??.what.expect("says something"))
    }

    /// The next Join, whatever is pinged before it.
    pub(crate) async fn join(&mut self) -> election_proto::Join {
        loop {
            match self.next().await {
                lead_request::What::Join(join) => return join,
                lead_request::What::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The next Ping: when it was received, and which one it is.
    pub(crate) async fn ping(&mut self) -> (Deadline, u64) {
        match self.next().await {
            lead_request::What::Ping(ping) => (Deadline::now(), ping.seq),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn say(&self, what: lead_event::What) {
        // The client may have gone.
        let _ = self.events.send(Ok(LeadEvent { what: Some(what) }));
    }

    pub(crate) fn welcome(&self) {
        self.say(lead_event::What::Welcome(Welcome {
            agent: "fake".into(),
            ping_every: 0,
        }));
    }

    pub(crate) fn stand(&self, standing: Standing) {
        self.say(lead_event::What::Standing(standing));
    }

    pub(crate) fn pong(&self, seq: u64, standings: Vec<Standing>) {
        self.say(lead_event::What::Pong(Pong { seq, standings }));
    }

    pub(crate) fn goodbye(&self) {
        self.say(lead_event::What::Goodbye(Goodbye {
            reason: "AGE".into(),
            reconnect_after: 10,
        }));
    }

    pub(crate) fn fail(&self, status: Status) {
        let _ = self.events.send(Err(status));
    }
}

/// Where the caller stands in an election of the kind `default`.
pub(crate) fn standing(election: &str, is: Is) -> Standing {
    Standing {
        kind: "default".into(),
        election: election.into(),
        is: is.into(),
        token: 7,
        ..Standing::default()
    }
}

/// The caller leads, counted from a ping.
pub(crate) fn leads(election: &str, of_ping: u64) -> Standing {
    Standing {
        valid_for: VALID_FOR,
        ping_valid_for: VALID_FOR,
        of_ping,
        ..standing(election, Is::Leading)
    }
}

#[derive(Clone)]
struct Handler {
    script: Script,
    asked: Log<Asked>,
    changed: Arc<Notify>,
    streams: mpsc::UnboundedSender<Lead>,
    observers: mpsc::UnboundedSender<Observer>,
}

/// What an agent says to an observer.
pub(crate) type Observer = mpsc::UnboundedSender<Result<Observation, Status>>;

impl Handler {
    async fn answer<Q, T>(
        &self,
        request: Request<Q>,
        what: impl Fn(Q) -> What,
        is: impl Fn(&What) -> bool,
        answers: &Answers<T>,
    ) -> Result<Response<T>, Status> {
        let at = Deadline::now();
        let metadata = request.metadata().clone();
        let what = what(request.into_inner());
        let number = self
            .asked
            .all()
            .iter()
            .filter(|asked| is(&asked.what))
            .count();
        self.asked.push(Asked { at, what, metadata });
        self.changed.notify_waiters();
        let (after, answer) = answers.lock().unwrap()(number);
        tokio::time::sleep(after).await;
        answer.map(Response::new)
    }
}

#[tonic::async_trait]
impl Election for Handler {
    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResult>, Status> {
        let is = |what: &What| matches!(what, What::Campaign(_));
        self.answer(request, What::Campaign, is, &self.script.campaign)
            .await
    }

    async fn extend_elected_term(
        &self,
        request: Request<ExtendElectedTermRequest>,
    ) -> Result<Response<BoolValue>, Status> {
        let is = |what: &What| matches!(what, What::Extend(_));
        self.answer(request, What::Extend, is, &self.script.extend)
            .await
    }

    async fn resign(&self, request: Request<ResignRequest>) -> Result<Response<BoolValue>, Status> {
        let is = |what: &What| matches!(what, What::Resign(_));
        self.answer(request, What::Resign, is, &self.script.resign)
            .await
    }

    async fn get_election(
        &self,
        request: Request<GetElectionRequest>,
    ) -> Result<Response<State>, Status> {
        let is = |what: &What| matches!(what, What::State(_));
        self.answer(request, What::State, is, &self.script.state)
            .await
    }
}

#[tonic::async_trait]
impl Leadership for Handler {
    async fn observe(
        &self,
        _request: Request<ObserveRequest>,
    ) -> Result<Response<BoxStream<Observation>>, Status> {
        if self.script.older {
            return Err(Status::unimplemented("not known"));
        }
        let (events, receiver) = mpsc::unbounded_channel();
        self.observers
            .send(events)
            .map_err(|_| Status::unavailable("the test has ended"))?;
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(
            receiver,
        ))))
    }

    async fn lead(
        &self,
        request: Request<Streaming<LeadRequest>>,
    ) -> Result<Response<BoxStream<LeadEvent>>, Status> {
        if !self.script.streams {
            return Err(Status::unimplemented("no streams"));
        }
        let (events, receiver) = mpsc::unbounded_channel();
        let lead = Lead {
            requests: request.into_inner(),
            events,
            hello: None,
        };
        self.streams
            .send(lead)
            .map_err(|_| Status::unavailable("the test has ended"))?;
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(
            receiver,
        ))))
    }
}
