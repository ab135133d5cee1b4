//! Reading a figure or the history: read, write the line, answer.

use std::sync::Arc;

use tokio::time::Instant;

use super::turns::Turns;
use super::{Admission, Service, Unavailable, now, write_line};
use crate::domain::{CallerName, Timestamp, UserId};
use crate::ledger::{Figure, Question};
use crate::operations_log::{OperationName, Outcome, Record};
use crate::store::{HistoryEntry, HistoryOrder, HistoryQuery, Place, Reading, Standing, StoredPage};
use crate::telemetry;

/// Which figure is asked for.
#[derive(Clone, Debug)]
pub struct FigureRequest {
    /// Whose.
    pub user_id: UserId,
    /// Which.
    pub figure: Figure,
    /// As of when; if that is left open, now, or of what was known at a moment, then.
    pub at: Option<Timestamp>,
    /// Of a balance: without operations that were recorded later than this moment; with all of them, if that is left open.
    pub known_at: Option<Timestamp>,
    /// Who asks, where callers are known.
    pub caller: Option<CallerName>,
}

/// A figure of a user as of a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FigureAnswer {
    /// Whose.
    pub user_id: UserId,
    /// As of when.
    pub timestamp: Timestamp,
    /// As it was known when, if that was asked for.
    pub known_at: Option<Timestamp>,
    /// What was asked for.
    pub amount: i64,
    /// How many operations of the user were accepted when it was read.
    pub version: i64,
    /// Whether the same request gets the same amount for as long as the user stays at the version.
    pub standing: Standing,
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
    /// The most bytes of contexts on the page, but for a first one that is longer.
    pub bytes: usize,
    /// Only operations recorded at or before this moment, and the balances that they come to; all, if that is left open.
    pub known_at: Option<Timestamp>,
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
    /// How many operations of the user were accepted when it was read; none where only what was known before was asked for.
    pub version: Option<i64>,
    /// When the last of the user's operations was stored; none for a user nobody has heard of.
    pub recorded_at: Option<Timestamp>,
}

impl HistoryRequest {
    /// What the store is asked for.
    pub(super) fn query(&self) -> HistoryQuery {
        HistoryQuery {
            user_id: self.user_id.clone(),
            from: self.from.unwrap_or(Timestamp::MIN),
            to: self.to.unwrap_or(Timestamp::MAX),
            order: self.order,
            beyond: self.beyond,
            // One more than asked for tells whether there is a next page.
            limit: self.limit + 1,
            bytes: self.bytes,
            known_at: self.known_at,
        }
    }

    /// The page that the answer to [`query`](Self::query) is.
    pub(super) fn page_of(&self, read: StoredPage) -> HistoryPage {
        let mut entries = read.entries;
        let mut bytes = 0;
        let fitting = entries.iter().enumerate().take_while(|(index, entry)| {
            bytes += entry.context.len();
            *index == 0 || bytes <= self.bytes
        });
        let fitting = fitting.count().min(self.limit as usize);
        let more = entries.len() > fitting;
        entries.truncate(fitting);
        let is_superseded = self.known_at.is_some_and(|known_at| read.recorded_at > Some(known_at));
        HistoryPage {
            entries,
            more,
            version: (!is_superseded).then_some(read.version),
            recorded_at: read.recorded_at,
        }
    }
}

impl Service {
    /// A figure as of a moment, or as of now.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] says what kept the service from answering.
    pub async fn figure(self: &Arc<Self>, request: FigureRequest) -> Result<FigureAnswer, Unavailable> {
        let timestamp = request.at.or(request.known_at).unwrap_or_else(now);
        let question = Question {
            user_id: request.user_id,
            figure: request.figure,
            at: timestamp,
            caller: request.caller,
        };
        if let Some(known_at) = request.known_at {
            // On the heap, so that what is asked for most takes no room for it.
            return Box::pin(self.known_balance(question, known_at)).await;
        }
        match self.admit(self.ledger.is_full_of_questions(question.figure))? {
            Admission::Admitted(place) => {
                let (user_id, reading) = self.ledger.read(question, place).await?;
                Ok(FigureAnswer {
                    user_id,
                    timestamp,
                    known_at: None,
                    amount: reading.amount,
                    version: reading.version,
                    standing: match request.at {
                        // Time passes, and the moment that was asked about stays.
                        Some(_) => Standing::Settled,
                        None => reading.standing,
                    },
                })
            }
            Admission::Overloaded { slot, deadline } => {
                let overloaded = Unavailable::Overloaded;
                write_line(slot, &question.record(Err(overloaded)), deadline).await?;
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
        let is_full = self.turns_of(request.known_at.is_some()).are_full();
        self.logged_page(request, is_full).await
    }

    /// A balance as it was known at a moment of recording.
    async fn known_balance(
        self: &Arc<Self>,
        question: Question,
        known_at: Timestamp,
    ) -> Result<FigureAnswer, Unavailable> {
        let (slot, deadline, place) = self.admit(self.known.are_full())?.into_parts();
        let service = Arc::clone(self);
        let task = tokio::spawn(telemetry::carried(async move {
            let reading = match place {
                Some(_) => service.read_known(&question, known_at, deadline).await,
                None => Err(Unavailable::Overloaded),
            };
            let record = Record {
                known_at: Some(known_at),
                ..question.record(reading.map(|reading| reading.amount))
            };
            write_line(slot, &record, deadline).await?;
            let reading = reading?;
            Ok(FigureAnswer {
                user_id: question.user_id,
                timestamp: question.at,
                known_at: Some(known_at),
                amount: reading.amount,
                version: reading.version,
                standing: reading.standing,
            })
        }));
        task.await.unwrap_or(Err(Unavailable::Internal))
    }

    /// Reads when it is its turn.
    async fn read_known(
        &self,
        question: &Question,
        known_at: Timestamp,
        deadline: Instant,
    ) -> Result<Reading, Unavailable> {
        let (user_id, at, known_at) = ([question.user_id.as_str()], [question.at], [known_at]);
        let reading = self.store.balances_known_at(&user_id, &at, &known_at, deadline);
        let reading = async { reading.await?.into_iter().next().ok_or(Unavailable::Internal) };
        self.known.take(deadline, reading).await
    }

    /// A page, when its line is written.
    pub(super) async fn logged_page(
        self: &Arc<Self>,
        request: HistoryRequest,
        is_full: bool,
    ) -> Result<HistoryPage, Unavailable> {
        let (slot, deadline, place) = self.admit(is_full)?.into_parts();
        let service = Arc::clone(self);
        let task = tokio::spawn(telemetry::carried(async move {
            let timestamp = request.to.unwrap_or_else(now);
            let query = request.query();
            let entries = match place {
                Some(_) => {
                    service
                        .page(&query, service.turns_of(query.known_at.is_some()), deadline)
                        .await
                }
                None => Err(Unavailable::Overloaded),
            };
            let failure = entries.as_ref().err().copied();
            let caller = request.caller.as_ref();
            let record = Record {
                known_at: request.known_at,
                ..read_record(OperationName::GetHistory, &query.user_id, timestamp, caller, failure)
            };
            write_line(slot, &record, deadline).await?;
            Ok(request.page_of(entries?))
        }));
        task.await.unwrap_or(Err(Unavailable::Internal))
    }

    /// Reads when it is its turn.
    pub(super) async fn page(
        &self,
        query: &HistoryQuery,
        turns: &Turns,
        deadline: Instant,
    ) -> Result<StoredPage, Unavailable> {
        let reading = async { self.store.history(query, deadline).await.map_err(Unavailable::from) };
        turns.take(deadline, reading).await
    }

    /// What was known at an earlier moment takes longer to read, and does not hold up the rest.
    pub(super) fn turns_of(&self, is_known: bool) -> &Turns {
        match is_known {
            false => &self.pages,
            true => &self.known,
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
