//! The conditional commit: one statement moves users, each from one version to a later one, with all that belongs to it.

use std::ops::ControlFlow;

use diesel::data_types::PgTimestamp;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use tokio::time::Instant;
use uuid::Uuid;

use super::connections::StatementError;
use super::conversion::{to_postgres, to_stored_count};
use super::statement::statement;
use super::{CommitError, Store};
use crate::domain::{CallerName, Changes, Entry, IdempotencyKey, Operation};
use crate::metrics::Statement;

/// The statements below differ in what they write beside the operations, since planning, starting and ending what has
/// nothing to do costs more than an operation: 0.2 ms in place of 0.1 ms for a batch of one.
macro_rules! commit_statement {
    (
        $(#[$meta:meta])*
        $name:ident { $($field:ident: $type:ty => $sql_type:ty,)* }
        created: $created:literal, won: $won:literal, derived: $derived:literal
    ) => {
        statement! {
            $(#[$meta])*
            struct $name<'a> {
                user_ids: &'a [&'a str] => Array<Text>,
                expected_versions: &'a [i64] => Array<BigInt>,
                versions: &'a [i64] => Array<BigInt>,
                balances: &'a [i64] => Array<BigInt>,
                latest: &'a [PgTimestamp] => Array<Timestamptz>,
                since_checkpoint: &'a [i32] => Array<Integer>,
                instance: &'a str => Text,
                groups: &'a [i64] => Array<BigInt>,
                timestamps: &'a [PgTimestamp] => Array<Timestamptz>,
                seqs: &'a [i64] => Array<BigInt>,
                changes: &'a [i64] => Array<BigInt>,
                balances_after: &'a [i64] => Array<BigInt>,
                contexts: &'a [&'a str] => Array<Text>,
                operation_ids: &'a [Uuid] => Array<SqlUuid>,
                idempotency_keys: &'a [Option<&'a str>] => Array<Nullable<Text>>,
                approved: &'a [bool] => Array<Bool>,
                callers: &'a [Option<&'a str>] => Array<Nullable<Text>>,
                $($field: $type => $sql_type,)*
            }
            => (Array<BigInt>,)
            concat!(
                r#"
, groups AS MATERIALIZED (
    SELECT g.* FROM asked CROSS JOIN unnest(asked.user_ids, asked.expected_versions, asked.versions, asked.balances,
        asked.latest, asked.since_checkpoint) WITH ORDINALITY
        AS g (user_id, expected_version, version, balance, latest, since_checkpoint, number))"#,
                $created,
                r#"
, moved AS (
    UPDATE balance b
    SET balance = g.balance, version = g.version, latest = g.latest, since_checkpoint = g.since_checkpoint,
        recorded_at = greatest(clock_timestamp(), b.recorded_at + interval '1 microsecond')
    FROM groups g WHERE b.user_id = g.user_id AND b.version = g.expected_version
    RETURNING b.user_id, g.number, b.recorded_at)
, won AS MATERIALIZED ("#,
                $won,
                r#")
, entered AS (
    INSERT INTO changes_history (user_id, "timestamp", seq, balance_change, balance_after, context, operation_id,
        idempotency_key, approved, instance, caller, recorded_at)
    SELECT won.user_id, o.at, o.seq, o.change, o.balance_after, o.context, o.operation_id, o.idempotency_key,
        o.approved, asked.instance, o.caller, won.recorded_at
    FROM asked CROSS JOIN unnest(asked.groups, asked.timestamps, asked.seqs, asked.changes, asked.balances_after,
        asked.contexts, asked.operation_ids, asked.idempotency_keys, asked.approved, asked.callers)
        AS o (number, at, seq, change, balance_after, context, operation_id, idempotency_key, approved, caller)
    JOIN won USING (number))"#,
                $derived,
                r#"
SELECT ARRAY(SELECT number FROM won)"#
            )
        }

        impl<'a> $name<'a> {
            fn of(columns: &'a Columns<'a>, instance: &'a str) -> Self {
                Self {
                    user_ids: &columns.user_ids,
                    expected_versions: &columns.expected_versions,
                    versions: &columns.versions,
                    balances: &columns.balances,
                    latest: &columns.latest,
                    since_checkpoint: &columns.since_checkpoint,
                    instance,
                    groups: &columns.groups,
                    timestamps: &columns.timestamps,
                    seqs: &columns.seqs,
                    changes: &columns.changes,
                    balances_after: &columns.balances_after,
                    contexts: &columns.contexts,
                    operation_ids: &columns.operation_ids,
                    idempotency_keys: &columns.idempotency_keys,
                    approved: &columns.approved,
                    callers: &columns.callers,
                    $($field: &columns.$field,)*
                }
            }
        }
    };
}

commit_statement! {
    /// Moves each user from one version to the version after the operations, or does nothing of that user's. Everything
    /// else hangs on `won`, so that a loser writes nothing. The rows of `balance` are the only ones that two commits can
    /// wait for each other on: whoever gets one second sees another version and loses; a new user's first row is won by
    /// whoever inserts it. The users stand in the order of their ids, and every commit takes first the rows it inserts and
    /// then those it updates, so that no two commits can wait for each other in a circle.
    ///
    /// A user's moments of recording go up from commit to commit, whatever the clock does, and all operations of a commit
    /// have the same: what was recorded until a moment is what the user had at one version. The checkpoints keep bounds of
    /// these moments. The lower one of a new segment is taken from where its operations came from: from the closed segment
    /// that was divided, or from the rows of the open one, which are read for it once in a segment's length.
    Commit {
        shift_groups: &'a [i64] => Array<BigInt>,
        shift_after: &'a [PgTimestamp] => Array<Timestamptz>,
        shift_by: &'a [i64] => Array<BigInt>,
        checkpoint_groups: &'a [i64] => Array<BigInt>,
        checkpoints: &'a [PgTimestamp] => Array<Timestamptz>,
        checkpoint_balances: &'a [i64] => Array<BigInt>,
        lowest: &'a [i64] => Array<BigInt>,
        highest: &'a [i64] => Array<BigInt>,
        took_in: &'a [bool] => Array<Bool>,
    }
    created: r#"
, created AS (
    INSERT INTO balance (user_id, balance, version, latest, since_checkpoint)
    SELECT user_id, balance, version, latest, since_checkpoint FROM groups WHERE expected_version = 0
    ON CONFLICT (user_id) DO NOTHING
    RETURNING user_id, recorded_at)"#,
    won: r#"
    SELECT user_id, number, recorded_at FROM created JOIN groups USING (user_id)
    UNION ALL SELECT user_id, number, recorded_at FROM moved"#,
    derived: r#"
, shifted AS (
    UPDATE balance_checkpoints c
    SET balance = c.balance + s.by, lowest = c.lowest + s.by, highest = c.highest + s.by,
        all_recorded_until = won.recorded_at
    FROM asked CROSS JOIN unnest(asked.shift_groups, asked.shift_after, asked.shift_by) AS s (number, after, by)
    JOIN won USING (number)
    WHERE c.user_id = won.user_id AND c."timestamp" > s.after)
, closed AS (
    INSERT INTO balance_checkpoints (user_id, "timestamp", balance, lowest, highest, recorded_from, recorded_until,
        all_recorded_until)
    SELECT won.user_id, k."timestamp", k.balance, k.lowest, k.highest,
        coalesce(stood.recorded_from, (
            SELECT min(h.recorded_at) FROM changes_history h
            WHERE h.user_id = won.user_id AND h."timestamp" <= k."timestamp"
                AND h."timestamp" > greatest(k.previous, (
                    SELECT max(p."timestamp") FROM balance_checkpoints p WHERE p.user_id = won.user_id), '-infinity')),
            won.recorded_at),
        CASE WHEN k.took_in THEN won.recorded_at ELSE coalesce(stood.recorded_until, won.recorded_at) END,
        won.recorded_at
    FROM (
        SELECT k.*, lag(k."timestamp") OVER (PARTITION BY k.number ORDER BY k."timestamp") AS previous
        FROM asked CROSS JOIN unnest(asked.checkpoint_groups, asked.checkpoints, asked.checkpoint_balances,
            asked.lowest, asked.highest, asked.took_in) AS k (number, "timestamp", balance, lowest, highest, took_in)) k
    JOIN won USING (number)
    LEFT JOIN LATERAL (
        SELECT c.recorded_from, c.recorded_until FROM balance_checkpoints c
        WHERE c.user_id = won.user_id AND c."timestamp" >= k."timestamp"
        ORDER BY c."timestamp" LIMIT 1) stood ON true
    ON CONFLICT (user_id, "timestamp")
    DO UPDATE SET balance = excluded.balance, lowest = excluded.lowest, highest = excluded.highest,
        recorded_from = excluded.recorded_from, recorded_until = excluded.recorded_until,
        all_recorded_until = excluded.all_recorded_until)"#
}

commit_statement! {
    /// [`Commit`] for users who have a row already and whose checkpoints stay as they are.
    PlainCommit {}
    created: "",
    won: "SELECT user_id, number, recorded_at FROM moved",
    derived: ""
}

/// An accepted operation, to be stored.
#[derive(Clone, Copy, Debug)]
pub struct Commitment<'a> {
    /// The operation.
    pub operation: &'a Operation,
    /// The key a repeat will come with.
    pub idempotency_key: Option<&'a IdempotencyKey>,
    /// Whether the Approver was asked, and approved.
    pub approved: bool,
    /// Its place, as the timeline said.
    pub entry: Entry,
}

/// Operations of one user, accepted by one timeline one after the other, and what the timeline says has to be written
/// beside them.
#[derive(Clone, Debug)]
pub struct GroupCommit<'a> {
    /// In the order of acceptance; of none, nothing is stored.
    pub commitments: Vec<Commitment<'a>>,
    /// The timeline's changes.
    pub changes: Changes,
}

/// How the commit of a group ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitOutcome {
    /// All of the group is stored.
    Stored,
    /// The user has moved on since the state was read; nothing of the group was stored.
    Conflict,
}

impl Store {
    /// Stores groups of operations, each of another user: a group is stored, all of it or none, if its user is still at
    /// the version that the timeline was read at. Tells of each group, in their order, how it ended.
    ///
    /// # Errors
    ///
    /// [`CommitError`] says whether nothing of any group was stored or whether that is unknown.
    pub async fn commit(
        &self,
        groups: &[GroupCommit<'_>],
        instance: &str,
        deadline: Instant,
    ) -> Result<Vec<CommitOutcome>, CommitError> {
        let columns = Columns::of(groups);
        let is_empty = |group: &GroupCommit<'_>| group.commitments.is_empty();
        let unchanged = groups.iter().map(|group| match is_empty(group) {
            true => CommitOutcome::Stored,
            false => CommitOutcome::Conflict,
        });
        let mut outcomes: Vec<_> = unchanged.collect();
        if columns.order.is_empty() {
            return Ok(outcomes);
        }
        let committing = async {
            let mut won = Vec::new();
            let take = |(numbers,): (Vec<i64>,)| {
                won.extend(numbers);
                ControlFlow::Continue(())
            };
            let connections = &self.connections;
            let ended = match columns.are_plain() {
                true => {
                    connections
                        .run(PlainCommit::of(&columns, instance), deadline, take)
                        .await
                }
                false => connections.run(Commit::of(&columns, instance), deadline, take).await,
            };
            match ended {
                Ok(()) => Ok(won),
                // Nothing of any group was stored.
                Err(StatementError::Conflict(_)) => Ok(Vec::new()),
                Err(error @ (StatementError::Broken(_) | StatementError::TimedOut)) => {
                    Err(CommitError::InDoubt(error.into()))
                }
                Err(
                    error @ (StatementError::NotSent(_) | StatementError::Refused(_) | StatementError::WrongSession(_)),
                ) => Err(CommitError::NotStored(error.into())),
            }
        };
        let metrics = &self.connections.metrics.database;
        for number in metrics.statement(Statement::Commit, committing).await? {
            outcomes[columns.index_of(number)] = CommitOutcome::Stored;
        }
        Ok(outcomes)
    }
}

/// The groups as the columns of `unnest`: one row a group, an operation, a shift, a checkpoint. A group's number is its
/// place, from 1, in the order of the users' ids.
#[derive(Default)]
struct Columns<'a> {
    /// The places of the groups as they were given, by their number.
    order: Vec<usize>,
    user_ids: Vec<&'a str>,
    expected_versions: Vec<i64>,
    versions: Vec<i64>,
    balances: Vec<i64>,
    latest: Vec<PgTimestamp>,
    since_checkpoint: Vec<i32>,
    groups: Vec<i64>,
    timestamps: Vec<PgTimestamp>,
    seqs: Vec<i64>,
    changes: Vec<i64>,
    balances_after: Vec<i64>,
    contexts: Vec<&'a str>,
    operation_ids: Vec<Uuid>,
    idempotency_keys: Vec<Option<&'a str>>,
    approved: Vec<bool>,
    callers: Vec<Option<&'a str>>,
    shift_groups: Vec<i64>,
    shift_after: Vec<PgTimestamp>,
    shift_by: Vec<i64>,
    checkpoint_groups: Vec<i64>,
    checkpoints: Vec<PgTimestamp>,
    checkpoint_balances: Vec<i64>,
    lowest: Vec<i64>,
    highest: Vec<i64>,
    took_in: Vec<bool>,
}

impl<'a> Columns<'a> {
    fn of(groups: &[GroupCommit<'a>]) -> Self {
        let mut columns = Self::default();
        let user_id = |index: &usize| groups[*index].commitments[0].operation.user_id.as_str();
        let filled = (0..groups.len()).filter(|index| !groups[*index].commitments.is_empty());
        columns.order = filled.collect();
        columns
            .order
            .sort_unstable_by(|one, other| user_id(one).cmp(user_id(other)));
        for (number, index) in (1..).zip(columns.order.clone()) {
            columns.push(number, &groups[index]);
        }
        columns
    }

    fn index_of(&self, number: i64) -> usize {
        let place = usize::try_from(number - 1).expect("PostgreSQL counts from 1");
        self.order[place]
    }

    fn push(&mut self, number: i64, group: &GroupCommit<'a>) {
        let first = &group.commitments[0];
        let head = group.changes.head;
        self.user_ids.push(first.operation.user_id.as_str());
        self.expected_versions.push(first.entry.seq - 1);
        self.versions.push(head.version);
        self.balances.push(head.balance);
        self.latest
            .push(to_postgres(head.latest.unwrap_or(first.operation.timestamp)));
        self.since_checkpoint.push(to_stored_count(head.since_checkpoint));
        for commitment in &group.commitments {
            let operation = commitment.operation;
            self.groups.push(number);
            self.timestamps.push(to_postgres(operation.timestamp));
            self.seqs.push(commitment.entry.seq);
            self.changes.push(operation.balance_change);
            self.balances_after.push(commitment.entry.balance_after);
            self.contexts.push(operation.context.as_str());
            self.operation_ids.push(operation.id.0);
            self.idempotency_keys
                .push(commitment.idempotency_key.map(IdempotencyKey::as_str));
            self.approved.push(commitment.approved);
            self.callers.push(operation.caller.as_ref().map(CallerName::as_str));
        }
        if let Some(shift) = group.changes.shift {
            self.shift_groups.push(number);
            self.shift_after.push(to_postgres(shift.after));
            self.shift_by.push(shift.by);
        }
        let took_in = group.changes.checkpoints.iter().map(|checkpoint| (checkpoint, true));
        let moved = group.changes.moved.iter().map(|checkpoint| (checkpoint, false));
        for (checkpoint, took_in) in took_in.chain(moved) {
            self.checkpoint_groups.push(number);
            self.checkpoints.push(to_postgres(checkpoint.timestamp));
            self.checkpoint_balances.push(checkpoint.balance);
            self.lowest.push(checkpoint.lowest);
            self.highest.push(checkpoint.highest);
            self.took_in.push(took_in);
        }
    }

    /// Whether all users have a row already and no checkpoint is new or moves.
    fn are_plain(&self) -> bool {
        self.shift_groups.is_empty() && self.checkpoint_groups.is_empty() && !self.expected_versions.contains(&0)
    }
}
