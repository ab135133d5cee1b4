//! The statement of account: the history as CSV of any length and as a page for people, by what the client accepts.

mod negotiated;
mod page;
mod streamed;
mod table;

use csv::StringRecord;
use reqwest::Response;
use serde_json::Value;
use tokio_postgres::Client;

use crate::model::{StoredUser, rfc3339};
use crate::support::client::ServiceClient;

const CSV: &str = "text/csv";
const HTML: &str = "text/html";

const COLUMNS: [&str; 8] = [
    "operationId",
    "timestamp",
    "seq",
    "balanceChange",
    "balance",
    "context",
    "approved",
    "recordedAt",
];

/// A row of a table or an operation of a page: its fields as texts.
type Row = Vec<String>;

/// Gets a path in this form, which must be had.
async fn get(client: &ServiceClient, path: &str, form: &str) -> Response {
    let response = client.get(path).header("accept", form).send().await.unwrap();
    assert_eq!(response.status(), 200, "{path}");
    let media_type = response.headers()["content-type"].to_str().unwrap();
    assert!(media_type.starts_with(form), "{path} {media_type}");
    assert_eq!(response.headers()["vary"], "Accept");
    response
}

/// The rows of a table, which must be well-formed.
fn parsed(table: &[u8]) -> Vec<Row> {
    assert!(table.ends_with(b"\r\n"), "no end of the last line");
    let mut reader = csv::ReaderBuilder::new()
        .terminator(csv::Terminator::CRLF)
        .from_reader(table);
    assert_eq!(reader.headers().unwrap(), &StringRecord::from(COLUMNS.to_vec()));
    let row = |record: StringRecord| record.iter().map(str::to_owned).collect();
    reader.records().map(|record| row(record.unwrap())).collect()
}

async fn table(client: &ServiceClient, path: &str) -> Vec<Row> {
    parsed(&get(client, path, CSV).await.bytes().await.unwrap())
}

/// A context as it stands in a table: marked wherever a spreadsheet could begin a cell with a formula.
fn unformulated(context: &str) -> String {
    let cells = context.split_inclusive([',', ';', '|', '\t', '\r', '\n']);
    let marked = cells.map(
        |cell| match cell.starts_with(['=', '+', '-', '@', '＝', '＋', '－', '＠', '\'']) {
            true => format!("'{cell}"),
            false => cell.to_owned(),
        },
    );
    marked.collect()
}

/// The operations of a page in JSON as rows of a table.
fn rows_of(page: &Value) -> Vec<Row> {
    let operations = page["operations"].as_array().unwrap().iter();
    let field = |operation: &Value, name: &str| match &operation[name] {
        Value::String(text) if name == "context" => unformulated(text),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    operations
        .map(|operation| COLUMNS.iter().map(|name| field(operation, name)).collect())
        .collect()
}

/// What the model makes of all that is stored, the earliest first; without the moment of recording.
async fn expected(sql: &Client, user_id: &str) -> Vec<Row> {
    let mut stored = StoredUser::read(sql, user_id).await.history;
    stored.sort_by_key(|operation| (operation.timestamp, operation.seq));
    let mut balance = 0_i128;
    let rows = stored.into_iter().map(|operation| {
        balance += i128::from(operation.change);
        vec![
            operation.operation_id,
            rfc3339(operation.timestamp),
            operation.seq.to_string(),
            operation.change.to_string(),
            balance.to_string(),
            unformulated(&operation.context),
            operation.approved.to_string(),
        ]
    });
    rows.collect()
}

fn without_recorded_at(rows: &[Row]) -> Vec<Row> {
    rows.iter().map(|row| row[..7].to_vec()).collect()
}
