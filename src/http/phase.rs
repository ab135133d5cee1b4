//! What is going on on a connection, told from the bytes that pass: which of its times applies follows from that.

use std::time::Duration;

use super::connection::Times;

/// The header that says how long a body is. Without it there is none, or an end that is not looked for.
const CONTENT_LENGTH: &[u8] = b"content-length:";

/// What is going on.
pub enum Phase {
    /// Nothing, since the connection was opened or something was sent on it.
    Between {
        /// Whether all that came is answered, so that the next byte is a head's first.
        is_clear: bool,
    },
    /// A head drips in, and nothing else is under way.
    Head(Head),
    /// A head is there, and what follows is up to those who answer it.
    Request {
        /// Whether the time that runs is this request's. It is not set with every request, since most are answered
        /// before it matters.
        has_its_time: bool,
        /// How many bytes of it are to come. None: more came than it has, or where it ends is not known.
        rest: Option<usize>,
    },
}

impl Phase {
    /// Goes on with what was received. Some: the time that runs from now on.
    pub fn received(&mut self, bytes: &[u8], times: &Times) -> Option<Duration> {
        match self {
            _ if bytes.is_empty() => None,
            Phase::Between { is_clear: true } => {
                let mut head = Head::default();
                let Some(end) = head.end_in(bytes) else {
                    *self = Phase::Head(head);
                    return Some(times.client);
                };
                *self = Phase::Request {
                    has_its_time: false,
                    rest: head.body.checked_sub(bytes.len() - end),
                };
                None
            }
            // It may be the last of a head that was sent before the answer to another: then a request is under way.
            Phase::Between { is_clear: false } => {
                *self = Phase::Request {
                    has_its_time: true,
                    rest: None,
                };
                Some(times.request)
            }
            Phase::Head(head) => {
                let end = head.end_in(bytes)?;
                *self = Phase::Request {
                    has_its_time: true,
                    rest: head.body.checked_sub(bytes.len() - end),
                };
                Some(times.request)
            }
            Phase::Request { rest, .. } => {
                *rest = rest.and_then(|rest| rest.checked_sub(bytes.len()));
                None
            }
        }
    }

    /// Something of an answer was sent.
    pub fn answered(&mut self) {
        let is_clear = matches!(
            self,
            Phase::Between { is_clear: true } | Phase::Request { rest: Some(0), .. }
        );
        *self = Phase::Between { is_clear };
    }
}

/// A head as it comes: finds its end, an empty line, and how long a body it announces.
#[derive(Default)]
pub struct Head {
    has_begun: bool,
    /// The bytes of the line so far, without line breaks.
    column: usize,
    /// Whether these are those of [`CONTENT_LENGTH`], as far as that goes.
    is_length: bool,
    body: usize,
}

impl Head {
    /// Where the head ends in what comes next.
    fn end_in(&mut self, bytes: &[u8]) -> Option<usize> {
        for (index, byte) in bytes.iter().enumerate() {
            match byte {
                // Line breaks before the first line do not count.
                b'\n' if self.has_begun && self.column == 0 => return Some(index + 1),
                b'\n' => (self.column, self.is_length) = (0, true),
                b'\r' => {}
                byte => self.go_on(*byte),
            }
        }
        None
    }

    fn go_on(&mut self, byte: u8) {
        match CONTENT_LENGTH.get(self.column) {
            _ if !self.is_length => {}
            Some(expected) => self.is_length = byte.eq_ignore_ascii_case(expected),
            None if byte.is_ascii_digit() => {
                self.body = self.body.saturating_mul(10).saturating_add(usize::from(byte - b'0'));
            }
            None => {}
        }
        self.has_begun = true;
        self.column += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times = Times {
        idle: Duration::from_secs(3),
        client: Duration::from_secs(1),
        request: Duration::from_secs(2),
    };
    const GET: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    /// With one byte more than it announces.
    const TOO_MUCH: &str = "POST / HTTP/1.1\r\nhost: x\r\nContent-Length: 12\r\n\r\n{\"some\":\"12\"}";

    fn opened() -> Phase {
        Phase::Between { is_clear: true }
    }

    /// The time that runs after these were received one after the other.
    fn after(phase: &mut Phase, received: &[&str]) -> Option<Duration> {
        let mut running = None;
        for bytes in received {
            running = phase.received(bytes.as_bytes(), &TIMES).or(running);
        }
        running
    }

    #[test]
    fn the_end_of_a_head_is_found_however_it_is_cut_and_the_body_is_counted() {
        for (request, head) in [
            (GET, GET.len()),
            (&format!("\r\n\r\n{GET}"), GET.len() + 4),
            ("GET / HTTP/1.1\nhost: x\n\n", 24),
            (TOO_MUCH, TOO_MUCH.len() - 13),
        ] {
            for step in 1..head {
                let mut phase = opened();
                for (number, chunk) in request.as_bytes().chunks(step).enumerate() {
                    phase.received(chunk, &TIMES);
                    let is_whole = (number + 1) * step >= head;
                    let found = matches!(phase, Phase::Request { .. });
                    assert_eq!(found, is_whole, "{request:?} in {step}, {number}");
                }
            }
        }
    }

    #[test]
    fn a_head_that_drips_in_has_the_clients_time_from_its_first_byte_blank_lines_included() {
        for first in ["G", "\r\n", "\r\n\r\n", "\r\n\r\nGET / HTTP/1.1\r\n"] {
            let mut phase = opened();
            assert_eq!(after(&mut phase, &[first]), Some(TIMES.client), "{first:?}");
            assert_eq!(after(&mut phase, &["x", "\r\n", "y"]), None, "{first:?}");
            assert!(matches!(phase, Phase::Head(_)), "{first:?}");
        }
    }

    #[test]
    fn a_head_after_an_answered_request_has_the_clients_time_again() {
        let post = &TOO_MUCH[..TOO_MUCH.len() - 1];
        let (body, cut) = (post.len() - 12, 30);
        for request in [
            vec![GET],
            vec![&GET[..20], &GET[20..]],
            vec![post],
            vec![&post[..body], &post[body..]],
            vec![&post[..cut], &post[cut..body + 5], &post[body + 5..]],
        ] {
            let mut phase = opened();
            after(&mut phase, &request);
            // In two pieces.
            phase.answered();
            phase.answered();
            assert_eq!(after(&mut phase, &["GET /"]), Some(TIMES.client), "{request:?}");
            assert!(matches!(phase, Phase::Head(_)), "{request:?}");
        }
    }

    #[test]
    fn what_comes_after_requests_that_were_sent_before_the_answer_is_never_taken_for_a_head() {
        let unfinished = &GET[..GET.len() - 2];
        let chunked = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
        for received in [
            vec![GET, unfinished],
            vec![&format!("{GET}{unfinished}")],
            vec![&format!("{GET}{GET}")],
            vec![TOO_MUCH],
            vec![&TOO_MUCH[..40], &TOO_MUCH[40..]],
            vec![chunked],
            // Answered before its body is there.
            vec![&TOO_MUCH[..TOO_MUCH.len() - 5]],
        ] {
            let mut phase = opened();
            after(&mut phase, &received);
            for _ in 0..2 {
                phase.answered();
                assert_eq!(after(&mut phase, &["\r\n"]), Some(TIMES.request), "{received:?}");
                assert!(matches!(phase, Phase::Request { .. }), "{received:?}");
            }
        }
        // While a head drips in, something is sent: it was for another request.
        let mut phase = opened();
        after(&mut phase, &[GET]);
        phase.answered();
        after(&mut phase, &[unfinished]);
        phase.answered();
        assert_eq!(after(&mut phase, &["\r\n"]), Some(TIMES.request));
    }
}
