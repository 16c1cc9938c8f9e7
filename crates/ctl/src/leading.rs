//! Campaigns, and leaderships that are held.

use std::{sync::Arc, time::Duration};

use clap::ArgMatches;
use election_agent_client::{Agent, Code, Deadline, Error, Leadership, Standing, Term};
use parking_lot::Mutex;

use crate::{
    cli::Wait,
    connection,
    failure::Failure,
    output::complain,
    run::{
        clock::Instant,
        supervisor::{Change, Lease},
    },
};

/// How long before the end of the term the client takes it for lost. A command that runs has ended by then.
const MARGIN: Duration = Duration::from_millis(100);

/// How long an agent may take to answer at the start.
const REACH: Duration = Duration::from_secs(3);

/// How long a resignation may take. Without it the term lapses.
const RESIGN: Duration = Duration::from_secs(5);

/// The same when no agent has answered for a while.
const RESIGN_LOST: Duration = Duration::from_secs(1);

/// A candidate, and the election it campaigns for.
#[derive(Debug)]
pub(crate) struct Candidacy {
    pub(crate) agent: Agent,
    /// The same with a shorter timeout, to check that an agent replies.
    probed: Agent,
    pub(crate) kind: String,
    pub(crate) election: String,
    pub(crate) candidate: String,
    pub(crate) term: Duration,
    value: String,
    wait: Wait,
}

impl Candidacy {
    /// Reads the command line. With `again` the candidate waits for ever unless `--wait` is given.
    pub(crate) fn new(given: &ArgMatches, again: bool) -> Result<Self, Failure> {
        let text = |name| given.try_get_one::<String>(name).ok().flatten().cloned();
        let agent = connection::agent(given)?;
        let wait = given.get_one("wait").copied();
        Ok(Self {
            probed: connection::agent_within(given, REACH)?,
            kind: text("kind").unwrap_or_default(),
            election: text("election").unwrap_or_default(),
            candidate: text("candidate").unwrap_or_else(|| agent.candidate().to_owned()),
            term: given.get_one("term").copied().unwrap_or_default(),
            value: text("value").unwrap_or_default(),
            wait: wait.unwrap_or(if again {
                Wait::Forever
            } else {
                Wait::For(Duration::ZERO)
            }),
            agent,
        })
    }

    /// Makes sure that an agent replies: a candidate that waits for ever would not notice a wrong address.
    pub(crate) async fn reach(&self) -> Result<(), Failure> {
        match self.probed.state(&self.election, &self.kind).await {
            Err(error @ (Error::Unreachable { .. } | Error::Config(_))) => Err(Failure::own(error)),
            Err(
                error @ Error::Refused {
                    code: Code::Unauthenticated | Code::InvalidArgument,
                    ..
                },
            ) => Err(Failure::own(error)),
            // A candidate may lack the right to read, and a quorum may be there when the election is decided.
            _ => Ok(()),
        }
    }

    /// Waits to be elected.
    pub(crate) async fn campaign(&self) -> Result<Held, Failure> {
        let lead = self
            .agent
            .lead(&self.election)
            .kind(&self.kind)
            .candidate(&self.candidate);
        let mut lead = lead
            .term(self.term)
            .value(&self.value)
            .margin(MARGIN)
            .on_state(reporter());
        if let Wait::For(time) = self.wait {
            lead = lead.wait(time);
        }
        match lead.start().await {
            Ok(leadership) => Ok(Held {
                term: leadership.term().clone(),
                leadership,
            }),
            Err(error @ Error::NotElected { .. }) => {
                Err(Failure::new(Failure::NOT_ELECTED, error.to_string()))
            }
            Err(error) => Err(Failure::own(error)),
        }
    }
}

/// Prints why a term is not extended, each reason once.
fn reporter() -> impl Fn(&Standing) + Send + Sync + 'static {
    let reported = Arc::new(Mutex::new(String::new()));
    move |standing| {
        let what = match standing {
            Standing::Jeopardy { reason, .. } => {
                format!("the term could not be extended yet: {reason}")
            }
            Standing::NotKnown { reason, .. } => format!("no agent answers yet: {reason}"),
            Standing::Refused { code, message, .. } => {
                format!("the agent refuses to extend the term ({code}): {message}")
            }
            _ => String::new(),
        };
        let mut reported = reported.lock();
        if !what.is_empty() && *reported != what {
            complain(format_args!("{what}"));
        }
        *reported = what;
    }
}

/// A leadership.
#[derive(Debug)]
pub(crate) struct Held {
    leadership: Leadership,
    term: Term,
}

impl Held {
    pub(crate) fn term(&self) -> &Term {
        &self.term
    }

    /// The term, for the work under it.
    pub(crate) fn lease(&self) -> Followed {
        Followed(self.term.clone())
    }

    /// Gives the leadership up, for which all work must have ended; lets the term lapse if no agent answers.
    pub(crate) async fn resign(self, lost: bool) {
        if lost && self.term.check().is_err() {
            return;
        }
        let limit = if lost { RESIGN_LOST } else { RESIGN };
        match tokio::time::timeout(limit, self.leadership.resign()).await {
            Ok(Ok(()) | Err(Error::Lost(_))) => {}
            Ok(Err(error)) => complain(format_args!("could not resign, the term lapses: {error}")),
            Err(_) => complain(format_args!(
                "could not resign, the term lapses: no answer in {limit:?}"
            )),
        }
    }
}

/// A term that is followed.
#[derive(Debug)]
pub(crate) struct Followed(Term);

impl Lease for Followed {
    fn valid_until(&self) -> Instant {
        instant(self.0.valid_until())
    }

    async fn changed(&mut self) -> Change {
        match self.0.renewed().await {
            Ok(_) => Change::Extended,
            Err(lost) => Change::Lost(lost.to_string()),
        }
    }
}

/// The client's instants are of the same clock.
pub(crate) fn instant(deadline: Deadline) -> Instant {
    Instant::from_nanos(deadline.as_nanos_since_boot())
}
