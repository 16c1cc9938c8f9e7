//! TLS for both ports, from files that may change while the agent runs.
//!
//! New connections use the current content of the files ([`reload`]). Open connections keep the configuration
//! they started with.

mod chain;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{
        NoClientAuth, NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier,
    },
};
use strum::{EnumString, VariantNames};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::reload::{self, Mistake, Source, read_file};
pub use chain::Chain;

/// Installs the cryptography provider for clients in this process: those of Redis, of Kubernetes and of the
/// issuer's keys. Repeated calls have no effect.
pub fn install_provider() {
    // In both cases there is a provider afterwards.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The files of a TLS configuration.
#[derive(Debug, Clone)]
pub struct Files {
    /// The certificate chain.
    pub certificate: PathBuf,
    /// The private key of the certificate.
    pub key: PathBuf,
    /// The authorities for client certificates, and whether clients must present one.
    pub client_ca: Option<(PathBuf, ClientAuth)>,
}

/// Whether clients must present a certificate (`EA_TLS_CLIENT_AUTH`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "lowercase")]
pub enum ClientAuth {
    /// A client certificate is required.
    Required,
    /// A client certificate is optional.
    Optional,
}

/// The content of the files.
#[derive(PartialEq, Eq)]
pub struct Content {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

/// The TLS configuration of new connections.
pub struct Served {
    config: Arc<ServerConfig>,
    /// When the first certificate of the chain expires, in seconds since 1970.
    expiry: Option<i64>,
}

impl Source for Files {
    type Content = Content;
    type Made = Served;

    const WHAT: &'static str = "TLS files";

    fn read(&self) -> Result<Content, Vec<Mistake>> {
        let certificate = read_file("EA_TLS_CERT_FILE", &self.certificate);
        let key = read_file("EA_TLS_KEY_FILE", &self.key);
        let client_ca = self.client_ca.as_ref();
        let client_ca = client_ca
            .map(|(path, _)| read_file("EA_TLS_CLIENT_CA_FILE", path))
            .transpose();
        match (certificate, key, client_ca) {
            (Ok(certificate), Ok(key), Ok(client_ca)) => Ok(Content {
                certificate,
                key,
                client_ca,
            }),
            (certificate, key, client_ca) => Err([certificate.err(), key.err(), client_ca.err()]
                .into_iter()
                .flatten()
                .collect()),
        }
    }

    fn make(&self, content: &Content) -> Result<Served, Vec<Mistake>> {
        let config = self.config(content).map_err(|mistake| vec![mistake])?;
        let chain = certificates(&self.certificate, &content.certificate).unwrap_or_default();
        Ok(Served {
            config: Arc::new(config),
            expiry: chain.iter().filter_map(expiry).min(),
        })
    }
}

impl Files {
    fn config(&self, content: &Content) -> Result<ServerConfig, Mistake> {
        let chain = certificates(&self.certificate, &content.certificate)
            .map_err(|what| Mistake::new("EA_TLS_CERT_FILE", what))?;
        // Omits the parse error, which may contain parts of the key.
        let key = PrivateKeyDer::from_pem_slice(&content.key).map_err(|_| {
            let path = self.key.display();
            Mistake::new(
                "EA_TLS_KEY_FILE",
                format!("{path} holds no private key in PEM"),
            )
        })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = self.verifier(content, &provider)?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Mistake::new("EA_TLS_CERT_FILE", error.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|error| {
                let (certificate, key) = (self.certificate.display(), self.key.display());
                Mistake::new(
                    "EA_TLS_KEY_FILE",
                    format!("{key} is not the key of the certificate in {certificate}: {error}"),
                )
            })?;
        if self.client_ca.is_some() {
            // A resumed session would skip the verification of the client certificate, which may have expired
            // since.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    fn verifier(
        &self,
        content: &Content,
        provider: &Arc<rustls::crypto::CryptoProvider>,
    ) -> Result<Arc<dyn ClientCertVerifier>, Mistake> {
        let (Some((path, auth)), Some(pem)) = (&self.client_ca, &content.client_ca) else {
            return Ok(Arc::new(NoClientAuth));
        };
        const VARIABLE: &str = "EA_TLS_CLIENT_CA_FILE";
        let wrong = |error: &dyn std::fmt::Display| {
            Mistake::new(
                VARIABLE,
                format!("{} cannot be used: {error}", path.display()),
            )
        };
        let mut roots = RootCertStore::empty();
        for authority in certificates(path, pem).map_err(|what| Mistake::new(VARIABLE, what))? {
            roots.add(authority).map_err(|error| wrong(&error))?;
        }
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        let verifier = match auth {
            ClientAuth::Required => verifier,
            ClientAuth::Optional => verifier.allow_unauthenticated(),
        };
        verifier.build().map_err(|error| wrong(&error))
    }
}

/// Parses the certificates in a PEM file that was read from `path`; at least one.
///
/// # Errors
/// Describes what is wrong with the file.
pub(crate) fn certificates(
    path: &Path,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, String> {
    let path = path.display();
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(format!("{path} holds no certificate: give a PEM file")),
        Err(error) => Err(format!("{path} is no PEM file of certificates: {error}")),
    }
}

/// When a certificate expires, in seconds since 1970.
fn expiry(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

/// Accepts TLS connections with the current content of the files. Cheap to clone.
#[derive(Clone)]
pub struct Acceptor {
    served: reload::Current<Served>,
    handshake_timeout: Duration,
}

impl Acceptor {
    /// Reads the files, and follows changes until the last acceptor is dropped.
    ///
    /// # Errors
    /// Returns the mistakes if the files cannot be used.
    pub fn start(files: Files, handshake_timeout: Duration) -> Result<Self, Vec<Mistake>> {
        Ok(Self {
            served: reload::start(files)?,
            handshake_timeout,
        })
    }

    /// When the first certificate of the chain for new connections expires, in seconds since 1970.
    #[must_use]
    pub fn expiry(&self) -> Option<i64> {
        self.served.borrow().expiry
    }

    /// Performs the handshake.
    ///
    /// # Errors
    /// Returns an error if the client speaks no TLS, presents no certificate or an invalid one, or takes too
    /// long.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let config = Arc::clone(&self.served.borrow().config);
        let shaking = TlsAcceptor::from(config).accept(stream);
        timeout(self.handshake_timeout, shaking)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    struct Made {
        directory: TempDir,
        files: Files,
    }

    /// Creates files with a certificate, its key, and the same certificate as the authority for clients.
    fn made(client_auth: Option<ClientAuth>) -> Made {
        let directory = TempDir::new().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        let files = Files {
            certificate: at("crt"),
            key: at("key"),
            client_ca: client_auth.map(|auth| (at("ca"), auth)),
        };
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
        fs::write(at("crt"), made.cert.pem()).expect("written");
        fs::write(at("key"), made.signing_key.serialize_pem()).expect("written");
        fs::write(at("ca"), made.cert.pem()).expect("written");
        Made { directory, files }
    }

    #[test]
    fn files_that_belong_together_have_no_mistakes() {
        for auth in [None, Some(ClientAuth::Required), Some(ClientAuth::Optional)] {
            assert_eq!(made(auth).files.mistakes(), []);
        }
    }

    #[test]
    fn every_file_that_cannot_be_used_is_told_with_its_setting_and_no_content() {
        let other = made(None);
        let others_key = fs::read(&other.files.key).expect("a key");
        for (file, content, variable, says) in [
            ("crt", None, "EA_TLS_CERT_FILE", "cannot read"),
            ("key", None, "EA_TLS_KEY_FILE", "cannot read"),
            ("ca", None, "EA_TLS_CLIENT_CA_FILE", "cannot read"),
            (
                "crt",
                Some(&b"s3cret"[..]),
                "EA_TLS_CERT_FILE",
                "holds no certificate",
            ),
            (
                "key",
                Some(b"s3cret"),
                "EA_TLS_KEY_FILE",
                "holds no private key",
            ),
            (
                "ca",
                Some(b"s3cret"),
                "EA_TLS_CLIENT_CA_FILE",
                "holds no certificate",
            ),
            (
                "key",
                Some(&others_key),
                "EA_TLS_KEY_FILE",
                "is not the key of",
            ),
        ] {
            let made = made(Some(ClientAuth::Required));
            let path = made.directory.path().join(file);
            match content {
                Some(content) => fs::write(&path, content).expect("written"),
                None => fs::remove_file(&path).expect("removed"),
            }
            let mistakes = made.files.mistakes();
            let [
                Mistake {
                    variable: named,
                    what,
                },
            ] = &mistakes[..]
            else {
                panic!("{file}: {mistakes:?}");
            };
            assert_eq!(*named, variable, "{what}");
            assert!(what.contains(says) && !what.contains("s3cret"), "{what}");
        }
    }

    #[test]
    fn the_certificate_of_the_chain_that_expires_first_tells_when() {
        let made = made(None);
        let mut chain = String::new();
        for year in [2031, 2030, 2032] {
            let mut params =
                rcgen::CertificateParams::new(["localhost".to_owned()]).expect("valid");
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            let key = rcgen::KeyPair::generate().expect("a key");
            let certificate = params.self_signed(&key).expect("made");
            if chain.is_empty() {
                fs::write(&made.files.key, key.serialize_pem()).expect("written");
            }
            chain += &certificate.pem();
        }
        fs::write(&made.files.certificate, chain).expect("written");
        let content = made.files.read().expect("files");
        let served = made
            .files
            .make(&content)
            .map_err(|mistakes| format!("{mistakes:?}"));
        assert_eq!(served.expect("usable").expiry, Some(1_893_456_000));
    }

    #[test]
    fn all_files_that_are_missing_are_told_at_once() {
        let made = made(Some(ClientAuth::Required));
        for file in ["crt", "key", "ca"] {
            fs::remove_file(made.directory.path().join(file)).expect("removed");
        }
        assert_eq!(made.files.mistakes().len(), 3);
    }
}
