//! The plain server: a read and one conditional statement per request on a pool of connections, and where another request
//! was faster, both again after a pause. This is how the service would be without batches.
//!
//! It knows as much of the rule as the loads of this benchmark need: operations are summed from the history, and one
//! stamped at or before the user's last checkpoint is not taken at all, since nothing here shifts checkpoints.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff;
use balance::config::DatabaseConfig;
use balance::domain::{OperationId, Refusal, Timestamp, UserId};
use balance::operations_log::{OperationName, OperationsLog, Outcome as LogOutcome, Record, Slot};
use balance::service::{
    Change, ChangeError, ChangeRequest, Figure, FigureAnswer, FigureRequest, HistoryPage, HistoryRequest,
    HistoryStream, Readiness, Unavailable, UseCases,
};
use balance::store::{Standing, StoreReadiness};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::Outcome;
use crate::plain_statements::{Connection, Head, Pool, Successor};

/// The pause after a first lost race, the longest pause, and how long a change is tried.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(60);
const DEADLINE: Duration = Duration::from_secs(5);
/// Most operations under way, as in the service.
const OPERATIONS_IN_FLIGHT: usize = 4_096;

/// Answers from PostgreSQL, one request at a time.
pub struct Plain {
    pool: Pool,
    log: OperationsLog,
    instance: String,
    under_way: Semaphore,
}

impl Plain {
    /// Opens the connections and prepares the statements on each.
    ///
    /// # Errors
    ///
    /// What PostgreSQL said.
    pub async fn connect(config: &DatabaseConfig, log: OperationsLog, instance: String) -> Outcome<Self> {
        Ok(Self {
            pool: Pool::connect(&config.url.to_client_config(), config.connections).await?,
            log,
            instance,
            under_way: Semaphore::new(OPERATIONS_IN_FLIGHT),
        })
    }

    async fn read(&self, user_id: &UserId, at: Timestamp, slot: Slot) -> Result<i64, Unavailable> {
        let _place = self.under_way.try_acquire().map_err(|_| Unavailable::Overloaded)?;
        let connection = self.pool.take().await;
        let balance = connection.balance_at(user_id.as_str(), at).await;
        drop(connection);
        let balance = balance.map_err(|error| failed(&error))?;
        let record = Record {
            timestamp: Some(at),
            balance: Some(balance),
            ..Record::new(OperationName::GetBalance, LogOutcome::Accepted, user_id)
        };
        slot.write(&record).await?;
        Ok(balance)
    }

    async fn change(&self, request: ChangeRequest, slot: Slot) -> Result<Change, ChangeError> {
        let _place = self.under_way.try_acquire().map_err(|_| Unavailable::Overloaded)?;
        let operation_id = OperationId(Uuid::now_v7());
        let balance = self.store(&request, operation_id).await?;
        let record = Record {
            timestamp: Some(request.timestamp),
            operation_id: Some(operation_id),
            balance_change: Some(request.balance_change),
            context: Some(&request.context),
            balance: Some(balance),
            ..Record::new(OperationName::ChangeBalance, LogOutcome::Accepted, &request.user_id)
        };
        slot.write(&record).await.map_err(Unavailable::from)?;
        Ok(Change {
            operation_id,
            user_id: request.user_id,
            timestamp: request.timestamp,
            balance_change: request.balance_change,
            balance,
            version: 1,
            replayed: false,
            dry_run: None,
        })
    }

    /// Tries until the operation is stored; the balance at its timestamp.
    async fn store(&self, request: &ChangeRequest, operation_id: OperationId) -> Result<i64, ChangeError> {
        let mut pauses = ExponentialBackoff {
            initial_interval: FIRST_PAUSE,
            current_interval: FIRST_PAUSE,
            randomization_factor: 0.5,
            multiplier: 2.0,
            max_interval: LONGEST_PAUSE,
            max_elapsed_time: Some(DEADLINE),
            ..ExponentialBackoff::default()
        };
        loop {
            let connection = self.pool.take().await;
            let stored = self.attempt(&connection, request, operation_id).await;
            drop(connection);
            if let Some(balance) = stored? {
                return Ok(balance);
            }
            // No connection is held meanwhile.
            let pause = pauses.next_backoff().ok_or(Unavailable::TooManyConflicts)?;
            tokio::time::sleep(pause).await;
        }
    }

    /// `None` if another request was faster.
    async fn attempt(
        &self,
        connection: &Connection,
        request: &ChangeRequest,
        operation_id: OperationId,
    ) -> Result<Option<i64>, ChangeError> {
        let (user_id, at) = (request.user_id.as_str(), request.timestamp);
        let head = connection.head(user_id, at).await.map_err(|error| failed(&error))?;
        let balance_after = judge(&head, request)?;
        let successor = Successor {
            head: &head,
            request,
            balance_after,
            operation_id,
            instance: &self.instance,
        };
        let stored = connection.store(&successor).await.map_err(|error| failed(&error))?;
        Ok(stored.then_some(balance_after))
    }
}

/// The balance at the change's timestamp, with it, or why the change is refused.
fn judge(head: &Head, request: &ChangeRequest) -> Result<i64, ChangeError> {
    if head.is_closed_there {
        return Err(Unavailable::Internal.into());
    }
    let at = request.timestamp;
    let before = head.balance - head.later;
    let limit = ChangeError::Refused(Refusal::BalanceLimit { at });
    let with = before.checked_add(request.balance_change).ok_or(limit)?;
    match with.min(with + head.lowest_later) {
        0.. => Ok(with),
        below => Err(ChangeError::Refused(Refusal::InsufficientFunds {
            at,
            shortfall: below.unsigned_abs(),
            available: before.min(before + head.lowest_later),
        })),
    }
}

/// Tells of a statement that failed: the benchmark shows the request as an error, this says why.
fn failed(error: &dyn Error) -> Unavailable {
    let cause = error.source().map(|cause| format!(": {cause}"));
    eprintln!("a statement failed: {error}{}", cause.unwrap_or_default());
    Unavailable::Database
}

impl UseCases for Plain {
    async fn change_balance(self: &Arc<Self>, request: ChangeRequest) -> Result<Change, ChangeError> {
        let slot = self.log.reserve().map_err(Unavailable::from)?;
        let plain = Arc::clone(self);
        // As in the service: a change runs to its end, even if the client hangs up.
        let task = tokio::spawn(async move { plain.change(request, slot).await });
        task.await.unwrap_or(Err(ChangeError::OutcomeUnknown))
    }

    async fn figure(self: &Arc<Self>, request: FigureRequest) -> Result<FigureAnswer, Unavailable> {
        let slot = self.log.reserve()?;
        let FigureRequest {
            user_id, figure, at, ..
        } = request;
        let timestamp = at.unwrap_or_else(|| Timestamp::from(SystemTime::now()));
        let amount = match figure {
            Figure::Balance => self.read(&user_id, timestamp, slot).await?,
            Figure::Available => return Err(Unavailable::Internal),
        };
        Ok(FigureAnswer {
            user_id,
            timestamp,
            known_at: None,
            amount,
            // What it is worth to answer with a version, which this does not read, is in the ceiling too.
            version: 1,
            standing: Standing::Settled,
        })
    }

    async fn history(self: &Arc<Self>, _: HistoryRequest) -> Result<HistoryPage, Unavailable> {
        Err(Unavailable::Internal)
    }

    async fn stream_history(self: &Arc<Self>, _: HistoryRequest) -> Result<HistoryStream, Unavailable> {
        Err(Unavailable::Internal)
    }

    async fn refuse_history(self: &Arc<Self>, _: HistoryRequest) -> Unavailable {
        Unavailable::Overloaded
    }

    async fn readiness(&self) -> Readiness {
        Readiness {
            store: Arc::new(Ok(StoreReadiness::Ready)),
            log: self.log.health(),
        }
    }

    fn observe(&self) {}
}
