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
//! | `finding` | what can be wrong, in words |
//! | `tally` | counts, and who is told |

mod block;
mod derived;
mod finding;
mod ledger;
mod replay;
mod tally;

use crate::config::DatabaseConfig;
use crate::store::{Snapshot, SnapshotError};

pub use finding::{Finding, LinePlace, Violation};
pub use tally::{MOST_FINDINGS, MOST_FINDINGS_OF_A_KIND, Observer, Progress, Stage, Summary};

use tally::Tally;

/// Most operations of one user that are held at once: 32 bytes each, and about 100 for the tree over their moments.
pub const HELD_OPERATIONS: usize = 1 << 19;

/// Why the check came to no end. What was found until then is found.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// PostgreSQL.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

/// How the ledger is checked.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Changes larger than this, either way, need approval.
    pub approval_threshold: u64,
    /// Most operations of one user that are held, and most moments of a block; at least 1.
    pub held: usize,
}

/// Checks the ledger as it is now.
///
/// # Errors
///
/// [`VerifyError`] if it cannot be read to its end.
pub async fn verify(
    database: &DatabaseConfig,
    bounds: Bounds,
    observer: &mut dyn Observer,
) -> Result<Summary, VerifyError> {
    let mut tally = Tally::new(observer);
    let snapshot = Snapshot::take(database).await?;
    let estimate = snapshot.operations_estimated().await?;
    tally.begin(Stage::Ledger, (estimate > 0).then_some(estimate));
    ledger::check(&snapshot, bounds, &mut tally, false, &mut |_| Ok(())).await?;
    Ok(tally.summary)
}
