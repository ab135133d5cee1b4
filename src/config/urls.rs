//! URLs that may hold passwords: whoever prints one gets it without.

use std::fmt;
use std::str::FromStr;

use tokio_postgres::config::{Host, SslMode as ClientMode};
use url::Url;

use super::database_parameters::refused_parameter;
use super::database_tls::{TlsParameters, default_roots};
use super::{ConfigError, DatabaseTls, SslMode};

/// `DATABASE_URL`, in a form that PostgreSQL's clients accept.
#[derive(Clone)]
pub struct DatabaseUrl {
    client: tokio_postgres::Config,
    tls: DatabaseTls,
}

const DATABASE_URL_ALLOWED: &str = "a PostgreSQL URL such as postgres://balance:secret@localhost:5432/balance";
const DATABASE_URL_SOCKET: &str = "a URL with a host that has an address, or without sslmode: a Unix socket has no TLS";

impl DatabaseUrl {
    /// Reads the text of `DATABASE_URL`, and the files that it names.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if PostgreSQL's clients cannot read it, if a file that it names cannot be used, or if it asks for TLS
    /// that cannot be had.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let invalid = |allowed| invalid("DATABASE_URL", text, allowed);
        let (url, parameters) = TlsParameters::take_from(text)?;
        let mut client = tokio_postgres::Config::from_str(&url)
            .map_err(|_| refused_parameter("DATABASE_URL", &url).unwrap_or_else(|| invalid(DATABASE_URL_ALLOWED)))?;
        if client.get_hosts().is_empty() {
            return Err(invalid(DATABASE_URL_ALLOWED));
        }
        let has_sockets = client.get_hosts().iter().any(|host| matches!(host, Host::Unix(_)));
        let tls = parameters.or_mode_of(&client).read(default_roots().as_deref())?;
        client.ssl_mode(match tls.mode() {
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull if has_sockets => {
                return Err(invalid(DATABASE_URL_SOCKET));
            }
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => ClientMode::Require,
            // Nobody need be asked over a socket.
            SslMode::Prefer if has_sockets => ClientMode::Disable,
            SslMode::Prefer => ClientMode::Prefer,
            SslMode::Disable => ClientMode::Disable,
        });
        Ok(Self { client, tls })
    }

    /// What a connection is opened with. It holds the password.
    pub fn to_client_config(&self) -> tokio_postgres::Config {
        self.client.clone()
    }

    /// How connections are encrypted.
    pub fn tls(&self) -> &DatabaseTls {
        &self.tls
    }
}

/// Host and database; never the password.
impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = match self.client.get_hosts().first() {
            Some(Host::Tcp(name)) => name.clone(),
            Some(Host::Unix(path)) => path.display().to_string(),
            None => String::new(),
        };
        let port = self.client.get_ports().first().copied().unwrap_or(5432);
        write!(f, "{host}:{port}/{}", self.client.get_dbname().unwrap_or("(default)"))
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

/// Shows the value unless a password may be in it.
fn invalid(variable: &'static str, text: &str, allowed: &'static str) -> ConfigError {
    let authority = text.split_once("://").map_or(text, |(_, rest)| rest);
    let port = authority.split_once(':').map_or("", |(_, port)| port);
    let suspicious = text.contains(['@', '?', '#', '=']) || port.starts_with(|first: char| !first.is_ascii_digit());
    if suspicious || text.to_ascii_lowercase().contains("pass") {
        ConfigError::InvalidSecret { variable, allowed }
    } else {
        ConfigError::Invalid {
            variable,
            value: text.to_owned(),
            allowed,
        }
    }
}

/// `APPROVER_URL`: the base to which `/approve` is appended.
#[derive(Clone)]
pub struct ApproverUrl(Url);

const APPROVER_URL_ALLOWED: &str = "an http or https URL without query or fragment, such as http://localhost:9090";

impl ApproverUrl {
    /// Reads the text of `APPROVER_URL`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] unless it is an `http` or `https` URL with a host, without query and fragment.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let invalid = || invalid("APPROVER_URL", text, APPROVER_URL_ALLOWED);
        let url = Url::parse(text).map_err(|_| invalid())?;
        let usable = matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.query().is_none()
            && url.fragment().is_none();
        usable.then_some(Self(url)).ok_or_else(invalid)
    }

    /// Whether it is asked over TLS.
    pub fn is_https(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// The URL that a verdict is asked at, without its query.
    pub fn approve(&self) -> Url {
        let mut url = self.0.clone();
        let path = format!("{}/approve", url.path().trim_end_matches('/'));
        url.set_path(&path);
        url
    }
}

/// Scheme, host, port and path; never user and password.
impl fmt::Display for ApproverUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut url = self.0.clone();
        // Both setters refuse only URLs without a host, which `parse` has refused already.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        url.fmt(f)
    }
}

impl fmt::Debug for ApproverUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApproverUrl({self})")
    }
}

/// `OTEL_EXPORTER_OTLP_ENDPOINT`: the base to which `/v1/traces` is appended. It holds no password.
#[derive(Clone, Debug)]
pub struct CollectorUrl(Url);

const COLLECTOR_URL_ALLOWED: &str =
    "an http or https URL without user, query or fragment, such as http://localhost:4318";

impl CollectorUrl {
    /// Reads the text of `OTEL_EXPORTER_OTLP_ENDPOINT`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] unless it is an `http` or `https` URL with a host, without user, query and fragment.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let invalid = || invalid("OTEL_EXPORTER_OTLP_ENDPOINT", text, COLLECTOR_URL_ALLOWED);
        let url = Url::parse(text).map_err(|_| invalid())?;
        let usable = matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none();
        usable.then_some(Self(url)).ok_or_else(invalid)
    }

    /// Where traces are sent to.
    pub fn traces(&self) -> String {
        format!("{}/v1/traces", self.0.as_str().trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_form_of_a_url_shows_its_password() {
        let database = DatabaseUrl::parse("postgres://me:hunter2@db:5433/ledger").unwrap();
        assert_eq!(database.to_string(), "db:5433/ledger");
        let approver = ApproverUrl::parse("https://me:hunter2@approver/base/").unwrap();
        assert_eq!(approver.to_string(), "https://approver/base/");
        for shown in [format!("{database:?}"), format!("{approver:?}")] {
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        for error in [
            DatabaseUrl::parse("postgres://me:hunter2@db:notaport/x").unwrap_err(),
            DatabaseUrl::parse("postgrs://me:hunter2/x").unwrap_err(),
            ApproverUrl::parse("ftp://me:hunter2@approver").unwrap_err(),
            ApproverUrl::parse("http://approver/?token=hunter2").unwrap_err(),
        ] {
            assert!(!format!("{error} {error:?}").contains("hunter2"));
        }
    }

    #[test]
    fn the_path_of_traces_is_appended_to_the_collectors_base() {
        for (base, expected) in [
            ("http://c:4318", "http://c:4318/v1/traces"),
            ("https://c/otlp/", "https://c/otlp/v1/traces"),
        ] {
            assert_eq!(CollectorUrl::parse(base).unwrap().traces(), expected);
        }
        for wrong in ["c:4318", "grpc://c:4317", "http://me:hunter2@c", "http://c/?x=1", ""] {
            let error = CollectorUrl::parse(wrong).unwrap_err().to_string();
            assert!(
                error.starts_with("OTEL_EXPORTER_OTLP_ENDPOINT") && !error.contains("hunter2"),
                "{error}"
            );
        }
    }

    #[test]
    fn approve_is_appended_to_the_base() {
        for (base, expected) in [
            ("http://a:1", "http://a:1/approve"),
            ("http://a:1/", "http://a:1/approve"),
            ("http://a:1/v1", "http://a:1/v1/approve"),
            ("http://a:1/v1/", "http://a:1/v1/approve"),
        ] {
            assert_eq!(ApproverUrl::parse(base).unwrap().approve().as_str(), expected);
        }
    }

    #[test]
    fn tls_is_never_asked_for_over_a_unix_socket_which_has_none() {
        let socket = "postgres://me@%2Frun%2Fpostgresql/ledger";
        assert!(DatabaseUrl::parse(&format!("{socket}?sslmode=require")).is_err());
        assert!(DatabaseUrl::parse("host=/run/postgresql sslmode=require").is_err());
        let plain = DatabaseUrl::parse(socket).unwrap();
        assert_eq!(plain.to_client_config().get_ssl_mode(), ClientMode::Disable);
    }

    #[test]
    fn a_mode_that_asks_for_tls_is_an_error_without_it_whatever_form_it_has() {
        for text in ["postgres://me@db/ledger?sslmode=require", "host=db sslmode=require"] {
            let url = DatabaseUrl::parse(text).unwrap();
            assert_eq!(url.to_client_config().get_ssl_mode(), ClientMode::Require, "{text}");
        }
        for mode in ["verify-ca", "verify-full"] {
            assert!(DatabaseUrl::parse(&format!("host=db sslmode={mode}")).is_err());
        }
    }
}
