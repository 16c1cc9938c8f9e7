//! Extensions of several terms with one call to each node.
//!
//! Each extension is a machine of its own, as if it were alone, and only its first vote is shared. After that, each
//! machine makes its own calls, to repair nodes.

use std::sync::Arc;

use futures_util::{
    FutureExt as _, StreamExt as _,
    future::{ready, select_all},
    stream::FuturesUnordered,
};
use tokio::time::Instant;

use super::{
    Operation, Quorum, decided,
    drive::{Drive, unprobed},
    round::Round,
    span::About,
};
use crate::lease::{
    Extend, ExtendReply, LeaseNode, NodeError,
    policy::{
        Call, Event, Reply,
        extension::{EXTEND, Extended, Extending},
    },
};

type Replies = Vec<Result<ExtendReply, NodeError>>;

/// Extensions in progress.
pub(super) struct Batch {
    /// In the order of the extensions, and so of each node's replies.
    drives: Vec<Drive<Extending>>,
    round: Round<Replies>,
}

impl Batch {
    /// Asks all nodes.
    pub(super) fn begin(quorum: &Quorum, extends: Vec<Arc<Extend>>, deadline: Instant) -> Self {
        let (inner, now) = (&*quorum.inner, Instant::now());
        let drives = extends.iter().map(|extend| {
            let machine = Extending::new(Arc::clone(extend), now, deadline, inner);
            Drive::asked(quorum, machine, deadline)
        });
        let drives = drives.collect();
        let extends: Arc<[_]> = extends.into();
        let put = |number, node: Arc<dyn LeaseNode>| {
            let first = extends.first().map(|it| Call::Extend(Arc::clone(it)));
            let instead = first.and_then(|call| unprobed(inner, &call, number));
            if let Some(instead) = instead {
                let each = instead.and_then(|reply| match reply {
                    Reply::Extend(reply) => Ok(reply),
                    other => Err(other.unexpected()),
                });
                return ready(Ok(vec![each; extends.len()])).boxed();
            }
            let extends = Arc::clone(&extends);
            async move { Ok(node.extend_many(&extends).await) }.boxed()
        };
        let round = quorum.ask(Operation::Extend, About::default(), deadline, put);
        Self { drives, round }
    }

    /// Returns the answers, in the order of the extensions.
    pub(super) async fn answers(&mut self) -> Vec<Extended> {
        while self.round.is_open() && self.drives.iter().any(|drive| !drive.has_answered()) {
            let own = next_of(&mut self.drives);
            tokio::select! {
                biased;
                Some((_, node, reply)) = self.round.next() => self.feed(node, reply),
                (number, event) = own => self.drives[number].feed(event),
            }
        }
        let undecided = self.drives.iter_mut().filter(|drive| !drive.has_answered());
        let mut undecided: FuturesUnordered<_> = undecided.map(|drive| drive.decide()).collect();
        while undecided.next().await.is_some() {}
        drop(undecided);
        let answers = self.drives.iter_mut().map(|drive| drive.take_answer());
        answers.map(decided).collect()
    }

    /// Processes the replies that have arrived already, without waiting. Returns whether nothing is left to do then.
    pub(super) async fn is_done(&mut self) -> bool {
        while let Some((_, node, reply)) = self.round.arrived().await {
            self.feed(node, reply);
        }
        !self.round.is_open() && self.drives.iter().all(Drive::is_finished)
    }

    /// Runs until nothing is left to do.
    pub(super) async fn finish(mut self) {
        while let Some((_, node, reply)) = self.round.next().await {
            self.feed(node, reply);
        }
        let rest = self.drives.iter_mut().map(Drive::finish);
        let mut rest: FuturesUnordered<_> = rest.collect();
        while rest.next().await.is_some() {}
    }

    /// Gives each machine its reply from the node.
    fn feed(&mut self, node: usize, replies: Result<Replies, NodeError>) {
        let mut replies = replies.map(Vec::into_iter);
        for drive in &mut self.drives {
            let reply = match &mut replies {
                Ok(replies) => replies.next().unwrap_or_else(|| {
                    Err(NodeError::unknown(
                        "a reply to some of the extensions is missing",
                    ))
                }),
                Err(error) => Err(error.clone()),
            };
            drive.feed(Event::Replied {
                tag: EXTEND,
                node,
                reply: reply.map(Reply::Extend),
            });
        }
    }
}

/// The next event of a machine's own calls before the machine answers: rare, as when a node has no incarnation record.
async fn next_of(drives: &mut [Drive<Extending>]) -> (usize, Event) {
    let waiting = drives
        .iter_mut()
        .enumerate()
        .filter(|(_, drive)| !drive.has_answered() && drive.is_waiting());
    let waiting: Vec<_> = waiting
        .map(|(number, drive)| async move { (number, drive.next().await) }.boxed())
        .collect();
    match waiting.is_empty() {
        true => std::future::pending().await,
        false => select_all(waiting).await.0,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::{
            Error, Options,
            tests::{Faulty, SETTINGS, claim, grant_of},
        },
        *,
    };
    use crate::{
        lease::{
            Denial, Grant, LeaseNode, Reading, embedded::Embedded, guard::RestartGuard,
            quorum::Claim,
        },
        types::{ElectionId, Token},
    };

    const LIMIT: Duration = Duration::from_secs(1);

    fn token(number: u64) -> Token {
        Token::new(number).expect("in range")
    }

    fn extend(election: &str, number: u64) -> Arc<Extend> {
        let claim = claim();
        Arc::new(Extend {
            election: ElectionId::new("", election).expect("valid"),
            leader: claim.candidate,
            token: Some(token(number)),
            term: claim.term,
        })
    }

    /// Grants the election on a node with this token, to the usual candidate or another one.
    async fn held(node: &dyn LeaseNode, election: &str, number: u64, by: &str) {
        let claim = Claim {
            election: ElectionId::new("", election).expect("valid"),
            candidate: crate::types::Candidate::new("candidate", by).expect("valid"),
            ..claim()
        };
        let grant = Grant {
            token: token(number),
            ..grant_of(&claim)
        };
        node.grant(&grant).await.expect("granted");
    }

    async fn has(node: &dyn LeaseNode, election: &str) -> Option<u64> {
        let election = ElectionId::new("", election).expect("valid");
        match node.read(&election).await {
            Ok(Reading::Held(lease)) => Some(lease.token.get()),
            _ => None,
        }
    }

    /// Extends elections of all sorts, alone and together, on four nodes and a fifth one.
    async fn extended(fifth: Arc<dyn LeaseNode>) {
        for together in [false, true] {
            let nodes: Vec<_> = (0..4)
                .map(|_| Arc::new(Embedded::in_memory(SETTINGS)))
                .collect();
            for (number, node) in nodes.iter().enumerate() {
                held(&**node, "held", 7, "a").await;
                // All but one have an older token, and have to be repaired before the answer.
                let older = if number == 0 { 7 } else { 5 };
                held(&**node, "behind", older, "a").await;
                held(&**node, "stale", 9, "a").await;
                held(&**node, "other's", 7, "b").await;
            }
            let mut all: Vec<Arc<dyn LeaseNode>> = Vec::new();
            all.extend(nodes.iter().map(|node| Arc::clone(node) as _));
            all.push(Arc::clone(&fifth));
            let quorum = Quorum::new(all, Options::new(LIMIT, RestartGuard::Off, 60 * LIMIT));
            quorum.status().await;
            let asked = ["held", "nobody's", "behind", "stale", "other's"];
            let asked: Vec<_> = asked.iter().map(|name| extend(name, 7)).collect();
            let began = Instant::now();
            let deadline = began + 5 * LIMIT;
            let answers = match together {
                true => quorum.extend_many(asked, deadline).await,
                false => {
                    let mut answers = Vec::new();
                    for extend in asked {
                        answers.push(quorum.extend((*extend).clone(), deadline).await);
                    }
                    answers
                }
            };
            assert_eq!(
                began.elapsed(),
                Duration::ZERO,
                "the fifth node is not awaited"
            );
            let lasts = claim().term.duration() - claim().term.drift();
            let denied = |denial| Err(Error::Denied(denial));
            let expected = [
                Ok(lasts),
                denied(Denial::NoTerm),
                Ok(lasts),
                denied(Denial::StaleToken),
                denied(Denial::HeldByOther),
            ];
            assert_eq!(answers, expected, "together: {together}");
            quorum.drain().await;
            let mut repaired = 0;
            for node in &nodes {
                repaired += usize::from(has(&**node, "behind").await == Some(7));
            }
            assert!(repaired >= 3, "as many as the answer needs: {repaired}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn extensions_together_are_answered_as_each_is_alone() {
        extended(Arc::new(Faulty::that_does_not_extend())).await;
    }

    /// A machine may be done before a node replies to the others.
    #[tokio::test(start_paused = true)]
    async fn each_machine_gets_the_reply_to_its_own_extension() {
        let third = Arc::new(Faulty::that_does_not_extend());
        let mut nodes: Vec<Arc<dyn LeaseNode>> = vec![third.clone()];
        nodes.extend((0..2).map(|_| Arc::new(Embedded::in_memory(SETTINGS)) as _));
        for node in &nodes {
            held(&**node, "one", 7, "a").await;
        }
        for node in &nodes[1..] {
            held(&**node, "other", 7, "a").await;
        }
        let quorum = Quorum::new(nodes, Options::new(LIMIT, RestartGuard::Off, 60 * LIMIT));
        quorum.status().await;
        let deadline = Instant::now() + 5 * LIMIT;
        let asked = vec![extend("one", 7), extend("other", 7)];
        let mut batch = Batch::begin(&quorum, asked, deadline);
        assert!(batch.answers().await.iter().all(Result::is_ok));
        batch.drives[0].feed(Event::Replied {
            tag: EXTEND,
            node: 0,
            reply: Ok(Reply::Extend(ExtendReply::Renewed(token(7)))),
        });
        assert!(!batch.is_done().await);
        third.extends.add_permits(1);
        batch.finish().await;
        assert_eq!(has(&*third, "other").await, Some(7), "repaired");
    }

    /// The fifth node replies, and lacks what the others have: it is repaired in the background.
    #[tokio::test(start_paused = true)]
    async fn nodes_that_lack_a_term_are_repaired() {
        let fifth = Arc::new(Embedded::in_memory(SETTINGS));
        extended(fifth.clone()).await;
        assert_eq!(has(&*fifth, "held").await, Some(7));
        assert_eq!(has(&*fifth, "nobody's").await, None);
    }
}
