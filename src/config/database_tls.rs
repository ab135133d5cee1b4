//! What `DATABASE_URL` says of TLS, in the parameters and with the meaning that libpq gives them. `tokio-postgres` knows
//! a few of them only, so they are taken out of the URL before it reads the rest.
//!
//! | `sslmode` | TLS | who may answer |
//! |---|---|---|
//! | `disable` | never | anybody |
//! | `prefer`, or none | where the server offers it | anybody |
//! | `require` | always | anybody; with `sslrootcert`, or a file where libpq looks for it, as `verify-ca` |
//! | `verify-ca` | always | whoever has a certificate of one of the authorities |
//! | `verify-full` | always | whoever has one for the host's name |
//!
//! It differs from libpq where that would be less safe: `sslrootcert` with a mode that does not verify is an error, and so
//! is a mode that asks for TLS over a Unix socket, which has none.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;
use rustls::ClientConfig;
use tokio_postgres::config::SslMode as ClientMode;

use super::ConfigError;
use crate::tls::{ClientIdentity, Roots, TlsFileError, Verification, client_config};

const VARIABLE: &str = "DATABASE_URL";
const MODE_ALLOWED: &str = "a URL with sslmode=disable, prefer, require, verify-ca or verify-full";
const ONCE: &str = "a URL in which sslmode, sslrootcert, sslcert and sslkey each stand at most once";
const ROOTS_NEED_MODE: &str = "sslrootcert only with sslmode=require, verify-ca or verify-full: no other mode verifies";
const SYSTEM_NEEDS_FULL: &str = "sslrootcert=system only with sslmode=verify-full: the system's authorities sign for \
     everybody, and only the name tells who it is";
const NO_ROOTS: &str = "a URL with sslrootcert=/path/to/ca.pem or sslrootcert=system: sslmode verifies, and there is no \
     ~/.postgresql/root.crt";
const NO_SYSTEM_ROOTS: &str = "a URL with sslrootcert=/path/to/ca.pem, or install ca-certificates: the system has no \
     authorities";
const PAIR: &str = "a URL with both sslcert and sslkey, or neither";
const IDENTITY_NEEDS_TLS: &str = "sslcert and sslkey only where TLS is asked for: with sslmode=require, verify-ca or \
     verify-full";
const IDENTITY_UNUSABLE: &str = "in sslkey the key of the certificate in sslcert";
const FILE_ALLOWED: &str = "in sslrootcert and sslcert PEM files with certificates, in sslkey one with a key without a \
     passphrase";

/// How much TLS is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// None.
    Disable,
    /// What the server offers.
    Prefer,
    /// TLS, whoever answers.
    Require,
    /// TLS, from whoever has a certificate of a trusted authority.
    VerifyCa,
    /// TLS, from whoever has one for the host's name.
    VerifyFull,
}

impl SslMode {
    /// As it stands in a URL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let all = [
            Self::Disable,
            Self::Prefer,
            Self::Require,
            Self::VerifyCa,
            Self::VerifyFull,
        ];
        all.into_iter().find(|mode| mode.as_str() == text)
    }

    /// Whether a connection without TLS is none.
    pub fn is_strict(self) -> bool {
        match self {
            Self::Disable | Self::Prefer => false,
            Self::Require | Self::VerifyCa | Self::VerifyFull => true,
        }
    }
}

/// How connections to PostgreSQL are encrypted, and who may answer.
#[derive(Clone)]
pub struct DatabaseTls {
    mode: SslMode,
    client: ClientConfig,
}

impl DatabaseTls {
    /// How much TLS is asked for.
    pub fn mode(&self) -> SslMode {
        self.mode
    }

    /// What connections are opened with, where they are encrypted.
    pub fn client(&self) -> &ClientConfig {
        &self.client
    }
}

impl fmt::Debug for DatabaseTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseTls({})", self.mode.as_str())
    }
}

/// The parameters about TLS, as they stand in the URL.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TlsParameters {
    mode: Option<String>,
    roots: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl TlsParameters {
    /// Takes them out of a URL, and leaves all else as it was.
    pub(super) fn take_from(url: &str) -> Result<(Cow<'_, str>, Self), ConfigError> {
        let mut taken = Self::default();
        let Some((before, query)) = split_query(url) else {
            return Ok((Cow::Borrowed(url), taken));
        };
        let mut rest = Vec::new();
        for parameter in query.split('&') {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let value = || percent_decode_str(value).decode_utf8_lossy().into_owned();
            let is_first = match name {
                "sslmode" => taken.mode.replace(value()).is_none(),
                "sslrootcert" => taken.roots.replace(value().into()).is_none(),
                "sslcert" => taken.certificate.replace(value().into()).is_none(),
                "sslkey" => taken.key.replace(value().into()).is_none(),
                _ => {
                    rest.push(parameter);
                    true
                }
            };
            if !is_first {
                return Err(invalid(ONCE));
            }
        }
        let separator = if rest.is_empty() { "" } else { "?" };
        Ok((Cow::Owned(format!("{before}{separator}{}", rest.join("&"))), taken))
    }

    /// The mode that `tokio-postgres` has read, where the text had another form than a URL.
    pub(super) fn or_mode_of(mut self, client: &tokio_postgres::Config) -> Self {
        let read = match client.get_ssl_mode() {
            ClientMode::Disable => Some(SslMode::Disable),
            ClientMode::Require => Some(SslMode::Require),
            // What it takes for granted, and whatever is added to the open enum.
            _ => None,
        };
        self.mode = self.mode.or(read.map(|mode| mode.as_str().to_owned()));
        self
    }

    /// Reads the files that are named; `default_roots` is where libpq looks for authorities if none are named.
    pub(super) fn read(self, default_roots: Option<&Path>) -> Result<DatabaseTls, ConfigError> {
        let is_system = self.roots.as_deref() == Some(Path::new("system"));
        let asked = match self.mode.as_deref() {
            Some(text) => SslMode::parse(text).ok_or_else(|| no_mode(text))?,
            None if is_system => SslMode::VerifyFull,
            None => SslMode::Prefer,
        };
        let named = match self.roots {
            Some(_) if is_system && asked != SslMode::VerifyFull => return Err(invalid(SYSTEM_NEEDS_FULL)),
            Some(_) if !asked.is_strict() => return Err(invalid(ROOTS_NEED_MODE)),
            Some(_) if is_system => Some(Roots::system().map_err(|_| invalid(NO_SYSTEM_ROOTS))?),
            Some(path) => Some(roots_from(&path)?),
            None if asked.is_strict() => default_roots.map(roots_from).transpose()?,
            None => None,
        };
        let (mode, verification) = match (asked, named) {
            (SslMode::Disable | SslMode::Prefer | SslMode::Require, None) => (asked, Verification::None),
            (SslMode::VerifyCa | SslMode::VerifyFull, None) => return Err(invalid(NO_ROOTS)),
            (SslMode::VerifyFull, Some(roots)) => (asked, Verification::AuthorityAndName(roots)),
            (_, Some(roots)) => (SslMode::VerifyCa, Verification::Authority(roots)),
        };
        let identity = match (self.certificate, self.key) {
            (None, None) => None,
            (Some(_), Some(_)) if !mode.is_strict() => return Err(invalid(IDENTITY_NEEDS_TLS)),
            (Some(certificate), Some(key)) => Some(ClientIdentity::from_files(&certificate, &key).map_err(unusable)?),
            (Some(_), None) | (None, Some(_)) => return Err(invalid(PAIR)),
        };
        // PostgreSQL 17 and later want to be named where the handshake comes first (sslnegotiation=direct).
        let client = client_config(verification, identity, "postgresql").map_err(|_| invalid(IDENTITY_UNUSABLE))?;
        Ok(DatabaseTls { mode, client })
    }
}

/// Where libpq looks for authorities: `~/.postgresql/root.crt`, if it is there.
pub(super) fn default_roots() -> Option<PathBuf> {
    let path = std::env::home_dir()?.join(".postgresql/root.crt");
    path.exists().then_some(path)
}

/// What stands before the parameters, and these. A password may hold a question mark.
pub(super) fn split_query(url: &str) -> Option<(&str, &str)> {
    let authority = url.find("://")? + 3;
    let host = url[authority..].find('@').map_or(authority, |at| authority + at + 1);
    let mark = host + url[host..].find('?')?;
    Some((&url[..mark], &url[mark + 1..]))
}

fn roots_from(path: &Path) -> Result<Roots, ConfigError> {
    Roots::from_file(path).map_err(unusable)
}

fn unusable(error: TlsFileError) -> ConfigError {
    ConfigError::File {
        variable: VARIABLE,
        error,
        allowed: FILE_ALLOWED,
    }
}

/// Shows what stands in the place of a mode if that is a word.
fn no_mode(text: &str) -> ConfigError {
    let is_word = text.len() <= 20 && text.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'-');
    match is_word {
        true => ConfigError::Parameter {
            variable: VARIABLE,
            parameter: format!("sslmode={text}"),
            allowed: MODE_ALLOWED,
        },
        false => invalid(MODE_ALLOWED),
    }
}

fn invalid(allowed: &'static str) -> ConfigError {
    ConfigError::InvalidSecret {
        variable: VARIABLE,
        allowed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Result<DatabaseTls, String> {
        let (_, parameters) = TlsParameters::take_from(url).map_err(|error| error.to_string())?;
        parameters.read(None).map_err(|error| error.to_string())
    }

    #[test]
    fn the_parameters_about_tls_are_taken_out_of_the_url_and_nothing_else_is() {
        for (url, left, mode, roots) in [
            ("postgres://h/d", "postgres://h/d", None, None),
            (
                "postgres://h/d?sslmode=verify-full",
                "postgres://h/d",
                Some("verify-full"),
                None,
            ),
            (
                "postgres://u:p?x@h/d?options=-c%20a%3D1&sslrootcert=%2Fa%20b.pem&sslmode=verify-ca&connect_timeout=3",
                "postgres://u:p?x@h/d?options=-c%20a%3D1&connect_timeout=3",
                Some("verify-ca"),
                Some("/a b.pem"),
            ),
            ("host=h sslmode=require", "host=h sslmode=require", None, None),
        ] {
            let (rest, taken) = TlsParameters::take_from(url).unwrap();
            assert_eq!(rest, left);
            assert_eq!(taken.mode.as_deref(), mode, "{url}");
            assert_eq!(taken.roots.as_deref(), roots.map(Path::new), "{url}");
        }
    }

    #[test]
    fn without_a_mode_tls_is_taken_where_it_is_offered() {
        assert_eq!(read("postgres://h/d").unwrap().mode(), SslMode::Prefer);
        for mode in ["disable", "prefer", "require"] {
            assert_eq!(
                read(&format!("postgres://h/d?sslmode={mode}")).unwrap().mode().as_str(),
                mode
            );
        }
    }

    #[test]
    fn what_would_verify_less_than_it_says_is_refused_with_what_to_do() {
        for (parameters, said) in [
            ("sslmode=allow", MODE_ALLOWED),
            ("sslmode=Require", MODE_ALLOWED),
            ("sslmode=require&sslmode=disable", ONCE),
            ("sslmode=verify-full", NO_ROOTS),
            ("sslmode=verify-ca", NO_ROOTS),
            ("sslmode=verify-ca&sslrootcert=system", SYSTEM_NEEDS_FULL),
            ("sslmode=require&sslrootcert=system", SYSTEM_NEEDS_FULL),
            ("sslrootcert=/ca.pem", ROOTS_NEED_MODE),
            ("sslmode=disable&sslrootcert=/ca.pem", ROOTS_NEED_MODE),
            ("sslmode=require&sslcert=/c.pem", PAIR),
            ("sslcert=/c.pem&sslkey=/k.pem", IDENTITY_NEEDS_TLS),
        ] {
            let error = read(&format!("postgres://h/d?{parameters}")).unwrap_err();
            assert!(
                error.starts_with("DATABASE_URL: ") && error.ends_with(said),
                "{parameters}: {error}"
            );
        }
    }

    #[test]
    fn a_file_of_authorities_that_is_missing_or_holds_none_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let empty = directory.path().join("empty.pem");
        std::fs::write(&empty, "not a certificate").unwrap();
        for (path, said) in [
            (directory.path().join("none.pem"), "cannot be read"),
            (empty, "holds no certificate"),
        ] {
            let error = read(&format!(
                "postgres://h/d?sslmode=verify-full&sslrootcert={}",
                path.display()
            ))
            .unwrap_err();
            let expected = format!("DATABASE_URL: {path:?} {said}");
            assert!(error.starts_with(&expected), "{error}");
        }
    }
}
