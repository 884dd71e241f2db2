//! Inserts the Q/DQ pairs of the plan, quantizes weights and biases, and takes out the clamps that saturation replaces.
//!
//! ```text
//! before: y = Relu(Conv(x, w, b))
//! after:  x' = DequantizeLinear(QuantizeLinear(x)); y' = Conv(x', DequantizeLinear(w_quantized), DequantizeLinear(b_quantized))
//!         y = DequantizeLinear(QuantizeLinear(y'))
//! ```

use std::collections::{BTreeMap, HashMap};

use super::Context;
use crate::{
    error::{Error, Result},
    ir::{DType, GraphId, Model, NodeId, NodeSpec, Place, Tensor, ValueId},
    ops::{self, Role},
    plan::{Activation, Form, KnownReads, Plan, Readers, Weight, named_values},
    quant::{
        bias::quantize_bias,
        float8::Float8,
        granularity::{Granularity, QuantizedWeight, quantize_with},
        pack,
        params::{QParams, QuantTarget, Range},
    },
};

/// See the module's documentation. Without a plan there is nothing to do.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    let Some(plan) = cx.plan.take() else { return Ok(0) };
    let done = Inserter::new(model, &plan, &cx.known, cx.options.no_float8_zeros).and_then(|mut i| i.all());
    cx.plan = Some(plan);
    done
}

struct Inserter<'a> {
    model: &'a mut Model,
    known: &'a KnownReads,
    /// Quantized values with what the plan says of them.
    activations: BTreeMap<ValueId, &'a Activation>,
    integer: Vec<(NodeId, Option<&'a Weight>)>,
    absorbed: Vec<NodeId>,
    /// Float nodes that the runtime would quantize by itself.
    fenced: Vec<NodeId>,
    /// Weights that are quantized already, for nodes that share them.
    weights: HashMap<(ValueId, String), ValueId>,
    /// Scalar scales and zero points by type and bits: in small models, their names are a good part of the file.
    scalars: HashMap<(DType, u32), ValueId>,
    /// Floats of 8 bits have no zero points.
    no_float8_zeros: bool,
}

impl<'a> Inserter<'a> {
    /// Looks every name of the plan up before anything is renamed.
    fn new(model: &'a mut Model, plan: &'a Plan, known: &'a KnownReads, no_float8_zeros: bool) -> Result<Self> {
        let main = model.main();
        let names = named_values(model);
        let missing = |name: &str| {
            Error::config("the plan names this value, but the model has none of that name")
                .value(name)
                .help("a plan belongs to the model that it was made for, with the same Prepare passes")
        };
        let mut activations = BTreeMap::new();
        for (name, a) in &plan.activations {
            let v = names.get(name).filter(|v| model.value(**v).graph() == main);
            activations.insert(*v.ok_or_else(|| missing(name))?, a);
        }
        let (mut integer, mut absorbed, mut fenced) = (Vec::new(), Vec::new(), Vec::new());
        for (name, node) in &plan.nodes {
            let v = *names.get(name).ok_or_else(|| missing(name))?;
            let id = model.producer(v).ok_or_else(|| missing(name))?;
            match node.becomes {
                Form::Integer | Form::Float8 => integer.push((id, node.weight.as_ref())),
                Form::Absorbed => absorbed.push(id),
                Form::Float if node.fenced => fenced.push(id),
                Form::Dynamic | Form::WeightOnly | Form::Half | Form::Float => {}
            }
        }
        let mut ours = integer.iter().map(|(n, _)| n).chain(&absorbed).chain(&fenced);
        if let Some(&inner) = ours.find(|n| model.node(**n).graph() != main) {
            return Err(Error::config(
                "the plan makes this node integer, absorbed or fenced, but it stands in a subgraph",
            )
            .node(model.node_label(inner), &model.node(inner).op_type)
            .help("nodes of subgraphs are dynamic, or float and not fenced"));
        }
        // The order of the file, not of the names.
        let place: HashMap<NodeId, usize> = model.nodes(main).into_iter().enumerate().map(|(i, n)| (n, i)).collect();
        integer.sort_by_key(|(n, _)| place[n]);
        absorbed.sort_by_key(|n| place[n]);
        fenced.sort_by_key(|n| place[n]);
        let (weights, scalars) = (HashMap::new(), HashMap::new());
        Ok(Self { model, known, activations, integer, absorbed, fenced, weights, scalars, no_float8_zeros })
    }

    fn all(&mut self) -> Result<usize> {
        self.absorb()?;
        for (id, weight) in self.integer.clone() {
            let op = self.model.node(id).op_type.clone();
            let label = self.model.node_label(id);
            self.constants(id, weight).map_err(|e| e.node(label, op))?;
        }
        let pairs: Vec<_> = self.activations.iter().map(|(&v, &a)| (v, a)).collect();
        for &(v, a) in &pairs {
            self.pair(v, a)?;
        }
        for id in self.fenced.clone() {
            self.fence(id)?;
        }
        Ok(self.integer.len() + pairs.len() + self.absorbed.len())
    }

    /// Takes the clamps out; what was said of their outputs now holds for their inputs.
    fn absorb(&mut self) -> Result<()> {
        for clamp in self.absorbed.clone() {
            let node = self.model.node(clamp);
            let (Some(from), Some(to)) = (node.output(0), node.input(0)) else {
                return Err(Error::bug("a clamp has no input or output"));
            };
            if !self.model.replace_all_uses(from, to) {
                return Err(
                    Error::bug("a clamp's input cannot take its output's name").value(self.model.value(from).name())
                );
            }
            if let Some(a) = self.activations.remove(&from) {
                self.activations.insert(to, a);
            }
            self.model.remove_node(clamp);
        }
        Ok(())
    }

    /// Quantizes the constant inputs of an integer node.
    fn constants(&mut self, id: NodeId, weight: Option<&Weight>) -> Result<()> {
        let Some(spec) = ops::spec(self.model, id) else {
            return Err(Error::bug("an integer node has no description"));
        };
        let input_params = self.model.node(id).input(0).and_then(|v| self.activations.get(&v)).map(|a| a.params());
        let index = |role| spec.index_of(role).filter(|&i| self.model.constant_input(id, i).is_some());
        if let (Some(i), Some(weight)) = (index(Role::Weight), weight) {
            let bias = index(Role::Bias);
            self.weight_and_bias(id, i, bias, weight, input_params)?;
        }
        let data: Vec<usize> =
            (0..self.model.node(id).inputs().len()).filter(|&i| spec.role(i) == Role::Data).collect();
        for i in data {
            if let Some(t) = self.model.constant_input(id, i).cloned() {
                let like = self.activation_type(id)?;
                self.constant_operand(id, i, &t, like)?;
            }
        }
        Ok(())
    }

    /// The type of the activations that a node computes with.
    fn activation_type(&self, id: NodeId) -> Result<QuantTarget> {
        let mut around = self.model.node(id).inputs().iter().chain(self.model.node(id).outputs()).flatten();
        let found = around.find_map(|v| self.activations.get(v));
        let a = found.ok_or_else(|| Error::bug("an integer node has no quantized activation"))?;
        Ok(QuantTarget { dtype: a.dtype, symmetric: false, reduce_range: false })
    }

    fn weight_and_bias(
        &mut self,
        id: NodeId,
        at: usize,
        bias_at: Option<usize>,
        plan: &Weight,
        input: Option<QParams>,
    ) -> Result<()> {
        let tensor =
            self.model.constant_input(id, at).cloned().ok_or_else(|| Error::bug("the weight is not constant"))?;
        let bias = bias_at.and_then(|i| self.model.constant_input(id, i)).map(Tensor::to_f32).transpose()?;
        let weight = self.model.node(id).input(at).expect("checked above");
        let known = self.known.of(self.model.value(weight).name());
        let q = plan.quantize(&tensor, bias.as_deref(), input, known)?;
        let key: String = q.scales().iter().map(|s| format!("{:08x}", s.to_bits())).collect();
        let dq = match self.weights.get(&(weight, key.clone())) {
            Some(&v) => v,
            None => {
                let v = self.dequantized(weight, &q, id)?;
                self.weights.insert((weight, key), v);
                v
            }
        };
        self.model.set_input(id, at, Some(dq));
        let float = Float8::of(plan.dtype).is_some();
        if let (Some(i), Some(bias), Some(input)) = (bias_at, bias, input.filter(|_| !float)) {
            self.bias(id, i, &bias, input, &q)?;
        }
        Ok(())
    }

    fn bias(&mut self, id: NodeId, at: usize, bias: &[f32], input: QParams, weight: &QuantizedWeight) -> Result<()> {
        let scales = weight.scales();
        if scales.len() != 1 && scales.len() != bias.len() {
            return Ok(()); // A float bias is legal: the runtime quantizes it itself.
        }
        let q = quantize_bias(bias, input.scale, &scales)?;
        let value = self.model.node(id).input(at).expect("the bias is given");
        let dims = self.model.value(value).constant().map_or_else(Vec::new, |t| t.dims().to_vec());
        if q.saturated > 0 || dims.len() != 1 {
            return Ok(());
        }
        let q = QuantizedWeight {
            axis: (q.scale.rank() == 1).then_some(0),
            values: q.values,
            scale: q.scale,
            zero_point: q.zero_point,
            params: Vec::new(),
        };
        let dq = self.dequantized(value, &q, id)?;
        self.model.set_input(id, at, Some(dq));
        Ok(())
    }

    fn constant_operand(&mut self, id: NodeId, at: usize, t: &Tensor, target: QuantTarget) -> Result<()> {
        let values = t.to_f32()?;
        let range = values.iter().fold(Range::new(0.0, 0.0), |r, &v| r.union(Range::new(v, v)));
        let q = quantize_with(&values, t.dims(), Granularity::PerTensor, target, vec![target.params(range)?])?;
        let value = self.model.node(id).input(at).expect("the operand is given");
        let dq = self.dequantized(value, &q, id)?;
        self.model.set_input(id, at, Some(dq));
        Ok(())
    }

    // Inserted nodes have no names of their own: their outputs say what they are, and in a small model the names would be
    // some percent of the file.

    /// `DequantizeLinear` over the codes of the constant `of`, in front of the node that reads it.
    fn dequantized(&mut self, of: ValueId, q: &QuantizedWeight, reader: NodeId) -> Result<ValueId> {
        let (name, main) = (self.model.value(of).name().to_owned(), self.model.node(reader).graph());
        let values = self.model.add_initializer(main, &format!("{name}_quantized"), q.values.clone());
        let scale = self.model.add_initializer(main, &format!("{name}_scale"), q.scale.clone());
        let float = Float8::of(q.values.dtype()).is_some();
        let zeros = !float && q.zero_point.to_i64()?.iter().all(|&z| z == 0);
        // Zero is what an absent zero point means. ONNX Runtime (1.32) has no QGemm without one for the weight, though.
        let implied = float && self.no_float8_zeros
            || zeros && (q.values.dtype() == DType::Int32 || !self.model.node(reader).is("Gemm"));
        let zero_point =
            (!implied).then(|| self.model.add_initializer(main, &format!("{name}_zero_point"), q.zero_point.clone()));
        let mut spec = NodeSpec::new("DequantizeLinear")
            .input(values)
            .input(scale)
            .inputs(zero_point.map(Some))
            .output(format!("{name}_DequantizeLinear_Output"));
        if let Some(axis) = q.axis {
            spec = spec.attr("axis", axis as i64);
        }
        self.model.insert_value(spec, Place::Before(reader))
    }

    /// The Q/DQ pair of an activation.
    fn pair(&mut self, v: ValueId, a: &Activation) -> Result<()> {
        let value = self.model.value(v);
        let (name, graph, producer) = (value.name().to_owned(), value.graph(), value.producer());
        let place = producer.map_or(Place::Start(graph), |(n, _)| Place::After(n));
        let scale = Tensor::from_f32(&[], &[a.scale]);
        let scale = self.scalar(graph, DType::Float, a.scale.to_bits(), &format!("{name}_scale"), scale);
        let float = Float8::of(a.dtype).is_some();
        let by_attribute = float && self.no_float8_zeros;
        let zero_point = match by_attribute {
            true => None,
            false => {
                let zero = if float { pack::zeros(a.dtype, &[])? } else { pack::pack(a.dtype, &[], &[a.zero_point])? };
                let bits = a.zero_point.cast_unsigned();
                Some(self.scalar(graph, a.dtype, bits, &format!("{name}_zero_point"), zero))
            }
        };
        let node = |op: &str, input: ValueId| {
            let spec = NodeSpec::new(op).input(input).input(scale).inputs(zero_point.map(Some));
            spec.output(format!("{name}_{op}_Output"))
        };
        let mut quantize = node("QuantizeLinear", v);
        if by_attribute {
            quantize = quantize.attr("output_dtype", i64::from(a.dtype.to_onnx()));
        }
        let q = self.model.insert(quantize, place);
        let mut codes = self.model.node(q).output(0).ok_or_else(|| Error::bug("the new node has no output"))?;
        let mut last = q;
        if let Some([low, high]) = a.clip {
            let bound = |end: &str, code: i32| {
                Ok::<_, Error>((format!("{name}_{end}"), pack::pack(a.dtype, &[], &[code])?, code))
            };
            let (least, most) = (bound("least", low)?, bound("greatest", high)?);
            let [least, most] =
                [least, most].map(|(name, t, code)| self.scalar(graph, a.dtype, code.cast_unsigned(), &name, t));
            let spec = NodeSpec::new("Clip").inputs([codes, least, most].map(Some));
            last = self.model.insert(spec.output(format!("{name}_Clip_Output")), Place::After(q));
            codes = self.model.node(last).output(0).ok_or_else(|| Error::bug("the new node has no output"))?;
        }
        let real = self.model.insert_value(node("DequantizeLinear", codes), Place::After(last))?;
        match a.readers {
            Readers::All => {
                self.model.replace_all_uses(v, real);
                self.model.set_input(q, 0, Some(v));
            }
            Readers::Integer => {
                let data: Vec<_> = self.model.value(v).readers().filter(|&(n, i)| self.reads_codes(n, i)).collect();
                self.model.replace_readers(v, real, |n, i| data.contains(&(n, i)));
            }
        }
        Ok(())
    }

    /// Dequantizes the input of a float node with a scale for each channel, all the same.
    fn fence(&mut self, id: NodeId) -> Result<()> {
        let Some(channels) = self.input_channels(id) else { return Ok(()) };
        let input = self.model.node(id).input(0);
        let Some(dq) =
            input.and_then(|v| self.model.producer(v)).filter(|&n| self.model.node(n).is("DequantizeLinear"))
        else {
            return Ok(()); // The plan was edited: the input is no longer quantized.
        };
        let parts: Vec<ValueId> = self.model.node(dq).inputs().iter().copied().flatten().collect();
        let &[codes, scale, zero_point] = &parts[..] else { return Ok(()) };
        let constant = |v: ValueId| self.model.value(v).constant().cloned();
        let (Some(s), Some(z)) = (constant(scale), constant(zero_point)) else { return Ok(()) };
        let (s, z) = (s.to_f32()?, z.to_i64()?);
        let (Some(&s), Some(&z)) = (s.first(), z.first()) else { return Ok(()) };
        let dtype = self.model.value(zero_point).constant().map_or(DType::Uint8, Tensor::dtype);
        let name = self.model.node_label(id);
        let graph = self.model.node(id).graph();
        let scales = Tensor::from_f32(&[channels], &vec![s; channels]);
        let zeros = pack::pack(dtype, &[channels], &vec![z as i32; channels])?;
        let scales = self.model.add_initializer(graph, &format!("{name}_input_scale"), scales);
        let zeros = self.model.add_initializer(graph, &format!("{name}_input_zero_point"), zeros);
        let spec =
            NodeSpec::new("DequantizeLinear").inputs([Some(codes), Some(scales), Some(zeros)]).attr("axis", 1i64);
        let own = self.model.insert(spec.output(format!("{name}_input_DequantizeLinear_Output")), Place::Before(id));
        let real = self.model.node(own).output(0);
        self.model.set_input(id, 0, real);
        Ok(())
    }

    /// How many channels a Conv, ConvTranspose or Gemm reads, along axis 1.
    fn input_channels(&self, id: NodeId) -> Option<usize> {
        let (node, weight) = (self.model.node(id), self.model.constant_input(id, 1)?);
        let dims = weight.dims();
        match node.op_type.as_str() {
            "Conv" => dims.get(1)?.checked_mul(usize::try_from(node.int("group").unwrap_or(1)).ok()?),
            "Gemm" if node.int("transA").unwrap_or(0) != 0 => None,
            "Gemm" => dims.get(usize::from(node.int("transB").unwrap_or(0) != 0)).copied(),
            _ => dims.first().copied(),
        }
    }

    /// The initializer of this scalar; a new one of this name where there is none.
    fn scalar(&mut self, graph: GraphId, dtype: DType, bits: u32, name: &str, tensor: Tensor) -> ValueId {
        *self.scalars.entry((dtype, bits)).or_insert_with(|| self.model.add_initializer(graph, name, tensor))
    }

    fn reads_codes(&self, node: NodeId, input: usize) -> bool {
        let integer = self.integer.iter().any(|(n, _)| *n == node);
        let data = |role: Role| matches!(role, Role::Data | Role::Weight);
        integer && ops::spec(self.model, node).is_some_and(|s| data(s.role(input)))
    }
}
