//! What happened in a scenario, as programs, forwarders and the witness saw it.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::protocol::{Event, Name, now};

/// A request of a client.
#[derive(Clone, Debug)]
pub struct Call {
    /// When the forwarder received it, by CLOCK_BOOTTIME, in ns.
    pub at: u64,
    /// What was asked.
    pub what: What,
    /// By whom; of pings as well.
    pub candidate: String,
    /// For which election; empty of pings.
    pub election: String,
    /// With which token; 0 for none.
    pub token: u64,
    /// The name of the attempt; empty for none.
    pub request_id: String,
    /// By which of the scenario's agents.
    pub agent: usize,
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Campaign, or Join without a token.
    Campaign,
    /// ExtendElectedTerm, or Join with a token.
    Extend,
    /// Ping of a stream to lead by.
    Ping,
    /// Resign, or Leave.
    Resign,
}

/// A promise of an agent to a leader.
#[derive(Clone, Debug)]
pub struct Promise {
    /// When the forwarder received the agent's answer, by CLOCK_BOOTTIME, in ns.
    pub at: u64,
    /// To whom.
    pub candidate: String,
    /// Under which token.
    pub token: u64,
    /// Until when the leader may act at the latest: `valid_for` from when the forwarder received the request, which is
    /// after it was sent.
    pub until: u64,
}

/// A state of the election, as the agent told the witness, whom no fault concerns.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When the witness was told, by CLOCK_BOOTTIME, in ns.
    pub at: u64,
    /// Who leads; `None`: nobody.
    pub leader: Option<String>,
    /// The leader's token, or the highest that is remembered.
    pub token: u64,
    /// RESIGN, EXPIRY...
    pub cause: String,
}

/// Everything that is known of a scenario that was played.
#[derive(Clone, Default)]
pub struct Record {
    /// What programs reported.
    pub events: Vec<Event>,
    /// What clients asked.
    pub calls: Vec<Call>,
    /// What agents promised.
    pub promises: Vec<Promise>,
    /// What the witness saw.
    pub seen: Vec<Seen>,
    /// What the driver did, and when.
    pub deeds: Vec<(u64, &'static str)>,
    /// What the driver measured besides.
    pub numbers: Vec<(&'static str, usize)>,
}

impl Record {
    /// Reports of this name by a program.
    pub fn of<'a>(&'a self, program: &'a str, name: Name) -> impl Iterator<Item = &'a Event> {
        self.events
            .iter()
            .filter(move |event| event.program == program && event.event == name)
    }

    /// When the driver did this first.
    #[must_use]
    pub fn deed(&self, deed: &str) -> Option<u64> {
        let mut deeds = self.deeds.iter();
        deeds.find(|(_, done)| *done == deed).map(|(at, _)| *at)
    }

    /// The last promise that a program knew of before an instant, of its leadership with this id.
    #[must_use]
    pub fn valid_until(&self, program: &str, id: u64, before: u64) -> Option<u64> {
        let told = self
            .events
            .iter()
            .filter(|event| event.program == program && event.id == id && event.at <= before);
        told.filter_map(|event| event.valid_until).max()
    }

    fn start(&self) -> u64 {
        self.events.iter().map(|event| event.at).min().unwrap_or(0)
    }
}

impl fmt::Display for Record {
    /// All but what was acted, in the order of time, in ms since the first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = self.start();
        let ms = |at: u64| at.saturating_sub(start) as f64 / 1e6;
        let mut lines = Vec::new();
        // Of each leadership, what was acted since something else was reported of it.
        let mut acted: BTreeMap<(&str, u64), (u64, u64, usize)> = BTreeMap::new();
        let run = |(program, id): (&str, u64), (first, last, times): (u64, u64, usize)| {
            let until = ms(last);
            let line = format!("{program} Acting id {id}, {times} times until {until:.1}");
            (first, line)
        };
        for event in &self.events {
            let leadership = (event.program.as_str(), event.id);
            if event.event == Name::Acting {
                let acted = acted.entry(leadership).or_insert((event.at, event.at, 0));
                (acted.1, acted.2) = (event.at, acted.2 + 1);
                continue;
            }
            if let Some(acted) = acted.remove(&leadership) {
                lines.push(run(leadership, acted));
            }
            let mut line = format!("{} {:?} id {}", event.program, event.event, event.id);
            if let Some(until) = event.valid_until {
                line += &format!(" until {:.1}", ms(until));
            }
            let texts = [&event.reason, &event.phase, &event.cause, &event.leader];
            for text in texts.into_iter().flatten() {
                line += &format!(" {text}");
            }
            if let Some(token) = event.token {
                line += &format!(" token {token}");
            }
            if let Some(yes) = event.certain.or(event.current) {
                line += &format!(" {yes}");
            }
            lines.push((event.at, line));
        }
        lines.extend(
            acted
                .into_iter()
                .map(|(leadership, acted)| run(leadership, acted)),
        );
        for call in &self.calls {
            let line = format!(
                "  {} asks agent {} for {:?}, token {}, request id {:?}",
                call.candidate, call.agent, call.what, call.token, call.request_id
            );
            lines.push((call.at, line));
        }
        for promise in &self.promises {
            let line = format!(
                "  {} is promised until {:.1}, token {}",
                promise.candidate,
                ms(promise.until),
                promise.token
            );
            lines.push((promise.at, line));
        }
        for seen in &self.seen {
            let line = format!(
                "  witness: {:?} leads, {}, token {}",
                seen.leader, seen.cause, seen.token
            );
            lines.push((seen.at, line));
        }
        for (at, deed) in &self.deeds {
            lines.push((*at, format!("DRIVER: {deed}")));
        }
        lines.sort();
        for (at, line) in lines {
            writeln!(f, "{:>9.1} {line}", ms(at))?;
        }
        for (name, number) in &self.numbers {
            writeln!(f, "{name}: {number}")?;
        }
        Ok(())
    }
}

/// Where everybody writes what happens.
#[derive(Clone)]
pub struct Book {
    record: Arc<Mutex<Record>>,
    version: watch::Sender<u64>,
}

impl Default for Book {
    fn default() -> Self {
        Self {
            record: Arc::default(),
            version: watch::Sender::new(0),
        }
    }
}

impl Book {
    /// Changes the record, and tells those who wait.
    pub fn write(&self, write: impl FnOnce(&mut Record)) {
        write(&mut self.record.lock());
        self.version.send_modify(|version| *version += 1);
    }

    /// Reads the record.
    pub fn read<T>(&self, read: impl FnOnce(&Record) -> T) -> T {
        read(&self.record.lock())
    }

    /// Notes what the driver does.
    pub fn deed(&self, deed: &'static str) {
        let at = now();
        self.write(|record| record.deeds.push((at, deed)));
    }

    /// Waits until the record has what is looked for. `None`: not within the limit.
    pub async fn until<T>(
        &self,
        limit: Duration,
        mut look: impl FnMut(&Record) -> Option<T>,
    ) -> Option<T> {
        let mut versions = self.version.subscribe();
        let found = async {
            loop {
                versions.mark_unchanged();
                if let Some(found) = self.read(&mut look) {
                    return found;
                }
                // The sender lives in the book.
                let _ = versions.changed().await;
            }
        };
        tokio::time::timeout(limit, found).await.ok()
    }
}
