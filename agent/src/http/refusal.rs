//! Why a request is answered by the agent itself: status, flags, details and body in one value.
//!
//! Made wherever a request meets its end ([`super::h1::server::head`], [`super::check`], [`super::router`]), turned into a response by
//! [`super::reply`]. Statuses, details and texts are Envoy's (`response_code_details`).

use std::borrow::Cow;

use http::StatusCode;

use crate::telemetry::ResponseFlags;

/// A local answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// What the client gets.
    pub status: StatusCode,
    /// What the record says, in short.
    pub flags: ResponseFlags,
    /// What the record says, in words.
    pub details: &'static str,
    /// Text for the client.
    pub body: Cow<'static, str>,
    /// Whether the connection can go on.
    pub connection: Afterwards,
    /// Adds `x-envoy-overloaded: true`.
    pub overloaded: bool,
    /// Method and path, when the request never got as far as being a request.
    pub head: Option<Box<(String, String)>>,
}

/// What becomes of an HTTP/1 connection after a local answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Afterwards {
    /// It is kept, if the request's body has arrived.
    Keep,
    /// It is closed.
    Close,
}

impl Refusal {
    /// An answer to a request that is fine as such.
    pub fn request(status: StatusCode, details: &'static str, body: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            flags: ResponseFlags::NONE,
            details,
            body: body.into(),
            connection: Afterwards::Keep,
            overloaded: false,
            head: None,
        }
    }

    /// An answer to a client that broke the protocol (flag DPE): the connection cannot be trusted any more.
    pub fn protocol(status: StatusCode, details: &'static str, body: &'static str) -> Self {
        Self::request(status, details, body).flagged(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR).closing()
    }

    /// With these flags.
    pub fn flagged(mut self, flags: ResponseFlags) -> Self {
        self.flags.insert(flags);
        self
    }

    /// And the connection is closed afterwards.
    pub fn closing(mut self) -> Self {
        self.connection = Afterwards::Close;
        self
    }

    /// About a request that was not parsed further than this.
    pub fn of(mut self, method: &str, path: &str) -> Self {
        self.head = Some(Box::new((method.to_owned(), path.to_owned())));
        self
    }
}
