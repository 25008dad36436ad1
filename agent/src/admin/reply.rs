//! Responses of the admin interface.

use std::convert::Infallible;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use serde_json::Value;

/// A body that is there at once, or one that goes on for as long as somebody watches.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Any response.
pub type Reply = Response<Body>;

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=UTF-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A page of text.
pub fn text(status: StatusCode, text: impl Into<Bytes>) -> Reply {
    with_type(status, TEXT, text)
}

/// A page of JSON, indented as Envoy's admin interface does it.
pub fn json(value: &Value) -> Reply {
    // A JSON value always serialises.
    let mut page = serde_json::to_string_pretty(value).unwrap_or_default();
    page.push('\n');
    with_type(StatusCode::OK, JSON, page)
}

/// A page of any type.
pub fn with_type(status: StatusCode, content_type: HeaderValue, content: impl Into<Bytes>) -> Reply {
    stream(status, content_type, Full::new(content.into()).boxed_unsync())
}

/// A page that is not there at once.
pub fn stream(status: StatusCode, content_type: HeaderValue, body: Body) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    reply
}

/// 400: a parameter cannot be used.
pub fn bad_request(message: &str) -> Reply {
    text(StatusCode::BAD_REQUEST, format!("{message}\n"))
}

/// 404.
pub fn not_found(hint: &'static str) -> Reply {
    text(StatusCode::NOT_FOUND, hint)
}

/// 405, with what is allowed.
pub fn method_not_allowed(allowed: &'static str) -> Reply {
    let mut reply = text(StatusCode::METHOD_NOT_ALLOWED, format!("Method not allowed: use {allowed}\n"));
    reply.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    reply
}
