//! A PostgreSQL that is slow: everything that is sent to it and comes from it takes its time on the way.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::Outcome;

/// So many pieces may be on their way in one direction.
const ON_THE_WAY: usize = 1_024;

/// Listens, and carries what comes to the socket and back, each way `delay` late. It ends with the runtime.
///
/// # Errors
///
/// If no port is free.
pub async fn listen(socket: PathBuf, delay: Duration) -> Outcome<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(server) = UnixStream::connect(&socket).await else {
                continue;
            };
            let _ = client.set_nodelay(true);
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            carry(from_client, to_server, delay);
            carry(from_server, to_client, delay);
        }
    });
    Ok(address)
}

fn carry(
    mut from: impl AsyncReadExt + Unpin + Send + 'static,
    mut to: impl AsyncWriteExt + Unpin + Send + 'static,
    delay: Duration,
) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(ON_THE_WAY);
    tokio::spawn(async move {
        let mut buffer = vec![0; 64 * 1_024];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            if sender
                .send((Instant::now() + delay, buffer[..read].to_vec()))
                .await
                .is_err()
            {
                break;
            }
        }
    });
    tokio::spawn(async move {
        while let Some((at, bytes)) = receiver.recv().await {
            sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                break;
            }
        }
    });
}
