//! (signatures; the decision part fills them in)

/// Why a URI template is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TemplateError(String);

/// A parsed URI template (Envoy's uri_template match).
#[derive(Clone, Debug, PartialEq)]
pub struct PathTemplate {
    source: String,
}
impl PathTemplate {
    pub fn new(source: &str) -> Result<Self, TemplateError> {
        Ok(Self { source: source.into() })
    }
    pub fn source(&self) -> &str {
        &self.source
    }
}
/// A rewrite that uses the variables of a [`PathTemplate`].
#[derive(Clone, Debug, PartialEq)]
pub struct RewriteTemplate {
    source: String,
}
impl RewriteTemplate {
    /// Every variable must be one of `pattern`'s.
    pub fn new(source: &str, _pattern: &PathTemplate) -> Result<Self, TemplateError> {
        Ok(Self { source: source.into() })
    }
    pub fn source(&self) -> &str {
        &self.source
    }
}
