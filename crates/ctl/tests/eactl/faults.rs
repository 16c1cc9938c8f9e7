//! Whatever fails, no process of the command's group acts after the term.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use test_agent::Agent;

use crate::support::{
    Proxy, Run, SHORT, boottime, dead, deadman, events, eventually, living, output,
};

/// A script that works until it is killed, and a child of it that ignores SIGTERM and works, too.
const STUBBORN: &str = r#"
    trap 'echo TERM >>signals' TERM
    (trap "" TERM HUP INT; eval "$BEAT") &
    echo $$ >group
    eval "$BEAT"
"#;

/// Checks that the group has ended in time and completely, and that the supervisor reports the loss.
fn assert_ended_in_time(run: &mut Run, group: Pid) {
    let ended = dead(group);
    let until = run.valid_until();
    assert!(ended < until, "{} ms late", (ended - until) / 1_000_000);
    assert!(run.last_beat() < until);
    assert_eq!(run.code(), Some(123), "{}", run.stderr());
    assert!(living(group).is_empty());
    assert!(deadman(group).is_none());
    assert_eq!(run.lead().last().expect("elected")["event"], "over");
}

#[test]
fn a_command_is_ended_in_time_when_all_agents_are_killed() {
    let mut agent = Agent::start();
    let mut run = Run::start(&agent.url(), "a", &SHORT, STUBBORN);
    let group = run.pid_in("group");
    agent.kill();
    assert_ended_in_time(&mut run, group);
    assert_eq!(run.read("signals"), "TERM\n", "it was asked to end first");
}

#[test]
fn a_command_is_ended_in_time_in_a_black_hole() {
    let agent = Agent::start();
    let proxy = Proxy::to(agent.address());
    let mut run = Run::start(&proxy.url(), "a", &SHORT, STUBBORN);
    let group = run.pid_in("group");
    // Once extended: what follows is not the first term's.
    eventually("extended", || (run.lead().len() > 1).then_some(()));
    proxy.swallow();
    assert_ended_in_time(&mut run, group);
    assert_eq!(run.read("signals"), "TERM\n");
}

#[test]
fn a_command_goes_on_when_one_of_two_agents_is_killed() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let redis = runtime.block_on(test_servers::Redis::start());
    let settings = [("EA_STORE", ""), ("EA_REDIS_URLS", &redis.url())];
    let mut agents = [0; 2].map(|_| Agent::with(&settings));
    let urls = format!("{},{}", agents[0].url(), agents[1].url());
    let mut run = Run::start(&urls, "a", &SHORT, "echo $$ >group; exec sleep 60");
    run.pid_in("group");
    agents[0].kill();
    // More than a term later it has been extended by the other.
    let first = run.valid_until();
    eventually("extended beyond the first term", || {
        (boottime() > first).then_some(())
    });
    assert!(run.valid_until() > first, "{}", run.stderr());
    agents[1].kill();
    assert_eq!(run.code(), Some(123));
}

#[test]
fn a_stopped_supervisor_does_not_save_its_command() {
    let agent = Agent::start();
    let mut run = Run::start(&agent.url(), "a", &SHORT, STUBBORN);
    let group = run.pid_in("group");
    run.signal(Signal::STOP);
    let ended = dead(group);
    assert!(ended < run.valid_until());
    assert!(run.last_beat() < run.valid_until());
    // It finds its command dead when it goes on.
    run.signal(Signal::CONT);
    assert_ended_in_time(&mut run, group);
}

#[test]
fn a_killed_supervisor_takes_its_command_with_it() {
    let agent = Agent::start();
    let mut run = Run::start(&agent.url(), "a", &["--term", "30s"], STUBBORN);
    let group = run.pid_in("group");
    let watch = deadman(group).expect("watches");
    run.signal(Signal::KILL);
    let killed = boottime();
    let ended = dead(group);
    assert!(ended - killed < 5_000_000_000, "not when the term ends");
    run.end();
    eventually("the deadman ends", || {
        deadman(group).is_none().then_some(())
    });
    assert_ne!(watch.session, group.as_raw_nonzero().get());
    assert_eq!(watch.session, watch.pid, "a session of its own");
}

#[test]
fn the_deadman_is_replaced_and_outlives_signals_to_all() {
    let agent = Agent::start();
    let run = Run::start(&agent.url(), "a", &SHORT, STUBBORN);
    let group = run.pid_in("group");
    let pid = |number| Pid::from_raw(number).expect("a process");
    let first = deadman(group).expect("watches").pid;
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::USR1] {
        kill_process(pid(first), signal).expect("there");
    }
    assert_eq!(deadman(group).expect("still").pid, first);
    kill_process(pid(first), Signal::KILL).expect("there");
    let next = eventually("another watches", || {
        deadman(group).filter(|next| next.pid != first && next.session == next.pid)
    });
    run.signal(Signal::STOP);
    assert!(dead(group) < run.valid_until(), "{next:?}");
}

#[test]
fn another_leader_ends_the_command_at_once() {
    let agent = Agent::start();
    let mut run = Run::start(&agent.url(), "a", &["--term", "20s"], STUBBORN);
    let group = run.pid_in("group");
    let token = run.lead()[0]["token"].to_string();
    let handed = output(
        &agent.url(),
        &["handover", "a", "--to", "other", "--token", &token],
    );
    assert!(handed.status.success(), "{handed:?}");
    eventually("asked to end", || {
        (run.read("signals") == "TERM\n").then_some(())
    });
    let asked = boottime();
    let ended = dead(group);
    // A second, though the grace is five; the bound leaves room for a slow machine.
    assert!(ended - asked < 4_000_000_000);
    assert_ended_in_time(&mut run, group);
    assert!(run.stderr().contains("another candidate leads"));
}

#[test]
fn a_stopped_command_is_ended_too() {
    let mut agent = Agent::start();
    let script =
        r#"echo $$ >group; trap 'echo TERM >signals; exit 0' TERM; kill -STOP $$; eval "$BEAT""#;
    let mut run = Run::start(&agent.url(), "a", &SHORT, script);
    let group = run.pid_in("group");
    eventually("stopped", || {
        living(group)
            .iter()
            .any(|process| process.state == 'T')
            .then_some(())
    });
    agent.kill();
    let ended = dead(group);
    assert!(ended < run.valid_until());
    assert_eq!(run.code(), Some(123));
    assert_eq!(
        run.read("signals"),
        "TERM\n",
        "it was continued to be asked"
    );
}

#[test]
fn nothing_of_a_group_is_left_when_the_next_leads() {
    let agent = Agent::start();
    // The command ends, and leaves a child that ignores SIGTERM.
    let script = r#"(trap "" TERM; eval "$BEAT") & echo $$ >group; while ! test -s beats; do sleep 0.01; done; exit 9"#;
    let mut run = Run::start(
        &agent.url(),
        "a",
        &["--term", "20s", "--grace", "1s"],
        script,
    );
    let group = run.pid_in("group");
    let next = Run::start(
        &agent.url(),
        "a",
        &["--wait", "forever", "--term", "20s"],
        r#"read up rest </proc/uptime; echo $up >beats; echo >up"#,
    );
    next.wait_for("up");
    assert!(living(group).is_empty());
    let (last, first) = (run.last_beat(), next.last_beat());
    // The stamps are cut to 10 ms.
    assert!(first + 10_000_000 >= last, "{last} {first}");
    assert!(
        first.saturating_sub(last) < 2_000_000_000,
        "at once, not at the term's end: {last} {first}"
    );
    assert_eq!(
        run.code(),
        Some(9),
        "the command's own code: {}",
        run.stderr()
    );
    assert!(deadman(group).is_none());
}

#[test]
fn what_is_left_of_a_group_is_asked_before_it_is_killed() {
    let agent = Agent::start();
    let script = r#"
        (trap 'echo TERM >>signals; exit 0' TERM; echo >up; while :; do sleep 0.01; done) &
        echo $$ >group
        while ! test -e up; do sleep 0.01; done
    "#;
    let mut run = Run::start(
        &agent.url(),
        "a",
        &["--term", "60s", "--grace", "20s"],
        script,
    );
    let group = run.pid_in("group");
    assert_eq!(run.code(), Some(0), "{}", run.stderr());
    assert_eq!(run.read("signals"), "TERM\n");
    assert!(living(group).is_empty());
}

#[test]
fn a_process_of_a_control_group_does_not_escape() {
    let agent = Agent::start();
    let script = r#"setsid sh -c 'echo $$ >escaped; eval "$BEAT"' & while ! test -s beats; do sleep 0.01; done"#;
    let options = ["--term", "20s", "--grace", "200ms", "--cgroup"];
    let mut run = Run::start(&agent.url(), "a", &options, script);
    if run.code() == Some(125) {
        // Where no control group is delegated, it says so before any request.
        let told = run.stderr();
        assert!(told.contains("--cgroup: "), "{told}");
        assert!(run.lead().is_empty() && run.read("beats").is_empty());
        return;
    }
    let escaped = run.pid_in("escaped");
    assert!(living(escaped).is_empty(), "killed with its control group");
    assert_eq!(run.child.wait().expect("over").code(), Some(0));

    let mut run = Run::start(
        &agent.url(),
        "b",
        &options,
        script.replace("done", "done; sleep 60").as_str(),
    );
    let escaped = run.pid_in("escaped");
    let path = std::fs::read_to_string(format!("/proc/{}/cgroup", escaped.as_raw_nonzero()))
        .expect("there");
    let path = path
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .expect("a control group")
        .to_owned();
    run.signal(Signal::KILL);
    dead(escaped);
    run.end();
    eventually("the deadman removes the control group", || {
        let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
        let there = mounts
            .iter()
            .any(|mount| std::path::Path::new(&format!("{mount}{path}")).exists());
        (!there).then_some(())
    });
}

#[test]
fn a_first_process_of_a_container_reaps_orphans() {
    let agent = Agent::start();
    let unshare = [
        "unshare",
        "--user",
        "--map-root-user",
        "--pid",
        "--fork",
        "--mount-proc",
    ];
    let mut possible = std::process::Command::new(unshare[0]);
    if !possible
        .args(&unshare[1..])
        .arg("true")
        .status()
        .is_ok_and(|status| status.success())
    {
        return;
    }
    // Orphans end one after the other; the command looks whether one stays a zombie.
    let script = r#"
        for i in 1 2 3; do sh -c 'sleep 0.01 & exit 0'; done
        sleep 1
        grep -l '^State:.Z' /proc/[0-9]*/status
        exit 4
    "#;
    let mut command = std::process::Command::new(unshare[0]);
    command.args(&unshare[1..]).arg(env!("CARGO_BIN_EXE_eactl"));
    command.args([
        "run",
        "--agent",
        &agent.url(),
        "--election",
        "a",
        "--",
        "sh",
        "-c",
        script,
    ]);
    let output = command.output().expect("runs");
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert_eq!(crate::support::text(&output.stdout), "", "no zombies");

    // The same while no command runs. The test checks processes that the shell has left to its successor.
    let script = r#"
        (sleep 1; grep -l '^State:.Z' /proc/[0-9]*/status; kill -TERM 1) &
        (sh -c 'sleep 0.3 & exit 0') &
        exec "$0" elect --agent "$1" --election b >/dev/null
    "#;
    let mut command = std::process::Command::new(unshare[0]);
    command.args(&unshare[1..]).args(["sh", "-c", script]);
    command.args([env!("CARGO_BIN_EXE_eactl"), &agent.url()]);
    let output = command.output().expect("runs");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(crate::support::text(&output.stdout), "", "no zombies");
}

#[test]
fn a_command_that_ends_is_led_again() {
    let agent = Agent::start();
    let script =
        "echo $ELECTION_AGENT_TOKEN >>tokens; test $(wc -l <tokens) -lt 2 && exit 1; sleep 60";
    let mut run = Run::start(&agent.url(), "a", &["--again"], script);
    let tokens = eventually("led twice", || {
        Some(run.read("tokens")).filter(|tokens| tokens.lines().count() == 2)
    });
    let tokens: Vec<u64> = tokens
        .lines()
        .map(|token| token.parse().expect("a token"))
        .collect();
    assert!(tokens[1] > tokens[0]);
    assert_eq!(events(&run.lead()), ["elected", "over", "elected"]);
    run.signal(Signal::TERM);
    assert_eq!(run.code(), Some(143));
}

#[test]
fn a_command_is_led_again_after_a_loss() {
    let agent = Agent::start();
    let script = r#"echo $ELECTION_AGENT_TOKEN >>tokens; echo $$ >group; eval "$BEAT""#;
    let mut run = Run::start(
        &agent.url(),
        "a",
        &["--term", "2s", "--grace", "0", "--again"],
        script,
    );
    let first = run.wait_for("tokens");
    let handed = output(
        &agent.url(),
        &[
            "handover",
            "a",
            "--to",
            "other",
            "--token",
            first.trim(),
            "--term",
            "1s",
        ],
    );
    assert!(handed.status.success(), "{handed:?}");
    eventually("led again, after the other's term", || {
        (run.read("tokens").lines().count() == 2).then_some(())
    });
    let lines = run.lead();
    assert!(events(&lines).contains(&"over"), "{lines:?}");
    run.signal(Signal::TERM);
    let asked = Duration::from_secs(5);
    let start = std::time::Instant::now();
    assert_eq!(run.code(), Some(143));
    assert!(start.elapsed() < asked, "it does not campaign again");
}
