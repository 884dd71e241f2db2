//! [`Model`] to text, in the layout of `onnx.printer`.

use std::fmt::Write;

use super::{
    elements,
    syntax::ATTRIBUTE_TYPES,
    type_proto::{self, Parts},
};
use crate::ir::{
    Attr, AttrValue, DType, Dim, Function, GraphId, Model, NodeId, Tensor, TensorData, Type, ValueId,
    attr::NamedTensor, types::TypeKind,
};

/// How to print.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrintOptions {
    /// Print at most so many elements of a tensor and `...` for the others; `None` prints all.
    pub max_elements: Option<usize>,
    /// Print the names of nodes.
    pub node_names: bool,
    /// Print the declared types of values that are neither inputs nor outputs.
    pub value_info: bool,
    /// Initializers in the order of their names instead of the file's.
    pub sort_initializers: bool,
}

impl Default for PrintOptions {
    fn default() -> Self {
        Self { max_elements: None, node_names: true, value_info: true, sort_initializers: false }
    }
}

/// The text of a whole model.
pub fn print_with(model: &Model, options: &PrintOptions) -> String {
    let mut p = Printer { model, options, out: String::new() };
    p.header();
    let main = model.main();
    p.word(model.graph(main).name.as_deref());
    p.signature(main);
    p.values(main, "\n   ");
    p.out.push('\n');
    p.body(main, 0);
    p.out.push('\n');
    for f in &model.functions {
        p.function(f);
    }
    p.out
}

struct Printer<'a> {
    model: &'a Model,
    options: &'a PrintOptions,
    out: String,
}

impl Printer<'_> {
    fn put(&mut self, text: &str) {
        self.out.push_str(text);
    }

    fn word(&mut self, name: Option<&str>) {
        if let Some(name) = name.filter(|n| !n.is_empty()) {
            self.put(&id(name));
            self.out.push(' ');
        }
    }

    fn header(&mut self) {
        let m = self.model;
        let mut keys = vec![format!("ir_version: {}", m.ir_version), imports(&m.opset_imports)];
        keys.extend(m.info.producer_name.as_ref().map(|s| format!("producer_name: {}", quote(s))));
        keys.extend(m.info.producer_version.as_ref().map(|s| format!("producer_version: {}", quote(s))));
        keys.extend(m.info.domain.as_ref().map(|s| format!("domain: {}", quote(s))));
        keys.extend(m.info.model_version.map(|v| format!("model_version: {v}")));
        keys.extend(m.info.doc_string.as_ref().map(|s| format!("doc_string: {}", quote(s))));
        keys.extend(props(&m.info.metadata_props));
        let _ = writeln!(self.out, "<\n   {}\n>", keys.join(",\n   "));
    }

    fn function(&mut self, f: &Function) {
        let mut keys: Vec<String> = f.domain.iter().map(|s| format!("domain: {}", quote(s))).collect();
        keys.extend(f.overload.as_ref().map(|s| format!("overload: {}", quote(s))));
        keys.push(imports(&f.opset_imports));
        keys.extend(f.doc_string.as_ref().map(|s| format!("doc_string: {}", quote(s))));
        keys.extend(props(&f.metadata_props));
        let _ = writeln!(self.out, "<\n   {}\n>", keys.join(",\n   "));
        self.word(f.name.as_deref());
        if !f.attributes.is_empty() || !f.attribute_defaults.is_empty() {
            let names = f.attributes.iter().map(|a| id(a)).collect::<Vec<_>>().join(", ");
            self.put("<");
            self.put(&names);
            for (i, a) in f.attribute_defaults.iter().enumerate() {
                self.put(if i > 0 || !names.is_empty() { ", " } else { "" });
                self.attribute(a, 0);
            }
            self.put("> ");
        }
        self.signature(f.graph);
        self.values(f.graph, "\n   ");
        self.out.push('\n');
        self.body(f.graph, 0);
        self.out.push('\n');
    }

    fn signature(&mut self, g: GraphId) {
        let (m, graph) = (self.model, self.model.graph(g));
        let list = |vs: &[ValueId], with_type: &dyn Fn(ValueId) -> bool| {
            vs.iter().map(|&v| value(m, v, with_type(v))).collect::<Vec<_>>().join(", ")
        };
        // An input that is handed out as well has its type on the left already.
        let inputs = list(graph.inputs(), &|_| true);
        let outputs = list(graph.outputs(), &|v| m.value(v).graph() == g && !m.value(v).is_input());
        let _ = write!(self.out, "({inputs}) => ({outputs})");
    }

    /// Initializers, and types of values that are neither inputs nor outputs.
    fn values(&mut self, g: GraphId, before: &str) {
        let m = self.model;
        let mut initializers = m.graph(g).initializers().to_vec();
        if self.options.sort_initializers {
            initializers.sort_by_key(|&v| m.value(v).name());
        }
        let mut items = Vec::new();
        for v in initializers {
            let value = m.value(v);
            match value.initializer() {
                Some(t) => items.push(self.tensor(t, Some(value.name()), true)),
                None => items.push(format!("sparse_tensor {} = ...", id(value.name()))),
            }
        }
        let shown = |v: &&ValueId| {
            let value = m.value(**v);
            let said = value.is_input() || value.initializer().is_some() || m.graph(g).outputs().contains(v);
            value.ty.is_some() && !said
        };
        if self.options.value_info {
            items.extend(m.graph(g).value_info().iter().filter(shown).map(|&v| self::value(m, v, true)));
        }
        if !items.is_empty() {
            let _ = write!(self.out, "{before}<{}>", items.join(", "));
        }
    }

    fn body(&mut self, g: GraphId, indent: usize) {
        self.put("{\n");
        for n in self.model.nodes(g) {
            let _ = write!(self.out, "{:1$}", "", indent + 3);
            self.node(n, indent + 3);
            self.out.push('\n');
        }
        let _ = write!(self.out, "{:1$}}}", "", indent);
    }

    fn node(&mut self, n: NodeId, indent: usize) {
        let (m, node) = (self.model, self.model.node(n));
        let names = |vs: &[Option<ValueId>]| {
            let name = |v: &Option<ValueId>| v.map_or_else(|| "\"\"".to_owned(), |v| id(m.value(v).name()));
            vs.iter().map(name).collect::<Vec<_>>().join(", ")
        };
        if let Some(name) = node.name.as_ref().filter(|n| self.options.node_names && !n.is_empty()) {
            let _ = write!(self.out, "[{}] ", id(name));
        }
        let _ = write!(self.out, "{} = ", names(node.outputs()));
        if let Some(domain) = node.domain.as_ref().filter(|d| !d.is_empty()) {
            let _ = write!(self.out, "{}.", domain_id(domain));
        }
        self.put(&id(&node.op_type));
        if let Some(overload) = node.overload.as_ref().filter(|o| !o.is_empty()) {
            let _ = write!(self.out, ":{}", id(overload));
        }
        for (i, a) in node.attributes.iter().enumerate() {
            self.put(if i > 0 { ", " } else { " <" });
            self.attribute(a, indent);
        }
        self.put(if node.attributes.is_empty() { " " } else { "> " });
        let _ = write!(self.out, "({})", names(node.inputs()));
    }

    fn attribute(&mut self, a: &Attr, indent: usize) {
        let numbers = |items: Vec<String>| format!("[{}]", items.join(", "));
        let (kind, text) = match &a.value {
            AttrValue::Float(f) => (1, elements::short(f)),
            AttrValue::Int(i) => (2, i.to_string()),
            AttrValue::String(s) => (3, quote(&String::from_utf8_lossy(s))),
            AttrValue::Tensor(t) => (4, self.named(t)),
            AttrValue::Floats(v) => (6, numbers(v.iter().map(elements::short).collect())),
            AttrValue::Ints(v) => (7, numbers(v.iter().map(i64::to_string).collect())),
            AttrValue::Strings(v) => (8, numbers(v.iter().map(|s| quote(&String::from_utf8_lossy(s))).collect())),
            AttrValue::Tensors(v) => (9, numbers(v.iter().map(|t| self.named(t)).collect())),
            AttrValue::Reference(name, kind) => (*kind as usize, format!("@{}", id(name))),
            AttrValue::Other(bytes) => match type_proto::attribute_type(bytes) {
                Some(t) => (13, type_text(&t)),
                None => (0, "...".to_owned()),
            },
            AttrValue::Graph(_) => (5, String::new()),
            AttrValue::Graphs(_) => (10, String::new()),
        };
        let _ = write!(self.out, "{}: {} = {text}", id(&a.name), ATTRIBUTE_TYPES.get(kind).unwrap_or(&"undefined"));
        let many = matches!(a.value, AttrValue::Graphs(_));
        self.put(if many { "[" } else { "" });
        for (i, &g) in a.graphs().iter().enumerate() {
            self.put(if i > 0 { ", " } else { "" });
            self.word(self.model.graph(g).name.as_deref());
            self.signature(g);
            self.values(g, " ");
            self.put(" ");
            self.body(g, indent);
        }
        self.put(if many { "]" } else { "" });
    }

    fn named(&self, t: &NamedTensor) -> String {
        let name = t.name.as_deref().filter(|n| !n.is_empty());
        self.tensor(&t.tensor, name, name.is_some())
    }

    fn tensor(&self, t: &Tensor, name: Option<&str>, equals: bool) -> String {
        let dims = t.dims().iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let mut out = t.dtype().to_string();
        if t.rank() > 0 {
            let _ = write!(out, "[{dims}]");
        }
        if let Some(name) = name {
            let _ = write!(out, " {}", id(name));
        }
        out + if equals { " = " } else { " " } + &self.elements(t)
    }

    fn elements(&self, t: &Tensor) -> String {
        let pair = if matches!(t.dtype(), DType::Complex64 | DType::Complex128) { 2 } else { 1 };
        let whole = t.len().saturating_mul(pair);
        let limit = self.options.max_elements.unwrap_or(usize::MAX).min(whole);
        let mut items = match t.data() {
            TensorData::Strings(s) => s.iter().take(limit).map(|s| quote(&String::from_utf8_lossy(s))).collect(),
            // What is computed on demand is expensive: not for a handful of numbers.
            TensorData::Deferred(_) if limit < whole => Vec::new(),
            _ => t.bytes().map_or_else(|_| Vec::new(), |b| elements::print(t.dtype(), &b, limit)),
        };
        if items.len() < whole {
            items.push("...".to_owned());
        }
        format!("{{{}}}", items.join(", "))
    }
}

fn value(m: &Model, v: ValueId, with_type: bool) -> String {
    let value = m.value(v);
    match value.ty.as_ref().filter(|_| with_type).map(type_text) {
        Some(t) if !t.is_empty() => format!("{t} {}", id(value.name())),
        _ => id(value.name()),
    }
}

/// A type; empty where there is no text for it.
fn type_text(t: &Type) -> String {
    match &t.kind {
        TypeKind::Tensor { dtype: None, .. } => String::new(),
        TypeKind::Tensor { dtype: Some(d), shape: None } => format!("{d}[]"),
        TypeKind::Tensor { dtype: Some(d), shape: Some(s) } if s.dims.is_empty() => d.to_string(),
        TypeKind::Tensor { dtype: Some(d), shape: Some(s) } => {
            let dim = |d: &Dim| match d {
                Dim::Unknown => "?".to_owned(),
                Dim::Known(n) => n.to_string(),
                Dim::Named(name) => id(name),
            };
            format!("{d}[{}]", s.dims.iter().map(dim).collect::<Vec<_>>().join(","))
        }
        TypeKind::Other(bytes) => match type_proto::parts(bytes) {
            Parts::Wrap(type_proto::SEQUENCE, t) => format!("seq({})", type_text(&t)),
            Parts::Wrap(type_proto::OPTIONAL, t) => format!("optional({})", type_text(&t)),
            Parts::Wrap(_, t) => format!("sparse_tensor({})", type_text(&t)),
            Parts::Map(Some(key), value) => format!("map({key}, {})", type_text(&value)),
            _ => String::new(),
        },
    }
}

fn imports(imports: &[(Option<String>, i64)]) -> String {
    let import = |(domain, version): &(Option<String>, i64)| {
        format!("{} : {version}", quote(domain.as_deref().unwrap_or_default()))
    };
    format!("opset_import: [{}]", imports.iter().map(import).collect::<Vec<_>>().join(", "))
}

fn props(props: &[(String, String)]) -> Option<String> {
    let pairs = props.iter().map(|(k, v)| format!("{} : {}", quote(k), quote(v))).collect::<Vec<_>>();
    (!props.is_empty()).then(|| format!("metadata_props: [{}]", pairs.join(", ")))
}

/// A bare word where ONNX's parser takes one, else in quotes. Words for types are always quoted.
fn id(name: &str) -> String {
    let mut chars = name.chars();
    let first = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    let word = first && chars.all(|c| c.is_ascii_alphanumeric() || c == '_');
    let is_type = DType::ALL.iter().any(|d| d.name() == name);
    if word && !is_type { name.to_owned() } else { quote(name) }
}

/// Domains are words with dots between them.
fn domain_id(domain: &str) -> String {
    let parts: Vec<String> = domain.split('.').map(id).collect();
    if parts.iter().any(|p| p.starts_with('"')) { quote(domain) } else { parts.join(".") }
}

fn quote(s: &str) -> String {
    format!("\"{}\"", s.replace('\\', "\\\\").replace('"', "\\\""))
}
