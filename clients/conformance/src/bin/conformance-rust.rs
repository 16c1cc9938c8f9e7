//! The conformance program of the Rust client. README.md has the protocol.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use client_conformance::protocol::{Body, Command, Event, Lead, Name, commands, now};
use election_agent_client::{
    Agent, Cause, Error, Event as Observed, Lost, NotCurrent, Scope, Standing, Term,
};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{mpsc, watch};

/// What commands say to a body.
#[derive(Default)]
struct Orders {
    alive: AtomicBool,
    block: AtomicU64,
    end: watch::Sender<bool>,
}

type All = Arc<Mutex<HashMap<u64, Arc<Orders>>>>;

fn orders(all: &All, id: u64) -> Arc<Orders> {
    let mut all: MutexGuard<'_, _> = all.lock();
    let new = || {
        let orders = Orders::default();
        orders.alive.store(true, Ordering::SeqCst);
        Arc::new(orders)
    };
    Arc::clone(all.entry(id).or_insert_with(new))
}

// One thread, so that a body that blocks blocks everything that is asynchronous.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let all = All::default();
    let (sender, mut asynchronous) = mpsc::unbounded_channel();
    let told = Arc::clone(&all);
    commands(move |command| match command {
        Command::EndBody { id } => _ = orders(&told, id).end.send_replace(true),
        Command::Block { id, ms } => orders(&told, id).block.store(ms, Ordering::SeqCst),
        Command::Alive { id, alive } => orders(&told, id).alive.store(alive, Ordering::SeqCst),
        other => _ = sender.send(other),
    });
    Event::new(Name::Ready, 0).send();
    let mut client = None;
    while let Some(command) = asynchronous.recv().await {
        if let Command::Connect { agents } = &command {
            client = Some(Agent::new(agents)?);
            continue;
        }
        let Some(agent) = client.clone() else {
            return Err(Error::Config("`connect` comes first".to_owned()));
        };
        match command {
            Command::Lead(lead) => {
                let orders = orders(&all, lead.id);
                tokio::spawn(leads(agent, lead, orders));
            }
            Command::Observe { id, kind, election } => {
                tokio::spawn(observes(agent, id, kind, election));
            }
            Command::Verify {
                id,
                kind,
                election,
                token,
            } => {
                tokio::spawn(verifies(agent, id, kind, election, token));
            }
            _ => {}
        }
    }
    Ok(())
}

fn lost(why: Lost) -> &'static str {
    match why {
        Lost::TermOver => "term_over",
        Lost::HeldByOther => "held_by_other",
        Lost::StaleToken => "stale_token",
        Lost::NoTerm => "no_term",
        Lost::ClockJumped => "clock_jumped",
        _ => "other",
    }
}

fn error(id: u64, error: &Error) -> Event {
    let kind = match error {
        Error::NotElected { .. } => "not_elected",
        Error::Lost(_) => "lost",
        Error::NotKnown { .. } => "not_known",
        Error::Refused { .. } => "refused",
        Error::Unreachable { .. } => "unreachable",
        Error::Config(_) => "config",
        _ => "other",
    };
    Event::new(Name::Error, id).because(kind)
}

async fn leads(agent: Agent, lead: Lead, orders: Arc<Orders>) {
    let id = lead.id;
    let alive = Arc::clone(&orders);
    let mut ask = agent
        .lead(lead.election)
        .kind(lead.kind)
        .candidate(lead.candidate)
        .term(Duration::from_millis(lead.term_ms))
        .grace(Duration::from_millis(lead.grace_ms))
        .on_lost(move |why| Event::new(Name::Lost, id).because(lost(why)).send())
        .on_jeopardy(move |_| Event::new(Name::Jeopardy, id).send())
        .on_state(move |standing| match standing {
            Standing::Resigned => Event::new(Name::Resigned, id).send(),
            Standing::Refused { message, .. } => {
                Event::new(Name::Refused, id).because(message).send();
            }
            _ => {}
        });
    if lead.asks_alive {
        ask = ask.alive(move || alive.alive.load(Ordering::SeqCst));
    }
    if let Some(wait) = lead.wait_ms {
        ask = ask.wait(Duration::from_millis(wait));
    }
    if let Some(margin) = lead.margin_ms {
        ask = ask.margin(Duration::from_millis(margin));
    }
    let body = lead.body;
    match ask.run(|term| works(id, term, body, orders)).await {
        Ok(()) => Event::new(Name::Done, id).send(),
        Err(why) => error(id, &why).send(),
    }
}

/// Reports the end of the body, also when the library drops it.
struct Ends(u64);

impl Drop for Ends {
    fn drop(&mut self) {
        Event::new(Name::BodyEnded, self.0).send();
    }
}

async fn works(id: u64, mut term: Term, body: Body, orders: Arc<Orders>) {
    let _ends = Ends(id);
    let until = term.valid_until().as_nanos_since_boot();
    Event::new(Name::Leading, id)
        .term(term.token(), until)
        .send();
    let mut end = orders.end.subscribe();
    let loss = term.lost();
    tokio::pin!(loss);
    let mut told = false;
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut renewals = term.clone();
    loop {
        tokio::select! {
            biased;
            Ok(_) = end.wait_for(|end| *end) => return,
            _ = &mut loss, if !told => {
                if body == Body::Cooperative {
                    return;
                }
                told = true;
            }
            Ok(until) = renewals.renewed() => {
                let mut event = Event::new(Name::Renewed, id);
                event.valid_until = Some(until.as_nanos_since_boot());
                event.send();
            }
            _ = tick.tick() => {
                act(id, &mut term);
                let block = orders.block.swap(0, Ordering::SeqCst);
                if block > 0 {
                    std::thread::sleep(Duration::from_millis(block));
                    act(id, &mut term);
                }
            }
        }
    }
}

fn act(id: u64, term: &mut Term) {
    let at = now();
    let until = term.valid_until().as_nanos_since_boot();
    if term.check().is_ok() {
        let mut event = Event::new(Name::Acting, id).term(term.token(), until);
        event.at = at;
        event.send();
    }
}

async fn observes(agent: Agent, id: u64, kind: String, election: String) {
    let mut observer = agent.observe(Scope::election(kind, election));
    while let Some(observed) = observer.next().await {
        match observed {
            Ok(Observed::State(state)) => {
                let cause = match state.cause {
                    Cause::Present => "present",
                    Cause::Campaign => "campaign",
                    Cause::Resign => "resign",
                    Cause::Handover => "handover",
                    Cause::Expiry => "expiry",
                    Cause::RolledBack => "rolled_back",
                    _ => "unknown",
                };
                let mut event = Event::new(Name::State, id);
                event.phase = Some(if state.is_held() { "held" } else { "vacant" }.to_owned());
                event.cause = Some(cause.to_owned());
                event.token = Some(state.token);
                event.leader = state.leader.map(|leader| leader.name);
                event.send();
            }
            Ok(Observed::Synced) => Event::new(Name::Synced, id).send(),
            Ok(Observed::Certainty {
                certain, reason, ..
            }) => {
                let mut event = Event::new(Name::Certainty, id).because(reason);
                event.certain = Some(certain);
                event.send();
            }
            Ok(_) => {}
            Err(why) => error(id, &why).send(),
        }
    }
}

async fn verifies(agent: Agent, id: u64, kind: String, election: String, token: u64) {
    match agent.verify(&election, &kind, token).await {
        Ok(verified) => {
            let mut event = Event::new(Name::Verified, id);
            event.current = Some(verified.current);
            event.reason = verified.reason.map(|reason| {
                match reason {
                    NotCurrent::NoTerm => "no_term",
                    NotCurrent::StaleToken => "stale_token",
                    NotCurrent::NotGranted => "not_granted",
                    _ => "other",
                }
                .to_owned()
            });
            event.send();
        }
        Err(why) => error(id, &why).send(),
    }
}
