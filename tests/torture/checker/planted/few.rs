//! Violations that take a certain few requests to be seen, each planted among those that keep every promise.

use super::*;
use crate::evidence::Pause;

/// One user's requests, one after the other: each takes a second, and is carried out in the middle of it.
#[derive(Default)]
struct Few {
    model: Model,
    evidence: Evidence,
    seconds: u64,
}

fn few() -> Few {
    let mut evidence = nothing();
    evidence.stored.insert("hot".to_owned(), StoredUser::default());
    evidence.logs.push(Log {
        instance: "one".to_owned(),
        ..Log::default()
    });
    Few {
        evidence,
        ..Few::default()
    }
}

fn change(context: &str, amount: i64, key: Option<&str>) -> Ask {
    Ask::Change(Arc::new(Change {
        user: "hot".to_owned(),
        context: context.to_owned(),
        change: amount,
        timestamp: 1_000_000,
        key: key.map(str::to_owned),
    }))
}

fn read(at: Option<Micros>) -> Ask {
    let user = "hot".to_owned();
    Ask::Balance { user, at }
}

fn history(to: Micros, beyond: Option<PageEnd>) -> Ask {
    Ask::History(Arc::new(Page {
        user: "hot".to_owned(),
        from: None,
        to,
        ascending: true,
        limit: 1,
        beyond,
    }))
}

impl Few {
    /// When the next request is sent, carried out, and answered.
    fn next_second(&mut self) -> (Duration, Duration, Duration) {
        let sent_at = Duration::from_secs(self.seconds);
        self.seconds += 1;
        let millis = Duration::from_millis;
        (sent_at, sent_at + millis(500), sent_at + millis(900))
    }

    /// A request that is answered as it should be.
    fn send(mut self, ask: &Ask) -> Self {
        let (sent_at, at, ended_at) = self.next_second();
        let stored = self.evidence.stored.get_mut("hot").unwrap();
        let (said, about) = match ask {
            Ask::Balance { at: moment, .. } => {
                let moment = moment.unwrap_or(clock(at));
                (
                    balance("hot", moment, i64::try_from(self.model.balance_at(moment)).unwrap()),
                    moment,
                )
            }
            Ask::History(page) => (page_answer(stored, page), page.to),
            Ask::Change(change) => {
                let verdicts = (&mut self.evidence.verdicts, at);
                (
                    change_answer(change, &mut self.model, stored, verdicts, "one"),
                    change.timestamp,
                )
            }
        };
        finish(stored);
        let line = line(("one", at), ask, &said, about);
        self.evidence.logs[0].lines.push(line);
        let exchange = exchange(ask.clone(), (sent_at, ended_at), Ended::Answered(said));
        self.evidence.exchanges.push(exchange);
        self
    }

    /// A request that is answered so, and has its line, whatever the truth.
    fn send_to_be_told(mut self, ask: &Ask, said: Said) -> Self {
        let (sent_at, at, ended_at) = self.next_second();
        let about = match ask {
            Ask::Balance { at: moment, .. } => moment.unwrap_or(clock(at)),
            Ask::History(page) => page.to,
            Ask::Change(change) => change.timestamp,
        };
        let line = line(("one", at), ask, &said, about);
        self.evidence.logs[0].lines.push(line);
        let exchange = exchange(ask.clone(), (sent_at, ended_at), Ended::Answered(said));
        self.evidence.exchanges.push(exchange);
        self
    }

    /// What keeps every promise so far.
    fn sound(self) -> Self {
        let violations = check(&self.evidence);
        assert!(violations.is_empty(), "{}", summary(&violations));
        self
    }

    /// As it is, but for what is done to it here.
    fn but(&self, plant: impl FnOnce(&mut Evidence)) -> Evidence {
        let mut evidence = self.evidence.clone();
        plant(&mut evidence);
        evidence
    }

    /// As it is, but that the request of this place ended otherwise.
    fn ended(&self, place: usize, ended: Ended) -> Evidence {
        self.but(|evidence| evidence.exchanges[place].ended = ended)
    }
}

/// Of a user who has nothing.
fn refused(shortfall: u64) -> Said {
    let at = rfc3339(1_000_000);
    problem(
        403,
        json!({ "code": "insufficient_funds", "at": at, "shortfall": shortfall, "available": 0 }),
    )
}

fn coded(status: u16, code: &str) -> Said {
    problem(status, json!({ "code": code }))
}

#[test]
fn a_repeat_that_is_refused_after_its_change_was_stored_is_found() {
    let withdrawal = change("withdrawal", -5, Some("key"));
    let run = few().send(&change("deposit", 5, None)).send(&withdrawal).sound();
    // By then that would be so, were it another change.
    let mut repeated = run.send_to_be_told(&withdrawal, refused(5));
    found(&repeated.evidence, Kind::UnexplainedRefusal);
    // Of what is stored the client knows from this refusal at most.
    repeated.evidence = repeated.ended(1, Ended::Broken);
    found(&repeated.evidence, Kind::UnexplainedRefusal);
    // The same of a change that came first under the key.
    let rival = change("rival", -5, Some("key"));
    let run = few().send(&change("deposit", 5, None)).send(&withdrawal).sound();
    let run = run.send_to_be_told(&rival, refused(5));
    found(&run.evidence, Kind::UnexplainedRefusal);
}

#[test]
fn a_read_of_what_was_refused_until_then_is_found() {
    let withdrawal = change("withdrawal", -5, Some("key"));
    let early = balance("hot", 2_000_000, 0);
    let run = few().send(&withdrawal).send(&change("deposit", 5, None));
    let run = run.send_to_be_told(&read(Some(2_000_000)), early).send(&withdrawal);
    found(&run.evidence, Kind::StaleRead);
    // Had the first answer been lost, it might have been stored by then.
    let violations = check(&run.ended(0, Ended::Broken));
    assert!(violations.iter().all(|violation| violation.kind != Kind::StaleRead));
}

#[test]
fn a_refusal_before_its_change_was_stored_is_fine() {
    let withdrawal = change("withdrawal", -5, Some("key"));
    let run = few().send(&withdrawal).send(&change("deposit", 5, None));
    run.send(&withdrawal).send(&withdrawal).sound();
}

#[test]
fn a_repeat_that_is_denied_after_its_change_was_stored_is_found() {
    let deposit = change("deposit", 2_001, Some("key"));
    let run = few().send(&deposit).sound();
    let at = Duration::from_millis(1_500);
    let mut denied = run.send_to_be_told(&deposit, coded(403, "approver_denied"));
    denied.evidence.verdicts.push(verdict(2_001, false, at));
    found(&denied.evidence, Kind::WrongAnswer);
}

#[test]
fn a_key_that_is_said_to_be_used_too_early_or_by_its_own_change_is_found() {
    let (first, rival) = (change("first", 5, Some("key")), change("rival", 5, Some("key")));
    let reused = || coded(422, "idempotency_key_reused");
    few().send(&first).send_to_be_told(&rival, reused()).sound();
    let early = few().send_to_be_told(&rival, reused()).send(&first);
    found(&early.evidence, Kind::WrongAnswer);
    let own = few().send(&first).send_to_be_told(&first, reused());
    found(&own.evidence, Kind::WrongAnswer);
}

#[test]
fn a_replay_of_what_nobody_was_answered_is_found() {
    let deposit = change("deposit", 5, Some("key"));
    let run = few().send(&deposit).send(&deposit).sound();
    let only = run.but(|evidence| drop(evidence.exchanges.remove(0)));
    found(&only, Kind::WrongAnswer);
    found(&run.ended(0, Ended::NotReached), Kind::WrongAnswer);
    found(
        &run.ended(0, Ended::Answered(coded(503, "overloaded"))),
        Kind::WrongAnswer,
    );
    let violations = check(&run.ended(0, Ended::Broken));
    assert!(violations.is_empty(), "{}", summary(&violations));
}

#[test]
fn a_change_that_is_stored_though_no_replica_was_reached_is_found() {
    let run = few().send(&change("deposit", 5, None)).sound();
    let unreached = run.ended(0, Ended::NotReached);
    found(&unreached, Kind::RefusedYetStored);
    found(&unreached, Kind::DoubledLine);
}

fn verdict(amount: i64, approved: bool, at: Duration) -> Verdict {
    Verdict {
        user: "hot".to_owned(),
        change: amount,
        approved,
        asked_at: at,
        sent_at: at,
    }
}

#[test]
fn an_approval_that_is_used_twice_is_found() {
    let (first, second) = (change("first", 2_001, None), change("second", 2_001, None));
    let run = few().send(&first).send(&second).sound();
    for place in [0, 1] {
        found(
            &run.but(|evidence| drop(evidence.verdicts.remove(place))),
            Kind::Unapproved,
        );
    }
    // Nor is one enough that was given while both were under way; or two of which one came before either.
    let together = run.but(|evidence| {
        for exchange in &mut evidence.exchanges {
            exchange.ended_at = Duration::from_secs(2);
        }
    });
    assert!(check(&together).is_empty(), "{}", summary(&check(&together)));
    let mut one = together.clone();
    one.verdicts.remove(0);
    found(&one, Kind::Unapproved);
    let mut early = together;
    early.exchanges[0].sent_at = Duration::from_millis(600);
    found(&early, Kind::Unapproved);
}

#[test]
fn an_approval_that_comes_when_nothing_of_its_change_can_be_under_way_is_found() {
    let run = few().send(&change("deposit", 2_001, None));
    let lost = run.ended(0, Ended::Broken);
    assert!(check(&lost).is_empty());
    let mut late = lost;
    late.verdicts[0].asked_at = LONGEST_ANSWER;
    late.verdicts[0].sent_at = LONGEST_ANSWER + Duration::from_millis(1);
    found(&late, Kind::Unapproved);
}

#[test]
fn an_approval_that_was_not_given_during_its_change_is_found() {
    let millis = Duration::from_millis;
    let run = few().send(&read(None)).send(&change("deposit", 2_001, None)).sound();
    // Asked for before the change was sent; given after it was answered; given after the caller gave it up.
    let mut others = vec![(millis(900), millis(1_100)), (millis(1_100), millis(1_950))];
    for (asked_at, sent_at) in others.drain(..) {
        let other = run.but(|evidence| {
            evidence.verdicts[0].asked_at = asked_at;
            evidence.verdicts[0].sent_at = sent_at;
        });
        found(&other, Kind::Unapproved);
    }
    let given_up = run.but(|evidence| {
        evidence.exchanges[1].ended_at = millis(4_000);
        evidence.verdicts[0].asked_at = millis(1_100);
        evidence.verdicts[0].sent_at = millis(1_100) + LONGEST_VERDICT + millis(1);
    });
    found(&given_up, Kind::Unapproved);
}

#[test]
fn an_approval_that_comes_after_its_change_was_answered_to_another_request_is_found() {
    let deposit = change("deposit", 2_001, Some("key"));
    let run = few().send(&deposit).send(&deposit);
    // The first answer was lost; the repeat tells that it was stored.
    let lost = run.ended(0, Ended::Broken);
    assert!(check(&lost).is_empty());
    for at in [2, 7] {
        let mut late = lost.clone();
        late.verdicts[0].asked_at = Duration::from_secs(at);
        late.verdicts[0].sent_at = Duration::from_secs(at);
        found(&late, Kind::Unapproved);
    }
}

#[test]
fn a_line_that_stores_what_was_answered_with_a_failing_log_is_found() {
    let run = few().send(&change("deposit", 5, None)).send(&read(None)).sound();
    let failing = || Ended::Answered(coded(503, "operations_log_unavailable"));
    assert!(check(&run.ended(1, failing())).is_empty());
    found(&run.ended(0, failing()), Kind::DoubledLine);
}

#[test]
fn a_denial_that_is_used_twice_is_found() {
    let denied = |context| change(context, 2_002, None);
    let run = few().send(&denied("first")).send(&denied("second")).sound();
    let together = run.but(|evidence| {
        for exchange in &mut evidence.exchanges {
            exchange.ended_at = Duration::from_secs(2);
        }
        evidence.verdicts.remove(0);
    });
    found(&together, Kind::Unapproved);
}

#[test]
fn an_answer_before_its_line_is_found() {
    let run = few().send(&change("deposit", 5, None)).sound();
    let recovered = run.but(|evidence| evidence.logs[0].lines[0]["recovered"] = true.into());
    found(&recovered, Kind::MissingLine);
    // For one whose outcome was not known it is what is promised.
    let mut unknown = recovered;
    unknown.exchanges[0].ended = Ended::Answered(coded(503, "outcome_unknown"));
    assert!(check(&unknown).is_empty());
    let mut another = unknown.clone();
    another.logs[0].lines[0]["recovered"] = Value::Null;
    found(&another, Kind::MissingLine);
    unknown.logs[0].lines[0]["recovered"] = 1.into();
    found(&unknown, Kind::UnreadableLine);
}

#[test]
fn a_recovered_line_of_anything_but_a_stored_change_is_found() {
    let run = few().send(&change("withdrawal", -5, None)).send(&read(None)).sound();
    for place in [0, 1] {
        let recovered = run.but(|evidence| evidence.logs[0].lines[place]["recovered"] = true.into());
        found(&recovered, Kind::UnreadableLine);
    }
}

#[test]
fn a_line_that_says_when_in_another_way_or_at_another_time_is_found() {
    let run = few().send(&read(Some(5))).sound();
    for at in ["2026-01-31T12:00:00.5Z", "yesterday", "2026-02-31T12:00:00.000000Z"] {
        let other = run.but(|evidence| evidence.logs[0].lines[0]["at"] = at.into());
        found(&other, Kind::UnreadableLine);
    }
    for at in ["2026-01-31T11:59:58.999999Z", "2026-01-31T12:00:01.900001Z"] {
        let other = run.but(|evidence| evidence.logs[0].lines[0]["at"] = at.into());
        found(&other, Kind::MissingLine);
    }
}

#[test]
fn a_line_of_a_read_that_nobody_may_have_sent_is_found() {
    let asks = [read(Some(5)), read(None), history(2_000_000, None)];
    for ask in &asks {
        let run = few().send(&change("deposit", 5, None)).send(ask);
        // The answer was lost: the line is its.
        let lost = run.ended(1, Ended::Broken);
        assert!(check(&lost).is_empty(), "{}", summary(&check(&lost)));
        found(&run.ended(1, Ended::NotReached), Kind::DoubledLine);
        for (name, text) in [
            ("timestamp", "1970-01-01T00:00:07Z"),
            ("at", "2026-01-31T11:59:00.000000Z"),
            ("at", "2026-01-31T12:00:09.000000Z"),
        ] {
            let mut other = lost.clone();
            other.logs[0].lines[1][name] = text.into();
            found(&other, Kind::DoubledLine);
        }
    }
}

#[test]
fn a_line_of_a_lost_read_that_tells_a_balance_that_never_was_is_found() {
    for ask in [read(Some(1_000_000)), read(None)] {
        let run = few().send(&change("deposit", 5, None)).send(&ask);
        let mut lost = run.ended(1, Ended::Broken);
        assert!(check(&lost).is_empty());
        // That was so before the deposit.
        lost.logs[0].lines[1]["balance"] = 0.into();
        found(&lost, Kind::StaleRead);
    }
}

#[test]
fn an_answer_that_no_read_has_is_found() {
    for (status, code) in [
        (400, "invalid_request"),
        (404, "not_found"),
        (403, "insufficient_funds"),
    ] {
        for ask in [read(None), history(5, None)] {
            let run = few().send_to_be_told(&ask, coded(status, code));
            found(&run.evidence, Kind::WrongAnswer);
        }
    }
    few().send_to_be_told(&read(None), coded(503, "overloaded")).sound();
}

#[test]
fn a_service_that_fails_is_found() {
    for ask in [read(None), change("deposit", 5, None)] {
        let run = few().send_to_be_told(&ask, coded(503, "internal_error"));
        found(&run.evidence, Kind::WrongAnswer);
    }
}

#[test]
fn a_read_as_of_now_that_is_as_of_another_moment_is_found() {
    for moment in [BEGAN - 1_000_001, BEGAN + 1_900_001, 5] {
        let run = few().send_to_be_told(&read(None), balance("hot", moment, 0));
        found(&run.evidence, Kind::WrongAnswer);
    }
}

#[test]
fn an_answer_that_comes_too_late_is_found() {
    let run = few().send(&read(Some(5))).sound();
    let late = run.but(|evidence| evidence.exchanges[0].ended_at = LONGEST_ANSWER + Duration::from_millis(1));
    found(&late, Kind::Late);
}

#[test]
fn an_answer_that_a_replica_slept_over_is_late_unless_that_replica_gave_it() {
    let (woke_at, ended_at) = (Duration::from_secs(9), Duration::from_millis(9_500));
    let late = |way: usize, paused: usize| {
        few().send(&change("one", 1, None)).sound().but(|evidence| {
            evidence.logs.push(Log {
                instance: "two".to_owned(),
                ..Log::default()
            });
            evidence.logs[0].lines[0]["at"] = "2026-01-31T12:00:09.500000Z".into();
            evidence.pauses.push(Pause {
                replica: paused,
                from: Duration::from_millis(200),
                to: woke_at,
            });
            let exchange = &mut evidence.exchanges[0];
            (exchange.way, exchange.ended_at) = (way, ended_at);
        })
    };
    let (of_the_line, other, balancer) = (0, 1, 2);
    for way in [of_the_line, balancer] {
        let violations = check(&late(way, of_the_line));
        assert!(violations.is_empty(), "{way}: {}", summary(&violations));
        found(&late(way, other), Kind::Late);
    }
    let mut evidence = late(of_the_line, of_the_line);
    evidence.pauses[0].to = Duration::from_secs(3);
    found(&evidence, Kind::Late);
}

#[test]
fn an_answer_of_a_wrong_form_is_found() {
    let run = few()
        .send(&change("deposit", 5, None))
        .send(&read(Some(2_000_000)))
        .sound();
    for place in [0, 1] {
        let malformed = Ended::Malformed("the body is no JSON".to_owned());
        found(&run.ended(place, malformed), Kind::WrongAnswer);
    }
    // Moments that are none: in an answer, and in the lines.
    let bad = run.but(|evidence| evidence.exchanges[0].said_mut().unwrap().body["timestamp"] = "soon".into());
    found(&bad, Kind::WrongAnswer);
    let bad = run.but(|evidence| evidence.exchanges[1].said_mut().unwrap().body["timestamp"] = "soon".into());
    found(&bad, Kind::StaleRead);
    let bad = run.but(|evidence| evidence.logs[0].lines[0]["timestamp"] = "soon".into());
    found(&bad, Kind::ForgedLine);
    let bad = few()
        .send_to_be_told(&change("withdrawal", -5, None), refused(5))
        .sound();
    let bad = bad.but(|evidence| evidence.exchanges[0].said_mut().unwrap().body["at"] = "soon".into());
    found(&bad, Kind::UnexplainedRefusal);
}

#[test]
fn pages_that_skip_repeat_or_end_too_early_are_found() {
    let mut run = few();
    for context in ["first", "second", "third"] {
        run = run.send(&change(context, 5, None));
    }
    let end = |seq| PageEnd {
        cursor: "next".to_owned(),
        last: (1_000_000, seq),
    };
    let pages = [None, Some(end(1)), Some(end(2))].map(|beyond| history(2_000_000, beyond));
    for page in &pages {
        run = run.send(page);
    }
    let run = run.sound();
    let body = |evidence: &Evidence, page: usize| evidence.exchanges[3 + page].said().unwrap().body.clone();
    for (page, other) in [(1, 0), (1, 2), (2, 1)] {
        let other = run.but(|evidence| {
            let operations = body(evidence, other)["operations"].clone();
            evidence.exchanges[3 + page].said_mut().unwrap().body["operations"] = operations;
        });
        found(&other, Kind::StaleRead);
    }
    let anothers = run.but(|evidence| evidence.exchanges[3].said_mut().unwrap().body["userId"] = "cold".into());
    found(&anothers, Kind::StaleRead);
    let ended = run.but(|evidence| {
        let body = &mut evidence.exchanges[3].said_mut().unwrap().body;
        body.as_object_mut().unwrap().remove("nextCursor");
    });
    found(&ended, Kind::StaleRead);
    let endless = run.but(|evidence| evidence.exchanges[5].said_mut().unwrap().body["nextCursor"] = "next".into());
    found(&endless, Kind::StaleRead);
    for (name, value) in [
        ("operationId", json!("another")),
        ("context", json!("another")),
        ("approved", json!(true)),
    ] {
        let other = run.but(|evidence| evidence.exchanges[3].said_mut().unwrap().body["operations"][0][name] = value);
        found(&other, Kind::StaleRead);
    }
}
