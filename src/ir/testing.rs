//! Small models for tests, from lines in the manner of ONNX's textual syntax:
//!
//! ```text
//! float[b,3] x                         a graph input; dims are numbers, names, or ? for nothing
//! float[2] w = {1, 2}                  an initializer (float, int64, int32 and bool)
//! y, z = Split <axis = 1, f = 0.5> (x, w)
//! return y, z
//! ```
//!
//! `_` is an input or output that is left out.

use super::{Attr, AttrValue, DType, Dim, Model, NodeSpec, Place, Shape, Tensor, Type, ValueId};

/// The model that the lines describe, of opset 18. Panics where they make no sense.
pub fn model(text: &str) -> Model {
    let mut m = Model::new(8);
    m.set_opset("", 18);
    let g = m.main();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty()) {
        if let Some(names) = line.strip_prefix("return ") {
            for name in names.split(',') {
                let v = find(&m, name.trim());
                m.add_output(g, v);
            }
        } else if let Some((outputs, call)) = line.split_once(" = ").filter(|(_, c)| !c.starts_with('{')) {
            let (head, inputs) = call.rsplit_once('(').expect("a node has inputs in parentheses");
            let (op, attrs) = head.split_once('<').unwrap_or((head, ">"));
            let (domain, op) = op.trim().rsplit_once('.').unwrap_or(("", op.trim()));
            let mut spec = NodeSpec::new(op).domain(domain).attrs(attributes(attrs.trim().trim_end_matches('>')));
            for name in names(inputs.trim_end_matches(')')) {
                spec = spec.inputs([(name != "_").then(|| find(&m, name))]);
            }
            for name in names(outputs) {
                spec = if name == "_" { spec.output_value(None) } else { spec.output(name) };
            }
            m.insert(spec, Place::End(g));
        } else {
            declaration(&mut m, line);
        }
    }
    m.verify().expect("the text is a sound model");
    m
}

/// The value of this name in the main graph.
pub fn find(m: &Model, name: &str) -> ValueId {
    m.find_value(m.main(), name).unwrap_or_else(|| panic!("no value {name:?}"))
}

/// The nodes of the main graph in order, as `y = Op(x)`, joined by `; `. Constants stand as their elements.
pub fn text(m: &Model) -> String {
    let name = |v: &Option<ValueId>| match v {
        None => "_".to_owned(),
        Some(v) => match m.value(*v).constant() {
            Some(t) => {
                let e = t.to_i64().map(|v| format!("{v:?}")).or_else(|_| t.to_f32().map(|v| format!("{v:?}")));
                e.unwrap_or_else(|_| m.value(*v).name().to_owned())
            }
            None => m.value(*v).name().to_owned(),
        },
    };
    let node = |n| {
        let n = m.node(n);
        let list = |v: &[Option<ValueId>]| v.iter().map(name).collect::<Vec<_>>().join(", ");
        format!("{} = {}({})", list(n.outputs()), n.op_type, list(n.inputs()))
    };
    m.nodes(m.main()).into_iter().map(node).collect::<Vec<_>>().join("; ")
}

fn names(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|s| !s.is_empty())
}

fn declaration(m: &mut Model, line: &str) {
    let (ty, rest) = line.split_once(']').expect("a type has dims in brackets");
    let (dtype, dims) = ty.split_once('[').expect("a type has dims in brackets");
    let dtype = *DType::ALL.iter().find(|d| d.name() == dtype).expect("a known type");
    let g = m.main();
    let (name, elements) = match rest.split_once('=') {
        Some((name, elements)) => (name.trim(), Some(elements.trim().trim_matches(['{', '}']))),
        None => (rest.trim(), None),
    };
    let v = m.declare_value(g, name);
    let Some(elements) = elements else {
        let dim = |d: &str| match d.parse() {
            Ok(n) => Dim::Known(n),
            Err(_) if d == "?" => Dim::Unknown,
            Err(_) => Dim::Named(d.to_owned()),
        };
        m.value_mut(v).ty = Some(Type::tensor(dtype, Some(Shape::new(names(dims).map(dim).collect()))));
        return m.add_input(v);
    };
    let dims: Vec<usize> = names(dims).map(|d| d.parse().expect("constant dims are numbers")).collect();
    let bytes: Vec<u8> = names(elements)
        .flat_map(|e| match dtype {
            DType::Float => e.parse::<f32>().expect("a float").to_le_bytes().to_vec(),
            DType::Int32 => e.parse::<i32>().expect("an int32").to_le_bytes().to_vec(),
            DType::Bool => vec![u8::from(e == "1")],
            _ => e.parse::<i64>().expect("an int64").to_le_bytes().to_vec(),
        })
        .collect();
    m.set_initializer(v, Some(Tensor::new(dtype, dims, bytes).expect("as many elements as the dims ask for")));
}

fn attributes(mut text: &str) -> Vec<Attr> {
    let mut attrs = Vec::new();
    while let Some((name, rest)) = text.split_once('=') {
        let rest = rest.trim_start();
        let end = if rest.starts_with('[') {
            rest.find(']').expect("a closed list") + 1
        } else {
            rest.find(',').unwrap_or(rest.len())
        };
        let (value, more) = rest.split_at(end);
        let value = value.trim();
        let value: AttrValue = if let Some(list) = value.strip_prefix('[') {
            let list: Vec<i64> = names(list.trim_end_matches(']')).map(|n| n.parse().expect("an integer")).collect();
            list.into()
        } else if let Some(word) = value.strip_prefix('"') {
            word.trim_end_matches('"').into()
        } else {
            value.parse().map_or_else(|_| value.parse::<f32>().expect("a number").into(), AttrValue::Int)
        };
        attrs.push(Attr::new(name.trim().trim_start_matches(',').trim(), value));
        text = more;
    }
    attrs
}
