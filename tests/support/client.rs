//! A client of the service that keeps status, headers and body of each answer. Operations that are as the document wants
//! them go through the generated client, which must understand the answer; what is wrong on purpose is sent as it is.

use std::cell::RefCell;
use std::fmt::Debug;
use std::num::NonZeroU32;
use std::sync::OnceLock;
use std::time::Duration;

use chrono::{DateTime, Utc};
use percent_encoding::percent_decode_str;
use progenitor_client::{ClientHooks, ClientInfo, Error, OperationInfo, ResponseValue};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Client, Request, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};
use url::form_urlencoded;

use super::generated::{self, types};

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

    /// The client that progenitor makes of the document.
    pub fn generated(&self) -> generated::Client {
        generated::Client::new_with_client(&self.url, self.http.clone())
    }

    /// Sends a change, which must be one by the document.
    pub async fn change(&self, body: &Value) -> Answer {
        let client = self.generated();
        understood(client.change_balance().body(change_request(body)).send()).await
    }

    /// As [`change`](Self::change), with an `Idempotency-Key`.
    pub async fn change_with_key(&self, body: &Value, key: &str) -> Answer {
        let client = self.generated();
        let change = client.change_balance().body(change_request(body)).idempotency_key(key);
        understood(change.send()).await
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
        if decoded(user_id).contains('\\') {
            // progenitor leaves it as it is, and in a URL it is then taken for a slash.
            let query = timestamp.map(|timestamp| format!("?timestamp={}", timestamp.replace('+', "%2B")));
            return answer(self.get(&format!("/{user_id}/balance{}", query.unwrap_or_default()))).await;
        }
        let client = self.generated();
        let mut read = client.get_balance().user_id(decoded(user_id));
        if let Some(timestamp) = timestamp {
            read = read.timestamp(moment(timestamp));
        }
        understood(read.send()).await
    }

    /// Asks nothing but `/readyz` until it has this status; the last look at PostgreSQL serves for a moment.
    pub async fn until_ready_is(&self, status: u16) -> Answer {
        let asked = timeout(Duration::from_secs(60), async {
            loop {
                let ready = answer(self.get("/readyz")).await;
                if ready.status == status {
                    return ready;
                }
                yield_now().await;
            }
        });
        asked.await.expect("the replica's readiness changes")
    }

    /// Reads a balance until the answer is 200: a machine that is busy with a test's own load may be too late for some.
    pub async fn until_served(&self, user_id: &str) -> Answer {
        let served = timeout(Duration::from_secs(60), async {
            loop {
                let read = self.balance(user_id, None).await;
                if read.status == 200 {
                    return read;
                }
                sleep(Duration::from_millis(10)).await;
            }
        });
        served.await.expect("a read is served")
    }

    /// A page of the history; `user_id` and `query` as they stand in the URL.
    pub async fn history(&self, user_id: &str, query: &str) -> Answer {
        let client = self.generated();
        let mut read = client.get_history().user_id(decoded(user_id));
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            read = match name.as_ref() {
                "from" => read.from(moment(&value)),
                "to" => read.to(moment(&value)),
                "order" => read.order(value.as_ref()),
                "limit" => read.limit(value.parse::<NonZeroU32>().unwrap()),
                "cursor" => read.cursor(value.as_ref()),
                _ => panic!("{name} is no parameter of the document"),
            };
        }
        understood(read.send()).await
    }
}

fn change_request(body: &Value) -> types::ChangeRequest {
    serde_json::from_value(body.clone()).unwrap_or_else(|error| panic!("not a change by the document: {error}: {body}"))
}

fn decoded(user_id: &str) -> String {
    percent_decode_str(user_id).decode_utf8().unwrap().into_owned()
}

fn moment(text: &str) -> DateTime<Utc> {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

tokio::task_local! {
    /// The answer to the generated client's request, as it came over the wire.
    static ANSWER: RefCell<Option<Answer>>;
}

impl ClientHooks<()> for generated::Client {
    async fn exec(&self, request: Request, _: &OperationInfo) -> reqwest::Result<Response> {
        let response = self.client().execute(request).await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await?;
        let mut again = poem::http::Response::new(body.clone());
        *again.status_mut() = status;
        again.headers_mut().clone_from(&headers);
        let answer = checked(status, headers, &body);
        // Without it a test uses the generated client by itself.
        let _ = ANSWER.try_with(|wanted| wanted.replace(Some(answer)));
        Ok(again.into())
    }
}

/// Waits for the generated client, which must have understood the answer by the document.
async fn understood<T: Debug>(asked: impl Future<Output = Result<ResponseValue<T>, Error<types::Problem>>>) -> Answer {
    ANSWER
        .scope(RefCell::new(None), async {
            let read = asked.await;
            let answer = ANSWER.with(RefCell::take);
            let answer = answer.unwrap_or_else(|| panic!("no answer: {read:?}"));
            match read {
                Ok(_) => assert!(answer.status.is_success()),
                Err(Error::ErrorResponse(problem)) => assert_eq!(problem.code.to_string(), answer.code()),
                Err(error) => panic!("the document does not say so: {error:?} {answer:?}"),
            }
            answer
        })
        .await
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
    let (status, headers) = (response.status(), response.headers().clone());
    Ok(checked(status, headers, &response.bytes().await?))
}

/// The media type must agree with the status, and a problem must be one of the document's.
fn checked(status: StatusCode, headers: HeaderMap, bytes: &[u8]) -> Answer {
    let media_type = headers
        .get("content-type")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let expected = if status.is_success() {
        "application/json"
    } else {
        "application/problem+json"
    };
    assert_eq!(media_type, expected, "{status} {}", String::from_utf8_lossy(bytes));
    let body: Value = serde_json::from_slice(bytes).unwrap();
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
    Answer { status, headers, body }
}
