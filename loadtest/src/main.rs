//! Parses the command line and runs what it says.

use std::process::ExitCode;

use clap::Parser as _;
use loadtest::{
    caller::Protocol,
    floor,
    options::{Command, Load, Options},
    report::{Report, compare},
    run::run,
};

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
    match &load.json {
        Some(path) => report.write(path),
        None => Ok(()),
    }
}
