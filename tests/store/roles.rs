//! `env/roles.sql`: what a replica needs it may do, as every other test shows that runs one, and nothing else.

use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;

use balance::config::{DatabaseConfig, DatabaseUrl};
use balance::dev::{PostgresOptions, PrivatePostgres, StopMode};
use balance::domain::SegmentLength;
use balance::store::{SESSION_SETTINGS, Store, StoreReadiness, migrate};
use tokio::time::{Duration, Instant};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

use crate::support::postgres::{Database, ROLES, Role, connect, fresh_database};
use crate::support::replica::Scratch;

/// An operation, its user and a checkpoint.
const FILL: &str = "INSERT INTO changes_history (user_id, timestamp, seq, balance_change, balance_after, context, \
        operation_id, approved, instance) VALUES ('a', now(), 1, 1, 1, '', gen_random_uuid(), false, 'x'); \
     INSERT INTO balance VALUES ('a', 1, 1, now(), 1); INSERT INTO balance_checkpoints VALUES ('a', now(), 1, 1, 1)";

/// What would rewrite the history or change the schema.
const FORBIDDEN: [&str; 35] = [
    "UPDATE changes_history SET balance_change = 1000000",
    "UPDATE changes_history SET context = 'another'",
    "INSERT INTO changes_history SELECT * FROM changes_history \
         ON CONFLICT (user_id, timestamp, seq) DO UPDATE SET balance_change = 1000000",
    "MERGE INTO changes_history h USING balance b ON h.user_id = b.user_id WHEN MATCHED THEN DELETE",
    "DELETE FROM changes_history",
    "TRUNCATE changes_history",
    "SELECT * FROM changes_history FOR UPDATE",
    "LOCK TABLE changes_history IN ACCESS EXCLUSIVE MODE",
    "DELETE FROM balance",
    "TRUNCATE balance",
    "DELETE FROM balance_checkpoints",
    "TRUNCATE balance_checkpoints",
    "ALTER TABLE changes_history ADD COLUMN forged text",
    "ALTER TABLE changes_history DROP CONSTRAINT changes_history_not_negative",
    "ALTER TABLE balance DROP CONSTRAINT balance_not_negative",
    "ALTER TABLE changes_history RENAME TO history",
    "ALTER TABLE changes_history OWNER TO balance_service",
    "ALTER TABLE changes_history DISABLE TRIGGER ALL",
    "DROP TABLE changes_history",
    "DROP TABLE balance",
    "DROP INDEX changes_history_by_recorded_at",
    "DROP SCHEMA public CASCADE",
    "CREATE INDEX ON changes_history (instance)",
    "CREATE RULE forget AS ON INSERT TO changes_history DO INSTEAD NOTHING",
    "CREATE TRIGGER forget BEFORE INSERT ON changes_history FOR EACH ROW \
         EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "CREATE TABLE mine (name text)",
    "CREATE TEMPORARY TABLE mine (name text)",
    "CREATE VIEW mine AS SELECT 1 AS one",
    "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE SCHEMA mine",
    "CREATE ROLE mine",
    "SET ROLE balance_owner",
    "SET ROLE pg_database_owner",
    "INSERT INTO __diesel_schema_migrations (version) VALUES ('forged')",
    "DELETE FROM __diesel_schema_migrations",
];

/// Every right on every table, with the table's owner.
const RIGHTS: &str = "SELECT format('%s of %s: %s %s', c.relname, c.relowner::regrole, a.grantee::regrole, a.privilege_type) \
     FROM pg_class c CROSS JOIN aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a \
     WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' ORDER BY 1";
/// Those on their columns, on the schema, on the database, and on tables of the future.
const RIGHTS_AROUND: &str = "SELECT format('%s: %s %s %s', what, grantee::regrole, privilege_type, is_grantable) FROM ( \
         SELECT 'column ' || attname AS what, a.* FROM pg_attribute CROSS JOIN aclexplode(attacl) a \
             WHERE attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace) \
         UNION ALL SELECT 'schema', a.* FROM pg_namespace CROSS JOIN aclexplode(nspacl) a WHERE nspname = 'public' \
         UNION ALL SELECT 'database', a.* FROM pg_database CROSS JOIN aclexplode(datacl) a \
             WHERE datname = current_database() \
         UNION ALL SELECT 'default', a.* FROM pg_default_acl CROSS JOIN aclexplode(defaclacl) a \
             WHERE a.grantee <> defaclrole) AS r ORDER BY 1";

async fn listed(client: &Client, query: &str) -> Vec<String> {
    let rows = client.query(query, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

async fn rights(client: &Client) -> Vec<String> {
    listed(client, RIGHTS).await
}

async fn expect_refused(client: &Client, statements: &[&str]) {
    for statement in statements {
        // In a transaction, which some of them need.
        let refused = client.batch_execute(&format!("BEGIN; {statement}")).await;
        client.batch_execute("ROLLBACK").await.unwrap();
        let error = refused.expect_err(statement);
        assert_eq!(
            error.code(),
            Some(&SqlState::INSUFFICIENT_PRIVILEGE),
            "{statement}: {error:?}"
        );
    }
}

/// The file within a transaction of the caller's.
fn unfinished() -> String {
    ROLES.replace("\nBEGIN;\n", "\n").replace("\nCOMMIT;\n", "\n")
}

/// What the file objects to, and the statements that mend it.
async fn refusal(client: &Client) -> (String, String) {
    let error = client.batch_execute(ROLES).await.unwrap_err();
    let error = error.as_db_error().unwrap();
    let (_, statements) = error.hint().unwrap().split_once('\n').unwrap();
    (error.message().to_owned(), statements.to_owned())
}

/// A migrated database with something in it, on which the file was run twice.
async fn filled() -> Database {
    let database = fresh_database().await;
    // Rights on a database as such do not come with its template.
    database.set_up_roles().await;
    database.client().await.batch_execute(FILL).await.unwrap();
    database
}

#[tokio::test]
async fn the_role_of_a_replica_is_refused_whatever_rewrites_the_history_or_changes_the_schema() {
    let database = filled().await;
    let service = database.client_as(Role::Service).await;
    let tables = "SELECT (SELECT array_agg(h::text) FROM changes_history h), (SELECT array_agg(c.conname::text) \
         FROM pg_constraint c), (SELECT array_agg(relname::text) FROM pg_class)";
    let all = async || {
        let row = service.query_one(tables, &[]).await.unwrap();
        [0, 1, 2].map(|column| row.get::<_, Vec<String>>(column))
    };
    let before = all().await;
    expect_refused(&service, &FORBIDDEN).await;
    assert_eq!(all().await, before);
}

#[tokio::test]
async fn the_role_of_verify_reads_everything_and_writes_nothing() {
    let database = filled().await;
    let auditor = database.client_as(Role::Auditor).await;
    expect_refused(&auditor, &FORBIDDEN).await;
    let writes = FILL.split("; ").map(str::trim);
    expect_refused(&auditor, &writes.collect::<Vec<_>>()).await;
    expect_refused(&auditor, &["UPDATE balance SET balance = 2"]).await;
    for (table, rows) in [
        ("changes_history", 1),
        ("balance", 1),
        ("balance_checkpoints", 1),
        ("__diesel_schema_migrations", 2),
    ] {
        let count = format!("SELECT count(*) FROM {table}");
        assert_eq!(auditor.query_one(&count, &[]).await.unwrap().get::<_, i64>(0), rows);
    }
}

#[tokio::test]
async fn rights_are_the_same_whether_the_roles_or_the_tables_come_first() {
    let roles_first = fresh_database().await;
    let expected = rights(&roles_first.client().await).await;
    let of_service = |right: &&String| right.contains(": balance_service ");
    assert_eq!(expected.iter().filter(of_service).count(), 9, "{expected:#?}");
    assert!(
        expected.iter().all(|right| right.contains(" of balance_owner: ")),
        "{expected:#?}"
    );

    let tables_first = fresh_database().await;
    let client = tables_first.client().await;
    let drop = "DROP SCHEMA public CASCADE; CREATE SCHEMA public";
    client.batch_execute(drop).await.unwrap();
    migrate(&tables_first.config_as(Role::Superuser, 1)).await.unwrap();
    // The migration finds the roles of the other tests.
    let take = "REVOKE ALL ON ALL TABLES IN SCHEMA public FROM balance_service, balance_auditor";
    client.batch_execute(take).await.unwrap();
    for _ in 0..2 {
        tables_first.set_up_roles().await;
        assert_eq!(rights(&client).await, expected);
    }
}

#[tokio::test]
async fn rights_that_were_given_beside_the_file_are_taken_away_or_refused() {
    let database = filled().await;
    let client = database.client().await;
    let expected = rights(&client).await;
    let give = "GRANT ALL ON changes_history, balance TO balance_service; GRANT DELETE ON balance TO PUBLIC; \
         GRANT CREATE ON SCHEMA public TO PUBLIC";
    client.batch_execute(give).await.unwrap();
    database.set_up_roles().await;
    assert_eq!(rights(&client).await, expected);
    expect_refused(&database.client_as(Role::Service).await, &FORBIDDEN).await;

    // Roles are the whole server's, so that what is given to them here must never be seen by another test.
    for give in [
        "ALTER ROLE balance_service CREATEROLE",
        "GRANT balance_owner TO balance_service",
    ] {
        client
            .batch_execute(&format!("BEGIN; {give}; SAVEPOINT given"))
            .await
            .unwrap();
        let (message, statements) = refusal(&client).await;
        assert!(message.contains("balance_service"), "{message}");
        client.batch_execute("ROLLBACK TO given").await.unwrap();
        client.batch_execute(&statements).await.unwrap();
        client.batch_execute(&unfinished()).await.unwrap();
        client.batch_execute("ROLLBACK").await.unwrap();
    }
}

/// Whoever owns the database may do all with it.
#[tokio::test]
async fn a_database_that_belongs_to_a_replicas_role_is_refused_with_the_statements_that_mend_it() {
    let expected = rights(&fresh_database().await.client().await).await;
    for role in [Role::Service, Role::Auditor] {
        let database = fresh_database().await;
        let client = database.client().await;
        let (name, owner) = (&database.name, role.name());
        let alone = format!(
            "DROP SCHEMA public CASCADE; CREATE SCHEMA public AUTHORIZATION {owner}; ALTER DATABASE {name} OWNER TO {owner}"
        );
        client.batch_execute(&alone).await.unwrap();
        migrate(&database.config_as(role, 1)).await.unwrap();
        let own = database.client_as(role).await;
        let make = format!("{FILL}; CREATE VIEW mine AS SELECT 1 AS one; SELECT lo_create(0)");
        own.batch_execute(&make).await.unwrap();

        let (message, statements) = refusal(&client).await;
        client.batch_execute("ROLLBACK").await.unwrap();
        for what in ["the database", "the schema public", "view mine"] {
            assert!(message.contains(&format!("{owner} owns {what}")), "{message}");
        }
        client.batch_execute(&statements).await.unwrap();

        client.batch_execute("DROP VIEW mine").await.unwrap();
        for _ in 0..2 {
            database.set_up_roles().await;
            assert_eq!(rights(&client).await, expected);
        }
        expect_refused(&own, &FORBIDDEN).await;
    }
}

#[tokio::test]
async fn what_a_replicas_role_is_a_member_of_it_never_inherits() {
    let client = filled().await.client().await;
    // Never committed, since the role is the whole server's.
    let give = "BEGIN; ALTER ROLE balance_service INHERIT";
    client.batch_execute(give).await.unwrap();
    client.batch_execute(&unfinished()).await.unwrap();
    let inherits = "SELECT rolname::text FROM pg_roles WHERE rolname LIKE 'balance\\_%' AND rolinherit";
    assert_eq!(listed(&client, inherits).await, [""; 0]);
    client.batch_execute("ROLLBACK").await.unwrap();
}

#[tokio::test]
async fn rights_that_another_role_was_given_are_taken_away() {
    let database = filled().await;
    let client = database.client().await;
    let expected = (rights(&client).await, listed(&client, RIGHTS_AROUND).await);
    let make = "DO $$ BEGIN CREATE ROLE guest; EXCEPTION WHEN duplicate_object THEN NULL; END $$";
    client.batch_execute(make).await.unwrap();
    let database_right = format!("GRANT CREATE, TEMPORARY ON DATABASE {} TO guest", database.name);
    let gifts = [
        "GRANT ALL ON changes_history TO guest",
        "GRANT SELECT ON __diesel_schema_migrations TO guest",
        "GRANT UPDATE (balance_change), SELECT (context) ON changes_history TO guest",
        "GRANT UPDATE (balance) ON balance TO PUBLIC",
        "GRANT CREATE ON SCHEMA public TO guest",
        &database_right,
        "ALTER DEFAULT PRIVILEGES FOR ROLE balance_owner GRANT ALL ON TABLES TO guest",
        "ALTER DEFAULT PRIVILEGES FOR ROLE balance_owner IN SCHEMA public GRANT ALL ON TABLES TO balance_service",
        // Handed on, from one to the next.
        "GRANT DELETE ON balance TO guest WITH GRANT OPTION; SET ROLE guest; \
             GRANT DELETE ON balance TO balance_service; RESET ROLE",
        "GRANT SELECT ON balance TO balance_auditor WITH GRANT OPTION; SET ROLE balance_auditor; \
             GRANT SELECT ON balance TO guest; RESET ROLE",
        "GRANT CREATE ON SCHEMA public TO balance_owner WITH GRANT OPTION; SET ROLE balance_owner; \
             GRANT CREATE ON SCHEMA public TO guest; RESET ROLE",
    ];
    let around = async || (rights(&client).await, listed(&client, RIGHTS_AROUND).await);
    for gift in gifts {
        client.batch_execute(gift).await.unwrap();
        assert_ne!(around().await, expected, "{gift}");
        database.set_up_roles().await;
        assert_eq!(around().await, expected, "{gift}");
    }
    client.batch_execute(&gifts.join("; ")).await.unwrap();
    for _ in 0..2 {
        database.set_up_roles().await;
        assert_eq!(around().await, expected);
    }
    client.batch_execute("SET SESSION AUTHORIZATION guest").await.unwrap();
    expect_refused(&client, &FORBIDDEN).await;
    expect_refused(&client, &["SELECT FROM balance", "SELECT FROM changes_history"]).await;
}

#[tokio::test]
async fn a_replica_without_the_rights_is_not_ready() {
    let database = filled().await;
    let store = Store::new(&database.config(1), SegmentLength::DEFAULT, Arc::default());
    let readiness = async || {
        let deadline = Instant::now() + Duration::from_secs(10);
        store.readiness(deadline).await.unwrap()
    };
    assert_eq!(readiness().await, StoreReadiness::Ready);
    let client = database.client().await;
    for right in [
        "INSERT ON changes_history",
        "UPDATE ON balance_checkpoints",
        "SELECT ON balance",
    ] {
        let take = format!("REVOKE {right} FROM balance_service");
        client.batch_execute(&take).await.unwrap();
        assert_eq!(readiness().await, StoreReadiness::NoRights, "{right}");
        database.set_up_roles().await;
        assert_eq!(readiness().await, StoreReadiness::Ready);
    }
}

#[tokio::test]
async fn the_service_role_brings_the_session_settings_of_a_replica() {
    let database = filled().await;
    // Never committed, since the role is the whole server's.
    let admin = database.client().await;
    let change = "BEGIN; ALTER ROLE balance_service RESET jit; ALTER ROLE balance_service SET lock_timeout = '1h'";
    admin.batch_execute(change).await.unwrap();
    admin.batch_execute(&unfinished()).await.unwrap();
    let settings = "SELECT unnest(setconfig) FROM pg_db_role_setting \
         WHERE setrole = 'balance_service'::regrole AND setdatabase = 0 ORDER BY 1";
    let mut expected = SESSION_SETTINGS.map(|(name, value)| format!("{name}={value}"));
    expected.sort();
    assert_eq!(listed(&admin, settings).await, expected);
    admin.batch_execute("ROLLBACK").await.unwrap();

    let service = database.client_as(Role::Service).await;
    for (name, value) in SESSION_SETTINGS {
        let shown = service.query_one(&format!("SHOW {name}"), &[]).await.unwrap();
        assert_eq!(shown.get::<_, &str>(0), value, "{name}");
    }
}

/// A PostgreSQL of the test's own that also listens on TCP, with a role `guest`, and a database `ledger` that belongs to
/// `admin`: no superuser, but with CREATEROLE, as the administrator of a managed PostgreSQL is.
async fn managed(scratch: &Scratch) -> (PrivatePostgres, u16, Client) {
    let mut options = PostgresOptions::new(scratch.0.join("postgres"));
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let settings = [("fsync", "off"), ("listen_addresses", "127.0.0.1")];
    options.settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    options.settings.push(("port".to_owned(), port.to_string()));
    let postgres = PrivatePostgres::start(&options).await.unwrap();
    let superuser = connect(&postgres.url("postgres")).await;
    for statement in [
        "CREATE ROLE guest",
        "CREATE ROLE admin LOGIN CREATEROLE",
        "CREATE DATABASE ledger OWNER admin",
    ] {
        superuser.batch_execute(statement).await.unwrap();
    }
    (postgres, port, superuser)
}

async fn end(mut postgres: PrivatePostgres) {
    postgres.stop(StopMode::Immediate).await.unwrap();
}

#[tokio::test]
async fn roles_that_somebody_else_made_are_refused_with_the_statement_that_mends_it() {
    let scratch = Scratch::new();
    let (postgres, _, superuser) = managed(&scratch).await;
    let database = Database::of(&postgres, "ledger");
    database.set_up_roles().await;
    let admin = database.client().await;
    admin.batch_execute("SET SESSION AUTHORIZATION admin").await.unwrap();
    let version = admin.query_one("SHOW server_version_num", &[]).await.unwrap();
    // Before PostgreSQL 16 CREATEROLE is enough for any role.
    if version.get::<_, &str>(0).parse::<u32>().unwrap() >= 160_000 {
        let error = admin.batch_execute(ROLES).await.unwrap_err();
        let error = error.as_db_error().unwrap();
        let all = "balance_auditor, balance_owner, balance_service";
        assert!(error.message().contains(all), "{error:?}");
        let (_, statement) = error.hint().unwrap().split_once(": ").unwrap();
        superuser.batch_execute(statement).await.unwrap();
        admin.batch_execute("ROLLBACK").await.unwrap();
    }
    admin.batch_execute(ROLES).await.unwrap();
    end(postgres).await;
}

#[tokio::test]
async fn the_administrator_of_a_managed_postgresql_can_take_over_tables_that_it_migrated_itself() {
    let scratch = Scratch::new();
    let (postgres, _, _superuser) = managed(&scratch).await;
    let database = Database::of(&postgres, "ledger");
    let config = DatabaseConfig {
        url: DatabaseUrl::parse(&database.url.replace("balance_service@", "admin@")).unwrap(),
        ..database.config(1)
    };
    migrate(&config).await.unwrap();
    let admin = database.client().await;
    admin.batch_execute("SET SESSION AUTHORIZATION admin").await.unwrap();
    for _ in 0..2 {
        admin.batch_execute(ROLES).await.unwrap();
    }
    let owners = rights(&database.client().await).await;
    assert!(
        owners.iter().all(|right| right.contains(" of balance_owner: ")),
        "{owners:#?}"
    );
    expect_refused(&database.client_as(Role::Service).await, &FORBIDDEN).await;
    end(postgres).await;
}

#[tokio::test]
async fn the_administrator_of_a_managed_postgresql_can_run_the_files_as_they_are_documented() {
    let scratch = Scratch::new();
    let (postgres, port, _superuser) = managed(&scratch).await;
    let database = Database::of(&postgres, "ledger");
    for run in 0..3 {
        if run == 2 {
            let give = "GRANT ALL ON changes_history TO guest; GRANT CREATE ON SCHEMA public TO guest; \
                 GRANT TEMPORARY ON DATABASE ledger TO guest";
            database.client().await.batch_execute(give).await.unwrap();
        }
        let env = concat!(env!("CARGO_MANIFEST_DIR"), "/env");
        let psql = Command::new(postgres.bin_dir().join("psql"))
            .args(["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1"])
            .args([
                format!("--file={env}/roles.sql"),
                format!("--file={env}/role_passwords.sql"),
            ])
            .env("PGHOST", postgres.socket_dir())
            .env("PGPORT", port.to_string())
            .env("PGUSER", "admin")
            .env("PGDATABASE", &database.name)
            .env("BALANCE_OWNER_PASSWORD", "the owner's")
            .env("BALANCE_SERVICE_PASSWORD", "the \"service's\"")
            .env_remove("BALANCE_AUDITOR_PASSWORD")
            .output()
            .unwrap();
        assert!(psql.status.success(), "{psql:?}");
        assert_eq!(String::from_utf8_lossy(&psql.stderr), "");
        migrate(&database.config_as(Role::Owner, 1)).await.unwrap();
    }
    expect_refused(&database.client_as(Role::Service).await, &FORBIDDEN).await;
    let guest = database.client().await;
    guest.batch_execute("SET SESSION AUTHORIZATION guest").await.unwrap();
    expect_refused(&guest, &FORBIDDEN).await;

    // Over TCP a password is asked for.
    let log_in = async |role: Role, password: &str| {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(port).dbname(&database.name);
        config.user(role.name()).password(password).connect(NoTls).await
    };
    for (role, password) in [(Role::Owner, "the owner's"), (Role::Service, "the \"service's\"")] {
        assert!(log_in(role, password).await.is_ok(), "{role:?}");
        let error = log_in(role, "another").await.err().unwrap();
        assert_eq!(error.code(), Some(&SqlState::INVALID_PASSWORD));
    }
    assert!(log_in(Role::Auditor, "").await.is_err());
    end(postgres).await;
}
