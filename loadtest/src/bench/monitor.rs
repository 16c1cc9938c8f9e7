//! Parses the output of Redis' MONITOR.

/// The arguments of a command that a client sent.
pub(crate) type Arguments = Vec<Vec<u8>>;

/// Parses a line such as `1795454165.061432 [0 127.0.0.1:50122] "GET" "a \"name\"\x00"`. Returns `None` for
/// commands of scripts, whose client is `lua`, and for other lines.
///
/// Redis writes arguments with `sdscatrepr`: bytes that are not printable appear as `\xHH`, `\n`, `\r`, `\t`,
/// `\a` or `\b`.
pub(crate) fn parse(line: &str) -> Option<Arguments> {
    let (_, rest) = line.split_once(" [")?;
    let (client, mut rest) = rest.split_once("] ")?;
    if client.ends_with(" lua") {
        return None;
    }
    let mut arguments = Vec::new();
    while !rest.is_empty() {
        let (argument, after) = quoted(rest)?;
        arguments.push(argument);
        rest = after.trim_start_matches(' ');
    }
    Some(arguments)
}

/// Splits the first quoted argument from the text that follows it.
fn quoted(text: &str) -> Option<(Vec<u8>, &str)> {
    let mut argument = Vec::new();
    let mut rest = text.strip_prefix('"')?;
    loop {
        let mut characters = rest.chars();
        let character = characters.next()?;
        rest = characters.as_str();
        match character {
            '"' => return Some((argument, rest)),
            '\\' => {
                let escaped = characters.next()?;
                rest = characters.as_str();
                argument.push(match escaped {
                    'n' => b'\n',
                    'r' => b'\r',
                    't' => b'\t',
                    'a' => 0x07,
                    'b' => 0x08,
                    'x' => {
                        let digits = rest.get(..2)?;
                        rest = rest.get(2..)?;
                        u8::from_str_radix(digits, 16).ok()?
                    }
                    '"' | '\\' => u8::try_from(escaped).ok()?,
                    _ => return None,
                });
            }
            other => argument.extend(other.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_as_the_client_sent_them() {
        let line = r#"1795454165.061432 [0 127.0.0.1:50122] "EVALSHA" "ab12" "2" "ela:{0}:lease:default/e" "" "a \"b\" \\ c""#;
        let expected: [&[u8]; 6] = [
            b"EVALSHA",
            b"ab12",
            b"2",
            b"ela:{0}:lease:default/e",
            b"",
            b"a \"b\" \\ c",
        ];
        assert_eq!(parse(line).expect("a command"), expected);
    }

    #[test]
    fn escapes_are_bytes() {
        let line = r#"1.2 [0 unix:/tmp/s] "SET" "\x00\xff\n\r\t\a\b" "] \"x""#;
        let expected: [&[u8]; 3] = [b"SET", b"\x00\xff\n\r\t\x07\x08", b"] \"x"];
        assert_eq!(parse(line).expect("a command"), expected);
    }

    #[test]
    fn what_no_client_sent_is_none() {
        for line in [
            r#"1.2 [0 lua] "HMGET" "key" "leader""#,
            "OK",
            "",
            r#"1.2 [0 127.0.0.1:1] "broken off"#,
            r#"1.2 [0 127.0.0.1:1] "half an escape \x0"#,
            r#"1.2 [0 127.0.0.1:1] "no such escape \q""#,
            r#"1.2 [0 127.0.0.1:1] not quoted"#,
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
