//! TLS on both ports.

use std::time::Duration;

use super::names::{
    EA_TLS_CERT_FILE, EA_TLS_CLIENT_AUTH, EA_TLS_CLIENT_CA_FILE, EA_TLS_HANDSHAKE_TIMEOUT,
    EA_TLS_KEY_FILE,
};
use super::{Setting, setting, values::Reader};
use crate::tls::{ClientAuth, Files};

pub(super) const SETTINGS: &[Setting] = &[
    setting(
        EA_TLS_CERT_FILE,
        "",
        "PEM file of the agent's certificate and those that vouch for it, read again when it changes; none: no TLS",
    ),
    setting(
        EA_TLS_KEY_FILE,
        "",
        "PEM file of the certificate's private key, read again when it changes",
    ),
    setting(
        EA_TLS_CLIENT_CA_FILE,
        "",
        "PEM file of the authorities that vouch for clients' certificates (mTLS), read again when it changes; none: clients present no certificate",
    ),
    setting(
        EA_TLS_CLIENT_AUTH,
        "required",
        "with EA_TLS_CLIENT_CA_FILE: `required`: a client without a certificate is rejected; `optional`: it may have none, but not an invalid one",
    ),
    setting(
        EA_TLS_HANDSHAKE_TIMEOUT,
        "10s",
        "how long a client may take for the TLS handshake (100ms to 1m)",
    ),
];

/// TLS on both ports.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The certificate and key files; valid when the configuration was read.
    pub files: Files,
    /// Timeout of a handshake.
    pub handshake_timeout: Duration,
}

impl Tls {
    /// Returns `Some(None)` for plain text.
    #[expect(
        clippy::option_option,
        reason = "as all groups, None says that there were mistakes"
    )]
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Option<Self>> {
        let (certificate, key, client_ca) = (
            reader.path(EA_TLS_CERT_FILE),
            reader.path(EA_TLS_KEY_FILE),
            reader.path(EA_TLS_CLIENT_CA_FILE),
        );
        let client_auth: Option<ClientAuth> = reader.one_of(EA_TLS_CLIENT_AUTH);
        let handshake_timeout = reader.duration(
            EA_TLS_HANDSHAKE_TIMEOUT,
            Duration::from_millis(100),
            Duration::from_secs(60),
        );
        if reader.is_given(EA_TLS_CLIENT_AUTH) && client_ca.is_none() {
            reader.mistake(
                EA_TLS_CLIENT_AUTH,
                "it says what EA_TLS_CLIENT_CA_FILE is used for: set that, too, or leave this out",
            );
        }
        let (certificate, key) = match (certificate, key) {
            (Some(certificate), Some(key)) => (certificate, key),
            (None, None) => {
                if client_ca.is_some() {
                    reader.mistake(
                        EA_TLS_CLIENT_CA_FILE,
                        "clients show certificates over TLS only: set EA_TLS_CERT_FILE and EA_TLS_KEY_FILE, too",
                    );
                }
                return Some(None);
            }
            (Some(_), None) => {
                reader.mistake(
                    EA_TLS_KEY_FILE,
                    "EA_TLS_CERT_FILE needs the certificate's private key: set this, too",
                );
                return None;
            }
            (None, Some(_)) => {
                reader.mistake(
                    EA_TLS_CERT_FILE,
                    "EA_TLS_KEY_FILE needs the key's certificate: set this, too",
                );
                return None;
            }
        };
        let files = Files {
            certificate,
            key,
            client_ca: client_ca.map(|path| (path, client_auth.unwrap_or(ClientAuth::Required))),
        };
        // Mistakes in the files are reported with all others.
        reader.files(&files);
        Some(Some(Self {
            files,
            handshake_timeout: handshake_timeout?,
        }))
    }
}
