//! A gRPC server that passes everything on to an agent, and keeps a record of it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use election_proto::{
    BoolValue, CampaignRequest, CampaignResult, ExtendElectedTermRequest, GetElectionRequest,
    GetLeaderRequest, LeadEvent, LeadRequest, Observation, ObserveRequest, ResignRequest, State,
    StringValue, VerifyTokenRequest, VerifyTokenResult,
    election_client::ElectionClient,
    election_server::{Election, ElectionServer},
    lead_event, lead_request,
    leadership_client::LeadershipClient,
    leadership_server::{Leadership, LeadershipServer},
    standing::Is,
};
use futures_util::{StreamExt as _, future::ready};
use parking_lot::Mutex;
use tokio::{net::TcpListener, sync::mpsc, task::AbortHandle};
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{
    Request, Response, Status, Streaming,
    codegen::BoxStream,
    transport::{Channel, Endpoint, Server},
};

use crate::{
    protocol::now,
    record::{Book, Call, Promise, What},
};

/// What the forwarder does besides.
#[derive(Debug, Default)]
struct Faults {
    /// How much later than the agent it answers, in ms.
    delay: AtomicU64,
    /// How many answers that grant a leadership are still to be lost.
    lose_grants: AtomicU32,
    /// It answers as an agent without streams to lead by.
    no_streams: AtomicBool,
    /// It refuses extensions.
    refuse_extensions: AtomicBool,
}

impl Faults {
    async fn delay(&self) {
        let delay = self.delay.load(Ordering::SeqCst);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
    }

    fn loses_grant(&self) -> bool {
        self.lose_grants
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            })
            .is_ok()
    }
}

/// A running forwarder.
#[derive(Debug)]
pub struct Forwarder {
    address: SocketAddr,
    faults: Arc<Faults>,
    serving: AbortHandle,
}

impl Forwarder {
    /// Passes on to the agent at this address, which the record calls by this number.
    ///
    /// # Panics
    ///
    /// If the machine has no port for it.
    pub async fn to(agent: SocketAddr, number: usize, book: Book) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let channel = Endpoint::from_shared(format!("http://{agent}"))
            .expect("an address")
            .connect_lazy();
        let faults = Arc::new(Faults::default());
        let service = Service {
            channel,
            number,
            book,
            faults: Arc::clone(&faults),
        };
        let serving = tokio::spawn(async move {
            Server::builder()
                .add_service(ElectionServer::new(service.clone()))
                .add_service(LeadershipServer::new(service))
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
        })
        .abort_handle();
        Self {
            address,
            faults,
            serving,
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers later by so many ms.
    pub fn delay(&self, ms: u64) {
        self.faults.delay.store(ms, Ordering::SeqCst);
    }

    /// The next answer that grants a leadership is lost: the client is told UNAVAILABLE.
    pub fn lose_next_grant(&self) {
        self.faults.lose_grants.fetch_add(1, Ordering::SeqCst);
    }

    /// Answers UNIMPLEMENTED to streams to lead by, as an agent of an older version does.
    pub fn offer_no_streams(&self) {
        self.faults.no_streams.store(true, Ordering::SeqCst);
    }

    /// Refuses extensions with PERMISSION_DENIED. Those of a stream pass: use it with
    /// [`offer_no_streams`](Self::offer_no_streams).
    pub fn refuse_extensions(&self) {
        self.faults.refuse_extensions.store(true, Ordering::SeqCst);
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

#[derive(Clone)]
struct Service {
    channel: Channel,
    number: usize,
    book: Book,
    faults: Arc<Faults>,
}

impl Service {
    fn election(&self) -> ElectionClient<Channel> {
        ElectionClient::new(self.channel.clone())
    }

    fn leadership(&self) -> LeadershipClient<Channel> {
        LeadershipClient::new(self.channel.clone())
    }

    fn called(&self, call: Call) {
        self.book.write(|record| record.calls.push(call));
    }
}

fn promised(book: &Book, candidate: &str, token: u64, asked: u64, valid_for: i32) {
    let valid_for = u64::try_from(valid_for).unwrap_or(0);
    if valid_for > 0 {
        let promise = Promise {
            at: now(),
            candidate: candidate.to_owned(),
            token,
            until: asked + valid_for * 1_000_000,
        };
        book.write(|record| record.promises.push(promise));
    }
}

#[tonic::async_trait]
impl Election for Service {
    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResult>, Status> {
        let at = now();
        let asked = request.get_ref();
        let candidate = asked.candidate.clone();
        self.called(Call {
            at,
            what: What::Campaign,
            candidate: candidate.clone(),
            election: asked.election.clone(),
            token: 0,
            request_id: asked.request_id.clone(),
            agent: self.number,
        });
        let answer = self.election().campaign(request).await?;
        let result = answer.get_ref();
        if result.elected {
            promised(&self.book, &candidate, result.token, at, result.valid_for);
            if self.faults.loses_grant() {
                return Err(Status::unavailable("the answer is lost"));
            }
        }
        self.faults.delay().await;
        Ok(answer)
    }

    async fn extend_elected_term(
        &self,
        request: Request<ExtendElectedTermRequest>,
    ) -> Result<Response<BoolValue>, Status> {
        let at = now();
        let asked = request.get_ref();
        let (token, candidate) = (asked.token, asked.leader.clone());
        self.called(Call {
            at,
            what: What::Extend,
            candidate: candidate.clone(),
            election: asked.election.clone(),
            token,
            request_id: String::new(),
            agent: self.number,
        });
        if self.faults.refuse_extensions.load(Ordering::SeqCst) {
            return Err(Status::permission_denied("not any more"));
        }
        let answer = self.election().extend_elected_term(request).await?;
        let result = answer.get_ref();
        if result.value {
            promised(&self.book, &candidate, token, at, result.valid_for);
        }
        self.faults.delay().await;
        Ok(answer)
    }

    async fn resign(&self, request: Request<ResignRequest>) -> Result<Response<BoolValue>, Status> {
        let asked = request.get_ref();
        self.called(Call {
            at: now(),
            what: What::Resign,
            candidate: asked.leader.clone(),
            election: asked.election.clone(),
            token: asked.token,
            request_id: String::new(),
            agent: self.number,
        });
        let answer = self.election().resign(request).await?;
        self.faults.delay().await;
        Ok(answer)
    }

    async fn get_leader(
        &self,
        request: Request<GetLeaderRequest>,
    ) -> Result<Response<StringValue>, Status> {
        self.election().get_leader(request).await
    }

    async fn get_election(
        &self,
        request: Request<GetElectionRequest>,
    ) -> Result<Response<State>, Status> {
        self.election().get_election(request).await
    }

    async fn verify_token(
        &self,
        request: Request<VerifyTokenRequest>,
    ) -> Result<Response<VerifyTokenResult>, Status> {
        self.election().verify_token(request).await
    }
}

/// What is known of a stream to lead by.
#[derive(Default)]
struct Leading {
    candidate: String,
    /// When pings were received; 0 is Hello.
    pings: HashMap<u64, u64>,
    /// Of each election that is led: its token, for how many ms pings extend it, and after which ping.
    led: HashMap<(String, String), (u64, i32, u64)>,
    /// The tokens that were joined with: the client knew them before.
    known: Vec<u64>,
}

#[tonic::async_trait]
impl Leadership for Service {
    async fn observe(
        &self,
        request: Request<ObserveRequest>,
    ) -> Result<Response<BoxStream<Observation>>, Status> {
        let answer = self.leadership().observe(request).await?;
        Ok(answer.map(|stream| -> BoxStream<Observation> { Box::pin(stream) }))
    }

    async fn lead(
        &self,
        request: Request<Streaming<LeadRequest>>,
    ) -> Result<Response<BoxStream<LeadEvent>>, Status> {
        if self.faults.no_streams.load(Ordering::SeqCst) {
            return Err(Status::unimplemented("no streams to lead by"));
        }
        let stream = Arc::new(Mutex::new(Leading::default()));
        let (book, number) = (self.book.clone(), self.number);
        let asks = Arc::clone(&stream);
        // What has gone wrong with the client's half ends the agent's: that is what the agent would have seen.
        let asked = request
            .into_inner()
            .map(Result::ok)
            .take_while(|message| ready(message.is_some()))
            .filter_map(ready)
            .inspect(move |message| {
                asks.lock().asked(message, &book, number);
            });
        let mut answers = self.leadership().lead(asked).await?.into_inner();
        let (sender, passed) = mpsc::unbounded_channel();
        let service = self.clone();
        tokio::spawn(async move {
            loop {
                let answer = tokio::select! {
                    answer = answers.next() => answer,
                    () = sender.closed() => return,
                };
                let Some(answer) = answer else { return };
                if let Ok(answer) = &answer {
                    let granted = stream.lock().answered(answer, &service.book);
                    if granted && service.faults.loses_grant() {
                        let _ = sender.send(Err(Status::unavailable("the answer is lost")));
                        return;
                    }
                }
                service.faults.delay().await;
                if sender.send(answer).is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(
            passed,
        ))))
    }
}

/// The kind as agents answer it.
fn kind(kind: &str) -> String {
    if kind.is_empty() { "default" } else { kind }.to_owned()
}

impl Leading {
    fn asked(&mut self, message: &LeadRequest, book: &Book, agent: usize) {
        use lead_request::What as Asked;
        let at = now();
        let mut call = Call {
            at,
            what: What::Ping,
            candidate: self.candidate.clone(),
            election: String::new(),
            token: 0,
            request_id: String::new(),
            agent,
        };
        match &message.what {
            Some(Asked::Hello(hello)) => {
                self.candidate.clone_from(&hello.candidate);
                self.pings.insert(0, at);
                return;
            }
            Some(Asked::Join(join)) => {
                call.what = if join.token == 0 {
                    What::Campaign
                } else {
                    What::Extend
                };
                call.election.clone_from(&join.election);
                call.token = join.token;
                call.request_id.clone_from(&join.request_id);
                if join.token > 0 {
                    self.known.push(join.token);
                }
            }
            Some(Asked::Ping(ping)) => {
                self.pings.insert(ping.seq, at);
                if self.led.is_empty() {
                    // It extends nothing.
                    return;
                }
            }
            Some(Asked::Leave(leave)) => {
                let name = (kind(&leave.kind), leave.election.clone());
                let led = self.led.remove(&name);
                if leave.token == 0 && led.is_none() {
                    // It waits no more.
                    return;
                }
                call.what = What::Resign;
                call.election.clone_from(&leave.election);
                call.token = if leave.token > 0 {
                    leave.token
                } else {
                    led.map_or(0, |(token, ..)| token)
                };
            }
            None => return,
        }
        book.write(|record| record.calls.push(call));
    }

    /// Whether the answer grants a leadership.
    fn answered(&mut self, message: &LeadEvent, book: &Book) -> bool {
        use lead_event::What as Told;
        match &message.what {
            Some(Told::Standing(standing)) => self.stands(standing, book),
            Some(Told::Pong(pong)) => {
                if let Some(asked) = self.pings.get(&pong.seq) {
                    for ((kind, election), (token, valid_for, after)) in &self.led {
                        let listed = pong.standings.iter().any(|standing| {
                            standing.kind == *kind && standing.election == *election
                        });
                        if pong.seq > *after && !listed {
                            promised(book, &self.candidate, *token, *asked, *valid_for);
                        }
                    }
                }
                let mut granted = false;
                for standing in &pong.standings {
                    granted |= self.stands(standing, book);
                }
                granted
            }
            _ => false,
        }
    }

    fn stands(&mut self, standing: &election_proto::Standing, book: &Book) -> bool {
        let name = (kind(&standing.kind), standing.election.clone());
        match standing.is() {
            Is::Leading => {
                if let Some(asked) = self.pings.get(&standing.of_ping) {
                    promised(
                        book,
                        &self.candidate,
                        standing.token,
                        *asked,
                        standing.valid_for,
                    );
                }
                let extends = (standing.token, standing.ping_valid_for, standing.of_ping);
                self.led.insert(name, extends);
                let new = !self.known.contains(&standing.token);
                self.known.push(standing.token);
                new
            }
            Is::Lost | Is::Resigned | Is::Jeopardy => {
                self.led.remove(&name);
                false
            }
            _ => false,
        }
    }
}
