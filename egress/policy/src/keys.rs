//! Every key of a policy: what it takes, for which actions, and what it means. One table for the
//! reader and the reference.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    Top,
    Select,
    Rule,
}

#[derive(Clone, Copy, Debug)]
pub struct Key {
    pub section: Section,
    pub name: &'static str,
    pub kind: Kind,
    pub need: Need,
    /// Of rules: the actions that take it; none given is all.
    pub actions: &'static [&'static str],
    pub doc: &'static str,
}

/// What a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Letters, digits, `.`, `_`, `-`.
    Name,
    /// One line.
    Text,
    /// One text or several.
    Texts,
    /// Ports and ranges of them, one or several.
    Ports,
    Flag,
    Number {
        min: i64,
        max: i64,
    },
    Size,
    Choice(&'static [&'static str]),
    /// Texts by name.
    Map,
    /// Tables with keys of their own.
    Tables,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Required,
    Optional,
    Default(&'static str),
}

use Kind::{Choice, Flag, Map, Name, Number, Ports, Size, Tables, Text, Texts};
use Need::{Default, Optional, Required};

pub(crate) const OPENING: &[&str] = &["allow", "ask", "pass-through", "route"];
const GUARDED: &[&str] = &["allow", "ask", "pass-through", "deny"];
const SECRETS: &[&str] = &["inject", "sign"];
const NOT_PASSED_THROUGH: &[&str] =
    &["allow", "deny", "ask", "route", "inject", "sign", "middleware", "limit", "redact"];

pub(crate) const ACTIONS: &[(&str, &str)] = &[
    ("allow", "opens: the request passes"),
    ("deny", "closes: the request is refused, whatever other rules say"),
    ("ask", "opens, once a person has said yes"),
    (
        "pass-through",
        "opens without looking inside: TLS is not intercepted, so nothing of the request is known and nothing can be added",
    ),
    ("route", "opens, and leads to a private service instead of the host's address"),
    ("inject", "adds a secret to a request that passes"),
    ("sign", "signs a request that passes with a secret"),
    ("middleware", "hands a request that passes to the operator's code"),
    ("limit", "narrows: counts and bounds what passes"),
    ("redact", "narrows: removes parts of the response"),
];

const fn top(name: &'static str, kind: Kind, need: Need, doc: &'static str) -> Key {
    Key { section: Section::Top, name, kind, need, actions: &[], doc }
}

const fn select(name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { section: Section::Select, name, kind, need: Optional, actions: &[], doc }
}

const fn rule(
    name: &'static str,
    kind: Kind,
    need: Need,
    actions: &'static [&'static str],
    doc: &'static str,
) -> Key {
    Key { section: Section::Rule, name, kind, need, actions, doc }
}

const COUNT: Kind = Number { min: 1, max: 1_000_000_000 };

pub const KEYS: &[Key] = &[
    top("name", Name, Required, "The policy's name; no other policy has it."),
    top(
        "layer",
        Choice(&["deployment", "tenant", "agent", "session"]),
        Required,
        "Where it stands. A tenant's policy selects tenants, an agent's agents.",
    ),
    top(
        "priority",
        Number { min: -1000, max: 1000 },
        Default("0"),
        "Among the policies of one layer the higher one speaks first; see below.",
    ),
    top(
        "unmatched",
        Choice(&["deny", "inherit"]),
        Default("deny"),
        "What becomes of a request that no rule of the layer opens: refused, or left to the layers above. `inherit` holds only if all policies of the layer that are for the session say so. A deployment's policy has no layer above it.",
    ),
    top("description", Text, Optional, "For the reader."),
    top(
        "select",
        Tables,
        Optional,
        "Which sessions the policy is for: `[select]`. Without it, all.",
    ),
    top(
        "rule",
        Tables,
        Optional,
        "What is opened, closed, added and narrowed, one `[[rule]]` each.",
    ),
    select("environment", Texts, "The session's environment."),
    select("tenant", Texts, "The session's tenant."),
    select("agent", Texts, "The id of the session's agent."),
    select("session", Texts, "The session's id."),
    select("profile", Texts, "The name of the session's sandbox profile."),
    select("metadata", Map, "Entries of the session's metadata, each exactly as written."),
    select(
        "agent_name",
        Texts,
        "The agent's name; `*` stands for any characters. Anyone may choose it, so the policy may only close and narrow; while the name is not known, the policy is on.",
    ),
    select("title", Texts, "The session's title, with what holds for `agent_name`."),
    rule("id", Name, Required, &[], "The rule's name in its policy; decisions carry it."),
    rule(
        "action",
        Choice(&[
            "allow",
            "deny",
            "ask",
            "pass-through",
            "route",
            "inject",
            "sign",
            "middleware",
            "limit",
            "redact",
        ]),
        Required,
        &[],
        "What the rule does.",
    ),
    rule("reason", Text, Optional, &["deny", "ask"], "What operator and model are told."),
    rule(
        "scheme",
        Texts,
        Optional,
        &[],
        "`https` (and `wss`), `http` (and `ws`), `tcp` for connections that are not looked into. Without it, a rule that opens or adds is about `https`, any other about everything.",
    ),
    rule(
        "host",
        Texts,
        Optional,
        &[],
        "`example.com`, `*.example.com` (one label more), `**.example.com` (any number more), `**` (every name), or an address. A rule that opens names hosts or ranges, one with a secret names hosts.",
    ),
    rule("apex", Flag, Default("false"), &[], "`*.x` and `**.x` also mean `x` itself."),
    rule(
        "port",
        Ports,
        Optional,
        &[],
        "Ports, like `8443` or `\"8000-8100\"`. Without it, a rule that opens or adds is about the scheme's own port, any other about all. `tcp` needs it.",
    ),
    rule(
        "cidr",
        Texts,
        Optional,
        GUARDED,
        "Ranges in which the host's address must lie. In a deployment's rule, a range that is not the internet is opened by naming it or a part of it.",
    ),
    rule("method", Texts, Optional, NOT_PASSED_THROUGH, "HTTP methods."),
    rule(
        "path",
        Texts,
        Optional,
        NOT_PASSED_THROUGH,
        "Decoded paths: `*` stands for characters of one segment, `**` for any number of segments.",
    ),
    rule(
        "query",
        Map,
        Optional,
        NOT_PASSED_THROUGH,
        "Parameters by name; `*` in a value stands for any characters.",
    ),
    rule(
        "header",
        Map,
        Optional,
        NOT_PASSED_THROUGH,
        "Headers by name; `*` in a value stands for any characters.",
    ),
    rule("when", Text, Optional, NOT_PASSED_THROUGH, "An expression; see below."),
    rule("service", Name, Required, &["route"], "The private service."),
    rule("secret", Name, Required, SECRETS, "The secret's name. Its value is never in a policy."),
    rule(
        "add_header",
        Name,
        Optional,
        &["inject"],
        "The header that carries the secret, over what the request says there. Without it, the secret's placeholder is replaced wherever the request carries it.",
    ),
    rule(
        "value",
        Text,
        Default("{secret}"),
        &["inject"],
        "The header's value, like `Bearer {secret}`. Only with `add_header`.",
    ),
    rule(
        "sign_with",
        Choice(&["sigv4", "hmac", "oauth2", "mtls"]),
        Required,
        &["sign"],
        "How the request is signed.",
    ),
    rule("handler", Name, Required, &["middleware"], "The operator's code."),
    rule("requests_per_minute", COUNT, Optional, &["limit"], "In any 60 seconds."),
    rule("concurrent", COUNT, Optional, &["limit"], "Requests at the same time."),
    rule("body", Size, Optional, &["limit"], "The body of one request."),
    rule("bytes_up", Size, Optional, &["limit"], "Sent by all requests of the session together."),
    rule("bytes_down", Size, Optional, &["limit"], "Received by all of them together."),
    rule("response_header", Texts, Optional, &["redact"], "Headers removed from the response."),
    rule(
        "response_text",
        Texts,
        Optional,
        &["redact"],
        "Texts blacked out in the response's body.",
    ),
];

impl Section {
    pub const ALL: [Section; 3] = [Section::Top, Section::Select, Section::Rule];

    /// As it is written in the file.
    pub fn header(self) -> &'static str {
        match self {
            Section::Top => "the top of the file",
            Section::Select => "[select]",
            Section::Rule => "[[rule]]",
        }
    }

    pub fn keys(self) -> impl Iterator<Item = &'static Key> {
        KEYS.iter().filter(move |key| key.section == self)
    }
}

impl Key {
    pub(crate) fn takes(&self, action: &str) -> bool {
        self.actions.is_empty() || self.actions.contains(&action)
    }
}

/// What to write, as an operator reads it.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name => f.write_str("a name of letters, digits, `.`, `_` and `-`"),
            Text => f.write_str("a text"),
            Texts => f.write_str("a text or several, like [\"a\", \"b\"]"),
            Ports => f.write_str("a port, a range like \"8000-8100\", or several"),
            Flag => f.write_str("`true` or `false`"),
            Number { min, max } => write!(f, "a whole number from {min} to {max}"),
            Size => f.write_str("a size with a unit, like \"512KiB\" or \"2GiB\""),
            Choice(choices) => {
                let quoted: Vec<String> = choices.iter().map(|c| format!("\"{c}\"")).collect();
                f.write_str(&quoted.join(" or "))
            }
            Map => f.write_str("a table of texts, like { name = \"value\" }"),
            Tables => f.write_str("tables"),
        }
    }
}
