//! Problems of a configuration: where each one is, and what would mend it.
//!
//! Every stage of loading writes into one [`Report`] and goes on, so that all problems come out at once.

use std::fmt;

use serde::Serialize;

/// Problems that are kept; the others are only counted. More than a person reads in one go, and it bounds the work of
/// finding the name that was meant (one comparison with every name there is, for each problem).
const MAX_DIAGNOSTICS: usize = 200;

/// A place in the file; both numbers begin at 1, the column counts characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

impl Position {
    /// Where a problem of the file as a whole is said to be.
    pub const START: Self = Self { line: 1, column: 1 };
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// One problem, or one warning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// The file, or what stood for one.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Such as `clusters[0].endpoints[1]`; empty for the file as a whole.
    pub path: String,
    /// What is wrong, and how to mend it.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// All problems of one configuration, in the order of the file; there is at least one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ConfigErrors {
    diagnostics: Vec<Diagnostic>,
    /// Problems beyond those that are listed.
    omitted: usize,
}

impl ConfigErrors {
    /// The problems, in the order of the file.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.diagnostics.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            diagnostic.fmt(f)?;
        }
        if self.omitted > 0 {
            write!(f, "\nand {} more", self.omitted)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Where a value stands in the tree of the configuration: grown on the stack, written out only for a message.
#[derive(Clone, Copy, Debug)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Root,
    Field(&'a str),
    Index(usize),
}

impl<'a> Path<'a> {
    /// The whole file.
    pub const ROOT: Path<'static> = Path { parent: None, step: Step::Root };

    /// The field `name` of this value.
    pub fn field(&'a self, name: &'a str) -> Path<'a> {
        Path { parent: Some(self), step: Step::Field(name) }
    }

    /// The element `index` of this list.
    pub fn index(&'a self, index: usize) -> Path<'a> {
        Path { parent: Some(self), step: Step::Index(index) }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Root => Ok(()),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Field(name) => {
                let at_root = self.parent.is_none_or(|parent| matches!(parent.step, Step::Root));
                write!(f, "{}{name}", if at_root { "" } else { "." })
            }
        }
    }
}

/// Collects what is wrong with one file.
#[derive(Debug)]
pub struct Report {
    file: String,
    errors: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
    omitted: usize,
    decoding: usize,
    missing: Vec<String>,
}

impl Report {
    /// Nothing is wrong with `file` so far.
    pub fn new(file: &str) -> Self {
        Self {
            file: file.to_owned(),
            errors: Vec::new(),
            warnings: Vec::new(),
            omitted: 0,
            decoding: 0,
            missing: Vec::new(),
        }
    }

    /// Adds a problem.
    pub fn error(&mut self, path: &impl ToString, position: Position, message: impl Into<String>) {
        let diagnostic = self.diagnostic(path, position, message.into());
        match self.errors.len() {
            MAX_DIAGNOSTICS.. => self.omitted += 1,
            _ if self.errors.contains(&diagnostic) => {}
            _ => self.errors.push(diagnostic),
        }
    }

    /// Adds a warning: the configuration works, but perhaps not as it was meant.
    pub fn warn(&mut self, path: &impl ToString, position: Position, message: impl Into<String>) {
        let diagnostic = self.diagnostic(path, position, message.into());
        if self.warnings.len() < MAX_DIAGNOSTICS && !self.warnings.contains(&diagnostic) {
            self.warnings.push(diagnostic);
        }
    }

    /// Notes that the field at `path` is missing, when its absence is said already in other words.
    pub fn missing(&mut self, path: &impl ToString) {
        if self.missing.len() < MAX_DIAGNOSTICS {
            self.missing.push(path.to_string());
        }
    }

    /// What is wrong so far was found while values were decoded, what comes now while they are resolved.
    pub fn decoding_done(&mut self) {
        self.decoding = self.errors.len();
    }

    /// Whether a value at `path`, within it or around it, could not be decoded: what would be said about it now may
    /// only follow from that.
    pub fn is_undecoded(&self, path: &str) -> bool {
        self.undecoded().any(|undecoded| is_within(undecoded, path) || is_within(path, undecoded))
    }

    /// Whether `field` of an element of `list`, or all of it, could not be decoded.
    pub fn is_undecoded_field(&self, list: &str, field: &str) -> bool {
        self.undecoded().any(|undecoded| {
            undecoded.is_empty()
                || undecoded.strip_prefix(list).is_some_and(|rest| {
                    let within = rest.split_once(']').map_or("", |(_, within)| within);
                    within.is_empty() || within.strip_prefix('.') == Some(field)
                })
        })
    }

    fn undecoded(&self) -> impl Iterator<Item = &str> {
        let errors = self.errors[..self.decoding].iter().map(|error| error.path.as_str());
        errors.chain(self.missing.iter().map(String::as_str))
    }

    /// Whether so much is wrong that further problems are only counted, and looking for what was meant is in vain.
    pub fn is_full(&self) -> bool {
        self.errors.len() >= MAX_DIAGNOSTICS
    }

    /// Whether anything is wrong.
    pub fn has_errors(&self) -> bool {
        !self.errors.is_empty()
    }

    /// The warnings, when nothing was wrong.
    ///
    /// # Errors
    /// All that was wrong, in the order of the file.
    pub fn finish(mut self) -> Result<Vec<Diagnostic>, ConfigErrors> {
        let order = |diagnostic: &Diagnostic| (diagnostic.line, diagnostic.column);
        self.warnings.sort_by_key(order);
        self.errors.sort_by_key(order);
        if self.errors.is_empty() {
            return Ok(self.warnings);
        }
        Err(ConfigErrors { diagnostics: self.errors, omitted: self.omitted })
    }

    fn diagnostic(&self, path: &impl ToString, position: Position, message: String) -> Diagnostic {
        let Position { line, column } = position;
        Diagnostic { file: self.file.clone(), line, column, path: path.to_string(), message }
    }
}

/// Whether `inner` is `outer` or stands below it.
fn is_within(inner: &str, outer: &str) -> bool {
    inner.strip_prefix(outer).is_some_and(|rest| outer.is_empty() || rest.is_empty() || rest.starts_with(['.', '[']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_written_with_dots_and_brackets() {
        let root = Path::ROOT;
        let (clusters, endpoints) = ("clusters".to_owned(), "endpoints".to_owned());
        let list = root.field(&clusters);
        let item = list.index(2);
        assert_eq!(item.field(&endpoints).to_string(), "clusters[2].endpoints");
        assert_eq!(root.to_string(), "");
    }

    #[test]
    fn a_field_is_within_its_record_but_not_within_one_with_a_longer_name() {
        assert!(is_within("clusters[1].name", "clusters[1]"));
        assert!(!is_within("clusters[10].name", "clusters[1]"));
        assert!(is_within("clusters", ""));
    }

    #[test]
    fn problems_beyond_the_limit_are_counted() {
        let mut report = Report::new("f");
        for line in 1..=MAX_DIAGNOSTICS + 3 {
            report.error(&"", Position { line, column: 1 }, "bad");
        }
        let errors = report.finish().expect_err("errors");
        assert_eq!(errors.diagnostics().len(), MAX_DIAGNOSTICS);
        assert!(errors.to_string().ends_with("and 3 more"));
    }
}
