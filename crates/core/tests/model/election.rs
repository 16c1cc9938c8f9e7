//! The steps that the checker explores, and the properties that must hold.

use std::{cell::Cell, collections::BTreeMap, sync::Arc, time::Duration};

use election_core::{
    lease::{
        Bounds, Extend, Grant, GrantReply, Incarnation, NodeError, ProbeRequest, Reading,
        Registered, Replaces, Resign, Settings,
        memory::Memory,
        policy::{
            Call, Event, Nodes, Reply, claim::Claiming, extension::Extending,
            resignation::Resigning,
        },
        quorum::Claim,
        rules::{Rule, holds, weaken},
    },
    types::{Candidate, RequestId, Term, Token, Value},
};
use stateright::{Model, Property};
use tokio::time::Instant;

use crate::{
    state::{Agent, BEGINNING, ELECTION, Eyes, Key, Node, Operation, Request, State, Wanted},
    world::{Budget, Start, TICK, World},
};

pub(crate) const EXCLUSION: &str = "at most one candidate leads";
pub(crate) const RISING: &str = "tokens rise";
pub(crate) const CLEAN: &str = "only candidates that received a grant are reported as leaders";
pub(crate) const WINNABLE: &str = "a vacant election can be won";

/// The candidate that campaigns after all others have stopped.
const LATECOMER: usize = 2;

/// A configuration of the checker.
#[derive(Clone, Debug)]
pub(crate) struct Election {
    pub(crate) world: World,
    pub(crate) budget: Budget,
    /// Whether the checks of leftovers run, too: no candidate is wrongly reported as the leader, and a candidate can
    /// win.
    pub(crate) remains: bool,
    /// The rule that is disabled.
    pub(crate) without: Option<Rule>,
}

/// A step of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Tick,
    Campaign(usize, usize),
    /// Like a campaign, with a request that has waited since the beginning.
    ClaimAfterWait(usize, usize),
    Extend(usize, usize),
    Resign(usize, usize),
    /// Through an agent, from one candidate to another.
    HandOver(usize, usize, usize),
    /// A node executes a request.
    Execute(usize, Key, How),
    Save(usize),
    /// A node restarts, with empty or with saved memory.
    Restart(usize, bool),
    /// An agent checks the health of the nodes.
    Probe(usize),
    /// The caller stops waiting.
    Abandon(usize, u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct How {
    /// The reply is lost.
    lost: bool,
    /// The request may be executed again.
    again: bool,
}

fn candidate(number: usize) -> Candidate {
    Candidate::new("candidate", ["a", "b", "last"][number]).expect("valid")
}

impl Election {
    fn settings(&self) -> Settings {
        Settings {
            retention: TICK * 1000,
            guard: Some(TICK),
            vote: self.longest().vote,
        }
    }

    /// The longest bounds of all agents.
    fn longest(&self) -> Bounds {
        let all = || self.world.agents.iter().map(|plan| plan.bounds());
        Bounds {
            guard: all().map(|bounds| bounds.guard).max().flatten(),
            vote: all().map(|bounds| bounds.vote).max().unwrap_or_default(),
        }
    }

    fn term(&self, candidate: usize) -> Term {
        let ticks = self.world.terms.get(candidate).copied().unwrap_or(1);
        let term = TICK * ticks;
        Term::from_millis(term.as_millis() as i64, term).expect("valid")
    }

    fn start(&self) -> State {
        let world = &self.world;
        let agents = world.agents.iter().map(|plan| Agent {
            longest: plan.bounds(),
            last: 0,
            names: 0,
            known: vec![None; world.nodes],
            operations: BTreeMap::new(),
            begun: 0,
        });
        let mut state = State {
            ticks: 0,
            clock: 0,
            nodes: (0..world.nodes)
                .map(|_| Node {
                    memory: Memory::new(0),
                    saved: None,
                    inbox: BTreeMap::new(),
                })
                .collect(),
            agents: agents.collect(),
            leads: vec![None; LATECOMER + 1],
            named: 0,
            told: Default::default(),
            fell: false,
            left: self.budget,
        };
        let now = state.now();
        let early = world.agents.iter().filter(|plan| !plan.late);
        for node in &mut state.nodes {
            let vote = early.clone().map(|plan| plan.bounds().vote).max();
            let guard = early.clone().map(|plan| plan.bounds().guard).max();
            let bounds = Bounds {
                guard: guard.flatten(),
                vote: vote.unwrap_or_default(),
            };
            node.memory.mark(Duration::ZERO, bounds, now);
        }
        for agent in 0..world.agents.len() {
            if !world.agents[agent].late {
                self.look(&mut state, agent);
            }
        }
        if world.start == Start::Led {
            self.begin_led(&mut state);
        }
        for node in &mut state.nodes {
            node.saved = Some(node.memory.clone());
        }
        state
    }

    /// Starts with a lease of the first candidate that all nodes have granted and extended.
    fn begin_led(&self, state: &mut State) {
        let now = state.now();
        let term = self.term(0);
        let token = Token::new(1).expect("in range");
        let grant = Grant {
            election: ELECTION.clone(),
            candidate: candidate(0),
            token,
            grant_id: u64::MAX,
            term,
            value: Value::default(),
            request_id: self.request_id(0),
            repeat: true,
            elected_at: 0,
            replaces: Replaces::Own,
            bounds: self.world.agents[0].bounds(),
            not_after: now + TICK,
        };
        let extend = Extend {
            election: ELECTION.clone(),
            leader: candidate(0),
            token: Some(token),
            term,
        };
        for node in &mut state.nodes {
            for call in [
                Call::Grant(Arc::new(grant.clone())),
                Call::Extend(Arc::new(extend.clone())),
            ] {
                node.memory.reply(&call, self.settings(), now);
            }
        }
        state.clock = u64::from(self.world.clocks) * 2;
        state.named = 1;
        state.told.insert((0, token));
        state.lead(0, token, now + term.duration() - term.drift());
        for agent in &mut state.agents {
            agent.last = 1;
        }
    }

    fn request_id(&self, candidate: usize) -> Option<RequestId> {
        let name = format!("request {candidate}");
        match self.world.request_ids {
            true => RequestId::new(&name).expect("valid"),
            false => None,
        }
    }

    /// Probes all nodes at one instant, passes on the bounds that they report, and writes records to nodes
    /// without one.
    fn look(&self, state: &mut State, agent: usize) {
        let now = state.now();
        let plan = self.world.agents[agent];
        let told = |bound| Registered {
            bound,
            age: Duration::ZERO,
        };
        let nodes = plan.electorate.nodes();
        // The bounds to register are known only after all nodes were read.
        for write in [false, true] {
            for node in nodes.iter() {
                let me = &mut state.agents[agent];
                let request = ProbeRequest {
                    own: plan.bounds(),
                    guard: told(me.longest.guard.unwrap_or_default()),
                    vote: told(me.longest.vote),
                    write,
                    closed: false,
                };
                let memory = &mut state.nodes[node].memory;
                let (guard, longest_guard, longest_vote) = memory.probe(request, now);
                me.longest.guard = me.longest.guard.max(Some(longest_guard.bound));
                me.longest.vote = me.longest.vote.max(longest_vote.bound);
                if write && guard.is_none() {
                    memory.mark(me.longest.guard.unwrap_or_default(), me.longest, now);
                }
            }
        }
        for node in nodes.iter() {
            let id = state.nodes[node].memory.incarnation_id().to_string();
            let known = &mut state.agents[agent].known[node];
            let seen = match known {
                Some((incarnation, _)) if incarnation.id == id => incarnation.seen,
                _ => now,
            };
            *known = Some((Incarnation { id, seen }, now));
        }
    }

    fn begin(
        &self,
        state: &mut State,
        agent: usize,
        candidate: usize,
        asked: Instant,
        request: Request,
    ) {
        let above = state.told.iter().map(|(_, token)| *token).max();
        let operation = Operation {
            request,
            candidate,
            token: state.leads[candidate].map(|lead| lead.token),
            asked,
            above,
            waits: BTreeMap::new(),
            wake: None,
            votes: 0,
            answered: false,
        };
        let me = &mut state.agents[agent];
        me.begun += 1;
        let id = me.begun;
        me.operations.insert(id, operation);
        self.feed(state, agent, id, Event::Begin);
    }

    fn claim(&self, state: &mut State, agent: usize, wants: usize, replaces: Replaces) {
        let now = state.now();
        self.claim_since(state, agent, wants, replaces, now);
    }

    /// Claims for a request that was sent at this time. After a wait, a grant is provisional.
    fn claim_since(
        &self,
        state: &mut State,
        agent: usize,
        wants: usize,
        replaces: Replaces,
        asked: Instant,
    ) {
        let now = state.now();
        let waited = asked < now;
        let term = self.term(wants);
        let claim = Claim {
            election: ELECTION.clone(),
            candidate: candidate(wants),
            term: if waited { term.at_most(TICK) } else { term },
            value: Value::default(),
            waited_since: waited.then_some(asked),
            request_id: self.request_id(wants),
            replaces,
        };
        let deadline = now + 2 * TICK;
        self.begin(
            state,
            agent,
            wants,
            asked,
            Request::Claim(Claiming::new(claim, now, deadline)),
        );
    }

    fn extend(&self, state: &mut State, agent: usize, leader: usize) {
        let extend = Extend {
            election: ELECTION.clone(),
            leader: candidate(leader),
            token: state.leads[leader].map(|lead| lead.token),
            term: self.term(leader),
        };
        let now = state.now();
        let eyes = self.eyes(state, agent);
        let extending = Extending::new(extend, now, now + 2 * TICK, &eyes);
        self.begin(state, agent, leader, now, Request::Extend(extending));
    }

    fn resign(&self, state: &mut State, agent: usize, leader: usize) {
        let resign = Resign {
            election: ELECTION.clone(),
            leader: candidate(leader),
            token: state.leads[leader].map(|lead| lead.token),
        };
        // It stops acting as leader before the request, whatever the outcome.
        state.leads[leader] = None;
        let now = state.now();
        let resigning = Resigning::new(resign, now, now + 2 * TICK);
        self.begin(state, agent, leader, now, Request::Resign(resigning));
    }

    fn eyes<'a>(&self, state: &'a State, agent: usize) -> Eyes<'a> {
        let me = &state.agents[agent];
        Eyes {
            agent: me,
            plan: self.world.agents[agent],
            number: agent as u64,
            of: self.world.agents.len() as u64,
            clock: state.clock,
            last: Cell::new(me.last),
            names: Cell::new(me.names),
        }
    }

    /// Feeds an event to an operation, and performs the effects that its state machine requests.
    fn feed(&self, state: &mut State, agent: usize, id: u32, event: Event) {
        let now = state.now();
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            if let Event::Replied {
                reply: Ok(reply), ..
            } = &event
            {
                let seen = match reply {
                    Reply::Grant(GrantReply::Stale(token)) => token.get(),
                    Reply::Grant(GrantReply::Held(lease)) => lease.token.get(),
                    _ => 0,
                };
                let last = &mut state.agents[agent].last;
                *last = seen.max(*last);
            }
            let Some(mut operation) = state.agents[agent].operations.remove(&id) else {
                return;
            };
            if let Event::Replied { tag, node, .. } = &event {
                operation.waits.remove(&(*tag, *node));
            }
            let eyes = self.eyes(state, agent);
            operation.wake = None;
            let wanted = operation.request.on(event, now, &eyes);
            let (last, names) = (eyes.last.get(), eyes.names.get());
            if self.world.clocks && last > state.agents[agent].last {
                state.clock = last.max(state.clock) + 1;
            }
            (state.agents[agent].last, state.agents[agent].names) = (last, names);
            for wanted in wanted {
                match wanted {
                    Wanted::Ask {
                        tag,
                        nodes,
                        call,
                        until,
                    } => {
                        let limit = now + self.world.agents[agent].bounds().vote;
                        let is_grant = matches!(call, Call::Grant(_));
                        operation.votes += u32::from(is_grant);
                        for node in nodes.iter() {
                            if is_grant && state.agents[agent].known[node].is_none() {
                                let reply = Ok(Reply::Grant(GrantReply::Unregistered));
                                events.push(Event::Replied { tag, node, reply });
                                continue;
                            }
                            let key = (agent, id, tag);
                            state.nodes[node].inbox.insert(key, call.clone());
                            operation.waits.insert((tag, node), until.min(limit));
                        }
                    }
                    Wanted::Wake(at) => operation.wake = Some(at),
                    Wanted::CheckHealth => {
                        self.look(state, agent);
                        events.push(Event::HealthChecked(true));
                    }
                    Wanted::Elected(token, valid_for) => {
                        operation.answered = true;
                        if state.told.insert((operation.candidate, token)) {
                            state.fell |= Some(token) <= operation.above;
                        }
                        let from = match holds(Rule::CountsFromTheRequest) {
                            true => operation.asked,
                            false => now,
                        };
                        state.lead(operation.candidate, token, from + valid_for);
                    }
                    Wanted::Extended(valid_for) => {
                        operation.answered = true;
                        // An extension does not revive a leadership that was given up or followed by another
                        // term.
                        let lead = state.leads[operation.candidate];
                        if let Some(lead) = lead.filter(|it| Some(it.token) == operation.token) {
                            let until = operation.asked + valid_for;
                            state.lead(operation.candidate, lead.token, until);
                        }
                    }
                    Wanted::Answered => operation.answered = true,
                }
            }
            if !operation.request.is_done() {
                state.agents[agent].operations.insert(id, operation);
            }
        }
    }

    fn execute(&self, state: &mut State, node: usize, key: Key, how: How) {
        let now = state.now();
        let Some(call) = state.nodes[node].inbox.get(&key).cloned() else {
            return;
        };
        if !how.again {
            state.nodes[node].inbox.remove(&key);
        }
        let memory = &mut state.nodes[node].memory;
        let reply = memory.reply(&call, self.settings(), now);
        if how.lost || !state.is_awaited(node, key) {
            return;
        }
        let (agent, id, tag) = key;
        let reply = Ok(reply);
        self.feed(state, agent, id, Event::Replied { tag, node, reply });
    }

    fn tick(&self, state: &mut State) {
        state.ticks += 1;
        let now = state.now();
        for agent in 0..state.agents.len() {
            let ids: Vec<_> = state.agents[agent].operations.keys().copied().collect();
            for id in ids {
                let overdue = |state: &State| {
                    let operation = state.agents[agent].operations.get(&id)?;
                    let mut waits = operation.waits.iter();
                    waits.find(|(_, until)| **until <= now).map(|(at, _)| *at)
                };
                while let Some((tag, node)) = overdue(state) {
                    let reply = Err(NodeError::unknown("no answer in time"));
                    self.feed(state, agent, id, Event::Replied { tag, node, reply });
                }
                let wake = state.agents[agent].operations.get(&id);
                if wake.and_then(|it| it.wake).is_some_and(|at| at <= now) {
                    self.feed(state, agent, id, Event::Woken);
                }
            }
        }
        for lead in &mut state.leads {
            *lead = lead.filter(|lead| lead.until > now);
        }
    }

    fn restart(&self, state: &mut State, node: usize, wiped: bool) {
        let node = &mut state.nodes[node];
        let incarnation = node.memory.incarnation_id() + 1;
        node.memory = match &node.saved {
            Some(saved) if !wiped => saved.restored(incarnation),
            _ => Memory::new(incarnation),
        };
    }

    fn apply(&self, state: &mut State, action: &Action) {
        let left = &mut state.left;
        match *action {
            Action::Tick => self.tick(state),
            Action::Campaign(agent, wants) => {
                left.campaigns -= 1;
                state.named = state.named.max(wants + 1);
                self.claim(state, agent, wants, Replaces::Own);
            }
            Action::ClaimAfterWait(agent, wants) => {
                left.waits -= 1;
                state.named = state.named.max(wants + 1);
                self.claim_since(state, agent, wants, Replaces::Own, *BEGINNING);
            }
            Action::Extend(agent, leader) => {
                left.extensions -= 1;
                self.extend(state, agent, leader);
            }
            Action::Resign(agent, leader) => {
                left.resignations -= 1;
                self.resign(state, agent, leader);
            }
            Action::HandOver(agent, from, to) => {
                left.handovers -= 1;
                let token = state.leads[from].map(|lead| lead.token);
                state.leads[from] = None;
                state.named = state.named.max(to + 1);
                self.claim(state, agent, to, Replaces::Of(candidate(from), token));
            }
            Action::Execute(node, key, how) => {
                let late = !state.is_awaited(node, key);
                let faults = u8::from(how.lost) + u8::from(how.again) + u8::from(late);
                state.left.faults -= faults;
                self.execute(state, node, key, how);
            }
            Action::Save(node) => {
                left.saves -= 1;
                state.nodes[node].saved = Some(state.nodes[node].memory.clone());
            }
            Action::Restart(node, wiped) => {
                left.restarts -= 1;
                self.restart(state, node, wiped);
            }
            Action::Probe(agent) => {
                left.looks -= 1;
                self.look(state, agent);
            }
            Action::Abandon(agent, id) => {
                left.faults -= 1;
                self.feed(state, agent, id, Event::Abandoned);
            }
        }
    }

    /// Drops everything that can no longer make a difference. States that differ only in that become one.
    fn forget(&self, state: &mut State) {
        let left = state.left;
        if left.faults == 0 {
            for node in 0..state.nodes.len() {
                let keys: Vec<_> = state.nodes[node].inbox.keys().copied().collect();
                for key in keys {
                    if !state.is_awaited(node, key) {
                        state.nodes[node].inbox.remove(&key);
                    }
                }
            }
        }
        if left.restarts == 0 {
            for node in &mut state.nodes {
                node.saved = None;
            }
        }
        let asks = left.campaigns + left.waits + left.extensions + left.handovers;
        if asks == 0 && !self.remains && state.operations().all(|(_, _, it)| it.answered) {
            // No candidate will receive another reply.
            state.left = Budget::default();
            for node in &mut state.nodes {
                (node.memory, node.saved) = (Memory::new(0), None);
                node.inbox.clear();
            }
            for agent in &mut state.agents {
                agent.operations.clear();
            }
        }
    }

    /// Returns whether an agent wins the election for a new candidate once all leases and guards must have
    /// expired and nothing fails any more. Checks both cases: requests in transit arrive, or they do not.
    fn can_be_won(&self, state: &State) -> bool {
        let agents = 0..self.world.agents.len();
        let ways = agents.flat_map(|agent| [(agent, true), (agent, false)]);
        ways.into_iter().all(|(agent, arrives)| {
            let mut state = state.clone();
            let open: Vec<_> = state
                .operations()
                .map(|(agent, id, _)| (agent, id))
                .collect();
            for (agent, id) in open {
                self.feed(&mut state, agent, id, Event::Abandoned);
            }
            if !arrives {
                state.nodes.iter_mut().for_each(|node| node.inbox.clear());
            }
            self.settle(&mut state);
            let longest = self.world.agents.iter().map(|plan| plan.longest).max();
            for _ in 0..=2 * longest.unwrap_or_default() + 1 {
                for agent in 0..state.agents.len() {
                    self.look(&mut state, agent);
                }
                self.claim(&mut state, agent, LATECOMER, Replaces::Own);
                self.settle(&mut state);
                if state.leads[LATECOMER].is_some() {
                    return true;
                }
                self.tick(&mut state);
                self.settle(&mut state);
            }
            false
        })
    }

    /// Executes all requests in transit.
    fn settle(&self, state: &mut State) {
        let how = How {
            lost: false,
            again: false,
        };
        loop {
            // A split vote is repeated endlessly, because it takes no time here.
            let split = state.operations().find(|(_, _, it)| it.votes > 3);
            if let Some((agent, id, _)) = split.filter(|(_, _, it)| !it.answered) {
                self.feed(state, agent, id, Event::Abandoned);
            }
            let waiting = (0..state.nodes.len()).find_map(|node| {
                let inbox = &state.nodes[node].inbox;
                inbox.keys().next().map(|key| (node, *key))
            });
            let Some((node, key)) = waiting else { return };
            self.execute(state, node, key, how);
        }
    }

    /// Returns whether, with nothing in transit, only candidates that received a grant are reported as
    /// leaders.
    fn is_clean(&self, state: &State) -> bool {
        if !state.is_quiet() {
            return true;
        }
        let now: Instant = state.now();
        let mut holds: BTreeMap<(String, Token), Nodes> = BTreeMap::new();
        for (number, node) in state.nodes.iter().enumerate() {
            let mut memory = node.memory.clone();
            let read = Call::Read(Arc::new(ELECTION.clone()));
            if let Reply::Read(Reading::Held(lease)) = memory.reply(&read, self.settings(), now) {
                let key = (lease.leader.as_str().to_owned(), lease.token);
                holds.entry(key).or_default().add(number);
            }
        }
        let electorate = self.world.agents[0].electorate;
        holds.into_iter().all(|((leader, token), nodes)| {
            let known = |(told, with): &(usize, Token)| {
                candidate(*told).as_str() == leader && *with == token
            };
            !electorate.all(nodes) || state.told.iter().any(known)
        })
    }
}

impl Model for Election {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        weaken(self.without);
        let _ = *BEGINNING;
        vec![self.start()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let left = state.left;
        if state.ticks < self.world.ticks {
            actions.push(Action::Tick);
        }
        for (number, agent) in state.agents.iter().enumerate() {
            let plans = &self.world.agents;
            if number > 0
                && *agent == state.agents[number - 1]
                && plans[number] == plans[number - 1]
                && agent.operations.is_empty()
            {
                // The two agents are interchangeable.
                continue;
            }
            if left.looks > 0 {
                actions.push(Action::Probe(number));
            }
            for (id, operation) in &agent.operations {
                if left.faults > 0
                    && !operation.answered
                    && matches!(operation.request, Request::Claim(_))
                {
                    actions.push(Action::Abandon(number, *id));
                }
            }
            if agent
                .operations
                .values()
                .any(|operation| !operation.answered)
            {
                continue;
            }
            for wants in 0..LATECOMER.min(state.named + 1) {
                if left.campaigns > 0 {
                    actions.push(Action::Campaign(number, wants));
                }
                if left.waits > 0 && state.ticks > 0 {
                    actions.push(Action::ClaimAfterWait(number, wants));
                }
                if state.leads[wants].is_none() {
                    continue;
                }
                if left.extensions > 0 {
                    actions.push(Action::Extend(number, wants));
                }
                if left.resignations > 0 {
                    actions.push(Action::Resign(number, wants));
                }
                if left.handovers > 0 {
                    actions.push(Action::HandOver(number, wants, 1 - wants));
                }
            }
        }
        for (number, node) in state.nodes.iter().enumerate() {
            for key in node.inbox.keys() {
                let awaited = state.is_awaited(number, *key);
                for (lost, again) in [(false, false), (true, false), (false, true), (true, true)] {
                    let faults = u8::from(lost) + u8::from(again) + u8::from(!awaited);
                    if faults <= left.faults && (awaited || !lost) {
                        actions.push(Action::Execute(number, *key, How { lost, again }));
                    }
                }
            }
            if left.saves > 0 && node.saved.as_ref() != Some(&node.memory) {
                actions.push(Action::Save(number));
            }
            if left.restarts > 0 {
                actions.push(Action::Restart(number, true));
                actions.push(Action::Restart(number, false));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        weaken(self.without);
        let mut state = last.clone();
        self.apply(&mut state, &action);
        self.forget(&mut state);
        let votes = self.world.votes;
        let within = state.operations().all(|(_, _, it)| it.votes <= votes);
        within.then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(EXCLUSION, |_, state: &State| state.leaders() < 2),
            Property::always(RISING, |_, state: &State| !state.fell),
        ];
        if self.remains {
            properties.push(Property::always(WINNABLE, |model: &Self, state| {
                weaken(model.without);
                model.can_be_won(state)
            }));
            properties.push(Property::always(CLEAN, |model: &Self, state| {
                model.is_clean(state)
            }));
        }
        let Budget {
            campaigns,
            waits,
            extensions,
            resignations,
            handovers,
            ..
        } = self.budget;
        let led = u8::from(self.world.start == Start::Led);
        if campaigns + waits + handovers + led > 1 {
            properties.push(Property::sometimes(
                "another leads after the first",
                |_, state: &State| {
                    let leaders = state.told.iter().map(|(candidate, _)| candidate);
                    leaders.collect::<std::collections::BTreeSet<_>>().len() > 1
                },
            ));
        }
        if waits > 0 && led == 0 {
            properties.push(Property::sometimes(
                "a candidate that waited leads for longer than a term after its request",
                |model: &Self, state: &State| {
                    let term = |candidate: usize| TICK * model.world.terms[candidate];
                    let mut leads = state.leads.iter().take(LATECOMER).enumerate();
                    leads.any(|(candidate, lead)| {
                        lead.is_some_and(|lead| lead.until > *BEGINNING + term(candidate))
                    })
                },
            ));
        }
        if extensions > 0 {
            properties.push(Property::sometimes(
                "an extension succeeds",
                |model: &Self, state: &State| {
                    let extended = |lead: &crate::state::Lead| {
                        lead.until > *BEGINNING + TICK * model.world.terms[0]
                    };
                    state.leads.iter().flatten().any(extended)
                },
            ));
        }
        if resignations > 0 && campaigns > 0 {
            properties.push(Property::sometimes(
                "another leads before the term is over",
                |model: &Self, state: &State| {
                    let others = state.told.iter().any(|(candidate, _)| *candidate == 1);
                    others && u32::from(state.ticks) < model.world.terms[0]
                },
            ));
        }
        properties
    }
}
