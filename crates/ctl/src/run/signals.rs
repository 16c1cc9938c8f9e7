//! Signals that are sent to the supervisor.

use std::{fs, io, task::Poll};

use nix::sys::signal::{SigSet, Signal as Masked};
use rustix::process::{Signal as Number, getpid};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What is passed on to the command, and what asks the supervisor itself for something.
const FORWARDED: [Number; 7] = [
    Number::TERM,
    Number::INT,
    Number::HUP,
    Number::QUIT,
    Number::USR1,
    Number::USR2,
    Number::WINCH,
];

/// The signals of a supervisor. From its creation on none of them has its default effect.
#[derive(Debug)]
pub(crate) struct Signals(Vec<(Number, Signal)>);

impl Signals {
    /// Signals that are ignored already, as `nohup` has it, stay ignored, here and by the command. Those that are
    /// blocked are not: the parent process may have forgotten to unblock them. The command blocks none.
    ///
    /// To be called before other threads are started, which inherit what is blocked.
    pub(crate) fn new() -> io::Result<Self> {
        let ignored = ignored();
        // A suspended leader would lose its term.
        let own = [Number::CHILD, Number::CONT, Number::TSTP];
        let mut signals = Vec::new();
        for number in FORWARDED.into_iter().chain(own) {
            let raw = number.as_raw();
            let is_ignored = ignored >> (raw - 1) & 1 == 1;
            if !is_ignored || number == Number::CHILD {
                signals.push((number, signal(SignalKind::from_raw(raw))?));
            }
        }
        // What is written to the terminal while the command has its foreground, or to a file that has become too long,
        // must not stop or end a leader.
        let mut harmful = SigSet::empty();
        harmful.add(Masked::SIGTTOU);
        harmful.add(Masked::SIGXFSZ);
        harmful.thread_set_mask()?;
        Ok(Self(signals))
    }

    /// The next signal. Several of the same that come at once count as one.
    pub(crate) async fn next(&mut self) -> Number {
        std::future::poll_fn(|context| {
            for (number, signal) in &mut self.0 {
                if signal.poll_recv(context).is_ready() {
                    return Poll::Ready(*number);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// The next signal that asks this process to end. For a process that runs no command at the moment.
    pub(crate) async fn end(&mut self) -> Number {
        loop {
            let number = self.next().await;
            if number == Number::CHILD && getpid().is_init() {
                reap();
            }
            if matches!(
                number,
                Number::TERM | Number::INT | Number::HUP | Number::QUIT
            ) {
                return number;
            }
        }
    }
}

/// Reaps all that have ended: the first process of a container inherits others' children.
fn reap() {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

    while waitpid(None, Some(WaitPidFlag::WNOHANG))
        .is_ok_and(|status| status != WaitStatus::StillAlive)
    {}
}

/// The signals that this process ignores, as bits.
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or_default()
}
