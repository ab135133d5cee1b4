use clap::Args;

use super::number;
use crate::config::{ConfigError, DatabaseConfig, DatabaseUrl};

/// Where PostgreSQL is.
#[derive(Args, Clone)]
#[command(next_help_heading = "Database")]
pub struct DatabaseArguments {
    /// PostgreSQL, as postgres://user:password@host:port/database; better by the variable, since every user of the host sees
    /// flags
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: Option<String>,

    /// Most connections to PostgreSQL open at once, 1 to 1000
    #[arg(long, env = "DATABASE_CONNECTIONS", value_name = "COUNT", default_value = "16")]
    pub database_connections: String,
}

impl DatabaseArguments {
    /// # Errors
    ///
    /// [`ConfigError`] names the first value that cannot be used.
    pub fn database(&self, application_name: String) -> Result<DatabaseConfig, ConfigError> {
        let url = self.database_url.as_deref().ok_or(ConfigError::Missing {
            variable: "DATABASE_URL",
            allowed: "a PostgreSQL URL such as postgres://balance:secret@localhost:5432/balance",
        })?;
        Ok(DatabaseConfig {
            url: DatabaseUrl::parse(url)?,
            connections: number(
                "DATABASE_CONNECTIONS",
                &self.database_connections,
                1..=1_000,
                "a whole number from 1 to 1000",
            )?,
            application_name,
        })
    }
}
