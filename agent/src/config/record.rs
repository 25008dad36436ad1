//! Records: mappings with known fields. One declaration makes the type, its decoding, its writing back and its rows
//! in the reference, so that none of them can drift from the others.

use super::diagnostic::{Path, Position, Report};
use super::suggest;
use super::value::Value;
use super::yaml::{Entry, Kind, Node};

/// A record, as the reference shows it.
#[derive(Debug)]
pub struct RecordInfo {
    /// What the reference calls it.
    pub name: &'static str,
    /// What it is.
    pub doc: &'static str,
    /// Envoy's message whose rules it follows; empty when Envoy has none.
    pub envoy: &'static str,
    /// In the order in which they are written.
    pub fields: &'static [FieldInfo],
}

/// A field of a record, as the decoder knows it and the reference shows it.
#[derive(Debug)]
pub struct FieldInfo {
    /// Its name.
    pub name: &'static str,
    /// Other names by which it may be called.
    pub aliases: &'static [&'static str],
    /// Whether it has to be there.
    pub presence: Presence,
    /// What it means.
    pub doc: &'static str,
    /// Envoy's field, when it is called otherwise or stands elsewhere; `-` when Envoy has none.
    pub envoy: &'static str,
    /// What its value is.
    pub type_name: fn() -> String,
    /// The record its value is made of.
    pub record: fn() -> Option<&'static RecordInfo>,
}

/// Whether a field has to be there.
#[derive(Debug)]
pub enum Presence {
    /// It has to.
    Required,
    /// It need not; what its absence means.
    Optional(&'static str),
    /// It need not; what it is then, as it would be written.
    Default(fn() -> Node),
}

/// Declares records.
///
/// A field is `name: Type, required;`, `name: Type, optional("what its absence means");` (an `Option`) or
/// `name: Type, default(value);`, with `as "key"` behind the name when the key is a Rust keyword, and perhaps
/// `, alias("other")` and `, envoy("its.name.there")` at the end.
macro_rules! record {
    ($(
        $(#[doc = $doc:literal])+
        pub struct $name:ident($title:literal $(, $message:literal)?) {
            $(
                $(#[doc = $field_doc:literal])+
                $field:ident $(as $key:literal)?: $type:ty, $mode:ident $(($argument:expr))?
                $(, alias($($alias:literal),+))? $(, envoy($envoy:literal))?;
            )*
        }
    )+) => {$(
        $(#[doc = $doc])+
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            $($(#[doc = $field_doc])+ pub $field: $crate::config::record::field_type!($mode $type),)*
        }

        impl $name {
            /// As the reference shows it.
            pub const INFO: $crate::config::record::RecordInfo = $crate::config::record::RecordInfo {
                name: $title,
                doc: concat!($($doc),+),
                envoy: concat!("", $($message)?),
                fields: &[$($crate::config::record::FieldInfo {
                    name: $crate::config::record::field_key!($field $($key)?),
                    aliases: &[$($($alias),+)?],
                    presence: $crate::config::record::field_presence!($mode $type $(, $argument)?),
                    doc: concat!($($field_doc),+),
                    envoy: concat!("", $($envoy)?),
                    type_name: <$type as $crate::config::value::Value>::type_name,
                    record: <$type as $crate::config::value::Value>::record,
                },)*],
            };
        }

        impl $crate::config::value::Value for $name {
            fn type_name() -> String {
                concat!("[", $title, "]").to_owned()
            }

            fn decode(
                node: &$crate::config::yaml::Node,
                path: &$crate::config::diagnostic::Path<'_>,
                report: &mut $crate::config::diagnostic::Report,
            ) -> Self {
                let Some(mut fields) = $crate::config::record::Fields::of(node, path, report, &Self::INFO) else {
                    return Self::placeholder();
                };
                Self {
                    $($field: $crate::config::record::field_read!(
                        fields, $crate::config::record::field_key!($field $($key)?), $mode $(, $argument)?
                    ),)*
                }
            }

            fn encode(&self) -> $crate::config::yaml::Node {
                let entries = [
                    $($crate::config::record::field_write!(
                        $crate::config::record::field_key!($field $($key)?), &self.$field, $mode
                    ),)*
                ];
                let entries = entries.into_iter().flatten().collect();
                $crate::config::yaml::Node::made($crate::config::yaml::Kind::Mapping(entries))
            }

            fn placeholder() -> Self {
                Self { $($field: $crate::config::record::field_placeholder!($mode $(, $argument)?),)* }
            }

            fn record() -> Option<&'static $crate::config::record::RecordInfo> {
                Some(&Self::INFO)
            }

            #[cfg(test)]
            fn random(rng: &mut rand::rngs::SmallRng) -> Self {
                Self { $($field: $crate::config::record::field_random!(rng, $mode $type),)* }
            }
        }
    )+};
}

macro_rules! field_type {
    (optional $type:ty) => { Option<$type> };
    ($mode:ident $type:ty) => { $type };
}

macro_rules! field_key {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $key:literal) => {
        $key
    };
}

macro_rules! field_presence {
    (required $type:ty) => {
        $crate::config::record::Presence::Required
    };
    (optional $type:ty, $absent:expr) => {
        $crate::config::record::Presence::Optional($absent)
    };
    (default $type:ty, $value:expr) => {
        $crate::config::record::Presence::Default(|| {
            let value: $type = $value;
            $crate::config::value::Value::encode(&value)
        })
    };
}

macro_rules! field_read {
    ($fields:ident, $key:expr, required) => {
        $fields.required($key)
    };
    ($fields:ident, $key:expr, optional, $absent:expr) => {
        $fields.optional($key)
    };
    ($fields:ident, $key:expr, default, $value:expr) => {
        $fields.optional($key).unwrap_or_else(|| $value)
    };
}

macro_rules! field_write {
    ($key:expr, $value:expr, optional) => {
        $value.as_ref().map(|value| $crate::config::record::entry($key, value))
    };
    ($key:expr, $value:expr, $mode:ident) => {
        Some($crate::config::record::entry($key, $value))
    };
}

macro_rules! field_placeholder {
    (required) => {
        $crate::config::value::Value::placeholder()
    };
    (optional, $absent:expr) => {
        None
    };
    (default, $value:expr) => {
        $value
    };
}

#[cfg(test)]
macro_rules! field_random {
    ($rng:ident, optional $type:ty) => {
        $crate::config::random::option($rng, <$type as $crate::config::value::Value>::random)
    };
    ($rng:ident, $mode:ident $type:ty) => {
        <$type as $crate::config::value::Value>::random($rng)
    };
}

/// Makes a [`Value`] of an enum: one of a few words. Envoy's upper case is understood as well.
macro_rules! choice {
    ($type:path { $first:ident = $first_text:literal $(, $variant:ident = $text:literal)* $(,)? }) => {
        impl $crate::config::value::Value for $type {
            fn type_name() -> String {
                [concat!("`", $first_text, "`") $(, concat!("`", $text, "`"))*].join(", ")
            }

            fn decode(
                node: &$crate::config::yaml::Node,
                path: &$crate::config::diagnostic::Path<'_>,
                report: &mut $crate::config::diagnostic::Report,
            ) -> Self {
                let words = [$first_text $(, $text)*];
                match $crate::config::record::choose(node, path, report, &words) {
                    $(Some($text) => Self::$variant,)*
                    _ => Self::$first,
                }
            }

            fn encode(&self) -> $crate::config::yaml::Node {
                $crate::config::yaml::Node::plain(match self {
                    Self::$first => $first_text,
                    $(Self::$variant => $text,)*
                })
            }

            fn placeholder() -> Self {
                Self::$first
            }

            #[cfg(test)]
            fn random(rng: &mut rand::rngs::SmallRng) -> Self {
                $crate::config::random::one_of(rng, [Self::$first $(, Self::$variant)*])
            }
        }
    };
}

#[cfg(test)]
pub(super) use field_random;
pub(super) use {choice, field_key, field_placeholder, field_presence, field_read, field_type, field_write, record};

/// One field, written.
pub(super) fn entry(key: &str, value: &impl Value) -> Entry {
    Entry { key: key.to_owned(), position: Position::START, value: value.encode() }
}

/// The word of `words` that `node` is.
pub(super) fn choose(
    node: &Node,
    path: &Path<'_>,
    report: &mut Report,
    words: &[&'static str],
) -> Option<&'static str> {
    let found = match &node.kind {
        Kind::Scalar { text, .. } => text.as_str(),
        _ => "",
    };
    let word = words.iter().find(|word| word.eq_ignore_ascii_case(found)).copied();
    if word.is_none() {
        let known = words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
        let meant = suggest::did_you_mean(found, words.iter().copied());
        report.error(path, node.position, format!("expected one of {known}, found {}{meant}", node.describe()));
    }
    word
}

/// The fields of one mapping, while a record is made of them.
pub(super) struct Fields<'n, 'r> {
    entries: Vec<Given<'n>>,
    position: Position,
    path: Path<'n>,
    report: &'r mut Report,
    /// Fields that unknown ones were probably meant to be.
    meant: Vec<&'static str>,
}

/// A field that is given, under the name that the record has for it.
struct Given<'n> {
    name: &'static str,
    entry: &'n Entry,
}

impl<'n, 'r> Fields<'n, 'r> {
    /// The fields that `node` and `record` share; the others are reported. `None` when `node` is no mapping.
    pub(super) fn of(node: &'n Node, path: &'n Path<'n>, report: &'r mut Report, record: &RecordInfo) -> Option<Self> {
        let given = match &node.kind {
            Kind::Mapping(entries) => entries.as_slice(),
            Kind::Null => &[],
            _ => {
                let names = record.fields.iter().map(|field| field.name).collect::<Vec<_>>().join(", ");
                let message = format!("expected a mapping with the fields {names}; found {}", node.describe());
                report.error(path, node.position, message);
                return None;
            }
        };
        let mut fields = Self {
            entries: Vec::with_capacity(given.len()),
            position: node.position,
            path: *path,
            report,
            meant: Vec::new(),
        };
        for entry in given {
            fields.add(entry, record);
        }
        Some(fields)
    }

    fn add(&mut self, entry: &'n Entry, record: &RecordInfo) {
        let key = entry.key.as_str();
        let known = record.fields.iter().find(|field| field.name == key || field.aliases.contains(&key));
        let message = match known {
            None => {
                let (meant, message) = unknown(key, record);
                self.meant.extend(meant);
                message
            }
            Some(field) => match self.entries.iter().find(|earlier| earlier.name == field.name) {
                None => return self.entries.push(Given { name: field.name, entry }),
                Some(earlier) if earlier.entry.key == key => {
                    format!("duplicate field `{key}`, first given at {}", earlier.entry.position)
                }
                Some(earlier) => format!(
                    "`{key}` and `{}` (given at {}) are two names of one field: keep one of them",
                    earlier.entry.key, earlier.entry.position
                ),
            },
        };
        self.report.error(&self.path.field(key), entry.position, message);
    }

    /// A field that has to be there.
    pub(super) fn required<T: Value>(&mut self, name: &'static str) -> T {
        self.optional(name).unwrap_or_else(|| {
            if self.meant.contains(&name) {
                self.report.missing(&self.path.field(name));
            } else {
                let expected = if T::type_name().starts_with('[') { "a mapping".to_owned() } else { T::type_name() };
                let message = format!("the field `{name}` is missing (expected {expected})");
                self.report.error(&self.path.field(name), self.position, message);
            }
            T::placeholder()
        })
    }

    /// A field that may be absent, which an empty one is taken for.
    pub(super) fn optional<T: Value>(&mut self, name: &str) -> Option<T> {
        let entry = self.entries.iter().find(|entry| entry.name == name)?.entry;
        if entry.value.kind == Kind::Null {
            return None;
        }
        Some(T::decode(&entry.value, &self.path.field(&entry.key), self.report))
    }
}

/// The field that was probably meant by the unknown `key`, and what to say about it.
fn unknown(key: &str, record: &RecordInfo) -> (Option<&'static str>, String) {
    if let Some(instead) = suggest::instead_of(key) {
        return (None, format!("unknown field `{key}`: {instead}"));
    }
    let names = record.fields.iter().flat_map(|field| std::iter::once(field.name).chain(field.aliases.iter().copied()));
    match suggest::closest(key, names) {
        Some(meant) => (Some(meant), format!("unknown field `{key}`: did you mean `{meant}`?")),
        None => {
            let known = record.fields.iter().map(|field| field.name).collect::<Vec<_>>().join(", ");
            (None, format!("unknown field `{key}`: {} has {known}", record.name))
        }
    }
}
