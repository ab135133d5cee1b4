//! Mixed batches of many users: hot ones with several closed segments, cold ones and new ones; in order, late by
//! milliseconds and by hours, refused, repeated, big. Whatever the batches and the isolation level are, everything is
//! explained by the stored histories.

use crate::race::{Course, HOUR, Known, run};

const fn known(id: &'static str, share: u64, loaded: usize) -> Known {
    Known { id, share, loaded }
}

const USERS: &[Known] = &[
    known("hot", 30, 500),
    known("hot too", 30, 400),
    known("warm", 14, 0),
    known("cold", 6, 0),
    known("{\"ö\",\\N'} 🙂/", 6, 0),
];

async fn every_answer_is_explained(settings: &'static [(&'static str, &'static str)], isolation: Option<&'static str>) {
    let stored = run(Course {
        users: USERS,
        clients: 48,
        steps: 14,
        past: 6 * HOUR,
        settings,
        isolation,
    })
    .await;
    // What is hours late has fallen into segments that were long closed.
    for hot in ["hot", "hot too"] {
        assert!(stored[hot].checkpoints.len() >= 3, "{:?}", stored[hot].checkpoints);
    }
}

#[tokio::test]
async fn every_answer_is_explained_as_the_service_is_configured_by_default() {
    every_answer_is_explained(&[], None).await;
}

#[tokio::test]
async fn every_answer_is_explained_when_each_statement_commits_one_user() {
    every_answer_is_explained(&[("COMMIT_BATCH_USERS", "1")], None).await;
}

#[tokio::test]
async fn every_answer_is_explained_when_one_lane_commits_two_users_at_a_time() {
    let settings = &[("COMMIT_BATCH_USERS", "2"), ("COMMIT_LANES", "1")];
    every_answer_is_explained(settings, None).await;
}

#[tokio::test]
async fn every_answer_is_explained_at_repeatable_read() {
    every_answer_is_explained(&[], Some("repeatable read")).await;
}

#[tokio::test]
async fn every_answer_is_explained_at_serializable() {
    every_answer_is_explained(&[], Some("serializable")).await;
}
