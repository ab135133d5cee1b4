//! One private PostgreSQL for the tests of a process, and a database of its own for each test. Replicas connect as the
//! role that `env/roles.sql` has for them; what a test sets up and looks at goes past its rights.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use balance::config::{DatabaseConfig, DatabaseUrl};
use balance::dev::{PostgresOptions, PrivatePostgres};
use tokio::time::timeout;
use tokio_postgres::{Client, NoTls};

use super::certificates::Everywhere;
use super::janitor::Janitor;
use super::secure_postgres::{self, Password, free_port};

/// How many connections to the database wait for a lock.
pub const WAITING: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
/// How many sessions replicas have. That of a replica which was killed ends with its statement.
pub const SESSIONS: &str = "SELECT count(*) FROM pg_stat_activity \
     WHERE datname = current_database() AND usename = 'balance_service'";
/// How many operations are stored.
pub const STORED: &str = "SELECT count(*) FROM changes_history";

/// Waits until a query of one number gives this.
pub async fn until(client: &Client, query: &str, expected: i64) {
    let reached = timeout(Duration::from_secs(60), async {
        while client.query_one(query, &[]).await.unwrap().get::<_, i64>(0) != expected {
            tokio::task::yield_now().await;
        }
    });
    reached
        .await
        .unwrap_or_else(|_| panic!("{query} does not become {expected}"));
}

const TEMPLATE: &str = "balance_template";

/// The roles that the ledger's commands connect as.
pub const ROLES: &str = include_str!("../../env/roles.sql");

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The superuser of the private PostgreSQL.
    Superuser,
    /// `balance migrate`.
    Owner,
    /// `balance serve`.
    Service,
    /// `balance verify`.
    Auditor,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::Superuser => "balance",
            Role::Owner => "balance_owner",
            Role::Service => "balance_service",
            Role::Auditor => "balance_auditor",
        }
    }
}

/// A migrated database that only one test uses.
pub struct Database {
    pub name: String,
    /// For a replica.
    pub url: String,
}

impl Database {
    /// The database of this server that has the name.
    pub fn of(server: &PrivatePostgres, name: &str) -> Self {
        Self {
            url: as_role(&server.url(name), Role::Service),
            name: name.to_owned(),
        }
    }

    /// A database of this server, made if there is none, with the roles, and brought up to date by its owner.
    pub async fn migrated(server: &PrivatePostgres, name: &str) -> Self {
        server.create_database(name).await.unwrap();
        let database = Self::of(server, name);
        database.set_up_roles().await;
        balance::store::migrate(&database.config_as(Role::Owner, 1))
            .await
            .unwrap();
        database
    }

    /// Runs `env/roles.sql` as an administrator would.
    pub async fn set_up_roles(&self) {
        self.client().await.batch_execute(ROLES).await.unwrap();
    }

    /// For somebody else than a replica.
    pub fn url_as(&self, role: Role) -> String {
        as_role(&self.url, role)
    }

    /// What a replica's store on it is made with; at most so many connections.
    pub fn config(&self, connections: usize) -> DatabaseConfig {
        self.config_as(Role::Service, connections)
    }

    /// The same for somebody else.
    pub fn config_as(&self, role: Role, connections: usize) -> DatabaseConfig {
        DatabaseConfig {
            url: DatabaseUrl::parse(&self.url_as(role)).unwrap(),
            connections,
            application_name: "test".to_owned(),
        }
    }

    /// A connection for SQL of the test's own, at PostgreSQL's own isolation level.
    pub async fn client(&self) -> Client {
        self.client_as(Role::Superuser).await
    }

    /// The same with the rights of somebody else.
    pub async fn client_as(&self, role: Role) -> Client {
        let client = connect(&self.url_as(role)).await;
        let own = "SET default_transaction_isolation = 'read committed'";
        client.batch_execute(own).await.unwrap();
        client
    }

    /// Connections of replicas that are opened from now on have this isolation level unless they ask for another.
    pub async fn isolate(&self, level: &str) {
        let set = format!(
            "ALTER DATABASE {} SET default_transaction_isolation = '{level}'",
            self.name
        );
        self.client().await.batch_execute(&set).await.unwrap();
    }
}

/// A database that no other test sees, with the schema and nothing in it. With `TEST_ISOLATION` the tests can be run at
/// another isolation level than PostgreSQL's own.
pub async fn fresh_database() -> Database {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let server = tokio::task::spawn_blocking(server).await.unwrap();
    let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let admin = connect(&server.url("postgres")).await;
    let create = format!("CREATE DATABASE {name} TEMPLATE {TEMPLATE}");
    admin.batch_execute(&create).await.unwrap();
    let database = Database::of(server, &name);
    if let Ok(level) = std::env::var("TEST_ISOLATION") {
        database.isolate(&level).await;
    }
    database
}

fn as_role(url: &str, role: Role) -> String {
    let (_, rest) = url.split_once('@').expect("every URL of these tests has a user");
    format!("postgres://{}@{rest}", role.name())
}

/// A connection without TLS.
pub async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// The server lives as long as the process, and dies with it.
fn server() -> &'static PrivatePostgres {
    static SERVER: OnceLock<PrivatePostgres> = OnceLock::new();
    SERVER.get_or_init(|| {
        // A runtime that is never dropped: the server's handle belongs to it.
        let runtime = Box::leak(Box::new(tokio::runtime::Runtime::new().unwrap()));
        runtime.block_on(async {
            let mut options = PostgresOptions::new(Janitor::get().directory().join("postgres"));
            let settings = [("fsync", "off"), ("max_connections", "400"), ("autovacuum", "off")];
            options.settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
            let tls = Everywhere::asked();
            if tls.is_some() {
                options.settings.extend(secure_postgres::settings(free_port()));
            }
            let server = PrivatePostgres::start(&options).await.unwrap();
            if let Some(tls) = tls {
                secure_postgres::secure(&server, &tls.authority, &tls.certificate, Password::NotAsked).await;
            }
            Database::migrated(&server, TEMPLATE).await;
            server
        })
    })
}
