//! Deployment `web`'s rollout from revision 2 to 3, one change of the controllers after the other.
//!
//! With three replicas, one pod too many at most (maxSurge 1) and none missing (maxUnavailable 0): a pod of
//! revision 3 is created, scheduled, started and ready before one of revision 2 goes, three times over.

use serde_json::{Value, json};

use super::{
    ApiServer,
    fixtures::{self, NAMESPACE},
};

const OLD_PODS: [&str; 3] = ["k8mzt", "m6vbx", "q4nhd"];
const NEW_PODS: [&str; 3] = ["x2x7p", "9wjlr", "h6dtz"];

/// What there is before the rollout, and its steps.
pub(crate) struct Rollout {
    pub(crate) initial: Vec<Value>,
    pub(crate) steps: Vec<Step>,
}

/// What controllers or kubelets change at once, and the pods that there are then.
pub(crate) struct Step {
    pub(crate) what: String,
    pub(crate) changes: Vec<Change>,
    /// In the order of an API server's lists.
    pub(crate) pods: Vec<PodState>,
    /// The Deployment's own revision.
    pub(crate) revision: u64,
}

#[derive(Debug, Clone)]
pub(crate) enum Change {
    Apply(Value),
    DeletePod(String),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PodState {
    pub(crate) name: String,
    pub(crate) revision: u64,
    pub(crate) phase: String,
    pub(crate) scheduled: bool,
    pub(crate) ready: bool,
    pub(crate) terminating: bool,
}

impl ApiServer {
    /// Makes the step's changes, in their order.
    pub(crate) fn take(&self, step: &Step) {
        for change in &step.changes {
            match change {
                Change::Apply(object) => drop(self.apply(object.clone())),
                Change::DeletePod(name) => self.delete("Pod", NAMESPACE, name),
            }
        }
    }
}

impl Rollout {
    pub(crate) fn new() -> Self {
        let mut cluster = Cluster::new();
        let initial = cluster.objects().cloned().collect();
        cluster.applied = cluster.objects().cloned().collect();
        let template = cluster.new_set["spec"]["template"].clone();
        cluster.deployment["spec"]["template"] = without_hash(template);
        count_up(&mut cluster.deployment["metadata"]["generation"]);
        cluster.step("the Deployment's template is changed");
        for (n, suffix) in NEW_PODS.into_iter().enumerate() {
            cluster.new_set["spec"]["replicas"] = (n + 1).into();
            match n {
                0 => {
                    cluster.new_set_exists = true;
                    cluster.deployment["metadata"]["annotations"][REVISION] = "3".into();
                    cluster.step("the ReplicaSet of revision 3 is created, without pods yet");
                }
                _ => {
                    count_up(&mut cluster.new_set["metadata"]["generation"]);
                    cluster.step("the ReplicaSet of revision 3 is scaled up");
                }
            }
            let ready = pod(&fixtures::web_rollout()[7], suffix);
            cluster.roll_one(n, &ready);
        }
        cluster.drop_terminating();
        cluster.step("the last pod of revision 2 is gone");
        Self {
            initial,
            steps: cluster.steps,
        }
    }
}

const REVISION: &str = "deployment.kubernetes.io/revision";

/// Everything of `web`, as it is and as the API server knows it.
struct Cluster {
    deployment: Value,
    old_set: Value,
    new_set: Value,
    new_set_exists: bool,
    pods: Vec<Value>,
    applied: Vec<Value>,
    steps: Vec<Step>,
}

impl Cluster {
    /// Three pods of revision 2, and nothing of revision 3.
    fn new() -> Self {
        let mut fixtures = fixtures::web_rollout();
        let (mut deployment, running) = (fixtures[0].take(), fixtures[4].take());
        let (mut old_set, mut new_set) = (fixtures[2].take(), fixtures[3].take());
        deployment["metadata"]["annotations"][REVISION] = "2".into();
        deployment["metadata"]["generation"] = 6.into();
        deployment["spec"]["template"] = without_hash(old_set["spec"]["template"].clone());
        deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] = 0.into();
        old_set["spec"]["replicas"] = 3.into();
        new_set["metadata"]["generation"] = 1.into();
        let mut cluster = Self {
            deployment,
            old_set,
            new_set,
            new_set_exists: false,
            pods: OLD_PODS.map(|suffix| pod(&running, suffix)).into(),
            applied: Vec::new(),
            steps: Vec::new(),
        };
        cluster.count();
        cluster
    }

    /// A pod of revision 3 comes, and one of revision 2 goes.
    fn roll_one(&mut self, n: usize, ready: &Value) {
        let mut created = ready.clone();
        let spec = created["spec"].as_object_mut().expect("a spec");
        spec.shift_remove("nodeName");
        created["status"] = json!({"phase": "Pending", "qosClass": "Burstable"});
        self.pods.push(created);
        let at = self.pods.len() - 1;
        self.step("a pod of revision 3 is created");

        self.pods[at]["spec"]["nodeName"] = ready["spec"]["nodeName"].clone();
        let scheduled = ready["status"]["conditions"]
            .as_array()
            .expect("conditions");
        let scheduled = scheduled.iter().find(|one| one["type"] == "PodScheduled");
        self.pods[at]["status"]["conditions"] = json!([scheduled]);
        self.step("it is scheduled");

        let at = at - usize::from(self.drop_terminating());
        if n > 0 {
            self.step("the pod of revision 2 that terminated is gone");
        }

        let mut status = ready["status"].clone();
        for condition in status["conditions"].as_array_mut().expect("conditions") {
            if ["Ready", "ContainersReady"].contains(&condition["type"].as_str().expect("a type")) {
                condition["status"] = "False".into();
                condition["reason"] = "ContainersNotReady".into();
                condition["message"] = "containers with unready status: [app]".into();
            }
        }
        status["containerStatuses"][0]["ready"] = false.into();
        self.pods[at]["status"] = status;
        self.step("it runs, and is not ready yet");

        self.pods[at]["status"] = ready["status"].clone();
        self.step("it is ready");

        self.old_set["spec"]["replicas"] = (2 - n).into();
        count_up(&mut self.old_set["metadata"]["generation"]);
        self.step("the ReplicaSet of revision 2 is scaled down");

        let going = self.pods.iter_mut().find(|pod| revision(pod) == 2);
        let going = &mut going.expect("one is left")["metadata"];
        going["deletionTimestamp"] = "2025-06-17T08:20:54Z".into();
        going["deletionGracePeriodSeconds"] = 30.into();
        self.step("a pod of revision 2 is told to terminate, and is ready still");
    }

    /// Whether there was one.
    fn drop_terminating(&mut self) -> bool {
        let before = self.pods.len();
        self.pods.retain(|pod| !state(pod).terminating);
        self.pods.len() < before
    }

    /// Everything that there is, in the order in which changes become known.
    fn objects(&self) -> impl Iterator<Item = &Value> {
        let new_set = self.new_set_exists.then_some(&self.new_set);
        let sets = [&self.old_set].into_iter().chain(new_set);
        self.pods.iter().chain(sets).chain([&self.deployment])
    }

    /// What has changed since the last one.
    fn step(&mut self, what: &str) {
        self.count();
        let changed = self
            .objects()
            .filter(|object| !self.applied.contains(object));
        let mut changes: Vec<Change> = changed.cloned().map(Change::Apply).collect();
        let same = |one: &Value, other: &Value| one["metadata"]["uid"] == other["metadata"]["uid"];
        let gone = self
            .applied
            .iter()
            .filter(|old| !self.objects().any(|new| same(old, new)));
        changes.splice(0..0, gone.map(|pod| Change::DeletePod(state(pod).name)));
        self.applied = self.objects().cloned().collect();
        let mut pods: Vec<_> = self.pods.iter().map(state).collect();
        pods.sort_by(|one, other| one.name.cmp(&other.name));
        let revision = self.deployment["metadata"]["annotations"][REVISION].as_str();
        self.steps.push(Step {
            what: what.to_owned(),
            changes,
            pods,
            revision: revision
                .and_then(|text| text.parse().ok())
                .expect("a number"),
        });
    }

    /// Sets the counts of the sets and the Deployment.
    fn count(&mut self) {
        // Controllers do not count what terminates.
        let states = self.pods.iter().map(state).filter(|pod| !pod.terminating);
        let states: Vec<_> = states.collect();
        let of = |revision| states.iter().filter(move |pod| pod.revision == revision);
        for (set, revision) in [(&mut self.old_set, 2), (&mut self.new_set, 3)] {
            let (all, ready) = (
                of(revision).count(),
                of(revision).filter(|pod| pod.ready).count(),
            );
            set["status"] = counts(&[
                ("replicas", all),
                ("fullyLabeledReplicas", all),
                ("readyReplicas", ready),
                ("availableReplicas", ready),
            ]);
            set["status"]["replicas"] = all.into();
            set["status"]["observedGeneration"] = set["metadata"]["generation"].clone();
        }
        let ready = states.iter().filter(|pod| pod.ready).count();
        let updated = match &self.deployment["metadata"]["annotations"][REVISION] {
            revision if revision == "3" => 3,
            _ => 2,
        };
        let mut status = counts(&[
            ("replicas", states.len()),
            ("updatedReplicas", of(updated).count()),
            ("readyReplicas", ready),
            ("availableReplicas", ready),
            ("unavailableReplicas", states.len() - ready),
        ]);
        status["conditions"] = self.deployment["status"]["conditions"].take();
        status["observedGeneration"] = self.deployment["metadata"]["generation"].clone();
        self.deployment["status"] = status;
    }
}

/// Counts of nothing are left out.
fn counts(counts: &[(&str, usize)]) -> Value {
    let counts = counts.iter().filter(|(_, count)| *count > 0);
    counts
        .map(|(name, count)| ((*name).to_owned(), json!(count)))
        .collect()
}

fn count_up(number: &mut Value) {
    *number = (number.as_u64().expect("a number") + 1).into();
}

fn without_hash(mut template: Value) -> Value {
    let labels = template["metadata"]["labels"].as_object_mut();
    labels.expect("labels").shift_remove("pod-template-hash");
    template
}

/// The pod under another name, and with a uid that goes with it.
fn pod(fixture: &Value, suffix: &str) -> Value {
    let mut pod = fixture.clone();
    let base = pod["metadata"]["generateName"]
        .as_str()
        .expect("a name")
        .to_owned();
    pod["metadata"]["name"] = format!("{base}{suffix}").into();
    let digits: Vec<_> = suffix.bytes().map(|byte| format!("{byte:02x}")).collect();
    pod["metadata"]["uid"] = format!("3c9e07a1-b5d2-4f68-8a1c-00{}", digits.concat()).into();
    pod
}

fn revision(pod: &Value) -> u64 {
    let sets = &pod["metadata"]["labels"]["pod-template-hash"];
    if sets == "7d4b9c6f5d" { 3 } else { 2 }
}

fn state(pod: &Value) -> PodState {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let is =
        |condition: &Value, kind: &str| condition["type"] == kind && condition["status"] == "True";
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    PodState {
        name: text(&pod["metadata"]["name"]),
        revision: revision(pod),
        phase: text(&pod["status"]["phase"]),
        scheduled: !pod["spec"]["nodeName"].is_null(),
        ready: conditions.into_iter().any(|one| is(one, "Ready")),
        terminating: !pod["metadata"]["deletionTimestamp"].is_null(),
    }
}
