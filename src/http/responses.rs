//! The answers that are no problems: their bodies under their media types, and their headers.

use poem::http::{HeaderName, HeaderValue, StatusCode, header};
use poem::{IntoResponse, Response};
use poem_openapi::ApiResponse;
use poem_openapi::payload::Payload;
use poem_openapi::registry::{MetaHeader, MetaMediaType, MetaResponse, MetaResponses, MetaSchemaRef, Registry};
use poem_openapi::types::{ToJSON, Type};

use super::conditions::entity_tag;
use super::problem::response_header;
use super::types::{Change, EntityTagText};

/// A body of JSON, under the media type without the parameter that poem-openapi's own adds.
#[derive(Clone, Debug)]
pub struct Json<T>(pub T);

impl<T: Type> Payload for Json<T> {
    const CONTENT_TYPE: &'static str = "application/json";

    fn schema_ref() -> MetaSchemaRef {
        T::schema_ref()
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

impl<T: ToJSON> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        Response::builder()
            .content_type(Self::CONTENT_TYPE)
            .body(self.0.to_json_string())
    }
}

/// A 200 with a body, which poem-openapi would leave without a description.
#[derive(Clone, Debug)]
pub struct Success<T>(pub T);

impl<T: ToJSON> IntoResponse for Success<T> {
    fn into_response(self) -> Response {
        Json(self.0).into_response()
    }
}

impl<T: ToJSON> ApiResponse for Success<T> {
    fn meta() -> MetaResponses {
        MetaResponses {
            responses: vec![success::<T>("The answer.", vec![])],
        }
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

/// A 200 for a change, and whether it is the first answer again.
#[derive(Clone, Debug)]
pub struct Changed {
    /// The answer.
    pub change: Change,
    /// The user's version.
    pub version: i64,
    /// Whether it was given before.
    pub replayed: bool,
}

const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

impl IntoResponse for Changed {
    fn into_response(self) -> Response {
        let mut response = Json(self.change).into_response();
        let headers = response.headers_mut();
        headers.insert(header::ETAG, entity_tag(self.version));
        if self.replayed {
            headers.insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
        }
        response
    }
}

impl ApiResponse for Changed {
    fn meta() -> MetaResponses {
        let replayed = response_header(
            IDEMPOTENCY_REPLAYED,
            "`true` when this is the first answer again.",
            bool::schema_ref(),
        );
        MetaResponses {
            responses: vec![success::<Change>(
                "The change was accepted; with `dryRun`, it would be.",
                vec![replayed, etag_header()],
            )],
        }
    }

    fn register(registry: &mut Registry) {
        Change::register(registry);
    }
}

/// A 200 for a figure, with the user's version; or the 304 that says that it is what the client has.
#[derive(Clone, Debug)]
pub enum Conditional<T> {
    /// The answer.
    Whole {
        /// The body.
        body: T,
        /// The user's version, where the body is what that version says.
        version: Option<i64>,
    },
    /// The client has the answer of this version.
    NotModified {
        /// The user's version.
        version: i64,
    },
}

impl<T: ToJSON> IntoResponse for Conditional<T> {
    fn into_response(self) -> Response {
        let (mut response, version) = match self {
            Conditional::Whole { body, version } => (Json(body).into_response(), version),
            Conditional::NotModified { version } => (StatusCode::NOT_MODIFIED.into_response(), Some(version)),
        };
        if let Some(version) = version {
            response.headers_mut().insert(header::ETAG, entity_tag(version));
        }
        response
    }
}

impl<T: ToJSON> ApiResponse for Conditional<T> {
    fn meta() -> MetaResponses {
        let not_modified = MetaResponse {
            description: "The answer is the one that the client has: `If-None-Match` names its `ETag`.",
            status: Some(304),
            status_range: None,
            content: Vec::new(),
            headers: vec![etag_header()],
        };
        MetaResponses {
            responses: vec![success::<T>("The answer.", vec![etag_header()]), not_modified],
        }
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

/// The header `ETag` of an answer, for the OpenAPI document.
pub fn etag_header() -> MetaHeader {
    response_header(
        header::ETAG,
        "The user's version: it steps by one with each accepted change. Of a change, the one that it made, of a repeat too; with \
         `dryRun`, the one that the verdict rests on.",
        EntityTagText::schema_ref(),
    )
}

fn success<T: Type>(description: &'static str, headers: Vec<MetaHeader>) -> MetaResponse {
    MetaResponse {
        description,
        status: Some(200),
        status_range: None,
        content: vec![MetaMediaType {
            content_type: Json::<T>::CONTENT_TYPE,
            schema: T::schema_ref(),
        }],
        headers,
    }
}
