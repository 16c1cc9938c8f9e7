//! Clients of an agent, one for each protocol.

mod connect;
mod grpc;
mod http1;

use std::sync::Arc;

use crate::options::Load;
pub use connect::Connector;

/// A request of a client.
#[derive(Debug, Clone, Copy)]
pub enum Ask<'a> {
    /// Campaigns for the election.
    Campaign {
        /// The election.
        election: &'a str,
        /// The name of the candidate.
        candidate: &'a str,
    },
    /// Extends the term of the leader.
    Extend {
        /// The election.
        election: &'a str,
        /// The name of the leader.
        leader: &'a str,
    },
    /// Reads the leader.
    Leader {
        /// The election.
        election: &'a str,
    },
    /// Checks the health of the agent.
    Health,
    /// Lists the pods of the deployment.
    Pods,
}

/// The reply, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The candidate leads, or the request was carried out.
    Yes,
    /// Another candidate leads, or the election is vacant.
    No,
}

/// An error instead of a reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}{}{message}", if message.is_empty() { "" } else { ": " })]
pub struct Failed {
    /// The name of the status or of the connection error. Errors are counted by it.
    pub code: String,
    /// The message of the agent or of the system; may be empty.
    pub message: String,
    /// Whether the connection failed, as opposed to the agent.
    pub lost: bool,
}

impl Failed {
    /// The agent replied with a refusal or with something unexpected.
    #[must_use]
    pub fn answered(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            lost: false,
        }
    }

    /// The connection failed.
    #[must_use]
    pub fn lost(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            lost: true,
            ..Self::answered(code, message)
        }
    }
}

/// A protocol of the agent. Its text is its name on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "kebab-case")]
pub enum Protocol {
    /// gRPC over HTTP/2.
    Grpc,
    /// gRPC-Web over HTTP/1.1.
    GrpcWeb,
    /// REST over HTTP/1.1.
    Rest,
}

/// A connection to an agent, which is reopened when the agent has closed it. Clones share the connection and
/// are cheap.
#[derive(Debug, Clone)]
pub enum Caller {
    /// gRPC, with concurrent requests.
    Grpc(Box<grpc::Client>),
    /// HTTP/1.1, one request after another.
    Http1(Arc<http1::Client>),
}

impl Caller {
    /// Connects to the agent.
    ///
    /// # Errors
    /// Returns an error if the connection fails.
    pub async fn connect(
        protocol: Protocol,
        connector: &Connector,
        load: &Load,
    ) -> Result<Self, Failed> {
        Ok(match protocol {
            Protocol::Grpc => Self::Grpc(Box::new(grpc::Client::connect(connector, load).await?)),
            Protocol::GrpcWeb | Protocol::Rest => {
                let web = protocol == Protocol::GrpcWeb;
                Self::Http1(Arc::new(
                    http1::Client::connect(connector, load, web).await?,
                ))
            }
        })
    }

    /// Sends a request, and waits for the reply.
    ///
    /// # Errors
    /// Returns an error if the agent refused, or the connection broke.
    pub async fn call(&mut self, ask: Ask<'_>) -> Result<Answer, Failed> {
        match self {
            Self::Grpc(client) => client.call(ask).await,
            Self::Http1(client) => client.call(ask).await,
        }
    }
}

fn answer(yes: bool) -> Answer {
    if yes { Answer::Yes } else { Answer::No }
}
