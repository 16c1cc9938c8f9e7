//! Prints its token once a second while it leads: start it twice, and stop the one that prints.
//!
//! `cargo run --example lead -- http://127.0.0.1:8080`

use std::{env, time::Duration};

use election_agent_client::{Agent, Error, Term};

async fn work(term: Term) {
    while term.check().is_ok() {
        println!(
            "leading with token {}, for {:?} at least",
            term.token(),
            term.remaining()
        );
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            lost = term.lost() => eprintln!("{lost}"),
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let endpoints = env::args()
        .nth(1)
        .unwrap_or_else(|| "http://127.0.0.1:8080".to_owned());
    let agent = Agent::new(endpoints)?;
    agent.lead("example").run(work).await
}
