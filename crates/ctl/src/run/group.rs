//! A process group: its members, and how it is ended.
//!
//! The number of a group is that of its leader, and the kernel hands a number out again only when no process has it
//! as its id and none is in the group of that number; a zombie counts as a process. A supervisor therefore leaves the
//! leader unreaped for as long as a signal may be sent to the number.
//!
//! `kill(-group, SIGKILL)` is atomic: every member has the signal pending when it returns, and the kernel lets none
//! of them fork any more. After it, the group can only shrink.
//!
//! The leader may move itself to another group of its session. It is the supervisor's child all the same, and gets what
//! the group gets.

use std::{fs, os::fd::OwnedFd};

use rustix::{
    io,
    process::{
        Pid, PidfdFlags, Signal, getpgid, kill_process, kill_process_group, pidfd_open,
        pidfd_send_signal, test_kill_process_group,
    },
};

/// A group and its leader.
#[derive(Debug)]
pub(crate) struct Group {
    id: Pid,
    /// Of the leader; `None` where the kernel has no such descriptors (Linux before 5.3).
    leader: Option<OwnedFd>,
}

impl Group {
    /// The group of this leader, which must not have been reaped.
    pub(crate) fn of(leader: Pid) -> Self {
        Self {
            id: leader,
            leader: pidfd_open(leader, PidfdFlags::empty()).ok(),
        }
    }

    pub(crate) fn id(&self) -> Pid {
        self.id
    }

    /// Sends a signal to every member, and to the leader wherever it is. For a supervisor that has not reaped the
    /// leader.
    pub(crate) fn signal(&self, signal: Signal) {
        // Both fail only if no process may be signalled, which is as well.
        let _ = kill_process_group(self.id, signal);
        if signal == Signal::KILL || getpgid(Some(self.id)).is_ok_and(|group| group != self.id) {
            let _ = kill_process(self.id, signal);
        }
    }

    /// Asks every member to end, also those that are stopped.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
        self.signal(Signal::CONT);
    }

    /// Kills every member, from a process that does not know whether the leader has been reaped meanwhile.
    ///
    /// If the leader is there, the number is the group's, and one call kills all at once. Between the two calls, the
    /// leader would have to be reaped and the kernel, which hands numbers out in turn, would have to hand out all the
    /// others. If the leader is gone, each member is held by a descriptor before it is checked again and killed, so
    /// that a number that has passed to another process is noticed.
    pub(crate) fn kill_from_outside(&self) {
        match &self.leader {
            None => {
                self.signal(Signal::KILL);
                return;
            }
            Some(leader) if is_unreaped(leader) => {
                // Fails if there is no member.
                let _ = kill_process_group(self.id, Signal::KILL);
                let _ = pidfd_send_signal(leader, Signal::KILL);
                return;
            }
            Some(_) => {}
        }
        // Members may fork between the check and the kill: repeat until a check finds none.
        for _ in 0..MOST_LOOKS {
            let Some(members) = living(self.id) else {
                return;
            };
            if members.is_empty() {
                return;
            }
            for member in members {
                kill_member(member, self.id);
            }
        }
    }
}

/// How often a group without a leader is checked: each check kills all members that it finds.
const MOST_LOOKS: u32 = 10_000;

fn is_unreaped(leader: &OwnedFd) -> bool {
    // A signal that is ignored by default, to a process that is about to be killed.
    pidfd_send_signal(leader, Signal::URG).is_ok()
}

fn kill_member(member: Pid, group: Pid) {
    let Ok(held) = pidfd_open(member, PidfdFlags::empty()) else {
        return;
    };
    let still = stat(member).is_some_and(|stat| stat.group == group.as_raw_nonzero().get());
    if still {
        // Fails if it has ended.
        let _ = pidfd_send_signal(held, Signal::KILL);
    }
}

/// Whether no process of the group is left that can act. For after SIGKILL was sent to all of it and the leader was
/// reaped: the number may then pass to another group, which would count as this one.
pub(crate) fn is_over(group: Pid) -> bool {
    if test_kill_process_group(group) == Err(io::Errno::SRCH) {
        return true;
    }
    // Zombies whose parent does not reap them stay in a group for as long as their parent lives.
    living(group).is_some_and(|members| members.is_empty())
}

/// The members that are no zombies; `None` if `/proc` cannot be read.
pub(crate) fn living(group: Pid) -> Option<Vec<Pid>> {
    let group = group.as_raw_nonzero().get();
    let mut members = Vec::new();
    for entry in fs::read_dir("/proc").ok()?.map_while(Result::ok) {
        let id = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(id) = id.and_then(Pid::from_raw) else {
            continue;
        };
        if stat(id).is_some_and(|stat| stat.group == group && !stat.over) {
            members.push(id);
        }
    }
    Some(members)
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    over: bool,
    group: i32,
}

fn stat(process: Pid) -> Option<Stat> {
    parse(&fs::read(format!("/proc/{}/stat", process.as_raw_nonzero())).ok()?)
}

/// Reads `pid (name) state ppid pgrp …`. A name may hold anything, also parentheses and no UTF-8.
fn parse(stat: &[u8]) -> Option<Stat> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let group = fields.nth(1)?.parse().ok()?;
    Some(Stat {
        over: matches!(state, "Z" | "X" | "x"),
        group,
    })
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::process::CommandExt as _,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn reads_names_with_parentheses() {
        let stat = parse(b"12 (a) Z 9 (\xff) S 1 34 34 0 -1");
        assert_eq!(
            stat,
            Some(Stat {
                over: false,
                group: 34
            })
        );
        assert_eq!(parse(b"12 (a) Z 1 7 7").map(|stat| stat.over), Some(true));
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn a_group_is_over_when_its_last_member_is() {
        let mut leader = Command::new("sleep")
            .arg("1000")
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("starts");
        let id = Pid::from_child(&leader);
        let group = Group::of(id);
        assert_eq!(living(id), Some(vec![id]));
        assert!(!is_over(id));
        group.kill_from_outside();
        leader.wait().expect("reaped");
        assert!(is_over(id));
        // The leader is gone: the check of the number finds no member.
        group.kill_from_outside();
    }
}
