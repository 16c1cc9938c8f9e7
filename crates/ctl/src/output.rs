//! Tables for people, lines of JSON for programs.

use std::{
    fmt,
    io::{self, Write as _},
    path::Path,
    sync::OnceLock,
};

use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use serde::Serialize;
use serde_json::{Value, json};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use crate::failure::Failure;

/// Whether messages on the standard error are JSON, for programs.
static IN_JSON: OnceLock<()> = OnceLock::new();

/// Prints messages as a JSON object a line from now on.
pub(crate) fn complain_in_json() {
    // Fails only if it was set before.
    let _ = IN_JSON.set(());
}

/// Prints a message on the standard error.
pub(crate) fn complain(what: fmt::Arguments<'_>) {
    let what = what.to_string();
    write(&what, &json!({ "message": what }));
}

/// Prints why the command has failed.
pub(crate) fn report(failure: &Failure) {
    let what = failure.to_string();
    write(
        &what,
        &json!({ "error": what, "exit_code": failure.code() }),
    );
}

fn write(what: &str, object: &Value) {
    let line = if IN_JSON.get().is_some() {
        object.to_string()
    } else {
        let program = std::env::args_os().next().unwrap_or_default();
        let program = Path::new(&program).file_name().unwrap_or_default();
        format!("{}: {}", program.display(), printable(what.to_owned()))
    };
    // A failed write cannot be reported.
    let _ = writeln!(io::stderr(), "{line}");
}

/// A table without lines, each column as wide as it must be.
pub(crate) fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head.iter().map(|name| (*name).to_owned()));
    for row in rows {
        table.add_row(row.into_iter().map(printable));
    }
    if table.is_empty() {
        return head.join("  ");
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<_> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines.join("\n")
}

/// Replaces characters that control a terminal or reorder its text. Names, values and reasons come from others;
/// agents reject control characters, but the peer may be no agent.
pub(crate) fn printable(text: String) -> String {
    if !text.contains(is_harmful) {
        return text;
    }
    text.replace(is_harmful, "\u{fffd}")
}

fn is_harmful(letter: char) -> bool {
    let turns = matches!(
        letter,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    letter.is_control() || turns
}

/// The beginning of a line that fits in so many columns of a terminal.
pub(crate) fn fitting(line: &str, columns: usize) -> &str {
    let mut used = 0;
    let end = line.char_indices().find(|(_, letter)| {
        used += letter.width().unwrap_or_default();
        used > columns
    });
    end.map_or(line, |(end, _)| line.get(..end).unwrap_or(line))
}

/// Pads text with spaces to so many columns.
pub(crate) fn padded(text: &str, columns: usize) -> String {
    let missing = columns.saturating_sub(text.width());
    format!("{text}{:missing$}", "")
}

/// Prints text and a line's end.
pub(crate) fn print(text: impl fmt::Display) -> Result<(), Failure> {
    written(writeln!(io::stdout().lock(), "{text}"))
}

/// Prints a line of JSON.
pub(crate) fn print_json(line: &impl Serialize) -> Result<(), Failure> {
    print(serde_json::to_string(line).map_err(Failure::own)?)
}

/// The failure of a write to the standard output. A reader that has gone, as `head` does, has what it wanted.
pub(crate) fn written(done: io::Result<()>) -> Result<(), Failure> {
    done.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::silent(),
        _ => Failure::own(format!("the standard output: {error}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_told_nothing_by_names() {
        let named = "a\u{1b}[31m\u{202e}b\u{2069}\n\u{85}c".to_owned();
        assert_eq!(
            printable(named),
            "a\u{fffd}[31m\u{fffd}b\u{fffd}\u{fffd}\u{fffd}c"
        );
        let plain = "nightly: größte 選挙".to_owned();
        assert_eq!(printable(plain.clone()), plain);
    }

    #[test]
    fn letters_of_two_columns_count_as_two() {
        assert_eq!(fitting("選挙ab", 4), "選挙");
        assert_eq!(fitting("選挙ab", 3), "選");
        assert_eq!(fitting("選挙ab", 80), "選挙ab");
        assert_eq!(fitting("e\u{301}é", 1), "e\u{301}");
        assert_eq!(padded("選挙", 6), "選挙  ");
        assert_eq!(padded("longer", 2), "longer");
    }
}
