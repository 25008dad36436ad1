//! URI templates (Envoy's `uri_template` match and rewrite): `*` is one segment's text, `**` any tail, `{v}` and
//! `{v=pattern}` variables that a rewrite may use.
//!
//! A template is compiled to a regular expression at load, as Envoy does
//! (`source/extensions/path/uri_template_lib/uri_template_internal.cc`); nothing is parsed for a request.

use regex::Regex;

/// As Envoy's `kPatternMatchingMaxVariablesPerUrl`.
const MAX_VARIABLES: usize = 5;
/// As Envoy's `kPatternMatchingMaxVariableNameLen`.
const MAX_VARIABLE_NAME_BYTES: usize = 16;
/// What `*` stands for, at least once: the characters of a path segment (RFC 3986, `pchar`).
const SEGMENT_CHARACTERS: &str = r"a-zA-Z0-9\-._~%!$&'()*+,;=:@";

/// Why a URI template is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TemplateError(String);

fn refuse<T>(message: impl Into<String>) -> Result<T, TemplateError> {
    Err(TemplateError(message.into()))
}

/// A parsed URI template (Envoy's `uri_template` match).
#[derive(Clone, Debug)]
pub struct PathTemplate {
    source: String,
    regex: Regex,
    variables: Vec<String>,
    literal_prefix: String,
}

impl PartialEq for PathTemplate {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl PathTemplate {
    /// Parses `source`.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn new(source: &str) -> Result<Self, TemplateError> {
        let mut parser = Parser::default();
        parser.template(source)?;
        let regex = Regex::new(&format!(r"\A{}\z", parser.regex)).map_err(|error| TemplateError(error.to_string()))?;
        Ok(Self {
            source: source.to_owned(),
            regex,
            variables: parser.variables,
            literal_prefix: parser.literal_prefix,
        })
    }

    /// As configured.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The regular expression that it was compiled to.
    pub(super) fn regex_source(&self) -> &str {
        self.regex.as_str()
    }

    /// What every path that matches begins with.
    pub fn literal_prefix(&self) -> &str {
        &self.literal_prefix
    }

    /// Whether `path` (without query) matches.
    pub fn is_match(&self, path: &str) -> bool {
        self.regex.is_match(path)
    }
}

/// What has been understood of a template so far.
#[derive(Default)]
struct Parser {
    regex: String,
    variables: Vec<String>,
    literal_prefix: String,
    /// A `**` was seen: no further operator may follow.
    tail: bool,
    /// The last thing was an operator: another one would be ambiguous.
    after_operator: bool,
}

impl Parser {
    fn template(&mut self, source: &str) -> Result<(), TemplateError> {
        if !source.starts_with('/') {
            return refuse("a path template begins with /");
        }
        let mut rest = source;
        while !rest.is_empty() {
            rest = match rest.strip_prefix('{') {
                Some(inside) => {
                    let Some((variable, after)) = inside.split_once('}') else {
                        return refuse("a { is not closed");
                    };
                    self.variable(variable)?;
                    after
                }
                None => self.plain(rest)?,
            };
        }
        Ok(())
    }

    /// Takes one operator or one literal character off `rest`.
    fn plain<'s>(&mut self, rest: &'s str) -> Result<&'s str, TemplateError> {
        if let Some(after) = rest.strip_prefix("**") {
            self.operator(&format!("[{SEGMENT_CHARACTERS}/]*"))?;
            self.tail = true;
            return Ok(after);
        }
        if let Some(after) = rest.strip_prefix('*') {
            self.operator(&format!("[{SEGMENT_CHARACTERS}]+"))?;
            return Ok(after);
        }
        let Some(character) = rest.chars().next() else { return Ok(rest) };
        if !is_literal(character) {
            return refuse(format!("{character:?} is no character of a path template"));
        }
        if self.regex.len() == regex::escape(&self.literal_prefix).len() {
            self.literal_prefix.push(character);
        }
        let mut buffer = [0; 4];
        self.regex.push_str(&regex::escape(character.encode_utf8(&mut buffer)));
        self.after_operator = false;
        Ok(&rest[character.len_utf8()..])
    }

    fn operator(&mut self, regex: &str) -> Result<(), TemplateError> {
        if self.tail {
            return refuse("nothing but literal text may follow **");
        }
        if self.after_operator {
            return refuse("two wildcards or variables need text between them");
        }
        self.regex.push_str(regex);
        self.after_operator = true;
        Ok(())
    }

    fn variable(&mut self, text: &str) -> Result<(), TemplateError> {
        let (name, pattern) = text.split_once('=').unwrap_or((text, "*"));
        check_name(name)?;
        if self.variables.iter().any(|known| known == name) {
            return refuse(format!("variable {name} occurs twice"));
        }
        if self.variables.len() == MAX_VARIABLES {
            return refuse(format!("more than {MAX_VARIABLES} variables"));
        }
        if pattern.is_empty() || pattern.contains('{') {
            return refuse(format!("variable {name}: {pattern:?} is no pattern (segments of text, * and **)"));
        }
        if self.after_operator {
            return refuse("two wildcards or variables need text between them");
        }
        self.variables.push(name.to_owned());
        self.regex.push_str(&format!("(?P<{name}>"));
        let mut rest = pattern;
        while !rest.is_empty() {
            rest = self.plain(rest)?;
        }
        self.regex.push(')');
        self.after_operator = true;
        Ok(())
    }
}

fn check_name(name: &str) -> Result<(), TemplateError> {
    let plain = name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.chars().all(|character| character.is_ascii_alphanumeric() || character == '_');
    if !plain || name.len() > MAX_VARIABLE_NAME_BYTES {
        return refuse(format!(
            "{name:?} is no variable name: a letter, then letters, digits and _, {MAX_VARIABLE_NAME_BYTES} at most"
        ));
    }
    Ok(())
}

fn is_literal(character: char) -> bool {
    character.is_ascii_alphanumeric() || "-._~%!$&'()+,;:@/".contains(character)
}

/// A rewrite that uses the variables of a [`PathTemplate`].
#[derive(Clone, Debug, PartialEq)]
pub struct RewriteTemplate {
    source: String,
    parts: Vec<Part>,
}

/// A piece of a rewritten path.
#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Variable(String),
}

impl RewriteTemplate {
    /// Parses `source`; every variable must be one of `pattern`'s.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn new(source: &str, pattern: &PathTemplate) -> Result<Self, TemplateError> {
        if !source.starts_with('/') {
            return refuse("a path template rewrite begins with /");
        }
        let mut parts = Vec::new();
        let mut rest = source;
        while let Some((text, inside)) = rest.split_once('{') {
            let Some((name, after)) = inside.split_once('}') else {
                return refuse("a { is not closed");
            };
            if !pattern.variables.iter().any(|known| known == name) {
                return refuse(format!("{name:?} is no variable of the path template {}", pattern.source));
            }
            parts.push(Part::Text(text.to_owned()));
            parts.push(Part::Variable(name.to_owned()));
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        if let Some(wrong) = parts.iter().find_map(Part::wrong_character) {
            return refuse(format!("{wrong:?} is no character of a rewritten path"));
        }
        Ok(Self { source: source.to_owned(), parts })
    }

    /// As configured.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// `path` (without query) rewritten; `None` when `pattern` does not match it.
    pub fn rewrite(&self, pattern: &PathTemplate, path: &str) -> Option<String> {
        let found = pattern.regex.captures(path)?;
        let text = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Variable(name) => found.name(name).map(|value| value.as_str().to_owned()).unwrap_or_default(),
        };
        Some(self.parts.iter().map(text).collect())
    }
}

impl Part {
    fn wrong_character(&self) -> Option<char> {
        match self {
            Self::Text(text) => text.chars().find(|character| !is_literal(*character)),
            Self::Variable(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_match_as_documented() {
        let cases = [
            ("/a/*", "/a/b", true),
            ("/a/*", "/a/", false),
            ("/a/*", "/a/b/c", false),
            ("/a/**", "/a/", true),
            ("/a/**", "/a/b/c", true),
            ("/a/**", "/a", false),
            ("/**.mpd", "/content/123/manifest.mpd", true),
            ("/**.mpd", "/content/123/manifest.mp4", false),
            ("/videos/*/*/*.m4s", "/videos/123414/hls/1080p5000_00001.m4s", true),
            ("/videos/{file}", "/videos/1080p5000_00001.m3u8", true),
            ("/v/{name=videos/*}/x", "/v/videos/9/x", true),
            ("/v/{name=videos/*}/x", "/v/films/9/x", false),
            ("/{rest=**}", "/a/b", true),
            ("/a.b", "/aXb", false),
        ];
        for (template, path, expected) in cases {
            let template = PathTemplate::new(template).expect("template");
            assert_eq!(template.is_match(path), expected, "{} {path}", template.source());
        }
    }

    #[test]
    fn the_literal_prefix_ends_at_the_first_operator() {
        for (template, prefix) in [("/a/b", "/a/b"), ("/a.b/*", "/a.b/"), ("/a/{v}/b", "/a/"), ("/{v=x/*}/b", "/")] {
            assert_eq!(PathTemplate::new(template).expect("template").literal_prefix(), prefix);
        }
    }

    #[test]
    fn templates_that_mean_nothing_are_refused() {
        let cases = [
            ("a", "begins with /"),
            ("/{v", "not closed"),
            ("/}", "no character"),
            ("/a?b", "no character"),
            ("/**/*", "follow **"),
            ("/***", "follow **"),
            ("/*{v}", "between"),
            ("/{v}/{v}", "twice"),
            ("/{1v}", "variable name"),
            ("/{a_name_of_17_chars}", "variable name"),
            ("/{v=}", "no pattern"),
            ("/{a}/{b}/{c}/{d}/{e}/{f}", "more than 5"),
        ];
        for (template, message) in cases {
            let error = PathTemplate::new(template).expect_err(template).to_string();
            assert!(error.contains(message), "{template}: {error}");
        }
    }

    #[test]
    fn a_rewrite_puts_the_variables_where_it_says() {
        let pattern = PathTemplate::new("/{country}/{path=**}").expect("template");
        let rewrite = RewriteTemplate::new("/x/{path}/in/{country}", &pattern).expect("rewrite");
        assert_eq!(rewrite.rewrite(&pattern, "/de/a/b").as_deref(), Some("/x/a/b/in/de"));
        assert!(RewriteTemplate::new("/{other}", &pattern).is_err());
        assert!(RewriteTemplate::new("/a b", &pattern).is_err());
    }
}
