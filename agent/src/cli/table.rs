//! Tables as Go's text/tabwriter lays them out, because `istioctl` does and scripts cut its columns.
//!
//! Every cell but the last of a row is padded to the widest of its column plus the padding; an empty last cell therefore
//! leaves spaces at the end of its line.

/// Rows of cells, the first one the heading.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
    padding: usize,
}

impl Table {
    /// A table with this heading. `padding` is what separates columns: 1 for listeners, else 5.
    pub fn new(heading: &[&str], padding: usize) -> Self {
        Self { rows: vec![heading.iter().map(|cell| (*cell).to_owned()).collect()], padding }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.cells(cells.into());
    }

    /// Adds a row whose length is known only now.
    pub fn cells(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The finished text.
    pub fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let widths: Vec<_> = (0..columns)
            .map(|column| self.rows.iter().filter_map(|row| row.get(column)).map(|cell| width(cell)).max().unwrap_or(0))
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            for (column, cell) in row.iter().enumerate() {
                text.push_str(cell);
                if column + 1 < row.len() {
                    let pad = widths[column] + self.padding - width(cell);
                    text.extend(std::iter::repeat_n(' ', pad));
                }
            }
            text.push('\n');
        }
        text
    }
}

fn width(cell: &str) -> usize {
    cell.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_the_last_cell_are_padded() {
        let mut table = Table::new(&["A", "LONG", "C"], 1);
        table.row(["wider".into(), "b".into(), String::new()]);
        assert_eq!(table.text(), "A     LONG C\nwider b    \n");
    }
}
