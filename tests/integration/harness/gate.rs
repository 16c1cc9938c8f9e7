//! A server behind gates: each agent has its own way to it, on which messages are held, or which is cut.
//!
//! All agents are given the same address, so that they have the same list of servers; the password with which
//! they connect identifies the agent of a connection. Before an agent, any word in the first bytes of a connection
//! identifies its client.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::AbortHandle,
};

use super::eventually;

/// What a gate does with what comes to it.
#[derive(Debug, Clone, PartialEq)]
enum Flow {
    Open,
    /// Connections are broken, and none is made.
    Cut,
    /// On every connection, the first request with this word and all that follow it wait.
    HoldRequests(String),
    /// On every connection, what the server replies to the first request with this word, and all that follows
    /// it, waits.
    HoldReplies(String),
}

/// One agent's way to one server.
#[derive(Clone)]
pub(crate) struct Gate {
    flow: watch::Sender<Flow>,
    /// How many requests had the word that is looked for.
    found: Arc<AtomicUsize>,
}

impl Gate {
    fn new() -> Self {
        Self {
            flow: watch::channel(Flow::Open).0,
            found: Arc::default(),
        }
    }

    fn set(&self, flow: Flow) {
        self.found.store(0, Ordering::SeqCst);
        self.flow.send_replace(flow);
    }

    /// Lets everything through, also what was held; what an agent sent before it closed the connection, too.
    pub(crate) fn open(&self) {
        self.set(Flow::Open);
    }

    /// Breaks the connections; what was held is lost.
    pub(crate) fn cut(&self) {
        self.set(Flow::Cut);
    }

    pub(crate) fn hold_requests(&self, word: &str) {
        self.set(Flow::HoldRequests(word.to_owned()));
    }

    pub(crate) fn hold_replies(&self, word: &str) {
        self.set(Flow::HoldReplies(word.to_owned()));
    }

    /// Waits until so many requests, or their replies, are held.
    pub(crate) async fn holds(&self, requests: usize) {
        eventually("requests are held", async || {
            (self.found.load(Ordering::SeqCst) >= requests).then_some(())
        })
        .await;
    }

    fn finds(&self, word: &str, bytes: &[u8]) -> bool {
        let found = contains(bytes, word);
        if found {
            self.found.fetch_add(1, Ordering::SeqCst);
        }
        found
    }
}

/// The gates before one server.
pub(crate) struct Gates {
    address: SocketAddr,
    of_agents: Arc<Mutex<BTreeMap<String, Gate>>>,
    accepting: AbortHandle,
}

impl Gates {
    /// Gates before the server on this port.
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let of_agents: Arc<Mutex<BTreeMap<String, Gate>>> = Arc::default();
        let gates = Arc::clone(&of_agents);
        let accepting = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.expect("accepts");
                tokio::spawn(connect(client, port, Arc::clone(&gates)));
            }
        })
        .abort_handle();
        Self {
            address,
            of_agents,
            accepting,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL for an agent.
    pub(crate) fn url(&self, agent: &str) -> String {
        self.of(agent);
        format!("redis://default:{agent}@{}", self.address)
    }

    /// An agent's gate.
    pub(crate) fn of(&self, agent: &str) -> Gate {
        let mut gates = lock(&self.of_agents);
        let gate = gates.entry(agent.to_owned()).or_insert_with(Gate::new);
        gate.clone()
    }
}

impl Drop for Gates {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn lock(
    gates: &Mutex<BTreeMap<String, Gate>>,
) -> parking_lot::MutexGuard<'_, BTreeMap<String, Gate>> {
    gates.lock()
}

fn contains(bytes: &[u8], word: &str) -> bool {
    bytes
        .windows(word.len())
        .any(|window| window == word.as_bytes())
}

async fn connect(mut client: TcpStream, port: u16, gates: Arc<Mutex<BTreeMap<String, Gate>>>) {
    let mut first = vec![0; 65_536];
    let Ok(length @ 1..) = client.read(&mut first).await else {
        return;
    };
    first.truncate(length);
    let gate = lock(&gates)
        .iter()
        .find(|(agent, _)| contains(&first, agent))
        .map(|(_, gate)| gate.clone());
    let Some(gate) = gate else { return };
    let cut = || *gate.flow.borrow() == Flow::Cut;
    if cut() {
        return;
    }
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else {
        return;
    };
    let nodelay = client.set_nodelay(true).and(server.set_nodelay(true));
    if nodelay.is_err() || server.write_all(&first).await.is_err() {
        return;
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let held = Arc::new(AtomicBool::new(false));
    let requests = requests(from_client, to_server, gate.clone(), Arc::clone(&held));
    let replies = replies(from_server, to_client, gate.clone(), held);
    let mut flow = gate.flow.subscribe();
    tokio::select! {
        _ = async { tokio::join!(requests, replies) } => {}
        _ = flow.wait_for(|flow| *flow == Flow::Cut) => {}
    }
}

/// Forwards requests; what the client sent before it closed the connection reaches the server.
async fn requests(
    mut client: OwnedReadHalf,
    mut server: OwnedWriteHalf,
    gate: Gate,
    held: Arc<AtomicBool>,
) {
    let (mut flow, mut request) = (gate.flow.subscribe(), vec![0; 65_536]);
    while let Ok(length @ 1..) = client.read(&mut request).await {
        let bytes = &request[..length];
        let now = flow.borrow_and_update().clone();
        match &now {
            Flow::HoldRequests(word) if gate.finds(word, bytes) => {
                // An error means that the test is over.
                let after = flow.wait_for(|flow| *flow != now).await;
                if after.is_ok_and(|flow| *flow == Flow::Cut) {
                    return;
                }
            }
            Flow::HoldReplies(word) if gate.finds(word, bytes) => {
                held.store(true, Ordering::SeqCst);
            }
            _ => {}
        }
        if server.write_all(bytes).await.is_err() {
            return;
        }
    }
}

async fn replies(
    mut server: OwnedReadHalf,
    mut client: OwnedWriteHalf,
    gate: Gate,
    held: Arc<AtomicBool>,
) {
    let (mut flow, mut reply) = (gate.flow.subscribe(), vec![0; 65_536]);
    while let Ok(length @ 1..) = server.read(&mut reply).await {
        if held.load(Ordering::SeqCst) {
            let after = flow
                .wait_for(|flow| !matches!(flow, Flow::HoldReplies(_)))
                .await;
            if after.is_ok_and(|flow| *flow == Flow::Cut) {
                return;
            }
            held.store(false, Ordering::SeqCst);
        }
        // A client that has gone does not want to know, but the server goes on.
        let _ = client.write_all(&reply[..length]).await;
    }
}
