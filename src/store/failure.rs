//! Why there is no connection to PostgreSQL that the service can use, as a closed list.

use std::io;

use tokio_postgres::error::SqlState;

use super::encryption::tls_failure;
use crate::metrics::ErrorType;
use crate::tls::TlsFailure;

/// Why no connection can be used. Nothing was read or written over one.
///
/// The message names the class and is safe to show to clients. What PostgreSQL or the operating system said is for the
/// process log: it may name hosts, databases and roles, and never holds a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionFailure {
    /// Nothing answers at the address, or it does not answer in time.
    #[error("PostgreSQL cannot be reached")]
    Unreachable(String),
    /// The host of `DATABASE_URL` has no address.
    #[error("no connection to PostgreSQL: the host of DATABASE_URL has no address")]
    UnknownHost(String),
    /// There is no database of this name.
    #[error("no connection to PostgreSQL: it has no database of the name in DATABASE_URL")]
    UnknownDatabase(String),
    /// PostgreSQL refuses the role or its password.
    #[error("no connection to PostgreSQL: it refuses the credentials in DATABASE_URL")]
    Credentials(String),
    /// The connection would not be as secure as `DATABASE_URL` asks for.
    #[error("no secure connection to PostgreSQL: {0}")]
    Insecure(TlsFailure),
    /// `max_connections` is reached, or the limit of the role, the database or a pooler.
    #[error("PostgreSQL has no connection left for this service")]
    NoneLeft(String),
    /// PostgreSQL, or a pooler in front of it, refuses connections for another reason, as while it starts.
    #[error("no connection to PostgreSQL: it refuses connections")]
    Refused(String),
    /// The server is a standby, or the session is read-only.
    #[error("PostgreSQL is read-only")]
    ReadOnly,
    /// A pooler lets clients run each other's prepared statements.
    #[error("a pooler in front of PostgreSQL mixes up prepared statements")]
    SharedStatements,
    /// The database is in this encoding.
    #[error("the database has the encoding {0}, and must have UTF8")]
    NotUtf8(String),
}

impl ConnectionFailure {
    /// The words of PostgreSQL or of the operating system.
    fn detail(&self) -> Option<&str> {
        match self {
            Self::Unreachable(detail)
            | Self::UnknownHost(detail)
            | Self::UnknownDatabase(detail)
            | Self::Credentials(detail)
            | Self::NoneLeft(detail)
            | Self::Refused(detail) => Some(detail),
            Self::Insecure(_) | Self::ReadOnly | Self::SharedStatements | Self::NotUtf8(_) => None,
        }
    }

    /// The change of settings that mends it; `None` where the network or the server must come back.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::SharedStatements => Some(
                "give the pooler pool_mode = session with server_reset_query = DISCARD ALL, \
                 or PgBouncer 1.21 or later with max_prepared_statements above 0",
            ),
            Self::NotUtf8(_) => Some("create the database with ENCODING 'UTF8'"),
            Self::ReadOnly => Some("point DATABASE_URL at the primary, with a role that may write"),
            Self::NoneLeft(_) => Some("raise max_connections, or the limit of the role, the database or the pooler"),
            Self::Credentials(_) => Some("check the role and the password in DATABASE_URL"),
            Self::UnknownDatabase(_) => Some("check the name of the database in DATABASE_URL"),
            Self::UnknownHost(_) => Some("check the host in DATABASE_URL"),
            Self::Unreachable(_) | Self::Refused(_) | Self::Insecure(_) => None,
        }
    }

    /// All that is known of it, in one line for the process log.
    pub(super) fn for_the_log(&self) -> String {
        let parts = [Some(self.to_string()), self.detail().map(str::to_owned)];
        let mut line = parts.into_iter().flatten().collect::<Vec<_>>().join(": ");
        if let Some(remedy) = self.remedy() {
            line += &format!("; {remedy}");
        }
        // Escaped, since a line break at the end of DATABASE_URL is a common mistake.
        let visible = |character: char| match character.is_control() {
            true => character.escape_default().to_string(),
            false => character.to_string(),
        };
        line.chars().map(visible).collect()
    }
}

impl ErrorType for ConnectionFailure {
    fn error_type(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::UnknownHost(_) => "unknown_host",
            Self::UnknownDatabase(_) => "unknown_database",
            Self::Credentials(_) => "credentials",
            Self::Insecure(_) => "insecure",
            Self::NoneLeft(_) => "none_left",
            Self::Refused(_) => "connection_refused",
            Self::ReadOnly => "read_only",
            Self::SharedStatements => "shared_statements",
            Self::NotUtf8(_) => "not_utf8",
        }
    }
}

impl From<tokio_postgres::Error> for ConnectionFailure {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(failure) = tls_failure(&error) {
            tracing::debug!(error = with_cause(&error), "a failed TLS handshake with PostgreSQL");
            return Self::Insecure(failure);
        }
        let said = with_cause(&error);
        match error.code() {
            Some(&SqlState::TOO_MANY_CONNECTIONS) => Self::NoneLeft(said),
            Some(&SqlState::INVALID_CATALOG_NAME) => Self::UnknownDatabase(said),
            Some(
                &SqlState::INVALID_PASSWORD
                | &SqlState::INVALID_AUTHORIZATION_SPECIFICATION
                | &SqlState::INSUFFICIENT_PRIVILEGE,
            ) => Self::Credentials(said),
            Some(&SqlState::DUPLICATE_PSTATEMENT | &SqlState::INVALID_SQL_STATEMENT_NAME) => Self::SharedStatements,
            Some(_) => Self::Refused(said),
            None if wants_a_password(&error) => Self::Credentials(said),
            None if is_read_only(&error) => Self::ReadOnly,
            // The standard library has no kind for it.
            None if said.contains("failed to lookup address information") => Self::UnknownHost(said),
            None => Self::Unreachable(said),
        }
    }
}

/// tokio-postgres has no kinds of errors to match on: that `DATABASE_URL` has no password, and the server asks for one.
fn wants_a_password(error: &tokio_postgres::Error) -> bool {
    with_cause(error).contains("password missing")
}

/// Whether all hosts answered, and none takes writes, as `target_session_attrs=read-write` asks for.
fn is_read_only(error: &tokio_postgres::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::PermissionDenied && cause.get_ref().is_some())
}

/// tokio-postgres names only the step that failed; the reason is its source.
pub(super) fn with_cause(error: &tokio_postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_break_in_a_name_is_seen_in_the_log() {
        let failure = ConnectionFailure::UnknownDatabase("database \"ledger\n\" does not exist".to_owned());
        let line = failure.for_the_log();
        assert!(line.contains(r#"database "ledger\n" does not exist"#), "{line}");
    }
}
