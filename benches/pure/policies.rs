//! Authorization of a campaign by the built-in policies. `kept` is a decision from the cache, as almost all
//! are; `evaluated` is one that is not cached.

use std::cell::Cell;

use criterion::{BatchSize, Criterion};
use election_agent::auth::{
    Identity, Mode,
    policy::{Policies, PolicyAction, Question, Resource},
};
use election_core::types::Candidate;

use crate::{
    measure::group,
    quorum::{candidate, election},
};

pub(crate) fn benches(criterion: &mut Criterion) {
    let policies = Policies::default();
    let identity = Identity::new(Mode::Token, "worker-1", vec!["workers".to_owned()]);
    let (identity, election) = (identity.expect("a name"), election("nightly-report"));
    let may = |candidate: &Candidate| {
        let question = Question {
            candidate: Some(candidate),
            ..Question::new(
                &identity,
                PolicyAction::Campaign,
                Resource::Election(&election),
            )
        };
        assert!(policies.decide(&question).allowed());
    };

    let mut group = group(criterion, "policies");
    let same = candidate("worker-1");
    group.bench_function("kept", |bencher| bencher.iter(|| may(&same)));
    let number = Cell::new(0_u64);
    group.bench_function("evaluated", |bencher| {
        let another = || {
            number.set(number.get() + 1);
            candidate(&format!("worker-1/{}", number.get()))
        };
        bencher.iter_batched(another, |candidate| may(&candidate), BatchSize::SmallInput);
    });
}
