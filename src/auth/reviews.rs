//! Tokens that a Kubernetes API server reviews
//! ([TokenReview](https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/)).
//!
//! Verdicts are remembered (`EA_AUTH_KUBERNETES_CACHE_TTL`, and never past the token's own end), so that the
//! API server is asked once in that time for each token, however many requests come with it, and a token that
//! is revoked is let in no longer than that.

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

/// How many verdicts are remembered.
const REMEMBERED: usize = 10_000;
/// How long it is remembered that a token is not good.
const REFUSED_FOR: Duration = Duration::from_secs(10);
/// How many reviews may be under way: strangers' tokens must not be a burden for the API server.
const AT_ONCE: usize = 16;
/// How long a review may take, waiting included.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(3);

/// Asks the API server whose tokens are. Cheap to clone.
#[derive(Clone)]
pub struct Reviewer(Arc<Inner>);

struct Inner {
    reviews: Api<TokenReview>,
    /// For whom tokens must be; none: for the API server.
    audiences: Vec<String>,
    remember: Duration,
    verdicts: Cache<Hash, Verdict>,
    under_way: Semaphore,
    /// Whether the last review came to nothing.
    failing: AtomicBool,
}

#[derive(Clone)]
struct Verdict {
    /// Whose the token is, or why it is nobody's.
    identity: Result<Identity, String>,
    until: Instant,
}

impl Reviewer {
    /// Asks this API server about tokens for one of `audiences` (none: for the API server itself), and
    /// remembers for this long whose they are.
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

    /// What is remembered of the token.
    pub(super) fn remembered(&self, hash: &Hash) -> Option<Result<Identity, Refusal>> {
        let verdict = self.0.verdicts.get(hash)?;
        (Instant::now() < verdict.until).then(|| verdict.told())
    }

    /// Whose token this is. Requests with one token wait for one review, which goes on when they do not: the
    /// next one finds its verdict.
    ///
    /// # Errors
    /// The token is not good, or the API server did not say.
    pub(super) async fn review(&self, token: &str, hash: &Hash) -> Result<Identity, Refusal> {
        let (inner, token, hash) = (Arc::clone(&self.0), token.to_owned(), *hash);
        let reviewing = async move {
            let now = Instant::now();
            let verdicts = &inner.verdicts;
            verdicts.remove_if(&hash, |verdict| verdict.until <= now);
            verdicts.get_or_insert_async(&hash, inner.ask(&token)).await
        };
        match tokio::spawn(reviewing.in_current_span()).await {
            Ok(verdict) => verdict?.told(),
            Err(_) => Err(unavailable("the review was broken off")),
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
                // Rights that are missing, or a server that is down: both are the operator's to mend. Told once,
                // as anybody can cause it as often as they like.
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
    fn told(self) -> Result<Identity, Refusal> {
        self.identity
            .map_err(|why| Refusal::Unauthenticated(format!("the token is not accepted: {why}")))
    }
}

fn unavailable(why: &str) -> Refusal {
    Refusal::Unavailable(format!("{why}; the agent's log says more"))
}

/// How long a token that was found good is good by its own word, if it says so.
fn time_left(token: &str) -> Option<Duration> {
    let token = jsonwebtoken::dangerous::insecure_decode::<Map<String, Value>>(token).ok()?;
    let expires = Duration::try_from_secs_f64(token.claims.get("exp")?.as_f64()?).ok()?;
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()?;
    Some(expires.saturating_sub(now))
}
