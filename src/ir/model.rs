//! The model to read. Changes go through [`super::edit`].

use std::collections::HashSet;

use bytes::Bytes;

use super::{
    Attr, AttrValue, DType, GraphId, NodeId, Shape, Tensor, Type, ValueId,
    id::{Arena, Handle},
    info::SaidOtherwise,
};

/// A whole model: arenas of graphs, nodes and values, and what a `ModelProto` says besides.
#[derive(Debug, Clone)]
pub struct Model {
    pub(super) graphs: Arena<GraphId, Graph>,
    pub(super) nodes: Arena<NodeId, Node>,
    pub(super) values: Arena<ValueId, Value>,
    pub(super) names: HashSet<String>,
    pub(super) main: GraphId,
    /// Model-local functions.
    pub functions: Vec<Function>,
    /// Operator sets: domain (`""` is ai.onnx, as written in the file) and version.
    pub opset_imports: Vec<(Option<String>, i64)>,
    /// Version of the file format.
    pub ir_version: i64,
    /// Words about the model.
    pub info: ModelInfo,
}

/// What a `ModelProto` says of itself; carried through.
#[derive(Debug, Clone, Default)]
pub struct ModelInfo {
    /// Name of the tool that made it.
    pub producer_name: Option<String>,
    /// Version of that tool.
    pub producer_version: Option<String>,
    /// Reverse-DNS namespace.
    pub domain: Option<String>,
    /// Version of the model.
    pub model_version: Option<i64>,
    /// Documentation.
    pub doc_string: Option<String>,
    /// Key and value pairs.
    pub metadata_props: Vec<(String, String)>,
    /// Encoded `TrainingInfoProto`s.
    pub training_info: Vec<Bytes>,
    /// Encoded `DeviceConfigurationProto`s.
    pub configuration: Vec<Bytes>,
}

/// A graph: the main one, a subgraph, or the body of a function.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    /// Name.
    pub name: Option<String>,
    /// Documentation.
    pub doc_string: Option<String>,
    /// Key and value pairs.
    pub metadata_props: Vec<(String, String)>,
    /// Encoded `TensorAnnotation`s with the tensor's name.
    pub quantization_annotation: Vec<(String, Bytes)>,
    /// Encoded `ValueInfoProto`s of names that this graph does not make (of the graphs around it, or of nothing), with
    /// their place in the file's `value_info`.
    pub foreign_value_info: Vec<(usize, Bytes)>,
    /// The node whose attribute this graph is; `None` for the main graph and function bodies.
    pub parent: Option<NodeId>,
    pub(super) inputs: Vec<ValueId>,
    pub(super) outputs: Vec<ValueId>,
    pub(super) initializers: Vec<ValueId>,
    pub(super) value_info: Vec<ValueId>,
    pub(super) first: Option<NodeId>,
    pub(super) last: Option<NodeId>,
}

/// A model-local function.
#[derive(Debug, Clone)]
pub struct Function {
    /// Its body; inputs and outputs are the function's.
    pub graph: GraphId,
    /// Domain, name and overload: what a node's `domain`, `op_type` and `overload` name.
    pub domain: Option<String>,
    /// See `domain`.
    pub name: Option<String>,
    /// See `domain`.
    pub overload: Option<String>,
    /// Names of the attributes that a caller must give.
    pub attributes: Vec<String>,
    /// Attributes with their defaults.
    pub attribute_defaults: Vec<Attr>,
    /// Operator sets of the body.
    pub opset_imports: Vec<(Option<String>, i64)>,
    /// Documentation.
    pub doc_string: Option<String>,
    /// Key and value pairs.
    pub metadata_props: Vec<(String, String)>,
}

/// A node.
#[derive(Debug, Clone)]
pub struct Node {
    /// Name; often absent.
    pub name: Option<String>,
    /// Operator.
    pub op_type: String,
    /// Operator set; `None` and `Some("")` are ai.onnx.
    pub domain: Option<String>,
    /// Selects among functions of one name.
    pub overload: Option<String>,
    /// Attributes. Change those that hold graphs through [`super::edit`] only.
    pub attributes: Vec<Attr>,
    /// Documentation.
    pub doc_string: Option<String>,
    /// Key and value pairs.
    pub metadata_props: Vec<(String, String)>,
    /// Encoded `NodeDeviceConfigurationProto`s.
    pub device_configurations: Vec<Bytes>,
    pub(super) graph: GraphId,
    pub(super) inputs: Vec<Option<ValueId>>,
    pub(super) outputs: Vec<Option<ValueId>>,
    pub(super) prev: Option<NodeId>,
    pub(super) next: Option<NodeId>,
}

/// A value: a graph input, an initializer (or both), or an output of a node.
#[derive(Debug, Clone, Default)]
pub struct Value {
    /// Declared type, if any.
    pub ty: Option<Type>,
    /// Documentation of its `ValueInfoProto`.
    pub doc_string: Option<String>,
    /// Pairs of its `ValueInfoProto`.
    pub metadata_props: Vec<(String, String)>,
    /// Documentation of the initializer's `TensorProto`.
    pub tensor_doc_string: Option<String>,
    /// Pairs of the initializer's `TensorProto`.
    pub tensor_metadata_props: Vec<(String, String)>,
    /// An encoded `SparseTensorProto`, for sparse initializers.
    pub sparse: Option<Bytes>,
    /// What a second list of the file says differently.
    pub said_otherwise: Vec<SaidOtherwise>,
    pub(super) graph: Option<GraphId>,
    pub(super) name: String,
    pub(super) producer: Option<(NodeId, usize)>,
    pub(super) is_input: bool,
    pub(super) initializer: Option<Tensor>,
    pub(super) uses: Vec<Use>,
}

/// One use of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Use {
    /// Input number `.1` of a node.
    Input(NodeId, usize),
    /// Output number `.1` of a graph.
    Output(GraphId, usize),
}

impl Value {
    /// Name, unique among the values that one scope can see.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The graph that declares it.
    pub fn graph(&self) -> GraphId {
        self.graph.expect("every value in a model has a graph")
    }

    /// The node and output number that make it.
    pub fn producer(&self) -> Option<(NodeId, usize)> {
        self.producer
    }

    /// Whether it is an input of its graph.
    pub fn is_input(&self) -> bool {
        self.is_input
    }

    /// The initial value, also of a graph input that callers may override.
    pub fn initializer(&self) -> Option<&Tensor> {
        self.initializer.as_ref()
    }

    /// The value if nobody can override it: an initializer that is no graph input.
    pub fn constant(&self) -> Option<&Tensor> {
        self.initializer.as_ref().filter(|_| !self.is_input)
    }

    /// Every use, in no particular order.
    pub fn uses(&self) -> &[Use] {
        &self.uses
    }

    /// The nodes that read it (a node as often as it reads).
    pub fn readers(&self) -> impl Iterator<Item = (NodeId, usize)> + '_ {
        self.uses.iter().filter_map(|u| match u {
            Use::Input(n, i) => Some((*n, *i)),
            Use::Output(..) => None,
        })
    }

    /// Whether some graph hands it out.
    pub fn is_graph_output(&self) -> bool {
        self.uses.iter().any(|u| matches!(u, Use::Output(..)))
    }

    /// Its element type: of the constant, or as declared.
    pub fn dtype(&self) -> Option<DType> {
        self.initializer.as_ref().map(Tensor::dtype).or_else(|| self.ty.as_ref().and_then(Type::dtype))
    }

    /// Its declared shape (not: its constant's).
    pub fn shape(&self) -> Option<&Shape> {
        self.ty.as_ref().and_then(Type::shape)
    }
}

impl Node {
    /// The graph that holds it.
    pub fn graph(&self) -> GraphId {
        self.graph
    }

    /// Inputs; `None` where an optional one is left out.
    pub fn inputs(&self) -> &[Option<ValueId>] {
        &self.inputs
    }

    /// Outputs; `None` where an optional one is left out.
    pub fn outputs(&self) -> &[Option<ValueId>] {
        &self.outputs
    }

    /// Input number `i`, if it is given.
    pub fn input(&self, i: usize) -> Option<ValueId> {
        self.inputs.get(i).copied().flatten()
    }

    /// Output number `i`, if it is given.
    pub fn output(&self, i: usize) -> Option<ValueId> {
        self.outputs.get(i).copied().flatten()
    }

    /// Whether it is operator `op` of ai.onnx.
    pub fn is(&self, op: &str) -> bool {
        self.op_type == op && self.in_onnx_domain()
    }

    /// Whether its operator is one of ai.onnx.
    pub fn in_onnx_domain(&self) -> bool {
        matches!(self.domain.as_deref(), None | Some("" | "ai.onnx"))
    }

    /// The attribute of this name.
    pub fn attr(&self, name: &str) -> Option<&AttrValue> {
        self.attributes.iter().find(|a| a.name == name).map(|a| &a.value)
    }

    /// An integer attribute.
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.attr(name)? {
            AttrValue::Int(i) => Some(*i),
            _ => None,
        }
    }

    /// A float attribute.
    pub fn float(&self, name: &str) -> Option<f32> {
        match self.attr(name)? {
            AttrValue::Float(f) => Some(*f),
            _ => None,
        }
    }

    /// An attribute of integers.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.attr(name)? {
            AttrValue::Ints(v) => Some(v),
            _ => None,
        }
    }

    /// A string attribute, if it is UTF-8.
    pub fn string(&self, name: &str) -> Option<&str> {
        match self.attr(name)? {
            AttrValue::String(b) => std::str::from_utf8(b).ok(),
            _ => None,
        }
    }

    /// A tensor attribute.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        match self.attr(name)? {
            AttrValue::Tensor(t) => Some(&t.tensor),
            _ => None,
        }
    }

    /// Its subgraphs.
    pub fn subgraphs(&self) -> impl Iterator<Item = GraphId> + '_ {
        self.attributes.iter().flat_map(|a| a.graphs().iter().copied())
    }
}

impl Graph {
    /// Inputs, those that are initializers as well among them.
    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    /// Outputs.
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// Initializers in the file's order.
    pub fn initializers(&self) -> &[ValueId] {
        &self.initializers
    }

    /// The values that the file's `value_info` names, in its order.
    pub fn value_info(&self) -> &[ValueId] {
        &self.value_info
    }

    /// The first node.
    pub fn first(&self) -> Option<NodeId> {
        self.first
    }

    /// The last node.
    pub fn last(&self) -> Option<NodeId> {
        self.last
    }
}

impl Model {
    /// The main graph.
    pub fn main(&self) -> GraphId {
        self.main
    }

    /// A graph. Handles of removed graphs panic: that is a bug of the caller.
    pub fn graph(&self, id: GraphId) -> &Graph {
        self.graphs.get(id).expect("a live graph")
    }

    /// A node. Handles of removed nodes panic: that is a bug of the caller.
    pub fn node(&self, id: NodeId) -> &Node {
        self.nodes.get(id).expect("a live node")
    }

    /// A value. Handles of removed values panic: that is a bug of the caller.
    pub fn value(&self, id: ValueId) -> &Value {
        self.values.get(id).expect("a live value")
    }

    /// The graph, unless it was removed.
    pub fn try_graph(&self, id: GraphId) -> Option<&Graph> {
        self.graphs.get(id)
    }

    /// The node, unless it was removed.
    pub fn try_node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id)
    }

    /// The value, unless it was removed.
    pub fn try_value(&self, id: ValueId) -> Option<&Value> {
        self.values.get(id)
    }

    /// To change the attributes and words of a node; its links change through [`super::edit`].
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(id).expect("a live node")
    }

    /// To change the type and words of a value; its links change through [`super::edit`].
    pub fn value_mut(&mut self, id: ValueId) -> &mut Value {
        self.values.get_mut(id).expect("a live value")
    }

    /// To change the words of a graph; its links change through [`super::edit`].
    pub fn graph_mut(&mut self, id: GraphId) -> &mut Graph {
        self.graphs.get_mut(id).expect("a live graph")
    }

    /// All live graphs: main graph, subgraphs, function bodies.
    pub fn graph_ids(&self) -> Vec<GraphId> {
        self.graphs.ids().collect()
    }

    /// All live values.
    pub fn value_ids(&self) -> Vec<ValueId> {
        self.values.ids().collect()
    }

    /// The nodes of one graph in order (not those of its subgraphs).
    pub fn nodes(&self, graph: GraphId) -> Vec<NodeId> {
        let mut ids = Vec::new();
        let mut next = self.graph(graph).first;
        while let Some(id) = next {
            ids.push(id);
            next = self.node(id).next;
        }
        ids
    }

    /// All nodes of the main graph and, after the node that holds them, of its subgraphs; then of function bodies.
    pub fn all_nodes(&self) -> Vec<NodeId> {
        let bodies = self.functions.iter().map(|f| f.graph);
        std::iter::once(self.main).chain(bodies).flat_map(|g| self.nodes_below(g)).collect()
    }

    /// The nodes of a graph and, after the node that holds them, of its subgraphs.
    pub fn nodes_below(&self, graph: GraphId) -> Vec<NodeId> {
        let mut ids = Vec::new();
        // A stack, not recursion: nesting depth comes from the file.
        let mut stack = self.nodes(graph);
        stack.reverse();
        while let Some(id) = stack.pop() {
            ids.push(id);
            for g in self.node(id).subgraphs() {
                stack.extend(self.nodes(g).into_iter().rev());
            }
        }
        ids
    }

    /// The node that makes a value.
    pub fn producer(&self, value: ValueId) -> Option<NodeId> {
        self.value(value).producer.map(|(n, _)| n)
    }

    /// The only use of a value, if a node of the same graph is it: that node, and the number of the input.
    pub fn sole_reader(&self, value: ValueId) -> Option<(NodeId, usize)> {
        match self.value(value).uses() {
            // What a subgraph reads may not be read at all, or often.
            &[Use::Input(node, i)] if self.node(node).graph() == self.value(value).graph() => Some((node, i)),
            _ => None,
        }
    }

    /// The constant that a node reads as input `i`: an initializer that nobody can override.
    pub fn constant_input(&self, node: NodeId, i: usize) -> Option<&Tensor> {
        self.node(node).input(i).and_then(|v| self.value(v).constant())
    }

    /// The version of an operator set (`""` is ai.onnx).
    pub fn opset(&self, domain: &str) -> Option<i64> {
        let same = |d: &Option<String>| match d.as_deref() {
            None | Some("" | "ai.onnx") => domain.is_empty(),
            Some(d) => d == domain,
        };
        self.opset_imports.iter().find(|(d, _)| same(d)).map(|&(_, v)| v)
    }

    /// The graph inputs that a caller must feed: those without an initial value.
    pub fn required_inputs(&self) -> Vec<ValueId> {
        let inputs = self.graph(self.main).inputs.iter().copied();
        inputs.filter(|&v| self.value(v).initializer.is_none()).collect()
    }

    /// What to call a node in words: its name, else its first output's.
    pub fn node_label(&self, id: NodeId) -> String {
        let node = self.node(id);
        match &node.name {
            Some(name) if !name.is_empty() => name.clone(),
            _ => {
                let first = node.outputs.iter().copied().flatten().next();
                first.map_or_else(|| format!("#{}", id.index()), |v| self.value(v).name.clone())
            }
        }
    }

    /// The value of this name in a graph (not in those around it).
    pub fn find_value(&self, graph: GraphId, name: &str) -> Option<ValueId> {
        self.values.ids().find(|&v| {
            let value = self.value(v);
            value.graph == Some(graph) && value.name == name
        })
    }
}
