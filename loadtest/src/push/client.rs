//! Calls to an agent over a shared connection.

use std::time::Duration;

use election_proto::{
    BoolValue, CampaignRequest, CampaignResult, ExtendElectedTermRequest, ResignRequest,
    election_client::ElectionClient,
};
use tokio::time::Instant;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::{
    bench::{loads::uri, processes::Agent},
    options::allowance,
};

/// Opens a connection.
///
/// # Errors
/// Returns an error if the connection fails.
pub(super) async fn connect(agent: &Agent) -> Result<Channel, String> {
    let failed = |error: tonic::transport::Error| format!("cannot connect: {error}");
    let address = uri(agent.grpc())?.to_string();
    let endpoint = Endpoint::from_shared(address).map_err(failed)?;
    endpoint.connect().await.map_err(failed)
}

/// Opens this many connections, spread evenly over the agents.
///
/// # Errors
/// As [`connect`].
pub(super) async fn connect_all(agents: &[Agent], number: u32) -> Result<Vec<Channel>, String> {
    let mut channels = Vec::new();
    for agent in agents.iter().cycle().take(number as usize) {
        channels.push(connect(agent).await?);
    }
    Ok(channels)
}

/// The text of an error instead of a reply.
pub(super) fn failed(what: &str, status: &Status) -> String {
    format!("{what}: {:?}: {}", status.code(), status.message())
}

/// A candidate of one election.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) client: ElectionClient<Channel>,
    pub(super) election: String,
    pub(super) name: String,
}

/// What a leader knows of its leadership.
#[derive(Debug, Clone)]
pub(super) struct Led {
    /// When the reply came.
    pub(super) at: Instant,
    /// Until when it is certain to lead.
    pub(super) until: Instant,
    pub(super) token: u64,
}

impl Candidate {
    pub(super) fn new(channel: &Channel, election: &str, name: String) -> Self {
        Self {
            client: ElectionClient::new(channel.clone()),
            election: election.to_owned(),
            name,
        }
    }

    /// Campaigns, and waits for this long. `None` if another candidate leads.
    ///
    /// # Errors
    /// Returns an error if there is no reply, or it contradicts itself.
    pub(super) async fn campaign(
        &mut self,
        term: Duration,
        wait: Duration,
    ) -> Result<Option<Led>, String> {
        let asked = Instant::now();
        let request = CampaignRequest {
            election: self.election.clone(),
            candidate: self.name.clone(),
            term: millis(term),
            wait: millis(wait),
            ..CampaignRequest::default()
        };
        let reply = self.client.campaign(request).await;
        let at = Instant::now();
        let CampaignResult {
            elected,
            leader,
            token,
            valid_for,
            ..
        } = reply
            .map_err(|status| failed("a campaign", &status))?
            .into_inner();
        if elected != (leader == self.name) {
            return Err(format!(
                "wrong: {} got elected={elected} and the leader {leader:?}",
                self.name
            ));
        }
        let valid_for = Duration::from_millis(u64::try_from(valid_for).unwrap_or(0));
        let until = asked + valid_for;
        Ok(elected.then_some(Led { at, until, token }))
    }

    /// Extends the term. Returns until when the lease is stored at the least, not allowing for clocks that run at
    /// different speeds; `None` if the extension was refused after the candidate had ceased to be certain to lead.
    ///
    /// # Errors
    /// Returns an error if there is no reply, or a refusal while the candidate is certain to lead.
    pub(super) async fn extend(
        &mut self,
        led: &mut Led,
        term: Duration,
    ) -> Result<Option<Instant>, String> {
        let asked = Instant::now();
        let request = ExtendElectedTermRequest {
            election: self.election.clone(),
            leader: self.name.clone(),
            term: millis(term),
            token: led.token,
            ..ExtendElectedTermRequest::default()
        };
        let reply = self.client.extend_elected_term(request).await;
        let reply = reply.map_err(|status| failed("an extension", &status))?;
        if self.holds(led, "an extension", &reply.into_inner())? {
            led.until = led.until.max(asked + term - allowance(term));
            return Ok(Some(asked + term));
        }
        Ok(None)
    }

    /// Resigns. Returns when the request was sent; `None` as [`extend`](Self::extend).
    ///
    /// # Errors
    /// As [`extend`](Self::extend).
    pub(super) async fn resign(&mut self, led: &Led) -> Result<Option<Instant>, String> {
        let asked = Instant::now();
        let request = ResignRequest {
            election: self.election.clone(),
            leader: self.name.clone(),
            token: led.token,
            ..ResignRequest::default()
        };
        let reply = self.client.resign(request).await;
        let reply = reply.map_err(|status| failed("a resignation", &status))?;
        let held = self.holds(led, "a resignation", &reply.into_inner())?;
        Ok(held.then_some(asked))
    }

    fn holds(&self, led: &Led, what: &str, reply: &BoolValue) -> Result<bool, String> {
        match reply.value || Instant::now() >= led.until {
            true => Ok(reply.value),
            false => Err(format!(
                "wrong: {what} of the leader {} of {} is refused: {}",
                self.name, self.election, reply.reason
            )),
        }
    }
}

pub(super) fn millis(time: Duration) -> i32 {
    i32::try_from(time.as_millis()).unwrap_or(i32::MAX)
}
