//! The answer for people: one aligned line for every turn, what led to it indented below.

/// One turn of the way.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Section {
    /// What it is about; empty for one that goes on with the last.
    pub(super) title: &'static str,
    /// What was found.
    pub(super) line: String,
    /// Why.
    pub(super) details: Vec<String>,
}

/// Between the titles and the lines.
const GAP: usize = 2;
/// Before details.
const INDENT: &str = "  ";

/// The finished text.
pub(super) fn render(sections: &[Section]) -> String {
    let width = sections.iter().map(|section| section.title.len()).max().unwrap_or_default() + GAP;
    let mut text = String::new();
    for section in sections {
        text.push_str(format!("{:width$}{}", section.title, section.line).trim_end());
        text.push('\n');
        for detail in &section.details {
            text.push_str(format!("{:width$}{INDENT}{detail}", "").trim_end());
            text.push('\n');
        }
    }
    text
}
