//! A history of any length: its pages one after the other, each read when the one before has been taken.
//!
//! Between two pages a stream holds neither a connection to PostgreSQL nor a turn nor a place among the operations under
//! way, so that a client that reads slowly holds up nobody. What it does hold, a page at most, is bounded by how many
//! streams there may be.

use std::sync::Arc;

use futures_util::stream::{self, BoxStream, StreamExt};
use prometheus::IntGauge;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::{HistoryPage, HistoryRequest, Service, Unavailable};
use crate::metrics::Active;
use crate::store::HistoryEntry;
use crate::telemetry::{self, RequestContext};

/// Streams take at most this part of the places for operations; more are answered 503.
const PART_OF_PLACES: usize = 64;

/// The most operations that are read at once; a stream that waits for its client holds one such page.
const PAGE: u32 = 250;
/// The most bytes of their contexts.
const PAGE_BYTES: usize = 128 * 1024;

/// A history of any length, as it was at one version of the user.
pub struct HistoryStream {
    /// The version; none where only what was known before was asked for.
    pub version: Option<i64>,
    /// Pages in the order asked for; only the first may be empty. An error is the last item: what was asked for is not all
    /// there.
    pub pages: BoxStream<'static, Result<Vec<HistoryEntry>, Unavailable>>,
}

/// So many histories may be streamed at once.
pub(super) fn most(operations_in_flight: usize) -> usize {
    (operations_in_flight / PART_OF_PLACES).max(1)
}

/// A history that is being streamed.
struct Streaming {
    service: Arc<Service>,
    /// The next page.
    request: HistoryRequest,
    /// What was read and not yet taken.
    read: Option<HistoryPage>,
    /// How many operations were taken.
    taken: usize,
    /// Whether what was known at an earlier moment was asked for, and not only is what all pages are tied to.
    is_known: bool,
    /// Held while there is more to read.
    place: Option<(OwnedSemaphorePermit, Active<IntGauge>)>,
    cause: Option<Arc<RequestContext>>,
}

impl Service {
    /// All of a user's operations from where the request begins, whatever its limit is. The first page is there and the line is
    /// with the operating system when this returns; the others are read as they are taken. All of them are of what was known
    /// when the first one was read, however much is added meanwhile.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] says what kept the service from reading the first page, or from having one stream more.
    pub async fn stream_history(self: &Arc<Self>, request: HistoryRequest) -> Result<HistoryStream, Unavailable> {
        let request = HistoryRequest {
            limit: PAGE,
            bytes: PAGE_BYTES,
            ..request
        };
        let is_known = request.known_at.is_some();
        let place = Arc::clone(&self.streams).try_acquire_owned().ok();
        let is_full = place.is_none() || self.turns_of(is_known).are_full();
        let page = self.logged_page(request.clone(), is_full).await?;
        let active = || Active::new(self.metrics.ledger.history_streams.clone());
        let place = place.filter(|_| page.more).map(|place| (place, active()));
        let version = page.version;
        let request = HistoryRequest {
            // The earlier of the two; none of a user of whom there is nothing, and no page either.
            known_at: request.known_at.into_iter().chain(page.recorded_at).min(),
            ..request
        };
        let streaming = Streaming {
            service: Arc::clone(self),
            request,
            read: Some(page),
            taken: 0,
            is_known,
            place,
            cause: telemetry::current(),
        };
        let pages = stream::unfold(Some(streaming), Streaming::next).boxed();
        Ok(HistoryStream { version, pages })
    }

    /// A page after the first: it waits for its turn where a new operation would be refused, since half of an answer is
    /// worth less than none.
    async fn later_page(
        self: &Arc<Self>,
        request: &HistoryRequest,
        is_known: bool,
    ) -> Result<HistoryPage, Unavailable> {
        let deadline = Instant::now() + self.config.operation_timeout;
        let (service, request) = (Arc::clone(self), request.clone());
        // To its end, even if the client hangs up: a statement that is dropped leaves its connection in doubt.
        let task = tokio::spawn(telemetry::carried(async move {
            let place = timeout_at(deadline, Arc::clone(&service.under_way).acquire_owned()).await;
            // The semaphore is never closed.
            let Ok(Ok(_place)) = place else {
                return Err(Unavailable::Overloaded);
            };
            let turns = service.turns_of(is_known);
            let entries = service.page(&request.query(), turns, deadline).await?;
            Ok(request.page_of(entries))
        }));
        task.await.unwrap_or(Err(Unavailable::Internal))
    }
}

impl Streaming {
    async fn next(streaming: Option<Self>) -> Option<(Result<Vec<HistoryEntry>, Unavailable>, Option<Self>)> {
        let mut streaming = streaming?;
        let page = match streaming.read.take() {
            Some(page) => page,
            None if streaming.place.is_none() => return None,
            None => match streaming.read().await {
                Ok(page) => page,
                Err(failure) => {
                    streaming.cut_off(failure);
                    return Some((Err(failure), None));
                }
            },
        };
        if !page.more {
            streaming.place = None;
        }
        streaming.taken += page.entries.len();
        streaming.request.beyond = page.entries.last().map(|entry| entry.place);
        Some((Ok(page.entries), Some(streaming)))
    }

    async fn read(&self) -> Result<HistoryPage, Unavailable> {
        let reading = self.service.later_page(&self.request, self.is_known);
        match &self.cause {
            Some(cause) => telemetry::scope(Arc::clone(cause), reading).await,
            None => reading.await,
        }
    }

    /// The client sees that its answer has no end; why is for those who run the service.
    fn cut_off(&self, failure: Unavailable) {
        self.service.metrics.ledger.history_streams_cut_off.inc();
        telemetry::caused_by([self.cause.as_ref()], || {
            let (operations, reason) = (self.taken, failure.code());
            tracing::warn!(
                operations,
                reason,
                "a history was cut off in the middle: its next page was not read"
            );
        });
    }
}
