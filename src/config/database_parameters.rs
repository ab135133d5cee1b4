//! Says which parameter of `DATABASE_URL` PostgreSQL's client does not take, and what it takes; never a part of a password.
//!
//! `tokio-postgres` refuses the text as a whole. A password that is not percent-encoded, or not quoted, can make the rest of
//! it look like parameters, so a text in which that may have happened names none.

use std::iter::Peekable;
use std::str::{Chars, FromStr};

use percent_encoding::percent_decode_str;

use super::ConfigError;
use super::database_tls::split_query;

/// The parameters that are taken, and their values.
const TAKEN: [(&str, &str); 17] = [
    ("user", "a name"),
    ("password", "a text"),
    ("dbname", "a name"),
    ("host", "names, or directories of Unix sockets"),
    ("hostaddr", "IP addresses with commas between them"),
    ("port", "numbers from 1 to 65535 with commas between them"),
    ("options", "settings such as -c work_mem=8MB"),
    ("application_name", "a name"),
    (
        "sslmode",
        "disable, prefer or require; verify-ca and verify-full in the form postgres://…?sslmode=verify-full",
    ),
    ("sslnegotiation", "postgres or direct"),
    ("channel_binding", "disable, prefer or require"),
    ("connect_timeout", "a number of seconds"),
    ("tcp_user_timeout", "a number of seconds"),
    ("keepalives", "0 or 1"),
    ("keepalives_idle", "a number of seconds"),
    ("keepalives_interval", "a number of seconds"),
    ("keepalives_retries", "a number"),
];
/// Parameters for several hosts, and their values.
const TAKEN_OF_HOSTS: [(&str, &str); 2] = [
    (
        "target_session_attrs",
        "read-write, any, or read-only, with which `balance verify` alone can work",
    ),
    ("load_balance_hosts", "disable or random"),
];

const TAKEN_NAMES: &str = "no other parameters than user, password, dbname, host, hostaddr, port, options, \
     application_name, sslmode, sslrootcert, sslcert, sslkey, sslnegotiation, channel_binding, connect_timeout, \
     tcp_user_timeout, keepalives, keepalives_idle, keepalives_interval, keepalives_retries, target_session_attrs and \
     load_balance_hosts";
const ONLY_IN_URL: &str = "sslrootcert, sslcert and sslkey in the form postgres://…?sslrootcert=…";

/// Parameters of other clients whose values are no secrets.
const PLAIN_ELSEWHERE: [&str; 22] = [
    "client_encoding",
    "connection_limit",
    "gssdelegation",
    "gssencmode",
    "keepalives_count",
    "krbsrvname",
    "max_protocol_version",
    "min_protocol_version",
    "pgbouncer",
    "pool_timeout",
    "prepareThreshold",
    "prepared_statements",
    "replication",
    "require_auth",
    "schema",
    "ssl",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcompression",
    "sslsni",
    "statement_cache_mode",
    "statement_cache_size",
];

/// Says what is wrong with the first parameter that the client does not take; `None` if none can be named.
pub(super) fn refused_parameter(variable: &'static str, text: &str) -> Option<ConfigError> {
    let is_url = text.contains("://");
    let parameters = if is_url { of_url(text)? } else { of_pairs(text)? };
    let (name, value) = parameters.into_iter().find(|(name, value)| !is_taken(name, value))?;
    let allowed = [&TAKEN[..], &TAKEN_OF_HOSTS].concat();
    let allowed = allowed.into_iter().find(|(taken, _)| *taken == name);
    let may_be_shown = match (name.as_str(), allowed) {
        ("user" | "password" | "options", _) => false,
        (_, Some(_)) => true,
        (name, None) => PLAIN_ELSEWHERE.contains(&name),
    };
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "_-.,:".contains(letter);
    Some(ConfigError::Parameter {
        variable,
        parameter: match may_be_shown && value.len() <= MOST_SHOWN && value.chars().all(is_plain) {
            true => format!("{name}={value}"),
            false => name.clone(),
        },
        allowed: match (name.as_str(), allowed) {
            (_, Some((_, values))) => values,
            ("sslrootcert" | "sslcert" | "sslkey", None) if !is_url => ONLY_IN_URL,
            (_, None) => TAKEN_NAMES,
        },
    })
}

/// Longer names and values are not shown.
const MOST_SHOWN: usize = 40;

/// The parameters after the question mark of a URL.
fn of_url(text: &str) -> Option<Vec<(String, String)>> {
    let (before, query) = split_query(text)?;
    // The first @ ends the password. After another one, or with none and no port, parts of the password may stand anywhere.
    let authority = before.split_once("://").map_or(before, |(_, authority)| authority);
    let hosts = authority.split_once('@').map_or(authority, |(_, hosts)| hosts);
    if query.contains('@') || hosts.contains('@') || !has_ports_only(hosts) {
        return None;
    }
    let parameters = query.split('&').filter(|parameter| !parameter.is_empty());
    parameters
        .map(|parameter| {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let decoded = |text| Some(percent_decode_str(text).decode_utf8().ok()?.into_owned());
            Some((decoded(name).filter(|name| is_name(name))?, decoded(value)?))
        })
        .collect()
}

/// Whether numbers follow the colons of `host:5432,[::1]:5432/ledger`.
fn has_ports_only(hosts: &str) -> bool {
    let hosts = hosts.split('/').next().unwrap_or_default();
    hosts.split(',').all(|host| {
        let after_address = host.rsplit(']').next().unwrap_or_default();
        let port = after_address.split_once(':').map_or("", |(_, port)| port);
        port.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// The parameters of a text such as `host=localhost dbname='the ledger'`.
fn of_pairs(text: &str) -> Option<Vec<(String, String)>> {
    let mut parameters: Vec<(String, String)> = Vec::new();
    let mut letters = text.chars().peekable();
    // A blank in a password without quotes makes the rest of it look like a parameter.
    let mut after_password = false;
    loop {
        skip_blanks(&mut letters);
        if letters.peek().is_none() {
            return Some(parameters);
        }
        let mut name = String::new();
        while let Some(letter) = letters.next_if(|letter| !letter.is_whitespace() && *letter != '=') {
            name.push(letter);
        }
        skip_blanks(&mut letters);
        letters.next_if_eq(&'=')?;
        skip_blanks(&mut letters);
        let is_quoted = letters.next_if_eq(&'\'').is_some();
        let value = value(&mut letters, is_quoted)?;
        if !is_name(&name) || after_password && !is_known(&name) {
            return None;
        }
        after_password |= name == "password" && !is_quoted;
        parameters.push((name, value));
    }
}

fn skip_blanks(letters: &mut Peekable<Chars<'_>>) {
    while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
}

/// `None` if a quote is not closed.
fn value(letters: &mut Peekable<Chars<'_>>, is_quoted: bool) -> Option<String> {
    let mut value = String::new();
    while let Some(letter) = letters.next_if(|letter| is_quoted || !letter.is_whitespace()) {
        match letter {
            '\'' if is_quoted => return Some(value),
            '\\' => value.extend(letters.next()),
            letter => value.push(letter),
        }
    }
    (!is_quoted).then_some(value)
}

fn is_name(text: &str) -> bool {
    (1..=MOST_SHOWN).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn is_known(name: &str) -> bool {
    let taken = TAKEN.iter().chain(&TAKEN_OF_HOSTS);
    taken
        .map(|(taken, _)| *taken)
        .chain(PLAIN_ELSEWHERE)
        .any(|known| known == name)
}

/// Whether the client takes it, asked for this one alone.
fn is_taken(name: &str, value: &str) -> bool {
    let quoted = value.replace('\\', r"\\").replace('\'', r"\'");
    tokio_postgres::Config::from_str(&format!("{name}='{quoted}'")).is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::DatabaseUrl;
    use super::*;

    fn said(text: &str) -> String {
        DatabaseUrl::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn a_parameter_that_is_not_taken_is_named_with_its_value_and_what_is_allowed() {
        for (parameter, shown, allowed) in [
            (
                "target_session_attrs=primary",
                "target_session_attrs=primary",
                "read-write, any",
            ),
            ("pgbouncer=true", "pgbouncer=true", "no other parameters than user"),
            (
                "channel_binding=always",
                "channel_binding=always",
                "disable, prefer or require",
            ),
            ("connect_timeout=soon", "connect_timeout=soon", "a number of seconds"),
            ("load_balance_hosts=yes", "load_balance_hosts=yes", "disable or random"),
            ("sslpassword=hunter2", "sslpassword", "no other parameters than user"),
            ("token=hunter2", "token", "no other parameters than user"),
        ] {
            for text in [
                format!("postgres://me:hunter2@db,db2:5433/ledger?{parameter}"),
                format!("postgresql://db/ledger?connect_timeout=3&{parameter}&sslmode=disable"),
                format!("postgres://[::1]:5432/ledger?{parameter}"),
                format!("host=db user=me password='hunter2 = x' {parameter} dbname=ledger"),
                format!("host = db {parameter}"),
            ] {
                let said = said(&text);
                let expected = format!("DATABASE_URL: the parameter {shown} is not allowed; give {allowed}");
                assert!(said.starts_with(&expected), "{text}: {said}");
                assert!(!said.contains("hunter2") && !said.contains('\n'), "{said}");
            }
        }
        for (text, expected) in [
            (
                "host=db sslmode=verify-full",
                "the parameter sslmode=verify-full is not allowed; give disable",
            ),
            (
                "host=db sslrootcert=/ca.pem",
                "the parameter sslrootcert is not allowed; give sslrootcert, sslcert",
            ),
            ("postgres://db/x?pgbouncer", "the parameter pgbouncer"),
            (
                "postgres://db/x?sslmode=allow",
                "the parameter sslmode=allow is not allowed; give a URL with sslmode",
            ),
        ] {
            let said = said(text);
            assert!(said.starts_with(&format!("DATABASE_URL: {expected}")), "{said}");
        }
    }

    #[test]
    fn every_parameter_that_is_offered_is_taken() {
        for (name, _) in TAKEN.iter().chain(&TAKEN_OF_HOSTS) {
            assert!(TAKEN_NAMES.contains(name), "{name}");
            let values = ["1", "prefer", "postgres", "any", "random", "127.0.0.1"];
            assert!(values.iter().any(|value| is_taken(name, value)), "{name}");
        }
        assert!(!is_taken("pgbouncer", "true"));
    }

    #[test]
    fn a_password_that_was_not_encoded_or_quoted_appears_in_no_part() {
        for text in [
            "postgres://me:p@hunter?x=hunter2@db/ledger",
            "postgres://me:p@x?hunter2=y@db/ledger",
            "postgres://me:hunter?hunter2=1",
            "postgres://me:p@x:hunter2?hunter=1",
            "postgres://me:p?hunter=hunter2@db/ledger?pgbouncer=hunter2@x",
            "host=db password=p hunter=2 pgbouncer=true",
            "host=db password=p hunter2 pgbouncer=true",
            "host=db password='hunter2",
            "host=db hunter-2=x",
            "postgres://db/ledger?hunter%00=hunter2",
            "postgres://db/ledger?options=hunter2&application_name=hunter2&port=hunter%202",
            "postgres://db/ledger?pgbouncer=the+hunter",
        ] {
            assert!(!said(text).contains("hunter"), "{text}: {}", said(text));
        }
    }
}
