//! These tests use a paused clock and an in-memory stream.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::*;
use hyper::rt::Timer as _;

const CONDUCT: Conduct = Conduct {
    first_byte: Duration::from_secs(3),
    head: Duration::from_secs(5),
    min_ping_interval: Duration::from_secs(10),
};
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const HEADERS: [u8; 9] = [0, 0, 0, 1, 4, 0, 0, 0, 1];

fn watched() -> (DuplexStream, Watched<DuplexStream>, Heads) {
    let (client, server) = duplex(1 << 16);
    let heads = Heads::default();
    (client, Watched::new(server, CONDUCT, heads.clone()), heads)
}

/// Reads until the connection is closed or idle for an hour. Returns the time until it was closed, in whole seconds.
async fn cut(watched: &mut Watched<DuplexStream>) -> Option<u64> {
    let began = Instant::now();
    let reading = async {
        let mut buffer = [0; 64];
        while watched.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
    };
    let hour = Duration::from_secs(3600);
    let read = tokio::time::timeout(hour, reading).await;
    read.ok().map(|()| began.elapsed().as_secs())
}

async fn said(mut client: DuplexStream) -> Vec<u8> {
    let mut said = Vec::new();
    client.read_to_end(&mut said).await.expect("an end");
    said
}

#[tokio::test(start_paused = true)]
async fn the_first_byte_has_its_time() {
    let (_client, mut watched, _) = watched();
    assert_eq!(cut(&mut watched).await, Some(3));
}

#[tokio::test(start_paused = true)]
async fn a_head_has_its_time_from_its_first_byte_however_it_trickles_in() {
    let (mut client, mut watched, heads) = watched();
    let trickle = tokio::spawn(async move {
        sleep(Duration::from_secs(2)).await;
        for byte in b"GET / HTTP/1.1".iter().cycle() {
            if client.write_all(&[*byte]).await.is_err() {
                break;
            }
            sleep(Duration::from_millis(300)).await;
        }
        client
    });
    let _awaited = heads.sleep(Duration::ZERO);
    assert_eq!(cut(&mut watched).await, Some(7));
    drop(watched);
    let client = trickle.await.expect("no panic");
    assert_eq!(said(client).await, REQUEST_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn between_requests_there_is_no_limit_and_every_head_has_one() {
    let (mut client, mut watched, heads) = watched();
    let first = heads.sleep(Duration::ZERO);
    client
        .write_all(b"GET / HTTP/1.1\r\n\r\n")
        .await
        .expect("sent");
    let mut request = [0; 18];
    watched.read_exact(&mut request).await.expect("a request");
    drop(first);
    assert_eq!(cut(&mut watched).await, None, "a request is under way");
    client.write_all(b"its body").await.expect("sent");
    assert_eq!(cut(&mut watched).await, None, "a body has no limit here");
    let _second = heads.sleep(Duration::ZERO);
    assert_eq!(cut(&mut watched).await, None, "nothing of it has come");
    client.write_all(b"G").await.expect("sent");
    assert_eq!(cut(&mut watched).await, Some(5));
}

#[tokio::test(start_paused = true)]
async fn half_a_preface_is_cut_and_a_quiet_http_2_connection_is_not() {
    let (mut client, mut half, _) = watched();
    client.write_all(&PREFACE[..12]).await.expect("sent");
    assert_eq!(cut(&mut half).await, Some(5));

    let (mut client, mut quiet, _) = watched();
    let opening = [&PREFACE[..], &SETTINGS, &PING].concat();
    client.write_all(&opening).await.expect("sent");
    assert_eq!(cut(&mut quiet).await, None);
    // An incomplete header of a request.
    client.write_all(&HEADERS[..5]).await.expect("sent");
    assert_eq!(cut(&mut quiet).await, Some(5));
    drop(quiet);
    assert_eq!(said(client).await, calm_down("slow_headers"));
}

#[tokio::test(start_paused = true)]
async fn a_header_block_without_its_end_is_cut() {
    let (mut client, mut watched, _) = watched();
    let opening = [&PREFACE[..], &SETTINGS, &[0, 0, 0, 1, 0, 0, 0, 0, 1]].concat();
    client.write_all(&opening).await.expect("sent");
    assert_eq!(cut(&mut watched).await, Some(5));
}

/// Sends pings at this interval until the connection is closed, at most twenty. Returns the number of pings sent and
/// the bytes that the client received.
async fn pings(apart: Duration, mut answer: impl FnMut(usize) -> Vec<u8>) -> (usize, Vec<u8>) {
    let (mut client, mut watched, _) = watched();
    let opening = [&PREFACE[..], &SETTINGS].concat();
    client.write_all(&opening).await.expect("sent");
    let mut buffer = [0; 64];
    let read = watched.read_exact(&mut buffer[..opening.len()]).await;
    read.expect("the opening");
    for sent in 1..=20 {
        client.write_all(&PING).await.expect("sent");
        if watched.read(&mut buffer).await.is_err() {
            drop(watched);
            return (sent, said(client).await);
        }
        watched.write_all(&answer(sent)).await.expect("open");
        sleep(apart).await;
    }
    (20, Vec::new())
}

#[tokio::test(start_paused = true)]
async fn pings_that_come_too_soon_are_strikes_until_there_is_an_answer() {
    let nothing = |_| Vec::new();
    let (sent, found) = pings(Duration::from_secs(1), nothing).await;
    assert_eq!(sent, 4, "one, and three strikes");
    assert_eq!(found, calm_down("too_many_pings"));
    assert_eq!(pings(Duration::from_millis(8_990), nothing).await.0, 4);
    assert_eq!(pings(Duration::from_secs(9), nothing).await.0, 20);
    // A reply after every third ping.
    let answers = |sent: usize| match sent % 3 {
        0 => HEADERS.to_vec(),
        _ => Vec::new(),
    };
    assert_eq!(pings(Duration::from_millis(1), answers).await.0, 20);
    // SETTINGS are not a reply.
    let settings = |_| SETTINGS.to_vec();
    assert_eq!(pings(Duration::from_millis(1), settings).await.0, 4);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_told_in_the_middle_of_a_frame() {
    let half = |sent| match sent {
        3 => SETTINGS[..4].to_vec(),
        _ => Vec::new(),
    };
    let (sent, found) = pings(Duration::from_millis(1), half).await;
    assert_eq!((sent, found), (4, SETTINGS[..4].to_vec()));
}

#[tokio::test(start_paused = true)]
async fn one_that_takes_no_answers_is_cut_as_well() {
    let (mut client, server) = duplex(64);
    let mut watched = Watched::new(server, CONDUCT, Heads::default());
    let opening = [&PREFACE[..], &SETTINGS, &HEADERS[..3]].concat();
    client.write_all(&opening).await.expect("sent");
    let mut buffer = [0; 64];
    let read = watched.read_exact(&mut buffer[..opening.len()]).await;
    read.expect("the opening");
    let began = Instant::now();
    let stuck = watched.write_all(&[0; 1024]).await;
    stuck.expect_err("the client reads nothing");
    assert_eq!(began.elapsed(), CONDUCT.head);
}
