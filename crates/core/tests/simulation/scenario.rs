//! Scenarios, one for each rule: a forbidden step is tried at the moment at which only the rule prevents it.
//! Each scenario passes with all rules.

pub(crate) mod grants;
pub(crate) mod guards;
pub(crate) mod lists;
pub(crate) mod new_nodes;
pub(crate) mod paused;
pub(crate) mod repairs;
pub(crate) mod requests;
pub(crate) mod waits;

use std::time::Duration;

use election_core::{
    election::{Campaign, Error, Outcome},
    lease::{Extend, Resign},
    types::{Candidate as Name, RequestId, Term, Token, Value},
};
use fastrand::Rng;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    agent::{Agent, Plan},
    election,
    faults::Faults,
    handle::{Fate, To},
    record::Record,
    server::Server,
};

/// The default deadline of a request.
const PATIENCE: Duration = Duration::from_secs(3);
/// The default longest term of agents.
const LONGEST: Duration = Duration::from_secs(6);
const SECOND: Duration = Duration::from_secs(1);

/// The state of a scenario. Cheap to clone.
#[derive(Clone)]
struct Scene {
    servers: Vec<Server>,
    record: Record,
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl Scene {
    /// Creates a scene with `count` servers.
    fn of(count: usize) -> Self {
        Self::with_clocks(count, 0.0)
    }

    /// Creates a scene with `count` servers whose clocks run fast by this fraction.
    fn with_clocks(count: usize, fast: f64) -> Self {
        let server = |n| {
            let name = format!("node {n}");
            let server = Server::new(&name, Some(LONGEST), fast, Rng::with_seed(7));
            server.set_faults(Faults {
                quick_us: 100,
                ..Faults::NONE
            });
            server
        };
        Self {
            servers: (0..count).map(server).collect(),
            record: Record::default(),
        }
    }

    /// Creates an agent that has checked the health of the nodes.
    async fn agent(&self, plan: &Plan) -> Agent {
        let agent = plan.agent(&self.servers);
        // The agent marks the nodes, and learns their incarnations and the bounds registered in these.
        for _ in 0..3 {
            agent.quorum.status().await;
        }
        agent
    }

    /// Creates an agent with this longest term and vote lifetime that has checked the health of the nodes.
    async fn agent_of(&self, longest: Duration, vote: Duration) -> Agent {
        self.agent(&Plan::new(longest, vote)).await
    }

    /// Campaigns; returns the token if the candidate is elected.
    async fn campaign(&self, agent: &Agent, name: &str, term: i64) -> Option<Token> {
        match self.ask(agent, name, term, "", PATIENCE).await {
            Ok(Outcome::Elected { token, .. }) => Some(token),
            _ => None,
        }
    }

    async fn ask(
        &self,
        agent: &Agent,
        name: &str,
        term: i64,
        id: &str,
        patience: Duration,
    ) -> Result<Outcome, Error> {
        let asked = Instant::now();
        let request = Campaign {
            election: election(),
            candidate: candidate(name),
            term: Term::from_millis(term, agent.longest).expect("in range"),
            value: Value::default(),
            request_id: RequestId::new(id).expect("valid"),
            wait: None,
        };
        let answer = agent.elections.campaign(&request, asked + patience).await;
        if let Ok(Outcome::Elected {
            token, valid_for, ..
        }) = &answer
            && asked + *valid_for > Instant::now()
        {
            // A retry gets the token of the first request.
            let token = Some(*token).filter(|_| id.is_empty());
            self.record.elected(name, token, asked, asked + *valid_for);
        }
        answer
    }

    /// Wins the election for a candidate on all nodes but these.
    async fn wins_without(&self, agent: &Agent, name: &str, term: i64, without: &[usize]) -> Token {
        for node in without {
            agent.handles[*node].plan(To::Grant, Fate::Lost);
        }
        let won = self.campaign(agent, name, term).await;
        won.expect("there is nobody else")
    }

    /// Campaigns for this candidate as long as another leads.
    async fn campaigns_while_leads(&self, agent: &Agent, name: &str, leader: &str) {
        while self.record.leads_until(leader).is_some() {
            self.campaign(agent, name, 1_050).await;
            sleep(ms(5)).await;
        }
    }

    async fn extend(
        &self,
        agent: &Agent,
        name: &str,
        token: Option<Token>,
        term: i64,
        patience: Duration,
    ) -> Result<(), Error> {
        let asked = Instant::now();
        let term = Term::from_millis(term, agent.longest).expect("in range");
        let request = Extend {
            election: election(),
            leader: candidate(name),
            token,
            term,
        };
        let valid_for = agent.quorum.extend(request, asked + patience).await?;
        let until = asked + valid_for;
        assert!(
            until > Instant::now(),
            "the extension is over when its reply arrives"
        );
        self.record.extended(name, until);
        Ok(())
    }

    async fn resign(&self, agent: &Agent, name: &str, token: Token) {
        self.record.ended(name, "resigns");
        let request = Resign {
            election: election(),
            leader: candidate(name),
            token: Some(token),
        };
        let deadline = Instant::now() + PATIENCE;
        let resigned = agent.elections.resign(request, deadline).await;
        assert_eq!(resigned, Ok(()), "{name} resigns");
    }

    /// Asserts that no leader is reported.
    async fn nobody_is_said_to_lead(&self, agent: &Agent) {
        let deadline = Instant::now() + PATIENCE;
        let read = agent.quorum.read(&election(), deadline).await;
        let leader = read.map(|state| state.lease().map(|lease| lease.leader.as_str().to_owned()));
        assert_eq!(leader, Ok(None), "a leader is reported without a grant");
    }
}

fn candidate(name: &str) -> Name {
    Name::new("candidate", name).expect("valid")
}

/// Waits until `after` ms past an instant.
async fn at(from: Instant, after: u64) {
    sleep_until(from + ms(after)).await;
}

/// Awaits the result of a background task.
async fn ended<T>(task: JoinHandle<T>) -> T {
    task.await
        .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
