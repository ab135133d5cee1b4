//! Checks every invariant of the stored ledger, while the service runs or not, and changes nothing.
//!
//! The history is replayed, each user's in the order of acceptance from empty, by the rule of the ledger but not by the
//! code that accepted it: sums of 128 bits in a tree over the moments, in place of checkpoints and segments. The rows
//! that are derived from it are computed anew and compared.
//!
//! Memory is bounded whatever the length of the tables: the tables are streamed in the order of their keys, and of a user
//! only so much is held as stands on the timeline in another order than it was accepted in, at most [`HELD_OPERATIONS`].
//!
//! | file | what |
//! |---|---|
//! | `ledger` | the three tables, merged user by user |
//! | `replay` | a user's history in the order of acceptance, in pieces that can be replayed by themselves |
//! | `block` | the moments of a piece, and their extremes after each operation |
//! | `derived` | checkpoints and the row of `balance` |
//! | `log` | operations logs, against themselves and against the history |
//! | `finding` | what can be wrong, in words |
//! | `tally` | counts, and who is told |

mod block;
mod derived;
mod finding;
mod ledger;
mod log;
mod replay;
mod tally;

use std::path::PathBuf;
use std::time::Instant;

use crate::config::DatabaseConfig;
use crate::store::{Snapshot, SnapshotError, StoredOperation};

pub use finding::{Finding, LinePlace, Violation};
pub use log::{CHANGE_OUTCOMES, COMMON_OUTCOMES, LogError};
pub use tally::{MOST_FINDINGS, MOST_FINDINGS_OF_A_KIND, Observer, Progress, Stage, Summary};

use log::{Comparison, Logs};
use tally::Tally;

/// Most operations of one user that are held at once: 40 bytes each, and about 100 for the tree over their moments.
pub const HELD_OPERATIONS: usize = 1 << 19;

/// Why the check came to no end. What was found until then is found.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// PostgreSQL.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The operations logs.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// How the ledger is checked.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Changes larger than this, either way, need approval.
    pub approval_threshold: u64,
    /// Most operations of one user that are held, and most moments of a block; at least 1.
    pub held: usize,
}

/// Checks the ledger as it is now, and against it the operations logs that are given, rotated ones included.
///
/// # Errors
///
/// [`VerifyError`] if something cannot be read to its end.
pub async fn verify(
    database: &DatabaseConfig,
    bounds: Bounds,
    operations_logs: &[PathBuf],
    observer: &mut dyn Observer,
) -> Result<Summary, VerifyError> {
    let mut tally = Tally::new(observer);
    // First the lengths of the files, then the snapshot: what is logged by now is stored by then.
    let mut logs = Logs::open(operations_logs)?;
    let snapshot = Snapshot::take(database).await?;
    let taken = Instant::now();
    logs.read(&mut tally).await?;
    let estimate = snapshot.operations_estimated().await?;
    tally.begin(Stage::Ledger, (estimate > 0).then_some(estimate));
    if logs.is_empty() {
        ledger::check(&snapshot, bounds, &mut tally, false, &mut |_| Ok(())).await?;
    } else {
        let taken_at = snapshot.taken_at();
        let mut row = |operation: &StoredOperation<'_>| Ok(logs.row(operation, taken_at)?);
        ledger::check(&snapshot, bounds, &mut tally, true, &mut row).await?;
        let mut comparison = Comparison {
            logs: &mut logs,
            snapshot: &snapshot,
            tally: &mut tally,
        };
        comparison.run(taken).await?;
    }
    Ok(tally.summary)
}
