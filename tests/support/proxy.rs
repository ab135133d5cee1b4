//! A connection to PostgreSQL that can be made to lose, hold back or slow down what is sent over it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_postgres::config::Host;

use super::certificates::Everywhere;
use super::pgbouncer::PgBouncer;
use super::postgres::{Database, Role};

/// What is lost; nothing at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    Requests,
    Answers,
}

/// What is done with what is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    Passed,
    Lost(Lost),
    /// Passed on when the course changes, even if the sender has gone by then.
    Held,
    /// Passed on in drops.
    Slowed,
}

/// The size of a drop in bytes, and the pause after it: 10 kB a second.
const DROP_BYTES: usize = 50;
const DROP_PAUSE: Duration = Duration::from_millis(5);

/// How much is read at once.
const BUFFER_BYTES: usize = 16 * 1024;

/// A proxy in front of a database.
pub struct Proxy {
    pub url: String,
    pub address: SocketAddr,
    target: watch::Sender<Target>,
    course: watch::Sender<Course>,
    /// A higher number breaks all connections of lower ones.
    generation: watch::Sender<u64>,
    /// A higher number swallows what is sent on all connections that were opened before.
    swallowed: watch::Sender<u64>,
}

/// Where connections lead to that are opened from now on.
#[derive(Clone)]
enum Target {
    Server {
        socket: PathBuf,
        port: u16,
    },
    Pooler {
        port: u16,
    },
    /// Connections are accepted, and nothing ever answers.
    Nowhere,
}

impl Target {
    fn of(database: &Database) -> Self {
        let config = tokio_postgres::Config::from_str(&database.url).unwrap();
        let port = config.get_ports().first().copied().unwrap_or(5432);
        let Some(Host::Unix(directory)) = config.get_hosts().first() else {
            panic!("the PostgreSQL of the tests is on a Unix socket");
        };
        Self::Server {
            socket: directory.join(format!(".s.PGSQL.{port}")),
            port,
        }
    }
}

impl Proxy {
    pub async fn start(database: &Database) -> Self {
        let (target, leads_to) = watch::channel(Target::of(database));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let (course, set) = watch::channel(Course::Passed);
        let (generation, broken) = watch::channel(0);
        let (swallowed, silent) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let target = leads_to.borrow().clone();
                let (course, broken, mut silent) = (set.clone(), broken.clone(), silent.clone());
                silent.mark_unchanged();
                tokio::spawn(async move {
                    // Without a server the client's connection is closed. A Unix socket has no TLS.
                    match target {
                        Target::Server { socket, .. } if Everywhere::asked().is_none() => {
                            if let Ok(server) = UnixStream::connect(&socket).await {
                                carry(client, server, course, broken, silent).await;
                            }
                        }
                        Target::Nowhere => {
                            let (server, _silent_end) = duplex(BUFFER_BYTES);
                            carry(client, server, course, broken, silent).await;
                        }
                        Target::Server { port, .. } | Target::Pooler { port } => {
                            if let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await {
                                carry(client, server, course, broken, silent).await;
                            }
                        }
                    }
                });
            }
        });
        Self {
            url: format!("postgres://{}@{address}/{}", Role::Service.name(), database.name),
            address,
            target,
            course,
            generation,
            swallowed,
        }
    }

    /// Leads connections that are opened from now on to this database.
    pub fn lead_to(&self, database: &Database) {
        self.target.send_replace(Target::of(database));
    }

    /// The same with the database that this pooler leads to.
    pub fn lead_to_pooler(&self, pooler: &PgBouncer) {
        self.target.send_replace(Target::Pooler { port: pooler.port });
    }

    /// Accepts connections from now on, and leaves them without an answer until they are broken.
    pub fn lead_nowhere(&self) {
        self.target.send_replace(Target::Nowhere);
    }

    /// Swallows what is sent on the connections there are, in both directions, and takes it as if it were passed on. They
    /// stay open; new ones work.
    pub fn swallow_open_connections(&self) {
        self.swallowed.send_modify(|swallowed| *swallowed += 1);
    }

    /// From now on this is swallowed, and the connections stay open.
    pub fn lose(&self, lost: Lost) {
        self.course.send_replace(Course::Lost(lost));
    }

    /// From now on everything waits, in both directions, until the proxy is mended.
    pub fn hold(&self) {
        self.course.send_replace(Course::Held);
    }

    /// From now on everything trickles, in both directions.
    pub fn slow(&self) {
        self.course.send_replace(Course::Slowed);
    }

    /// Loses nothing any more, and passes on at once what it held back.
    pub fn mend(&self) {
        self.course.send_replace(Course::Passed);
    }

    /// Breaks the connections there are.
    pub fn break_connections(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }
}

async fn carry(
    client: TcpStream,
    server: impl AsyncRead + AsyncWrite,
    course: watch::Receiver<Course>,
    mut broken: watch::Receiver<u64>,
    silent: watch::Receiver<u64>,
) {
    broken.mark_unchanged();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = tokio::io::split(server);
    tokio::select! {
        () = pass(from_client, to_server, course.clone(), silent.clone(), Lost::Requests) => {}
        () = pass(from_server, to_client, course, silent, Lost::Answers) => {}
        _ = broken.changed() => {}
    }
}

/// Carries one direction until an end is closed.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut course: watch::Receiver<Course>,
    silent: watch::Receiver<u64>,
    direction: Lost,
) {
    // PgBouncer refuses a startup packet that does not come in one piece.
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    while from.read_buf(&mut buffer).await.is_ok_and(|read| read > 0) {
        if silent.has_changed().unwrap_or(false) {
            buffer.clear();
        }
        while !buffer.is_empty() {
            let now = *course.borrow_and_update();
            let drop = match now {
                Course::Passed => buffer.len(),
                Course::Slowed => buffer.len().min(DROP_BYTES),
                Course::Lost(lost) if lost == direction => {
                    buffer.clear();
                    break;
                }
                Course::Lost(_) => buffer.len(),
                Course::Held => {
                    if course.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            if to.write_all(&buffer[..drop]).await.is_err() {
                return;
            }
            buffer.drain(..drop);
            if now == Course::Slowed {
                sleep(DROP_PAUSE).await;
            }
        }
    }
}
