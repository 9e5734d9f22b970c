//! Tables in Markdown and in plain columns.
//!
//! Owns their shape; knows nothing of what stands in them.

use serde_json::{Value, json};

/// Rows under a head.
#[derive(Clone, Debug, Default)]
pub struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub fn new(head: &[&str]) -> Self {
        Self { head: head.iter().map(ToString::to_string).collect(), rows: Vec::new() }
    }

    /// One more row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule: Vec<String> = self.head.iter().map(|_| "---".to_owned()).collect();
        let mut text = line(&self.head);
        text.push_str(&format!("|{}|\n", rule.join("|")));
        for row in &self.rows {
            text.push_str(&line(row));
        }
        text
    }

    /// For machines: the head, and rows of cells as they are shown.
    pub fn json(&self) -> Value {
        json!({ "columns": self.head, "rows": self.rows })
    }

    /// In columns, for a terminal.
    pub fn plain(&self) -> String {
        let all = || core::iter::once(&self.head).chain(&self.rows);
        let widths: Vec<usize> = (0..self.head.len())
            .map(|at| all().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max())
            .map(Option::unwrap_or_default)
            .collect();
        let mut text = String::new();
        for row in all() {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
            text.push_str(cells.join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

/// Three digits that count.
pub fn short(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        "—".to_owned()
    } else if size == 0.0 {
        "0".to_owned()
    } else if !(1e-3..1e5).contains(&size) {
        format!("{value:.2e}")
    } else if size < 1.0 {
        format!("{value:.4}")
    } else if size < 100.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.0}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_rows_in_markdown_and_in_columns() {
        let mut table = Table::new(&["a", "long"]);
        table.row(["xyz".to_owned(), "1".to_owned()]);
        assert_eq!(table.markdown(), "| a | long |\n|---|---|\n| xyz | 1 |\n");
        assert_eq!(table.plain(), "a    long\nxyz  1\n");
    }

    #[test]
    fn numbers_keep_three_digits() {
        assert_eq!(
            [0.0, 0.03175, 9.0, 1234.5, 3.59e9, f64::NAN].map(short),
            ["0", "0.0318", "9.00", "1234", "3.59e9", "—"]
        );
    }
}
