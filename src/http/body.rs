//! The body of a change: taken within bounds of size and time, and read field by field, so that a problem names the
//! field, what it may hold and an example.

use std::borrow::Cow;
use std::time::Duration;

use futures_util::StreamExt;
use poem::http::{HeaderMap, header};
use poem::{Body, Request, RequestBody};
use poem_openapi::registry::{MetaMediaType, MetaRequest, Registry};
use poem_openapi::types::Type;
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::memory::{Memory, Reserved, UNCOUNTED_BYTES};
use super::problem::{Code, Problem};
use super::types::ChangeBody;
use crate::domain::{Context, Timestamp, UserId};

/// The largest body, in bytes.
pub const MAX_BODY_BYTES: usize = 64 * 1024;
/// How often the text of a change is in memory until it is answered: its fields, and its statement or its line.
const COPIES: usize = 2;
/// By how much the buffer for a body grows.
const STEP_BYTES: usize = 4 * 1024;

/// Where nothing is said.
pub const DEFAULT_TIME: BodyTime = BodyTime(Duration::from_secs(10));

const EXAMPLE: &str =
    r#"{"userId":"alice","context":"salary for January","balanceChange":2500,"timestamp":"2026-01-31T12:00:00Z"}"#;

/// How long a body may take to arrive; an extension of the request.
#[derive(Clone, Copy, Debug)]
pub struct BodyTime(pub Duration);

/// The fields of a change, checked.
#[derive(Debug, PartialEq, Eq)]
pub struct ChangeFields {
    /// Whose balance.
    pub user_id: UserId,
    /// What for.
    pub context: Context,
    /// How much is added.
    pub balance_change: i64,
    /// When.
    pub timestamp: Timestamp,
}

/// A change that was read.
pub struct ReadChange {
    /// Its fields.
    pub fields: ChangeFields,
    /// The memory that a large one takes, to be kept until the change is answered.
    pub reserved: Option<Reserved>,
}

/// The body of a change, for a handler: the change or the problem with it.
pub struct ChangeRequestBody(pub Result<ReadChange, Problem>);

impl<'a> ApiExtractor<'a> for ChangeRequestBody {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        ChangeBody::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        Some(MetaRequest {
            description: Some("The change, at most 64 KiB of JSON."),
            content: vec![MetaMediaType {
                content_type: "application/json",
                schema: ChangeBody::schema_ref(),
            }],
            required: true,
        })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let time = request.extensions().get().copied().unwrap_or(DEFAULT_TIME);
        let memory = request
            .extensions()
            .get()
            .cloned()
            .unwrap_or_else(|| Memory::new(MAX_BODY_BYTES));
        Ok(Self(read(request.headers(), body.take()?, time, &memory).await))
    }
}

async fn read(
    headers: &HeaderMap,
    body: Body,
    BodyTime(time): BodyTime,
    memory: &Memory,
) -> Result<ReadChange, Problem> {
    check_media_type(headers)?;
    let (bytes, reserved) = timeout(time, take(headers, body, memory))
        .await
        .map_err(|_| too_slow(BodyTime(time)))??;
    let fields = parse(&bytes)?;
    Ok(ReadChange { fields, reserved })
}

/// The body did not arrive in time.
pub fn too_slow(BodyTime(time): BodyTime) -> Problem {
    let detail = format!("The body did not arrive within {time:?}; send it again.");
    Problem::new(Code::RequestTimeout, detail)
}

/// The body is over the limit.
pub fn too_large() -> Problem {
    let detail = format!("The body may have at most {MAX_BODY_BYTES} bytes; a context has at most 4096 characters.");
    Problem::new(Code::PayloadTooLarge, detail)
}

/// The body is announced as something else than JSON in UTF-8.
pub fn not_json() -> Problem {
    let detail = "Send the body as JSON in UTF-8, with the header Content-Type: application/json.";
    Problem::new(Code::UnsupportedMediaType, detail)
}

fn check_media_type(headers: &HeaderMap) -> Result<(), Problem> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let mut parts = content_type.unwrap_or_default().split(';').map(str::trim);
    let is_json = parts
        .next()
        .is_some_and(|essence| essence.eq_ignore_ascii_case("application/json"));
    let is_utf8 = parts.all(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        !name.eq_ignore_ascii_case("charset") || value.trim_matches('"').eq_ignore_ascii_case("utf-8")
    });
    if !is_json || !is_utf8 {
        return Err(not_json());
    }
    let plain = headers
        .get(header::CONTENT_ENCODING)
        .is_none_or(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"identity"));
    if !plain {
        let detail = "Send the body without Content-Encoding; it is not decompressed.";
        return Err(Problem::new(Code::UnsupportedMediaType, detail));
    }
    Ok(())
}

/// Takes the whole body, and memory for what is more than a connection's share.
async fn take(headers: &HeaderMap, body: Body, memory: &Memory) -> Result<(Vec<u8>, Option<Reserved>), Problem> {
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: usize| length > MAX_BODY_BYTES) {
        return Err(too_large());
    }
    let (mut bytes, mut reserved) = (Vec::new(), None);
    let mut chunks = std::pin::pin!(body.into_bytes_stream());
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| Problem::invalid("The body ended before it was complete; send it again."))?;
        let length = bytes.len() + chunk.len();
        if length > MAX_BODY_BYTES {
            return Err(too_large());
        }
        if length > bytes.capacity() {
            // Not as much as was announced: it may never come.
            let capacity = length.next_multiple_of(STEP_BYTES);
            if capacity > UNCOUNTED_BYTES {
                let bytes = COPIES * capacity;
                match &mut reserved {
                    None => reserved = Some(memory.try_reserve(bytes)?),
                    Some(reserved) => Reserved::grow(reserved, bytes, memory)?,
                }
            }
            bytes.reserve_exact(capacity - bytes.len());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok((bytes, reserved))
}

/// The fields as they stand in the body, each to be read by its own rule. A field that is given twice or that is not
/// known is an error, since either way something the client meant would be lost silently.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawFields<'a> {
    #[serde(borrow)]
    user_id: Option<&'a RawValue>,
    #[serde(borrow)]
    context: Option<&'a RawValue>,
    #[serde(borrow)]
    balance_change: Option<&'a RawValue>,
    #[serde(borrow)]
    timestamp: Option<&'a RawValue>,
}

/// Reads the body of a change.
///
/// # Errors
///
/// A 400 that names the field, its rule and an example.
pub fn parse(bytes: &[u8]) -> Result<ChangeFields, Problem> {
    let object =
        |reason: String| Problem::invalid(format!("The body must be a JSON object such as {EXAMPLE}; {reason}."));
    let text = std::str::from_utf8(bytes).map_err(|_| object("it is not UTF-8".to_owned()))?;
    let start = text.trim_start_matches([' ', '\t', '\n', '\r']);
    if start.is_empty() {
        return Err(object("it is empty".to_owned()));
    }
    if !start.starts_with('{') {
        return Err(object("it is not an object".to_owned()));
    }
    let raw: RawFields = serde_json::from_str(text).map_err(|error| object(error.to_string()))?;
    Ok(ChangeFields {
        user_id: field("userId", raw.user_id, r#""alice""#, "a string", |text| {
            UserId::new(string(text)?).map_err(|error| error.to_string())
        })?,
        context: field("context", raw.context, r#""salary for January""#, "a string", |text| {
            Context::new(string(text)?).map_err(|error| error.to_string())
        })?,
        balance_change: field("balanceChange", raw.balance_change, "2500", "a number", whole_number)?,
        timestamp: field(
            "timestamp",
            raw.timestamp,
            r#""2026-01-31T12:00:00Z""#,
            "a string",
            |text| Timestamp::parse(&string(text)?).map_err(|error| error.to_string()),
        )?,
    })
}

fn field<T>(
    name: &str,
    value: Option<&RawValue>,
    example: &str,
    kind: &str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, Problem> {
    let result = match value {
        Some(value) => parse(value.get()),
        None => Err(format!("is missing or null; it must be {kind}")),
    };
    result.map_err(|reason| Problem::invalid(format!("{name} {reason}, for example {example}.")))
}

fn string(json: &str) -> Result<Cow<'_, str>, String> {
    if !json.starts_with('"') {
        return Err("must be a string in double quotes".to_owned());
    }
    serde_json::from_str(json)
        .map(Cow::Owned)
        .map_err(|_| "must be a string of whole Unicode characters, without half of a surrogate pair".to_owned())
}

fn whole_number(json: &str) -> Result<i64, String> {
    json.parse().map_err(|_| {
        format!(
            "must be a whole number from {} to {}, written in digits only",
            i64::MIN,
            i64::MAX
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use poem_openapi::types::ToJSON;
    use proptest::prelude::*;

    fn detail(body: &str) -> String {
        let problem = parse(body.as_bytes()).expect_err(body).to_json().unwrap();
        problem["detail"].as_str().unwrap().to_owned()
    }

    fn with(field: &str, value: &str) -> String {
        let mut fields = [
            ("userId", r#""alice""#),
            ("context", r#""""#),
            ("balanceChange", "1"),
            ("timestamp", r#""2026-01-31T12:00:00Z""#),
        ];
        for (name, held) in &mut fields {
            if *name == field {
                *held = value;
            }
        }
        let fields = fields.map(|(name, value)| format!("{name:?}:{value}"));
        format!("{{{}}}", fields.join(","))
    }

    #[test]
    fn what_is_no_object_is_told_how_one_looks() {
        for body in [
            "",
            " ",
            "[]",
            "null",
            "1",
            "\"\"",
            "{",
            "{}x",
            "{\"userId\":1,\"userId\":1}",
        ] {
            assert!(
                detail(body).starts_with("The body must be a JSON object such as {"),
                "{body}"
            );
        }
        assert!(detail(r#"{"userId":"a","user":"b"}"#).contains("unknown field `user`"));
        assert!(parse(b"\xff{}").is_err());
    }

    #[test]
    fn a_wrong_field_is_named_with_its_rule_and_an_example() {
        for (field, values) in [
            ("userId", vec!["1", "null", "[]", r#""""#, r#""\u0000""#, r#""\ud800""#]),
            ("context", vec!["1", "null", "{}", r#""\u0000""#]),
            (
                "balanceChange",
                vec![
                    "1.5",
                    "1.0",
                    "1e3",
                    "\"1\"",
                    "null",
                    "true",
                    "[]",
                    "9223372036854775808",
                    "-9223372036854775809",
                ],
            ),
            (
                "timestamp",
                vec![
                    "0",
                    "null",
                    r#""""#,
                    r#""2026-01-31T24:00:00Z""#,
                    r#""2026-01-31T12:00:00 02:00""#,
                ],
            ),
        ] {
            for value in values {
                let detail = detail(&with(field, value));
                assert!(
                    detail.starts_with(field) && detail.contains(", for example "),
                    "{detail}"
                );
            }
        }
        assert!(detail("{}").starts_with("userId is missing"));
    }

    #[test]
    fn the_whole_signed_64_bit_range_is_read() {
        for value in ["9223372036854775807", "-9223372036854775808", "0", "-0"] {
            let read = parse(with("balanceChange", value).as_bytes()).unwrap().balance_change;
            assert_eq!(read, value.parse::<i64>().unwrap());
        }
    }

    proptest! {
        #[test]
        fn no_body_panics(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&body);
        }

        #[test]
        fn every_context_comes_through(context in "[^\0]{0,50}") {
            let body = with("context", &serde_json::to_string(&context).unwrap());
            let fields = parse(body.as_bytes()).unwrap();
            prop_assert_eq!(fields.context.as_str(), context);
        }
    }
}
