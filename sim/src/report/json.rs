//! JSON for machines that people compare: one row of a table or one point of a chart on a line.
//!
//! Owns where lines break. The one idea: what holds no more than plain values is one line, so that a changed figure
//! is one changed line and the file a third of what indenting each number takes.

use serde_json::Value;

/// The text of a value, with the newline at its end.
pub(super) fn rows(value: &Value) -> String {
    let mut text = String::new();
    write(&mut text, value, 0);
    text.push('\n');
    text
}

fn is_plain(value: &Value) -> bool {
    !value.is_array() && !value.is_object()
}

fn write(text: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Array(items) if !items.iter().all(is_plain) => {
            let items = items.iter().map(|item| (None, item));
            block(text, ('[', ']'), items, depth);
        }
        Value::Object(fields) if !fields.values().all(is_plain) => {
            let fields = fields.iter().map(|(name, value)| (Some(name.as_str()), value));
            block(text, ('{', '}'), fields, depth);
        }
        plain => text.push_str(&plain.to_string()),
    }
}

/// Each item on lines of its own, one space further in.
fn block<'a>(
    text: &mut String,
    (open, close): (char, char),
    items: impl Iterator<Item = (Option<&'a str>, &'a Value)>,
    depth: usize,
) {
    text.push(open);
    for (at, (name, value)) in items.enumerate() {
        text.push_str(if at == 0 { "\n" } else { ",\n" });
        text.push_str(&" ".repeat(depth + 1));
        if let Some(name) = name {
            text.push_str(&Value::from(name).to_string());
            text.push(':');
        }
        write(text, value, depth + 1);
    }
    text.push('\n');
    text.push_str(&" ".repeat(depth));
    text.push(close);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_is_a_line_and_nothing_is_lost() {
        let value =
            json!({ "rows": [["a \"b\"", null], [1.5, true]], "none": [], "of": [{ "x": 1 }] });
        let text = rows(&value);
        let lines = ["{", " \"none\":[],", " \"of\":[", "  {\"x\":1}", " ],", " \"rows\":["];
        assert_eq!(text.lines().take(6).collect::<Vec<_>>(), lines);
        assert!(text.ends_with("  [\"a \\\"b\\\"\",null],\n  [1.5,true]\n ]\n}\n"), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON"), value);
    }
}
