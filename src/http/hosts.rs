//! The header `Host`: given once, and where only this machine's names count, one of them.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use poem::Request;
use poem::http::uri::Authority;
use poem::http::{Version, header};

use super::problem::{Code, Problem};
use crate::config::HostNames;

/// Refuses a request whose host is not told, told twice, or not served here.
///
/// # Errors
///
/// A 400 or a 421.
pub fn check(request: &Request, names: &HostNames) -> Result<(), Problem> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (host, another) = (hosts.next(), hosts.next());
    if another.is_some() || (host.is_none() && request.version() >= Version::HTTP_11) {
        return Err(host_missing());
    }
    let HostNames::ThisMachine(name) = names else {
        return Ok(());
    };
    let local = request.local_addr().as_socket_addr().copied();
    let host = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    // HTTP/1.0 may have none; browsers, which this is about, always send it.
    let authorities = [host.as_ref(), request.uri().authority()];
    match authorities
        .into_iter()
        .flatten()
        .all(|authority| is_of_this_machine(authority.host(), name, local))
    {
        true if host.is_some() || request.version() < Version::HTTP_11 => Ok(()),
        _ => Err(misdirected()),
    }
}

/// The request does not say which host it is for, as HTTP/1.1 asks.
pub fn host_missing() -> Problem {
    Problem::invalid("HTTP/1.1 asks for the header Host, given once; send it, such as Host: localhost:8080.")
}

fn misdirected() -> Problem {
    Problem::new(
        Code::MisdirectedRequest,
        "`balance dev` answers only to the names of this machine; use http://localhost, at the same port.",
    )
}

/// A page of another site can lead a name of its own to this machine, but no address and none of these names.
fn is_of_this_machine(host: &str, name: &str, local: Option<SocketAddr>) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    if let Ok(address) = IpAddr::from_str(host) {
        return address.is_loopback() || local.is_some_and(|local| local.ip().to_canonical() == address.to_canonical());
    }
    let host = host.to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost") || (!name.is_empty() && host == name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine_are_told_from_others() {
        let local = Some(SocketAddr::from(([192, 168, 1, 5], 8080)));
        for host in [
            "localhost",
            "LOCALHOST",
            "localhost.",
            "a.b.localhost",
            "127.0.0.1",
            "127.1.2.3",
            "[::1]",
            "192.168.1.5",
            "Desk",
        ] {
            assert!(is_of_this_machine(host, "desk", local), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "notlocalhost",
            "192.168.1.6",
            "0.0.0.0",
            "",
        ] {
            assert!(!is_of_this_machine(host, "desk", local), "{host}");
            assert!(!is_of_this_machine(host, "", None), "{host}");
        }
    }
}
