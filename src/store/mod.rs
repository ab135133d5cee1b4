//! PostgreSQL. Knows the rule of the ledger only through [`crate::domain`]; knows nothing of HTTP, of the Approver or of
//! the log.
//!
//! The conditional update of a user's row in `balance`, keyed on its version, is the only synchronisation between
//! replicas. Each call is one statement, on a connection that is held for that statement only, with a deadline. A commit is
//! never repeated here: the caller decides.

mod commit;
mod connections;
mod conversion;
mod driver;
mod encryption;
mod error;
mod failure;
#[cfg(test)]
pub(crate) mod fake;
mod group;
mod history;
mod known;
mod ledger_store;
mod migrations;
mod opening;
mod reads;
mod recovery;
mod schema;
mod snapshot;
mod state;
mod statement;
mod targets;
mod trust;

pub use commit::{CommitOutcome, Commitment, GroupCommit};
pub use error::{CommitError, StoreError};
pub use failure::ConnectionFailure;
pub use group::{Group, Reach};
pub use history::{HistoryEntry, HistoryOrder, HistoryQuery, Place, StoredPage};
pub use ledger_store::LedgerStore;
pub use migrations::{MigrationError, migrate};
pub use reads::{Reading, Standing, StoreReadiness};
pub use recovery::{CLOCKS_APART, StoredByQuery, StoredChange, StoredChanges};
pub use snapshot::{
    Snapshot, SnapshotError, Stored, StoredCheckpoint, StoredHead, StoredMoment, StoredOperation, StoredPlace,
    StoredRow,
};
pub use state::{EarlierOperation, UserState};

use connections::Connections;
pub use connections::PoolStatus;
pub use opening::SESSION_SETTINGS;

use std::sync::Arc;

use crate::config::DatabaseConfig;
use crate::domain::SegmentLength;
use crate::metrics::Metrics;

/// The ledger as PostgreSQL keeps it.
pub struct Store {
    connections: Connections,
    segment_length: SegmentLength,
}

impl Store {
    /// A store that opens connections as they are needed; none is opened now.
    pub fn new(config: &DatabaseConfig, segment_length: SegmentLength, metrics: Arc<Metrics>) -> Self {
        Self {
            connections: Connections::new(config, metrics),
            segment_length,
        }
    }

    /// How the pool of connections stands.
    pub fn pool(&self) -> PoolStatus {
        self.connections.status()
    }

    /// The most connections that are open at once.
    pub fn most_connections(&self) -> usize {
        self.connections.most()
    }

    /// Closes the connections; every later call fails.
    pub fn close(&self) {
        self.connections.close();
    }
}
