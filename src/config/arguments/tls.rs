use std::path::PathBuf;

use clap::Args;

use crate::config::ConfigError;
use crate::tls::{ServerFiles, ServerTls, ServerTlsError};

const FILES_ALLOWED: &str = "PEM files: in TLS_CERT the certificate, then those between it and its authority, and in \
     TLS_KEY its key without a passphrase";

/// What the service is spoken to over TLS with.
#[derive(Args, Clone)]
#[command(next_help_heading = "TLS")]
pub struct TlsArguments {
    /// PEM file with the certificate of the service, then those between it and its authority; with it the service speaks
    /// https and no http. SIGHUP reads it again, and the key
    #[arg(long, env = "TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// PEM file with the key of that certificate, without a passphrase
    #[arg(long, env = "TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
}

impl TlsArguments {
    /// Reads both files; nothing without them.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if only one of them is named, or one cannot be used.
    pub fn server(&self) -> Result<Option<ServerTls>, ConfigError> {
        let missing = |variable| ConfigError::Missing {
            variable,
            allowed: "both TLS_CERT and TLS_KEY, or neither",
        };
        let (certificate, key) = match (&self.tls_cert, &self.tls_key) {
            (None, None) => return Ok(None),
            (Some(_), None) => return Err(missing("TLS_KEY")),
            (None, Some(_)) => return Err(missing("TLS_CERT")),
            (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
        };
        let tls = ServerTls::new(ServerFiles { certificate, key }).map_err(|error| {
            let (variable, error) = match error {
                ServerTlsError::Certificate(error) => ("TLS_CERT", error),
                ServerTlsError::Key(error) => ("TLS_KEY", error),
            };
            ConfigError::File {
                variable,
                error,
                allowed: FILES_ALLOWED,
            }
        })?;
        Ok(Some(tls))
    }
}
