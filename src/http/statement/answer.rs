//! The answer to a request for a history, in the form that the client wants.

use std::io;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use futures_util::future::Either;
use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use poem::http::HeaderValue;
use poem::http::header::{CONTENT_DISPOSITION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, LINK};
use poem::{Body, IntoResponse, Response};
use poem_openapi::ApiResponse;
use poem_openapi::payload::Payload;
use poem_openapi::registry::{MetaMediaType, MetaResponse, MetaResponses, Registry};
use poem_openapi::types::{ToJSON, Type};

use super::disposition::disposition;
use super::page::{STYLE, StatementPage, render};
use super::table::{HEADER, rows};
use crate::domain::UserId;
use crate::http::conditions::entity_tag;
use crate::http::headers;
use crate::http::memory::{Counted, Kept, Reserved};
use crate::http::negotiation::Form;
use crate::http::problem::response_header;
use crate::http::responses::{Json, Success, etag_header};
use crate::http::types::History;
use crate::service::Unavailable;
use crate::store::HistoryEntry;

/// The page's own style and nothing else.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| headers::policy_of_style(STYLE));

/// How many bytes of contexts the part of a table has that is sent at once.
const PART_BYTES: usize = 32 * 1024;

/// A history in one of its forms, and what it is the history of.
pub struct HistoryAnswer {
    /// What is sent.
    pub form: HistoryForm,
    /// The user's version; none where the answer is not all that was known at it.
    pub version: Option<i64>,
    /// The memory that it takes until it is sent.
    pub reserved: Reserved,
}

/// A history in one of its forms.
pub enum HistoryForm {
    /// A page of it for programs.
    Json(Success<History>),
    /// Rows for spreadsheets, sent as they are read.
    Table {
        /// The user.
        user_id: UserId,
        /// The rows.
        rows: BoxStream<'static, Result<Vec<HistoryEntry>, Unavailable>>,
    },
    /// A page of the table, whole.
    TablePage {
        /// The user.
        user_id: UserId,
        /// Header and rows.
        text: Vec<u8>,
        /// The query of the next page, after `?`.
        next: Option<String>,
    },
    /// A page of it for people.
    Html(String),
}

impl HistoryForm {
    /// A page as it is drawn.
    pub fn page(page: &StatementPage<'_>) -> Self {
        Self::Html(render(page))
    }
}

impl IntoResponse for HistoryAnswer {
    fn into_response(self) -> Response {
        let mut response = self.form.into_response_with(self.reserved);
        response.extensions_mut().insert(Counted);
        if let Some(version) = self.version {
            response.headers_mut().insert(ETAG, entity_tag(version));
        }
        response
    }
}

impl HistoryForm {
    fn into_response_with(self, reserved: Reserved) -> Response {
        match self {
            HistoryForm::Json(history) => Response::builder()
                .header(CONTENT_TYPE, Json::<History>::CONTENT_TYPE)
                .body(reserved.with(history.0.to_json_string().into_bytes())),
            HistoryForm::Table { user_id, rows } => Response::builder()
                .header(CONTENT_TYPE, Form::Csv.media_type())
                .header(CONTENT_DISPOSITION, disposition(user_id.as_str()))
                .body(Body::from_bytes_stream(table(rows, reserved))),
            HistoryForm::TablePage { user_id, text, next } => {
                let mut response = Response::builder()
                    .header(CONTENT_TYPE, Form::Csv.media_type())
                    .header(CONTENT_DISPOSITION, disposition(user_id.as_str()))
                    .body(reserved.with(text));
                if let Some(next) = next {
                    let next = HeaderValue::try_from(format!("<?{next}>; rel=\"next\""));
                    response
                        .headers_mut()
                        .insert(LINK, next.expect("an encoded query is a header's value"));
                }
                response
            }
            HistoryForm::Html(page) => Response::builder()
                .header(CONTENT_TYPE, Form::Html.media_type())
                .header(CONTENT_SECURITY_POLICY, POLICY.clone())
                .body(reserved.with(page.into_bytes())),
        }
    }
}

/// The bytes of a table. Where its operations end with a failure, so does it, and hyper breaks the connection off.
fn table(
    operations: BoxStream<'static, Result<Vec<HistoryEntry>, Unavailable>>,
    reserved: Reserved,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let reserved = Arc::new(reserved);
    let rows = operations.flat_map(move |page| {
        let reserved = Arc::clone(&reserved);
        match page {
            Ok(entries) => Either::Left(stream::iter(parts(entries, reserved).map(Ok))),
            Err(_) => Either::Right(stream::iter([Err(io::ErrorKind::ConnectionAborted.into())])),
        }
    });
    let header = stream::iter([Ok(Bytes::from_static(HEADER.as_bytes()))]);
    header.chain(rows)
}

/// Rows, a part at a time; the last of them to be sent gives back the memory.
fn parts(entries: Vec<HistoryEntry>, reserved: Arc<Reserved>) -> impl Iterator<Item = Bytes> {
    let mut entries = entries.into_iter();
    std::iter::from_fn(move || {
        let (mut part, mut contexts) = (Vec::new(), 0);
        while contexts < PART_BYTES
            && let Some(entry) = entries.next()
        {
            contexts += entry.context.len();
            part.push(entry);
        }
        (!part.is_empty()).then(|| {
            Bytes::from_owner(Kept {
                bytes: rows(&part).into_boxed_slice(),
                _reserved: Arc::clone(&reserved),
            })
        })
    })
}

impl ApiResponse for HistoryAnswer {
    fn meta() -> MetaResponses {
        let text = |content_type| MetaMediaType {
            content_type,
            schema: String::schema_ref(),
        };
        let history = MetaMediaType {
            content_type: Json::<History>::CONTENT_TYPE,
            schema: History::schema_ref(),
        };
        let header = |name, description| response_header(name, description, String::schema_ref());
        MetaResponses {
            responses: vec![MetaResponse {
                description: "A page of the history, or with `text/csv` all of it.",
                status: Some(200),
                status_range: None,
                // Without parameters of the media types, which generators do not know.
                content: vec![history, text("text/csv"), text("text/html")],
                headers: vec![
                    etag_header(),
                    header(
                        CONTENT_DISPOSITION,
                        "With `text/csv`: the name under which it can be kept as a file.",
                    ),
                    header(
                        LINK,
                        "With `text/csv` and `limit`: the next part with `rel=\"next\"`, where there is one.",
                    ),
                ],
            }],
        }
    }

    fn register(registry: &mut Registry) {
        History::register(registry);
    }
}
