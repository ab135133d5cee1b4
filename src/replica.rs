//! One replica: its parts wired together, and taken apart again in a written order.
//!
//! Start: the log is locked and its end read → changes of an earlier run get the lines they lack → requests are
//! taken.
//!
//! Shutdown: `/readyz` says no → a pause in which load balancers notice → no new connections → requests under way are
//! answered → operations under way end → the log is flushed and joined → connections to PostgreSQL are closed.

mod descriptors;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use crate::approver::Approver;
use crate::config::{ApproverConfig, DatabaseConfig, HttpConfig, LedgerConfig, OperationsLogConfig, ServiceConfig};
use crate::domain::SegmentLength;
use crate::http::{Listening, Stopping, serve};
use crate::metrics::Metrics;
use crate::operations_log::{FinishError, OpenError, OperationsLog};
use crate::service::{Recovery, Service};
use crate::store::Store;

pub use descriptors::TooFewDescriptors;

/// All that a replica is started with.
#[derive(Clone, Debug)]
pub struct ReplicaConfig {
    /// PostgreSQL.
    pub database: DatabaseConfig,
    /// The Approver.
    pub approver: ApproverConfig,
    /// The operations log.
    pub operations_log: OperationsLogConfig,
    /// The bounds of an operation.
    pub service: ServiceConfig,
    /// How operations are collected into statements.
    pub ledger: LedgerConfig,
    /// Where to listen, and how long to take over stopping.
    pub http: HttpConfig,
}

/// Why a replica could not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// The address cannot be bound.
    #[error("LISTEN: {address} cannot be listened on: {source}; give another address or stop what uses it")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The operations log cannot be opened.
    #[error("OPERATIONS_LOG: {0}")]
    OpenLog(#[source] OpenError),
    /// The client of the Approver cannot be made.
    #[error("APPROVER_URL: the client could not be set up: {0}")]
    Approver(#[source] reqwest::Error),
    /// There are too few file descriptors.
    #[error(transparent)]
    Descriptors(#[from] TooFewDescriptors),
    /// Signals cannot be listened for.
    #[error("signals cannot be handled: {0}")]
    Signals(#[source] io::Error),
    /// Accepting connections failed for good.
    #[error("the server failed: {0}")]
    Serve(#[source] io::Error),
    /// The operations log did not take all lines.
    #[error(transparent)]
    FinishLog(FinishError),
}

/// Runs a replica until `shutdown` resolves. `started` is told the address when requests can come.
///
/// # Errors
///
/// [`ReplicaError`]; each message is one line.
pub async fn run(
    config: ReplicaConfig,
    started: impl FnOnce(SocketAddr),
    shutdown: impl Future<Output = ()>,
) -> Result<(), ReplicaError> {
    let address = config.http.listen;
    let config = descriptors::fit(config)?;
    // An operation is answered at most two seconds after its deadline.
    let request_time = config.http.client_timeout + config.service.operation_timeout + Duration::from_secs(5);
    let listening =
        Listening::bind(&config.http, request_time).map_err(|source| ReplicaError::Listen { address, source })?;
    let approver = Approver::new(&config.approver).map_err(ReplicaError::Approver)?;
    let store = Store::new(&config.database, SegmentLength::DEFAULT);
    let mut hangup = signal(SignalKind::hangup()).map_err(ReplicaError::Signals)?;
    // Without a handler, a file that reaches `ulimit -f` would end the process; with one, the write fails and the log
    // fails closed.
    let _file_size = signal(SignalKind::from_raw(nix::libc::SIGXFSZ)).map_err(ReplicaError::Signals)?;
    let opened = OperationsLog::open(config.operations_log)
        .await
        .map_err(ReplicaError::OpenLog)?;
    let recovery = Recovery::prepare(&opened, config.service.operation_timeout).await;
    let (log, writer) = opened.start().await.map_err(ReplicaError::OpenLog)?;

    let reopened = log.clone();
    let reopening = tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            reopened.reopen();
        }
    });

    let metrics = Arc::new(Metrics::new());
    let operation_timeout = config.service.operation_timeout;
    let service = Arc::new(Service::new(
        store,
        approver,
        log,
        Arc::clone(&metrics),
        config.service,
        config.ledger,
    ));
    let recovering = recovery.begin(Arc::clone(&service)).await;
    let stopping = Stopping::default();
    started(listening.address());
    let not_ready_first = {
        let stopping = stopping.clone();
        async move {
            shutdown.await;
            stopping.begin();
            tokio::time::sleep(config.http.shutdown_delay).await;
        }
    };
    let served = serve(
        listening,
        Arc::clone(&service),
        metrics,
        stopping,
        not_ready_first,
        config.http.shutdown_timeout,
    )
    .await
    .map_err(ReplicaError::Serve);

    recovering.stop().await;
    // Operations whose clients have gone run on; each ends by its own deadline.
    if timeout(operation_timeout + Duration::from_secs(2), service.finish())
        .await
        .is_err()
    {
        tracing::error!("operations under way did not end by their deadline");
    }
    reopening.abort();
    let finished = writer.finish().await.map_err(ReplicaError::FinishLog);
    service.close();
    served.and(finished)
}
