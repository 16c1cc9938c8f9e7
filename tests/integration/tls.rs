//! TLS on both ports: versions, admission of clients, and certificates that change.

use std::{fs, process::Command, time::Duration};

use election_proto::election_client::ElectionClient;
use rustls::{HandshakeKind, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

use crate::harness::{Agent, Authority, campaign, command_output, eventually};

pub(crate) async fn channel(
    agent: &Agent,
    tls: ClientTlsConfig,
) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_shared(format!("https://{}", agent.address()))
        .expect("a URL")
        .tls_config(tls)
        .expect("a configuration")
        .connect()
        .await
}

/// Whether a client that connects so is elected.
async fn elected(agent: &Agent, tls: ClientTlsConfig, election: &str) -> bool {
    let Ok(channel) = channel(agent, tls).await else {
        return false;
    };
    let answer = ElectionClient::new(channel)
        .campaign(campaign(election, "a", 10_000))
        .await;
    answer.is_ok_and(|answer| answer.into_inner().elected)
}

/// What curl prints, and how it ends.
fn curl(agent: &Agent, arguments: &[&str]) -> (String, bool) {
    let port = agent.address().port();
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "10", "--resolve"])
        .arg(format!("localhost:{port}:127.0.0.1"))
        .args(arguments)
        .arg(format!("https://localhost:{port}/election/e"))
        .output()
        .expect("curl runs: `make test` installs it");
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed).into_owned();
    (printed, output.status.success())
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_and_both_versions_of_http_are_spoken_over_tls() {
    let authority = Authority::new();
    authority.issue("localhost");
    let agent = Agent::start(&authority.settings()).await;
    assert!(elected(&agent, authority.client(), "e").await);
    let ca = authority.path("ca.pem");
    for (version, told) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let (printed, fine) = curl(
            &agent,
            &["--cacert", &ca, version, "--write-out", " %{http_version}"],
        );
        assert!(fine && printed.contains("\"leader\":\"a\""), "{printed}");
        assert!(printed.ends_with(&format!(" {told}")), "{printed}");
    }
    let (_, old) = curl(&agent, &["--cacert", &ca, "--tls-max", "1.1"]);
    assert!(!old, "TLS 1.1 is not spoken");
    let (_, unknown) = curl(&agent, &[]);
    assert!(!unknown, "curl knows no authority that vouches for it");
    // A client without TLS gets no reply.
    let plain = reqwest::get(format!("http://{}/livez", agent.address())).await;
    plain.expect_err("no plain HTTP");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_show_certificates_if_they_must_and_no_wrong_ones() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    for name in ["localhost", "worker"] {
        authority.issue(name);
        stranger.issue(name);
    }
    let with_client = |auth: &str| {
        let mut settings = authority.settings();
        settings.push(("EA_TLS_CLIENT_CA_FILE".to_owned(), authority.path("ca.pem")));
        settings.push(("EA_TLS_CLIENT_AUTH".to_owned(), auth.to_owned()));
        settings
    };
    let known = || authority.client().identity(authority.identity("worker"));
    let unknown = || authority.client().identity(stranger.identity("worker"));

    let strict = Agent::start(&with_client("required")).await;
    assert!(elected(&strict, known(), "e").await);
    assert!(!elected(&strict, authority.client(), "none").await);
    assert!(!elected(&strict, unknown(), "wrong").await);

    let lenient = Agent::start(&with_client("optional")).await;
    assert!(elected(&lenient, known(), "e").await);
    assert!(elected(&lenient, authority.client(), "none").await);
    assert!(!elected(&lenient, unknown(), "wrong").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_change_are_used_without_a_restart_and_connections_go_on() {
    let (authority, next) = (Authority::new(), Authority::new());
    authority.issue("localhost");
    next.issue("localhost");
    let agent = Agent::start(&authority.settings()).await;
    let open = channel(&agent, authority.client()).await.expect("connects");
    let mut open = ElectionClient::new(open);
    assert!(!elected(&agent, next.client(), "early").await);

    // A key that does not match yet changes nothing, and is reported.
    fs::copy(next.path("localhost.key"), authority.path("localhost.key")).expect("copied");
    agent.logs("the former ones still are").await;
    assert!(elected(&agent, authority.client(), "meanwhile").await);

    fs::copy(next.path("localhost.crt"), authority.path("localhost.crt")).expect("copied");
    eventually("the new certificate is shown", async || {
        elected(&agent, next.client(), "next").await.then_some(())
    })
    .await;
    assert!(!elected(&agent, authority.client(), "late").await);
    let answer = open.campaign(campaign("open", "a", 10_000)).await;
    assert!(answer.expect("the connection goes on").into_inner().elected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_shake_hands_is_closed() {
    let authority = Authority::new();
    authority.issue("localhost");
    let mut settings = authority.settings();
    settings.push(("EA_TLS_HANDSHAKE_TIMEOUT".to_owned(), "200ms".to_owned()));
    let agent = Agent::start(&settings).await;
    let mut silent = TcpStream::connect(agent.address()).await.expect("connects");
    let mut byte = [0];
    let closed = tokio::time::timeout(Duration::from_secs(5), silent.read(&mut byte));
    let read = closed.await.expect("in time");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

/// A resumed session would admit a client whose certificate has expired since.
#[tokio::test]
async fn sessions_are_not_resumed_where_clients_show_certificates() {
    let authority = Authority::new();
    for name in ["localhost", "worker"] {
        authority.issue(name);
    }
    let mut with_clients = authority.settings();
    with_clients.push(("EA_TLS_CLIENT_CA_FILE".to_owned(), authority.path("ca.pem")));
    for (settings, second) in [
        (authority.settings(), HandshakeKind::Resumed),
        (with_clients, HandshakeKind::Full),
    ] {
        let agent = Agent::start(&settings).await;
        let client = authority.connector(Some("worker"));
        for expected in [HandshakeKind::Full, second] {
            let stream = TcpStream::connect(agent.address()).await.expect("connects");
            let name = ServerName::try_from("localhost").expect("a name");
            let mut stream = client.connect(name, stream).await.expect("shakes hands");
            // Tickets come after the handshake.
            let request = b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
            stream.write_all(request).await.expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("an answer");
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(expected));
        }
    }
}

#[test]
fn files_that_cannot_be_used_are_refused_before_the_agent_starts() {
    let authority = Authority::new();
    authority.issue("localhost");
    let (certificate, key) = (
        authority.path("localhost.crt"),
        authority.path("localhost.key"),
    );
    for (settings, told) in [
        (
            vec![("EA_TLS_CERT_FILE", certificate.as_str())],
            "EA_TLS_KEY_FILE: ",
        ),
        (
            vec![("EA_TLS_KEY_FILE", key.as_str())],
            "EA_TLS_CERT_FILE: ",
        ),
        (
            vec![
                ("EA_TLS_CERT_FILE", "/no/such/file"),
                ("EA_TLS_KEY_FILE", key.as_str()),
            ],
            "EA_TLS_CERT_FILE: cannot read /no/such/file",
        ),
        (
            vec![("EA_TLS_CLIENT_CA_FILE", certificate.as_str())],
            "EA_TLS_CLIENT_CA_FILE: ",
        ),
        (
            vec![("EA_TLS_CLIENT_AUTH", "optional")],
            "EA_TLS_CLIENT_AUTH: ",
        ),
        (
            vec![("EA_TLS_CLIENT_AUTH", "perhaps")],
            "give required or optional",
        ),
    ] {
        let output = command_output(&[], &settings);
        let printed = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{printed}");
        assert!(printed.contains(told), "{told}: {printed}");
    }
}
