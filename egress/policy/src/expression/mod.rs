//! `when`: conditions in a subset of the Common Expression Language, for what no other key says.
//!
//! ```text
//! request.method == "POST" && session.metadata["team"] in ["red", "blue"]
//! ```
//!
//! An expression is read once into typed nodes, so that at a decision nothing is left that could
//! be of a wrong type. There are no macros and no variables of its own, hence no loops: a node is
//! evaluated at most once. What a node looks at counts against a budget.
//!
//! **Invariant:** evaluating takes time bounded by [`BYTES_LOOKED_AT_MAX`], allocates no more than
//! that, and never panics. A missing entry, a doubtful path or a spent budget is no value but a
//! doubt, which `&&` and `||` absorb where the other side decides.

mod eval;
mod lexer;
mod parser;

use std::fmt;
use std::sync::Arc;

use regex::Regex;

pub(crate) use eval::Scope;

/// Longest text of an expression.
const TEXT_BYTES_MAX: usize = 4 << 10;
/// Parentheses, calls and operators inside each other: the reader and the evaluation recurse.
const DEPTH_MAX: usize = 32;
const NODES_MAX: usize = 256;
/// A regular expression's own text, and what it may become when it is compiled.
const REGEX_BYTES_MAX: usize = 512;
const REGEX_COMPILED_BYTES_MAX: usize = 64 << 10;
/// Bytes that one evaluation may look at, a regular expression's eightfold.
pub const BYTES_LOOKED_AT_MAX: usize = 256 << 10;
/// What a byte costs that a regular expression runs over.
const REGEX_FACTOR: usize = 8;

#[derive(Clone)]
pub struct Expression {
    text: Arc<str>,
    root: Arc<Node>,
    needs_http: bool,
}

/// What is wrong with an expression, and where in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} (character {column} of the expression)")]
pub struct ExpressionError {
    pub what: String,
    /// Counts from 1, in characters.
    pub column: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Bool,
    Int,
    Text,
    List(Item),
    Map,
}

/// What a list holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    Text,
    Int,
}

/// An expression whose types fit.
#[derive(Debug)]
enum Node {
    Bool(bool),
    Int(i64),
    Text(Box<str>),
    Field(Field),
    Lookup(Map, Box<Node>),
    Has(Map, Box<Node>),
    Not(Box<Node>),
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    If(Box<Node>, Box<Node>, Box<Node>),
    Compare(Comparison, Box<Node>, Box<Node>),
    OneOf(Box<Node>, Box<[Node]>),
    Call(TextTest, Box<Node>, Box<Node>),
    Matches(Box<Node>, Regex),
    Lower(Box<Node>),
    Size(Box<Node>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Scheme,
    Host,
    Port,
    Method,
    Path,
    Environment,
    Tenant,
    Agent,
    Session,
    Profile,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Map {
    Query,
    Headers,
    Metadata,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TextTest {
    Contains,
    StartsWith,
    EndsWith,
}

/// What stands behind `request.` and `session.`, for the reader of messages and of the reference.
pub(crate) const NAMES: &[(&str, &str)] = &[
    ("request.scheme", "a text: `https`, `http` or `tcp`"),
    ("request.host", "a text, in its one form; an IPv6 address has brackets"),
    ("request.port", "a number"),
    ("request.method", "a text"),
    ("request.path", "a text, decoded; in doubt where servers would read it differently"),
    ("request.query", "texts by name; one that stands there twice is in doubt"),
    ("request.headers", "texts by lower-case name; one that stands there twice is in doubt"),
    ("session.environment", "a text"),
    ("session.tenant", "a text"),
    ("session.agent", "a text: the agent's id"),
    ("session.id", "a text"),
    ("session.profile", "a text"),
    ("session.metadata", "texts by name"),
];

impl Expression {
    pub fn parse(text: &str) -> Result<Expression, ExpressionError> {
        if text.len() > TEXT_BYTES_MAX {
            let what = format!("the expression is longer than {TEXT_BYTES_MAX} bytes");
            return Err(ExpressionError { what, column: 1 });
        }
        let (root, needs_http) = parser::parse(text)?;
        Ok(Expression { text: text.into(), root: Arc::new(root), needs_http })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it looks at more of a request than its destination.
    pub(crate) fn needs_http(&self) -> bool {
        self.needs_http
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Expression) -> bool {
        self.text == other.text
    }
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Type::Bool => "a truth value",
            Type::Int => "a number",
            Type::Text => "a text",
            Type::List(Item::Text) => "a list of texts",
            Type::List(Item::Int) => "a list of numbers",
            Type::Map => "texts by name",
        })
    }
}
