//! An HTTP/2 client that sends given bytes, also what no library would send.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::harness::Agent;

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const ACK: u8 = 1;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

pub(super) const ENHANCE_YOUR_CALM: u32 = 0xb;

/// The status 200 as `h2` writes it.
pub(super) const OK: u8 = 0x88;

#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let header = [length[1], length[2], length[3], kind, flags];
    [&header, &stream.to_be_bytes()[..], payload].concat()
}

/// The headers of a request, none of them compressed.
pub(super) fn headers(method: &str, path: &str) -> Vec<u8> {
    let method = match method {
        "GET" => 0x82,
        _ => 0x83,
    };
    let mut block = vec![method, 0x86];
    let named: [(&[u8], &str); 3] = [
        (&[0x04], path),
        (&[0x01], "agent"),
        (&[0x0f, 0x10], "application/json"),
    ];
    for (name, value) in named {
        block.extend(name);
        block.push(u8::try_from(value.len()).expect("short"));
        block.extend(value.as_bytes());
    }
    block
}

pub(super) struct Client(TcpStream);

impl Client {
    /// Connects, and sends the preface and settings.
    pub(super) async fn connect(agent: &Agent) -> Self {
        let mut client = Self::silent(agent).await;
        let settings = frame(SETTINGS, 0, 0, &[]);
        client.send(&[PREFACE, &settings].concat()).await;
        client
    }

    /// Connects.
    pub(super) async fn silent(agent: &Agent) -> Self {
        Self(TcpStream::connect(agent.address()).await.expect("connects"))
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.expect("open");
    }

    /// Sends as much as the agent takes.
    pub(super) async fn flood(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes).await;
    }

    /// The next frame; none when the connection is closed. Pings of the agent are answered.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        loop {
            let mut header = [0; 9];
            let reading = timeout(Duration::from_secs(10), self.0.read_exact(&mut header));
            reading.await.expect("something within ten seconds").ok()?;
            let [a, b, c, kind, flags, stream @ ..] = header;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            self.0.read_exact(&mut payload).await.ok()?;
            if kind == PING && flags & ACK == 0 {
                self.flood(&frame(PING, ACK, 0, &payload)).await;
                continue;
            }
            let stream = u32::from_be_bytes(stream);
            return Some(Frame {
                kind,
                flags,
                stream,
                payload,
            });
        }
    }

    /// The next frame of this kind; none when the connection is closed before.
    pub(super) async fn next_of(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }

    /// The agent's reason to end the connection: its code and words. None when it just closes.
    pub(super) async fn goaway(&mut self) -> Option<(u32, String)> {
        let payload = self.next_of(GOAWAY).await?.payload;
        let code = payload[4..8].try_into().expect("four bytes");
        let words = String::from_utf8_lossy(&payload[8..]).into_owned();
        Some((u32::from_be_bytes(code), words))
    }

    /// Waits until the connection is closed.
    pub(super) async fn closed(mut self) {
        while self.next().await.is_some() {}
    }

    /// Sends a request on this stream, and waits for the whole reply, which has to be 200.
    pub(super) async fn ask(&mut self, stream: u32, path: &str) {
        let request = headers("GET", path);
        self.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &request))
            .await;
        self.answered(stream).await;
    }

    pub(super) async fn answered(&mut self, stream: u32) {
        loop {
            let frame = self.next().await.expect("an answer");
            if frame.kind == HEADERS {
                assert_eq!((frame.stream, frame.payload[0]), (stream, OK), "{frame:?}");
            }
            if matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM > 0 {
                return;
            }
        }
    }

    /// Sends a ping and waits until it is answered.
    pub(super) async fn ping(&mut self) {
        self.send(&frame(PING, 0, 0, &[0; 8])).await;
        let answer = self.next_of(PING).await.expect("open");
        assert_eq!(answer.flags, ACK);
    }
}
