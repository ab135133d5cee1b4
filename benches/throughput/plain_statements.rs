//! The plain server's statements, each prepared once on each connection, and the pool of the connections.

use std::ops::Deref;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use balance::domain::{OperationId, Timestamp};
use balance::service::ChangeRequest;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_postgres::{Client, Config, Error, NoTls, Row, Statement};

const BALANCE_AT: &str = r#"
SELECT CASE WHEN b.latest <= $2 THEN b.balance ELSE (
    SELECT coalesce(c.balance, 0) + coalesce((
        SELECT sum(h.balance_change) FROM changes_history h
        WHERE h.user_id = $1 AND h."timestamp" <= $2
            AND h."timestamp" > coalesce(c."timestamp", '-infinity')), 0)
    FROM (SELECT) AS always LEFT JOIN LATERAL (
        SELECT k."timestamp", k.balance FROM balance_checkpoints k
        WHERE k.user_id = $1 AND k."timestamp" <= $2
        ORDER BY k."timestamp" DESC LIMIT 1) c ON true)::bigint
END
FROM balance b WHERE b.user_id = $1"#;

/// The user's row, what all operations later than the moment come to, and the lowest that they ever come to.
const HEAD: &str = r#"
SELECT b.version, b.balance, b.latest, b.since_checkpoint, later.total, later.lowest,
    EXISTS (SELECT FROM balance_checkpoints c WHERE c.user_id = $1 AND c."timestamp" >= $2)
FROM balance b CROSS JOIN LATERAL (
    SELECT coalesce(sum(change), 0)::bigint AS total, coalesce(min(running), 0)::bigint AS lowest
    FROM (
        SELECT sum(h.balance_change) AS change, sum(sum(h.balance_change)) OVER (ORDER BY h."timestamp") AS running
        FROM changes_history h
        WHERE $2 < b.latest AND h.user_id = $1 AND h."timestamp" > $2
        GROUP BY h."timestamp") moments) later
WHERE b.user_id = $1"#;

const STORE: &str = r#"
WITH created AS (
    INSERT INTO balance (user_id, balance, version, latest, since_checkpoint)
    SELECT $1, $3, $2::bigint + 1, $4, $5 WHERE $2::bigint = 0
    ON CONFLICT (user_id) DO NOTHING
    RETURNING user_id, recorded_at)
, moved AS (
    UPDATE balance SET balance = $3, version = $2::bigint + 1, latest = $4, since_checkpoint = $5,
        recorded_at = greatest(clock_timestamp(), recorded_at + interval '1 microsecond')
    WHERE user_id = $1 AND version = $2::bigint
    RETURNING user_id, recorded_at)
INSERT INTO changes_history (user_id, "timestamp", seq, balance_change, balance_after, context, operation_id, approved,
    instance, recorded_at)
SELECT won.user_id, $6, $2::bigint + 1, $7, $8, $9, $10::text::uuid, false, $11, won.recorded_at
FROM (SELECT * FROM created UNION ALL SELECT * FROM moved) won"#;

/// A user as a statement found it, seen from the moment of a change.
#[derive(Default)]
pub struct Head {
    /// How many operations were accepted.
    pub version: i64,
    /// After the last operation.
    pub balance: i64,
    /// Of the last operation; `None` for a user nobody has heard of.
    pub latest: Option<SystemTime>,
    /// Operations after the last checkpoint.
    pub since_checkpoint: i32,
    /// What all operations later than the change come to.
    pub later: i64,
    /// The lowest that the first of them, the first two, … come to; 0 if there are none.
    pub lowest_later: i64,
    /// Whether a checkpoint stands at or after the change.
    pub is_closed_there: bool,
}

/// What a user is to become.
pub struct Successor<'a> {
    /// The user as read; the version must still be this.
    pub head: &'a Head,
    /// The change.
    pub request: &'a ChangeRequest,
    /// The balance at its timestamp, with it.
    pub balance_after: i64,
    /// Its name.
    pub operation_id: OperationId,
    /// Who stores it.
    pub instance: &'a str,
}

/// A connection with its statements.
pub struct Connection {
    client: Client,
    balance_at: Statement,
    head: Statement,
    store: Statement,
}

impl Connection {
    async fn open(config: &Config) -> Result<Self, Error> {
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                eprintln!("a connection ended: {error}");
            }
        });
        Ok(Self {
            balance_at: client.prepare(BALANCE_AT).await?,
            head: client.prepare(HEAD).await?,
            store: client.prepare(STORE).await?,
            client,
        })
    }

    /// The balance as of a moment; 0 for a user nobody has heard of.
    pub async fn balance_at(&self, user_id: &str, at: Timestamp) -> Result<i64, Error> {
        let row = self
            .client
            .query_opt(&self.balance_at, &[&user_id, &system_time(at)])
            .await?;
        row.map_or(Ok(0), |row| row.try_get(0))
    }

    /// The user, for a change at a moment.
    pub async fn head(&self, user_id: &str, at: Timestamp) -> Result<Head, Error> {
        let row = self.client.query_opt(&self.head, &[&user_id, &system_time(at)]).await?;
        row.map_or(Ok(Head::default()), |row| head(&row))
    }

    /// Stores the operation and moves the user on, or does neither if the user has moved on.
    pub async fn store(&self, successor: &Successor<'_>) -> Result<bool, Error> {
        let Successor { head, request, .. } = successor;
        let timestamp = system_time(request.timestamp);
        let rows = self
            .client
            .execute(
                &self.store,
                &[
                    &request.user_id.as_str(),
                    &head.version,
                    &(head.balance + request.balance_change),
                    &head.latest.map_or(timestamp, |latest| latest.max(timestamp)),
                    &(head.since_checkpoint + 1),
                    &timestamp,
                    &request.balance_change,
                    &successor.balance_after,
                    &request.context.as_str(),
                    &successor.operation_id.to_string(),
                    &successor.instance,
                ],
            )
            .await?;
        Ok(rows == 1)
    }
}

fn head(row: &Row) -> Result<Head, Error> {
    Ok(Head {
        version: row.try_get(0)?,
        balance: row.try_get(1)?,
        latest: row.try_get(2)?,
        since_checkpoint: row.try_get(3)?,
        later: row.try_get(4)?,
        lowest_later: row.try_get(5)?,
        is_closed_there: row.try_get(6)?,
    })
}

fn system_time(timestamp: Timestamp) -> SystemTime {
    let distance = Duration::from_micros(timestamp.unix_microseconds().unsigned_abs());
    if timestamp.unix_microseconds() < 0 {
        UNIX_EPOCH - distance
    } else {
        UNIX_EPOCH + distance
    }
}

/// Connections, each used by one request at a time; requests wait in the order they come.
pub struct Pool {
    places: Semaphore,
    free: Mutex<Vec<Connection>>,
}

impl Pool {
    /// Opens `count` connections.
    ///
    /// # Errors
    ///
    /// What PostgreSQL said.
    pub async fn connect(config: &Config, count: usize) -> Result<Self, Error> {
        let mut free = Vec::with_capacity(count);
        for _ in 0..count {
            free.push(Connection::open(config).await?);
        }
        Ok(Self {
            places: Semaphore::new(count),
            free: Mutex::new(free),
        })
    }

    /// A connection that comes back when it is dropped.
    pub async fn take(&self) -> Lease<'_> {
        let place = self.places.acquire().await.expect("the semaphore is never closed");
        let connection = self.free().pop();
        Lease {
            pool: self,
            connection,
            _place: place,
        }
    }

    fn free(&self) -> MutexGuard<'_, Vec<Connection>> {
        // A panic while it was held leaves a list as good as any.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection out of the pool.
pub struct Lease<'a> {
    pool: &'a Pool,
    // Given back before the place is.
    connection: Option<Connection>,
    _place: SemaphorePermit<'a>,
}

impl Deref for Lease<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection
            .as_ref()
            .expect("there are as many connections as places")
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.pool.free().extend(self.connection.take());
    }
}
