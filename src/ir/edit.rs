//! The one door for changes to links between graphs, nodes and values.
//!
//! Each edit costs the number of uses that it touches. New nodes stand next to their anchor, so that the output
//! diffs cleanly against the input.

use crate::error::{Error, Result};

use super::{
    Attr, AttrValue, Graph, GraphId, Model, Node, NodeId, Tensor, Type, Use, Value, ValueId, id::Arena,
    model::ModelInfo,
};

/// Where a new node goes.
#[derive(Debug, Clone, Copy)]
pub enum Place {
    /// In front of a node, in its graph.
    Before(NodeId),
    /// Behind a node, in its graph.
    After(NodeId),
    /// At the start of a graph.
    Start(GraphId),
    /// At the end of a graph.
    End(GraphId),
}

/// A node to be made.
#[derive(Debug, Clone, Default)]
pub struct NodeSpec {
    name: Option<String>,
    op_type: String,
    domain: Option<String>,
    inputs: Vec<Option<ValueId>>,
    outputs: Vec<Output>,
    attributes: Vec<Attr>,
}

#[derive(Debug, Clone)]
enum Output {
    Absent,
    Existing(ValueId),
    Fresh(String, Option<Type>),
}

impl NodeSpec {
    /// A node of operator `op_type` of ai.onnx.
    pub fn new(op_type: impl Into<String>) -> Self {
        Self { op_type: op_type.into(), ..Self::default() }
    }

    /// Sets the name; it is made unique.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the operator's domain.
    #[must_use]
    pub fn domain(mut self, domain: impl Into<String>) -> Self {
        self.domain = Some(domain.into());
        self
    }

    /// Adds an input.
    #[must_use]
    pub fn input(mut self, value: ValueId) -> Self {
        self.inputs.push(Some(value));
        self
    }

    /// Adds inputs, `None` for optional ones that are left out.
    #[must_use]
    pub fn inputs(mut self, values: impl IntoIterator<Item = Option<ValueId>>) -> Self {
        self.inputs.extend(values);
        self
    }

    /// Adds an output: a new value of this name (made unique).
    #[must_use]
    pub fn output(mut self, name: impl Into<String>) -> Self {
        self.outputs.push(Output::Fresh(name.into(), None));
        self
    }

    /// Adds an output: a new value of this name (made unique) and type.
    #[must_use]
    pub fn typed_output(mut self, name: impl Into<String>, ty: Option<Type>) -> Self {
        self.outputs.push(Output::Fresh(name.into(), ty));
        self
    }

    /// Adds an output: a value without producer, or `None` for one that is left out.
    #[must_use]
    pub fn output_value(mut self, value: Option<ValueId>) -> Self {
        self.outputs.push(value.map_or(Output::Absent, Output::Existing));
        self
    }

    /// Adds an attribute.
    #[must_use]
    pub fn attr(mut self, name: impl Into<String>, value: impl Into<AttrValue>) -> Self {
        self.attributes.push(Attr::new(name, value));
        self
    }

    /// Adds attributes.
    #[must_use]
    pub fn attrs(mut self, attributes: impl IntoIterator<Item = Attr>) -> Self {
        self.attributes.extend(attributes);
        self
    }
}

impl Model {
    /// A model with an empty main graph.
    pub fn new(ir_version: i64) -> Self {
        let mut graphs = Arena::new();
        let main = graphs.push(Graph::default());
        Self {
            graphs,
            nodes: Arena::new(),
            values: Arena::new(),
            names: std::collections::HashSet::new(),
            main,
            functions: Vec::new(),
            opset_imports: Vec::new(),
            ir_version,
            info: ModelInfo::default(),
        }
    }

    /// Adds an empty graph; whoever makes it puts it into an attribute or a function.
    pub fn add_graph(&mut self) -> GraphId {
        self.graphs.push(Graph::default())
    }

    /// A name that no value and no node bears: `base`, or `base` with a number where it is taken.
    pub fn fresh_name(&mut self, base: &str) -> String {
        let mut name = base.to_owned();
        let mut n = 1;
        while name.is_empty() || self.names.contains(&name) {
            name = format!("{base}_{n}");
            n += 1;
        }
        self.names.insert(name.clone());
        name
    }

    /// Keeps new values and nodes from getting a name that the file uses for something else.
    pub fn reserve_name(&mut self, name: &str) {
        self.names.insert(name.to_owned());
    }

    /// Adds a value under exactly this name. The caller sees to it that the scope has no other of that name.
    pub fn declare_value(&mut self, graph: GraphId, name: &str) -> ValueId {
        self.names.insert(name.to_owned());
        self.values.push(Value { graph: Some(graph), name: name.to_owned(), ..Value::default() })
    }

    /// Adds a value; its name is made unique.
    pub fn add_value(&mut self, graph: GraphId, name: &str) -> ValueId {
        let name = self.fresh_name(name);
        self.declare_value(graph, &name)
    }

    /// Adds an initializer; its name is made unique.
    pub fn add_initializer(&mut self, graph: GraphId, name: &str, tensor: Tensor) -> ValueId {
        let value = self.add_value(graph, name);
        self.set_initializer(value, Some(tensor));
        value
    }

    /// Sets, replaces or takes away the initial value. Replacing drops the words that the old tensor bore.
    pub fn set_initializer(&mut self, value: ValueId, tensor: Option<Tensor>) {
        let had = self.value(value).initializer.is_some();
        let graph = self.value(value).graph();
        let has = tensor.is_some();
        self.value_mut(value).initializer = tensor;
        match (had, has) {
            (false, true) => self.graph_mut(graph).initializers.push(value),
            (true, false) => self.graph_mut(graph).initializers.retain(|&v| v != value),
            _ => {}
        }
    }

    /// Lists a sparse initializer; its encoded tensor stands in [`Value::sparse`].
    pub fn add_sparse_initializer(&mut self, value: ValueId, encoded: bytes::Bytes) {
        let graph = self.value(value).graph();
        self.value_mut(value).sparse = Some(encoded);
        self.graph_mut(graph).initializers.push(value);
    }

    /// Makes a value an input of its graph.
    pub fn add_input(&mut self, value: ValueId) {
        let graph = self.value(value).graph();
        self.value_mut(value).is_input = true;
        self.graph_mut(graph).inputs.push(value);
    }

    /// Takes a value out of its graph's inputs. It must have an initial value or no uses.
    pub fn remove_input(&mut self, value: ValueId) {
        let graph = self.value(value).graph();
        self.value_mut(value).is_input = false;
        self.graph_mut(graph).inputs.retain(|&v| v != value);
    }

    /// Hands a value out as the graph's next output.
    pub fn add_output(&mut self, graph: GraphId, value: ValueId) {
        let index = self.graph(graph).outputs.len();
        self.graph_mut(graph).outputs.push(value);
        self.value_mut(value).uses.push(Use::Output(graph, index));
    }

    /// Lists a value in the graph's `value_info`.
    pub fn add_value_info(&mut self, graph: GraphId, value: ValueId) {
        self.graph_mut(graph).value_info.push(value);
    }

    /// Forgets the declared types of values that are neither inputs nor outputs.
    pub fn clear_value_info(&mut self, graph: GraphId) {
        for value in std::mem::take(&mut self.graph_mut(graph).value_info) {
            let v = self.value_mut(value);
            if !v.is_input && !v.is_graph_output() {
                v.ty = None;
            }
        }
    }

    /// Inserts a node and its new output values.
    pub fn insert(&mut self, spec: NodeSpec, place: Place) -> NodeId {
        let name = spec.name.map(|n| if n.is_empty() { n } else { self.fresh_name(&n) });
        self.insert_named(NodeSpec { name, ..spec }, place)
    }

    /// Inserts a node, for its first output.
    pub fn insert_value(&mut self, spec: NodeSpec, place: Place) -> Result<ValueId> {
        let node = self.insert(spec, place);
        self.node(node).output(0).ok_or_else(|| Error::bug("the new node has no output"))
    }

    /// Inserts a node under exactly the spec's name.
    pub fn insert_named(&mut self, spec: NodeSpec, place: Place) -> NodeId {
        let graph = match place {
            Place::Before(n) | Place::After(n) => self.node(n).graph,
            Place::Start(g) | Place::End(g) => g,
        };
        if let Some(name) = &spec.name {
            self.names.insert(name.clone());
        }
        let outputs = spec.outputs.into_iter().map(|o| match o {
            Output::Absent => None,
            Output::Existing(v) => Some(v),
            Output::Fresh(name, ty) => {
                let v = self.add_value(graph, &name);
                self.value_mut(v).ty = ty;
                Some(v)
            }
        });
        let outputs: Vec<_> = outputs.collect();
        let node = Node {
            name: spec.name,
            op_type: spec.op_type,
            domain: spec.domain,
            overload: None,
            attributes: spec.attributes,
            doc_string: None,
            metadata_props: Vec::new(),
            device_configurations: Vec::new(),
            graph,
            inputs: Vec::new(),
            outputs: outputs.clone(),
            prev: None,
            next: None,
        };
        let id = self.nodes.push(node);
        for (i, v) in outputs.into_iter().enumerate().filter_map(|(i, v)| Some((i, v?))) {
            self.value_mut(v).producer = Some((id, i));
        }
        for input in spec.inputs {
            self.push_input(id, input);
        }
        let subgraphs: Vec<_> = self.node(id).subgraphs().collect();
        for g in subgraphs {
            self.graph_mut(g).parent = Some(id);
        }
        self.link(id, place);
        id
    }

    fn link(&mut self, id: NodeId, place: Place) {
        let graph = self.node(id).graph;
        let (prev, next) = match place {
            Place::Before(n) => (self.node(n).prev, Some(n)),
            Place::After(n) => (Some(n), self.node(n).next),
            Place::Start(g) => (None, self.graph(g).first),
            Place::End(g) => (self.graph(g).last, None),
        };
        self.join(graph, prev, Some(id));
        self.join(graph, Some(id), next);
    }

    fn unlink(&mut self, id: NodeId) {
        let (graph, prev, next) = (self.node(id).graph, self.node(id).prev, self.node(id).next);
        self.join(graph, prev, next);
    }

    fn join(&mut self, graph: GraphId, left: Option<NodeId>, right: Option<NodeId>) {
        match left {
            Some(n) => self.node_mut(n).next = right,
            None => self.graph_mut(graph).first = right,
        }
        match right {
            Some(n) => self.node_mut(n).prev = left,
            None => self.graph_mut(graph).last = left,
        }
    }

    /// Moves a node to another place of its own graph.
    pub fn move_node(&mut self, id: NodeId, place: Place) {
        self.unlink(id);
        self.link(id, place);
    }

    /// Adds an input to a node.
    pub fn push_input(&mut self, node: NodeId, value: Option<ValueId>) {
        let index = self.node(node).inputs.len();
        self.node_mut(node).inputs.push(None);
        self.set_input(node, index, value);
    }

    /// Sets input `index` of a node; the list grows by absent inputs as far as needed.
    pub fn set_input(&mut self, node: NodeId, index: usize, value: Option<ValueId>) {
        let inputs = &mut self.node_mut(node).inputs;
        if inputs.len() <= index {
            inputs.resize(index + 1, None);
        }
        if let Some(old) = std::mem::replace(&mut inputs[index], value) {
            self.drop_use(old, Use::Input(node, index));
        }
        if let Some(new) = value {
            self.value_mut(new).uses.push(Use::Input(node, index));
        }
    }

    /// Cuts the list of a node's inputs to `len`.
    pub fn truncate_inputs(&mut self, node: NodeId, len: usize) {
        for i in len..self.node(node).inputs.len() {
            self.set_input(node, i, None);
        }
        self.node_mut(node).inputs.truncate(len);
    }

    /// Takes the last outputs of a node away; they must be unused.
    pub fn truncate_outputs(&mut self, node: NodeId, len: usize) {
        let gone: Vec<_> = self.node(node).outputs.iter().skip(len).copied().flatten().collect();
        self.node_mut(node).outputs.truncate(len);
        for v in gone {
            self.value_mut(v).producer = None;
            self.remove_value(v);
        }
    }

    /// Cuts a node off its outputs, which keep name, type and uses: another node is to make them. The node is to be
    /// removed.
    pub fn take_outputs(&mut self, node: NodeId) -> Vec<Option<ValueId>> {
        let outputs = std::mem::take(&mut self.node_mut(node).outputs);
        for &v in outputs.iter().flatten() {
            self.value_mut(v).producer = None;
        }
        outputs
    }

    fn drop_use(&mut self, value: ValueId, used: Use) {
        let uses = &mut self.value_mut(value).uses;
        let at = uses.iter().position(|&u| u == used).expect("every input is a use of its value");
        uses.swap_remove(at);
    }

    /// Makes one use read another value.
    pub fn redirect(&mut self, used: Use, to: ValueId) {
        match used {
            Use::Input(node, i) => self.set_input(node, i, Some(to)),
            Use::Output(graph, i) => {
                let old = std::mem::replace(&mut self.graph_mut(graph).outputs[i], to);
                self.drop_use(old, used);
                self.value_mut(to).uses.push(used);
            }
        }
    }

    /// Makes the reading nodes that `which` picks read `new` instead of `old`. Graph outputs stay.
    pub fn replace_readers(&mut self, old: ValueId, new: ValueId, mut which: impl FnMut(NodeId, usize) -> bool) {
        let picked: Vec<_> = self.value(old).readers().filter(|&(n, i)| which(n, i)).collect();
        for (n, i) in picked {
            self.set_input(n, i, Some(new));
        }
    }

    /// Makes every use read `new` instead of `old`. Where `old` is handed out by a graph, `new` takes its name and
    /// declared type. Returns false, with the graph outputs left on `old`, where `new` cannot take the name:
    /// it is a graph input or handed out itself, an initializer, or of another graph.
    pub fn replace_all_uses(&mut self, old: ValueId, new: ValueId) -> bool {
        self.replace_readers(old, new, |_, _| true);
        let outputs: Vec<Use> = self.value(old).uses.clone();
        if outputs.is_empty() {
            return true;
        }
        let (a, b) = (self.value(old), self.value(new));
        if b.producer.is_none() || b.is_graph_output() || a.graph != b.graph {
            return false;
        }
        self.take_output_name(old, new);
        for u in outputs {
            self.redirect(u, new);
        }
        true
    }

    /// Gives `new` the name, type and words of `old`, and `old` a name derived from its own; for graph outputs, whose
    /// names callers know.
    pub fn take_output_name(&mut self, old: ValueId, new: ValueId) {
        let name = self.value(old).name.clone();
        let spare = self.fresh_name(&format!("{name}_inner"));
        self.value_mut(old).name = spare;
        let (ty, doc, props) = {
            let v = self.value_mut(old);
            (v.ty.clone(), v.doc_string.take(), std::mem::take(&mut v.metadata_props))
        };
        let v = self.value_mut(new);
        v.name = name;
        v.ty = ty;
        v.doc_string = doc;
        v.metadata_props = props;
    }

    /// Renames a value; the caller sees to it that the name is free.
    pub fn rename(&mut self, value: ValueId, name: &str) {
        self.names.insert(name.to_owned());
        name.clone_into(&mut self.value_mut(value).name);
    }

    /// Removes a node whose outputs nobody uses, with those outputs and its subgraphs.
    pub fn remove_node(&mut self, id: NodeId) {
        self.truncate_inputs(id, 0);
        let subgraphs: Vec<_> = self.node(id).subgraphs().collect();
        for g in subgraphs {
            self.remove_graph(g);
        }
        self.truncate_outputs(id, 0);
        self.unlink(id);
        self.nodes.take(id);
    }

    /// Removes a graph with all that is in it.
    pub fn remove_graph(&mut self, id: GraphId) {
        for (i, v) in std::mem::take(&mut self.graph_mut(id).outputs).into_iter().enumerate() {
            self.drop_use(v, Use::Output(id, i));
        }
        for n in self.nodes(id).into_iter().rev() {
            self.remove_node(n);
        }
        let own: Vec<_> = self.graph(id).inputs.iter().chain(&self.graph(id).initializers).copied().collect();
        for v in own {
            self.values.take(v);
        }
        self.graphs.take(id);
    }

    /// Removes a value that nothing uses and no node makes.
    pub fn remove_value(&mut self, id: ValueId) {
        let v = self.value(id);
        assert!(v.uses.is_empty() && v.producer.is_none(), "value {:?} is still linked", v.name);
        let (graph, listed) = (v.graph(), v.initializer.is_some() || v.sparse.is_some());
        let is_input = v.is_input;
        let g = self.graph_mut(graph);
        if listed {
            g.initializers.retain(|&v| v != id);
        }
        if is_input {
            g.inputs.retain(|&v| v != id);
        }
        g.value_info.retain(|&v| v != id);
        self.values.take(id);
    }

    /// Sets the version of an operator set, adding the import where it is missing.
    pub fn set_opset(&mut self, domain: &str, version: i64) {
        let same = |d: Option<&str>| match d {
            None | Some("" | "ai.onnx") => domain.is_empty(),
            Some(d) => d == domain,
        };
        match self.opset_imports.iter_mut().find(|(d, _)| same(d.as_deref())) {
            Some((_, v)) => *v = version,
            None => self.opset_imports.push((Some(domain.to_owned()), version)),
        }
    }
}
