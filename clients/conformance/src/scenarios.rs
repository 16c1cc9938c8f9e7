//! What is played with every program.

use std::time::Duration;

use election_proto::{CampaignRequest, ResignRequest, election_client::ElectionClient};
use futures_util::future::LocalBoxFuture;
use test_agent::Agent;
use test_servers::{Clock, Redis, signal};
use tonic::transport::Endpoint;

use crate::{
    checks::{self, Named, SAFETY},
    protocol::{Body, Command, Name, now},
    record::Record,
    stage::{Front, KIND, PATIENCE, Play, Player, Program, Stage, address, agent_on, agent_with},
};

/// The grace of the scenario whose body ignores that it is told of the loss, in ms.
pub const GRACE_MS: u64 = 1_500;

type Played<'a> = LocalBoxFuture<'a, Result<Record, String>>;

/// A scenario: what is played, and what must be true of it besides [`SAFETY`].
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    play: for<'a> fn(&'a Stage, &'a Program) -> Played<'a>,
    checks: &'static [Named],
}

/// What a check has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which check.
    pub check: &'static str,
    /// What is wrong.
    pub text: String,
}

impl Scenario {
    /// Plays it with a program. Returns what is wrong, and what has happened.
    pub async fn run(&self, stage: &Stage, program: &Program) -> (Vec<Finding>, Record) {
        let record = match (self.play)(stage, program).await {
            Ok(record) => record,
            Err(text) => {
                let check = "setup";
                return (vec![Finding { check, text }], Record::default());
            }
        };
        let checks = SAFETY.iter().chain(self.checks);
        let findings = checks
            .filter_map(|(check, holds)| holds(&record).err().map(|text| Finding { check, text }));
        (findings.collect(), record)
    }
}

macro_rules! scenarios {
    ($($name:ident: $($check:ident),* $(,)?;)*) => {
        /// All scenarios.
        pub const ALL: &[Scenario] = &[$(Scenario {
            name: stringify!($name),
            play: |stage, program| Box::pin($name(stage, program)),
            checks: &[$((stringify!($check), checks::$check)),*],
        }),*];
    };
}

scenarios! {
    steady: nothing_is_lost, is_renewed, resigns_at_the_end;
    unary_fallback: nothing_is_lost, is_renewed, resigns_at_the_end;
    slow_agent: nothing_is_lost, is_renewed, resigns_at_the_end;
    black_hole: loss_is_reported_in_time, body_is_cancelled_in_time, jeopardy_is_reported, the_next_leads;
    refused_connections: loss_is_reported_in_time, body_is_cancelled_in_time, the_next_leads;
    resets: nothing_is_lost, is_renewed_after_the_fault;
    quorum_loss: loss_is_reported_in_time, body_is_cancelled_in_time, no_vacancy_is_guessed, uncertainty_is_reported;
    client_stopped: loss_is_reported, the_next_leads;
    agent_stopped: loss_is_reported_in_time, body_is_cancelled_in_time;
    suspended: loss_is_reported, the_next_leads;
    wall_clock_jumps: nothing_is_lost, is_renewed_after_the_fault;
    request_ids: request_ids_name_attempts;
    request_ids_of_calls: request_ids_name_attempts;
    failover: nothing_is_lost, fails_over_within_a_second;
    failover_of_calls: nothing_is_lost, fails_over_within_a_second;
    silent_agent: nothing_is_lost, is_renewed_after_the_fault;
    silent_endpoint: nothing_is_lost, is_elected;
    waits_at_a_silent_agent: the_next_leads;
    observes_a_silent_agent: the_change_is_told, no_vacancy_is_guessed;
    stopped_while_waiting: the_stopped_is_passed_over;
    quorum_returns: nothing_is_lost, is_renewed_after_the_fault;
    resigns_while_cut_off: gives_up_what_was_cut_off;
    two_elections: one_loss_is_not_anothers;
    connection_age: nothing_is_lost, is_renewed, connections_have_aged;
    hung_application: stops_to_extend_when_not_alive, loss_is_reported_in_time, the_next_leads;
    body_ignores_loss: keeps_the_term_for_the_grace, lets_the_term_lapse_after_the_grace;
    body_blocks: loss_is_reported, the_next_leads;
    refused_extension: a_refusal_is_no_loss, loss_is_reported_in_time;
    fenced: is_told_of_its_fencing;
    observer: states_are_told_in_order;
    unknown_outcome: unknown_is_not_denied;
    verification: tokens_are_verified;
    chaos: somebody_leads_after_all;
    chaos_of_calls: somebody_leads_after_all;
}

/// How long to wait for what a client with a fault never does: a check says so if it has not come. Longer than a term.
const LIMIT: Duration = Duration::from_secs(8);

/// Leads, is extended, and resigns, with an agent that answers late.
async fn steady(stage: &Stage, program: &Program) -> Result<Record, String> {
    leads_and_resigns(stage, program, "steady", false, 100).await
}

/// The same with an agent that takes more than half of the time between extensions for each answer.
async fn slow_agent(stage: &Stage, program: &Program) -> Result<Record, String> {
    leads_and_resigns(stage, program, "slow", false, 600).await
}

/// The same with an agent that has no streams to lead by.
async fn unary_fallback(stage: &Stage, program: &Program) -> Result<Record, String> {
    leads_and_resigns(stage, program, "unary", true, 100).await
}

async fn leads_and_resigns(
    stage: &Stage,
    program: &Program,
    name: &str,
    unary: bool,
    delay: u64,
) -> Result<Record, String> {
    let play = Play::new(program, name, stage.agent());
    let front = Front::recording(stage.agent(), 0, &play.book).await;
    if unary {
        front.forwarder().offer_no_streams();
    }
    front.forwarder().delay(delay);
    let mut a = play.start("a", &[&front]).await?;
    a.lead(&play.election, |_| {}).await?;
    let fails = |record: &Record| record.of("a", Name::Error).next().map(|_| ());
    let extended = |record: &Record| record.of("a", Name::Renewed).nth(2).map(|_| ());
    let look = |record: &Record| fails(record).or_else(|| extended(record));
    play.book.until(LIMIT, look).await;
    a.tell(&Command::EndBody { id: 1 }).await?;
    let ends = |record: &Record| record.of("a", Name::Done).next().map(|_| ());
    let look = |record: &Record| fails(record).or_else(|| ends(record));
    play.book.until(LIMIT, look).await;
    // An extension would come within a third of the term.
    play.pause(1_300).await;
    Ok(play.record())
}

/// `a` leads, `b` waits, and something happens to `a`'s way to the agent.
async fn cut_off(
    stage: &Stage,
    program: &Program,
    name: &str,
    cut: impl FnOnce(&Front),
) -> Result<Record, String> {
    let play = Play::new(program, name, stage.agent());
    let front = Front::recording(stage.agent(), 0, &play.book).await;
    let other = Front::recording(stage.agent(), 1, &play.book).await;
    let mut a = play.start("a", &[&front]).await?;
    a.lead(&play.election, |_| {}).await?;
    play.must("a", Name::Renewed, 1).await?;
    let mut b = play.start("b", &[&other]).await?;
    b.lead(&play.election, |_| {}).await?;
    play.must("a", Name::Renewed, 2).await?;
    play.book.deed("fault");
    cut(&front);
    play.event(LIMIT, "a", Name::Lost, 1).await;
    play.event(LIMIT, "b", Name::Leading, 1).await;
    play.pause(500).await;
    Ok(play.record())
}

/// Packets to and from the agent are lost.
async fn black_hole(stage: &Stage, program: &Program) -> Result<Record, String> {
    cut_off(stage, program, "hole", |front| front.proxy.black_hole()).await
}

/// Connections are reset, and new ones as well.
async fn refused_connections(stage: &Stage, program: &Program) -> Result<Record, String> {
    cut_off(stage, program, "refused", |front| front.proxy.refuse()).await
}

/// Connections are reset again and again, but new ones are good; and then there are none for a while.
async fn resets(stage: &Stage, program: &Program) -> Result<Record, String> {
    let play = Play::new(program, "resets", stage.agent());
    let front = Front::recording(stage.agent(), 0, &play.book).await;
    let mut a = play.start("a", &[&front]).await?;
    a.lead(&play.election, |_| {}).await?;
    play.must("a", Name::Renewed, 1).await?;
    for _ in 0..3 {
        front.proxy.reset();
        play.pause(1_100).await;
    }
    let renewed = play
        .book
        .read(|record| record.of("a", Name::Renewed).count());
    let extended = play.event(LIMIT, "a", Name::Renewed, renewed + 1).await;
    if extended.is_none() {
        return Ok(play.record());
    }
    // Longer than a third of the term, and short enough for it.
    front.proxy.refuse();
    play.pause(1_200).await;
    play.book.deed("fault");
    front.proxy.heal();
    play.pause(2_500).await;
    Ok(play.record())
}

/// Two of three lease nodes do not answer for a while that is shorter than the term.
async fn quorum_returns(_: &Stage, program: &Program) -> Result<Record, String> {
    let nodes = Redis::several(3, &[]).await;
    let agent = agent_on(&nodes, &[]).await;
    let play = Play::new(program, "returns", address(&agent));
    let front = Front::recording(address(&agent), 0, &play.book).await;
    let mut a = play.start("a", &[&front]).await?;
    a.lead(&play.election, |lead| lead.term_ms = 4_500).await?;
    play.must("a", Name::Renewed, 1).await?;
    nodes[0].signal("STOP");
    nodes[1].signal("STOP");
    play.pause(2_000).await;
    nodes[0].signal("CONT");
    nodes[1].signal("CONT");
    play.book.deed("fault");
    play.pause(3_500).await;
    Ok(play.record())
}

/// Two of three lease nodes do not answer for longer than the term.
async fn quorum_loss(_: &Stage, program: &Program) -> Result<Record, String> {
    let nodes = Redis::several(3, &[]).await;
    let agent = agent_on(&nodes, &[]).await;
    let play = Play::new(program, "quorum", address(&agent));
    let front = Front::recording(address(&agent), 0, &play.book).await;
    let mut a = play.start("a", &[&front]).await?;
    let mut o = play.start("o", &[&front]).await?;
    let (kind, election) = (KIND.to_owned(), play.election.clone());
    o.tell(&Command::Observe {
        id: 1,
        kind,
        election,
    })
    .await?;
    a.lead(&play.election, |_| {}).await?;
    play.must("a", Name::Renewed, 1).await?;
    let held = |record: &Record| {
        let mut states = record.of("o", Name::State);
        states
            .any(|event| event.phase.as_deref() == Some("held"))
            .then_some(())
    };
    play.book.until(LIMIT, held).await;
    play.book.deed("fault");
    nodes[0].signal("STOP");
    nodes[1].signal("STOP");
    play.event(LIMIT, "a", Name::Lost, 1).await;
    play.event(LIMIT, "o", Name::Certainty, 1).await;
    let over = play.valid_until("a");
    play.after(over, 1_000).await;
    play.book.deed("healed");
    nodes[0].signal("CONT");
    nodes[1].signal("CONT");
    let good = |record: &Record| {
        let last = record.of("o", Name::Certainty).last()?;
        (last.certain == Some(true)).then_some(())
    };
    play.book.until(LIMIT, good).await;
    Ok(play.record())
}

/// The program is stopped for longer than its term.
async fn client_stopped(stage: &Stage, program: &Program) -> Result<Record, String> {
    stopped(stage, program, "stopped", None).await
}

/// The machine of the program is suspended for longer than its term: its monotonic clock has not counted the time.
async fn suspended(stage: &Stage, program: &Program) -> Result<Record, String> {
    let clock = tokio::task::spawn_blocking(|| Clock::ahead(0)).await;
    let clock = clock.map_err(|error| format!("setup: {error}"))?;
    stopped(stage, program, "suspended", Some(clock)).await
}

async fn stopped(
    stage: &Stage,
    program: &Program,
    name: &str,
    clock: Option<Clock>,
) -> Result<Record, String> {
    let play = Play::new(program, name, stage.agent());
    let front = Front::recording(stage.agent(), 0, &play.book).await;
    let mut a = play.start_with("a", &[&front], clock.as_ref()).await?;
    let mut b = play.start("b", &[&front]).await?;
    a.lead(&play.election, |_| {}).await?;
    play.must("a", Name::Leading, 1).await?;
    b.lead(&play.election, |_| {}).await?;
    play.must("a", Name::Renewed, 2).await?;
    play.book.deed("fault");
    a.signal("STOP");
    let stopped_at = now();
    play.event(LIMIT, "b", Name::Leading, 1).await;
    let over = play.valid_until("a");
    play.after(over, 200).await;
    if let Some(clock) = &clock {
        clock.set_suspended(Duration::from_nanos(now() - stopped_at));
    }
    play.book.deed("goes on");
    a.signal("CONT");
    play.event(LIMIT, "a", Name::Lost, 1).await;
    play.pause(800).await;
    Ok(play.record())
}

/// The agent is stopped for longer than the term.
async fn agent_stopped(_: &Stage, program: &Program) -> Result<Record, String> {
    let agent = agent_with(&[]).await;
    let play = Play::new(program, "agent", address(&agent));
    let front = Front::plain(address(&agent)).await;
    let mut a = play.start("a", &[&front]).await?;
    a.lead(&play.election, |_| {}).await?;
    play.must("a", Name::Renewed, 2).await?;
    play.book.deed("fault");
    signal(agent.pid(), "STOP");
    let over = play.valid_until("a");
    play.after(over, 1_500).await;
    signal(agent.pid(), "CONT");
    play.event(LIMIT, "a", Name::Lost, 1).await;
    play.pause(500).await;
    Ok(play.record())
}

/// The wall clock is set forth and back.
async fn wall_clock_jumps(stage: &Stage, program: &Program) -> Result<Record, String> {
    let clock = tokio::task::spawn_blocking(|| Clock::ahead(0)).await;
    let clock = clock.map_err(|error| format!("setup: {error}"))?;
    let play = Play::new(program, "wall", stage.agent());
    let front = Front::recording(stage.agent(), 0, &play.book).await;
    let mut a = play.start_with("a", &[&front], Some(&clock)).await?;
    a.lead(&play.election, |_| {}).await?;
    play.must("a", Name::Renewed, 1).await?;
    for seconds in [3_600, -3_600, 2] {
        play.book.deed("fault");
        clock.set_ahead(seconds);
        play.pause(1_500).await;
    }
    Ok(play.record())
}

/// The answer that grants the leadership is lost; and later there is another attempt.
async fn request_ids(stage: &Stage, program: &Program) -> Result<Record, String> {
    loses_a_grant(stage, program, "ids", false).await
}

/// The same with an agent that has no streams to lead by.
async fn request_ids_of_calls(stage: &Stage, program: &Program) -> Result<Record, String> {
    loses_a_grant(stage, program, "ids-unary", true).await
}

async fn loses_a_grant(
    stage: &Stage,
    program: &Program,
    name: &str,
    unary: bool,
) -> Result<Record, String> {
    let play = Play::new(program, name, stage.agent());
    let front = Front::recording(stage.agent(), 0, &play.book).await;
    if unary {
        front.forwarder().offer_no_streams();
    }
    front.forwarder().lose_next_grant();
    let mut a = play.start("a", &[&front]).await?;
    a.lead(&play.election, |_| {}).await?;
    play.must("a", Name::Leading, 1).await?;
    a.tell(&Command::EndBody { id: 1 }).await?;
    play.must("a", Name::Done, 1).await?;
    a.lead(&play.election, |lead| lead.id = 2).await?;
    play.event(LIMIT, "a", Name::Leading, 2).await;
    play.pause(200).await;
    Ok(play.record())
}

/// The agent that the client uses is killed, and there is another with the same lease nodes.
async fn failover(_: &Stage, program: &Program) -> Result<Record, String> {
    of_two_agents(program, "failover", false, 1_800, |agent, front| {
        // Those who have connections to it see them end with it.
        agent.kill();
        front.proxy.refuse();
    })
    .await
}

/// The same with agents that have no streams to lead by.
async fn failover_of_calls(_: &Stage, program: &Program) -> Result<Record, String> {
    of_two_agents(program, "failover-unary", true, 1_800, |agent, front| {
        agent.kill();
        front.proxy.refuse();
    })
    .await
}

/// Nothing comes back any more from the agent that the client uses, and there is another.
async fn silent_agent(_: &Stage, program: &Program) -> Result<Record, String> {
    let silence = |_: &mut Agent, front: &Front| front.proxy.black_hole();
    of_two_agents(program, "silent", false, 3_000, silence).await
}

async fn of_two_agents(
    program: &Program,
    name: &str,
    unary: bool,
    term_ms: u64,
    fault: impl FnOnce(&mut Agent, &Front),
) -> Result<Record, String> {
    let nodes = Redis::several(1, &[]).await;
    let (mut one, mut two) = tokio::join!(agent_on(&nodes, &[]), agent_on(&nodes, &[]));
    let play = Play::new(program, name, address(&two));
    let first = Front::recording(address(&one), 0, &play.book).await;
    let second = Front::recording(address(&two), 1, &play.book).await;
    if unary {
        first.forwarder().offer_no_streams();
        second.forwarder().offer_no_streams();
    }
    let mut a = play.start("a", &[&first, &second]).await?;
    a.lead(&play.election, |lead| lead.term_ms = term_ms)
        .await?;
    play.must("a", Name::Renewed, 2).await?;
    let used = |record: &Record| record.calls.last().map(|call| call.agent);
    let used = play.book.read(used).ok_or("setup: there are no calls")?;
    let (agent, front) = if used == 0 {
        (&mut one, &first)
    } else {
        (&mut two, &second)
    };
    play.book.deed("fault");
    fault(agent, front);
    play.pause(term_ms + 800).await;
    Ok(play.record())
}

/// Two agents with the same lease nodes, and what stands before them.
struct Pair {
    /// Kept as long as they are needed.
    _agents: [Agent; 2],
    _nodes: Vec<Redis>,
    fronts: [Front; 2],
    play: Play,
}

impl Pair {
    async fn new(program: &Program, name: &str) -> Self {
        let nodes = Redis::several(1, &[]).await;
        let (one, two) = tokio::join!(agent_on(&nodes, &[]), agent_on(&nodes, &[]));
        let play = Play::new(program, name, address(&two));
        let fronts = [
            Front::recording(address(&one), 0, &play.book).await,
            Front::recording(address(&two), 1, &play.book).await,
        ];
        Self {
            _agents: [one, two],
            _nodes: nodes,
            fronts,
            play,
        }
    }
}

/// One of two agents keeps silent from the beginning.
async fn silent_endpoint(_: &Stage, program: &Program) -> Result<Record, String> {
    let pair = Pair::new(program, "endpoint").await;
    let (play, [silent, good]) = (&pair.play, &pair.fronts);
    silent.proxy.black_hole();
    let mut a = play.start("a", &[silent, good]).await?;
    a.lead(&play.election, |_| {}).await?;
    play.event(PATIENCE, "a", Name::Leading, 1).await;
    play.event(LIMIT, "a", Name::Renewed, 2).await;
    Ok(play.record())
}

/// The candidate waits at an agent from which nothing comes back any more, and the election becomes vacant.
async fn waits_at_a_silent_agent(_: &Stage, program: &Program) -> Result<Record, String> {
    let pair = Pair::new(program, "waits").await;
    let (play, [silent, good]) = (&pair.play, &pair.fronts);
    let mut a = play.start("a", &[good]).await?;
    a.lead(&play.election, |_| {}).await?;
    play.must("a", Name::Leading, 1).await?;
    // It finds one agent only, and then both.
    good.proxy.refuse();
    let mut b = play.start("b", &[silent, good]).await?;
    b.lead(&play.election, |_| {}).await?;
    let waits = |record: &Record| {
        let mut calls = record.calls.iter();
        let call = calls.find(|call| call.candidate == "b" && call.agent == 0);
        call.map(|_| ())
    };
    let waits = play.book.until(PATIENCE, waits).await;
    good.proxy.heal();
    if waits.is_none() {
        return Err("setup: b does not wait".to_owned());
    }
    play.book.deed("fault");
    silent.proxy.black_hole();
    a.tell(&Command::EndBody { id: 1 }).await?;
    play.event(PATIENCE, "b", Name::Leading, 1).await;
    Ok(play.record())
}

/// Nothing comes back any more from the agent that the observer follows, and then another leads.
async fn observes_a_silent_agent(_: &Stage, program: &Program) -> Result<Record, String> {
    let pair = Pair::new(program, "follows").await;
    let (play, [silent, good]) = (&pair.play, &pair.fronts);
    good.proxy.refuse();
    let mut o = play.start("o", &[silent, good]).await?;
    let (kind, election) = (KIND.to_owned(), play.election.clone());
    o.tell(&Command::Observe {
        id: 1,
        kind,
        election,
    })
    .await?;
    play.must("o", Name::Synced, 1).await?;
    good.proxy.heal();
    play.book.deed("fault");
    silent.proxy.black_hole();
    let mut a = play.start("a", &[good]).await?;
    a.lead(&play.election, |_| {}).await?;
    play.must("a", Name::Leading, 1).await?;
    let told = |record: &Record| {
        let mut states = record.of("o", Name::State);
        states
            .find(|event| event.phase.as_deref() == Some("held"))
            .map(|_| ())
    };
    play.book.until(PATIENCE, told).await;
    Ok(play.record())
}

/// A program that waits is stopped when the election becomes vacant, and goes on when its grant is over.
async fn stopped_while_waiting(stage: &Stage, program: &Program) -> Result<Record, String> {
    let play = Play::new(program, "waiting", stage.agent());
    let front = Front::recording(stage.agent(), 0, &play.book).await;
    let mut a = play.start("a", &[&front]).await?;
    let mut b = play.start("b", &[&front]).await?;
    let mut c = play.start("c", &[&front]).await?;
    a.lead(&play.election, |_| {}).await?;
    play.must("a", Name::Leading, 1).await?;
    b.lead(&play.election, |lead| lead.term_ms = 6_000).await?;
    let asks = |who: &'static str| {
        move |record: &Record| {
            let mut calls = record.calls.iter();
            calls.find(|call| call.candidate == who).map(|_| ())
        }
    };
    play.book.until(PATIENCE, asks("b")).await;
    play.must("a", Name::Renewed, 1).await?;
    b.signal("STOP");
    play.book.deed("fault");
    // It is the first in the queue of the agent, which does not know yet that it is stopped.
    a.tell(&Command::EndBody { id: 1 }).await?;
    play.must("a", Name::Done, 1).await?;
    c.lead(&play.election, |_| {}).await?;
    play.event(PATIENCE, "c", Name::Leading, 1).await;
    play.pause(300).await;
    play.book.deed("goes on");
    b.signal("CONT");
    play.pause(1_500).await;
    c.tell(&Command::EndBody { id: 1 }).await?;
    play.event(PATIENCE, "b", Name::Leading, 1).await;
    play.pause(200).await;
    Ok(play.record())
}

/// The body ends while nothing passes to and from the agent.
async fn resigns_while_cut_off(stage: &Stage, program: &Program) -> Result<Record, String> {
    let play = Play::new(program, "cut-off", stage.agent());
    let front = Front::recording(stage.agent(), 0, &play.book).await;
    let mut a = play.start("a", &[&front]).await?;
    a.lead(&play.election, |_| {}).await?;
    play.must("a", Name::Renewed, 1).await?;
    front.proxy.black_hole();
    // An extension is under way, and not answered.
    play.pause(1_300).await;
    play.book.deed("fault");
    a.tell(&Command::EndBody { id: 1 }).await?;
    play.event(LIMIT, "a", Name::BodyEnded, 1).await;
    play.pause(200).await;
    play.book.deed(checks::OPENS);
    front.proxy.heal();
    let vacant = |record: &Record| {
        let last = record.seen.last()?;
        (last.leader.is_none() && last.token > 0).then_some(())
    };
    play.book.until(LIMIT, vacant).await;
    play.pause(1_300).await;
    Ok(play.record())
}

/// A program leads two elections, and loses one.
async fn two_elections(stage: &Stage, program: &Program) -> Result<Record, String> {
    let play = Play::new(program, "two", stage.agent());
    let front = Front::recording(stage.agent(), 0, &play.book).await;
    let mut a = play.start("a", &[&front]).await?;
    let mut twin = play.start("twin", &[&front]).await?;
    let other = format!("{}-other", play.election);
    a.lead(&play.election, |_| {}).await?;
    play.must("a", Name::Leading, 1).await?;
    a.lead(&other, |lead| lead.id = 2).await?;
    play.must("a", Name::Leading, 2).await?;
    play.must("a", Name::Renewed, 2).await?;
    twin.lead(&other, |lead| {
        lead.id = 2;
        "a".clone_into(&mut lead.candidate);
    })
    .await?;
    play.must("twin", Name::Leading, 1).await?;
    play.event(LIMIT, "a", Name::Lost, 1).await;
    play.book.deed("fault");
    play.pause(2_300).await;
    a.tell(&Command::EndBody { id: 1 }).await?;
    play.event(LIMIT, "a", Name::Done, 1).await;
    Ok(play.record())
}

/// The agent ends connections that are old, with GOAWAY.
async fn connection_age(_: &Stage, program: &Program) -> Result<Record, String> {
    let agent = agent_with(&[
        ("EA_GRPC_MAX_CONNECTION_AGE", "2s"),
        ("EA_GRPC_MAX_CONNECTION_AGE_GRACE", "1s"),
    ])
    .await;
    let play = Play::new(program, "age", address(&agent));
    let front = Front::plain(address(&agent)).await;
    let mut a = play.start("a", &[&front]).await?;
    a.lead(&play.election, |_| {}).await?;
    play.must("a", Name::Leading, 1).await?;
    play.pause(7_500).await;
    let connections = front.proxy.accepted();
    play.book
        .write(|record| record.numbers.push(("connections", connections)));
    Ok(play.record())
}

/// The application says that it is not alive.
async fn hung_application(stage: &Stage, program: &Program) -> Result<Record, String> {
    let play = Play::new(program, "hung", stage.agent());
    let front = Front::recording(stage.agent(), 0, &play.book).await;
    let mut a = play.start("a", &[&front]).await?;
    let mut b = play.start("b", &[&front]).await?;
    a.lead(&play.election, |lead| lead.asks_alive = true)
        .await?;
    play.must("a", Name::Leading, 1).await?;
    b.lead(&play.election, |_| {}).await?;
    play.must("a", Name::Renewed, 2).await?;
    play.book.deed("fault");
    a.tell(&Command::Alive {
        id: 1,
        alive: false,
    })
    .await?;
    play.event(LIMIT, "a", Name::Lost, 1).await;
    play.event(LIMIT, "b", Name::Leading, 1).await;
    play.pause(300).await;
    Ok(play.record())
}

/// The body goes on after the loss. The term could be extended again, and is until the grace is over.
async fn body_ignores_loss(stage: &Stage, program: &Program) -> Result<Record, String> {
    let play = Play::new(program, "ignores", stage.agent());
    let front = Front::recording(stage.agent(), 0, &play.book).await;
    let mut a = play.start("a", &[&front]).await?;
    a.lead(&play.election, |lead| {
        lead.body = Body::Ignores;
        lead.asks_alive = true;
        lead.grace_ms = GRACE_MS;
        // Time enough to extend the term after the loss.
        lead.margin_ms = Some(1_400);
    })
    .await?;
    play.must("a", Name::Renewed, 1).await?;
    a.tell(&Command::Alive {
        id: 1,
        alive: false,
    })
    .await?;
    play.event(LIMIT, "a", Name::Lost, 1).await;
    a.tell(&Command::Alive { id: 1, alive: true }).await?;
    play.pause(GRACE_MS + 3_500).await;
    a.tell(&Command::EndBody { id: 1 }).await?;
    play.event(LIMIT, "a", Name::Error, 1).await;
    Ok(play.record())
}

/// The body blocks what it runs in for longer than the term, and goes on at once.
async fn body_blocks(stage: &Stage, program: &Program) -> Result<Record, String> {
    let play = Play::new(program, "blocks", stage.agent());
    let front = Front::recording(stage.agent(), 0, &play.book).await;
    let mut a = play.start("a", &[&front]).await?;
    let mut b = play.start("b", &[&front]).await?;
    a.lead(&play.election, |_| {}).await?;
    play.must("a", Name::Renewed, 1).await?;
    b.lead(&play.election, |_| {}).await?;
    play.must("a", Name::Renewed, 2).await?;
    play.book.deed("fault");
    a.tell(&Command::Block { id: 1, ms: 4_500 }).await?;
    play.event(LIMIT, "b", Name::Leading, 1).await;
    play.pause(2_000).await;
    play.event(LIMIT, "a", Name::BodyEnded, 1).await;
    play.event(LIMIT, "a", Name::Lost, 1).await;
    Ok(play.record())
}

/// The agent refuses extensions.
async fn refused_extension(stage: &Stage, program: &Program) -> Result<Record, String> {
    let play = Play::new(program, "refusal", stage.agent());
    let front = Front::recording(stage.agent(), 0, &play.book).await;
    front.forwarder().offer_no_streams();
    let mut a = play.start("a", &[&front]).await?;
    a.lead(&play.election, |_| {}).await?;
    play.must("a", Name::Renewed, 1).await?;
    play.book.deed("fault");
    front.forwarder().refuse_extensions();
    play.event(LIMIT, "a", Name::Lost, 1).await;
    play.pause(300).await;
    Ok(play.record())
}

/// Another process campaigns under the leader's name.
async fn fenced(stage: &Stage, program: &Program) -> Result<Record, String> {
    let play = Play::new(program, "fenced", stage.agent());
    let front = Front::recording(stage.agent(), 0, &play.book).await;
    let mut a = play.start("a", &[&front]).await?;
    let mut twin = play.start("twin", &[&front]).await?;
    a.lead(&play.election, |_| {}).await?;
    play.must("a", Name::Renewed, 1).await?;
    play.book.deed("fault");
    twin.lead(&play.election, |lead| "a".clone_into(&mut lead.candidate))
        .await?;
    play.must("twin", Name::Leading, 1).await?;
    play.event(LIMIT, "a", Name::Lost, 1).await;
    play.pause(300).await;
    Ok(play.record())
}

/// Leaders come and go, and the observer is cut off in between.
async fn observer(stage: &Stage, program: &Program) -> Result<Record, String> {
    let play = Play::new(program, "observer", stage.agent());
    let front = Front::recording(stage.agent(), 0, &play.book).await;
    let mut o = play.start("o", &[&front]).await?;
    let (kind, election) = (KIND.to_owned(), play.election.clone());
    o.tell(&Command::Observe {
        id: 1,
        kind,
        election,
    })
    .await?;
    play.must("o", Name::Synced, 1).await?;
    let url = format!("http://{}", stage.agent());
    let channel = Endpoint::from_shared(url).map_err(|error| error.to_string())?;
    let mut client = ElectionClient::new(channel.connect_lazy());
    let campaign = |candidate: &str, term| CampaignRequest {
        election: play.election.clone(),
        kind: KIND.to_owned(),
        candidate: candidate.to_owned(),
        term,
        ..CampaignRequest::default()
    };
    let failed = |status: tonic::Status| format!("setup: {status}");
    let told = async |phase: &'static str, leader: Option<&'static str>| {
        let look = move |record: &Record| {
            let last = record.of("o", Name::State).last()?;
            let is = last.phase.as_deref() == Some(phase) && last.leader.as_deref() == leader;
            is.then_some(())
        };
        play.book.until(LIMIT, look).await
    };
    let granted = client.campaign(campaign("x", 60_000)).await;
    let token = granted.map_err(failed)?.into_inner().token;
    told("held", Some("x")).await;
    let resign = ResignRequest {
        election: play.election.clone(),
        kind: KIND.to_owned(),
        leader: "x".to_owned(),
        token,
    };
    client.resign(resign).await.map_err(failed)?;
    told("vacant", None).await;
    let granted = client.campaign(campaign("y", 2_000)).await;
    granted.map_err(failed)?;
    told("held", Some("y")).await;
    // The time of the election is not over, and the observer's connection is.
    front.proxy.reset();
    told("vacant", None).await;
    play.pause(300).await;
    Ok(play.record())
}

/// An attempt that does not wait, once while another leads, and once while no agent answers.
async fn unknown_outcome(stage: &Stage, program: &Program) -> Result<Record, String> {
    let play = Play::new(program, "unknown", stage.agent());
    let front = Front::recording(stage.agent(), 0, &play.book).await;
    let cut = Front::recording(stage.agent(), 1, &play.book).await;
    let mut a = play.start("a", &[&front]).await?;
    a.lead(&play.election, |_| {}).await?;
    play.must("a", Name::Leading, 1).await?;
    cut.proxy.refuse();
    let mut held = play.start("held", &[&front]).await?;
    let mut unknown = play.start("unknown", &[&cut]).await?;
    held.lead(&play.election, |lead| lead.wait_ms = Some(0))
        .await?;
    unknown
        .lead(&play.election, |lead| lead.wait_ms = Some(0))
        .await?;
    play.event(LIMIT, "held", Name::Error, 1).await;
    play.event(PATIENCE, "unknown", Name::Error, 1).await;
    Ok(play.record())
}

/// A resource asks about tokens.
async fn verification(stage: &Stage, program: &Program) -> Result<Record, String> {
    let play = Play::new(program, "verify", stage.agent());
    let front = Front::recording(stage.agent(), 0, &play.book).await;
    let mut a = play.start("a", &[&front]).await?;
    let mut v = play.start("v", &[&front]).await?;
    a.lead(&play.election, |_| {}).await?;
    let leading = play.must("a", Name::Leading, 1).await?;
    let token = leading.token.unwrap_or(0);
    let verify = |id: u64, token: u64| Command::Verify {
        id,
        kind: KIND.to_owned(),
        election: play.election.clone(),
        token,
    };
    v.tell(&verify(1, token)).await?;
    play.event(LIMIT, "v", Name::Verified, 1).await;
    v.tell(&verify(2, token + 1_000)).await?;
    play.event(LIMIT, "v", Name::Verified, 2).await;
    a.tell(&Command::EndBody { id: 1 }).await?;
    play.must("a", Name::Done, 1).await?;
    v.tell(&verify(3, token)).await?;
    play.event(LIMIT, "v", Name::Verified, 3).await;
    Ok(play.record())
}

/// How long there are faults, in seconds, unless [`CHAOS`] says otherwise.
const FAULTS_FOR: u64 = 12;

/// In the environment: for how many seconds there are faults.
const CHAOS: &str = "CONFORMANCE_CHAOS_SECONDS";

/// Three candidates lead again and again, with two agents and three lease nodes, and at random faults of each.
async fn chaos(_: &Stage, program: &Program) -> Result<Record, String> {
    random_faults(program, "chaos", false).await
}

/// The same with agents that have no streams to lead by.
async fn chaos_of_calls(_: &Stage, program: &Program) -> Result<Record, String> {
    random_faults(program, "chaos-unary", true).await
}

/// A candidate, and its own ways to the agents.
struct Candidate {
    name: &'static str,
    player: Player,
    ways: [Front; 2],
    /// Of the present attempt.
    id: u64,
    stopped_until: u64,
}

impl Candidate {
    async fn lead(&mut self, play: &Play) -> Result<(), String> {
        self.id += 1;
        let id = self.id;
        let change = |lead: &mut crate::protocol::Lead| {
            (lead.id, lead.term_ms, lead.grace_ms) = (id, 2_000, 500);
        };
        self.player.lead(&play.election, change).await
    }

    async fn lead_again(&mut self, play: &Play) -> Result<(), String> {
        let (name, id) = (self.name, self.id);
        let has_ended = |record: &Record| {
            let mut ended = record
                .of(name, Name::Done)
                .chain(record.of(name, Name::Error));
            ended.any(|event| event.id == id)
        };
        if play.book.read(has_ended) {
            self.lead(play).await?;
        }
        Ok(())
    }
}

async fn random_faults(program: &Program, name: &str, unary: bool) -> Result<Record, String> {
    let nodes = Redis::several(3, &[]).await;
    let agents = tokio::join!(agent_on(&nodes, &[]), agent_on(&nodes, &[]));
    let agents = [&agents.0, &agents.1];
    let play = Play::new(program, name, address(agents[1]));
    let mut candidates = Vec::new();
    for name in ["a", "b", "c"] {
        let ways = [
            Front::recording(address(agents[0]), 0, &play.book).await,
            Front::recording(address(agents[1]), 1, &play.book).await,
        ];
        for way in ways.iter().filter(|_| unary) {
            way.forwarder().offer_no_streams();
        }
        let player = play.start(name, &[&ways[0], &ways[1]]).await?;
        let mut candidate = Candidate {
            name,
            player,
            ways,
            id: 0,
            stopped_until: 0,
        };
        candidate.lead(&play).await?;
        candidates.push(candidate);
    }
    let seconds = std::env::var(CHAOS).ok().and_then(|text| text.parse().ok());
    let end = now() + seconds.unwrap_or(FAULTS_FOR) * 1_000_000_000;
    let mut node_stopped = [false; 3];
    while now() < end {
        play.pause(fastrand::u64(50..500)).await;
        for candidate in &mut candidates {
            if candidate.stopped_until > 0 && candidate.stopped_until < now() {
                candidate.player.signal("CONT");
                play.book.deed("a candidate goes on");
                candidate.stopped_until = 0;
            }
            candidate.lead_again(&play).await?;
        }
        let candidate = &mut candidates[fastrand::usize(..3)];
        let way = &candidate.ways[fastrand::usize(..2)];
        match fastrand::u32(..14) {
            0 => {
                play.book.deed("a way is silent");
                way.proxy.black_hole();
            }
            1 => {
                play.book.deed("all ways of a candidate are silent");
                candidate.ways.iter().for_each(|way| way.proxy.black_hole());
            }
            2 => {
                play.book.deed("a way is refused");
                way.proxy.refuse();
            }
            3 => {
                play.book.deed("a way is reset");
                way.proxy.reset();
            }
            4 => {
                play.book.deed("a grant is lost");
                way.forwarder().lose_next_grant();
            }
            5 => {
                play.book.deed("a way is slow");
                way.forwarder().delay(fastrand::u64(0..400));
            }
            6 if candidate.stopped_until == 0 => {
                play.book.deed("a candidate is stopped");
                candidate.player.signal("STOP");
                candidate.stopped_until = now() + fastrand::u64(100..3_500) * 1_000_000;
            }
            7 => {
                let node = fastrand::usize(..3);
                play.book.deed("a lease node is stopped, or goes on");
                nodes[node].signal(if node_stopped[node] { "CONT" } else { "STOP" });
                node_stopped[node] = !node_stopped[node];
            }
            8 => {
                play.book.deed("all lease nodes go on");
                nodes.iter().for_each(|node| node.signal("CONT"));
                node_stopped = [false; 3];
            }
            9 | 10 => {
                play.book.deed("a body is let end");
                let id = candidate.id;
                candidate.player.tell(&Command::EndBody { id }).await?;
            }
            _ => {
                play.book.deed(checks::OPENS);
                for way in &candidate.ways {
                    way.forwarder().delay(0);
                    way.proxy.heal();
                }
            }
        }
    }
    play.book.deed(checks::OPENS);
    nodes.iter().for_each(|node| node.signal("CONT"));
    for candidate in &candidates {
        candidate.player.signal("CONT");
        for way in &candidate.ways {
            way.forwarder().delay(0);
            way.proxy.heal();
        }
    }
    play.book.deed("healed");
    let healed = now();
    while now() < healed + 15_000_000_000 {
        for candidate in &mut candidates {
            candidate.lead_again(&play).await?;
        }
        if play
            .book
            .read(|record| checks::somebody_leads_after_all(record).is_ok())
        {
            break;
        }
        play.pause(100).await;
    }
    Ok(play.record())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutants::FOUND_BY;

    /// Says whether the agent did what the scenario is about; no client can make it fail alone.
    const OF_THE_SETUP: &str = "connections_have_aged";

    #[test]
    fn every_scenario_and_every_check_finds_a_mutant() {
        for scenario in ALL {
            let found = FOUND_BY.iter().any(|(_, name, _)| *name == scenario.name);
            assert!(found, "{} has no mutant", scenario.name);
            for (check, _) in SAFETY.iter().chain(scenario.checks) {
                let found = FOUND_BY.iter().any(|(.., found_by)| found_by == check);
                assert!(found || *check == OF_THE_SETUP, "{check} has no mutant");
            }
        }
    }

    #[test]
    fn mutants_are_given_to_checks_of_scenarios() {
        for (mutant, name, check) in FOUND_BY {
            let scenario = ALL.iter().find(|scenario| scenario.name == *name);
            let checks = scenario.map(|scenario| SAFETY.iter().chain(scenario.checks));
            let known = checks.is_some_and(|mut checks| checks.any(|(known, _)| known == check));
            assert!(known, "{mutant}: {name} has no check {check}");
        }
    }
}
