//! A control group for the command, so that what leaves its process group can be killed, too.
//!
//! Needs cgroup v2, Linux 5.14 (`cgroup.kill`), and a cgroup that is delegated to the user: its directory and its
//! `cgroup.procs` may be written to.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use rustix::{
    fs::{Access, access},
    process::{Pid, getpid},
};

/// A control group of its own; removed when dropped, if it is empty.
#[derive(Debug)]
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes an empty control group below this process's own.
    ///
    /// # Errors
    /// What is missing, and what to do about it.
    pub(crate) fn new() -> Result<Self, String> {
        let root = mount().ok_or("no cgroup v2 file system is mounted")?;
        let own = fs::read_to_string("/proc/self/cgroup")
            .map_err(|error| format!("/proc/self/cgroup: {error}"))?;
        let own = own
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .ok_or("this process is in no cgroup of version 2")?;
        let own = root.join(own);
        let refused = |path: &Path, error: &dyn std::fmt::Display| {
            format!(
                "{}: {error}: the cgroup must be delegated to this user (systemd: Delegate=yes, or systemd-run --user \
                 --scope -p Delegate=yes)",
                path.display()
            )
        };
        // Moving a process needs the right to write to the list of the cgroup that it leaves, too.
        let list = own.join("cgroup.procs");
        access(&list, Access::WRITE_OK).map_err(|error| refused(&list, &error))?;
        let unique = fastrand::u32(..);
        let path = own.join(format!("eactl-{}-{unique:08x}", getpid().as_raw_nonzero()));
        fs::create_dir(&path).map_err(|error| refused(&path, &error))?;
        let cgroup = Self(path);
        if !cgroup.0.join("cgroup.kill").exists() {
            return Err("this kernel has no cgroup.kill, which needs Linux 5.14".to_owned());
        }
        // A cgroup whose parent gives controllers to its children takes no process beside them.
        let controllers =
            fs::read_to_string(own.join("cgroup.subtree_control")).unwrap_or_default();
        if !controllers.trim().is_empty() && own != root {
            return Err(format!(
                "{}: has controllers enabled for its children (cgroup.subtree_control), and processes of its own",
                own.display()
            ));
        }
        Ok(cgroup)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Moves a process here; what it starts is here, too.
    pub(crate) fn add(&self, process: Pid) -> io::Result<()> {
        fs::write(
            self.0.join("cgroup.procs"),
            process.as_raw_nonzero().to_string(),
        )
    }

    /// Whether a process is here that has not ended.
    pub(crate) fn is_populated(&self) -> bool {
        is_populated(&self.0)
    }

    pub(crate) fn kill(&self) -> io::Result<()> {
        kill(&self.0)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Fails if it is not empty: then an operator may inspect it.
        let _ = fs::remove_dir(&self.0);
    }
}

/// Kills all that are in the control group and below, at once.
pub(crate) fn kill(cgroup: &Path) -> io::Result<()> {
    fs::write(cgroup.join("cgroup.kill"), "1")
}

/// Removes a control group whose processes were killed, once they have ended.
pub(crate) fn remove(cgroup: &Path) {
    const STEP: Duration = Duration::from_millis(10);
    for _ in 0..500 {
        if !is_populated(cgroup) {
            break;
        }
        thread::sleep(STEP);
    }
    let _ = fs::remove_dir(cgroup);
}

fn is_populated(cgroup: &Path) -> bool {
    let events = fs::read_to_string(cgroup.join("cgroup.events"));
    events.is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
}

/// Where cgroup v2 is mounted.
fn mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let path = fields.nth(1)?;
        (fields.next() == Some("cgroup2")).then(|| PathBuf::from(path))
    })
}
