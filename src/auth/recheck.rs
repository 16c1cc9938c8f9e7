//! Checks the credential of a stream again while the stream lasts.

use std::{fmt, sync::Arc};

use http::Extensions;

use super::{
    Identity, Refusal,
    authenticator::{Authenticator, Identified},
};
use crate::tls::Chain;

/// The credential that a stream began with. Cheap to clone.
#[derive(Clone, Default)]
pub struct Recheck(Option<Arc<Credential>>);

struct Credential {
    authenticator: Authenticator,
    bearer: Option<String>,
    chain: Option<Arc<Chain>>,
}

impl Recheck {
    /// Creates a recheck of this credential.
    #[must_use]
    pub fn new(
        authenticator: Authenticator,
        bearer: Option<String>,
        chain: Option<Arc<Chain>>,
    ) -> Self {
        Self(Some(Arc::new(Credential {
            authenticator,
            bearer,
            chain,
        })))
    }

    /// Returns the recheck of the request with these extensions.
    #[must_use]
    pub fn of(extensions: &Extensions) -> Self {
        extensions.get().cloned().unwrap_or_default()
    }

    /// Authenticates the credential again. Returns [`None`] if it is no longer valid or proves another identity than
    /// `before`.
    ///
    /// While the verifying server does not respond, returns `before`: an outage of that server must not end the
    /// streams of all callers.
    pub async fn again(&self, before: &Identity) -> Option<Identity> {
        let credential = self.0.as_ref()?;
        let (bearer, chain) = (credential.bearer.as_deref(), credential.chain.as_deref());
        let identified = match credential.authenticator.identify(bearer, chain) {
            Identified::Yes(identity) => identity,
            Identified::NotYet(hash) => {
                let token = bearer.unwrap_or_default();
                credential.authenticator.verify(token, hash).await
            }
        };
        match identified {
            Ok(now) if (now.mode(), now.name()) == (before.mode(), before.name()) => Some(now),
            Ok(_) | Err(Refusal::Unauthenticated(_)) => None,
            Err(Refusal::Unavailable(_)) => Some(before.clone()),
        }
    }
}

impl fmt::Debug for Recheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Omits the credential.
        f.write_str("Recheck")
    }
}
