//! The ceiling: the service's own HTTP stack, routes and JSON types with no store behind them. Nothing is kept, and no
//! line is written; what it answers has the shape and the size of a real answer.

use std::sync::Arc;
use std::time::SystemTime;

use balance::domain::{OperationId, Timestamp};
use balance::service::{
    Change, ChangeError, ChangeRequest, FigureAnswer, FigureRequest, HistoryPage, HistoryRequest, HistoryStream,
    Readiness, Unavailable, UseCases,
};
use balance::store::{Standing, StoreReadiness};
use futures_util::stream::{self, StreamExt};
use uuid::Uuid;

/// What every balance is.
const BALANCE: i64 = 1_000_000;

/// Answers without a store.
pub struct Ceiling;

impl UseCases for Ceiling {
    async fn change_balance(self: &Arc<Self>, request: ChangeRequest) -> Result<Change, ChangeError> {
        Ok(Change {
            operation_id: OperationId(Uuid::now_v7()),
            user_id: request.user_id,
            timestamp: request.timestamp,
            balance_change: request.balance_change,
            balance: BALANCE,
            version: 1,
            replayed: false,
            dry_run: None,
        })
    }

    async fn figure(self: &Arc<Self>, request: FigureRequest) -> Result<FigureAnswer, Unavailable> {
        Ok(FigureAnswer {
            user_id: request.user_id,
            timestamp: request.at.unwrap_or_else(|| Timestamp::from(SystemTime::now())),
            known_at: None,
            amount: BALANCE,
            version: 1,
            standing: Standing::Settled,
        })
    }

    async fn history(self: &Arc<Self>, _: HistoryRequest) -> Result<HistoryPage, Unavailable> {
        Ok(HistoryPage {
            entries: Vec::new(),
            more: false,
            version: Some(0),
            recorded_at: None,
        })
    }

    async fn stream_history(self: &Arc<Self>, _: HistoryRequest) -> Result<HistoryStream, Unavailable> {
        Ok(HistoryStream {
            version: Some(0),
            pages: stream::empty().boxed(),
        })
    }

    async fn refuse_history(self: &Arc<Self>, _: HistoryRequest) -> Unavailable {
        Unavailable::Overloaded
    }

    async fn readiness(&self) -> Readiness {
        Readiness {
            store: Arc::new(Ok(StoreReadiness::Ready)),
            log: Ok(()),
        }
    }

    fn observe(&self) {}
}
