//! Many clients on few users, through two replicas that know nothing of each other. Afterwards an independent model
//! replays what is stored of every user, and every answer that a client got must be explained by it.

pub mod explain;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use crate::model::{Micros, Random, StoredUser, rfc3339, users_stored};
use crate::support::approver::TestApprover;
use crate::support::client::{Answer, ServiceClient};
use crate::support::postgres::fresh_database;
use crate::support::replica::{Replica, ReplicaOptions};

const SECOND: i64 = 1_000_000;
pub const HOUR: i64 = 3_600 * SECOND;
/// 2026-01-31T12:00:00Z
const BASE: Micros = 1_769_860_800 * SECOND;
/// So many operations of loading are under way at once.
const LOADERS: usize = 32;

/// A user whom the clients know.
#[derive(Clone, Copy)]
pub struct Known {
    pub id: &'static str,
    /// Of a hundred changes, so many.
    pub share: u64,
    /// So many operations are there when the clients begin.
    pub loaded: usize,
}

/// What is run, and on what.
pub struct Course {
    /// What is left of the hundred changes goes to users nobody has heard of.
    pub users: &'static [Known],
    pub clients: usize,
    /// Each client makes so many changes.
    pub steps: usize,
    /// How far in the past a late operation may be; the users' first deposits are half as far.
    pub past: Micros,
    /// Variables of both replicas.
    pub settings: &'static [(&'static str, &'static str)],
    /// `default_transaction_isolation` of the database, if not PostgreSQL's.
    pub isolation: Option<&'static str>,
}

/// What was asked of a replica.
#[derive(Clone, Debug)]
struct Ask {
    user: String,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Change {
        context: String,
        change: i64,
        timestamp: Micros,
        key: Option<String>,
    },
    Read(Option<Micros>),
}

/// What was asked, when, and what came back when.
#[derive(Debug)]
struct Exchange {
    replica: usize,
    ask: Ask,
    begin: Instant,
    end: Instant,
    answer: Answer,
}

struct Race {
    course: Course,
    replicas: Vec<ServiceClient>,
    exchanges: Mutex<Vec<Exchange>>,
}

impl Race {
    async fn send(&self, replica: usize, ask: Ask) -> Answer {
        let client = &self.replicas[replica];
        let begin = Instant::now();
        let answer = match &ask.what {
            What::Read(at) => client.balance(&in_url(&ask.user), at.map(rfc3339).as_deref()).await,
            What::Change {
                context,
                change,
                timestamp,
                key,
            } => {
                let timestamp = rfc3339(*timestamp);
                let body =
                    json!({ "userId": ask.user, "context": context, "balanceChange": change, "timestamp": timestamp });
                match key {
                    None => client.change(&body).await,
                    Some(key) => client.change_with_key(&body, key).await,
                }
            }
        };
        let end = Instant::now();
        self.exchanges.lock().unwrap().push(Exchange {
            replica,
            ask,
            begin,
            end,
            answer: answer.clone(),
        });
        answer
    }

    /// The first deposits, and the operations that are there when the clients begin: sent one after the other with many
    /// under way, and so nearly in order.
    async fn load(&self, mut random: Random) {
        let begin = BASE - self.course.past / 2;
        let ask = |known: &Known, context: String, change: i64, timestamp: Micros| Ask {
            user: known.id.to_owned(),
            what: What::Change {
                context,
                change,
                timestamp,
                key: None,
            },
        };
        for known in self.course.users {
            let deposit = ask(known, "the first deposit".to_owned(), 150_000, begin);
            self.send(0, deposit).await.expect(200);
        }
        let mut asks = Vec::new();
        for known in self.course.users {
            asks.extend((0..known.loaded).map(|number| {
                let timestamp = begin + self.course.past / 2 * number as i64 / known.loaded as i64;
                let context = format!("loaded {number}");
                (
                    timestamp,
                    ask(known, context, random.between(-9_000, 10_000), timestamp),
                )
            }));
        }
        asks.sort_by_key(|(timestamp, _)| *timestamp);
        let asks = Mutex::new(asks.into_iter().enumerate());
        let loaders = (0..LOADERS).map(|_| async {
            loop {
                let next = asks.lock().unwrap().next();
                let Some((number, (_, ask))) = next else { return };
                self.send(number % self.replicas.len(), ask).await;
            }
        });
        join_all(loaders).await;
    }

    async fn client(&self, number: usize, mut random: Random) {
        for step in 0..self.course.steps {
            let replica = usize::from(random.percent(50));
            if random.percent(30) {
                let moment = self.a_moment(&mut random, step);
                let at = (!random.percent(25)).then_some(moment);
                let user = self.a_user(&mut random);
                let what = What::Read(at);
                self.send(replica, Ask { user, what }).await;
            }
            // One change in eight is known to several clients, who send it under the same key.
            let ask = if random.percent(12) {
                self.a_shared_change(&mut random)
            } else {
                let user = self.a_user(&mut random);
                let what = What::Change {
                    context: format!("client {number} step {step}"),
                    change: an_amount(&mut random),
                    timestamp: self.a_moment(&mut random, step),
                    key: random.percent(20).then(|| format!("key-of-{number}-step-{step}")),
                };
                Ask { user, what }
            };
            let keyed = matches!(&ask.what, What::Change { key: Some(_), .. });
            let mut asks = vec![ask];
            if keyed && random.percent(30) {
                // Again at the same time, with the same body or another.
                asks.push(asks[0].clone());
                if let What::Change { context, .. } = &mut asks[1].what
                    && random.percent(50)
                {
                    context.push_str(" rival");
                }
            }
            let answers = join_all(asks.iter().map(|ask| self.send(replica, ask.clone()))).await;
            for (ask, answer) in asks.into_iter().zip(answers) {
                // Repeats of what came through and of what did not; often on the other replica.
                if keyed && (answer.status == 503 || random.percent(30)) {
                    self.send(usize::from(random.percent(50)), ask).await;
                }
            }
        }
    }

    fn a_user(&self, random: &mut Random) -> String {
        let mut drawn = random.next() % 100;
        for known in self.course.users {
            if drawn < known.share {
                return known.id.to_owned();
            }
            drawn -= known.share;
        }
        format!("stranger {}", random.between(1, 30))
    }

    /// Around the moment of the step; some equal, some far back, some tomorrow.
    fn a_moment(&self, random: &mut Random, step: usize) -> Micros {
        let step = BASE + step as i64 * 2 * SECOND;
        match random.between(0, 99) {
            0..40 => step + random.between(-4, 4) * SECOND / 2,
            40..65 => step + random.between(-3 * SECOND, 3 * SECOND),
            65..85 => step + random.between(-5_000, 5_000),
            85..96 => step - random.between(0, self.course.past / SECOND) * SECOND,
            _ => step + 24 * HOUR,
        }
    }

    /// Two bodies for each of 30 keys: whichever comes first is the key's, and the other is refused.
    fn a_shared_change(&self, random: &mut Random) -> Ask {
        let key = random.between(1, 30);
        let rival = random.percent(25);
        let user = self.a_user(&mut Random(key.unsigned_abs()));
        let mut of_key = Random(key.unsigned_abs() * 2 + u64::from(rival));
        let what = What::Change {
            context: format!("shared {key} {}", if rival { "rival" } else { "first" }),
            change: an_amount(&mut of_key),
            timestamp: self.a_moment(&mut of_key, 5),
            key: Some(format!("shared-{key}")),
        };
        Ask { user, what }
    }
}

fn in_url(user: &str) -> String {
    utf8_percent_encode(user, NON_ALPHANUMERIC).to_string()
}

/// More is taken than given, so that a part cannot be afforded; some need approval.
fn an_amount(random: &mut Random) -> i64 {
    match random.between(0, 99) {
        0..42 => random.between(1, 50_000),
        42..88 => -random.between(1, 60_000),
        88..93 => random.between(100_001, 150_000),
        93..98 => -random.between(100_001, 150_000),
        _ => 0,
    }
}

/// Runs it, and explains all that was answered, stored and logged; returns what is stored of each user.
pub async fn run(course: Course) -> BTreeMap<String, StoredUser> {
    let given = std::env::var("RACE_SEED").ok().map(|seed| seed.parse().unwrap());
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let seed: u64 = given.unwrap_or(clock.into());
    println!("RACE_SEED={seed} draws the same changes again");

    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    if let Some(level) = course.isolation {
        database.isolate(level).await;
    }
    approver.delay(Duration::from_millis(50));
    let start = || {
        let options = ReplicaOptions::new(&database.url, &approver.url());
        options.set_all(course.settings).start()
    };
    let replicas = [start().await, start().await];
    let race = Arc::new(Race {
        course,
        replicas: replicas
            .iter()
            .map(|replica| ServiceClient::new(&replica.url))
            .collect(),
        exchanges: Mutex::default(),
    });
    race.load(Random(seed)).await;
    let clients: Vec<_> = (0..race.course.clients)
        .map(|number| {
            let (race, random) = (Arc::clone(&race), Random(seed ^ ((number as u64 + 1) << 40)));
            tokio::spawn(async move { race.client(number, random).await })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }

    let Race { course, exchanges, .. } = Arc::into_inner(race).expect("all clients have ended");
    let exchanges = exchanges.into_inner().unwrap();
    let sql = database.client().await;
    let mut by_user: BTreeMap<&str, Vec<&Exchange>> = BTreeMap::new();
    for exchange in &exchanges {
        by_user.entry(&exchange.ask.user).or_default().push(exchange);
    }
    for user in users_stored(&sql).await {
        assert!(by_user.contains_key(user.as_str()), "stored and not asked for: {user}");
    }
    let mut stored = BTreeMap::new();
    for (user, exchanges) in by_user {
        let of_user = StoredUser::read(&sql, user).await;
        explain::answers(&of_user, &exchanges);
        stored.insert(user.to_owned(), of_user);
    }
    let logs = replicas.each_ref().map(Replica::log_lines);
    explain::lines_match_answers(&exchanges, &logs);
    let histories: Vec<_> = stored.values().flat_map(|user| &user.history).collect();
    explain::lines_match_history(&histories, &logs);
    explain::big_ones_were_approved(&histories, &exchanges, approver.calls().len());
    let count = |status: u16| exchanges.iter().filter(|one| one.answer.status == status).count();
    let [ok, refused, reused, unavailable] = [200, 403, 422, 503].map(count);
    let kept = histories.len();
    println!("{ok} × 200, {refused} × 403, {reused} × 422, {unavailable} × 503, {kept} stored");
    assert!(exchanges.len() > course.clients * course.steps && refused > 0 && kept > 1);
    assert!(unavailable * 50 <= exchanges.len(), "{unavailable} × 503");
    for replica in replicas {
        replica.stop().await;
    }
    stored
}

#[tokio::test]
async fn every_answer_of_64_racing_clients_is_explained_by_the_stored_history() {
    run(Course {
        users: &[Known {
            id: "hot",
            share: 100,
            loaded: 0,
        }],
        clients: 64,
        steps: 24,
        past: HOUR,
        settings: &[],
        isolation: None,
    })
    .await;
}
