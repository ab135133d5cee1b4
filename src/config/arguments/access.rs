use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;

use super::{ADDRESS_ALLOWED, parsed};
use crate::config::{AccessConfig, ConfigError, HttpConfig};

/// Scrapes, probes and a few people's browsers.
const ADMIN_CONNECTIONS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(63);
/// A few answers of `/metrics`.
const ADMIN_MEMORY_BYTES: usize = 4 * 1024 * 1024;
/// Each is turned away within half a second.
const ADMIN_TURNED_AWAY: NonZeroUsize = NonZeroUsize::MIN.saturating_add(15);

/// Who may ask for what, and where.
#[derive(Args, Clone)]
#[command(next_help_heading = "Access")]
pub struct AccessArguments {
    /// File of bearer tokens, one a line: name, SHA-256 of the token in hex, scopes (read, write or read,write); reread
    /// on SIGHUP. Without it everyone may ask for everything
    #[arg(long, env = "API_TOKENS_FILE", value_name = "FILE")]
    pub api_tokens_file: Option<PathBuf>,

    /// Address of /metrics, /docs and /openapi.json, which LISTEN then has no more
    #[arg(long, env = "ADMIN_LISTEN", value_name = "ADDRESS")]
    pub admin_listen: Option<String>,
}

impl AccessArguments {
    /// # Errors
    ///
    /// [`ConfigError`] names the first value that cannot be used.
    pub fn access(&self, http: &HttpConfig) -> Result<AccessConfig, ConfigError> {
        let admin = self.admin_listen.as_deref().map(|address| {
            Ok(HttpConfig {
                listen: parsed("ADMIN_LISTEN", address, ADDRESS_ALLOWED)?,
                connections: ADMIN_CONNECTIONS,
                turned_away: ADMIN_TURNED_AWAY,
                memory: ADMIN_MEMORY_BYTES,
                ..http.clone()
            })
        });
        Ok(AccessConfig {
            tokens_file: self.api_tokens_file.clone(),
            admin: admin.transpose()?,
        })
    }
}
