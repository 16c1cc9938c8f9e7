//! What the driver and a conformance program say to each other: one JSON object a line. README.md describes it for
//! authors of programs.

use std::io::Write as _;

use serde::{Deserialize, Serialize};

/// Nanoseconds since the machine's start, by CLOCK_BOOTTIME.
#[must_use]
pub fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    // Neither is negative: the clock starts with the machine.
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds * 1_000_000_000 + nanos
}

/// What a program is told to do.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Command {
    /// Makes the client of these agents. The first command, given once.
    Connect {
        /// `host:port,host:port`, without TLS.
        agents: String,
    },
    /// Campaigns, and runs a body as the leader.
    Lead(Lead),
    /// Lets the body end by itself.
    EndBody {
        /// Which one.
        id: u64,
    },
    /// Lets the body block what it runs in (an event loop, a runtime) without a pause, and act at once after it.
    Block {
        /// Which one.
        id: u64,
        /// For how long, in ms.
        ms: u64,
    },
    /// What the function of [`Lead::asks_alive`] says; `true` until told otherwise.
    Alive {
        /// Of which leadership.
        id: u64,
        /// What it says.
        alive: bool,
    },
    /// Follows who leads an election, until the program ends.
    Observe {
        /// Names the observer in events.
        id: u64,
        /// The election's kind.
        kind: String,
        /// The election's name.
        election: String,
    },
    /// Asks whether a token is the present leader's.
    Verify {
        /// Names the question in events.
        id: u64,
        /// The election's kind.
        kind: String,
        /// The election's name.
        election: String,
        /// The token in question.
        token: u64,
    },
    /// Ends the program at once, as does the end of its standard input.
    Quit,
}

/// How to lead.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Lead {
    /// Names the leadership in commands and events.
    pub id: u64,
    /// The election's kind.
    pub kind: String,
    /// The election's name.
    pub election: String,
    /// The name to campaign under.
    pub candidate: String,
    /// How long a term is, in ms.
    pub term_ms: u64,
    /// How long to wait to be elected, in ms; none: for ever; 0: not at all.
    #[serde(default)]
    pub wait_ms: Option<u64>,
    /// How long a body may go on after it was told of the loss, in ms.
    pub grace_ms: u64,
    /// How long before the end of the term it counts as lost, in ms; none: the library's default.
    #[serde(default)]
    pub margin_ms: Option<u64>,
    /// Whether the library is given a function that tells whether the application is alive.
    #[serde(default)]
    pub asks_alive: bool,
    /// What the body does.
    pub body: Body,
}

/// What a body does when it is told of the loss. Every 20 ms it looks whether it may act, and says so if it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// It ends.
    Cooperative,
    /// It goes on, without acting, until it is let end or the library drops it.
    Ignores,
}

/// What a program reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Name {
    /// The program reads commands.
    Ready,
    /// Elected, and the body begins: `token`, `valid_until`.
    Leading,
    /// The body may act: `token`, `valid_until`. `at` is read before the library is asked whether it may.
    Acting,
    /// The term was extended: `valid_until`.
    Renewed,
    /// The library reports that the term could not be extended.
    Jeopardy,
    /// The agent refuses to extend the term: `reason`.
    Refused,
    /// The library reports the loss: `reason` is term_over, held_by_other, stale_token, no_term or clock_jumped.
    Lost,
    /// The body has ended, however.
    BodyEnded,
    /// The library reports that the leadership was given up.
    Resigned,
    /// The attempt to lead has returned without an error.
    Done,
    /// The attempt to lead has failed: `reason` is not_elected, lost, not_known, refused, unreachable or config.
    Error,
    /// The state of an observed election: `phase`, `cause`, `token`, `leader`.
    State,
    /// All present states were reported.
    Synced,
    /// Whether the states reported are known to be the present ones: `certain`.
    Certainty,
    /// An answer about a token: `current`, `reason`.
    Verified,
}

/// A report of a program.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Event {
    /// Which report.
    pub event: Name,
    /// When, by CLOCK_BOOTTIME, in ns.
    pub at: u64,
    /// Of which leadership, observer or question; 0 for none.
    #[serde(default)]
    pub id: u64,
    /// A fencing token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<u64>,
    /// Until when the leader may act, by CLOCK_BOOTTIME, in ns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_until: Option<u64>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// held or vacant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// present, campaign, resign, handover, expiry or rolled_back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Who leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Whether what was reported is certain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certain: Option<bool>,
    /// Whether the token is the present leader's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<bool>,
    /// Which of the scenario's programs; the driver adds it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub program: String,
}

impl Event {
    /// A report that is made now.
    #[must_use]
    pub fn new(event: Name, id: u64) -> Self {
        Self {
            event,
            at: now(),
            id,
            token: None,
            valid_until: None,
            reason: None,
            phase: None,
            cause: None,
            leader: None,
            certain: None,
            current: None,
            program: String::new(),
        }
    }

    /// Adds why.
    #[must_use]
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Adds a term.
    #[must_use]
    pub fn term(mut self, token: u64, valid_until: u64) -> Self {
        self.token = Some(token);
        self.valid_until = Some(valid_until);
        self
    }

    /// Writes the report to standard output. A driver that has gone is no reason to go on: the program ends.
    pub fn send(&self) {
        let mut out = std::io::stdout().lock();
        let line = serde_json::to_string(self).unwrap_or_default();
        if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
            std::process::exit(1);
        }
    }
}

/// Reads commands from standard input, on a thread of its own, until it ends or the program is told to quit: then the
/// process ends.
pub fn commands(mut each: impl FnMut(Command) + Send + 'static) {
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            match serde_json::from_str(&line) {
                Ok(Command::Quit) => break,
                Ok(command) => each(command),
                Err(error) => {
                    eprintln!("{error}: {line}");
                    std::process::exit(2);
                }
            }
        }
        std::process::exit(0);
    });
}
