//! What `dev` says when all of it runs: where everything is, and what to try.

use std::path::Path;

use anstyle::{AnsiColor, Style};

use super::super::{OutputError, say};
use crate::dev::PrivatePostgres;
use crate::replica::Addresses;

pub(super) const LABEL: Style = Style::new().bold();
pub(super) const GOOD: Style = AnsiColor::Green.on_default().bold();
pub(super) const FAINT: Style = Style::new().dimmed();
const ADDRESS: Style = AnsiColor::Cyan.on_default();
const COMMAND: Style = AnsiColor::Yellow.on_default();

/// Where everything is, but for the service's address, which is known last.
pub(super) struct Banner {
    pub scheme: &'static str,
    pub has_tokens: bool,
    pub psql: String,
    pub data: String,
    pub approver: String,
    pub approver_does: String,
    pub log: String,
    pub demo: bool,
}

/// The command that opens the database.
pub(super) fn psql(postgres: &PrivatePostgres, database: &str) -> String {
    let socket_dir = quoted(&postgres.socket_dir().display().to_string());
    // Only an installed one is in PATH.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let psql = match std::env::split_paths(&path).any(|directory| directory.join("psql").is_file()) {
        true => "psql".to_owned(),
        false => quoted(&postgres.bin_dir().join("psql").display().to_string()),
    };
    format!("{psql} -h {socket_dir} -U balance {database}")
}

impl Banner {
    pub(super) fn print(&self, addresses: Addresses) -> Result<(), OutputError> {
        let url = format!("{}://{}", self.scheme, addresses.service);
        let admin = format!("{}://{}", self.scheme, addresses.admin.unwrap_or(addresses.service));
        say("")?;
        row("Service", ADDRESS, &url)?;
        row("Swagger UI", ADDRESS, &format!("{admin}/docs"))?;
        row("OpenAPI", ADDRESS, &format!("{admin}/openapi.json"))?;
        row("Metrics", ADDRESS, &format!("{admin}/metrics"))?;
        row("Approver", ADDRESS, &self.approver)?;
        row("", FAINT, &self.approver_does)?;
        row("Operations log", Style::new(), &self.log)?;
        row("PostgreSQL", Style::new(), &self.psql)?;
        row("Data", Style::new(), &self.data)?;
        say("")?;
        say("Try, in another terminal:")?;
        say("")?;
        for command in self.commands(&url) {
            say(format_args!("  {COMMAND}{command}{COMMAND:#}"))?;
        }
        say("")?;
        say(format_args!("{LABEL}Ctrl-C{LABEL:#} stops all of it; the data stays."))
    }

    fn commands(&self, url: &str) -> Vec<String> {
        // Who signed the certificate is not known here.
        let insecure = if self.scheme == "https" { " --insecure" } else { "" };
        let token = if self.has_tokens {
            " -H \"Authorization: Bearer $TOKEN\""
        } else {
            ""
        };
        let curl = format!("curl{insecure}{token}");
        let mut commands = vec![
            format!(
                "{curl} -X POST {url}/changeBalance -H 'Content-Type: application/json' \\\n    \
                 -d '{{\"userId\":\"alice\",\"context\":\"first deposit\",\"balanceChange\":100,\
                 \"timestamp\":\"2026-01-31T12:00:00Z\"}}'"
            ),
            format!("{curl} {url}/alice/balance"),
        ];
        if self.demo {
            commands.push(format!("{curl} '{url}/demo/history?limit=10'"));
        } else {
            commands.push(format!("{curl} '{url}/alice/history?limit=10'"));
        }
        commands.push(format!("tail -f {}", quoted(&self.log)));
        commands
    }
}

fn row(label: &str, style: Style, value: &str) -> Result<(), OutputError> {
    say(format_args!("{LABEL}{label:<16}{LABEL:#}{style}{value}{style:#}"))
}

/// One word for a shell.
fn quoted(path: &str) -> String {
    let is_plain = |letter: char| letter.is_alphanumeric() || "/._-+:@%,=".contains(letter);
    if path.chars().all(is_plain) {
        path.to_owned()
    } else {
        format!("'{}'", path.replace('\'', r"'\''"))
    }
}

pub(super) fn absolute(path: &Path) -> String {
    std::path::absolute(path)
        .unwrap_or_else(|_| path.to_owned())
        .display()
        .to_string()
}
