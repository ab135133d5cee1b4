//! Clients that change and read balances of a few hot and many cold users, through every replica and the load balancer,
//! and keep a record of all they asked and heard.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::HeaderMap;
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::checker::moment;
use crate::cluster::{LONGEST_ANSWER, LONGEST_PAUSE, REPLICAS, TOKEN};
use crate::evidence::{Ask, Change, Ended, Exchange, Page, PageEnd, Pause, Said};
use crate::model::{Micros, Random, rfc3339};
use crate::support::client::http_client_with_token;

const SECOND: i64 = 1_000_000;
const HOT: [&str; 3] = ["hot α", "a/b?c=d", "docs"];
const COLD: i64 = 400;
pub const THRESHOLD: u64 = 100_000;
/// No answer within this time is a hang: the replicas give up after 3 s and some grace, and may be stopped meanwhile.
const PATIENCE: Duration = LONGEST_ANSWER
    .saturating_add(LONGEST_PAUSE)
    .saturating_add(Duration::from_secs(3));
/// How long a client in a hurry waits for a replica that is stopped.
const HURRY: Duration = Duration::from_millis(200);
/// So many clients go on when the others are to be silent.
const NEVER_HUSHED: usize = 2;
/// One client of so many waits for a replica that is stopped until it goes on.
const PATIENT_EVERY: usize = 4;
/// After all operations: 2200-01-01.
const AFTER_ALL: Micros = 7_258_118_400 * SECOND;

/// Sends requests, and keeps what came of them.
pub struct Recorder {
    /// All times of the record are counted from here.
    pub began: Instant,
    http: Client,
    pub urls: Vec<String>,
    exchanges: Mutex<Vec<Exchange>>,
    /// Requests that were not answered in time.
    hangs: Mutex<Vec<String>>,
    pauses: Mutex<Vec<Pause>>,
    /// The replica that is stopped.
    paused: watch::Sender<Option<usize>>,
    /// Whether most clients send nothing.
    is_hushed: watch::Sender<bool>,
    /// Makes amounts of some big changes, and moments of histories, unlike all others.
    next_number: AtomicI64,
}

impl Recorder {
    pub fn new(urls: Vec<String>) -> Self {
        Self {
            began: Instant::now(),
            http: http_client_with_token(TOKEN),
            urls,
            exchanges: Mutex::default(),
            hangs: Mutex::default(),
            pauses: Mutex::default(),
            paused: watch::Sender::default(),
            is_hushed: watch::Sender::default(),
            next_number: AtomicI64::new(1),
        }
    }

    /// A page of a user's history that no other request asks for.
    pub fn last_page(&self, user: &str) -> Ask {
        Ask::History(Arc::new(Page {
            user: user.to_owned(),
            from: None,
            to: AFTER_ALL + self.number(),
            ascending: false,
            limit: 30,
            beyond: None,
        }))
    }

    pub fn number(&self) -> i64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    pub fn take(&self) -> (Vec<Exchange>, Vec<Pause>) {
        let exchanges = std::mem::take(&mut *self.exchanges.lock().unwrap());
        (exchanges, std::mem::take(&mut *self.pauses.lock().unwrap()))
    }

    pub fn take_hangs(&self) -> Vec<String> {
        std::mem::take(&mut *self.hangs.lock().unwrap())
    }

    /// Notes that a replica is stopped while `stopped` lasts.
    pub async fn pause(&self, replica: usize, stopped: impl Future<Output = ()>) {
        let from = self.began.elapsed();
        self.paused.send_replace(Some(replica));
        stopped.await;
        self.paused.send_replace(None);
        let to = self.began.elapsed();
        self.pauses.lock().unwrap().push(Pause { replica, from, to });
    }

    /// Keeps most clients from sending anything until this is done.
    pub async fn hush(&self, until: impl Future<Output = ()>) {
        self.is_hushed.send_replace(true);
        until.await;
        self.is_hushed.send_replace(false);
    }

    /// Sends a request by this way and waits for the answer.
    pub async fn send(&self, way: usize, ask: Ask) -> Option<Said> {
        self.send_until(way, ask, std::future::pending()).await
    }

    /// As [`send`](Self::send), but hangs up a little after a replica was stopped that the way leads to, or may lead to.
    async fn send_in_a_hurry(&self, way: usize, ask: Ask) -> Option<Said> {
        let mut paused = self.paused.subscribe();
        let given_up = async {
            let leads_there = |paused: &Option<usize>| paused.is_some_and(|replica| replica == way || way >= REPLICAS);
            if paused.wait_for(leads_there).await.is_ok() {
                sleep(HURRY).await;
            }
        };
        self.send_until(way, ask, given_up).await
    }

    /// As [`send`](Self::send), but hangs up when the client has given up.
    async fn send_until(&self, way: usize, ask: Ask, given_up: impl Future<Output = ()>) -> Option<Said> {
        let (sent_at, sent_by_clock) = (self.began.elapsed(), clock());
        let ended = tokio::select! {
            answer = timeout(PATIENCE, heard(self.request(way, &ask))) => answer.unwrap_or_else(|_| {
                let hang = format!("{ask:?} by way {way} at {sent_at:?}");
                self.hangs.lock().unwrap().push(hang);
                Ended::Broken
            }),
            () = given_up => Ended::Broken,
        };
        let ended_at = self.began.elapsed();
        let exchange = Exchange {
            way,
            ask,
            sent_at,
            sent_by_clock,
            ended_at,
            ended,
        };
        let said = exchange.said().cloned();
        self.exchanges.lock().unwrap().push(exchange);
        said
    }

    fn request(&self, way: usize, ask: &Ask) -> RequestBuilder {
        let url = &self.urls[way];
        let of_user = |user: &str| format!("{url}/{}", utf8_percent_encode(user, NON_ALPHANUMERIC));
        let encoded = |at: Micros| utf8_percent_encode(&rfc3339(at), NON_ALPHANUMERIC).to_string();
        match ask {
            Ask::Balance { user, at: None } => self.http.get(format!("{}/balance", of_user(user))),
            Ask::Balance { user, at: Some(at) } => {
                self.http
                    .get(format!("{}/balance?timestamp={}", of_user(user), encoded(*at)))
            }
            Ask::History(page) => {
                let mut query = format!("limit={}", page.limit);
                match &page.beyond {
                    // The cursor holds the rest.
                    Some(end) => query += &format!("&cursor={}", end.cursor),
                    None => {
                        query += &format!("&to={}", encoded(page.to));
                        if let Some(from) = page.from {
                            query += &format!("&from={}", encoded(from));
                        }
                        if page.ascending {
                            query += "&order=asc";
                        }
                    }
                }
                self.http.get(format!("{}/history?{query}", of_user(&page.user)))
            }
            Ask::Change(change) => {
                let body = json!({ "userId": change.user, "context": change.context,
                    "balanceChange": change.change, "timestamp": rfc3339(change.timestamp) });
                let request = self
                    .http
                    .post(format!("{url}/changeBalance"))
                    .header("content-type", "application/json")
                    .body(body.to_string());
                match &change.key {
                    Some(key) => request.header("idempotency-key", key),
                    None => request,
                }
            }
        }
    }
}

/// The clock that the replicas see too.
fn clock() -> Micros {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(now.as_micros()).unwrap()
}

/// What became of a request.
async fn heard(request: RequestBuilder) -> Ended {
    let response = match request.send().await {
        Ok(response) => response,
        Err(error) if error.is_connect() => return Ended::NotReached,
        Err(_) => return Ended::Broken,
    };
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let Ok(body) = response.bytes().await else {
        return Ended::Broken;
    };
    if headers.contains_key("proxy-status") {
        // The load balancer found no replica to send it to; or it lost the one that it had sent it to.
        return if status == 503 {
            Ended::NotReached
        } else {
            Ended::Broken
        };
    }
    match said(status, &headers, &body) {
        Ok(said) => Ended::Answered(said),
        Err(wrong) => Ended::Malformed(format!(
            "{wrong}: {status}, {headers:?}, {:?}",
            String::from_utf8_lossy(&body)
        )),
    }
}

/// Reads an answer, or says what is wrong with its form.
fn said(status: u16, headers: &HeaderMap, body: &[u8]) -> Result<Said, &'static str> {
    let is_good = status == 200;
    let media_type = if is_good {
        "application/json"
    } else {
        "application/problem+json"
    };
    if headers.get("content-type").is_none_or(|found| found != media_type) {
        return Err("the media type is wrong");
    }
    if headers.contains_key("retry-after") != (status == 503) {
        return Err("a 503, and nothing else, has Retry-After");
    }
    let body: Value = serde_json::from_slice(body).map_err(|_| "the body is no JSON")?;
    let code = body["code"].as_str().unwrap_or_default().to_owned();
    if is_good != code.is_empty() || (!is_good && body["status"] != status) {
        return Err("the body does not agree with the status");
    }
    Ok(Said {
        status,
        code,
        replayed: headers.contains_key("idempotency-replayed"),
        body,
    })
}

/// Where a page ends that another one follows.
fn end_of(said: &Said) -> Option<PageEnd> {
    let last = said.body["operations"].as_array()?.last()?;
    Some(PageEnd {
        cursor: said.body["nextCursor"].as_str()?.to_owned(),
        last: (moment(&last["timestamp"])?, last["seq"].as_i64()?),
    })
}

/// The clients at work.
pub struct Workload {
    recorder: Arc<Recorder>,
    enough: Arc<AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

struct LoadClient {
    number: usize,
    step: usize,
    random: Random,
    recorder: Arc<Recorder>,
}

impl Workload {
    pub fn start(recorder: &Arc<Recorder>, clients: usize, random: &mut Random) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let clients = (0..clients).map(|number| {
            let mut client = LoadClient {
                number,
                step: 0,
                random: Random(random.next()),
                recorder: Arc::clone(recorder),
            };
            let enough = Arc::clone(&enough);
            tokio::spawn(async move {
                let mut is_hushed = client.recorder.is_hushed.subscribe();
                while !enough.load(Ordering::Relaxed) {
                    if client.number >= NEVER_HUSHED {
                        let _ = is_hushed.wait_for(|is_hushed| !is_hushed).await;
                    }
                    client.step().await;
                }
            })
        });
        Self {
            clients: clients.collect(),
            recorder: Arc::clone(recorder),
            enough,
        }
    }

    /// Ends the load, once each client has heard what it waits for.
    pub async fn stop(&mut self) {
        self.enough.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            client.await.unwrap();
        }
    }

    /// Repeats each change with a key that has no final answer until it has one: by two ways at once, as a client might
    /// that has forgotten what it was told.
    pub async fn settle(&self, random: &mut Random) {
        let mut unsettled: HashMap<String, Arc<Change>> = HashMap::new();
        let mut settled: HashSet<String> = HashSet::new();
        for exchange in self.recorder.exchanges.lock().unwrap().iter() {
            if let Ask::Change(change) = &exchange.ask
                && change.key.is_some()
            {
                match exchange.said() {
                    Some(said) if said.status != 503 => drop(settled.insert(change.context.clone())),
                    _ => drop(unsettled.insert(change.context.clone(), Arc::clone(change))),
                }
            }
        }
        // Some of those that are settled too: what they were told holds.
        let left = unsettled
            .into_iter()
            .filter(|(context, _)| !settled.contains(context) || random.percent(50));
        let mut left: Vec<_> = left.map(|(_, change)| change).collect();
        left.sort_by(|one, other| one.context.cmp(&other.context));
        for some in left.chunks(16) {
            let ways = self.recorder.urls.len() as u64;
            let first: usize = usize::try_from(random.next() % ways).unwrap();
            join_all(some.iter().map(|change| self.settle_one(change, first))).await;
        }
    }

    async fn settle_one(&self, change: &Arc<Change>, first: usize) {
        let ways = self.recorder.urls.len();
        for attempt in 0..20 {
            let ways = [(first + attempt) % ways, (first + attempt + 1) % ways];
            let sent = ways.map(|way| self.recorder.send(way, Ask::Change(Arc::clone(change))));
            let answers = join_all(sent).await;
            if answers.iter().flatten().any(|said| said.status != 503) {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

impl LoadClient {
    async fn step(&mut self) {
        self.step += 1;
        let way = self.way();
        let said = match self.random.next() % 100 {
            0..12 => self.read(way, false).await,
            12..34 => self.read(way, true).await,
            34..38 => self.pages(way).await,
            38..42 => {
                // Hangs up in the middle, mostly before the answer.
                let ask = Ask::Change(Arc::new(self.change(false)));
                let patience = Duration::from_micros(self.random.next() % 20_000);
                self.recorder.send_until(way, ask, sleep(patience)).await
            }
            42..75 => {
                let ask = Ask::Change(Arc::new(self.change(false)));
                self.send(way, ask).await
            }
            _ => self.keyed(way).await,
        };
        // A client that finds nobody, or is asked to come later, waits a little; the others think for a moment.
        let pause = match said {
            Some(said) if said.status != 503 => self.random.next() % 10_000,
            _ => 20_000 + self.random.next() % 30_000,
        };
        sleep(Duration::from_micros(pause)).await;
    }

    async fn send(&self, way: usize, ask: Ask) -> Option<Said> {
        match self.number.is_multiple_of(PATIENT_EVERY) {
            true => self.recorder.send(way, ask).await,
            false => self.recorder.send_in_a_hurry(way, ask).await,
        }
    }

    async fn read(&mut self, way: usize, of_a_moment: bool) -> Option<Said> {
        let user = self.user();
        let at = of_a_moment.then(|| self.moment());
        self.send(way, Ask::Balance { user, at }).await
    }

    /// A page of a history, and at times those that follow it, on other ways.
    async fn pages(&mut self, way: usize) -> Option<Said> {
        let mut page = Page {
            user: self.user(),
            from: self.random.percent(30).then(|| self.moment()),
            to: AFTER_ALL + self.recorder.number(),
            ascending: self.random.percent(40),
            limit: usize::try_from(self.random.between(1, 30)).unwrap(),
            beyond: None,
        };
        let mut way = way;
        loop {
            let page_of = |beyond| Page {
                user: page.user.clone(),
                beyond,
                ..page
            };
            let said = self
                .send(way, Ask::History(Arc::new(page_of(page.beyond.clone()))))
                .await;
            let end = said.as_ref().and_then(end_of);
            if end.is_none() || self.random.percent(40) {
                return said;
            }
            page.beyond = end;
            way = self.way();
        }
    }

    /// A change with a key: at times sent by two ways at once, at times with a rival that has another body, and repeated
    /// on other ways until it is settled, or given up to be settled in the end.
    async fn keyed(&mut self, way: usize) -> Option<Said> {
        let change = Arc::new(self.change(true));
        let mut asks = vec![(way, Ask::Change(Arc::clone(&change)))];
        if self.random.percent(25) {
            let rival = Change {
                user: change.user.clone(),
                context: format!("{} rival", change.context),
                key: change.key.clone(),
                ..*change
            };
            let ask = if self.random.percent(40) {
                Arc::new(rival)
            } else {
                Arc::clone(&change)
            };
            asks.push((self.way(), Ask::Change(ask)));
        }
        let sent = asks.into_iter().map(|(way, ask)| self.send(way, ask));
        let mut said = join_all(sent).await.swap_remove(0);
        for _ in 0..self.random.next() % 4 {
            let settled = said.as_ref().is_some_and(|said| said.status != 503);
            if settled && !self.random.percent(10) {
                break;
            }
            sleep(Duration::from_millis(self.random.next() % 50)).await;
            let way = self.way();
            said = self.send(way, Ask::Change(Arc::clone(&change))).await;
        }
        said
    }

    fn way(&mut self) -> usize {
        usize::try_from(self.random.next() % self.recorder.urls.len() as u64).unwrap()
    }

    fn user(&mut self) -> String {
        match self.random.next() % 100 {
            0..60 => HOT[usize::try_from(self.random.next() % 3).unwrap()].to_owned(),
            60..97 => format!("cold {}", self.random.between(1, COLD)),
            _ => format!("new {} {}", self.number, self.step),
        }
    }

    /// Mostly now by the client's clock; late by up to a minute or an hour; in the future; or the same as others'.
    fn moment(&mut self) -> Micros {
        let now = clock();
        match self.random.next() % 100 {
            0..45 => now,
            45..70 => now - self.random.between(0, 60 * SECOND),
            70..78 => now - self.random.between(0, 3_600 * SECOND),
            78..83 => now + self.random.between(0, 3_600 * SECOND),
            _ => now / SECOND * SECOND,
        }
    }

    fn change(&mut self, keyed: bool) -> Change {
        let context = format!("client {} step {}", self.number, self.step);
        let amount = match self.random.next() % 100 {
            // Like no other, or like some others: each of those needs a verdict of its own all the same.
            0..2 => 100_000 + self.recorder.number(),
            2..4 => 200_000 + self.random.between(1, 5),
            4 => -100_000 - self.recorder.number(),
            5 => -200_000 - self.random.between(1, 5),
            // A walk that often runs into zero.
            6..60 => self.random.between(-9_000, 9_000),
            60..98 => self.random.between(-900, 1_000),
            _ => 0,
        };
        Change {
            user: self.user(),
            change: amount,
            timestamp: self.moment(),
            key: keyed.then(|| context.replace(' ', "-")),
            context,
        }
    }
}
