//! The link between an agent and a node, with the faults that a test sets.

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::*;
use crate::{
    lease::{
        Bounds, ExtendReply, Grant, GrantReply, Incarnation, Kinds, NodeError, Page, Probe,
        ProbeRequest, Reading, Repair, ResignReply, Unrecorded,
    },
    types::Kind,
};

/// A fault of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing reaches the node.
    Down,
    /// Listening fails.
    Deaf,
    /// Hints are lost without an error.
    Mute,
    /// Grants fail; reads do not.
    NoGrants,
    /// The replies to grants are late until the fault ends.
    LateGrants,
    /// The replies to reads are late until the fault ends.
    LateReads,
    /// The replies to listings are late until the fault ends.
    LateLists,
}

#[derive(Debug)]
pub(super) struct Link {
    node: Arc<Embedded>,
    faults: watch::Sender<Vec<Fault>>,
    /// How many grants the node has executed.
    grants: Mutex<usize>,
}

impl Link {
    pub(super) fn to(node: Arc<Embedded>) -> Self {
        Self {
            node,
            faults: watch::Sender::default(),
            grants: Mutex::default(),
        }
    }

    pub(super) fn fails(&self, fault: Fault) {
        self.faults.send_modify(|faults| faults.push(fault));
    }

    pub(super) fn works(&self) {
        self.faults.send_modify(Vec::clear);
    }

    pub(super) fn grants(&self) -> usize {
        *self.grants.lock()
    }

    fn has(&self, fault: Fault) -> bool {
        self.faults.borrow().contains(&fault)
    }

    /// Waits until the fault begins, or ends.
    async fn until(&self, fault: Fault, there: bool) {
        let mut faults = self.faults.subscribe();
        let changed = faults.wait_for(|faults| faults.contains(&fault) == there);
        changed.await.expect("the sender is here");
    }

    fn reached(&self) -> Result<&Embedded, NodeError> {
        match self.has(Fault::Down) {
            true => Err(NodeError::unknown("the link is down")),
            false => Ok(&self.node),
        }
    }
}

/// Forwards hints unless the link loses them.
struct Through<'a> {
    link: &'a Link,
    listener: &'a dyn Listener,
}

impl Listener for Through<'_> {
    fn connected(&self, listeners: usize) {
        self.listener.connected(listeners);
    }

    fn hinted(&self, hint: Hint) {
        if !self.link.has(Fault::Mute) {
            self.listener.hinted(hint);
        }
    }
}

#[async_trait]
impl LeaseNode for Link {
    fn name(&self) -> &str {
        self.node.name()
    }

    async fn grant(&self, grant: &Grant) -> Result<GrantReply, NodeError> {
        if self.has(Fault::NoGrants) {
            return Err(NodeError::NotSent("no grants".to_owned()));
        }
        let reply = self.reached()?.grant(grant).await;
        *self.grants.lock() += 1;
        self.until(Fault::LateGrants, false).await;
        reply
    }

    async fn extend(&self, extend: &Extend) -> Result<ExtendReply, NodeError> {
        self.reached()?.extend(extend).await
    }

    async fn repair(&self, repair: &Repair) -> Result<bool, NodeError> {
        self.reached()?.repair(repair).await
    }

    async fn resign(&self, resign: &Resign) -> Result<ResignReply, NodeError> {
        self.reached()?.resign(resign).await
    }

    async fn roll_back(&self, grant: &Grant) -> Result<(), NodeError> {
        self.reached()?.roll_back(grant).await
    }

    async fn read(&self, election: &ElectionId) -> Result<Reading, NodeError> {
        let reading = self.reached()?.read(election).await;
        self.until(Fault::LateReads, false).await;
        reading
    }

    async fn list(
        &self,
        kind: Option<&Kind>,
        after: Option<&ElectionId>,
        limit: usize,
    ) -> Result<Page, NodeError> {
        let page = self.reached()?.list(kind, after, limit).await;
        self.until(Fault::LateLists, false).await;
        page
    }

    async fn kinds(&self, after: Option<&Kind>, limit: usize) -> Result<Kinds, NodeError> {
        self.reached()?.kinds(after, limit).await
    }

    async fn mark(
        &self,
        unrecorded: &[Unrecorded],
        wait: Duration,
        bounds: Bounds,
    ) -> Result<usize, NodeError> {
        self.reached()?.mark(unrecorded, wait, bounds).await
    }

    async fn probe(&self, request: ProbeRequest) -> Result<Probe, NodeError> {
        self.reached()?.probe(request).await
    }

    async fn listen(&self, listener: &dyn Listener) -> NodeError {
        let listener = Through {
            link: self,
            listener,
        };
        tokio::select! {
            biased;
            () = self.until(Fault::Deaf, true) => NodeError::unknown("the link is deaf"),
            () = self.until(Fault::Down, true) => NodeError::unknown("the link is down"),
            error = self.node.listen(&listener) => error,
        }
    }

    fn incarnation(&self, election: &ElectionId) -> Option<Incarnation> {
        self.node.incarnation(election)
    }
}
