//! Signals to the supervisor.

use rustix::process::Signal;
use test_agent::Agent;

use crate::support::{Run, SHORT, boottime, dead, eventually, living};

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
