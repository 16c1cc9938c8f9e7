//! A histogram of durations. An observation costs two additions and no lock.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric},
};

/// Counts durations. Clones share their counts and are cheap.
#[derive(Debug, Clone)]
pub(super) struct Durations(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Ascending upper bounds, in seconds.
    bounds: &'static [f64],
    /// One more than bounds: the last counts all durations above them.
    counts: Box<[AtomicU64]>,
    /// The sum in nanoseconds, which overflows after 584 years.
    nanos: AtomicU64,
}

impl Durations {
    /// Creates a histogram whose buckets have these upper bounds, in seconds.
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        Self(Arc::new(Inner {
            bounds,
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            nanos: AtomicU64::new(0),
        }))
    }

    /// Counts a duration.
    pub(super) fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = self.0.bounds.partition_point(|bound| *bound < seconds);
        self.0.counts[bucket].fetch_add(1, Relaxed);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.0.nanos.fetch_add(nanos, Relaxed);
    }
}

impl TypedMetric for Durations {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Durations {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let bounds = self.0.bounds.iter().copied().chain([f64::INFINITY]);
        let counts = self.0.counts.iter().map(|count| count.load(Relaxed));
        let buckets: Vec<_> = bounds.zip(counts).collect();
        // Sums the buckets that were read, so that the count agrees with them despite concurrent
        // observations.
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = Duration::from_nanos(self.0.nanos.load(Relaxed)).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;

    #[test]
    fn durations_are_counted_up_to_and_with_the_bound() {
        let durations = Durations::new(&[0.001, 0.5]);
        for micros in [1, 1_000, 1_001, 500_000, 2_000_000] {
            durations.observe(Duration::from_micros(micros));
        }
        let mut registry = Registry::default();
        registry.register("took", "Help", durations);
        let mut text = String::new();
        encode(&mut text, &registry).expect("encoded");
        let expected = [
            "took_sum 2.502002",
            "took_count 5",
            "took_bucket{le=\"0.001\"} 2",
            "took_bucket{le=\"0.5\"} 4",
            "took_bucket{le=\"+Inf\"} 5",
        ];
        for line in expected {
            assert!(text.lines().any(|other| other == line), "{line}: {text}");
        }
    }
}
