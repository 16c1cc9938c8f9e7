//! Campaigns that wait and streams of observers, while the servers, the agents and the clients fail.
//!
//! Every stream checks that its states follow each other, and a record of the replies to candidates shows whether two
//! count themselves leaders at once.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use election_proto::{
    CampaignResult, ObserveRequest, election_client::ElectionClient, observation::What as Told,
};
use parking_lot::Mutex;
use redis::cmd;
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};

use crate::{
    harness::{
        Agent, Cluster, Gates, Nodes, Redis, Sentinels, elected_until, eventually,
        eventually_within, extended_until, extension, resignation,
    },
    modes::replicated,
    observing::{Watched, everything, one},
    survival::{
        check,
        record::{Record, What},
    },
    waiting::waiting as waiting_campaign,
};

const LONG: i32 = 60_000;
const ELECTED: &str = "e b CAMPAIGN";
const RESIGNED: &str = "e - RESIGN";

/// The election `e`, seen alone and as one of its kind.
struct Both([Watched; 2]);

impl Both {
    async fn of(agent: &Agent) -> Self {
        Self([
            agent.observe(one("e")).await,
            agent.observe(ObserveRequest::default()).await,
        ])
    }

    /// Reads the present state.
    async fn synced(&mut self) {
        self.until(&["synced"]).await;
    }

    /// Reads until both got all of this; gives the rest.
    async fn until(&mut self, wanted: &[&str]) -> Vec<String> {
        let [alone, of_kind] = &mut self.0;
        let (mut others, more) = tokio::join!(alone.until(wanted), of_kind.until(wanted));
        others.extend(more);
        others
    }

    /// What both get until this is done.
    async fn during<T>(&mut self, work: impl Future<Output = T>) -> (T, Vec<String>) {
        let [alone, of_kind] = &mut self.0;
        let (mut work, mut told) = (pin!(work), Vec::new());
        loop {
            tokio::select! {
                done = &mut work => return (done, told),
                Some(next) = alone.next() => told.push(next),
                Some(next) = of_kind.next() => told.push(next),
            }
        }
    }

    /// Asserts that no vacancy of `e` came before `mark` had a leader.
    async fn is_held(&mut self) {
        let [_, of_kind] = &mut self.0;
        assert_no_vacancy(&of_kind.until(&["mark m CAMPAIGN"]).await);
    }
}

fn assert_no_vacancy(told: &[String]) {
    let vacant = told.iter().find(|told| told.starts_with("e - "));
    assert_eq!(vacant, None, "the leader had time left: {told:?}");
}

/// The answer of a campaign that waited.
async fn answer(waiting: JoinHandle<Result<CampaignResult, Status>>) -> CampaignResult {
    waiting.await.expect("no panic").expect("an answer")
}

/// The answer of a campaign that waited and won; the leader then extends its term.
async fn leads(
    waiting: JoinHandle<Result<CampaignResult, Status>>,
    agent: &Agent,
    term: i32,
) -> CampaignResult {
    let won = answer(waiting).await;
    assert!(won.elected, "{won:?}");
    eventually("the term is extended", async || {
        let request = extension("e", &won.leader, term, won.token);
        let extended = agent.try_extend(request).await.ok()?;
        extended.value.then_some(())
    })
    .await;
    won
}

/// Resigns, at once or when the nodes answer again.
async fn resign(agent: &Agent, leader: &CampaignResult) {
    eventually("the leader may resign", async || {
        let request = resignation("e", &leader.leader, leader.token);
        agent.grpc().resign(request).await.ok()
    })
    .await;
}

/// Ends a server's subscriptions.
async fn unsubscribe(server: &Redis) {
    let mut kill = cmd("CLIENT");
    kill.arg("KILL").arg("TYPE").arg("pubsub");
    let killed = server.ask::<usize>(&kill).await;
    assert!(matches!(killed, Ok(1..)), "{killed:?}");
}

/// Ends the subscriptions of these servers, and lets the agent have no other.
async fn silence(nodes: &Nodes, agent: &str, servers: impl IntoIterator<Item = usize>) {
    for server in servers {
        let gate = nodes.gate(agent, server);
        gate.hold_requests("SUBSCRIBE");
        unsubscribe(&nodes.servers[server]).await;
        gate.holds(1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_subscriptions_changes_are_found_and_with_them_they_are_heard_again() {
    let nodes = Nodes::start(3).await;
    let (near, far) = (
        nodes.agent("near", &[]).await,
        nodes.agent("far", &[]).await,
    );
    let is_deaf = async |deaf: u64| {
        eventually("hearing is lost, or returns", async || {
            (near.metric("board_deaf").await == deaf).then_some(())
        })
        .await;
    };
    // A read in flight may find a change before its hint arrives: hints are counted, not the changes they announced.
    let hints = async || near.metric("hints_total").await;
    let heard_since = async |before: u64| {
        eventually("a hint is received", async || {
            (hints().await > before).then_some(())
        })
        .await;
    };
    let leader = far.elect("e", "a", LONG).await.0;
    let mut observed = Both::of(&near).await;
    observed.synced().await;
    is_deaf(0).await;
    // A change that only the other agent makes.
    let change = async |observed: &mut Both, leader: &CampaignResult| {
        resign(&far, leader).await;
        observed.until(&[RESIGNED]).await;
        let next = far.elect("e", "a", LONG).await.0;
        observed.until(&["e a CAMPAIGN"]).await;
        next
    };
    silence(&nodes, "near", [0]).await;
    let before = hints().await;
    let leader = change(&mut observed, &leader).await;
    heard_since(before).await;

    let waiting = near.waits("e", "b", LONG);
    silence(&nodes, "near", [1, 2]).await;
    is_deaf(1).await;
    let before = hints().await;
    resign(&far, &leader).await;
    let won = leads(waiting, &near, LONG).await;
    observed.until(&[ELECTED]).await;
    change(&mut observed, &won).await;
    assert_eq!(hints().await, before, "no hint is received");
    assert!(near.metric("observed_changes_unannounced_total").await > 0);

    for server in 0..3 {
        nodes.gate("near", server).open();
    }
    is_deaf(0).await;
    let leader = far.elect("other", "a", LONG).await.0;
    observed.0[1].until(&["other a CAMPAIGN"]).await;
    heard_since(before).await;
    let before = hints().await;
    assert!(far.resign("other", "a", leader.token).await.value);
    observed.0[1].until(&["other - RESIGN"]).await;
    heard_since(before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_whose_hint_died_with_the_server_is_found() {
    // A server that forgets nothing needs no guard.
    let keeps = ["--appendonly", "yes", "--appendfsync", "always"];
    let mut nodes = Nodes::of(Redis::several(1, &keeps).await).await;
    let settings = [
        ("EA_RESTART_GUARD", "off"),
        ("EA_REDIS_OPERATION_TIMEOUT", "20s"),
    ];
    let near = nodes.agent("near", &settings).await;
    let far = nodes.agent("far", &settings).await;
    let leader = far.elect("e", "a", LONG).await.0;
    let mut observed = Both::of(&near).await;
    observed.synced().await;
    let waiting = near.waits("e", "b", LONG);
    near.has_waiters(1).await;
    // On the subscription's connection only.
    let gate = nodes.gate("near", 0);
    gate.hold_replies("NUMSUB");
    gate.holds(1).await;
    assert!(far.resign("e", "a", leader.token).await.value);
    nodes.servers[0].kill();
    gate.cut();
    nodes.servers[0].run().await;
    gate.open();
    leads(waiting, &near, LONG).await;
    observed.until(&[ELECTED]).await;
    let unannounced = near.metric("observed_changes_unannounced_total").await;
    assert!(unannounced > 0, "it was heard");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_makes_no_vacancy_and_forgets_nobody() {
    const TERM: i32 = 10_000;
    let mut sentinels = Sentinels::start().await;
    let agent = Agent::on(&sentinels, &[("EA_MAX_TERM", "10s")]).await;
    let leader = agent.elect("e", "a", TERM).await.0;
    let mut observed = Both::of(&agent).await;
    observed.synced().await;
    let waiting = agent.waits("e", "b", LONG);
    agent.has_waiters(1).await;
    assert!(agent.extend("e", "a", TERM, leader.token).await.value);
    replicated(&sentinels.servers[0]).await;
    let killed = Instant::now();
    sentinels.servers[0].kill();
    sentinels.failed_over_from(0, killed).await;
    let quarantine = Duration::from_secs(40);
    eventually_within(quarantine, "the new primary grants", async || {
        let request = extension("e", "a", TERM, leader.token);
        let extended = agent.try_extend(request).await.ok()?;
        assert!(extended.value, "the machine is too slow for this test");
        agent.win("mark", "m", TERM).await
    })
    .await;
    observed.is_held().await;
    resign(&agent, &leader).await;
    leads(waiting, &agent, TERM).await;
    observed.until(&[ELECTED]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_moves_makes_no_vacancy_and_forgets_nobody() {
    let cluster = Cluster::start().await;
    let agent = Agent::on(&cluster, &[("EA_REDIS_PARTITIONS", "64")]).await;
    agent.serves().await;
    let leader = agent.elect("e", "a", LONG).await.0;
    let mut observed = Both::of(&agent).await;
    observed.synced().await;
    let waiting = agent.waits("e", "b", LONG);
    agent.has_waiters(1).await;
    let slots = cluster.slots_with("*:lease:default/e").await;
    let slot = *slots.first().expect("one");
    let from = cluster.primary_of(slot).await.expect("a primary");
    let to = (from + 1) % 3;
    cluster.move_slot(slot, to).await;
    assert!(agent.extend("e", "a", LONG, leader.token).await.value);
    // A server to which no agent has subscribed yet announces what happens while the slot is open.
    let moving = cluster.open_slot(slot, to, from).await;
    moving.migrate(&moving.keys().await).await;
    agent.elect("mark", "m", LONG).await;
    observed.is_held().await;
    resign(&agent, &leader).await;
    moving.give().await;
    leads(waiting, &agent, LONG).await;
    observed.until(&[ELECTED]).await;
}

/// Records the reply to a candidate that campaigned at this time, if it was elected.
fn note(record: &Record, election: &str, asked: Instant, told: &CampaignResult) {
    if told.elected {
        let elected = What::Elected {
            asked,
            token: told.token,
            until: elected_until(asked, told),
        };
        record.note(election, &told.leader, elected);
    }
}

/// No two candidates counted themselves leaders at once, and tokens rose.
fn assert_kept(record: &Record) {
    let findings = check::check(&record.entries(), &[]);
    let broken = [findings.overlaps, findings.regressions].concat();
    assert!(broken.is_empty(), "{}", broken.join("\n\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_agent_of_those_who_wait_is_stopped_another_agents_leads() {
    let nodes = Nodes::start(3).await;
    let (stopped, other) = (
        nodes.agent("stopped", &[]).await,
        nodes.agent("other", &[]).await,
    );
    let record = Record::default();
    let leader = other.elect("e", "a", LONG).await.0;
    let mut observed = Both::of(&other).await;
    observed.synced().await;
    let mut at_stopped = Both::of(&stopped).await;
    at_stopped.synced().await;
    let mut waiting = JoinSet::new();
    for number in 0..3 {
        let (asked, answer) = (
            Instant::now(),
            stopped.waits("e", &format!("w{number}"), LONG),
        );
        waiting.spawn(async move { (asked, answer.await.expect("no panic")) });
        stopped.has_waiters(number + 1).await;
    }
    // The first is granted the election, and its agent is stopped before the grant's reply arrives.
    for node in 0..3 {
        nodes.gate("stopped", node).hold_replies("w0");
    }
    resign(&other, &leader).await;
    for node in 0..3 {
        nodes.gate("stopped", node).holds(1).await;
    }
    stopped.signal("STOP");
    for node in 0..3 {
        nodes.gate("stopped", node).open();
    }
    let asked = Instant::now();
    let next = answer(other.waits("e", "b", LONG)).await;
    note(&record, "e", asked, &next);
    assert!(next.elected, "{next:?}");
    let asked = Instant::now();
    assert!(other.extend("e", "b", LONG, next.token).await.value);
    let until = extended_until(asked, LONG);
    record.note("e", "b", What::Extended { until });
    observed.until(&[ELECTED]).await;
    stopped.signal("CONT");
    at_stopped.until(&[ELECTED]).await;
    record.note("e", "b", What::Resigns);
    resign(&other, &next).await;
    // The first has had its time, or waits again; all others lead.
    while let Some(waited) = waiting.join_next().await {
        let (asked, answer) = waited.expect("no panic");
        let won = answer.expect("an answer");
        assert!(won.elected, "{won:?}");
        note(&record, "e", asked, &won);
        if elected_until(asked, &won) > Instant::now() {
            let campaign = format!("e {} CAMPAIGN", won.leader);
            observed.until(&[&campaign]).await;
            at_stopped.until(&[&campaign]).await;
            record.note("e", &won.leader, What::Resigns);
            resign(&other, &won).await;
        }
    }
    assert_kept(&record);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_hears_of_its_grant_too_late_is_passed_over_and_does_not_lead() {
    let nodes = Nodes::start(3).await;
    let agent = nodes.agent("agent", &[]).await;
    let record = Record::default();
    let leader = agent.elect("e", "a", LONG).await.0;
    let mut observed = Both::of(&agent).await;
    observed.synced().await;
    let clients = Gates::to(agent.address().port()).await;
    // The first word of every HTTP/2 connection.
    let gate = clients.of("PRI");
    gate.hold_replies("silent");
    let url = format!("http://{}", clients.address());
    let silent = Endpoint::from_shared(url).expect("a URL").connect_lazy();
    let mut silent = ElectionClient::new(silent);
    let silent_asked = Instant::now();
    let silent = tokio::spawn(async move {
        let request = waiting_campaign("e", "silent", LONG);
        silent.campaign(request).await
    });
    agent.has_waiters(1).await;
    let asked = Instant::now();
    let next = agent.waits("e", "b", LONG);
    agent.has_waiters(2).await;
    resign(&agent, &leader).await;
    observed.until(&["e silent CAMPAIGN"]).await;
    // Long before the term of a minute ends, or the agent closes the connection.
    let next = timeout(Duration::from_secs(20), answer(next));
    let next = next.await.expect("passed over");
    assert!(next.elected, "{next:?}");
    note(&record, "e", asked, &next);
    observed.until(&[ELECTED]).await;
    gate.open();
    let silent = silent.await.expect("no panic").expect("an answer");
    let silent = silent.into_inner();
    assert!(silent.elected && silent.token < next.token, "{silent:?}");
    let until = elected_until(silent_asked, &silent);
    assert!(until < Instant::now(), "it may still lead");
    note(&record, "e", silent_asked, &silent);
    let late = agent.extend("e", "silent", LONG, silent.token).await;
    assert!(!late.value, "{late:?}");
    let findings = check::check(&record.entries(), &[]);
    assert!(findings.overlaps.is_empty(), "{findings:?}");
}

/// How a client goes.
#[derive(Debug, Clone, Copy)]
enum Goes {
    Fin,
    Rst,
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_while_it_is_granted_the_election_costs_no_term() {
    for how in [Goes::Fin, Goes::Rst] {
        let nodes = Nodes::start(3).await;
        // Far longer than this test.
        let settings = [("EA_PROVISIONAL_TERM", "60s")];
        let agent = nodes.agent("agent", &settings).await;
        let other = nodes.agent("other", &[]).await;
        let leader = other.elect("e", "a", LONG).await.0;
        let mut observed = Both::of(&other).await;
        observed.synced().await;
        let mut gone = TcpStream::connect(agent.address()).await.expect("connects");
        let body = r#"{"candidate":"gone","term":60000,"wait":60000}"#;
        let request = format!(
            "POST /election/e HTTP/1.1\r\nhost: agent\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        gone.write_all(request.as_bytes()).await.expect("sent");
        agent.has_waiters(1).await;
        let next = agent.waits("e", "b", LONG);
        agent.has_waiters(2).await;
        for node in 0..3 {
            nodes.gate("agent", node).hold_replies("gone");
        }
        resign(&other, &leader).await;
        for node in 0..3 {
            nodes.gate("agent", node).holds(1).await;
        }
        if let Goes::Rst = how {
            gone.set_zero_linger().expect("set");
        }
        drop(gone);
        eventually("the agent sees that it has gone", async || {
            (agent.metric("waiters").await == 1).then_some(())
        })
        .await;
        for node in 0..3 {
            nodes.gate("agent", node).open();
        }
        let next = timeout(Duration::from_secs(20), answer(next));
        assert!(next.await.expect("passed over").elected, "{how:?}");
        observed.until(&[ELECTED]).await;
        agent.is_idle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_nobody_is_told_that_it_lost_and_nothing_is_vacant() {
    let nodes = Nodes::start(3).await;
    let settings = [("EA_REDIS_OPERATION_TIMEOUT", "300ms")];
    let agent = nodes.agent("agent", &settings).await;
    let (_, until) = agent.elect("e", "a", 10_000).await;
    let mut observed = Both::of(&agent).await;
    observed.synced().await;
    let waiting = agent.waits("e", "b", LONG);
    // One whose wait ends before the term does, and one whose deadline comes after it.
    let ends = agent.waits("e", "c", 8_000);
    let mut client = agent.grpc();
    let at_deadline = tokio::spawn(async move {
        let mut request = Request::new(waiting_campaign("e", "d", LONG));
        request.set_timeout(Duration::from_secs(14));
        client.campaign(request).await
    });
    agent.has_waiters(3).await;
    for node in 0..2 {
        nodes.gate("agent", node).cut();
    }
    assert_no_vacancy(&observed.until(&["certain false"]).await);
    let ended = observed.during(async { (ends.await, at_deadline.await) });
    let ((ends, at_deadline), told) = ended.await;
    let error = ends.expect("no panic").expect_err("nobody knows who leads");
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    let error = at_deadline.expect("no panic");
    error.expect_err("nobody knows who leads");
    assert!(told.is_empty(), "nothing is known: {told:?}");
    assert!(Instant::now() > until, "the term is over");
    assert!(!waiting.is_finished(), "it waits on");
    for node in 0..2 {
        nodes.gate("agent", node).open();
    }
    leads(waiting, &agent, LONG).await;
    observed.until(&["certain true", ELECTED]).await;
}

/// Agents that are replaced, as their clients know them.
#[derive(Clone)]
struct Known(Arc<Mutex<Vec<Channel>>>);

impl Known {
    /// Another agent at every turn.
    fn at(&self, turn: usize) -> Channel {
        let known = self.0.lock();
        known[turn % known.len()].clone()
    }
}

/// Waits for an election again and again, and resigns whenever it is elected, until it has led and has to stop.
async fn takes_turns(
    agents: Known,
    election: String,
    name: String,
    record: Record,
    stop: Arc<AtomicBool>,
) {
    let mut led = false;
    for turn in 0.. {
        if led && stop.load(Ordering::Relaxed) {
            return;
        }
        let mut client = ElectionClient::new(agents.at(turn));
        let asked = Instant::now();
        let answer = client.campaign(waiting_campaign(&election, &name, 20_000));
        // Three times as long as it asked for.
        let answer = timeout(Duration::from_secs(60), answer).await;
        match answer.expect("nobody who waits is forgotten") {
            Ok(answer) => {
                let told = answer.into_inner();
                note(&record, &election, asked, &told);
                if told.elected {
                    led = true;
                    record.note(&election, &name, What::Resigns);
                    let resigned = client.resign(resignation(&election, &name, told.token));
                    // If its agent is not there any more, the provisional term ends.
                    let _ = resigned.await;
                }
            }
            // Cancelled: the client's connection ended before it had sent the request.
            Err(error) => assert!(
                matches!(error.code(), Code::Unavailable | Code::Cancelled),
                "{error}"
            ),
        }
    }
}

/// The last state that an observer knows of each election.
type Last = Arc<Mutex<BTreeMap<String, (String, u64)>>>;

/// Observes all elections, and opens another stream at another agent when one ends or says goodbye.
async fn observes(agents: Known, mut turn: usize, last: Last) {
    loop {
        turn += 1;
        let Ok(mut watched) = Watched::open(agents.at(turn), everything()).await else {
            continue;
        };
        while let Ok(Some(told)) = watched.message().await {
            match told {
                Told::State(state) => {
                    let leader = state.leader.map(|leader| leader.name).unwrap_or_default();
                    last.lock().insert(state.election, (leader, state.token));
                }
                Told::Goodbye(_) => break,
                _ => {}
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_that_are_drained_in_turn_forget_nobody_who_waits_or_observes() {
    const ELECTIONS: usize = 4;
    const WAITERS: usize = 200;
    const OBSERVERS: usize = 10;
    let nodes = Nodes::start(3).await;
    let names = ["one", "two"];
    let mut agents = Vec::new();
    for name in names {
        agents.push(nodes.agent(name, &[]).await);
    }
    let known = Known(Arc::new(Mutex::new(
        agents.iter().map(Agent::channel).collect(),
    )));
    let record = Record::default();
    let stop = Arc::new(AtomicBool::new(false));
    let mut waiting = JoinSet::new();
    for waiter in 0..WAITERS {
        let election = format!("e{}", waiter % ELECTIONS);
        let name = format!("w{waiter}");
        let (known, record, stop) = (known.clone(), record.clone(), Arc::clone(&stop));
        waiting.spawn(takes_turns(known, election, name, record, stop));
    }
    let (mut observing, mut known_last) = (JoinSet::new(), Vec::new());
    for observer in 0..OBSERVERS {
        let last = Last::default();
        known_last.push(Arc::clone(&last));
        observing.spawn(observes(known.clone(), observer, last));
    }
    for (number, name) in names.into_iter().enumerate() {
        let before = record.entries().len();
        eventually("elections change hands", async || {
            (record.entries().len() > before + 100).then_some(())
        })
        .await;
        agents[number].signal("TERM");
        assert!(agents[number].exit().await.success());
        agents[number] = nodes.agent(name, &[]).await;
        known.0.lock()[number] = agents[number].channel();
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(waited) = waiting.join_next().await {
        waited.expect("no panic");
    }
    assert_kept(&record);
    let mut last = BTreeMap::new();
    for election in 0..ELECTIONS {
        let election = format!("e{election}");
        let won = agents[0].elect(&election, "last", LONG).await.0;
        last.insert(election, ("last".to_owned(), won.token));
    }
    eventually_within(
        Duration::from_secs(30),
        "every observer knows",
        async || {
            let knows = |known: &Last| *known.lock() == last;
            known_last.iter().all(knows).then_some(())
        },
    )
    .await;
    observing.abort_all();
    while let Some(observed) = observing.join_next().await {
        assert!(
            observed.is_err_and(|error| error.is_cancelled()),
            "no panic"
        );
    }
}
