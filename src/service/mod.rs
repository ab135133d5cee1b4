//! The use cases, each a readable page: change a balance, try a change, read a figure, read the history;
//! and the lines that an earlier run did not live to write.
//!
//! An operation holds a place among those under way and a place in the operations log's queue from its beginning, so that
//! a limit is met before anything is done. It goes on to its end, even if the client hangs up: in a batch of the ledger, or
//! in a task of its own. Its answer is given only when its line is with the operating system.

mod change;
mod dry_run;
mod observe;
mod read;
mod recovery;
mod streams;
mod turns;

pub use crate::ledger::{ChangeError, Unavailable};
pub use crate::ledger::{Figure, Precondition};
pub use change::{Change, ChangeRequest, DryRun};
pub use read::{FigureAnswer, FigureRequest, HistoryPage, HistoryRequest};
pub use recovery::{Recovering, Recovery};
pub use streams::HistoryStream;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::approver::Approver;
use crate::config::{LedgerConfig, ServiceConfig};
use crate::domain::Timestamp;
use crate::ledger::{LOG_GRACE, Ledger, Place};
use crate::metrics::Metrics;
use crate::operations_log::{LogFailure, LogUnavailable, OperationsLog, Record, Slot};
use crate::store::{Store, StoreError, StoreReadiness};
use crate::telemetry;
use turns::{SharedTurns, Turns};

/// How long PostgreSQL may take to show that it is ready: a little more than opening a connection may take.
const READINESS_TIMEOUT: Duration = Duration::from_millis(1_750);
/// How long one look at PostgreSQL serves all who ask whether it is ready.
const READINESS_SHARED: Duration = Duration::from_millis(250);

/// One replica's service: stateless but for what is under way.
pub struct Service {
    store: Arc<Store>,
    ledger: Ledger,
    approver: Approver,
    log: OperationsLog,
    metrics: Arc<Metrics>,
    config: ServiceConfig,
    under_way: Arc<Semaphore>,
    /// Pages of histories.
    pages: Turns,
    /// Balances and pages of histories as they were known at an earlier moment.
    known: Turns,
    /// Looks at what would become of changes.
    dry_runs: Turns,
    /// Histories that may be streamed at once.
    streams: Arc<Semaphore>,
    /// The last look at PostgreSQL's readiness, and when it ended.
    readiness: Mutex<Option<(Instant, SharedReadiness)>>,
}

/// What a service does, as it is offered over HTTP. [`Service`] does it; the benchmarks have others, to tell what the store
/// costs and what HTTP costs by itself.
pub trait UseCases: Send + Sync + 'static {
    /// Changes a balance, at most once; or tells what would come of it.
    fn change_balance(
        self: &Arc<Self>,
        request: ChangeRequest,
    ) -> impl Future<Output = Result<Change, ChangeError>> + Send;

    /// A figure as of a moment, or as of now.
    fn figure(
        self: &Arc<Self>,
        request: FigureRequest,
    ) -> impl Future<Output = Result<FigureAnswer, Unavailable>> + Send;

    /// A page of a user's operations with the balance after each.
    fn history(
        self: &Arc<Self>,
        request: HistoryRequest,
    ) -> impl Future<Output = Result<HistoryPage, Unavailable>> + Send;

    /// All of a user's operations with the balance after each, `limit` of the request at a time.
    fn stream_history(
        self: &Arc<Self>,
        request: HistoryRequest,
    ) -> impl Future<Output = Result<HistoryStream, Unavailable>> + Send;

    /// Refuses a history for which there is no memory: writes its line.
    fn refuse_history(self: &Arc<Self>, request: HistoryRequest) -> impl Future<Output = Unavailable> + Send;

    /// Asks the dependencies that no operation can do without.
    fn readiness(&self) -> impl Future<Output = Readiness> + Send;

    /// Brings the gauges up to date; called when they are about to be read.
    fn observe(&self);
}

impl UseCases for Service {
    async fn change_balance(self: &Arc<Self>, request: ChangeRequest) -> Result<Change, ChangeError> {
        Service::change_balance(self, request).await
    }

    async fn figure(self: &Arc<Self>, request: FigureRequest) -> Result<FigureAnswer, Unavailable> {
        Service::figure(self, request).await
    }

    async fn history(self: &Arc<Self>, request: HistoryRequest) -> Result<HistoryPage, Unavailable> {
        Service::history(self, request).await
    }

    async fn stream_history(self: &Arc<Self>, request: HistoryRequest) -> Result<HistoryStream, Unavailable> {
        Service::stream_history(self, request).await
    }

    async fn refuse_history(self: &Arc<Self>, request: HistoryRequest) -> Unavailable {
        let refused = self.logged_page(request, true).await;
        refused.err().unwrap_or(Unavailable::Overloaded)
    }

    async fn readiness(&self) -> Readiness {
        Service::readiness(self).await
    }

    fn observe(&self) {
        Service::observe(self);
    }
}

/// PostgreSQL's readiness, shared by all probes of a quarter of a second.
pub type SharedReadiness = Arc<Result<StoreReadiness, StoreError>>;

/// Whether the dependencies answer.
#[derive(Debug)]
pub struct Readiness {
    /// PostgreSQL.
    pub store: SharedReadiness,
    /// The operations log.
    pub log: Result<(), LogFailure>,
}

impl Service {
    /// A service on these parts.
    pub fn new(
        store: Store,
        approver: Approver,
        log: OperationsLog,
        metrics: Arc<Metrics>,
        config: ServiceConfig,
        ledger: LedgerConfig,
    ) -> Self {
        let under_way = Arc::new(Semaphore::new(config.operations_in_flight));
        let store = Arc::new(store);
        let connections = store.most_connections();
        // Together they leave half of the connections to all else.
        let turns = SharedTurns::new(connections / 2);
        let pages = turns.of(connections / 2, ledger.longest_wait);
        let known = turns.of(connections / 8, ledger.longest_wait);
        let dry_runs = turns.of(connections / 4, ledger.longest_wait);
        let streams = Arc::new(Semaphore::new(streams::most(config.operations_in_flight)));
        Self {
            ledger: Ledger::new(
                Arc::clone(&store),
                log.clone(),
                Arc::clone(&metrics),
                config.instance.clone(),
                ledger,
                // All else needs connections too.
                connections / 4,
            ),
            store,
            approver,
            log,
            metrics,
            config,
            under_way,
            pages,
            known,
            dry_runs,
            streams,
            readiness: Mutex::default(),
        }
    }

    /// Asks the dependencies that no operation can do without. The Approver is not among them: reads and small changes
    /// go on when it is away, and taking every replica out of service would end them.
    pub async fn readiness(&self) -> Readiness {
        Readiness {
            store: self.store_readiness().await,
            log: self.log.health(),
        }
    }

    /// Concurrent probes share one check.
    async fn store_readiness(&self) -> SharedReadiness {
        let mut last = self.readiness.lock().await;
        if let Some((looked_at, readiness)) = &*last
            && looked_at.elapsed() < READINESS_SHARED
        {
            return Arc::clone(readiness);
        }
        let readiness = Arc::new(self.store.readiness(Instant::now() + READINESS_TIMEOUT).await);
        *last = Some((Instant::now(), Arc::clone(&readiness)));
        readiness
    }

    /// Waits until no operation is under way.
    pub async fn finish(&self) {
        let all = u32::try_from(self.config.operations_in_flight).unwrap_or(u32::MAX);
        // The semaphore is never closed, so this ends when the last operation has given back its place.
        let _ = self.under_way.acquire_many(all).await;
    }

    /// Closes the connections to PostgreSQL; every later operation fails.
    pub fn close(&self) {
        self.store.close();
    }

    /// Takes what an operation holds, without waiting. Where the way it goes is full it does not begin.
    fn admit(&self, is_full: bool) -> Result<Admission, Unavailable> {
        let slot = self.log.reserve()?;
        let deadline = Instant::now() + self.config.operation_timeout;
        let place = match is_full {
            true => None,
            false => Arc::clone(&self.under_way).try_acquire_owned().ok(),
        };
        Ok(match place {
            Some(under_way) => Admission::Admitted(Place {
                slot,
                under_way,
                deadline,
                request: telemetry::current(),
            }),
            None => Admission::Overloaded { slot, deadline },
        })
    }
}

/// Whether an operation may begin.
enum Admission {
    /// It has all it needs.
    Admitted(Place),
    /// Too many are under way: it only gets its line and its answer.
    Overloaded { slot: Slot, deadline: Instant },
}

impl Admission {
    /// The place for the line, until when there is to be an answer, and what admits the operation, if anything does.
    fn into_parts(self) -> (Slot, Instant, Option<OwnedSemaphorePermit>) {
        match self {
            Admission::Admitted(place) => (place.slot, place.deadline, Some(place.under_way)),
            Admission::Overloaded { slot, deadline } => (slot, deadline, None),
        }
    }
}

/// Writes an operation's line; the answer waits for it.
async fn write_line(slot: Slot, record: &Record<'_>, deadline: Instant) -> Result<(), LogUnavailable> {
    let latest = deadline.max(Instant::now()) + LOG_GRACE;
    timeout_at(latest, slot.write(record))
        .await
        .unwrap_or(Err(LogUnavailable::Failing))
}

/// This replica's clock.
fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}
