//! Clients that keep a replica busy while something happens to it, and the check of what they were told against what is
//! stored and what is in the operations log.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

use crate::model::{Random, Stored, StoredUser, rfc3339};
use crate::support::client::{Answer, ServiceClient, change, try_answer};

/// So many users share the clients, so that some of them race.
const USERS: usize = 3;
/// 2026-01-31T12:00:00Z
const BASE: i64 = 1_769_860_800_000_000;
/// How long an event may take to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// What clients do about an operation without an answer, or with 503.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unanswered {
    /// They repeat it with the same key until it is answered.
    Repeat,
    /// They go away when nobody is there any more.
    Leave,
}

/// An operation and its 200.
struct Told {
    user: String,
    key: String,
    answer: Answer,
}

#[derive(Default)]
struct Counters {
    stopping: AtomicBool,
    answered: AtomicUsize,
    unavailable: AtomicUsize,
}

/// Clients at work.
pub struct Load {
    counters: Arc<Counters>,
    clients: Vec<JoinHandle<Vec<Told>>>,
    unanswered: Unanswered,
}

impl Load {
    pub fn start(client: &ServiceClient, clients: usize, unanswered: Unanswered) -> Self {
        let counters = Arc::new(Counters::default());
        let start = |number| tokio::spawn(work(client.clone(), number, Arc::clone(&counters), unanswered));
        Self {
            clients: (0..clients).map(start).collect(),
            counters,
            unanswered,
        }
    }

    /// Waits until so many more changes were answered 200.
    pub async fn answered(&self, more: usize) {
        until_more(&self.counters.answered, more).await;
    }

    /// Waits until so many more changes were answered 503.
    pub async fn unavailable(&self, more: usize) {
        until_more(&self.counters.unavailable, more).await;
    }

    /// Lets each client finish what it has begun, then reads the lines of the operations log and checks what the clients
    /// were told.
    pub async fn finish(self, sql: &Client, lines: impl FnOnce() -> Vec<Value>, lines_are: Lines) {
        self.counters.stopping.store(true, Ordering::Relaxed);
        let mut told = Vec::new();
        for client in self.clients {
            told.extend(timeout(PATIENCE, client).await.expect("the clients end").unwrap());
        }
        let mut stored = HashMap::new();
        for user in 0..USERS {
            let user = StoredUser::read(sql, &user_name(user)).await;
            user.verify(|_, _| ());
            for one in user.history {
                let other = stored.insert(one.key.clone().expect("every change has a key"), one);
                assert!(other.is_none(), "stored twice: {other:?}");
            }
        }
        if self.unanswered == Unanswered::Repeat {
            assert_eq!(told.len(), stored.len(), "every operation is answered in the end");
        }
        let lines = lines();
        let lines: Vec<(&str, &str)> = lines
            .iter()
            .filter(|line| line["userId"].as_str().is_some_and(|user| user.starts_with("user-")))
            .filter_map(|line| Some((line["outcome"].as_str()?, line["operationId"].as_str()?)))
            .collect();
        told_is_stored_and_logged(&told, &stored, &lines);
        stored_is_logged(&stored, &lines, lines_are);
        println!("{} answered, {} stored", told.len(), stored.len());
    }
}

/// What can be expected of the operations log.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Lines {
    /// It has a line for everything that is stored.
    Whole,
    /// The replica was killed: a line may be missing where no answer left.
    OfAnswers,
}

fn told_is_stored_and_logged(told: &[Told], stored: &HashMap<String, Stored>, lines: &[(&str, &str)]) {
    let lines: HashSet<_> = lines.iter().copied().collect();
    for Told { user, key, answer } in told {
        let one = stored
            .get(key)
            .unwrap_or_else(|| panic!("{key} of {user} is lost: {}", answer.body));
        let body = &answer.body;
        assert_eq!(body["operationId"], *one.operation_id, "{one:?}");
        assert_eq!(body["balance"], one.balance_after, "{one:?}");
        assert_eq!(body["balanceChange"], one.change, "{one:?}");
        let replayed = answer.headers.contains_key("idempotency-replayed");
        let outcome = if replayed { "replayed" } else { "accepted" };
        assert!(
            lines.contains(&(outcome, &one.operation_id)),
            "no line says {outcome}: {one:?}"
        );
    }
}

fn stored_is_logged(stored: &HashMap<String, Stored>, lines: &[(&str, &str)], lines_are: Lines) {
    let mut first: HashMap<&str, usize> = HashMap::new();
    let ids: HashSet<&str> = stored.values().map(|one| one.operation_id.as_str()).collect();
    for (outcome, id) in lines {
        // Of an operation that was stored while its result was lost, the line says that nobody knows.
        if ["accepted", "outcome_unknown"].contains(outcome) {
            *first.entry(*id).or_default() += 1;
        }
        assert!(
            ids.contains(id) || *outcome != "accepted",
            "accepted and not stored: {id}"
        );
    }
    for one in stored.values() {
        let count = first.get(one.operation_id.as_str()).copied().unwrap_or(0);
        let right = count == 1 || (count == 0 && lines_are == Lines::OfAnswers);
        assert!(right, "{count} lines: {one:?}");
    }
}

fn user_name(number: usize) -> String {
    format!("user-{number}")
}

async fn until_more(counter: &AtomicUsize, more: usize) {
    let goal = counter.load(Ordering::Relaxed) + more;
    let reached = timeout(PATIENCE, async {
        while counter.load(Ordering::Relaxed) < goal {
            sleep(Duration::from_millis(2)).await;
        }
    });
    let reached = reached.await;
    let is = counter.load(Ordering::Relaxed);
    assert!(reached.is_ok(), "{is} of {goal} answers have come");
}

async fn work(client: ServiceClient, number: usize, counters: Arc<Counters>, unanswered: Unanswered) -> Vec<Told> {
    let mut told = Vec::new();
    let mut random = Random(number as u64);
    let user = user_name(number % USERS);
    for step in 0.. {
        if counters.stopping.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("{number}-{step}");
        let moment = rfc3339(BASE + random.between(-5_000_000, 5_000_000));
        let body = change(&user, random.between(1, 1_000), &moment);
        let answer = loop {
            let request = client
                .post_body(body.to_string())
                .header("idempotency-key", key.as_str());
            match try_answer(request).await {
                Ok(answer) if answer.status == 200 => break answer,
                Ok(answer) => {
                    answer.expect(503);
                    counters.unavailable.fetch_add(1, Ordering::Relaxed);
                    if unanswered == Unanswered::Leave && counters.stopping.load(Ordering::Relaxed) {
                        return told;
                    }
                }
                Err(_) if unanswered == Unanswered::Leave => return told,
                Err(_) => {}
            }
            sleep(Duration::from_millis(20)).await;
        };
        counters.answered.fetch_add(1, Ordering::Relaxed);
        let user = user.clone();
        told.push(Told { user, key, answer });
    }
    told
}
