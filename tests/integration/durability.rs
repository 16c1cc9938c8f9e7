//! An agent that keeps leases in its own file, and is killed.

use std::{
    collections::BTreeMap,
    fs::{OpenOptions, Permissions},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tonic::Code;

use crate::harness::{Agent, campaign, command_output, eventually, owned};

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

/// A database file in a directory of its own, and agents on it whose terms last at most `max_term`.
struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = TempDir::new().expect("a directory");
        std::fs::create_dir(directory.path().join("data")).expect("a directory");
        Self { directory }
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn database(&self) -> PathBuf {
        self.data().join("leases.redb")
    }

    fn generation(&self) -> PathBuf {
        self.data().join("leases.redb.generation")
    }

    /// A copy of the database as it is now, outside its directory.
    fn copy(&self, name: &str) -> PathBuf {
        let copy = self.directory.path().join(name);
        std::fs::copy(self.database(), &copy).expect("copied");
        copy
    }

    fn copy_back(&self, copy: &Path) {
        std::fs::copy(copy, self.database()).expect("copied");
    }

    async fn start(&self, max_term: &str) -> Agent {
        self.start_with(&[("EA_MAX_TERM", max_term)]).await
    }

    async fn start_with(&self, more: &[(&str, &str)]) -> Agent {
        let mut settings = settings(&self.database());
        settings.extend(owned(more));
        Agent::start(&settings).await
    }
}

/// Whether the candidate is elected; `None` while the agent is in quarantine.
async fn elected(agent: &Agent, election: &str, candidate: &str, term: i32) -> Option<bool> {
    match agent
        .try_campaign(campaign(election, candidate, term))
        .await
    {
        Ok(answer) => Some(answer.elected),
        Err(status) if status.code() == Code::Unavailable => None,
        Err(status) => panic!("{status}"),
    }
}

/// For how many ms the agent is in quarantine.
async fn guard(agent: &Agent) -> u64 {
    let readiness = agent.get("/readyz").await;
    let guard = &readiness.body["nodes"][0]["guard"];
    // A node that is new has none yet.
    guard.as_u64().unwrap_or_default()
}

fn says(agent: &Agent, text: &str) -> bool {
    agent.early_log().iter().any(|line| line.contains(text))
}

#[tokio::test]
async fn a_copy_from_before_a_grant_elects_nobody_while_the_leader_may_have_time_left() {
    let place = Place::new();
    let mut agent = place.start("3s").await;
    assert_eq!(elected(&agent, "old", "a", 1_000).await, Some(true));
    agent.kill();
    let older = place.copy("older");

    let mut agent = place.start("3s").await;
    let won = agent.campaign("e", "a", 3_000).await;
    let granted = Instant::now();
    assert!(won.elected);
    agent.kill();
    place.copy_back(&older);

    let agent = place.start("3s").await;
    assert_eq!(elected(&agent, "e", "b", 3_000).await, None);
    assert!(guard(&agent).await > 2_000);
    assert!(says(&agent, "older"), "{:?}", agent.early_log());
    let answer = agent.campaign("old", "b", 1_000).await;
    assert_eq!(
        (answer.elected, &*answer.leader),
        (false, "a"),
        "as the file has it"
    );
    eventually("the wait ends", async || {
        (elected(&agent, "e", "b", 1_000).await == Some(true)).then_some(())
    })
    .await;
    assert!(granted.elapsed() >= Duration::from_secs(3));
    assert!(agent.campaign("e", "b", 1_000).await.token > won.token);
}

#[tokio::test]
async fn a_copy_of_the_whole_directory_from_before_a_grant_elects_nobody_at_once() {
    let place = Place::new();
    let mut agent = place.start("10s").await;
    assert_eq!(elected(&agent, "old", "a", 1_000).await, Some(true));
    agent.kill();
    let older = place.copy("older");
    let generation = place.directory.path().join("generation");
    // Without the side file there is nothing to copy: then this is the case above.
    let _ = std::fs::copy(place.generation(), &generation);

    let mut agent = place.start("10s").await;
    assert_eq!(elected(&agent, "e", "a", 10_000).await, Some(true));
    agent.kill();
    place.copy_back(&older);
    let _ = std::fs::copy(&generation, place.generation());

    let agent = place.start("10s").await;
    assert_eq!(elected(&agent, "e", "b", 10_000).await, None);
    assert!(guard(&agent).await > 8_000);
}

#[tokio::test]
async fn a_side_file_that_is_missing_or_unusable_makes_the_agent_abstain() {
    for (content, told) in [
        (None, "missing"),
        (Some(&b"garbage"[..]), "cannot be used"),
        (Some(&b""[..]), "cannot be used"),
    ] {
        let place = Place::new();
        let mut agent = place.start("10s").await;
        assert_eq!(elected(&agent, "old", "a", 1_000).await, Some(true));
        agent.kill();
        let older = place.copy("older");
        let mut agent = place.start("10s").await;
        assert_eq!(elected(&agent, "e", "a", 10_000).await, Some(true));
        agent.kill();
        place.copy_back(&older);
        match content {
            None => drop(std::fs::remove_file(place.generation())),
            Some(content) => std::fs::write(place.generation(), content).expect("written"),
        }
        let agent = place.start("10s").await;
        assert_eq!(elected(&agent, "e", "b", 10_000).await, None, "{told}");
        assert!(says(&agent, told), "{told}: {:?}", agent.early_log());
    }
}

#[tokio::test]
async fn a_deleted_database_whose_side_file_is_left_makes_the_agent_abstain() {
    let place = Place::new();
    let mut agent = place.start("10s").await;
    assert_eq!(elected(&agent, "e", "a", 10_000).await, Some(true));
    agent.kill();
    std::fs::remove_file(place.database()).expect("removed");
    let mut agent = place.start("10s").await;
    assert_eq!(elected(&agent, "e", "b", 10_000).await, None);
    agent.kill();
    // Nothing is left that could show it: a first start.
    std::fs::remove_dir_all(place.data()).expect("removed");
    std::fs::create_dir(place.data()).expect("a directory");
    let agent = place.start("10s").await;
    assert_eq!(elected(&agent, "e", "b", 10_000).await, Some(true));
}

#[tokio::test]
async fn another_database_behind_a_symbolic_link_makes_the_agent_abstain() {
    let place = Place::new();
    let current = place.data().join("current.redb");
    std::os::unix::fs::symlink(&current, place.database()).expect("a link");
    let mut agent = place.start("10s").await;
    assert_eq!(elected(&agent, "e", "a", 1_000).await, Some(true));
    agent.kill();
    let mut agent = place.start("10s").await;
    assert_eq!(guard(&agent).await, 0, "the same database");
    agent.kill();
    let copy = place.copy("copy");
    std::fs::remove_file(place.database()).expect("removed");
    std::os::unix::fs::symlink(&copy, place.database()).expect("a link");
    let agent = place.start("10s").await;
    assert_eq!(elected(&agent, "f", "b", 1_000).await, None);
}

#[tokio::test]
async fn restarts_that_lose_nothing_make_no_agent_abstain() {
    let place = Place::new();
    for round in 0..5 {
        let mut agent = place.start("60s").await;
        assert_eq!(guard(&agent).await, 0);
        let election = format!("e{round}");
        assert_eq!(elected(&agent, &election, "a", 60_000).await, Some(true));
        match round % 2 {
            0 => agent.kill(),
            _ => {
                agent.signal("TERM");
                assert!(agent.exit().await.success());
            }
        }
    }
}

#[tokio::test]
async fn a_restart_neither_ends_the_wait_nor_begins_it_again() {
    let place = Place::new();
    let mut agent = place.start("4s").await;
    assert_eq!(elected(&agent, "old", "a", 1_000).await, Some(true));
    agent.kill();
    let older = place.copy("older");
    let mut agent = place.start("4s").await;
    assert_eq!(elected(&agent, "e", "a", 4_000).await, Some(true));
    let granted = Instant::now();
    agent.kill();
    place.copy_back(&older);

    let mut agent = place.start("4s").await;
    let began = Instant::now();
    // Restarts half a second apart, for longer than the wait lasts.
    loop {
        let answer = elected(&agent, "e", "b", 1_000).await;
        if answer == Some(true) {
            break;
        }
        assert_eq!(answer, None);
        assert!(began.elapsed() < Duration::from_secs(40), "it never ends");
        tokio::time::sleep(Duration::from_millis(500)).await;
        agent.kill();
        agent = place.start("4s").await;
    }
    assert!(
        granted.elapsed() >= Duration::from_secs(4),
        "it was cut short"
    );
}

#[tokio::test]
async fn the_longest_terms_count_when_shorter_ones_are_set_later() {
    let place = Place::new();
    let mut agent = place.start("30s").await;
    assert_eq!(elected(&agent, "old", "a", 1_000).await, Some(true));
    agent.kill();
    let older = place.copy("older");
    let mut agent = place.start("30s").await;
    assert_eq!(elected(&agent, "e", "a", 30_000).await, Some(true));
    agent.kill();
    // One start with the shorter terms and the file in order, one after it was rolled back.
    place.start("1s").await.kill();
    place.copy_back(&older);
    let agent = place.start("1s").await;
    assert!(guard(&agent).await > 25_000);
    assert_eq!(elected(&agent, "e", "b", 1_000).await, None);
}

#[tokio::test]
async fn without_the_guard_an_older_file_is_only_reported() {
    let place = Place::new();
    let off = [("EA_RESTART_GUARD", "off")];
    let mut agent = place.start_with(&off).await;
    assert_eq!(elected(&agent, "old", "a", 1_000).await, Some(true));
    agent.kill();
    let older = place.copy("older");
    let mut agent = place.start_with(&off).await;
    assert_eq!(elected(&agent, "e", "a", 30_000).await, Some(true));
    agent.kill();
    place.copy_back(&older);
    let mut agent = place.start_with(&off).await;
    assert!(
        says(&agent, "EA_RESTART_GUARD=off"),
        "{:?}",
        agent.early_log()
    );
    assert_eq!(elected(&agent, "e", "b", 1_000).await, Some(true));
    agent.kill();
    // What may have been forgotten still counts when the guard is turned on again.
    let agent = place.start("1s").await;
    assert!(guard(&agent).await > 20_000);
}

#[tokio::test]
async fn restarts_do_not_keep_a_dead_leader() {
    let place = Place::new();
    let mut agent = place.start("10s").await;
    assert_eq!(elected(&agent, "e", "dead", 2_000).await, Some(true));
    agent.kill();
    // The first start cannot know the leader's last reply: a full term from then, and no more.
    let began = Instant::now();
    let mut agent = place.start("10s").await;
    loop {
        match elected(&agent, "e", "next", 2_000).await {
            Some(true) => break,
            held => assert_eq!(held, Some(false)),
        }
        assert!(began.elapsed() < Duration::from_secs(30), "held for ever");
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        agent.kill();
        agent = place.start("10s").await;
    }
    // A term after the first start: the agent may have confirmed it to the leader just before it died.
    assert!(began.elapsed() >= Duration::from_secs(2));
}

#[tokio::test]
async fn a_leader_that_extends_between_restarts_keeps_its_full_term() {
    let place = Place::new();
    let mut agent = place.start("10s").await;
    let won = agent.campaign("e", "a", 3_000).await;
    assert!(won.elected);
    for _ in 0..3 {
        agent.kill();
        agent = place.start("10s").await;
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert!(agent.extend("e", "a", 3_000, won.token).await.value);
    }
    let extended = Instant::now();
    agent.kill();
    agent = place.start("10s").await;
    tokio::time::sleep(Duration::from_secs(2).saturating_sub(extended.elapsed())).await;
    assert_eq!(elected(&agent, "e", "b", 1_000).await, Some(false));
    // So does one whose repeated campaign is answered.
    let mut again = campaign("f", "a", 3_000);
    again.request_id = "once".to_owned();
    let first = agent.try_campaign(again.clone()).await.expect("an answer");
    agent.kill();
    agent = place.start("10s").await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let second = agent.try_campaign(again).await.expect("an answer");
    assert_eq!(first.token, second.token);
    agent.kill();
    agent = place.start("10s").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(elected(&agent, "f", "b", 1_000).await, Some(false));
}

/// Runs `election-agent restore`: whether it succeeded, and its output.
fn restore(place: &Place, from: &Path, settings: &[(&str, &str)]) -> (bool, String) {
    let (database, from) = (
        place.database().display().to_string(),
        from.display().to_string(),
    );
    let settings = [&[("EA_EMBEDDED_PATH", &*database)], settings].concat();
    let output = command_output(&["restore", "--from", &from], &settings);
    let code = output.status.code();
    assert!(matches!(code, Some(0 | 2)), "{output:?}");
    let text = [output.stdout, output.stderr].concat();
    (code == Some(0), String::from_utf8(text).expect("UTF-8"))
}

/// Everything in the database's directory, by name.
fn files(place: &Place) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(place.data()).expect("a directory");
    let file = |entry: std::fs::DirEntry| {
        let content = std::fs::read(entry.path()).expect("readable");
        (entry.file_name().into_string().expect("UTF-8"), content)
    };
    entries
        .map(|entry| file(entry.expect("an entry")))
        .collect()
}

#[tokio::test]
async fn a_restored_copy_has_its_leaders_and_elects_no_others_for_the_longest_term() {
    let place = Place::new();
    let mut agent = place.start("60s").await;
    let old = agent.campaign("old", "a", 60_000).await;
    agent.kill();
    let copy = place.copy("copy");
    let mut agent = place.start("60s").await;
    assert_eq!(elected(&agent, "e", "a", 60_000).await, Some(true));
    agent.kill();
    // Even without its side file, which would show that the database is older.
    std::fs::remove_file(place.generation()).expect("removed");
    std::fs::set_permissions(place.database(), Permissions::from_mode(0o640)).expect("set");

    let (restored, told) = restore(&place, &copy, &[("EA_MAX_TERM", "2s")]);
    assert!(restored, "{told}");
    assert!(
        told.contains("be in quarantine for 1m") && told.contains("1 leases"),
        "{told}"
    );
    let files = files(&place);
    let kept = files.keys().find(|name| name.contains(".replaced-"));
    let kept = kept.unwrap_or_else(|| panic!("{:?}", files.keys()));
    assert!(told.contains(kept), "{told}");
    assert_eq!(files.len(), 2, "{:?}", files.keys());
    let mode = std::fs::metadata(place.database())
        .expect("there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o640);
    let kept = place.data().join(kept);

    let mut agent = place.start("2s").await;
    assert!(
        says(&agent, "was restored from a copy"),
        "{:?}",
        agent.early_log()
    );
    assert!(guard(&agent).await > 50_000);
    assert_eq!(elected(&agent, "e", "b", 1_000).await, None);
    assert!(agent.extend("old", "a", 2_000, old.token).await.value);
    agent.kill();
    assert!(guard(&place.start("2s").await).await > 50_000);

    // What was replaced is whole: it can be put back.
    let (restored, told) = restore(&place, &kept, &[]);
    assert!(restored && told.contains("2 leases"), "{told}");
}

#[tokio::test]
async fn nothing_is_restored_in_the_place_of_a_database_in_use_or_from_what_is_none() {
    let place = Place::new();
    let mut agent = place.start("60s").await;
    assert_eq!(elected(&agent, "e", "a", 60_000).await, Some(true));
    let (garbage, empty) = (
        place.directory.path().join("garbage"),
        place.directory.path().join("empty"),
    );
    std::fs::write(&garbage, [7; 10_000]).expect("written");
    std::fs::write(&empty, b"").expect("written");
    agent.kill();
    let copy = place.copy("copy");
    let link = place.directory.path().join("link");
    std::os::unix::fs::symlink(place.database(), &link).expect("a link");
    let before = files(&place);
    for (from, told) in [
        (garbage.as_path(), "--from"),
        (empty.as_path(), "it is empty"),
        (Path::new("/no/such/copy"), "No such file"),
        (place.directory.path(), "it is no file"),
        (place.database().as_path(), "the database itself"),
        (link.as_path(), "the database itself"),
    ] {
        let (restored, text) = restore(&place, from, &[]);
        assert!(!restored && text.contains(told), "{told}: {text}");
        assert!(text.contains("nothing was restored"), "{text}");
    }
    let agent = place.start("60s").await;
    let (restored, text) = restore(&place, &copy, &[]);
    assert!(!restored && text.contains("stop the agent first"), "{text}");
    let (restored, text) = restore(&Place::new(), &place.database(), &[]);
    assert!(!restored && text.contains("an agent has it open"), "{text}");
    assert_eq!(elected(&agent, "e", "b", 1_000).await, Some(false));
    drop(agent);
    let after = files(&place);
    assert!(after.keys().eq(before.keys()), "{:?}", after.keys());

    let output = command_output(&["restore", "--from", "x"], &[]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("EA_EMBEDDED_PATH is not set"), "{text}");
}

#[tokio::test]
async fn a_copy_is_restored_where_the_database_is_damaged_or_gone() {
    let place = Place::new();
    let mut agent = place.start("60s").await;
    assert_eq!(elected(&agent, "e", "a", 60_000).await, Some(true));
    agent.kill();
    let copy = place.copy("copy");
    std::fs::write(place.database(), [7; 10_000]).expect("written");
    for damaged in [true, false] {
        let (restored, told) = restore(&place, &copy, &[]);
        assert!(restored, "{told}");
        assert_eq!(told.contains(".replaced-"), damaged, "{told}");
        let mut agent = place.start("60s").await;
        assert_eq!(agent.leader("e").await.expect("known"), "a");
        assert_eq!(elected(&agent, "f", "b", 1_000).await, None);
        agent.kill();
        std::fs::remove_file(place.database()).expect("removed");
    }
}

#[tokio::test]
async fn a_side_file_that_cannot_be_written_is_reported_with_its_setting() {
    let place = Place::new();
    std::fs::create_dir(place.generation()).expect("a directory");
    let path = place.database().display().to_string();
    let refused = command_output(&[], &[("EA_EMBEDDED_PATH", &path)]);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{text}");
    for told in [
        "EA_EMBEDDED_PATH",
        "leases.redb.generation",
        "let the agent's user",
    ] {
        assert!(text.contains(told), "{told}: {text}");
    }
}
