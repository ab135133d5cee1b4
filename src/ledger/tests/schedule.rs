//! Schedules: drawn from a seed, the same for the same seed.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::RngExt;
use proptest::test_runner::{RngAlgorithm, TestRng};
use uuid::Uuid;

use super::*;
use crate::domain::Context;
use crate::store::fake::{Faults, Layout};

/// The places for operations under way in each replica; more than a schedule has operations.
pub(super) const PLACES: usize = 64;

/// 2026-01-31T12:00:00Z in microseconds. Moments are few, so that operations often share one.
const BASE: i64 = 1_769_860_800_000_000;
const MOMENTS: i64 = 12;

/// What kind of trouble there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Course {
    /// None but that replicas interleave.
    Healthy,
    /// Statements fail, and are known to have failed; other writers are faster.
    Failing,
    /// Results of commits are lost.
    Doubtful,
    /// Statements are slow or never answered, as are verdicts.
    Hanging,
    /// Calls of the store panic.
    Panicking,
    /// As doubtful, and a replica's log cannot be written for a while.
    LogFails,
}

/// What is asked of a replica.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) after: Duration,
    pub(super) replica: usize,
    pub(super) what: What,
    /// For a big change: it is looked at first, and then a verdict is waited for.
    pub(super) verdict_takes: Option<Duration>,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    Change(Proposal),
    Read {
        user_id: UserId,
        figure: Figure,
        at: Timestamp,
    },
}

/// A log's disk takes so many bytes more and is full then, from a moment on and for so long.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogOutage {
    pub(super) after: Duration,
    pub(super) bytes: usize,
    pub(super) lasts: Duration,
}

pub(super) struct Schedule {
    pub(super) course: Course,
    pub(super) replicas: usize,
    pub(super) users: Vec<UserId>,
    pub(super) asks: Vec<Ask>,
    pub(super) timeout: Duration,
    pub(super) config: LedgerConfig,
    pub(super) batches_apart: usize,
    pub(super) sync: SyncPolicy,
    pub(super) faults: Faults,
    pub(super) layout: Layout,
    pub(super) log_outage: Option<LogOutage>,
    /// For what is drawn while it runs.
    pub(super) random: TestRng,
}

impl Ask {
    pub(super) fn user_id(&self) -> &UserId {
        match &self.what {
            What::Change(proposal) => &proposal.operation.user_id,
            What::Read { user_id, .. } => user_id,
        }
    }
}

pub(super) fn moment(number: i64) -> Timestamp {
    Timestamp::from_unix_microseconds(BASE + number).unwrap()
}

fn milliseconds(random: &mut TestRng, from: u64, to: u64) -> Duration {
    Duration::from_millis(random.random_range(from..=to))
}

fn faults(course: Course, random: &mut TestRng) -> Faults {
    let mut up_to = |most: u32| random.random_range(0..=most);
    match course {
        Course::Healthy => Faults {
            way_ms: 10,
            ..Faults::default()
        },
        Course::Failing => Faults {
            busy: up_to(5),
            unreachable: up_to(20),
            refused: up_to(20),
            overtaken: up_to(50),
            way_ms: 30,
            ..Faults::default()
        },
        Course::Doubtful | Course::LogFails => Faults {
            refused: up_to(5),
            broken: up_to(60),
            silent: up_to(5),
            overtaken: up_to(30),
            way_ms: 30,
            ..Faults::default()
        },
        Course::Panicking => Faults {
            broken: up_to(10),
            panics: up_to(20),
            way_ms: 30,
            ..Faults::default()
        },
        Course::Hanging => Faults {
            busy: up_to(20),
            broken: up_to(20),
            silent: up_to(60),
            overtaken: up_to(10),
            way_ms: 400,
            ..Faults::default()
        },
    }
}

impl Schedule {
    pub(super) fn draw(seed: u64, course: Course) -> Self {
        let mut bytes = [course as u8; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let users = random.random_range(1..=4);
        let users: Vec<_> = (0..users)
            .map(|number| UserId::new(format!("user-{number}")).unwrap())
            .collect();
        let replicas = random.random_range(1..=3);
        let mut one_of = |choices: &[usize]| choices[random.random_range(0..choices.len())];
        let config = LedgerConfig {
            operations_in_flight: PLACES,
            commit_batch_users: one_of(&[1, 2, 256, 256]),
            commit_lanes: one_of(&[1, 2]),
            read_statements: one_of(&[1, 2]),
            longest_wait: Duration::from_secs(2),
        };
        let batches_apart = one_of(&[0, 1, 4]);
        let layout = Layout {
            segment_moments: one_of(&[1, 2, 3, 100]),
            near: one_of(&[0, 1, 2, 100]),
            reach: one_of(&[0, 1, 2, 100]),
        };
        let timeout = Duration::from_millis(one_of(&[300, 1_000, 2_500, 5_000]) as u64);
        let timeout = timeout.max(Duration::from_secs(if course == Course::Healthy { 5 } else { 0 }));
        let log_outage = (course == Course::LogFails).then(|| LogOutage {
            after: milliseconds(&mut random, 0, 400),
            bytes: random.random_range(0..2_000),
            lasts: milliseconds(&mut random, 1, 800),
        });
        let mut schedule = Self {
            course,
            replicas,
            users,
            asks: Vec::new(),
            timeout,
            config,
            batches_apart,
            sync: [SyncPolicy::Always, SyncPolicy::Never][random.random_range(0..2)],
            faults: faults(course, &mut random),
            layout,
            log_outage,
            random,
        };
        schedule.draw_asks();
        schedule
    }

    fn draw_asks(&mut self) {
        let spans = if self.course == Course::Hanging { 2..4 } else { 0..3 };
        let span = [5, 200, 1_500, 6_000][self.random.random_range(spans)];
        for number in 0..self.random.random_range(4..=28) {
            let after = milliseconds(&mut self.random, 0, span);
            let ask = match self.random.random_range(0..10) {
                0 | 1 => self.read(after),
                2 | 3 => self.repeat(after, number).unwrap_or_else(|| self.change(after, number)),
                _ => self.change(after, number),
            };
            self.asks.push(ask);
        }
    }

    fn read(&mut self, after: Duration) -> Ask {
        Ask {
            after,
            replica: self.random.random_range(0..self.replicas),
            what: What::Read {
                user_id: self.users[self.random.random_range(0..self.users.len())].clone(),
                figure: [Figure::Balance, Figure::Available][self.random.random_range(0..2)],
                at: moment(self.random.random_range(-1..=MOMENTS)),
            },
            verdict_takes: None,
        }
    }

    fn change(&mut self, after: Duration, number: u128) -> Ask {
        let random = &mut self.random;
        let balance_change = match random.random_range(0..20) {
            0 => i64::MAX - random.random_range(0..20),
            1 => 0,
            2..=10 => random.random_range(1..=50),
            _ => random.random_range(-50..=-1),
        };
        let operation = Operation {
            id: OperationId(Uuid::from_u128(number)),
            user_id: self.users[random.random_range(0..self.users.len())].clone(),
            context: Context::new(format!("change {number}")).unwrap(),
            balance_change,
            timestamp: moment(random.random_range(0..MOMENTS)),
            caller: None,
        };
        let key = random
            .random_bool(0.4)
            .then(|| format!("key-{}", random.random_range(0..30)));
        let precondition = match random.random_range(0..10) {
            0 => Some(Precondition::AnyStored),
            1 | 2 => Some(Precondition::OneOf(vec![
                random.random_range(0..4),
                random.random_range(0..12),
            ])),
            _ => None,
        };
        let late = random.random_ratio(if self.course == Course::Hanging { 4 } else { 1 }, 10);
        // Where all is well, a verdict leaves time for the rest.
        let most = match self.course {
            Course::Healthy => self.timeout / 2,
            _ => self.timeout - Duration::from_millis(1),
        };
        Ask {
            after,
            replica: random.random_range(0..self.replicas),
            what: What::Change(Proposal {
                operation: Arc::new(operation),
                idempotency_key: key.map(|key| IdempotencyKey::new(key).unwrap()),
                precondition,
                approved: late,
            }),
            verdict_takes: late.then(|| random.random_range(Duration::ZERO..=most)),
        }
    }

    /// A change with a key once more, under another name: at the same time or later, anywhere.
    fn repeat(&mut self, after: Duration, number: u128) -> Option<Ask> {
        let keyed = self.asks.iter().filter_map(|ask| match &ask.what {
            What::Change(proposal) if proposal.idempotency_key.is_some() => Some((ask, proposal)),
            _ => None,
        });
        let keyed: Vec<_> = keyed.collect();
        let (first, proposal) = *keyed.get(self.random.random_range(0..=keyed.len()))?;
        let operation = Operation {
            id: OperationId(Uuid::from_u128(number)),
            ..proposal.operation.as_ref().clone()
        };
        let what = What::Change(Proposal {
            operation: Arc::new(operation),
            ..proposal.clone()
        });
        Some(Ask {
            after: after.max(first.after),
            replica: self.random.random_range(0..self.replicas),
            what,
            verdict_takes: first.verdict_takes,
        })
    }

    /// When all trouble is over: a deposit of nothing for every user from every replica.
    pub(super) fn last_asks(&self) -> Vec<Ask> {
        let everyone = (0..self.replicas).flat_map(|replica| self.users.iter().map(move |user_id| (replica, user_id)));
        let asks = (1_000..).zip(everyone).map(|(number, (replica, user_id))| {
            let operation = Operation {
                id: OperationId(Uuid::from_u128(number)),
                user_id: user_id.clone(),
                context: Context::new(format!("last {number}")).unwrap(),
                balance_change: 0,
                timestamp: moment(MOMENTS),
                caller: None,
            };
            Ask {
                after: Duration::ZERO,
                replica,
                what: What::Change(Proposal {
                    operation: Arc::new(operation),
                    idempotency_key: None,
                    precondition: None,
                    approved: false,
                }),
                verdict_takes: None,
            }
        });
        asks.collect()
    }
}
