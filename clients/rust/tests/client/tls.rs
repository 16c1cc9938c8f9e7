//! Encrypted connections to a real agent.

use std::{fs, path::PathBuf};

use election_agent_client::{Agent, Error};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use test_agent::Agent as Server;

use crate::support::eventually;

/// An authority, and files with certificates that it has signed.
struct Files {
    directory: TempDir,
}

impl Files {
    fn new() -> Self {
        let directory = TempDir::new().expect("a directory");
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("valid");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let authority = CertifiedIssuer::self_signed(params, key).expect("signed");
        fs::write(directory.path().join("ca.pem"), authority.pem()).expect("written");
        for (file, name) in [("server", "localhost"), ("client", "batch")] {
            let key = KeyPair::generate().expect("a key");
            let params = CertificateParams::new(vec![name.to_owned()]).expect("valid");
            let certificate = params.signed_by(&key, &authority).expect("signed");
            fs::write(
                directory.path().join(format!("{file}.pem")),
                certificate.pem(),
            )
            .expect("written");
            fs::write(
                directory.path().join(format!("{file}.key")),
                key.serialize_pem(),
            )
            .expect("written");
        }
        Self { directory }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    fn text(&self, file: &str) -> String {
        self.path(file).to_str().expect("text").to_owned()
    }
}

#[tokio::test]
async fn an_agent_is_reached_by_tls_and_told_who_asks_by_mtls() {
    let files = Files::new();
    let (certificate, key, authority) = (
        files.text("server.pem"),
        files.text("server.key"),
        files.text("ca.pem"),
    );
    let tls = [
        ("EA_TLS_CERT_FILE", &certificate[..]),
        ("EA_TLS_KEY_FILE", &key),
    ];
    let server = Server::with(&tls);
    let port = server
        .address()
        .rsplit(':')
        .next()
        .expect("a port")
        .to_owned();
    let by_name = format!("https://localhost:{port}");
    let trusting = |endpoint: &str| {
        Agent::builder(endpoint)
            .ca_file(files.path("ca.pem"))
            .expect("a file")
    };

    let agent = trusting(&by_name).build().expect("valid");
    let token = agent
        .lead("nightly")
        .run(async |term| term.token())
        .await
        .expect("led");
    assert!(token > 0);
    let by_address = format!("https://127.0.0.1:{port}");
    let agent = trusting(&by_address)
        .server_name("localhost")
        .build()
        .expect("valid");
    agent.kinds().await.expect("the name that was given");
    let short = std::time::Duration::from_millis(500);
    let wrong = trusting(&by_address)
        .timeout(short)
        .build()
        .expect("valid")
        .kinds()
        .await
        .expect_err("another name");
    assert!(matches!(wrong, Error::Unreachable { .. }), "{wrong:?}");
    // The connection may also end before its answer is read.
    let plain = Agent::builder(format!("http://127.0.0.1:{port}"));
    let plain = plain.timeout(short).build().expect("valid");
    eventually("told to use https", async || {
        let error = plain.kinds().await.expect_err("without TLS").to_string();
        error.contains("https://").then_some(())
    })
    .await;
    let stranger = Agent::builder(&by_name).timeout(short).build();
    // A system without authorities refuses it at once.
    if let Ok(stranger) = stranger {
        let error = stranger
            .kinds()
            .await
            .expect_err("an authority that the system does not know");
        assert!(error.to_string().contains("certificate"), "{error}");
    }

    let mtls = [
        ("EA_TLS_CLIENT_CA_FILE", &authority[..]),
        ("EA_AUTH_MODES", "mtls"),
    ];
    let server = Server::with(&[&tls[..], &mtls].concat());
    let endpoint = format!(
        "https://localhost:{}",
        server.address().rsplit(':').next().expect("a port")
    );
    let nobody = trusting(&endpoint)
        .timeout(short)
        .build()
        .expect("valid")
        .kinds()
        .await;
    assert!(nobody.is_err(), "{nobody:?}");
    let agent =
        trusting(&endpoint).identity_files(files.path("client.pem"), files.path("client.key"));
    agent
        .expect("files")
        .build()
        .expect("valid")
        .kinds()
        .await
        .expect("known");
}

#[tokio::test]
async fn a_certificate_that_is_replaced_is_shown_from_then_on() {
    let (files, others) = (Files::new(), Files::new());
    let [certificate, key, authority] =
        ["server.pem", "server.key", "ca.pem"].map(|file| files.text(file));
    let server = Server::with(&[
        ("EA_TLS_CERT_FILE", &certificate[..]),
        ("EA_TLS_KEY_FILE", &key),
        ("EA_TLS_CLIENT_CA_FILE", &authority),
        ("EA_AUTH_MODES", "mtls"),
    ]);
    let port = server.address().rsplit(':').next().expect("a port");
    let shown = TempDir::new().expect("a directory");
    let path = |file: &str| shown.path().join(file);
    let replace = |from: &Files, file: &str| {
        fs::copy(from.path(file), path(file)).expect("copied");
    };
    let both = ["client.pem", "client.key"];
    for file in both {
        replace(&others, file);
    }
    let agent = Agent::builder(format!("https://localhost:{port}"))
        .ca_file(files.path("ca.pem"))
        .and_then(|builder| builder.identity_files(path(both[0]), path(both[1])))
        .expect("files")
        .timeout(std::time::Duration::from_secs(1))
        .build()
        .expect("valid");
    agent.kinds().await.expect_err("a stranger");
    // In the middle of being replaced, they do not belong together, and those before are shown.
    replace(&files, both[0]);
    agent.kinds().await.expect_err("a stranger, still");
    replace(&files, both[1]);
    eventually("known", async || agent.kinds().await.ok()).await;
}

#[test]
fn files_without_certificates_and_addresses_without_ports_are_told() {
    let files = Files::new();
    fs::write(files.path("empty"), "").expect("written");
    let told = |done: Result<_, Error>| done.map(|_| ()).expect_err("wrong").to_string();
    let builder = || Agent::builder("https://agent:8443");
    let error = told(builder().ca_file(files.path("empty")));
    assert!(error.contains("there is no certificate in it"), "{error}");
    let (certificate, key) = (files.path("client.pem"), files.path("client.key"));
    let error = told(builder().identity_files(&certificate, &certificate));
    assert!(error.contains("there is no private key in it"), "{error}");
    assert!(builder().identity_files(certificate, key).is_ok());
    for wrong in ["a:99999", "a:0", "a:", "http://[::1]:x"] {
        let error = Agent::new(wrong).expect_err(wrong).to_string();
        assert!(error.contains(wrong), "{error}");
    }
    for right in ["a", "a:1", "https://[::1]", "http://[::1]:65535"] {
        Agent::new(right).expect(right);
    }
}
