//! The terminal that the supervisor was started on.
//!
//! Only the processes of the terminal's foreground group may read from it, and its keys send signals to that group.
//! The command has a group of its own: if the supervisor's was in the foreground, the command's is for as long as it
//! runs.

use std::fs::File;

use rustix::{
    process::{Pid, getpgrp},
    termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr},
};

use super::launch::take_foreground;

/// A terminal that this process may use.
#[derive(Debug)]
pub(crate) struct Terminal {
    file: File,
    modes: Option<Termios>,
}

impl Terminal {
    /// The terminal of this process, if there is one.
    pub(crate) fn open() -> Option<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .open("/dev/tty")
            .ok()?;
        let modes = tcgetattr(&file).ok();
        Some(Self { file, modes })
    }

    /// Whether this process's group is in the foreground.
    pub(crate) fn is_ours(&self) -> bool {
        self.is_of(getpgrp())
    }

    /// Whether this group is in the foreground.
    pub(crate) fn is_of(&self, group: Pid) -> bool {
        tcgetpgrp(&self.file) == Ok(group)
    }

    /// Lends the foreground to a group.
    pub(crate) fn lend(&self, group: Pid) {
        // Without it the group works on, and is stopped when it reads.
        let _ = take_foreground(group);
    }

    /// Takes the foreground back from a group that has ended. One that was killed may have left modes behind, such as
    /// a terminal without an echo.
    pub(crate) fn take_back(&self, group: Pid, killed: bool) {
        if !self.is_of(group) {
            return;
        }
        let _ = take_foreground(getpgrp());
        if let (true, Some(modes)) = (killed, &self.modes) {
            let _ = tcsetattr(&self.file, OptionalActions::Drain, modes);
        }
    }
}
