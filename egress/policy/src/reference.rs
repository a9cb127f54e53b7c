//! The reference for operators, made from the table that the reader reads.

use std::fmt::Write;

use crate::expression::NAMES;
use crate::keys::{ACTIONS, Key, Need, Section};

const INTRODUCTION: &str = include_str!("reference/introduction.txt");
const EXPRESSIONS: &str = include_str!("reference/expressions.txt");

/// `docs/user/policy.md`.
pub fn reference() -> String {
    let mut text = INTRODUCTION.to_owned();
    text.push_str("\n## Actions\n\n| action | what it does |\n|---|---|\n");
    for (action, meaning) in ACTIONS {
        // Writing to a `String` cannot fail.
        let _ = writeln!(text, "| `{action}` | {meaning} |");
    }
    for section in Section::ALL {
        let title = match section {
            Section::Top => "Top of the file".to_owned(),
            section => format!("`{}`", section.header()),
        };
        let _ = write!(text, "\n## {title}\n\n{}", head(section));
        section.keys().for_each(|key| text.push_str(&row(key)));
    }
    let _ = write!(text, "\n{EXPRESSIONS}\n| name | what it is |\n|---|---|\n");
    for (name, is) in NAMES {
        let _ = writeln!(text, "| `{name}` | {is} |");
    }
    text
}

fn head(section: Section) -> &'static str {
    match section {
        Section::Rule => "| key | actions | value | default | meaning |\n|---|---|---|---|---|\n",
        _ => "| key | value | default | meaning |\n|---|---|---|---|\n",
    }
}

fn row(key: &Key) -> String {
    let default = match key.need {
        Need::Default(value) => format!("`{value}`"),
        Need::Optional => "–".to_owned(),
        Need::Required => "required".to_owned(),
    };
    let actions = match (key.section, key.actions) {
        (Section::Rule, []) => " all |".to_owned(),
        (Section::Rule, actions) => format!(" {} |", actions.join(", ")),
        _ => String::new(),
    };
    format!("| `{}` |{actions} {} | {default} | {} |\n", key.name, key.kind, key.doc)
}
