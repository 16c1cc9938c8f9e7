//! The end of a run: one server pauses for longer than the leader's term while others campaign as fast as
//! they can. The leader keeps leading, and has its lease on that server again soon after the pause.

use std::{sync::Arc, time::Duration};

use election_core::{
    election::{Campaign, Outcome},
    lease::{Extend, LeaseNode as _, Resign},
    types::{Candidate as Name, Kind, Term, Token, Value},
};
use fastrand::Rng;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    agent::Agent,
    candidate::{Agents, Candidate},
    election,
    record::Record,
    run::{LONGEST_TERM, leader_at},
    server::Server,
};

const NAME: &str = "steady";

/// A leader that extends every third of its term.
pub(crate) struct Steady {
    servers: Vec<Server>,
    /// The index of the server that pauses.
    hangs: usize,
    /// Whether others campaign so fast that more of their grants wait for the paused server than a lease
    /// stores separately. The oldest grant then counts as acknowledged, and prevents a repair until it
    /// expires.
    fast: bool,
    /// Whether the clocks of agents step, or those of servers.
    clocks_step: bool,
    agent: Agent,
    agents: Agents,
    term: Term,
    record: Record,
    rng: Rng,
}

impl Steady {
    pub(crate) fn new(rng: &mut Rng, agents: &Agents, record: &Record, clocks_step: bool) -> Self {
        let agent = agents[rng.usize(..agents.len())].clone();
        let servers = agent.servers.clone();
        let longest = agent.longest.as_millis() as i64;
        let term = Term::from_millis(rng.i64(1_050..=longest), agent.longest).expect("in range");
        Self {
            hangs: rng.usize(..servers.len()),
            servers,
            fast: rng.bool(),
            clocks_step,
            agent,
            agents: Arc::clone(agents),
            term,
            record: record.clone(),
            rng: rng.fork(),
        }
    }

    pub(crate) async fn keeps_its_lease_everywhere(mut self) {
        let token = self.is_elected().await;
        // A bare majority may have elected it, while another server had the lease of an earlier leader.
        self.extends_until(Instant::now() + LONGEST_TERM, token)
            .await;
        for _ in 0..2 {
            self.extends(token).await;
            sleep(self.pause()).await;
        }
        if self.clocks_step && !self.is_held_everywhere().await {
            // A server may have accepted the token of a clock that was ahead, for a candidate that no
            // majority elected.
            self.record.note("a server has a larger token");
            self.gives_up(token).await;
            return;
        }
        let hangs = self.servers[self.hangs].clone();
        let most = self.rng.u64(..3_000);
        let hang = self.term.duration() + self.agent.vote + Duration::from_millis(most);
        let resumes = Instant::now() + hang;
        hangs.pause(hang);
        let mut challengers = JoinSet::new();
        for n in 0..self.rng.usize(1..=3) {
            let name = format!("challenger {n}");
            let agents = Arc::clone(&self.agents);
            let challenger = Candidate::new(&name, agents, self.rng.fork(), self.record.clone());
            let pause = if self.fast { 20 } else { 2_000 };
            challengers.spawn(challenger.challenge(pause, resumes + 10 * LONGEST_TERM));
        }
        let lapsed = match self.fast {
            true => resumes + LONGEST_TERM,
            false => resumes,
        };
        self.extends_until(lapsed, token).await;
        let mut has_it = false;
        for _ in 0..2 {
            self.extends(token).await;
            let next = Instant::now() + self.pause();
            while Instant::now() < next {
                has_it |= leader_at(&hangs).await.as_deref() == Some(NAME);
                sleep(Duration::from_millis(3)).await;
            }
        }
        assert!(
            has_it,
            "{} lacks the leader's lease two extensions after its pause, term {:?}:\n{}",
            hangs.name(),
            self.term,
            self.record.history()
        );
        self.extends(token).await;
        self.is_listed().await;
        challengers.abort_all();
        self.gives_up(token).await;
    }

    async fn gives_up(&self, token: Token) {
        self.record.ended(NAME, "resigns");
        let resign = Resign {
            election: election(),
            leader: name(),
            token: Some(token),
        };
        let deadline = Instant::now() + Duration::from_secs(3);
        let resigned = self.agent.elections.resign(resign, deadline).await;
        assert_eq!(resigned, Ok(()), "{}", self.record.history());
        sleep_until(deadline).await;
    }

    async fn is_held_everywhere(&self) -> bool {
        for server in &self.servers {
            if leader_at(server).await.as_deref() != Some(NAME) {
                return false;
            }
        }
        true
    }

    async fn is_elected(&self) -> Token {
        for _ in 0..100 {
            let asked = Instant::now();
            let request = Campaign {
                election: election(),
                candidate: name(),
                term: self.term,
                value: Value::default(),
                request_id: None,
                wait: None,
            };
            let deadline = asked + Duration::from_secs(3);
            let answer = self.agent.elections.campaign(&request, deadline).await;
            if let Ok(Outcome::Elected {
                token, valid_for, ..
            }) = answer
            {
                self.record
                    .elected(NAME, Some(token), asked, asked + valid_for);
                return token;
            }
            sleep(Duration::from_millis(50)).await;
        }
        panic!(
            "cannot be elected although nothing fails:\n{}",
            self.record.history()
        );
    }

    /// The interval between extensions.
    fn pause(&self) -> Duration {
        (self.term.duration() / 3).mul_f64(0.9)
    }

    async fn extends_until(&self, until: Instant, token: Token) {
        while Instant::now() < until {
            self.extends(token).await;
            sleep(self.pause()).await;
        }
    }

    async fn extends(&self, token: Token) {
        let asked = Instant::now();
        let request = Extend {
            election: election(),
            leader: name(),
            token: Some(token),
            term: self.term,
        };
        let deadline = asked + Duration::from_secs(3);
        let extended = self.agent.quorum.extend(request, deadline).await;
        if extended.is_err() {
            let status = self.agent.quorum.status().await;
            for (server, status) in self.servers.iter().zip(status) {
                let held = server.memory().read(&election()).await;
                self.record
                    .note(&format!("{}: {held:?}, {:?}", server.name(), status.probe));
            }
        }
        let history = || self.record.history();
        let valid_for = extended.unwrap_or_else(|error| {
            panic!(
                "the leader loses its lease although only one server hangs: {error}\n{}",
                history()
            )
        });
        self.record.extended(NAME, asked + valid_for);
    }

    async fn is_listed(&self) {
        let kind = Kind::new("sim").expect("valid");
        let deadline = Instant::now() + Duration::from_secs(3);
        let page = self
            .agent
            .quorum
            .list(Some(&kind), None, 10, deadline)
            .await;
        let page = page.expect("a quorum answers");
        let found = page.leases.iter().find(|(of, _)| *of == election());
        let leader = found.map(|(_, lease)| lease.leader.as_str());
        assert_eq!(leader, Some(NAME), "{page:?}:\n{}", self.record.history());
    }
}

fn name() -> Name {
    Name::new("candidate", NAME).expect("valid")
}
