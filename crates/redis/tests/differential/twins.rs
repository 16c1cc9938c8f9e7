//! The scripts follow the rules of the in-process node: without one of them, their replies differ.
//!
//! A twin is a script whose text lacks a rule. A proxy in front of the server runs it in place of the script, so that
//! the library has no code for this.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use election_core::lease::{
    Bounds, Extend, Grant, GrantReply, Lease, LeaseNode, Onto, ProbeRequest, Repair, Replaces,
    Resign, embedded::Embedded, rules::Rule,
};
use election_redis::{Deployment, Server};
use futures_util::future::join_all;
use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};
use redis::Script;
use test_servers::Redis;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::AbortHandle,
    time::Instant,
};

use super::{
    BOUNDS, Candidate, ElectionId, OWN_INCARNATION, Op, PROBE, Reply, RequestId, SETTINGS, Term,
    Token, Value, apply, on_server, op, pair, pair_with, past, same_replies,
};

/// How many random sequences may pass before one of them differs.
const CASES: usize = 60;

/// A script's text without a rule.
#[derive(Clone, Copy)]
struct Twin {
    rule: Rule,
    /// The whole of the script's file.
    file: &'static str,
    name: &'static str,
    /// The code of the rule in that file.
    old: &'static str,
    new: &'static str,
    found: Found,
}

/// What shows that the rule is missing.
#[derive(Clone, Copy)]
enum Found {
    AtRandom,
    By(fn() -> Vec<Step>),
}

/// What is done to both nodes.
#[derive(Debug, Clone)]
enum Step {
    Op(Op),
    /// The record becomes one of another incarnation.
    Restart,
    /// The clock is set back behind what it was when the record was written.
    SetBack(Duration),
}

macro_rules! twin {
    ($rule:ident, $file:literal, $old:expr, $new:expr) => {
        twin!($rule, $file, $old, $new, Found::AtRandom)
    };
    ($rule:ident, $file:literal, $old:expr, $new:expr, $found:expr) => {
        Twin {
            rule: Rule::$rule,
            file: include_str!(concat!("../../src/lua/", $file, ".lua")),
            name: $file,
            old: $old,
            new: $new,
            found: $found,
        }
    };
}

/// At least one for each rule that the in-process node has.
const TWINS: &[Twin] = &[
    twin!(
        HighWaterMark,
        "grant",
        "if mark and tonumber(ARGV[3]) <= tonumber(mark) then",
        "if false then"
    ),
    twin!(
        HighWaterMark,
        "heal",
        "if entry[8] ~= '' and tonumber(entry[8]) < token then",
        "if false then",
        Found::By(grants_above_a_repaired_lease_are_withdrawn)
    ),
    twin!(
        OwnLeaseGuarded,
        "grant",
        "if ARGV[7] ~= '' then\n",
        "if own then\nelseif ARGV[7] ~= '' then\n",
        Found::By(own_lease_comes_back)
    ),
    twin!(
        NodeDecidesGuard,
        "incarnation",
        "math.max(guard, record.guard)",
        "guard",
        Found::By(caller_knows_less)
    ),
    twin!(
        WaitsAreLengthened,
        "probe",
        "if record.since > 0 and record.since + record.guard > record.ready_at then",
        "if false then",
        Found::By(longer_guard_is_registered)
    ),
    twin!(
        WaitsAreBounded,
        "incarnation",
        "elseif record.since > now then",
        "elseif false then",
        Found::By(clock_is_set_back)
    ),
    twin!(
        BoundsAreRegistered,
        "grant",
        "if tonumber(ARGV[7]) > record.guard or tonumber(ARGV[9]) > record.vote then",
        "if false then"
    ),
    twin!(
        BoundsAreRegistered,
        "grant",
        "tonumber(ARGV[7]) > record.guard or ",
        ""
    ),
    twin!(
        BoundsAreRegistered,
        "grant",
        " or tonumber(ARGV[9]) > record.vote",
        ""
    ),
    twin!(
        GrantsNotAfter,
        "grant",
        "if now > tonumber(ARGV[10]) then",
        "if false then"
    ),
    twin!(
        RepairInTheSameIncarnation,
        "heal",
        "if (record and record.run or run()) ~= ARGV[8] then",
        "if false then"
    ),
    twin!(
        RepairWhenSettled,
        "heal",
        "if record and record.since > 0 and",
        "if false and",
        Found::By(repair_after_a_restart)
    ),
    twin!(
        RepairInForce,
        "heal",
        "if now > tonumber(ARGV[12]) then",
        "if false then"
    ),
    twin!(
        RaisingMakesNothing,
        "heal",
        "if ARGV[9] == 'own' then return 0 end",
        ""
    ),
    twin!(
        CountedRepairsOnTop,
        "heal",
        " or ARGV[9] ~= 'unacknowledged'",
        ""
    ),
    twin!(
        RepairNothingOver,
        "heal",
        " or acknowledged and token < tonumber(acknowledged)",
        "",
        Found::By(repair_after_the_resignation)
    ),
    twin!(
        RepairNothingOver,
        "resign",
        "acknowledge(past, ARGV[3] + 1, ARGV[4])",
        "",
        Found::By(repair_after_the_resignation)
    ),
    twin!(
        Rollbacks,
        "withdraw",
        "if not undone then return '' end",
        "if true then return '' end"
    ),
    twin!(
        RollbacksName,
        "withdraw",
        "if entry[7] ~= ARGV[2] then",
        "if entry[7] ~= ARGV[2] and entry[2] ~= ARGV[3] then"
    ),
    twin!(
        RolledBackByName,
        "withdraw",
        "redis.pcall('SET', base .. 'rolled-back:' .. ARGV[2] .. ':' .. ARGV[1], '', 'PX', ARGV[4])",
        ""
    ),
    twin!(
        RestoresWhatWasBefore,
        "withdraw",
        "write_entries(KEYS[1], kept, now)",
        "write_entries(KEYS[1], {}, now)",
        Found::By(second_campaign_is_withdrawn)
    ),
    twin!(
        HighWaterMarkGoesBack,
        "withdraw",
        "elseif entry[8] ~= '' and mark == entry[2] then",
        "elseif false then",
        Found::By(smaller_token_after_a_withdrawal)
    ),
    twin!(
        NeverShorter,
        "renew",
        "if redis.call('PTTL', key) < tonumber(term) then",
        "if true then"
    ),
    twin!(NeverShorter, "grant", "math.max(term, lease[5])", "term"),
    twin!(
        ResignationsToken,
        "resign",
        "local named = lease[1] == ARGV[2] and (ARGV[3] == '0' or ARGV[3] == lease[2])",
        "local named = lease[1] == ARGV[2]"
    ),
    twin!(
        HandoversToken,
        "held",
        "if ARGV[16] ~= '0' and ARGV[16] ~= lease[2] then",
        "if false then"
    ),
    twin!(
        HandoversNeedALeader,
        "grant",
        "if not lease and (over == 'leader' or",
        "if false and (over == 'leader' or"
    ),
    twin!(
        RequestIdsOutliveLeases,
        "grant",
        "if one[1] == request_id then return 'used' end",
        ""
    ),
    twin!(
        ForgettingIsNotVacancy,
        "vacancy",
        "local word = 'unmarked'",
        "local word = 'missing'"
    ),
    twin!(
        ForgettingIsNotVacancy,
        "vacancy",
        "or tonumber(record[2]) > now_ms()",
        ""
    ),
    twin!(
        ForgettingIsNotVacancy,
        "vacancy",
        "record[1] ~= run() or ",
        "",
        Found::By(restarted_server_is_asked_who_leads)
    ),
];

impl Twin {
    /// The twin's name in test output.
    fn title(&self) -> String {
        format!("{}.lua without {:?}: {:?}", self.name, self.rule, self.old)
    }

    /// The file's text without the rule.
    fn weakened(&self) -> String {
        let occurs = self.file.matches(self.old).count();
        assert_eq!(occurs, 1, "{}: how often this occurs", self.title());
        self.file.replacen(self.old, self.new, 1)
    }
}

fn election() -> ElectionId {
    ElectionId::new("k", "a").expect("valid")
}

fn seconds(s: u64) -> Duration {
    Duration::from_secs(s)
}

fn candidate() -> Candidate {
    Candidate::new("candidate", "x").expect("valid")
}

fn token(token: u64) -> Token {
    Token::new(token).expect("in range")
}

fn term() -> Term {
    Term::from_millis(60_000, seconds(60)).expect("in range")
}

/// A campaign of the same candidate with this token, by an agent with this restart guard.
fn campaign(guard: u64, n: u64) -> Grant {
    Grant {
        election: election(),
        candidate: candidate(),
        token: token(n),
        grant_id: n,
        term: term(),
        value: Value::default(),
        request_id: RequestId::new("").expect("valid"),
        elected_at: 1_795_000_000_000,
        repeat: false,
        replaces: Replaces::Own,
        bounds: Bounds {
            guard: Some(seconds(guard)),
            vote: BOUNDS.vote,
        },
        not_after: past() + seconds(1),
    }
}

fn grant(guard: u64, n: u64) -> Step {
    Step::Op(Op::Grant(campaign(guard, n)))
}

fn roll_back(n: u64) -> Step {
    Step::Op(Op::RollBack(campaign(60, n)))
}

fn repair(n: u64) -> Step {
    Step::Op(Op::Repair(Repair {
        election: election(),
        lease: Lease {
            leader: candidate(),
            token: token(n),
            value: Value::default(),
            elected_at: 1_795_000_000_000,
            remaining: seconds(60),
        },
        term: term(),
        incarnation: OWN_INCARNATION.to_owned(),
        onto: Onto::Unacknowledged,
        bounds: BOUNDS,
        not_after: past() + seconds(1),
    }))
}

fn read() -> Step {
    Step::Op(Op::Read(election()))
}

fn probe() -> Step {
    Step::Op(Op::Probe(PROBE))
}

/// A candidate campaigns again after a restart.
fn own_lease_comes_back() -> Vec<Step> {
    vec![probe(), grant(60, 1), Step::Restart, grant(60, 2)]
}

/// The first agent after a restart has a shorter guard than another had.
fn caller_knows_less() -> Vec<Step> {
    vec![probe(), Step::Restart, grant(30, 1)]
}

/// The clock is set back while the server is in quarantine.
fn clock_is_set_back() -> Vec<Step> {
    vec![
        probe(),
        Step::Restart,
        grant(60, 1),
        Step::SetBack(seconds(600)),
        grant(60, 2),
    ]
}

/// No agent has written the record since the restart.
fn restarted_server_is_asked_who_leads() -> Vec<Step> {
    vec![probe(), Step::Restart, read()]
}

/// An agent with a longer guard comes while the server is in quarantine.
fn longer_guard_is_registered() -> Vec<Step> {
    let own = Bounds {
        guard: Some(seconds(90)),
        ..BOUNDS
    };
    let longer = Op::Probe(ProbeRequest { own, ..PROBE });
    vec![probe(), Step::Restart, probe(), Step::Op(longer)]
}

/// Votes that the server may have forgotten still count.
fn repair_after_a_restart() -> Vec<Step> {
    vec![probe(), Step::Restart, repair(1)]
}

/// A repair of a lease that was given up arrives late.
fn repair_after_the_resignation() -> Vec<Step> {
    let resign = Resign {
        election: election(),
        leader: candidate(),
        token: Some(token(1)),
    };
    vec![
        probe(),
        grant(60, 1),
        Step::Op(Op::Resign(resign)),
        repair(1),
    ]
}

/// A leader campaigns once more, which does not decide.
fn second_campaign_is_withdrawn() -> Vec<Step> {
    let extend = Extend {
        election: election(),
        leader: candidate(),
        token: Some(token(1)),
        term: term(),
    };
    vec![
        probe(),
        grant(60, 1),
        grant(60, 2),
        roll_back(2),
        read(),
        Step::Op(Op::Extend(extend)),
    ]
}

/// The agent whose clock is behind wins the next vote.
fn smaller_token_after_a_withdrawal() -> Vec<Step> {
    vec![probe(), grant(60, 2), roll_back(2), grant(60, 1)]
}

/// A repair writes a larger token below a grant that is then rolled back. The last grant has that token.
fn grant_above_a_repaired_lease_is_withdrawn() -> Vec<Step> {
    vec![
        probe(),
        repair(1),
        grant(60, 3),
        repair(2),
        roll_back(3),
        grant(60, 2),
    ]
}

/// The same with two grants, of which the later one is rolled back first.
fn grants_above_a_repaired_lease_are_withdrawn() -> Vec<Step> {
    vec![
        probe(),
        repair(1),
        grant(60, 3),
        grant(60, 4),
        repair(2),
        roll_back(4),
        roll_back(3),
        grant(60, 2),
    ]
}

/// A proxy that runs a twin in place of its script.
struct Weakening {
    url: String,
    accepting: AbortHandle,
}

/// The hashes of scripts, and of those that run in their place.
type Hashes = Arc<Mutex<HashMap<Vec<u8>, String>>>;

impl Weakening {
    async fn start(redis: &Redis, twin: Twin) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (port, own) = (redis.port(), redis.connect().await);
        let hashes = Hashes::default();
        let accepting = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.expect("accepts");
                let server = TcpStream::connect(("127.0.0.1", port)).await;
                let (from_client, mut to_client) = client.into_split();
                let (mut from_server, to_server) = server.expect("connects").into_split();
                tokio::spawn(async move {
                    // The test is over when either end is closed.
                    let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
                });
                tokio::spawn(forward(
                    from_client,
                    to_server,
                    twin,
                    own.clone(),
                    Arc::clone(&hashes),
                ));
            }
        })
        .abort_handle();
        Self {
            url: format!("redis://{address}"),
            accepting,
        }
    }
}

impl Drop for Weakening {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Passes commands on until the client goes. It loads scripts unchanged, and their twins in addition.
async fn forward(
    client: OwnedReadHalf,
    mut server: OwnedWriteHalf,
    twin: Twin,
    mut own: redis::aio::MultiplexedConnection,
    hashes: Hashes,
) {
    let mut client = BufReader::new(client);
    while let Some(mut command) = command(&mut client).await {
        match command.as_mut_slice() {
            [load, which, text] if *load == b"SCRIPT" && *which == b"LOAD" => {
                let text = std::str::from_utf8(text).expect("text");
                if text.contains(twin.file) {
                    let weakened = Script::new(&text.replacen(twin.file, &twin.weakened(), 1));
                    weakened.load_async(&mut own).await.expect("it compiles");
                    let hash = Script::new(text).get_hash().as_bytes().to_vec();
                    let instead = weakened.get_hash().to_owned();
                    hashes.lock().expect("not poisoned").insert(hash, instead);
                }
            }
            [run, hash, ..] if *run == b"EVALSHA" => {
                if let Some(instead) = hashes.lock().expect("not poisoned").get(hash) {
                    *hash = instead.as_bytes().to_vec();
                }
            }
            _ => {}
        }
        let mut packed = format!("*{}\r\n", command.len()).into_bytes();
        for argument in command {
            packed.extend(format!("${}\r\n", argument.len()).into_bytes());
            packed.extend(argument);
            packed.extend(b"\r\n");
        }
        if server.write_all(&packed).await.is_err() {
            return;
        }
    }
}

/// The next command, if the client is still there.
async fn command(client: &mut BufReader<OwnedReadHalf>) -> Option<Vec<Vec<u8>>> {
    let count = number(client, '*').await?;
    let mut command = Vec::new();
    for _ in 0..count {
        let mut argument = vec![0; number(client, '$').await?];
        client.read_exact(&mut argument).await.ok()?;
        client.read_exact(&mut [0; 2]).await.ok()?;
        command.push(argument);
    }
    Some(command)
}

async fn number(client: &mut BufReader<OwnedReadHalf>, after: char) -> Option<usize> {
    let mut line = String::new();
    client.read_line(&mut line).await.ok()?;
    line.trim_end().strip_prefix(after)?.parse().ok()
}

/// Why the nodes differ, if they do.
async fn difference(
    redis: &Redis,
    deployment: &Deployment,
    prefix: usize,
    steps: Vec<Step>,
) -> Option<String> {
    let set_back = Arc::new(AtomicU64::new(0));
    let clock = {
        let set_back = Arc::clone(&set_back);
        Arc::new(move || Instant::now() - Duration::from_millis(set_back.load(Ordering::Relaxed)))
    };
    let model = Embedded::with_clock(SETTINGS, clock);
    let mut nodes = pair_with(model, deployment.clone(), prefix, true).await;
    let record = format!("p{prefix}:{{0}}:marker");
    for step in steps {
        match step {
            Step::Op(op) => {
                if let Err(error) = same_replies(&nodes, &[op]).await {
                    return Some(error.to_string());
                }
            }
            Step::Restart => {
                let mut other = redis::cmd("HSET");
                other.arg(&record).arg(&["run", "other", "of", "other"]);
                redis.ask::<()>(&other).await.expect("written");
                nodes.0 = nodes.0.restored();
            }
            Step::SetBack(by) => {
                let by = u64::try_from(by.as_millis()).expect("in range");
                set_back.fetch_add(by, Ordering::Relaxed);
                for field in ["since", "ready_at", "guard_at", "vote_at"] {
                    let mut later = redis::cmd("HINCRBY");
                    later.arg(&record).arg(field).arg(by);
                    redis.ask::<()>(&later).await.expect("written");
                }
            }
        }
    }
    None
}

/// The number of the first random sequence that shows that the rule is missing.
async fn found_at_random(deployment: &Deployment, prefix: usize) -> Option<usize> {
    let strategy = (
        prop::collection::vec(op(&[30_000, 60_000]), 1..60),
        prop::bool::weighted(0.75),
    );
    // The same sequences every time.
    let mut runner = TestRunner::deterministic();
    for case in 0..CASES {
        let sequence = strategy.new_tree(&mut runner).expect("a sequence");
        let (ops, marked) = sequence.current();
        let nodes = pair(deployment.clone(), prefix + case, marked).await;
        if same_replies(&nodes, &ops).await.is_err() {
            return Some(case);
        }
    }
    None
}

/// What is wrong with a twin, if anything; prints what found it.
async fn survives(redis: &Redis, number: usize, twin: Twin) -> Option<String> {
    let title = twin.title();
    let weakening = Weakening::start(redis, twin).await;
    let server = Server::from_url(&weakening.url, None).expect("a URL");
    let (weak, prefix) = (Deployment::Server(server), (number + 1) * 1_000);
    match twin.found {
        Found::AtRandom => match found_at_random(&weak, prefix).await {
            Some(case) => println!("{title}: found by random sequence {case}"),
            None => return Some(format!("{title}: not found by {CASES} random sequences")),
        },
        Found::By(steps) => {
            let with_all = difference(redis, &on_server(redis), prefix, steps()).await;
            if let Some(why) = with_all {
                return Some(format!("{title}: the nodes differ with all rules: {why}"));
            }
            match difference(redis, &weak, prefix + 1, steps()).await {
                Some(_) => println!("{title}: found by a sequence of its own"),
                None => return Some(format!("{title}: not found by its own sequence")),
            }
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_that_lacks_a_rule_differs_from_the_in_process_node() {
    let redis = Redis::start().await;
    let twins = TWINS.iter().enumerate();
    let wrong = join_all(twins.map(|(number, twin)| survives(&redis, number, *twin))).await;
    let wrong: Vec<_> = wrong.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The replies of both nodes are not only equal, but right.
#[tokio::test]
async fn a_withdrawal_leaves_the_mark_of_the_repaired_lease_below() {
    let redis = Redis::start().await;
    let sequences = [
        grant_above_a_repaired_lease_is_withdrawn(),
        grants_above_a_repaired_lease_are_withdrawn(),
    ];
    for (prefix, steps) in sequences.into_iter().enumerate() {
        let (model, real) = pair(on_server(&redis), prefix, true).await;
        for node in [&model as &dyn LeaseNode, &real] {
            let mut last = None;
            for step in &steps {
                if let Step::Op(op) = step {
                    last = Some(apply(node, op).await.expect("a reply"));
                }
            }
            assert_eq!(last, Some(Reply::Granted(GrantReply::Stale(token(2)))));
        }
    }
}

#[test]
fn every_rule_of_the_in_process_node_has_a_script_that_lacks_it() {
    let memory = include_str!("../../../core/src/lease/memory.rs");
    let rules: BTreeSet<_> = memory
        .split("Rule::")
        .skip(1)
        .map(|rest| {
            let end = rest.find(|c: char| !c.is_alphanumeric());
            rest[..end.unwrap_or(rest.len())].to_owned()
        })
        .collect();
    let twins: BTreeSet<_> = TWINS
        .iter()
        .map(|twin| format!("{:?}", twin.rule))
        .collect();
    assert_eq!(rules, twins);
}
