//! Counting a response, and writing `/metrics`: without elections, and with 1,000 that have series of their
//! own, the maximum of a kind.

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion};
use election_agent::{
    endpoint::Action,
    outcomes,
    telemetry::metrics::{DEFAULT_BUCKETS, Format, Metrics, ResponseStatus},
};
use election_core::{
    election::{Campaign, Elections, Outcome},
    types::{Kind, Value},
};
use strum::VariantArray;
use tokio::time::Instant;

use crate::{
    measure::{group, runtime},
    quorum::{HOUR, candidate, election, of, term},
};

/// Metrics of an agent that has handled every request once, and on which this many elections were won.
fn metrics(elections: usize) -> Metrics {
    let kind = Kind::new("batch").expect("a kind");
    let metrics = Metrics::with_elections(&DEFAULT_BUCKETS, &[kind]);
    for action in Action::VARIANTS {
        count(&metrics, *action);
    }
    let won = Elections::new(of(1), HOUR).entered_into(outcomes::ledger(&metrics));
    runtime().block_on(async {
        for number in 0..elections {
            let campaign = Campaign {
                election: election(&format!("report-{number}")),
                candidate: candidate("worker-1"),
                term: term(),
                value: Value::default(),
                request_id: None,
                wait: None,
            };
            let outcome = won.campaign(&campaign, Instant::now() + HOUR).await;
            assert!(matches!(outcome, Ok(Outcome::Elected { .. })));
        }
    });
    metrics
}

fn count(metrics: &Metrics, action: Action) {
    let answer = ResponseStatus {
        status: tonic::Code::Ok,
        code: None,
    };
    let took = black_box(Duration::from_micros(700));
    metrics.begin(action).answered(answer, took, None);
}

pub(crate) fn benches(criterion: &mut Criterion) {
    let mut group = group(criterion, "metrics");
    for elections in [0, 1000] {
        let metrics = metrics(elections);
        let series = metrics.text(Format::OpenMetrics);
        let series = series.lines().filter(|line| line.contains("report-"));
        assert!(series.count() >= elections);
        for (name, format) in [
            ("OpenMetrics", Format::OpenMetrics),
            ("Prometheus text", Format::Text),
        ] {
            let id = BenchmarkId::new(name, format!("{elections} elections"));
            group.bench_function(id, |bencher| bencher.iter(|| metrics.text(format)));
        }
    }
    let metrics = metrics(0);
    group.bench_function("count an answer", |bencher| {
        bencher.iter(|| count(&metrics, Action::Extend));
    });
}
