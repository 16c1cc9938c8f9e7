//! Parses the configuration, starts the agent, and waits for a signal.

use std::{
    io,
    path::Path,
    process::{self, ExitCode},
    time::Duration,
};

use election_agent::{
    app::App,
    auth::tokens,
    config::{self, Command, Config},
    descriptors,
    lease::embedded::restore,
    probe::Probe,
    shutdown,
    telemetry::{self, metrics::table},
    tls,
    transport::rest::openapi,
};
use tikv_jemallocator::Jemalloc;
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
    time::sleep,
};

/// Most of what a request allocates is small and gone with it. The system's allocator takes longer for that, musl's by
/// far the longest. `.cargo/config.toml` has its options.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// The configuration is wrong or the agent cannot start with it.
const UNUSABLE: u8 = 2;

/// How long the end may take that was asked for at once.
const AT_ONCE: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let (command, values) = config::parse(std::env::args_os(), std::env::vars_os());
    match command {
        Command::PrintOpenApi => print!("{}", openapi::yaml(&openapi::document())),
        Command::PrintSettings => print!("{}", config::markdown()),
        Command::PrintMetrics => print!("{}", table::markdown()),
        Command::NewToken(name, groups) => match tokens::New::make(&name, &groups) {
            Ok(new) => {
                eprintln!("{}", new.token);
                println!("{}", new.line);
            }
            Err(what) => {
                eprintln!("no token was made: {what}");
                return ExitCode::from(UNUSABLE);
            }
        },
        Command::Authz(command) => {
            let auth = || Ok(values.and_then(Config::new)?.auth);
            return command
                .run(auth)
                .unwrap_or_else(|mistakes| refuse(&mistakes));
        }
        Command::Restore(from) => match values.and_then(Config::new) {
            Ok(config) => return put_back(&from, &config),
            Err(mistakes) => return refuse(&mistakes),
        },
        Command::Probe(probe) => match values.and_then(Config::new) {
            Ok(config) => return ask(&probe, &config),
            Err(mistakes) => return refuse(&mistakes),
        },
        Command::PrintConfig => match values.and_then(Config::new) {
            Ok(config) => print!("{config}"),
            Err(mistakes) => return refuse(&mistakes),
        },
        Command::Serve => match values.and_then(Config::new) {
            Ok(config) => return serve(&config),
            Err(mistakes) => return refuse(&mistakes),
        },
    }
    ExitCode::SUCCESS
}

#[tokio::main(flavor = "current_thread")]
async fn ask(probe: &Probe, config: &Config) -> ExitCode {
    tls::install_provider();
    match probe.ask(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("{what}");
            ExitCode::FAILURE
        }
    }
}

fn put_back(from: &Path, config: &Config) -> ExitCode {
    let store = &config.store;
    let Some(database) = &store.embedded_path else {
        eprintln!("nothing was restored: EA_EMBEDDED_PATH is not set: set it as for the agent");
        return ExitCode::from(UNUSABLE);
    };
    let guard = store.restart_guard.duration(config.limits.max_term);
    match restore::restore(from, database, guard) {
        Ok(restored) => {
            print!("{restored}");
            ExitCode::SUCCESS
        }
        Err(what) => {
            eprintln!("nothing was restored: {what}");
            ExitCode::from(UNUSABLE)
        }
    }
}

fn refuse(mistakes: &config::Mistakes) -> ExitCode {
    eprintln!("election-agent cannot start; its configuration has mistakes:\n{mistakes}");
    ExitCode::from(UNUSABLE)
}

fn serve(config: &Config) -> ExitCode {
    // Dropped last: what the end says is written, too.
    let _flush = telemetry::log::start(config.telemetry.environment, &config.telemetry.log);
    // Of the audit trail, so that it is there whatever the level.
    tracing::info!(
        target: telemetry::log::AUDIT,
        version = env!("CARGO_PKG_VERSION"),
        commit = env!("ELECTION_AGENT_COMMIT"),
        configuration = config.fingerprint(),
        "election-agent starts"
    );
    descriptors::raise();
    // Two threads are for what goes on beside requests: connecting, watching, exporting. None of it should wait for
    // another, such as a ping of a lease node for a long list of pods.
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
    let code = runtime.block_on(run(config));
    // Whatever still blocks, such as a name lookup that gets no answer, must not hold the end up.
    runtime.shutdown_background();
    code
}

async fn run(config: &Config) -> ExitCode {
    for variable in config.unknown_variables() {
        tracing::warn!(
            variable,
            "no such setting; election-agent --help lists them all"
        );
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
        // Whatever has not ended by then is stuck.
        sleep(AT_ONCE).await;
        process::exit(0);
    });
    let started = tokio::select! {
        started = App::start(config, stop.clone()) => started,
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

/// Reads at every SIGHUP what is to be logged: from the same file, variables and flags.
fn on_hangup() -> io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            let (_, values) = config::parse(std::env::args_os(), std::env::vars_os());
            match values.and_then(Config::new) {
                Ok(config) => {
                    telemetry::log::change(&config.telemetry.log);
                    let level = config.telemetry.log.directives();
                    tracing::info!(
                        level,
                        "SIGHUP: what is logged was read again, and nothing else"
                    );
                }
                Err(mistakes) => tracing::error!("SIGHUP: nothing was changed:\n{mistakes}"),
            }
        }
    });
    Ok(())
}
