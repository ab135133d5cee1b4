//! An Approver for tests: real TCP and HTTP, behaving as each test says, and remembering what it was asked.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::certificates::Certificate;

/// What the Approver does with a call, after its delay.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// Answers with this status and no body.
    Status(u16),
    /// Answers with the status that this gives for the path and query.
    Judge(fn(&str) -> u16),
    /// Takes the call and never answers.
    Hang,
    /// Closes the connection with a reset.
    Reset,
    /// Answers with these bytes and closes the connection.
    Raw(&'static [u8]),
}

/// A call that came.
#[derive(Clone, Debug)]
pub struct Call {
    /// Its path and query.
    pub target: String,
    headers: Vec<(String, String)>,
}

impl Call {
    fn new(head: &str) -> Self {
        let mut lines = head.lines();
        let target = lines.next().and_then(|line| line.split(' ').nth(1));
        let pairs = lines.filter_map(|line| line.split_once(':'));
        Self {
            target: target.unwrap_or_default().to_owned(),
            headers: pairs
                .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
                .collect(),
        }
    }

    /// The value of a header, which must not stand there twice.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(found, _)| found == name);
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} stands there twice: {self:?}");
        value
    }
}

/// An answer that was sent.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The path and query of the call.
    pub target: String,
    pub status: u16,
    /// When the call was there.
    pub called_at: Instant,
    /// Just before the answer was sent.
    pub sent_at: Instant,
}

#[derive(Default)]
struct State {
    delay: Duration,
    default: Option<Behaviour>,
    by_user: HashMap<String, Vec<Behaviour>>,
    calls: Vec<Call>,
    verdicts: Vec<Sent>,
    gate: Option<Arc<Semaphore>>,
}

/// A running Approver. It approves everything at once until told otherwise.
pub struct TestApprover {
    scheme: &'static str,
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    server: JoinHandle<()>,
}

impl Drop for TestApprover {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl TestApprover {
    pub async fn start() -> Self {
        Self::start_with(None).await
    }

    /// Behind https, with this certificate.
    pub async fn start_with_tls(certificate: &Certificate) -> Self {
        Self::start_with(Some(TlsAcceptor::from(certificate.server()))).await
    }

    async fn start_with(tls: Option<TlsAcceptor>) -> Self {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (tls, shared) = (tls.clone(), Arc::clone(&shared));
                tokio::spawn(async move {
                    let Some(tls) = tls else {
                        return serve(stream, shared).await;
                    };
                    // A client that trusts nobody here hangs up.
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, shared).await;
                    }
                });
            }
        });
        Self {
            scheme,
            address,
            state,
            server,
        }
    }

    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Every verdict takes this long.
    pub fn delay(&self, delay: Duration) {
        self.state.lock().unwrap().delay = delay;
    }

    /// From now on each verdict takes one of the gate's permits, and waits until there is one.
    pub fn hold(&self, gate: &Arc<Semaphore>) {
        self.state.lock().unwrap().gate = Some(Arc::clone(gate));
    }

    /// Stops listening; when this returns, connections to its port are refused.
    pub async fn stop(mut self) {
        self.server.abort();
        let _ = (&mut self.server).await;
    }

    /// What is done with calls for users of whom nothing else is said.
    pub fn always(&self, behaviour: Behaviour) {
        self.state.lock().unwrap().default = Some(behaviour);
    }

    /// What is done with this user's calls, one after the other; the last one stays. `user_id` as it stands in the URL.
    pub fn for_user(&self, user_id: &str, behaviours: &[Behaviour]) {
        let mut behaviours = behaviours.to_vec();
        behaviours.reverse();
        self.state
            .lock()
            .unwrap()
            .by_user
            .insert(user_id.to_owned(), behaviours);
    }

    /// The path and query of every call so far.
    pub fn calls(&self) -> Vec<String> {
        self.heard().into_iter().map(|call| call.target).collect()
    }

    /// Every call so far.
    pub fn heard(&self) -> Vec<Call> {
        self.state.lock().unwrap().calls.clone()
    }

    /// Every answer that was sent.
    pub fn verdicts(&self) -> Vec<Sent> {
        self.state.lock().unwrap().verdicts.clone()
    }

    /// Waits until there were so many calls.
    pub async fn until_called(&self, calls: usize) {
        let called = timeout(Duration::from_secs(30), async {
            while self.calls().len() < calls {
                sleep(Duration::from_millis(2)).await;
            }
        });
        called.await.expect("the Approver is called");
    }

    /// How many calls were made for this user.
    pub fn calls_for(&self, user_id: &str) -> usize {
        let name = format!("userId={user_id}&");
        self.calls().iter().filter(|call| call.contains(&name)).count()
    }
}

/// What can be closed with a reset.
trait Resettable {
    fn socket(&self) -> &TcpStream;
}

impl Resettable for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl Resettable for TlsStream<TcpStream> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().0
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Resettable + Unpin, state: Arc<Mutex<State>>) {
    let mut received = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            match stream.read_buf(&mut received).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        };
        let called_at = Instant::now();
        let call = Call::new(&String::from_utf8_lossy(&received[..end]));
        received.drain(..end);
        let target = call.target.clone();
        let (delay, gate, behaviour) = {
            let mut state = state.lock().unwrap();
            let user = target.split(['?', '&']).find_map(|part| part.strip_prefix("userId="));
            let behaviour = user.and_then(|user| {
                let planned = state.by_user.get_mut(user)?;
                if planned.len() > 1 {
                    planned.pop()
                } else {
                    planned.last().cloned()
                }
            });
            let behaviour = behaviour.or_else(|| state.default.clone());
            state.calls.push(call);
            let behaviour = behaviour.unwrap_or(Behaviour::Status(200));
            (state.delay, state.gate.clone(), behaviour)
        };
        sleep(delay).await;
        if let Some(gate) = gate {
            gate.acquire().await.unwrap().forget();
        }
        let status = match behaviour {
            Behaviour::Status(status) => status,
            Behaviour::Judge(judge) => judge(&target),
            Behaviour::Hang => std::future::pending().await,
            Behaviour::Reset => {
                // Linger 0 makes the close a reset.
                let _ = stream.socket().set_zero_linger();
                return;
            }
            Behaviour::Raw(bytes) => {
                let _ = stream.write_all(bytes).await;
                return;
            }
        };
        // Whoever has gone may still have it.
        state.lock().unwrap().verdicts.push(Sent {
            target,
            status,
            called_at,
            sent_at: Instant::now(),
        });
        let answer = format!("HTTP/1.1 {status} Test\r\ncontent-length: 0\r\n\r\n");
        if stream.write_all(answer.as_bytes()).await.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
}
