//! How a replica reaches the primary, and how it finds the new one after a failover.

use crate::servers::Servers;
use crate::support::pgbouncer::{PgBouncer, PoolMode};
use crate::support::proxy::Proxy;

/// Enough for the connections of two lives of a replica: those of a killed one end when its proxy lets them.
const POOLED: u32 = 60;
/// PgBouncer looks for a server that was gone at once, and not after 15 s, and keeps no connection that nobody uses.
const POOLER_SETTINGS: &str = "server_login_retry = 0.1\nserver_idle_timeout = 1\n";

pub enum Link {
    /// A proxy that leads to the primary.
    Proxy(Proxy),
    /// PgBouncer in session mode, behind a proxy. It is reloaded when there is another primary.
    Pooler {
        proxy: Proxy,
        /// None while it is down.
        pooler: Option<Box<PgBouncer>>,
    },
    /// Several hosts in `DATABASE_URL`: a proxy in front of each server.
    Hosts([Proxy; 2]),
}

impl Link {
    pub async fn proxy(servers: &Servers) -> Self {
        Self::Proxy(Proxy::start(servers.primary()).await)
    }

    pub async fn pooler(servers: &Servers) -> Self {
        let mut link = Self::Pooler {
            proxy: Proxy::start(servers.primary()).await,
            pooler: None,
        };
        link.start_pooler(servers).await;
        link
    }

    pub async fn hosts(servers: &Servers) -> Self {
        let [one, other] = servers.databases();
        Self::Hosts([Proxy::start(one).await, Proxy::start(other).await])
    }

    /// The value of `DATABASE_URL`.
    pub fn url(&self) -> String {
        match self {
            Self::Proxy(proxy) | Self::Pooler { proxy, .. } => proxy.url.clone(),
            Self::Hosts([one, other]) => {
                let hosts = format!("@{},{}/", one.address, other.address);
                one.url.replace(&format!("@{}/", one.address), &hosts)
            }
        }
    }

    /// Leads to the servers as they are now.
    pub fn follow(&mut self, servers: &Servers) {
        match self {
            Self::Proxy(proxy) => proxy.lead_to(servers.primary()),
            Self::Pooler { pooler, .. } => {
                if let Some(pooler) = pooler {
                    pooler.lead_to(servers.primary(), PoolMode::Session);
                }
            }
            Self::Hosts(proxies) => {
                for (proxy, database) in proxies.iter().zip(servers.databases()) {
                    proxy.lead_to(database);
                }
            }
        }
    }

    /// A server is dead, and its host says nothing to those who connect to it.
    pub fn lose_host(&self, place: usize) {
        if let Self::Hosts(proxies) = self {
            proxies[place].lead_nowhere();
        }
    }

    /// Does the same with each of the proxies.
    pub fn each(&self, act: impl Fn(&Proxy)) {
        match self {
            Self::Proxy(proxy) | Self::Pooler { proxy, .. } => act(proxy),
            Self::Hosts(proxies) => proxies.iter().for_each(act),
        }
    }

    pub fn has_pooler(&self) -> bool {
        matches!(self, Self::Pooler { .. })
    }

    /// `kill -9` of PgBouncer, if there is one.
    pub fn kill_pooler(&mut self) {
        if let Self::Pooler { pooler, .. } = self {
            *pooler = None;
        }
    }

    /// Starts PgBouncer, if there is to be one.
    pub async fn start_pooler(&mut self, servers: &Servers) {
        if let Self::Pooler { proxy, pooler } = self {
            let started = PgBouncer::start_with(servers.primary(), PoolMode::Session, POOLED, POOLER_SETTINGS).await;
            proxy.lead_to_pooler(&started);
            *pooler = Some(Box::new(started));
        }
    }
}
