//! An issuer's public keys, as a JSON Web Key Set ([RFC 7517](https://www.rfc-editor.org/rfc/rfc7517#section-5)) from a
//! file or a URL.
//!
//! A file is reloaded when it changes. A URL is fetched every `EA_AUTH_JWT_REFRESH`, and sooner when a token names an
//! unknown key. The present keys stay in use while newer ones are unavailable. When the set changes, the cache of
//! verified tokens is dropped with the previous set.

use std::{path::PathBuf, sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, Limited};
use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse},
};
use reqwest::redirect::Policy;
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout},
};
use url::Url;

use super::{Verified, signatures};
use crate::{
    causes,
    reload::{self, Mistake, Source, read_file},
    telemetry::trace,
    tls,
};

/// The setting that names the file.
const VARIABLE: &str = "EA_AUTH_JWT_JWKS_FILE";
/// Timeout of a request to the issuer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of a reply body, in bytes.
const MAX_ANSWER: usize = 1024 * 1024;
/// Minimum delay between fetches once keys are known, regardless of the tokens that arrive.
const NOT_SOONER: Duration = Duration::from_secs(10);
/// Minimum delay between fetches while no keys are known.
const RETRY: Duration = Duration::from_secs(2);
/// How long a request waits for newer keys.
const PATIENCE: Duration = Duration::from_secs(2);

/// A key and the algorithm that it may verify.
#[derive(Debug)]
pub(super) struct Key {
    name: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) decoding: DecodingKey,
}

/// A set of keys and the tokens that they have verified.
#[derive(Debug, Default)]
pub struct Keys {
    keys: Vec<Key>,
    pub(super) verified: Verified,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Value>,
}

impl Keys {
    /// Parses a key set. Skips keys of other types and for other purposes.
    ///
    /// # Errors
    /// The input is not a key set, or none of its keys is usable; the text does not repeat the input.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        signatures::verify_with_ring();
        let set: Set = serde_json::from_slice(json)
            .map_err(|error| format!("no JSON Web Key Set ({{\"keys\": […]}}): {error}"))?;
        let keys: Vec<_> = set.keys.into_iter().filter_map(Key::new).collect();
        if keys.is_empty() {
            return Err("there is no key for RS256, ES256 or EdDSA signatures in it".to_owned());
        }
        Ok(Self {
            keys,
            verified: Verified::default(),
        })
    }

    /// Returns whether the set contains a key of this name.
    pub(super) fn has(&self, name: Option<&str>) -> bool {
        name.is_some() && self.keys.iter().any(|key| key.name.as_deref() == name)
    }

    /// Returns the keys that may have signed a token that names this key: the key of that name, and keys without a
    /// name. A token that names no key may be signed by any key.
    pub(super) fn of(&self, name: Option<&str>) -> impl Iterator<Item = &Key> {
        self.keys
            .iter()
            .filter(move |key| name.is_none() || key.name.is_none() || key.name.as_deref() == name)
    }
}

impl Key {
    fn new(key: Value) -> Option<Self> {
        let key: Jwk = serde_json::from_value(key).ok()?;
        if matches!(key.common.public_key_use, Some(PublicKeyUse::Encryption)) {
            return None;
        }
        let algorithm = match &key.algorithm {
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
                Algorithm::ES256
            }
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                Algorithm::EdDSA
            }
            _ => return None,
        };
        let meant_for = key.common.key_algorithm;
        if meant_for.is_some_and(|meant_for| meant_for != algorithm.into()) {
            return None;
        }
        Some(Self {
            decoding: DecodingKey::from_jwk(&key).ok()?,
            name: key.common.key_id,
            algorithm,
        })
    }
}

/// A file that holds a key set.
#[derive(Debug, Clone)]
pub struct File(pub PathBuf);

impl Source for File {
    type Content = Vec<u8>;
    type Made = Keys;

    const WHAT: &'static str = "the issuer's keys";

    fn read(&self) -> Result<Vec<u8>, Vec<Mistake>> {
        read_file(VARIABLE, &self.0).map_err(|mistake| vec![mistake])
    }

    fn make(&self, content: &Vec<u8>) -> Result<Keys, Vec<Mistake>> {
        let wrong = |what| {
            let what = format!("{} cannot be used: {what}", self.0.display());
            vec![Mistake::new(VARIABLE, what)]
        };
        Keys::parse(content).map_err(wrong)
    }
}

/// A URL that serves a key set.
#[derive(Debug, Clone)]
pub struct Remote {
    /// The URL: `https`, or `http` on this host.
    pub url: Url,
    /// PEM file of the authorities trusted for the URL, instead of the system's.
    pub ca: Option<PathBuf>,
    /// Interval between fetches.
    pub refresh: Duration,
}

/// Where keys come from.
#[derive(Debug, Clone)]
pub enum Origin {
    /// A file.
    File(File),
    /// A URL.
    Remote(Remote),
}

/// The result of the latest fetch.
#[derive(Debug, Clone, Copy)]
struct Asked {
    /// Whether the issuer responded with keys.
    answered: bool,
    /// When the next fetch may begin.
    soonest: Instant,
}

/// Keys that are kept up to date. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Following {
    current: reload::Current<Keys>,
    /// For a URL: a notification that requests newer keys, and the result of the latest fetch. The result changes with
    /// every fetch.
    remote: Option<(Arc<Notify>, watch::Receiver<Asked>)>,
}

impl Following {
    /// Starts to follow the keys until the last clone is dropped. A URL that does not respond is not an error.
    ///
    /// # Errors
    /// The file is unusable.
    pub fn start(origin: Origin) -> Result<Self, Vec<Mistake>> {
        match origin {
            Origin::File(file) => Ok(Self {
                current: reload::start(file)?,
                remote: None,
            }),
            Origin::Remote(remote) => {
                let client = remote.client().map_err(|mistake| vec![mistake])?;
                let (publish, current) = watch::channel(Arc::default());
                let (publish_asked, asked) = watch::channel(Asked {
                    answered: false,
                    soonest: Instant::now(),
                });
                let wanted = Arc::new(Notify::new());
                let following = follow(remote, client, publish, publish_asked, Arc::clone(&wanted));
                tokio::spawn(following);
                Ok(Self {
                    current,
                    remote: Some((wanted, asked)),
                })
            }
        }
    }

    #[cfg(test)]
    pub(super) fn fixed(keys: Keys) -> Self {
        Self {
            current: watch::channel(Arc::new(keys)).1,
            remote: None,
        }
    }

    /// Keys of a URL that has not responded and may not be fetched again yet.
    #[cfg(test)]
    pub(super) fn out_of_reach(keys: Keys) -> Self {
        let asked = Asked {
            answered: false,
            soonest: Instant::now() + NOT_SOONER,
        };
        Self {
            remote: Some((Arc::default(), watch::channel(asked).1)),
            ..Self::fixed(keys)
        }
    }

    pub(super) fn current(&self) -> Arc<Keys> {
        Arc::clone(&self.current.borrow())
    }

    /// Returns the keys after another fetch of the URL. Returns `None` if the URL does not respond or was fetched just
    /// now: anyone can name any key, and must not cause unlimited fetches. For a file, returns the present keys.
    pub(super) async fn newer(&self) -> Option<Arc<Keys>> {
        if let Some((wanted, asked)) = &self.remote {
            let mut asked = asked.clone();
            if asked.borrow_and_update().soonest > Instant::now() {
                return None;
            }
            wanted.notify_one();
            let fetched = trace::call("key set fetch", async {
                let changed = timeout(PATIENCE, asked.changed()).await;
                let answered = matches!(changed, Ok(Ok(()))) && asked.borrow().answered;
                answered.then_some(()).ok_or(())
            });
            fetched.await.ok()?;
        }
        Some(self.current())
    }
}

async fn follow(
    remote: Remote,
    client: reqwest::Client,
    publish: watch::Sender<Arc<Keys>>,
    asked: watch::Sender<Asked>,
    wanted: Arc<Notify>,
) {
    let (mut used, mut failing) = (Vec::new(), false);
    loop {
        let fetched = remote.fetch(&client, &used).await;
        let now = Instant::now();
        let answered = fetched.is_ok();
        let (soonest, latest) = match fetched {
            Ok(newer) => {
                if let Some((content, keys)) = newer {
                    tracing::info!(keys = keys.keys.len(), url = %remote.url, "the issuer's keys are known");
                    used = content;
                    publish.send_replace(Arc::new(keys));
                }
                failing = false;
                (now + NOT_SOONER, now + remote.refresh)
            }
            Err(what) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::error!(url = %remote.url, "cannot fetch the issuer's keys, trying again: {what}");
                }
                let again = if used.is_empty() { RETRY } else { NOT_SOONER };
                (now + again, now + again)
            }
        };
        asked.send_replace(Asked { answered, soonest });
        let again = async {
            wanted.notified().await;
            sleep_until(soonest).await;
        };
        tokio::select! {
            () = publish.closed() => return,
            () = sleep_until(latest) => {}
            () = again => {}
        }
    }
}

impl Remote {
    /// Parses a URL and checks that its transport protects the keys from modification: `https`, or `http` on this host.
    ///
    /// # Errors
    /// The text says what to write instead.
    pub fn parse(text: &str) -> Result<Url, String> {
        let instead = "give https://…, or http:// on this host";
        let url = Url::parse(text).map_err(|error| format!("{error}: {instead}"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(format!(
                "keys are public, so it must hold no user or password: {instead}"
            ));
        }
        let on_this_host = match url.host() {
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            Some(url::Host::Domain(name)) => name == "localhost",
            None => false,
        };
        match url.scheme() {
            "https" => Ok(url),
            "http" if on_this_host => Ok(url),
            _ => Err(instead.to_owned()),
        }
    }

    /// Creates the HTTP client for the URL.
    ///
    /// # Errors
    /// The file of authorities is unusable.
    pub(crate) fn client(&self) -> Result<reqwest::Client, Mistake> {
        const CA: &str = "EA_AUTH_JWT_CA_FILE";
        // Needed as well by commands that only read the configuration.
        tls::install_provider();
        let mut builder = reqwest::Client::builder()
            .timeout(FETCH_TIMEOUT)
            .redirect(Policy::none());
        if self.url.scheme() == "http" {
            // A request to this host must not go through a proxy.
            builder = builder.no_proxy();
        }
        if let Some(path) = &self.ca {
            let wrong = |what: String| Mistake::new(CA, what);
            let pem = read_file(CA, path)?;
            let mut authorities = Vec::new();
            for der in tls::certificates(path, &pem).map_err(wrong)? {
                let authority = reqwest::Certificate::from_der(&der);
                authorities.push(authority.map_err(|error| wrong(error.to_string()))?);
            }
            builder = builder.tls_certs_only(authorities);
        }
        let wrong = |error: reqwest::Error| Mistake::new("EA_AUTH_JWT_JWKS_URL", error.to_string());
        builder.build().map_err(wrong)
    }

    /// Fetches the keys and their text. Returns `None` if the text equals the text in use.
    async fn fetch(
        &self,
        client: &reqwest::Client,
        used: &[u8],
    ) -> Result<Option<(Vec<u8>, Keys)>, String> {
        // The cause is the informative part, for example "connection refused".
        let failed = |error: reqwest::Error| causes(&error);
        let response = client.get(self.url.clone()).send().await.map_err(failed)?;
        if !response.status().is_success() {
            return Err(format!("it answers {}", response.status()));
        }
        let body = Limited::new(reqwest::Body::from(response), MAX_ANSWER);
        let body = body.collect().await.map_err(|error| error.to_string())?;
        let content = body.to_bytes().to_vec();
        if content == used {
            return Ok(None);
        }
        let keys = Keys::parse(&content)?;
        Ok(Some((content, keys)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(keys: &Keys, of: Option<&str>) -> Vec<Option<String>> {
        keys.of(of).map(|key| key.name.clone()).collect()
    }

    #[test]
    fn keys_for_other_purposes_are_passed_over() {
        let ed = |extra: Value| {
            let mut key = json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
            for (name, value) in extra.as_object().expect("an object") {
                key[name] = value.clone();
            }
            key
        };
        let keys = json!({"keys": [
            ed(json!({"kid": "a", "use": "sig", "alg": "EdDSA", "x5c": []})),
            ed(json!({"kid": "b", "use": "enc"})),
            ed(json!({"kid": "c", "alg": "RS256"})),
            ed(json!({})),
            {"kty": "oct", "k": "c2VjcmV0", "kid": "d", "alg": "HS256"},
            {"kty": "EC", "crv": "P-384", "x": "AA", "y": "AA", "kid": "e"},
            {"kty": "unheard-of", "kid": "f"},
            "no key",
        ]});
        let keys = Keys::parse(keys.to_string().as_bytes()).expect("two keys");
        let (a, unnamed) = (Some("a".to_owned()), None);
        assert_eq!(names(&keys, None), [a.clone(), unnamed.clone()]);
        assert_eq!(names(&keys, Some("a")), [a, unnamed.clone()]);
        assert_eq!(names(&keys, Some("z")), [unnamed]);
    }

    #[test]
    fn what_is_no_key_set_is_refused_and_not_repeated() {
        for (text, expected) in [
            ("s3cret", "no JSON Web Key Set"),
            ("{\"keys\": \"s3cret\"}", "no JSON Web Key Set"),
            ("{\"keys\": []}", "there is no key"),
            (
                "{\"keys\": [{\"kty\": \"oct\", \"k\": \"s3cret\"}]}",
                "there is no key",
            ),
        ] {
            let refused = Keys::parse(text.as_bytes()).expect_err(text);
            assert!(refused.contains(expected), "{refused}");
        }
    }

    #[test]
    fn keys_are_not_fetched_where_anybody_could_change_them() {
        for good in [
            "https://issuer.example/jwks",
            "http://127.0.0.1:8/x",
            "http://[::1]/x",
            "http://localhost/",
        ] {
            assert!(Remote::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "http://issuer.example/jwks",
            "http://127.0.0.1.example/",
            "ftp://localhost/",
            "jwks.json",
            "",
        ] {
            let found = Remote::parse(bad).expect_err(bad);
            assert!(found.contains("https://"), "{found}");
        }
    }
}
