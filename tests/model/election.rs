//! What may happen to the agents and the nodes, and what must hold: the steps that the checker explores.

use stateright::{Model, Property};

use crate::{
    node::{AgentId, Candidate, Lease, Memory},
    setting::{Budget, Rules, Start, World},
    state::{
        AGENTS, Agent, CANDIDATES, Kind, LATECOMER, Leadership, NODES, Node, Operation, Request,
        Stage, State,
    },
};

pub(crate) const EXCLUSION: &str = "at most one candidate has time left";
pub(crate) const RISING: &str = "tokens rise";
pub(crate) const WINNABLE: &str = "the election can be won when nothing fails any more";
pub(crate) const CLEAN: &str = "what is not led is withdrawn";

/// One election under some rules, in some world, and what may happen there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Election {
    pub(crate) rules: Rules,
    pub(crate) world: World,
    pub(crate) budget: Budget,
    pub(crate) look: Look,
}

/// What a check wants to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Who may lead. What can no longer make a difference to that is forgotten, to save states.
    Leaders,
    /// What is left behind, and whether the election can be won.
    Remains,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Tick,
    Campaign(AgentId, Candidate),
    Extend(AgentId, Candidate),
    Execute(usize, Request, How),
    GiveUp(AgentId),
    Snapshot(usize),
    Restart(usize, Restart, Probed),
    Outage,
}

/// How a request is executed: `lost` means that its reply does not arrive, `again` that it is executed
/// now and may be once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct How {
    lost: bool,
    again: bool,
}

impl How {
    /// How many faults it takes.
    fn faults(self, request: Request) -> u8 {
        u8::from(request.is_late() || self.lost) + u8::from(self.again)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Restart {
    Wiped,
    SetBack,
}

/// Whether an agent probes a node at once when it has restarted, and so has it begin to abstain.
type Probed = bool;

/// What happens.
impl Election {
    fn tick(self, state: &mut State) {
        for node in &mut state.nodes {
            node.memory.tick();
            node.snapshot.tick();
        }
        for leads in &mut state.leads {
            leads.left = leads.left.saturating_sub(1);
        }
        if self.world.clocks {
            state.clock = state.newest + 1;
        }
        for agent in 0..AGENTS {
            if let Some(operation) = &mut state.agents[agent].operation {
                operation.age += 1;
                let lasts = match (operation.kind, operation.is_open()) {
                    (Kind::Campaign, _) => self.world.vote,
                    (Kind::Extension, false) if !self.rules.heals_in_time => 2 * self.world.term,
                    (Kind::Extension, _) => self.world.term,
                };
                if operation.age >= lasts {
                    self.end(state, agent);
                }
            }
        }
    }

    fn apply(self, state: &mut State, action: Action) {
        let left = &mut state.left;
        match action {
            Action::Tick => self.tick(state),
            Action::Campaign(agent, candidate) => {
                left.campaigns -= 1;
                state.named = state.named.max(candidate + 1);
                self.campaign(state, agent, candidate, false, true);
            }
            Action::Extend(agent, candidate) => {
                left.extensions -= 1;
                self.extend(state, agent, candidate);
            }
            Action::Execute(node, request, how) => {
                left.faults -= how.faults(request);
                if !how.again {
                    state.nodes[node].inbox.retain(|other| *other != request);
                }
                self.execute(state, node, request, how.lost);
            }
            Action::GiveUp(agent) => {
                left.faults -= 1;
                match state.agents[agent].operation {
                    Some(
                        operation @ Operation {
                            stage: Stage::Marking { new },
                            ..
                        },
                    ) => {
                        self.count_marks(state, agent, operation, new);
                    }
                    _ => self.end(state, agent),
                }
            }
            Action::Snapshot(node) => {
                left.snapshots -= 1;
                state.nodes[node].snapshot = state.nodes[node].memory;
            }
            Action::Restart(node, restart, probed) => {
                left.restarts -= 1;
                let memory = match restart {
                    Restart::Wiped => Memory::default(),
                    Restart::SetBack => state.nodes[node].snapshot,
                };
                state.nodes[node].restart(self.rules, self.world, memory, probed);
            }
            Action::Outage => {
                left.outages -= 1;
                for agent in 0..AGENTS {
                    state.stop_waiting(agent);
                    state.agents[agent] = Agent {
                        last: 0,
                        seen_marker: false,
                        operation: None,
                    };
                }
                for node in &mut state.nodes {
                    node.restart(self.rules, self.world, Memory::default(), false);
                    node.snapshot = Memory::default();
                }
            }
        }
        self.conclude(state);
    }

    /// Drops what can no longer make a difference, so that states which differ in it only are one.
    fn forget(self, state: &mut State) {
        let left = state.left;
        if self.world.clocks {
            for agent in &mut state.agents {
                agent.last = agent.last.max(state.clock.saturating_sub(1));
            }
        }
        for node in &mut state.nodes {
            if left.faults == 0 {
                node.inbox.retain(|request| !request.is_late());
            }
            if left.restarts == 0 {
                node.snapshot = Memory::default();
            }
        }
        if left.extensions == 0 {
            for leads in &mut state.leads {
                leads.token = 0;
            }
        }
        let last_votes = left.campaigns == 0 && !state.operations().any(|it| self.may_retry(it));
        if !last_votes {
            return;
        }
        (state.clock, state.newest) = (0, 0);
        for agent in &mut state.agents {
            agent.last = 0;
            agent.seen_marker = true;
        }
        if left.extensions > 0 || self.look != Look::Leaders {
            return;
        }
        if !state.operations().any(Operation::is_open) {
            // Nobody will be told anything any more.
            for agent in &mut state.agents {
                agent.operation = None;
            }
            state
                .nodes
                .fill(Node::new(Memory::default(), Memory::default()));
            state.left = Budget::default();
        } else if state.operations().all(|it| it.kind == Kind::Campaign) {
            for node in &mut state.nodes {
                if !node
                    .inbox
                    .iter()
                    .any(|request| request.awaited_by().is_some())
                {
                    node.memory = Memory::default();
                    node.snapshot = Memory::default();
                    node.inbox.clear();
                }
            }
        }
    }

    /// Whether, when nothing fails any more, an agent wins the election for a new candidate as soon as
    /// every lease and every guard must be over: what is on its way may still arrive, or not.
    fn can_be_won(self, state: &State) -> bool {
        [(0, true), (0, false), (1, true), (1, false)]
            .into_iter()
            .all(|(agent, arrives)| {
                let mut state = state.clone();
                (0..AGENTS).for_each(|agent| self.end(&mut state, agent));
                if !arrives {
                    state.nodes.iter_mut().for_each(|node| node.inbox.clear());
                }
                self.settle(&mut state);
                for _ in 0..=2 * self.world.term {
                    // The first vote may find floors and lacking markers, the second is above them.
                    for _ in 0..2 {
                        self.campaign(&mut state, agent, LATECOMER, false, true);
                        self.settle(&mut state);
                    }
                    if state.leads[LATECOMER].left > 0 {
                        return true;
                    }
                    self.tick(&mut state);
                }
                false
            })
    }

    /// Executes all that is on its way.
    fn settle(self, state: &mut State) {
        while state.nodes.iter().any(|node| !node.inbox.is_empty()) {
            for node in 0..NODES {
                while let Some(request) = state.nodes[node].inbox.pop() {
                    self.execute(state, node, request, false);
                }
            }
            self.conclude(state);
        }
    }

    /// Whether each lease is led by, being voted on, or about to be withdrawn. One that no vote could
    /// withdraw was extended, or two votes of its candidate met: it stays for the term.
    fn nothing_is_left_behind(self, state: &State) -> bool {
        state.nodes.iter().all(|node| {
            let Some(Lease {
                leader,
                token,
                attempt: Some(attempt),
                ..
            }) = node.memory.lease
            else {
                return true;
            };
            let operation = state.agents[attempt.agent].operation;
            state.won.contains(&(leader, token))
                || operation.is_some_and(|it| {
                    it.token == attempt.token && node.heard[attempt.agent].is_none()
                })
                || operation.is_some_and(|it| it.token == attempt.token && it.is_open())
                || node.inbox.contains(&Request::Withdraw(leader, attempt))
        })
    }
}

/// What shows that a check is not empty.
impl Election {
    fn what_is_to_be_seen(self) -> Vec<Property<Self>> {
        let Self { world, budget, .. } = self;
        let led = world.start == Start::Led;
        let mut seen = Vec::new();
        if budget.campaigns + u8::from(led) > 1 {
            seen.push(Property::sometimes(
                "another leads after the first",
                |_, state: &State| {
                    state
                        .won
                        .iter()
                        .any(|(candidate, _)| *candidate != state.won[0].0)
                },
            ));
        }
        if budget.extensions > 0 {
            seen.push(Property::sometimes(
                "a leader extends",
                |_, state: &State| {
                    let done = |it: Operation| {
                        matches!((it.kind, it.stage), (Kind::Extension, Stage::Done(_)))
                    };
                    state.operations().any(done)
                },
            ));
        }
        if world.request_ids {
            seen.push(Property::sometimes(
                "a retry is told the first try's token",
                |_, state: &State| {
                    let told = |it: Operation| match (it.kind, it.stage) {
                        (Kind::Campaign, Stage::Done(won)) => won != it.token,
                        _ => false,
                    };
                    state.operations().any(told)
                },
            ));
        }
        if led && world.tokens_given && budget.extensions > 0 && budget.restarts > 0 {
            seen.push(Property::sometimes(
                "an extension raises a lease",
                |_, state: &State| state.operations().any(|it| it.stage == Stage::Raising),
            ));
        }
        // Such a node has begun without a lease, and grants none.
        let heals = led && budget.extensions > 1 && budget.restarts > 0 && budget.snapshots == 0;
        if heals && world.vote < world.term {
            seen.push(Property::sometimes(
                "a node that abstains is healed",
                |_, state: &State| {
                    state
                        .nodes
                        .iter()
                        .any(|node| node.memory.abstains() && node.memory.lease.is_some())
                },
            ));
        }
        seen
    }
}

impl Model for Election {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let (memory, snapshot) = match self.world.start {
            Start::New => (Memory::default(), Memory::default()),
            Start::Vacant => (Memory::ready(), Memory::ready()),
            Start::Led => (Memory::led(self.world, 0, 1), Memory::ready()),
        };
        let led = u8::from(self.world.start == Start::Led);
        let seen_marker = self.world.start != Start::New;
        let mut state = State {
            nodes: [(); NODES].map(|()| Node::new(memory, snapshot)),
            agents: [Agent {
                last: led,
                seen_marker,
                operation: None,
            }; AGENTS],
            leads: [Leadership::default(); CANDIDATES + 1],
            named: 0,
            clock: led,
            newest: led,
            won: Vec::new(),
            fell: false,
            left: self.budget,
        };
        if led > 0 {
            state.named = 1;
            state.won.push((0, led));
            state.leads[0] = Leadership {
                token: led,
                left: self.world.term,
            };
        }
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let left = state.left;
        actions.push(Action::Tick);
        for (agent, me) in state.agents.iter().enumerate() {
            if me.operation.is_some_and(Operation::is_open) {
                if left.faults > 0 {
                    actions.push(Action::GiveUp(agent));
                }
                continue;
            }
            if agent > 0 && *me == state.agents[agent - 1] && me.operation.is_none() {
                continue;
            }
            for candidate in 0..CANDIDATES {
                if left.campaigns > 0 && candidate <= state.named {
                    actions.push(Action::Campaign(agent, candidate));
                }
                let knows = state.leads[candidate].token > 0 || !self.world.tokens_given;
                if left.extensions > 0 && candidate < state.named && knows {
                    actions.push(Action::Extend(agent, candidate));
                }
            }
        }
        for (at, node) in state.nodes.iter().enumerate() {
            if at > 0 && *node == state.nodes[at - 1] {
                continue;
            }
            for request in &node.inbox {
                for (lost, again) in [(false, false), (true, false), (false, true), (true, true)] {
                    let how = How { lost, again };
                    let heard = request.awaited_by().is_some();
                    // A grant that is refused and then comes again may leave a lease that nobody takes back.
                    let doubled = again && self.look == Look::Remains;
                    if how.faults(*request) <= left.faults && (heard || !lost) && !doubled {
                        actions.push(Action::Execute(at, *request, how));
                    }
                }
            }
            if left.snapshots > 0 && node.snapshot != node.memory {
                actions.push(Action::Snapshot(at));
            }
            if left.restarts > 0 {
                let marked = state.agents.iter().any(|agent| agent.seen_marker);
                for probed in [false, true] {
                    if !probed || marked {
                        actions.push(Action::Restart(at, Restart::Wiped, probed));
                    }
                    if node.snapshot != Memory::default() {
                        actions.push(Action::Restart(at, Restart::SetBack, probed));
                    }
                }
            }
        }
        if left.outages > 0 {
            actions.push(Action::Outage);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        self.apply(&mut state, action);
        self.forget(&mut state);
        state.nodes.sort_unstable();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let Self {
            world,
            budget,
            look,
            ..
        } = *self;
        let mut properties = vec![
            Property::always(EXCLUSION, |_, state: &State| {
                state.leads.iter().filter(|leads| leads.left > 0).count() < 2
            }),
            Property::always(RISING, |_, state: &State| !state.fell),
        ];
        if look == Look::Remains {
            properties.push(Property::always(WINNABLE, |model: &Self, state| {
                model.can_be_won(state)
            }));
            // A node that forgets a withdrawal may execute the grant after it; and what a request has
            // repeated, later or twice, is not taken back with the repetition.
            if budget.restarts == 0 && !world.request_ids {
                properties.push(Property::always(CLEAN, |model: &Self, state| {
                    model.nothing_is_left_behind(state)
                }));
            }
        }
        properties.extend(self.what_is_to_be_seen());
        properties
    }
}
