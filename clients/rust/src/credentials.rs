//! Credentials of a caller, and the authorities that it trusts.

use std::{
    fmt, fs,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tonic::{
    metadata::{Ascii, MetadataMap, MetadataValue},
    transport::{Certificate, ClientTlsConfig, Endpoint, Identity},
};

use crate::{Error, pool::deepest};

/// How often files of certificates are checked.
const LOOK: Duration = Duration::from_secs(1);

type Source =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<String, String>> + Send>> + Send + Sync>;

/// Where bearer tokens come from.
#[derive(Clone, Default)]
pub(crate) enum Tokens {
    #[default]
    None,
    Static(String),
    File(PathBuf, Arc<Mutex<Option<String>>>),
    Function(Source),
}

impl Tokens {
    pub(crate) const fn any(&self) -> bool {
        !matches!(self, Self::None)
    }

    /// The present token.
    ///
    /// # Errors
    ///
    /// Why there is none.
    async fn present(&self) -> Result<Option<String>, String> {
        match self {
            Self::None => Ok(None),
            Self::Static(token) => Ok(Some(token.clone())),
            // Read each time: the file is small, and no sign of a change is as sure as its content.
            Self::File(path, last) => {
                let read = fs::read_to_string(path);
                let mut last = last.lock();
                match read {
                    Ok(token) if !token.trim().is_empty() => *last = Some(token.trim().to_owned()),
                    // It may be in the middle of being replaced.
                    Ok(_) if last.is_some() => {}
                    Ok(_) => return Err(format!("the token file {} is empty", path.display())),
                    Err(error) if last.is_some() => {
                        tracing::warn!(path = %path.display(), %error, "the token file: going on with the last token");
                    }
                    Err(error) => {
                        return Err(format!("the token file {}: {error}", path.display()));
                    }
                }
                Ok(last.clone())
            }
            Self::Function(source) => source().await.map(Some),
        }
    }

    /// Puts the present token into a request's metadata.
    ///
    /// # Errors
    ///
    /// Why there is none, or that it holds characters that no token has.
    pub(crate) async fn put(&self, metadata: &mut MetadataMap) -> Result<(), String> {
        if let Some(token) = self.present().await? {
            let value = MetadataValue::<Ascii>::try_from(format!("Bearer {token}"));
            let mut value =
                value.map_err(|_| "the token has characters that no header may have".to_owned())?;
            value.set_sensitive(true);
            metadata.insert("authorization", value);
        }
        Ok(())
    }
}

/// Never prints a token.
impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Static(_) => f.write_str("Static"),
            Self::File(path, _) => f.debug_tuple("File").field(path).finish(),
            Self::Function(_) => f.write_str("Function"),
        }
    }
}

/// Files for encrypted connections. New connections use their present content.
#[derive(Debug, Default)]
pub(crate) struct Tls {
    pub(crate) authorities: Option<PathBuf>,
    /// A certificate and its key.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    /// The name that the agent's certificate has to be for, if it is not the endpoint's.
    pub(crate) server_name: Option<String>,
    state: Mutex<TlsState>,
}

#[derive(Debug, Default)]
struct TlsState {
    contents: Contents,
    looked: Option<Instant>,
    /// Counts the changes.
    version: u64,
}

/// What is in the files.
#[derive(Clone, Default, PartialEq, Eq)]
struct Contents {
    authorities: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// [`Error::Config`]: one cannot be read, or holds nothing that could be of use.
    pub(crate) fn load(&self) -> Result<(), Error> {
        let contents = self.read()?;
        let mut state = self.state.lock();
        state.contents = contents;
        state.looked = Some(Instant::now());
        Ok(())
    }

    fn read(&self) -> Result<Contents, Error> {
        let certificate = |path: &Path| read(path, "CERTIFICATE", "certificate");
        Ok(Contents {
            authorities: self.authorities.as_deref().map(certificate).transpose()?,
            identity: match &self.identity {
                None => None,
                Some((path, key)) => {
                    Some((certificate(path)?, read(key, "PRIVATE KEY", "private key")?))
                }
            },
        })
    }

    /// Checks the files, if that was not done just now. Returns the number of their version.
    pub(crate) fn version(&self) -> u64 {
        let mut state = self.state.lock();
        let files = self.authorities.is_some() || self.identity.is_some();
        if !files || state.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            return state.version;
        }
        state.looked = Some(Instant::now());
        let new = self.read().and_then(|contents| {
            let changed = contents != state.contents;
            if changed {
                // A certificate and a key that do not belong together are in the middle of being replaced.
                let any = Endpoint::from_static("https://agent");
                self.configure(any, &contents).map_err(Error::Config)?;
            }
            Ok(changed.then_some(contents))
        });
        match new {
            Ok(None) => {}
            Ok(Some(contents)) => {
                state.contents = contents;
                state.version += 1;
            }
            Err(error) => {
                tracing::warn!(%error, "files of certificates: going on with the last ones");
            }
        }
        state.version
    }

    /// An endpoint with encryption.
    ///
    /// # Errors
    ///
    /// What is wrong with the files.
    pub(crate) fn apply(&self, endpoint: Endpoint) -> Result<Endpoint, String> {
        let state = self.state.lock();
        self.configure(endpoint, &state.contents)
    }

    fn configure(&self, endpoint: Endpoint, contents: &Contents) -> Result<Endpoint, String> {
        let mut tls = ClientTlsConfig::new();
        tls = match &contents.authorities {
            Some(authorities) => tls.ca_certificate(Certificate::from_pem(authorities)),
            None => tls.with_native_roots(),
        };
        if let Some((certificate, key)) = &contents.identity {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        if let Some(name) = &self.server_name {
            tls = tls.domain_name(name);
        }
        endpoint.tls_config(tls).map_err(|error| deepest(&error))
    }
}

/// Never prints a key.
impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contents").finish_non_exhaustive()
    }
}

/// Reads a PEM file.
fn read(path: &Path, label: &str, what: &str) -> Result<Vec<u8>, Error> {
    let wrong = |why: String| Error::Config(format!("{}: {why}", path.display()));
    let content = fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let mark = format!("{label}-----");
    let holds = content
        .windows(mark.len())
        .any(|part| part == mark.as_bytes());
    if !holds {
        return Err(wrong(format!("there is no {what} in it")));
    }
    Ok(content)
}

/// Propagates the current trace context, if there is one.
#[cfg(feature = "opentelemetry")]
pub(crate) fn put_trace(metadata: &mut MetadataMap) {
    struct Carrier<'a>(&'a mut MetadataMap);

    impl opentelemetry::propagation::Injector for Carrier<'_> {
        fn set(&mut self, key: &str, value: String) {
            let key = tonic::metadata::MetadataKey::<Ascii>::from_bytes(key.as_bytes());
            if let (Ok(key), Ok(value)) = (key, MetadataValue::try_from(value)) {
                self.0.insert(key, value);
            }
        }
    }

    opentelemetry::global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&opentelemetry::Context::current(), &mut Carrier(metadata));
    });
}

/// Propagates nothing: the feature `opentelemetry` is off.
#[cfg(not(feature = "opentelemetry"))]
pub(crate) const fn put_trace(_metadata: &mut MetadataMap) {}
