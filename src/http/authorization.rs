//! Who asks: bearer tokens (RFC 6750), looked at before anything else of a request is, its body included.
//!
//! A request that is refused here is no operation and has no line in the operations log. It is counted, and operators are
//! told now and then, so that they see that someone tries.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use poem::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use poem::http::{HeaderMap, HeaderValue};
use poem::{IntoResponse, Request, Response};
use serde_json::{Value, json};

use super::problem::{Code, Problem};
use crate::domain::CallerName;
use crate::metrics::{Metrics, Unauthorized};
use crate::tokens::{Scope, Tokens};

/// The longest token that is looked at.
const MAX_TOKEN_BYTES: usize = 4_096;
/// How often operators are told of requests that were refused.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// The name of the scheme in the OpenAPI document.
const SCHEME: &str = "bearerToken";

/// Lets requests pass that hold a token which allows them; all of them, where there are no tokens.
pub struct Authorization {
    tokens: Option<Arc<Tokens>>,
    metrics: Arc<Metrics>,
    told: Mutex<Told>,
}

/// What operators were told of last, and what not yet.
#[derive(Default)]
struct Told {
    last: Option<Instant>,
    untold: u64,
}

/// Why a request may not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No token, or one of another scheme.
    NoToken,
    /// A token that is not in the list.
    UnknownToken,
    /// More than one header.
    Repeated,
    /// The token does not allow this.
    Scope(Scope),
}

impl Authorization {
    /// Asks for one of these tokens, or for none at all.
    pub fn new(tokens: Option<Arc<Tokens>>, metrics: Arc<Metrics>) -> Self {
        Self {
            tokens,
            metrics,
            told: Mutex::default(),
        }
    }

    /// Who asks; `None` where everyone may.
    ///
    /// # Errors
    ///
    /// [`Refused`], which has been counted.
    pub fn check(&self, request: &Request, needed: Scope) -> Result<Option<CallerName>, Refused> {
        let Some(tokens) = &self.tokens else {
            return Ok(None);
        };
        let caller = caller(tokens, request.headers(), needed);
        if let Err(refused) = caller {
            self.metrics.access.unauthorized(refused.into());
            self.tell(request, refused);
        }
        caller.map(Some)
    }

    fn tell(&self, request: &Request, refused: Refused) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.untold += 1;
        if told.last.is_some_and(|last| last.elapsed() < TELL_EVERY) {
            return;
        }
        let (client, requests) = (request.remote_addr(), std::mem::take(&mut told.untold));
        told.last = Some(Instant::now());
        drop(told);
        tracing::warn!(requests, last_from = %client, last_because = ?refused, "requests without authorisation were refused");
    }
}

fn caller(tokens: &Tokens, headers: &HeaderMap, needed: Scope) -> Result<CallerName, Refused> {
    let mut given = headers.get_all(AUTHORIZATION).iter();
    let header = given.next().ok_or(Refused::NoToken)?;
    if given.next().is_some() {
        return Err(Refused::Repeated);
    }
    let token = bearer_token(header.as_bytes()).ok_or(Refused::NoToken)?;
    // None that is longer is one of the list, and it need not be hashed to find out.
    let is_of_a_length = (1..=MAX_TOKEN_BYTES).contains(&token.len());
    let grant = is_of_a_length.then(|| tokens.find(token)).flatten();
    let grant = grant.ok_or(Refused::UnknownToken)?;
    match grant.scopes.include(needed) {
        true => Ok(grant.caller),
        false => Err(Refused::Scope(needed)),
    }
}

/// What follows the scheme, if that is Bearer.
fn bearer_token(header: &[u8]) -> Option<&[u8]> {
    let end = header.iter().position(|byte| *byte == b' ').unwrap_or(header.len());
    let (scheme, token) = header.split_at(end);
    scheme.eq_ignore_ascii_case(b"Bearer").then(|| token.trim_ascii())
}

impl Refused {
    /// The answer.
    pub fn into_response(self) -> Response {
        let mut response = self.problem().into_response();
        if let Some(challenge) = self.challenge() {
            let challenge = HeaderValue::from_static(challenge);
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }

    fn challenge(self) -> Option<&'static str> {
        match self {
            Refused::NoToken => Some(r#"Bearer realm="balance""#),
            Refused::UnknownToken => Some(r#"Bearer realm="balance", error="invalid_token""#),
            Refused::Repeated => None,
            Refused::Scope(Scope::Read) => Some(r#"Bearer realm="balance", error="insufficient_scope", scope="read""#),
            Refused::Scope(Scope::Write) => {
                Some(r#"Bearer realm="balance", error="insufficient_scope", scope="write""#)
            }
        }
    }

    /// The body of the answer.
    pub fn problem(self) -> Problem {
        match self {
            Refused::NoToken => Problem::new(
                Code::Unauthenticated,
                "This needs a token; send the header Authorization: Bearer <token> with one that the operators of the \
                 service have given you.",
            ),
            Refused::UnknownToken => Problem::new(
                Code::Unauthenticated,
                "The token is not known, or not any more; ask the operators of the service for another one.",
            ),
            Refused::Repeated => Problem::invalid("Authorization must be given once; leave out the others."),
            Refused::Scope(needed) => Problem::new(
                Code::InsufficientScope,
                format!(
                    "The token does not have the scope {}; use one that has it, or ask the operators of the service.",
                    needed.name()
                ),
            ),
        }
    }
}

impl From<Refused> for Unauthorized {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NoToken => Unauthorized::NoToken,
            Refused::UnknownToken => Unauthorized::UnknownToken,
            Refused::Repeated => Unauthorized::RepeatedHeader,
            Refused::Scope(_) => Unauthorized::InsufficientScope,
        }
    }
}

/// Says in the OpenAPI document what needs a token where there are tokens, and what never does.
pub fn describe(document: &mut Value) {
    document["components"]["securitySchemes"] = json!({
        SCHEME: {
            "type": "http",
            "scheme": "bearer",
            "description": "Needed where the service has a list of tokens (`API_TOKENS_FILE`). The scope `read` allows \
                            reading balances and histories, `write` changing balances.",
        }
    });
    for path in ["/livez", "/readyz", "/metrics"] {
        document["paths"][path]["get"]["security"] = json!([]);
    }
    for (path, method) in [
        ("/changeBalance", "post"),
        ("/{userId}/balance", "get"),
        ("/{userId}/available", "get"),
        ("/{userId}/history", "get"),
    ] {
        // With no token at all where the service has no list.
        document["paths"][path][method]["security"] = json!([{ SCHEME: [] }, {}]);
        let responses = &mut document["paths"][path][method]["responses"];
        for status in ["401", "403"] {
            responses[status]["headers"]["WWW-Authenticate"] = json!({
                "description": "What kind of token is needed (RFC 6750).",
                "schema": { "type": "string", "example": Refused::NoToken.challenge() },
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_is_read_in_any_case_and_the_token_as_it_is() {
        for (header, token) in [
            ("Bearer abc", Some("abc")),
            ("bEARER  a.b=c~ ", Some("a.b=c~")),
            ("Bearer", Some("")),
            ("Bearer a b", Some("a b")),
            ("Basic abc", None),
            ("Bearerabc", None),
            ("abc", None),
            ("", None),
        ] {
            let found = bearer_token(header.as_bytes());
            assert_eq!(found, token.map(str::as_bytes), "{header:?}");
        }
    }
}
