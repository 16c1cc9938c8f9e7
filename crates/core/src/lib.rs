//! Elections with leases on a quorum of nodes: the domain, independent of transports and of kinds of servers.
//!
//! 1. [`election`] is the interface for callers: campaign, extend, resign, hand over, read, list.
//! 2. [`lease::quorum`] sends every operation to all lease nodes and decides by a majority.
//! 3. [`board`] serves campaigns that wait for an election and observers of elections.
//! 4. [`lease::LeaseNode`] is the contract of a node; [`lease::embedded`] is a node in this process.
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use election_core::{
//!     election::{Campaign, Elections, Outcome}, types::{Candidate, ElectionId, Term, Value},
//!     lease::{Settings, embedded::Embedded, guard::RestartGuard, quorum::{Options, Quorum}},
//! };
//! use tokio::time::Instant;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let minute = Duration::from_secs(60);
//! let (vote, guard) = (Duration::from_secs(3), RestartGuard::On);
//! let settings = Settings { retention: minute, guard: guard.duration(minute), vote };
//! let nodes = vec![Arc::new(Embedded::in_memory(settings)) as _];
//! let options = Options::new(vote, guard, minute);
//! let elections = Elections::new(Quorum::new(nodes, options), minute);
//!
//! let campaign = Campaign {
//!     election: ElectionId::new("batch", "nightly-report")?,
//!     candidate: Candidate::new("candidate", "worker-1")?,
//!     term: Term::from_millis(10_000, elections.max_term())?,
//!     value: Value::default(),
//!     request_id: None,
//!     wait: None,
//! };
//! let deadline = Instant::now() + Duration::from_secs(1);
//! let outcome = elections.campaign(&campaign, deadline).await?;
//! assert!(matches!(outcome, Outcome::Elected { .. }));
//! # Ok(())
//! # }
//! ```

pub mod board;
pub mod election;
pub mod lease;
pub mod types;
