//! The host side of the built-in tools `bash read write edit glob grep`.
//!
//! A tool checks the input that the model wrote, hands the guest agent a typed call, and renders
//! the outcome as text for the model. It touches no file and runs no program itself.
//!
//! **Invariants:** an input is never guessed at: what a tool does not take is answered with what
//! it takes. Bytes of a guest become bounded, printable text. No text names a place outside the
//! sandbox.

#![forbid(unsafe_code)]

mod bash;
mod call;
mod file;
mod input;
mod text;

use std::sync::Arc;

use tools_api::Tool;

/// Every built-in tool, each under its own name.
pub fn builtin_tools() -> Vec<Arc<dyn Tool>> {
    let files = file::FileTool::ALL.into_iter().map(|tool| Arc::new(tool) as Arc<dyn Tool>);
    std::iter::once(Arc::new(bash::Bash) as Arc<dyn Tool>).chain(files).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_six_tools_of_the_protocol_are_there() {
        let names: Vec<_> = super::builtin_tools().iter().map(|tool| tool.name()).collect();
        assert_eq!(names, ["bash", "read", "write", "edit", "glob", "grep"]);
    }
}
