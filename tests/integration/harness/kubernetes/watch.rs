//! Streams of what happens.

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use super::{
    selector::Selector,
    server::State,
    status::Failure,
    store::{Object, Resource, bookmark},
};
use crate::harness::http::{Body, Reset};

/// After how many bytes events go out in another frame.
const FRAME: usize = 64 * 1024;

/// A command to a running watch, for after it has sent what happened before.
#[derive(Debug, Clone)]
pub(crate) enum Command {
    Bookmark,
    End,
    /// Ends with an error event.
    Fail(Failure),
    /// Resets the connection in the middle of a line.
    Reset,
    /// Resets the connection in the middle of the next event.
    ResetInNextEvent,
}

/// The watches that run.
#[derive(Debug, Default)]
pub(crate) struct Watches(Mutex<(u64, HashMap<u64, Running>)>);

#[derive(Debug)]
struct Running {
    resource: Resource,
    commands: mpsc::UnboundedSender<Command>,
}

impl Watches {
    pub(crate) fn tell(&self, command: &Command) {
        for running in self.0.lock().expect("unlocked").1.values() {
            // One that ends in this moment needs no command.
            let _ = running.commands.send(command.clone());
        }
    }

    pub(crate) fn count(&self, resource: &str) -> usize {
        let running = &self.0.lock().expect("unlocked").1;
        let of = |running: &&Running| running.resource.name() == resource;
        running.values().filter(of).count()
    }

    fn add(&self, resource: Resource) -> (u64, mpsc::UnboundedReceiver<Command>) {
        let (commands, told) = mpsc::unbounded_channel();
        let (next, running) = &mut *self.0.lock().expect("unlocked");
        *next += 1;
        running.insert(*next, Running { resource, commands });
        (*next, told)
    }

    fn remove(&self, number: u64) {
        self.0.lock().expect("unlocked").1.remove(&number);
    }
}

/// The events that a client requests.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) resource: Resource,
    pub(crate) namespace: Option<String>,
    pub(crate) selector: Selector,
    pub(crate) bookmarks: bool,
    pub(crate) timeout: Duration,
}

/// A running watch.
pub(crate) struct Watch {
    state: Arc<State>,
    wanted: Wanted,
    number: u64,
    opening: String,
    /// What there was when it began, unless it goes on from a version.
    initial: VecDeque<Arc<Object>>,
    /// All changes up to here have been sent.
    version: u64,
    changed: watch::Receiver<u64>,
    deadline: Instant,
    told: mpsc::UnboundedReceiver<Command>,
    /// Pending commands.
    to_do: VecDeque<Command>,
    reset: Reset,
    reset_in_next: bool,
    /// What is left to do when the last line is sent.
    last: Option<Last>,
}

#[derive(Debug, Clone, Copy)]
enum Last {
    End,
    Reset,
}

impl Watch {
    /// The events after a version, or first those of all that there is at that version.
    pub(crate) fn body(
        state: &Arc<State>,
        wanted: Wanted,
        version: u64,
        initial: VecDeque<Arc<Object>>,
        reset: Reset,
    ) -> Body {
        let (number, told) = state.watches.add(wanted.resource);
        let watch = Self {
            state: Arc::clone(state),
            number,
            opening: wanted.resource.opening(),
            initial,
            version,
            changed: state.changed.subscribe(),
            deadline: Instant::now() + wanted.timeout,
            told,
            to_do: VecDeque::new(),
            reset,
            reset_in_next: false,
            last: None,
            wanted,
        };
        let events = stream::unfold(watch, |mut watch| async {
            let frame = watch.next().await?;
            Some((Ok::<_, io::Error>(Frame::data(frame)), watch))
        });
        StreamBody::new(events).boxed_unsync()
    }

    async fn next(&mut self) -> Option<Bytes> {
        match self.last {
            Some(Last::End) => return None,
            Some(Last::Reset) => {
                self.reset.now();
                return std::future::pending().await;
            }
            None => {}
        }
        let mut over = false;
        loop {
            self.state.released().await;
            self.changed.borrow_and_update();
            while let Ok(command) = self.told.try_recv() {
                self.note(command);
            }
            let events = self.events();
            if !events.is_empty() {
                return Some(match self.reset_in_next {
                    true => self.half(events),
                    false => events.into(),
                });
            }
            match self.to_do.pop_front() {
                Some(Command::Bookmark) if self.wanted.bookmarks => {
                    return Some(self.bookmark().into());
                }
                Some(Command::Bookmark) => continue,
                Some(Command::End) => return None,
                Some(Command::Fail(failure)) => {
                    self.last = Some(Last::End);
                    return Some(line("ERROR", &failure.text()).into());
                }
                Some(Command::Reset) => {
                    let line = self.bookmark();
                    return Some(self.half(line));
                }
                Some(Command::ResetInNextEvent) | None => {}
            }
            if over {
                self.last = Some(Last::End);
                return self.wanted.bookmarks.then(|| self.bookmark().into());
            }
            tokio::select! {
                changed = self.changed.changed() => changed.expect("the state is there"),
                Some(command) = self.told.recv() => self.note(command),
                () = sleep_until(self.deadline) => over = true,
            }
        }
    }

    fn note(&mut self, command: Command) {
        match command {
            Command::ResetInNextEvent => self.reset_in_next = true,
            other => self.to_do.push_back(other),
        }
    }

    /// The lines of what is not sent yet, not all of it when it is much.
    fn events(&mut self) -> Vec<u8> {
        let mut lines = Vec::new();
        let full = |lines: &Vec<u8>| lines.len() > FRAME || self.reset_in_next && !lines.is_empty();
        while let Some(object) = self.initial.pop_front() {
            write_event(&mut lines, "ADDED", &self.opening, &object);
            if full(&lines) {
                return lines;
            }
        }
        let store = self.state.store.lock().expect("unlocked");
        for change in store.since(self.version) {
            self.version = change.after.version;
            if change.resource != self.wanted.resource {
                continue;
            }
            let namespace = self.wanted.namespace.as_deref();
            if let Some(event) = change.event(namespace, &self.wanted.selector) {
                write_event(&mut lines, event, &self.opening, &change.after);
                if full(&lines) {
                    return lines;
                }
            }
        }
        self.version = store.version();
        lines
    }

    fn bookmark(&self) -> Vec<u8> {
        line("BOOKMARK", &bookmark(self.wanted.resource, self.version))
    }

    /// The first half of a line, after which the connection is reset.
    fn half(&mut self, mut line: Vec<u8>) -> Bytes {
        self.last = Some(Last::Reset);
        line.truncate(line.len() / 2);
        line.into()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.state.watches.remove(self.number);
    }
}

/// The one line of a stream that is nothing but an error.
pub(crate) fn error_line(failure: &Failure) -> Vec<u8> {
    line("ERROR", &failure.text())
}

fn write_event(lines: &mut Vec<u8>, event: &str, opening: &str, object: &Object) {
    lines.extend_from_slice(br#"{"type":""#);
    lines.extend_from_slice(event.as_bytes());
    lines.extend_from_slice(br#"","object":"#);
    lines.extend_from_slice(opening.as_bytes());
    lines.extend_from_slice(&object.text);
    lines.extend_from_slice(b"}\n");
}

fn line(event: &str, object: &str) -> Vec<u8> {
    format!("{{\"type\":\"{event}\",\"object\":{object}}}\n").into_bytes()
}
