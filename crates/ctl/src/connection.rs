//! The agent that was named on the command line.

use std::{path::PathBuf, time::Duration};

use clap::{ArgMatches, parser::ValueSource};
use election_agent_client::{Agent, Error};

use crate::failure::Failure;

/// How long a request may take, with all its attempts: a person waits for the reply.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The agent, by `--agent` and the credentials; nothing is connected yet.
pub(crate) fn agent(given: &ArgMatches) -> Result<Agent, Failure> {
    agent_within(given, TIMEOUT)
}

/// The same, with another timeout for requests.
pub(crate) fn agent_within(given: &ArgMatches, timeout: Duration) -> Result<Agent, Failure> {
    let file = |name| given.get_one::<PathBuf>(name);
    let endpoints = given.get_one::<String>("agent");
    let Some(endpoints) = endpoints.filter(|named| !named.trim().is_empty()) else {
        return Err(Failure::own(
            "no agent is named: use --agent or ELECTION_AGENT_URL",
        ));
    };
    let mut builder = Agent::builder(endpoints).timeout(timeout);
    let unset = |path: &&PathBuf| {
        path.as_os_str().is_empty()
            && given.value_source("token_file") == Some(ValueSource::EnvVariable)
    };
    if let Some(path) = file("token_file").filter(|path| !unset(path)) {
        // Read now, so that a missing or empty file is reported before any request.
        let wrong = |why: &dyn std::fmt::Display| {
            Failure::own(format!("--token-file {}: {why}", path.display()))
        };
        let token = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
        if token.trim().is_empty() {
            return Err(wrong(&"the file is empty"));
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
