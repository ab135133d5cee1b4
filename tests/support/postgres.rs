//! One private PostgreSQL for the tests of a process, and a database of its own for each test.

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use balance::config::{DatabaseConfig, DatabaseUrl};
use balance::dev::{PostgresOptions, PrivatePostgres};
use tokio::time::timeout;
use tokio_postgres::{Client, NoTls};

/// How many connections to the database wait for a lock.
pub const WAITING: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
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

/// A migrated database that only one test uses.
pub struct Database {
    pub name: String,
    pub url: String,
}

impl Database {
    /// A database of this server, made if there is none and brought up to date.
    pub async fn migrated(server: &PrivatePostgres, name: &str) -> Self {
        server.create_database(name).await.unwrap();
        let database = Self {
            url: server.url(name),
            name: name.to_owned(),
        };
        balance::store::migrate(&database.config(1)).await.unwrap();
        database
    }

    /// What a store on it is made with; at most so many connections.
    pub fn config(&self, connections: usize) -> DatabaseConfig {
        DatabaseConfig {
            url: DatabaseUrl::parse(&self.url).unwrap(),
            connections,
            application_name: "test".to_owned(),
        }
    }

    /// A connection for SQL of the test's own, at PostgreSQL's own isolation level.
    pub async fn client(&self) -> Client {
        let client = connect(&self.url).await;
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
    let database = Database {
        url: server.url(&name),
        name,
    };
    if let Ok(level) = std::env::var("TEST_ISOLATION") {
        database.isolate(&level).await;
    }
    database
}

async fn connect(url: &str) -> Client {
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
            // One directory a test program, since they may run at once.
            let program = std::env::current_exe().unwrap();
            let name = program.file_stem().unwrap().to_string_lossy().into_owned();
            let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("postgres-{name}"));
            let mut options = PostgresOptions::new(directory);
            let settings = [("fsync", "off"), ("max_connections", "400"), ("autovacuum", "off")];
            options.settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
            let server = PrivatePostgres::start(&options).await.unwrap();
            let admin = connect(&server.url("postgres")).await;
            let left = "SELECT datname FROM pg_database WHERE datname LIKE 'test\\_%' OR datname = $1";
            for row in admin.query(left, &[&TEMPLATE]).await.unwrap() {
                let name: &str = row.get(0);
                admin.batch_execute(&format!("DROP DATABASE {name}")).await.unwrap();
            }
            Database::migrated(&server, TEMPLATE).await;
            server
        })
    })
}
