//! Copies of nodes and graphs inside one model: how the body of a function gets to its callers.

use std::collections::HashMap;

use super::{Attr, AttrValue, Dim, GraphId, Model, NodeId, NodeSpec, Place, Type, ValueId, types::TypeKind};
use crate::error::{Error, Result};

/// How values and attributes change on the way to the copy.
#[derive(Debug, Default)]
pub struct Copy {
    /// What stands for a value of the original: another value, or nothing for an optional input that is left out. Values
    /// that are not in here are copied where they are made, and kept where they come from around the copied graph.
    pub values: HashMap<ValueId, Option<ValueId>>,
    /// What stands for a reference to the caller's attribute of this name; the attribute goes where there is nothing.
    pub attributes: HashMap<String, AttrValue>,
    /// In front of the names of values and nodes.
    pub prefix: String,
}

impl Model {
    /// Copies the nodes of a graph, in order, in front of a node or to the end of a graph. Returns the copies, those in
    /// subgraphs included.
    pub fn copy_nodes(&mut self, from: GraphId, place: Place, copy: &mut Copy) -> Result<Vec<NodeId>> {
        let mut made = Vec::new();
        for id in self.nodes(from) {
            let node = self.node(id).clone();
            let inputs = node.inputs().iter().map(|v| v.and_then(|v| *copy.values.get(&v).unwrap_or(&Some(v))));
            let mut inputs: Vec<_> = inputs.collect();
            // What is left out at the end is not written.
            while matches!((inputs.last(), node.inputs().last()), (Some(None), Some(Some(_)))) {
                inputs.pop();
            }
            let mut spec = NodeSpec::new(&node.op_type).inputs(inputs);
            if let Some(name) = node.name.as_ref().filter(|n| !n.is_empty()) {
                spec = spec.name(format!("{}{name}", copy.prefix));
            }
            for a in &node.attributes {
                if let Some(value) = self.copy_attribute(&a.value, copy, &mut made)? {
                    spec = spec.attrs([Attr { value, ..a.clone() }]);
                }
            }
            for &v in node.outputs() {
                spec = match v.map(|v| (v, copy.values.get(&v))) {
                    None => spec.output_value(None),
                    Some((_, Some(&known))) => spec.output_value(known),
                    Some((v, None)) => {
                        spec.typed_output(format!("{}{}", copy.prefix, self.value(v).name()), self.open_type(v))
                    }
                };
            }
            let new = self.insert(spec, place);
            let outputs = node.outputs().iter().zip(self.node(new).outputs());
            copy.values.extend(outputs.filter_map(|(old, new)| Some(((*old)?, *new))));
            let n = self.node_mut(new);
            (n.domain, n.overload) = (node.domain, node.overload);
            (n.doc_string, n.metadata_props) = (node.doc_string, node.metadata_props);
            n.device_configurations = node.device_configurations;
            made.push(new);
        }
        Ok(made)
    }

    fn copy_attribute(
        &mut self,
        value: &AttrValue,
        copy: &mut Copy,
        made: &mut Vec<NodeId>,
    ) -> Result<Option<AttrValue>> {
        Ok(Some(match value {
            AttrValue::Graph(g) => AttrValue::Graph(self.copy_graph(*g, copy, made)?),
            AttrValue::Graphs(gs) => {
                AttrValue::Graphs(gs.iter().map(|&g| self.copy_graph(g, copy, made)).collect::<Result<_>>()?)
            }
            AttrValue::Reference(name, _) => match copy.attributes.get(name).cloned() {
                // A graph has one parent: each reader of the caller's attribute gets its own.
                Some(given @ (AttrValue::Graph(_) | AttrValue::Graphs(_))) => {
                    let mut own = Copy { prefix: copy.prefix.clone(), ..Copy::default() };
                    return self.copy_attribute(&given, &mut own, made);
                }
                Some(given) => given,
                None => return Ok(None),
            },
            other => other.clone(),
        }))
    }

    fn copy_graph(&mut self, from: GraphId, copy: &mut Copy, made: &mut Vec<NodeId>) -> Result<GraphId> {
        let old = self.graph(from).clone();
        let id = self.add_graph();
        let graph = self.graph_mut(id);
        (graph.name, graph.doc_string) = (old.name.clone(), old.doc_string.clone());
        graph.metadata_props.clone_from(&old.metadata_props);
        for &v in old.inputs().iter().chain(old.initializers()) {
            if self.value(v).sparse.is_some() {
                return Err(Error::unsupported("a sparse initializer cannot be copied").value(self.value(v).name()));
            }
            if copy.values.contains_key(&v) {
                continue;
            }
            let original = self.value(v).clone();
            let new = self.add_value(id, &format!("{}{}", copy.prefix, original.name()));
            let ty = self.open_type(v);
            let value = self.value_mut(new);
            value.ty = ty;
            (value.doc_string, value.metadata_props) = (original.doc_string.clone(), original.metadata_props.clone());
            value.tensor_doc_string.clone_from(&original.tensor_doc_string);
            value.tensor_metadata_props.clone_from(&original.tensor_metadata_props);
            if let Some(tensor) = original.initializer() {
                self.set_initializer(new, Some(tensor.clone()));
            }
            if original.is_input() {
                self.add_input(new);
            }
            copy.values.insert(v, Some(new));
        }
        made.extend(self.copy_nodes(from, Place::End(id), copy)?);
        for &v in old.outputs() {
            let Some(new) = *copy.values.get(&v).unwrap_or(&Some(v)) else {
                let e = Error::malformed("a graph hands out an optional input that the caller leaves out");
                return Err(e.value(self.value(v).name()));
            };
            self.add_output(id, new);
        }
        Ok(id)
    }

    /// A value's type without the names of its dims: they mean other numbers where the copy stands.
    fn open_type(&self, v: ValueId) -> Option<Type> {
        let mut ty = self.value(v).ty.clone()?;
        if let TypeKind::Tensor { shape: Some(shape), .. } = &mut ty.kind {
            for dim in shape.dims.iter_mut().filter(|d| matches!(d, Dim::Named(_))) {
                *dim = Dim::Unknown;
            }
        }
        Some(ty)
    }
}
