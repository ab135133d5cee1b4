//! One replica: its parts wired together, and taken apart again in a written order.
//!
//! Start: the tokens are read → the log is locked and its end read → changes of an earlier run get the lines they lack → requests are
//! taken.
//!
//! Shutdown: `/readyz` says no → a pause in which load balancers notice → no new connections → requests under way are
//! answered → operations under way end → the log is flushed and joined → connections to PostgreSQL are closed.

mod certificate;
mod descriptors;

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::approver::Approver;
use crate::causes::causes;
use crate::config::{
    AccessConfig, ApproverConfig, DatabaseConfig, HttpConfig, LedgerConfig, OperationsLogConfig, ServiceConfig,
    TracesConfig,
};
use crate::domain::SegmentLength;
use crate::http::{Offer, Site, Stopping};
use crate::metrics::{Metrics, gauge_value};
use crate::operations_log::{FinishError, OpenError, OperationsLog};
use crate::server::{Listening, serve};
use crate::service::{Recovery, Service};
use crate::store::Store;
use crate::telemetry::{ExportError, begin_export, end_export};
use crate::tls::ServerTls;
use crate::tokens::{Tokens, TokensError};

use certificate::Certificate;

pub use descriptors::TooFewDescriptors;

/// How long operators' requests may take when all else has been answered.
const ADMIN_DRAIN: Duration = Duration::from_secs(2);

/// All that a replica is started with.
#[derive(Clone, Debug)]
pub struct ReplicaConfig {
    /// PostgreSQL.
    pub database: DatabaseConfig,
    /// The Approver.
    pub approver: ApproverConfig,
    /// The operations log.
    pub operations_log: OperationsLogConfig,
    /// The bounds of an operation.
    pub service: ServiceConfig,
    /// How operations are collected into statements.
    pub ledger: LedgerConfig,
    /// Where to listen, and how long to take over stopping.
    pub http: HttpConfig,
    /// Who may ask for what, and where.
    pub access: AccessConfig,
    /// Where traces are exported to, if they are.
    pub traces: Option<TracesConfig>,
}

/// Where a replica is.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The service.
    pub service: SocketAddr,
    /// Metrics and documentation, where they have an address of their own.
    pub admin: Option<SocketAddr>,
}

/// Why a replica could not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// The address cannot be bound.
    #[error("{variable}: {address} cannot be listened on: {source}; give another address or stop what uses it")]
    Listen {
        /// The variable that it came from.
        variable: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The operations log cannot be opened.
    #[error("OPERATIONS_LOG: {0}")]
    OpenLog(#[source] OpenError),
    /// The client of the Approver cannot be made.
    #[error("APPROVER_URL: the client could not be set up: {}", causes(.0))]
    Approver(#[source] reqwest::Error),
    /// The tokens cannot be read.
    #[error("API_TOKENS_FILE: {0}")]
    Tokens(#[from] TokensError),
    /// The client of the collector of traces cannot be made.
    #[error("OTEL_EXPORTER_OTLP_ENDPOINT: traces cannot be exported: {0}")]
    Traces(#[source] ExportError),
    /// There are too few file descriptors.
    #[error(transparent)]
    Descriptors(#[from] TooFewDescriptors),
    /// Signals cannot be listened for.
    #[error("signals cannot be handled: {0}")]
    Signals(#[source] io::Error),
    /// The operations log did not take all lines.
    #[error(transparent)]
    FinishLog(FinishError),
}

/// Runs a replica until `shutdown` resolves. `started` is told the addresses when requests can come.
///
/// # Errors
///
/// [`ReplicaError`]; each message is one line.
pub async fn run(
    config: ReplicaConfig,
    started: impl FnOnce(Addresses),
    shutdown: impl Future<Output = ()>,
) -> Result<(), ReplicaError> {
    let config = descriptors::fit(config)?;
    let tokens = open_tokens(config.access.tokens_file.as_deref())?;
    let listening = bind("LISTEN", &config.http)?;
    let admin = config.access.admin.as_ref();
    let admin = admin.map(|admin| bind("ADMIN_LISTEN", admin)).transpose()?;
    if let Some(traces) = &config.traces {
        begin_export(traces).map_err(ReplicaError::Traces)?;
    }
    let metrics = Arc::new(Metrics::new());
    let approver = Approver::new(&config.approver, Arc::clone(&metrics)).map_err(ReplicaError::Approver)?;
    let store = Store::new(&config.database, SegmentLength::DEFAULT, Arc::clone(&metrics));
    let hangup = signal(SignalKind::hangup()).map_err(ReplicaError::Signals)?;
    let reload = signal(SignalKind::hangup()).map_err(ReplicaError::Signals)?;
    let renewal = signal(SignalKind::hangup()).map_err(ReplicaError::Signals)?;
    // Without a handler, a file that reaches `ulimit -f` would end the process; with one, the write fails and the log
    // fails closed.
    let _file_size = signal(SignalKind::from_raw(nix::libc::SIGXFSZ)).map_err(ReplicaError::Signals)?;
    let opened = OperationsLog::open(config.operations_log)
        .await
        .map_err(ReplicaError::OpenLog)?;
    let recovery = Recovery::prepare(&opened, config.service.operation_timeout).await;
    let (log, writer) = opened.start().await.map_err(ReplicaError::OpenLog)?;

    let reopening = tokio::spawn(reopen_at(hangup, log.clone()));
    let reloading = [
        tokio::spawn(reload_at(reload, tokens.clone(), Arc::clone(&metrics))),
        tokio::spawn(renew_at(renewal, config.http.tls.clone(), Arc::clone(&metrics))),
    ];
    let operation_timeout = config.service.operation_timeout;
    let service = Arc::new(Service::new(
        store,
        approver,
        log,
        Arc::clone(&metrics),
        config.service,
        config.ledger,
    ));
    let recovering = recovery.begin(Arc::clone(&service)).await;
    let stopping = Stopping::default();
    let addresses = Addresses {
        service: listening.address(),
        admin: admin.as_ref().map(Listening::address),
    };
    tell_of_tokens(tokens.as_deref(), addresses.service, &metrics);
    started(addresses);
    let not_ready_first = {
        let stopping = stopping.clone();
        async move {
            shutdown.await;
            stopping.begin();
            tokio::time::sleep(config.http.shutdown_delay).await;
        }
    };
    let site = |offer| Site {
        service: Arc::clone(&service),
        metrics: Arc::clone(&metrics),
        stopping: stopping.clone(),
        tokens: tokens.clone(),
        offer,
        hosts: config.http.hosts.clone(),
    };
    let drain = config.http.shutdown_timeout;
    serve_all(listening, admin, site, not_ready_first, drain).await;

    recovering.stop().await;
    // Operations whose clients have gone run on; each ends by its own deadline.
    if timeout(operation_timeout + Duration::from_secs(2), service.finish())
        .await
        .is_err()
    {
        tracing::error!("operations under way did not end by their deadline");
    }
    reopening.abort();
    reloading.iter().for_each(JoinHandle::abort);
    let finished = writer.finish().await.map_err(ReplicaError::FinishLog);
    service.close();
    end_export().await;
    finished
}

fn bind(variable: &'static str, config: &HttpConfig) -> Result<Listening, ReplicaError> {
    let address = config.listen;
    Listening::bind(config).map_err(|source| ReplicaError::Listen {
        variable,
        address,
        source,
    })
}

/// Blocks until a small file is read, for a limited time; nothing else goes on yet.
fn open_tokens(file: Option<&Path>) -> Result<Option<Arc<Tokens>>, TokensError> {
    let tokens = file.map(Tokens::open).transpose()?;
    Ok(tokens.map(Arc::new))
}

/// A list that is missing by mistake must not go unnoticed.
fn tell_of_tokens(tokens: Option<&Tokens>, address: SocketAddr, metrics: &Metrics) {
    let count = tokens.map_or(0, Tokens::count);
    metrics.access.tokens.set(gauge_value(count));
    match tokens {
        Some(_) => tracing::info!(count, "operations need a token of API_TOKENS_FILE"),
        None if address.ip().is_loopback() => {
            tracing::info!("API_TOKENS_FILE is not set: whoever reaches LISTEN may do everything");
        }
        None => tracing::warn!("API_TOKENS_FILE is not set: whoever reaches LISTEN may do everything"),
    }
}

/// Serves clients, and operators at an address of their own if they have one, until clients are answered after `shutdown`.
async fn serve_all(
    clients: Listening,
    operators: Option<Listening>,
    site: impl Fn(Offer) -> Site<Service>,
    shutdown: impl Future<Output = ()>,
    drain: Duration,
) {
    let Some(operators) = operators else {
        return serve(clients, site(Offer::Everything), shutdown, drain).await;
    };
    let answered = CancellationToken::new();
    let clients = async {
        serve(clients, site(Offer::Operations), shutdown, drain).await;
        // Operators can look on until then.
        answered.cancel();
    };
    let operators = serve(
        operators,
        site(Offer::Administration),
        answered.cancelled(),
        ADMIN_DRAIN,
    );
    tokio::join!(clients, operators);
}

/// At each SIGHUP, opens the log anew.
async fn reopen_at(mut hangup: Signal, log: OperationsLog) {
    while hangup.recv().await.is_some() {
        log.reopen();
    }
}

/// At each SIGHUP, reads the tokens again, one reading after the other, so that the last one counts. A file that does not
/// answer is given up, and holds up nothing else.
async fn reload_at(mut hangup: Signal, tokens: Option<Arc<Tokens>>, metrics: Arc<Metrics>) {
    let Some(tokens) = tokens else {
        return;
    };
    while hangup.recv().await.is_some() {
        reload(Arc::clone(&tokens), &metrics).await;
    }
}

/// At each SIGHUP, reads the service's certificate again.
async fn renew_at(mut hangup: Signal, tls: Option<ServerTls>, metrics: Arc<Metrics>) {
    let Some(tls) = tls else {
        return;
    };
    let certificate = Certificate::new(tls, &metrics);
    while hangup.recv().await.is_some() {
        certificate.reload().await;
    }
}

/// Reads files where nobody waits for them, or says why that failed; a reading that panics has failed too.
async fn read_again<T: Send + 'static, E: Display + Send + 'static>(
    read: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, String> {
    match spawn_blocking(read).await {
        Ok(read) => read.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

async fn reload(tokens: Arc<Tokens>, metrics: &Metrics) {
    let reloaded = read_again(move || tokens.reload()).await;
    metrics.access.tokens_reload_failed.set(i64::from(reloaded.is_err()));
    match reloaded {
        Ok(count) => {
            metrics.access.tokens.set(gauge_value(count));
            tracing::info!(count, "the tokens were read again");
        }
        Err(error) => tracing::error!("the tokens stay as they were; API_TOKENS_FILE: {error}"),
    }
}
