//! The command line: every setting as a flag, and the subcommands.

pub mod authz;
pub mod probe;

use std::{ffi::OsString, path::PathBuf};

use crate::config::{Mistakes, SETTINGS, Setting, Values, settings};
use probe::Probe;

/// A command, as parsed from the command line.
#[derive(Debug)]
pub enum Command {
    /// Serve.
    Serve,
    /// Print the effective configuration.
    PrintConfig,
    /// Print the OpenAPI document.
    PrintOpenApi,
    /// Print the table of settings in docs/CONFIGURATION.md.
    PrintSettings,
    /// Print docs/METRICS.md.
    PrintMetrics,
    /// Probe an agent.
    Probe(Probe),
    /// Create a bearer token for this name and these groups.
    NewToken(String, Vec<String>),
    /// Put this copy of the lease database into its place.
    Restore(PathBuf),
    /// Report on the policies.
    Authz(authz::Command),
    /// A client command of `eactl`: the definition of the whole command line, and its matches.
    Ask(Box<(clap::Command, clap::ArgMatches)>),
}

/// Parses the command line, the environment and the file.
///
/// Errors in the environment or the file are returned separately from the command, because some commands do not need
/// these values.
///
/// # Errors
/// The output for `--help`, `--version` and malformed command lines.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<(Command, Result<Values, Mistakes>), clap::Error> {
    let mut matches = command_line().try_get_matches_from(args)?;
    let name = matches.subcommand_name();
    let mut asking = election_ctl::commands().into_iter();
    if asking.any(|command| name == Some(command.get_name())) {
        let values = Values::collect(Vec::new(), None, env);
        return Ok((Command::Ask(Box::new((command_line(), matches))), values));
    }
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
                url: given.get_one("url").cloned(),
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
    Ok((command, Values::collect(flags, file, env)))
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

const ABOUT_SETTINGS: &str = "\
Settings are environment variables, keys of a YAML file, and flags of every command: EA_GRPC_PORT is grpc_port in the \
file, and --grpc-port. Flags win over variables, variables over the file. To begin with:

  EA_REDIS_URLS     Redis servers that keep leases, such as redis://user:password@host:6379/0
  EA_EMBEDDED_PATH  or the file in which a single agent keeps them
  EA_STORE=memory   or neither, to try it out
  EA_HTTP_PORT      for REST, probes and metrics [default: 80]
  EA_GRPC_PORT      for gRPC [default: 443]
  EA_BIND_ADDRESS   where both listen [default: 0.0.0.0]
  EA_AUTH_MODES     how callers prove who they are [default: none]
  EA_ENV            production or development [default: production]

`election-agent help settings` lists all of them, `election-agent config` prints those in force.";

/// Returns a flag for every setting, accepted by every command. The help omits them, because it would become very long;
/// `help settings` lists them.
fn flags() -> impl Iterator<Item = clap::Arg> {
    let groups = SETTINGS.into_iter();
    groups.flat_map(|(about, group)| group.iter().map(move |setting| flag(setting, about)))
}

fn flag(setting: &Setting, about: &'static str) -> clap::Arg {
    let default = match setting.default {
        "" => String::new(),
        default => format!(" [default: {default}]"),
    };
    let alias = setting
        .alias
        .map(|alias| format!(" or {alias}"))
        .unwrap_or_default();
    clap::Arg::new(setting.variable)
        .long(setting.flag())
        .value_name("VALUE")
        .global(true)
        .hide(true)
        .help_heading(about)
        .help(format!(
            "{}{default} [env: {}{alias}]",
            setting.meaning, setting.variable
        ))
}

/// Returns the client commands of `eactl`. Hides those that install `eactl`; its own help lists them.
fn asking() -> impl Iterator<Item = clap::Command> {
    let commands = election_ctl::commands().into_iter();
    commands.map(|command| {
        let hidden = matches!(command.get_name(), "completions" | "install" | "man");
        command.hide(hidden)
    })
}

fn command_line() -> clap::Command {
    clap::Command::new("election-agent")
        .about("Leader election as a service over gRPC, gRPC-Web and REST")
        .after_help(ABOUT_SETTINGS)
        .version(concat!(env!("CARGO_PKG_VERSION"), " (", env!("ELECTION_AGENT_COMMIT"), ")"))
        .subcommand(
            clap::Command::new("config")
                .about("Prints the effective configuration as YAML, secrets hidden"),
        )
        .subcommand(clap::Command::new("openapi").about("Prints the OpenAPI document as YAML"))
        .subcommand(
            clap::Command::new("settings")
                .about("Prints all settings as a Markdown table; `help settings` lists them for reading")
                .next_line_help(true)
                .args(flags().map(|flag| flag.hide(false))),
        )
        .subcommand(clap::Command::new("metrics").about("Prints what /metrics serves as Markdown"))
        .subcommand(
            clap::Command::new("probe")
                .about("Checks whether the agent of this host is ready")
                .long_about(
                    "Checks whether the agent of this host is ready: exits with 0 if so, else with 1 and the reason",
                )
                .arg(
                    clap::Arg::new("url")
                        .long("url")
                        .value_name("URL")
                        .value_parser(probe::parse_url)
                        .help("The URL to request instead, such as http://10.0.0.7:8080/readyz"),
                )
                .arg(
                    clap::Arg::new("live")
                        .long("live")
                        .action(clap::ArgAction::SetTrue)
                        .conflicts_with("url")
                        .help("Checks liveness instead of readiness (/livez)"),
                ),
        )
        .subcommand(
            clap::Command::new("token")
                .about("Makes bearer tokens")
                .subcommand_required(true)
                .subcommand(
                    clap::Command::new("new")
                        .about(
                            "Makes a bearer token: its line for the file EA_AUTH_TOKEN_FILE goes to the standard \
                             output, the token and how to use it to the standard error",
                        )
                        .arg(
                            clap::Arg::new("name")
                                .value_name("NAME")
                                .required(true)
                                .help("The identity that the token proves"),
                        )
                        .arg(
                            clap::Arg::new("group")
                                .long("group")
                                .value_name("GROUP")
                                .action(clap::ArgAction::Append)
                                .help("A group of the identity; may be repeated"),
                        ),
                ),
        )
        .subcommand(
            clap::Command::new("restore")
                .about("Replaces the lease database EA_EMBEDDED_PATH with a copy")
                .long_about(
                    "Replaces the lease database EA_EMBEDDED_PATH with a copy while the agent is stopped; \
                     keeps the replaced file beside it, and reports for how long the agent will be in \
                     quarantine",
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
        .subcommands(asking())
        .arg(
            clap::Arg::new("config_file")
                .long("config-file")
                .value_name("PATH")
                .global(true)
                .display_order(900)
                .help("A YAML file of settings [env: EA_CONFIG_FILE]"),
        )
        .args(flags())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn flags_are_declared_once() {
        command_line().debug_assert();
    }

    #[test]
    fn flags_win_over_variables_and_variables_over_the_file() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(
            file.path(),
            "grpc_port: 1\nhttp_port: 2\nmax_term: 30s\nstore: memory\n",
        )
        .expect("written");
        let args = ["election-agent", "--grpc-port", "5"].map(OsString::from);
        let env = [
            ("EA_CONFIG_FILE".into(), file.path().into()),
            ("EA_HTTP_PORT".into(), "4".into()),
            ("EA_GRPC_PORT".into(), "4".into()),
        ];
        let (_, values) = parse(args, env).expect("a command line");
        let config = Config::new(values.expect("reads")).expect("valid");
        assert_eq!((config.listen.grpc_port, config.listen.http_port), (5, 4));
        assert_eq!(config.limits.max_term.as_secs(), 30);
    }
}
