//! The reference of all fields, written from the tables by which they are decoded. `docs/configuration.md` holds a
//! copy; a test compares the two.

use std::fmt::Write as _;

use super::raw::Config;
use super::record::{FieldInfo, Presence, RecordInfo};
use super::write::to_line;

/// Every record with every field, as Markdown; the whole file first, then what it is made of.
pub fn reference() -> String {
    let mut out = String::new();
    for record in records() {
        section(&mut out, record);
    }
    out
}

/// Every record there is; the whole file first.
pub(super) fn records() -> Vec<&'static RecordInfo> {
    let mut records = vec![&Config::INFO];
    let mut next = 0;
    while let Some(record) = records.get(next).copied() {
        for inner in record.fields.iter().filter_map(|field| (field.record)()) {
            if !records.iter().any(|known| known.name == inner.name) {
                records.push(inner);
            }
        }
        next += 1;
    }
    records
}

fn section(out: &mut String, record: &RecordInfo) {
    let _ = write!(out, "\n### {}\n\n{}", record.name, record.doc.trim());
    if !record.envoy.is_empty() {
        let _ = write!(out, " Envoy: `{}`.", record.envoy);
    }
    out.push_str("\n\n| field | type | default | meaning | Envoy's field |\n|---|---|---|---|---|\n");
    for field in record.fields {
        let _ = writeln!(
            out,
            "| `{}` | {} | {} | {} | {} |",
            field.name,
            linked(&(field.type_name)()),
            default(field),
            meaning(field),
            envoy(record, field)
        );
    }
}

/// `[cluster]` becomes a link to that section.
fn linked(type_name: &str) -> String {
    match type_name.split_once('[').and_then(|(before, rest)| Some((before, rest.split_once(']')?))) {
        Some((before, (name, after))) => format!("{before}[{name}](#{}){after}", name.replace(' ', "-")),
        None => type_name.to_owned(),
    }
}

fn default(field: &FieldInfo) -> String {
    match field.presence {
        Presence::Required => "required".to_owned(),
        Presence::Optional(absent) => absent.to_owned(),
        Presence::Default(value) => match to_line(&value()).as_str() {
            value if value.starts_with('{') => "the defaults of its fields".to_owned(),
            value => format!("`{value}`"),
        },
    }
}

fn meaning(field: &FieldInfo) -> String {
    let mut text = field.doc.trim().replace('|', "\\|");
    for alias in field.aliases {
        let _ = write!(text, " Also called `{alias}`.");
    }
    text
}

fn envoy(record: &RecordInfo, field: &FieldInfo) -> String {
    match field.envoy {
        "-" => "none".to_owned(),
        "" if record.envoy.is_empty() => "none".to_owned(),
        "" => format!("`{}`", field.name),
        text if text.contains('`') => text.to_owned(),
        text => format!("`{text}`"),
    }
}
