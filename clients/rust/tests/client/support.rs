//! What the tests share: a proxy that fails, and how to wait.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use election_agent_client::Agent;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

/// How long something may take that takes no time on a machine with nothing else to do.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// Waits for what happens soon.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(SOON, future)
        .await
        .unwrap_or_else(|_| panic!("not within {SOON:?}: {what}"))
}

/// Asks again and again until there is an answer.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    soon(what, async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

pub(crate) fn client(endpoints: &str) -> Agent {
    Agent::new(endpoints).expect("endpoints")
}

/// A client that leads by streams, or by calls.
pub(crate) fn leading(endpoints: &str, streams: bool) -> Agent {
    Agent::builder(endpoints)
        .streams(streams)
        .build()
        .expect("endpoints")
}

/// A test of leading, by streams and by calls.
macro_rules! both {
    ($($(#[$meta:meta])* async fn $name:ident($streams:ident: bool) $body:block)+) => {
        mod by_streams {
            $($(#[$meta])* #[tokio::test] async fn $name() { super::$name(true).await; })+
        }
        mod by_calls {
            $($(#[$meta])* #[tokio::test] async fn $name() { super::$name(false).await; })+
        }
        $(async fn $name($streams: bool) $body)+
    };
}
pub(crate) use both;

/// What a proxy does with bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Forward,
    /// Takes connections and bytes, and says nothing.
    BlackHole,
    /// Ends all connections, and takes none.
    Cut,
}

/// A proxy between a client and an agent.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: String,
    mode: watch::Sender<Mode>,
    connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    pub(crate) async fn to(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let mode = watch::Sender::new(Mode::Forward);
        let connections = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        let (upstream, modes, count) = (
            upstream.to_owned(),
            mode.subscribe(),
            Arc::clone(&connections),
        );
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                open.spawn(forward(stream, upstream.clone(), modes.clone()));
            }
        });
        Self {
            address,
            mode,
            connections,
            _tasks: tasks,
        }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// How many connections there have been.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn forward(client: TcpStream, upstream: String, mut modes: watch::Receiver<Mode>) {
    if *modes.borrow() == Mode::Cut {
        return;
    }
    let Ok(agent) = TcpStream::connect(upstream).await else {
        return;
    };
    let (client, agent) = (client.into_split(), agent.into_split());
    tokio::select! {
        () = copy(client.0, agent.1, modes.clone()) => {}
        () = copy(agent.0, client.1, modes.clone()) => {}
        // An error: the test has ended.
        _ = modes.wait_for(|mode| *mode == Mode::Cut) => {}
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, modes: watch::Receiver<Mode>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read) = from.read(&mut buffer).await {
        if read == 0 {
            break;
        }
        // What has gone into the hole stays there: a connection goes on with holes in no protocol.
        if *modes.borrow() == Mode::BlackHole {
            std::future::pending::<()>().await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
}

/// What was reported, in order.
#[derive(Debug)]
pub(crate) struct Log<T>(Arc<Mutex<Vec<T>>>);

impl<T> Clone for Log<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Clone> Log<T> {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    pub(crate) fn push(&self, entry: T) {
        self.0.lock().unwrap().push(entry);
    }

    pub(crate) fn all(&self) -> Vec<T> {
        self.0.lock().unwrap().clone()
    }
}
