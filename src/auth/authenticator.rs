//! Authenticates callers by all enabled modes (`EA_AUTH_MODES`).
//!
//! A bearer token takes precedence over a client certificate: an invalid token is refused even if the certificate is
//! valid, because the caller presented it deliberately. Tokens are first looked up in the file, then verified as JSON
//! Web Tokens of our issuer, then reviewed by Kubernetes. A caller without a credential is anonymous, if that is
//! allowed.

use super::{
    Identity, Refusal, certificates,
    jwt::Verifier,
    reviews::Reviewer,
    tokens::{self, Hash, Tokens},
};
use crate::{reload::Current, tls::Chain};

/// Authenticates callers. Cheap to clone.
#[derive(Clone, Default)]
pub struct Authenticator {
    /// `none`: the identity of callers without a credential.
    pub anonymous: Option<Identity>,
    /// `token`.
    pub tokens: Option<Current<Tokens>>,
    /// `jwt`.
    pub jwt: Option<Verifier>,
    /// `kubernetes`.
    pub kubernetes: Option<Reviewer>,
    /// `mtls`.
    pub mtls: bool,
}

/// The result of authentication without requests to other servers.
pub enum Identified {
    /// The identity, or the refusal.
    Yes(Result<Identity, Refusal>),
    /// The bearer token needs verification by [`Authenticator::verify`].
    NotYet(Hash),
}

impl Authenticator {
    /// Identifies the caller by this bearer token (if [`Authenticator::takes_bearers`]) or this chain of certificates.
    pub fn identify(&self, bearer: Option<&str>, chain: Option<&Chain>) -> Identified {
        if let Some(token) = bearer {
            return self.remembered(token);
        }
        Identified::Yes(match chain.filter(|_| self.mtls) {
            Some(chain) => certificates::identity(chain),
            None => self.anonymous.clone().ok_or_else(|| {
                Refusal::Unauthenticated(format!("no accepted credential: {}", self.wanted()))
            }),
        })
    }

    fn remembered(&self, token: &str) -> Identified {
        let hash = tokens::hash(token);
        if let Some(tokens) = &self.tokens {
            // Cloned so that the lock is released before the request continues.
            let listed = tokens.borrow().find(&hash).cloned();
            if let Some(identity) = listed {
                return Identified::Yes(Ok(identity));
            }
        }
        let verified = self.jwt.as_ref().and_then(|jwt| jwt.remembered(&hash));
        if let Some(identity) = verified {
            return Identified::Yes(Ok(identity));
        }
        let reviewed = self.kubernetes.as_ref();
        if let Some(verdict) = reviewed.and_then(|reviewer| reviewer.remembered(&hash)) {
            return Identified::Yes(verdict);
        }
        match (&self.jwt, &self.kubernetes) {
            (None, None) => Identified::Yes(Err(unknown())),
            _ => Identified::NotYet(hash),
        }
    }

    /// Returns the identity of a token that the file does not list.
    ///
    /// # Errors
    /// The token is invalid, or the verifying server does not respond.
    pub async fn verify(&self, token: &str, hash: Hash) -> Result<Identity, Refusal> {
        match (&self.jwt, &self.kubernetes) {
            // Kubernetes has an issuer of its own.
            (Some(jwt), Some(_)) if jwt.claims_our_issuer(token) => jwt.verify(token, &hash).await,
            (_, Some(reviewer)) => reviewer.review(token, &hash).await,
            (Some(jwt), None) => jwt.verify(token, &hash).await,
            (None, None) => Err(unknown()),
        }
    }

    /// Returns whether any mode accepts bearer tokens. If none does, a token may be intended for a proxy in between.
    pub fn takes_bearers(&self) -> bool {
        self.tokens.is_some() || self.jwt.is_some() || self.kubernetes.is_some()
    }

    fn wanted(&self) -> &'static str {
        match (self.takes_bearers(), self.mtls) {
            (true, true) => "send \"authorization: Bearer …\", or use a client certificate",
            (false, true) => "use a client certificate",
            _ => "send \"authorization: Bearer …\"",
        }
    }
}

fn unknown() -> Refusal {
    Refusal::Unauthenticated("the bearer token is not known".to_owned())
}
