//! The query of an admin request.

use http::Uri;

/// The parameters, percent-decoded; of several with the same name the first counts.
#[derive(Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads those of `uri`.
    pub fn of(uri: &Uri) -> Self {
        let pairs = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    /// The value of `name`; empty when it was given without one.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// Whether `name` was given.
    pub fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    /// The value of `name`, parsed.
    ///
    /// # Errors
    /// A sentence that names the parameter.
    pub fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(&self, name: &str) -> Result<Option<T>, String> {
        self.value(name)
            .map(|value| value.parse().map_err(|error| format!("the value '{value}' of '{name}': {error}")))
            .transpose()
    }
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let hex = text.get(at + 1..at + 3).filter(|_| *byte == b'%').and_then(|hex| u8::from_str_radix(hex, 16).ok());
        decoded.push(hex.unwrap_or(*byte));
        at += if hex.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded() {
        let uri = "/stats?usedonly&filter=a%7Cb%2&port=80x&filter=second".parse().expect("uri");
        let query = Query::of(&uri);
        assert!(query.has("usedonly") && !query.has("format"));
        assert_eq!(query.value("filter"), Some("a|b%2"));
        assert!(query.parsed::<u16>("port").expect_err("no number").contains("'80x' of 'port'"));
    }
}
