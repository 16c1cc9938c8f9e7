//! Campaigns of a stream, and the grants reported to its caller.

use std::{sync::Arc, time::Duration};

use election_core::{
    board::{Patience, Waiter},
    election::{self, Campaign, Outcome},
    lease::Lease,
    types::ElectionId,
};
use election_proto as proto;
use futures_util::{
    StreamExt as _,
    future::{FutureExt as _, abortable},
};
use parking_lot::Mutex;
use proto::standing::Is;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use super::{Leading, Pings, Place, convert, lasts, standing};
use crate::{
    auth::{
        Identity,
        gate::{self, Gate},
    },
    status::Problem,
    transport::stay::Places,
};

/// Campaigns of streams have no end of their own. This is longer than any stream lasts.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// The first and the longest pause before retrying a campaign whose outcome is not known.
const TRY_AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(8));

/// A campaign that has ended: its election, its number, and its outcome.
pub(super) type Campaigned = (ElectionId, u64, Result<Outcome, gate::Error>);

/// A campaign waits: another candidate leads, or its outcome is not known.
pub(super) struct Waits {
    election: ElectionId,
    number: u64,
    leader: Option<Lease>,
    reason: String,
}

impl Leading {
    /// Ends campaigns until the caller's next message. Grants that they may have received are rolled back.
    pub(super) fn fall_silent(&mut self) {
        self.settle();
        for joined in self.joined.values_mut() {
            if let Place::Waiting { abort, .. } = &joined.place {
                abort.abort();
                joined.place = Place::Silent;
            }
        }
    }

    /// Processes outcomes that have arrived, so that their campaigns do not count as waiting.
    pub(super) fn settle(&mut self) {
        while let Some(Some(ended)) = self.campaigns.next().now_or_never() {
            if let Ok(campaigned) = ended {
                self.campaigned(campaigned);
            }
        }
    }

    /// Ends campaigns that policies no longer permit the caller.
    pub(super) fn check_rights(&mut self) {
        self.settle();
        let (gate, caller) = (&self.gate, self.life.caller());
        let without = self.joined.iter().filter(|(_, joined)| {
            let waits = matches!(joined.place, Place::Waiting { .. } | Place::Silent);
            waits && !gate.may_campaign(caller, &joined.campaign)
        });
        let without: Vec<_> = without.map(|(election, _)| election.clone()).collect();
        for election in without {
            let joined = self.joined.get(&election);
            if let Some(Place::Waiting { abort, .. }) = joined.map(|joined| &joined.place) {
                abort.abort();
            }
            self.leaves(&election, "policies no longer permit this".to_owned());
        }
    }

    /// Starts a campaign, unless the stream is ending.
    ///
    /// # Errors
    /// The agent has its maximum number of streams and waiting campaigns.
    pub(super) fn campaign(&mut self, election: &ElectionId) -> Result<(), Problem> {
        let Some(joined) = self.joined.get_mut(election) else {
            return Ok(());
        };
        joined.place = Place::Silent;
        if self.life.is_ending() {
            return Ok(());
        }
        let place = self.places.as_ref().map(Places::take).transpose()?;
        self.number += 1;
        let number = self.number;
        let now = Instant::now();
        let campaigning = Campaigning {
            gate: self.gate.clone(),
            caller: self.life.caller().clone(),
            campaign: Arc::clone(&joined.campaign),
            waits: self.waits.0.clone(),
            number,
            patience: Patience {
                since: now,
                waiter: Some(Arc::new(InStream {
                    election: election.clone(),
                    number,
                    pings: Arc::clone(&self.pings),
                    waits: self.waits.0.clone(),
                })),
                until: now + FOR_EVER,
                deadline: now + FOR_EVER,
                ending: self.ending.clone(),
            },
        };
        let (campaigning, abort) = abortable(campaigning.outcome());
        joined.place = Place::Waiting {
            number,
            abort,
            _place: place,
        };
        self.campaigns.push(campaigning.boxed());
        Ok(())
    }

    pub(super) fn waits(&mut self, waits: Waits) {
        let joined = self.joined.get(&waits.election);
        let number = joined.and_then(|joined| match joined.place {
            Place::Waiting { number, .. } => Some(number),
            _ => None,
        });
        if number != Some(waits.number) {
            return;
        }
        let leader = waits.leader.as_ref();
        self.outbox.standing(proto::Standing {
            leader: leader.map(|lease| convert::leader(&waits.election, lease)),
            reason: waits.reason,
            ..standing(&waits.election, Is::Waiting)
        });
    }

    pub(super) fn campaigned(&mut self, (election, ended, outcome): Campaigned) {
        let Some(joined) = self.joined.get_mut(&election) else {
            return;
        };
        if !matches!(joined.place, Place::Waiting { number, .. } if number == ended) {
            return;
        }
        match outcome {
            Ok(Outcome::Elected {
                token,
                valid_for,
                provisional,
                since,
            }) => {
                let ping = self.pings.lock().until(since);
                let ends = since + valid_for;
                let (Some(ping), true) = (ping, Instant::now() < ends) else {
                    // The grant was not reported. It may have ended, and its request id may be used.
                    let campaign = Campaign {
                        request_id: None,
                        ..(*joined.campaign).clone()
                    };
                    joined.campaign = Arc::new(campaign);
                    // Without a place, the next ping tries again.
                    let _ = self.campaign(&election);
                    return;
                };
                joined.place = Place::Leading {
                    token,
                    listed: provisional,
                };
                // The caller counts from before that ping: its clock also measures the time from there to the claim.
                let before = since.saturating_duration_since(ping.at);
                let valid_for = (ends - before / 100).saturating_duration_since(ping.at);
                let standing = proto::Standing {
                    token: token.get(),
                    valid_for: convert::millis_i32(valid_for),
                    of_ping: ping.seq,
                    provisional,
                    ping_valid_for: lasts(joined.campaign.term),
                    ..standing(&election, Is::Leading)
                };
                if self.extension.is_some() {
                    self.uncovered.push((election, standing.clone()));
                }
                self.outbox.standing(standing);
            }
            // The stream is ending.
            Ok(Outcome::NotElected(_)) => joined.place = Place::Silent,
            Ok(Outcome::Used) => self.leaves(&election, Problem::request_id_used().message),
            Err(error) => self.leaves(&election, Problem::from(error).message),
        }
    }

    /// Removes an election from the stream, because its campaign is refused.
    fn leaves(&mut self, election: &ElectionId, why: String) {
        self.joined.remove(election);
        let (kind, name) = (election.kind().to_owned(), election.name().to_owned());
        self.refuse(kind, name, 0, why);
    }
}

/// A campaign of a stream.
struct Campaigning {
    gate: Gate,
    caller: Identity,
    campaign: Arc<Campaign>,
    waits: mpsc::UnboundedSender<Waits>,
    number: u64,
    patience: Patience,
}

impl Campaigning {
    /// Campaigns until an outcome is known.
    async fn outcome(self) -> Campaigned {
        let (campaign, patience) = (&*self.campaign, &self.patience);
        let (mut pause, mut reported) = (TRY_AGAIN.0, String::new());
        loop {
            let outcome = self
                .gate
                .campaign(&self.caller, campaign, Some(patience), patience.deadline)
                .await;
            let why = match outcome {
                Err(gate::Error::Election(
                    error @ (election::Error::Unavailable { .. }
                    | election::Error::DeadlineExceeded
                    | election::Error::StoreFull),
                )) => error.to_string(),
                outcome => return (campaign.election.clone(), self.number, outcome),
            };
            if why != reported {
                // An error means that the stream has ended.
                let _ = self.waits.send(Waits {
                    election: campaign.election.clone(),
                    number: self.number,
                    leader: None,
                    reason: why.clone(),
                });
                reported = why;
            }
            sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(TRY_AGAIN.1);
        }
    }
}

/// A caller that waits in a stream.
#[derive(Debug)]
struct InStream {
    election: ElectionId,
    number: u64,
    pings: Arc<Mutex<Pings>>,
    waits: mpsc::UnboundedSender<Waits>,
}

impl Waiter for InStream {
    fn last_message(&self) -> Instant {
        self.pings.lock().last.at
    }

    fn waits(&self, leader: &Lease) {
        // An error means that the stream has ended.
        let _ = self.waits.send(Waits {
            election: self.election.clone(),
            number: self.number,
            leader: Some(leader.clone()),
            reason: String::new(),
        });
    }
}
