//! A request for a history, whatever form its answer has: JSON, rows and page are of the same operations.

use std::sync::Arc;

use url::form_urlencoded::Serializer;

use super::answer::{HistoryAnswer, HistoryForm};
use super::fitting::{MAX_PAGE_BYTES, cut};
use super::page::StatementPage;
use super::table::{HEADER, rows};
use crate::http::memory::Memory;
use crate::http::negotiation::Form;
use crate::http::parameters::Cursor;
use crate::http::problem::Problem;
use crate::http::responses::Success;
use crate::http::types::{DateTime, History, UserIdText};
use crate::service::{HistoryPage, HistoryRequest, UseCases};
use crate::store::HistoryOrder;

/// Memory for one page while it is read and written: its operations and its text.
const PAGE_BYTES: usize = 2 * MAX_PAGE_BYTES;
/// Memory for one stream: the operations that were read, and the parts that wait to be sent.
const STREAM_BYTES: usize = 384 * 1024;

/// What was asked for.
pub struct Asked {
    /// The page, with the usual limit where none was given.
    pub request: HistoryRequest,
    /// The most operations, if that was said.
    pub limit: Option<u32>,
}

impl Asked {
    /// Whether the answer is as long as the history is.
    pub fn is_without_end(&self, form: Form) -> bool {
        form == Form::Csv && self.limit.is_none()
    }

    /// Asks the service.
    ///
    /// # Errors
    ///
    /// The problem that kept the service from answering.
    pub async fn answer<S: UseCases>(
        self,
        service: &Arc<S>,
        form: Form,
        memory: &Memory,
    ) -> Result<HistoryAnswer, Problem> {
        let user_id = self.request.user_id.clone();
        if self.is_without_end(form) {
            let Ok(reserved) = memory.reserve(STREAM_BYTES).await else {
                return Err(service.refuse_history(self.request).await.into());
            };
            let rows = service.stream_history(self.request).await?;
            let version = rows.version;
            let form = HistoryForm::Table {
                user_id,
                rows: rows.pages,
            };
            return Ok(HistoryAnswer {
                form,
                version,
                reserved,
            });
        }
        let Ok(reserved) = memory.reserve(PAGE_BYTES).await else {
            return Err(service.refuse_history(self.request).await.into());
        };
        let mut page = service.history(self.request.clone()).await?;
        cut(&mut page, form);
        let next_cursor = self.cursor_beyond(&page).map(|cursor| cursor.to_text());
        let next = next_cursor.as_ref().map(|cursor| self.query(Some(&cursor.0)));
        let version = page.version;
        let form = match form {
            Form::Json => HistoryForm::Json(Success(History {
                user_id: UserIdText(user_id.to_string()),
                operations: page.entries.into_iter().map(Into::into).collect(),
                known_at: self.request.known_at.map(DateTime::from),
                next_cursor,
            })),
            // With its length, so that a client of HTTP/1.0 too sees where it was cut off.
            Form::Csv => HistoryForm::TablePage {
                user_id,
                text: [HEADER.as_bytes(), &rows(&page.entries)].concat(),
                next,
            },
            Form::Html => HistoryForm::page(&StatementPage {
                user_id: user_id.as_str(),
                entries: &page.entries,
                oldest_first: self.request.order == HistoryOrder::OldestFirst,
                known_at: self.request.known_at,
                next: next.as_deref(),
                first: self.request.beyond.map(|_| self.query(None)).as_deref(),
            }),
        };
        Ok(HistoryAnswer {
            form,
            version,
            reserved,
        })
    }

    /// Where the next page begins, if there is one.
    fn cursor_beyond(&self, page: &HistoryPage) -> Option<Cursor> {
        let HistoryRequest {
            order,
            from,
            to,
            known_at,
            ..
        } = self.request;
        let last = page.entries.last().filter(|_| page.more)?.place;
        Some(Cursor {
            order,
            from,
            to,
            known_at,
            last,
        })
    }

    /// The query of the first page, or of the one with this cursor, which holds all but the limit.
    fn query(&self, cursor: Option<&str>) -> String {
        let mut query = Serializer::new(String::new());
        if let Some(limit) = self.limit {
            query.append_pair("limit", &limit.to_string());
        }
        if let Some(cursor) = cursor {
            return query.append_pair("cursor", cursor).finish();
        }
        let HistoryRequest { from, to, known_at, .. } = self.request;
        let bounds = [("from", from), ("to", to), ("knownAt", known_at)];
        for (name, bound) in bounds {
            if let Some(bound) = bound {
                query.append_pair(name, &bound.to_string());
            }
        }
        if self.request.order == HistoryOrder::OldestFirst {
            query.append_pair("order", "asc");
        }
        query.finish()
    }
}
