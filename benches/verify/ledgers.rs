//! Ledgers as the service would have stored them, filled by SQL: each operation adds 1 at a millisecond of its own, and
//! every 128th moment of a timeline has its checkpoint.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use futures_util::TryStreamExt;
use tokio_postgres::Client;

use crate::Outcome;
use crate::format::thousands;

/// Where there is more than one user; even, and enough for a checkpoint.
pub const OPERATIONS_PER_USER: u64 = 200;

/// Before the first operation.
const EPOCH: &str = "'2026-01-01Z'::timestamptz";

/// The shape of a ledger. In SQL, `n` is the number of an operation in the order of acceptance, of `per_user`.
pub struct Ledger {
    name: &'static str,
    /// Whether one user has all operations.
    of_one: bool,
    /// The place of the operation on its user's timeline.
    place: &'static str,
    /// The balance there when the operation was accepted.
    balance_after: &'static str,
    /// Whether there is an operations log of it.
    pub with_log: bool,
}

const IN_ORDER: Ledger = Ledger {
    name: "in order",
    of_one: false,
    place: "n",
    balance_after: "n",
    with_log: false,
};

/// All that are measured.
pub const LEDGERS: [Ledger; 4] = [
    IN_ORDER,
    Ledger {
        name: "one hot user, every two neighbours in the wrong order",
        of_one: true,
        place: "CASE WHEN n % 2 = 1 THEN n + 1 ELSE n - 1 END",
        balance_after: "CASE WHEN n % 2 = 1 THEN n ELSE n - 1 END",
        ..IN_ORDER
    },
    Ledger {
        name: "one user, all in reverse order",
        of_one: true,
        place: "per_user - n + 1",
        balance_after: "1",
        ..IN_ORDER
    },
    Ledger {
        name: "in order, with an operations log of as many lines",
        with_log: true,
        ..IN_ORDER
    },
];

impl Ledger {
    /// In words.
    pub fn name(&self, users: u64) -> String {
        if self.of_one {
            return self.name.to_owned();
        }
        format!("{} users, {}", thousands(users as f64), self.name)
    }

    /// Puts the ledger in the place of what is stored; as many operations as `users` users have.
    ///
    /// # Errors
    ///
    /// What PostgreSQL said.
    pub async fn fill(&self, client: &Client, users: u64) -> Outcome<()> {
        let (users, per_user) = if self.of_one {
            (1, users * OPERATIONS_PER_USER)
        } else {
            (users, OPERATIONS_PER_USER)
        };
        let place = self.place.replace("per_user", &per_user.to_string());
        let balance_after = self.balance_after;
        // What was accepted last is stored last. Every timeline is the same in the end: one more after each millisecond.
        let rows = format!(
            "TRUNCATE balance, changes_history, balance_checkpoints;
             INSERT INTO changes_history (user_id, \"timestamp\", seq, balance_change, balance_after, context, \
                 operation_id, approved, instance, recorded_at)
             SELECT 'user-' || u, {EPOCH} + ({place}) * interval '1 ms', n, 1, {balance_after}, \
                 'a typical context of some words', gen_random_uuid(), false, 'one', now()
             FROM generate_series(1, {per_user}) n, generate_series(1, {users}) u;
             INSERT INTO balance (user_id, balance, version, latest, since_checkpoint, recorded_at)
             SELECT 'user-' || u, {per_user}, {per_user}, {EPOCH} + {per_user} * interval '1 ms', {per_user} % 128, now()
             FROM generate_series(1, {users}) u;
             INSERT INTO balance_checkpoints (user_id, \"timestamp\", balance, lowest, highest)
             SELECT 'user-' || u, {EPOCH} + 128 * k * interval '1 ms', 128 * k, 128 * (k - 1) + 1, 128 * k
             FROM generate_series(1, {users}) u, generate_series(1, {per_user} / 128) k;"
        );
        client.batch_execute(&rows).await?;
        Ok(client.batch_execute("VACUUM ANALYZE").await?)
    }
}

/// Writes the log of one replica that has accepted all that is stored.
///
/// # Errors
///
/// What PostgreSQL or the operating system said.
pub async fn write_log(client: &Client, path: &Path) -> Outcome<()> {
    let lines = r#"COPY (
        SELECT '{"at":"2026-01-31T12:00:00.000000Z","instance":"one","operation":"changeBalance","outcome":"accepted",'
            || '"userId":"' || user_id
            || '","timestamp":"' || to_char("timestamp" AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
            || '","operationId":"' || operation_id || '","balanceChange":' || balance_change
            || ',"context":"' || context || '","balance":' || balance_after || '}'
        FROM changes_history) TO STDOUT"#;
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut rows = Box::pin(client.copy_out(lines).await?);
    while let Some(bytes) = rows.try_next().await? {
        file.write_all(&bytes)?;
    }
    Ok(file.into_inner()?.sync_all()?)
}
