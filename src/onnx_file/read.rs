//! `ModelProto` to [`Model`].

use std::{collections::HashMap, path::Path};

use bytes::Bytes;
use prost::Message;

use super::{
    NEWEST_IR_VERSION, encode,
    external_data::External,
    map, pairs,
    proto::{
        self, AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, ValueInfoProto,
        attribute_proto::AttributeType, tensor_shape_proto::dimension, type_proto,
    },
    sniff, tensors,
};
use crate::{
    error::{Error, Result},
    ir::{
        Attr, AttrValue, DType, Dim, Function, GraphId, Model, NodeId, NodeSpec, Place, Shape, Type, ValueId,
        attr::NamedTensor,
        info::{InfoList, SaidOtherwise},
        model::ModelInfo,
        scopes::Scopes,
        types::TypeKind,
    },
};

/// How to read.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReadOptions {
    /// Read a file whose IR version is newer than the schema; fields that are new in it are lost.
    pub force: bool,
}

/// Reads a model file. Weights stay windows of the mapped file.
pub fn read(path: &Path) -> Result<Model> {
    read_with(path, ReadOptions::default())
}

/// Reads a model file.
pub fn read_with(path: &Path, options: ReadOptions) -> Result<Model> {
    let bytes = map::map(path)?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    decode(bytes, folder, options).map_err(|e| e.file(path))
}

/// Reads an encoded model; external data is looked for in `folder`.
pub fn from_bytes(bytes: impl Into<Bytes>, folder: &Path) -> Result<Model> {
    decode(bytes.into(), folder, ReadOptions::default())
}

fn decode(bytes: Bytes, folder: &Path, options: ReadOptions) -> Result<Model> {
    let start = bytes.slice(..bytes.len().min(sniff::ENOUGH));
    let len = bytes.len();
    if len == 0 {
        return Err(Error::malformed("is empty (0 bytes)").help("export or copy the model again"));
    }
    let proto = match ModelProto::decode(bytes) {
        Ok(proto) if proto.graph.is_some() => proto,
        Ok(_) => return Err(sniff::explain(&start, len, "holds no graph")),
        Err(e) => return Err(sniff::explain(&start, len, "is not an ONNX model, or is cut short").source(e)),
    };
    let version = proto.ir_version();
    if version > NEWEST_IR_VERSION && !options.force {
        return Err(Error::unsupported(format!(
            "has IR version {version}; this program knows versions up to {NEWEST_IR_VERSION} and would lose what is new"
        ))
        .help("use a newer qonvert, or --force to read it all the same"));
    }
    let (model, external) = (Model::new(version), External::new(folder));
    Reader { model, external, scopes: Scopes::default(), described: HashMap::new() }.model(proto)
}

struct Reader {
    model: Model,
    external: External,
    scopes: Scopes,
    /// The lists that each value was described in so far.
    described: HashMap<ValueId, Vec<InfoList>>,
}

impl Reader {
    fn model(mut self, p: ModelProto) -> Result<Model> {
        self.model.opset_imports = opsets(&p.opset_import);
        self.model.info = ModelInfo {
            producer_name: p.producer_name,
            producer_version: p.producer_version,
            domain: p.domain,
            model_version: p.model_version,
            doc_string: p.doc_string,
            metadata_props: pairs(&p.metadata_props),
            training_info: p.training_info.iter().map(|t| t.encode_to_vec().into()).collect(),
            configuration: p.configuration.iter().map(|c| c.encode_to_vec().into()).collect(),
        };
        let main = self.model.main();
        self.graph(p.graph.unwrap_or_default(), main)?;
        for f in p.functions {
            let function = self.function(f)?;
            self.model.functions.push(function);
        }
        Ok(self.model)
    }

    fn function(&mut self, p: FunctionProto) -> Result<Function> {
        let graph = self.model.add_graph();
        let input = |name: &String| ValueInfoProto { name: Some(name.clone()), ..ValueInfoProto::default() };
        let body = GraphProto {
            node: p.node,
            input: p.input.iter().map(input).collect(),
            output: p.output.iter().map(input).collect(),
            value_info: p.value_info,
            ..GraphProto::default()
        };
        let label = p.name.clone().unwrap_or_default();
        self.graph(body, graph).map_err(|e| e.graph(label))?;
        let defaults = p.attribute_proto.into_iter().map(|a| self.attribute(a)).collect::<Result<_>>()?;
        Ok(Function {
            graph,
            domain: p.domain,
            name: p.name,
            overload: p.overload,
            attributes: p.attribute,
            attribute_defaults: defaults,
            opset_imports: opsets(&p.opset_import),
            doc_string: p.doc_string,
            metadata_props: pairs(&p.metadata_props),
        })
    }

    fn graph(&mut self, p: GraphProto, id: GraphId) -> Result<()> {
        self.scopes.enter();
        let label = p.name.clone().unwrap_or_default();
        let done = self.graph_content(p, id).map_err(|e| e.graph(label));
        self.scopes.leave();
        done
    }

    fn graph_content(&mut self, p: GraphProto, id: GraphId) -> Result<()> {
        let graph = self.model.graph_mut(id);
        graph.name = p.name;
        graph.doc_string = p.doc_string;
        graph.metadata_props = pairs(&p.metadata_props);
        let annotation = |a: &proto::TensorAnnotation| (a.tensor_name().to_owned(), a.encode_to_vec().into());
        graph.quantization_annotation = p.quantization_annotation.iter().map(annotation).collect();
        for info in p.input {
            let v = self.scopes.declare(&mut self.model, id, info.name())?;
            self.describe(v, info, InfoList::Inputs);
            self.model.add_input(v);
        }
        for mut t in p.initializer {
            let name = t.name.take().unwrap_or_default();
            let v = match self.scopes.here(&name) {
                Some(v) if self.model.value(v).initializer().is_none() => v,
                Some(_) => return Err(Error::malformed("two initializers have this name").value(name)),
                None => self.scopes.declare(&mut self.model, id, &name)?,
            };
            let value = self.model.value_mut(v);
            value.tensor_doc_string = t.doc_string.take();
            value.tensor_metadata_props = pairs(&t.metadata_props);
            let tensor = tensors::from_proto(t, &mut self.external).map_err(|e| e.value(name))?;
            self.model.set_initializer(v, Some(tensor));
        }
        for s in p.sparse_initializer {
            let name = s.values.as_ref().map(|v| v.name().to_owned()).unwrap_or_default();
            let v = match self.scopes.here(&name) {
                Some(v) if self.model.value(v).initializer().is_none() && self.model.value(v).sparse.is_none() => v,
                Some(_) => return Err(Error::malformed("two initializers have this name").value(name)),
                None => self.scopes.declare(&mut self.model, id, &name)?,
            };
            self.model.add_sparse_initializer(v, s.encode_to_vec().into());
        }
        for n in &p.node {
            for name in n.output.iter().filter(|o| !o.is_empty()) {
                self.scopes.declare(&mut self.model, id, name).map_err(|e| e.node(label(n), n.op_type()))?;
            }
        }
        for (place, info) in p.value_info.into_iter().enumerate() {
            if let Some(v) = self.scopes.here(info.name()) {
                self.describe(v, info, InfoList::ValueInfo);
                self.model.add_value_info(id, v);
            } else {
                // It says the type of a value that is gone. A new value of its name would get that type in the file.
                self.model.reserve_name(info.name());
                let foreign = (place, info.encode_to_vec().into());
                self.model.graph_mut(id).foreign_value_info.push(foreign);
            }
        }
        for n in p.node {
            let at = (label(&n), n.op_type().to_owned());
            self.node(n, id).map_err(|e| e.node(at.0, at.1))?;
        }
        for info in p.output {
            let v = self.scopes.lookup(info.name())?;
            self.describe(v, info, InfoList::Outputs);
            self.model.add_output(id, v);
        }
        self.model.sort(id).map(|_| ())
    }

    fn node(&mut self, p: NodeProto, graph: GraphId) -> Result<NodeId> {
        let given = |name: &String| (!name.is_empty()).then_some(name.clone());
        let inputs = p.input.iter().map(|n| given(n).map(|n| self.scopes.lookup(&n)).transpose());
        let inputs = inputs.collect::<Result<Vec<_>>>()?;
        let attributes = p.attribute.into_iter().map(|a| self.attribute(a)).collect::<Result<Vec<_>>>()?;
        let mut spec = NodeSpec::new(p.op_type.unwrap_or_default()).inputs(inputs).attrs(attributes);
        for name in &p.output {
            let v = given(name).and_then(|n| self.scopes.here(&n));
            if v.is_some_and(|v| self.model.value(v).producer().is_some()) {
                return Err(Error::malformed("two nodes make this value").value(name));
            }
            spec = spec.output_value(v);
        }
        if let Some(name) = p.name {
            spec = spec.name(name);
        }
        let id = self.model.insert_named(spec, Place::End(graph));
        let node = self.model.node_mut(id);
        node.domain = p.domain;
        node.overload = p.overload;
        node.doc_string = p.doc_string;
        node.metadata_props = pairs(&p.metadata_props);
        node.device_configurations = p.device_configurations.iter().map(|d| d.encode_to_vec().into()).collect();
        Ok(id)
    }

    fn attribute(&mut self, p: AttributeProto) -> Result<Attr> {
        let name = p.name.clone().unwrap_or_default();
        let typed = p.r#type.is_some();
        let doc_string = p.doc_string.clone();
        let value = self.attribute_value(p).map_err(|e| match e.at().value {
            Some(_) => e,
            None => e.value(format!("attribute {name}")),
        })?;
        Ok(Attr { name, value, doc_string, typed })
    }

    fn attribute_value(&mut self, p: AttributeProto) -> Result<AttrValue> {
        let kind = match AttributeType::try_from(p.r#type.unwrap_or(0)) {
            Ok(AttributeType::Undefined) => guess(&p),
            Ok(kind) => kind,
            Err(_) => return Err(Error::malformed(format!("attribute has type number {}", p.r#type() as i32))),
        };
        if let Some(name) = p.ref_attr_name.filter(|n| !n.is_empty()) {
            return Ok(AttrValue::Reference(name, kind.into()));
        }
        Ok(match kind {
            AttributeType::Float => AttrValue::Float(p.f.unwrap_or_default()),
            AttributeType::Int => AttrValue::Int(p.i.unwrap_or_default()),
            AttributeType::String => AttrValue::String(p.s.unwrap_or_default()),
            AttributeType::Tensor => AttrValue::Tensor(self.named_tensor(p.t.unwrap_or_default())?),
            AttributeType::Graph => AttrValue::Graph(self.subgraph(p.g.unwrap_or_default())?),
            AttributeType::Floats => AttrValue::Floats(p.floats),
            AttributeType::Ints => AttrValue::Ints(p.ints),
            AttributeType::Strings => AttrValue::Strings(p.strings),
            AttributeType::Tensors => {
                AttrValue::Tensors(p.tensors.into_iter().map(|t| self.named_tensor(t)).collect::<Result<_>>()?)
            }
            AttributeType::Graphs => {
                AttrValue::Graphs(p.graphs.into_iter().map(|g| self.subgraph(g)).collect::<Result<_>>()?)
            }
            AttributeType::Undefined
            | AttributeType::SparseTensor
            | AttributeType::SparseTensors
            | AttributeType::TypeProto
            | AttributeType::TypeProtos => {
                AttrValue::Other(AttributeProto { ref_attr_name: None, ..p }.encode_to_vec().into())
            }
        })
    }

    fn subgraph(&mut self, p: GraphProto) -> Result<GraphId> {
        let id = self.model.add_graph();
        self.graph(p, id)?;
        Ok(id)
    }

    fn named_tensor(&mut self, mut p: proto::TensorProto) -> Result<NamedTensor> {
        let (name, doc_string) = (p.name.clone(), p.doc_string.take());
        let metadata_props = pairs(&p.metadata_props);
        Ok(NamedTensor { tensor: tensors::from_proto(p, &mut self.external)?, name, doc_string, metadata_props })
    }

    /// The first description that says something counts. Another is kept where it differs.
    fn describe(&mut self, v: ValueId, info: ValueInfoProto, list: InfoList) {
        let lists = self.described.entry(v).or_default();
        lists.push(list);
        let before = match &lists[..] {
            [_] => return self.set_description(v, info),
            [before @ .., _] => before.to_vec(),
            [] => return,
        };
        let written = encode::value_info(&self.model, v, list);
        if written.encode_to_vec() == info.encode_to_vec() {
            return;
        }
        let value = self.model.value(v);
        let (lists, other) = if value.ty.is_some() || value.doc_string.is_some() || !value.metadata_props.is_empty() {
            (vec![list], info)
        } else {
            self.set_description(v, info);
            (before, written)
        };
        let value = self.model.value_mut(v);
        let info: Bytes = other.encode_to_vec().into();
        let beside = value.ty.clone();
        let of = |list| SaidOtherwise { list, beside: beside.clone(), info: info.clone() };
        value.said_otherwise.extend(lists.into_iter().map(of));
    }

    fn set_description(&mut self, v: ValueId, info: ValueInfoProto) {
        let value = self.model.value_mut(v);
        value.ty = info.r#type.map(value_type);
        value.doc_string = info.doc_string;
        value.metadata_props = pairs(&info.metadata_props);
    }
}

fn label(n: &NodeProto) -> String {
    match n.name() {
        "" => n.output.first().cloned().unwrap_or_default(),
        name => name.to_owned(),
    }
}

/// The type of an attribute that does not say it, as files of IR versions 1 and 2 do not.
fn guess(p: &AttributeProto) -> AttributeType {
    use AttributeType::*;
    let present = [
        (p.f.is_some(), Float),
        (p.i.is_some(), Int),
        (p.s.is_some(), String),
        (p.t.is_some(), Tensor),
        (p.g.is_some(), Graph),
        (!p.floats.is_empty(), Floats),
        (!p.ints.is_empty(), Ints),
        (!p.strings.is_empty(), Strings),
        (!p.tensors.is_empty(), Tensors),
        (!p.graphs.is_empty(), Graphs),
    ];
    present.into_iter().find(|(there, _)| *there).map_or(Undefined, |(_, kind)| kind)
}

fn opsets(imports: &[proto::OperatorSetIdProto]) -> Vec<(Option<String>, i64)> {
    imports.iter().map(|o| (o.domain.clone(), o.version())).collect()
}

fn value_type(p: proto::TypeProto) -> Type {
    let kind = match &p.value {
        Some(type_proto::Value::TensorType(t)) => match (t.elem_type, t.elem_type.and_then(DType::from_onnx)) {
            (Some(_), None) => None,
            (_, dtype) => Some(TypeKind::Tensor { dtype, shape: t.shape.as_ref().map(shape) }),
        },
        _ => None,
    };
    let kind = kind
        .unwrap_or_else(|| TypeKind::Other(proto::TypeProto { denotation: None, ..p.clone() }.encode_to_vec().into()));
    Type { kind, denotation: p.denotation }
}

fn shape(p: &proto::TensorShapeProto) -> Shape {
    let dim = |d: &proto::tensor_shape_proto::Dimension| match &d.value {
        Some(dimension::Value::DimValue(n)) => Dim::Known(*n),
        Some(dimension::Value::DimParam(name)) => Dim::Named(name.clone()),
        None => Dim::Unknown,
    };
    let denotation = |(i, d): (usize, &proto::tensor_shape_proto::Dimension)| Some((i, d.denotation.clone()?));
    Shape {
        dims: p.dim.iter().map(dim).collect(),
        denotations: p.dim.iter().enumerate().filter_map(denotation).collect(),
    }
}
