//! A store in memory for tests of the ledger: it does with each statement what PostgreSQL would do, as naively as can be,
//! and fails as a seed has it. Time is tokio's, which those tests pause.
//!
//! Clones are the same database. Of each user it keeps the whole history; checkpoints are thought to stand after every few
//! moments of it, so that a reading reaches as far, and no further, than one of PostgreSQL.

mod reading;

use std::collections::{HashMap, HashSet};
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use diesel::result::Error as DieselError;
use proptest::prelude::RngExt;
use proptest::test_runner::TestRng;
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use super::{
    CommitError, CommitOutcome, ConnectionFailure, Group, GroupCommit, LedgerStore, Reach, Reading, Standing,
    StoreError, UserState,
};
use crate::domain::{Context, Entry, Head, Operation, OperationId, Timestamp, UserId};

/// How many milliseconds a statement that nobody waits for any more may still take to be done.
const LATEST_MS: u64 = 10_000;
/// By then it is done or never will be.
pub(crate) const LATEST: Duration = Duration::from_millis(LATEST_MS);

/// How long a connection is waited for when all are in use.
const POOL_WAIT: Duration = Duration::from_secs(2);

/// What goes wrong, each in so many of a hundred statements.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// No connection becomes free.
    pub(crate) busy: u32,
    /// There is no connection to be had.
    pub(crate) unreachable: u32,
    /// PostgreSQL answers with an error, and nothing is done.
    pub(crate) refused: u32,
    /// The connection breaks after sending. Whether the statement is done then, later or never is drawn.
    pub(crate) broken: u32,
    /// No answer comes. Whether the statement is done is drawn.
    pub(crate) silent: u32,
    /// The client of PostgreSQL panics after sending.
    pub(crate) panics: u32,
    /// A writer that no test knows of changes a user just before a commit.
    pub(crate) overtaken: u32,
    /// A commit or a reading takes up to this many milliseconds on each way.
    pub(crate) way_ms: u64,
}

/// How far readings reach.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// A checkpoint stands after so many moments.
    pub(crate) segment_moments: usize,
    /// Of several operations, those with at most so many checkpoints behind the earliest are read for together.
    pub(crate) near: usize,
    /// What stands for a limited [`Reach`].
    pub(crate) reach: usize,
}

/// A stored operation.
#[derive(Clone, Debug)]
pub(crate) struct StoredOperation {
    pub(crate) operation: Operation,
    pub(crate) key: Option<String>,
    pub(crate) seq: i64,
    pub(crate) balance_after: i64,
}

impl StoredOperation {
    pub(crate) fn entry(&self) -> Entry {
        Entry {
            seq: self.seq,
            balance_after: self.balance_after,
        }
    }
}

/// All that is stored of a user.
#[derive(Clone, Debug, Default)]
pub(crate) struct StoredUser {
    pub(crate) head: Head,
    /// In order of acceptance.
    pub(crate) history: Vec<StoredOperation>,
}

#[derive(Clone)]
pub(crate) struct FakeStore(Arc<Mutex<Database>>);

struct Database {
    users: HashMap<UserId, StoredUser>,
    layout: Layout,
    faults: Faults,
    random: TestRng,
    strangers: u128,
}

/// What a statement meets.
enum Fate {
    Answered,
    NotSent(StoreError, Duration),
    Refused,
    Panic,
    /// Sent; no answer comes, and who waits learns of it at once, or not before the deadline.
    Lost {
        silently: bool,
    },
}

/// The part of a commit that is one user's.
#[derive(Clone)]
struct Write {
    /// Its place among the groups of the statement.
    place: usize,
    start: i64,
    head: Head,
    rows: Vec<StoredOperation>,
}

impl FakeStore {
    pub(crate) fn new(layout: Layout, faults: Faults, random: TestRng) -> Self {
        Self(Arc::new(Mutex::new(Database {
            users: HashMap::new(),
            layout,
            faults,
            random,
            strangers: 0,
        })))
    }

    fn database(&self) -> MutexGuard<'_, Database> {
        self.0.lock().unwrap()
    }

    pub(crate) fn mend(&self) {
        self.database().faults = Faults::default();
    }

    pub(crate) fn user(&self, user_id: &UserId) -> StoredUser {
        self.database().users.get(user_id).cloned().unwrap_or_default()
    }

    /// How many operations of a user are stored.
    pub(crate) fn version(&self, user_id: &UserId) -> usize {
        self.database().users.get(user_id).map_or(0, |user| user.history.len())
    }

    fn way(&self) -> Duration {
        let mut database = self.database();
        let longest = database.faults.way_ms;
        Duration::from_millis(database.random.random_range(0..=longest))
    }

    fn is_one_of(&self, hundred: u32) -> bool {
        self.database().random.random_ratio(hundred, 100)
    }

    /// A reading on its way there and back; what it finds, it finds in between.
    async fn read<T>(&self, deadline: Instant, find: impl Fn(&Database) -> T) -> Result<T, StoreError> {
        let fate = self.database().fate();
        let error = match fate {
            Fate::Answered => {
                let (there, back) = (Instant::now() + self.way(), self.way());
                sleep_until(there.min(deadline)).await;
                let found = find(&self.database());
                sleep_until((there + back).min(deadline)).await;
                if there + back < deadline {
                    return Ok(found);
                }
                StoreError::TimedOut
            }
            Fate::NotSent(error, after) => {
                sleep_until((Instant::now() + after).min(deadline)).await;
                error
            }
            Fate::Refused => {
                sleep_until((Instant::now() + self.way()).min(deadline)).await;
                refused()
            }
            Fate::Lost { silently: false } => {
                sleep_until((Instant::now() + self.way()).min(deadline)).await;
                broken()
            }
            Fate::Lost { silently: true } => {
                sleep_until(deadline).await;
                StoreError::TimedOut
            }
            Fate::Panic => {
                sleep_until((Instant::now() + self.way()).min(deadline)).await;
                panic()
            }
        };
        Err(error)
    }

    /// A reading of a figure of each user at a moment.
    async fn figures(
        &self,
        user_ids: &[&str],
        moments: &[Timestamp],
        deadline: Instant,
        figure: fn(&Database, &str, Timestamp) -> i64,
    ) -> Result<Vec<Reading>, StoreError> {
        let find = |database: &Database| {
            let asked = user_ids.iter().zip(moments);
            let readings = asked.map(|(user_id, at)| Reading {
                amount: figure(database, user_id, *at),
                version: database.version(user_id),
                standing: Standing::Settled,
            });
            readings.collect()
        };
        self.read(deadline, find).await
    }

    /// The statement has left; nobody waits for it. It is done now, later or never.
    fn abandon(&self, writes: Vec<Write>) {
        let drawn = {
            let random = &mut self.database().random;
            [None, Some(0), Some(random.random_range(0..LATEST_MS))][random.random_range(0..3)]
        };
        let Some(after) = drawn.map(Duration::from_millis) else {
            return;
        };
        if after.is_zero() {
            self.database().apply(&writes);
            return;
        }
        let store = self.clone();
        tokio::spawn(async move {
            sleep(after).await;
            store.database().apply(&writes);
        });
    }

    /// Sends a commit; tells which places were won.
    async fn send(&self, writes: Vec<Write>, deadline: Instant) -> Result<HashSet<usize>, CommitError> {
        let fate = self.database().fate();
        match fate {
            Fate::NotSent(error, after) => {
                sleep_until((Instant::now() + after).min(deadline)).await;
                return Err(CommitError::NotStored(error));
            }
            Fate::Refused => {
                sleep_until((Instant::now() + self.way()).min(deadline)).await;
                return Err(CommitError::NotStored(refused()));
            }
            Fate::Lost { silently } => {
                sleep_until((Instant::now() + self.way()).min(deadline)).await;
                self.abandon(writes);
                if silently {
                    sleep_until(deadline).await;
                    return Err(CommitError::InDoubt(StoreError::TimedOut));
                }
                sleep_until((Instant::now() + self.way()).min(deadline)).await;
                return Err(CommitError::InDoubt(broken()));
            }
            Fate::Panic => {
                sleep_until((Instant::now() + self.way()).min(deadline)).await;
                self.abandon(writes);
                panic()
            }
            Fate::Answered => {}
        }
        let (there, back) = (Instant::now() + self.way(), self.way());
        if there >= deadline {
            sleep_until(deadline).await;
            self.abandon(writes);
            return Err(CommitError::InDoubt(StoreError::TimedOut));
        }
        sleep_until(there).await;
        let overtaken = self.database().faults.overtaken;
        if self.is_one_of(overtaken) {
            self.database().overtake(&writes[0]);
        }
        let won = self.database().apply(&writes);
        sleep_until((there + back).min(deadline)).await;
        if there + back >= deadline {
            return Err(CommitError::InDoubt(StoreError::TimedOut));
        }
        Ok(won)
    }
}

/// As a defect would, without a word on standard error.
fn panic() -> ! {
    resume_unwind(Box::new("the client of PostgreSQL panics"))
}

fn refused() -> StoreError {
    StoreError::Refused(DieselError::RollbackTransaction)
}

fn broken() -> StoreError {
    StoreError::Failed(DieselError::BrokenTransactionManager)
}

impl LedgerStore for FakeStore {
    async fn states(
        &self,
        groups: &[Group<'_>],
        reach: Reach,
        deadline: Instant,
    ) -> Result<Vec<UserState>, StoreError> {
        // As with PostgreSQL, all of one user is from one snapshot, and not all users are from the same.
        let split = match self.is_one_of(25) {
            true => groups.len() / 2,
            false => groups.len(),
        };
        let (first, second) = groups.split_at(split);
        let mut states = self.read(deadline, |database| database.states(first, reach)).await?;
        if !second.is_empty() {
            states.extend(self.read(deadline, |database| database.states(second, reach)).await?);
        }
        Ok(states)
    }

    async fn commit(
        &self,
        groups: &[GroupCommit<'_>],
        _instance: &str,
        deadline: Instant,
    ) -> Result<Vec<CommitOutcome>, CommitError> {
        let numbered = groups.iter().enumerate();
        let writes: Vec<_> = numbered.filter_map(|(place, group)| Write::of(place, group)).collect();
        let users: HashSet<_> = writes.iter().map(Write::user_id).collect();
        assert_eq!(users.len(), writes.len(), "each group is another user's");
        let empty: HashSet<_> = (0..groups.len())
            .filter(|place| groups[*place].commitments.is_empty())
            .collect();
        let won = match writes.is_empty() {
            true => HashSet::new(),
            false => self.send(writes, deadline).await?,
        };
        let outcomes = (0..groups.len()).map(|place| match won.contains(&place) || empty.contains(&place) {
            true => CommitOutcome::Stored,
            false => CommitOutcome::Conflict,
        });
        Ok(outcomes.collect())
    }

    async fn stored_among(
        &self,
        user_id: &UserId,
        operations: &[(Timestamp, OperationId)],
        deadline: Instant,
    ) -> Result<HashMap<OperationId, Entry>, StoreError> {
        let asked: HashSet<_> = operations.iter().copied().collect();
        let find = |database: &Database| {
            let history = database.users.get(user_id).into_iter().flat_map(|user| &user.history);
            let found = history.filter(|row| asked.contains(&(row.operation.timestamp, row.operation.id)));
            found.map(|row| (row.operation.id, row.entry())).collect()
        };
        self.read(deadline, find).await
    }

    async fn balances_at(
        &self,
        user_ids: &[&str],
        moments: &[Timestamp],
        deadline: Instant,
    ) -> Result<Vec<Reading>, StoreError> {
        self.figures(user_ids, moments, deadline, Database::balance_at).await
    }

    async fn available_at(
        &self,
        user_ids: &[&str],
        moments: &[Timestamp],
        deadline: Instant,
    ) -> Result<Vec<Reading>, StoreError> {
        self.figures(user_ids, moments, deadline, Database::available_at).await
    }
}

impl Write {
    fn of(place: usize, group: &GroupCommit<'_>) -> Option<Self> {
        let first = group.commitments.first()?;
        let rows = group.commitments.iter().map(|commitment| StoredOperation {
            operation: commitment.operation.clone(),
            key: commitment.idempotency_key.map(|key| key.as_str().to_owned()),
            seq: commitment.entry.seq,
            balance_after: commitment.entry.balance_after,
        });
        Some(Self {
            place,
            start: first.entry.seq - 1,
            head: group.changes.head,
            rows: rows.collect(),
        })
    }

    fn user_id(&self) -> &UserId {
        &self.rows[0].operation.user_id
    }
}

impl Database {
    fn fate(&mut self) -> Fate {
        let Faults {
            busy,
            unreachable,
            refused,
            broken,
            silent,
            panics,
            ..
        } = self.faults;
        let drawn = self.random.random_range(0..100);
        let mut below = 0;
        let mut is = |share: u32| {
            below += share;
            drawn < below
        };
        if is(busy) {
            Fate::NotSent(StoreError::Busy, POOL_WAIT)
        } else if is(unreachable) {
            let failure = ConnectionFailure::Unreachable("refused".to_owned());
            Fate::NotSent(StoreError::NoConnection(failure), Duration::from_millis(1))
        } else if is(refused) {
            Fate::Refused
        } else if is(broken) {
            Fate::Lost { silently: false }
        } else if is(silent) {
            Fate::Lost { silently: true }
        } else if is(panics) {
            Fate::Panic
        } else {
            Fate::Answered
        }
    }

    /// The conditional commit: all or nothing of each group, and nothing at all where a key is there twice.
    fn apply(&mut self, writes: &[Write]) -> HashSet<usize> {
        let is_current =
            |write: &&Write| self.users.get(write.user_id()).map_or(0, |user| user.head.version) == write.start;
        let current: Vec<_> = writes.iter().filter(is_current).collect();
        let is_unique = |write: &&Write| {
            let history = self
                .users
                .get(write.user_id())
                .into_iter()
                .flat_map(|user| &user.history);
            let mut keys = HashSet::new();
            history
                .chain(&write.rows)
                .filter_map(|row| row.key.as_ref())
                .all(|key| keys.insert(key.clone()))
        };
        if !current.iter().all(is_unique) {
            return HashSet::new();
        }
        for write in &current {
            let user = self.users.entry(write.user_id().clone()).or_default();
            user.history.extend(write.rows.iter().cloned());
            user.head = write.head;
        }
        current.iter().map(|write| write.place).collect()
    }

    /// Another writer deposits something with the user of this group.
    fn overtake(&mut self, write: &Write) {
        let near = &write.rows[0].operation;
        let user = self.users.entry(near.user_id.clone()).or_default();
        let timestamp = self.random.random_range(-2..=2) + near.timestamp.unix_microseconds();
        let timestamp = Timestamp::from_unix_microseconds(timestamp).unwrap();
        // A balance is never more than the sum of all deposits.
        let deposits = user.history.iter().map(|row| row.operation.balance_change.max(0));
        let has_room = deposits.map(i128::from).sum::<i128>() < i128::from(i64::MAX / 2);
        let balance_change = if has_room { self.random.random_range(0..=20) } else { 0 };
        self.strangers += 1;
        let operation = Operation {
            id: OperationId(Uuid::from_u128(u128::MAX - self.strangers)),
            user_id: near.user_id.clone(),
            context: Context::new("of another writer").unwrap(),
            balance_change,
            timestamp,
            caller: None,
        };
        user.head.version += 1;
        user.head.balance += balance_change;
        user.head.latest = user.head.latest.max(Some(timestamp));
        let earlier = user.history.iter().filter(|row| row.operation.timestamp <= timestamp);
        let balance_after = balance_change + earlier.map(|row| row.operation.balance_change).sum::<i64>();
        user.history.push(StoredOperation {
            operation,
            key: None,
            seq: user.head.version,
            balance_after,
        });
    }
}
