//! The primary, and the standby that takes its place when it dies.

use std::fs;

use balance::dev::{PostgresOptions, PrivatePostgres, StopMode};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::postgres::Database;
use crate::support::proxy::Proxy;
use crate::support::replica::Scratch;
use crate::support::standby::{kill_server, make_synchronous, promote, standby_of, until_streaming, until_synchronous};

const DATABASE: &str = "torture";
/// A standby that was cut off still finds what it needs, and looks for it at once.
const SETTINGS: [(&str, &str); 3] = [
    ("max_wal_size", "256MB"),
    ("wal_keep_size", "64MB"),
    ("wal_retrieve_retry_interval", "100ms"),
];

/// Whether commits wait for the standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replication {
    Synchronous,
    Asynchronous,
}

/// One of the two servers.
struct Server {
    options: PostgresOptions,
    /// None while it is down.
    postgres: Option<PrivatePostgres>,
    database: Database,
}

impl Server {
    fn new(options: PostgresOptions, postgres: PrivatePostgres) -> Self {
        Self {
            database: Database::of(&postgres, DATABASE),
            postgres: Some(postgres),
            options,
        }
    }

    fn running(&self) -> &PrivatePostgres {
        self.postgres.as_ref().expect("the server runs")
    }
}

pub struct Servers {
    /// The primary is at the place `primary`; the other one is its standby, or dead.
    servers: [Server; 2],
    primary: usize,
    /// The replication stream from the primary to an asynchronous standby.
    stream: Proxy,
    copies: usize,
    /// Removed with the servers.
    scratch: Scratch,
}

fn options(scratch: &Scratch, name: &str) -> PostgresOptions {
    let mut options = PostgresOptions::new(scratch.0.join(name));
    options.settings = SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    options
}

impl Servers {
    pub async fn start(replication: Replication) -> Self {
        // PostgreSQL's user must be able to enter it.
        let scratch = Scratch::new();
        let of_primary = options(&scratch, "primary");
        let primary = PrivatePostgres::start(&of_primary).await.unwrap();
        let stream = Proxy::start(&Database::migrated(&primary, DATABASE).await).await;
        let mut of_standby = options(&scratch, "standby");
        if replication == Replication::Asynchronous {
            let through = format!("host=127.0.0.1 port={} user=balance", stream.address.port());
            of_standby.settings.push(("primary_conninfo".to_owned(), through));
        }
        let standby = standby_of(&primary, &of_standby).await;
        let servers = Self {
            servers: [Server::new(of_primary, primary), Server::new(of_standby, standby)],
            primary: 0,
            stream,
            copies: 0,
            scratch,
        };
        match replication {
            Replication::Synchronous => make_synchronous(servers.primary()).await,
            Replication::Asynchronous => until_streaming(servers.primary()).await,
        }
        servers
    }

    /// The database on the primary.
    pub fn primary(&self) -> &Database {
        &self.servers[self.primary].database
    }

    /// The database at each place.
    pub fn databases(&self) -> [&Database; 2] {
        self.servers.each_ref().map(|server| &server.database)
    }

    /// Keeps from the standby what the primary writes from now on.
    pub fn hold_stream(&self) {
        self.stream.hold();
    }

    /// Stops the primary as a crash would, or kills its postmaster, and waits until it has ended.
    pub async fn stop_primary(&mut self, killed: bool) {
        let Some(mut postgres) = self.servers[self.primary].postgres.take() else {
            return;
        };
        if killed {
            kill(Pid::from_raw(postgres.process_id()), Signal::SIGKILL).unwrap();
            postgres.exited().await;
        } else {
            postgres.stop(StopMode::Immediate).await.unwrap();
        }
    }

    /// Starts the primary where it was stopped; returns when it takes connections.
    pub async fn start_primary(&mut self) {
        let server = &mut self.servers[self.primary];
        if server.postgres.is_none() {
            server.postgres = Some(PrivatePostgres::start(&server.options).await.unwrap());
        }
    }

    /// The primary's machine dies; returns its place.
    pub async fn kill_primary(&mut self) -> usize {
        let dead = self.servers[self.primary].postgres.take();
        kill_server(dead.expect("the primary runs")).await;
        self.primary
    }

    /// The standby becomes the primary; returns when it takes writes.
    pub async fn promote_standby(&mut self) {
        self.primary = 1 - self.primary;
        promote(self.primary()).await;
    }

    /// Whether the last primary is dead and nothing has taken its place.
    pub fn is_alone(&self) -> bool {
        self.servers[1 - self.primary].postgres.is_none()
    }

    /// Fills the place of a dead server with a synchronous standby of the primary; a standby that is there may have been cut
    /// off meanwhile, and is waited for.
    pub async fn replicate(&mut self) {
        if !self.is_alone() {
            return until_synchronous(self.primary()).await;
        }
        self.copies += 1;
        let options = options(&self.scratch, &format!("copy-{}", self.copies));
        let standby = standby_of(self.servers[self.primary].running(), &options).await;
        let dead = std::mem::replace(&mut self.servers[1 - self.primary], Server::new(options, standby));
        fs::remove_dir_all(&dead.options.data_dir).unwrap();
        make_synchronous(self.primary()).await;
    }

    pub async fn stop(self) {
        for mut postgres in self.servers.into_iter().filter_map(|server| server.postgres) {
            postgres.stop(StopMode::Immediate).await.unwrap();
        }
    }
}
