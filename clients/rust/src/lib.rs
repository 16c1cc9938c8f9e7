#![doc = include_str!("guide.md")]

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

/// The examples of the file that registries show.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use super::*;

    #[test]
    fn public_types_go_from_thread_to_thread_and_say_what_they_are() {
        fn is<T: Debug + Send + Sync + Unpin + 'static>() {}
        fn is_cloned<T: Clone>() {}
        is::<Agent>();
        is::<AgentBuilder>();
        is::<Campaign>();
        is::<Campaigned>();
        is::<Deadline>();
        is::<Error>();
        is::<Event>();
        is::<Handover>();
        is::<Lead>();
        is::<Leadership>();
        is::<Loss>();
        is::<Observer>();
        is::<Standing>();
        is::<State>();
        is::<Term>();
        is::<Terms>();
        is::<Verified>();
        is_cloned::<(Agent, Lead, Loss, Term, Error, Event, State)>();
    }
}
