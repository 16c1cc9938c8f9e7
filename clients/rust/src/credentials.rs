//! What a caller shows to agents.

use std::{
    fmt,
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use tonic::metadata::{Ascii, MetadataMap, MetadataValue};

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
                let read = std::fs::read_to_string(path);
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
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
