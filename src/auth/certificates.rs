//! Who a client's certificate is for.
//!
//! The TLS handshake has proved that the client has the certificate's key and that an authority in
//! `EA_TLS_CLIENT_CA_FILE` vouches for it. The identity is its first URI (as in
//! [SPIFFE](https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md)), else its first DNS name, else
//! its subject's common name. It has no groups.

use std::sync::OnceLock;

use rustls::pki_types::CertificateDer;
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _, time::ASN1Time,
};

use super::{Identity, Mode, Refusal};

/// A client's certificate and those that vouch for it, as the TLS handshake has verified them.
pub struct Chain {
    certificates: Vec<CertificateDer<'static>>,
    /// Whom it is for and when it expires, in seconds since 1970. Found out once for all requests of a connection:
    /// reading a certificate takes longer than answering.
    read: OnceLock<Result<(Identity, i64), Refusal>>,
}

impl Chain {
    /// A chain that was verified; its first certificate is the client's.
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

    /// Whom the client's certificate is for.
    ///
    /// # Errors
    /// It has no name that an identity can have, or has expired since the connection began.
    pub fn identity(&self) -> Result<Identity, Refusal> {
        let read = self.read.get_or_init(|| read(&self.certificates));
        let (identity, expires) = read.clone()?;
        match ASN1Time::now().timestamp() <= expires {
            true => Ok(identity),
            false => Err(refused("it has expired")),
        }
    }
}

fn refused(why: &str) -> Refusal {
    Refusal::Unauthenticated(format!("the client certificate is not accepted: {why}"))
}

fn read(chain: &[CertificateDer<'_>]) -> Result<(Identity, i64), Refusal> {
    let certificate = chain
        .first()
        .and_then(|der| X509Certificate::from_der(der).ok());
    let (_, certificate) = certificate.ok_or_else(|| refused("it cannot be read"))?;
    let name = name(&certificate)
        .map_err(|()| refused("its alternative names cannot be read"))?
        .ok_or_else(|| refused("it has no URI, DNS name or common name"))?;
    let identity = Identity::new(Mode::Mtls, name, Vec::new()).map_err(|what| refused(&what))?;
    Ok((identity, certificate.validity().not_after.timestamp()))
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

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn of(uris: &[&str], dns: &[&str], common: Option<&str>) -> Result<Identity, Refusal> {
        let mut params = CertificateParams::default();
        // DNS names come first, so that their order is not what decides.
        for name in dns {
            let name = SanType::DnsName((*name).try_into().expect("ASCII"));
            params.subject_alt_names.push(name);
        }
        for uri in uris {
            let uri = SanType::URI((*uri).try_into().expect("ASCII"));
            params.subject_alt_names.push(uri);
        }
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(name) = common {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("signed");
        Chain::new(&[certificate.der().clone()]).identity()
    }

    #[test]
    fn a_uri_counts_before_a_dns_name_and_that_before_the_common_name() {
        for (uris, dns, common, name) in [
            (
                &["spiffe://td/ns/a", "spiffe://td/ns/b"][..],
                &["a.example"][..],
                Some("cn"),
                "spiffe://td/ns/a",
            ),
            (&[], &["a.example", "b.example"], Some("cn"), "a.example"),
            (&[], &[], Some("worker 1"), "worker 1"),
        ] {
            let identity = of(uris, dns, common).expect("an identity");
            assert_eq!((identity.name(), identity.mode()), (name, Mode::Mtls));
            assert!(identity.groups().is_empty());
        }
    }

    #[test]
    fn a_certificate_without_a_usable_name_is_nobodys() {
        for (uris, common) in [
            (&[][..], None),
            (&[], Some("")),
            (&[], Some("a\nb")),
            (&[""], Some("cn")),
        ] {
            let refused = of(uris, &[], common).expect_err("nobody");
            assert!(
                matches!(refused, Refusal::Unauthenticated(_)),
                "{refused:?}"
            );
        }
        let malformed = Chain::new(&[CertificateDer::from(vec![1, 2, 3])]);
        assert!(malformed.identity().is_err());
        assert!(Chain::new(&[]).identity().is_err());
    }

    #[test]
    fn a_certificate_that_has_expired_since_is_nobodys() {
        let mut params = CertificateParams::new(["worker".to_owned()]).expect("params");
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("signed");
        let chain = Chain::new(&[certificate.der().clone()]);
        let refused = chain.identity().expect_err("expired").to_string();
        assert!(refused.contains("expired"), "{refused}");
    }
}
