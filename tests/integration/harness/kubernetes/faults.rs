//! What goes wrong at an API server.

use super::{requests::Asked, status::Failure};

/// How an API server reports to a watch that it starts too far back.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) enum Gone {
    /// By an error event, as it usually does.
    #[default]
    Event,
    /// By the response's status.
    Status,
}

/// An error status for some of the next requests.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    status: u16,
    times: usize,
    verb: Option<&'static str>,
    resource: Option<&'static str>,
}

impl Fault {
    /// An internal error, for ever.
    pub(crate) fn lasting() -> Self {
        Self::internal(usize::MAX)
    }

    /// Too many requests, as many times; come back in a second.
    pub(crate) fn throttled(times: usize) -> Self {
        Self::new(429, times)
    }

    /// An internal error, as many times.
    pub(crate) fn internal(times: usize) -> Self {
        Self::new(500, times)
    }

    /// Unavailable, as many times.
    pub(crate) fn unavailable(times: usize) -> Self {
        Self::new(503, times)
    }

    fn new(status: u16, times: usize) -> Self {
        Self {
            status,
            times,
            verb: None,
            resource: None,
        }
    }

    /// Only for these requests.
    pub(crate) fn of(mut self, verb: &'static str, resource: &'static str) -> Self {
        (self.verb, self.resource) = (Some(verb), Some(resource));
        self
    }

    fn strikes(&self, asked: &Asked) -> bool {
        self.times > 0
            && self.verb.is_none_or(|verb| verb == asked.verb)
            && self
                .resource
                .is_none_or(|resource| resource == asked.resource)
    }

    fn failure(&self) -> Failure {
        match self.status {
            429 => Failure::new(429, "TooManyRequests", "too many requests"),
            503 => Failure::new(503, "ServiceUnavailable", "apiserver is shutting down"),
            other => {
                let message = "Internal error occurred: etcdserver: request timed out";
                Failure::new(other, "InternalError", message)
            }
        }
    }
}

/// The faults that are due.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    due: Vec<Fault>,
    pub(crate) gone: Gone,
}

impl Faults {
    pub(crate) fn add(&mut self, fault: Fault) {
        self.due.push(fault);
    }

    /// Takes away those that are only for these requests.
    pub(crate) fn mend(&mut self, verb: &str, resource: &str) {
        self.due
            .retain(|fault| (fault.verb, fault.resource) != (Some(verb), Some(resource)));
    }

    /// The answer to a request that a fault strikes.
    pub(crate) fn strike(&mut self, asked: &Asked) -> Option<Failure> {
        let fault = self.due.iter_mut().find(|fault| fault.strikes(asked))?;
        fault.times -= 1;
        Some(fault.failure())
    }
}
