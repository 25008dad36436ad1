//! YAML into a tree in which every value knows its place. JSON is accepted, being YAML.
//!
//! Before: the bytes of the file. After: [`super::value`], which decodes the tree by the fields it knows. This file
//! knows no field.

use std::collections::HashMap;

use granit_parser::{Event, Marker, Parser, ScalarStyle, Span};

use super::diagnostic::{Path, Position, Report};

/// Bytes of one file: 100,000 rows of 160 bytes.
pub const MAX_FILE_BYTES: usize = 16 * 1024 * 1024;

/// Nesting of one file. The deepest value there is stands at 17: `listeners`, its elements, `filter_chains`, its
/// elements, `http`, `route_config`, `virtual_hosts`, its elements, `routes`, its elements, `route`,
/// `weighted_clusters`, its elements, and so on.
pub const MAX_DEPTH: usize = 32;

/// Values of one file, with those that aliases repeat: 100,000 rows of 20 values. Small files that aliases blow up end
/// here.
pub const MAX_VALUES: usize = 2_000_000;

/// One value and where it begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where it begins.
    pub position: Position,
    /// What it is.
    pub kind: Kind,
}

/// The kinds of values.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// Nothing, `~` or `null`.
    Null,
    /// Text, a number, true or false: which of them is up to the field.
    Scalar {
        /// With escapes resolved.
        text: String,
        /// Whether it stood in quotes (or in a block), which makes it text for certain.
        quoted: bool,
    },
    /// `[a, b]`
    List(Vec<Node>),
    /// `{a: b}`, in the order of the file.
    Mapping(Vec<Entry>),
}

/// One field of a mapping.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The field's name.
    pub key: String,
    /// Where the name begins.
    pub position: Position,
    /// The field's value.
    pub value: Node,
}

impl Node {
    /// An unquoted scalar, for values that are made rather than read.
    pub fn plain(text: impl Into<String>) -> Self {
        Self::made(Kind::Scalar { text: text.into(), quoted: false })
    }

    /// Text, for values that are made rather than read.
    pub fn text(text: impl Into<String>) -> Self {
        Self::made(Kind::Scalar { text: text.into(), quoted: true })
    }

    /// A value that stands in no file.
    pub fn made(kind: Kind) -> Self {
        Self { position: Position::START, kind }
    }

    /// What a message calls it.
    pub fn describe(&self) -> String {
        match &self.kind {
            Kind::Null => "nothing".to_owned(),
            Kind::Scalar { text, quoted: true } => format!("the text {text:?}"),
            Kind::Scalar { text, quoted: false } => format!("`{text}`"),
            Kind::List(_) => "a list".to_owned(),
            Kind::Mapping(_) => "a mapping".to_owned(),
        }
    }
}

/// Parses `text`, which must hold one document. `None` when it is no YAML, or more of it than the limits allow; the
/// report says why.
pub fn parse(text: &str, report: &mut Report) -> Option<Node> {
    if text.len() > MAX_FILE_BYTES {
        // No more of it was read than tells that it is too large.
        report.error(&Path::ROOT, Position::START, format!("the file has more than {MAX_FILE_BYTES} bytes, the limit"));
        return None;
    }
    let options = granit_parser::options! {
        disallow_directives: true,
        emit_comments: false,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let mut builder = Builder::default();
    for event in Parser::new_from_str_with_options(text.strip_prefix('\u{feff}').unwrap_or(text), options) {
        let step = match event {
            Ok((event, span)) => builder.take(event, span),
            Err(error) => Err((position(error.marker()), format!("this is no YAML: {}", error.info()))),
        };
        if let Err((position, message)) = step {
            report.error(&Path::ROOT, position, message);
            return None;
        }
    }
    Some(builder.root.unwrap_or(Node { position: Position::START, kind: Kind::Null }))
}

fn position(marker: &Marker) -> Position {
    Position { line: marker.line().max(1), column: marker.col() + 1 }
}

type Problem = (Position, String);

/// What is open while the events come in.
#[derive(Default)]
struct Builder {
    root: Option<Node>,
    open: Vec<Open>,
    anchors: HashMap<usize, (Node, usize)>,
    values: usize,
    documents: usize,
}

/// A list or mapping that is not closed yet.
struct Open {
    position: Position,
    anchor: usize,
    values_before: usize,
    content: OpenContent,
}

enum OpenContent {
    List(Vec<Node>),
    Mapping { entries: Vec<Entry>, key: Option<(String, Position)> },
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Problem> {
        let at = position(&span.start);
        if event.tag().is_some() {
            return Err((at, "tags (`!...`) are not supported: write the value without one".to_owned()));
        }
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                match self.documents {
                    0 | 1 => Ok(()),
                    _ => Err((at, "a configuration is one YAML document: a second one begins here".to_owned())),
                }
            }
            Event::Scalar(text, style, anchor, _) => {
                let kind = scalar(&text, style);
                self.count(1, at)?;
                self.place(Node { position: at, kind }, anchor, 1)
            }
            Event::SequenceStart(_, anchor, _) => self.open(at, anchor, OpenContent::List(Vec::new())),
            Event::MappingStart(_, anchor, _) => {
                self.open(at, anchor, OpenContent::Mapping { entries: Vec::new(), key: None })
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(anchor) => {
                let (mut node, values) =
                    self.anchors.get(&anchor).cloned().ok_or((at, "an alias within its own anchor".to_owned()))?;
                self.count(values, at)?;
                node.position = at;
                self.place(node, 0, values)
            }
            _ => Ok(()),
        }
    }

    /// Counts before anything is copied, so that a file cannot grow in memory beyond the limit.
    fn count(&mut self, values: usize, at: Position) -> Result<(), Problem> {
        self.values += values;
        if self.values > MAX_VALUES {
            return Err((at, format!("the file holds more than {MAX_VALUES} values, aliases counted each time")));
        }
        Ok(())
    }

    fn open(&mut self, position: Position, anchor: usize, content: OpenContent) -> Result<(), Problem> {
        if self.open.len() >= MAX_DEPTH {
            return Err((position, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        let values_before = self.values;
        self.count(1, position)?;
        self.open.push(Open { position, anchor, values_before, content });
        Ok(())
    }

    fn close(&mut self) -> Result<(), Problem> {
        let Some(Open { position, anchor, values_before, content }) = self.open.pop() else { return Ok(()) };
        let kind = match content {
            OpenContent::List(items) => Kind::List(items),
            OpenContent::Mapping { entries, .. } => Kind::Mapping(entries),
        };
        self.place(Node { position, kind }, anchor, self.values - values_before)
    }

    /// Puts a finished value where it belongs: into what is open, or as the whole.
    fn place(&mut self, node: Node, anchor: usize, values: usize) -> Result<(), Problem> {
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), values));
        }
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut parent.content {
            OpenContent::List(items) => items.push(node),
            OpenContent::Mapping { entries, key } => match key.take() {
                Some((key, position)) => entries.push(Entry { key, position, value: node }),
                None => *key = Some(field_name(node)?),
            },
        }
        Ok(())
    }
}

fn scalar(text: &str, style: ScalarStyle) -> Kind {
    let quoted = !matches!(style, ScalarStyle::Plain);
    match text {
        "" | "~" | "null" | "Null" | "NULL" if !quoted => Kind::Null,
        text => Kind::Scalar { text: text.to_owned(), quoted },
    }
}

fn field_name(node: Node) -> Result<(String, Position), Problem> {
    match node.kind {
        Kind::Scalar { text, .. } => Ok((text, node.position)),
        _ => Err((node.position, format!("expected a field's name, found {}", node.describe()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Node, String> {
        let mut report = Report::new("f");
        let node = parse(text, &mut report);
        report.finish().map_err(|errors| errors.to_string())?;
        Ok(node.expect("a tree"))
    }

    #[test]
    fn values_know_where_they_begin() {
        let node = check("a:\n  - b: 1\n    c: 'x'\n").expect("tree");
        let Kind::Mapping(root) = node.kind else { panic!("mapping") };
        let Kind::List(list) = &root[0].value.kind else { panic!("list") };
        let Kind::Mapping(item) = &list[0].kind else { panic!("mapping") };
        assert_eq!(item[1].position, Position { line: 3, column: 5 });
        assert_eq!(item[1].value.position, Position { line: 3, column: 8 });
        assert_eq!(item[1].value.kind, Kind::Scalar { text: "x".into(), quoted: true });
    }

    #[test]
    fn json_is_yaml() {
        assert!(check(r#"{"a": [1, true, null, "x\u0041"]}"#).is_ok());
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            let before = level - 1;
            bomb += &format!("a{level}: &a{level} [{}]\n", vec![format!("*a{before}"); 10].join(", "));
        }
        let error = check(&bomb).expect_err("a bomb");
        assert!(error.contains("holds more than 2000000 values"), "{error}");
    }

    #[test]
    fn what_is_no_configuration_is_refused_with_its_place() {
        for (text, expected) in [
            ("a: [1", "f:1:4: this is no YAML: unclosed bracket"),
            ("a: 1\n---\nb: 2\n", "f:2:1: a configuration is one YAML document"),
            ("a: !!str x", "f:1:10: tags"),
            ("? [a]\n: b", "f:1:3: expected a field's name, found a list"),
            ("a: *b", "f:1:4: this is no YAML"),
            ("%YAML 1.2\n---\na: 1", "f:1:1: this is no YAML"),
        ] {
            let error = check(text).expect_err(text);
            assert!(error.starts_with(expected), "{text:?}: {error}");
        }
        let deep = "[".repeat(40) + &"]".repeat(40);
        assert!(check(&deep).expect_err("deep").starts_with("f:1:33: this is no YAML"), "a deep one");
    }
}
