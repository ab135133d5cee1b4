//! What goes over the wire, with the schemas that the OpenAPI document shows.

use std::borrow::Cow;

use poem_openapi::registry::{MetaSchema, MetaSchemaRef, Registry};
use poem_openapi::types::{ParseError, ParseFromJSON, ParseFromParameter, ParseResult, ToJSON, Type};
use poem_openapi::{Enum, Object};
use serde_json::{Value, json};

use crate::domain::{Context, IdempotencyKey, Timestamp, UserId};
use crate::service::{self, DryRun};
use crate::store::HistoryEntry;

/// A text whose schema says more than that it is one. Parameters of such a type are taken as they come; the handler
/// checks them with the domain's own rules, whose messages say how to mend them.
macro_rules! text {
    ($(#[$meta:meta])* $name:ident, $schema:expr) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name(pub String);

        impl Type for $name {
            const IS_REQUIRED: bool = true;
            type RawValueType = Self;
            type RawElementValueType = Self;

            fn name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn schema_ref() -> MetaSchemaRef {
                MetaSchemaRef::Inline(Box::new($schema))
            }

            fn as_raw_value(&self) -> Option<&Self> {
                Some(self)
            }

            fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
                Box::new(self.as_raw_value().into_iter())
            }
        }

        impl ToJSON for $name {
            fn to_json(&self) -> Option<Value> {
                Some(Value::String(self.0.clone()))
            }
        }

        impl ParseFromJSON for $name {
            fn parse_from_json(value: Option<Value>) -> ParseResult<Self> {
                String::parse_from_json(value).map(Self).map_err(ParseError::propagate)
            }
        }

        impl ParseFromParameter for $name {
            fn parse_from_parameter(value: &str) -> ParseResult<Self> {
                Ok(Self(value.to_owned()))
            }
        }
    };
}

text!(
    /// A user's id.
    UserIdText,
    MetaSchema {
        min_length: Some(1),
        max_length: Some(UserId::MAX_CHARACTERS),
        // Without control characters.
        pattern: Some(r"^[^\u0000-\u001F\u007F-\u009F]+$".to_owned()),
        example: Some("alice".into()),
        ..MetaSchema::new("string")
    }
);

text!(
    /// What a change is for.
    ContextText,
    MetaSchema {
        max_length: Some(Context::MAX_CHARACTERS),
        pattern: Some(r"^[^\u0000]*$".to_owned()),
        example: Some("salary for January".into()),
        ..MetaSchema::new("string")
    }
);

text!(
    /// A moment.
    DateTime,
    MetaSchema {
        example: Some("2026-01-31T12:00:00Z".into()),
        ..MetaSchema::new_with_format("string", "date-time")
    }
);

text!(
    /// An operation's name.
    OperationIdText,
    MetaSchema {
        example: Some("019c13f2-5a80-7c3a-9d52-6f1d3c1e8a10".into()),
        ..MetaSchema::new_with_format("string", "uuid")
    }
);

text!(
    /// The value of the header `Idempotency-Key`.
    IdempotencyKeyText,
    MetaSchema {
        min_length: Some(1),
        // In quotes each character may be escaped.
        max_length: Some(2 * IdempotencyKey::MAX_CHARACTERS + 2),
        pattern: Some(r#"^([!#-~][!-~]{0,254}|"([!#-\[\]-~]|\\["\\]){1,255}")$"#.to_owned()),
        example: Some("salary-2026-01-alice".into()),
        ..MetaSchema::new("string")
    }
);

text!(
    /// Where a page of the history ends.
    CursorText,
    MetaSchema {
        // What [`super::parameters::Cursor`] writes: 42 bytes in base64url, the first of them 2, the second 0 or 1.
        pattern: Some("^Ag[A-H][A-Za-z0-9_-]{53}$".to_owned()),
        ..MetaSchema::new("string")
    }
);

text!(
    /// How many operations a page may have.
    LimitText,
    MetaSchema {
        minimum: Some(1.0),
        maximum: Some(1_000.0),
        default: Some(100.into()),
        ..MetaSchema::new_with_format("integer", "int32")
    }
);

text!(
    /// Which end of the timeline comes first.
    OrderText,
    MetaSchema {
        enum_items: vec!["asc".into(), "desc".into()],
        // No default: generated clients would send it, and it would count instead of what a cursor holds.
        example: Some("desc".into()),
        ..MetaSchema::new("string")
    }
);

text!(
    /// The user's version as a strong entity tag.
    EntityTagText,
    MetaSchema {
        pattern: Some(r#"^"(0|[1-9][0-9]{0,18})"$"#.to_owned()),
        example: Some("\"3\"".into()),
        ..MetaSchema::new("string")
    }
);

text!(
    /// Entity tags in a condition.
    EntityTagsText,
    MetaSchema {
        // Tags with commas between them; see RFC 9110, section 13.1. Versions may be without their quotes.
        pattern: Some(r#"^(\*|(W/)?("[!#-~]*"|[0-9]+)( *, *(W/)?("[!#-~]*"|[0-9]+))*)$"#.to_owned()),
        // Without an example, which Swagger UI would send.
        ..MetaSchema::new("string")
    }
);

text!(
    /// A moment of recording, without an example, which Swagger UI would send.
    KnownAtText,
    MetaSchema::new_with_format("string", "date-time")
);

text!(
    /// Whether a change is only tried.
    DryRunText,
    MetaSchema {
        default: Some(false.into()),
        ..MetaSchema::new("boolean")
    }
);

impl From<Timestamp> for DateTime {
    fn from(timestamp: Timestamp) -> Self {
        Self(timestamp.to_string())
    }
}

/// The body of a change, for the OpenAPI document; [`super::body`] reads it.
pub struct ChangeBody;

impl Type for ChangeBody {
    const IS_REQUIRED: bool = true;
    type RawValueType = Self;
    type RawElementValueType = Self;

    fn name() -> Cow<'static, str> {
        "ChangeRequest".into()
    }

    fn schema_ref() -> MetaSchemaRef {
        MetaSchemaRef::Reference(Self::name().into_owned())
    }

    fn register(registry: &mut Registry) {
        let described = |schema: MetaSchemaRef, description| {
            schema.merge(MetaSchema {
                description: Some(description),
                ..MetaSchema::ANY
            })
        };
        registry.create_schema::<Self, _>(Self::name().into_owned(), |_| MetaSchema {
            description: Some("A change of a user's balance. All four fields are required, and no others are allowed."),
            required: vec!["userId", "context", "balanceChange", "timestamp"],
            properties: vec![
                (
                    "userId",
                    described(
                        UserIdText::schema_ref(),
                        "Whose balance: 1 to 256 characters of Unicode without control characters.",
                    ),
                ),
                (
                    "context",
                    described(
                        ContextText::schema_ref(),
                        "What the change is for: 0 to 4096 characters without U+0000.",
                    ),
                ),
                (
                    "balanceChange",
                    described(
                        i64::schema_ref(),
                        "How much is added to the balance: a whole number of the signed 64-bit range, in digits.",
                    ),
                ),
                (
                    "timestamp",
                    described(
                        DateTime::schema_ref(),
                        "The moment the change belongs to: RFC 3339 with an offset or `Z`; finer digits than \
                         microseconds are cut off.",
                    ),
                ),
            ],
            example: Some(json!({
                "userId": "alice",
                "context": "salary for January",
                "balanceChange": 2500,
                "timestamp": "2026-01-31T12:00:00Z",
            })),
            ..MetaSchema::new("object")
        });
    }

    fn as_raw_value(&self) -> Option<&Self> {
        Some(self)
    }

    fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
        Box::new(self.as_raw_value().into_iter())
    }
}

/// Whether the Approver has a say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[oai(rename_all = "snake_case")]
pub enum Approval {
    /// It would be asked, and was not.
    NotAsked,
}

/// An accepted change, or with `dryRun` one that would be accepted.
#[derive(Clone, Debug, Object)]
#[oai(rename_all = "camelCase", skip_serializing_if_is_none)]
pub struct Change {
    /// The operation's name, in the history and in the operations log; with `dryRun` in the operations log only.
    operation_id: OperationIdText,
    /// Whose balance was changed.
    user_id: UserIdText,
    /// The moment the change belongs to, in UTC.
    timestamp: DateTime,
    /// How much was added.
    balance_change: i64,
    /// The balance at `timestamp` when the change was accepted, with it.
    balance: i64,
    /// `true` if the change was only tried: nothing is stored. Absent otherwise.
    dry_run: Option<bool>,
    /// With `dryRun`, for a change larger than the approval threshold: `not_asked`, since only the Approver itself can tell
    /// whether it would approve.
    approval: Option<Approval>,
}

impl From<service::Change> for Change {
    fn from(change: service::Change) -> Self {
        Self {
            operation_id: OperationIdText(change.operation_id.to_string()),
            user_id: UserIdText(change.user_id.to_string()),
            timestamp: change.timestamp.into(),
            balance_change: change.balance_change,
            balance: change.balance,
            dry_run: change.dry_run.map(|_| true),
            approval: match change.dry_run {
                Some(DryRun::NotApproved) => Some(Approval::NotAsked),
                Some(DryRun::Judged) | None => None,
            },
        }
    }
}

/// A user's balance as of a moment.
#[derive(Clone, Debug, Object)]
#[oai(rename_all = "camelCase", skip_serializing_if_is_none)]
pub struct Balance {
    /// Whose balance it is.
    user_id: UserIdText,
    /// As of when, in UTC.
    timestamp: DateTime,
    /// The sum of all changes stamped at or before `timestamp`; with `knownAt`, of those that were recorded by then.
    balance: i64,
    /// As it was known when, in UTC: the `knownAt` that was asked for. Absent without one.
    known_at: Option<DateTime>,
}

impl From<service::FigureAnswer> for Balance {
    fn from(answer: service::FigureAnswer) -> Self {
        Self {
            user_id: UserIdText(answer.user_id.to_string()),
            timestamp: answer.timestamp.into(),
            balance: answer.amount,
            known_at: answer.known_at.map(DateTime::from),
        }
    }
}

/// How much of a user's balance can be withdrawn at a moment.
#[derive(Clone, Debug, Object)]
#[oai(rename_all = "camelCase")]
pub struct Available {
    /// Whose balance it is.
    user_id: UserIdText,
    /// When it would be withdrawn, in UTC.
    timestamp: DateTime,
    /// The largest withdrawal that would be accepted at `timestamp`: the lowest balance at that moment and all later ones.
    available: i64,
}

impl From<service::FigureAnswer> for Available {
    fn from(answer: service::FigureAnswer) -> Self {
        Self {
            user_id: UserIdText(answer.user_id.to_string()),
            timestamp: answer.timestamp.into(),
            available: answer.amount,
        }
    }
}

/// An operation of a user's history.
#[derive(Clone, Debug, Object)]
#[oai(rename_all = "camelCase")]
pub struct HistoryOperation {
    /// The operation's name.
    operation_id: OperationIdText,
    /// The moment it belongs to, in UTC.
    timestamp: DateTime,
    /// Its number in the order in which the user's operations were accepted, from 1.
    seq: i64,
    /// How much it added.
    balance_change: i64,
    /// The balance after it, in the order of the timeline (`timestamp`, then `seq`).
    balance: i64,
    /// What it was for.
    context: ContextText,
    /// Whether the Approver was asked, and approved.
    approved: bool,
    /// When it was stored, in UTC.
    recorded_at: DateTime,
}

impl From<HistoryEntry> for HistoryOperation {
    fn from(entry: HistoryEntry) -> Self {
        Self {
            operation_id: OperationIdText(entry.operation_id.to_string()),
            timestamp: entry.place.timestamp.into(),
            seq: entry.place.seq,
            balance_change: entry.balance_change,
            balance: entry.balance,
            context: ContextText(entry.context),
            approved: entry.approved,
            recorded_at: entry.recorded_at.into(),
        }
    }
}

/// A page of a user's history.
#[derive(Clone, Debug, Object)]
#[oai(rename_all = "camelCase", skip_serializing_if_is_none)]
pub struct History {
    /// Whose history it is.
    pub user_id: UserIdText,
    /// The operations, in the order asked for.
    pub operations: Vec<HistoryOperation>,
    /// As it was known when, in UTC: the `knownAt` that was asked for. Absent without one.
    pub known_at: Option<DateTime>,
    /// Give this as `cursor` for the next page; absent on the last one.
    pub next_cursor: Option<CursorText>,
}

/// What a probe says.
#[derive(Clone, Debug, Object)]
pub struct Status {
    /// `alive` or `ready`.
    pub status: String,
}
