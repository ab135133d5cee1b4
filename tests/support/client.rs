//! A client of the service that keeps status, headers and body of each answer.

use std::sync::OnceLock;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::task::yield_now;
use tokio::time::timeout;

use super::certificates::{Authority, Everywhere};

/// An answer, with its body parsed; the media type must agree with the status.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Answer {
    /// The problem's code.
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    /// The problem's detail.
    pub fn detail(&self) -> &str {
        self.body["detail"].as_str().unwrap_or_default()
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        self
    }

    /// Expects a problem with this status and code.
    #[track_caller]
    pub fn expect_problem(self, status: u16, code: &str) -> Self {
        let answer = self.expect(status);
        assert_eq!(answer.code(), code, "{}", answer.body);
        answer
    }
}

/// A client of one replica.
#[derive(Clone)]
pub struct ServiceClient {
    http: Client,
    url: String,
}

/// The body of a change.
pub fn change(user_id: &str, balance_change: i64, timestamp: &str) -> Value {
    json!({ "userId": user_id, "context": "test", "balanceChange": balance_change, "timestamp": timestamp })
}

/// A client of HTTP that knows no service yet.
pub fn http_client() -> Client {
    client_with(HeaderMap::new())
}

/// A client that sends this token with every request.
pub fn http_client_with_token(token: &str) -> Client {
    let mut authorization: HeaderValue = format!("Bearer {token}").parse().unwrap();
    authorization.set_sensitive(true);
    client_with(HeaderMap::from_iter([(AUTHORIZATION, authorization)]))
}

fn client_with(headers: HeaderMap) -> Client {
    // reqwest wants a provider of cryptography even where no connection uses TLS; it may be there already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder().no_proxy().default_headers(headers);
    let client = client.timeout(Duration::from_secs(30));
    let client = match Everywhere::asked() {
        Some(tls) => client.tls_backend_preconfigured(tls.authority.client()),
        None => client,
    };
    client.build().unwrap()
}

impl ServiceClient {
    pub fn new(url: &str) -> Self {
        Self {
            http: http_client(),
            url: url.to_owned(),
        }
    }

    /// A client that sends this token with every request.
    pub fn with_token(url: &str, token: &str) -> Self {
        Self {
            http: http_client_with_token(token),
            url: url.to_owned(),
        }
    }

    /// A client that trusts this authority alone.
    pub fn trusting(authority: &Authority, url: &str) -> Self {
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(30));
        let client = client.tls_backend_preconfigured(authority.client());
        Self {
            http: client.build().unwrap(),
            url: url.to_owned(),
        }
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.http.get(format!("{}{path}", self.url))
    }

    pub fn post(&self, path: &str) -> RequestBuilder {
        self.http.post(format!("{}{path}", self.url))
    }

    pub fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let method = method.parse().unwrap();
        self.http.request(method, format!("{}{path}", self.url))
    }

    /// Posts these bytes as JSON.
    pub fn post_body(&self, body: impl Into<Vec<u8>>) -> RequestBuilder {
        let body: Vec<u8> = body.into();
        self.post("/changeBalance")
            .header("content-type", "application/json")
            .body(body)
    }

    pub async fn change(&self, body: &Value) -> Answer {
        answer(self.post_body(body.to_string())).await
    }

    pub async fn change_with_key(&self, body: &Value, key: &str) -> Answer {
        answer(self.post_body(body.to_string()).header("idempotency-key", key)).await
    }

    /// A number of `/metrics`, by the name it stands under.
    pub async fn metric(&self, name: &str) -> i64 {
        let text = self.get("/metrics").send().await.unwrap().text().await.unwrap();
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        let found = lines.find(|(found, _)| *found == name);
        let (_, number) = found.unwrap_or_else(|| panic!("no {name}: {text}"));
        number.parse().unwrap()
    }

    /// Waits until so many operations are under way.
    pub async fn until_under_way(&self, operations: i64) {
        let reached = timeout(Duration::from_secs(60), async {
            while self.metric("balance_operations_in_flight").await != operations {
                yield_now().await;
            }
        });
        reached.await.expect("the operations come to be under way");
    }

    /// The balance as of a moment, or as of now; `user_id` as it stands in the URL.
    pub async fn balance(&self, user_id: &str, timestamp: Option<&str>) -> Answer {
        let query = timestamp.map(|timestamp| format!("?timestamp={}", timestamp.replace('+', "%2B")));
        answer(self.get(&format!("/{user_id}/balance{}", query.unwrap_or_default()))).await
    }
}

/// The codes that problems may have, by the committed document.
fn known_codes() -> &'static [Value] {
    static CODES: OnceLock<Vec<Value>> = OnceLock::new();
    CODES.get_or_init(|| {
        let document = include_str!("../../openapi/openapi.json");
        let document: Value = serde_json::from_str(document).unwrap();
        let codes = &document["components"]["schemas"]["ProblemCode"]["enum"];
        codes.as_array().unwrap().clone()
    })
}

/// Sends a request that must be answered with JSON: of a problem where the status says so.
pub async fn answer(request: RequestBuilder) -> Answer {
    try_answer(request).await.expect("an answer")
}

/// Sends a request that may find nobody there.
pub async fn try_answer(request: RequestBuilder) -> Result<Answer, reqwest::Error> {
    let response = request.send().await?;
    let status = response.status();
    let headers = response.headers().clone();
    let bytes = response.bytes().await?;
    let media_type = headers
        .get("content-type")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let expected = if status.is_success() {
        "application/json"
    } else {
        "application/problem+json"
    };
    assert_eq!(media_type, expected, "{status} {}", String::from_utf8_lossy(&bytes));
    let body: Value = serde_json::from_slice(&bytes).unwrap();
    if !status.is_success() {
        assert_eq!(body["status"], status.as_u16(), "{body}");
        for member in ["type", "title", "detail", "code"] {
            assert!(
                body[member].as_str().is_some_and(|text| !text.is_empty()),
                "{member}: {body}"
            );
        }
        assert!(known_codes().contains(&body["code"]), "not in the document: {body}");
        assert_eq!(
            status == StatusCode::SERVICE_UNAVAILABLE,
            headers.contains_key("retry-after"),
            "{body}"
        );
    }
    Ok(Answer { status, headers, body })
}
