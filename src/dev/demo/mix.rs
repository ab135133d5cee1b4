//! What the users do now: mostly what they may, and some of all that the service refuses.

use std::ops::RangeInclusive;

use fastrand::Rng;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::client::{Change, Request};
use super::past::{DEMO_USER, OTHERS};

/// Before all accounts were opened.
const TOO_EARLY: OffsetDateTime = time::macros::datetime!(2025-12-31 23:59:59 UTC);

/// Larger than the default threshold, so that the Approver is asked; the stand-in approves it.
const BIG: RangeInclusive<i64> = 100_001..=900_000;

/// The stand-in denies it.
const TOO_BIG: RangeInclusive<i64> = 1_000_001..=2_000_000;

/// A change of every day.
const SMALL: RangeInclusive<i64> = 1..=500;

/// How far back changes are stamped that come late, in seconds.
const LATE: RangeInclusive<i64> = 60..=3_600;

/// One act after the other.
#[derive(Debug)]
pub(super) struct Mix {
    rng: Rng,
}

impl Mix {
    pub(super) fn new() -> Self {
        Self { rng: Rng::with_seed(1) }
    }

    /// The next act: requests to be sent in turn.
    pub(super) fn next(&mut self, now: OffsetDateTime) -> Vec<Request> {
        let user = self.user();
        let change = |context, balance_change, at| Change {
            user: user.clone(),
            context,
            balance_change,
            at,
            idempotency_key: None,
        };
        let act = self.rng.u32(0..100);
        let small = self.rng.i64(SMALL);
        let late = now - Duration::seconds(self.rng.i64(LATE));
        // As often in as out, so that balances stay what they are in the long run.
        let either_way = |amount: i64| if act.is_multiple_of(2) { amount } else { -amount };
        let change = match act {
            0..38 => return vec![self.balance(user, None)],
            38..46 => return vec![self.balance(user, Some(late))],
            46..52 => return vec![self.history(user)],
            52..66 => change("sale", small, now),
            66..80 => change("purchase", -small, now),
            80..86 => change("booked late", either_way(small), late),
            86..90 => change("spent before it was there", -small, TOO_EARLY),
            90..94 => change("house", either_way(self.rng.i64(BIG)), now),
            94..96 => change("castle", self.rng.i64(TOO_BIG), now),
            _ => return Self::repeated(change("sent twice", either_way(small), now)),
        };
        vec![Request::Change(change)]
    }

    fn user(&mut self) -> String {
        format!("{DEMO_USER}-{}", self.rng.u32(1..=OTHERS))
    }

    /// Every tenth read is of `demo`, which no change of the mix is of: its history stays what it is.
    fn balance(&mut self, user: String, at: Option<OffsetDateTime>) -> Request {
        let user = if self.rng.u32(0..10) == 0 {
            DEMO_USER.to_owned()
        } else {
            user
        };
        Request::Balance { user, at }
    }

    fn history(&mut self, user: String) -> Request {
        Request::History {
            user,
            limit: self.rng.u16(5..=50),
        }
    }

    fn repeated(change: Change) -> Vec<Request> {
        let change = Request::Change(Change {
            idempotency_key: Some(Uuid::now_v7().to_string()),
            ..change
        });
        vec![change.clone(), change]
    }
}
