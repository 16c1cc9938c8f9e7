//! A TCP proxy that loses replies.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

/// What the keys of leases hold.
const LEASE: &[u8] = b":lease:default/";

/// Stands between an agent and its Redis server.
pub(crate) struct Proxy {
    address: SocketAddr,
    lose_next: Arc<AtomicBool>,
    accepting: AbortHandle,
}

impl Proxy {
    /// A proxy to a server on this machine's port.
    pub(crate) async fn to(port: u16) -> Self {
        Self::to_each(vec![port]).await
    }

    /// A proxy that gives its connections to the servers on these ports in turn.
    pub(crate) async fn to_each(ports: Vec<u16>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let lose_next = Arc::new(AtomicBool::new(false));
        let lose = Arc::clone(&lose_next);
        let accepting = tokio::spawn(async move {
            for port in ports.into_iter().cycle() {
                let (client, _) = listener.accept().await.expect("accepts");
                let server = TcpStream::connect(("127.0.0.1", port)).await;
                if let Ok(server) = server {
                    tokio::spawn(forward(client, server, Arc::clone(&lose)));
                }
            }
        })
        .abort_handle();
        Self {
            address,
            lose_next,
            accepting,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// The next request that is about a lease reaches the server, but its reply is lost with the
    /// connection.
    pub(crate) fn lose_next_reply(&self) {
        self.lose_next.store(true, Ordering::SeqCst);
    }

    /// Whether a reply is still to be lost.
    pub(crate) fn is_armed(&self) -> bool {
        self.lose_next.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn forward(mut client: TcpStream, mut server: TcpStream, lose: Arc<AtomicBool>) {
    let (mut request, mut reply) = (vec![0; 65_536], vec![0; 65_536]);
    loop {
        tokio::select! {
            read = client.read(&mut request) => {
                let Ok(length @ 1..) = read else { return };
                // A script is run on a lease, not a ping or a probe of the agent's own.
                let on_lease = request[..length].windows(LEASE.len()).any(|word| word == LEASE);
                let armed = on_lease && lose.swap(false, Ordering::SeqCst);
                if server.write_all(&request[..length]).await.is_err() {
                    return;
                }
                if armed {
                    // The server has answered when it has read the request; then all is closed.
                    let answer = tokio::time::timeout(Duration::from_secs(5), server.read(&mut reply));
                    assert!(answer.await.expect("in time").expect("a reply") > 0);
                    return;
                }
            }
            read = server.read(&mut reply) => {
                let Ok(length @ 1..) = read else { return };
                if client.write_all(&reply[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}
