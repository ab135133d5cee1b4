//! What the ledger asks of the store, so that tests can run the ledger on a store that fails as it is told to.

use std::collections::HashMap;

use tokio::time::Instant;

use super::{CommitError, CommitOutcome, Group, GroupCommit, Reach, Reading, Store, StoreError, UserState};
use crate::domain::{Entry, OperationId, Timestamp, UserId};

/// A store that a ledger can be kept in. [`Store`] says what each of these does.
pub trait LedgerStore: Send + Sync + 'static {
    /// See [`Store::states`].
    fn states(
        &self,
        groups: &[Group<'_>],
        reach: Reach,
        deadline: Instant,
    ) -> impl Future<Output = Result<Vec<UserState>, StoreError>> + Send;

    /// See [`Store::commit`].
    fn commit(
        &self,
        groups: &[GroupCommit<'_>],
        instance: &str,
        deadline: Instant,
    ) -> impl Future<Output = Result<Vec<CommitOutcome>, CommitError>> + Send;

    /// See [`Store::stored_among`].
    fn stored_among(
        &self,
        user_id: &UserId,
        operations: &[(Timestamp, OperationId)],
        deadline: Instant,
    ) -> impl Future<Output = Result<HashMap<OperationId, Entry>, StoreError>> + Send;

    /// See [`Store::balances_at`].
    fn balances_at(
        &self,
        user_ids: &[&str],
        moments: &[Timestamp],
        deadline: Instant,
    ) -> impl Future<Output = Result<Vec<Reading>, StoreError>> + Send;

    /// See [`Store::available_at`].
    fn available_at(
        &self,
        user_ids: &[&str],
        moments: &[Timestamp],
        deadline: Instant,
    ) -> impl Future<Output = Result<Vec<Reading>, StoreError>> + Send;
}

impl LedgerStore for Store {
    async fn states(
        &self,
        groups: &[Group<'_>],
        reach: Reach,
        deadline: Instant,
    ) -> Result<Vec<UserState>, StoreError> {
        self.states(groups, reach, deadline).await
    }

    async fn commit(
        &self,
        groups: &[GroupCommit<'_>],
        instance: &str,
        deadline: Instant,
    ) -> Result<Vec<CommitOutcome>, CommitError> {
        self.commit(groups, instance, deadline).await
    }

    async fn stored_among(
        &self,
        user_id: &UserId,
        operations: &[(Timestamp, OperationId)],
        deadline: Instant,
    ) -> Result<HashMap<OperationId, Entry>, StoreError> {
        self.stored_among(user_id, operations, deadline).await
    }

    async fn balances_at(
        &self,
        user_ids: &[&str],
        moments: &[Timestamp],
        deadline: Instant,
    ) -> Result<Vec<Reading>, StoreError> {
        self.balances_at(user_ids, moments, deadline).await
    }

    async fn available_at(
        &self,
        user_ids: &[&str],
        moments: &[Timestamp],
        deadline: Instant,
    ) -> Result<Vec<Reading>, StoreError> {
        self.available_at(user_ids, moments, deadline).await
    }
}
