use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::StatusCode,
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use tokio::sync::{RwLock, RwLockWriteGuard};

/// The largest token that was admitted. Each running request holds the read lock.
#[derive(Clone)]
pub struct Fence(Arc<RwLock<u64>>);

impl Fence {
    pub fn new(token: u64) -> Self {
        Self(Arc::new(RwLock::new(token)))
    }
}

/// For `axum::middleware::from_fn_with_state`.
pub async fn fence(State(Fence(fence)): State<Fence>, request: Request, next: Next) -> Response {
    let token = request.headers().get("x-fencing-token");
    let token = token.and_then(|token| token.to_str().ok()?.parse::<u64>().ok());
    let Some(token) = token.filter(|token| (1..1 << 53).contains(token)) else {
        return (StatusCode::BAD_REQUEST, "X-Fencing-Token is no token\n").into_response();
    };
    let mut known = fence.read().await;
    if *known < token {
        drop(known);
        let mut raised = fence.write().await;
        *raised = token.max(*raised);
        known = RwLockWriteGuard::downgrade(raised);
    }
    if token < *known {
        return (StatusCode::CONFLICT, "the token is too small\n").into_response();
    }
    // The lock is held until the handler has answered. What it does while its body is sent is not fenced.
    next.run(request).await
}
