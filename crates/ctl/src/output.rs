//! Tables for people, lines of JSON for programs.

use std::{
    fmt,
    io::{self, Write as _},
    path::Path,
};

use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use serde::Serialize;

use crate::failure::Failure;

/// Tells people something on the standard error.
pub(crate) fn complain(what: fmt::Arguments<'_>) {
    let program = std::env::args_os().next().unwrap_or_default();
    let program = Path::new(&program).file_name().unwrap_or_default();
    // There is nobody to be told if it cannot be written.
    let _ = writeln!(io::stderr(), "{}: {what}", program.display());
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

/// Names and values may hold anything but control characters, as agents have it; a terminal is not trusted to them.
pub(crate) fn printable(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    text.chars()
        .map(|letter| {
            if letter.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                letter
            }
        })
        .collect()
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
