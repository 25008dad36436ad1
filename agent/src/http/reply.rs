//! Answers that the agent gives by itself.
//!
//! Before: a [`Refusal`], a redirect or a direct response. After: the client. A gRPC client gets its answer as
//! trailers-only with the status mapped (Envoy, `Grpc::Utility::httpToGrpcStatus`).

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Response, StatusCode, Version};
use http_body::Body as _;

use super::ServerHeader;
use super::exchange::Exchange;
use super::refusal::{Afterwards, Refusal};
use super::response_body::ResponseBody;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const X_ENVOY_OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");

/// Answers with `refusal` a request for which no row was found.
pub fn refuse(exchange: Exchange, refusal: Refusal) -> Response<ResponseBody> {
    refuse_as(exchange, refusal, |_| {})
}

/// Answers with `refusal`, its headers changed by `mutate`: those of the row that was found apply to the agent's own
/// answers as well.
pub fn refuse_as(
    mut exchange: Exchange,
    refusal: Refusal,
    mutate: impl FnOnce(&mut HeaderMap),
) -> Response<ResponseBody> {
    exchange.note_refusal(&refusal);
    let mut headers = HeaderMap::new();
    if refusal.overloaded {
        headers.insert(X_ENVOY_OVERLOADED, HeaderValue::from_static("true"));
    }
    let body = match refusal.body {
        std::borrow::Cow::Borrowed(text) => Bytes::from_static(text.as_bytes()),
        std::borrow::Cow::Owned(text) => Bytes::from(text),
    };
    mutate(&mut headers);
    respond(exchange, refusal.status, headers, body, refusal.connection)
}

/// Answers with `status`, `headers` and `body`.
pub fn respond(
    mut exchange: Exchange,
    status: StatusCode,
    mut headers: HeaderMap,
    body: Bytes,
    afterwards: Afterwards,
) -> Response<ResponseBody> {
    let manager = &exchange.connection.manager;
    // A response whose `server` header would be passed on has none when there is no origin to write it.
    if manager.server_header != ServerHeader::PassThrough {
        headers.insert(header::SERVER, manager.server_name.clone());
    }
    // A body that nobody reads makes the rest of an HTTP/1 connection unusable.
    let close = exchange.http1 && (afterwards == Afterwards::Close || !exchange.meter.has_arrived());
    if close {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        exchange.connection.linger();
    }
    let (status, body) = if exchange.grpc {
        grpc(&mut headers, status, &body);
        (StatusCode::OK, Bytes::new())
    } else {
        if !body.is_empty() && !headers.contains_key(header::CONTENT_TYPE) {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
        (status, body)
    };
    exchange.note_status(status);
    let body = ResponseBody::local(exchange, body);
    debug_assert!(body.size_hint().exact().is_some());
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.version_mut() = Version::HTTP_11;
    *response.headers_mut() = headers;
    response
}

fn grpc(headers: &mut HeaderMap, status: StatusCode, message: &[u8]) {
    let code = match status.as_u16() {
        400 => "13",
        401 => "16",
        403 => "7",
        404 => "12",
        429 | 502..=504 => "14",
        _ => "2",
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(GRPC_STATUS, HeaderValue::from_static(code));
    if !message.is_empty()
        && let Ok(message) = HeaderValue::from_str(&percent_encoded(message))
    {
        headers.insert(GRPC_MESSAGE, message);
    }
}

/// gRPC's encoding of `grpc-message`: printable ASCII but `%` stays as it is.
fn percent_encoded(message: &[u8]) -> String {
    let mut encoded = String::with_capacity(message.len());
    for byte in message {
        match byte {
            b' '..=b'~' if *byte != b'%' => encoded.push(char::from(*byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_client_gets_grpc_statuses() {
        for (status, expected) in
            [(400, "13"), (401, "16"), (403, "7"), (404, "12"), (503, "14"), (504, "14"), (500, "2")]
        {
            let mut headers = HeaderMap::new();
            grpc(&mut headers, StatusCode::from_u16(status).expect("status"), b"a%\nb");
            assert_eq!(headers[GRPC_STATUS], expected);
            assert_eq!(headers[GRPC_MESSAGE], "a%25%0Ab");
        }
    }
}
