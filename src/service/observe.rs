//! The gauges that are set when they are about to be read.

use super::{Service, streams};
use crate::metrics::{Queue, gauge_value};

impl Service {
    /// Brings the gauges up to date; called when they are about to be read.
    pub fn observe(&self) {
        self.observe_database();
        self.observe_operations();
        self.observe_log();
    }

    fn observe_database(&self) {
        let (pool, gauges) = (self.store.pool(), &self.metrics.database);
        gauges.connections.set(gauge_value(pool.open));
        gauges.idle.set(gauge_value(pool.idle));
        gauges.waiting.set(gauge_value(pool.waiting));
        gauges.limit.set(gauge_value(self.store.most_connections()));
    }

    fn observe_operations(&self) {
        let gauges = &self.metrics.ledger;
        let most = self.config.operations_in_flight;
        let under_way = most.saturating_sub(self.under_way.available_permits());
        gauges.in_flight.set(gauge_value(under_way));
        gauges.in_flight_limit.set(gauge_value(most));
        gauges.history_streams_limit.set(gauge_value(streams::most(most)));
        gauges.set_queue(Queue::Balances, self.ledger.questions_waiting());
        gauges.set_queue(Queue::Changes, self.ledger.changes_waiting());
        gauges.set_queue(Queue::DryRuns, self.dry_runs.waiting());
        gauges.set_queue(Queue::Known, self.known.waiting());
        gauges.set_queue(Queue::History, self.pages.waiting());
    }

    fn observe_log(&self) {
        let (log, gauges) = (self.log.statistics(), &self.metrics.operations_log);
        gauges.follow(log.lines_written, log.bytes_written, log.failed_writes);
        gauges.set_sync_age(self.log.sync_policy().name(), log.since_last_sync);
        gauges.failing.set(self.log.health().is_err().into());
        let retained = usize::try_from(log.lines_retained).unwrap_or(usize::MAX);
        gauges.retained.set(gauge_value(retained));
        self.metrics.ledger.set_queue(Queue::OperationsLog, log.lines_queued);
    }
}
