//! An open stream.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tonic::{Request, Status, Streaming};

use crate::{
    Code, Deadline, Error,
    clock::Anchor,
    error::listed,
    pool::{Connection, Pool, Route, WaitGuard, describe, unsent},
    proto::{self, lead_event, lead_request::What, leadership_client::LeadershipClient},
};

/// The shortest and the longest time after which another agent is asked for a stream, too.
const OPEN: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(2));
/// The shortest and the longest time in which an agent is to open a stream: one that is slow is better than none.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(4));
/// How many pings are remembered, for standings that name them.
const PINGS: usize = 64;

/// A stream that an agent has welcomed.
pub(super) struct Session {
    requests: mpsc::UnboundedSender<proto::LeadRequest>,
    pub(super) events: Streaming<proto::LeadEvent>,
    pub(super) route: Route,
    pub(super) connection: Connection,
    _wait: WaitGuard,
    /// When messages that times count from were sent: Hello and pings.
    hello: Sent,
    pings: VecDeque<(u64, Sent)>,
    last_ping: u64,
    last_pong: u64,
    /// How long the agent took to answer last.
    answers_in: Duration,
}

/// When a message was sent, noted before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) at: Deadline,
    pub(super) anchor: Anchor,
    /// For time-outs.
    pub(super) instant: Instant,
}

impl Sent {
    fn now() -> Self {
        Self {
            at: Deadline::now(),
            anchor: Anchor::new(),
            instant: Instant::now(),
        }
    }
}

/// Why there is no stream.
#[derive(Debug)]
pub(super) enum NotOpen {
    /// Older agents have none.
    NotOffered,
    /// The application does not report that it is alive: why.
    NotAlive(&'static str),
    Refused(String),
    Failed {
        error: Error,
        /// An agent has sent nothing in all the time it had.
        silent: bool,
    },
}

impl Session {
    /// Opens a stream at the agent that answers first. `leads`: a term runs meanwhile, which may have to be extended by
    /// calls.
    pub(super) async fn open(
        pool: Arc<Pool>,
        candidate: String,
        ping_every: Duration,
        leads: bool,
    ) -> Result<Self, NotOpen> {
        let (routes, mut tried) = pool.routes().await;
        let mut routes = routes.into_iter();
        let next = (ping_every / 2).clamp(OPEN.0, OPEN.1);
        let within = if leads { ping_every } else { 2 * ping_every };
        let within = within.clamp(PATIENCE.0, PATIENCE.1);
        let begin = |route| Self::open_at(&pool, route, &candidate, ping_every, within);
        let mut attempts = FuturesUnordered::new();
        let mut reached = false;
        let mut silent = false;
        let mut older = false;
        attempts.extend(routes.next().map(begin));
        while !attempts.is_empty() {
            let ended = tokio::select! {
                biased;
                ended = attempts.next() => ended,
                () = sleep(next), if routes.len() > 0 || older => None,
            };
            match ended {
                // Calls to the older one do rather than to wait for those that keep silent.
                None if routes.len() == 0 => break,
                None => {}
                Some(Ok(session)) => {
                    pool.prefer(session.route);
                    return Ok(session);
                }
                Some(Err((route, connection, status))) => {
                    match Code::of(status.code()) {
                        // Another of the agents may be newer.
                        Some(Code::Unimplemented) => older = true,
                        Some(_) => return Err(NotOpen::Refused(describe(&status))),
                        None => {
                            pool.discard(&connection);
                            let unsent = unsent(&status);
                            reached |= unsent.is_none();
                            silent |= status.code() == tonic::Code::DeadlineExceeded;
                            tried.push((
                                pool.label(route),
                                unsent.unwrap_or_else(|| describe(&status)),
                            ));
                        }
                    }
                }
            }
            attempts.extend(routes.next().map(begin));
        }
        if older {
            return Err(NotOpen::NotOffered);
        }
        pool.forget_addresses();
        let error = if reached {
            Error::NotKnown {
                reason: listed(&tried),
            }
        } else {
            Error::Unreachable { endpoints: tried }
        };
        Err(NotOpen::Failed { error, silent })
    }

    async fn open_at(
        pool: &Arc<Pool>,
        route: Route,
        candidate: &str,
        ping_every: Duration,
        within: Duration,
    ) -> Result<Self, (Route, Connection, Status)> {
        let (lane, wait) = pool.wait_lane();
        let connection = pool.connection(route, lane);
        let (requests, messages) = mpsc::unbounded_channel();
        let opening = async {
            let mut request = Request::new(Messages(messages));
            pool.dress(request.metadata_mut())
                .await
                .map_err(Status::unavailable)?;
            let hello = Sent::now();
            let message = What::Hello(proto::Hello {
                candidate: candidate.to_owned(),
                ping_every: i32::try_from(ping_every.as_millis()).unwrap_or(0),
            });
            // Some agents reply only after Hello.
            let _ = requests.send(proto::LeadRequest {
                what: Some(message),
            });
            let mut client = LeadershipClient::new(connection.channel.clone());
            let mut events = client.lead(request).await?.into_inner();
            match events.message().await?.and_then(|event| event.what) {
                Some(lead_event::What::Welcome(_)) => Ok((hello, events)),
                Some(lead_event::What::Goodbye(goodbye)) => {
                    Err(Status::unavailable(format!("goodbye: {}", goodbye.reason)))
                }
                _ => Err(Status::unavailable("the agent did not welcome the stream")),
            }
        };
        let opened = timeout(within, opening).await;
        match opened.unwrap_or_else(|_| {
            Err(Status::deadline_exceeded(format!(
                "no stream within {within:?}"
            )))
        }) {
            Ok((hello, events)) => Ok(Self {
                requests,
                events,
                route,
                connection,
                _wait: wait,
                answers_in: hello.instant.elapsed(),
                hello,
                pings: VecDeque::new(),
                last_ping: 0,
                last_pong: 0,
            }),
            Err(status) => Err((route, connection, status)),
        }
    }

    pub(super) fn send(&self, what: What) {
        // Fails when the stream has ended, which its events report.
        let _ = self.requests.send(proto::LeadRequest { what: Some(what) });
    }

    pub(super) fn ping(&mut self) {
        self.last_ping += 1;
        if self.pings.len() == PINGS {
            self.pings.pop_front();
        }
        // Before it is sent: what is granted counts from here.
        self.pings.push_back((self.last_ping, Sent::now()));
        self.send(What::Ping(proto::Ping {
            seq: self.last_ping,
        }));
    }

    /// When a ping was sent. One that is not remembered counts as sent with Hello, which was earlier.
    pub(super) fn sent(&self, ping: u64) -> Sent {
        let found = self.pings.iter().find(|(seq, _)| *seq == ping);
        found.map_or(self.hello, |(_, sent)| *sent)
    }

    pub(super) fn answered(&mut self, ping: u64) {
        self.last_pong = self.last_pong.max(ping);
        self.answers_in = self.sent(ping).instant.elapsed();
    }

    /// How long the agent took to answer last.
    pub(super) fn answers_in(&self) -> Duration {
        self.answers_in
    }

    /// Whether a ping is unanswered for clearly longer than the agent took to answer last.
    pub(super) fn is_late(&self) -> bool {
        let usual = self.answers_in + self.answers_in / 4;
        self.silent_since()
            .is_some_and(|since| since.elapsed() > usual)
    }

    /// When the first ping was sent that is not answered.
    pub(super) fn silent_since(&self) -> Option<Instant> {
        let first = self.pings.iter().find(|(seq, _)| *seq > self.last_pong);
        first.map(|(_, sent)| sent.instant)
    }
}

/// The messages to an agent.
struct Messages(mpsc::UnboundedReceiver<proto::LeadRequest>);

impl Stream for Messages {
    type Item = proto::LeadRequest;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context)
    }
}
