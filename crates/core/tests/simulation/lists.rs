//! The lists of nodes with which agents use a server, as `register.lua` stores them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

/// The agents' registrations of lists on a server. A copy of the server's data contains a copy of this.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lists {
    /// Each list with the last registration of an agent that has it. Entries with `closing:` and `closed:`
    /// likewise.
    entries: BTreeMap<String, Instant>,
    /// The time at which the server drops all of them, unless an agent registers before.
    expires: Option<Instant>,
    /// What agents of version 0.1.0 read.
    legacy: Option<Legacy>,
}

/// The last registration of a single list. It counts until it expires, however short the guard of the agent that comes.
#[derive(Debug, Clone)]
struct Legacy {
    list: String,
    /// The longest guard that its agent knew.
    guard: Duration,
    expires: Instant,
}

/// The least time for which the server keeps registrations.
const KEPT: Duration = Duration::from_secs(60);
/// The least time for which it keeps what agents of version 0.1.0 read.
const LEGACY_KEPT: Duration = Duration::from_secs(1);

/// The registration that an agent requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Coming<'a> {
    /// The list, or `old > new`.
    pub(crate) list: &'a str,
    /// The longest guard that the agent knows.
    pub(crate) guard: Duration,
    /// Whether the server may store the registration.
    pub(crate) write: bool,
    /// Whether a majority of the old list's nodes is closing it.
    pub(crate) closed: bool,
}

/// The content of the incarnation record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recorded {
    /// The longest registered guard.
    pub(crate) guard: Duration,
    /// Whether this incarnation may grant, and so remembers everything that counts.
    pub(crate) is_ready: bool,
}

/// The reply to a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    Same {
        /// Whether the server no longer accepts agents that have only the old list.
        closing: bool,
    },
    Other(String),
}

fn parts(list: &str) -> (&str, Option<&str>) {
    match list.split_once(" > ") {
        Some((old, new)) => (old, Some(new)),
        None => (list, None),
    }
}

impl Lists {
    /// Drops the registrations if they have expired.
    pub(crate) fn expire(&mut self, now: Instant) {
        if self.expires.is_some_and(|expires| expires <= now) {
            (self.entries, self.expires) = Default::default();
        }
        self.legacy.take_if(|legacy| legacy.expires <= now);
    }

    pub(crate) fn register(
        &mut self,
        coming: Coming<'_>,
        recorded: Recorded,
        now: Instant,
    ) -> Told {
        self.expire(now);
        let window = coming.guard.max(recorded.guard);
        let expires = now + KEPT.max(2 * window);
        let remembers = coming.guard.is_zero() || recorded.is_ready;
        let (old, new) = parts(coming.list);
        // The clock was set back.
        let set_back = self.entries.values().any(|at| *at > now);
        let mut entries = self.entries.clone();
        for at in entries.values_mut() {
            *at = (*at).min(now);
        }
        entries.retain(|_, at| now - *at <= window);
        if set_back {
            self.entries.clone_from(&entries);
            self.expires = Some(expires);
        }
        let named = |state: &'static str| -> BTreeSet<String> {
            let lists = entries.keys();
            lists
                .filter_map(|field| field.strip_prefix(state).map(str::to_owned))
                .collect()
        };
        let (closing, closed) = (named("closing:"), named("closed:"));
        let is_list = |field: &&String| !field.starts_with("clos");
        let mut seen: BTreeSet<_> = entries.keys().filter(is_list).cloned().collect();
        if let Some(legacy) = &mut self.legacy {
            seen.insert(legacy.list.clone());
            // The clock was set back.
            let longest = window.max(legacy.guard).max(LEGACY_KEPT);
            legacy.expires = legacy.expires.min(now + longest);
        }
        for list in &seen {
            let (theirs, their_new) = parts(list);
            let goes = match (new, their_new) {
                (Some(new), _) => {
                    list == coming.list
                        || list == old
                        || list == new
                        || theirs == new && their_new == Some(old)
                }
                (None, Some(their_new)) => {
                    theirs == old || their_new == old && closed.contains(theirs)
                }
                (None, None) => list == old,
            };
            if !goes {
                return Told::Other(list.clone());
            }
        }
        if new.is_none() && (closing.contains(old) || closed.contains(old)) {
            return Told::Other(format!("the one that takes the place of {old}"));
        }
        if !coming.write {
            return Told::Same { closing: false };
        }
        let is_closing = new.is_some() && remembers && !seen.contains(old);
        entries.insert(coming.list.to_owned(), now);
        if let Some(new) = new {
            entries.remove(&format!("closing:{new}"));
            entries.remove(&format!("closed:{new}"));
            if is_closing {
                entries.insert(format!("closing:{old}"), now);
            }
            if coming.closed {
                entries.insert(format!("closed:{old}"), now);
            }
        }
        self.legacy = new.is_none().then(|| Legacy {
            list: old.to_owned(),
            guard: coming.guard,
            expires: now + window.max(LEGACY_KEPT),
        });
        self.entries = entries;
        self.expires = Some(expires);
        Told::Same {
            closing: is_closing,
        }
    }
}
