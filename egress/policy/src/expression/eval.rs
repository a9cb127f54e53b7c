//! Evaluation: three values, a budget, no loops.

use std::borrow::Cow;
use std::cell::Cell;

use super::{
    BYTES_LOOKED_AT_MAX, Comparison, Expression, Field, Map, Node, REGEX_FACTOR, TextTest,
};
use crate::identity::Identity;
use crate::matcher::{Doubt, Facts, Held, Http};
use crate::path::RequestPath;
use crate::request::Request;

/// What an expression looks at.
#[derive(Clone, Copy)]
pub(crate) struct Scope<'a> {
    pub facts: &'a Facts<'a>,
    pub identity: &'a Identity,
}

enum Value<'a> {
    Bool(bool),
    Int(i64),
    Text(Cow<'a, str>),
}

struct Evaluation<'a> {
    scope: Scope<'a>,
    left: Cell<usize>,
}

impl Expression {
    pub(crate) fn holds(&self, scope: Scope<'_>) -> Held {
        let evaluation = Evaluation { scope, left: Cell::new(BYTES_LOOKED_AT_MAX) };
        match evaluation.bool(&self.root) {
            Ok(true) => Held::Yes,
            Ok(false) => Held::No,
            Err(doubt) => Held::Unknown(doubt),
        }
    }
}

impl<'a> Evaluation<'a> {
    fn spend(&self, bytes: usize) -> Result<(), Doubt> {
        // Every step costs something, so that no number of empty texts is free.
        let left = self.left.get().checked_sub(bytes + 1).ok_or(Doubt::Budget)?;
        self.left.set(left);
        Ok(())
    }

    fn bool(&self, node: &'a Node) -> Result<bool, Doubt> {
        match self.value(node)? {
            Value::Bool(value) => Ok(value),
            // The reader has checked the types; if it were wrong, nothing opens.
            Value::Int(_) | Value::Text(_) => Err(Doubt::Type),
        }
    }

    fn text(&self, node: &'a Node) -> Result<Cow<'a, str>, Doubt> {
        match self.value(node)? {
            Value::Text(text) => {
                self.spend(text.len())?;
                Ok(text)
            }
            Value::Int(_) | Value::Bool(_) => Err(Doubt::Type),
        }
    }

    fn value(&self, node: &'a Node) -> Result<Value<'a>, Doubt> {
        self.spend(0)?;
        Ok(match node {
            Node::Bool(value) => Value::Bool(*value),
            Node::Int(value) => Value::Int(*value),
            Node::Text(text) => Value::Text(Cow::Borrowed(text)),
            Node::Field(field) => self.field(*field)?,
            Node::Lookup(map, key) => Value::Text(self.lookup(*map, &self.text(key)?)?),
            Node::Has(map, key) => Value::Bool(self.has(*map, &self.text(key)?)?),
            Node::Not(inner) => Value::Bool(!self.bool(inner)?),
            Node::And(a, b) => Value::Bool(self.decided(a, b, false)?),
            Node::Or(a, b) => Value::Bool(self.decided(a, b, true)?),
            Node::If(condition, yes, no) => match self.bool(condition)? {
                true => self.value(yes)?,
                false => self.value(no)?,
            },
            Node::Compare(how, a, b) => Value::Bool(self.compare(*how, a, b)?),
            Node::OneOf(one, of) => Value::Bool(self.one_of(one, of)?),
            Node::Call(test, text, part) => {
                let (text, part) = (self.text(text)?, self.text(part)?);
                Value::Bool(match test {
                    TextTest::Contains => text.contains(&*part),
                    TextTest::StartsWith => text.starts_with(&*part),
                    TextTest::EndsWith => text.ends_with(&*part),
                })
            }
            Node::Matches(text, regex) => {
                let text = self.text(text)?;
                self.spend(text.len().saturating_mul(REGEX_FACTOR))?;
                Value::Bool(regex.is_match(&text))
            }
            Node::Lower(text) => Value::Text(Cow::Owned(self.text(text)?.to_ascii_lowercase())),
            Node::Size(text) => {
                Value::Int(i64::try_from(self.text(text)?.chars().count()).unwrap_or(i64::MAX))
            }
        })
    }

    /// `&&` and `||`: the side that decides does so whatever doubt the other one is in.
    fn decided(&self, a: &'a Node, b: &'a Node, deciding: bool) -> Result<bool, Doubt> {
        match self.bool(a) {
            Ok(value) if value == deciding => Ok(deciding),
            Ok(_) => self.bool(b),
            Err(doubt) => match self.bool(b) {
                Ok(value) if value == deciding => Ok(deciding),
                Ok(_) => Err(doubt),
                Err(other) => Err(doubt.or(other)),
            },
        }
    }

    fn compare(&self, how: Comparison, a: &'a Node, b: &'a Node) -> Result<bool, Doubt> {
        let (a, b) = (self.value(a)?, self.value(b)?);
        if let (Value::Text(a), Value::Text(b)) = (&a, &b) {
            self.spend(a.len().min(b.len()))?;
        }
        let order = match (&a, &b) {
            (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
            (Value::Int(a), Value::Int(b)) => a.cmp(b),
            (Value::Text(a), Value::Text(b)) => a.cmp(b),
            _ => return Err(Doubt::Type),
        };
        Ok(match how {
            Comparison::Equal => order.is_eq(),
            Comparison::Unequal => order.is_ne(),
            Comparison::Less => order.is_lt(),
            Comparison::LessOrEqual => order.is_le(),
            Comparison::Greater => order.is_gt(),
            Comparison::GreaterOrEqual => order.is_ge(),
        })
    }

    fn one_of(&self, one: &'a Node, of: &'a [Node]) -> Result<bool, Doubt> {
        let one = self.value(one)?;
        let mut doubt = None;
        for item in of {
            let same = self.value(item).and_then(|item| match (&one, &item) {
                (Value::Int(a), Value::Int(b)) => Ok(a == b),
                (Value::Text(a), Value::Text(b)) => {
                    self.spend(a.len().min(b.len())).map(|()| a == b)
                }
                _ => Err(Doubt::Type),
            });
            match same {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(why) => doubt = Some(doubt.map_or(why, |before: Doubt| before.or(why))),
            }
        }
        doubt.map_or(Ok(false), Err)
    }

    fn field(&self, field: Field) -> Result<Value<'a>, Doubt> {
        let Scope { facts, identity } = self.scope;
        let text = |text: &'a str| Ok(Value::Text(Cow::Borrowed(text)));
        match field {
            Field::Scheme => text(facts.scheme.ok_or(Doubt::NotYet)?.name()),
            Field::Host => Ok(Value::Text(Cow::Owned(facts.host.to_string()))),
            Field::Port => Ok(Value::Int(facts.port.ok_or(Doubt::NotYet)?.into())),
            Field::Method => match self.request()? {
                request if request.method_is_overridden() => Err(Doubt::MethodOverride),
                request => text(request.method),
            },
            Field::Path => match &self.request()?.path {
                RequestPath::Clear(path) => text(path),
                RequestPath::Doubtful(doubt) => Err(Doubt::Path(*doubt)),
            },
            Field::Environment => text(identity.environment.as_str()),
            Field::Tenant => text(identity.tenant.as_str()),
            Field::Agent => text(identity.agent.as_str()),
            Field::Session => text(identity.session.as_str()),
            Field::Profile => text(identity.profile.as_str()),
        }
    }

    fn request(&self) -> Result<&'a Request<'a>, Doubt> {
        match self.scope.facts.http {
            Http::Seen(request) => Ok(request),
            Http::NotYet => Err(Doubt::NotYet),
            Http::None => Err(Doubt::NotHttp),
        }
    }

    fn lookup(&self, map: Map, key: &str) -> Result<Cow<'a, str>, Doubt> {
        self.find(map, key)?.ok_or(Doubt::Missing)
    }

    fn has(&self, map: Map, key: &str) -> Result<bool, Doubt> {
        self.find(map, key).map(|found| found.is_some())
    }

    /// The one entry of that name.
    fn find(&self, map: Map, key: &str) -> Result<Option<Cow<'a, str>>, Doubt> {
        match map {
            Map::Metadata => {
                let value = self.scope.identity.metadata.get(key);
                Ok(value.map(|value| Cow::Borrowed(value.as_str())))
            }
            Map::Query => {
                let request = self.request()?;
                self.spend(request.query.map_or(0, str::len))?;
                let parameters = request.parameters().ok_or(Doubt::Query)?;
                let mut found = parameters.iter().filter(|(name, _)| name == key);
                match (found.next(), found.next()) {
                    (_, Some(_)) => Err(Doubt::Twice),
                    (value, None) => Ok(value.map(|(_, value)| Cow::Borrowed(value.as_str()))),
                }
            }
            Map::Headers => {
                let request = self.request()?;
                self.spend(request.headers.iter().map(|(name, _)| name.len()).sum())?;
                request.one_header(key)
            }
        }
    }
}

impl<'a> Request<'a> {
    /// That header's one value.
    fn one_header(&self, wanted: &str) -> Result<Option<Cow<'a, str>>, Doubt> {
        let mut found =
            self.headers.iter().filter(|(name, _)| crate::request::folds_to(name, wanted));
        match (found.next(), found.next()) {
            (None, _) => Ok(None),
            (Some(_), Some(_)) => Err(Doubt::Twice),
            (Some((name, _)), None) if !name.eq_ignore_ascii_case(wanted) => Err(Doubt::HeaderName),
            (Some((_, value)), None) => match std::str::from_utf8(value) {
                Ok(value) => Ok(Some(Cow::Borrowed(value))),
                Err(_) => Err(Doubt::HeaderValue),
            },
        }
    }
}
