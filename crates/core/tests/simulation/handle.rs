//! An agent's handle to a [server](crate::server): the network between them, and what the agent has learned
//! from its probes.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
/// The purpose of a call.
pub(crate) use election_core::lease::quorum::observer::Operation as To;
use election_core::{
    lease::{
        Bounds, Extend, ExtendReply, Grant, GrantReply, Incarnation, Kinds, LeaseNode, Listener,
        NodeError, Page, Probe, ProbeRequest, Reading, Repair, Resign, ResignReply, Unrecorded,
        embedded::Embedded,
    },
    types::{ElectionId, Kind},
};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

use crate::{hints::Post, lists::Told, server::Server};

/// The planned fate of a call.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fate {
    /// It succeeds without delay.
    Quick,
    /// The server does not receive it.
    Lost,
    /// The server executes it, and the reply is lost.
    Unanswered,
    /// The request and its reply take this long.
    Late(Duration, Duration),
    /// The server receives a copy after this delay.
    Copied(Duration),
    /// The server receives a copy after this delay, and no reply arrives.
    CopiedUnanswered(Duration),
}

/// An agent's handle to a server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Handle(Arc<Inner>);

struct Inner {
    server: Server,
    /// The agent's vote lifetime.
    vote: Duration,
    /// The list of nodes with which the agent uses the server.
    list: Option<String>,
    /// Whether the node has a clock of its own, as servers do. A node in the agent's process has none.
    own_clock: bool,
    /// Whether the agent is dead, or the network between them is cut.
    is_cut: AtomicBool,
    /// When the last answered probe was sent, and the reading of the server's clock.
    sample: Mutex<Option<(Instant, Instant)>>,
    incarnation: Mutex<Option<Incarnation>>,
    plans: Mutex<Vec<(To, Fate)>>,
}

impl Handle {
    pub(crate) fn new(
        server: &Server,
        vote: Duration,
        list: Option<&str>,
        own_clock: bool,
    ) -> Self {
        Self(Arc::new(Inner {
            server: server.clone(),
            vote,
            list: list.map(str::to_owned),
            own_clock,
            is_cut: AtomicBool::new(false),
            sample: Mutex::default(),
            incarnation: Mutex::default(),
            plans: Mutex::default(),
        }))
    }

    /// Cuts or restores the network between the agent and the server.
    pub(crate) fn cut(&self, cut: bool) {
        self.0.is_cut.store(cut, Ordering::Relaxed);
    }

    /// Plans the fate of the next call for this purpose. Several plans apply in their order.
    pub(crate) fn plan(&self, to: To, fate: Fate) {
        self.0.plans.lock().expect("not poisoned").push((to, fate));
    }

    fn planned(&self, to: To) -> Option<Fate> {
        let mut plans = self.0.plans.lock().expect("not poisoned");
        let next = plans.iter().position(|(planned, _)| *planned == to)?;
        Some(plans.remove(next).1)
    }

    fn is_cut(&self) -> bool {
        self.0.is_cut.load(Ordering::Relaxed)
    }

    /// The copies of a message: the transit time of each, and of its reply. `None` if it is lost.
    fn copies(&self, to: To) -> Vec<(Option<Duration>, Option<Duration>)> {
        let server = &self.0.server;
        let quick = Duration::from_micros(100);
        match self.planned(to) {
            Some(Fate::Quick) => vec![(Some(quick), Some(quick))],
            Some(Fate::Lost) => Vec::new(),
            Some(Fate::Unanswered) => vec![(Some(quick), None)],
            Some(Fate::Late(there, back)) => vec![(Some(there), Some(back))],
            Some(Fate::Copied(later)) => vec![(Some(quick), Some(quick)), (Some(later), None)],
            Some(Fate::CopiedUnanswered(later)) => vec![(Some(quick), None), (Some(later), None)],
            None => {
                let copies = if server.chance(|faults| faults.doubled) {
                    2
                } else {
                    1
                };
                let way = || {
                    let lost = server.chance(|faults| faults.lost);
                    (!lost).then(|| server.transit())
                };
                (0..copies).map(|_| (way(), way())).collect()
            }
        }
    }

    /// Sends a request over the network. Like a command that was written to a socket, it is executed even if
    /// the sender stops waiting for the reply.
    async fn call<T: Send + 'static, F>(
        &self,
        to: To,
        operation: impl Fn(Arc<Embedded>) -> F + Send + Sync + 'static,
    ) -> Result<T, NodeError>
    where
        F: Future<Output = Result<T, NodeError>> + Send,
    {
        let (answer, answered) = oneshot::channel();
        let handle = self.clone();
        tokio::spawn(async move {
            let server = &handle.0.server;
            let copies = match handle.is_cut() {
                true => Vec::new(),
                false => handle.copies(to),
            };
            let mut answer = Some(answer);
            let began = Instant::now();
            for (there, back) in copies {
                let Some(there) = there else { continue };
                sleep((began + there).saturating_duration_since(Instant::now())).await;
                server.not_paused().await;
                let reply = operation(server.memory()).await;
                let Some(back) = back else { continue };
                sleep(back).await;
                if handle.is_cut() {
                    continue;
                }
                if let Some(answer) = answer.take() {
                    // The sender may have stopped waiting.
                    let _ = answer.send(reply);
                }
            }
            // A broken connection is detected after a while.
            if let Some(answer) = answer {
                let _ = answer.send(Err(server.broken().await));
            }
        });
        answered
            .await
            .unwrap_or_else(|_| Err(NodeError::unknown("the run is over")))
    }

    /// Converts an instant to the server's clock. The result may be earlier by the duration of the probe.
    /// [`None`] before the first probe.
    fn by_its_clock(&self, instant: Instant) -> Option<Instant> {
        if !self.0.own_clock {
            let left = instant.saturating_duration_since(Instant::now());
            return Some(self.0.server.now() + left);
        }
        let (asked, clock) = (*self.0.sample.lock().expect("not poisoned"))?;
        Some(clock + instant.saturating_duration_since(asked))
    }
}

#[async_trait]
impl LeaseNode for Handle {
    fn name(&self) -> &str {
        self.0.server.name()
    }

    async fn grant(&self, grant: &Grant) -> Result<GrantReply, NodeError> {
        let Some(not_after) = self.by_its_clock(grant.not_after) else {
            return Ok(GrantReply::Unregistered);
        };
        let grant = Arc::new(Grant {
            not_after,
            ..grant.clone()
        });
        self.call(To::Grant, move |node| {
            let grant = Arc::clone(&grant);
            async move { node.grant(&grant).await }
        })
        .await
    }

    async fn extend(&self, extend: &Extend) -> Result<ExtendReply, NodeError> {
        let extend = Arc::new(extend.clone());
        self.call(To::Extend, move |node| {
            let extend = Arc::clone(&extend);
            async move { node.extend(&extend).await }
        })
        .await
    }

    async fn repair(&self, repair: &Repair) -> Result<bool, NodeError> {
        let Some(not_after) = self.by_its_clock(repair.not_after) else {
            return Ok(false);
        };
        let repair = Arc::new(Repair {
            not_after,
            ..repair.clone()
        });
        self.call(To::Repair, move |node| {
            let repair = Arc::clone(&repair);
            async move { node.repair(&repair).await }
        })
        .await
    }

    async fn resign(&self, resign: &Resign) -> Result<ResignReply, NodeError> {
        let resign = Arc::new(resign.clone());
        self.call(To::Resign, move |node| {
            let resign = Arc::clone(&resign);
            async move { node.resign(&resign).await }
        })
        .await
    }

    async fn roll_back(&self, grant: &Grant) -> Result<(), NodeError> {
        // By the server's clock, the grant may arrive later than by the local clock, by up to the duration of
        // a probe.
        let left = grant.not_after.saturating_duration_since(Instant::now()) + 2 * self.0.vote;
        let (grant, server) = (Arc::new(grant.clone()), self.0.server.clone());
        self.call(To::RollBack, move |node| {
            let grant = Grant {
                not_after: server.now() + left,
                ..(*grant).clone()
            };
            async move { node.roll_back(&grant).await }
        })
        .await
    }

    async fn read(&self, election: &ElectionId) -> Result<Reading, NodeError> {
        let election = Arc::new(election.clone());
        self.call(To::Read, move |node| {
            let election = Arc::clone(&election);
            async move { node.read(&election).await }
        })
        .await
    }

    async fn list(
        &self,
        kind: Option<&Kind>,
        after: Option<&ElectionId>,
        limit: usize,
    ) -> Result<Page, NodeError> {
        let request = Arc::new((kind.cloned(), after.cloned()));
        self.call(To::List, move |node| {
            let request = Arc::clone(&request);
            async move {
                node.list(request.0.as_ref(), request.1.as_ref(), limit)
                    .await
            }
        })
        .await
    }

    async fn kinds(&self, after: Option<&Kind>, limit: usize) -> Result<Kinds, NodeError> {
        let after = Arc::new(after.cloned());
        self.call(To::Kinds, move |node| {
            let after = Arc::clone(&after);
            async move { node.kinds(Option::as_ref(&after), limit).await }
        })
        .await
    }

    async fn mark(
        &self,
        unrecorded: &[Unrecorded],
        wait: Duration,
        bounds: Bounds,
    ) -> Result<usize, NodeError> {
        let unrecorded: Arc<[_]> = unrecorded.into();
        self.call(To::Mark, move |node| {
            let unrecorded = Arc::clone(&unrecorded);
            async move { node.mark(&unrecorded, wait, bounds).await }
        })
        .await
    }

    async fn probe(&self, request: ProbeRequest) -> Result<Probe, NodeError> {
        let asked = Instant::now();
        let handle = self.clone();
        let (probe, incarnation, clock) = self
            .call(To::Probe, move |node| {
                let inner = Arc::clone(&handle.0);
                async move {
                    let mut probe = node.probe(request).await?;
                    probe.clock = inner.own_clock.then(|| inner.server.unix_ms());
                    let list = inner.list.as_deref();
                    match list.map(|list| inner.server.register(list, request, &probe)) {
                        Some(Told::Other(list)) => probe.other_list = Some(list),
                        Some(Told::Same { closing }) => probe.closing = closing,
                        None => {}
                    }
                    let incarnation = node.incarnation(&crate::election());
                    Ok((probe, incarnation, inner.server.now()))
                }
            })
            .await?;
        *self.0.sample.lock().expect("not poisoned") = Some((asked, clock));
        let mut known = self.0.incarnation.lock().expect("not poisoned");
        let id = incarnation.map(|incarnation| incarnation.id);
        if known.as_ref().map(|known| &known.id) != id.as_ref() {
            *known = id.map(|id| Incarnation {
                id,
                seen: Instant::now(),
            });
        }
        Ok(probe)
    }

    async fn listen(&self, listener: &dyn Listener) -> NodeError {
        let server = &self.0.server;
        let node = server.memory();
        let post = Post::new(server, listener);
        let breaks = async {
            while !self.is_cut() && Arc::ptr_eq(&node, &server.memory()) {
                sleep(Duration::from_millis(server.draw(1_000))).await;
            }
        };
        tokio::select! {
            biased;
            () = breaks => NodeError::unknown("the connection broke"),
            () = post.deliver() => NodeError::unknown("nothing is delivered"),
            error = node.listen(&post) => error,
        }
    }

    fn incarnation(&self, _election: &ElectionId) -> Option<Incarnation> {
        self.0.incarnation.lock().expect("not poisoned").clone()
    }
}
