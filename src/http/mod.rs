//! The service over HTTP: poem-openapi's types and thin handlers, and one place where every error of every layer becomes
//! a problem.

mod api;
mod authorization;
mod body;
mod conditions;
mod connection;
mod deferred;
mod document;
mod exchange;
mod headers;
mod listener;
mod negotiation;
mod parameters;
mod phase;
mod problem;
mod responses;
mod routes;
mod statement;
mod stream;
mod types;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use poem::error::{MethodNotAllowedError, NotFoundError, ParsePathError};
use poem::http::{HeaderValue, Method, header};
use poem::{Endpoint, EndpointExt, IntoEndpoint, IntoResponse, Request, Response, Route, Server, get};
use poem_openapi::error::ParseParamError;

pub use api::Stopping;
pub use document::document;
pub use listener::Listening;
pub use routes::Offer;

use api::Api;
use authorization::Authorization;
use body::{Awaited, BodyTime};
use exchange::Exchange;
use problem::{Code, Problem};
use routes::{Audience, KnownRoute};

use crate::metrics::Metrics;
use crate::service::UseCases;
use crate::telemetry;
use crate::tokens::Tokens;

/// The name under which requests to no path are counted.
const UNMATCHED: &str = "unmatched";

/// What is served at an address.
pub struct Site<S> {
    /// The use cases.
    pub service: Arc<S>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Whether the service is stopping.
    pub stopping: Stopping,
    /// Those that operations need; without a list they need none.
    pub tokens: Option<Arc<Tokens>>,
    /// Which paths there are.
    pub offer: Offer,
}

/// What a request passes before it comes to a handler, and its answer afterwards.
struct Gate {
    offer: Offer,
    authorization: Authorization,
    metrics: Arc<Metrics>,
    body_time: BodyTime,
}

/// Serves until `shutdown` resolves, then answers what is under way, for at most `drain`.
///
/// # Errors
///
/// If the listener fails for good.
pub async fn serve<S: UseCases>(
    mut listening: Listening,
    site: Site<S>,
    shutdown: impl Future<Output = ()>,
    drain: Duration,
) -> std::io::Result<()> {
    let Site {
        service,
        metrics,
        stopping,
        tokens,
        offer,
    } = site;
    let gate = Gate {
        offer,
        authorization: Authorization::new(tokens, Arc::clone(&metrics)),
        metrics: Arc::clone(&metrics),
        body_time: BodyTime(listening.body_time()),
    };
    let api = Api {
        service: Some(service),
        metrics,
        stopping,
    };
    if offer != Offer::Administration {
        listening.count(Arc::clone(&gate.metrics));
    }
    Server::new_with_acceptor(listening)
        .run_with_graceful_shutdown(application(api, gate), shutdown, Some(drain))
        .await
}

fn application<S: UseCases>(api: Api<S>, gate: Gate) -> impl Endpoint<Output = Response> + 'static {
    let document = document();
    let docs = document::swagger_ui(&document);
    let policy = headers::policy_of_page(&docs);
    let gate = Arc::new(gate);
    let routes = Route::new()
        .nest_no_strip("/", document::open_api_service(api).into_endpoint())
        .at(
            "/openapi.json",
            get(poem::endpoint::make_sync(move |_| {
                Response::builder()
                    .content_type("application/json")
                    .body(document.clone())
            })),
        )
        .at(
            "/docs",
            get(poem::endpoint::make_sync(move |_| {
                Response::builder()
                    .content_type("text/html; charset=utf-8")
                    .header(header::CONTENT_SECURITY_POLICY, policy.clone())
                    .body(docs.clone())
            })),
        );
    routes.around(move |routes, request| {
        let gate = Arc::clone(&gate);
        async move { Ok(gate.answer(&*routes, request).await) }
    })
}

impl Gate {
    /// Calls the routes; whatever comes of it is an answer, and is counted.
    async fn answer<E: Endpoint>(&self, routes: &E, mut request: Request) -> Response {
        let route = self.offer.route_of(request.uri().path());
        let exchange = Exchange::begin(&request, route, &self.metrics);
        let awaited = Awaited::watch(&mut request);
        let context = exchange.request();
        // A future of several kilobytes; the scope is given a pointer, not the future, so that it is never copied.
        let work = pin!(async move {
            let mut response = match self.admit(route, &mut request).await {
                Ok(route) => self.handle(routes, route, request).await,
                Err(refusal) => refusal,
            };
            headers::protect(response.headers_mut(), route);
            // hyper closes the connection after such an answer, and says so to nobody.
            if awaited.is_some_and(|awaited| awaited.is_so()) {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            exchange.end(&mut response);
            response
        });
        telemetry::scope(context, work).await
    }

    /// Lets a request pass to a path that there is here, with a token that allows it; who asks is noted with it.
    async fn admit(
        &self,
        route: Option<&'static KnownRoute>,
        request: &mut Request,
    ) -> Result<&'static KnownRoute, Response> {
        let Some(route) = route else {
            let paths: Vec<_> = self.offer.routes().map(|route| route.pattern).collect();
            let detail = format!("There is no such path; there are {}.", paths.join(", "));
            return Err(Problem::new(Code::NotFound, detail).into_response());
        };
        let needed = match route.audience {
            Audience::Client(scope) => scope,
            Audience::Prober | Audience::Administrator => return Ok(route),
        };
        match self.authorization.check(request, needed) {
            Ok(None) => {}
            Ok(Some(caller)) => {
                request.extensions_mut().insert(caller);
            }
            Err(refused) => {
                let body = request.take_body();
                body::discard(request.headers(), body).await;
                return Err(refused.into_response());
            }
        }
        Ok(route)
    }

    async fn handle<E: Endpoint>(&self, routes: &E, route: &KnownRoute, mut request: Request) -> Response {
        match *request.method() {
            // Answered as GET; hyper leaves out the body.
            Method::HEAD => request.set_method(Method::GET),
            Method::POST => {
                request.extensions_mut().insert(self.body_time);
            }
            _ => {}
        }
        match routes.call(request).await {
            Ok(response) => deferred::resolve(response.into_response()).await,
            Err(error) => to_problem(error, route),
        }
    }
}

/// The one match that turns what poem and poem-openapi refuse by themselves into problems. Handlers have made their
/// problems already.
fn to_problem(error: poem::Error, route: &KnownRoute) -> Response {
    if error.is_from_response() {
        return error.into_response();
    }
    if error.is::<NotFoundError>() {
        return Problem::new(Code::NotFound, "There is no such path; see /docs for those there are.").into_response();
    }
    if error.is::<MethodNotAllowedError>() {
        let detail = format!("This path has no such method; it has {}.", route.methods);
        let mut response = Problem::new(Code::MethodNotAllowed, detail).into_response();
        response
            .headers_mut()
            .insert(header::ALLOW, HeaderValue::from_static(route.methods));
        return response;
    }
    if error.is::<ParsePathError>() {
        let detail = "userId in the path must be percent-encoded UTF-8, for example /a%2Fb/balance for the user a/b.";
        return Problem::invalid(detail).into_response();
    }
    if let Some(ParseParamError { name, .. }) = error.downcast_ref() {
        return Problem::invalid(format!("{name} cannot be read; see /docs for what it may hold.")).into_response();
    }
    let status = error.status();
    if status.is_client_error() {
        // The error's words may be the client's.
        tracing::debug!(%status, "a request that cannot be read");
        return Problem::invalid("The request cannot be read; see /docs for what it may hold.").into_response();
    }
    tracing::error!(%status, %error, "an error that no layer has named");
    Problem::from(crate::service::Unavailable::Internal).into_response()
}
