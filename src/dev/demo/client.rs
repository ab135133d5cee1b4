//! Requests and answers, as any client of the service sees them.

use std::time::{Duration, Instant};

use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// How long an answer may take; the service itself gives up before.
const ANSWER_BOUND: Duration = Duration::from_secs(10);

/// How long the service is left alone that says nothing of it, or that is not there.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A change of a balance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub user: String,
    pub context: &'static str,
    pub balance_change: i64,
    pub at: OffsetDateTime,
    pub idempotency_key: Option<String>,
}

/// A request to the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Change(Change),
    /// The balance as of a moment, or as of now.
    Balance {
        user: String,
        at: Option<OffsetDateTime>,
    },
    /// The latest operations.
    History {
        user: String,
        limit: u16,
    },
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// 200.
    Accepted,
    /// 4xx.
    Refused,
    /// 5xx, or no answer: try again after this time.
    Unavailable(Duration),
}

/// An answer, or that there is none.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub fate: Fate,
    pub status: Option<StatusCode>,
    /// The body; null if it is no JSON.
    pub body: Value,
    pub took: Duration,
}

/// A client of one service.
#[derive(Clone, Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    url: String,
}

impl Client {
    pub(super) fn new(url: String) -> reqwest::Result<Self> {
        // reqwest wants a provider of cryptography even where no connection uses TLS; it may be there already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .user_agent(concat!("balance-demo/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .no_proxy()
            // The service is a part of this process, whoever signed its certificate.
            .tls_danger_accept_invalid_certs(true)
            .timeout(ANSWER_BOUND)
            .build()?;
        Ok(Self { http, url })
    }

    /// Sends each when the one before it is answered.
    pub(super) async fn send_in_turn(&self, requests: Vec<Request>) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(requests.len());
        for request in &requests {
            answers.push(self.send(request).await);
        }
        answers
    }

    pub(super) async fn send(&self, request: &Request) -> Answer {
        let began = Instant::now();
        let received = match self.build(request).send().await {
            Ok(response) => Self::read(response).await,
            Err(error) => Err(error),
        };
        let took = began.elapsed();
        match received {
            Ok((status, fate, body)) => Answer {
                fate,
                status: Some(status),
                body,
                took,
            },
            Err(_) => Answer {
                fate: Fate::Unavailable(PAUSE),
                status: None,
                body: Value::Null,
                took,
            },
        }
    }

    fn build(&self, request: &Request) -> RequestBuilder {
        let url = &self.url;
        match request {
            Request::Change(change) => {
                let body = json!({
                    "userId": change.user,
                    "context": change.context,
                    "balanceChange": change.balance_change,
                    "timestamp": rfc3339(change.at),
                });
                let post = self.http.post(format!("{url}/changeBalance"));
                let post = post.header(CONTENT_TYPE, "application/json").body(body.to_string());
                match &change.idempotency_key {
                    Some(key) => post.header("Idempotency-Key", key),
                    None => post,
                }
            }
            Request::Balance { user, at } => {
                let query = at.map(|at| format!("?timestamp={}", rfc3339(at))).unwrap_or_default();
                self.http.get(format!("{url}/{user}/balance{query}"))
            }
            Request::History { user, limit } => self.http.get(format!("{url}/{user}/history?limit={limit}")),
        }
    }

    async fn read(response: Response) -> reqwest::Result<(StatusCode, Fate, Value)> {
        let status = response.status();
        let seconds = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        let pause = seconds.map_or(PAUSE, Duration::from_secs).min(LONGEST_PAUSE);
        // Read to its end, so that the connection can be used again.
        let body = response.bytes().await?;
        let fate = match status {
            status if status.is_success() => Fate::Accepted,
            status if status.is_client_error() => Fate::Refused,
            _ => Fate::Unavailable(pause),
        };
        Ok((status, fate, serde_json::from_slice(&body).unwrap_or(Value::Null)))
    }
}

/// A moment in UTC, ending in `Z`, which a query needs not encode.
fn rfc3339(moment: OffsetDateTime) -> String {
    moment
        .to_offset(time::UtcOffset::UTC)
        .format(&Rfc3339)
        .expect("the years of the demo have four digits")
}
