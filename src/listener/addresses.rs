//! Rewrites an `:authority` that lists several addresses into one that HTTP/2 requests may have.
//!
//! gRPC's C core, and with it grpcio and the clients in C++, C#, PHP and Ruby, sends the whole list of a target such as
//! `ipv4:10.0.0.1:443,10.0.0.2:443`, with or without percent-encoding. A URI must not have such an authority ([RFC
//! 3986], 3.2), so the HTTP/2 implementation would reset every request without a reason that the client could see. The
//! agent does not use the authority, so all bytes after the first address that could be invalid become `-`.
//!
//! Bytes are replaced in place: lengths must not change, because the compression of later headers depends on them ([RFC
//! 7541], 4.1). Header blocks are parsed byte by byte without buffering. Huffman-coded authorities pass unchanged; the
//! C core sends none.
//!
//! [RFC 3986]: https://www.rfc-editor.org/rfc/rfc3986
//! [RFC 7541]: https://www.rfc-editor.org/rfc/rfc7541

use super::frames::Frames;

/// The name of the field and its index in the static table.
const AUTHORITY: &[u8; 10] = b":authority";
const AUTHORITY_INDEX: usize = 1;
/// Shift of the last accepted byte of an integer. Longer integers are not lengths or indexes of real headers.
const LARGEST_SHIFT: u32 = 21;

/// Follows the frames of a client from the first one on.
#[derive(Debug, Default)]
pub(super) struct AddressLists {
    frames: Frames,
    block: Option<Block>,
    /// Whether the client sends lists.
    found: bool,
}

/// The parser's state within a header block.
#[derive(Debug, Default)]
struct Block {
    /// Number of bytes in the frame before the block continues.
    before: usize,
    at: At,
    /// Whether the current field matches the authority so far.
    is_authority: bool,
    /// Whether the first address of the list has ended.
    is_list: bool,
    /// Whether the block contained a list.
    found: bool,
}

/// What the next byte of a header block is part of ([RFC 7541], 5 and 6).
///
/// [RFC 7541]: https://www.rfc-editor.org/rfc/rfc7541
#[derive(Debug, Clone, Copy, Default)]
enum At {
    #[default]
    Field,
    /// The rest of an integer: the value so far and the shift of its next bits.
    Number(Number, usize, u32),
    Length(Text),
    /// A string with this many remaining bytes.
    Text(Text, usize),
}

/// What an integer denotes.
#[derive(Debug, Clone, Copy)]
enum Number {
    /// An indexed field, or a new size of the table.
    Field,
    /// The index of a field name whose value follows.
    Name,
    Length(Text),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    Name,
    Value,
}

impl AddressLists {
    /// Parses the next bytes and rewrites lists in authorities. Returns false when no more parsing is needed: the
    /// client's first request contains no list or cannot be parsed.
    pub(super) fn change(&mut self, mut bytes: &mut [u8]) -> bool {
        while !bytes.is_empty() {
            let in_payload = self.frames.in_payload();
            let (taken, frame) = self.frames.step(bytes);
            let (part, rest) = bytes.split_at_mut(taken);
            bytes = rest;
            if let Some(frame) = frame.filter(|frame| frame.is_headers()) {
                // The C core sends no padding.
                let Some(before) = frame.before_block() else {
                    return false;
                };
                self.block = Some(Block {
                    before,
                    ..Block::default()
                });
            }
            if in_payload
                && let Some(block) = &mut self.block
                && block.change(part).is_none()
            {
                return false;
            }
            if self.frames.at_boundary()
                && let Some(block) = self.block.take()
            {
                self.found |= block.found;
                if !self.found {
                    return false;
                }
            }
        }
        true
    }
}

impl Block {
    /// Parses bytes of a header block; `None` if they are invalid.
    fn change(&mut self, bytes: &mut [u8]) -> Option<()> {
        for byte in bytes {
            match self.before {
                0 => self.at = self.next(byte)?,
                _ => self.before -= 1,
            }
        }
        Some(())
    }

    fn next(&mut self, byte: &mut u8) -> Option<At> {
        Some(match self.at {
            At::Field => match byte.leading_zeros() {
                0 => self.number(Number::Field, *byte, 7),
                1 => self.number(Number::Name, *byte, 6),
                2 => self.number(Number::Field, *byte, 5),
                _ => self.number(Number::Name, *byte, 4),
            },
            At::Number(number, value, shift) => {
                let value = value + (usize::from(*byte & 0x7f) << shift);
                match *byte & 0x80 {
                    0 => self.known(number, value),
                    _ if shift == LARGEST_SHIFT => return None,
                    _ => At::Number(number, value, shift + 7),
                }
            }
            At::Length(text) => {
                self.is_authority &= *byte & 0x80 == 0;
                self.number(Number::Length(text), *byte, 7)
            }
            At::Text(text, left) => {
                if self.is_authority {
                    self.read(text, left, byte);
                }
                rest(text, left - 1)
            }
        })
    }

    fn number(&mut self, number: Number, byte: u8, bits: u32) -> At {
        let most = (1_usize << bits) - 1;
        match usize::from(byte) & most {
            value if value == most => At::Number(number, value, 0),
            value => self.known(number, value),
        }
    }

    fn known(&mut self, number: Number, value: usize) -> At {
        match number {
            Number::Field => At::Field,
            Number::Name => {
                self.is_authority = matches!(value, 0 | AUTHORITY_INDEX);
                self.is_list = false;
                match value {
                    0 => At::Length(Text::Name),
                    _ => At::Length(Text::Value),
                }
            }
            Number::Length(text) => {
                self.is_authority &= text == Text::Value || value == AUTHORITY.len();
                rest(text, value)
            }
        }
    }

    /// Processes a byte of the authority, or of a potential authority name.
    fn read(&mut self, text: Text, left: usize, byte: &mut u8) {
        match text {
            Text::Name => self.is_authority = *byte == AUTHORITY[AUTHORITY.len() - left],
            Text::Value => {
                self.is_list |= matches!(*byte, b',' | b'%');
                self.found |= self.is_list;
                if self.is_list && !byte.is_ascii_alphanumeric() && *byte != b'.' {
                    *byte = b'-';
                }
            }
        }
    }
}

/// Returns the state within a string with this many remaining bytes, or after it.
fn rest(text: Text, left: usize) -> At {
    match (text, left) {
        (Text::Name, 0) => At::Length(Text::Value),
        (Text::Value, 0) => At::Field,
        (text, left) => At::Text(text, left),
    }
}

#[cfg(test)]
mod tests {
    use http::uri::Authority;

    use super::*;

    /// Encodes a literal with incremental indexing, as the C core does.
    fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
        [&[0x40], &*text(name), &text(value)].concat()
    }

    fn text(text: &[u8]) -> Vec<u8> {
        let length = u8::try_from(text.len()).expect("short");
        match length.checked_sub(0x7f) {
            None => [&[length], text].concat(),
            Some(more) => [&[0x7f, more], text].concat(),
        }
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).expect("short");
        [&[0, 0, length, kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// Parses frames in chunks of this size. Returns the resulting bytes and whether parsing continues.
    fn changed(frames: &[u8], parts: usize) -> (Vec<u8>, bool) {
        let (mut lists, mut bytes) = (AddressLists::default(), frames.to_vec());
        let goes_on = bytes.chunks_mut(parts).all(|part| lists.change(part));
        (bytes, goes_on)
    }

    const SETTINGS: [u8; 15] = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0x40, 10, b',', b',', b'%', b'%'];

    #[test]
    fn lists_become_authorities_of_the_same_length_however_the_bytes_come() {
        for (list, expected) in [
            ("127.0.0.1:1,127.0.0.1:2", "127.0.0.1:1-127.0.0.1-2"),
            ("127.0.0.1:1%2C127.0.0.1:2", "127.0.0.1:1-2C127.0.0.1-2"),
            ("[::1]:1,[::1]:2", "[::1]:1----1--2"),
            ("%5B::1%5D:1%2C%5B::1%5D:2", "-5B--1-5D-1-2C-5B--1-5D-2"),
        ] {
            assert!(list.parse::<Authority>().is_err(), "{list}");
            assert!(expected.parse::<Authority>().is_ok(), "{expected}");
            let plain = |authority: &str| {
                let before = [
                    literal(b":path", b"/a,b%"),
                    // An indexed field and a new size of the table.
                    vec![0x83, 0x3f, 0xe1, 0x1f],
                    literal(b":authoritx", b"a,b:"),
                    literal(b"long", &[b','; 130]),
                ]
                .concat();
                let block = [
                    &*before,
                    &literal(AUTHORITY, authority.as_bytes()),
                    &literal(b"x", b"a,b:"),
                ];
                let block = block.concat();
                let (first, second) = block.split_at(before.len() + 18);
                [
                    &SETTINGS[..],
                    // With a priority.
                    &frame(1, 0x20, &[&[0; 5], first].concat()),
                    &frame(9, 0x4, second),
                    &frame(0, 0, b"a,b:"),
                    &frame(1, 0x4, &[&[0x41], &*text(authority.as_bytes())].concat()),
                ]
                .concat()
            };
            for parts in [1, 2, 3, 7, 1_000] {
                let changed = changed(&plain(list), parts);
                assert_eq!(changed, (plain(expected), true), "{list} in {parts}");
            }
        }
    }

    #[test]
    fn other_clients_are_followed_to_their_first_request_only() {
        let usual = literal(AUTHORITY, b"127.0.0.1:1");
        let list = literal(AUTHORITY, b"127.0.0.1:1,127.0.0.1:2");
        // A length of more than four bytes, and a Huffman-coded authority.
        let broken = [0x40, 0x7f, 0xff, 0xff, 0xff, 0xff];
        let huffman = [0x41, 0x83, b',', b'%', b','];
        let padded = [&[0], &*list].concat();
        for (flags, first) in [(4, &usual[..]), (4, &broken), (4, &huffman), (0xc, &padded)] {
            let next = frame(1, 4, &list);
            let frames = [&SETTINGS[..], &frame(1, flags, first), &next].concat();
            for parts in [1, 1_000] {
                assert_eq!(
                    changed(&frames, parts),
                    (frames.clone(), false),
                    "{first:?}"
                );
            }
        }
    }
}
