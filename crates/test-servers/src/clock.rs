//! Wrong clocks for child processes.

use std::{fs, os::unix::fs::FileExt as _, path::Path, process::Command, time::Duration};

use tempfile::TempDir;

/// How far the wall clock is ahead of this machine's, and for how long the machine seems to have been suspended. The
/// processes with this clock see every change at once.
pub struct Clock {
    directory: TempDir,
}

/// Compiles a library for `LD_PRELOAD` to this path.
pub fn preload(source: &str, to: &Path) {
    let from = to.with_extension("c");
    fs::write(&from, source).expect("written");
    // The compiler that links the tests. Packaged programs for this do not work with redis-server's allocator.
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-O2", "-o"])
        .args([to, &from])
        .status();
    assert!(compiled.expect("cc runs").success());
}

const AHEAD: &str = "ahead";
const LIBRARY: &str = "clock.so";

impl Clock {
    /// Creates a clock that is ahead by this many seconds.
    pub fn ahead(seconds: i64) -> Self {
        let directory = TempDir::new().expect("a directory");
        let shift = [seconds.to_ne_bytes(), 0_i64.to_ne_bytes()].concat();
        fs::write(directory.path().join(AHEAD), shift).expect("written");
        let source = include_str!("clock.c");
        preload(source, &directory.path().join(LIBRARY));
        Self { directory }
    }

    /// Steps the wall clock.
    pub fn set_ahead(&self, seconds: i64) {
        self.set(0, seconds);
    }

    /// Makes the monotonic clock lag by this time, as after a suspension of the machine. Set it while the processes are
    /// stopped, and to no more than the time since they stopped: the clock never goes back.
    ///
    /// Programs that read the clock without the C library do not see it.
    pub fn set_suspended(&self, time: Duration) {
        self.set(8, i64::try_from(time.as_nanos()).expect("below 292 years"));
    }

    fn set(&self, offset: u64, value: i64) {
        // Written in place: processes have mapped the file.
        let file = fs::OpenOptions::new()
            .write(true)
            .open(self.directory.path().join(AHEAD))
            .expect("opened");
        file.write_all_at(&value.to_ne_bytes(), offset)
            .expect("written");
    }

    /// Returns the environment variables that give a process this clock.
    pub fn environment(&self) -> [(&'static str, String); 2] {
        let path = |name| self.directory.path().join(name).display().to_string();
        [
            ("LD_PRELOAD", path(LIBRARY)),
            ("TEST_CLOCK_AHEAD", path(AHEAD)),
        ]
    }
}
