//! What most tests need: a database, an Approver, one replica and a client of it.

use super::approver::TestApprover;
use super::client::{Answer, ServiceClient, change};
use super::postgres::{Database, fresh_database};
use super::replica::{Replica, ReplicaOptions};

/// A moment in the past of every test.
pub const NOON: &str = "2026-01-31T12:00:00Z";

/// One replica and all it depends on.
pub struct World {
    pub database: Database,
    pub approver: TestApprover,
    pub replica: Replica,
    pub client: ServiceClient,
}

impl World {
    pub async fn start() -> Self {
        Self::with(|options| options).await
    }

    pub async fn with(configure: impl FnOnce(ReplicaOptions) -> ReplicaOptions) -> Self {
        Self::on_with(fresh_database().await, configure).await
    }

    /// On a database that there is.
    pub async fn on(database: Database) -> Self {
        Self::on_with(database, |options| options).await
    }

    async fn on_with(database: Database, configure: impl FnOnce(ReplicaOptions) -> ReplicaOptions) -> Self {
        let approver = TestApprover::start().await;
        let options = ReplicaOptions::new(&database.url, &approver.url());
        let replica = configure(options).start().await;
        let client = ServiceClient::new(&replica.url);
        Self {
            database,
            approver,
            replica,
            client,
        }
    }

    /// A second replica on the same database and Approver.
    pub async fn another(&self) -> (Replica, ServiceClient) {
        let replica = Replica::start(&self.database, &self.approver).await;
        let client = ServiceClient::new(&replica.url);
        (replica, client)
    }

    /// A deposit that must be accepted.
    pub async fn deposit(&self, user_id: &str, amount: i64) -> Answer {
        self.client.change(&change(user_id, amount, NOON)).await.expect(200)
    }

    /// Every row of the ledger, as text.
    pub async fn stored(&self) -> Vec<String> {
        let rows = "SELECT 'balance ' || row_to_json(t) FROM balance t \
             UNION ALL SELECT 'changes_history ' || row_to_json(t) FROM changes_history t \
             UNION ALL SELECT 'balance_checkpoints ' || row_to_json(t) FROM balance_checkpoints t ORDER BY 1";
        let rows = self.database.client().await.query(rows, &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }
}
