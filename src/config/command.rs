//! The command line: every setting as a flag, and the subcommands.

use std::{ffi::OsString, path::PathBuf};

use super::{Mistakes, Values, settings};
use crate::{auth::command as authz, probe::Probe};

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// Serve.
    Serve,
    /// Print the effective configuration.
    PrintConfig,
    /// Print the OpenAPI document.
    PrintOpenApi,
    /// Print the README's table of settings.
    PrintSettings,
    /// Print docs/METRICS.md.
    PrintMetrics,
    /// Ask an agent whether it is well.
    Probe(Probe),
    /// Make a bearer token for this name and these groups.
    NewToken(String, Vec<String>),
    /// Put this copy of the lease database in its place.
    Restore(PathBuf),
    /// Tell what the policies say.
    Authz(authz::Command),
}

/// Reads the command line, the environment and the file.
///
/// Exits as clap does for `--help`, `--version` and malformed command lines. What is wrong with the
/// environment or the file comes beside the command, as not all commands need them.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> (Command, Result<Values, Mistakes>) {
    let mut matches = command_line().get_matches_from(args);
    let mut flags = Vec::new();
    for setting in settings() {
        if let Some(value) = matches.remove_one::<String>(setting.variable) {
            flags.push((setting.variable, value));
        }
    }
    let file = matches.remove_one::<String>("config_file");
    let command = match matches.remove_subcommand() {
        Some((name, given)) => match name.as_str() {
            "config" => Command::PrintConfig,
            "openapi" => Command::PrintOpenApi,
            "settings" => Command::PrintSettings,
            "probe" => Command::Probe(Probe {
                url: given.get_one::<String>("url").cloned(),
                live: given.get_flag("live"),
            }),
            "metrics" => Command::PrintMetrics,
            "token" => new_token(&given),
            "restore" => Command::Restore(given.get_one("from").cloned().unwrap_or_default()),
            "authz" => Command::Authz(authz::Command::from_matches(given)),
            _ => Command::Serve,
        },
        None => Command::Serve,
    };
    (command, Values::collect(flags, file, env))
}

fn new_token(token: &clap::ArgMatches) -> Command {
    let text = |matches: &clap::ArgMatches, name| {
        let values = matches.get_many::<String>(name).unwrap_or_default();
        values.cloned().collect::<Vec<_>>()
    };
    let new = token.subcommand_matches("new");
    let name = new.map(|new| text(new, "name")).unwrap_or_default();
    let groups = new.map(|new| text(new, "group")).unwrap_or_default();
    Command::NewToken(name.concat(), groups)
}

pub(super) fn command_line() -> clap::Command {
    let mut command = clap::Command::new("election-agent")
        .about("Leader election as a service over gRPC, gRPC-Web and REST")
        .after_help(
            "Every option is also an environment variable and a key of the YAML file: --grpc-port is \
             EA_GRPC_PORT and grpc_port. Flags win over variables, variables over the file.",
        )
        .version(concat!(env!("CARGO_PKG_VERSION"), " (", env!("ELECTION_AGENT_COMMIT"), ")"))
        .subcommand(
            clap::Command::new("config")
                .about("Prints the effective configuration as YAML, secrets hidden"),
        )
        .subcommand(clap::Command::new("openapi").about("Prints the OpenAPI document as YAML"))
        .subcommand(
            clap::Command::new("settings").about("Prints all settings as a Markdown table"),
        )
        .subcommand(clap::Command::new("metrics").about("Prints what /metrics serves as Markdown"))
        .subcommand(
            clap::Command::new("probe")
                .about(
                    "Asks the agent of this host whether it is ready: exits with 0 if so, else with 1 and says why",
                )
                .arg(
                    clap::Arg::new("url")
                        .long("url")
                        .help("What to ask instead, such as http://10.0.0.7:8080/readyz"),
                )
                .arg(
                    clap::Arg::new("live")
                        .long("live")
                        .action(clap::ArgAction::SetTrue)
                        .conflicts_with("url")
                        .help("Asks whether it works at all (/livez)"),
                ),
        )
        .subcommand(
            clap::Command::new("token")
                .about("Makes bearer tokens")
                .subcommand_required(true)
                .subcommand(
                    clap::Command::new("new")
                        .about(
                            "Makes a bearer token: the token goes to stderr, and the line that knows it, for \
                             the file EA_AUTH_TOKEN_FILE, to stdout",
                        )
                        .arg(
                            clap::Arg::new("name")
                                .value_name("NAME")
                                .required(true)
                                .help("Whose token it is"),
                        )
                        .arg(
                            clap::Arg::new("group")
                                .long("group")
                                .value_name("GROUP")
                                .action(clap::ArgAction::Append)
                                .help("A group that it belongs to; may be repeated"),
                        ),
                ),
        )
        .subcommand(
            clap::Command::new("restore")
                .about(
                    "Puts a copy of the lease database in the place of EA_EMBEDDED_PATH, while the agent is \
                     stopped; keeps what it replaces beside it, and says for how long the agent will abstain \
                     from new grants",
                )
                .arg(
                    clap::Arg::new("from")
                        .long("from")
                        .value_name("COPY")
                        .required(true)
                        .value_parser(clap::value_parser!(PathBuf))
                        .help("The copy of the database file; it stays as it is"),
                ),
        )
        .subcommand(authz::definition())
        .arg(
            clap::Arg::new("config_file")
                .long("config-file")
                .value_name("PATH")
                .global(true)
                .help("A YAML file of settings [env: EA_CONFIG_FILE]"),
        );
    for setting in settings() {
        let default = match setting.default {
            "" => String::new(),
            default => format!(" [default: {default}]"),
        };
        let alias = setting
            .alias
            .map(|alias| format!(" or {alias}"))
            .unwrap_or_default();
        command = command.arg(
            clap::Arg::new(setting.variable)
                .long(setting.flag())
                .value_name("VALUE")
                .global(true)
                .help(format!(
                    "{}{default} [env: {}{alias}]",
                    setting.meaning, setting.variable
                )),
        );
    }
    command
}
