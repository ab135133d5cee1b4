//! What every answer tells browsers and proxies.

use super::{ServiceClient, World, change};
use crate::support::world::NOON;

/// Answers of every kind, with the headers that each must have.
fn requests(client: &ServiceClient) -> Vec<(reqwest::RequestBuilder, bool)> {
    let kept = |path: &str| (client.get(path), false);
    let private = |request| (request, true);
    vec![
        private(client.post_body(change("alice", 5, NOON).to_string())),
        private(client.post_body("{")),
        private(client.post_body(change("nobody", -5, NOON).to_string())),
        private(client.get("/alice/balance")),
        private(client.request("HEAD", "/alice/balance")),
        private(client.get("/alice/history")),
        private(client.get("/alice/history?limit=0")),
        private(client.request("PUT", "/alice/history")),
        private(client.get("/nowhere")),
        private(client.get("/livez")),
        private(client.get("/readyz")),
        kept("/metrics"),
        kept("/docs"),
        kept("/openapi.json"),
    ]
}

#[tokio::test]
async fn every_answer_says_that_it_is_what_it_is_and_that_nobody_keeps_a_balance() {
    let world = World::start().await;
    for (request, is_private) in requests(&world.client) {
        let answered = request.send().await.unwrap();
        let url = answered.url().to_string();
        let header = |name: &str| {
            let mut values = answered.headers().get_all(name).iter();
            let value = values.next().map(|value| value.to_str().unwrap());
            assert_eq!(values.next(), None, "{url} {name}");
            value
        };
        assert_eq!(header("x-content-type-options"), Some("nosniff"), "{url}");
        assert_eq!(header("referrer-policy"), Some("no-referrer"), "{url}");
        assert_eq!(header("cache-control") == Some("no-store"), is_private, "{url}");
        assert_eq!(header("server"), None, "{url}");
        let policy = header("content-security-policy").unwrap();
        assert!(
            policy.starts_with("default-src 'none'; ") && policy.contains("frame-ancestors 'none'"),
            "{policy}"
        );
        assert_eq!(policy.contains("script-src"), url.ends_with("/docs"), "{url}");
    }
}

#[tokio::test]
async fn the_page_of_swagger_ui_may_run_its_own_scripts_and_reach_the_service_alone() {
    let world = World::start().await;
    let page = world.client.get("/docs").send().await.unwrap();
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    let directives: Vec<Vec<&str>> = policy.split("; ").map(|one| one.split(' ').collect()).collect();
    let of = |name: &str| directives.iter().find(|one| one[0] == name).unwrap()[1..].to_vec();
    for (name, sources) in [
        ("default-src", "'none'"),
        ("connect-src", "'self'"),
        ("img-src", "data:"),
        ("base-uri", "'none'"),
        ("form-action", "'none'"),
        ("frame-ancestors", "'none'"),
    ] {
        assert_eq!(of(name), [sources], "{policy}");
    }
    let page = page.text().await.unwrap();
    for (name, element) in [("script-src", "<script"), ("style-src", "<style")] {
        let sources = of(name);
        assert!(sources.iter().all(|source| source.starts_with("'sha256-")), "{policy}");
        let begin = page
            .split(element)
            .skip(1)
            .filter(|rest| rest.starts_with(['>', ' ']))
            .count();
        assert!(!sources.is_empty() && sources.len() <= begin, "{policy}");
    }
}
