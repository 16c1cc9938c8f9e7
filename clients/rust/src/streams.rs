//! Leading by streams: one for up to 1000 elections of a candidate with the same term.
//!
//! A ping extends all terms that a stream leads. The task of a stream owns it: it joins, pings, opens the next stream
//! when an agent says goodbye or keeps silent, and goes on there with the tokens. If an agent offers no stream, or
//! refuses an election on it, [`unary`](crate::unary) takes over, whose errors say more.

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::{
    runtime,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};

use crate::{Error, Lost, hooks::Hooks, lead::Settings, pool::Pool, term::Shared, unary::Alive};

mod entry;
mod session;
mod task;

/// How many elections a stream takes.
const ELECTIONS: usize = 1_000;
/// For how long no stream is requested again from an agent that offers none.
const NOT_OFFERED: Duration = Duration::from_secs(60);

/// All streams of an [`Agent`](crate::Agent).
#[derive(Debug)]
pub(crate) struct Streams {
    wanted: bool,
    streams: Mutex<Vec<Weak<Stream>>>,
    not_offered: Arc<Mutex<Option<Instant>>>,
}

/// A handle to one stream, held by each leadership on it. Its task ends with the last handle; the terms then lapse.
struct Stream {
    candidate: String,
    term: Duration,
    /// Whether it belongs to one leadership alone, whose application gates the pings.
    private: bool,
    runtime: runtime::Id,
    elections: AtomicUsize,
    numbers: AtomicUsize,
    commands: mpsc::UnboundedSender<Command>,
    task: JoinHandle<()>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A command to a stream's task.
enum Command {
    Join(Box<Joining>),
    Leave(usize, oneshot::Sender<Result<(), Left>>),
    /// The leadership is dropped: its term lapses.
    Lapse(usize),
}

/// What joins a stream.
struct Joining {
    number: usize,
    settings: Settings,
    hooks: Hooks,
    /// The term to go on with, if there is one.
    term: Option<Arc<Shared>>,
    told: mpsc::UnboundedSender<Told>,
}

/// What a stream's task reports to a leadership on it.
#[derive(Debug)]
pub(crate) enum Told {
    Waiting {
        leader: Option<String>,
    },
    /// The term is extended from now on.
    Granted(Arc<Shared>),
    /// There is no stream at the moment.
    NotKnown(Error),
    /// The election has left the stream: calls take over.
    Fallback,
}

/// Why an election was not given up by a stream.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Left {
    Lost(Lost),
    /// The request may have taken effect, or may take effect later.
    NotKnown,
    /// Nothing was sent.
    NotJoined,
}

impl Streams {
    pub(crate) fn new(wanted: bool) -> Self {
        Self {
            wanted,
            streams: Mutex::default(),
            not_offered: Arc::default(),
        }
    }

    fn streams(&self) -> MutexGuard<'_, Vec<Weak<Stream>>> {
        self.streams.lock()
    }

    /// Whether the agents offer streams, as far as is known, and the caller wants them.
    pub(crate) fn are_offered(&self) -> bool {
        let since = self.not_offered.lock();
        self.wanted && since.is_none_or(|since| since.elapsed() > NOT_OFFERED)
    }

    /// Joins an election by a stream that there is, or by a new one.
    pub(crate) fn join(
        &self,
        pool: &Arc<Pool>,
        settings: &Settings,
        hooks: &Hooks,
        term: Option<Arc<Shared>>,
    ) -> (Joined, mpsc::UnboundedReceiver<Told>) {
        let stream = self.stream(pool, settings, hooks);
        let number = stream.numbers.fetch_add(1, Ordering::Relaxed);
        let (told, receiver) = mpsc::unbounded_channel();
        let joining = Joining {
            number,
            settings: settings.clone(),
            hooks: hooks.clone(),
            term,
            told,
        };
        // Fails if the task has ended, which drops `told`.
        let _ = stream.commands.send(Command::Join(Box::new(joining)));
        (Joined { stream, number }, receiver)
    }

    fn stream(&self, pool: &Arc<Pool>, settings: &Settings, hooks: &Hooks) -> Arc<Stream> {
        let runtime = runtime::Handle::current().id();
        let private = hooks.alive.is_some();
        let mut streams = self.streams();
        streams.retain(|stream| stream.strong_count() > 0);
        let fitting = streams.iter().filter_map(Weak::upgrade).find(|stream| {
            !private
                && !stream.private
                && stream.candidate == settings.candidate
                && stream.term == settings.term
                && stream.runtime == runtime
                && stream.elections.load(Ordering::Relaxed) < ELECTIONS
                && !stream.task.is_finished()
        });
        let stream = fitting.unwrap_or_else(|| {
            let (commands, receiver) = mpsc::unbounded_channel();
            let task = task::Task::new(
                Arc::clone(pool),
                settings,
                Alive::new(hooks),
                Arc::clone(&self.not_offered),
                receiver,
            );
            let stream = Arc::new(Stream {
                candidate: settings.candidate.clone(),
                term: settings.term,
                private,
                runtime,
                elections: AtomicUsize::new(0),
                numbers: AtomicUsize::new(0),
                commands,
                task: tokio::spawn(task.run()),
            });
            streams.push(Arc::downgrade(&stream));
            stream
        });
        stream.elections.fetch_add(1, Ordering::Relaxed);
        stream
    }
}

/// A place in a stream. When it is dropped, what was led lapses.
pub(crate) struct Joined {
    stream: Arc<Stream>,
    number: usize,
}

impl Joined {
    /// Gives the election up.
    ///
    /// # Errors
    ///
    /// It was not, or that is not known.
    pub(crate) async fn leave(&self) -> Result<(), Left> {
        let (sender, left) = oneshot::channel();
        if self
            .stream
            .commands
            .send(Command::Leave(self.number, sender))
            .is_err()
        {
            return Err(Left::NotJoined);
        }
        left.await.unwrap_or(Err(Left::NotKnown))
    }

    /// What was led is not extended any more.
    pub(crate) fn lapse(&self) {
        // Fails if the task has ended, which is as well.
        let _ = self.stream.commands.send(Command::Lapse(self.number));
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.lapse();
        self.stream.elections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("candidate", &self.candidate)
            .field("term", &self.term)
            .field("elections", &self.elections)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Joined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Joined")
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}
