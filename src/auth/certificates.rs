//! Derives an identity from a client certificate.
//!
//! The TLS handshake has proved that the client holds the certificate's key and that an authority in
//! `EA_TLS_CLIENT_CA_FILE` signed the certificate. The identity's name is the certificate's first URI (as in
//! [SPIFFE](https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md)), else its first DNS name, else its
//! subject's common name. The identity has no groups.

use x509_parser::time::ASN1Time;

use super::{Identity, Mode, Refusal};
use crate::tls::Chain;

/// Returns the identity that a client certificate names.
///
/// # Errors
/// The certificate has no name that is valid for an identity, or has expired since the connection began.
pub(super) fn identity(chain: &Chain) -> Result<Identity, Refusal> {
    let (identity, expires) = chain.once(read)?;
    match ASN1Time::now().timestamp() <= expires {
        true => Ok(identity),
        false => Err(refused("it has expired")),
    }
}

/// Returns the identity and the time, in seconds since 1970, at which it expires.
fn read(chain: &Chain) -> Result<(Identity, i64), Refusal> {
    let (name, expires) = chain.read().map_err(refused)?;
    let identity = Identity::new(Mode::Mtls, name, Vec::new()).map_err(|what| refused(&what))?;
    Ok((identity, expires))
}

fn refused(why: &str) -> Refusal {
    Refusal::Unauthenticated(format!("the client certificate is not accepted: {why}"))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};
    use rustls::pki_types::CertificateDer;

    use super::*;

    fn of(uris: &[&str], dns: &[&str], common: Option<&str>) -> Result<Identity, Refusal> {
        let mut params = CertificateParams::default();
        // DNS names are added first, so that the order does not decide.
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
        identity(&Chain::new(&[certificate.der().clone()]))
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
            let found = of(uris, dns, common).expect("an identity");
            assert_eq!((found.name(), found.mode()), (name, Mode::Mtls));
            assert!(found.groups().is_empty());
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
        assert!(identity(&malformed).is_err());
        assert!(identity(&Chain::new(&[])).is_err());
    }

    #[test]
    fn a_certificate_that_has_expired_since_is_nobodys() {
        let mut params = CertificateParams::new(["worker".to_owned()]).expect("params");
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("signed");
        let chain = Chain::new(&[certificate.der().clone()]);
        let refused = identity(&chain).expect_err("expired").to_string();
        assert!(refused.contains("expired"), "{refused}");
    }
}
