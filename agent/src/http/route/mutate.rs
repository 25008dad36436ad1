//! Changes of headers at one scope: removals first, then replacements, then additions.
//!
//! As Envoy's `HeaderParser::evaluateHeaders`: what is there or not is judged after the removals and before any header
//! is set, so the order of the additions among themselves does not matter.

use http::HeaderMap;

use super::{AppendAction, HeaderAddition, HeaderMutation};

impl HeaderMutation {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }

    /// Changes `headers`.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        if self.add.is_empty() {
            return;
        }
        let held: Vec<bool> = self.add.iter().map(|addition| addition.applies(headers)).collect();
        let wanted = || self.add.iter().zip(&held).filter(|(_, held)| **held).map(|(addition, _)| addition);
        for addition in wanted().filter(|addition| addition.overwrites()) {
            headers.insert(addition.name.clone(), addition.value.clone());
        }
        for addition in wanted().filter(|addition| !addition.overwrites()) {
            headers.append(addition.name.clone(), addition.value.clone());
        }
    }
}

impl HeaderAddition {
    fn applies(&self, headers: &HeaderMap) -> bool {
        match self.append_action {
            AppendAction::AppendIfExistsOrAdd | AppendAction::OverwriteIfExistsOrAdd => true,
            AppendAction::AddIfAbsent => !headers.contains_key(&self.name),
            AppendAction::OverwriteIfExists => headers.contains_key(&self.name),
        }
    }

    fn overwrites(&self) -> bool {
        matches!(self.append_action, AppendAction::OverwriteIfExistsOrAdd | AppendAction::OverwriteIfExists)
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn add(name: &'static str, value: &'static str, append_action: AppendAction) -> HeaderAddition {
        let (name, value) = (HeaderName::from_static(name), HeaderValue::from_static(value));
        HeaderAddition { name, value, append_action }
    }

    #[test]
    fn removals_come_before_replacements_before_additions() {
        use AppendAction::{AddIfAbsent, AppendIfExistsOrAdd, OverwriteIfExists, OverwriteIfExistsOrAdd};
        let mutation = HeaderMutation {
            add: vec![
                add("appended", "2", AppendIfExistsOrAdd),
                add("absent", "new", AddIfAbsent),
                add("there", "new", AddIfAbsent),
                add("there", "replaced", OverwriteIfExists),
                add("missing", "x", OverwriteIfExists),
                add("set", "x", OverwriteIfExistsOrAdd),
                add("removed", "again", AddIfAbsent),
            ],
            remove: vec![HeaderName::from_static("removed")],
        };
        let mut headers = HeaderMap::new();
        for (name, value) in [("appended", "1"), ("there", "old"), ("removed", "old"), ("set", "old")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        mutation.apply(&mut headers);
        let cases: [(&str, &[&str]); 6] = [
            ("appended", &["1", "2"]),
            ("absent", &["new"]),
            ("there", &["replaced"]),
            ("missing", &[]),
            ("set", &["x"]),
            ("removed", &["again"]),
        ];
        for (name, values) in cases {
            let found: Vec<_> = headers.get_all(name).iter().collect();
            assert_eq!(found, values, "{name}");
        }
    }
}
