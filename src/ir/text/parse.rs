//! Tokens to [`syntax`](super::syntax).

use super::{
    elements,
    lexer::{self, Token},
    syntax::{
        ATTRIBUTE_TYPES, AttrText, AttrTextValue, FunctionText, GraphText, Header, ModelText, NodeText, ValueText,
    },
    type_proto,
};
use crate::{
    error::{Error, Result},
    ir::{DType, Dim, Shape, Tensor, Type, types::TypeKind},
};

/// Graphs and types may contain each other this deep.
const DEEPEST: usize = 64;
/// The opset and IR version of a text that does not say them.
const DEFAULT_OPSET: i64 = 21;
const DEFAULT_IR_VERSION: i64 = 10;

/// Parses a model.
pub(super) fn model(text: &str) -> Result<ModelText> {
    let mut p = Parser { text, tokens: lexer::tokens(text)?, at: 0, depth: 0 };
    let mut header = p.header()?;
    header.ir_version.get_or_insert(DEFAULT_IR_VERSION);
    header.opset_imports.get_or_insert_with(|| vec![(Some(String::new()), DEFAULT_OPSET)]);
    let graph = p.graph()?;
    let mut functions = Vec::new();
    while *p.peek() != Token::End {
        functions.push(p.function()?);
    }
    Ok(ModelText { header, graph, functions })
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<(Token, usize)>,
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn peek(&self) -> &Token {
        self.look(0)
    }

    fn look(&self, ahead: usize) -> &Token {
        self.tokens.get(self.at + ahead).map_or(&Token::End, |(t, _)| t)
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    fn error<T>(&self, what: &str) -> Result<T> {
        Err(lexer::error(self.text, self.tokens[self.at].1, what))
    }

    fn expected<T>(&self, what: &str) -> Result<T> {
        self.error(&match self.peek() {
            Token::Ellipsis => "the text is abbreviated: \"...\" stands for what was left out".to_owned(),
            found => format!("expected {what}, found {found}"),
        })
    }

    /// Adds the current place to an error.
    fn placed<T>(&self, result: Result<T>) -> Result<T> {
        result.or_else(|e| self.error(e.message()))
    }

    fn takes(&mut self, sign: char) -> bool {
        let there = self.is(sign);
        if there {
            self.next();
        }
        there
    }

    fn is(&self, sign: char) -> bool {
        *self.peek() == Token::Sign(sign)
    }

    fn sign(&mut self, sign: char) -> Result<()> {
        if self.takes(sign) { Ok(()) } else { self.expected(&format!("{:?}", sign.to_string())) }
    }

    fn arrow(&mut self) -> Result<()> {
        match self.peek() {
            Token::Arrow => {
                self.next();
                Ok(())
            }
            _ => self.expected("\"=>\""),
        }
    }

    fn is_name(&self) -> bool {
        matches!(self.peek(), Token::Word(_) | Token::Quoted(_))
    }

    fn name(&mut self, what: &str) -> Result<String> {
        match self.peek().clone() {
            Token::Word(name) | Token::Quoted(name) => {
                self.next();
                Ok(name)
            }
            _ => self.expected(what),
        }
    }

    fn quoted(&mut self) -> Result<String> {
        match self.peek().clone() {
            Token::Quoted(s) => {
                self.next();
                Ok(s)
            }
            _ => self.expected("a string"),
        }
    }

    fn int(&mut self) -> Result<i64> {
        match self.peek() {
            Token::Number(n) => match n.parse() {
                Ok(n) => {
                    self.next();
                    Ok(n)
                }
                Err(_) => self.expected("a whole number"),
            },
            _ => self.expected("a whole number"),
        }
    }

    fn deeper<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return self.error(&format!("graphs or types are nested more than {DEEPEST} deep"));
        }
        let done = inner(self);
        self.depth -= 1;
        done
    }

    /// Items with commas between them, up to the closing sign. A comma may stand behind the last.
    fn list<T>(&mut self, close: char, mut item: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let mut items = Vec::new();
        while !self.takes(close) {
            items.push(item(self)?);
            if !self.takes(',') && !self.is(close) {
                return self.expected(&format!("\",\" or {:?}", close.to_string()));
            }
        }
        Ok(items)
    }

    fn header(&mut self) -> Result<Header> {
        let mut h = Header::default();
        if !self.takes('<') {
            return Ok(h);
        }
        self.list('>', |p| {
            let key = p.name("a key of the header")?;
            p.sign(':')?;
            match key.as_str() {
                "ir_version" => h.ir_version = Some(p.int()?),
                "model_version" => h.model_version = Some(p.int()?),
                "producer_name" => h.producer_name = Some(p.quoted()?),
                "producer_version" => h.producer_version = Some(p.quoted()?),
                "domain" => h.domain = Some(p.quoted()?),
                "overload" => h.overload = Some(p.quoted()?),
                "doc_string" => h.doc_string = Some(p.quoted()?),
                "opset_import" => {
                    p.sign('[')?;
                    let imports = p.list(']', |p| {
                        let domain = p.quoted()?;
                        p.sign(':')?;
                        Ok((Some(domain), p.int()?))
                    })?;
                    h.opset_imports = Some(imports);
                }
                "metadata_props" => {
                    p.sign('[')?;
                    h.metadata_props = p.list(']', |p| {
                        let key = p.quoted()?;
                        p.sign(':')?;
                        Ok((key, p.quoted()?))
                    })?;
                }
                other => return p.error(&format!("the header has no key {other:?}")),
            }
            Ok(())
        })?;
        Ok(h)
    }

    fn graph(&mut self) -> Result<GraphText> {
        let name = if self.is_name() { Some(self.name("the graph's name")?) } else { None };
        self.graph_behind(name)
    }

    fn graph_behind(&mut self, name: Option<String>) -> Result<GraphText> {
        self.deeper(|p| {
            p.sign('(')?;
            let inputs = p.list(')', Self::value)?;
            p.arrow()?;
            p.sign('(')?;
            let outputs = p.list(')', Self::value)?;
            let values = if p.takes('<') { p.list('>', Self::value)? } else { Vec::new() };
            p.sign('{')?;
            let mut nodes = Vec::new();
            while !p.takes('}') {
                nodes.push(p.node()?);
            }
            Ok(GraphText { name, inputs, outputs, values, nodes })
        })
    }

    fn function(&mut self) -> Result<FunctionText> {
        let header = self.header()?;
        let name = self.name("the function's name")?;
        let (mut attributes, mut defaults) = (Vec::new(), Vec::new());
        if self.takes('<') {
            self.list('>', |p| {
                if matches!(p.look(1), Token::Sign(':' | '=')) {
                    defaults.push(p.attribute()?);
                } else {
                    attributes.push(p.name("an attribute's name")?);
                }
                Ok(())
            })?;
        }
        let body = self.graph_behind(Some(name))?;
        Ok(FunctionText { header, attributes, defaults, body })
    }

    /// `type? name (= {…})?`
    fn value(&mut self) -> Result<ValueText> {
        let ty = self.optional_type()?;
        let name = self.name("a value's name")?;
        let initial = if self.takes('=') {
            let Some(ty) = &ty else { return self.error("an initial value needs a type in front of its name") };
            Some(self.elements(ty)?)
        } else {
            None
        };
        Ok(ValueText { ty, name, initial })
    }

    fn optional_type(&mut self) -> Result<Option<Type>> {
        let Token::Word(word) = self.peek() else { return Ok(None) };
        let contains = matches!(word.as_str(), "seq" | "map" | "optional" | "sparse_tensor");
        if dtype(word).is_some() || contains && *self.look(1) == Token::Sign('(') {
            self.ty().map(Some)
        } else {
            Ok(None)
        }
    }

    fn ty(&mut self) -> Result<Type> {
        let word = self.name("a type")?;
        if let Some(dtype) = dtype(&word) {
            return Ok(Type::tensor(dtype, self.shape()?));
        }
        self.sign('(')?;
        let ty = self.deeper(|p| match word.as_str() {
            "seq" => Ok(type_proto::wrap(type_proto::SEQUENCE, &p.ty()?)),
            "optional" => Ok(type_proto::wrap(type_proto::OPTIONAL, &p.ty()?)),
            "sparse_tensor" => Ok(type_proto::sparse(&p.ty()?)),
            "map" => {
                let key = p.name("the type of the map's keys")?;
                let Some(key) = dtype(&key) else { return p.error(&format!("{key:?} is no type of map keys")) };
                p.sign(',')?;
                Ok(type_proto::map(key, &p.ty()?))
            }
            other => p.error(&format!("{other:?} is no type")),
        })?;
        self.sign(')')?;
        Ok(ty)
    }

    /// Nothing is a scalar, `[]` an unknown rank.
    fn shape(&mut self) -> Result<Option<Shape>> {
        if !self.takes('[') {
            return Ok(Some(Shape::default()));
        }
        let dims = self.list(']', |p| {
            if p.takes('?') {
                Ok(Dim::Unknown)
            } else if p.is_name() {
                Ok(Dim::Named(p.name("a dim")?))
            } else {
                Ok(Dim::Known(p.int()?))
            }
        })?;
        Ok((!dims.is_empty()).then(|| Shape::new(dims)))
    }

    /// `{…}` for a tensor of this type.
    fn elements(&mut self, ty: &Type) -> Result<Tensor> {
        let TypeKind::Tensor { dtype: Some(dtype), shape } = &ty.kind else {
            return self.error("only tensors can have elements");
        };
        if self.is('[') {
            return self.error("elements in external files can be read from model files only");
        }
        self.sign('{')?;
        let known = match shape {
            None => None,
            Some(s) => match s.known() {
                Some(dims) => Some(dims),
                None => return self.error("a tensor with elements needs a shape of numbers"),
            },
        };
        if *dtype == DType::String {
            let items = self.list('}', Self::quoted)?;
            let dims = known.unwrap_or_else(|| vec![items.len()]);
            let made = elements::strings(dims, items);
            return self.placed(made);
        }
        let items = self.list('}', |p| match p.peek().clone() {
            Token::Number(n) | Token::Word(n) => {
                p.next();
                Ok(n)
            }
            _ => p.expected("a number"),
        })?;
        let dims = known.unwrap_or_else(|| vec![items.len()]);
        let made = elements::numbers(*dtype, dims, &items);
        self.placed(made)
    }

    fn node(&mut self) -> Result<NodeText> {
        let mut name = None;
        if self.takes('[') {
            name = Some(self.name("the node's name")?);
            self.sign(']')?;
        }
        let mut outputs = Vec::new();
        while !self.takes('=') {
            if self.is(',') {
                outputs.push(ValueText { ty: None, name: String::new(), initial: None });
            } else {
                let ty = self.optional_type()?;
                let name = self.name("the name of the node's output")?;
                outputs.push(ValueText { ty, name, initial: None });
            }
            if !self.takes(',') && !self.is('=') {
                return self.expected("\",\" or \"=\"");
            }
        }
        let mut domain: Option<String> = None;
        let mut op_type = self.name("an operator")?;
        while self.takes('.') {
            let before = domain.map_or(op_type.clone(), |d| format!("{d}.{op_type}"));
            domain = Some(before);
            op_type = self.name("an operator")?;
        }
        let overload = if self.takes(':') { Some(self.name("an overload")?) } else { None };
        let mut attributes = self.attributes()?;
        self.sign('(')?;
        let inputs = self.list(')', |p| if p.is(',') { Ok(String::new()) } else { p.name("the name of a value") })?;
        attributes.extend(self.attributes()?);
        Ok(NodeText { name, outputs, domain, op_type, overload, attributes, inputs })
    }

    fn attributes(&mut self) -> Result<Vec<AttrText>> {
        if self.takes('<') { self.list('>', Self::attribute) } else { Ok(Vec::new()) }
    }

    fn attribute(&mut self) -> Result<AttrText> {
        let name = self.name("an attribute's name")?;
        let mut kind = None;
        if self.takes(':') {
            let word = self.name("an attribute's type")?;
            kind = ATTRIBUTE_TYPES.iter().position(|t| *t == word);
            if kind.is_none() {
                return self.error(&format!("{word:?} is no type of attributes"));
            }
        }
        self.sign('=')?;
        if self.takes('@') {
            let referred = self.name("an attribute's name")?;
            return Ok(AttrText { name, value: AttrTextValue::Reference(referred, kind.unwrap_or(0) as i32) });
        }
        let kind = kind.map(|k| ATTRIBUTE_TYPES[k]);
        let value = if self.takes('[') {
            let items = self.list(']', |p| p.attribute_item(None))?;
            collect(items, kind)
        } else {
            match (self.attribute_item(kind)?, kind) {
                (AttrTextValue::Int(i), Some("float")) => Ok(AttrTextValue::Float(i as f32)),
                (value, _) => Ok(value),
            }
        };
        let value = self.placed(value)?;
        Ok(AttrText { name, value })
    }

    fn attribute_item(&mut self, kind: Option<&str>) -> Result<AttrTextValue> {
        match self.peek().clone() {
            Token::Quoted(s) if *self.look(1) != Token::Sign('(') => {
                self.next();
                Ok(AttrTextValue::String(s))
            }
            Token::Number(n) => {
                let value = match n.parse::<i64>() {
                    Ok(i) if kind != Some("float") => Some(AttrTextValue::Int(i)),
                    _ => n.parse().ok().map(AttrTextValue::Float),
                };
                let Some(value) = value else { return self.expected("a number") };
                self.next();
                Ok(value)
            }
            Token::Word(w) if matches!(w.as_str(), "inf" | "nan") && *self.look(1) != Token::Sign('(') => {
                self.next();
                Ok(AttrTextValue::Float(if w == "inf" { f32::INFINITY } else { f32::NAN }))
            }
            _ => match self.optional_type()? {
                Some(ty) if self.is('{') || self.is('=') || self.is_name() => {
                    let name = if self.is_name() { Some(self.name("the tensor's name")?) } else { None };
                    self.takes('=');
                    Ok(AttrTextValue::Tensor(self.elements(&ty)?, name))
                }
                Some(ty) => Ok(AttrTextValue::Type(ty)),
                None => Ok(AttrTextValue::Graph(Box::new(self.graph()?))),
            },
        }
    }
}

/// The value of a list of items, which must be alike.
fn collect(items: Vec<AttrTextValue>, kind: Option<&str>) -> Result<AttrTextValue> {
    use AttrTextValue::*;
    macro_rules! all {
        ($of:ident, $pattern:pat => $value:expr) => {{
            let make = |i| match i {
                $pattern => Ok($value),
                _ => Err(Error::malformed("a list holds values of different types")),
            };
            Ok($of(items.into_iter().map(make).collect::<Result<_>>()?))
        }};
    }
    let kind = kind.unwrap_or(match items.first() {
        None | Some(Int(_)) if !items.iter().any(|i| matches!(i, Float(_))) => "ints",
        Some(Int(_) | Float(_)) => "floats",
        Some(String(_)) => "strings",
        Some(Tensor(..)) => "tensors",
        _ => "graphs",
    });
    if kind == "floats" {
        let make = |i| match i {
            Float(f) => Ok(f),
            Int(i) => Ok(i as f32),
            _ => Err(Error::malformed("a list holds values of different types")),
        };
        return Ok(Floats(items.into_iter().map(make).collect::<Result<_>>()?));
    }
    match kind {
        "ints" => all!(Ints, Int(i) => i),
        "strings" => all!(Strings, String(s) => s),
        "tensors" => all!(Tensors, Tensor(t, n) => (t, n)),
        "graphs" => all!(Graphs, Graph(g) => *g),
        other => Err(Error::malformed(format!("an attribute of type {other:?} cannot be a list"))),
    }
}

fn dtype(word: &str) -> Option<DType> {
    DType::ALL.iter().copied().find(|d| d.name() == word)
}
