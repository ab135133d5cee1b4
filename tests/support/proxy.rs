//! A connection to PostgreSQL that can be made to lose what is sent over it, in either direction.

use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio_postgres::config::Host;

use super::postgres::Database;

/// What is lost; nothing at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    Requests,
    Answers,
}

#[derive(Default)]
struct Losses {
    requests: AtomicBool,
    answers: AtomicBool,
}

/// A proxy in front of a database.
pub struct Proxy {
    pub url: String,
    losses: Arc<Losses>,
    /// A higher number breaks all connections of lower ones.
    generation: watch::Sender<u64>,
}

impl Proxy {
    pub async fn start(database: &Database) -> Self {
        let config = tokio_postgres::Config::from_str(&database.url).unwrap();
        let port = config.get_ports().first().copied().unwrap_or(5432);
        let Some(Host::Unix(directory)) = config.get_hosts().first() else {
            panic!("the PostgreSQL of the tests is on a Unix socket");
        };
        let socket = directory.join(format!(".s.PGSQL.{port}"));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let losses = Arc::new(Losses::default());
        let (generation, broken) = watch::channel(0);
        let shared = Arc::clone(&losses);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = UnixStream::connect(&socket).await.unwrap();
                tokio::spawn(carry(client, server, Arc::clone(&shared), broken.clone()));
            }
        });
        Self {
            url: format!("postgres://balance@{address}/{}", database.name),
            losses,
            generation,
        }
    }

    /// From now on this is swallowed, and the connections stay open.
    pub fn lose(&self, lost: Lost) {
        match lost {
            Lost::Requests => self.losses.requests.store(true, Ordering::SeqCst),
            Lost::Answers => self.losses.answers.store(true, Ordering::SeqCst),
        }
    }

    /// Loses nothing any more.
    pub fn mend(&self) {
        self.losses.requests.store(false, Ordering::SeqCst);
        self.losses.answers.store(false, Ordering::SeqCst);
    }

    /// Breaks the connections there are.
    pub fn break_connections(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }
}

async fn carry(client: TcpStream, server: UnixStream, losses: Arc<Losses>, mut broken: watch::Receiver<u64>) {
    broken.mark_unchanged();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests = async {
        let mut buffer = Vec::new();
        while from_client.read_buf(&mut buffer).await.is_ok_and(|read| read > 0) {
            if !losses.requests.load(Ordering::SeqCst) && to_server.write_all(&buffer).await.is_err() {
                break;
            }
            buffer.clear();
        }
    };
    let answers = async {
        let mut buffer = Vec::new();
        while from_server.read_buf(&mut buffer).await.is_ok_and(|read| read > 0) {
            if !losses.answers.load(Ordering::SeqCst) && to_client.write_all(&buffer).await.is_err() {
                break;
            }
            buffer.clear();
        }
    };
    tokio::select! {
        () = requests => {}
        () = answers => {}
        _ = broken.changed() => {}
    }
}
