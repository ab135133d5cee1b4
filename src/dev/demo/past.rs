//! What the users did before the demo began.
//!
//! A day's operations follow from its date alone, and each has an idempotency key of its own: a later start repeats what is
//! stored, which changes nothing, and adds the days that have passed since. Only days that are over are told, so that
//! nothing is stamped in the future.

use fastrand::Rng;
use time::{Date, Duration, OffsetDateTime, Time, Weekday};
use tokio::time::sleep;

use super::client::{Change, Client, Fate, Request};

/// Whose history is a believable one.
pub(super) const DEMO_USER: &str = "demo";

/// The others are `demo-1` to `demo-20`.
pub(super) const OTHERS: u32 = 20;

/// How far back the days are told.
const DAYS: u16 = 30;

/// When all accounts were opened: the same at each start.
const OPENED: OffsetDateTime = time::macros::datetime!(2026-01-01 08:00 UTC);
const OPENING_BALANCE: i64 = 2_000;

/// An answer that the demo cannot go on after.
#[derive(Debug, thiserror::Error)]
#[error("{what} was answered {status}: {detail}")]
pub(super) struct Unexpected {
    what: &'static str,
    status: String,
    detail: String,
}

/// Stores the past of all users, as far as it is not stored, and returns the balance of `demo`.
///
/// # Errors
///
/// [`Unexpected`] if the service refuses for another reason than that the money has gone elsewhere, or that it
/// knows the day in another way.
pub(super) async fn tell(client: &Client, now: OffsetDateTime) -> Result<i64, Unexpected> {
    let others = (1..=OTHERS).map(|number| opening(format!("{DEMO_USER}-{number}")));
    for change in history(now).into_iter().chain(others) {
        let context = change.context;
        let answer = until_answered(client, &Request::Change(change)).await;
        // Whoever tries things out may have withdrawn from these users, and another version of the program may have told
        // the day in another way: what it stored is as good.
        let is_no_harm = ["insufficient_funds", "idempotency_key_reused"]
            .iter()
            .any(|code| answer.body["code"] == *code);
        if answer.fate == Fate::Refused && !is_no_harm {
            return Err(unexpected(context, &answer));
        }
    }
    let balance = Request::Balance {
        user: DEMO_USER.to_owned(),
        at: None,
    };
    let answer = until_answered(client, &balance).await;
    answer.body["balance"]
        .as_i64()
        .ok_or_else(|| unexpected("the balance", &answer))
}

/// Sends it again until the service can answer.
async fn until_answered(client: &Client, request: &Request) -> super::client::Answer {
    loop {
        let answer = client.send(request).await;
        match answer.fate {
            Fate::Unavailable(pause) => sleep(pause).await,
            Fate::Accepted | Fate::Refused => return answer,
        }
    }
}

fn unexpected(what: &'static str, answer: &super::client::Answer) -> Unexpected {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    Unexpected {
        what,
        status: answer.status.map(|status| status.to_string()).unwrap_or_default(),
        detail: text(&answer.body["detail"]),
    }
}

fn opening(user: String) -> Change {
    Change {
        user,
        context: "account opened",
        balance_change: OPENING_BALANCE,
        at: OPENED,
        idempotency_key: Some("demo-opened".to_owned()),
    }
}

/// All that `demo` did until yesterday, the earliest first.
fn history(now: OffsetDateTime) -> Vec<Change> {
    let today = now.to_offset(time::UtcOffset::UTC).date();
    let days = (1..=i64::from(DAYS)).rev().map(|ago| today - Duration::days(ago));
    std::iter::once(opening(DEMO_USER.to_owned()))
        .chain(days.flat_map(day))
        .collect()
}

/// What `demo` does on a day.
fn day(date: Date) -> Vec<Change> {
    let number = date.to_julian_day();
    let mut rng = Rng::with_seed(u64::from(number.unsigned_abs()));
    let mut changes = Vec::new();
    let mut add = |hour: u8, minute: i64, context: &'static str, balance_change: i64| {
        let begin_of_hour = Time::from_hms(hour, 0, 0).expect("it is below 24");
        changes.push(Change {
            user: DEMO_USER.to_owned(),
            context,
            balance_change,
            at: date.with_time(begin_of_hour).assume_utc() + Duration::minutes(minute),
            idempotency_key: Some(format!("demo-{date}-{}", context.replace(' ', "-"))),
        });
    };
    let minutes = [(); 4].map(|()| rng.i64(0..60));
    let [coffee, lunch, groceries, cinema] = [(3, 6), (9, 16), (25, 95), (12, 30)].map(|(from, to)| rng.i64(from..=to));
    let [has_coffee, has_lunch, has_groceries, has_cinema] = [60, 50, 40, 12].map(|chance| rng.u32(0..100) < chance);
    let at_work = !matches!(date.weekday(), Weekday::Saturday | Weekday::Sunday);

    if date.day() == 3 {
        add(6, 0, "rent", -900);
    }
    if date.day() == 10 {
        add(6, 5, "telephone", -25);
    }
    if date.day() == 15 {
        add(6, 10, "electricity", -70);
    }
    if at_work && has_coffee {
        add(8, minutes[0], "coffee", -coffee);
    }
    // Every second Friday.
    if number.rem_euclid(14) == 4 {
        add(10, 0, "salary", 1_500);
    }
    if at_work && has_lunch {
        add(12, minutes[1], "lunch", -lunch);
    }
    if has_groceries {
        add(17, minutes[2], "groceries", -groceries);
    }
    if has_cinema {
        add(20, minutes[3], "cinema", -cinema);
    }
    changes
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_history_is_in_order_never_negative_and_has_each_key_once() {
        for ahead in 0..800 {
            let now = datetime!(2026-02-15 00:00 UTC) + Duration::days(ahead);
            let history = history(now);
            let mut balance = 0;
            for change in &history {
                balance += change.balance_change;
                assert!(balance > 0, "{now}: {change:?}");
                assert!(change.at < now, "{now}: {change:?}");
            }
            assert!(history.is_sorted_by_key(|change| change.at), "{history:?}");
            let keys: HashSet<_> = history
                .iter()
                .map(|change| change.idempotency_key.clone().unwrap())
                .collect();
            assert_eq!(keys.len(), history.len());
            let of = |context| history.iter().filter(|change| change.context == context).count();
            assert!(
                of("salary") >= 2 && of("groceries") >= 4 && of("coffee") >= 4,
                "{history:?}"
            );
            // The money of one window lasts for the next, wherever they lie.
            assert!(balance >= OPENING_BALANCE, "{now}: {balance}");
        }
    }

    #[test]
    fn a_day_is_told_in_the_same_way_at_each_start() {
        let first = history(datetime!(2026-11-20 00:00 UTC));
        let later = history(datetime!(2026-11-26 23:59 UTC));
        let kept = |change: &&Change| {
            change.at > datetime!(2026-10-27 00:00 UTC) && change.at < datetime!(2026-11-20 00:00 UTC)
        };
        let [first, later] = [&first, &later].map(|history| history.iter().filter(kept).collect::<Vec<_>>());
        assert_eq!(first, later);
        assert!(first.len() > 20);
    }
}
