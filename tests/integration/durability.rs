//! An agent that keeps leases in its own file, and is killed.

use std::{fs::OpenOptions, io::Write as _, path::Path};

use tempfile::TempDir;

use crate::harness::{Agent, command_output};

fn settings(path: &Path) -> Vec<(String, String)> {
    vec![("EA_EMBEDDED_PATH".to_owned(), path.display().to_string())]
}

#[tokio::test]
async fn an_agent_killed_right_after_its_answer_still_knows_the_leader() {
    let directory = TempDir::new().expect("a directory");
    let settings = settings(&directory.path().join("leases.redb"));
    let mut agent = Agent::start(&settings).await;
    for round in 0..10 {
        let (election, candidate) = (format!("e{round}"), format!("c{round}"));
        let won = agent.campaign(&election, &candidate, 60_000).await;
        agent.kill();
        assert!(won.elected);
        agent = Agent::start(&settings).await;
        let leader = agent.get(&format!("/election/{election}")).await;
        assert_eq!(
            (leader.text("leader"), &leader.body["token"]),
            (&*candidate, &won.token.into())
        );
        let lost = agent.campaign(&election, "other", 60_000).await;
        assert_eq!((lost.elected, lost.leader), (false, candidate));
    }
}

#[tokio::test]
async fn resignations_and_tokens_survive_a_kill() {
    let directory = TempDir::new().expect("a directory");
    let settings = settings(&directory.path().join("leases.redb"));
    let mut agent = Agent::start(&settings).await;
    let won = agent.campaign("e", "a", 60_000).await;
    assert!(agent.resign("e", "a", won.token).await.value);
    agent.kill();
    let agent = Agent::start(&settings).await;
    assert!(agent.leader("e").await.is_err(), "vacant");
    let next = agent.campaign("e", "b", 60_000).await;
    assert!(next.elected && next.token > won.token);
}

#[tokio::test]
async fn a_term_extended_beyond_the_first_one_survives_a_kill() {
    let directory = TempDir::new().expect("a directory");
    let settings = settings(&directory.path().join("leases.redb"));
    let mut agent = Agent::start(&settings).await;
    let won = agent.campaign("e", "a", 1_000).await;
    assert!(agent.extend("e", "a", 60_000, won.token).await.value);
    agent.kill();
    let agent = Agent::start(&settings).await;
    let leader = agent.get("/election/e").await;
    // A minute was promised; the agent may have died right after promising it.
    assert!(
        leader.body["remaining"].as_u64() > Some(50_000),
        "{leader:?}"
    );
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_refused_with_its_setting() {
    let directory = TempDir::new().expect("a directory");
    let used = directory.path().join("leases.redb");
    let _agent = Agent::start(&settings(&used)).await;
    let garbage = directory.path().join("garbage");
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&garbage)
        .expect("a file");
    file.write_all(&[7; 10_000]).expect("written");
    for (path, told) in [
        (used.as_path(), "in use by another process"),
        (garbage.as_path(), "cannot open"),
        (Path::new("/no/such/directory/leases"), "No such file"),
        (directory.path(), "directory"),
    ] {
        let path = path.display().to_string();
        let refused = command_output(&[], &[("EA_EMBEDDED_PATH", &path)]);
        let text = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{text}");
        assert!(
            text.contains("EA_EMBEDDED_PATH") && text.contains(told),
            "{told}: {text}"
        );
    }
    let left = std::fs::read(&garbage).expect("readable");
    assert_eq!(left, vec![7; 10_000], "what is no database is left alone");
}
