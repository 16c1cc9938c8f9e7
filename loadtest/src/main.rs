//! Parses and runs the command line.

use std::process::ExitCode;

use clap::Parser as _;
use loadtest::{
    bench,
    caller::Protocol,
    floor, growth,
    options::{Command, Load, Options},
    push,
    report::{Report, compare},
    run::run,
};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Options::parse().command {
        Command::Grpc(load) => measure(Protocol::Grpc, &load).await,
        Command::Rest(load) => measure(Protocol::Rest, &load).await,
        Command::GrpcWeb(load) => measure(Protocol::GrpcWeb, &load).await,
        Command::Floor { listen } => floor::serve(listen).await,
        Command::Compare { a, b } => Report::read(&a)
            .and_then(|a| Ok((a, Report::read(&b)?)))
            .map(|(a, b)| print!("{}", compare(&a, &b))),
        Command::Bench(options) => unless_stopped(bench::bench(&options)).await,
        Command::Growth(options) => unless_stopped(growth::growth(&options)).await,
        Command::Wait(options) => unless_stopped(push::wait(&options)).await,
        Command::Observe(options) => unless_stopped(push::observe(&options)).await,
        Command::Lead(options) => unless_stopped(push::lead(&options)).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("{what}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(protocol: Protocol, load: &Load) -> Result<(), String> {
    let report = run(protocol, load).await?;
    print!("{report}");
    if let Some(path) = &load.json {
        report.write(path)?;
    }
    match report.latency {
        Some(_) => Ok(()),
        None => Err("every answer was an error: nothing was measured".to_owned()),
    }
}

/// Stops at SIGINT and SIGTERM, so that the started processes end with this one.
async fn unless_stopped(what: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("signals cannot be waited for: {error}");
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    tokio::select! {
        done = what => done,
        _ = terminate.recv() => Err("stopped by SIGTERM".to_owned()),
        _ = interrupt.recv() => Err("stopped by SIGINT".to_owned()),
    }
}
