//! A PostgreSQL that speaks TLS, and nothing else over TCP.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use balance::dev::{PostgresOptions, PrivatePostgres};
use tokio::time::timeout;
use tokio_postgres::config::Host;

use super::certificates::{Authority, Certificate, Everywhere};
use super::janitor::Janitor;
use super::postgres::connect;

/// The port of servers that are given no other.
const USUAL_PORT: u16 = 5432;
/// The password of its users.
const PASSWORD: &str = "hunter2";
/// A user that must show a certificate, and has no password.
pub const BY_CERTIFICATE: &str = "by_certificate";

/// A running PostgreSQL on `localhost`.
pub struct SecurePostgres {
    pub server: PrivatePostgres,
    port: u16,
}

impl SecurePostgres {
    /// One that shows this certificate, and takes certificates of the authority. `name` is of the test's own.
    pub async fn start(name: &str, authority: &Authority, certificate: &Certificate) -> Self {
        let mut options = PostgresOptions::new(Janitor::get().directory().join(format!("postgres-{name}")));
        let port = free_port();
        options.settings = settings(port);
        options.settings.push(("fsync".to_owned(), "off".to_owned()));
        let server = PrivatePostgres::start(&options).await.unwrap();
        secure(&server, authority, certificate, Password::Asked).await;
        Self { server, port }
    }

    /// Shows this certificate from now on.
    pub async fn show(&self, certificate: &Certificate) {
        put(&self.server, "server.crt", &certificate.chain);
        put(&self.server, "server.key", &certificate.key);
        reload(&self.server).await;
    }

    /// A URL for one of its databases over TCP, with these parameters.
    pub fn url(&self, host: &str, database: &str, parameters: &str) -> String {
        format!(
            "postgres://balance:{PASSWORD}@{host}:{}/{database}?{parameters}",
            self.port
        )
    }

    /// As [`url`](Self::url), for the user that shows a certificate.
    pub fn url_by_certificate(&self, database: &str, parameters: &str) -> String {
        format!(
            "postgres://{BY_CERTIFICATE}@localhost:{}/{database}?{parameters}",
            self.port
        )
    }
}

/// What a server is started with so that it can be [`secure`]d.
pub fn settings(port: u16) -> Vec<(String, String)> {
    let port = port.to_string();
    let settings = [("listen_addresses", "127.0.0.1"), ("port", port.as_str())];
    settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

/// A port that nobody uses now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Whether a password is asked for.
pub enum Password {
    Asked,
    /// Its proof is a tenth of a second of a processor in a program that is not optimized, for each connection.
    NotAsked,
}

/// Turns TLS on, and plain text over TCP off.
pub async fn secure(server: &PrivatePostgres, authority: &Authority, certificate: &Certificate, password: Password) {
    put(server, "server.crt", &certificate.chain);
    put(server, "server.key", &certificate.key);
    put(server, "root.crt", &authority.pem);
    let method = match password {
        Password::Asked => "scram-sha-256",
        Password::NotAsked => "trust",
    };
    let lines = format!(
        "local all all trust\nhostssl all {BY_CERTIFICATE} 127.0.0.1/32 cert\nhostssl all all 127.0.0.1/32 {method}\n"
    );
    put(server, "pg_hba.conf", &lines);
    let client = connect(&server.url("postgres")).await;
    for statement in [
        "ALTER SYSTEM SET ssl = on",
        "ALTER SYSTEM SET ssl_ca_file = 'root.crt'",
        &format!("ALTER ROLE balance PASSWORD '{PASSWORD}'"),
        &format!(
            "DO $$ BEGIN CREATE ROLE {BY_CERTIFICATE} LOGIN SUPERUSER; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
        ),
    ] {
        client.batch_execute(statement).await.unwrap();
    }
    reload(server).await;
}

/// Writes a file that only PostgreSQL's user can read, where PostgreSQL looks for it.
fn put(server: &PrivatePostgres, name: &str, text: &str) {
    let data: PathBuf = server.data_dir().join("postgres");
    let owner = fs::metadata(&data).unwrap();
    let path = data.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
}

/// Has the server read its files again, and waits until it has.
async fn reload(server: &PrivatePostgres) {
    const LOADED: &str = "SELECT pg_conf_load_time()::text";
    let url = server.url("postgres");
    let before: String = connect(&url).await.query_one(LOADED, &[]).await.unwrap().get(0);
    connect(&url)
        .await
        .batch_execute("SELECT pg_reload_conf()")
        .await
        .unwrap();
    let reloaded = timeout(Duration::from_secs(30), async {
        // A process that began before knows nothing of it.
        while connect(&url)
            .await
            .query_one(LOADED, &[])
            .await
            .unwrap()
            .get::<_, String>(0)
            == before
        {
            tokio::task::yield_now().await;
        }
    });
    reloaded.await.expect("PostgreSQL reads its files again");
}

/// The URL that a replica is given for a database of the tests' server, or for a proxy in front of it: with `TEST_TLS` one
/// by which the server must prove who it is.
pub fn as_asked(url: &str) -> String {
    let Some(everywhere) = Everywhere::asked() else {
        return url.to_owned();
    };
    let config = tokio_postgres::Config::from_str(url).unwrap();
    let port = config.get_ports().first().unwrap();
    let is_on_socket = matches!(config.get_hosts(), [Host::Unix(_)]);
    if is_on_socket && *port == USUAL_PORT {
        // A server of the test's own, which has no TLS.
        return url.to_owned();
    }
    let database = config.get_dbname().unwrap();
    let parameters = format!("sslmode=verify-full&sslrootcert={}", everywhere.file("ca.pem"));
    format!("postgres://balance:{PASSWORD}@localhost:{port}/{database}?{parameters}")
}
