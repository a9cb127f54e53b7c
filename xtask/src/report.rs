//! What a check found.

/// The findings, each with its place and what to do; none means the check passed.
#[derive(Debug, Default)]
pub struct Outcome {
    pub findings: Vec<String>,
    /// One line about what was looked at, so that a check of nothing shows.
    pub summary: String,
}

impl Outcome {
    pub fn new(summary: String, findings: Vec<String>) -> Self {
        Self { findings, summary }
    }
}
