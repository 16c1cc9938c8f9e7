//! Metrics of lease nodes and of quorum operations.

use std::{array, fmt, time::Duration};

use election_core::lease::quorum::{
    NodeStatus,
    observer::{Called, Operation, QuorumObserver, RetryReason},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::{Family, MetricConstructor},
        gauge::Gauge,
    },
};
use strum::VariantArray;

use super::{Flag, Registrar, Seconds, histogram::Durations, table};

/// Upper bounds of the node call buckets, in seconds. Nodes are closer than callers.
const BUCKETS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0,
];

/// Errors of calls: the values of the label.
const ERRORS: [&str; 4] = ["timeout", "failed", "not_sent", "full"];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfNode {
    node: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallTo {
    node: String,
    operation: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failed {
    node: String,
    operation: &'static str,
    error: &'static str,
}

#[derive(Debug, Clone)]
struct Made;

impl MetricConstructor<Durations> for Made {
    fn new_metric(&self) -> Durations {
        Durations::new(BUCKETS)
    }
}

/// The metrics of nodes.
#[derive(Debug)]
pub(super) struct Nodes {
    disconnected: Gauge,
    up: Family<OfNode, Flag>,
    guard: Family<OfNode, Seconds>,
    memory_used: Family<OfNode, Gauge>,
    memory_max: Family<OfNode, Gauge>,
    durations: Family<CallTo, Durations, Made>,
    errors: Family<Failed, Counter>,
    token_retries: Counter,
    split_votes: Counter,
    rollbacks: Counter,
    repairs: Counter,
}

impl Nodes {
    pub(super) fn register(registrar: &mut Registrar) -> Self {
        let nodes = Self {
            disconnected: Gauge::default(),
            up: Family::default(),
            guard: Family::default(),
            memory_used: Family::default(),
            memory_max: Family::default(),
            durations: Family::new_with_constructor(Made),
            errors: Family::default(),
            token_retries: Counter::default(),
            split_votes: Counter::default(),
            rollbacks: Counter::default(),
            repairs: Counter::default(),
        };
        registrar.register(&table::DISCONNECTED, nodes.disconnected.clone());
        registrar.register(&table::NODE_UP, nodes.up.clone());
        registrar.register(&table::NODE_GUARD, nodes.guard.clone());
        registrar.register(&table::NODE_MEMORY_USED, nodes.memory_used.clone());
        registrar.register(&table::NODE_MEMORY_MAX, nodes.memory_max.clone());
        registrar.register(&table::NODE_DURATION, nodes.durations.clone());
        registrar.register(&table::NODE_ERRORS, nodes.errors.clone());
        registrar.register(&table::TOKEN_RETRIES, nodes.token_retries.clone());
        registrar.register(&table::SPLIT_VOTES, nodes.split_votes.clone());
        registrar.register(&table::WITHDRAWALS, nodes.rollbacks.clone());
        registrar.register(&table::HEALS, nodes.repairs.clone());
        nodes
    }

    /// Publishes the health of the nodes.
    pub(super) fn report(&self, nodes: &[NodeStatus]) {
        let down = nodes.iter().filter(|node| node.probe.is_err()).count();
        self.disconnected
            .set(i64::try_from(down).unwrap_or(i64::MAX));
        for status in nodes {
            let node = OfNode {
                node: status.name.clone(),
            };
            self.up
                .get_or_create(&node)
                .set(i64::from(status.probe.is_ok()));
            // Removes a value that is no longer known: a stale one would mislead.
            let probe = status.probe.as_ref().ok();
            match probe.and_then(|probe| probe.guard) {
                Some(left) => {
                    self.guard.get_or_create(&node).set(left.as_secs_f64());
                }
                None => {
                    self.guard.remove(&node);
                }
            }
            let memory = probe.and_then(|probe| probe.memory.as_ref());
            let limit = memory.filter(|memory| memory.max > 0);
            for (gauge, bytes) in [
                (&self.memory_used, memory.map(|memory| memory.used)),
                (&self.memory_max, limit.map(|memory| memory.max)),
            ] {
                match bytes {
                    Some(bytes) => {
                        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
                        gauge.get_or_create(&node).set(bytes);
                    }
                    None => {
                        gauge.remove(&node);
                    }
                }
            }
        }
    }

    /// Creates an observer that counts calls to nodes with these names.
    pub(super) fn observer(&self, names: &[&str]) -> Counting {
        let per_node = |name: &&str| {
            let node = (*name).to_owned();
            array::from_fn(|number| {
                let operation = Operation::VARIANTS[number].name();
                Calls {
                    durations: self.durations.get_or_create_owned(&CallTo {
                        node: node.clone(),
                        operation,
                    }),
                    errors: ERRORS.map(|error| {
                        self.errors.get_or_create_owned(&Failed {
                            node: node.clone(),
                            operation,
                            error,
                        })
                    }),
                }
            })
        };
        Counting {
            nodes: names.iter().map(per_node).collect(),
            token_retries: self.token_retries.clone(),
            split_votes: self.split_votes.clone(),
            rollbacks: self.rollbacks.clone(),
            repairs: self.repairs.clone(),
        }
    }
}

/// Metrics of the calls of one operation to one node.
struct Calls {
    durations: Durations,
    errors: [Counter; ERRORS.len()],
}

/// Counts the operations of a quorum, in metrics that are resolved at its creation.
pub(super) struct Counting {
    /// By node and operation.
    nodes: Vec<[Calls; Operation::VARIANTS.len()]>,
    token_retries: Counter,
    split_votes: Counter,
    rollbacks: Counter,
    repairs: Counter,
}

impl fmt::Debug for Counting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counting").finish_non_exhaustive()
    }
}

impl QuorumObserver for Counting {
    fn called(&self, node: usize, operation: Operation, outcome: Called, took: Duration) {
        let Some(node) = self.nodes.get(node) else {
            return;
        };
        let calls = &node[operation as usize];
        let error = match outcome {
            Called::Ok | Called::GivenUp => None,
            Called::Timeout => Some(0),
            Called::Failed => Some(1),
            Called::NotSent => Some(2),
            Called::Full => Some(3),
        };
        if let Some(error) = error {
            calls.errors[error].inc();
        }
        // Excluded: an unreachable node must not appear fast.
        if outcome != Called::NotSent {
            calls.durations.observe(took);
        }
    }

    fn retried(&self, why: RetryReason) {
        match why {
            RetryReason::StaleToken => self.token_retries.inc(),
            RetryReason::SplitVote => self.split_votes.inc(),
            // Occurs once in a node's life.
            RetryReason::Unrecorded => return,
        };
    }

    fn rolled_back(&self, nodes: usize) {
        self.rollbacks.inc_by(nodes as u64);
    }

    fn repaired(&self, nodes: usize) {
        self.repairs.inc_by(nodes as u64);
    }
}

#[cfg(test)]
mod tests {
    use election_core::lease::{NodeError, Probe};

    use crate::telemetry::metrics::{Format, Metrics};

    use super::*;

    fn lines(metrics: &Metrics) -> Vec<String> {
        let text = metrics.text(Format::Text);
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn calls_are_counted_by_node_operation_and_error() {
        let metrics = Metrics::new(&[1.0]);
        let observer = metrics.observer(&["a:1", "b:1"]);
        let took = Duration::from_millis(20);
        for outcome in [
            Called::Ok,
            Called::Timeout,
            Called::GivenUp,
            Called::Failed,
            Called::NotSent,
            Called::Full,
        ] {
            observer.called(1, Operation::Extend, outcome, took);
        }
        observer.called(2, Operation::Extend, Called::Ok, took);
        observer.retried(RetryReason::StaleToken);
        observer.retried(RetryReason::Unrecorded);
        observer.rolled_back(2);
        observer.repaired(1);
        let lines = lines(&metrics);
        for line in [
            "node_call_duration_seconds_count{node=\"b:1\",operation=\"extend\"} 5",
            "node_call_duration_seconds_bucket{le=\"0.01\",node=\"b:1\",operation=\"extend\"} 0",
            "node_call_duration_seconds_bucket{le=\"0.025\",node=\"b:1\",operation=\"extend\"} 5",
            "node_call_duration_seconds_count{node=\"a:1\",operation=\"extend\"} 0",
            "node_call_errors_total{node=\"b:1\",operation=\"extend\",error=\"timeout\"} 1",
            "node_call_errors_total{node=\"b:1\",operation=\"extend\",error=\"failed\"} 1",
            "node_call_errors_total{node=\"b:1\",operation=\"extend\",error=\"not_sent\"} 1",
            "node_call_errors_total{node=\"b:1\",operation=\"extend\",error=\"full\"} 1",
            "token_retries_total 1",
            "split_votes_total 0",
            "withdrawals_total 2",
            "heals_total 1",
        ] {
            let line = format!("election_agent_{line}");
            assert!(lines.contains(&line), "{line}: {lines:#?}");
        }
    }

    #[test]
    fn the_guard_of_a_node_that_does_not_answer_is_not_told() {
        let metrics = Metrics::new(&[1.0]);
        let probe = Probe {
            guard: Some(Duration::from_millis(1500)),
            ..Probe::default()
        };
        let mut node = NodeStatus {
            role: "redis",
            latency: Duration::ZERO,
            name: "a:1".to_owned(),
            probe: Ok(probe),
            was_full: false,
        };
        let guard = "election_agent_node_guard_remaining_seconds{node=\"a:1\"} ";
        let up = "election_agent_node_up{node=\"a:1\"} ";
        metrics.report(std::slice::from_ref(&node), true);
        let shown = lines(&metrics);
        assert!(shown.contains(&format!("{guard}1.5")), "{shown:#?}");
        assert!(shown.contains(&format!("{up}1")));
        assert!(shown.contains(&"election_agent_ready 1".to_owned()));

        node.probe = Err(NodeError::unknown("gone"));
        metrics.report(&[node], false);
        let shown = lines(&metrics);
        assert!(
            !shown.iter().any(|line| line.starts_with(guard)),
            "{shown:#?}"
        );
        assert!(shown.contains(&format!("{up}0")));
        for line in ["ready 0", "disconnected_redis_backends 1"] {
            assert!(shown.contains(&format!("election_agent_{line}")), "{line}");
        }
    }
}
