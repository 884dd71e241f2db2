//! Brings nodes into 16-bit floats, as the plan says: constants converted, Casts where 16 and 32 bits meet, one for each value.
//!
//! ```text
//! before: y = Conv(x, w); z = Exp(y)
//! after:  x_float16 = Cast(x); y_float16 = Conv(x_float16, w_float16); y = Cast(y_float16); z = Exp(y)
//! ```

use std::collections::{BTreeMap, BTreeSet};

use super::Context;
use crate::{
    analysis::types::{self, Types},
    error::Result,
    ir::{AttrValue, DType, Model, NodeId, NodeSpec, Place, Shape, Type, Use, ValueId, types::TypeKind},
    ops,
    passes::support::{halved::halved, replace::behind_maker},
    plan::{Form, Halves, Plan, named_values},
    quant::halves::converted,
};

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    let Some(plan) = cx.plan.take() else { return Ok(0) };
    let done = plan.halves.as_ref().map_or(Ok(0), |halves| {
        let mut change = Change::new(model, &plan, halves);
        change.constants()?;
        change.nodes()?;
        change.borders()?;
        if halves.io {
            change.ends()?;
        }
        Ok(change.done)
    });
    cx.plan = Some(plan);
    done
}

struct Change<'a> {
    model: &'a mut Model,
    halves: &'a Halves,
    types: Types,
    /// The nodes in 16 bits.
    nodes: Vec<NodeId>,
    is_half: BTreeSet<NodeId>,
    limited: BTreeMap<ValueId, f32>,
    done: usize,
}

impl<'a> Change<'a> {
    fn new(model: &'a mut Model, plan: &Plan, halves: &'a Halves) -> Self {
        let (types, names) = (types::infer(model), named_values(model));
        // A second run finds them changed already.
        let is_float = |v: &ValueId| types.dtype(*v) == Some(DType::Float);
        let has_floats = |n: &NodeId| {
            let node = model.node(*n);
            let own = node.inputs().iter().enumerate().filter(|(i, _)| !ops::always_float(model, *n, *i));
            own.map(|(_, v)| v).chain(node.outputs()).flatten().any(is_float)
        };
        let planned = plan.nodes.iter().filter(|(_, e)| e.becomes == Form::Half);
        let made = planned.filter_map(|(name, e)| maker(model, *names.get(name)?, &e.op));
        let half: BTreeSet<NodeId> = made.filter(has_floats).collect();
        let nodes: Vec<NodeId> = model.all_nodes().into_iter().filter(|n| half.contains(n)).collect();
        let is_half = nodes.iter().copied().collect();
        let limited = halves.limited.iter().filter_map(|(name, &bound)| Some((*names.get(name)?, bound))).collect();
        Self { model, halves, types, nodes, is_half, limited, done: 0 }
    }

    fn is_float(&self, v: ValueId) -> bool {
        self.types.dtype(v) == Some(DType::Float)
    }

    /// Whether a node reads a float in 16 bits there.
    fn reads_half(&self, n: NodeId, i: usize) -> bool {
        self.is_half.contains(&n) && !ops::always_float(self.model, n, i)
    }

    fn half_name(&mut self, v: ValueId) -> String {
        format!("{}_{}", self.model.value(v).name(), self.halves.dtype)
    }

    fn cast(&self, x: ValueId, to: DType) -> NodeSpec {
        NodeSpec::new("Cast").input(x).attr("to", i64::from(to.to_onnx()))
    }

    fn ty(&self, v: ValueId, dtype: DType) -> Option<Type> {
        let shape: Option<Shape> = self.model.value(v).shape().cloned();
        self.model.value(v).ty.as_ref().map(|_| Type::tensor(dtype, shape))
    }

    /// Constants that nodes of 16 bits read.
    fn constants(&mut self) -> Result<()> {
        for v in self.model.value_ids() {
            let value = self.model.value(v);
            let Some(tensor) = value.constant().filter(|t| t.dtype() == DType::Float).cloned() else { continue };
            let readers: Vec<(NodeId, usize)> = value.readers().collect();
            let half: Vec<_> = readers.iter().copied().filter(|&(n, i)| self.reads_half(n, i)).collect();
            if half.is_empty() {
                continue;
            }
            let bound = self.limited.get(&v).copied();
            let made = halved(&tensor, self.halves.dtype, bound).map_err(|e| e.value(self.model.value(v).name()))?;
            if half.len() == readers.len() && !self.model.value(v).is_graph_output() {
                self.model.value_mut(v).ty = None;
                self.model.set_initializer(v, Some(made));
            } else {
                let name = self.half_name(v);
                let graph = self.model.value(v).graph();
                let other = self.model.add_initializer(graph, &name, made);
                half.into_iter().for_each(|(n, i)| self.model.set_input(n, i, Some(other)));
            }
            self.done += 1;
        }
        Ok(())
    }

    /// What nodes say of the type that they make.
    fn nodes(&mut self) -> Result<()> {
        let number = i64::from(self.halves.dtype.to_onnx());
        let float = i64::from(DType::Float.to_onnx());
        for &n in &self.nodes {
            let node = self.model.node(n);
            let makes = node.output(0).is_some_and(|v| self.types.dtype(v) == Some(DType::Float));
            let bound = node.output(0).and_then(|v| self.limited.get(&v)).copied();
            let attribute = ops::type_attribute(&node.op_type).filter(|_| makes);
            let shape_fill = node.is("ConstantOfShape") || node.is("Constant");
            let mut said = false;
            for a in &mut self.model.node_mut(n).attributes {
                match &mut a.value {
                    AttrValue::Int(i) if attribute.is_some_and(|(name, _)| name == a.name) => {
                        said = true;
                        if *i == float {
                            *i = number;
                        }
                    }
                    AttrValue::Tensor(t) if shape_fill && t.tensor.dtype() == DType::Float => {
                        said = true;
                        t.tensor = converted(&t.tensor, self.halves.dtype, bound)?;
                    }
                    _ => {}
                }
            }
            let default = attribute.filter(|(_, float)| *float && !said).map(|(name, _)| name);
            if let Some(name) = default {
                self.model.node_mut(n).attributes.push(crate::ir::Attr::new(name, number));
            }
            if shape_fill && !said && self.model.node(n).is("ConstantOfShape") {
                let zero = crate::ir::Tensor::from_f32(&[1], &[0.0]);
                let zero = converted(&zero, self.halves.dtype, None)?;
                self.model.node_mut(n).attributes.push(crate::ir::Attr::new("value", zero));
            }
            self.done += 1;
        }
        Ok(())
    }

    /// Casts: behind nodes of 16 bits for those that read 32, and the other way.
    fn borders(&mut self) -> Result<()> {
        let half = self.halves.dtype;
        for v in self.model.value_ids() {
            if !self.is_float(v) || self.model.value(v).constant().is_some() {
                continue;
            }
            let value = self.model.value(v);
            let graph = value.graph();
            let made_half = value.producer().is_some_and(|(n, _)| self.is_half.contains(&n));
            let readers: Vec<(NodeId, usize)> = value.readers().collect();
            let (in_half, in_float): (Vec<_>, Vec<_>) = readers.into_iter().partition(|&(n, i)| self.reads_half(n, i));
            if !made_half {
                if in_half.is_empty() {
                    continue;
                }
                let (name, ty) = (self.half_name(v), self.ty(v, half));
                let place = behind_maker(self.model, v, graph);
                let cast = self.model.insert_value(self.cast(v, half).typed_output(name, ty), place)?;
                in_half.into_iter().for_each(|(n, i)| self.model.set_input(n, i, Some(cast)));
                continue;
            }
            let outputs: Vec<Use> =
                self.model.value(v).uses().iter().copied().filter(|u| matches!(u, Use::Output(..))).collect();
            if !in_float.is_empty() || !outputs.is_empty() {
                let (name, ty) = (format!("{}_float", self.model.value(v).name()), self.ty(v, DType::Float));
                let place = behind_maker(self.model, v, graph);
                let cast = self.model.insert_value(self.cast(v, DType::Float).typed_output(name, ty), place)?;
                in_float.into_iter().for_each(|(n, i)| self.model.set_input(n, i, Some(cast)));
                if !outputs.is_empty() {
                    self.model.take_output_name(v, cast);
                    outputs.into_iter().for_each(|used| self.model.redirect(used, cast));
                    let spare = self.half_name(cast);
                    let spare = self.model.fresh_name(&spare);
                    self.model.rename(v, &spare);
                }
            }
            if let Some(ty) = self.ty(v, half) {
                self.model.value_mut(v).ty = Some(ty);
            }
        }
        Ok(())
    }

    /// The model's own inputs and outputs in 16 bits: the Casts there go, or change sides.
    fn ends(&mut self) -> Result<()> {
        let (half, main) = (self.halves.dtype, self.model.main());
        for v in self.model.graph(main).inputs().to_vec() {
            if !self.is_float(v) || self.model.value(v).initializer().is_some() {
                continue;
            }
            set_dtype(self.model, v, half);
            let readers: Vec<(NodeId, usize)> = self.model.value(v).readers().collect();
            let (casts, others): (Vec<_>, Vec<_>) = readers.into_iter().partition(|&(n, _)| {
                let node = self.model.node(n);
                node.is("Cast") && node.int("to") == Some(i64::from(half.to_onnx())) && node.graph() == main
            });
            for (cast, _) in casts {
                if let Some(made) = self.model.node(cast).output(0)
                    && self.model.replace_all_uses(made, v)
                {
                    self.model.remove_node(cast);
                }
            }
            if !others.is_empty() {
                let name = format!("{}_float", self.model.value(v).name());
                let wide = self.model.insert_value(self.cast(v, DType::Float).output(name), Place::Start(main))?;
                others.into_iter().for_each(|(n, i)| self.model.set_input(n, i, Some(wide)));
            }
        }
        for (i, v) in self.model.graph(main).outputs().to_vec().into_iter().enumerate() {
            let dtype = self.model.value(v).dtype().or_else(|| self.types.dtype(v));
            if dtype != Some(DType::Float) || self.model.value(v).is_input() {
                continue;
            }
            let maker = self.model.producer(v);
            let before = maker.filter(|&n| self.model.node(n).is("Cast")).and_then(|n| self.model.node(n).input(0));
            let before = before.filter(|&x| {
                let value = self.model.value(x);
                value.producer().is_some_and(|(n, _)| self.is_half.contains(&n)) && !value.is_graph_output()
            });
            let narrow = match before {
                Some(x) => x,
                None => {
                    let name = self.half_name(v);
                    let place = behind_maker(self.model, v, main);
                    self.model.insert_value(self.cast(v, half).output(name), place)?
                }
            };
            self.model.take_output_name(v, narrow);
            self.model.redirect(Use::Output(main, i), narrow);
            set_dtype(self.model, narrow, half);
        }
        Ok(())
    }
}

/// The node that the plan speaks of: that which makes the value, or, where the model's own output has got a Q/DQ pair, what is in
/// front of that.
fn maker(model: &Model, v: ValueId, op: &str) -> Option<NodeId> {
    let mut n = model.producer(v)?;
    for pair in ["DequantizeLinear", "QuantizeLinear"] {
        if model.node(n).op_type != op && model.node(n).is(pair) {
            n = model.node(n).input(0).and_then(|x| model.producer(x))?;
        }
    }
    let first = model.node(n).outputs().iter().copied().flatten().next();
    (model.node(n).op_type == op && first.is_some()).then_some(n)
}

/// Changes the element type that is declared.
fn set_dtype(model: &mut Model, v: ValueId, to: DType) {
    if let Some(TypeKind::Tensor { dtype, .. }) = model.value_mut(v).ty.as_mut().map(|t| &mut t.kind) {
        *dtype = Some(to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ir::text, passes::testing::check_with, plan::NodePlan};

    fn plan(nodes: &[(&str, &str)], io: bool, limited: &[(&str, f32)]) -> Context {
        let entry = |op: &str| NodePlan::new(None, op, Form::Half);
        let limited = limited.iter().map(|(name, bound)| ((*name).to_owned(), *bound)).collect();
        let nodes = nodes.iter().map(|(name, op)| ((*name).to_owned(), entry(op))).collect();
        let halves = Some(Halves { dtype: DType::Float16, io, limited });
        Context { plan: Some(Plan { nodes, halves, ..Plan::default() }), ..Context::default() }
    }

    #[test]
    fn casts_where_16_and_32_bits_meet_one_for_each_value() {
        check_with(
            run,
            &mut plan(&[("a", "Mul"), ("b", "Relu")], false, &[]),
            "(float[2] x) => (float[2] y, float[2] b) <float[2] k = {0.5, 2}> {
                a = Mul(x, k) b = Relu(a) c = Exp(a) d = Add(a, k) y = Add(c, d) }",
            "(float[2] x) => (float[2] y, float[2] b) <float[2] k = {0.5, 2}, float16[2] k_float16 = {0.5, 2}> {
                x_float16 = Cast <to = 10> (x)
                a = Mul(x_float16, k_float16)
                a_float = Cast <to = 1> (a)
                b_float16 = Relu(a)
                b = Cast <to = 1> (b_float16)
                c = Exp(a_float) d = Add(a_float, k) y = Add(c, d) }",
        );
    }

    #[test]
    fn attributes_that_tell_types_and_limited_constants() {
        check_with(
            run,
            &mut plan(
                &[("a", "Cast"), ("f", "ConstantOfShape"), ("b", "Add"), ("y", "Resize")],
                true,
                &[("f", 16384.0)],
            ),
            "(int64[1,1,2,2] x, int64[4] s) => (float[n,c,h,w] y) <float[4] scales = {1, 1, 2, 2}> {
                a = Cast <to = 1> (x)
                f = ConstantOfShape <value = float[1] {-1000000000.0}> (s)
                b = Add(a, f)
                y = Resize(b, \"\", scales) }",
            "(int64[1,1,2,2] x, int64[4] s) => (float16[n,c,h,w] y) <float[4] scales = {1, 1, 2, 2}> {
                a = Cast <to = 10> (x)
                f = ConstantOfShape <value = float16[1] {-16384.0}> (s)
                b = Add(a, f)
                y = Resize(b, \"\", scales) }",
        );
    }

    #[test]
    fn inputs_and_outputs_in_16_bits() {
        check_with(
            run,
            &mut plan(&[("a", "Relu")], true, &[]),
            "(float[2] x) => (float[2] a, float[2] y) { a = Relu(x) y = Exp(x) }",
            "(float16[2] x) => (float16[2] a, float16[2] y) {
                x_float = Cast <to = 1> (x)
                a = Relu(x)
                y_inner = Exp(x_float)
                y = Cast <to = 10> (y_inner) }",
        );
    }

    #[test]
    fn captured_values_are_cast_once_outside() {
        let mut m = text::parse(
            "(bool c, float[2] x) => (float[2] y) {
                a = Relu(x)
                y = If (c) <then_branch = t () => (float[2] p) { p = Exp(a) },
                            else_branch = e () => (float[2] q) { o = Neg(a) q = Abs(o) }>
            }",
        )
        .unwrap();
        let mut cx = plan(&[("a", "Relu"), ("o", "Neg"), ("q", "Abs")], false, &[]);
        assert!(run(&mut m, &mut cx).unwrap() > 0);
        m.verify().unwrap();
        let types = types::infer(&m);
        let of = |name: &str| {
            let v = m.value_ids().into_iter().find(|&v| m.value(v).name() == name).unwrap();
            types.dtype(v).unwrap()
        };
        assert_eq!([of("a"), of("o")], [DType::Float16; 2]);
        assert_eq!([of("p"), of("q"), of("y")], [DType::Float; 3]);
    }
}
