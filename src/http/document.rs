//! The OpenAPI document: what poem-openapi says of the handlers, with what it cannot say added.

use std::sync::Arc;

use poem_openapi::types::ToJSON;
use poem_openapi::{LicenseObject, OpenApiService};
use serde_json::{Map, Value, json};

use super::api::{Api, Stopping};
use super::authorization::{self, Refused};
use super::body;
use super::problem::{Code, Problem};
use crate::domain::{Refusal, Timestamp};
use crate::metrics::Metrics;
use crate::service::{ChangeError, Service, Unavailable, UseCases};
use crate::tokens::Scope;

const DESCRIPTION: &str = "Keeps the balances of users. A balance is a sum over time: each change has a timestamp, and \
`balance(t)` counts all changes stamped at or before `t`. A change is accepted only if no moment from its timestamp on \
becomes negative, in whatever order changes arrive.\n\nEvery error is `application/problem+json` (RFC 9457) with a \
`code` from a closed list.";

/// The beginning of an answer to a scrape.
const METRICS: &str = "# HELP balance_commit_conflicts_total Commits that lost the race for a user's version and were \
tried again.\n# TYPE balance_commit_conflicts_total counter\nbalance_commit_conflicts_total 0\n";

/// The service that poem-openapi makes of the handlers.
pub fn open_api_service<S: UseCases>(api: Api<S>) -> OpenApiService<Api<S>, ()> {
    OpenApiService::new(api, "balance", env!("CARGO_PKG_VERSION"))
        .description(DESCRIPTION)
        .license(LicenseObject::new("MIT OR Apache-2.0").url("https://spdx.org/licenses/MIT.html"))
}

/// The document as it is served, printed and committed under `openapi/`.
pub fn document() -> String {
    complete(&undressed().spec())
}

fn undressed() -> OpenApiService<Api<Service>, ()> {
    open_api_service(Api {
        service: None,
        metrics: Arc::new(Metrics::new()),
        stopping: Stopping::default(),
    })
}

/// Swagger UI on one page, with the document and all of its assets in it.
pub fn swagger_ui(document: &str) -> String {
    let service = undressed();
    // A page made for the document as poem-openapi writes it; inside a script no text may look like its end.
    let document = document.replace("</", "<\\/");
    service.swagger_ui_html().replace(&service.spec(), &document)
}

fn complete(spec: &str) -> String {
    let mut document: Value = serde_json::from_str(spec).expect("poem-openapi writes JSON");
    document["openapi"] = json!("3.0.3");
    document["servers"] = json!([{ "url": "/" }]);
    let schemas = &mut document["components"]["schemas"];
    schemas["ChangeRequest"]["additionalProperties"] = json!(false);
    for (schema, example) in examples() {
        schemas[schema]["example"] = example;
    }
    for (path, method, status, problems) in problem_examples() {
        let content = &mut document["paths"][path][method]["responses"][status]["content"]["application/problem+json"];
        let named = problems.into_iter().map(|problem| {
            let problem = problem.to_json().unwrap_or_default();
            let code = problem["code"].as_str().unwrap_or_default().to_owned();
            (code, json!({ "value": problem }))
        });
        content["examples"] = Value::Object(named.collect::<Map<_, _>>());
    }
    for (path, status) in [("/livez", "alive"), ("/readyz", "ready")] {
        let answer = &mut document["paths"][path]["get"]["responses"]["200"];
        answer["content"]["application/json"]["example"] = json!({ "status": status });
    }
    let metrics = &mut document["paths"]["/metrics"]["get"]["responses"]["200"];
    metrics["description"] = json!("The counters.");
    metrics["content"]["text/plain; charset=utf-8"]["example"] = json!(METRICS);
    authorization::describe(&mut document);
    let mut text = serde_json::to_string_pretty(&document).expect("a JSON value can be written");
    text.push('\n');
    text
}

fn examples() -> [(&'static str, Value); 4] {
    let operation = json!({
        "operationId": "019c13f2-5a80-7c3a-9d52-6f1d3c1e8a10",
        "userId": "alice",
        "timestamp": "2026-01-31T12:00:00Z",
        "balanceChange": 2500,
        "balance": 2500,
    });
    let balance = json!({ "userId": "alice", "timestamp": "2026-01-31T12:00:00Z", "balance": 2500 });
    let history = json!({
        "userId": "alice",
        "operations": [{
            "operationId": "019c13f2-5a80-7c3a-9d52-6f1d3c1e8a10",
            "timestamp": "2026-01-31T12:00:00Z",
            "seq": 1,
            "balanceChange": 2500,
            "balance": 2500,
            "context": "salary for January",
            "approved": false,
            "recordedAt": "2026-01-31T12:00:00.018342Z",
        }],
    });
    let problem = Problem::from(insufficient_funds()).to_json().unwrap_or_default();
    [
        ("Change", operation),
        ("Balance", balance),
        ("History", history),
        ("Problem", problem),
    ]
}

fn insufficient_funds() -> ChangeError {
    let at = Timestamp::parse("2026-01-31T12:00:00Z").expect("a date-time of RFC 3339");
    ChangeError::Refused(Refusal::InsufficientFunds { at, shortfall: 50 })
}

/// For each answer of each operation one example a code, made by the code that makes the answers.
fn problem_examples() -> Vec<(&'static str, &'static str, &'static str, Vec<Problem>)> {
    let invalid = |detail: &str| vec![Problem::invalid(detail)];
    let reading = || {
        vec![
            Problem::from(Unavailable::Database),
            Problem::from(Unavailable::OperationsLog),
            Problem::from(Unavailable::Overloaded),
        ]
    };
    let timestamp = "timestamp must be an RFC 3339 date-time, for example 2026-01-31T12:00:00Z.";
    let at = Timestamp::parse("2026-01-31T12:00:00Z").expect("a date-time of RFC 3339");
    let mut examples = vec![
        (
            "/changeBalance",
            "post",
            "400",
            invalid("balanceChange must be a whole number, for example 2500."),
        ),
        (
            "/changeBalance",
            "post",
            "403",
            vec![
                Problem::from(insufficient_funds()),
                Refused::Scope(Scope::Write).problem(),
                Problem::from(ChangeError::ApproverDenied),
                Problem::from(ChangeError::Refused(Refusal::BalanceLimit { at })),
            ],
        ),
        (
            "/changeBalance",
            "post",
            "408",
            vec![body::too_slow(body::DEFAULT_TIME)],
        ),
        ("/changeBalance", "post", "413", vec![body::too_large()]),
        ("/changeBalance", "post", "415", vec![body::not_json()]),
        (
            "/changeBalance",
            "post",
            "422",
            vec![Problem::from(ChangeError::IdempotencyKeyReused)],
        ),
        (
            "/changeBalance",
            "post",
            "503",
            [Unavailable::Approver, Unavailable::TooManyConflicts]
                .map(Problem::from)
                .into_iter()
                .chain(reading())
                .chain([Problem::from(ChangeError::OutcomeUnknown)])
                .collect(),
        ),
        ("/{userId}/balance", "get", "400", invalid(timestamp)),
        ("/{userId}/balance", "get", "503", reading()),
        (
            "/{userId}/history",
            "get",
            "400",
            invalid("limit must be a whole number from 1 to 1000, for example 100."),
        ),
        ("/{userId}/history", "get", "503", reading()),
        (
            "/readyz",
            "get",
            "503",
            vec![Problem::new(
                Code::NotReady,
                "The service is stopping; use another replica.",
            )],
        ),
    ];
    for path in ["/{userId}/balance", "/{userId}/history"] {
        examples.push((path, "get", "403", vec![Refused::Scope(Scope::Read).problem()]));
    }
    for (path, method) in [
        ("/changeBalance", "post"),
        ("/{userId}/balance", "get"),
        ("/{userId}/history", "get"),
    ] {
        examples.push((path, method, "401", vec![Refused::NoToken.problem()]));
    }
    examples
}
