//! The commands and their arguments.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{
    Arg, ArgAction, Command,
    builder::{OsStringValueParser, PossibleValuesParser, TypedValueParser as _},
    value_parser,
};

/// Commands that call no agent.
const DOCUMENTS: [&str; 3] = ["completions", "install", "man"];

pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0    done; of `run`: the command's own
  1    the answer is no: the token is not the leader's, the candidate does not lead
  3    the answer is not known: no agent or no quorum answered
  123  the leadership was lost before the command had ended
  124  not elected in time
  125  used wrongly, refused, or no agent reached; of `run`: nothing was run
  126  the command to run may not be executed
  127  there is no such command to run
  128+n  the command was ended by signal n";

/// The heading of the arguments that name the agent.
pub(crate) const AGENT: &str = "Agent";

/// `eactl`'s command line.
#[must_use]
pub fn eactl() -> Command {
    Command::new("eactl")
        .about("Leads elections, and follows who leads, by an election agent")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .after_help(EXIT_CODES)
        .args(connection().map(|arg| arg.global(true)))
        .subcommands(bare_commands())
}

/// The commands, each with the arguments that name the agent: for a program with commands of its own.
#[must_use]
pub fn commands() -> Vec<Command> {
    let commands = bare_commands().into_iter();
    commands
        .map(|command| match DOCUMENTS.contains(&command.get_name()) {
            true => command,
            false => command.args(connection()),
        })
        .collect()
}

fn connection() -> [Arg; 6] {
    [
        Arg::new("agent")
            .long("agent")
            .value_name("URL[,URL]")
            .env("ELECTION_AGENT_URL")
            .help("The agents, such as https://a:8443,https://b:8443; http:// for one without TLS"),
        Arg::new("token_file")
            .long("token-file")
            .value_name("FILE")
            .env("ELECTION_AGENT_TOKEN_FILE")
            // An empty variable counts as none.
            .value_parser(OsStringValueParser::new().map(PathBuf::from))
            .help("A file with the bearer token that is shown to the agent; read again when it changes"),
        Arg::new("ca")
            .long("ca")
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help("A PEM file of the authorities to trust instead of the system's"),
        Arg::new("cert")
            .long("cert")
            .value_name("FILE")
            .requires("key")
            .value_parser(value_parser!(PathBuf))
            .help("A PEM file of the certificate to show"),
        Arg::new("key")
            .long("key")
            .value_name("FILE")
            .requires("cert")
            .value_parser(value_parser!(PathBuf))
            .help("A PEM file of the certificate's key"),
        Arg::new("json")
            .long("json")
            .action(ArgAction::SetTrue)
            .help("Prints a JSON object a line, also of errors"),
    ]
    .map(|arg| arg.help_heading(AGENT))
}

fn bare_commands() -> Vec<Command> {
    vec![
        run(),
        elect(),
        observe(),
        leaders(),
        Command::new("kinds").about("Lists the kinds that have elections"),
        Command::new("resign")
            .about("Gives a leadership up, in the leader's name")
            .long_about(
                "Gives a leadership up, in the leader's name: the next candidate leads at once. The leader's work must \
                 have ended.",
            )
            .args([election(), kind(), candidate_of_leader(), token("The leader's fencing token")]),
        handover(),
        Command::new("verify")
            .about("Checks whether a fencing token is the present leader's: exits with 0 if so, 1 if not, 3 if unknown")
            .args([election(), kind(), token("The token in question")]),
        pods(),
        Command::new("completions")
            .about("Prints completions for a shell")
            .arg(
                Arg::new("shell")
                    .value_name("SHELL")
                    .required(true)
                    .value_parser(PossibleValuesParser::new(["bash", "zsh", "fish"])),
            ),
        Command::new("install")
            .about("Copies this program, for init containers of images without a shell")
            .arg(
                Arg::new("to")
                    .value_name("FILE")
                    .required(true)
                    .value_parser(value_parser!(PathBuf))
                    .help("Where to; a program that is there is replaced"),
            ),
        Command::new("man").about("Prints the manual page: eactl man | man -l -"),
    ]
}

const ABOUT_RUN: &str = "\
Waits to be elected, runs a command, and resigns when it has ended.

The command is found in PATH and started without a shell, in a process group of its own, with \
ELECTION_AGENT_TOKEN (the fencing token, for the storage that keeps the work), ELECTION_AGENT_ELECTION, \
ELECTION_AGENT_KIND and ELECTION_AGENT_CANDIDATE. The term is extended while it runs.

No process of the group outlives the term. If the term cannot be extended, the group gets SIGTERM --grace and 0.5 s \
before the term's end, and SIGKILL 0.5 s before it. If another leads, or the term is over as the agent knows it, it \
gets SIGTERM at once and SIGKILL after a second or --grace, whichever is less. A second process, the deadman, does so \
if this one is stopped or killed. Processes that leave the group escape, unless --cgroup is given.

When the command has ended, what is left of its group gets SIGTERM and, after --grace, SIGKILL. Then the leadership is \
given up, and the next candidate leads at once.

SIGTERM and SIGINT go to the group, and the term is extended until it has ended; a second SIGTERM kills the group. \
SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2 and SIGWINCH go to the group. A terminal's Ctrl-C and input go to the command.";

fn run() -> Command {
    Command::new("run")
        .about("Waits to be elected, runs a command, and resigns when it has ended")
        .long_about(ABOUT_RUN)
        .after_help(EXIT_CODES)
        .args([
            election_flag(),
            kind(),
            candidate(),
            term(),
            Arg::new("grace")
                .long("grace")
                .value_name("TIME")
                .default_value("5s")
                .value_parser(time)
                .help("How long the command has to end after SIGTERM; with 0.5 s at most half of the term"),
            wait().help(
                "How long to wait to be elected: 0, a time, or forever [default: 0; with --again: forever]",
            ),
            again().help("Campaigns again after the command has ended, or the leadership was lost").long_help(
                "Campaigns again after the command has ended, with whatever exit code, and after the leadership was \
                 lost; at least a second after the command was started last. Ends after SIGTERM or SIGINT with the \
                 code of the command that ran last (128 and the signal's number if none did), if the command cannot be \
                 executed, and, with --wait TIME, when it was not elected in time.",
            ),
            Arg::new("status_fd")
                .long("status-fd")
                .value_name("N")
                .value_parser(value_parser!(u16))
                .help("Writes a line to this file descriptor at each extension, and closes it when the term is lost")
                .long_help(
                    "Writes a line of JSON to this file descriptor, a pipe, a socket or a file, when elected and at each \
                     extension: {\"event\":\"elected\",\"kind\":…,\"election\":…,\"token\":…,\"valid_until\":…}, with the \
                     time of CLOCK_BOOTTIME in ns. Its end means that the leadership is over. With --again, the line \
                     with the event \"over\" means so, and the end that there is no other. Lines that the reader has no \
                     room for are left out. The command does not inherit the descriptor.",
                ),
            Arg::new("cgroup")
                .long("cgroup")
                .action(ArgAction::SetTrue)
                .help("Runs the command in a control group of its own, so that nothing of it escapes")
                .long_help(
                    "Runs the command in a control group of its own, so that processes that leave its process group \
                     are killed, too. Needs cgroup v2, Linux 5.14, and a control group that is delegated to the user.",
                ),
            Arg::new("command")
                .value_name("CMD")
                .required(true)
                .num_args(1..)
                .trailing_var_arg(true)
                .allow_hyphen_values(true)
                .value_parser(value_parser!(std::ffi::OsString))
                .help("The command and its arguments, after --"),
        ])
}

fn elect() -> Command {
    Command::new("elect")
        .about("Waits to be elected, and leads until a signal, without a command")
        .long_about(
            "Waits to be elected, and leads until SIGTERM or SIGINT, or until the leadership is lost; then resigns. With \
             --http, also reports the leader to other programs, as the leader-elector sidecar of Kubernetes does, and \
             goes on after a loss.",
        )
        .after_help(EXIT_CODES)
        .args([
            election_flag(),
            kind(),
            candidate(),
            term(),
            wait().help(
                "How long to wait to be elected: 0, a time, or forever [default: 0; with --again or --http: forever]",
            ),
            again().help("Campaigns again after the leadership was lost"),
            Arg::new("value")
                .long("value")
                .value_name("TEXT")
                .default_value("")
                .hide_default_value(true)
                .help("Public data of the leader, such as its address"),
            Arg::new("http")
                .long("http")
                .value_name("ADDRESS")
                .value_parser(value_parser!(SocketAddr))
                .help("Answers GET / with who leads, such as on 127.0.0.1:4040; implies --again")
                .long_help(
                    "Answers GET / on this address with {\"name\": the leader, \"token\": its fencing token, \"leading\": \
                     whether it is this candidate, \"valid_for\": for how many ms it may act}. `leading` and `valid_for` \
                     are true of the moment of the reply; a program that acts on them keeps within `valid_for`, \
                     counted from before it sent the request. Implies --again.",
                ),
        ])
}

fn observe() -> Command {
    Command::new("observe")
        .about("Follows who leads")
        .long_about(
            "Follows who leads: prints the present state, then every change, until a signal. On a terminal the states \
             are a table that is kept up to date, with the time that is left.",
        )
        .args([
            Arg::new("elections")
                .value_name("ELECTION")
                .num_args(0..)
                .help("The elections; without one all of the kind"),
            kind(),
            Arg::new("all_kinds")
                .long("all-kinds")
                .action(ArgAction::SetTrue)
                .conflicts_with_all(["kind", "elections", "prefix"])
                .help("All elections of all kinds"),
            Arg::new("prefix")
                .long("prefix")
                .value_name("TEXT")
                .conflicts_with("elections")
                .help("The elections of the kind whose names begin so"),
        ])
}

fn leaders() -> Command {
    Command::new("leaders")
        .about("Lists the leaders of all elections that are held")
        .args([
            kind(),
            Arg::new("all_kinds")
                .long("all-kinds")
                .action(ArgAction::SetTrue)
                .conflicts_with("kind")
                .help("Of all kinds"),
        ])
}

fn handover() -> Command {
    Command::new("handover")
        .about("Moves a leadership to another candidate, in the leader's name")
        .long_about(
            "Moves a leadership to another candidate, in the leader's name. The other takes it up by campaigning, and \
             gets its token. The leader's work must have ended.",
        )
        .args([
            election(),
            kind(),
            Arg::new("to")
                .long("to")
                .value_name("NAME")
                .required(true)
                .help("The candidate that leads from now on"),
            candidate_of_leader(),
            token("The leader's fencing token"),
            term(),
        ])
}

fn pods() -> Command {
    Command::new("pods")
        .about("Lists the pods of a Kubernetes Deployment, those of the newest revision first")
        .args([Arg::new("deployment")
            .value_name("NAMESPACE/DEPLOYMENT")
            .required(true)
            .value_parser(deployment)
            .help("The Deployment")])
}

fn election() -> Arg {
    Arg::new("election")
        .value_name("ELECTION")
        .required(true)
        .help("The election's name")
}

fn election_flag() -> Arg {
    Arg::new("election")
        .long("election")
        .value_name("NAME")
        .required(true)
        .help("The election's name")
}

fn kind() -> Arg {
    Arg::new("kind")
        .long("kind")
        .value_name("KIND")
        .default_value("default")
        .help("The election's kind")
}

fn candidate() -> Arg {
    Arg::new("candidate")
        .long("candidate")
        .value_name("NAME")
        .help("The name to campaign under, unique among processes [default: of this host and process, and random]")
        .long_help(
            "The name to campaign under. It must be unique: a second process that campaigns under the leader's name takes \
             the leadership over. [default: of this host and process, and random]",
        )
}

fn candidate_of_leader() -> Arg {
    Arg::new("candidate")
        .long("candidate")
        .value_name("NAME")
        .help("The leader's name [default: that of the leader with this token]")
}

fn token(help: &'static str) -> Arg {
    Arg::new("token")
        .long("token")
        .value_name("TOKEN")
        .required(true)
        .value_parser(value_parser!(u64).range(1..1 << 53))
        .help(help)
}

fn term() -> Arg {
    Arg::new("term")
        .long("term")
        .value_name("TIME")
        .default_value("15s")
        .value_parser(time)
        .help("How long the leadership lasts unless it is extended, which is done every third of it: from 1s")
}

fn wait() -> Arg {
    Arg::new("wait")
        .long("wait")
        .value_name("TIME")
        .value_parser(wait_time)
}

fn again() -> Arg {
    Arg::new("again").long("again").action(ArgAction::SetTrue)
}

/// How long a candidate waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    For(Duration),
    Forever,
}

fn time(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    humantime::parse_duration(text).map_err(|error| format!("{error}: such as 500ms, 15s or 5m"))
}

fn wait_time(text: &str) -> Result<Wait, String> {
    match text {
        "forever" => Ok(Wait::Forever),
        text => time(text)
            .map(Wait::For)
            .map_err(|error| format!("{error}; or forever")),
    }
}

/// A namespace and a Deployment's name.
#[derive(Clone, Debug)]
pub(crate) struct Deployment {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

fn deployment(text: &str) -> Result<Deployment, String> {
    match text.split_once('/') {
        Some((namespace, name))
            if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
        {
            Ok(Deployment {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            })
        }
        _ => Err("a namespace and a Deployment, such as shop/worker".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        eactl().debug_assert();
        Command::new("other").subcommands(commands()).debug_assert();
    }

    #[test]
    fn times_and_waits() {
        assert_eq!(time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(time("0"), Ok(Duration::ZERO));
        assert!(time("15").is_err());
        assert_eq!(wait_time("forever"), Ok(Wait::Forever));
        assert_eq!(wait_time("0"), Ok(Wait::For(Duration::ZERO)));
    }
}
