//! Results as request bodies, in the field order that the official workers use.

use brain_api::{Block, ToolResult, ToolResultKind};
use serde::Serialize;

/// Stands for a text that is empty: the brain takes no empty block.
const NO_OUTPUT: &str = "(no output)";

#[derive(Serialize)]
struct Request<'a> {
    events: [Posted<'a>; 1],
}

#[derive(Serialize)]
#[serde(tag = "type")]
enum Posted<'a> {
    #[serde(rename = "user.tool_result")]
    Builtin { tool_use_id: &'a str, is_error: bool, content: Vec<Content<'a>> },
    #[serde(rename = "user.custom_tool_result")]
    Custom { custom_tool_use_id: &'a str, is_error: bool, content: Vec<Content<'a>> },
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Content<'a> {
    Text { text: &'a str },
    Image { source: Source<'a> },
    Document { source: Source<'a> },
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Source<'a> {
    Base64 { media_type: &'a str, data: &'a str },
}

pub(crate) fn encode(result: &ToolResult) -> Vec<u8> {
    let call = result.call.as_str();
    let (is_error, content) = (result.is_error, content(result));
    let posted = match result.kind {
        ToolResultKind::Builtin => Posted::Builtin { tool_use_id: call, is_error, content },
        ToolResultKind::Custom => Posted::Custom { custom_tool_use_id: call, is_error, content },
    };
    // Writing strings and booleans to memory has no way to fail.
    serde_json::to_vec(&Request { events: [posted] }).expect("a result is always JSON")
}

/// An error carries text only: the brain refuses other blocks in one.
fn content(result: &ToolResult) -> Vec<Content<'_>> {
    let mut content: Vec<_> = result
        .content
        .iter()
        .filter_map(|block| match block {
            Block::Text { text } if text.is_empty() => Some(Content::Text { text: NO_OUTPUT }),
            Block::Text { text } => Some(Content::Text { text }),
            Block::Image { .. } | Block::Document { .. } if result.is_error => None,
            Block::Image { media_type, data } => {
                Some(Content::Image { source: Source::Base64 { media_type, data } })
            }
            Block::Document { media_type, data } => {
                Some(Content::Document { source: Source::Base64 { media_type, data } })
            }
        })
        .collect();
    if content.is_empty() {
        content.push(Content::Text { text: NO_OUTPUT });
    }
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(kind: ToolResultKind, is_error: bool, content: Vec<Block>, expected: &str) {
        let result = ToolResult { call: "c".into(), kind, is_error, content };
        assert_eq!(String::from_utf8(encode(&result)).unwrap(), expected);
    }

    #[test]
    fn results_have_the_form_of_the_protocol() {
        use ToolResultKind::{Builtin, Custom};
        let image = || Block::Image { media_type: "image/png".into(), data: "AA==".into() };
        check(
            Builtin,
            false,
            vec![],
            r#"{"events":[{"type":"user.tool_result","tool_use_id":"c","is_error":false,"content":[{"type":"text","text":"(no output)"}]}]}"#,
        );
        check(
            Custom,
            true,
            vec![image(), Block::text("no\n\u{1b}\"é")],
            r#"{"events":[{"type":"user.custom_tool_result","custom_tool_use_id":"c","is_error":true,"content":[{"type":"text","text":"no\n\u001b\"é"}]}]}"#,
        );
        check(
            Builtin,
            false,
            vec![Block::text(""), image()],
            r#"{"events":[{"type":"user.tool_result","tool_use_id":"c","is_error":false,"content":[{"type":"text","text":"(no output)"},{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AA=="}}]}]}"#,
        );
        check(
            Builtin,
            true,
            vec![image()],
            r#"{"events":[{"type":"user.tool_result","tool_use_id":"c","is_error":true,"content":[{"type":"text","text":"(no output)"}]}]}"#,
        );
    }
}
