//! An issuer of JSON Web Tokens.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::{
    encoding::{AsDer as _, Pkcs8V1Der},
    rsa::{KeyPair as RsaKeyPair, KeySize},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, jwk::Jwk};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use serde_json::{Value, json};

use super::owned;

/// The issuer, and the audience.
pub(crate) const ISSUER: &str = "https://issuer.example";
pub(crate) const AUDIENCE: &str = "election-agent";

/// Before the key itself in the PKCS #8 form of an RSA key of 2048 bits.
const PKCS8_HEADER: usize = 26;

/// A key of the issuer's.
pub(crate) struct Key {
    algorithm: Algorithm,
    name: String,
    private: EncodingKey,
    public: Value,
}

impl Key {
    pub(crate) fn new(algorithm: Algorithm, name: &str) -> Self {
        let base64 = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        let (private, mut public) = match algorithm {
            Algorithm::ES256 => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
                // An uncompressed point: 4, x, y.
                let (x, y) = key.public_key_raw()[1..].split_at(32);
                let public = json!({"kty": "EC", "crv": "P-256", "x": base64(x), "y": base64(y)});
                (EncodingKey::from_ec_der(&key.serialize_der()), public)
            }
            Algorithm::EdDSA => {
                let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
                let x = base64(key.public_key_raw());
                let public = json!({"kty": "OKP", "crv": "Ed25519", "x": x});
                (EncodingKey::from_ed_der(&key.serialize_der()), public)
            }
            Algorithm::RS256 => {
                let key = RsaKeyPair::generate(KeySize::Rsa2048).expect("a key");
                let der: Pkcs8V1Der<'_> = key.as_der().expect("DER");
                let private = EncodingKey::from_rsa_der(&der.as_ref()[PKCS8_HEADER..]);
                let public = Jwk::from_encoding_key(&private, algorithm).expect("a public key");
                (private, serde_json::to_value(public).expect("JSON"))
            }
            other => panic!("{other:?} is not for this issuer"),
        };
        public["kid"] = name.into();
        Self {
            algorithm,
            name: name.to_owned(),
            private,
            public,
        }
    }

    /// A token for this name and these groups, good for a minute.
    pub(crate) fn token(&self, name: &str, groups: &[&str]) -> String {
        self.sign(&json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": name, "groups": groups, "exp": now() + 60,
        }))
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.name.clone());
        encode(&header, claims, &self.private).expect("signed")
    }
}

/// The key set of these keys.
pub(crate) fn key_set(keys: &[&Key]) -> String {
    let keys: Vec<_> = keys.iter().map(|key| &key.public).collect();
    json!({ "keys": keys }).to_string()
}

/// The time as tokens have it.
pub(crate) fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("after 1970").as_secs()
}

/// The settings of an agent that takes the issuer's tokens, but for where its keys are.
pub(crate) fn settings() -> Vec<(String, String)> {
    owned(&[
        ("EA_AUTH_MODES", "jwt"),
        ("EA_AUTH_JWT_ISSUER", ISSUER),
        ("EA_AUTH_JWT_AUDIENCE", AUDIENCE),
    ])
}
