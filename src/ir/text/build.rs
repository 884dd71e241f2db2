//! [`syntax`](super::syntax) to [`Model`]: names become handles.

use bytes::Bytes;

use super::{
    syntax::{AttrText, AttrTextValue, FunctionText, GraphText, ModelText, NodeText, ValueText},
    type_proto,
};
use crate::{
    error::{Error, Result},
    ir::{
        Attr, AttrValue, Function, GraphId, Model, NodeSpec, Place, Tensor, ValueId, attr::NamedTensor,
        model::ModelInfo, scopes::Scopes,
    },
};

/// Builds the model.
pub(super) fn model(text: ModelText) -> Result<Model> {
    let h = text.header;
    let mut model = Model::new(h.ir_version.unwrap_or_default());
    model.opset_imports = h.opset_imports.unwrap_or_default();
    model.info = ModelInfo {
        producer_name: h.producer_name,
        producer_version: h.producer_version,
        domain: h.domain,
        model_version: h.model_version,
        doc_string: h.doc_string,
        metadata_props: h.metadata_props,
        ..ModelInfo::default()
    };
    let main = model.main();
    let mut builder = Builder { model, scopes: Scopes::default() };
    builder.graph(text.graph, main)?;
    for f in text.functions {
        let function = builder.function(f)?;
        builder.model.functions.push(function);
    }
    Ok(builder.model)
}

struct Builder {
    model: Model,
    scopes: Scopes,
}

impl Builder {
    fn function(&mut self, mut f: FunctionText) -> Result<Function> {
        let name = f.body.name.take();
        let graph = self.model.add_graph();
        self.graph(f.body, graph).map_err(|e| e.graph(name.clone().unwrap_or_default()))?;
        let defaults = f.defaults.into_iter().map(|a| self.attribute(a)).collect::<Result<_>>()?;
        Ok(Function {
            graph,
            domain: f.header.domain,
            name,
            overload: f.header.overload,
            attributes: f.attributes,
            attribute_defaults: defaults,
            opset_imports: f.header.opset_imports.unwrap_or_default(),
            doc_string: f.header.doc_string,
            metadata_props: f.header.metadata_props,
        })
    }

    fn graph(&mut self, text: GraphText, id: GraphId) -> Result<()> {
        self.scopes.enter();
        self.model.graph_mut(id).name.clone_from(&text.name);
        self.declarations(&text, id)?;
        for n in text.nodes {
            let at = (label(&n), n.op_type.clone());
            self.node(n, id).map_err(|e| e.node(at.0, at.1))?;
        }
        for o in text.outputs {
            let v = self.scopes.lookup(&o.name)?;
            if o.ty.is_some() && self.model.value(v).ty.is_none() {
                self.model.value_mut(v).ty = o.ty;
            }
            self.model.add_output(id, v);
        }
        self.scopes.leave();
        self.model.sort(id).map(|_| ())
    }

    /// All names of a graph, before its nodes are made: they may stand in any order.
    fn declarations(&mut self, text: &GraphText, id: GraphId) -> Result<()> {
        for i in &text.inputs {
            let v = self.scopes.declare(&mut self.model, id, &i.name)?;
            self.model.value_mut(v).ty.clone_from(&i.ty);
            self.model.add_input(v);
            self.initial(v, i);
        }
        for i in text.values.iter().filter(|i| i.initial.is_some()) {
            let v = match self.scopes.here(&i.name) {
                Some(v) if self.model.value(v).initializer().is_none() => v,
                _ => self.scopes.declare(&mut self.model, id, &i.name)?,
            };
            self.initial(v, i);
        }
        for n in &text.nodes {
            for o in n.outputs.iter().filter(|o| !o.name.is_empty()) {
                let v = self.scopes.declare(&mut self.model, id, &o.name).map_err(|e| e.node(label(n), &n.op_type))?;
                self.describe(v, o, id);
            }
        }
        for i in text.values.iter().filter(|i| i.initial.is_none()) {
            let Some(v) = self.scopes.here(&i.name) else {
                return Err(Error::malformed("has a type, but nothing makes it").value(&i.name));
            };
            self.describe(v, i, id);
        }
        Ok(())
    }

    fn initial(&mut self, v: ValueId, text: &ValueText) {
        if let Some(t) = &text.initial {
            self.model.set_initializer(v, Some(t.clone()));
        }
    }

    fn describe(&mut self, v: ValueId, text: &ValueText, id: GraphId) {
        if text.ty.is_some() {
            self.model.value_mut(v).ty.clone_from(&text.ty);
            self.model.add_value_info(id, v);
        }
    }

    fn node(&mut self, n: NodeText, graph: GraphId) -> Result<()> {
        let input = |name: &String| if name.is_empty() { Ok(None) } else { self.scopes.lookup(name).map(Some) };
        let inputs = n.inputs.iter().map(input).collect::<Result<Vec<_>>>()?;
        let attributes = n.attributes.into_iter().map(|a| self.attribute(a)).collect::<Result<Vec<_>>>()?;
        let mut spec = NodeSpec::new(n.op_type).inputs(inputs).attrs(attributes);
        for o in &n.outputs {
            spec = spec.output_value(self.scopes.here(&o.name));
        }
        if let Some(name) = n.name {
            spec = spec.name(name);
        }
        if let Some(domain) = n.domain {
            spec = spec.domain(domain);
        }
        let id = self.model.insert_named(spec, Place::End(graph));
        self.model.node_mut(id).overload = n.overload;
        Ok(())
    }

    fn attribute(&mut self, a: AttrText) -> Result<Attr> {
        let bytes = |s: String| Bytes::from(s);
        let value = match a.value {
            AttrTextValue::Float(f) => AttrValue::Float(f),
            AttrTextValue::Int(i) => AttrValue::Int(i),
            AttrTextValue::String(s) => AttrValue::String(bytes(s)),
            AttrTextValue::Tensor(t, name) => AttrValue::Tensor(named(t, name)),
            AttrTextValue::Graph(g) => AttrValue::Graph(self.subgraph(*g)?),
            AttrTextValue::Type(t) => AttrValue::Other(type_proto::attribute(&a.name, &t)),
            AttrTextValue::Floats(v) => AttrValue::Floats(v),
            AttrTextValue::Ints(v) => AttrValue::Ints(v),
            AttrTextValue::Strings(v) => AttrValue::Strings(v.into_iter().map(bytes).collect()),
            AttrTextValue::Tensors(v) => AttrValue::Tensors(v.into_iter().map(|(t, n)| named(t, n)).collect()),
            AttrTextValue::Graphs(v) => {
                AttrValue::Graphs(v.into_iter().map(|g| self.subgraph(g)).collect::<Result<_>>()?)
            }
            AttrTextValue::Reference(name, kind) => AttrValue::Reference(name, kind),
        };
        Ok(Attr::new(a.name, value))
    }

    fn subgraph(&mut self, g: GraphText) -> Result<GraphId> {
        let id = self.model.add_graph();
        self.graph(g, id)?;
        Ok(id)
    }
}

fn label(n: &NodeText) -> String {
    n.name.clone().or_else(|| n.outputs.first().map(|o| o.name.clone())).unwrap_or_default()
}

fn named(tensor: Tensor, name: Option<String>) -> NamedTensor {
    NamedTensor { name, ..tensor.into() }
}
