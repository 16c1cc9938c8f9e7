//! Parses the frame boundaries of an HTTP/2 connection in one direction, without buffering.
//!
//! Only the nine-byte header of each frame is parsed ([RFC 9113], sections 4.1 and 6). Validation is left to the HTTP/2
//! implementation.
//!
//! [RFC 9113]: https://www.rfc-editor.org/rfc/rfc9113

/// The preface that a client sends before its first frame.
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length of a frame header, in bytes.
const HEADER: usize = 9;

/// The types of frames that matter here.
pub(super) mod kind {
    pub(in crate::listener) const DATA: u8 = 0;
    pub(in crate::listener) const HEADERS: u8 = 1;
    pub(in crate::listener) const PING: u8 = 6;
    pub(in crate::listener) const GOAWAY: u8 = 7;
    pub(in crate::listener) const CONTINUATION: u8 = 9;
}

const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// A frame whose header is complete; its payload may not have arrived yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    flags: u8,
}

impl Frame {
    /// Returns whether the frame is a PING that requires an answer.
    pub(super) fn is_ping(self) -> bool {
        self.kind == kind::PING && self.flags & ACK == 0
    }

    /// Returns whether a header block begins in this frame.
    pub(super) fn is_headers(self) -> bool {
        self.kind == kind::HEADERS
    }

    /// Returns the number of payload bytes before the header block that begins in this frame; `None` if the frame is
    /// padded.
    pub(super) fn before_block(self) -> Option<usize> {
        (self.flags & PADDED == 0).then_some(match self.flags & PRIORITY {
            0 => 0,
            _ => 5,
        })
    }

    /// Returns whether the frame is part of a request or reply.
    pub(super) fn is_content(self) -> bool {
        matches!(self.kind, kind::DATA | kind::HEADERS)
    }
}

/// The parser's state for one direction.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// The header of the current frame, as received so far.
    header: [u8; HEADER],
    has: usize,
    /// Number of remaining bytes of the payload.
    payload: usize,
    /// Whether a header block continues in the next frame.
    block: bool,
    /// Number of frames and header blocks begun so far. A header block counts once.
    begun: u64,
}

impl Frames {
    /// Parses the next bytes and reports every frame whose header ends in them.
    pub(super) fn follow(&mut self, mut bytes: &[u8], mut report: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            let (taken, frame) = self.step(bytes);
            bytes = &bytes[taken..];
            if let Some(frame) = frame {
                report(frame);
            }
        }
    }

    /// Parses the first of these bytes, up to the end of one header or payload. Returns how many it took, and the frame
    /// whose header ends with them.
    pub(super) fn step(&mut self, bytes: &[u8]) -> (usize, Option<Frame>) {
        if self.payload > 0 {
            let skipped = self.payload.min(bytes.len());
            self.payload -= skipped;
            return (skipped, None);
        }
        if self.has == HEADER {
            self.has = 0;
        }
        if self.has == 0 && !self.block {
            self.begun += 1;
        }
        let taken = (HEADER - self.has).min(bytes.len());
        self.header[self.has..self.has + taken].copy_from_slice(&bytes[..taken]);
        self.has += taken;
        if self.has < HEADER {
            return (taken, None);
        }
        let [a, b, c, kind, flags, ..] = self.header;
        self.payload = u32::from_be_bytes([0, a, b, c]) as usize;
        if matches!(kind, kind::HEADERS | kind::CONTINUATION) {
            self.block = flags & END_HEADERS == 0;
        }
        (taken, Some(Frame { kind, flags }))
    }

    /// Returns whether the next byte is part of a payload.
    pub(super) fn in_payload(&self) -> bool {
        self.payload > 0
    }

    /// Returns whether all frames and header blocks are complete, so that a frame of any type may follow.
    pub(super) fn at_boundary(&self) -> bool {
        self.payload == 0 && !self.block && (self.has == 0 || self.has == HEADER)
    }

    /// Returns the number of an incomplete frame or header block that must be completed soon. DATA frames are excluded:
    /// their payload arrives at the pace of a request's body.
    pub(super) fn unfinished(&self) -> Option<u64> {
        let body = self.has == HEADER && self.header[3] == kind::DATA && !self.block;
        (!body && !self.at_boundary()).then_some(self.begun)
    }
}

/// Returns a GOAWAY with the error ENHANCE_YOUR_CALM and this reason.
///
/// The frame names the highest possible stream id, because the processed streams are unknown here.
pub(super) fn calm_down(why: &'static str) -> Vec<u8> {
    const ENHANCE_YOUR_CALM: u8 = 0xb;
    // The reasons are short enough for one byte of length.
    let length = 8 + why.len() as u8;
    let header = [0, 0, length, kind::GOAWAY, 0, 0, 0, 0, 0];
    let payload = [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, ENHANCE_YOUR_CALM];
    [&header, &payload[..], why.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        let header = [length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        [&header, payload].concat()
    }

    /// Frames of a client, with payloads that resemble frame headers.
    fn conversation() -> (Vec<u8>, Vec<u8>) {
        let decoy = frame(kind::PING, 0, &[0; 8]);
        let frames = [
            frame(4, 0, &[]),
            frame(4, ACK, &[]),
            frame(kind::HEADERS, END_HEADERS, &decoy),
            frame(kind::DATA, 0, &decoy),
            frame(kind::DATA, 1, &[]),
            frame(kind::PING, 0, &[0; 8]),
            frame(kind::PING, ACK, &[0; 8]),
            frame(kind::HEADERS, 0, &decoy),
            frame(kind::CONTINUATION, 0, &[]),
            frame(kind::CONTINUATION, END_HEADERS, &decoy),
            frame(kind::GOAWAY, 0, &[7; 300]),
        ];
        let kinds = frames.iter().map(|frame| frame[3]).collect();
        (frames.concat(), kinds)
    }

    #[test]
    fn bytes_split_anywhere_are_the_same_frames() {
        let (bytes, kinds) = conversation();
        for first in 0..=bytes.len() {
            for second in [first, bytes.len().min(first + 1), bytes.len()] {
                let (mut frames, mut seen, mut pings) = (Frames::default(), Vec::new(), 0);
                for part in [&bytes[..first], &bytes[first..second], &bytes[second..]] {
                    frames.follow(part, |frame| {
                        seen.push(frame.kind);
                        pings += usize::from(frame.is_ping());
                    });
                }
                assert_eq!((&seen, pings), (&kinds, 1), "split at {first} and {second}");
                assert!(frames.at_boundary() && frames.unfinished().is_none());
            }
        }
        let (mut frames, mut seen) = (Frames::default(), Vec::new());
        for byte in &bytes {
            frames.follow(&[*byte], |frame| seen.push(frame.kind));
        }
        assert_eq!(seen, kinds);
    }

    #[test]
    fn what_is_unfinished_has_one_number_until_it_is_whole() {
        let mut frames = Frames::default();
        let mut follow = |bytes: &[u8]| {
            frames.follow(bytes, |_| {});
            (frames.unfinished(), frames.at_boundary())
        };
        assert_eq!(follow(&[]), (None, true));
        // SETTINGS with six bytes, byte by byte.
        let settings = frame(4, 0, &[0; 6]);
        for byte in &settings[..14] {
            assert_eq!(follow(&[*byte]), (Some(1), false));
        }
        assert_eq!(follow(&settings[14..]), (None, true));
        // A header block in three frames.
        assert_eq!(follow(&frame(kind::HEADERS, 0, b"ab")), (Some(2), false));
        let more = frame(kind::CONTINUATION, 0, b"");
        assert_eq!(follow(&more[..3]), (Some(2), false));
        assert_eq!(follow(&more[3..]), (Some(2), false));
        let last = frame(kind::CONTINUATION, END_HEADERS, b"c");
        assert_eq!(follow(&last[..9]), (Some(2), false));
        assert_eq!(follow(&last[9..]), (None, true));
        // The payload of DATA may take any time, its header may not.
        let data = frame(kind::DATA, 0, b"abc");
        assert_eq!(follow(&data[..8]), (Some(3), false));
        assert_eq!(follow(&data[8..10]), (None, false));
        assert_eq!(follow(&data[10..]), (None, true));
        // A frame that begins in the same bytes in which the previous one ends has its own number.
        let ping = frame(kind::PING, 0, &[0; 8]);
        assert_eq!(follow(&ping[..12]), (Some(4), false));
        let next = [&ping[12..], &ping[..12]].concat();
        assert_eq!(follow(&next), (Some(5), false));
    }

    #[test]
    fn a_farewell_is_one_frame() {
        let (mut frames, mut seen) = (Frames::default(), Vec::new());
        let goaway = calm_down("too_many_pings");
        frames.follow(&goaway, |frame| seen.push(frame.kind));
        assert_eq!(seen, [kind::GOAWAY]);
        assert!(frames.at_boundary());
        assert_eq!(goaway[13..17], [0, 0, 0, 0xb]);
        assert_eq!(&goaway[17..], b"too_many_pings");
    }
}
