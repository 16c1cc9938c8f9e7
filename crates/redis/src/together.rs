//! Scripts for several elections at once.

use std::sync::Arc;

use election_core::{
    lease::{Extend, ExtendReply, LeaseNode as _, NodeError, Reading},
    types::ElectionId,
};
use futures_util::{
    StreamExt as _,
    future::{BoxFuture, FutureExt as _},
    stream,
};

use tokio::time::{Instant, timeout_at};

use super::{AT_ONCE, Redis, keys::Keys, optional, script::Call, script::SCRIPTS};

/// How many elections a script takes: so many take at most a millisecond of the server's time.
const TOGETHER: usize = 100;

/// The part of the time of a call that its scripts have, so that their replies come before the call is over.
const WITHIN: f64 = 0.75;

/// A request that a script can take several of.
pub(super) trait Together: Sync {
    /// The reply to one.
    type Reply: Clone + Send;

    /// The script's name.
    const SCRIPT: &'static str;

    /// The election.
    fn election(&self) -> &ElectionId;

    /// The call for these requests, whose elections have these keys.
    fn call(of: &[&Self], keys: &Keys, node: &Redis) -> Call;

    /// Parses the reply to this request.
    fn parse(&self, partition: u16, reply: &str, node: &Redis) -> Result<Self::Reply, NodeError>;

    /// Makes the request alone.
    fn alone<'a>(&'a self, node: &'a Redis) -> BoxFuture<'a, Result<Self::Reply, NodeError>>;
}

impl Together for ElectionId {
    type Reply = Reading;

    const SCRIPT: &'static str = "read_many";

    fn election(&self) -> &ElectionId {
        self
    }

    fn call(of: &[&Self], keys: &Keys, _: &Redis) -> Call {
        let leases: Vec<_> = of.iter().map(|election| keys.lease(election)).collect();
        Call::new(&SCRIPTS.read_many, leases)
    }

    fn parse(&self, partition: u16, reply: &str, node: &Redis) -> Result<Reading, NodeError> {
        node.reading(partition, reply)
    }

    fn alone<'a>(&'a self, node: &'a Redis) -> BoxFuture<'a, Result<Reading, NodeError>> {
        node.read(self).boxed()
    }
}

impl Together for Arc<Extend> {
    type Reply = ExtendReply;

    const SCRIPT: &'static str = "extend_many";

    fn election(&self) -> &ElectionId {
        &self.election
    }

    fn call(of: &[&Self], keys: &Keys, node: &Redis) -> Call {
        let mut all = Vec::with_capacity(2 * of.len());
        for extend in of {
            all.push(keys.lease(&extend.election));
            all.push(keys.high_water_mark(&extend.election));
        }
        let call = Call::new(&SCRIPTS.extend_many, all).arg(node.retention_ms());
        of.iter().fold(call, |call, extend| {
            call.arg(extend.leader.as_str())
                .arg(optional(extend.token))
                .arg(extend.term.millis())
        })
    }

    fn parse(&self, partition: u16, reply: &str, node: &Redis) -> Result<ExtendReply, NodeError> {
        node.extended(partition, &self.election, reply)
    }

    fn alone<'a>(&'a self, node: &'a Redis) -> BoxFuture<'a, Result<ExtendReply, NodeError>> {
        node.extend(self).boxed()
    }
}

impl Redis {
    /// Makes all requests, with one script for up to [`TOGETHER`] elections of a partition. Returns their replies in
    /// their order.
    pub(super) async fn together<R: Together>(
        &self,
        requests: &[R],
    ) -> Vec<Result<R::Reply, NodeError>> {
        let partition = |place: &usize| self.keys(requests[*place].election()).0;
        let mut places: Vec<_> = (0..requests.len()).collect();
        places.sort_by_key(partition);
        let calls = places
            .chunk_by(|one, other| partition(one) == partition(other))
            .flat_map(|places| places.chunks(TOGETHER))
            .map(|places| self.one_script(requests, places));
        let calls: Vec<_> = calls.collect();
        let mut made = stream::iter(calls).buffer_unordered(AT_ONCE);
        let mut replies = vec![None; requests.len()];
        while let Some(together) = made.next().await {
            for (place, reply) in together {
                replies[place] = Some(reply);
            }
        }
        let missing = || Err(NodeError::unknown(format!("{}: no reply", self.name)));
        let replies = replies.into_iter();
        replies.map(|it| it.unwrap_or_else(missing)).collect()
    }

    /// Makes requests of one partition with one script.
    async fn one_script<R: Together>(
        &self,
        requests: &[R],
        places: &[usize],
    ) -> Vec<(usize, Result<R::Reply, NodeError>)> {
        let of: Vec<_> = places.iter().map(|place| &requests[*place]).collect();
        let Some(first) = of.first() else {
            return Vec::new();
        };
        let (partition, keys) = self.keys(first.election());
        let call = R::call(&of, keys, self);
        // Parts of a cluster that do not reply must not take the others' replies with them.
        let until = Instant::now() + self.limit.mul_f64(WITHIN);
        let silent = || NodeError::unknown(format!("{}: no answer in time", self.name));
        let run = timeout_at(until, self.connections.run(partition, &call)).await;
        let replies: Result<Vec<Option<String>>, _> = run.unwrap_or_else(|_| Err(silent()));
        let alone = async |place: usize, request: &R| {
            let reply = timeout_at(until, request.alone(self)).await;
            (place, reply.unwrap_or_else(|_| Err(silent())))
        };
        let mut made = Vec::with_capacity(places.len());
        let mut apart = Vec::new();
        match replies {
            Ok(replies) if replies.len() == places.len() => {
                for ((place, request), reply) in places.iter().zip(of).zip(replies) {
                    match reply.as_deref() {
                        // Where the key is moving, the request is sent to its new server.
                        Some("?") | None => apart.push(alone(*place, request)),
                        Some(reply) => made.push((*place, request.parse(partition, reply, self))),
                    }
                }
            }
            // While a slot moves, its servers take no script whose keys are on both.
            Err(NodeError::NotSent(_)) if of.len() > 1 => {
                let each = places.iter().zip(of);
                apart.extend(each.map(|(place, request)| alone(*place, request)));
            }
            replies => {
                let error = match replies {
                    Err(error) => error,
                    Ok(replies) => self.unexpected(R::SCRIPT, replies.len()),
                };
                made.extend(places.iter().map(|place| (*place, Err(error.clone()))));
            }
        }
        made.extend(
            stream::iter(apart)
                .buffer_unordered(AT_ONCE)
                .collect::<Vec<_>>()
                .await,
        );
        made
    }
}
