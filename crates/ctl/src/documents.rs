//! Documents of the program: completions, the manual page, and its own copy.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use clap::{ArgMatches, Command};
use clap_complete::Shell;

use crate::{
    cli::{AGENT, EXIT_CODES},
    failure::Failure,
    output::written,
    run::OWN_BINARY,
};

pub(crate) fn completions(mut line: Command, given: &ArgMatches) -> Result<u8, Failure> {
    let shell = match given.get_one::<String>("shell").map(String::as_str) {
        Some("zsh") => Shell::Zsh,
        Some("fish") => Shell::Fish,
        _ => Shell::Bash,
    };
    let name = line.get_name().to_owned();
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut line, name, &mut text);
    written(io::Write::write_all(&mut io::stdout(), &text))?;
    Ok(0)
}

/// Copies the program. One that is being executed at the place is replaced, not written to.
pub(crate) fn install(given: &ArgMatches) -> Result<u8, Failure> {
    let Some(to) = given.get_one::<PathBuf>("to") else {
        return Err(Failure::own("no file is given"));
    };
    let copied = copy(Path::new(OWN_BINARY), to);
    copied.map_err(|error| Failure::own(format!("{}: {error}", to.display())))?;
    Ok(0)
}

fn copy(program: &Path, to: &Path) -> io::Result<()> {
    let mut beside = to.as_os_str().to_owned();
    beside.push(format!(".{:016x}", fastrand::u64(..)));
    // A file of its own: the directory may be one that others write to.
    let mut copy = File::options().write(true).create_new(true).open(&beside)?;
    let done = File::open(program).and_then(|mut program| {
        io::copy(&mut program, &mut copy)?;
        copy.set_permissions(program.metadata()?.permissions())?;
        fs::rename(&beside, to)
    });
    if done.is_err() {
        // Its error says less than that of the copy.
        let _ = fs::remove_file(&beside);
    }
    done
}

/// The page of the program, then those of its commands as sections.
pub(crate) fn man(mut line: Command) -> Result<u8, Failure> {
    line.build();
    let mut text = Vec::new();
    page(&line, &mut text).map_err(Failure::own)?;
    written(io::Write::write_all(&mut io::stdout(), &text))?;
    Ok(0)
}

fn page(line: &Command, text: &mut Vec<u8>) -> io::Result<()> {
    let whole = clap_mangen::Man::new(line.clone().after_help(""));
    whole.render_title(text)?;
    whole.render_name_section(text)?;
    whole.render_synopsis_section(text)?;
    whole.render_description_section(text)?;
    whole.render_options_section(text)?;
    for command in line
        .get_subcommands()
        .filter(|command| command.get_name() != "help")
    {
        let name = command.get_name();
        let mut roff = clap_mangen::roff::Roff::new();
        roff.control("SH", [name.to_uppercase().as_str()]);
        roff.to_writer(text)?;
        let mut section = Vec::new();
        let own = command.clone().after_help("").mut_args(|arg| {
            let general = arg.get_help_heading() == Some(AGENT);
            arg.hide(general)
        });
        let page = clap_mangen::Man::new(own);
        page.render_synopsis_section(&mut section)?;
        page.render_description_section(&mut section)?;
        page.render_options_section(&mut section)?;
        // Sections of a command are parts of its own.
        text.extend_from_slice(
            String::from_utf8_lossy(&section)
                .replace(".SH ", ".SS ")
                .as_bytes(),
        );
    }
    exit_codes(text)
}

fn exit_codes(text: &mut Vec<u8>) -> io::Result<()> {
    use clap_mangen::roff::{Roff, bold, roman};

    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    for line in EXIT_CODES.lines().skip(1) {
        let (code, meaning) = line.trim().split_once("  ").unwrap_or((line, ""));
        roff.control("TP", []);
        roff.text([bold(code)]);
        roff.text([roman(meaning.trim())]);
    }
    roff.to_writer(text)
}
