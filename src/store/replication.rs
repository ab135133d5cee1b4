//! Waiting until the synchronous standbys have a change that was read.
//!
//! A commit is visible before the standbys have it where its wait for them was cut short: the session was terminated, or the
//! server was restarted. An answer that tells of such a change would be lost with the primary.

use diesel::sql_types::{Bool, Text};
use tokio::time::Instant;

use super::statement::statement;
use super::{Store, StoreError};
use crate::metrics::Statement;

statement! {
    /// Commits a message to the write-ahead log. It follows everything that is visible, so that the standbys have all of it
    /// when they have the message. Writes nothing where no standby is synchronous.
    struct Barrier<'a> {
        prefix: &'a str => Text,
    }
    => (Bool)
    r#"
SELECT CASE WHEN current_setting('synchronous_standby_names') = '' THEN false
    ELSE pg_logical_emit_message(true, asked.prefix, '') IS NOT NULL END FROM asked"#
}

impl Store {
    /// Returns when the synchronous standbys have everything that was visible before.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if they have not confirmed it before `deadline`.
    pub(super) async fn until_replicated(&self, deadline: Instant) -> Result<(), StoreError> {
        let barrier = Barrier { prefix: "balance" };
        let read = self.connections.read(Statement::FindStored, barrier, deadline);
        let _: Vec<(bool,)> = read.await?;
        Ok(())
    }
}
