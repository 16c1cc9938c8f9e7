#![doc = include_str!("../README.md")]

mod agent;
mod clock;
mod credentials;
mod error;
mod hooks;
mod lead;
mod observe;
mod pool;
mod proto;
mod seats;
mod streams;
mod term;
mod timer;
mod types;
mod unary;

pub use agent::{Agent, AgentBuilder};
pub use clock::Deadline;
pub use error::{Code, Error, Lost};
pub use hooks::Standing;
pub use lead::{Lead, Leadership, Terms};
pub use observe::{Event, Observer};
pub use term::{Loss, Term};
pub use types::{
    Campaign, Campaigned, Cause, Handover, Kinds, Leader, Leaders, NotCurrent, OfKind, Pod, PodsOf,
    ReplicaSet, Scope, State, Verified,
};
