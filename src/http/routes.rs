//! The paths: whom each is for, and which an address offers.

use crate::tokens::Scope;

/// A path that there is.
#[derive(Debug)]
pub struct KnownRoute {
    /// As in the OpenAPI document; requests are counted by it.
    pub pattern: &'static str,
    /// The methods it has, as the header `Allow` lists them.
    pub methods: &'static str,
    /// Whom it is for.
    pub audience: Audience,
    /// The header of requests that its answers depend on, if on any.
    pub varies_by: Option<&'static str>,
}

/// Whom a path is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Clients; with tokens, those that have this scope.
    Client(Scope),
    /// Whoever wants to know whether the service is there.
    Prober,
    /// Those who run the service, and those who read about it.
    Administrator,
}

/// What an address answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// All there is: there is no other address.
    Everything,
    /// Operations, and the probes.
    Operations,
    /// Metrics and documentation, and the probes.
    Administration,
}

impl Offer {
    fn includes(self, audience: Audience) -> bool {
        match (self, audience) {
            (Offer::Everything, _) | (_, Audience::Prober) => true,
            (Offer::Operations, Audience::Client(_)) | (Offer::Administration, Audience::Administrator) => true,
            (Offer::Operations, Audience::Administrator) | (Offer::Administration, Audience::Client(_)) => false,
        }
    }

    /// The route of a path, if it is offered. A path without one goes to no handler, whatever the router makes of it.
    pub fn route_of(self, path: &str) -> Option<&'static KnownRoute> {
        let mut segments = path.strip_prefix('/')?.split('/');
        let pattern = match (segments.next()?, segments.next(), segments.next()) {
            (_, Some("balance"), None) => "/{userId}/balance",
            (_, Some("available"), None) => "/{userId}/available",
            (_, Some("history"), None) => "/{userId}/history",
            (_, None, None) => path,
            _ => return None,
        };
        self.routes().find(|known| known.pattern == pattern)
    }

    /// The routes that are offered.
    pub fn routes(self) -> impl Iterator<Item = &'static KnownRoute> {
        ROUTES.iter().filter(move |known| self.includes(known.audience))
    }
}

static ROUTES: [KnownRoute; 9] = [
    KnownRoute {
        pattern: "/changeBalance",
        methods: "POST",
        audience: Audience::Client(Scope::Write),
        varies_by: None,
    },
    reading("/{userId}/balance", Audience::Client(Scope::Read)),
    reading("/{userId}/available", Audience::Client(Scope::Read)),
    KnownRoute {
        varies_by: Some("Accept"),
        ..reading("/{userId}/history", Audience::Client(Scope::Read))
    },
    reading("/livez", Audience::Prober),
    reading("/readyz", Audience::Prober),
    reading("/metrics", Audience::Administrator),
    reading("/openapi.json", Audience::Administrator),
    reading("/docs", Audience::Administrator),
];

const fn reading(pattern: &'static str, audience: Audience) -> KnownRoute {
    KnownRoute {
        pattern,
        methods: "GET, HEAD",
        audience,
        varies_by: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_route_and_never_by_user() {
        for (path, pattern) in [
            ("/alice/balance", Some("/{userId}/balance")),
            ("/docs/history", Some("/{userId}/history")),
            ("/available/available", Some("/{userId}/available")),
            ("/docs", Some("/docs")),
            ("/changeBalance", Some("/changeBalance")),
            ("/alice", None),
            ("/a/b/balance", None),
            ("/docs/", None),
            ("/", None),
        ] {
            let found = Offer::Everything.route_of(path);
            assert_eq!(found.map(|known| known.pattern), pattern, "{path}");
        }
    }

    #[test]
    fn two_addresses_offer_all_there_is_and_share_the_probes() {
        for route in &ROUTES {
            let offered = [Offer::Operations, Offer::Administration].map(|offer| offer.includes(route.audience));
            let expected = match route.pattern {
                "/livez" | "/readyz" => [true, true],
                "/metrics" | "/docs" | "/openapi.json" => [false, true],
                _ => [true, false],
            };
            assert_eq!(offered, expected, "{}", route.pattern);
        }
    }
}
