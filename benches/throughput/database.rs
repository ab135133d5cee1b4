//! The private PostgreSQL and its databases: one is loaded, and each contender gets a copy of its own.

use std::path::Path;

use balance::dev::{PostgresOptions, PrivatePostgres, StopMode};
use balance::store::SESSION_SETTINGS;
use tokio_postgres::{Client, NoTls};

use crate::Outcome;
use crate::process::command;

/// Beyond the defaults of `balance dev`. Nothing here makes a commit less durable.
const SETTINGS: [(&str, &str); 4] = [
    ("shared_buffers", "1GB"),
    ("max_connections", "200"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "30min"),
];

/// Settings that are told with the results.
const TOLD: [&str; 8] = [
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_sync_method",
    "shared_buffers",
    "max_wal_size",
    "checkpoint_timeout",
    "max_connections",
];

/// How the names of this benchmark's databases begin.
const PREFIX: &str = "throughput_";

/// The loaded database, which nobody measures on.
const TEMPLATE: &str = "throughput_loaded";

/// A running PostgreSQL, for this run only.
pub struct Databases {
    postgres: PrivatePostgres,
}

/// A contender's database.
#[derive(Clone)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// As `DATABASE_URL` wants it.
    pub url: String,
}

impl Databases {
    /// Starts PostgreSQL and removes what a run that was stopped left behind.
    ///
    /// # Errors
    ///
    /// One line that says why not.
    pub async fn start(directory: &Path) -> Outcome<Self> {
        let mut options = PostgresOptions::new(directory);
        let settings = SETTINGS.into_iter().chain(SESSION_SETTINGS);
        options.settings = settings
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let databases = Self {
            postgres: PrivatePostgres::start(&options).await?,
        };
        let admin = databases.admin().await?;
        let left = format!("SELECT datname FROM pg_database WHERE starts_with(datname, '{PREFIX}')");
        for row in admin.query(&left, &[]).await? {
            let name: &str = row.try_get(0)?;
            admin.batch_execute(&format!("DROP DATABASE {name}")).await?;
        }
        Ok(databases)
    }

    /// Makes the database that is to be loaded, with the schema.
    ///
    /// # Errors
    ///
    /// If the schema cannot be brought in.
    pub async fn template(&self) -> Outcome<Database> {
        self.postgres.create_database(TEMPLATE).await?;
        let template = self.database(TEMPLATE);
        let mut migrate = command(env!("CARGO_BIN_EXE_balance"));
        let output = migrate
            .arg("migrate")
            .env("DATABASE_URL", &template.url)
            .output()
            .await?;
        if output.status.success() {
            Ok(template)
        } else {
            Err(format!("balance migrate: {}", String::from_utf8_lossy(&output.stderr)).into())
        }
    }

    /// A copy of the loaded database.
    ///
    /// # Errors
    ///
    /// What PostgreSQL said.
    pub async fn copy(&self, contender: &str) -> Outcome<Database> {
        let name = format!("{PREFIX}{contender}");
        // Copying files is fast, and writes nothing to the log that would have to be synced while measuring.
        let copy = format!("CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY file_copy");
        self.admin().await?.batch_execute(&copy).await?;
        Ok(self.database(&name))
    }

    /// Writes out all that is dirty, so that no measurement pays for what came before.
    ///
    /// # Errors
    ///
    /// What PostgreSQL said.
    pub async fn checkpoint(&self) -> Outcome<()> {
        Ok(self.admin().await?.batch_execute("CHECKPOINT").await?)
    }

    /// PostgreSQL's version and the settings that matter.
    ///
    /// # Errors
    ///
    /// What PostgreSQL said.
    pub async fn description(&self) -> Outcome<(String, Vec<(String, String)>)> {
        let admin = self.admin().await?;
        let version = admin.query_one("SHOW server_version", &[]).await?.try_get(0)?;
        let mut settings = Vec::new();
        for name in TOLD {
            let value = admin.query_one(&format!("SHOW {name}"), &[]).await?.try_get(0)?;
            settings.push((name.to_owned(), value));
        }
        Ok((version, settings))
    }

    /// The process id of the postmaster.
    pub fn postmaster(&self) -> i32 {
        self.postgres.process_id()
    }

    /// The directory of PostgreSQL's programs.
    pub fn programs(&self) -> &Path {
        self.postgres.bin_dir()
    }

    /// The directory of the socket, as PostgreSQL's own clients want it.
    pub fn socket_dir(&self) -> &Path {
        self.postgres.socket_dir()
    }

    /// Stops PostgreSQL and removes all its data.
    ///
    /// # Errors
    ///
    /// If it does not stop, or its files cannot be removed.
    pub async fn remove(&mut self) -> Outcome<()> {
        self.postgres.stop(StopMode::Immediate).await?;
        Ok(std::fs::remove_dir_all(self.postgres.data_dir())?)
    }

    async fn admin(&self) -> Outcome<Client> {
        self.database("postgres").client().await
    }

    fn database(&self, name: &str) -> Database {
        Database {
            name: name.to_owned(),
            url: self.postgres.url(name),
        }
    }
}

impl Database {
    /// A connection for SQL of the benchmark's own.
    ///
    /// # Errors
    ///
    /// What PostgreSQL said.
    pub async fn client(&self) -> Outcome<Client> {
        let (client, connection) = tokio_postgres::connect(&self.url, NoTls).await?;
        // Whatever ends the connection is told to the client's caller too.
        tokio::spawn(async { drop(connection.await) });
        Ok(client)
    }
}
