//! What an agent does: `Quorum`, with its tallies and its markers.

use crate::{
    election::Election,
    node::{AgentId, Ask, Candidate, Heal, Lease, Mark, Reply, Token},
    setting::{Guard, Start},
    state::{AGENTS, Kind, Node, Operation, QUORUM, Request, Stage, State},
};

impl Election {
    pub(crate) fn campaign(
        self,
        state: &mut State,
        agent: AgentId,
        candidate: Candidate,
        again: bool,
        repeat: bool,
    ) {
        let token = state.clock.max(state.agents[agent].last + 1);
        state.agents[agent].last = token;
        state.newest = state.newest.max(token);
        let above = state.won.iter().map(|(_, token)| *token).max().unwrap_or(0);
        self.begin(
            state,
            agent,
            Operation {
                kind: Kind::Campaign,
                candidate,
                token,
                age: 0,
                above,
                repeat,
                retried: again,
                stage: Stage::Open,
            },
        );
    }

    pub(crate) fn extend(self, state: &mut State, agent: AgentId, candidate: Candidate) {
        let token = if self.world.tokens_given {
            state.leads[candidate].token
        } else {
            0
        };
        self.begin(
            state,
            agent,
            Operation {
                kind: Kind::Extension,
                candidate,
                token,
                age: 0,
                above: 0,
                repeat: false,
                retried: false,
                stage: Stage::Open,
            },
        );
    }

    /// Asks all nodes at once.
    fn begin(self, state: &mut State, from: AgentId, operation: Operation) {
        self.end(state, from);
        let Operation {
            kind,
            candidate,
            token,
            repeat,
            ..
        } = operation;
        state.agents[from].operation = Some(operation);
        let ask = Ask {
            candidate,
            token,
            from,
            repeat,
            awaited: true,
        };
        for node in &mut state.nodes {
            node.send(match kind {
                Kind::Campaign => Request::Grant(ask),
                Kind::Extension => Request::Extend(ask),
            });
        }
    }

    /// Executes a request on a node; if the sender hears the reply, it acts on it.
    pub(crate) fn execute(self, state: &mut State, at: usize, request: Request, lost: bool) {
        let node = &mut state.nodes[at];
        let reply = match request {
            Request::Grant(ask) => node.memory.grant(self.rules, self.world, ask),
            Request::Extend(ask) => node.memory.extend(self.world, ask),
            Request::Heal(heal) => node.memory.heal(self.world, heal),
            Request::Withdraw(candidate, attempt) => {
                return node.memory.withdraw(self.rules, candidate, attempt);
            }
            Request::Mark(mark) => node.memory.mark(mark),
        };
        let Some(agent) = request.awaited_by().filter(|_| !lost) else {
            return;
        };
        if node.heard[agent].is_some() {
            return;
        }
        let me = &mut state.agents[agent];
        me.seen_marker |= matches!(reply, Reply::Granted(_) | Reply::Guarded | Reply::Stale);
        let seen = match reply {
            Reply::Stale => node.memory.floor,
            Reply::Held(_) | Reply::Renewed => node.memory.lease.map_or(0, |lease| lease.token),
            _ => 0,
        };
        me.last = me.last.max(seen);
        node.heard[agent] = Some(reply);
        let Some(operation) = me.operation else {
            return;
        };
        match (operation.kind, operation.stage, reply) {
            _ if operation.is_open() => self.count(state, agent, operation),
            (Kind::Campaign, Stage::Failed, Reply::Granted(_)) => {
                node.withdraw(self.rules, operation, agent);
            }
            (Kind::Campaign, Stage::Done(won), Reply::Granted(token)) if won != token => {
                node.withdraw(self.rules, operation, agent);
            }
            _ => {}
        }
    }

    fn count(self, state: &mut State, agent: AgentId, operation: Operation) {
        match operation.kind {
            Kind::Campaign => match operation.stage {
                Stage::Marking { .. } if state.outstanding(agent) > 0 => {}
                Stage::Marking { new } => self.count_marks(state, agent, operation, new),
                _ => self.count_votes(state, agent, operation),
            },
            Kind::Extension => self.count_extensions(state, agent, operation),
        }
    }

    /// `tally::Grants`, and what follows from its verdict.
    fn count_votes(self, state: &mut State, agent: AgentId, operation: Operation) {
        let heard: Vec<_> = state.heard(agent).collect();
        let outstanding = state.outstanding(agent);
        let mut best = 0;
        for reply in &heard {
            let votes = heard.iter().filter(|other| *other == reply).count();
            match reply {
                Reply::Granted(token) if votes >= QUORUM => {
                    return self.win(state, agent, operation, *token);
                }
                Reply::Held(_) if votes >= QUORUM => return self.fail(state, agent),
                Reply::Granted(_) | Reply::Held(_) => best = best.max(votes),
                _ => {}
            }
        }
        let all_needed = outstanding > 0 && heard.contains(&Reply::Unmarked);
        if best + outstanding >= QUORUM || all_needed {
            return;
        }
        let has = |reply| heard.contains(&reply);
        let repeated =
            |reply: &Reply| matches!(reply, Reply::Granted(it) if *it != operation.token);
        let mixed = has(Reply::Granted(operation.token)) && heard.iter().any(repeated);
        let mended = has(Reply::Unmarked) && self.rules.marking || has(Reply::Stale);
        let mended = mended && self.world.start == Start::New;
        if !self.may_retry(operation) || !(mixed || mended) {
            return self.fail(state, agent);
        }
        let new = self.are_new(state, agent);
        let unmarked = state
            .nodes
            .clone()
            .map(|node| node.heard[agent] == Some(Reply::Unmarked));
        for node in &mut state.nodes {
            if matches!(node.heard[agent], Some(Reply::Granted(_))) {
                node.withdraw(self.rules, operation, agent);
            }
        }
        state.set_stage(agent, Stage::Failed);
        self.end(state, agent);
        let operation = Operation {
            stage: Stage::Marking { new },
            repeat: operation.repeat && !mixed,
            ..operation
        };
        state.agents[agent].operation = Some(operation);
        for (node, unmarked) in state.nodes.iter_mut().zip(unmarked) {
            node.heard[agent] = Some(Reply::Denied);
            if unmarked && self.rules.marking {
                node.heard[agent] = None;
                node.send(self.mark(new, Some(agent)));
            }
        }
        self.count(state, agent, operation);
    }

    fn mark(self, new: bool, awaited_by: Option<AgentId>) -> Request {
        Request::Mark(Mark {
            wait: if new { 0 } else { self.world.term },
            awaited_by,
        })
    }

    /// Repeats a vote when what had no marker is marked.
    pub(crate) fn count_marks(
        self,
        state: &mut State,
        agent: AgentId,
        operation: Operation,
        new: bool,
    ) {
        let unmarked = state.nodes.iter().any(|node| node.heard[agent].is_none());
        state.stop_waiting(agent);
        state.agents[agent].operation = None;
        if !(new && unmarked && self.rules.all_are_marked) {
            self.campaign(state, agent, operation.candidate, true, operation.repeat);
        }
    }

    /// `Markers::wait`: whether the nodes are taken for new.
    fn are_new(self, state: &State, agent: AgentId) -> bool {
        let each = state
            .nodes
            .iter()
            .all(|node| node.heard[agent] == Some(Reply::Unmarked));
        let at_once = state.nodes.iter().all(|node| node.memory.marker.is_none());
        let all = each && (at_once || !self.rules.new_at_one_instant);
        all && !state.agents[agent].seen_marker && self.rules.guard == Guard::On
    }

    /// Other retries are as any campaign.
    pub(crate) fn may_retry(self, operation: Operation) -> bool {
        let wanted = self.world.start == Start::New || self.world.request_ids;
        wanted && operation.kind == Kind::Campaign && operation.is_open() && !operation.retried
    }

    fn win(self, state: &mut State, agent: AgentId, operation: Operation, token: Token) {
        let won = (operation.candidate, token);
        if !state.won.contains(&won) {
            state.fell |= token <= operation.above;
            state.won.push(won);
        }
        state.lead(self.world.term, operation, token);
        state.set_stage(agent, Stage::Done(token));
        for node in &mut state.nodes {
            // Of a repeated request only the first try's token counts.
            let fresh = node.heard[agent] == Some(Reply::Granted(operation.token));
            if fresh && operation.token != token {
                node.withdraw(self.rules, operation, agent);
            }
        }
    }

    /// A vote is not won: takes back what was granted, and marks what has no marker.
    fn fail(self, state: &mut State, agent: AgentId) {
        let Some(operation) = state.agents[agent].operation else {
            return;
        };
        let new = self.are_new(state, agent);
        for node in &mut state.nodes {
            match node.heard[agent] {
                Some(Reply::Granted(_)) => node.withdraw(self.rules, operation, agent),
                Some(Reply::Unmarked) if self.rules.marking => node.send(self.mark(new, None)),
                _ => {}
            }
            node.heard[agent] = node.heard[agent].map(|_| Reply::Denied);
        }
        state.set_stage(agent, Stage::Failed);
    }

    /// `tally::Extensions`, and what follows from its verdict.
    fn count_extensions(self, state: &mut State, agent: AgentId, operation: Operation) {
        let votes = |reply| state.heard(agent).filter(|it| *it == reply).count();
        let (renewed, behind) = (votes(Reply::Renewed), votes(Reply::Behind));
        let outstanding = state.outstanding(agent);
        if renewed >= QUORUM {
            state.lead(self.world.term, operation, operation.token);
            state.set_stage(agent, Stage::Done(operation.token));
            return;
        }
        if renewed + outstanding >= QUORUM {
            return;
        }
        let raise = operation.stage == Stage::Open && renewed > 0 && renewed + behind >= QUORUM;
        match state.renewed_lease(agent, operation).filter(|_| raise) {
            Some(lease) => self.raise(state, agent, lease),
            None => self.end(state, agent),
        }
    }

    /// Writes the token that a node has renewed to those that have an older one, to be a quorum.
    fn raise(self, state: &mut State, agent: AgentId, lease: Lease) {
        let heard = state.nodes.clone().map(|node| node.heard[agent]);
        state.stop_waiting(agent);
        state.set_stage(agent, Stage::Raising);
        for (node, heard) in state.nodes.iter_mut().zip(heard) {
            let lacks = match heard {
                Some(Reply::Behind) => true,
                Some(Reply::Missing) => !self.rules.raises_only && self.may_heal(node),
                _ => false,
            };
            node.heard[agent] = heard.filter(|_| !lacks);
            if lacks {
                node.send(Request::Heal(Heal {
                    leader: lease.leader,
                    token: lease.token,
                    raise: self.rules.raises_only,
                    awaited_by: Some(agent),
                }));
            }
        }
    }

    /// Ends an operation: all that may be heard has been, or its time is over, or its caller has gone.
    pub(crate) fn end(self, state: &mut State, agent: AgentId) {
        let Some(operation) = state.agents[agent].operation else {
            return;
        };
        match (operation.kind, operation.stage) {
            (Kind::Campaign, Stage::Done(token)) if token == operation.token => {}
            (Kind::Campaign, Stage::Marking { .. }) => {}
            (Kind::Campaign, stage) => {
                if stage == Stage::Open {
                    self.fail(state, agent);
                }
                for node in &mut state.nodes {
                    if node.heard[agent].is_none() {
                        node.withdraw(self.rules, operation, agent);
                    }
                }
            }
            (Kind::Extension, Stage::Done(_)) => self.heal(state, agent, operation),
            (Kind::Extension, _) => {}
        }
        state.stop_waiting(agent);
        state.agents[agent].operation = None;
    }

    /// Writes the lease to the nodes that lack it, from one that has renewed it.
    fn heal(self, state: &mut State, agent: AgentId, operation: Operation) {
        if self.rules.heals_in_time && operation.age >= self.world.term {
            return;
        }
        let Some(lease) = state.renewed_lease(agent, operation) else {
            return;
        };
        for node in &mut state.nodes {
            let lacks = matches!(node.heard[agent], Some(Reply::Missing | Reply::Behind));
            if lacks && self.may_heal(node) {
                node.send(Request::Heal(Heal {
                    leader: lease.leader,
                    token: lease.token,
                    raise: false,
                    awaited_by: None,
                }));
            }
        }
    }

    fn may_heal(self, node: &Node) -> bool {
        !self.rules.heals_wait || node.memory.has_run_for_a_vote(self.world)
    }

    /// Ends the operations that nothing is to be heard of any more.
    pub(crate) fn conclude(self, state: &mut State) {
        for agent in 0..AGENTS {
            // The first time, a vote whose last reply was lost is decided, and may be repeated.
            for _ in 0..2 {
                let Some(operation) = state.agents[agent].operation else {
                    break;
                };
                if state.outstanding(agent) > 0 {
                    break;
                }
                if operation.is_open() {
                    self.count(state, agent, operation);
                } else {
                    self.end(state, agent);
                }
            }
        }
    }
}
