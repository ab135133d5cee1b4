//! What the client accepts decides the form of the answer, and of nothing else.

use super::{CSV, HTML};
use crate::support::client::answer;
use crate::support::world::World;

#[tokio::test]
async fn the_header_accept_decides_the_form_and_json_is_what_everybody_else_gets() {
    let world = World::start().await;
    world.deposit("alice", 1).await;
    let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8";
    for (accept, form) in [
        (&[][..], "application/json"),
        (&["*/*"], "application/json"),
        (&["application/json, application/problem+json"], "application/json"),
        (&["application/problem+json"], "application/json"),
        (&["application/xml"], "application/json"),
        (&["text/csv, text/html, application/json"], "application/json"),
        (&["application/json;q=0"], "application/json"),
        (&[CSV], CSV),
        (&["application/json;q=0.2", "text/csv;q=0.3"], CSV),
        (&[browser], HTML),
    ] {
        let request = accept
            .iter()
            .fold(world.client.get("/alice/history"), |request, accept| {
                request.header("accept", *accept)
            });
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200, "{accept:?}");
        let media_type = response.headers()["content-type"].to_str().unwrap();
        assert!(media_type.starts_with(form), "{accept:?} {media_type}");
        assert_eq!(response.headers().get_all("vary").iter().count(), 1, "{accept:?}");
        assert_eq!(response.headers()["vary"], "Accept", "{accept:?}");
    }
    let balance = answer(world.client.get("/alice/balance").header("accept", CSV))
        .await
        .expect(200);
    assert!(!balance.headers.contains_key("vary"));
    world.replica.stop().await;
}

#[tokio::test]
async fn errors_are_problems_whatever_the_client_accepts() {
    let world = World::start().await;
    for accept in [CSV, HTML] {
        for query in [
            "limit=0",
            "limit=1001",
            "order=up",
            "from=yesterday",
            "cursor=x",
            "page=2",
        ] {
            let request = world.client.get(&format!("/alice/history?{query}"));
            let refused = answer(request.header("accept", accept)).await;
            let refused = refused.expect_problem(400, "invalid_request");
            assert_eq!(refused.headers["vary"], "Accept", "{query}");
        }
        let request = world
            .client
            .request("DELETE", "/alice/history")
            .header("accept", accept);
        answer(request).await.expect_problem(405, "method_not_allowed");
    }
    let drop = "DROP TABLE changes_history CASCADE";
    world.database.client().await.batch_execute(drop).await.unwrap();
    for accept in [CSV, HTML] {
        let request = world.client.get("/alice/history").header("accept", accept);
        answer(request).await.expect_problem(503, "database_unavailable");
    }
    let lines = world.replica.log_lines();
    let outcomes: Vec<_> = lines.iter().map(|line| line["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["database_unavailable"; 2]);
    world.replica.stop().await;
}

#[tokio::test]
async fn each_form_has_one_line_in_the_log_and_head_tells_what_get_would() {
    let world = World::start().await;
    world.deposit("alice", 1).await;
    for accept in ["application/json", CSV, HTML] {
        let mut heads = Vec::new();
        for method in ["GET", "HEAD"] {
            let request = world.client.request(method, "/alice/history").header("accept", accept);
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 200);
            let mut headers = response.headers().clone();
            for varying in ["date", "x-request-id", "content-length", "transfer-encoding"] {
                headers.remove(varying);
            }
            heads.push(headers);
            assert_eq!(response.bytes().await.unwrap().is_empty(), method == "HEAD");
        }
        assert_eq!(heads[0], heads[1], "{accept}");
    }
    let lines = world.replica.log_lines();
    assert_eq!(lines.len(), 7);
    for line in &lines[1..] {
        assert_eq!(
            (&line["operation"], &line["outcome"]),
            (&"getHistory".into(), &"accepted".into())
        );
    }
    world.replica.stop().await;
}
