//! The service over HTTP: poem-openapi's types and thin handlers, and one place where every error of every layer becomes
//! a problem.

mod api;
mod body;
mod connection;
mod deferred;
mod document;
mod listener;
mod parameters;
mod phase;
mod problem;
mod types;

use std::sync::Arc;
use std::time::{Duration, Instant};

use poem::error::{MethodNotAllowedError, NotFoundError, ParsePathError};
use poem::http::{HeaderValue, Method, header};
use poem::web::Html;
use poem::{Endpoint, EndpointExt, IntoEndpoint, IntoResponse, Request, Response, Route, Server, get};
use poem_openapi::error::ParseParamError;

pub use api::Stopping;
pub use document::document;
pub use listener::Listening;

use api::Api;
use body::BodyTime;
use problem::{Code, Problem};

use crate::metrics::Metrics;
use crate::service::UseCases;

/// The paths, and the methods each has; what no path matches is counted under one name.
const ROUTES: [(&str, &str); 8] = [
    ("/changeBalance", "POST"),
    ("/{userId}/balance", "GET, HEAD"),
    ("/{userId}/history", "GET, HEAD"),
    ("/livez", "GET, HEAD"),
    ("/readyz", "GET, HEAD"),
    ("/metrics", "GET, HEAD"),
    ("/openapi.json", "GET, HEAD"),
    ("/docs", "GET, HEAD"),
];

/// The name under which requests to no path are counted.
const UNMATCHED: &str = "unmatched";

/// Serves until `shutdown` resolves, then answers what is under way, for at most `drain`.
///
/// # Errors
///
/// If the listener fails for good.
pub async fn serve<S: UseCases>(
    listening: Listening,
    service: Arc<S>,
    metrics: Arc<Metrics>,
    stopping: Stopping,
    shutdown: impl Future<Output = ()>,
    drain: Duration,
) -> std::io::Result<()> {
    let api = Api {
        service: Some(service),
        metrics: Arc::clone(&metrics),
        stopping,
    };
    let body_time = BodyTime(listening.body_time());
    Server::new_with_acceptor(listening)
        .run_with_graceful_shutdown(application(api, metrics, body_time), shutdown, Some(drain))
        .await
}

fn application<S: UseCases>(
    api: Api<S>,
    metrics: Arc<Metrics>,
    body_time: BodyTime,
) -> impl Endpoint<Output = Response> + 'static {
    let document = document();
    let docs = document::swagger_ui(&document);
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
        .at("/docs", get(poem::endpoint::make_sync(move |_| Html(docs.clone()))));
    routes.around(move |routes, request| {
        let metrics = Arc::clone(&metrics);
        async move { Ok(answer(&*routes, request, &metrics, body_time).await) }
    })
}

/// Calls the routes; whatever comes of it is an answer, and is counted.
async fn answer<E: Endpoint>(routes: &E, mut request: Request, metrics: &Metrics, body_time: BodyTime) -> Response {
    let began = Instant::now();
    let route = route_of(request.uri().path());
    let method = request.method().clone();
    if method == Method::HEAD {
        // Answered as GET; hyper leaves out the body.
        request.set_method(Method::GET);
    }
    if method == Method::POST {
        request.extensions_mut().insert(body_time);
    }
    let routed = routes.call(request).await;
    let mut response = match routed {
        Ok(response) => deferred::resolve(response.into_response()).await,
        Err(error) => to_problem(error, route),
    };
    response
        .headers_mut()
        .insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let pattern = route.map_or(UNMATCHED, |(pattern, _)| pattern);
    let method = known_method(&method);
    metrics.request(
        pattern,
        method,
        response.status().as_u16(),
        began.elapsed().as_secs_f64(),
    );
    response
}

/// The one match that turns what poem and poem-openapi refuse by themselves into problems. Handlers have made their
/// problems already.
fn to_problem(error: poem::Error, route: Option<(&'static str, &'static str)>) -> Response {
    if error.is_from_response() {
        return error.into_response();
    }
    let paths = || ROUTES.map(|(pattern, _)| pattern).join(", ");
    if error.is::<NotFoundError>() {
        return Problem::new(Code::NotFound, format!("There is no such path; there are {}.", paths())).into_response();
    }
    if error.is::<MethodNotAllowedError>() {
        let allowed = route.map_or("", |(_, methods)| methods);
        let detail = format!("This path has no such method; it has {allowed}.");
        let mut response = Problem::new(Code::MethodNotAllowed, detail).into_response();
        response
            .headers_mut()
            .insert(header::ALLOW, HeaderValue::from_static(allowed));
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
        tracing::debug!(?error, "a request that cannot be read");
        return Problem::invalid("The request cannot be read; see /docs for what it may hold.").into_response();
    }
    tracing::error!(%status, %error, "an error that no layer has named");
    Problem::from(crate::service::Unavailable::Internal).into_response()
}

fn route_of(path: &str) -> Option<(&'static str, &'static str)> {
    let mut segments = path.strip_prefix('/')?.split('/');
    let pattern = match (segments.next()?, segments.next(), segments.next()) {
        (_, Some("balance"), None) => "/{userId}/balance",
        (_, Some("history"), None) => "/{userId}/history",
        (_, None, None) => path,
        _ => return None,
    };
    ROUTES.into_iter().find(|(known, _)| *known == pattern)
}

/// Methods are the client's to invent; labels are not.
fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "_OTHER",
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
            ("/docs", Some("/docs")),
            ("/changeBalance", Some("/changeBalance")),
            ("/alice", None),
            ("/a/b/balance", None),
            ("/docs/", None),
            ("/", None),
        ] {
            assert_eq!(route_of(path).map(|(pattern, _)| pattern), pattern, "{path}");
        }
    }
}
