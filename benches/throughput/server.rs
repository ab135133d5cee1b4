//! The comparison servers, each a process of its own: this program, started again with a hidden command.

use std::sync::Arc;
use std::time::Duration;

use balance::config::{DatabaseArguments, HostNames, HttpConfig, ServiceArguments};
use balance::http::{Offer, Site, Stopping};
use balance::metrics::Metrics;
use balance::operations_log::OperationsLog;
use balance::server::{Listening, serve};
use balance::service::UseCases;
use clap::Subcommand;
use tokio::signal::unix::{SignalKind, signal};

use crate::Outcome;
use crate::ceiling::Ceiling;
use crate::plain::Plain;

/// How long requests under way may take once the server is told to stop.
const DRAIN: Duration = Duration::from_secs(1);

/// A server to compare with. The flags are the service's own.
#[derive(Subcommand)]
pub enum ServerCommand {
    /// The same HTTP stack without a store
    #[command(hide = true)]
    Ceiling {
        #[command(flatten)]
        service: ServiceArguments,
    },
    /// A read and one conditional statement per request
    #[command(hide = true)]
    Plain {
        #[command(flatten)]
        database: DatabaseArguments,
        #[command(flatten)]
        service: ServiceArguments,
    },
}

impl ServerCommand {
    /// Serves until SIGTERM.
    ///
    /// # Errors
    ///
    /// Whatever keeps the server from starting, or from writing its last lines.
    pub fn run(self) -> Outcome<()> {
        // The service's runtime, so that what differs is the work.
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(async {
            match self {
                Self::Ceiling { service } => answer(Arc::new(Ceiling), &service.http()?).await,
                Self::Plain { database, service } => {
                    let config = database.database("balance plain".to_owned())?;
                    let (log, writer) = OperationsLog::start(service.operations_log()?).await?;
                    let plain = Plain::connect(&config, log, service.instance()?).await?;
                    answer(Arc::new(plain), &service.http()?).await?;
                    Ok(writer.finish().await?)
                }
            }
        })
    }
}

async fn answer<S: UseCases>(use_cases: Arc<S>, config: &HttpConfig) -> Outcome<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let listening = Listening::bind(config)?;
    let stop = async move {
        terminate.recv().await;
    };
    let (metrics, stopping) = (Arc::new(Metrics::new()), Stopping::default());
    let site = Site {
        service: use_cases,
        metrics,
        stopping,
        tokens: None,
        offer: Offer::Everything,
        hosts: HostNames::Any,
    };
    serve(listening, site, stop, DRAIN).await;
    Ok(())
}
