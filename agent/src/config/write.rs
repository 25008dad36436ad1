//! Writes a tree as YAML: blocks with two spaces, text in double quotes unless it is a plain word.

use std::fmt::Write as _;

use super::yaml::{Entry, Kind, Node};

/// `node` as a YAML document.
pub fn to_yaml(node: &Node) -> String {
    let mut out = String::new();
    block(&mut out, node, 0);
    out
}

/// `node` on one line, as it would stand behind a field's name.
pub fn to_line(node: &Node) -> String {
    match &node.kind {
        Kind::List(items) => format!("[{}]", items.iter().map(to_line).collect::<Vec<_>>().join(", ")),
        Kind::Mapping(entries) => {
            let fields = entries.iter().map(|entry| format!("{}: {}", word(&entry.key), to_line(&entry.value)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
        }
        Kind::Null => "null".to_owned(),
        Kind::Scalar { text, .. } => word(text),
    }
}

/// Writes the lines of `node`; the first one continues the line that is open.
fn block(out: &mut String, node: &Node, indent: usize) {
    match &node.kind {
        Kind::List(items) if !items.is_empty() => {
            for (index, item) in items.iter().enumerate() {
                start(out, indent, index);
                out.push_str("- ");
                block(out, item, indent + 2);
            }
        }
        Kind::Mapping(entries) if !entries.is_empty() => {
            for (index, entry) in entries.iter().enumerate() {
                start(out, indent, index);
                field(out, entry, indent);
            }
        }
        _ => {
            out.push_str(&to_line(node));
            out.push('\n');
        }
    }
}

fn start(out: &mut String, indent: usize, index: usize) {
    if index > 0 {
        out.push_str(&" ".repeat(indent));
    }
}

fn field(out: &mut String, entry: &Entry, indent: usize) {
    out.push_str(&word(&entry.key));
    out.push(':');
    let nested = match &entry.value.kind {
        Kind::List(items) => !items.is_empty(),
        Kind::Mapping(entries) => !entries.is_empty(),
        _ => false,
    };
    if nested {
        out.push('\n');
        out.push_str(&" ".repeat(indent + 2));
    } else {
        out.push(' ');
    }
    block(out, &entry.value, indent + 2);
}

/// A scalar: bare when YAML cannot take it for anything else, else in double quotes.
fn word(text: &str) -> String {
    let bare = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_./-".contains(c))
        && !matches!(text.to_ascii_lowercase().as_str(), "null" | "yes" | "no" | "on" | "y" | "n");
    if bare { text.to_owned() } else { quoted(text) }
}

fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            // What YAML calls not printable, and what it takes for the end of a line.
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}') => {
                let _ = write!(out, "\\U{:08X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
