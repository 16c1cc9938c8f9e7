//! Finds out who asks, by every mode that is switched on (`EA_AUTH_MODES`).
//!
//! A bearer token counts before a client certificate, and a wrong one is refused even if the certificate is
//! good: whoever shows a credential means it. Tokens are looked for in the file first, then verified as JSON
//! Web Tokens of our issuer, then reviewed by Kubernetes. Who shows nothing is anonymous, if that is allowed.

use super::{
    Identity, Refusal, certificates,
    jwt::Verifier,
    reviews::Reviewer,
    tokens::{self, Hash, Tokens},
};
use crate::{reload::Current, tls::Chain};

/// Finds out who asks. Cheap to clone.
#[derive(Clone, Default)]
pub struct Authenticator {
    /// `none`: whoever shows nothing is let in, as this.
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

/// Who somebody is, as far as that is known without asking anybody.
pub enum Known {
    /// This is who, or why not.
    Yes(Result<Identity, Refusal>),
    /// This bearer token must be verified: by [`Authenticator::verify`].
    NotYet(Hash),
}

impl Authenticator {
    /// Who shows this bearer token (if [`Authenticator::takes_bearers`]), or this chain of certificates.
    pub fn identify(&self, bearer: Option<&str>, chain: Option<&Chain>) -> Known {
        if let Some(token) = bearer {
            return self.remembered(token);
        }
        Known::Yes(match chain.filter(|_| self.mtls) {
            Some(chain) => certificates::identity(chain),
            None => self.anonymous.clone().ok_or_else(|| {
                Refusal::Unauthenticated(format!("show who you are: {}", self.wanted()))
            }),
        })
    }

    fn remembered(&self, token: &str) -> Known {
        let hash = tokens::hash(token);
        if let Some(tokens) = &self.tokens {
            // Cloned, as the lock must not be held while the request goes on.
            let listed = tokens.borrow().find(&hash).cloned();
            if let Some(identity) = listed {
                return Known::Yes(Ok(identity));
            }
        }
        let verified = self.jwt.as_ref().and_then(|jwt| jwt.remembered(&hash));
        if let Some(identity) = verified {
            return Known::Yes(Ok(identity));
        }
        let reviewed = self.kubernetes.as_ref();
        if let Some(verdict) = reviewed.and_then(|reviewer| reviewer.remembered(&hash)) {
            return Known::Yes(verdict);
        }
        match (&self.jwt, &self.kubernetes) {
            (None, None) => Known::Yes(Err(unknown())),
            _ => Known::NotYet(hash),
        }
    }

    /// Whose token this is, if the file does not list it.
    ///
    /// # Errors
    /// Nobody's, or whoever knows does not answer.
    pub async fn verify(&self, token: &str, hash: Hash) -> Result<Identity, Refusal> {
        match (&self.jwt, &self.kubernetes) {
            // Kubernetes has an issuer of its own.
            (Some(jwt), Some(_)) if jwt.claims_our_issuer(token) => jwt.verify(token, &hash).await,
            (_, Some(reviewer)) => reviewer.review(token, &hash).await,
            (Some(jwt), None) => jwt.verify(token, &hash).await,
            (None, None) => Err(unknown()),
        }
    }

    /// Whether any mode takes bearer tokens; otherwise they may be meant for a proxy on the way.
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
