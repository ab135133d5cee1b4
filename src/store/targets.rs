//! The servers that `DATABASE_URL` names, each with a configuration of its own.
//!
//! `tokio-postgres` tries several hosts, or several addresses of one, in order and limits only the time of TCP. A server that
//! accepts a connection and stays silent would keep it from the next one for ever.

use std::net::{IpAddr, SocketAddr};

use tokio::net::lookup_host;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, LoadBalanceHosts};

use super::ConnectionFailure;

const DEFAULT_PORT: u16 = 5432;

/// A configuration for each address, in the order in which they are to be tried, or why a host has none.
pub(super) async fn targets_of(config: &Config) -> Vec<Result<Config, ConnectionFailure>> {
    let (hosts, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    let mut targets = Vec::new();
    for index in 0..hosts.len().max(addresses.len()) {
        let port = ports.get(index).or(ports.first()).copied().unwrap_or(DEFAULT_PORT);
        let host = hosts.get(index);
        match (host, addresses.get(index)) {
            (Some(Host::Tcp(name)), None) => match lookup_host((name.as_str(), port)).await {
                Ok(found) => {
                    targets.extend(found.map(|address: SocketAddr| Ok(target(config, host, Some(address.ip()), port))))
                }
                Err(error) => targets.push(Err(ConnectionFailure::UnknownHost(format!("{name}: {error}")))),
            },
            (host, address) => targets.push(Ok(target(config, host, address.copied(), port))),
        }
    }
    if config.get_load_balance_hosts() == LoadBalanceHosts::Random {
        fastrand::shuffle(&mut targets);
    }
    targets
}

/// A copy of the configuration with one host; `tokio-postgres` lets none be taken away.
fn target(config: &Config, host: Option<&Host>, address: Option<IpAddr>, port: u16) -> Config {
    let mut target = Config::new();
    match host {
        Some(Host::Tcp(name)) => drop(target.host(name)),
        Some(Host::Unix(directory)) => drop(target.host_path(directory)),
        None => {}
    }
    if let Some(address) = address {
        target.hostaddr(address);
    }
    target
        .port(port)
        .ssl_mode(config.get_ssl_mode())
        .ssl_negotiation(config.get_ssl_negotiation())
        .channel_binding(config.get_channel_binding())
        .target_session_attrs(config.get_target_session_attrs())
        .keepalives(config.get_keepalives())
        .keepalives_idle(config.get_keepalives_idle());
    if let Some(user) = config.get_user() {
        target.user(user);
    }
    if let Some(password) = config.get_password() {
        target.password(password);
    }
    if let Some(dbname) = config.get_dbname() {
        target.dbname(dbname);
    }
    if let Some(options) = config.get_options() {
        target.options(options);
    }
    if let Some(name) = config.get_application_name() {
        target.application_name(name);
    }
    if let Some(timeout) = config.get_connect_timeout() {
        target.connect_timeout(*timeout);
    }
    if let Some(timeout) = config.get_tcp_user_timeout() {
        target.tcp_user_timeout(*timeout);
    }
    if let Some(interval) = config.get_keepalives_interval() {
        target.keepalives_interval(interval);
    }
    if let Some(retries) = config.get_keepalives_retries() {
        target.keepalives_retries(retries);
    }
    target
}
