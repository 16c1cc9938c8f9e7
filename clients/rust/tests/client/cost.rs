//! What is left behind: nothing; and what many leaderships cost: little.

use std::{fs, time::Duration};

use election_agent_client::{Agent, Leadership, Scope};
use test_agent::Agent as Server;
use tokio::{runtime::Handle, task::JoinSet};

use crate::support::{Mode, Proxy, SECOND, client, eventually, leading, soon};

/// The number of threads whose name begins so.
fn threads(name: &str) -> usize {
    let tasks = fs::read_dir("/proc/self/task").expect("Linux");
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|comm| comm.starts_with(name)).count()
}

/// Waits until as many tasks run as before.
async fn no_task_left(before: usize) {
    let metrics = Handle::current().metrics();
    eventually("no task is left", async || {
        (metrics.num_alive_tasks() <= before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_thousand_leaderships_share_a_connection_and_threads_by_streams() {
    a_thousand(true).await;
}

#[tokio::test]
async fn a_thousand_leaderships_share_a_connection_and_threads_by_calls() {
    a_thousand(false).await;
}

async fn a_thousand(streams: bool) {
    let server = Server::start();
    let proxy = Proxy::to(server.address()).await;
    let before = Handle::current().metrics().num_alive_tasks();
    let agent = leading(proxy.address(), streams);
    let mut starting = JoinSet::new();
    for number in 0..1_000 {
        starting.spawn(agent.lead(format!("election-{number}")).start());
    }
    let led: Vec<Leadership> = soon("all are elected", starting.join_all())
        .await
        .into_iter()
        .map(|led| led.expect("elected"))
        .collect();
    // A stream, or two for calls that wait, and one for calls that do not.
    assert!(proxy.connections() <= 3, "{}", proxy.connections());
    assert_eq!(threads("election-timer"), 1);
    let mut renewed = JoinSet::new();
    for leadership in &led {
        let mut term = leadership.term().clone();
        renewed.spawn(async move { term.renewed().await });
    }
    for renewed in soon("all are extended", renewed.join_all()).await {
        renewed.expect("leads");
    }
    let mut resigning = JoinSet::new();
    for leadership in led {
        resigning.spawn(leadership.resign());
    }
    for resigned in soon("all have resigned", resigning.join_all()).await {
        resigned.expect("resigned");
    }
    assert!(
        agent
            .leaders("default")
            .await
            .expect("an answer")
            .leaders
            .is_empty()
    );
    drop(agent);
    // The proxy's own are among them, until its connections end.
    proxy.set(Mode::Cut);
    no_task_left(before).await;
}

/// Drops something in the middle of everything.
async fn dropped(streams: bool) {
    let server = Server::start();
    let holder = client(server.address());
    let held = holder
        .lead("held")
        .candidate("holder")
        .start()
        .await
        .expect("elected");
    let before = Handle::current().metrics().num_alive_tasks();
    let agent = || leading(server.address(), streams);
    let short = Duration::from_millis(100);

    // While waiting, leading, working, resigning, observing, asking.
    let waiting = tokio::time::timeout(short, agent().lead("held").candidate("a").start()).await;
    assert!(waiting.is_err());
    drop(agent().lead("a").start().await.expect("elected"));
    let working = agent()
        .lead("b")
        .run(async |_| std::future::pending::<()>().await);
    assert!(tokio::time::timeout(short, working).await.is_err());
    let leadership = agent().lead("c").start().await.expect("elected");
    let _ = tokio::time::timeout(Duration::from_micros(1), leadership.resign()).await;
    let mut observer = agent().observe(Scope::All);
    soon("an event", observer.next())
        .await
        .expect("goes on")
        .expect("no error");
    drop(observer);
    drop(agent().observe("never-polled"));
    let _ = tokio::time::timeout(Duration::from_micros(1), agent().kinds()).await;
    // Nobody answers.
    let unreachable = Agent::builder("127.0.0.1:1")
        .streams(streams)
        .build()
        .expect("an endpoint");
    assert!(
        tokio::time::timeout(short, unreachable.lead("d").start())
            .await
            .is_err()
    );
    let mut observer = unreachable.observe("d");
    let _ = tokio::time::timeout(short, observer.next()).await;
    drop((observer, unreachable));

    no_task_left(before).await;
    held.resign().await.expect("resigned");
}

#[tokio::test]
async fn what_is_dropped_leaves_no_task_by_streams() {
    dropped(true).await;
}

#[tokio::test]
async fn what_is_dropped_leaves_no_task_by_calls() {
    dropped(false).await;
}

#[tokio::test]
async fn an_application_that_hangs_costs_one_thread() {
    let server = Server::start();
    for streams in [true, false] {
        let agent = leading(server.address(), streams);
        let hangs = agent
            .lead("nightly")
            .candidate(format!("{streams}"))
            .term(SECOND)
            .alive(|| {
                loop {
                    std::thread::park();
                }
            });
        let leadership = hangs.start().await;
        if let Ok(leadership) = leadership {
            soon("the loss", leadership.term().lost()).await;
        }
        // Each hanging leadership of these tests has one.
        assert!(threads("election-alive") <= 8);
    }
}
