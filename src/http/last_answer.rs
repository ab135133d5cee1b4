//! Answers outside of the routes, after which the connection is closed.

use poem::http::HeaderValue;
use poem::http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use poem_openapi::types::ToJSON;

use super::headers;
use super::problem::{Code, PROBLEM_JSON, Problem};
use crate::telemetry::{RequestContext, X_REQUEST_ID};

/// The answer to a client for whom there is no connection left.
pub fn too_many_connections() -> Vec<u8> {
    last_answer(&Problem::new(
        Code::Overloaded,
        "Too many connections are open; nothing was changed. Try again after Retry-After, or use another replica.",
    ))
}

/// The answer to plain text where TLS is spoken.
pub fn not_encrypted() -> Vec<u8> {
    last_answer(&Problem::invalid(
        "Only https is spoken here, and the request came without TLS; send it to https:// at the same address.",
    ))
}

/// Its request id is always new: what the client has sent is not looked at.
fn last_answer(problem: &Problem) -> Vec<u8> {
    let (status, body) = (problem.status(), problem.to_json_string());
    let id = RequestContext::new_id();
    tracing::debug!(request_id = &*id, %status, "answered before there was a request");
    let mut headers = headers::protection();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    headers.insert(CONTENT_LENGTH, body.len().into());
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    if let Some(seconds) = problem.retry_after() {
        headers.insert(RETRY_AFTER, HeaderValue::from_static(seconds));
    }
    let mut answer = format!("HTTP/1.1 {status}\r\n{X_REQUEST_ID}: {id}\r\n").into_bytes();
    for (name, value) in &headers {
        answer.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    answer.extend([b"\r\n", body.as_bytes()].concat());
    answer
}
