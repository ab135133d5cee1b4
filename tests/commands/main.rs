//! The commands as an operator or a newcomer runs them: what they print, how they end, and what they leave behind.

#[path = "../support/mod.rs"]
mod support;

mod dev;
mod left;
mod shell;
mod version;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::process::{Command, Output, Stdio};

use balance::commands::Cli;
use clap::CommandFactory;
use serde_json::Value;

use support::postgres::{Role, fresh_database};
use support::replica::Scratch;
use support::tokens;

const BALANCE: &str = env!("CARGO_BIN_EXE_balance");
const PASSWORD: &str = "hunter2";

/// Runs to its end with these variables and no other.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(BALANCE);
    command.args(arguments).env_clear().envs(variables.iter().copied());
    command.stdin(Stdio::null()).output().unwrap()
}

fn text(output: &[u8]) -> String {
    String::from_utf8(output.to_vec()).unwrap()
}

/// The one line of a command that could not do its work.
#[track_caller]
fn one_line(output: &Output) -> String {
    let said = text(&output.stderr);
    assert!(!output.status.success(), "it ended well: {said}");
    assert_eq!(text(&output.stdout), "", "{said}");
    assert!(
        said.ends_with('\n') && said.trim_end().lines().count() == 1,
        "not one line: {said}"
    );
    assert!(!said.contains(PASSWORD), "{said}");
    said
}

const GOOD: [(&str, &str); 2] = [
    ("DATABASE_URL", "postgres://balance:hunter2@127.0.0.1:1/balance"),
    ("APPROVER_URL", "http://balance:hunter2@127.0.0.1:1"),
];

#[test]
fn a_wrong_value_stops_serve_with_one_line_that_names_variable_value_and_what_is_allowed() {
    let scratch = Scratch::new();
    let directory = scratch.0.to_str().unwrap();
    for (variable, values, allowed) in [
        (
            "LISTEN",
            vec!["localhost", "127.0.0.1", "127.0.0.1:99999"],
            "127.0.0.1:8080",
        ),
        (
            "OPERATIONS_LOG_SYNC",
            vec!["sometimes", "Always"],
            "always, everysec or never",
        ),
        ("OPERATIONS_LOG", vec![directory, "/nowhere/operations.log"], ""),
        ("INSTANCE", vec!["a\nb"], "1 to 128 characters"),
        (
            "APPROVAL_THRESHOLD",
            vec!["-1", "1.5", "9223372036854775808"],
            "9223372036854775807",
        ),
        ("DATABASE_CONNECTIONS", vec!["0", "1001", "many"], "from 1 to 1000"),
        ("APPROVER_CALLS", vec!["0", "100001"], "from 1 to 100000"),
        ("APPROVER_TIMEOUT_MS", vec!["0", "2s"], "from 1 to 3600000"),
        ("OPERATION_TIMEOUT_MS", vec!["0", "3600001"], "from 1 to 3600000"),
        ("OPERATIONS_IN_FLIGHT", vec!["0", "1000001"], "from 1 to 1000000"),
        ("COMMIT_BATCH_USERS", vec!["0", "1025", "many"], "from 1 to 1024"),
        ("COMMIT_LANES", vec!["0", "65"], "from 1 to 64"),
        ("READ_STATEMENTS", vec!["0", "65"], "from 1 to 64"),
        ("CONNECTIONS", vec!["0", "-5"], "from 1 to 1000000"),
        ("ADMIN_LISTEN", vec!["localhost", "8081"], "127.0.0.1:8080"),
        ("IDLE_TIMEOUT_MS", vec!["0", "75s"], "3600000"),
        ("CLIENT_TIMEOUT_MS", vec!["0", "-1"], "3600000"),
        ("SHUTDOWN_DELAY_MS", vec!["-1", "soon"], "3600000"),
        ("SHUTDOWN_TIMEOUT_MS", vec!["-1", "soon"], "3600000"),
        ("LOG_FORMAT", vec!["yaml", "JSON"], "auto, text or json"),
        ("RUST_LOG", vec!["balance=wrong", "!!!"], "info,poem=warn"),
        (
            "OTEL_TRACES_SAMPLER_ARG",
            vec!["-0.1", "1.5", "half", "NaN"],
            "from 0 to 1",
        ),
        ("OTEL_SERVICE_NAME", vec!["a\nb"], "without control characters"),
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            vec!["localhost:4318", "ftp://localhost"],
            "http",
        ),
    ] {
        for value in values {
            let log = scratch.0.join("operations.log");
            let common = [("LISTEN", "127.0.0.1:0"), ("OPERATIONS_LOG", log.to_str().unwrap())];
            let variables = [&GOOD[..], &common, &[(variable, value)]].concat();
            let line = one_line(&run(&["serve"], &variables));
            assert!(line.starts_with(&format!("balance: {variable}: ")), "{line}");
            assert!(
                (line.contains(&format!("{value:?}")) || variable == "OPERATIONS_LOG" && line.contains(value))
                    && line.contains(allowed),
                "{line}"
            );
        }
    }
}

/// As Compose passes those that are not set.
#[test]
fn an_empty_variable_is_not_set_whichever_it_is() {
    let program = Cli::command();
    let commands = std::iter::once(&program).chain(program.get_subcommands());
    let arguments = commands.flat_map(clap::Command::get_arguments);
    let variables = arguments.filter_map(|argument| argument.get_env()?.to_str());
    let empty: Vec<_> = variables.chain(["RUST_LOG"]).map(|variable| (variable, "")).collect();
    assert!(empty.contains(&("OTEL_TRACES_SAMPLER_ARG", "")), "{empty:?}");

    // In all three the variables are read before what is wrong is found.
    let line = one_line(&run(&["verify"], &empty));
    assert!(line.starts_with("balance: DATABASE_URL: no value"), "{line}");
    let serve = [&empty[..], &GOOD, &[("OPERATIONS_LOG", "/nowhere/log")]].concat();
    let line = one_line(&run(&["serve"], &serve));
    assert!(line.starts_with("balance: OPERATIONS_LOG: "), "{line}");
    let line = one_line(&run(&["dev", "--demo", "--api-tokens-file", "/nowhere/tokens"], &empty));
    assert!(line.starts_with("balance: DEMO: "), "{line}");

    let help = text(&run(&["serve", "--help"], &empty).stdout);
    assert!(help.contains("[env: LISTEN=]"), "{help}");
}

#[test]
fn a_command_whose_output_is_lost_ends_with_an_error_that_says_so() {
    let full = || std::fs::File::create("/dev/full").unwrap();
    for arguments in [
        &["token", "payroll", "--scopes", "read"][..],
        &["openapi"],
        &["completions", "bash"],
        &["man"],
        &["man", "serve"],
        &["--help"],
        &["--version"],
        &["help", "serve"],
        &["dev"],
    ] {
        let mut command = Command::new(BALANCE);
        let command = command.args(arguments).env_clear().stdin(Stdio::null()).stdout(full());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        // A token without its line is of no use, and is not shown.
        assert_eq!(
            text(&output.stderr),
            "balance: the output cannot be written: No space left on device (os error 28)\n",
            "{arguments:?}"
        );
    }
    let mut token = Command::new(BALANCE);
    let token = token.args(["token", "payroll", "--scopes", "read"]).stderr(full());
    assert_eq!(token.output().unwrap().status.code(), Some(1));
}

#[tokio::test]
async fn a_migration_and_a_verdict_that_cannot_be_printed_are_errors() {
    let database = fresh_database().await;
    for (name, role, code) in [("migrate", Role::Owner, 1), ("verify", Role::Auditor, 2)] {
        let mut command = Command::new(BALANCE);
        command.arg(name).env("DATABASE_URL", database.url_as(role));
        let output = command
            .stdout(std::fs::File::create("/dev/full").unwrap())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(code), "{name}: {output:?}");
        assert!(
            text(&output.stderr).ends_with("No space left on device (os error 28)\n"),
            "{name}: {output:?}"
        );
    }
}

#[test]
fn a_wrong_or_missing_url_is_named_and_not_shown() {
    for (variable, value) in [
        ("DATABASE_URL", "mysql://balance:hunter2@localhost/balance"),
        ("DATABASE_URL", "host=localhost port=many password=hunter2"),
        ("DATABASE_URL", "postgres://balance:hunter2@localhost:port/balance"),
        ("APPROVER_URL", "ftp://balance:hunter2@localhost"),
        ("APPROVER_URL", "balance:hunter2@localhost"),
    ] {
        let line = one_line(&run(&["serve"], &[&GOOD[..], &[(variable, value)]].concat()));
        assert!(line.starts_with(&format!("balance: {variable}: ")), "{line}");
    }
    for missing in [0, 1] {
        let line = one_line(&run(&["serve"], &[GOOD[1 - missing]]));
        assert!(
            line.starts_with(&format!("balance: {}: no value", GOOD[missing].0)),
            "{line}"
        );
    }
    for (command, variable) in [
        ("serve", "INSTANCE"),
        ("serve", "DATABASE_URL"),
        ("migrate", "DATABASE_URL"),
    ] {
        let mut bytes = b"postgres://balance:hunter2@localhost/".to_vec();
        bytes.push(0xff);
        let mut process = Command::new(BALANCE);
        process
            .arg(command)
            .env_clear()
            .envs(GOOD)
            .env(variable, OsString::from_vec(bytes));
        let line = one_line(&process.output().unwrap());
        assert!(line.starts_with(&format!("balance: {variable}: ")), "{line}");
    }
}

#[test]
fn a_parameter_of_database_url_that_is_not_taken_is_named() {
    for command in ["serve", "migrate", "verify"] {
        for (parameter, allowed) in [
            ("target_session_attrs=primary", "read-write"),
            ("pgbouncer=true", "no other parameters than user"),
        ] {
            for url in [
                format!("postgres://balance:hunter2@localhost/balance?{parameter}"),
                format!("host=localhost password=hunter2 {parameter}"),
            ] {
                let line = one_line(&run(&[command], &[&GOOD[..], &[("DATABASE_URL", &url)]].concat()));
                let expected =
                    format!("balance: DATABASE_URL: the parameter {parameter} is not allowed; give {allowed}");
                assert!(line.starts_with(&expected), "{line}");
            }
        }
    }
}

#[test]
fn the_stand_in_names_a_wrong_value_too() {
    for (variable, value) in [
        ("STAND_IN_LISTEN", "localhost"),
        ("STAND_IN_DELAY_MS", "soon"),
        ("STAND_IN_DENY_ABOVE", "-1"),
    ] {
        let line = one_line(&run(&["stand-in-approver"], &[(variable, value)]));
        assert!(line.starts_with(&format!("balance: {variable}: {value:?}")), "{line}");
    }
}

#[test]
fn no_output_holds_a_password() {
    for arguments in [
        &["--help"][..],
        &["serve", "--help"],
        &["dev", "--help"],
        &["migrate", "--help"],
        &["verify", "--help"],
        &["completions", "bash"],
        &["man"],
        &["man", "serve"],
        &["serve", "--no-such-flag"],
        &["migrate"],
    ] {
        let variables = [&GOOD[..], &[("RUST_LOG", "trace")]].concat();
        let output = run(arguments, &variables);
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(!said.is_empty() && !said.contains(PASSWORD), "{arguments:?}: {said}");
        if arguments == ["serve", "--help"] {
            for variable in [
                "DATABASE_URL",
                "APPROVER_URL",
                "LISTEN",
                "OPERATIONS_LOG",
                "APPROVAL_THRESHOLD",
            ] {
                assert!(said.contains(variable), "{variable}: {said}");
            }
        }
    }
}

#[test]
fn a_database_that_cannot_be_reached_is_said_in_one_line() {
    let line = one_line(&run(&["migrate"], &GOOD[..1]));
    assert!(line.contains("PostgreSQL cannot be reached"), "{line}");
}

#[tokio::test]
async fn migrate_may_run_from_many_processes_at_once_and_again() {
    let database = fresh_database().await;
    let drop = "DROP SCHEMA public CASCADE; CREATE SCHEMA public";
    database.client().await.batch_execute(drop).await.unwrap();
    database.set_up_roles().await;
    let url = database.url_as(Role::Owner);
    let spawn = || {
        let mut command = Command::new(BALANCE);
        command.arg("migrate").env_clear().env("DATABASE_URL", &url);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let processes: Vec<_> = (0..6).map(|_| spawn()).collect();
    let mut applied = 0;
    for process in processes.into_iter().chain([spawn()]) {
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = text(&output.stdout);
        assert!(
            said.starts_with("Applied migration ") || said == "The schema is up to date.\n",
            "{said}"
        );
        applied += usize::from(said.starts_with("Applied"));
    }
    assert_eq!(applied, 1);
}

#[test]
fn token_prints_a_fresh_token_once_and_its_line_for_the_list() {
    let made = || {
        let output = run(&["token", "payroll", "--scopes", "write"], &[]);
        assert!(output.status.success(), "{output:?}");
        let said = text(&output.stderr);
        let token = said.trim_end().rsplit_once(' ').unwrap().1.to_owned();
        (token, text(&output.stdout))
    };
    let (first, second) = (made(), made());
    assert_ne!(first, second);
    for (token, listed) in [first, second] {
        assert!(
            token.len() == 64 && token.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{token}"
        );
        assert_eq!(listed, tokens::line("payroll", &token, "write"));
    }
    for wrong in [
        &["token"][..],
        &["token", "a b"],
        &["token", ""],
        &["token", "a", "--scopes", "all"],
    ] {
        let output = run(wrong, &[]);
        assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    }
}

#[test]
fn openapi_prints_the_document_and_a_reader_may_go_early() {
    let output = run(&["openapi"], &[]);
    assert!(output.status.success());
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        document["openapi"]
            .as_str()
            .is_some_and(|version| version.starts_with("3."))
    );
    assert!(document["paths"]["/changeBalance"]["post"].is_object());

    let mut process = Command::new(BALANCE)
        .arg("openapi")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(process.stdout.take());
    let output = process.wait_with_output().unwrap();
    assert_eq!((text(&output.stderr).as_str(), output.status.code()), ("", Some(1)));
}
