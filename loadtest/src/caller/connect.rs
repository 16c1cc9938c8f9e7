//! Connections, with TLS or without.

use std::{fs, io, sync::Arc};

use nix::errno::Errno;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::Failed;
use crate::options::Load;

/// A byte stream to an agent.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Opens connections to one agent.
#[derive(Debug, Clone)]
pub struct Connector {
    host: String,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
}

impl Connector {
    /// Creates a connector to the agent in the options, with this ALPN protocol for TLS.
    ///
    /// # Errors
    /// Describes what is wrong with the address or with the file of authorities.
    pub fn new(load: &Load, alpn: &[u8]) -> Result<Self, String> {
        let host = load
            .host
            .host()
            .ok_or("--host has no host: give http://HOST:PORT")?;
        let encrypted = match load.host.scheme_str() {
            Some("http") | None => false,
            Some("https") => true,
            Some(other) => return Err(format!("--host: {other} is neither http nor https")),
        };
        let tls = encrypted.then(|| config(load, alpn)).transpose()?;
        Ok(Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: load
                .host
                .port_u16()
                .unwrap_or(if encrypted { 443 } else { 80 }),
            tls: tls.map(Arc::new),
        })
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// Returns an error if the connection fails.
    pub async fn open(&self) -> Result<Box<dyn Stream>, Failed> {
        let failed = |error: io::Error| {
            let advice = match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EMFILE) => ": raise the limit of open files (`ulimit -n`)",
                _ => "",
            };
            let (host, port) = (&self.host, self.port);
            Failed::lost("cannot connect", format!("{host}:{port}: {error}{advice}"))
        };
        let stream = TcpStream::connect((&*self.host, self.port))
            .await
            .map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let Some(tls) = &self.tls else {
            return Ok(Box::new(stream));
        };
        let name = ServerName::try_from(self.host.clone());
        let name = name.map_err(|_| Failed::lost("no TLS", "--host is no name for TLS"))?;
        let stream = TlsConnector::from(Arc::clone(tls))
            .connect(name, stream)
            .await;
        stream
            .map(|stream| Box::new(stream) as _)
            .map_err(|error| Failed::lost("no TLS", error.to_string()))
    }
}

fn config(load: &Load, alpn: &[u8]) -> Result<ClientConfig, String> {
    let file = load
        .ca
        .as_ref()
        .ok_or("https needs --ca, the authorities that may have signed")?;
    let wrong = |what: String| format!("--ca {}: {what}", file.display());
    let pem = fs::read(file).map_err(|error| wrong(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| wrong(error.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(error.to_string()))?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(config)
}
