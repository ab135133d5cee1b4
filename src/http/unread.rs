//! The rest of a request's body that its handler did not read.
//!
//! hyper closes a connection whose body was not read to its end, and tells the client nothing of it. So the rest is taken
//! and dropped within bounds of size and time, or the answer says that the connection will be closed.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;
use hyper::body::{Body as _, Frame, SizeHint};
use poem::http::header::EXPECT;
use poem::{Body, Request};
use tokio::time::timeout;

/// The most bytes that are taken and dropped.
const MAX_DROPPED_BYTES: u64 = 16 * 1024 * 1024;
/// How long they may take.
const DROP_TIME: Duration = Duration::from_secs(1);

/// The body of a request, lent to a handler.
pub struct Unread {
    lent: Arc<Mutex<Lent>>,
    /// Whether the client waits for `100 Continue`, which hyper sends when the body is first read.
    expects_continue: bool,
}

#[derive(Default)]
struct Lent {
    was_read: bool,
    /// Whether it ended with an error: where the next request begins is not known.
    is_broken: bool,
    /// The body, when the handler has dropped it before its end.
    returned: Option<BoxBody<Bytes, io::Error>>,
}

/// The body as a handler has it.
struct OnLoan {
    body: Option<BoxBody<Bytes, io::Error>>,
    lent: Arc<Mutex<Lent>>,
}

impl Unread {
    /// Watches the body of a request; none for a request without one.
    pub fn watch(request: &mut Request) -> Option<Self> {
        let body = request.take_body();
        if body.is_empty() {
            return None;
        }
        let lent = Arc::default();
        request.set_body(Body::from(BoxBody::new(OnLoan {
            body: Some(body.into()),
            lent: Arc::clone(&lent),
        })));
        Some(Self {
            lent,
            expects_continue: request.headers().contains_key(EXPECT),
        })
    }

    /// Takes the rest of the body. False if the connection is to be closed: its next request could not be found.
    pub async fn drop_rest(self) -> bool {
        let body = {
            let mut lent = lock(&self.lent);
            // The client may send the body or not: nobody knows where its next request begins.
            if self.expects_continue && !lent.was_read {
                return false;
            }
            if lent.is_broken {
                return false;
            }
            lent.returned.take()
        };
        let Some(body) = body else {
            return true;
        };
        if body.size_hint().lower() > MAX_DROPPED_BYTES {
            return false;
        }
        timeout(DROP_TIME, drop_all(body)).await.unwrap_or(false)
    }
}

/// Whether the end came before too many bytes.
async fn drop_all(mut body: BoxBody<Bytes, io::Error>) -> bool {
    let mut dropped = 0;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return false;
        };
        dropped += frame.data_ref().map_or(0, |data| data.len() as u64);
        if dropped > MAX_DROPPED_BYTES {
            return false;
        }
    }
    true
}

impl hyper::body::Body for OnLoan {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        let mut lent = lock(&this.lent);
        lent.was_read = true;
        let frame = match &mut this.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        };
        lent.is_broken |= matches!(frame, Poll::Ready(Some(Err(_))));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(|body| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(SizeHint::default, |body| body.size_hint())
    }
}

impl Drop for OnLoan {
    fn drop(&mut self) {
        let body = self.body.take().filter(|body| !body.is_end_stream());
        lock(&self.lent).returned = body;
    }
}

/// Nobody panics while holding it.
fn lock(lent: &Mutex<Lent>) -> MutexGuard<'_, Lent> {
    lent.lock().unwrap_or_else(PoisonError::into_inner)
}
