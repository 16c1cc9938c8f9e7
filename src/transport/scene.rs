//! An agent without its transports, for tests of streams.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use election_core::{
    board::{self, Board, NoopObserver},
    election::{Campaign, Elections},
    lease::{
        self,
        embedded::Embedded,
        guard::RestartGuard,
        policy::{Electorate, Nodes},
        quorum::{Options, Quorum},
    },
    types::{Candidate, ElectionId, RequestId, Term, Value},
};
use http::Extensions;
use tokio::{runtime::Handle, sync::watch, time::Instant};

use crate::{
    auth::{
        Caller, Identity, Mode, Recheck,
        authenticator::Authenticator,
        gate::Gate,
        policy::Policies,
        tokens::{File, New, Tokens},
    },
    kube::Lookup,
    peer::Peer,
    reload::Source as _,
};

const SECOND: Duration = Duration::from_secs(1);

/// An agent's gate, and what its operator may change while it runs.
pub(super) struct Scene {
    pub(super) gate: Gate,
    pub(super) elections: Elections,
    pub(super) policies: watch::Sender<Arc<Policies>>,
    pub(super) tokens: watch::Sender<Arc<Tokens>>,
    pub(super) extensions: Extensions,
    pub(super) peer: Peer,
}

pub(super) fn listed(lines: &[String]) -> Arc<Tokens> {
    let file = lines.concat().into_bytes();
    Arc::new(File("tokens".into()).make(&file).expect("valid"))
}

pub(super) fn permitting(policy: &str) -> Arc<Policies> {
    Arc::new(Policies::new([("test.cedar", policy)]).expect("valid"))
}

pub(super) const EVERYTHING: &str = "permit (principal, action, resource);";

impl Scene {
    pub(super) fn new() -> Self {
        let settings = lease::Settings {
            retention: 600 * SECOND,
            guard: None,
            vote: SECOND,
        };
        let node = Arc::new(Embedded::in_memory(settings));
        let options = Options::new(SECOND, RestartGuard::Off, Duration::ZERO);
        let quorum = Quorum::of(vec![node], Electorate::of(Nodes::one(0)), options);
        let elections = Elections::new(quorum, 600 * SECOND);
        let settings = board::Settings {
            provisional_term: 3 * SECOND,
            max_wait: 60 * SECOND,
        };
        let board = Board::new(
            elections.clone(),
            settings,
            Handle::current(),
            Arc::new(NoopObserver),
        );
        let (policies, permitted) = watch::channel(permitting(EVERYTHING));
        let new = New::make("worker", &[]).expect("a token");
        let (tokens, known) = watch::channel(listed(&[new.line]));
        let authenticator = Authenticator {
            tokens: Some(known),
            ..Authenticator::default()
        };
        let peer = Peer::new(Ipv4Addr::LOCALHOST.into(), None);
        let identity = Identity::new(Mode::Token, "worker", Vec::new()).expect("a name");
        let mut extensions = Extensions::new();
        extensions.insert(peer.clone());
        extensions.insert(Caller::Known(identity));
        extensions.insert(Recheck::new(authenticator, Some(new.token), None));
        let lookup = Lookup::off("not asked for");
        Self {
            gate: Gate::new(board, lookup, Some(permitted), None, false),
            elections,
            policies,
            tokens,
            extensions,
            peer,
        }
    }

    pub(super) async fn elect(&self, kind: &str, name: &str) {
        let campaign = Campaign {
            election: ElectionId::new(kind, name).expect("valid"),
            candidate: Candidate::new("candidate", "a").expect("valid"),
            term: Term::from_millis(600_000, 600 * SECOND).expect("valid"),
            value: Value::default(),
            request_id: RequestId::new("").expect("valid"),
            wait: None,
        };
        let deadline = Instant::now() + SECOND;
        self.elections
            .campaign(&campaign, deadline)
            .await
            .expect("an outcome");
    }
}
