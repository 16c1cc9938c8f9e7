//! Signals to the supervisor.

use rustix::process::{Pid, Signal, kill_process};
use test_agent::Agent;

use crate::support::{
    Process, Run, SHORT, boottime, dead, eventually, finished, living, processes,
};

/// A script that notes each signal, and goes on.
const NOTES: &str = r#"
    for signal in TERM INT HUP QUIT USR1 USR2 WINCH; do trap "echo $signal >>signals" $signal; done
    echo $$ >group
    while ! test -e end; do sleep 0.01; done
    exit 7
"#;

#[test]
fn signals_are_forwarded_and_the_term_is_extended_meanwhile() {
    let agent = Agent::start();
    let mut run = Run::start(&agent.url(), "a", &SHORT, NOTES);
    let group = run.pid_in("group");
    let mut noted = String::new();
    for (signal, name) in [
        (Signal::HUP, "HUP"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
        (Signal::QUIT, "QUIT"),
        (Signal::WINCH, "WINCH"),
        (Signal::INT, "INT"),
        (Signal::INT, "INT"),
        (Signal::TERM, "TERM"),
    ] {
        run.signal(signal);
        noted += &format!("{name}\n");
        eventually(name, || (run.read("signals") == noted).then_some(()));
    }
    let until = run.valid_until();
    eventually("a term later", || (boottime() > until).then_some(()));
    assert!(!living(group).is_empty(), "it is given the time to end");
    std::fs::write(run.path("end"), "").expect("written");
    assert_eq!(run.code(), Some(7), "{}", run.stderr());
    assert_eq!(run.read("signals"), noted, "nothing else was sent");
}

#[test]
fn a_second_request_to_end_kills() {
    let agent = Agent::start();
    let mut run = Run::start(&agent.url(), "a", &["--term", "60s"], NOTES);
    let group = run.pid_in("group");
    run.signal(Signal::TERM);
    eventually("asked", || (run.read("signals") == "TERM\n").then_some(()));
    run.signal(Signal::TERM);
    dead(group);
    assert_eq!(run.code(), Some(137));
}

#[test]
fn a_command_that_ends_when_asked_has_its_signals_code() {
    let agent = Agent::start();
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::USR1, 138)] {
        let mut run = Run::start(&agent.url(), "a", &[], r#"echo $$ >group; exec sleep 60"#);
        run.pid_in("group");
        run.signal(signal);
        assert_eq!(run.code(), Some(code), "{}", run.stderr());
    }
}

#[test]
fn a_candidate_that_waits_ends_when_asked() {
    let agent = Agent::start();
    let leader = Run::start(&agent.url(), "a", &[], "echo >up; exec sleep 60");
    leader.wait_for("up");
    let mut waiter = Run::start_as(
        &agent.url(),
        "a",
        &["--wait", "forever"],
        "echo >ran",
        |_| {},
    );
    // It takes signals when it has the handlers, of which SIGTERM's is the first.
    eventually("it handles signals", || {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", waiter.pid().as_raw_nonzero()))
                .ok()?;
        let caught = status
            .lines()
            .find_map(|line| line.strip_prefix("SigCgt:"))?;
        let caught = u64::from_str_radix(caught.trim(), 16).ok()?;
        (caught >> 14 & 1 == 1).then_some(())
    });
    waiter.signal(Signal::TERM);
    assert_eq!(waiter.code(), Some(143));
    assert_eq!(waiter.read("ran"), "");
}

#[test]
fn what_is_ignored_stays_ignored() {
    let agent = Agent::start();
    let mut run = Run::start_as(
        &agent.url(),
        "a",
        &[],
        "grep SigIgn /proc/self/status >mask; echo >up",
        |command| {
            let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
            // As nohup does.
            let script = format!("trap '' HUP; {}", arguments[1].to_str().expect("text"));
            let mut changed = std::process::Command::new("sh");
            changed.arg("-c").arg(script).args(&arguments[2..]);
            for (name, value) in command.get_envs() {
                changed.env(name, value.expect("set"));
            }
            changed.current_dir(command.get_current_dir().expect("set"));
            changed.stdin(std::process::Stdio::null());
            *command = changed;
        },
    );
    run.wait_for("up");
    let mask = run.read("mask");
    let mask = u64::from_str_radix(mask.trim_start_matches("SigIgn:").trim(), 16).expect("a mask");
    assert_eq!(mask & 1, 1, "SIGHUP");
    run.end();
}

#[test]
fn a_command_that_has_left_its_group_gets_signals_too() {
    // The supervisor's group is of the same session.
    let leave = "import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
os.setpgid(0, os.getpgid(os.getppid()))
open('pid', 'w').write(f'{os.getpid()}\\n')
time.sleep(60)";
    let agent = Agent::start();
    let script = format!("exec python3 -c \"{leave}\"");
    let mut run = Run::start(&agent.url(), "a", &[], &script);
    run.pid_in("pid");
    run.signal(Signal::TERM);
    assert_eq!(run.code(), Some(7));

    let mut agent = Agent::start();
    let ignores = leave.replace("lambda *_: os._exit(7)", "signal.SIG_IGN");
    let script = format!("exec python3 -c \"{ignores}\"");
    // By the deadman, since the supervisor is stopped; and by the supervisor.
    for stopped in [true, false] {
        let mut run = Run::start(&agent.url(), "a", &SHORT, &script);
        let pid = run.pid_in("pid").as_raw_nonzero().get();
        if stopped {
            run.signal(Signal::STOP);
        } else {
            agent.kill();
        }
        let died = eventually("it is dead", || {
            let alive = |process: &Process| process.pid == pid && process.state != 'Z';
            (!processes().iter().any(alive)).then(boottime)
        });
        assert!(died < run.valid_until());
        if stopped {
            run.signal(Signal::CONT);
        }
        assert_eq!(run.code(), Some(123));
    }
}

#[test]
fn signals_that_are_blocked_at_the_start_are_heard() {
    let blocked = ["env", "--block-signal=TERM", "--block-signal=CHLD"];
    let agent = Agent::start();
    let mut command = std::process::Command::new(blocked[0]);
    command.args(&blocked[1..]).arg(env!("CARGO_BIN_EXE_eactl"));
    command.args(["run", "--election", "a", "--", "sh", "-c"]);
    command
        .arg("grep SigBlk /proc/self/status; exec sleep 60")
        .env("ELECTION_AGENT_URL", agent.url())
        .stdout(std::process::Stdio::piped());
    let mut child = command.spawn().expect("starts");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("piped");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).expect("text");
    assert_eq!(line, "SigBlk:\t0000000000000000\n", "of the command");
    kill_process(Pid::from_child(&child), Signal::TERM).expect("there");
    let ended = eventually("it ends", || child.try_wait().expect("waits"));
    assert_eq!(ended.code(), Some(143));
}

#[test]
fn a_file_of_status_lines_that_is_full_ends_nobody() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().expect("a directory");
    // Room for some of the lines.
    let script = "ulimit -f 1; exec \"$0\" \"$@\" 3>lead";
    let mut command = std::process::Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_eactl"), "run"]);
    command.args(["--election", "a", "--term", "1s", "--grace", "0"]);
    command.args(["--status-fd", "3", "--", "sleep", "4"]);
    command
        .env("ELECTION_AGENT_URL", agent.url())
        .current_dir(directory.path());
    let ended = finished(&mut command);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let lines = std::fs::read(directory.path().join("lead")).expect("there");
    assert!(lines.len() >= 512, "it was full");
}
