//! The peer that requests report.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use axum::{body::Body, response::Response};
use election_agent::{
    peer::Peer,
    tls::{Acceptor, ClientAuth, Files},
};
use http::Request;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::DropGuard;

use super::{REQUEST, Stream};
use crate::harness::{Authority, serve};

/// A server whose replies name the peer, and its address.
async fn who_asks(tls: Option<Acceptor>) -> (SocketAddr, DropGuard) {
    let service = tower::service_fn(|request: Request<Body>| async move {
        let peer = request.extensions().get::<Peer>().expect("a peer");
        let certificates = peer
            .certificates
            .iter()
            .flat_map(|chain| chain.certificates());
        let lengths: Vec<_> = certificates.map(|one| one.len()).collect();
        let text = format!("{} {lengths:?}", peer.address);
        Ok::<_, Infallible>(Response::new(Body::from(text)))
    });
    // As both, so that IPv4 addresses come as mapped ones.
    let listener = TcpListener::bind("[::]:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let serving = serve(listener, tls, service);
    (SocketAddr::from(([127, 0, 0, 1], port)), serving)
}

#[tokio::test]
async fn requests_tell_who_is_at_the_other_end() {
    let authority = Authority::new();
    authority.issue("localhost");
    authority.issue("worker");
    let files = Files {
        certificate: authority.path("localhost.crt").into(),
        key: authority.path("localhost.key").into(),
        client_ca: Some((authority.path("ca.pem").into(), ClientAuth::Optional)),
    };
    let tls = Acceptor::start(files, Duration::from_secs(10)).expect("valid");
    let worker = authority.der("worker").len();
    for (tls, identity, told) in [
        (None, None, "127.0.0.1 []".to_owned()),
        (Some(tls.clone()), None, "127.0.0.1 []".to_owned()),
        (Some(tls), Some("worker"), format!("127.0.0.1 [{worker}]")),
    ] {
        let with_tls = tls.is_some();
        let (address, _serving) = who_asks(tls).await;
        let stream = TcpStream::connect(address).await.expect("connects");
        let mut stream: Box<dyn Stream> = match with_tls {
            true => Box::new(authority.shake_hands(stream, identity).await),
            false => Box::new(stream),
        };
        // Both requests of a connection report the same.
        for _ in 0..2 {
            stream.write_all(REQUEST).await.expect("sent");
            let mut answer = [0; 1024];
            let length = stream.read(&mut answer).await.expect("an answer");
            let answer = String::from_utf8_lossy(&answer[..length]);
            assert!(answer.ends_with(&told), "{told}: {answer}");
        }
    }
}
