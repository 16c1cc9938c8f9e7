//! Certificates, as an operator has them made.

use std::{fs, io::Write as _, path::PathBuf, sync::Arc};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// An authority, and files that it has signed.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new([]).expect("params");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // One that had the name of what it signs would look as if that had signed itself.
        let name = &mut params.distinguished_name;
        name.push(DnType::CommonName, "an authority");
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("signed");
        let directory = TempDir::new().expect("a directory");
        fs::write(directory.path().join("ca.pem"), issuer.pem()).expect("written");
        Self { issuer, directory }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    pub(crate) fn pem(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("text")
    }

    /// Writes `{name}.crt` and `{name}.key` for this name and for the address that agents listen on.
    pub(crate) fn issue(&self, name: &str) {
        let mut params =
            CertificateParams::new([name.to_owned(), "127.0.0.1".to_owned()]).expect("params");
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let subject = &mut params.distinguished_name;
        subject.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        // As secrets are replaced: whole, by renaming.
        for (extension, text) in [("key", key.serialize_pem()), ("crt", certificate.pem())] {
            let path = PathBuf::from(self.path(&format!("{name}.{extension}")));
            let mut new = tempfile::NamedTempFile::new_in(self.directory.path()).expect("a file");
            new.write_all(text.as_bytes()).expect("written");
            new.persist(path).expect("renamed");
        }
    }

    /// The agent's own settings.
    pub(crate) fn settings(&self) -> Vec<(String, String)> {
        vec![
            ("EA_TLS_CERT_FILE".to_owned(), self.path("localhost.crt")),
            ("EA_TLS_KEY_FILE".to_owned(), self.path("localhost.key")),
        ]
    }

    /// The certificate of this name.
    pub(crate) fn der(&self, name: &str) -> CertificateDer<'static> {
        let pem = self.pem(&format!("{name}.crt"));
        CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate")
    }

    /// TLS over this stream to what is called localhost, as the client of this name if there is one.
    pub(crate) async fn shake_hands(
        &self,
        stream: TcpStream,
        identity: Option<&str>,
    ) -> tokio_rustls::client::TlsStream<TcpStream> {
        let name = ServerName::try_from("localhost").expect("a name");
        let shaking = self.connector(identity).connect(name, stream);
        shaking.await.expect("shakes hands")
    }

    /// A client that resumes its sessions, if it may.
    pub(crate) fn connector(&self, identity: Option<&str>) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let config = match identity {
            None => config.with_no_client_auth(),
            Some(name) => {
                let key = self.pem(&format!("{name}.key"));
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
                let chain = vec![self.der(name)];
                config
                    .with_client_auth_cert(chain, key)
                    .expect("an identity")
            }
        };
        TlsConnector::from(Arc::new(config))
    }

    pub(crate) fn client(&self) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .domain_name("localhost")
            .ca_certificate(Certificate::from_pem(self.pem("ca.pem")))
    }

    pub(crate) fn identity(&self, name: &str) -> Identity {
        Identity::from_pem(
            self.pem(&format!("{name}.crt")),
            self.pem(&format!("{name}.key")),
        )
    }
}
