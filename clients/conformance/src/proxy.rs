//! A TCP proxy before an agent that can do what networks do.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::AbortHandle,
};

/// What the proxy does with connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Passes everything on.
    Forward,
    /// Passes nothing on, in neither direction, and closes nothing.
    Hold,
    /// Resets each new connection.
    Refuse,
}

#[derive(Clone, Copy, Debug)]
struct Fault {
    mode: Mode,
    /// Connections of an earlier era are reset.
    era: u64,
}

/// Stands between a client and an agent.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    fault: watch::Sender<Fault>,
    accepted: Arc<AtomicUsize>,
    accepting: AbortHandle,
}

impl Proxy {
    /// A proxy to what listens at this address.
    ///
    /// # Panics
    ///
    /// If the machine has no port for it.
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let fault = watch::Sender::new(Fault {
            mode: Mode::Forward,
            era: 0,
        });
        let accepted = Arc::new(AtomicUsize::new(0));
        let (faults, count) = (fault.subscribe(), Arc::clone(&accepted));
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let fault = *faults.borrow();
                if fault.mode == Mode::Refuse {
                    reset(&client);
                    continue;
                }
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(connection(client, target, faults.clone(), fault.era));
            }
        })
        .abort_handle();
        Self {
            address,
            fault,
            accepted,
            accepting,
        }
    }

    /// Where it listens: `127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// How many connections it has taken.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Everything passes again.
    pub fn heal(&self) {
        self.set(Mode::Forward, 0);
    }

    /// Nothing passes, and nothing is closed.
    pub fn black_hole(&self) {
        self.set(Mode::Hold, 0);
    }

    /// All connections are reset; new ones are good.
    pub fn reset(&self) {
        self.set(Mode::Forward, 1);
    }

    /// All connections are reset, and new ones as well.
    pub fn refuse(&self) {
        self.set(Mode::Refuse, 1);
    }

    fn set(&self, mode: Mode, eras: u64) {
        self.fault.send_modify(|fault| {
            fault.mode = mode;
            fault.era += eras;
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.fault.send_modify(|fault| fault.era += 1);
    }
}

fn reset(stream: &TcpStream) {
    // With nothing to linger for, closing sends RST. A connection that has gone needs none.
    let _ = stream.set_zero_linger();
}

async fn connection(
    client: TcpStream,
    target: SocketAddr,
    mut faults: watch::Receiver<Fault>,
    era: u64,
) {
    let Ok(server) = TcpStream::connect(target).await else {
        reset(&client);
        return;
    };
    for stream in [&client, &server] {
        let _ = stream.set_nodelay(true);
        reset(stream);
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (upward, downward) = (faults.clone(), faults.clone());
    let copies = async {
        tokio::select! {
            () = copy(from_client, to_server, upward) => {}
            () = copy(from_server, to_client, downward) => {}
        }
    };
    tokio::select! {
        () = copies => {}
        _ = faults.wait_for(|fault| fault.era != era) => {}
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut faults: watch::Receiver<Fault>) {
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok(length @ 1..) = from.read(&mut buffer).await else {
            // What a peer closes is closed for the other as well, when the network is there to tell.
            let _ = faults.wait_for(|fault| fault.mode != Mode::Hold).await;
            return;
        };
        if faults
            .wait_for(|fault| fault.mode != Mode::Hold)
            .await
            .is_err()
        {
            return;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
