//! `balance completions` and `balance man`: what shells and `man` know of the program, made of the same definitions as
//! `--help`.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory, ValueHint};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::{Cli, CommandError, OutputError, print, say};
use crate::version::{DATE, VERSION};

#[derive(Args)]
pub(super) struct CompletionsArguments {
    /// The shell that is to complete: bash, elvish, fish, powershell or zsh
    #[arg(hide_possible_values = true)]
    shell: Shell,
}

#[derive(Args)]
pub(super) struct ManArguments {
    /// The page of this command [default: that of balance itself]
    #[arg(value_name = "COMMAND", conflicts_with = "directory")]
    command: Option<String>,

    /// Write all pages into this directory, made if missing
    #[arg(long, value_name = "DIRECTORY", value_hint = ValueHint::DirPath)]
    directory: Option<PathBuf>,
}

pub(super) fn completions(arguments: &CompletionsArguments) -> Result<(), OutputError> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "balance", &mut script);
    print(&script)
}

pub(super) fn man(arguments: &ManArguments) -> Result<(), CommandError> {
    let mut balance = Cli::command().disable_help_subcommand(true);
    balance.build();
    if let Some(directory) = &arguments.directory {
        let written = write_all(&balance, directory).map_err(|source| CommandError::WriteMan {
            directory: directory.clone(),
            source,
        });
        for path in written? {
            say(path.display())?;
        }
        return Ok(());
    }
    let command = match &arguments.command {
        None => &balance,
        Some(name) => balance
            .find_subcommand(name)
            .ok_or_else(|| CommandError::NoSuchCommand {
                name: name.clone(),
                known: balance
                    .get_subcommands()
                    .map(Command::get_name)
                    .collect::<Vec<_>>()
                    .join(", "),
            })?,
    };
    Ok(print(&page(command).map_err(CommandError::Man)?.1)?)
}

/// Writes the page of the program and that of each command; returns where they are.
fn write_all(balance: &Command, directory: &Path) -> io::Result<Vec<PathBuf>> {
    std::fs::create_dir_all(directory)?;
    let commands = std::iter::once(balance).chain(balance.get_subcommands());
    let write = |command| {
        let (name, text) = page(command)?;
        let path = directory.join(name);
        std::fs::write(&path, text)?;
        Ok(path)
    };
    commands.map(write).collect()
}

/// The page of a command, and the name of its file.
fn page(command: &Command) -> io::Result<(String, Vec<u8>)> {
    let man = Man::new(command.clone())
        .date(DATE)
        .source(concat!("balance ", env!("CARGO_PKG_VERSION")))
        .manual("balance");
    let name = man.get_filename();
    let man = man.title(name.trim_end_matches(".1").to_uppercase());
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    man.render_options_section(&mut text)?;
    if let Some(below) = command.get_after_help() {
        sections(&below.to_string()).to_writer(&mut text)?;
    }
    let mut version = Roff::default();
    version.control("SH", ["VERSION"]);
    version.text([roman(format!("balance {VERSION}"))]);
    version.to_writer(&mut text)?;
    Ok((name, text))
}

/// The texts of `help` as sections, their lines as they are.
fn sections(text: &str) -> Roff {
    let mut roff = Roff::default();
    for block in text.split("\n\n") {
        let (heading, lines) = block.split_once(":\n").unwrap_or(("Notes", block));
        roff.control("SH", [heading.to_uppercase().as_str()]);
        roff.control("nf", []);
        for line in lines.lines() {
            roff.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
        }
        roff.control("fi", []);
    }
    roff
}
