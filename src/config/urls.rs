//! URLs that may hold passwords: whoever prints one gets it without.

use std::fmt;
use std::str::FromStr;

use url::Url;

use super::ConfigError;

/// `DATABASE_URL`, in a form that PostgreSQL's clients accept.
#[derive(Clone)]
pub struct DatabaseUrl(tokio_postgres::Config);

const DATABASE_URL_ALLOWED: &str = "a PostgreSQL URL such as postgres://balance:secret@localhost:5432/balance";
const DATABASE_URL_TLS: &str =
    "a URL without sslmode=require: connections to PostgreSQL are not encrypted by this version";

impl DatabaseUrl {
    /// Reads the text of `DATABASE_URL`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if PostgreSQL's clients cannot read it, or if it asks for TLS, which is never
    /// replaced by plain text silently.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let invalid = |allowed| invalid("DATABASE_URL", text, allowed);
        let config = tokio_postgres::Config::from_str(text).map_err(|_| invalid(DATABASE_URL_ALLOWED))?;
        if config.get_hosts().is_empty() {
            return Err(invalid(DATABASE_URL_ALLOWED));
        }
        if config.get_ssl_mode() == tokio_postgres::config::SslMode::Require {
            return Err(invalid(DATABASE_URL_TLS));
        }
        Ok(Self(config))
    }

    /// What a connection is opened with. It holds the password.
    pub fn to_client_config(&self) -> tokio_postgres::Config {
        self.0.clone()
    }
}

/// Host and database; never the password.
impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use tokio_postgres::config::Host;
        let host = match self.0.get_hosts().first() {
            Some(Host::Tcp(name)) => name.clone(),
            Some(Host::Unix(path)) => path.display().to_string(),
            None => String::new(),
        };
        let port = self.0.get_ports().first().copied().unwrap_or(5432);
        write!(f, "{host}:{port}/{}", self.0.get_dbname().unwrap_or("(default)"))
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

/// Shows the value unless a password may be in it.
fn invalid(variable: &'static str, text: &str, allowed: &'static str) -> ConfigError {
    let authority = text.split_once("://").map_or("", |(_, rest)| rest);
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
    fn a_database_url_that_asks_for_tls_is_refused() {
        for mode in ["require", "verify-full"] {
            assert!(DatabaseUrl::parse(&format!("postgres://me@db/ledger?sslmode={mode}")).is_err());
        }
    }
}
