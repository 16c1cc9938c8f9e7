//! Clients of an agent, one for each protocol.

mod connect;
mod grpc;
mod http1;

use std::sync::Arc;

use crate::options::Load;
pub use connect::Connector;

/// What a client asks.
#[derive(Debug, Clone, Copy)]
pub enum Ask<'a> {
    /// To lead the election.
    Campaign {
        /// The election.
        election: &'a str,
        /// Who campaigns.
        candidate: &'a str,
    },
    /// To lead on.
    Extend {
        /// The election.
        election: &'a str,
        /// Who leads.
        leader: &'a str,
    },
    /// Who leads.
    Leader {
        /// The election.
        election: &'a str,
    },
    /// Whether the agent is well.
    Health,
    /// For pods.
    Pods,
}

/// What the agent answers, as far as it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The candidate leads, or what was asked for was done.
    Yes,
    /// Another leads, or nobody.
    No,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}{}{message}", if message.is_empty() { "" } else { ": " })]
pub struct Failed {
    /// The status's name, or what became of the connection: what errors are counted by.
    pub code: String,
    /// What the agent, or the system, says of it; may be empty.
    pub message: String,
    /// Whether the connection, rather than the agent, is at fault.
    pub lost: bool,
}

impl Failed {
    /// The agent's answer is a refusal, or not what it should be.
    #[must_use]
    pub fn answered(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            lost: false,
        }
    }

    /// There is no connection, or no longer one.
    #[must_use]
    pub fn lost(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            lost: true,
            ..Self::answered(code, message)
        }
    }
}

/// How to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC over HTTP/2.
    Grpc,
    /// gRPC-Web over HTTP/1.1.
    GrpcWeb,
    /// REST over HTTP/1.1.
    Rest,
}

impl Protocol {
    /// The protocol's name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::GrpcWeb => "grpc-web",
            Self::Rest => "rest",
        }
    }
}

/// A connection to an agent, which is made anew when the agent has closed it. Cheap to clone: clones share the
/// connection.
#[derive(Debug, Clone)]
pub enum Caller {
    /// gRPC, many requests at once.
    Grpc(Box<grpc::Client>),
    /// HTTP/1.1, one request after another.
    Http1(Arc<http1::Client>),
}

impl Caller {
    /// Connects.
    ///
    /// # Errors
    /// There is no connection.
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

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The agent refused, or the connection broke.
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
