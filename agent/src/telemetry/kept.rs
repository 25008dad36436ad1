//! Text of a message, kept for its record without being copied.
//!
//! Before: the codec's heads, whose parts count their references. After: [`super::record`], which is read when the request
//! has ended. A value that is no UTF-8 is the only one that is copied, because the record has to be text.

use std::fmt;
use std::ops::Deref;

use http::uri::{Authority, PathAndQuery};
use http::{HeaderValue, Method};

/// See the module. Reads as a `str`.
#[derive(Clone)]
pub struct Text(Kept);

#[derive(Clone)]
enum Kept {
    Own(Box<str>),
    /// It is UTF-8.
    Value(HeaderValue),
    Path(PathAndQuery),
    Authority(Authority),
    Method(Method),
}

impl Text {
    /// The text itself.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Kept::Own(text) => text,
            Kept::Value(value) => str::from_utf8(value.as_bytes()).unwrap_or_default(),
            Kept::Path(path) => path.as_str(),
            Kept::Authority(authority) => authority.as_str(),
            Kept::Method(method) => method.as_str(),
        }
    }
}

impl Default for Text {
    fn default() -> Self {
        Self(Kept::Own(Box::default()))
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(Kept::Own(text.into()))
    }
}

impl From<&HeaderValue> for Text {
    fn from(value: &HeaderValue) -> Self {
        if str::from_utf8(value.as_bytes()).is_ok() {
            return Self(Kept::Value(value.clone()));
        }
        Self(Kept::Own(String::from_utf8_lossy(value.as_bytes()).into()))
    }
}

impl From<&PathAndQuery> for Text {
    fn from(path: &PathAndQuery) -> Self {
        Self(Kept::Path(path.clone()))
    }
}

impl From<&Authority> for Text {
    fn from(authority: &Authority) -> Self {
        Self(Kept::Authority(authority.clone()))
    }
}

impl From<&Method> for Text {
    fn from(method: &Method) -> Self {
        Self(Kept::Method(method.clone()))
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_received_reads_as_text_whatever_it_was() {
        let value = |bytes: &[u8]| HeaderValue::from_bytes(bytes).expect("a header value");
        for (text, expected) in [
            (Text::default(), ""),
            (Text::from("GET"), "GET"),
            (Text::from(&Method::PATCH), "PATCH"),
            (Text::from(&PathAndQuery::from_static("/a?b")), "/a?b"),
            (Text::from(&Authority::from_static("h:80")), "h:80"),
            (Text::from(&value(b"curl/8.0")), "curl/8.0"),
            (Text::from(&value("gr\u{fc}n".as_bytes())), "gr\u{fc}n"),
            (Text::from(&value(b"\xff")), "\u{fffd}"),
        ] {
            assert_eq!(&*text, expected);
        }
    }
}
