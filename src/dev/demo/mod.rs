//! The demo of `balance dev --demo`: some users who do something, so that metrics, histories and the operations log show
//! life. It is a client like any other: it knows the service's address, HTTP and JSON, and nothing else of it.
//!
//! | module | what |
//! |---|---|
//! | `client` | sends requests, and tells answers apart |
//! | `past` | what the users did before: the same at each start, and stored once |
//! | `mix` | what they do now |
//! | `tally` | how it went |

mod client;
mod mix;
mod past;
mod tally;

use std::time::Duration;

use time::OffsetDateTime;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use client::{Client, Fate};
use mix::Mix;
use tally::Tally;

pub use tally::DemoProgress;

/// The time from one act to the next: about 30 a second.
const PACE: Duration = Duration::from_millis(33);

/// How often progress is told.
const REPORT: Duration = Duration::from_secs(1);

/// Acts under way at most; while there are so many, none begins.
const MOST_UNDER_WAY: usize = 64;

/// How long acts under way may take after [`Demo::stop`].
const STOP_BOUND: Duration = Duration::from_secs(2);

/// How the demo gets on.
#[derive(Clone, Debug)]
pub enum DemoEvent {
    /// The users have their past; the operations now begin. The balance is that of the user `demo`.
    Began {
        /// As the service tells it.
        balance: i64,
    },
    /// Once a second.
    Progress(DemoProgress),
    /// It was stopped, after so much.
    Stopped(DemoProgress),
    /// The demo has ended by itself, for this reason.
    Ended(String),
}

/// A running demo. Dropped without [`stop`](Self::stop), it ends at once.
#[derive(Debug)]
pub struct Demo {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Demo {
    /// Begins: first the past of the users, then about 30 operations a second until [`stop`](Self::stop). While the service
    /// cannot answer (503, or nobody there), the demo waits as long as it is told to, up to 5 s at a time.
    pub fn start(url: String, observe: impl FnMut(DemoEvent) + Send + 'static) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(url, observe, stop.clone()));
        Self { stop, task }
    }

    /// Begins nothing more, waits for what is under way, at most 2 s, and returns when nothing is left.
    pub async fn stop(mut self) {
        self.stop.cancel();
        // It ends by itself within that bound; a demo that panicked has ended too.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(url: String, mut observe: impl FnMut(DemoEvent), stop: CancellationToken) {
    let client = match Client::new(url) {
        Ok(client) => client,
        Err(error) => return observe(DemoEvent::Ended(error.to_string())),
    };
    let remembered = stop.run_until_cancelled(past::tell(&client, OffsetDateTime::now_utc()));
    match remembered.await {
        None => return,
        Some(Err(unexpected)) => return observe(DemoEvent::Ended(unexpected.to_string())),
        Some(Ok(balance)) => observe(DemoEvent::Began { balance }),
    }
    let tally = act(&client, &mut observe, &stop).await;
    observe(DemoEvent::Stopped(tally.progress()));
}

/// Begins an act at each tick until the stop, and sees all of them end.
async fn act(client: &Client, observe: &mut impl FnMut(DemoEvent), stop: &CancellationToken) -> Tally {
    let mut mix = Mix::new();
    let mut tally = Tally::default();
    let mut under_way = JoinSet::new();
    let mut pause_ends = Instant::now();
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut report = interval(REPORT);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = report.tick() => observe(DemoEvent::Progress(tally.progress())),
            Some(ended) = under_way.join_next() => {
                if let Some(pause) = take(&mut tally, ended) {
                    pause_ends = pause_ends.max(Instant::now() + pause);
                }
            }
            _ = pace.tick() => {
                if under_way.len() < MOST_UNDER_WAY && Instant::now() >= pause_ends {
                    let act = mix.next(OffsetDateTime::now_utc());
                    let client = client.clone();
                    under_way.spawn(async move { client.send_in_turn(act).await });
                }
            }
        }
    }
    let ended = timeout(STOP_BOUND, async {
        while let Some(ended) = under_way.join_next().await {
            take(&mut tally, ended);
        }
    });
    if ended.await.is_err() {
        under_way.shutdown().await;
    }
    tally
}

/// Counts the answers of an act, and says how long the service wants to be left alone.
fn take(tally: &mut Tally, ended: Result<Vec<client::Answer>, tokio::task::JoinError>) -> Option<Duration> {
    // Only a defect of the demo itself gives none.
    let answers = ended.unwrap_or_default();
    let pauses = answers.into_iter().filter_map(|answer| {
        tally.add(&answer);
        match answer.fate {
            Fate::Unavailable(pause) => Some(pause),
            Fate::Accepted | Fate::Refused => None,
        }
    });
    pauses.max()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use poem::http::StatusCode;
    use poem::listener::{Acceptor, Listener, TcpListener};
    use poem::{EndpointExt, Request, Response, Server};
    use serde_json::json;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;

    /// A service on a free port that answers as `answer` says, until the test ends.
    async fn service(answer: impl Fn(&Request) -> Response + Send + Sync + 'static) -> String {
        let acceptor = TcpListener::bind("127.0.0.1:0").into_acceptor().await.unwrap();
        let address = acceptor.local_addr()[0].clone();
        let address = address.as_socket_addr().unwrap().to_string();
        let endpoint = poem::endpoint::make(move |request| {
            let response = answer(&request);
            async move { response }
        });
        tokio::spawn(Server::new_with_acceptor(acceptor).run(endpoint.boxed()));
        format!("http://{address}")
    }

    fn begin(url: String) -> (Demo, UnboundedReceiver<DemoEvent>) {
        let (tell, told) = unbounded_channel();
        let demo = Demo::start(url, move |event| drop(tell.send(event)));
        (demo, told)
    }

    fn good() -> Response {
        Response::builder().body(json!({ "balance": 2_000 }).to_string())
    }

    #[tokio::test]
    async fn a_service_that_cannot_answer_is_left_alone_as_long_as_it_says_and_nothing_is_left_out() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&asked);
        let url = service(move |request| {
            let mut noted = noted.lock().unwrap();
            let key = request.header("idempotency-key").map(str::to_owned);
            noted.push((Instant::now(), key));
            if noted.len() == 1 {
                let busy = Response::builder().status(StatusCode::SERVICE_UNAVAILABLE);
                return busy.header("retry-after", "1").finish();
            }
            good()
        });
        let (demo, mut told) = begin(url.await);
        let began = told.recv().await.unwrap();
        assert!(matches!(began, DemoEvent::Began { balance: 2_000 }), "{began:?}");
        demo.stop().await;
        let asked = asked.lock().unwrap();
        assert_eq!(asked[0].1, asked[1].1, "the same is asked again");
        let pause = asked[1].0 - asked[0].0;
        assert!(pause >= Duration::from_secs(1), "{pause:?}");
    }

    #[tokio::test]
    async fn operations_pause_while_the_service_cannot_answer_and_a_stop_leaves_none_under_way() {
        let url = service(move |request| {
            // The past is told with keys and the balance of `demo`; only the operations after it ask without.
            if request.header("idempotency-key").is_some() || request.uri().path() == "/demo/balance" {
                return good();
            }
            let busy = Response::builder().status(StatusCode::SERVICE_UNAVAILABLE);
            busy.header("retry-after", "60").finish()
        });
        let (demo, mut told) = begin(url.await);
        let mut reports = 0;
        while reports < 3 {
            match told.recv().await.unwrap() {
                DemoEvent::Progress(_) => reports += 1,
                DemoEvent::Began { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        demo.stop().await;
        let DemoEvent::Stopped(progress) = told.recv().await.unwrap() else {
            panic!("it says what was done");
        };
        // At its pace it would have been 60 by then.
        assert!(progress.unavailable >= 1 && progress.operations < 20, "{progress:?}");
        assert!(told.recv().await.is_none(), "nothing is left that could tell");
    }

    #[tokio::test]
    async fn a_past_that_is_spent_or_told_in_another_way_is_no_harm() {
        for code in ["insufficient_funds", "idempotency_key_reused"] {
            let url = service(move |request| {
                if request.uri().path() != "/changeBalance" {
                    return good();
                }
                let refused = Response::builder().status(StatusCode::FORBIDDEN);
                refused.body(json!({ "code": code }).to_string())
            });
            let (demo, mut told) = begin(url.await);
            let began = told.recv().await.unwrap();
            assert!(matches!(began, DemoEvent::Began { .. }), "{began:?}");
            demo.stop().await;
        }
    }

    #[tokio::test]
    async fn a_service_that_wants_none_of_it_ends_the_demo_with_the_reason() {
        let url = service(|_| {
            let refused = Response::builder().status(StatusCode::UNAUTHORIZED);
            refused.body(json!({ "detail": "Send a token." }).to_string())
        });
        let (_demo, mut told) = begin(url.await);
        let DemoEvent::Ended(reason) = told.recv().await.unwrap() else {
            panic!("it ends");
        };
        assert_eq!(reason, "account opened was answered 401 Unauthorized: Send a token.");
    }
}
