//! A wall clock that is wrong, for processes that are started with it.

use std::{fs, io::Write as _, path::Path, process::Command};

use tempfile::TempDir;

/// How far the clock is ahead of this machine's; the processes that have it see every change at once.
pub struct Clock {
    directory: TempDir,
}

/// Compiles a library for `LD_PRELOAD` to this path.
pub fn preload(source: &str, to: &Path) {
    let from = to.with_extension("c");
    fs::write(&from, source).expect("written");
    // The compiler is the one that links the tests. Programs from packages that do the same do not go with
    // the allocator of redis-server.
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-O2", "-o"])
        .args([to, &from])
        .status();
    assert!(compiled.expect("cc runs").success());
}

const AHEAD: &str = "ahead";
const LIBRARY: &str = "clock.so";

impl Clock {
    /// A clock that is ahead by so many seconds.
    pub fn ahead(seconds: i64) -> Self {
        let directory = TempDir::new().expect("a directory");
        fs::write(directory.path().join(AHEAD), seconds.to_ne_bytes()).expect("written");
        let source = include_str!("clock.c");
        preload(source, &directory.path().join(LIBRARY));
        Self { directory }
    }

    /// Lets the clock step.
    pub fn set_ahead(&self, seconds: i64) {
        // In place: it is mapped into the processes' memory.
        let mut file = fs::OpenOptions::new()
            .write(true)
            .open(self.directory.path().join(AHEAD))
            .expect("opened");
        file.write_all(&seconds.to_ne_bytes()).expect("written");
    }

    /// What a process needs in its environment to have this clock.
    pub fn environment(&self) -> [(&'static str, String); 2] {
        let path = |name| self.directory.path().join(name).display().to_string();
        [
            ("LD_PRELOAD", path(LIBRARY)),
            ("TEST_CLOCK_AHEAD", path(AHEAD)),
        ]
    }
}
