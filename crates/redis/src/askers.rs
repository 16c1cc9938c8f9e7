//! The runtimes that call lease nodes.

use std::{iter::once, sync::Arc};

use tokio::runtime::Handle;

/// The runtimes that call lease nodes. Each has connections of its own, which it alone uses and drives. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Askers {
    /// The runtimes that serve requests, in the order of their numbers.
    pub serving: Arc<[Handle]>,
    /// The background runtime: it runs the work besides requests, and maintains all connections.
    pub background: Handle,
    /// Returns the number, from 0, of the runtime in [`serving`](Self::serving) that calls it; `None` on any other
    /// runtime. Every run of a script calls it.
    pub number: fn() -> Option<usize>,
}

impl Askers {
    /// Uses the current runtime for everything.
    #[must_use]
    pub fn here() -> Self {
        Self {
            serving: [].into(),
            background: Handle::current(),
            number: || None,
        }
    }

    /// Iterates over all runtimes, [`background`](Self::background) last.
    pub fn all(&self) -> impl Iterator<Item = &Handle> {
        self.serving.iter().chain(once(&self.background))
    }
}
