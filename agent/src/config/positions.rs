//! Finds the place of a field path in the file, for messages about a configuration that is already resolved.

use super::diagnostic::Position;
use super::record::FieldInfo;
use super::reference::records;
use super::yaml::{Kind, Node};

/// Where every value of one configuration stands.
#[derive(Clone, Debug)]
pub struct Positions {
    root: Node,
    aliases: Vec<&'static FieldInfo>,
}

impl Positions {
    /// Of the configuration parsed into `root`.
    pub(super) fn new(root: Node) -> Self {
        let fields = records().into_iter().flat_map(|record| record.fields);
        Self { root, aliases: fields.filter(|field| !field.aliases.is_empty()).collect() }
    }

    /// The place of the value at `field_path`, such as `route_configs[0].virtual_hosts[0].routes[2]`. Elements may
    /// also be named: `route_configs["8080"]` is the one whose `name` is 8080.
    pub fn of(&self, field_path: &str) -> Option<Position> {
        self.node(field_path).map(|node| node.position)
    }

    /// The place of the value at `field_path`, else of the nearest value around it that exists.
    pub fn nearest(&self, field_path: &str) -> Position {
        let mut path = field_path;
        loop {
            if let Some(position) = self.of(path) {
                return position;
            }
            path = &path[..path.rfind(['.', '[']).unwrap_or(0)];
        }
    }

    fn node(&self, field_path: &str) -> Option<&Node> {
        let mut node = &self.root;
        let mut rest = field_path;
        while !rest.is_empty() {
            let (next, left) = self.step(node, rest)?;
            (node, rest) = (next, left);
        }
        Some(node)
    }

    /// Follows the first step of `path`; returns what is left of it.
    fn step<'n, 'p>(&self, node: &'n Node, path: &'p str) -> Option<(&'n Node, &'p str)> {
        if let Some(quoted) = path.strip_prefix("[\"") {
            let (name, rest) = quoted.split_once("\"]")?;
            return Some((named(node, name)?, rest));
        }
        if let Some(index) = path.strip_prefix('[') {
            let (index, rest) = index.split_once(']')?;
            let Kind::List(items) = &node.kind else { return None };
            return Some((items.get(index.parse::<usize>().ok()?)?, rest));
        }
        let path = path.strip_prefix('.').unwrap_or(path);
        let (name, rest) = path.split_at(path.find(['.', '[']).unwrap_or(path.len()));
        Some((field(node, name).or_else(|| self.aliased(node, name))?, rest))
    }

    /// The field `name` under another name that it may have.
    fn aliased<'n>(&self, node: &'n Node, name: &str) -> Option<&'n Node> {
        let known = self.aliases.iter().filter(|field| field.name == name);
        known.flat_map(|known| known.aliases).find_map(|alias| field(node, alias))
    }
}

fn field<'n>(node: &'n Node, name: &str) -> Option<&'n Node> {
    let Kind::Mapping(entries) = &node.kind else { return None };
    entries.iter().find(|entry| entry.key == name).map(|entry| &entry.value)
}

fn named<'n>(node: &'n Node, name: &str) -> Option<&'n Node> {
    let Kind::List(items) = &node.kind else { return None };
    items
        .iter()
        .find(|item| matches!(field(item, "name"), Some(Node { kind: Kind::Scalar { text, .. }, .. }) if text == name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::diagnostic::Report;
    use crate::config::yaml::parse;

    #[test]
    fn a_field_path_leads_to_its_place() {
        let text = "route_configs:\n  - name: x\n  - name: \"80.1\"\n    virtual_hosts:\n      - {routes: [1, 2]}\n";
        let positions = Positions::new(parse(text, &mut Report::new("f")).expect("tree"));
        for (path, expected) in [
            ("", Some((1, 1))),
            ("route_configs[1].virtual_hosts[0].routes[1]", Some((5, 22))),
            ("route_configs[\"80.1\"].virtual_hosts[0]", Some((5, 9))),
            ("route_configs[2]", None),
            ("nothing", None),
            ("route_configs[x]", None),
        ] {
            let found = positions.of(path).map(|at| (at.line, at.column));
            assert_eq!(found, expected, "{path}");
        }
        assert_eq!(positions.nearest("route_configs[1].domains[3]"), Position { line: 3, column: 5 });
        assert_eq!(positions.nearest("nothing.at.all"), Position::START);
    }
}
