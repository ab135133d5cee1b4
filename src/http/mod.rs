//! The service over HTTP: poem-openapi's types and thin handlers, and one place where every error of every layer becomes
//! a problem.

mod api;
mod authorization;
mod body;
mod conditions;
mod deferred;
mod document;
mod exchange;
mod headers;
mod hosts;
mod last_answer;
mod memory;
mod negotiation;
mod parameters;
mod problem;
mod responses;
mod routes;
mod statement;
mod types;
mod unread;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Body as _;
use poem::error::{MethodNotAllowedError, NotFoundError, ParsePathError};
use poem::http::{HeaderValue, Method, header};
use poem::{Body, Endpoint, EndpointExt, IntoEndpoint, IntoResponse, Request, Response, Route, get};
use poem_openapi::error::ParseParamError;

pub use api::Stopping;
pub use document::document;
pub use last_answer::{not_encrypted, too_many_connections};
pub use memory::{Memory, OutOfMemory, Reserved, UNCOUNTED_BYTES};
pub use routes::Offer;

use api::Api;
use authorization::Authorization;
use body::BodyTime;
use exchange::Exchange;
use memory::Counted;
use problem::{Code, Problem};
use routes::{Audience, KnownRoute};
use unread::Unread;

use crate::config::HostNames;
use crate::metrics::Metrics;
use crate::service::UseCases;
use crate::telemetry;
use crate::tokens::Tokens;

/// The budget for answers to operators and probes at one address.
const ADMINISTRATION_BYTES: usize = 4 * 1024 * 1024;

/// The name under which requests to no path are counted.
const UNMATCHED: &str = "unmatched";

type BoxBody = http_body_util::combinators::BoxBody<Bytes, std::io::Error>;

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
    /// To which hosts requests may be addressed.
    pub hosts: HostNames,
}

/// How long, and how much, clients may take.
pub struct Limits {
    /// How long a body may take to arrive.
    pub body_time: Duration,
    /// The budget for large bodies and answers.
    pub memory: Memory,
}

/// What a request passes before it comes to a handler, and its answer afterwards.
struct Gate {
    offer: Offer,
    authorization: Authorization,
    metrics: Arc<Metrics>,
    hosts: HostNames,
    body_time: BodyTime,
    memory: Memory,
    /// Clients' pages and bodies take nothing of what metrics need.
    administration: Memory,
}

/// The endpoint that answers all requests of an address.
pub fn application<S: UseCases>(site: Site<S>, limits: Limits) -> impl Endpoint<Output = Response> + 'static {
    let gate = Arc::new(Gate {
        offer: site.offer,
        authorization: Authorization::new(site.tokens, Arc::clone(&site.metrics)),
        metrics: Arc::clone(&site.metrics),
        hosts: site.hosts,
        body_time: BodyTime(limits.body_time),
        memory: limits.memory.clone(),
        administration: Memory::new(ADMINISTRATION_BYTES),
    });
    let api = Api {
        service: Some(site.service),
        metrics: site.metrics,
        stopping: site.stopping,
        memory: limits.memory,
    };
    let document = document();
    let docs = document::swagger_ui(&document);
    let policy = headers::policy_of_page(&docs);
    // All answers share these bytes.
    let (document, docs) = (Bytes::from(document), Bytes::from(docs));
    let routes = Route::new()
        .nest_no_strip("/", document::open_api_service(api).into_endpoint())
        .at(
            "/openapi.json",
            get(poem::endpoint::make_sync(move |_| {
                Response::builder()
                    .content_type("application/json")
                    .extension(Counted)
                    .body(document.clone())
            })),
        )
        .at(
            "/docs",
            get(poem::endpoint::make_sync(move |_| {
                Response::builder()
                    .content_type("text/html; charset=utf-8")
                    .header(header::CONTENT_SECURITY_POLICY, policy.clone())
                    .extension(Counted)
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
        let unread = Unread::watch(&mut request);
        let context = exchange.request();
        // A future of several kilobytes; the scope is given a pointer, not the future, so that it is never copied.
        let work = pin!(async move {
            let mut response = match self.admit(route, &mut request) {
                Ok(route) => self.handle(routes, route, request).await,
                Err(refusal) => {
                    // Gives back its body.
                    drop(request);
                    *refusal
                }
            };
            headers::protect(response.headers_mut(), route);
            if let Some(unread) = unread
                && !unread.drop_rest().await
            {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            exchange.end(&mut response);
            response
        });
        telemetry::scope(context, work).await
    }

    /// Lets a request pass to a path that there is here, with a token that allows it; who asks is noted with it.
    fn admit(
        &self,
        route: Option<&'static KnownRoute>,
        request: &mut Request,
    ) -> Result<&'static KnownRoute, Box<Response>> {
        hosts::check(request, &self.hosts).map_err(|problem| Box::new(problem.into_response()))?;
        let Some(route) = route else {
            let paths: Vec<_> = self.offer.routes().map(|route| route.pattern).collect();
            let detail = format!("There is no such path; there are {}.", paths.join(", "));
            return Err(Box::new(Problem::new(Code::NotFound, detail).into_response()));
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
            Err(refused) => return Err(Box::new(refused.into_response())),
        }
        Ok(route)
    }

    async fn handle<E: Endpoint>(&self, routes: &E, route: &KnownRoute, mut request: Request) -> Response {
        match *request.method() {
            // Answered as GET; hyper leaves out the body.
            Method::HEAD => request.set_method(Method::GET),
            Method::POST => {
                request.extensions_mut().insert(self.body_time);
                request.extensions_mut().insert(self.memory.clone());
            }
            _ => {}
        }
        let response = match routes.call(request).await {
            Ok(response) => deferred::resolve(response.into_response()).await,
            Err(error) => to_problem(error, route),
        };
        self.count(response, route).await
    }

    /// Takes memory for a large answer that has none yet.
    async fn count(&self, mut response: Response, route: &KnownRoute) -> Response {
        let body = BoxBody::from(response.take_body());
        let length = body.size_hint().exact().unwrap_or(0);
        if length <= UNCOUNTED_BYTES as u64 || response.extensions_mut().remove::<Counted>().is_some() {
            response.set_body(Body::from(body));
            return response;
        }
        // It is all there.
        let Ok(bytes) = Body::from(body).into_vec().await else {
            return Problem::from(crate::service::Unavailable::Internal).into_response();
        };
        let memory = match route.audience {
            Audience::Client(_) => &self.memory,
            Audience::Prober | Audience::Administrator => &self.administration,
        };
        match memory.try_reserve(bytes.len()) {
            Ok(reserved) => {
                response.set_body(Body::from(reserved.with(bytes)));
                response
            }
            Err(full) => Problem::from(full).into_response(),
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
