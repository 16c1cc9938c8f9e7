//! The certificate chain of a client.

use std::{any::Any, sync::OnceLock};

use rustls::pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

/// A client's certificate chain, verified by the TLS handshake.
pub struct Chain {
    certificates: Vec<CertificateDer<'static>>,
    /// What [`once`](Self::once) computed.
    computed: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl Chain {
    /// Creates a chain from verified certificates; the first is the client's.
    #[must_use]
    pub fn new(certificates: &[CertificateDer<'_>]) -> Self {
        let certificates = certificates.iter();
        Self {
            certificates: certificates.map(|one| one.clone().into_owned()).collect(),
            computed: OnceLock::new(),
        }
    }

    /// The certificates, the client's first.
    #[must_use]
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// Returns the result of `compute` for all requests of the connection: parsing a certificate takes longer than a
    /// response. Only the first type that is asked for is kept.
    pub fn once<T: Any + Clone + Send + Sync>(&self, compute: impl Fn(&Self) -> T) -> T {
        let computed = self.computed.get_or_init(|| Box::new(compute(self)));
        let computed = computed.downcast_ref::<T>().cloned();
        computed.unwrap_or_else(|| compute(self))
    }

    /// Parses the client's certificate. Returns its name (its first URI, else its first DNS name, else its subject's
    /// common name), and when it expires, in seconds since 1970.
    ///
    /// # Errors
    /// Returns an error if the certificate cannot be parsed or has no name.
    pub fn read(&self) -> Result<(String, i64), &'static str> {
        let certificate = self
            .certificates
            .first()
            .and_then(|der| X509Certificate::from_der(der).ok());
        let (_, certificate) = certificate.ok_or("it cannot be read")?;
        let name = name(&certificate)
            .map_err(|()| "its alternative names cannot be read")?
            .ok_or("it has no URI, DNS name or common name")?;
        Ok((name, certificate.validity().not_after.timestamp()))
    }
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
