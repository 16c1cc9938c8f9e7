//! Verifies tokens by asking a Kubernetes API server
//! ([TokenReview](https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/)).
//!
//! Verdicts are cached for `EA_AUTH_KUBERNETES_CACHE_TTL`, and never past the token's own expiry. The API server thus
//! reviews each token once in that time, regardless of the number of requests, and a revoked token stays valid for no
//! longer than that.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::{Api, Client, api::PostParams};
use quick_cache::sync::Cache;
use serde_json::{Map, Value};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use tracing::Instrument as _;

use super::{Identity, Mode, Refusal, tokens::Hash};
use crate::{causes, telemetry::trace};

/// Capacity of the cache of verdicts.
const REMEMBERED: usize = 10_000;
/// How long a negative verdict is cached.
const REFUSED_FOR: Duration = Duration::from_secs(10);
/// Maximum number of concurrent reviews: unknown tokens must not load the API server.
const AT_ONCE: usize = 16;
/// Timeout of a review, including the wait for a place.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(3);

/// Verifies tokens by asking the API server. Cheap to clone.
#[derive(Clone)]
pub struct Reviewer(Arc<Inner>);

struct Inner {
    reviews: Api<TokenReview>,
    /// The accepted audiences of tokens; empty for the API server's own.
    audiences: Vec<String>,
    remember: Duration,
    verdicts: Cache<Hash, Verdict>,
    under_way: Semaphore,
    /// Whether the latest review failed to give a verdict.
    failing: AtomicBool,
}

#[derive(Clone)]
struct Verdict {
    /// The token's identity, or why the token is invalid.
    identity: Result<Identity, String>,
    until: Instant,
}

impl Reviewer {
    /// Creates a reviewer that asks this API server about tokens for one of `audiences` (empty for the API server's
    /// own) and caches positive verdicts for `remember`.
    #[must_use]
    pub fn new(client: Client, audiences: Vec<String>, remember: Duration) -> Self {
        Self(Arc::new(Inner {
            reviews: Api::all(client),
            audiences,
            remember,
            verdicts: Cache::new(REMEMBERED),
            under_way: Semaphore::new(AT_ONCE),
            failing: AtomicBool::new(false),
        }))
    }

    /// Returns the cached verdict on the token.
    pub(super) fn remembered(&self, hash: &Hash) -> Option<Result<Identity, Refusal>> {
        let verdict = self.0.verdicts.get(hash)?;
        (Instant::now() < verdict.until).then(|| verdict.result())
    }

    /// Returns the identity of a token. Concurrent requests with one token share one review. The review completes even
    /// if they are cancelled, and the next request finds its verdict.
    ///
    /// # Errors
    /// The token is invalid, or the API server gave no verdict.
    pub(super) async fn review(&self, token: &str, hash: &Hash) -> Result<Identity, Refusal> {
        let (inner, token, hash) = (Arc::clone(&self.0), token.to_owned(), *hash);
        let reviewing = async move {
            let now = Instant::now();
            let verdicts = &inner.verdicts;
            verdicts.remove_if(&hash, |verdict| verdict.until <= now);
            verdicts.get_or_insert_async(&hash, inner.ask(&token)).await
        };
        match tokio::spawn(reviewing.in_current_span()).await {
            Ok(verdict) => verdict?.result(),
            Err(_) => Err(unavailable("the review was cancelled")),
        }
    }
}

impl Inner {
    async fn ask(&self, token: &str) -> Result<Verdict, Refusal> {
        let asked = async {
            let _place = self.under_way.acquire().await;
            self.create(token).await
        };
        let answer = trace::call("token review", async {
            let answer = timeout(REVIEW_TIMEOUT, asked).await;
            answer.unwrap_or_else(|_| Err("it does not answer".to_owned()))
        });
        let answer = answer.await;
        let failing = answer.is_err();
        let was_failing = self.failing.swap(failing, Ordering::Relaxed);
        let status = match answer {
            Ok(status) => status,
            Err(what) => {
                // The operator has to fix missing rights or an unavailable server. Logged once, because any caller can
                // cause it any number of times.
                if !was_failing {
                    tracing::error!("the Kubernetes API server does not review tokens: {what}");
                }
                return Err(unavailable("the Kubernetes API server gave no verdict"));
            }
        };
        if was_failing {
            tracing::info!("the Kubernetes API server reviews tokens again");
        }
        let identity = self.identity(status);
        let remember = match &identity {
            Ok(_) => time_left(token).map_or(self.remember, |left| left.min(self.remember)),
            Err(_) => REFUSED_FOR,
        };
        Ok(Verdict {
            identity,
            until: Instant::now() + remember,
        })
    }

    async fn create(&self, token: &str) -> Result<TokenReviewStatus, String> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: (!self.audiences.is_empty()).then(|| self.audiences.clone()),
            },
            ..TokenReview::default()
        };
        let answer = self.reviews.create(&PostParams::default(), &review).await;
        let review = answer.map_err(|error| causes(&error))?;
        Ok(review.status.unwrap_or_default())
    }

    fn identity(&self, status: TokenReviewStatus) -> Result<Identity, String> {
        if status.authenticated != Some(true) {
            // The server's reason may repeat parts of the token.
            return Err("Kubernetes does not know it, or it has expired".to_owned());
        }
        let meant_for = status.audiences.unwrap_or_default();
        let ours = |audience| meant_for.contains(audience);
        if !self.audiences.is_empty() && !self.audiences.iter().any(ours) {
            return Err("it is meant for others (audiences)".to_owned());
        }
        let user = status.user.unwrap_or_default();
        let groups = user.groups.unwrap_or_default();
        Identity::new(Mode::Kubernetes, user.username.unwrap_or_default(), groups)
    }
}

impl Verdict {
    fn result(self) -> Result<Identity, Refusal> {
        self.identity
            .map_err(|why| Refusal::Unauthenticated(format!("the token is not accepted: {why}")))
    }
}

fn unavailable(why: &str) -> Refusal {
    Refusal::Unavailable(format!("{why}; the agent's log says more"))
}

/// Returns the time until the `exp` of a verified token, if it has one.
fn time_left(token: &str) -> Option<Duration> {
    let token = jsonwebtoken::dangerous::insecure_decode::<Map<String, Value>>(token).ok()?;
    let expires = Duration::try_from_secs_f64(token.claims.get("exp")?.as_f64()?).ok()?;
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()?;
    Some(expires.saturating_sub(now))
}
