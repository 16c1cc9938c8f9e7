//! The terms that a stream extends and gives up.

use std::sync::Arc;

use election_core::{
    election,
    lease::{Extend, Resign},
    types::{Candidate, ElectionId, Token},
};
use election_proto as proto;
use futures_util::future::FutureExt as _;
use proto::standing::Is;
use tokio::time::Instant;

use super::{Joined, Leading, Place, lasts, standing};
use crate::{auth::gate, status::Problem, transport::reason};

/// The result of an extension of terms.
pub(super) struct Extended {
    /// The ping that requested it; [`None`] if Joins with tokens did.
    ping: Option<u64>,
    /// The last ping when the extension began.
    last_ping: u64,
    extends: Vec<Arc<Extend>>,
    results: Vec<Result<(), Failure>>,
}

/// The result of a resignation.
pub(super) struct Resigned {
    election: ElectionId,
    token: Token,
    result: Result<(), Failure>,
}

/// The standing of a leader whose request failed, and why.
type Failure = (Is, String);

impl Leading {
    /// Extends the terms that a ping or a Join requests, unless an extension is in progress: the next one follows it.
    pub(super) fn extend(&mut self) {
        if self.extension.is_some() {
            return;
        }
        let (ping, resumed) = (self.ping.take(), std::mem::take(&mut self.resumed));
        if ping.is_none() && resumed.is_empty() {
            return;
        }
        let leads = |(_, joined): (&ElectionId, &Joined)| match &joined.place {
            Place::Leading { token, .. } => Some(Arc::new(Extend {
                election: joined.campaign.election.clone(),
                leader: joined.campaign.candidate.clone(),
                token: Some(*token),
                term: joined.campaign.term,
            })),
            _ => None,
        };
        let extends: Vec<_> = match ping {
            Some(_) => self.joined.iter().filter_map(leads).collect(),
            None => {
                let resumed = resumed.iter();
                let resumed = resumed.filter_map(|id| self.joined.get_key_value(id));
                resumed.filter_map(leads).collect()
            }
        };
        let last_ping = self.pings.lock().last.seq;
        let of = |results| Extended {
            ping,
            last_ping,
            extends: extends.clone(),
            results,
        };
        if extends.is_empty() {
            return self.extended(of(Vec::new()));
        }
        if ping.is_some()
            && let Err(problem) = self.count(extends.len())
        {
            // The next ping tries again.
            let refused = (Is::Jeopardy, problem.message);
            return self.extended(of(vec![Err(refused); extends.len()]));
        }
        let (gate, caller) = (self.gate.clone(), self.life.caller().clone());
        let deadline = Instant::now() + self.limit;
        let extension = async move {
            let results = gate.extend_many(&caller, extends.clone(), deadline).await;
            let results = results.into_iter().map(|it| it.map(drop).map_err(failure));
            Extended {
                ping,
                last_ping,
                extends,
                results: results.collect(),
            }
        };
        self.extension = Some(extension.boxed());
    }

    pub(super) fn extended(&mut self, extended: Extended) {
        let mut standings = Vec::new();
        for (extend, result) in extended.extends.iter().zip(extended.results) {
            let election = &extend.election;
            let Some(joined) = self.joined.get_mut(election) else {
                continue;
            };
            let Place::Leading { token, listed } = &mut joined.place else {
                continue;
            };
            // The caller left and joined it again meanwhile.
            if Some(*token) != extend.token || joined.campaign.term != extend.term {
                continue;
            }
            let (is, why) = match result {
                Ok(()) if *listed => (Is::Leading, String::new()),
                Ok(()) => continue,
                Err(failure) => failure,
            };
            *listed = is != Is::Leading;
            let valid_for = match is {
                Is::Leading => lasts(extend.term),
                _ => 0,
            };
            standings.push(proto::Standing {
                token: token.get(),
                valid_for,
                ping_valid_for: valid_for,
                of_ping: if valid_for > 0 { extended.last_ping } else { 0 },
                reason: why,
                ..standing(election, is)
            });
            // A refused Join has not joined.
            if is == Is::Lost || (is == Is::Refused && extended.ping.is_none()) {
                self.joined.remove(election);
            }
        }
        let uncovered = std::mem::take(&mut self.uncovered);
        match extended.ping {
            Some(seq) => {
                for (election, standing) in uncovered {
                    let joined = self.joined.get(&election);
                    let leads = joined.is_some_and(|joined| {
                        matches!(joined.place, Place::Leading { token, .. } if token.get() == standing.token)
                    });
                    if leads {
                        standings.push(standing);
                    }
                }
                self.outbox.pong(proto::Pong { seq, standings });
            }
            None => {
                for standing in standings {
                    self.outbox.standing(standing);
                }
            }
        }
        self.extend();
    }

    pub(super) fn leave(
        &mut self,
        leave: &proto::Leave,
        candidate: Candidate,
    ) -> Result<(), Problem> {
        let election = ElectionId::new(&leave.kind, &leave.election);
        let given = Token::optional(leave.token);
        let counted = self.count(1);
        let (election, given) = (election?, given?);
        self.settle();
        let leads = match self.joined.get(&election).map(|joined| &joined.place) {
            Some(Place::Leading { token, .. }) => Some(*token),
            Some(Place::Waiting { abort, .. }) => {
                abort.abort();
                None
            }
            Some(Place::Silent) | None => None,
        };
        if given.is_none() || given == leads || leads.is_none() {
            self.joined.remove(&election);
        }
        // The election is removed even if this fails: the caller no longer wants to lead.
        counted?;
        let Some(token) = given.or(leads) else {
            self.outbox.standing(standing(&election, Is::Resigned));
            return Ok(());
        };
        let resign = Resign {
            election: election.clone(),
            leader: candidate,
            token: Some(token),
        };
        *self.leaving.entry(election.clone()).or_default() += 1;
        let (gate, caller) = (self.gate.clone(), self.life.caller().clone());
        let deadline = Instant::now() + self.limit;
        let resignation = async move {
            let result = gate.resign(&caller, resign, deadline).await;
            Resigned {
                election,
                token,
                result: result.map_err(failure),
            }
        };
        self.resignations.push(resignation.boxed());
        Ok(())
    }

    pub(super) fn resigned(&mut self, resigned: Resigned) {
        if let Some(left) = self.leaving.get_mut(&resigned.election) {
            *left -= 1;
            if *left == 0 {
                self.leaving.remove(&resigned.election);
            }
        }
        let (is, why) = match resigned.result {
            Ok(()) => (Is::Resigned, String::new()),
            Err(failure) => failure,
        };
        self.outbox.standing(proto::Standing {
            token: resigned.token.get(),
            reason: why,
            ..standing(&resigned.election, is)
        });
        // The caller may have joined it again meanwhile.
        let joined = self.joined.get(&resigned.election);
        let waits = joined.is_some_and(|joined| matches!(joined.place, Place::Silent));
        if waits && !self.leaving.contains_key(&resigned.election) {
            // Without a place among the agent's streams, the next ping tries again.
            let _ = self.campaign(&resigned.election);
        }
    }
}

/// Returns the standing of a leader whose request failed.
fn failure(error: gate::Error) -> Failure {
    match error {
        gate::Error::Election(election::Error::Denied(denial)) => {
            (Is::Lost, reason(denial).to_owned())
        }
        gate::Error::Election(error) => (Is::Jeopardy, Problem::from(error).message),
        refused => (Is::Refused, Problem::from(refused).message),
    }
}
