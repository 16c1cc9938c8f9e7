//! Parses the configuration, starts the agent, and waits for a signal.

use std::{
    io::{self, Write as _},
    path::Path,
    process::{self, ExitCode},
    time::Duration,
};

use election_agent::{
    app::App,
    auth::tokens,
    cli::{self, Command, probe::Probe},
    config::{self, Config},
    descriptors, output, shutdown,
    telemetry::{self, metrics::table, trace::Pipeline},
    tls,
    transport::rest::openapi,
};
use election_core::lease::embedded::restore;
use tikv_jemallocator::Jemalloc;
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
    time::sleep,
};

/// Most allocations of a request are small and short-lived. The system's allocator is slower for these, musl's by far
/// the slowest. `.cargo/config.toml` sets the options of jemalloc.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Exit code: the configuration is invalid, or the agent cannot start with it.
const UNUSABLE: u8 = 2;

/// Time limit of an immediate shutdown.
const AT_ONCE: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    if let Some(code) = election_ctl::helper(std::env::args_os()) {
        return code;
    }
    let (command, values) = match cli::parse(std::env::args_os(), std::env::vars_os()) {
        Ok(parsed) => parsed,
        Err(answer) => return say(&answer),
    };
    let done = ExitCode::SUCCESS;
    match command {
        Command::PrintOpenApi => output::print(openapi::yaml(&openapi::document()), done),
        Command::PrintSettings => output::print(config::markdown(), done),
        Command::PrintMetrics => output::print(table::markdown(), done),
        Command::NewToken(name, groups) => new_token(&name, &groups),
        Command::Authz(command) => {
            let auth = || Ok(values.and_then(Config::of_command)?.auth);
            let run = command.run(auth);
            run.unwrap_or_else(|mistakes| refuse(&mistakes))
        }
        Command::Restore(from) => match values.and_then(Config::of_command) {
            Ok(config) => put_back(&from, &config),
            Err(mistakes) => refuse(&mistakes),
        },
        Command::Probe(probe) => match values.and_then(Config::of_command) {
            Ok(config) => ask(&probe, &config),
            Err(mistakes) => refuse(&mistakes),
        },
        Command::PrintConfig => match values.and_then(Config::new) {
            Ok(config) => {
                for config::Ignored { variable, why } in config.ignored() {
                    output::complain(format_args!("{variable}: {why}"));
                }
                output::print(config, done)
            }
            Err(mistakes) => refuse(&mistakes),
        },
        Command::Ask(asked) => election_ctl::run(asked.0, &asked.1),
        Command::Serve => match values.and_then(Config::new) {
            Ok(config) => serve(&config),
            Err(mistakes) => refuse(&mistakes),
        },
    }
}

/// Prints the command-line parser's output: help, the version, or an error.
fn say(answer: &clap::Error) -> ExitCode {
    let code = u8::try_from(answer.exit_code()).unwrap_or(UNUSABLE);
    let written = answer.print().and_then(|()| io::stdout().flush());
    match answer.use_stderr() {
        true => ExitCode::from(code),
        false => output::ended(written, ExitCode::from(code)),
    }
}

/// Prints the line before the token: without its line in the file, a token is useless.
fn new_token(name: &str, groups: &[String]) -> ExitCode {
    let new = match tokens::New::make(name, groups) {
        Ok(new) => new,
        Err(what) => {
            output::complain(format_args!("no token was made: {what}"));
            return ExitCode::from(UNUSABLE);
        }
    };
    if let Err(error) = output::write(format_args!("{}\n", new.line)) {
        output::complain(format_args!(
            "no token was made, and nothing was stored: cannot write its line to the standard output: {error}"
        ));
        return ExitCode::FAILURE;
    }
    match writeln!(io::stderr().lock(), "{}", new.usage()) {
        Ok(()) => ExitCode::SUCCESS,
        // The line alone is useless, because the token is lost.
        Err(_) => ExitCode::FAILURE,
    }
}

#[tokio::main(flavor = "current_thread")]
async fn ask(probe: &Probe, config: &Config) -> ExitCode {
    tls::install_provider();
    match probe.ask(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            output::complain(what);
            ExitCode::FAILURE
        }
    }
}

fn put_back(from: &Path, config: &Config) -> ExitCode {
    let store = &config.store;
    let Some(database) = &store.embedded_path else {
        output::complain(
            "nothing was restored: EA_EMBEDDED_PATH is not set: set it as for the agent",
        );
        return ExitCode::from(UNUSABLE);
    };
    let guard = store.restart_guard.duration(config.limits.max_term);
    match restore::restore(from, database, guard, config::EMBEDDED_NAMES) {
        Ok(restored) => match output::write(&restored) {
            Ok(()) => ExitCode::SUCCESS,
            // The operator must learn that the copy is in place, and how long the agent's quarantine lasts.
            Err(error) => {
                output::complain(format_args!("{restored}"));
                output::ended(Err(error), ExitCode::SUCCESS)
            }
        },
        Err(what) => {
            output::complain(format_args!("nothing was restored: {what}"));
            ExitCode::from(UNUSABLE)
        }
    }
}

fn refuse(mistakes: &config::Mistakes) -> ExitCode {
    output::complain(format_args!(
        "election-agent cannot start; its configuration has mistakes:\n{mistakes}"
    ));
    ExitCode::from(UNUSABLE)
}

fn serve(config: &Config) -> ExitCode {
    // Declared first and so dropped last: the log still receives the lines of the shutdown.
    let traces = config.telemetry.traces.clone().map(Pipeline::new);
    let log = &config.telemetry.log;
    let _flush =
        telemetry::log::start(config.telemetry.environment.readers(), log, traces.as_ref());
    // Logged to the audit trail, so that the line appears at every log level.
    tracing::info!(
        target: telemetry::log::AUDIT,
        version = env!("CARGO_PKG_VERSION"),
        commit = env!("ELECTION_AGENT_COMMIT"),
        configuration = config.fingerprint(),
        "election-agent starts"
    );
    descriptors::raise();
    // The background runtime: connecting, watching, exporting. Two threads, so that a long task, such as reading a long
    // list of pods, does not delay another, such as a ping of a lease node.
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start threads");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(run(config, traces));
    // A blocked task, such as a name lookup without an answer, must not delay the exit.
    runtime.shutdown_background();
    code
}

async fn run(config: &Config, traces: Option<Pipeline>) -> ExitCode {
    for config::Ignored { variable, why } in config.ignored() {
        tracing::warn!(variable, "{why}");
    }
    tls::install_provider();
    let stop = match shutdown::on_signal().and_then(|stop| on_hangup().map(|()| stop)) {
        Ok(stop) => stop,
        Err(error) => {
            tracing::error!(%error, "cannot listen for signals");
            return ExitCode::FAILURE;
        }
    };
    let at_once = stop.at_once.clone();
    tokio::spawn(async move {
        at_once.cancelled().await;
        // Tasks still running after this time are stuck.
        sleep(AT_ONCE).await;
        process::exit(0);
    });
    let started = tokio::select! {
        started = App::start(config, traces, stop.clone()) => started,
        () = stop.gently.cancelled() => {
            tracing::info!("ended while starting");
            return ExitCode::SUCCESS;
        }
    };
    match started {
        Ok(app) => {
            for address in app.addresses() {
                tracing::info!(%address, "listening");
            }
            app.run().await;
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!("election-agent cannot start: {error}");
            ExitCode::from(UNUSABLE)
        }
    }
}

/// Reloads the log filter on every SIGHUP, from the same file, variables and flags.
fn on_hangup() -> io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            // The command line was valid at the start and has not changed.
            let Ok((_, values)) = cli::parse(std::env::args_os(), std::env::vars_os()) else {
                continue;
            };
            match values.and_then(Config::new) {
                Ok(config) => {
                    telemetry::log::change(&config.telemetry.log);
                    let level = config.telemetry.log.directives();
                    tracing::info!(level, "SIGHUP: reloaded the log level, and nothing else");
                }
                Err(mistakes) => tracing::error!("SIGHUP: nothing was changed:\n{mistakes}"),
            }
        }
    });
    Ok(())
}
