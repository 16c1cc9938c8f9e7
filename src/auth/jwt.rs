//! Verifies JSON Web Tokens of an issuer ([RFC 7519](https://www.rfc-editor.org/rfc/rfc7519)).
//!
//! A token must be signed by one of the issuer's keys ([`keys`]) with RS256, ES256 or EdDSA, and its `iss`, `aud` and
//! `exp` must match; `nbf` is checked if present. The key alone determines the algorithm: the token's `alg` selects
//! nothing ([RFC 8725](https://www.rfc-editor.org/rfc/rfc8725#section-3.1)).

pub mod keys;
mod signatures;

use std::time::Duration;

use jsonwebtoken::{Validation, decode, decode_header, errors::ErrorKind, get_current_timestamp};
use quick_cache::sync::Cache;
use serde_json::{Map, Value};

use super::{Identity, Mode, Refusal, tokens::Hash};
use keys::{Key, Keys};

/// Capacity of the cache of verified tokens. Verifying a signature costs as much as the rest of a request.
const REMEMBERED: usize = 10_000;

/// The claims that tokens must have.
#[derive(Debug, Clone)]
pub struct Expected {
    /// The required issuer: `iss`.
    pub issuer: String,
    /// The accepted audiences: `aud` must contain one of these.
    pub audiences: Vec<String>,
    /// Tolerance for the difference between the issuer's clock and the local clock.
    pub leeway: Duration,
    /// The claim that holds the identity's name.
    pub name_claim: String,
    /// The claim that holds the identity's groups: an array, or a string separated by spaces.
    pub groups_claim: String,
}

/// Verifies tokens.
#[derive(Debug, Clone)]
pub struct Verifier {
    expected: Expected,
    keys: keys::Following,
}

/// Tokens verified with one set of keys, and when they expire.
#[derive(Debug)]
pub(super) struct Verified(Cache<Hash, (Identity, u64)>);

impl Default for Verified {
    fn default() -> Self {
        Self(Cache::new(REMEMBERED))
    }
}

impl Verifier {
    /// Creates a verifier with these keys.
    #[must_use]
    pub fn new(expected: Expected, keys: keys::Following) -> Self {
        Self { expected, keys }
    }

    /// Returns the identity of a token that was verified before and has not expired.
    pub(super) fn remembered(&self, hash: &Hash) -> Option<Identity> {
        let (identity, expires) = self.keys.current().verified.0.get(hash)?;
        (get_current_timestamp() <= expires.saturating_add(self.expected.leeway.as_secs()))
            .then_some(identity)
    }

    /// Returns whether the token names our issuer. This is unverified: anybody can write such a token.
    pub(super) fn claims_our_issuer(&self, token: &str) -> bool {
        let claims = jsonwebtoken::dangerous::insecure_decode::<Map<String, Value>>(token);
        claims.is_ok_and(|token| {
            token.claims.get("iss").and_then(Value::as_str) == Some(&self.expected.issuer)
        })
    }

    /// Returns the identity of a token. Waits briefly for keys that the issuer may have added.
    ///
    /// # Errors
    /// The token is invalid, or its key is unknown and the issuer's keys are unavailable.
    pub(super) async fn verify(&self, token: &str, hash: &Hash) -> Result<Identity, Refusal> {
        let header = decode_header(token).map_err(|_| refused("it is not a JSON Web Token"))?;
        // A token of another issuer must not cause a fetch of keys.
        if !self.claims_our_issuer(token) {
            return Err(refused(why(&ErrorKind::InvalidIssuer)));
        }
        let name = header.kid.as_deref();
        let mut keys = self.keys.current();
        let mut verified = self.verify_by_any(&keys, name, token);
        if let Err(Wrong::Signature(_)) = verified
            && !keys.has(name)
        {
            keys = self.keys.newer().await.ok_or_else(|| {
                Refusal::Unavailable(
                    "the token may be signed by a new key of the issuer, whose keys cannot be fetched at \
                     present: try again in some seconds"
                        .to_owned(),
                )
            })?;
            verified = self.verify_by_any(&keys, name, token);
        }
        let (identity, expires) = verified.map_err(Wrong::into_refusal)?;
        keys.verified.0.insert(*hash, (identity.clone(), expires));
        Ok(identity)
    }

    fn verify_by_any(
        &self,
        keys: &Keys,
        name: Option<&str>,
        token: &str,
    ) -> Result<(Identity, u64), Wrong> {
        let mut wrong =
            Wrong::Signature("it is signed by a key that is not, or no longer, the issuer's");
        for key in keys.of(name) {
            match self.verify_by(key, token) {
                Err(Wrong::Signature(why)) => wrong = Wrong::Signature(why),
                decided => return decided,
            }
        }
        Err(wrong)
    }

    fn verify_by(&self, key: &Key, token: &str) -> Result<(Identity, u64), Wrong> {
        let mut validation = Validation::new(key.algorithm);
        validation.leeway = self.expected.leeway.as_secs();
        validation.validate_nbf = true;
        validation.set_audience(&self.expected.audiences);
        validation.set_issuer(&[&self.expected.issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        let token =
            decode::<Map<String, Value>>(token, &key.decoding, &validation).map_err(|error| {
                let why = why(error.kind());
                match error.kind() {
                    ErrorKind::InvalidSignature | ErrorKind::InvalidAlgorithm => {
                        Wrong::Signature(why)
                    }
                    _ => Wrong::Content(refused(why)),
                }
            })?;
        // `crit` lists extensions that the recipient must understand. This one understands none.
        if token.header.crit.is_some() {
            let refusal = refused("its header has `crit`, which is not supported");
            return Err(Wrong::Content(refusal));
        }
        let expires = token.claims.get("exp").and_then(Value::as_f64);
        let expires = expires.map_or(0, |seconds| seconds.max(0.0) as u64);
        let identity = self.identity(&token.claims).map_err(Wrong::Content)?;
        Ok((identity, expires))
    }

    fn identity(&self, claims: &Map<String, Value>) -> Result<Identity, Refusal> {
        let Expected {
            name_claim,
            groups_claim,
            ..
        } = &self.expected;
        let name = claims.get(name_claim).and_then(Value::as_str);
        let name = name.ok_or_else(|| refused(&format!("it has no text as `{name_claim}`")))?;
        let groups = match claims.get(groups_claim) {
            None | Some(Value::Null) => Some(Vec::new()),
            Some(Value::String(text)) => Some(text.split_whitespace().map(str::to_owned).collect()),
            Some(Value::Array(groups)) => groups
                .iter()
                .map(|group| group.as_str().map(str::to_owned))
                .collect(),
            Some(_) => None,
        };
        let groups = groups.ok_or_else(|| {
            refused(&format!(
                "its `{groups_claim}` is neither a text nor an array of texts"
            ))
        })?;
        Identity::new(Mode::Jwt, name, groups).map_err(|what| refused(&what))
    }
}

/// Why a token is invalid.
enum Wrong {
    /// This key has not signed the token; another one may have.
    Signature(&'static str),
    /// This key has signed the token, but its content is invalid.
    Content(Refusal),
}

impl Wrong {
    fn into_refusal(self) -> Refusal {
        match self {
            Self::Signature(why) => refused(why),
            Self::Content(refusal) => refusal,
        }
    }
}

/// The text states what is wrong with the token without repeating its content.
fn refused(why: &str) -> Refusal {
    Refusal::Unauthenticated(format!("the JSON Web Token is not accepted: {why}"))
}

fn why(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidSignature => "its signature is wrong",
        ErrorKind::ExpiredSignature => "it has expired",
        ErrorKind::ImmatureSignature => "it is not valid yet (nbf)",
        ErrorKind::InvalidIssuer => "it has another issuer (iss)",
        ErrorKind::InvalidAudience => "it is meant for others (aud)",
        ErrorKind::InvalidAlgorithm => "its algorithm is not that of the key that it names",
        ErrorKind::MissingRequiredClaim(_) => "it must have iss, aud and exp",
        _ => "it is malformed",
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
    use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
    use serde_json::json;

    use super::{super::tokens, *};

    #[derive(Clone)]
    struct Issuer {
        key: EncodingKey,
        jwk: Value,
        algorithm: Algorithm,
        kid: &'static str,
    }

    impl Issuer {
        fn new(algorithm: Algorithm, kid: &'static str) -> Self {
            // Before a token is signed: then another library would verify it.
            signatures::verify_with_ring();
            let base64 = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
            let made = |kind| {
                let key = KeyPair::generate_for(kind).expect("a key");
                (key.serialize_der(), key.public_key_raw().to_vec())
            };
            let (key, jwk) = match algorithm {
                Algorithm::ES256 => {
                    let (private, point) = made(&PKCS_ECDSA_P256_SHA256);
                    // The encoding of an uncompressed point: the byte 4, then x and y.
                    let (x, y) = (base64(&point[1..33]), base64(&point[33..]));
                    let jwk = json!({"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": kid});
                    (EncodingKey::from_ec_der(&private), jwk)
                }
                Algorithm::EdDSA => {
                    let (private, public) = made(&PKCS_ED25519);
                    let jwk =
                        json!({"kty": "OKP", "crv": "Ed25519", "x": base64(&public), "kid": kid});
                    (EncodingKey::from_ed_der(&private), jwk)
                }
                _ => unreachable!("RSA keys are made in the integration tests"),
            };
            Self {
                key,
                jwk,
                algorithm,
                kid,
            }
        }

        fn jwk(&self) -> Value {
            self.jwk.clone()
        }

        fn token(&self, claims: &Value) -> String {
            let mut header = Header::new(self.algorithm);
            header.kid = Some(self.kid.to_owned());
            encode(&header, claims, &self.key).expect("signed")
        }
    }

    fn verifier(keys: &[Value]) -> Verifier {
        let keys = Keys::parse(json!({ "keys": keys }).to_string().as_bytes()).expect("keys");
        Verifier::new(
            Expected {
                issuer: "https://issuer.example".to_owned(),
                audiences: vec!["election-agent".to_owned(), "other".to_owned()],
                leeway: Duration::from_secs(30),
                name_claim: "sub".to_owned(),
                groups_claim: "groups".to_owned(),
            },
            keys::Following::fixed(keys),
        )
    }

    fn claims() -> Value {
        json!({
            "iss": "https://issuer.example", "aud": "election-agent", "sub": "worker-1",
            "exp": get_current_timestamp() + 60, "groups": ["batch"],
        })
    }

    fn with(member: &str, value: impl Into<Value>) -> Value {
        let mut claims = claims();
        claims[member] = value.into();
        claims
    }

    async fn verify(verifier: &Verifier, token: &str) -> Result<Identity, String> {
        let verified = verifier.verify(token, &tokens::hash(token)).await;
        verified.map_err(|refusal| refusal.to_string())
    }

    #[tokio::test]
    async fn what_the_issuer_has_signed_is_accepted_and_remembered_until_it_expires() {
        for algorithm in [Algorithm::ES256, Algorithm::EdDSA] {
            let issuer = Issuer::new(algorithm, "k");
            let verifier = verifier(&[issuer.jwk()]);
            let token = issuer.token(&claims());
            let hash = tokens::hash(&token);
            assert!(verifier.claims_our_issuer(&token));
            assert_eq!(verifier.remembered(&hash), None);
            let identity = verify(&verifier, &token).await.expect("good");
            assert_eq!(
                (identity.name(), identity.groups()),
                ("worker-1", &["batch".to_owned()][..])
            );
            assert_eq!(verifier.remembered(&hash), Some(identity));

            let expired = issuer.token(&with("exp", get_current_timestamp() - 29));
            verify(&verifier, &expired)
                .await
                .expect("within the leeway");
            verifier
                .keys
                .current()
                .verified
                .0
                .insert(hash, (Identity::anonymous(), get_current_timestamp() - 31));
            assert_eq!(verifier.remembered(&hash), None, "remembered for too long");
        }
    }

    #[tokio::test]
    async fn claims_may_take_several_forms() {
        let issuer = Issuer::new(Algorithm::ES256, "k");
        let verifier = verifier(&[issuer.jwk()]);
        for (claims, groups) in [
            (with("groups", "b a"), &["a", "b"][..]),
            (with("groups", Value::Null), &[]),
            (with("aud", json!(["x", "other"])), &["batch"]),
            (with("nbf", get_current_timestamp() + 20), &["batch"]),
        ] {
            let identity = verify(&verifier, &issuer.token(&claims))
                .await
                .expect("good");
            assert_eq!(identity.groups(), groups);
        }
    }

    #[tokio::test]
    async fn whatever_does_not_fit_is_refused_with_a_reason_that_tells_nothing_of_the_token() {
        let (issuer, other) = (
            Issuer::new(Algorithm::ES256, "k"),
            Issuer::new(Algorithm::ES256, "k"),
        );
        let verifier = verifier(&[issuer.jwk()]);
        let now = get_current_timestamp();
        let mut without_exp = claims();
        without_exp
            .as_object_mut()
            .expect("an object")
            .remove("exp");
        for (token, expected) in [
            (issuer.token(&with("exp", now - 31)), "expired"),
            (issuer.token(&with("exp", "never")), "iss, aud and exp"),
            (issuer.token(&without_exp), "iss, aud and exp"),
            (issuer.token(&with("nbf", now + 60)), "not valid yet"),
            (issuer.token(&with("nbf", "soon")), "malformed"),
            (issuer.token(&with("iss", "https://evil.example")), "issuer"),
            (issuer.token(&with("iss", json!(1))), "issuer"),
            (issuer.token(&with("aud", "somebody")), "meant for others"),
            (issuer.token(&with("aud", json!([]))), "meant for others"),
            (issuer.token(&with("sub", Value::Null)), "no text as `sub`"),
            (issuer.token(&with("sub", "")), "1 to 256 bytes"),
            (issuer.token(&with("sub", "a\nb")), "control"),
            (issuer.token(&with("groups", json!({"a": 1}))), "groups"),
            (other.token(&claims()), "signature"),
            ("a.b.c".to_owned(), "not a JSON Web Token"),
            ("s3cret".to_owned(), "not a JSON Web Token"),
        ] {
            let refused = verify(&verifier, &token).await.expect_err(expected);
            assert!(refused.contains(expected), "{expected}: {refused}");
            assert!(
                !refused.contains("worker-1")
                    && !refused.contains("s3cret")
                    && !refused.contains(&token)
            );
            assert_eq!(verifier.remembered(&tokens::hash(&token)), None);
        }
    }

    #[tokio::test]
    async fn a_token_chooses_neither_its_algorithm_nor_a_key_of_another_name() {
        let (issuer, second) = (
            Issuer::new(Algorithm::ES256, "one"),
            Issuer::new(Algorithm::EdDSA, "two"),
        );
        let verifier = verifier(&[issuer.jwk(), second.jwk()]);
        for issuer in [&issuer, &second] {
            verify(&verifier, &issuer.token(&claims()))
                .await
                .expect("good");
        }
        // Signed with HMAC, with the public key as the secret.
        let public = issuer.jwk()["x"].as_str().expect("a key").to_owned();
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some("one".to_owned());
        let forged = encode(
            &header,
            &claims(),
            &EncodingKey::from_secret(public.as_bytes()),
        )
        .expect("made");
        let refused = verify(&verifier, &forged).await.expect_err("forged");
        assert!(refused.contains("algorithm"), "{refused}");
        // Unsigned.
        let none = format!(
            "eyJhbGciOiJub25lIn0.{}.",
            forged.split('.').nth(1).expect("claims")
        );
        verify(&verifier, &none).await.expect_err("not signed");
        // Another key under the name of the issuer's key.
        let impostor = Issuer {
            kid: "two",
            ..issuer
        };
        verify(&verifier, &impostor.token(&claims()))
            .await
            .expect_err("another key's name");
    }

    #[tokio::test]
    async fn an_extension_that_must_be_understood_is_refused() {
        let issuer = Issuer::new(Algorithm::EdDSA, "k");
        let header = json!({"alg": "EdDSA", "kid": "k", "crit": ["b64"], "b64": false});
        let header: Header = serde_json::from_value(header).expect("a header");
        let token = encode(&header, &claims(), &issuer.key).expect("signed");
        let refused = verify(&verifier(&[issuer.jwk()]), &token)
            .await
            .expect_err("crit");
        assert!(refused.contains("crit"), "{refused}");
    }

    #[tokio::test]
    async fn keys_that_cannot_be_had_are_no_verdict_on_the_token() {
        let (known, new) = (
            Issuer::new(Algorithm::EdDSA, "known"),
            Issuer::new(Algorithm::EdDSA, "new"),
        );
        let keys =
            || Keys::parse(json!({"keys": [known.jwk()]}).to_string().as_bytes()).expect("keys");
        let expected = verifier(&[known.jwk()]).expected;
        for keys in [Keys::default(), keys()] {
            let verifier = Verifier::new(expected.clone(), keys::Following::out_of_reach(keys));
            let refusal = verifier.verify(&new.token(&claims()), &[0; 32]).await;
            assert!(
                matches!(refusal, Err(Refusal::Unavailable(_))),
                "{refusal:?}"
            );
            // No key can make this token valid.
            let others = new.token(&with("iss", "https://evil.example"));
            let refusal = verifier.verify(&others, &[0; 32]).await;
            assert!(
                matches!(refusal, Err(Refusal::Unauthenticated(_))),
                "{refusal:?}"
            );
        }
        let verifier = Verifier::new(expected, keys::Following::out_of_reach(keys()));
        verify(&verifier, &known.token(&claims()))
            .await
            .expect("good");
        let forged = Issuer {
            kid: "known",
            ..new
        };
        verify(&verifier, &forged.token(&claims()))
            .await
            .expect_err("that key has not signed it");
    }
}
