//! Where pods run, what they displace, and which namespace objects are in.

use serde_json::Value;

use super::{fit::pod, items, kind, name, of_kind, renders};

const NAMESPACE: &str = "election-agent";
/// From here on priorities are Kubernetes' own.
const SYSTEM_PRIORITY: i64 = 1_000_000_000;

/// The constraint on pods' spread over nodes, or zones, with this label.
fn spread<'a>(workload: &'a Value, label: &str) -> Option<&'a Value> {
    items(&pod(workload)["spec"]["topologySpreadConstraints"])
        .find(|spread| spread["topologyKey"] == label)
}

#[test]
fn lease_nodes_that_decide_together_are_kept_apart() {
    const ZONE: &str = "topology.kubernetes.io/zone";
    for (what, objects) in renders() {
        let several = !what.starts_with("single");
        for node in of_kind(objects, "StatefulSet") {
            let what = format!("{what}: {}", name(node));
            let by_node = spread(node, "kubernetes.io/hostname").expect("a constraint");
            let unsatisfiable = |spread: &Value| spread["whenUnsatisfiable"].clone();
            let expected = match several {
                true => "DoNotSchedule",
                // A single one has nothing to be kept from, and starts where nodes have no labels.
                false => "ScheduleAnyway",
            };
            assert_eq!(unsatisfiable(by_node), expected, "{what}");
            assert_eq!(by_node["maxSkew"], 1, "{what}");
            if several {
                // Else two of three may be on one node where there are two nodes.
                assert_eq!(by_node["minDomains"], 3, "{what}");
            }
            match spread(node, ZONE) {
                Some(by_zone) => {
                    assert_eq!(unsatisfiable(by_zone), expected, "{what}");
                    assert_eq!(by_zone["maxSkew"], 1, "{what}");
                    // A region may have fewer than three.
                    assert_eq!(by_zone.get("minDomains"), None, "{what}");
                }
                None => assert_eq!(name(node), "sentinel", "{what}"),
            }
        }
    }
}

#[test]
fn agents_and_lease_nodes_have_a_priority_above_ordinary_workloads() {
    for (what, objects) in renders() {
        let classes: Vec<_> = of_kind(objects, "PriorityClass").collect();
        assert_eq!(classes.len(), 1, "{what}");
        let class = classes[0];
        let value = class["value"].as_i64().expect("a number");
        assert!((1..SYSTEM_PRIORITY).contains(&value), "{what}: {value}");
        assert_eq!(class["globalDefault"], false, "{what}");
        for workload in ["Deployment", "StatefulSet"]
            .into_iter()
            .flat_map(|kind| of_kind(objects, kind))
        {
            let named = &pod(workload)["spec"]["priorityClassName"];
            assert_eq!(named, name(class), "{what}: {}", name(workload));
        }
    }
}

#[test]
fn every_object_is_in_the_namespace_also_those_of_components() {
    let of_the_cluster = [
        "ClusterRole",
        "ClusterRoleBinding",
        "Namespace",
        "PriorityClass",
    ];
    for (what, objects) in renders() {
        for object in objects {
            let namespace = object["metadata"]["namespace"].as_str();
            let expected = match of_the_cluster.contains(&kind(object)) {
                true => None,
                false => Some(NAMESPACE),
            };
            assert_eq!(
                namespace,
                expected,
                "{what}: {} {}",
                kind(object),
                name(object)
            );
        }
    }
}
