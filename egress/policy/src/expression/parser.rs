//! From words to typed nodes, in one go: what is read is known by its type at once.

use regex::RegexBuilder;

use super::lexer::{self, Token};
use super::{
    Comparison, DEPTH_MAX, ExpressionError, Field, Item, Map, NAMES, NODES_MAX, Node,
    REGEX_BYTES_MAX, REGEX_COMPILED_BYTES_MAX, TextTest, Type,
};

/// What was read, and where it begins.
struct Read {
    kind: Kind,
    at: usize,
}

/// Lists and maps are no values of their own: they stand beside `in`, `[…]` and `has`.
enum Kind {
    Value(Node, Type),
    List(Vec<Node>, Item),
    Map(Map),
    /// `request` or `session`, which need a `.` behind them.
    Root(&'static str),
}

struct Parser<'t> {
    text: &'t str,
    words: Vec<(Token, usize)>,
    next: usize,
    depth: usize,
    nodes: usize,
    needs_http: bool,
}

type Result<T> = std::result::Result<T, ExpressionError>;

/// The root, and whether it looks inside HTTP.
pub(super) fn parse(text: &str) -> Result<(Node, bool)> {
    let words = lexer::words(text)?;
    let mut parser = Parser { text, words, next: 0, depth: 0, nodes: 0, needs_http: false };
    let root = parser.expression()?;
    if *parser.peek() != Token::End {
        return Err(parser.error(parser.at(), "nothing is expected here any more"));
    }
    let root = parser.of_type(root, Type::Bool)?;
    Ok((root, parser.needs_http))
}

impl Parser<'_> {
    fn peek(&self) -> &Token {
        self.words.get(self.next).map_or(&Token::End, |(token, _)| token)
    }

    fn at(&self) -> usize {
        self.words.get(self.next).map_or(self.text.len(), |(_, at)| *at)
    }

    fn error(&self, at: usize, what: impl Into<String>) -> ExpressionError {
        lexer::error(self.text, at, what)
    }

    fn take(&mut self, symbol: &str) -> bool {
        let taken = matches!(self.peek(), Token::Symbol(next) if *next == symbol);
        self.next += usize::from(taken);
        taken
    }

    fn expect(&mut self, symbol: &str) -> Result<()> {
        match self.take(symbol) {
            true => Ok(()),
            false => Err(self.error(self.at(), format!("`{symbol}` is expected here"))),
        }
    }

    fn value(&mut self, node: Node, kind: Type, at: usize) -> Result<Read> {
        self.nodes += 1;
        match self.nodes > NODES_MAX {
            true => Err(self.error(at, format!("the expression has more than {NODES_MAX} parts"))),
            false => Ok(Read { kind: Kind::Value(node, kind), at }),
        }
    }

    /// The node, which must be of that type.
    fn of_type(&self, read: Read, wanted: Type) -> Result<Node> {
        let (node, is) = self.any(read)?;
        match is.1 == wanted {
            true => Ok(node),
            false => Err(self.error(is.0, format!("{} is expected here, not {}", wanted, is.1))),
        }
    }

    fn any(&self, read: Read) -> Result<(Node, (usize, Type))> {
        let is = match read.kind {
            Kind::Value(node, kind) => return Ok((node, (read.at, kind))),
            Kind::List(_, item) => Type::List(item).to_string(),
            Kind::Map(_) => Type::Map.to_string(),
            Kind::Root(name) => return Err(self.error(read.at, unfinished(name))),
        };
        Err(self.error(read.at, format!("{is} cannot stand here")))
    }

    fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth == DEPTH_MAX {
            let what = format!("the expression is nested deeper than {DEPTH_MAX}");
            return Err(self.error(self.at(), what));
        }
        self.depth += 1;
        let read = read(self);
        self.depth -= 1;
        read
    }

    fn expression(&mut self) -> Result<Read> {
        self.deeper(Self::choice)
    }

    fn choice(&mut self) -> Result<Read> {
        let condition = self.either()?;
        if !self.take("?") {
            return Ok(condition);
        }
        let at = condition.at;
        let condition = self.of_type(condition, Type::Bool)?;
        let yes = self.expression()?;
        self.expect(":")?;
        let no = self.expression()?;
        let (yes, (_, kind)) = self.any(yes)?;
        let no = self.of_type(no, kind)?;
        self.value(Node::If(condition.into(), yes.into(), no.into()), kind, at)
    }

    fn either(&mut self) -> Result<Read> {
        self.chain("||", Self::both, Node::Or)
    }

    fn both(&mut self) -> Result<Read> {
        self.chain("&&", Self::comparison, Node::And)
    }

    /// Operators of one kind nest to the left; each counts as a level, as evaluating it recurses.
    fn chain(
        &mut self,
        symbol: &str,
        operand: fn(&mut Self) -> Result<Read>,
        make: fn(Box<Node>, Box<Node>) -> Node,
    ) -> Result<Read> {
        let mut left = operand(self)?;
        let mut levels = 0;
        while self.take(symbol) {
            levels += 1;
            if self.depth + levels > DEPTH_MAX {
                let what = format!("the expression is nested deeper than {DEPTH_MAX}");
                return Err(self.error(self.at(), what));
            }
            let at = left.at;
            let right = operand(self)?;
            let left_node = self.of_type(left, Type::Bool)?;
            let right_node = self.of_type(right, Type::Bool)?;
            left = self.value(make(left_node.into(), right_node.into()), Type::Bool, at)?;
        }
        Ok(left)
    }

    fn comparison(&mut self) -> Result<Read> {
        const COMPARISONS: [(&str, Comparison); 6] = [
            ("==", Comparison::Equal),
            ("!=", Comparison::Unequal),
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::GreaterOrEqual),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
        ];
        let left = self.unary()?;
        let at = left.at;
        if *self.peek() == Token::Name("in".to_owned()) {
            self.next += 1;
            let right = self.unary()?;
            return self.membership(left, right);
        }
        let Some((_, how)) = COMPARISONS.into_iter().find(|(symbol, _)| self.take(symbol)) else {
            return Ok(left);
        };
        let right = self.unary()?;
        let (left, (_, kind)) = self.any(left)?;
        let right = self.of_type(right, kind)?;
        let orders = !matches!(how, Comparison::Equal | Comparison::Unequal);
        if orders && kind != Type::Int {
            return Err(self.error(at, format!("only numbers have an order, not {kind}")));
        }
        self.value(Node::Compare(how, left.into(), right.into()), Type::Bool, at)
    }

    fn membership(&mut self, left: Read, right: Read) -> Result<Read> {
        let at = left.at;
        let node = match right.kind {
            Kind::List(items, Item::Text) => {
                Node::OneOf(self.of_type(left, Type::Text)?.into(), items.into())
            }
            Kind::List(items, Item::Int) => {
                Node::OneOf(self.of_type(left, Type::Int)?.into(), items.into())
            }
            Kind::Map(map) => Node::Has(map, self.of_type(left, Type::Text)?.into()),
            _ => return Err(self.error(right.at, "`in` needs a list or texts by name")),
        };
        self.value(node, Type::Bool, at)
    }

    fn unary(&mut self) -> Result<Read> {
        let at = self.at();
        if self.take("!") {
            let inner = self.deeper(Self::unary)?;
            let inner = self.of_type(inner, Type::Bool)?;
            return self.value(Node::Not(inner.into()), Type::Bool, at);
        }
        if self.take("-") {
            let Token::Int(number) = *self.peek() else {
                return Err(self.error(self.at(), "a number is expected behind `-`"));
            };
            self.next += 1;
            return self.value(Node::Int(-number), Type::Int, at);
        }
        let mut read = self.primary()?;
        let mut levels = 0;
        loop {
            levels += 1;
            if self.depth + levels > DEPTH_MAX {
                return Err(self.error(self.at(), "too many calls behind each other"));
            }
            read = if self.take(".") {
                self.member(read)?
            } else if self.take("[") {
                self.lookup(read)?
            } else {
                return Ok(read);
            };
        }
    }

    fn primary(&mut self) -> Result<Read> {
        let at = self.at();
        let token = self.peek().clone();
        self.next += 1;
        match token {
            Token::Text(text) => self.value(Node::Text(text.into()), Type::Text, at),
            Token::Int(number) => self.value(Node::Int(number), Type::Int, at),
            Token::Symbol("(") => {
                let inner = self.expression()?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Symbol("[") => self.list(at),
            Token::Name(name) => self.name(&name, at),
            Token::Symbol(symbol) => {
                Err(self.error(at, format!("`{symbol}` is not expected here")))
            }
            Token::End => Err(self.error(at, "the expression ends too early")),
        }
    }

    fn name(&mut self, name: &str, at: usize) -> Result<Read> {
        match name {
            "true" | "false" => self.value(Node::Bool(name == "true"), Type::Bool, at),
            "request" => Ok(Read { kind: Kind::Root("request"), at }),
            "session" => Ok(Read { kind: Kind::Root("session"), at }),
            "size" if self.take("(") => {
                let inner = self.expression()?;
                self.expect(")")?;
                let inner = self.of_type(inner, Type::Text)?;
                self.value(Node::Size(inner.into()), Type::Int, at)
            }
            "has" if self.take("(") => self.has(at),
            _ => {
                let what = format!(
                    "`{name}` is nothing known: there are `request`, `session`, `size(…)`, \
                     `has(…)`, `true` and `false`"
                );
                Err(self.error(at, what))
            }
        }
    }

    /// `has(session.metadata.team)`.
    fn has(&mut self, at: usize) -> Result<Read> {
        let inner = self.expression()?;
        self.expect(")")?;
        match inner.kind {
            Kind::Value(Node::Lookup(map, key), _) => {
                self.value(Node::Has(map, key), Type::Bool, at)
            }
            _ => Err(self.error(inner.at, "`has` needs an entry, like session.metadata.team")),
        }
    }

    fn list(&mut self, at: usize) -> Result<Read> {
        let mut items = Vec::new();
        let mut of = None;
        while !self.take("]") {
            if !items.is_empty() {
                self.expect(",")?;
            }
            let read = self.expression()?;
            let (node, (item_at, kind)) = self.any(read)?;
            let item = match kind {
                Type::Text => Item::Text,
                Type::Int => Item::Int,
                _ => return Err(self.error(item_at, "a list holds texts or numbers")),
            };
            if *of.get_or_insert(item) != item {
                return Err(self.error(item_at, "a list holds texts or numbers, not both"));
            }
            items.push(node);
        }
        match of {
            Some(item) => Ok(Read { kind: Kind::List(items, item), at }),
            None => Err(self.error(at, "nothing is in an empty list")),
        }
    }

    fn lookup(&mut self, of: Read) -> Result<Read> {
        let key = self.expression()?;
        self.expect("]")?;
        let Kind::Map(map) = of.kind else {
            return Err(self.error(
                of.at,
                "only request.query, request.headers and session.metadata have entries",
            ));
        };
        let key = self.of_type(key, Type::Text)?;
        self.value(Node::Lookup(map, key.into()), Type::Text, of.at)
    }

    fn member(&mut self, of: Read) -> Result<Read> {
        let name_at = self.at();
        let Token::Name(name) = self.peek().clone() else {
            return Err(self.error(name_at, "a name is expected behind `.`"));
        };
        self.next += 1;
        match of.kind {
            Kind::Root(root) => self.field(root, &name, of.at),
            Kind::Map(map) => {
                let key = Node::Text(name.into());
                self.value(Node::Lookup(map, key.into()), Type::Text, of.at)
            }
            _ => self.method(of, &name, name_at),
        }
    }

    fn field(&mut self, root: &'static str, name: &str, at: usize) -> Result<Read> {
        let (field, kind) = match (root, name) {
            ("request", "query") => return Ok(self.map(Map::Query, at)),
            ("request", "headers") => return Ok(self.map(Map::Headers, at)),
            ("session", "metadata") => return Ok(self.map(Map::Metadata, at)),
            ("request", "scheme") => (Field::Scheme, Type::Text),
            ("request", "host") => (Field::Host, Type::Text),
            ("request", "port") => (Field::Port, Type::Int),
            ("request", "method") => (Field::Method, Type::Text),
            ("request", "path") => (Field::Path, Type::Text),
            ("session", "environment") => (Field::Environment, Type::Text),
            ("session", "tenant") => (Field::Tenant, Type::Text),
            ("session", "agent") => (Field::Agent, Type::Text),
            ("session", "id") => (Field::Session, Type::Text),
            ("session", "profile") => (Field::Profile, Type::Text),
            ("session", "title" | "agent_name") => {
                let what = format!(
                    "session.{name} is a text that anyone may choose; a policy's `select` may \
                     name it, where the policy opens nothing"
                );
                return Err(self.error(at, what));
            }
            _ => return Err(self.error(at, format!("`{root}.{name}`: {}", unfinished(root)))),
        };
        self.needs_http |= matches!(field, Field::Method | Field::Path);
        self.value(Node::Field(field), kind, at)
    }

    fn map(&mut self, map: Map, at: usize) -> Read {
        self.needs_http |= map != Map::Metadata;
        Read { kind: Kind::Map(map), at }
    }

    /// `text.startsWith("x")` and its like.
    fn method(&mut self, of: Read, name: &str, name_at: usize) -> Result<Read> {
        let at = of.at;
        let of = self.of_type(of, Type::Text)?;
        self.expect("(")?;
        let test = match name {
            "size" | "lowerAscii" => {
                self.expect(")")?;
                return match name {
                    "size" => self.value(Node::Size(of.into()), Type::Int, at),
                    _ => self.value(Node::Lower(of.into()), Type::Text, at),
                };
            }
            "matches" => return self.matches(of, at),
            "contains" => TextTest::Contains,
            "startsWith" => TextTest::StartsWith,
            "endsWith" => TextTest::EndsWith,
            _ => {
                let what = format!(
                    "a text has no `{name}`: there are contains, startsWith, endsWith, matches, \
                     lowerAscii and size"
                );
                return Err(self.error(name_at, what));
            }
        };
        let argument = self.expression()?;
        self.expect(")")?;
        let argument = self.of_type(argument, Type::Text)?;
        self.value(Node::Call(test, of.into(), argument.into()), Type::Bool, at)
    }

    fn matches(&mut self, of: Node, at: usize) -> Result<Read> {
        let pattern_at = self.at();
        let Token::Text(pattern) = self.peek().clone() else {
            return Err(self.error(pattern_at, "`matches` needs a regular expression written out"));
        };
        self.next += 1;
        self.expect(")")?;
        if pattern.len() > REGEX_BYTES_MAX {
            let what = format!("the regular expression is longer than {REGEX_BYTES_MAX} bytes");
            return Err(self.error(pattern_at, what));
        }
        let regex = RegexBuilder::new(&pattern)
            .size_limit(REGEX_COMPILED_BYTES_MAX)
            .dfa_size_limit(REGEX_COMPILED_BYTES_MAX)
            .build()
            .map_err(|_| self.error(pattern_at, "the regular expression is wrong or too large"))?;
        self.value(Node::Matches(of.into(), regex), Type::Bool, at)
    }
}

/// What there is behind that root.
fn unfinished(root: &str) -> String {
    let names = NAMES.iter().map(|(name, _)| *name).filter(|name| name.starts_with(root));
    format!("there are {}", names.collect::<Vec<_>>().join(", "))
}
