//! The runtimes that ask lease nodes.

use std::{iter::once, sync::Arc};

use tokio::runtime::Handle;

/// The runtimes that ask lease nodes: each has connections of its own, which it alone uses and drives. Cheap to
/// clone.
#[derive(Debug, Clone)]
pub struct Askers {
    /// Those that serve requests, in the order of their numbers.
    pub serving: Arc<[Handle]>,
    /// The one for whatever goes on beside requests: it also keeps all connections up.
    pub beside: Handle,
    /// Tells the number, from 0, of the runtime in [`serving`](Self::serving) that calls it; `None` on any other.
    /// Called for every script that is run.
    pub number: fn() -> Option<usize>,
}

impl Askers {
    /// The runtime that this is called in, for all.
    #[must_use]
    pub fn here() -> Self {
        Self {
            serving: [].into(),
            beside: Handle::current(),
            number: || None,
        }
    }

    /// All of them, [`beside`](Self::beside) last.
    pub fn all(&self) -> impl Iterator<Item = &Handle> {
        self.serving.iter().chain(once(&self.beside))
    }
}
