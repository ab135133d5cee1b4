//! What the users do now: mostly what they may, and some of all that the service refuses.

use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::client::{Change, Request};
use super::dice::Dice;
use super::past::{DEMO_USER, OTHERS};

/// Before all accounts were opened.
const TOO_EARLY: OffsetDateTime = time::macros::datetime!(2025-12-31 23:59:59 UTC);

/// Larger than the default threshold, so that the Approver is asked; the stand-in approves it.
const BIG: (u32, u32) = (100_001, 900_000);

/// The stand-in denies it.
const TOO_BIG: (u32, u32) = (1_000_001, 2_000_000);

/// A change of every day.
const SMALL: (u32, u32) = (1, 500);

/// How far back changes are stamped that come late, in seconds.
const LATE: (u32, u32) = (60, 3_600);

/// One act after the other.
#[derive(Debug)]
pub(super) struct Mix {
    dice: Dice,
}

impl Mix {
    pub(super) fn new() -> Self {
        Self { dice: Dice::new(1) }
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
        let act = self.dice.below(100);
        let small = self.dice.between(SMALL.0, SMALL.1);
        let late = now - Duration::seconds(self.dice.between(LATE.0, LATE.1));
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
            90..94 => change("house", either_way(self.dice.between(BIG.0, BIG.1)), now),
            94..96 => change("castle", self.dice.between(TOO_BIG.0, TOO_BIG.1), now),
            _ => return Self::repeated(change("sent twice", either_way(small), now)),
        };
        vec![Request::Change(change)]
    }

    fn user(&mut self) -> String {
        format!("{DEMO_USER}-{}", self.dice.between(1, OTHERS))
    }

    /// Every tenth read is of `demo`, which no change of the mix is of: its history stays what it is.
    fn balance(&mut self, user: String, at: Option<OffsetDateTime>) -> Request {
        let user = if self.dice.percent(10) {
            DEMO_USER.to_owned()
        } else {
            user
        };
        Request::Balance { user, at }
    }

    fn history(&mut self, user: String) -> Request {
        let limit = u16::try_from(self.dice.between(5, 50)).expect("it is at most 50");
        Request::History { user, limit }
    }

    fn repeated(change: Change) -> Vec<Request> {
        let change = Request::Change(Change {
            idempotency_key: Some(Uuid::now_v7().to_string()),
            ..change
        });
        vec![change.clone(), change]
    }
}
