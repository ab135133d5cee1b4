//! The stored ledger, user by user: three streams in the order of their keys, merged.

use super::block::{Block, Step};
use super::derived::Derived;
use super::finding::{Finding, Violation};
use super::replay::{Numbers, Region, Replay};
use super::tally::Tally;
use super::{Bounds, VerifyError};
use crate::domain::Timestamp;
use crate::store::{
    Snapshot, SnapshotError, Stored, StoredCheckpoint, StoredHead, StoredMoment, StoredOperation, StoredPlace,
};

/// How many ids and keys that stand twice are looked at.
const MOST_DOUBLED: i64 = 1_000;

/// What else is done with each operation as it passes.
pub(super) type Passing<'a> = dyn FnMut(&StoredOperation<'_>) -> Result<(), VerifyError> + Send + 'a;

/// Checks all that is stored; what passes has its contexts if they are asked for.
pub(super) async fn check(
    snapshot: &Snapshot,
    bounds: Bounds,
    tally: &mut Tally<'_>,
    with_contexts: bool,
    passing: &mut Passing<'_>,
) -> Result<(), VerifyError> {
    let mut check = LedgerCheck {
        snapshot,
        bounds,
        heads: snapshot.heads().await?,
        operations: snapshot.operations(with_contexts).await?,
        checkpoints: snapshot.checkpoints().await?,
        replay: Replay::new(bounds.held),
        user_id: String::new(),
    };
    while check.next_user()? {
        check.user(tally, passing).await?;
    }
    doubled(snapshot, tally).await
}

/// The check under way.
struct LedgerCheck<'a> {
    snapshot: &'a Snapshot,
    bounds: Bounds,
    heads: Stored<StoredHead<'static>>,
    operations: Stored<StoredOperation<'static>>,
    checkpoints: Stored<StoredCheckpoint<'static>>,
    replay: Replay,
    /// The user that is checked.
    user_id: String,
}

impl LedgerCheck<'_> {
    /// Goes on to the next user of whom anything is stored.
    fn next_user(&mut self) -> Result<bool, SnapshotError> {
        let head = self.heads.current()?.map(|head| head.user_id);
        let operation = self.operations.current()?.map(|operation| operation.user_id);
        let checkpoint = self.checkpoints.current()?.map(|checkpoint| checkpoint.user_id);
        let next = [head, operation, checkpoint].into_iter().flatten().min();
        self.user_id.clear();
        self.user_id.push_str(next.unwrap_or_default());
        Ok(next.is_some())
    }

    async fn user(&mut self, tally: &mut Tally<'_>, passing: &mut Passing<'_>) -> Result<(), VerifyError> {
        tally.user();
        self.replay.begin();
        let mut derived = Derived::default();
        loop {
            let operation = self.operations.current()?.filter(|row| row.user_id == self.user_id);
            let checkpoint = self.checkpoints.current()?.filter(|row| row.user_id == self.user_id);
            let mut found = |at, violation| tally.found(&self.user_id, Some(at), violation);
            match (operation, checkpoint) {
                (Some(operation), checkpoint)
                    if checkpoint.is_none_or(|checkpoint| operation.timestamp <= checkpoint.timestamp) =>
                {
                    look_at(&operation, self.bounds.approval_threshold, &mut found);
                    let step = step(&operation);
                    derived.operation(&step);
                    let region = self.replay.push(step, &mut found);
                    passing(&operation)?;
                    tally.operation();
                    self.operations.advance().await?;
                    self.region(region, tally).await?;
                }
                (_, Some(checkpoint)) => {
                    derived.checkpoint(&checkpoint, &mut found);
                    tally.checkpoint();
                    self.checkpoints.advance().await?;
                }
                (_, None) => break,
            }
        }
        let mut found = |at, violation| tally.found(&self.user_id, Some(at), violation);
        let region = self.replay.finish(&mut found);
        self.region(region, tally).await?;
        let head = self.heads.current()?.filter(|row| row.user_id == self.user_id);
        derived.head(head.as_ref(), &mut |at, violation| {
            tally.found(&self.user_id, at, violation)
        });
        if head.is_some() {
            self.heads.advance().await?;
        }
        Ok(())
    }

    /// Replays a stretch that was too long to hold, block by block: each block reads all operations of the stretch up to
    /// its own end.
    async fn region(&mut self, region: Option<Region>, tally: &mut Tally<'_>) -> Result<(), VerifyError> {
        let Some(region) = region else {
            return Ok(());
        };
        let user_id = self.user_id.as_str();
        let mut block = Block::default();
        let mut after = StoredPlace {
            seq: region.from.seq.saturating_sub(1),
            ..region.from
        };
        loop {
            let moments = self
                .snapshot
                .moments(user_id, after, region.to, self.bounds.held)
                .await?;
            let Some(last) = moments.last().copied() else {
                return Ok(());
            };
            let is_last = last == region.to.timestamp;
            let end_of_moment = StoredPlace {
                timestamp: last,
                seq: i64::MAX,
            };
            block.begin(region.opening, moments);
            let mut numbers = Numbers::from(region.first_seq, region.recorded_from);
            let to = end_of_moment.min(region.to);
            let mut operations = self.snapshot.by_acceptance(user_id, region.from, to).await?;
            let mut found = |at, violation| tally.found(user_id, Some(at), violation);
            while let Some(operation) = operations.current()? {
                let step = step(&operation);
                if is_last {
                    numbers.next(&step, &mut found);
                }
                block.apply(step, &mut found);
                operations.advance().await?;
            }
            if is_last {
                return Ok(());
            }
            after = end_of_moment;
        }
    }
}

fn step(operation: &StoredOperation<'_>) -> Step {
    Step {
        place: StoredPlace {
            timestamp: operation.timestamp,
            seq: operation.seq,
        },
        change: operation.balance_change,
        balance_after: operation.balance_after,
        recorded_at: operation.recorded_at,
    }
}

/// What an operation shows by itself.
fn look_at(operation: &StoredOperation<'_>, threshold: u64, found: &mut impl FnMut(StoredMoment, Violation)) {
    let (seq, change) = (operation.seq, operation.balance_change);
    if change.unsigned_abs() > threshold && !operation.approved {
        found(operation.timestamp, Violation::Unapproved { seq, change, threshold });
    }
    if Timestamp::from_unix_microseconds(operation.timestamp.0).is_none() {
        found(operation.timestamp, Violation::Year { seq });
    }
}

fn finding(operation: &StoredOperation<'_>, violation: Violation) -> Finding {
    Finding {
        user_id: Some(operation.user_id.to_owned()),
        at: Some(operation.timestamp),
        line: None,
        violation,
    }
}

/// Ids and keys that stand twice: PostgreSQL groups them, on its disk where they are many.
async fn doubled(snapshot: &Snapshot, tally: &mut Tally<'_>) -> Result<(), VerifyError> {
    let mut ids = snapshot.doubled_ids(MOST_DOUBLED).await?;
    while let Some(operation) = ids.current()? {
        let (seq, id) = (operation.seq, operation.operation_id);
        tally.tell(&finding(&operation, Violation::DoubledId { seq, id }));
        ids.advance().await?;
    }
    let mut keys = snapshot.doubled_keys(MOST_DOUBLED).await?;
    while let Some(operation) = keys.current()? {
        let (seq, key) = (operation.seq, operation.context.to_owned());
        tally.tell(&finding(&operation, Violation::DoubledKey { seq, key }));
        keys.advance().await?;
    }
    Ok(())
}
