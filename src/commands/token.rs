//! `balance token`: a fresh token and its line for the list of tokens.

use std::io::Write;

use clap::Args;

use super::{CommandError, OutputError, say};
use crate::domain::{CallerName, InvalidCallerName};
use crate::tls::provider;
use crate::tokens::{Scopes, digest_in_hex, in_hex};

/// As many random bytes as the digest has.
const TOKEN_BYTES: usize = 32;

#[derive(Args)]
pub(super) struct TokenArguments {
    /// Whom the token is for: 1 to 128 characters without blanks, as the operations log will show it
    #[arg(value_parser = name)]
    name: CallerName,

    /// What it allows: read, write or read,write
    #[arg(long, value_name = "SCOPES", value_parser = scopes)]
    scopes: String,
}

fn name(text: &str) -> Result<CallerName, InvalidCallerName> {
    CallerName::new(text)
}

fn scopes(text: &str) -> Result<String, &'static str> {
    match Scopes::parse(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err("give read, write or read,write"),
    }
}

/// Prints the line on standard output, to be appended to the list, and the token on standard error, this once.
pub(super) fn run(arguments: &TokenArguments) -> Result<(), CommandError> {
    let mut random = [0; TOKEN_BYTES];
    provider()
        .secure_random
        .fill(&mut random)
        .map_err(|_| CommandError::NoRandomness)?;
    let token = in_hex(&random);
    let digest = digest_in_hex(token.as_bytes());
    // A token is of use only with its line, so the line goes first.
    say(format_args!("{}  {digest}  {}", arguments.name, arguments.scopes))?;
    writeln!(std::io::stderr(), "The token, which is kept nowhere: {token}").map_err(OutputError)?;
    Ok(())
}
