//! What a node keeps and does: `LeaseNode`, rule by rule.

use crate::setting::{Guard, Rules, Withdrawal, World};

pub(crate) type AgentId = usize;
pub(crate) type Candidate = usize;
/// 0 where there is none.
pub(crate) type Token = u8;

/// Names a vote: no agent proposes a token twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Attempt {
    pub(crate) agent: AgentId,
    pub(crate) token: Token,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Lease {
    pub(crate) leader: Candidate,
    pub(crate) token: Token,
    pub(crate) left: u8,
    /// Whether it has the leader's request id.
    named: bool,
    /// The vote that wrote or renewed it last, while it may be withdrawn.
    pub(crate) attempt: Option<Attempt>,
    /// The same leader's lease that the attempt replaced or renewed, to go back to.
    before: Option<Before>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Before {
    token: Token,
    left: u8,
    named: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Marker {
    of_this_run: bool,
    /// The time until ready-at.
    wait: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Memory {
    pub(crate) lease: Option<Lease>,
    pub(crate) floor: Token,
    pub(crate) marker: Option<Marker>,
}

/// What an agent asks of every node at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Ask {
    pub(crate) candidate: Candidate,
    pub(crate) token: Token,
    pub(crate) from: AgentId,
    /// A lease with the same request id is to be found.
    pub(crate) repeat: bool,
    /// Whether the agent still waits for the reply.
    pub(crate) awaited: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Heal {
    pub(crate) leader: Candidate,
    pub(crate) token: Token,
    /// Only where the leader has a lease.
    pub(crate) raise: bool,
    /// The agent that waits for the reply, if any.
    pub(crate) awaited_by: Option<AgentId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Mark {
    pub(crate) wait: u8,
    /// The agent that waits for the reply, if any.
    pub(crate) awaited_by: Option<AgentId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Reply {
    Granted(Token),
    Held(Candidate),
    Unmarked,
    Guarded,
    Stale,
    /// Extended, or healed.
    Renewed,
    Missing,
    Behind,
    /// Any other answer that is no vote.
    Denied,
}

impl Memory {
    /// With a marker, ready to grant.
    pub(crate) fn ready() -> Self {
        Self {
            marker: Some(Marker {
                of_this_run: true,
                wait: 0,
            }),
            ..Self::default()
        }
    }

    /// Ready, and with a lease that has just been extended.
    pub(crate) fn led(world: World, leader: Candidate, token: Token) -> Self {
        let mut memory = Self::ready();
        memory.hold(world, leader, token, false);
        memory
    }

    pub(crate) fn tick(&mut self) {
        if let Some(lease) = &mut self.lease {
            lease.left -= 1;
            if let Some(before) = &mut lease.before {
                before.left -= 1;
            }
            lease.before = lease.before.filter(|before| before.left > 0);
        }
        self.lease = self.lease.filter(|lease| lease.left > 0);
        if let Some(marker) = &mut self.marker {
            marker.wait = marker.wait.saturating_sub(1);
        }
    }

    /// Another run begins with this memory; `probed` at once, it abstains from now on and not only from
    /// the first grant that it is asked for.
    pub(crate) fn restart(&mut self, world: World, probed: bool) {
        if probed {
            self.marker = Some(Marker {
                of_this_run: true,
                wait: world.term,
            });
        } else if let Some(marker) = &mut self.marker {
            *marker = Marker {
                of_this_run: false,
                wait: 0,
            };
        }
    }

    pub(crate) fn abstains(&self) -> bool {
        self.marker
            .is_none_or(|marker| !marker.of_this_run || marker.wait > 0)
    }

    pub(crate) fn grant(&mut self, rules: Rules, world: World, ask: Ask) -> Reply {
        let own = self.lease.filter(|lease| lease.leader == ask.candidate);
        if let (Some(lease), None) = (self.lease, own) {
            return Reply::Held(lease.leader);
        }
        if rules.guard != Guard::Off {
            let Some(marker) = &mut self.marker else {
                return Reply::Unmarked;
            };
            if !marker.of_this_run {
                *marker = Marker {
                    of_this_run: true,
                    wait: world.term,
                };
            }
            if marker.wait > 0 {
                return Reply::Guarded;
            }
        }
        let lease = Lease {
            leader: ask.candidate,
            token: ask.token,
            left: world.term,
            named: world.request_ids,
            attempt: Some(Attempt {
                agent: ask.from,
                token: ask.token,
            }),
            before: own.map(
                |Lease {
                     token, left, named, ..
                 }| Before { token, left, named },
            ),
        };
        if let Some(own) = own.filter(|own| ask.repeat && own.named) {
            self.lease = Some(Lease {
                token: own.token,
                ..lease
            });
            return Reply::Granted(own.token);
        }
        if rules.floor && ask.token <= self.floor {
            return Reply::Stale;
        }
        self.lease = Some(lease);
        self.floor = self.floor.max(ask.token);
        Reply::Granted(ask.token)
    }

    /// Writes or renews a lease that no vote can withdraw.
    fn hold(&mut self, world: World, leader: Candidate, token: Token, named: bool) {
        self.lease = Some(Lease {
            leader,
            token,
            left: world.term,
            named,
            attempt: None,
            before: None,
        });
        self.floor = self.floor.max(token);
    }

    pub(crate) fn extend(&mut self, world: World, ask: Ask) -> Reply {
        match self.lease {
            None => Reply::Missing,
            Some(lease) if lease.leader != ask.candidate => Reply::Denied,
            Some(lease) if ask.token > lease.token => Reply::Behind,
            Some(lease) if ask.token > 0 && ask.token < lease.token => Reply::Denied,
            Some(lease) => {
                self.hold(world, lease.leader, lease.token, lease.named);
                Reply::Renewed
            }
        }
    }

    pub(crate) fn heal(&mut self, world: World, heal: Heal) -> Reply {
        let allowed = match self.lease {
            None => !heal.raise,
            Some(lease) => lease.leader == heal.leader && lease.token <= heal.token,
        };
        if !allowed || heal.token < self.floor {
            return Reply::Denied;
        }
        let named = self
            .lease
            .is_some_and(|lease| lease.named && lease.token == heal.token);
        self.hold(world, heal.leader, heal.token, named);
        Reply::Renewed
    }

    pub(crate) fn withdraw(&mut self, rules: Rules, candidate: Candidate, attempt: Attempt) {
        let meant = self.lease.filter(|lease| match rules.withdrawal {
            Withdrawal::OfToken => (lease.leader, lease.token) == (candidate, attempt.token),
            _ => lease.attempt == Some(attempt),
        });
        if let Some(lease) = meant {
            let before = lease
                .before
                .filter(|_| rules.withdrawal != Withdrawal::OfToken);
            self.lease = before.map(|Before { token, left, named }| Lease {
                token,
                left,
                named,
                attempt: None,
                before: None,
                ..lease
            });
        }
        self.floor = self.floor.max(attempt.token);
    }

    /// What a probe tells: whether this run has abstained, or has been ready, since a vote ago.
    pub(crate) fn has_run_for_a_vote(&self, world: World) -> bool {
        self.marker
            .is_some_and(|marker| marker.of_this_run && marker.wait <= world.term - world.vote)
    }

    pub(crate) fn mark(&mut self, mark: Mark) -> Reply {
        self.marker.get_or_insert(Marker {
            of_this_run: true,
            wait: mark.wait,
        });
        Reply::Denied
    }
}
