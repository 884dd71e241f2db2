//! Quantizes the data of products at run time, where the plan calls them dynamic: `DynamicQuantizeLinear` and
//! `DequantizeLinear` in front of the data, once for all that read them in one graph, and `DequantizeLinear` over the weight.
//! A Gemm becomes MatMul and Add.
//!
//! ```text
//! before: y = Gemm<transB = 1>(x, w, b)
//! after:  q, s, z = DynamicQuantizeLinear(x); x' = DequantizeLinear(q, s, z)
//!         y = Add(MatMul(x', DequantizeLinear(w_quantized)), b)
//! ```

use std::collections::HashMap;

use super::{
    Context,
    support::{convert::convert, pairs::dynamic_pair, permute},
};
use crate::{
    error::{Error, Result},
    ir::{GraphId, Model, NodeId, NodeSpec, Place, ValueId},
    plan::{Form, KnownReads, Plan, Weight, named_values},
};

/// The operators that are written so.
const OPS: &[&str] = &["MatMul", "Gemm", "Conv"];

/// See the module's documentation. Without a plan there is nothing to do.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    let Some(plan) = cx.plan.take() else { return Ok(0) };
    let done = insert_all(model, &plan, &cx.known);
    cx.plan = Some(plan);
    done
}

fn insert_all(model: &mut Model, plan: &Plan, known: &KnownReads) -> Result<usize> {
    let dynamic: Vec<_> = plan.nodes.iter().filter(|(_, n)| n.becomes == Form::Dynamic).collect();
    if dynamic.is_empty() {
        return Ok(0);
    }
    let names = named_values(model);
    let mut found: HashMap<NodeId, Option<&Weight>> = HashMap::new();
    for (name, entry) in dynamic {
        // Names that the model does not have are reported by the pass that quantizes the other dynamic operators.
        let Some(id) = names.get(name).and_then(|&v| model.producer(v)) else { continue };
        if OPS.iter().any(|op| model.node(id).is(op)) && !is_done(model, id) {
            found.insert(id, entry.weight.as_ref());
        }
    }
    // The order of the file, not of the names.
    let nodes: Vec<NodeId> = model.nodes_below(model.main()).into_iter().filter(|n| found.contains_key(n)).collect();
    let mut inserter = Inserter { model, known, data: HashMap::new(), weights: HashMap::new() };
    for &id in &nodes {
        let (label, op) = (inserter.model.node_label(id), inserter.model.node(id).op_type.clone());
        inserter.quantize(id, found[&id]).map_err(|e| e.node(label, op))?;
    }
    Ok(nodes.len())
}

/// Whether the node reads data and weight as this pass leaves them.
fn is_done(model: &Model, id: NodeId) -> bool {
    let made_by = |i: usize| model.node(id).input(i).and_then(|v| model.producer(v)).map(|n| model.node(n));
    [0, 1].iter().all(|&i| made_by(i).is_some_and(|n| n.is("DequantizeLinear")))
}

struct Inserter<'a> {
    model: &'a mut Model,
    known: &'a KnownReads,
    /// Dequantized data, for all readers in a graph.
    data: HashMap<(ValueId, GraphId), ValueId>,
    /// Dequantized weights, by how they are quantized and whether they are transposed.
    weights: HashMap<(ValueId, GraphId, String, bool), ValueId>,
}

impl Inserter<'_> {
    fn quantize(&mut self, id: NodeId, weight: Option<&Weight>) -> Result<()> {
        let weight =
            weight.ok_or_else(|| Error::config("the plan makes this node dynamic, but says nothing of its weight"))?;
        let node = self.model.node(id);
        let trans_b = node.is("Gemm") && node.int("transB").unwrap_or(0) != 0;
        let scaled = |name| node.float(name).is_some_and(|v| v != 1.0);
        if node.is("Gemm") && (scaled("alpha") || scaled("beta") || node.int("transA").unwrap_or(0) != 0) {
            return Err(Error::config("a Gemm with alpha, beta or transA cannot be dynamic").help("let it be float"));
        }
        let x = node.input(0).ok_or_else(|| Error::config("it has no data input"))?;
        let w = self.weight(id, weight, trans_b)?;
        let x = self.data(id, x)?;
        self.model.set_input(id, 0, Some(x));
        self.model.set_input(id, 1, Some(w));
        if self.model.node(id).is("Gemm") {
            self.split_gemm(id, x, w)?;
        }
        Ok(())
    }

    /// Makes MatMul and Add of a Gemm, whose weight is laid out already. The Add keeps its name and output.
    fn split_gemm(&mut self, id: NodeId, x: ValueId, w: ValueId) -> Result<()> {
        let Some(bias) = self.model.node(id).input(2) else {
            convert(self.model, id, "MatMul", &[Some(x), Some(w)], Vec::new());
            return Ok(());
        };
        let out = self.model.node(id).output(0).ok_or_else(|| Error::malformed("it has no output"))?;
        let product = format!("{}_MatMul_Output", self.model.value(out).name());
        let spec = NodeSpec::new("MatMul").input(x).input(w).output(product);
        let matmul = self.model.insert(spec, Place::Before(id));
        let product = self.model.node(matmul).output(0);
        convert(self.model, id, "Add", &[product, Some(bias)], Vec::new());
        Ok(())
    }

    /// The data, quantized and dequantized in the graph of the node that reads them: a branch may not run.
    fn data(&mut self, reader: NodeId, x: ValueId) -> Result<ValueId> {
        let graph = self.model.node(reader).graph();
        if let Some(&v) = self.data.get(&(x, graph)) {
            return Ok(v);
        }
        let real = dynamic_pair(self.model, x, Place::Before(reader))?;
        self.data.insert((x, graph), real);
        Ok(real)
    }

    fn weight(&mut self, id: NodeId, plan: &Weight, transpose: bool) -> Result<ValueId> {
        let constant = self.model.node(id).input(1).and_then(|v| Some((v, self.model.value(v).constant()?.clone())));
        let (value, tensor) = constant.ok_or_else(|| Error::config("its weight is not constant"))?;
        let graph = self.model.node(id).graph();
        let key = (value, graph, format!("{plan:?}"), transpose);
        if let Some(&v) = self.weights.get(&key) {
            return Ok(v);
        }
        let q = plan.quantize_alike(&tensor, self.known.of(self.model.value(value).name()))?;
        let (codes, axis) = match transpose {
            true => (permute::transposed(&q.values, &[1, 0])?, q.axis.map(|axis| 1 - axis.min(1))),
            false => (q.values, q.axis),
        };
        let name = self.model.value(value).name().to_owned();
        let mut add = |suffix: &str, tensor| self.model.add_initializer(graph, &format!("{name}_{suffix}"), tensor);
        let mut inputs = vec![Some(add("quantized", codes)), Some(add("scale", q.scale))];
        if q.zero_point.to_i64()?.iter().any(|&z| z != 0) {
            inputs.push(Some(add("zero_point", q.zero_point)));
        }
        let mut spec =
            NodeSpec::new("DequantizeLinear").inputs(inputs).output(format!("{name}_DequantizeLinear_Output"));
        if let Some(axis) = axis {
            spec = spec.attr("axis", axis as i64);
        }
        let real = self.model.insert_value(spec, Place::Before(id))?;
        self.weights.insert(key, real);
        Ok(real)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ir::text, passes::testing::check_with};

    fn context(nodes: &str) -> Context {
        let plan = Plan::from_yaml(&format!("target: t\nactivations: {{}}\nnodes:\n{nodes}")).unwrap();
        Context { plan: Some(plan), ..Context::default() }
    }

    fn dynamic(name: &str, op: &str, weight: &str) -> String {
        format!("  {name}: {{op: {op}, becomes: dynamic, weight: {weight}}}\n")
    }

    #[test]
    fn readers_share_the_quantized_data() {
        let columns = "{dtype: int8, axis: 1, symmetric: true}";
        check_with(
            run,
            &mut context(
                &(dynamic("a", "MatMul", columns) + &dynamic("b", "MatMul", "{dtype: int8, symmetric: true}")),
            ),
            "(float[n, 2] x) => (float[n, 2] a, float[n, 2] b, float[n, 2] c)
            <float[2, 2] w = {127, 1, -3, 254}> { a = MatMul(x, w) b = MatMul(x, w) c = MatMul(x, w) }",
            "(float[n, 2] x) => (float[n, 2] a, float[n, 2] b, float[n, 2] c)
            <float[2, 2] w = {127, 1, -3, 254}, int8[2, 2] w_quantized = {127, 0, -3, 127}, float[2] w_scale = {1, 2},
             int8[2, 2] w_quantized_1 = {64, 0, -2, 127}, float w_scale_1 = {2}> {
                w_DequantizeLinear_Output = DequantizeLinear <axis = 1> (w_quantized, w_scale)
                x_quantized, x_scale, x_zero_point = DynamicQuantizeLinear(x)
                x_DequantizeLinear_Output = DequantizeLinear(x_quantized, x_scale, x_zero_point)
                a = MatMul(x_DequantizeLinear_Output, w_DequantizeLinear_Output)
                w_DequantizeLinear_Output_1 = DequantizeLinear(w_quantized_1, w_scale_1)
                b = MatMul(x_DequantizeLinear_Output, w_DequantizeLinear_Output_1)
                c = MatMul(x, w)
            }",
        );
    }

    #[test]
    fn a_gemm_is_laid_out() {
        check_with(
            run,
            &mut context(&dynamic("y", "Gemm", "{dtype: int8, axis: 0, symmetric: true}")),
            "(float[n, 3] x) => (float[n, 2] y) <float[2, 3] w = {127, 1, 2, 3, 4, 254}, float[2] b = {1, 2}> {
                y = Gemm <transB = 1> (x, w, b)
            }",
            "(float[n, 3] x) => (float[n, 2] y)
            <int8[3, 2] w_quantized = {127, 2, 1, 2, 2, 127}, float[2] w_scale = {1, 2}, float[2] b = {1, 2}> {
                w_DequantizeLinear_Output = DequantizeLinear <axis = 1> (w_quantized, w_scale)
                x_quantized, x_scale, x_zero_point = DynamicQuantizeLinear(x)
                x_DequantizeLinear_Output = DequantizeLinear(x_quantized, x_scale, x_zero_point)
                y_MatMul_Output = MatMul(x_DequantizeLinear_Output, w_DequantizeLinear_Output)
                y = Add(y_MatMul_Output, b)
            }",
        );
    }

    #[test]
    fn a_branch_quantizes_for_itself() {
        let text = "<ir_version: 8, opset_import: [\"\" : 17]> g (bool c, float[n, 2] x) => (float[n, 2] y)
            <float[2, 2] w = {127, 1, -3, 254}> {
                y = If (c) <then_branch = t () => (a) { a = MatMul(x, w) }, else_branch = e () => (b) { b = Neg(x) }>
            }";
        let mut model = text::parse(text).unwrap();
        let weight = "{dtype: int8, axis: 1, symmetric: true}";
        assert_eq!(run(&mut model, &mut context(&dynamic("a", "MatMul", weight))).unwrap(), 1);
        model.verify().unwrap();
        assert_eq!(model.nodes(model.main()).len(), 1);
    }

    #[test]
    fn says_what_is_wrong_with_a_plan() {
        let failed =
            |text: &str, plan: &str| run(&mut text::parse(text).unwrap(), &mut context(plan)).unwrap_err().to_string();
        let weight = "{dtype: int8, axis: 1, symmetric: true}";
        let two = "(float[n, 2] x, float[2, 2] w) => (float y) { y = MatMul(x, w) }";
        assert!(failed(two, &dynamic("y", "MatMul", weight)).contains("not constant"));
        let one = "(float[n, 2] x) => (float y) <float[2, 2] w = {1, 2, 3, 4}> { y = Gemm <alpha = 2.0> (x, w) }";
        assert!(failed(one, &dynamic("y", "Gemm", weight)).contains("alpha"));
        assert!(failed(one, "  y: {op: Gemm, becomes: dynamic}\n").contains("nothing of its weight"));
    }
}
