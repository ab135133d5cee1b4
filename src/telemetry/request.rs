//! Which request something is done for.

use std::sync::Arc;

use futures_util::future::Either;
use serde_json::Value;

use super::TraceContext;
use super::spans::exports;

/// The longest id of a request that is taken over.
const LONGEST_ID: usize = 128;
/// So many requests of a batch are named with what happens to it.
const MOST_NAMED: usize = 16;

tokio::task_local! {
    static CAUSE: Cause;
}

/// What is known of a request by its headers alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestContext {
    /// Its id: 1 to 128 visible ASCII characters.
    pub id: Box<str>,
    /// Its place in a trace.
    pub trace: TraceContext,
}

impl RequestContext {
    /// A request with this id, if it is 1 to 128 visible ASCII characters; otherwise a new one is made, of 32 hexadecimal
    /// digits.
    pub fn new(id: Option<&[u8]>, trace: TraceContext) -> Self {
        let is_fit = |id: &&[u8]| (1..=LONGEST_ID).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic);
        let id = id.filter(is_fit).and_then(|id| std::str::from_utf8(id).ok());
        Self {
            id: id.map_or_else(Self::new_id, Box::from),
            trace,
        }
    }

    /// A new id, for what is answered without a request.
    pub fn new_id() -> Box<str> {
        format!("{:032x}", rand::random::<u128>()).into()
    }
}

/// The request, or the requests of a batch, that something is done for.
#[derive(Clone, Debug)]
pub(super) enum Cause {
    Request(Arc<RequestContext>),
    /// Some of them, and how many there are.
    Batch(Arc<[Arc<RequestContext>]>, usize),
}

impl Cause {
    /// The first of these requests, if there are any.
    fn of<'a>(requests: impl IntoIterator<Item = Option<&'a Arc<RequestContext>>>) -> Option<Self> {
        let mut named = Vec::new();
        let mut count = 0;
        for request in requests.into_iter().flatten() {
            count += 1;
            if named.len() < MOST_NAMED {
                named.push(Arc::clone(request));
            }
        }
        match count {
            0 | 1 => named.pop().map(Cause::Request),
            _ => Some(Cause::Batch(named.into(), count)),
        }
    }
}

/// The request that this runs for, if it is one.
pub fn current() -> Option<Arc<RequestContext>> {
    let request = |cause: &Cause| match cause {
        Cause::Request(request) => Some(Arc::clone(request)),
        Cause::Batch(..) => None,
    };
    CAUSE.try_with(request).ok().flatten()
}

/// What this runs for.
pub(super) fn cause() -> Option<Cause> {
    CAUSE.try_with(Cause::clone).ok()
}

/// Runs what is done for a request.
pub fn scope<F: Future>(request: Arc<RequestContext>, work: F) -> impl Future<Output = F::Output> {
    CAUSE.scope(Cause::Request(request), work)
}

/// Carries what this runs for into another task.
pub fn carried<F: Future>(work: F) -> impl Future<Output = F::Output> {
    match CAUSE.try_with(Cause::clone) {
        Ok(cause) => Either::Left(CAUSE.scope(cause, work)),
        Err(_) => Either::Right(work),
    }
}

/// Says what happened to all of these requests; the events name the first of them.
pub fn caused_by<'a, T>(
    requests: impl IntoIterator<Item = Option<&'a Arc<RequestContext>>>,
    say: impl FnOnce() -> T,
) -> T {
    match Cause::of(requests) {
        Some(cause) => CAUSE.sync_scope(cause, say),
        None => say(),
    }
}

/// Runs what is done for all of these requests at once. They are named only where somebody collects traces: that takes a
/// moment for each of them.
pub fn shared_by<'a, F: Future>(
    requests: impl IntoIterator<Item = Option<&'a Arc<RequestContext>>>,
    work: F,
) -> impl Future<Output = F::Output> {
    match exports().then(|| Cause::of(requests)).flatten() {
        Some(cause) => Either::Left(CAUSE.scope(cause, work)),
        None => Either::Right(work),
    }
}

/// Gives the fields that an event gets from what it is caused by, in the order in which they are written.
pub(super) fn each_field(mut field: impl FnMut(&'static str, Value)) {
    // Where nothing is known of a request there are none.
    let _ = CAUSE.try_with(|cause| match cause {
        Cause::Request(request) => {
            field("request_id", (*request.id).into());
            field("trace_id", request.trace.trace_id().to_string().into());
        }
        Cause::Batch(requests, count) => {
            let ids: Vec<_> = requests.iter().map(|request| &*request.id).collect();
            field("requests", (*count).into());
            field("request_ids", ids.join(",").into());
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: &str) -> Arc<RequestContext> {
        Arc::new(RequestContext::new(Some(id.as_bytes()), TraceContext::begun()))
    }

    fn fields() -> Vec<String> {
        let mut fields = Vec::new();
        each_field(|name, value| {
            fields.push(format!(
                "{name}={}",
                value.as_str().map_or(value.to_string(), str::to_owned)
            ))
        });
        fields
    }

    #[test]
    fn an_id_of_1_to_128_visible_characters_is_taken_over_and_any_other_made_anew() {
        for id in ["a", "req-1:2/3~!", &"x".repeat(128)] {
            assert_eq!(&*request(id).id, id);
        }
        for id in ["", "a b", "a\tb", "é", "a\u{7f}", &"x".repeat(129)] {
            let made = request(id).id.clone();
            assert_eq!(made.len(), 32, "{id:?}");
            assert_ne!(made, request(id).id, "{id:?}");
        }
    }

    #[tokio::test]
    async fn events_name_the_request_they_are_caused_by_in_other_tasks_too() {
        assert!(fields().is_empty());
        let one = request("one");
        let trace_id = format!("trace_id={}", one.trace.trace_id());
        let expected = ["request_id=one".to_owned(), trace_id];
        let work = async { tokio::spawn(carried(async { (fields(), current()) })).await.unwrap() };
        let (said, found) = scope(Arc::clone(&one), work).await;
        assert_eq!(said, expected);
        assert_eq!(found.as_ref(), Some(&one));
        assert!(tokio::spawn(carried(async { fields() })).await.unwrap().is_empty());
        assert_eq!(caused_by([None, Some(&one)], fields), expected);
    }

    #[test]
    fn what_happens_to_a_batch_names_a_few_of_its_requests_and_how_many_there_are() {
        assert!(caused_by([], fields).is_empty());
        let requests: Vec<_> = (0..100).map(|number| request(&format!("r{number}"))).collect();
        let said = caused_by(requests[..2].iter().map(Some), fields);
        assert_eq!(said, ["requests=2", "request_ids=r0,r1"]);
        let said = caused_by(requests.iter().map(Some), fields);
        assert_eq!(said[0], "requests=100");
        assert_eq!(said[1].matches(',').count(), MOST_NAMED - 1);
    }
}
