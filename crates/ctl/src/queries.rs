//! Commands that send a single request.

use std::time::Duration;

use clap::ArgMatches;
use election_agent_client::{Agent, Handover, Leader, NotCurrent, OfKind, Pod, PodsOf};
use serde_json::{Value, json};

use crate::{
    cli::Deployment,
    connection,
    failure::Failure,
    output::{complain, print, print_json, printable, table},
};

/// What the arguments name.
struct Given<'a> {
    agent: Agent,
    election: &'a str,
    kind: &'a str,
    token: u64,
    json: bool,
}

impl<'a> Given<'a> {
    fn new(given: &'a ArgMatches) -> Result<Self, Failure> {
        let text = |name| {
            let text = given.try_get_one::<String>(name).ok().flatten();
            text.map(String::as_str).unwrap_or_default()
        };
        Ok(Self {
            agent: connection::agent(given)?,
            election: text("election"),
            kind: text("kind"),
            token: given
                .try_get_one("token")
                .ok()
                .flatten()
                .copied()
                .unwrap_or_default(),
            json: given.get_flag("json"),
        })
    }

    /// The leader's name: as given, or that of the leader with the token.
    async fn leader(&self, given: &ArgMatches) -> Result<String, Failure> {
        if let Some(name) = given.get_one::<String>("candidate") {
            return Ok(name.clone());
        }
        let state = self.agent.state(self.election, self.kind).await?;
        match state.leader {
            Some(leader) if leader.token == self.token => Ok(leader.name),
            Some(leader) => Err(Failure::new(
                Failure::NO,
                format!("{} leads, with token {}", leader.name, leader.token),
            )),
            None => Err(Failure::new(Failure::NO, "nobody leads")),
        }
    }
}

pub(crate) async fn leaders(given: &ArgMatches) -> Result<u8, Failure> {
    let Given {
        agent, kind, json, ..
    } = Given::new(given)?;
    let of = match given.get_flag("all_kinds") {
        true => OfKind::All,
        false => OfKind::from(kind),
    };
    let listed = agent.leaders(of).await?;
    if json {
        for leader in &listed.leaders {
            print_json(&leader_json(leader))?;
        }
    } else {
        let rows = listed.leaders.iter().map(|leader| {
            vec![
                leader.kind.clone(),
                leader.election.clone(),
                leader.name.clone(),
                leader.token.to_string(),
                format!("{:.1}s", leader.remaining.as_secs_f64()),
                leader.value.clone(),
            ]
        });
        print(table(
            &["KIND", "ELECTION", "LEADER", "TOKEN", "LEFT", "VALUE"],
            rows,
        ))?;
    }
    Ok(complete(listed.incomplete))
}

pub(crate) async fn kinds(given: &ArgMatches) -> Result<u8, Failure> {
    let Given { agent, json, .. } = Given::new(given)?;
    let listed = agent.kinds().await?;
    for kind in &listed.kinds {
        if json {
            print_json(&json!({ "kind": kind }))?;
        } else {
            print(printable(kind.clone()))?;
        }
    }
    Ok(complete(listed.incomplete))
}

/// Fails if the list is incomplete.
fn complete(incomplete: bool) -> u8 {
    if incomplete {
        complain(format_args!(
            "a part of the lease nodes did not answer: the list is incomplete"
        ));
        return Failure::NOT_KNOWN;
    }
    0
}

pub(crate) async fn resign(given: &ArgMatches) -> Result<u8, Failure> {
    let asked = Given::new(given)?;
    let leader = asked.leader(given).await?;
    asked
        .agent
        .resign(asked.election, asked.kind, &leader, asked.token)
        .await?;
    if asked.json {
        print_json(&json!({ "resigned": true, "leader": leader, "token": asked.token }))?;
    } else {
        print(printable(format!("{leader} has resigned")))?;
    }
    Ok(0)
}

pub(crate) async fn handover(given: &ArgMatches) -> Result<u8, Failure> {
    let asked = Given::new(given)?;
    let to = given.get_one::<String>("to").cloned().unwrap_or_default();
    let term = given.get_one("term").copied().unwrap_or_default();
    let leader = asked.leader(given).await?;
    let handover = Handover::new(asked.election, &to, term)
        .kind(asked.kind)
        .from(&leader)
        .token(asked.token);
    let valid_until = asked.agent.handover(handover).await?;
    if asked.json {
        print_json(
            &json!({ "handed_over": true, "from": leader, "to": to, "valid_for": millis(valid_until.remaining()) }),
        )?;
    } else {
        print(printable(format!("{to} leads, and {leader} no longer")))?;
    }
    Ok(0)
}

pub(crate) async fn verify(given: &ArgMatches) -> Result<u8, Failure> {
    let asked = Given::new(given)?;
    let verified = asked
        .agent
        .verify(asked.election, asked.kind, asked.token)
        .await?;
    let reason = verified.reason.as_ref().map(|reason| match reason {
        NotCurrent::NoTerm => "NO_TERM",
        NotCurrent::StaleToken => "STALE_TOKEN",
        NotCurrent::NotGranted => "NOT_GRANTED",
        NotCurrent::Other(other) => other,
        _ => "",
    });
    let left = verified.valid_until.map(|until| until.remaining());
    let leader = verified
        .state
        .as_ref()
        .and_then(|state| state.leader.as_ref());
    if asked.json {
        print_json(&json!({
            "current": verified.current,
            "reason": reason,
            "valid_for": left.map(millis),
            "leader": leader.map(leader_json),
        }))?;
    } else {
        let name = leader.map_or("nobody", |leader| leader.name.as_str());
        let left = left.map(|left| format!(", for {:.1}s unless it resigns", left.as_secs_f64()));
        let what = match verified.current {
            true => format!(
                "current: {name} leads with this token{}",
                left.unwrap_or_default()
            ),
            false => format!("not current ({}): {name} leads", reason.unwrap_or_default()),
        };
        print(printable(what))?;
    }
    Ok(if verified.current { 0 } else { Failure::NO })
}

pub(crate) async fn pods(given: &ArgMatches) -> Result<u8, Failure> {
    let Given { agent, json, .. } = Given::new(given)?;
    let Some(deployment) = given.get_one::<Deployment>("deployment") else {
        return Err(Failure::own("no Deployment is given"));
    };
    let of = PodsOf::Deployment(deployment.name.clone());
    let pods = agent.pods(&deployment.namespace, of).await?;
    if json {
        for pod in &pods {
            print_json(&pod_json(pod))?;
        }
        return Ok(0);
    }
    let rows = pods.iter().map(|pod| {
        vec![
            pod.name.clone(),
            pod.phase.clone(),
            if pod.ready { "yes" } else { "no" }.to_owned(),
            pod.replica_set.revision.to_string(),
            pod.ip.clone(),
            if pod.terminating {
                "terminating".to_owned()
            } else {
                pod.reason.clone()
            },
        ]
    });
    print(table(
        &["POD", "PHASE", "READY", "REVISION", "IP", "REASON"],
        rows,
    ))?;
    Ok(0)
}

fn leader_json(leader: &Leader) -> Value {
    json!({
        "kind": leader.kind,
        "election": leader.election,
        "leader": leader.name,
        "token": leader.token,
        "remaining": millis(leader.remaining),
        "value": leader.value,
        "elected_at": leader.elected_at,
    })
}

fn pod_json(pod: &Pod) -> Value {
    let set = &pod.replica_set;
    json!({
        "name": pod.name,
        "deployment": pod.deployment,
        "ip": pod.ip,
        "phase": pod.phase,
        "reason": pod.reason,
        "terminating": pod.terminating,
        "scheduled": pod.scheduled,
        "initialized": pod.initialized,
        "ready": pod.ready,
        "containers_ready": pod.containers_ready,
        "replica_set": {
            "name": set.name,
            "revision": set.revision,
            "replicas": set.replicas,
            "ready_replicas": set.ready_replicas,
            "available_replicas": set.available_replicas,
            "fully_labeled_replicas": set.fully_labeled_replicas,
            "desired_replicas": set.desired_replicas,
            "max_replicas": set.max_replicas,
        },
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
