//! Signals that stop the agent.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Reports when the agent is to stop.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// Cancelled when the agent is to drain and stop.
    pub gently: CancellationToken,
    /// Cancelled when the agent is to stop immediately.
    pub at_once: CancellationToken,
}

/// Cancels `gently` at the first SIGTERM or SIGINT, and `at_once` at the second.
///
/// # Errors
/// Returns the error of the system if the process cannot listen for signals.
pub fn on_signal() -> io::Result<Stop> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = Stop::default();
    let stopped = stop.clone();
    tokio::spawn(async move {
        let signal = either(&mut terminate, &mut interrupt).await;
        tracing::info!(signal, "shutting down; a second signal ends at once");
        stopped.gently.cancel();
        let signal = either(&mut terminate, &mut interrupt).await;
        tracing::warn!(signal, "ending at once");
        stopped.at_once.cancel();
    });
    Ok(stop)
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
