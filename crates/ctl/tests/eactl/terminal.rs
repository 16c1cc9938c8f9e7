//! Commands on a terminal.

use test_agent::Agent;

use crate::support::on_a_terminal;

#[test]
fn a_command_reads_from_the_terminal_and_gives_it_back() {
    let agent = Agent::start();
    let script = r#"
        $EACTL run --election a -- sh -c 'echo ready; read line; echo "command: $line"'
        echo "code: $?"
        read line; echo "shell: $line"
    "#;
    let (printed, code) = on_a_terminal(&agent.url(), script, "ready", b"one\ntwo\n");
    assert!(printed.contains("command: one"), "{printed}");
    assert!(printed.contains("code: 0"), "{printed}");
    assert!(printed.contains("shell: two"), "{printed}");
    assert_eq!(code, Some(0));
}

#[test]
fn ctrl_c_goes_to_the_command() {
    let agent = Agent::start();
    let script = r#"
        $EACTL run --election a -- sh -c 'trap "echo caught; exit 3" INT; echo ready; while :; do sleep 0.05; done'
        echo "code: $?"
    "#;
    let (printed, _) = on_a_terminal(&agent.url(), script, "ready", b"\x03");
    assert!(printed.contains("caught"), "{printed}");
    assert!(printed.contains("code: 3"), "{printed}");
}

#[test]
fn ctrl_z_does_not_suspend_a_leader() {
    let agent = Agent::start();
    let script = r#"
        $EACTL run --election a --term 3s --grace 1s -- sh -c 'echo ready; read line; echo "command: $line"'
        echo "code: $?"
    "#;
    let (printed, _) = on_a_terminal(&agent.url(), script, "ready", b"\x1aone\n");
    assert!(printed.contains("cannot be suspended"), "{printed}");
    assert!(printed.contains("code: 0"), "{printed}");
}

#[test]
fn the_modes_of_a_terminal_are_restored_after_a_kill() {
    let agent = Agent::start();
    let script = r#"
        $EACTL run --election a -- sh -c '
            trap "kill -TERM $PPID" TERM
            stty -echo; echo ready; kill -TERM $PPID
            while :; do sleep 0.05; done'
        echo "code: $?"
        stty -a | grep -o -- '-\?echo\b' | head -1 | sed 's/^/mode: /'
    "#;
    let (printed, _) = on_a_terminal(&agent.url(), script, "ready", b"");
    assert!(printed.contains("code: 137"), "{printed}");
    assert!(printed.contains("mode: echo"), "{printed}");
}

#[test]
fn a_command_of_the_background_gets_the_terminal_when_its_job_is_brought_forward() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().expect("a directory");
    let script = r#"
        cd DIRECTORY; exec bash -c '
            set -m
            $EACTL run --election a -- sh -c "echo \$\$ >pid; read line; echo command: \$line" &
            until grep -qs "^State:.T" /proc/$(cat pid 2>/dev/null)/status; do sleep 0.02; done
            echo ready; fg >/dev/null; echo "code: $?"'
    "#;
    let script = script.replace("DIRECTORY", directory.path().to_str().expect("text"));
    let (printed, _) = on_a_terminal(&agent.url(), script, "ready", b"one\n");
    assert!(printed.contains("command: one"), "{printed}");
    assert!(printed.contains("code: 0"), "{printed}");
}

#[test]
fn a_terminal_that_stops_writers_of_the_background_stops_no_leader() {
    let agent = Agent::start();
    // The supervisor, in the background while the command has the terminal, says that it cannot be suspended.
    let script = r#"
        set -m; stty tostop
        $EACTL run --election a --term 3s --grace 1s -- sh -c 'kill -TSTP $$; read line; exit 9'
        echo "code: $?"
    "#;
    let (printed, _) = on_a_terminal(&agent.url(), script, "cannot be suspended", b"x\n");
    assert!(printed.contains("code: 9"), "{printed}");
}

#[test]
fn a_table_is_as_wide_as_the_terminal_whatever_the_names() {
    use unicode_width::UnicodeWidthStr as _;

    let agent = Agent::start();
    let script = r#"
        stty cols 40 rows 24
        $EACTL run --election 選挙選挙選挙選挙 --candidate リーダーリーダーリーダー -- sh -c '
            $EACTL observe & sleep 2; kill $!; echo over'
    "#;
    let (printed, _) = on_a_terminal(&agent.url(), script, "over", b"");
    let row = printed
        .lines()
        .map(|line| line.rsplit("\u{1b}[J").next().unwrap_or(line))
        .find(|line| line.contains('選'))
        .expect("a row");
    assert!(row.width() <= 40, "{row}");
}
