//! Encrypted connections, by the flags that name files.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use test_agent::Agent;

use crate::support::{file, output, text};

/// Writes an authority's certificate, and those that it has signed for an agent and a client.
fn certificates(directory: &Path) {
    let mut authority = CertificateParams::new(Vec::<String>::new()).expect("valid");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let authority = CertifiedIssuer::self_signed(authority, key).expect("signed");
    file(directory, "ca.pem", authority.pem(), 0o600);
    for name in ["localhost", "client"] {
        let key = KeyPair::generate().expect("a key");
        let certificate = CertificateParams::new(vec![name.to_owned()]).expect("valid");
        let certificate = certificate.signed_by(&key, &authority).expect("signed");
        file(directory, &format!("{name}.pem"), certificate.pem(), 0o600);
        file(
            directory,
            &format!("{name}.key"),
            key.serialize_pem(),
            0o600,
        );
    }
}

#[test]
fn an_agent_is_reached_with_its_authority_and_a_certificate() {
    let directory = tempfile::tempdir().expect("a directory");
    certificates(directory.path());
    let path = |name: &str| {
        directory
            .path()
            .join(name)
            .to_str()
            .expect("text")
            .to_owned()
    };
    let (authority, certificate, key) = (path("ca.pem"), path("client.pem"), path("client.key"));
    let agent = Agent::with(&[
        ("EA_TLS_CERT_FILE", &path("localhost.pem")),
        ("EA_TLS_KEY_FILE", &path("localhost.key")),
        ("EA_TLS_CLIENT_CA_FILE", &authority),
    ]);
    let port = agent.address().rsplit(':').next().expect("a port");
    let url = format!("https://localhost:{port}");
    let run = |url: &str, options: &[&str]| {
        let arguments = [&["run", "--election", "a"], options, &["--", "echo", "ran"]].concat();
        let output = output(url, &arguments);
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let whole = ["--ca", &authority, "--cert", &certificate, "--key", &key];
    assert_eq!(
        run(&url, &whole),
        (Some(0), "ran\n".to_owned(), String::new())
    );

    let refused = |url: &str, options: &[&str]| {
        let (code, printed, told) = run(url, options);
        assert_eq!((code, printed.as_str()), (Some(125), ""), "{told}");
        assert!(
            told.contains(
                url.trim_start_matches("https://")
                    .trim_start_matches("http://")
            ),
            "{told}"
        );
        told
    };
    let told = refused(&url, &whole[2..]);
    assert!(
        told.contains("certificate"),
        "not an authority that is trusted: {told}"
    );
    refused(&url, &[&whole[..2], &["--wait", "forever"]].concat());
    refused(&url.replace("https", "http"), &["--wait", "forever"]);
    refused(&url.replace("localhost", "127.0.0.1"), &whole);
}
