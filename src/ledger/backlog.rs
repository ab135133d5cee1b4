//! How much may wait for its turn, so that what is admitted is answered in time and what is not is refused at once.
//!
//! By Little's law, what arrives behind `waiting` operations waits for `waiting / rate`. A queue is full when that is more
//! than its bound. The rate is that of answers given lately, which says nothing while there is little to answer, so it is
//! asked only of a queue that is seen to be slow: the last answer was long in coming, or none has come for long.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// So many may always wait: a batch must find its next one ready, however slow it is.
const ALWAYS: usize = 256;
/// A queue is slow when its operations take longer than this part of the bound.
const SLOW: u32 = 8;
/// Over how long the rate is taken, at least.
const WINDOW: Duration = Duration::from_secs(1);

/// The operations of one queue, from when they join it to when they are answered.
#[derive(Debug)]
pub struct Backlog {
    began: Instant,
    bound: Duration,
    waiting: AtomicUsize,
    /// When an answer was given last, or a first operation came; in microseconds since `began`.
    progress: AtomicU64,
    /// How long the operation that was answered last had waited, in microseconds.
    sojourn: AtomicU64,
    rate: Mutex<Rate>,
}

/// An operation's place in a backlog, given back when dropped.
#[derive(Debug)]
pub struct Waiting {
    backlog: Arc<Backlog>,
    since: Instant,
}

/// Answers in this window and the one before it.
#[derive(Debug)]
struct Rate {
    began: Instant,
    count: usize,
    before: (usize, Duration),
}

impl Backlog {
    /// An empty one, in which nothing is to wait longer than `bound`.
    pub fn new(bound: Duration) -> Arc<Self> {
        let began = Instant::now();
        Arc::new(Self {
            began,
            bound,
            waiting: AtomicUsize::new(0),
            progress: AtomicU64::new(0),
            sojourn: AtomicU64::new(0),
            rate: Mutex::new(Rate {
                began,
                count: 0,
                before: (0, Duration::ZERO),
            }),
        })
    }

    /// Takes a place. Whoever is about to begin an operation asks [`is_full`](Self::is_full) first.
    pub fn enter(self: &Arc<Self>) -> Waiting {
        let since = Instant::now();
        if self.waiting.fetch_add(1, Ordering::Relaxed) == 0 {
            // What the last one waited for, perhaps an hour ago, says nothing of now.
            self.sojourn.store(0, Ordering::Relaxed);
            self.progress.store(self.micros(since), Ordering::Relaxed);
        }
        Waiting {
            backlog: Arc::clone(self),
            since,
        }
    }

    /// How many are in it.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whether one operation more would wait for too long.
    pub fn is_full(&self) -> bool {
        let waiting = self.waiting.load(Ordering::Relaxed);
        if waiting < ALWAYS {
            return false;
        }
        let now = Instant::now();
        self.is_slow(now) && waiting >= self.allowed(now)
    }

    fn is_slow(&self, now: Instant) -> bool {
        let since_progress = self.micros(now).saturating_sub(self.progress.load(Ordering::Relaxed));
        let longest = since_progress.max(self.sojourn.load(Ordering::Relaxed));
        Duration::from_micros(longest) > self.bound / SLOW
    }

    /// So many are answered within the bound.
    fn allowed(&self, now: Instant) -> usize {
        let rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, period) = (
            rate.count + rate.before.0,
            now.duration_since(rate.began) + rate.before.1,
        );
        let parts = period.as_micros().max(1);
        usize::try_from(self.bound.as_micros() * count as u128 / parts).unwrap_or(usize::MAX)
    }

    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.duration_since(self.began).as_micros()).unwrap_or(u64::MAX)
    }
}

impl Waiting {
    /// Tells that operations which wait together with this one are answered now, and how many of them well: an answer that
    /// time ran out says nothing of what could be answered in time.
    pub fn answered(&self, well: usize) {
        let (backlog, now) = (&self.backlog, Instant::now());
        let sojourn = u64::try_from(now.duration_since(self.since).as_micros()).unwrap_or(u64::MAX);
        backlog.sojourn.store(sojourn, Ordering::Relaxed);
        backlog.progress.store(backlog.micros(now), Ordering::Relaxed);
        if well > 0 {
            let mut rate = backlog.rate.lock().unwrap_or_else(PoisonError::into_inner);
            rate.add(well, now);
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.backlog.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Rate {
    fn add(&mut self, count: usize, now: Instant) {
        self.count += count;
        let period = now.duration_since(self.began);
        if period >= WINDOW {
            // After a time without much to do, what was done tells nothing.
            let before = if period < 2 * WINDOW {
                (self.count, period)
            } else {
                (0, Duration::ZERO)
            };
            (self.before, self.count, self.began) = (before, 0, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const BOUND: Duration = Duration::from_secs(2);

    fn enter(backlog: &Arc<Backlog>, count: usize) -> Vec<Waiting> {
        (0..count).map(|_| backlog.enter()).collect()
    }

    /// Answers so many of those that came first.
    fn answer(waiting: &mut Vec<Waiting>, count: usize) {
        waiting[0].answered(count);
        waiting.drain(..count);
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_admitted_while_answers_come_quickly() {
        let backlog = Backlog::new(BOUND);
        let _burst = enter(&backlog, 100_000);
        advance(Duration::from_millis(200)).await;
        assert!(!backlog.is_full());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_queue_takes_as_many_as_it_answers_within_the_bound() {
        let backlog = Backlog::new(BOUND);
        let mut waiting = enter(&backlog, 5_000);
        for _ in 0..4 {
            advance(Duration::from_secs(1)).await;
            answer(&mut waiting, 500);
        }
        // 500 a second for two seconds, as well as that is known.
        assert!(backlog.is_full());
        waiting.truncate(1_700);
        assert!(backlog.is_full());
        waiting.truncate(900);
        assert!(!backlog.is_full());
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_gives_no_answer_fills_up_and_opens_when_it_does() {
        let backlog = Backlog::new(BOUND);
        let mut waiting = enter(&backlog, ALWAYS);
        assert!(!backlog.is_full());
        advance(Duration::from_secs(1)).await;
        assert!(backlog.is_full());
        answer(&mut waiting, 1);
        assert!(!backlog.is_full(), "there is always room for so many");
        waiting.extend(enter(&backlog, 10));
        assert!(backlog.is_full());
        waiting.clear();
        waiting.extend(enter(&backlog, 10_000));
        waiting[0].answered(1);
        waiting.last().unwrap().answered(1);
        assert!(!backlog.is_full(), "quick again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_after_a_pause_is_not_held_to_what_was_slow_before_it() {
        let backlog = Backlog::new(BOUND);
        let slow = backlog.enter();
        advance(Duration::from_secs(1)).await;
        slow.answered(1);
        drop(slow);
        advance(Duration::from_secs(3_600)).await;
        let _burst = enter(&backlog, 2 * ALWAYS);
        assert!(!backlog.is_full());
    }

    #[tokio::test(start_paused = true)]
    async fn answers_that_time_ran_out_do_not_count_as_a_rate() {
        let backlog = Backlog::new(BOUND);
        let mut waiting = enter(&backlog, 10_000);
        advance(Duration::from_secs(5)).await;
        waiting[0].answered(0);
        waiting.truncate(ALWAYS);
        assert!(backlog.is_full());
    }
}
