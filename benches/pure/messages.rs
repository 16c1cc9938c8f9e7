//! Validation of names at the edge, and encoding of a campaign's messages as Protocol Buffers.

use std::hint::black_box;

use criterion::Criterion;
use election_core::types::{Candidate, ElectionId};
use election_proto::{CampaignRequest, CampaignResult};
use prost::Message as _;

use crate::measure::group;

pub(crate) fn benches(criterion: &mut Criterion) {
    let mut names = group(criterion, "names");
    names.bench_function("election", |bencher| {
        bencher.iter(|| ElectionId::new(black_box("batch"), black_box("nightly-report")));
    });
    names.bench_function("candidate", |bencher| {
        bencher.iter(|| Candidate::new("candidate", black_box("worker-1")));
    });
    names.finish();

    let request = CampaignRequest {
        election: "nightly-report".to_owned(),
        candidate: "worker-1".to_owned(),
        term: 10_000,
        kind: "batch".to_owned(),
        value: "10.0.0.7:9000".to_owned(),
        request_id: "5f1c".to_owned(),
        wait: 0,
    };
    let sent = request.encode_to_vec();
    let result = CampaignResult {
        elected: true,
        leader: "worker-1".to_owned(),
        kind: "batch".to_owned(),
        token: 1_795_449_600_000_000,
        valid_for: 9893,
        value: "10.0.0.7:9000".to_owned(),
        provisional: false,
    };
    let mut protobuf = group(criterion, "protobuf");
    protobuf.bench_function("decode CampaignRequest", |bencher| {
        bencher.iter(|| CampaignRequest::decode(black_box(sent.as_slice())));
    });
    protobuf.bench_function("encode CampaignResult", |bencher| {
        bencher.iter(|| black_box(&result).encode_to_vec());
    });
}
