//! Objects of a deployment name each other, and their ports, labels and times fit.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{items, kind, name, of_kind, renders, settings, workloads};

/// Whether labels satisfy a selector of `matchLabels` and `matchExpressions`, as far as these manifests use it.
fn selects(selector: &Value, labels: &Value) -> bool {
    let empty = Map::new();
    let pairs = selector["matchLabels"].as_object().unwrap_or(&empty);
    pairs
        .iter()
        .all(|(label, value)| labels.get(label) == Some(value))
        && items(&selector["matchExpressions"]).all(|expression| {
            assert_eq!(expression["operator"], "In");
            let label = expression["key"].as_str().and_then(|key| labels.get(key));
            label.is_some_and(|label| items(&expression["values"]).any(|value| value == label))
        })
}

pub(super) fn pod(workload: &Value) -> &Value {
    &workload["spec"]["template"]
}

fn labels(workload: &Value) -> &Value {
    &pod(workload)["metadata"]["labels"]
}

fn containers(workload: &Value) -> impl Iterator<Item = &Value> {
    items(&pod(workload)["spec"]["containers"])
}

/// The ports of a workload's containers, by name and by number.
fn ports(workload: &Value) -> Vec<Value> {
    let ports = containers(workload).flat_map(|container| items(&container["ports"]));
    ports
        .flat_map(|port| [port["name"].clone(), port["containerPort"].clone()])
        .collect()
}

#[test]
fn selectors_select_what_they_are_for() {
    for (what, objects) in renders() {
        let selected = |selector: &Value| -> Vec<&Value> {
            workloads(objects)
                .filter(|workload| selects(selector, labels(workload)))
                .collect()
        };
        for workload in workloads(objects).filter(|workload| kind(workload) != "Job") {
            let own = selected(&workload["spec"]["selector"]);
            let names: Vec<_> = own.iter().map(|workload| name(workload)).collect();
            assert_eq!(names, [name(workload)], "{what}: pods of one workload only");
            for spread in items(&pod(workload)["spec"]["topologySpreadConstraints"]) {
                assert!(
                    selects(&spread["labelSelector"], labels(workload)),
                    "{what}"
                );
            }
        }
        for service in of_kind(objects, "Service") {
            let chosen = selected(&json!({"matchLabels": service["spec"]["selector"]}));
            assert_eq!(chosen.len(), 1, "{what}: Service {}", name(service));
            for port in items(&service["spec"]["ports"]) {
                assert!(
                    ports(chosen[0]).contains(&port["targetPort"]),
                    "{what}: {port}"
                );
            }
        }
        for object in of_kind(objects, "PodDisruptionBudget") {
            assert!(
                !selected(&object["spec"]["selector"]).is_empty(),
                "{what}: {}",
                name(object)
            );
        }
        for scaler in of_kind(objects, "HorizontalPodAutoscaler") {
            let target = &scaler["spec"]["scaleTargetRef"];
            let scaled = workloads(objects).find(|workload| {
                kind(workload) == target["kind"] && name(workload) == target["name"]
            });
            // Both would decide.
            assert!(
                scaled.expect("its target")["spec"]
                    .get("replicas")
                    .is_none(),
                "{what}"
            );
        }
        for monitor in of_kind(objects, "ServiceMonitor") {
            let services: Vec<_> = of_kind(objects, "Service")
                .filter(|service| {
                    selects(&monitor["spec"]["selector"], &service["metadata"]["labels"])
                })
                .collect();
            assert_eq!(services.len(), 1, "{what}");
            let port = &monitor["spec"]["endpoints"][0]["port"];
            assert!(
                items(&services[0]["spec"]["ports"]).any(|own| own["name"] == *port),
                "{what}"
            );
        }
        for set in of_kind(objects, "StatefulSet") {
            let service = &set["spec"]["serviceName"];
            assert!(
                of_kind(objects, "Service").any(|own| name(own) == service),
                "{what}: {service}"
            );
        }
    }
}

#[test]
fn network_policies_let_through_what_is_used_and_name_ports_that_exist() {
    for (what, objects) in renders() {
        let policies: Vec<_> = of_kind(objects, "NetworkPolicy").collect();
        let lease_node =
            |workload: &Value| labels(workload)["app.kubernetes.io/component"] == "lease-node";
        let allowed = |workload: &Value, direction: &str, member: &str, other: &Value| {
            let rules = policies
                .iter()
                .filter(|policy| selects(&policy["spec"]["podSelector"], labels(workload)))
                .flat_map(|policy| items(&policy["spec"][direction]));
            let mut allowed = Vec::new();
            for rule in rules {
                let peers: Vec<_> = items(&rule[member])
                    .filter(|peer| peer.get("namespaceSelector").is_none())
                    .filter(|peer| peer.get("podSelector").is_some())
                    .collect();
                if peers
                    .iter()
                    .any(|peer| selects(&peer["podSelector"], labels(other)))
                {
                    allowed.extend(items(&rule["ports"]).map(|port| port["port"].clone()));
                }
            }
            allowed
        };
        let agent = of_kind(objects, "Deployment").next().expect("one");
        for node in workloads(objects).filter(|workload| lease_node(workload)) {
            let own = containers(node).flat_map(|container| items(&container["ports"]));
            let listens: Vec<_> = own
                .filter(|port| port["name"] != "bus")
                .flat_map(|port| [port["name"].clone(), port["containerPort"].clone()])
                .collect();
            let out = allowed(agent, "egress", "to", node);
            let into = allowed(node, "ingress", "from", agent);
            assert!(
                listens.iter().any(|port| out.contains(port)),
                "{what}: {listens:?}, {out:?}"
            );
            assert!(
                listens.iter().any(|port| into.contains(port)),
                "{what}: {listens:?}, {into:?}"
            );
        }
        for policy in policies {
            let chosen: Vec<_> = workloads(objects)
                .filter(|workload| selects(&policy["spec"]["podSelector"], labels(workload)))
                .collect();
            assert!(
                !chosen.is_empty(),
                "{what}: {} selects nothing",
                name(policy)
            );
            let own: Vec<_> = chosen.iter().flat_map(|workload| ports(workload)).collect();
            for rule in items(&policy["spec"]["ingress"]) {
                for port in items(&rule["ports"]) {
                    assert!(
                        own.contains(&port["port"]),
                        "{what}: {} has {port}",
                        name(policy)
                    );
                }
            }
        }
    }
}

/// Hosts and ports of `EA_REDIS_URLS`, also those in `?addr=`.
fn redis_addresses(urls: &str) -> Vec<(String, u16)> {
    urls.split([',', '?', '&'])
        .map(|part| {
            let address = part
                .trim_start_matches("redis://")
                .trim_start_matches("addr=");
            let address = address.split('/').next().unwrap_or_default();
            let (host, port) = address.rsplit_once(':').expect("a port");
            (host.to_owned(), port.parse().expect("a port"))
        })
        .collect()
}

#[test]
fn the_agents_find_their_lease_nodes_by_names_that_exist() {
    for (what, objects) in renders() {
        let mut known = BTreeSet::new();
        for service in of_kind(objects, "Service") {
            for port in items(&service["spec"]["ports"]) {
                let port = port["port"].as_u64().expect("a number");
                known.insert((name(service).to_owned(), port));
                for set in of_kind(objects, "StatefulSet")
                    .filter(|set| set["spec"]["serviceName"] == name(service))
                {
                    let replicas = set["spec"]["replicas"].as_u64().expect("a number");
                    for replica in 0..replicas {
                        known.insert((format!("{}-{replica}.{}", name(set), name(service)), port));
                    }
                }
            }
        }
        let addresses = redis_addresses(&settings::given(objects)["EA_REDIS_URLS"]);
        for (host, port) in addresses {
            assert!(
                known.contains(&(host.clone(), port.into())),
                "{what}: {host}:{port}: {known:?}"
            );
        }
    }
}

#[test]
fn the_agent_listens_where_it_is_probed_and_has_the_time_to_stop() {
    for (what, objects) in renders() {
        let settings = settings::given(objects);
        let deployment = of_kind(objects, "Deployment").next().expect("one");
        let container = containers(deployment).next().expect("one");
        for (port, variable) in [("http", "EA_HTTP_PORT"), ("grpc", "EA_GRPC_PORT")] {
            let own = items(&container["ports"])
                .find(|own| own["name"] == port)
                .expect("a port");
            assert_eq!(
                own["containerPort"].to_string(),
                settings[variable],
                "{what}"
            );
        }
        // Kubernetes' gRPC probes speak no TLS.
        let tls = settings.contains_key("EA_TLS_CERT_FILE");
        for (probe, service, path) in [
            ("startupProbe", "liveness", "/livez"),
            ("livenessProbe", "liveness", "/livez"),
            ("readinessProbe", "readiness", "/readyz"),
        ] {
            let port: u16 = settings["EA_GRPC_PORT"].parse().expect("a port");
            let (grpc, get) = match tls {
                true => (
                    Value::Null,
                    json!({ "path": path, "port": "http", "scheme": "HTTPS" }),
                ),
                false => (json!({ "port": port, "service": service }), Value::Null),
            };
            let probes = &container[probe];
            assert_eq!(
                (&probes["grpc"], &probes["httpGet"]),
                (&grpc, &get),
                "{what}: {probe}"
            );
        }
        let number = |value: &Value| value.as_u64().expect("a number");
        let grace = number(&pod(deployment)["spec"]["terminationGracePeriodSeconds"]);
        let pause = number(&container["lifecycle"]["preStop"]["sleep"]["seconds"]);
        let drain = humantime::parse_duration(&settings["EA_SHUTDOWN_GRACE"]).expect("a duration");
        // And a second for roll-backs.
        assert!(grace > pause + drain.as_secs() + 1, "{what}: {grace} s");
    }
}

/// Whole seconds of `EA_MAX_TERM` as the agents have it.
fn max_term(objects: &[Value]) -> u64 {
    let given = settings::given(objects).remove("EA_MAX_TERM");
    let default = || {
        let mut known = election_agent::config::settings();
        let setting = known.find(|setting| setting.variable == "EA_MAX_TERM");
        setting.expect("a setting").default.to_owned()
    };
    let term = given.unwrap_or_else(default);
    humantime::parse_duration(&term)
        .expect("a duration")
        .as_secs()
}

#[test]
fn lease_nodes_restart_one_after_the_other_and_after_the_guard() {
    for (what, objects) in renders() {
        let nodes: Vec<_> = of_kind(objects, "StatefulSet").collect();
        for service in of_kind(objects, "Service").filter(|own| name(own) != "election-agent") {
            // Agents, Sentinels and members use those that are not ready, too.
            assert_eq!(service["spec"]["publishNotReadyAddresses"], true, "{what}");
        }
        for node in &nodes {
            let container = containers(node).next().expect("one");
            let asks = &container["readinessProbe"]["exec"]["command"];
            // Without it errors are ready, too; but they are a sign of life.
            assert!(items(asks).any(|word| word == "-e"), "{what}: {asks}");
            let asks = &container["livenessProbe"]["exec"]["command"];
            assert!(items(asks).all(|word| word != "-e"), "{what}: {asks}");
        }
        let delays = nodes.iter().filter_map(|node| {
            let container = containers(node).next().expect("one");
            container["readinessProbe"]["initialDelaySeconds"].as_u64()
        });
        let delays: Vec<_> = delays.collect();
        // In seconds; a shard's guard is 5 s longer.
        let guard = max_term(objects) + 5;
        assert!(delays.iter().all(|delay| *delay > guard), "{what}");
        let (expected, on_delete) = match what.split(' ').next() {
            Some("three-redis") => (3, true),
            Some("cluster") => (1, false),
            _ => (0, false),
        };
        assert_eq!(delays.len(), expected, "{what}");
        for node in &nodes {
            let update = &node["spec"]["updateStrategy"]["type"];
            assert_eq!(update == "OnDelete", on_delete, "{what}: {}", name(node));
        }
        for job in of_kind(objects, "Job") {
            // It cannot be changed while it is there.
            let stays = job["spec"]["ttlSecondsAfterFinished"].as_u64();
            assert!(stays.is_some_and(|seconds| seconds <= 60), "{what}");
        }
    }
}

/// Secrets that operators make; the components say how.
const SECRETS: [&str; 3] = [
    "election-agent-settings",
    "election-agent-tls",
    "election-agent-tokens",
];

#[test]
fn what_pods_mount_exists_and_what_they_read_is_mounted() {
    for (what, objects) in renders() {
        let maps: BTreeSet<_> = of_kind(objects, "ConfigMap").map(name).collect();
        for workload in workloads(objects) {
            let spec = &pod(workload)["spec"];
            let mut volumes: BTreeSet<_> = items(&workload["spec"]["volumeClaimTemplates"])
                .map(name)
                .collect();
            for volume in items(&spec["volumes"]) {
                volumes.insert(volume["name"].as_str().expect("a name"));
                if let Some(map) = volume["configMap"]["name"].as_str() {
                    assert!(maps.contains(map), "{what}: {map}");
                } else {
                    let secret = volume["secret"]["secretName"].as_str().expect("a Secret");
                    assert!(SECRETS.contains(&secret), "{what}: {secret}");
                }
            }
            let mounts: Vec<_> = containers(workload)
                .flat_map(|own| items(&own["volumeMounts"]))
                .collect();
            for mount in &mounts {
                assert!(
                    volumes.contains(mount["name"].as_str().expect("a name")),
                    "{what}: {mount}"
                );
            }
            for source in containers(workload).flat_map(|own| items(&own["envFrom"])) {
                match source["configMapRef"]["name"].as_str() {
                    Some(map) => assert!(maps.contains(map), "{what}: {map}"),
                    None => assert_eq!(source["secretRef"]["optional"], true, "{what}"),
                }
            }
            if kind(workload) != "Deployment" {
                continue;
            }
            let settings = settings::given(objects);
            for (variable, path) in settings.iter().filter(|(name, _)| name.ends_with("_FILE")) {
                let mounted = mounts
                    .iter()
                    .filter_map(|mount| mount["mountPath"].as_str());
                let mut mounted =
                    mounted.filter(|directory| path.starts_with(&format!("{directory}/")));
                assert!(
                    mounted.next().is_some(),
                    "{what}: {variable}={path} is not mounted"
                );
            }
        }
    }
}

#[test]
fn every_pod_satisfies_the_restricted_standard_and_writes_to_volumes_alone() {
    for (what, objects) in renders() {
        for workload in workloads(objects) {
            let what = format!("{what}: {}", name(workload));
            let spec = &pod(workload)["spec"];
            let security = &spec["securityContext"];
            assert_eq!(security["runAsNonRoot"], true, "{what}");
            assert!(security["runAsUser"].as_u64() > Some(0), "{what}");
            assert_eq!(
                security["seccompProfile"]["type"], "RuntimeDefault",
                "{what}"
            );
            assert_eq!(spec["enableServiceLinks"], false, "{what}");
            for host in ["hostNetwork", "hostPID", "hostIPC", "initContainers"] {
                assert!(spec.get(host).is_none(), "{what}: {host}");
            }
            for container in containers(workload) {
                let security = &container["securityContext"];
                assert_eq!(security["allowPrivilegeEscalation"], false, "{what}");
                assert_eq!(security["readOnlyRootFilesystem"], true, "{what}");
                assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}), "{what}");
                let image = container["image"].as_str().expect("an image");
                assert!(
                    image.contains(':') && !image.ends_with(":latest"),
                    "{what}: {image}"
                );
                for resource in ["/requests/cpu", "/requests/memory", "/limits/memory"] {
                    assert!(
                        container["resources"].pointer(resource).is_some(),
                        "{what}: {resource}"
                    );
                }
            }
        }
    }
}
