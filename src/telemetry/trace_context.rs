//! W3C Trace Context (<https://www.w3.org/TR/trace-context/>): `traceparent` and `tracestate`.
//!
//! A request goes on with the trace that it names; otherwise it begins one. Each call to another service names a part of
//! this service's own as its parent.

use std::fmt::{self, Display};

/// The bit of the flags that says that the caller may have recorded the trace. All others are not passed on.
const SAMPLED: u8 = 1;
/// The length of `traceparent` in version 00, and of what all later versions begin with.
const LENGTH: usize = 55;
/// The most members that a `tracestate` has.
const MOST_MEMBERS: usize = 32;
/// So much of a `tracestate` is passed on.
const LONGEST_STATE: usize = 512;
/// Where that is not enough, members longer than this go first.
const LONG_MEMBER: usize = 128;

/// The id of a trace; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId(pub u128);

/// The id of a part of a trace; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanId(pub u64);

/// A request's place in a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: TraceId,
    /// Of the request as its caller sees it.
    parent: Option<SpanId>,
    /// Of the request as it is served here.
    span_id: SpanId,
    is_sampled: bool,
    state: Option<Box<str>>,
}

impl Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl SpanId {
    /// A new one, drawn at random.
    pub fn new() -> Self {
        // Zero means that there is none.
        Self(rand::random::<u64>().max(1))
    }
}

impl Default for SpanId {
    fn default() -> Self {
        Self::new()
    }
}

impl TraceContext {
    /// A trace that begins here, which nobody records.
    pub fn begun() -> Self {
        Self {
            trace_id: TraceId(rand::random::<u128>().max(1)),
            parent: None,
            span_id: SpanId::new(),
            is_sampled: false,
            state: None,
        }
    }

    /// The trace that a request's one `traceparent` names, with all of its `tracestate`; `None` if it names none.
    pub fn continued<'a>(traceparent: &[u8], tracestate: impl Iterator<Item = &'a [u8]>) -> Option<Self> {
        let (trace_id, parent, flags) = parse_parent(std::str::from_utf8(traceparent).ok()?)?;
        Some(Self {
            trace_id,
            parent: Some(parent),
            span_id: SpanId::new(),
            is_sampled: flags & SAMPLED != 0,
            state: state_of(tracestate),
        })
    }

    /// The same, recorded or not.
    pub fn sampled(self, is_sampled: bool) -> Self {
        Self { is_sampled, ..self }
    }

    /// The trace.
    pub fn trace_id(&self) -> TraceId {
        self.trace_id
    }

    /// The part of the trace that the caller named as this request's parent, if it named one.
    pub fn parent(&self) -> Option<SpanId> {
        self.parent
    }

    /// The part of the trace that this request is.
    pub fn span_id(&self) -> SpanId {
        self.span_id
    }

    /// Whether the trace is recorded.
    pub fn is_sampled(&self) -> bool {
        self.is_sampled
    }

    /// The `traceparent` of a call that is this part of the request.
    pub fn traceparent(&self, call: SpanId) -> String {
        format!("00-{}-{call}-{:02x}", self.trace_id, u8::from(self.is_sampled))
    }

    /// The `tracestate` of every such call.
    pub fn tracestate(&self) -> Option<&str> {
        self.state.as_deref()
    }
}

/// Version, trace, parent and flags are lower-case hexadecimal digits with dashes between them. What a later version adds
/// follows after another dash, and is not looked at.
fn parse_parent(text: &str) -> Option<(TraceId, SpanId, u8)> {
    let head = text.get(..LENGTH)?;
    let mut parts = head.split('-');
    let mut digits = |length: usize| {
        let part = parts.next()?;
        let is_hex = part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (part.len() == length && is_hex).then_some(part)
    };
    let (version, trace, parent, flags) = (digits(2)?, digits(32)?, digits(16)?, digits(2)?);
    let fits = match (version, text.as_bytes().get(LENGTH)) {
        ("ff", _) => false,
        (_, None) => true,
        ("00", Some(_)) => false,
        (_, Some(next)) => *next == b'-',
    };
    let trace = u128::from_str_radix(trace, 16).ok()?;
    let parent = u64::from_str_radix(parent, 16).ok()?;
    let flags = u8::from_str_radix(flags, 16).ok()?;
    (fits && trace != 0 && parent != 0).then_some((TraceId(trace), SpanId(parent), flags))
}

/// The members of all headers in their order, as many as there is room for; nothing, if one of them is none.
fn state_of<'a>(headers: impl Iterator<Item = &'a [u8]>) -> Option<Box<str>> {
    let mut members = Vec::new();
    for header in headers {
        let header = std::str::from_utf8(header).ok()?;
        let given = header.split(',').map(|member| member.trim_matches([' ', '\t']));
        members.extend(given.filter(|member| !member.is_empty()));
    }
    if members.is_empty() || members.len() > MOST_MEMBERS || !members.iter().all(|member| is_member(member)) {
        return None;
    }
    let length = |members: &[&str]| members.iter().map(|member| member.len() + 1).sum::<usize>() - 1;
    if length(&members) > LONGEST_STATE {
        members.retain(|member| member.len() <= LONG_MEMBER);
    }
    while !members.is_empty() && length(&members) > LONGEST_STATE {
        members.pop();
    }
    (!members.is_empty()).then(|| members.join(",").into())
}

fn is_member(member: &str) -> bool {
    let Some((key, value)) = member.split_once('=') else {
        return false;
    };
    let is_name = |name: &str, longest: usize, first: fn(&u8) -> bool| {
        let rest = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-*/".contains(byte);
        let bytes = name.as_bytes();
        (1..=longest).contains(&bytes.len()) && first(&bytes[0]) && bytes.iter().all(rest)
    };
    let letter_or_digit: fn(&u8) -> bool = |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_key = match key.split_once('@') {
        None => is_name(key, 256, u8::is_ascii_lowercase),
        Some((tenant, system)) => is_name(tenant, 241, letter_or_digit) && is_name(system, 14, u8::is_ascii_lowercase),
    };
    let is_value =
        (1..=256).contains(&value.len()) && value.bytes().all(|byte| matches!(byte, b' '..=b'~' if byte != b'='));
    is_key && is_value
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const PARENT: &str = "b7ad6b7169203331";

    fn continued(traceparent: &str, tracestate: &[&str]) -> Option<TraceContext> {
        TraceContext::continued(
            traceparent.as_bytes(),
            tracestate.iter().map(|header| header.as_bytes()),
        )
    }

    fn state(tracestate: &[&str]) -> Option<String> {
        let context = continued(&format!("00-{TRACE}-{PARENT}-01"), tracestate).unwrap();
        context.tracestate().map(str::to_owned)
    }

    #[test]
    fn a_trace_is_taken_over_and_passed_on_with_another_parent_and_the_sampled_flag_only() {
        for (flags, passed_on) in [("00", "00"), ("01", "01"), ("ff", "01"), ("02", "00")] {
            let context = continued(&format!("00-{TRACE}-{PARENT}-{flags}"), &[]).unwrap();
            let call = SpanId::new();
            assert_eq!(context.traceparent(call), format!("00-{TRACE}-{call}-{passed_on}"));
            assert_eq!(context.parent().unwrap().to_string(), PARENT);
        }
    }

    #[test]
    fn later_versions_are_read_as_far_as_they_are_known() {
        for rest in ["", "-", "-what-the-future-will-be-like"] {
            assert!(
                continued(&format!("cc-{TRACE}-{PARENT}-01{rest}"), &[]).is_some(),
                "{rest}"
            );
        }
        for wrong in [".what", "0"] {
            assert!(
                continued(&format!("cc-{TRACE}-{PARENT}-01{wrong}"), &[]).is_none(),
                "{wrong}"
            );
        }
    }

    #[test]
    fn what_is_no_trace_of_version_00_is_not_taken_over() {
        let zeros = "0".repeat(32);
        for wrong in [
            String::new(),
            format!("00-{TRACE}-{PARENT}"),
            format!("00-{TRACE}-{PARENT}-01-"),
            format!("00-{TRACE}-{PARENT}-01-more"),
            format!("ff-{TRACE}-{PARENT}-01"),
            format!("0-{TRACE}-{PARENT}-001"),
            format!("00-{zeros}-{PARENT}-01"),
            format!("00-{TRACE}-{}-01", &zeros[..16]),
            format!("00-{}-{PARENT}-01", TRACE.to_uppercase()),
            format!("00-{}g-{PARENT}-01", &TRACE[1..]),
            format!("00-{TRACE}-{PARENT}-0x"),
            format!("00-{TRACE}-{PARENT}-+1"),
            format!("00_{TRACE}_{PARENT}_01"),
            format!("00-{}é-{PARENT}-01", &TRACE[2..]),
        ] {
            assert_eq!(continued(&wrong, &[]), None, "{wrong}");
        }
    }

    #[test]
    fn the_state_of_a_trace_is_passed_on_in_its_order_or_not_at_all() {
        assert_eq!(state(&[]), None);
        assert_eq!(state(&["", " , "]), None);
        assert_eq!(state(&["foo=1", "bar=2 3,\tfoo=4 ,,"]).unwrap(), "foo=1,bar=2 3,foo=4");
        assert_eq!(state(&["a@b=1,0t/*@s=2,z_-*/0=~"]).unwrap(), "a@b=1,0t/*@s=2,z_-*/0=~");
        let most: Vec<_> = (0..32).map(|number| format!("k{number}=v")).collect();
        assert_eq!(state(&[&most.join(",")]).unwrap(), most.join(","));
        let long = "z".repeat(242);
        for wrong in [
            "foo",
            "foo=",
            "=1",
            "Foo=1",
            "0=1",
            "a@@b=1",
            "a@=1",
            "@b=1",
            "a=b=c",
            "a=é",
            "a b=1",
            &format!("{long}@b=1"),
        ] {
            assert_eq!(state(&["ok=1", wrong]), None, "{wrong}");
        }
        assert_eq!(state(&[&most.join(","), "one=more"]), None);
    }

    #[test]
    fn a_state_that_is_too_long_loses_its_long_members_first_and_then_the_last() {
        let (long, short) = (
            format!("long={}", "x".repeat(250)),
            format!("short={}", "x".repeat(100)),
        );
        assert_eq!(state(&[&long, &long]).unwrap(), format!("{long},{long}"));
        let given = [&*long, &short, &long, &short, "a=1"];
        assert_eq!(state(&given).unwrap(), format!("{short},{short},a=1"));
        assert_eq!(state(&[&*short; 6]).unwrap(), [&*short; 4].join(","));
    }

    #[test]
    fn traces_that_begin_here_have_ids_of_their_own() {
        let (one, other) = (TraceContext::begun(), TraceContext::begun());
        assert_ne!(one.trace_id(), other.trace_id());
        assert_ne!(one.span_id(), other.span_id());
        assert!(continued(&one.traceparent(one.span_id()), &[]).is_some());
    }
}
