//! A mapping whose keys are the user's own: labels and annotations.

use std::collections::BTreeMap;

use crate::config::diagnostic::{Path, Report};
use crate::config::record::entry;
use crate::config::value::Value;
use crate::config::yaml::{Entry, Kind, Node};

/// Names and what they must be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(pub BTreeMap<String, String>);

impl<const N: usize> From<[(&str, &str); N]> for Labels {
    fn from(labels: [(&str, &str); N]) -> Self {
        Self(labels.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }
}

impl Labels {
    fn add(&mut self, entry: &Entry, path: &Path<'_>, report: &mut Report) {
        let Entry { key, position, value } = entry;
        if let Kind::Null = value.kind {
            let message = format!("`{key}` needs a value; for an empty one write {key}: \"\"");
            return report.error(path, *position, message);
        }
        let text = String::decode(value, path, report);
        if self.0.insert(key.clone(), text).is_some() {
            report.error(path, *position, format!("`{key}` is given twice"));
        }
    }
}

impl Value for Labels {
    fn type_name() -> String {
        "mapping of names to text".to_owned()
    }

    fn decode(node: &Node, path: &Path<'_>, report: &mut Report) -> Self {
        let mut labels = Self::default();
        match &node.kind {
            Kind::Mapping(entries) => entries.iter().for_each(|entry| labels.add(entry, path, report)),
            _ => {
                let found = node.describe();
                report.error(path, node.position, format!("expected a mapping such as {{app: web}}, found {found}"));
            }
        }
        labels
    }

    fn encode(&self) -> Node {
        Node::made(Kind::Mapping(self.0.iter().map(|(name, value)| entry(name, value)).collect()))
    }

    fn placeholder() -> Self {
        Self::default()
    }

    #[cfg(test)]
    fn random(rng: &mut rand::rngs::SmallRng) -> Self {
        let text = crate::config::random::text;
        Self(crate::config::random::list(rng, |rng| (text(rng), text(rng))).into_iter().collect())
    }
}
