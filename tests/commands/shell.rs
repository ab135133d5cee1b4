//! Completion and man pages know every command and every flag that `--help` tells of.

use std::fs;
use std::process::Command;

use crate::support::replica::Scratch;
use crate::{BALANCE, one_line, run, text};

const SHELLS: [&str; 5] = ["bash", "elvish", "fish", "powershell", "zsh"];

fn printed(arguments: &[&str]) -> String {
    let output = run(arguments, &[]);
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{arguments:?}: {output:?}"
    );
    text(&output.stdout)
}

/// The first words of the indented lines below a heading of the help.
fn words_below(help: &str, heading: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != heading).skip(1);
    let indented = lines.take_while(|line| line.starts_with(' '));
    // Further lines of a text are indented deeper.
    let first = indented.filter_map(|line| line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')));
    first.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

fn commands() -> Vec<String> {
    let mut commands = words_below(&printed(&["--help"]), "Commands:");
    commands.retain(|command| command != "help");
    for known in ["dev", "serve", "migrate", "verify", "openapi", "completions", "man"] {
        assert!(commands.iter().any(|command| command == known), "{commands:?}");
    }
    commands
}

/// The flags that stand at the beginnings of lines of the help: `--listen`.
fn flags(command: &str) -> Vec<String> {
    let help = printed(&[command, "--help"]);
    let (above_the_examples, _) = help.split_once("\nExamples:").unwrap_or((&help, ""));
    let lines = above_the_examples.lines().map(str::trim_start);
    let flag = |line: &str| {
        let long = line.strip_prefix("-h, ").unwrap_or(line);
        let name: String = long
            .chars()
            .take_while(|letter| *letter == '-' || letter.is_ascii_lowercase())
            .collect();
        name.starts_with("--").then_some(name)
    };
    let flags: Vec<String> = lines.filter_map(flag).collect();
    assert!(flags.iter().any(|flag| flag == "--help"), "{help}");
    flags
}

#[test]
fn every_command_and_flag_has_its_completion_in_every_shell() {
    for shell in SHELLS {
        let script = printed(&["completions", shell]);
        for command in commands() {
            assert!(script.contains(&command), "{shell}: {command}");
            for flag in flags(&command) {
                let written = if shell == "fish" {
                    format!("-l {}", &flag[2..])
                } else {
                    flag
                };
                assert!(script.contains(&written), "{shell}: {command} {written}");
            }
        }
    }
    // clap tells of several lines what is allowed.
    let output = run(&["completions", "csh"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        SHELLS.iter().all(|shell| text(&output.stderr).contains(shell)),
        "{output:?}"
    );
}

/// What bash offers for the last of these words.
fn offered(words: &[&str]) -> Vec<String> {
    let list = words
        .iter()
        .map(|word| format!("'{word}'"))
        .collect::<Vec<_>>()
        .join(" ");
    let ask = format!(
        "set -eu\nsource <({BALANCE} completions bash)\n[[ $(complete -p balance) == *' -F _balance '* ]]\n\
         COMP_WORDS=({list}) COMP_CWORD=$(({} - 1)) COMPREPLY=()\n_balance balance '{}' '{}'\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"",
        words.len(),
        words.last().unwrap(),
        words[words.len() - 2],
    );
    let output = Command::new("bash")
        .args(["--norc", "--noprofile", "-c", &ask])
        .output()
        .unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{ask}\n{output:?}");
    text(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn bash_offers_commands_and_flags() {
    let all = offered(&["balance", ""]);
    for command in commands() {
        assert!(all.contains(&command), "{command}: {all:?}");
        let begun = offered(&["balance", &command, "--"]);
        for flag in flags(&command) {
            assert!(begun.contains(&flag), "{command} {flag}: {begun:?}");
        }
    }
    assert_eq!(offered(&["balance", "serv"]), ["serve"]);
    assert_eq!(offered(&["balance", "dev", "--dem"]), ["--demo"]);
    assert_eq!(offered(&["balance", "completions", "z"]), ["zsh"]);
}

/// What `mandoc` has against a page; nothing where it is not installed, as it is on the machine of continuous integration.
fn lint(path: &std::path::Path) -> String {
    match Command::new("mandoc")
        .args(["-T", "lint", "-W", "warning"])
        .arg(path)
        .output()
    {
        Ok(output) => text(&output.stdout) + &text(&output.stderr),
        Err(error) => {
            eprintln!("mandoc does not run, {path:?} is not checked: {error}");
            String::new()
        }
    }
}

#[test]
fn every_command_and_flag_has_its_place_in_the_man_pages() {
    let scratch = Scratch::new();
    let directory = scratch.0.join("share/man1");
    let told = printed(&["man", "--directory", directory.to_str().unwrap()]);
    assert_eq!(told.lines().count(), 1 + commands().len(), "{told}");
    assert!(told.lines().all(|path| fs::exists(path).unwrap()), "{told}");

    let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap();
    assert_eq!(printed(&["man"]), read("balance.1"));
    let plain = |page: &str| page.replace("\\-", "-");
    for command in commands() {
        assert!(
            plain(&read("balance.1")).contains(&format!("balance-{command}(1)")),
            "{command}"
        );
        let page = read(&format!("balance-{command}.1"));
        assert_eq!(printed(&["man", &command]), page);
        for flag in flags(&command) {
            assert!(plain(&page).contains(&flag), "{command} {flag}");
        }
    }
    assert!(read("balance-serve.1").contains("OPERATIONS_LOG_SYNC"));
    // A checkout knows its day, and a page without one is warned of.
    let no_date = env!("BALANCE_DATE").is_empty();
    for path in told.lines() {
        let complaints = lint(path.as_ref());
        let complaints: Vec<_> = complaints
            .lines()
            .filter(|line| !(no_date && (line.contains("missing date") || line.contains("cannot parse date"))))
            .collect();
        assert!(complaints.is_empty(), "{complaints:#?}");
    }

    let line = one_line(&run(&["man", "fly"], &[]));
    assert!(line.contains("\"fly\"") && line.contains("serve"), "{line}");
    let file = scratch.0.join("file");
    fs::write(&file, "").unwrap();
    let line = one_line(&run(&["man", "--directory", file.to_str().unwrap()], &[]));
    assert!(line.contains(file.to_str().unwrap()), "{line}");
}
