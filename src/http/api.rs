//! The operations as poem-openapi serves and documents them: thin handlers that check, call the service and answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use poem::Request;
use poem::http::Version;
use poem_openapi::param::{Header, Path, Query};
use poem_openapi::payload::PlainText;
use poem_openapi::types::ToJSON;
use poem_openapi::{OpenApi, Tags};

use super::body::{ChangeRequestBody, ReadChange};
use super::conditions;
use super::deferred::Deferred;
use super::memory::{Memory, Reserved};
use super::negotiation::Form;
use super::parameters::{self, Cursor, DEFAULT_LIMIT};
use super::problem::{Code, Problem, ProblemOf, Problems};
use super::responses::{Changed, Conditional, Success};
use super::statement::{Asked, HistoryAnswer, MAX_PAGE_BYTES};
use super::types::{
    Available, Balance, CursorText, DateTime, DryRunText, EntityTagsText, IdempotencyKeyText, KnownAtText, LimitText,
    OrderText, Status, UserIdText,
};
use crate::domain::Timestamp;
use crate::metrics::Metrics;
use crate::service::{
    Change, ChangeError, ChangeRequest, Figure, FigureAnswer, FigureRequest, HistoryRequest, UseCases,
};
use crate::store::{ConnectionFailure, HistoryOrder, Standing, StoreError, StoreReadiness};
use crate::telemetry;

#[derive(Tags)]
enum Tag {
    /// Change a balance, and read it as of any moment.
    #[oai(rename = "balance")]
    Balance,
    /// For those who run the service.
    #[oai(rename = "operation")]
    Operation,
}

const INVALID: (u16, &str) = (
    400,
    "The request is not valid: `invalid_request`. `detail` names what is wrong and how it is right.",
);
const UNAUTHENTICATED: (u16, &str) = (
    401,
    "The service asks for a token, and the request holds none that is known: `unauthenticated`.",
);
const UNAVAILABLE: (u16, &str) = (
    503,
    "Nothing could be answered now; try again after `Retry-After`. `database_unavailable`, \
     `operations_log_unavailable`, `overloaded`, `internal_error`.",
);

/// The problems of a change.
#[derive(Debug)]
pub struct Changing;

impl Problems for Changing {
    const STATUSES: &'static [(u16, &'static str)] = &[
        INVALID,
        UNAUTHENTICATED,
        (
            403,
            "The change is refused and nothing was changed: `insufficient_scope` of the token, `approver_denied`, \
             `insufficient_funds` (with `at`, `shortfall` and `available`), `balance_limit` (with `at`).",
        ),
        (408, "The body did not arrive in time: `request_timeout`."),
        (
            412,
            "The user is at none of the versions that `If-Match` names: `precondition_failed` (with `version`).",
        ),
        (413, "The body has more than 64 KiB: `payload_too_large`."),
        (415, "The body is not `application/json`: `unsupported_media_type`."),
        (
            422,
            "The Idempotency-Key belongs to another operation: `idempotency_key_reused`.",
        ),
        (
            503,
            "Nothing was changed, and the same may work after `Retry-After`: `database_unavailable`, \
             `approver_unavailable`, `too_many_conflicts`, `operations_log_unavailable`, `overloaded`, \
             `internal_error`. Or the change may have been applied: `outcome_unknown`; repeat it with the same \
             Idempotency-Key.",
        ),
    ];
}

/// The problems of a read.
#[derive(Debug)]
pub struct Reading;

impl Problems for Reading {
    const STATUSES: &'static [(u16, &'static str)] = &[
        INVALID,
        UNAUTHENTICATED,
        (403, "The token does not allow reading: `insufficient_scope`."),
        UNAVAILABLE,
    ];
}

/// The problems of the probe of readiness.
#[derive(Debug)]
pub struct Probing;

impl Problems for Probing {
    const STATUSES: &'static [(u16, &'static str)] = &[(
        503,
        "Not ready: `not_ready`; `detail` says which dependency does not answer, or that the service is stopping.",
    )];
}

/// An answer of HTTP/1.0 ends when the connection does, and one that was cut off would look like a whole one.
const WITHOUT_CHUNKS: &str = "A whole history as CSV needs HTTP/1.1, which tells its end from a connection that breaks; \
                              send the request with HTTP/1.1, or give limit.";

/// Tells `/readyz` that the service is stopping.
#[derive(Clone, Debug, Default)]
pub struct Stopping(Arc<AtomicBool>);

impl Stopping {
    /// From now on the service is not ready.
    pub fn begin(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn has_begun(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The handlers.
pub struct Api<S> {
    /// The use cases; none when only the document is wanted.
    pub service: Option<Arc<S>>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Whether the service is stopping.
    pub stopping: Stopping,
    /// The budget for large answers.
    pub memory: Memory,
}

impl<S: UseCases> Api<S> {
    fn service(&self) -> &Arc<S> {
        self.service
            .as_ref()
            .expect("an Api that serves has a service; the one without only prints its document")
    }

    /// A figure of a user, or that the client has it.
    fn figure<T: From<FigureAnswer> + ToJSON>(
        &self,
        request: &Request,
        figure: Figure,
        user_id: UserIdText,
        timestamp: Option<DateTime>,
        known_at: Option<Timestamp>,
    ) -> Result<Deferred<Conditional<T>>, ProblemOf<Reading>> {
        let user_id = parameters::user_id(user_id)?;
        let at = parameters::timestamp("timestamp", timestamp)?;
        let known = conditions::if_none_match(request)?;
        let request = FigureRequest {
            user_id,
            figure,
            at,
            known_at,
            caller: parameters::caller(request),
        };
        let service = Arc::clone(self.service());
        Ok(Deferred::new(async move {
            let answer = service.figure(request).await?;
            let version = answer.version;
            let is_known = known.is_some_and(|known| known.includes(version));
            Ok::<_, ProblemOf<Reading>>(match answer.standing {
                Standing::Settled if is_known => Conditional::NotModified { version },
                Standing::Settled | Standing::FallsDue => Conditional::Whole {
                    body: answer.into(),
                    version: Some(version),
                },
                // A clock that is not behind gives another answer for the same version, and what was known before it is
                // none of this version.
                Standing::Behind | Standing::Superseded => Conditional::Whole {
                    body: answer.into(),
                    version: None,
                },
            })
        }))
    }

    /// Whether operations can be answered, or why not.
    async fn readiness(&self) -> Result<Success<Status>, String> {
        if self.stopping.has_begun() {
            return Err("The service is stopping; use another replica.".to_owned());
        }
        let readiness = self.service().readiness().await;
        readiness
            .log
            .map_err(|failure| format!("Operations are not answered: {failure}."))?;
        match &*readiness.store {
            Ok(StoreReadiness::Ready) => Ok(Success(Status {
                status: "ready".to_owned(),
            })),
            Ok(StoreReadiness::NoSchema) => {
                Err("The database has no schema, or an old one; run `balance migrate` on it.".to_owned())
            }
            Ok(StoreReadiness::NoRights) => Err(
                "The database role may not do all that the service does; run env/roles.sql on the database.".to_owned(),
            ),
            Err(StoreError::NoConnection(ConnectionFailure::Insecure(failure))) => {
                Err(format!("There is no secure connection to the database: {failure}."))
            }
            Err(StoreError::NoConnection(failure)) => Err(match failure.remedy() {
                Some(remedy) => format!("The database cannot be used: {failure}; {remedy}."),
                None => format!("The database cannot be used: {failure}."),
            }),
            Err(StoreError::Refused(_)) => {
                Err("The database refuses the check for readiness; see the process log.".to_owned())
            }
            Err(error @ (StoreError::Failed(_) | StoreError::TimedOut | StoreError::Busy)) => {
                Err(format!("The database does not answer: {error}."))
            }
        }
    }
}

/// Changes a balance with a body that memory was taken for: it is kept until the change has ended, even if the client
/// hangs up.
async fn change_balance_with<S: UseCases>(
    service: Arc<S>,
    request: ChangeRequest,
    reserved: Reserved,
) -> Result<Change, ChangeError> {
    let change = tokio::spawn(telemetry::carried(async move {
        let change = service.change_balance(request).await;
        drop(reserved);
        change
    }));
    change.await.unwrap_or(Err(ChangeError::OutcomeUnknown))
}

#[OpenApi]
impl<S: UseCases> Api<S> {
    /// Change a balance
    ///
    /// Adds `balanceChange` to the user's balance at `timestamp`, if with it no moment from then on is negative or beyond
    /// the signed 64-bit range. Changes larger than the approval threshold, either way, are approved by the Approver
    /// first. With an `Idempotency-Key` the change is applied at most once, however often it is sent. With `If-Match` it
    /// is judged only if the user is still at that version. With `dryRun` nothing is changed: the answer is what the rule
    /// says of the change now.
    #[oai(
        path = "/changeBalance",
        method = "post",
        operation_id = "changeBalance",
        tag = "Tag::Balance"
    )]
    async fn change_balance(
        &self,
        request: &Request,
        /// Names the operation among the user's, so that a repeat gets the first answer again: 1 to 255 visible ASCII
        /// characters, with or without double quotes around them.
        #[oai(name = "Idempotency-Key")]
        idempotency_key: Header<Option<IdempotencyKeyText>>,
        /// The `ETag` of the answer that the change rests on, of whichever read or change, such as `"3"`: where the user has moved on since,
        /// nothing is changed and the answer is 412. `*` for any user who has had a change, `"0"` for one who has not.
        #[oai(name = "If-Match")]
        if_match: Header<Option<EntityTagsText>>,
        /// `true` to be told what would come of the change, and change nothing. The Approver is not asked.
        #[oai(name = "dryRun")]
        dry_run: Query<Option<DryRunText>>,
        body: ChangeRequestBody,
    ) -> Result<Deferred<Changed>, ProblemOf<Changing>> {
        // Read from the headers as they are, since a repeated header is an error too.
        let (Header(_), Header(_)) = (idempotency_key, if_match);
        parameters::check_query(request, &["dryRun"])?;
        let idempotency_key = parameters::idempotency_key(request)?;
        let precondition = conditions::if_match(request)?;
        conditions::no_if_none_match(request)?;
        let dry_run = parameters::dry_run(dry_run.0)?;
        let caller = parameters::caller(request);
        let ReadChange { fields, reserved } = body.0?;
        let request = ChangeRequest {
            user_id: fields.user_id,
            context: fields.context,
            balance_change: fields.balance_change,
            timestamp: fields.timestamp,
            idempotency_key,
            precondition,
            dry_run,
            caller,
        };
        let service = Arc::clone(self.service());
        Ok(Deferred::new(async move {
            let change = match reserved {
                None => service.change_balance(request).await?,
                Some(reserved) => change_balance_with(service, request, reserved).await?,
            };
            Ok::<_, ProblemOf<Changing>>(Changed {
                version: change.version,
                replayed: change.replayed,
                change: change.into(),
            })
        }))
    }

    /// Read a balance as of a moment
    ///
    /// The sum of all changes of the user stamped at or before `timestamp`; as of now without it. A user nobody has heard
    /// of has balance 0, as every user has before the first change. With `knownAt`, what the answer was at that moment:
    /// changes that were recorded later do not count.
    #[oai(
        path = "/:userId/balance",
        method = "get",
        operation_id = "getBalance",
        tag = "Tag::Balance"
    )]
    async fn get_balance(
        &self,
        request: &Request,
        /// Whose balance, percent-encoded.
        #[oai(name = "userId")]
        user_id: Path<UserIdText>,
        /// As of when: RFC 3339 with an offset or `Z`. Now, if left out; with `knownAt`, then.
        timestamp: Query<Option<DateTime>>,
        /// As it was known when: without the changes whose `recordedAt` is later than this. RFC 3339 with an offset or `Z`,
        /// such as `2026-01-31T12:00:00Z`.
        /// As it is known now, if left out. Where changes were recorded since, the answer has no `ETag`.
        #[oai(name = "knownAt")]
        known_at: Query<Option<KnownAtText>>,
        /// The `ETag` of an answer that the client has, such as `"3"`: if it is still right, the answer is 304 without a body. Without
        /// `timestamp` it never is after a change that was stamped in the future, until the next change after that moment.
        #[oai(name = "If-None-Match")]
        if_none_match: Header<Option<EntityTagsText>>,
    ) -> Result<Deferred<Conditional<Balance>>, ProblemOf<Reading>> {
        let Header(_) = if_none_match;
        parameters::check_query(request, &["timestamp", "knownAt"])?;
        let known_at = parameters::known_at(known_at.0)?;
        self.figure(request, Figure::Balance, user_id.0, timestamp.0, known_at)
    }

    /// Read how much can be withdrawn at a moment
    ///
    /// The largest withdrawal that would be accepted at `timestamp`, now without it: the lowest balance at that moment and
    /// all later ones. It is what `insufficient_funds` tells as `available`. 0 for a user nobody has heard of.
    #[oai(
        path = "/:userId/available",
        method = "get",
        operation_id = "getAvailable",
        tag = "Tag::Balance"
    )]
    async fn get_available(
        &self,
        request: &Request,
        /// Whose balance, percent-encoded.
        #[oai(name = "userId")]
        user_id: Path<UserIdText>,
        /// When it would be withdrawn: RFC 3339 with an offset or `Z`. Now, if left out.
        timestamp: Query<Option<DateTime>>,
        /// The `ETag` of an answer that the client has, such as `"3"`: if it is still right, the answer is 304 without a body. Without
        /// `timestamp` it never is after a change that was stamped in the future, until the next change after that moment.
        #[oai(name = "If-None-Match")]
        if_none_match: Header<Option<EntityTagsText>>,
    ) -> Result<Deferred<Conditional<Available>>, ProblemOf<Reading>> {
        let Header(_) = if_none_match;
        parameters::check_query(request, &["timestamp"])?;
        self.figure(request, Figure::Available, user_id.0, timestamp.0, None)
    }

    /// Read the history of a balance
    ///
    /// The user's changes with the balance after each, the latest first. Pages follow each other by `cursor`: they
    /// neither skip nor repeat an operation that was there when the first page was read. With `knownAt`, only the changes
    /// that had been recorded at that moment, with the balances that these come to.
    ///
    /// The header `Accept` decides the form; JSON counts where it leaves the choice, or asks for what there is not.
    ///
    /// `text/csv` is a table with a row for each operation, in the same order and with the same names: all operations,
    /// however many, or at most `limit` of them. It is the history at one version of the user, whatever is added while it
    /// is sent. In a `context`, each `=`, `+`, `-`, `@` (in full width too) or `'` that begins it or follows a comma, `;`, `|`,
    /// tab or line break has a `'` in front, so that no spreadsheet takes a part of it for a formula, wherever it splits.
    /// Without these it is the exact text. A table that cannot be ended is cut off without the end of its transfer, so that
    /// no client takes it for a whole one.
    ///
    /// `text/html` is a page for people: the curve of the balance, the operations, and the way to the next page.
    #[oai(
        path = "/:userId/history",
        method = "get",
        operation_id = "getHistory",
        tag = "Tag::Balance"
    )]
    #[allow(
        clippy::too_many_arguments,
        reason = "each is a parameter of the operation in the document"
    )]
    async fn get_history(
        &self,
        request: &Request,
        /// Whose history, percent-encoded.
        #[oai(name = "userId")]
        user_id: Path<UserIdText>,
        /// The earliest timestamp, included. The beginning, if left out.
        from: Query<Option<DateTime>>,
        /// The latest timestamp, included. The end, if left out. Earlier than `from`, it leaves the page empty.
        to: Query<Option<DateTime>>,
        /// `desc` begins at the latest timestamp, `asc` at the earliest. `desc`, if left out.
        order: Query<Option<OrderText>>,
        /// The most operations on the page, 1 to 1000; 100, if left out. With `text/csv` all, if left out. A page has at most
        /// 1 MiB and may hold fewer: only a missing `nextCursor` marks the last.
        limit: Query<Option<LimitText>>,
        /// As it was known when: without the changes whose `recordedAt` is later than this. RFC 3339 with an offset or `Z`,
        /// such as `2026-01-31T12:00:00Z`.
        /// As it is known now, if left out.
        #[oai(name = "knownAt")]
        known_at: Query<Option<KnownAtText>>,
        /// `nextCursor` of the page before: this page has what lies beyond that one's last operation, in the order asked
        /// for. It holds `from`, `to`, `order` and `knownAt` for where they are left out.
        cursor: Query<Option<CursorText>>,
    ) -> Result<Deferred<HistoryAnswer>, ProblemOf<Reading>> {
        parameters::check_query(request, &["from", "to", "order", "limit", "knownAt", "cursor"])?;
        let user_id = parameters::user_id(user_id.0)?;
        let from = parameters::timestamp("from", from.0)?;
        let to = parameters::timestamp("to", to.0)?;
        let order = parameters::order(order.0)?;
        let limit = parameters::limit(limit.0)?;
        let known_at = parameters::known_at(known_at.0)?;
        let cursor = cursor.0.as_ref().map(Cursor::parse).transpose()?;
        let order = order.or(cursor.map(|cursor| cursor.order));
        let asked = Asked {
            request: HistoryRequest {
                user_id,
                from: from.or(cursor.and_then(|cursor| cursor.from)),
                to: to.or(cursor.and_then(|cursor| cursor.to)),
                order: order.unwrap_or(HistoryOrder::NewestFirst),
                beyond: cursor.map(|cursor| cursor.last),
                limit: limit.unwrap_or(DEFAULT_LIMIT),
                bytes: MAX_PAGE_BYTES,
                known_at: known_at.or(cursor.and_then(|cursor| cursor.known_at)),
                caller: parameters::caller(request),
            },
            limit,
        };
        let form = Form::wanted(request.headers());
        if asked.is_without_end(form) && request.version() < Version::HTTP_11 {
            return Err(Problem::invalid(WITHOUT_CHUNKS).into());
        }
        let (service, memory) = (Arc::clone(self.service()), self.memory.clone());
        Ok(Deferred::new(async move {
            let answer = asked.answer(&service, form, &memory).await?;
            Ok::<_, ProblemOf<Reading>>(answer)
        }))
    }

    /// Whether the process is alive
    ///
    /// Asks nothing of any dependency: a process that answers need not be restarted.
    #[oai(
        path = "/livez",
        method = "get",
        operation_id = "getLiveness",
        tag = "Tag::Operation"
    )]
    async fn livez(&self) -> Success<Status> {
        let status = "alive".to_owned();
        Success(Status { status })
    }

    /// Whether operations can be answered
    ///
    /// Asks PostgreSQL and the operations log. The Approver is not asked: without it reads and small changes go on.
    #[oai(
        path = "/readyz",
        method = "get",
        operation_id = "getReadiness",
        tag = "Tag::Operation"
    )]
    async fn readyz(&self) -> Result<Success<Status>, ProblemOf<Probing>> {
        let readiness = self.readiness().await;
        self.metrics.http.ready.set(f64::from(u8::from(readiness.is_ok())));
        readiness.map_err(|detail| Problem::new(Code::NotReady, detail).into())
    }

    /// Counters for Prometheus
    ///
    /// Prometheus' text format 0.0.4. Nothing is labelled by user.
    #[oai(
        path = "/metrics",
        method = "get",
        operation_id = "getMetrics",
        tag = "Tag::Operation"
    )]
    async fn metrics(&self) -> PlainText<String> {
        self.service().observe();
        PlainText(self.metrics.text())
    }
}
