//! `observe`: follows who leads.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use clap::ArgMatches;
use crossterm::{
    QueueableCommand as _,
    cursor::MoveToPreviousLine,
    terminal::{Clear, ClearType},
};
use election_agent_client::{Agent, Cause, Error, Event, Scope, State};
use serde::Serialize;
use tokio::{select, sync::mpsc, time::MissedTickBehavior};

use crate::{
    connection,
    failure::Failure,
    output::{complain, fitting, padded, print, print_json, printable, table, written},
    run::clock::Instant,
};

/// How often the time that is left is shown anew.
const REDRAW: Duration = Duration::from_secs(1);

/// How many elections' remaining times are asked for, since extensions are not changes.
const MOST_ASKED: usize = 50;

/// What is printed as JSON.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line<'a> {
    State {
        kind: &'a str,
        election: &'a str,
        leader: Option<&'a str>,
        token: u64,
        /// Ms, when the agent looked.
        remaining: u64,
        value: &'a str,
        elected_at: Option<i64>,
        cause: &'static str,
        position: &'a str,
        missed: bool,
    },
    Synced,
    Certainty {
        certain: bool,
        /// Ms.
        unconfirmed_for: u64,
        reason: &'a str,
    },
}

/// Follows until a signal ends the process.
pub(crate) async fn observe(given: &ArgMatches) -> Result<u8, Failure> {
    let agent = connection::agent(given)?;
    let (sender, mut events) = mpsc::channel(64);
    let scopes = scopes(given);
    let several = scopes.len();
    for scope in scopes {
        tokio::spawn(follow(agent.clone(), scope, sender.clone()));
    }
    drop(sender);
    let json = given.get_flag("json");
    let mut synced = 0;
    if json || !io::stdout().is_terminal() {
        while let Some(event) = events.recv().await {
            let event = event?;
            synced += usize::from(event == Event::Synced);
            // All present states are reported when those of each election are.
            if event == Event::Synced && synced < several {
                continue;
            }
            if json {
                print_json(&line(&event))?;
            } else {
                print_text(&event)?;
            }
        }
        return Ok(0);
    }
    let mut board = Board::new(agent);
    let mut tick = tokio::time::interval(REDRAW);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        select! {
            event = events.recv() => match event {
                Some(event) => board.note(event?),
                None => return Ok(0),
            },
            Some(state) = board.answers.recv() => board.refresh(state),
            _ = tick.tick() => board.ask(),
        }
        // What has come at once is drawn at once.
        if events.is_empty() {
            board.draw()?;
        }
    }
}

fn scopes(given: &ArgMatches) -> Vec<Scope> {
    let text = |name| given.get_one::<String>(name).map(String::as_str);
    let kind = text("kind").unwrap_or_default();
    if given.get_flag("all_kinds") {
        return vec![Scope::All];
    }
    if let Some(prefix) = text("prefix") {
        return vec![Scope::prefix(kind, prefix)];
    }
    let elections: Vec<_> = given
        .get_many::<String>("elections")
        .unwrap_or_default()
        .collect();
    match elections.is_empty() {
        true => vec![Scope::kind(kind)],
        false => elections
            .into_iter()
            .map(|name| Scope::election(kind, name))
            .collect(),
    }
}

async fn follow(agent: Agent, scope: Scope, events: mpsc::Sender<Result<Event, Error>>) {
    let mut observer = agent.observe(scope);
    while let Some(event) = observer.next().await {
        if events.send(event).await.is_err() {
            return;
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn line(event: &Event) -> Line<'_> {
    match event {
        Event::State(state) => {
            let leader = state.leader.as_ref();
            Line::State {
                kind: &state.kind,
                election: &state.election,
                leader: leader.map(|leader| leader.name.as_str()),
                token: state.token,
                remaining: leader
                    .map(|leader| millis(leader.remaining))
                    .unwrap_or_default(),
                value: leader
                    .map(|leader| leader.value.as_str())
                    .unwrap_or_default(),
                elected_at: leader.map(|leader| leader.elected_at),
                cause: cause(state.cause),
                position: &state.position,
                missed: state.missed,
            }
        }
        Event::Certainty {
            certain,
            unconfirmed_for,
            reason,
            ..
        } => Line::Certainty {
            certain: *certain,
            unconfirmed_for: millis(*unconfirmed_for),
            reason,
        },
        _ => Line::Synced,
    }
}

fn cause(cause: Cause) -> &'static str {
    match cause {
        Cause::Present => "present",
        Cause::Campaign => "campaign",
        Cause::Resign => "resign",
        Cause::Handover => "handover",
        Cause::Expiry => "expiry",
        Cause::RolledBack => "rolled_back",
        _ => "unknown",
    }
}

fn print_text(event: &Event) -> Result<(), Failure> {
    match event {
        Event::State(state) => {
            let name = printable(format!("{}/{}", state.kind, state.election));
            let leader = state.leader.as_ref();
            let leader = leader.map_or("(vacant)".to_owned(), |leader| {
                printable(leader.name.clone())
            });
            let missed = if state.missed {
                " (others may have led between)"
            } else {
                ""
            };
            print(format_args!(
                "{}  {}  {:>16}  {}{missed}",
                padded(&name, 32),
                padded(&leader, 32),
                state.token,
                cause(state.cause)
            ))
        }
        Event::Certainty {
            certain: false,
            reason,
            ..
        } => {
            complain(format_args!("not certain: {reason}"));
            Ok(())
        }
        Event::Certainty { certain: true, .. } => {
            complain(format_args!("certain again"));
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The states on a terminal.
struct Board {
    agent: Agent,
    states: BTreeMap<(String, String), Row>,
    doubt: Option<String>,
    /// How many lines were drawn last.
    drawn: u16,
    answers: mpsc::Receiver<State>,
    sender: mpsc::Sender<State>,
}

struct Row {
    state: State,
    /// When the term ends as far as it is known.
    end: Instant,
}

impl Board {
    fn new(agent: Agent) -> Self {
        let (sender, answers) = mpsc::channel(MOST_ASKED);
        Self {
            agent,
            states: BTreeMap::new(),
            doubt: None,
            drawn: 0,
            answers,
            sender,
        }
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::State(state) => self.place(state),
            Event::Certainty {
                certain, reason, ..
            } => self.doubt = (!certain).then_some(reason),
            _ => {}
        }
    }

    fn place(&mut self, state: State) {
        let key = (state.kind.clone(), state.election.clone());
        let remaining = state.leader.as_ref().map(|leader| leader.remaining);
        let end = Instant::now() + remaining.unwrap_or_default();
        self.states.insert(key, Row { state, end });
    }

    /// Notes how long a known leadership lasts. The observer reports an unknown one.
    fn refresh(&mut self, mut state: State) {
        let known = self
            .states
            .get(&(state.kind.clone(), state.election.clone()));
        if let Some(Row { state: known, .. }) = known
            && known.position == state.position
        {
            state.cause = known.cause;
            self.place(state);
        }
    }

    /// Asks for the terms that seem to be nearly over: most have been extended.
    fn ask(&mut self) {
        let ending = self.states.values().filter(|row| {
            row.state
                .leader
                .as_ref()
                .is_some_and(|leader| row.end.remaining() < leader.remaining / 3)
        });
        for row in ending.take(MOST_ASKED) {
            let (agent, sender) = (self.agent.clone(), self.sender.clone());
            let (kind, election) = (row.state.kind.clone(), row.state.election.clone());
            tokio::spawn(async move {
                // Without a reply the remaining time stays as it was.
                if let Ok(state) = agent.state(&election, &kind).await {
                    let _ = sender.send(state).await;
                }
            });
        }
    }

    fn draw(&mut self) -> Result<(), Failure> {
        let known = crossterm::terminal::size().ok();
        // Some terminals do not know their size, and report zero.
        let size = known.filter(|(width, height)| *width > 0 && *height > 0);
        let (width, height) = size.unwrap_or((80, 24));
        let text = self.text(usize::from(width), usize::from(height).saturating_sub(2));
        let mut out = io::stdout().lock();
        let queued = (|| {
            if self.drawn > 0 {
                out.queue(MoveToPreviousLine(self.drawn))?;
            }
            out.queue(Clear(ClearType::FromCursorDown))?;
            out.write_all(text.as_bytes())?;
            out.flush()
        })();
        self.drawn = u16::try_from(text.lines().count()).unwrap_or(u16::MAX);
        written(queued)
    }

    /// So many lines, each at most so wide, and each with an end.
    fn text(&self, width: usize, height: usize) -> String {
        let rows = self.states.values().map(|Row { state, end }| {
            let leader = state.leader.as_ref();
            vec![
                state.kind.clone(),
                state.election.clone(),
                leader.map_or("(vacant)".to_owned(), |leader| leader.name.clone()),
                state.token.to_string(),
                leader.map_or(String::new(), |_| {
                    format!("{:.0}s", end.remaining().as_secs_f64().ceil())
                }),
                leader.map_or(String::new(), |leader| leader.value.clone()),
                cause(state.cause).to_owned(),
            ]
        });
        let head = [
            "KIND", "ELECTION", "LEADER", "TOKEN", "LEFT", "VALUE", "CAUSE",
        ];
        let table = table(&head, rows);
        let mut lines: Vec<_> = table.lines().collect();
        let hidden = lines.len().saturating_sub(height);
        lines.truncate(height);
        let more = format!("… and {hidden} more");
        if hidden > 0 {
            lines.push(&more);
        }
        let doubt = self
            .doubt
            .as_ref()
            .map(|why| printable(format!("not certain: {why}")));
        lines.extend(doubt.as_deref());
        let mut text = String::new();
        for line in lines {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{}", fitting(line, width));
        }
        text
    }
}
