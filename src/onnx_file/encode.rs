//! [`Model`] to `ModelProto`, with the elements of the main graph's initializers left out for the writer to stream.

use prost::Message;

use super::{
    entries,
    proto::{
        self, AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto,
        TrainingInfoProto, ValueInfoProto, attribute_proto::AttributeType, tensor_shape_proto::dimension, type_proto,
    },
    tensors,
};
use crate::{
    error::{Error, Result},
    ir::{
        Attr, AttrValue, Dim, GraphId, Model, NodeId, Shape, Stored, Tensor, TensorData, Type, ValueId,
        attr::NamedTensor, info::InfoList, types::TypeKind,
    },
};

/// An initializer of the main graph: its message without `raw_data`, and the tensor whose elements go there.
pub(super) struct Initializer {
    pub(super) proto: TensorProto,
    /// `None` where the message is complete (strings, typed fields).
    pub(super) raw: Option<Tensor>,
}

/// A model ready to be written.
pub(super) struct Encoded {
    /// Everything but the graph.
    pub(super) model: ModelProto,
    /// The main graph without nodes and initializers.
    pub(super) graph: GraphProto,
    pub(super) nodes: Vec<NodeId>,
    pub(super) initializers: Vec<Initializer>,
}

/// Encodes all but the nodes of the main graph, which [`node`] encodes one by one.
pub(super) fn model(m: &Model, extra_outputs: &[ValueId]) -> Result<Encoded> {
    let main = m.main();
    let mut graph = graph_frame(m, main);
    graph.output.extend(
        extra_outputs
            .iter()
            .map(|&v| ValueInfoProto { name: Some(m.value(v).name().to_owned()), ..ValueInfoProto::default() }),
    );
    graph.sparse_initializer = sparse(m, main)?;
    let mut initializers = Vec::new();
    for &v in m.graph(main).initializers() {
        let value = m.value(v);
        let Some(tensor) = value.initializer() else { continue };
        let inline = tensor.stored() == Stored::Typed || matches!(tensor.data(), TensorData::Strings(_));
        let name = Some(value.name().to_owned());
        let mut proto = if inline { tensors::to_proto(tensor, name)? } else { tensors::header(tensor, name) };
        proto.doc_string.clone_from(&value.tensor_doc_string);
        proto.metadata_props = entries(&value.tensor_metadata_props);
        initializers.push(Initializer { proto, raw: (!inline).then(|| tensor.clone()) });
    }
    let functions = m.functions.iter().map(|f| function(m, f)).collect::<Result<_>>()?;
    let info = &m.info;
    let model = ModelProto {
        ir_version: Some(m.ir_version),
        producer_name: info.producer_name.clone(),
        producer_version: info.producer_version.clone(),
        domain: info.domain.clone(),
        model_version: info.model_version,
        doc_string: info.doc_string.clone(),
        graph: None,
        opset_import: opsets(&m.opset_imports),
        metadata_props: entries(&info.metadata_props),
        training_info: decode_all::<TrainingInfoProto>(&info.training_info)?,
        functions,
        configuration: decode_all(&info.configuration)?,
    };
    Ok(Encoded { model, graph, nodes: m.nodes(main), initializers })
}

fn decode_all<M: Message + Default>(encoded: &[bytes::Bytes]) -> Result<Vec<M>> {
    encoded.iter().map(decode).collect()
}

/// Opaque parts were encoded by the reader from the same type.
fn decode<M: Message + Default>(encoded: &bytes::Bytes) -> Result<M> {
    M::decode(encoded.clone()).map_err(|e| Error::bug("a carried message does not decode").source(e))
}

fn opsets(imports: &[(Option<String>, i64)]) -> Vec<proto::OperatorSetIdProto> {
    let import = |(domain, version): &(Option<String>, i64)| proto::OperatorSetIdProto {
        domain: domain.clone(),
        version: Some(*version),
    };
    imports.iter().map(import).collect()
}

fn function(m: &Model, f: &crate::ir::Function) -> Result<FunctionProto> {
    let g = m.graph(f.graph);
    let names = |vs: &[ValueId]| vs.iter().map(|&v| m.value(v).name().to_owned()).collect();
    Ok(FunctionProto {
        name: f.name.clone(),
        input: names(g.inputs()),
        output: names(g.outputs()),
        attribute: f.attributes.clone(),
        node: m.nodes(f.graph).into_iter().map(|n| node(m, n)).collect::<Result<_>>()?,
        doc_string: f.doc_string.clone(),
        opset_import: opsets(&f.opset_imports),
        domain: f.domain.clone(),
        attribute_proto: f.attribute_defaults.iter().map(|a| attribute(m, a)).collect::<Result<_>>()?,
        value_info: value_infos(m, f.graph),
        overload: f.overload.clone(),
        metadata_props: entries(&f.metadata_props),
    })
}

/// A graph's words, inputs and outputs, without nodes and initializers.
fn graph_frame(m: &Model, id: GraphId) -> GraphProto {
    let g = m.graph(id);
    let infos = |list, vs: &[ValueId]| vs.iter().map(|&v| value_info(m, v, list)).collect();
    GraphProto {
        name: g.name.clone(),
        doc_string: g.doc_string.clone(),
        metadata_props: entries(&g.metadata_props),
        input: infos(InfoList::Inputs, g.inputs()),
        output: infos(InfoList::Outputs, g.outputs()),
        value_info: value_infos(m, id),
        quantization_annotation: g.quantization_annotation.iter().filter_map(|(_, a)| decode(a).ok()).collect(),
        ..GraphProto::default()
    }
}

fn sparse(m: &Model, id: GraphId) -> Result<Vec<SparseTensorProto>> {
    let encoded = m.graph(id).initializers().iter().filter_map(|&v| m.value(v).sparse.as_ref());
    encoded.map(decode).collect()
}

/// A whole subgraph, elements included.
fn subgraph(m: &Model, id: GraphId) -> Result<GraphProto> {
    let mut p = graph_frame(m, id);
    p.node = m.nodes(id).into_iter().map(|n| node(m, n)).collect::<Result<_>>()?;
    p.sparse_initializer = sparse(m, id)?;
    for &v in m.graph(id).initializers() {
        let value = m.value(v);
        if let Some(t) = value.initializer() {
            let mut t = tensors::to_proto(t, Some(value.name().to_owned()))?;
            t.doc_string.clone_from(&value.tensor_doc_string);
            t.metadata_props = entries(&value.tensor_metadata_props);
            p.initializer.push(t);
        }
    }
    Ok(p)
}

fn value_infos(m: &Model, id: GraphId) -> Vec<ValueInfoProto> {
    let g = m.graph(id);
    let mut infos: Vec<_> = g.value_info().iter().map(|&v| value_info(m, v, InfoList::ValueInfo)).collect();
    for (place, info) in &g.foreign_value_info {
        infos.insert((*place).min(infos.len()), decode(info).unwrap_or_default());
    }
    infos
}

/// What one of the graph's lists says of a value.
pub(super) fn value_info(m: &Model, v: ValueId, list: InfoList) -> ValueInfoProto {
    let value = m.value(v);
    if let Some(s) = value.said_otherwise.iter().find(|s| s.list == list && s.beside == value.ty) {
        let info: ValueInfoProto = decode(&s.info).unwrap_or_default();
        return ValueInfoProto { name: Some(value.name().to_owned()), ..info };
    }
    ValueInfoProto {
        name: Some(value.name().to_owned()),
        r#type: value.ty.as_ref().map(value_type),
        doc_string: value.doc_string.clone(),
        metadata_props: entries(&value.metadata_props),
    }
}

/// A tensor declared as a graph input.
pub(super) fn input(name: &str, tensor: &Tensor) -> ValueInfoProto {
    let shape = Shape::new(tensor.dims().iter().map(|&d| Dim::Known(d as i64)).collect());
    let ty = value_type(&Type::tensor(tensor.dtype(), Some(shape)));
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(ty), ..ValueInfoProto::default() }
}

fn value_type(t: &Type) -> proto::TypeProto {
    let mut p = match &t.kind {
        TypeKind::Tensor { dtype, shape } => proto::TypeProto {
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: dtype.map(|d| d.to_onnx()),
                shape: shape.as_ref().map(shape_proto),
            })),
            denotation: None,
        },
        TypeKind::Other(bytes) => decode(bytes).unwrap_or_default(),
    };
    p.denotation.clone_from(&t.denotation);
    p
}

fn shape_proto(s: &Shape) -> proto::TensorShapeProto {
    let dim = |(i, d): (usize, &Dim)| proto::tensor_shape_proto::Dimension {
        denotation: s.denotations.iter().find(|(at, _)| *at == i).map(|(_, d)| d.clone()),
        value: match d {
            Dim::Unknown => None,
            Dim::Known(n) => Some(dimension::Value::DimValue(*n)),
            Dim::Named(name) => Some(dimension::Value::DimParam(name.clone())),
        },
    };
    proto::TensorShapeProto { dim: s.dims.iter().enumerate().map(dim).collect() }
}

/// One node with its attributes and subgraphs.
pub(super) fn node(m: &Model, id: NodeId) -> Result<NodeProto> {
    let n = m.node(id);
    let names = |vs: &[Option<ValueId>]| {
        vs.iter().map(|v| v.map_or_else(String::new, |v| m.value(v).name().to_owned())).collect()
    };
    Ok(NodeProto {
        input: names(n.inputs()),
        output: names(n.outputs()),
        name: n.name.clone(),
        op_type: Some(n.op_type.clone()),
        domain: n.domain.clone(),
        overload: n.overload.clone(),
        attribute: n.attributes.iter().map(|a| attribute(m, a)).collect::<Result<_>>()?,
        doc_string: n.doc_string.clone(),
        metadata_props: entries(&n.metadata_props),
        device_configurations: decode_all(&n.device_configurations)?,
    })
}

fn attribute(m: &Model, a: &Attr) -> Result<AttributeProto> {
    let mut p = AttributeProto::default();
    let kind = match &a.value {
        AttrValue::Float(f) => (p.f = Some(*f), AttributeType::Float).1,
        AttrValue::Int(i) => (p.i = Some(*i), AttributeType::Int).1,
        AttrValue::String(s) => (p.s = Some(s.clone()), AttributeType::String).1,
        AttrValue::Tensor(t) => (p.t = Some(named_tensor(t)?), AttributeType::Tensor).1,
        AttrValue::Graph(g) => (p.g = Some(subgraph(m, *g)?), AttributeType::Graph).1,
        AttrValue::Floats(v) => (p.floats.clone_from(v), AttributeType::Floats).1,
        AttrValue::Ints(v) => (p.ints.clone_from(v), AttributeType::Ints).1,
        AttrValue::Strings(v) => (p.strings.clone_from(v), AttributeType::Strings).1,
        AttrValue::Tensors(v) => {
            p.tensors = v.iter().map(named_tensor).collect::<Result<_>>()?;
            AttributeType::Tensors
        }
        AttrValue::Graphs(v) => {
            p.graphs = v.iter().map(|&g| subgraph(m, g)).collect::<Result<_>>()?;
            AttributeType::Graphs
        }
        AttrValue::Reference(name, kind) => {
            p.ref_attr_name = Some(name.clone());
            AttributeType::try_from(*kind).unwrap_or_default()
        }
        AttrValue::Other(bytes) => {
            p = decode(bytes)?;
            p.r#type()
        }
    };
    p.name = Some(a.name.clone());
    p.doc_string.clone_from(&a.doc_string);
    p.r#type = a.typed.then_some(kind.into());
    Ok(p)
}

fn named_tensor(t: &NamedTensor) -> Result<TensorProto> {
    let mut p = tensors::to_proto(&t.tensor, t.name.clone())?;
    p.doc_string.clone_from(&t.doc_string);
    p.metadata_props = entries(&t.metadata_props);
    Ok(p)
}
