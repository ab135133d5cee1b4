//! Problem details (RFC 9457): the one form of every error, whatever layer it comes from.
//!
//! `detail` says what to do about it. Nothing of the inside is shown: no SQL, no host, no stack.

use std::marker::PhantomData;

use poem::http::{HeaderName, HeaderValue, StatusCode, header};
use poem::{IntoResponse, Response};
use poem_openapi::registry::{MetaHeader, MetaMediaType, MetaResponse, MetaResponses, MetaSchemaRef, Registry};
use poem_openapi::types::{ToJSON, Type};
use poem_openapi::{ApiResponse, Enum, Object};

use super::conditions::entity_tag;
use super::responses::etag_header;
use super::types::DateTime;
use crate::domain::Refusal;
use crate::service::{ChangeError, Unavailable};

/// The media type of problems.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// How long a caller should wait before it tries again, in seconds: dependencies are probed several times a second.
const RETRY_AFTER_SECONDS: &str = "1";

/// What went wrong, as a closed list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[oai(rename_all = "snake_case", rename = "ProblemCode")]
pub enum Code {
    InvalidRequest,
    Unauthenticated,
    InsufficientScope,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    MisdirectedRequest,
    PayloadTooLarge,
    UnsupportedMediaType,
    ApproverDenied,
    InsufficientFunds,
    BalanceLimit,
    PreconditionFailed,
    IdempotencyKeyReused,
    DatabaseUnavailable,
    ApproverUnavailable,
    TooManyConflicts,
    OperationsLogUnavailable,
    Overloaded,
    NotReady,
    OutcomeUnknown,
    InternalError,
}

impl Code {
    fn status(self) -> StatusCode {
        match self {
            Code::InvalidRequest => StatusCode::BAD_REQUEST,
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Code::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Code::MisdirectedRequest => StatusCode::MISDIRECTED_REQUEST,
            Code::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Code::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Code::InsufficientScope | Code::ApproverDenied | Code::InsufficientFunds | Code::BalanceLimit => {
                StatusCode::FORBIDDEN
            }
            Code::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
            Code::IdempotencyKeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Code::DatabaseUnavailable
            | Code::ApproverUnavailable
            | Code::TooManyConflicts
            | Code::OperationsLogUnavailable
            | Code::Overloaded
            | Code::NotReady
            | Code::OutcomeUnknown
            | Code::InternalError => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Code::InvalidRequest => "The request is not valid",
            Code::Unauthenticated => "The request holds no token that is known",
            Code::InsufficientScope => "The token does not allow this",
            Code::NotFound => "There is no such path",
            Code::MethodNotAllowed => "The path does not have this method",
            Code::RequestTimeout => "The request took too long to arrive",
            Code::MisdirectedRequest => "The host is not served here",
            Code::PayloadTooLarge => "The body is too large",
            Code::UnsupportedMediaType => "The body is not JSON",
            Code::ApproverDenied => "The Approver denied the change",
            Code::InsufficientFunds => "A moment would be negative",
            Code::BalanceLimit => "A moment would exceed the range of a balance",
            Code::PreconditionFailed => "The user is at another version",
            Code::IdempotencyKeyReused => "The idempotency key belongs to another operation",
            Code::DatabaseUnavailable => "The database is not available",
            Code::ApproverUnavailable => "The Approver is not available",
            Code::TooManyConflicts => "Other writers were faster",
            Code::OperationsLogUnavailable => "The operations log cannot be written",
            Code::Overloaded => "The service is overloaded",
            Code::NotReady => "The service is not ready",
            Code::OutcomeUnknown => "It is not known whether the change was applied",
            Code::InternalError => "The service failed",
        }
    }
}

/// An error, as RFC 9457 describes it.
#[derive(Clone, Debug, Object)]
#[oai(rename = "Problem", skip_serializing_if_is_none)]
pub struct Problem {
    /// A URI that names the kind of problem; it ends in `code`.
    #[oai(rename = "type")]
    kind: String,
    /// The kind of problem in words; the same for every problem of one kind.
    title: String,
    /// The HTTP status.
    status: u16,
    /// What is wrong with this request, and what to do about it.
    detail: String,
    /// The kind of problem, for programs.
    code: Code,
    /// With `insufficient_funds` and `balance_limit`: the first moment that would leave the range.
    at: Option<Box<DateTime>>, // those that few problems have are in boxes, since a problem is the error of many a result
    /// With `insufficient_funds`: how much is missing at `at`; 1 to 9223372036854775808.
    shortfall: Option<Box<u64>>,
    /// With `insufficient_funds`: the largest withdrawal that would have been accepted at the change's timestamp.
    available: Option<Box<i64>>,
    /// With `precondition_failed`: the user's version, which is the `ETag` too.
    version: Option<Box<i64>>,
}

impl Problem {
    /// A problem of this kind; `detail` is a sentence that says what to do.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            kind: format!(
                "urn:balance:problem:{}",
                code.to_json().as_ref().and_then(|code| code.as_str()).unwrap_or("")
            ),
            title: code.title().to_owned(),
            status: code.status().as_u16(),
            detail: detail.into(),
            code,
            at: None,
            shortfall: None,
            available: None,
            version: None,
        }
    }

    /// A 400 whose detail names what is wrong and how it is right.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(Code::InvalidRequest, detail)
    }

    /// After how many seconds it is worth trying again, if it is.
    pub fn retry_after(&self) -> Option<&'static str> {
        (self.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(RETRY_AFTER_SECONDS)
    }

    /// The status it is answered with.
    pub fn status(&self) -> StatusCode {
        self.code.status()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let version = self.version.as_deref().copied();
        let mut response = Response::builder()
            .status(self.status())
            .content_type(PROBLEM_JSON)
            .body(self.to_json_string());
        if let Some(seconds) = self.retry_after() {
            let seconds = HeaderValue::from_static(seconds);
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        if let Some(version) = version {
            response.headers_mut().insert(header::ETAG, entity_tag(version));
        }
        response
    }
}

impl From<Unavailable> for Problem {
    fn from(unavailable: Unavailable) -> Self {
        let (code, detail) = match unavailable {
            Unavailable::Database => (
                Code::DatabaseUnavailable,
                "The database could not be reached or failed; nothing was changed. Try again after Retry-After.",
            ),
            Unavailable::Approver => (
                Code::ApproverUnavailable,
                "The Approver gave no verdict in time; nothing was changed. Try again after Retry-After.",
            ),
            Unavailable::TooManyConflicts => (
                Code::TooManyConflicts,
                "Other changes of this user came first until time ran out; nothing was changed. \
                 Try again after Retry-After.",
            ),
            Unavailable::OperationsLog => (
                Code::OperationsLogUnavailable,
                "The operations log cannot be written, and without it no operation is answered. \
                 Try again after Retry-After.",
            ),
            Unavailable::Overloaded => (
                Code::Overloaded,
                "Too many operations are under way; nothing was changed. Try again after Retry-After.",
            ),
            Unavailable::Internal => (
                Code::InternalError,
                "The service failed; nothing was changed. Try again after Retry-After, and tell its operators.",
            ),
        };
        Problem::new(code, detail)
    }
}

impl From<ChangeError> for Problem {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::ApproverDenied => Problem::new(
                Code::ApproverDenied,
                "The Approver denied this change; nothing was changed. A smaller change may be approved.",
            ),
            ChangeError::Refused(Refusal::InsufficientFunds {
                at,
                shortfall,
                available,
            }) => Problem {
                at: Some(Box::new(DateTime::from(at))),
                shortfall: Some(Box::new(shortfall)),
                available: Some(Box::new(available)),
                ..Problem::new(
                    Code::InsufficientFunds,
                    format!(
                        "With this change the balance at {at} would be negative by {shortfall}; nothing was changed. {} \
                         deposit at or before that moment first.",
                        match available {
                            0 => "Nothing can be withdrawn here;".to_owned(),
                            _ => format!("Withdraw at most {available}, or"),
                        }
                    ),
                )
            },
            ChangeError::Refused(Refusal::BalanceLimit { at }) => Problem {
                at: Some(Box::new(DateTime::from(at))),
                ..Problem::new(
                    Code::BalanceLimit,
                    format!(
                        "With this change the balance at {at} would exceed {}; nothing was changed. Deposit less.",
                        i64::MAX
                    ),
                )
            },
            ChangeError::IdempotencyKeyReused => Problem::new(
                Code::IdempotencyKeyReused,
                "This Idempotency-Key was accepted with another balanceChange, timestamp or context of this user; \
                 nothing was changed. Repeat the first request as it was, or use a new key.",
            ),
            ChangeError::PreconditionFailed { version } => Problem {
                version: Some(Box::new(version)),
                ..Problem::new(
                    Code::PreconditionFailed,
                    format!(
                        "The user is at version {version}, which If-Match does not name; nothing was changed. Read what \
                         you rest on again, and send the change with the ETag of that answer."
                    ),
                )
            },
            ChangeError::Unavailable(unavailable) => unavailable.into(),
            ChangeError::OutcomeUnknown => Problem::new(
                Code::OutcomeUnknown,
                "The change may have been applied, or may still be. Repeat it with the same Idempotency-Key to find out; \
                 without a key, look at the user's history first.",
            ),
        }
    }
}

/// Which problems an operation answers with, for the OpenAPI document.
pub trait Problems: Send + Sync + 'static {
    /// Status and when it comes.
    const STATUSES: &'static [(u16, &'static str)];
}

/// A problem of an operation `P`.
#[derive(Debug)]
pub struct ProblemOf<P> {
    problem: Problem,
    operation: PhantomData<fn() -> P>,
}

impl<P, T: Into<Problem>> From<T> for ProblemOf<P> {
    fn from(problem: T) -> Self {
        Self {
            problem: problem.into(),
            operation: PhantomData,
        }
    }
}

impl<P: Problems> From<ProblemOf<P>> for poem::Error {
    fn from(problem: ProblemOf<P>) -> Self {
        poem::Error::from_response(problem.problem.into_response())
    }
}

impl<P: Problems> ApiResponse for ProblemOf<P> {
    fn meta() -> MetaResponses {
        let response = |(status, description): &(u16, &'static str)| MetaResponse {
            description,
            status: Some(*status),
            status_range: None,
            content: vec![MetaMediaType {
                content_type: PROBLEM_JSON,
                schema: Problem::schema_ref(),
            }],
            headers: match *status {
                503 => vec![response_header(
                    header::RETRY_AFTER,
                    "Seconds to wait before trying again.",
                    u32::schema_ref(),
                )],
                412 => vec![etag_header()],
                _ => Vec::new(),
            },
        };
        MetaResponses {
            responses: P::STATUSES.iter().map(response).collect(),
        }
    }

    fn register(registry: &mut Registry) {
        Problem::register(registry);
    }
}

/// A header of a response, for the OpenAPI document.
pub fn response_header(name: HeaderName, description: &str, schema: MetaSchemaRef) -> MetaHeader {
    let words = name.as_str().split('-').map(|word| {
        let mut letters = word.chars();
        let first = letters.next().map(|letter| letter.to_ascii_uppercase());
        first.into_iter().chain(letters).collect::<String>()
    });
    MetaHeader {
        name: match name {
            header::ETAG => "ETag".to_owned(),
            _ => words.collect::<Vec<_>>().join("-"),
        },
        description: Some(description.to_owned()),
        required: false,
        deprecated: false,
        schema,
    }
}
