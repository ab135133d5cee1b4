//! The OpenAPI document: what poem-openapi says of the handlers, with what it cannot say added.

use std::sync::Arc;

use poem_openapi::types::ToJSON;
use poem_openapi::{ContactObject, LicenseObject, OpenApiService};
use serde_json::{Map, Value, json};

use super::api::{Api, Stopping};
use super::authorization::{self, Refused};
use super::body;
use super::hosts;
use super::memory::Memory;
use super::problem::{Code, PROBLEM_JSON, Problem};
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
        .contact(ContactObject::new().name("The maintainers of balance"))
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
        memory: Memory::new(0),
    })
}

/// Swagger UI on one page, with the document and all of its assets in it.
pub fn swagger_ui(document: &str) -> String {
    let service = undressed();
    // A page made for the document as poem-openapi writes it; inside a script no text may look like its end.
    let document = document.replace("</", "<\\/");
    let page = service.swagger_ui_html().replace(&service.spec(), &document);
    // An empty icon: the browser would ask for /favicon.ico, which is not there.
    page.replacen("<head>", "<head>\n    <link rel=\"icon\" href=\"data:,\">", 1)
}

fn complete(spec: &str) -> String {
    let mut document: Value = serde_json::from_str(spec).expect("poem-openapi writes JSON");
    document["openapi"] = json!("3.0.3");
    document["servers"] = json!([{ "url": "/" }]);
    // Nobody is asked who they are; a rule of linters wants it said.
    document["security"] = json!([]);
    let schemas = &mut document["components"]["schemas"];
    schemas["ChangeRequest"]["additionalProperties"] = json!(false);
    // poem-openapi's bounds are floating-point numbers, which these are not.
    let change = &mut schemas["ChangeRequest"]["properties"]["balanceChange"];
    change["example"] = json!(2500);
    change["minimum"] = json!(i64::MIN);
    change["maximum"] = json!(i64::MAX);
    // Beside a reference nothing may stand, and generators make a type of their own of an `allOf`.
    schemas["Problem"]["properties"]["code"] = json!({ "$ref": "#/components/schemas/ProblemCode" });
    // Generators make a 32-bit number of an unsigned one; with the minimum, a signed one is unsigned in Rust.
    let shortfall = &mut schemas["Problem"]["properties"]["shortfall"];
    shortfall["format"] = json!("int64");
    shortfall["minimum"] = json!(1);
    schemas["Change"]["properties"]["approval"] = json!({ "$ref": "#/components/schemas/Approval" });
    schemas["ProblemCode"]["description"] = json!("What went wrong, for programs; a closed list.");
    for (schema, example) in examples() {
        schemas[schema]["example"] = example;
    }
    let forms = &mut document["paths"]["/{userId}/history"]["get"]["responses"]["200"]["content"];
    for (media_type, example) in statement_examples() {
        forms[media_type]["example"] = example.into();
    }
    add_links(&mut document);
    for (path, method, examples) in [
        ("/changeBalance", "post", changes()),
        ("/{userId}/balance", "get", balances()),
    ] {
        let answer = &mut document["paths"][path][method]["responses"]["200"]["content"];
        answer["application/json"]["examples"] = examples;
    }
    for path in ["/livez", "/readyz", "/metrics"] {
        document["paths"][path]["get"]["responses"]["400"] = unreadable();
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
    name_problems_json(&mut document);
    for (path, status) in [("/livez", "alive"), ("/readyz", "ready")] {
        let answer = &mut document["paths"][path]["get"]["responses"]["200"];
        answer["content"]["application/json"]["example"] = json!({ "status": status });
    }
    let metrics = &mut document["paths"]["/metrics"]["get"]["responses"]["200"];
    metrics["description"] = json!("The counters.");
    // Without parameters of the media type, which generators do not know.
    metrics["content"] = json!({ "text/plain": { "schema": { "type": "string" }, "example": METRICS } });
    authorization::describe(&mut document);
    let mut text = serde_json::to_string_pretty(&document).expect("a JSON value can be written");
    text.push('\n');
    text
}

/// What of an answer is a parameter of the next request.
fn add_links(document: &mut Value) {
    let user_id = "$response.body#/userId";
    let answer = |document: &'_ mut Value, path: &str, method: &str, links: Value| {
        document["paths"][path][method]["responses"]["200"]["links"] = links;
    };
    let changed = json!({
        "balance": {
            "operationId": "getBalance",
            "description": "The balance as of the change.",
            "parameters": { "userId": user_id, "timestamp": "$response.body#/timestamp" },
        },
        "available": {
            "operationId": "getAvailable",
            "description": "What can be withdrawn at the moment of the change.",
            "parameters": { "userId": user_id, "timestamp": "$response.body#/timestamp" },
        },
        "history": {
            "operationId": "getHistory",
            "description": "The user's history.",
            "parameters": { "userId": user_id },
        },
    });
    answer(document, "/changeBalance", "post", changed);
    let page = json!({
        "next": {
            "operationId": "getHistory",
            "description": "The next page, where there is one.",
            "parameters": { "userId": user_id, "cursor": "$response.body#/nextCursor" },
        },
    });
    answer(document, "/{userId}/history", "get", page);
}

/// Says of each problem that it is JSON, too: some generators make a typed error of nothing else.
fn name_problems_json(document: &mut Value) {
    let operations = document["paths"].as_object_mut().into_iter().flat_map(Map::values_mut);
    let operations = operations.filter_map(Value::as_object_mut).flat_map(Map::values_mut);
    let responses = operations.filter_map(|operation| operation["responses"].as_object_mut());
    let contents = responses
        .flat_map(Map::values_mut)
        .filter_map(|response| response.get_mut("content")?.as_object_mut());
    for content in contents {
        if let Some(problem) = content.get(PROBLEM_JSON) {
            let schema = json!({ "schema": problem["schema"] });
            content.insert("application/json".to_owned(), schema);
        }
    }
}

/// What any path answers to a request that is no HTTP/1.1, or whose head is too large.
fn unreadable() -> Value {
    json!({
        "description": "The request cannot be read: `invalid_request`.",
        "content": { PROBLEM_JSON: { "schema": { "$ref": "#/components/schemas/Problem" } } },
    })
}

/// Answers to changes: one that was accepted, and one that was only tried.
fn changes() -> Value {
    let mut tried = operation();
    for (name, value) in [("balanceChange", json!(250_000)), ("balance", json!(250_000))] {
        tried[name] = value;
    }
    tried["dryRun"] = json!(true);
    tried["approval"] = json!("not_asked");
    json!({ "accepted": { "value": operation() }, "dryRun": { "value": tried } })
}

/// Answers to one question: as it is now, and as it was known before a change of that moment arrived late.
fn balances() -> Value {
    let known = json!({
        "userId": "alice",
        "timestamp": "2026-01-31T12:00:00Z",
        "balance": 0,
        "knownAt": "2026-01-31T12:00:00Z",
    });
    json!({ "now": { "value": balance() }, "knownAt": { "value": known } })
}

fn balance() -> Value {
    json!({ "userId": "alice", "timestamp": "2026-01-31T12:00:00Z", "balance": 2500 })
}

fn operation() -> Value {
    json!({
        "operationId": "019c13f2-5a80-7c3a-9d52-6f1d3c1e8a10",
        "userId": "alice",
        "timestamp": "2026-01-31T12:00:00Z",
        "balanceChange": 2500,
        "balance": 2500,
    })
}

fn examples() -> [(&'static str, Value); 5] {
    let operation = operation();
    let available = json!({ "userId": "alice", "timestamp": "2026-01-31T12:00:00Z", "available": 1200 });
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
        ("Balance", balance()),
        ("Available", available),
        ("History", history),
        ("Problem", problem),
    ]
}

/// The history of the other example, for a spreadsheet and for a person.
fn statement_examples() -> [(&'static str, &'static str); 2] {
    let csv = "operationId,timestamp,seq,balanceChange,balance,context,approved,recordedAt\r\n\
               019c13f2-5a80-7c3a-9d52-6f1d3c1e8a10,2026-01-31T12:00:00Z,1,2500,2500,salary for January,false,\
               2026-01-31T12:00:00.018342Z\r\n";
    let html = "<!DOCTYPE html><html lang=\"en\"><head>…</head><body><header><h1>Statement of account</h1>\
                <p class=\"user\" dir=\"auto\">alice</p></header>…</body></html>";
    [("text/csv", csv), ("text/html", html)]
}

fn insufficient_funds() -> ChangeError {
    let at = Timestamp::parse("2026-01-31T12:00:00Z").expect("a date-time of RFC 3339");
    ChangeError::Refused(Refusal::InsufficientFunds {
        at,
        shortfall: 50,
        available: 0,
    })
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
        (
            "/changeBalance",
            "post",
            "412",
            vec![Problem::from(ChangeError::PreconditionFailed { version: 4 })],
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
        ("/{userId}/available", "get", "400", invalid(timestamp)),
        ("/{userId}/available", "get", "503", reading()),
        (
            "/{userId}/history",
            "get",
            "400",
            invalid("limit must be a whole number from 1 to 1000, for example 100."),
        ),
        ("/{userId}/history", "get", "503", reading()),
        ("/livez", "get", "400", vec![hosts::host_missing()]),
        ("/readyz", "get", "400", vec![hosts::host_missing()]),
        ("/metrics", "get", "400", vec![hosts::host_missing()]),
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
    for path in ["/{userId}/balance", "/{userId}/available", "/{userId}/history"] {
        examples.push((path, "get", "403", vec![Refused::Scope(Scope::Read).problem()]));
    }
    for (path, method) in [
        ("/changeBalance", "post"),
        ("/{userId}/balance", "get"),
        ("/{userId}/available", "get"),
        ("/{userId}/history", "get"),
    ] {
        examples.push((path, method, "401", vec![Refused::NoToken.problem()]));
    }
    examples
}
