//! Reading a balance or the history: read, write the line, answer.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::time::{Instant, timeout_at};

use super::{Admission, Service, Unavailable, now, write_line};
use crate::domain::{CallerName, Timestamp, UserId};
use crate::ledger::Question;
use crate::metrics::Statement;
use crate::operations_log::{OperationName, Outcome, Record};
use crate::store::{HistoryEntry, HistoryOrder, HistoryQuery, Place, repeat_read};
use crate::telemetry;

/// Whose balance is asked for.
#[derive(Clone, Debug)]
pub struct BalanceRequest {
    /// Whose.
    pub user_id: UserId,
    /// As of when; now, if that is left open.
    pub at: Option<Timestamp>,
    /// Who asks, where callers are known.
    pub caller: Option<CallerName>,
}

/// A user's balance as of a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balance {
    /// Whose.
    pub user_id: UserId,
    /// As of when.
    pub timestamp: Timestamp,
    /// The sum of all operations stamped at or before that moment.
    pub balance: i64,
}

/// Which part of a history is asked for.
#[derive(Clone, Debug)]
pub struct HistoryRequest {
    /// Whose.
    pub user_id: UserId,
    /// The earliest timestamp, included.
    pub from: Option<Timestamp>,
    /// The latest timestamp, included.
    pub to: Option<Timestamp>,
    /// Which end first.
    pub order: HistoryOrder,
    /// Only operations beyond this one, in that order.
    pub beyond: Option<Place>,
    /// The most operations on the page.
    pub limit: u32,
    /// Who asks, where callers are known.
    pub caller: Option<CallerName>,
}

/// Some operations of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryPage {
    /// In the order asked for.
    pub entries: Vec<HistoryEntry>,
    /// Whether there are more beyond the last one.
    pub more: bool,
}

impl Service {
    /// The balance as of a moment.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] says what kept the service from answering.
    pub async fn balance(self: &Arc<Self>, request: BalanceRequest) -> Result<Balance, Unavailable> {
        let BalanceRequest { user_id, at, caller } = request;
        let timestamp = at.unwrap_or_else(now);
        match self.admit(self.ledger.is_full_of_questions())? {
            Admission::Admitted(place) => {
                let (user_id, balance) = self
                    .ledger
                    .balance(
                        Question {
                            user_id,
                            at: timestamp,
                            caller,
                        },
                        place,
                    )
                    .await?;
                Ok(Balance {
                    user_id,
                    timestamp,
                    balance,
                })
            }
            Admission::Overloaded { slot, deadline } => {
                let overloaded = Unavailable::Overloaded;
                let caller = caller.as_ref();
                let record = read_record(OperationName::GetBalance, &user_id, timestamp, caller, Some(overloaded));
                write_line(slot, &record, deadline).await?;
                Err(overloaded)
            }
        }
    }

    /// A page of a user's operations with the balance after each.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] says what kept the service from answering.
    pub async fn history(self: &Arc<Self>, request: HistoryRequest) -> Result<HistoryPage, Unavailable> {
        let (slot, deadline, place) = match self.admit(self.pages.backlog.is_full())? {
            Admission::Admitted(place) => (place.slot, place.deadline, Some(place.under_way)),
            Admission::Overloaded { slot, deadline } => (slot, deadline, None),
        };
        let service = Arc::clone(self);
        let task = tokio::spawn(telemetry::carried(async move {
            let timestamp = request.to.unwrap_or_else(now);
            let query = HistoryQuery {
                user_id: request.user_id,
                from: request.from.unwrap_or(Timestamp::MIN),
                to: request.to.unwrap_or(Timestamp::MAX),
                order: request.order,
                beyond: request.beyond,
                // One more than asked for tells whether there is a next page.
                limit: request.limit + 1,
            };
            let entries = match place {
                Some(_) => service.page(&query, deadline).await,
                None => Err(Unavailable::Overloaded),
            };
            let failure = entries.as_ref().err().copied();
            let caller = request.caller.as_ref();
            let record = read_record(OperationName::GetHistory, &query.user_id, timestamp, caller, failure);
            write_line(slot, &record, deadline).await?;
            let mut entries = entries?;
            let more = entries.len() > request.limit as usize;
            entries.truncate(request.limit as usize);
            Ok(HistoryPage { entries, more })
        }));
        task.await.unwrap_or(Err(Unavailable::Internal))
    }

    /// Reads when it is its turn.
    async fn page(&self, query: &HistoryQuery, deadline: Instant) -> Result<Vec<HistoryEntry>, Unavailable> {
        let waiting = self.pages.backlog.enter();
        let entries = match timeout_at(deadline, self.pages.at_work.acquire()).await {
            Ok(_turn) => self.read_page(query, deadline).await,
            Err(_) => Err(Unavailable::Overloaded),
        };
        waiting.answered(usize::from(entries.is_ok()));
        entries
    }

    /// Should it panic, that is told like any other failure, and gets its line.
    async fn read_page(&self, query: &HistoryQuery, deadline: Instant) -> Result<Vec<HistoryEntry>, Unavailable> {
        let reading = repeat_read(deadline, || {
            let reading = self.store.history(query, deadline);
            self.metrics.database.statement(Statement::ReadHistory, reading)
        });
        match AssertUnwindSafe(reading).catch_unwind().await {
            Ok(read) => read.map_err(Unavailable::from),
            Err(_) => {
                tracing::error!("a page of a history was not read");
                Err(Unavailable::Internal)
            }
        }
    }
}

fn read_record<'a>(
    operation: OperationName,
    user_id: &'a UserId,
    timestamp: Timestamp,
    caller: Option<&'a CallerName>,
    failure: Option<Unavailable>,
) -> Record<'a> {
    let outcome = failure.map_or(Outcome::Accepted, |failure| Outcome::Problem(failure.code()));
    Record {
        timestamp: Some(timestamp),
        caller,
        ..Record::new(operation, outcome, user_id)
    }
}
