//! The agent that was named on the command line.

use std::{path::PathBuf, time::Duration};

use clap::ArgMatches;
use election_agent_client::{Agent, Error};

use crate::failure::Failure;

/// How long a question may take, with all its attempts: people wait for the answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The agent, by `--agent` and the credentials; nothing is connected yet.
pub(crate) fn agent(given: &ArgMatches) -> Result<Agent, Failure> {
    agent_within(given, TIMEOUT)
}

/// The same, with another time for questions.
pub(crate) fn agent_within(given: &ArgMatches, timeout: Duration) -> Result<Agent, Failure> {
    let file = |name| given.get_one::<PathBuf>(name);
    let Some(endpoints) = given.get_one::<String>("agent") else {
        return Err(Failure::own(
            "no agent is named: use --agent or ELECTION_AGENT_URL",
        ));
    };
    let mut builder = Agent::builder(endpoints).timeout(timeout);
    if let Some(path) = file("token_file") {
        // Read now, so that a file that is not there is told before anything is asked.
        if let Err(error) = std::fs::read(path) {
            return Err(Failure::own(format!(
                "--token-file {}: {error}",
                path.display()
            )));
        }
        builder = builder.token_file(path);
    }
    if let Some(path) = file("ca") {
        builder = builder.ca_file(path)?;
    }
    if let (Some(certificate), Some(key)) = (file("cert"), file("key")) {
        builder = builder.identity_files(certificate, key)?;
    }
    Ok(builder.build()?)
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::NotElected { .. } => Self::NOT_ELECTED,
            Error::Lost(_) => Self::NO,
            Error::NotKnown { .. } | Error::Unreachable { .. } => Self::NOT_KNOWN,
            _ => Self::OWN,
        };
        Self::new(code, error.to_string())
    }
}
