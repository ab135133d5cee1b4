//! Statements, and the connections they are sent on.

use std::time::Instant;

use prometheus::{HistogramVec, IntGauge};

use super::families::{DURATIONS, Families};
use super::labels::{ErrorType, Label, Statement};
use crate::telemetry::record_statement;

/// What is counted of PostgreSQL.
pub struct DatabaseMetrics {
    statements: HistogramVec,
    /// Connections that are open.
    pub connections: IntGauge,
    /// Those of them that wait for work.
    pub idle: IntGauge,
    /// The most connections.
    pub limit: IntGauge,
    /// Statements that wait for a connection.
    pub waiting: IntGauge,
}

impl DatabaseMetrics {
    pub(super) fn new(families: &Families) -> Self {
        let metrics = Self {
            statements: families.histograms(
                "db_client_operation_duration_seconds",
                "Duration of statements, with the wait for a connection, by what they do and what failed.",
                &DURATIONS,
                &["db_operation_name", "error_type"],
            ),
            connections: families.gauge("balance_database_connections", "Open connections to PostgreSQL."),
            idle: families.gauge(
                "balance_database_connections_idle",
                "Open connections to PostgreSQL that wait for work.",
            ),
            limit: families.gauge(
                "balance_database_connections_limit",
                "The most connections to PostgreSQL.",
            ),
            waiting: families.gauge(
                "balance_database_connections_waiting",
                "Statements that wait for a connection to PostgreSQL.",
            ),
        };
        for statement in Statement::ALL {
            metrics.statements.with_label_values(&[statement.label(), ""]);
        }
        metrics
    }

    /// Counts a statement and how long it takes, and makes it a part of the trace of what it is sent for.
    ///
    /// # Errors
    ///
    /// What `work` gives.
    pub async fn statement<T, E: ErrorType>(
        &self,
        statement: Statement,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let began = Instant::now();
        let result = work.await;
        let error_type = result.as_ref().err().map_or("", ErrorType::error_type);
        self.statements
            .with_label_values(&[statement.label(), error_type])
            .observe(began.elapsed().as_secs_f64());
        record_statement(statement.label(), error_type, began);
        result
    }
}
