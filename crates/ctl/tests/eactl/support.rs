//! What the tests share: the program under test, its command's processes, and a proxy that stops forwarding.

use std::{
    ffi::OsStr,
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    process::{Pid, Signal, kill_process},
    time::{ClockId, clock_gettime},
};
use serde_json::Value;

/// How long something may take that is immediate on an idle machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A short term with the longest grace that it allows.
pub(crate) const SHORT: [&str; 4] = ["--term", "3s", "--grace", "1s"];

/// Polls until there is a result.
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < SOON, "not within {SOON:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// CLOCK_BOOTTIME, in ns.
pub(crate) fn boottime() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let part = |part: i64| u64::try_from(part).expect("after the start");
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}

/// The program under test, without anything of the environment but PATH.
pub(crate) fn eactl(agent: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eactl"));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("ELECTION_AGENT_URL", agent)
        .args(arguments)
        .stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub(crate) fn output(agent: &str, arguments: &[&str]) -> Output {
    finished(&mut eactl(agent, arguments))
}

/// Runs a command to its end, and kills it if it takes too long.
pub(crate) fn finished(command: &mut Command) -> Output {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let start = Instant::now();
    while child.try_wait().expect("waits").is_none() {
        if start.elapsed() > SOON {
            let _ = child.kill();
            break;
        }
        thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().expect("ends")
}

/// What a program printed.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The lines of JSON that a program printed.
pub(crate) fn json(bytes: &[u8]) -> Vec<Value> {
    let lines = text(bytes);
    let lines = lines
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"));
    lines.collect()
}

/// The events of status lines without the extensions, of which there are more where the machine is slow.
pub(crate) fn events(lines: &[Value]) -> Vec<&str> {
    let events = lines.iter().map(|line| line["event"].as_str());
    let events = events.map(|event| event.expect("an event"));
    events.filter(|event| *event != "extended").collect()
}

/// A command that runs while an election is led, with what it leaves behind.
pub(crate) struct Run {
    pub(crate) child: Child,
    directory: tempfile::TempDir,
}

impl Run {
    /// Runs a shell script under `run --election ELECTION`. The script's directory is its own. `$beat` is a loop that
    /// writes the time to the file `beats`, `lead` the file with the status lines.
    pub(crate) fn start(agent: &str, election: &str, options: &[&str], script: &str) -> Self {
        Self::start_as(agent, election, options, script, |_| {})
    }

    pub(crate) fn start_as(
        agent: &str,
        election: &str,
        options: &[&str],
        script: &str,
        change: impl FnOnce(&mut Command),
    ) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        // The status lines go to a file: what a killed supervisor has promised can be read after its end.
        let exec = r#"exec "$0" "$@" 3>>lead"#;
        let program = env!("CARGO_BIN_EXE_eactl");
        let mut command = Command::new("sh");
        command
            .env_clear()
            .args(["-c", exec, program, "run", "--election", election]);
        command
            .args(options)
            .args(["--status-fd", "3", "--", "sh", "-c", script]);
        command
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("ELECTION_AGENT_URL", agent)
            .env("BEAT", BEAT)
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        change(&mut command);
        Self {
            child: command.spawn().expect("starts"),
            directory,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A file's content; empty if it is not there.
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Waits until a file has content that ends with a line's end.
    pub(crate) fn wait_for(&self, name: &str) -> String {
        eventually(&format!("{name} is written"), || {
            Some(self.read(name)).filter(|content| content.ends_with('\n'))
        })
    }

    /// A process number that the script wrote to a file.
    pub(crate) fn pid_in(&self, name: &str) -> Pid {
        let number = self.wait_for(name).trim().parse().expect("a number");
        Pid::from_raw(number).expect("a process")
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("there");
        if signal == Signal::STOP {
            test_servers::await_stop(self.child.id());
        }
    }

    /// The status lines.
    pub(crate) fn lead(&self) -> Vec<Value> {
        json(self.read("lead").as_bytes())
    }

    /// When the term ends, as promised last: CLOCK_BOOTTIME in ns.
    pub(crate) fn valid_until(&self) -> u64 {
        let lead = self.lead();
        lead.last().expect("elected")["valid_until"]
            .as_u64()
            .expect("a time")
    }

    /// When the script worked last: CLOCK_BOOTTIME in ns, at most 10 ms too early.
    pub(crate) fn last_beat(&self) -> u64 {
        let beats = self.read("beats");
        let last = beats.lines().last().expect("worked");
        let (seconds, hundredths) = last.split_once('.').expect("seconds");
        let number = |text: &str| text.parse::<u64>().expect("a number");
        number(seconds) * 1_000_000_000 + number(hundredths) * 10_000_000
    }

    /// Waits for the supervisor's end.
    pub(crate) fn end(&mut self) -> ExitStatus {
        eventually("the supervisor ends", || {
            self.child.try_wait().expect("waits")
        })
    }

    pub(crate) fn code(&mut self) -> Option<i32> {
        self.end().code()
    }

    pub(crate) fn stderr(&mut self) -> String {
        let mut text = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            stderr.read_to_string(&mut text).expect("text");
        }
        text
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // A test that has failed leaves nothing behind: the deadman kills the group.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let mut said = Vec::new();
            if let Some(stderr) = &mut self.child.stderr {
                // What has left the group may keep it open.
                let _ = rustix::io::ioctl_fionbio(&*stderr, true);
                let _ = stderr.read_to_end(&mut said);
            }
            println!("{}{}", self.read("lead"), String::from_utf8_lossy(&said));
        }
    }
}

/// Writes the machine's uptime, which is CLOCK_BOOTTIME, again and again.
const BEAT: &str = "while :; do read up rest </proc/uptime; echo $up >>beats; sleep 0.005; done";

/// A process, as `/proc/PID/stat` has it.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) state: char,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    pub(crate) session: i32,
    pub(crate) arguments: String,
}

/// All processes.
pub(crate) fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("Linux").map_while(Result::ok);
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter_map(process).collect()
}

fn process(pid: i32) -> Option<Process> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat).into_owned();
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let mut number = || fields.next()?.parse().ok();
    Some(Process {
        pid,
        state,
        parent: number()?,
        group: number()?,
        session: number()?,
        arguments: String::from_utf8_lossy(&arguments).replace('\0', " "),
    })
}

/// The members of a group that have not ended.
pub(crate) fn living(group: Pid) -> Vec<Process> {
    let group = group.as_raw_nonzero().get();
    let all = processes().into_iter();
    all.filter(|process| process.group == group && !matches!(process.state, 'Z' | 'X'))
        .collect()
}

/// Waits until no member of the group is left, and returns when that was seen: CLOCK_BOOTTIME in ns.
pub(crate) fn dead(group: Pid) -> u64 {
    eventually("the group is over", || {
        living(group).is_empty().then(boottime)
    })
}

/// The deadman of a group.
pub(crate) fn deadman(group: Pid) -> Option<Process> {
    let mark = format!("__deadman {}", group.as_raw_nonzero());
    processes()
        .into_iter()
        .find(|process| process.arguments.contains(&mark))
}

/// The files that a process has open, by number.
pub(crate) fn descriptors(pid: i32) -> Vec<(u32, String)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("there")
        .map_while(Result::ok);
    let mut open: Vec<_> = entries
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((
                number,
                fs::read_link(entry.path()).ok()?.display().to_string(),
            ))
        })
        .collect();
    open.sort_unstable();
    open
}

/// A file that may be executed, or not.
pub(crate) fn file(directory: &Path, name: &str, content: impl AsRef<[u8]>, mode: u32) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;

    let path = directory.join(name);
    fs::write(&path, content).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
    path
}

/// A proxy between the program and an agent.
pub(crate) struct Proxy {
    address: String,
    hole: Arc<AtomicBool>,
}

impl Proxy {
    pub(crate) fn to(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let hole = Arc::new(AtomicBool::new(false));
        let (upstream, swallows) = (upstream.to_owned(), Arc::clone(&hole));
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(&upstream) else {
                    continue;
                };
                let clone = |stream: &TcpStream| stream.try_clone().expect("cloned");
                let (to, from) = (clone(&client), clone(&server));
                forward(client, server, Arc::clone(&swallows));
                forward(from, to, Arc::clone(&swallows));
            }
        });
        Self { address, hole }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on it takes bytes and passes none on.
    pub(crate) fn swallow(&self) {
        self.hole.store(true, Ordering::SeqCst);
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, swallows: Arc<AtomicBool>) {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if !swallows.load(Ordering::SeqCst) && to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}

/// Runs a shell script on a terminal of its own, with these keys as soon as it has printed what they wait for; returns
/// what it printed and its exit code.
pub(crate) fn on_a_terminal(
    agent: &str,
    script: impl AsRef<OsStr>,
    wait_for: &str,
    keys: &[u8],
) -> (String, Option<i32>) {
    let mut command = Command::new("script");
    command
        .args(["--quiet", "--return", "--command"])
        .arg(script)
        .arg("/dev/null")
        .env("ELECTION_AGENT_URL", agent)
        .env("EACTL", env!("CARGO_BIN_EXE_eactl"))
        .env("SHELL", "/bin/sh")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    let mut input = child.stdin.take().expect("piped");
    let mut output = child.stdout.take().expect("piped");
    let (sender, printed) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(length @ 1..) = output.read(&mut buffer) {
            if sender.send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut all = Vec::new();
    let mut typed = false;
    let start = Instant::now();
    while let Ok(more) = printed.recv_timeout(SOON.saturating_sub(start.elapsed())) {
        all.extend(more);
        if !typed && text(&all).contains(wait_for) {
            typed = true;
            input.write_all(keys).expect("written");
        }
    }
    let in_time = start.elapsed() < SOON;
    if !in_time || !typed {
        let _ = child.kill();
        panic!("it goes on after {SOON:?}: {}", text(&all));
    }
    let status = eventually("the terminal's program ends", || {
        child.try_wait().expect("waits")
    });
    (text(&all), status.code())
}
