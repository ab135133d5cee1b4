//! What is loaded, and whether what is stored is right: a benchmark that measures wrong answers is worth nothing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use balance::domain::{SegmentLength, Timestamp};
use serde_json::Value;
use tokio_postgres::Client;

use crate::Outcome;
use crate::arguments::Sizes;
use crate::client::Client as HttpClient;
use crate::database::Database;

/// Makes `pg_temp.load`.
const LOADING: &str = include_str!("scripts/data.sql");

/// How far apart the operations of those with 400 are: four days in all, so that the last hour holds a few.
const PAST_STEP: Duration = Duration::from_secs(4 * 24 * 3_600 / 400);
/// How far apart the operations of one user with a long history are: ten days for a million.
const LONG_STEP: Duration = Duration::from_millis(864);
/// One operation each, a day ago or less.
const ONCE_STEP: Duration = Duration::from_secs(24 * 3_600);

/// How many checkpoints, and how many moments of a user, are compared with the history.
const SAMPLES: i64 = 200;
const MOMENTS: i64 = 8;

/// Which moments the loaded operations lie at.
#[derive(Clone, Copy)]
pub struct Loaded {
    until: SystemTime,
}

/// Some users, by how their names begin.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Users {
    /// One operation each.
    Many,
    /// A history each.
    Past,
    /// Made while measuring.
    Hot,
    /// One user with a history of so many operations.
    Long,
}

impl Users {
    /// How the names begin.
    pub fn prefix(self) -> &'static str {
        match self {
            Users::Many => "u",
            Users::Past => "p",
            Users::Hot => "h",
            Users::Long => "g",
        }
    }

    /// What all names of the kind are below.
    fn beyond(self) -> &'static str {
        match self {
            Users::Many => "v",
            Users::Past => "q",
            Users::Hot => "i",
            Users::Long => "h",
        }
    }

    /// The name of the user with so many operations.
    pub fn long(operations: u32) -> String {
        format!("{}{operations}", Users::Long.prefix())
    }
}

impl Loaded {
    /// Loads a database.
    ///
    /// # Errors
    ///
    /// What PostgreSQL said.
    pub async fn load(database: &Database, sizes: &Sizes) -> Outcome<Self> {
        let until = SystemTime::now();
        let client = database.client().await?;
        let length = SegmentLength::DEFAULT.operations().to_string();
        client
            .batch_execute(&LOADING.replace("SEGMENT_LENGTH", &length))
            .await?;
        let many = (Users::Many.prefix().to_owned(), sizes.users, 1, ONCE_STEP);
        let past = (
            Users::Past.prefix().to_owned(),
            sizes.past_users,
            sizes.past_operations,
            PAST_STEP,
        );
        let long = sizes
            .lengths
            .iter()
            .map(|length| (Users::long(*length), 1, *length, LONG_STEP));
        for (prefix, users, operations, step) in [many, past].into_iter().chain(long) {
            let step = i64::try_from(step.as_micros())?;
            client
                .execute(
                    "SELECT pg_temp.load($1, $2, $3, $4, $5)",
                    &[&prefix, &i64::from(users), &i64::from(operations), &step, &until],
                )
                .await?;
        }
        client.batch_execute("VACUUM (ANALYZE)").await?;
        client.batch_execute("CHECKPOINT").await?;
        Ok(Self { until })
    }

    /// The moments, in seconds since 1970, between which those with a history have it.
    pub fn past_seconds(&self, sizes: &Sizes) -> Outcome<(u64, u64)> {
        let until = self.until.duration_since(UNIX_EPOCH)?.as_secs();
        Ok((until - (PAST_STEP * sizes.past_operations).as_secs(), until))
    }

    /// When a long history begins and ends; all its operations lie between.
    pub fn long_history(&self, operations: u32) -> (SystemTime, SystemTime) {
        (self.until - LONG_STEP * operations, self.until)
    }
}

/// Compares balances that the service answers, now and at moments of the past, with sums over the history.
///
/// # Errors
///
/// Names the first that differs.
pub async fn verify_reads(service: &mut HttpClient, database: &Database, sizes: &Sizes) -> Outcome<()> {
    let client = database.client().await?;
    let users = [
        format!("{}0", Users::Many.prefix()),
        format!("{}{}", Users::Many.prefix(), sizes.users - 1),
        format!("{}{}", Users::Past.prefix(), sizes.past_users / 2),
        Users::long(sizes.longest()),
    ];
    for user in users {
        // Each moment of an operation, the instant before it, and now.
        let moments = "
            SELECT asked.at, (
                SELECT coalesce(sum(h.balance_change), 0)::bigint FROM changes_history h
                WHERE h.user_id = $1 AND h.\"timestamp\" <= asked.at)
            FROM (
                (SELECT \"timestamp\" - n * interval '1 microsecond' FROM generate_series(0, 1) n, (
                    SELECT \"timestamp\" FROM changes_history WHERE user_id = $1 ORDER BY random() LIMIT $2) picked)
                UNION ALL SELECT clock_timestamp()) asked (at)";
        for row in client.query(moments, &[&user, &MOMENTS]).await? {
            let (at, expected): (SystemTime, i64) = (row.try_get(0)?, row.try_get(1)?);
            let answer = service
                .get(&format!("/{user}/balance?timestamp={}", Timestamp::from(at)))
                .await?;
            let body: Value = serde_json::from_str(&answer.body)?;
            if answer.status != 200 || body["balance"] != expected {
                return Err(format!(
                    "the balance of {user} is {expected}, and the service says {}",
                    answer.body
                )
                .into());
            }
        }
    }
    Ok(())
}

/// How many operations some users have, once it is sure that their balances, versions and latest moments agree with the
/// history, and a sample of their checkpoints too.
///
/// # Errors
///
/// Says how many users or checkpoints disagree.
pub async fn verify_stored(database: &Database, users: Users) -> Outcome<u64> {
    let client = database.client().await?;
    let compared = "
        SELECT coalesce(sum(h.operations), 0)::bigint, count(*) FILTER (WHERE b.user_id IS NULL OR h.user_id IS NULL
            OR b.balance <> h.total OR b.version <> h.operations OR b.version <> h.last OR b.latest <> h.latest)
        FROM (SELECT * FROM balance WHERE user_id >= $1 AND user_id < $2) b
        FULL JOIN (
            SELECT user_id, sum(balance_change) AS total, count(*) AS operations, max(seq) AS last,
                max(\"timestamp\") AS latest
            FROM changes_history WHERE user_id >= $1 AND user_id < $2 GROUP BY user_id) h USING (user_id)";
    let row = client.query_one(compared, &[&users.prefix(), &users.beyond()]).await?;
    let (operations, wrong): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    let wrong_checkpoints = wrong_checkpoints(&client, users).await?;
    if wrong + wrong_checkpoints > 0 {
        let name = &database.name;
        return Err(
            format!("{name}: {wrong} users and {wrong_checkpoints} checkpoints disagree with the history").into(),
        );
    }
    Ok(u64::try_from(operations)?)
}

/// How many of a sample of checkpoints differ from what the checkpoint before and the operations between come to.
async fn wrong_checkpoints(client: &Client, users: Users) -> Outcome<i64> {
    let compared = "
        SELECT count(*) FILTER (WHERE (k.balance, k.lowest, k.highest)
            IS DISTINCT FROM (segment.balance, segment.lowest, segment.highest))
        FROM (
            SELECT * FROM balance_checkpoints WHERE user_id >= $1 AND user_id < $2 ORDER BY random() LIMIT $3) k
        LEFT JOIN LATERAL (
            SELECT c.\"timestamp\", c.balance FROM balance_checkpoints c
            WHERE c.user_id = k.user_id AND c.\"timestamp\" < k.\"timestamp\"
            ORDER BY c.\"timestamp\" DESC LIMIT 1) previous ON true
        CROSS JOIN LATERAL (
            SELECT (array_agg(m.balance ORDER BY m.\"timestamp\" DESC))[1] AS balance,
                min(m.balance) AS lowest, max(m.balance) AS highest
            FROM (
                SELECT h.\"timestamp\", coalesce(previous.balance, 0)
                    + sum(sum(h.balance_change)) OVER (ORDER BY h.\"timestamp\") AS balance
                FROM changes_history h
                WHERE h.user_id = k.user_id AND h.\"timestamp\" <= k.\"timestamp\"
                    AND h.\"timestamp\" > coalesce(previous.\"timestamp\", '-infinity')
                GROUP BY h.\"timestamp\") m) segment";
    let row = client
        .query_one(compared, &[&users.prefix(), &users.beyond(), &SAMPLES])
        .await?;
    Ok(row.try_get(0)?)
}
