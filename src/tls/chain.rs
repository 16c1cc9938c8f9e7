//! The certificate chain of a client.

use std::sync::OnceLock;

use rustls::pki_types::CertificateDer;
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _, time::ASN1Time,
};

/// A client's certificate chain, verified by the TLS handshake.
pub struct Chain {
    certificates: Vec<CertificateDer<'static>>,
    /// The name in the certificate, and when the certificate expires, in seconds since 1970. Parsed once for
    /// all requests of a connection: parsing takes longer than a response.
    read: OnceLock<Result<(String, i64), &'static str>>,
}

impl Chain {
    /// Creates a chain from verified certificates; the first is the client's.
    #[must_use]
    pub fn new(certificates: &[CertificateDer<'_>]) -> Self {
        let certificates = certificates.iter();
        Self {
            certificates: certificates.map(|one| one.clone().into_owned()).collect(),
            read: OnceLock::new(),
        }
    }

    /// The certificates, the client's first.
    #[must_use]
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// The name in the client's certificate: its first URI, else its first DNS name, else its subject's
    /// common name.
    ///
    /// # Errors
    /// Returns an error if the certificate has no name, or has expired since the connection was accepted.
    pub fn name(&self) -> Result<&str, &'static str> {
        let read = self.read.get_or_init(|| read(&self.certificates));
        let (name, expires) = read.as_ref().map_err(|why| *why)?;
        match ASN1Time::now().timestamp() <= *expires {
            true => Ok(name),
            false => Err("it has expired"),
        }
    }
}

fn read(chain: &[CertificateDer<'_>]) -> Result<(String, i64), &'static str> {
    let certificate = chain
        .first()
        .and_then(|der| X509Certificate::from_der(der).ok());
    let (_, certificate) = certificate.ok_or("it cannot be read")?;
    let name = name(&certificate)
        .map_err(|()| "its alternative names cannot be read")?
        .ok_or("it has no URI, DNS name or common name")?;
    Ok((name, certificate.validity().not_after.timestamp()))
}

fn name(certificate: &X509Certificate<'_>) -> Result<Option<String>, ()> {
    let alternatives = certificate.subject_alternative_name().map_err(|_| ())?;
    let alternatives = alternatives
        .map(|extension| &extension.value.general_names[..])
        .unwrap_or_default();
    let uri = alternatives.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let dns = alternatives.iter().find_map(|name| match name {
        GeneralName::DNSName(dns) => Some(*dns),
        _ => None,
    });
    let common = certificate.subject().iter_common_name().next();
    let common = common.and_then(|name| name.as_str().ok());
    Ok(uri.or(dns).or(common).map(str::to_owned))
}
