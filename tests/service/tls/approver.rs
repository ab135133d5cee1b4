use super::file;
use crate::support::approver::TestApprover;
use crate::support::certificates::{Authority, self_signed};
use crate::support::client::{ServiceClient, change};
use crate::support::postgres::fresh_database;
use crate::support::replica::{Replica, ReplicaOptions, Scratch};
use crate::support::world::NOON;

/// Above the threshold.
const BIG: i64 = 200_000;

async fn replica(url: &str, ca: Option<&str>) -> (Replica, ServiceClient) {
    let database = fresh_database().await;
    let mut options = ReplicaOptions::new(&database.url, url);
    if let Some(ca) = ca {
        options = options.set("APPROVER_CA", ca);
    }
    let replica = options.start().await;
    let client = ServiceClient::new(&replica.url);
    (replica, client)
}

#[tokio::test]
async fn an_approver_behind_https_is_asked_if_its_authority_is_the_one_that_is_named() {
    let authority = Authority::new("the Approver's");
    let approver = TestApprover::start_with_tls(&authority.sign(&["127.0.0.1"])).await;
    let scratch = Scratch::new();
    let ca = file(&scratch, "ca.pem", &authority.pem);
    let (replica, client) = replica(&approver.url(), Some(&ca)).await;
    for user_id in ["alice", "bob"] {
        client.change(&change(user_id, BIG, NOON)).await.expect(200);
    }
    assert_eq!(approver.calls().len(), 2);
    replica.stop().await;
}

#[tokio::test]
async fn an_approver_that_is_not_the_one_that_is_trusted_is_never_asked_and_the_log_says_why() {
    let (authority, stranger) = (Authority::new("the Approver's"), Authority::new("a stranger's"));
    let scratch = Scratch::new();
    let ca = file(&scratch, "ca.pem", &authority.pem);
    let expired = authority.sign_for(&["127.0.0.1"], std::time::Duration::from_secs(3_600));
    for (certificate, ca, said) in [
        (
            stranger.sign(&["127.0.0.1"]),
            Some(&ca),
            "not signed by a trusted authority",
        ),
        // Without an authority at all, and an authority itself.
        (
            self_signed(&["127.0.0.1"]),
            Some(&ca),
            "not signed by a trusted authority",
        ),
        (self_signed(&["127.0.0.1"]), None, "not signed by a trusted authority"),
        (authority.sign(&["elsewhere.test"]), Some(&ca), "for another name"),
        (expired, Some(&ca), "has expired"),
        // The system does not know it.
        (
            authority.sign(&["127.0.0.1"]),
            None,
            "not signed by a trusted authority",
        ),
    ] {
        let approver = TestApprover::start_with_tls(&certificate).await;
        let (mut replica, client) = replica(&approver.url(), ca.map(String::as_str)).await;
        let answer = client.change(&change("alice", BIG, NOON)).await;
        answer.expect_problem(503, "approver_unavailable");
        let line = replica.said("no secure connection to the Approver").await;
        assert!(line.contains(said) && !line.contains("elsewhere"), "{line}");
        assert_eq!(approver.calls(), Vec::<String>::new(), "{said}");
        // What needs no approval goes on.
        client.change(&change("alice", 1, NOON)).await.expect(200);
        replica.stop().await;
    }
}
