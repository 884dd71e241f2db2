//! Eliminates Transposes that undo each other around nodes for which the order of the axes does not matter.
//!
//! ```text
//! before: t = Transpose<perm = [0,2,3,1]>(x); r = Relu(t); y = Transpose<perm = [0,3,1,2]>(r)      after: y = Relu(x)
//! ```
//!
//! The nodes in between are elementwise ones, of one operand or of several with constants among them (which are
//! transposed), and Concat. All values that lead to the second Transpose are taken together: each must come from a
//! Transpose of the inverse order or be a constant. Where something else reads one of these values, a Transpose stays in
//! front of it; it is done only if the number of Transposes falls.

use std::collections::{BTreeSet, HashMap};

use super::{
    Context,
    support::{convert::convert, permute},
};
use crate::{
    error::Result,
    ir::{Attr, AttrValue, DType, Model, NodeId, NodeSpec, Place, Shape, Tensor, Type, Use, ValueId},
};

/// Largest number of nodes between Transposes that are looked at.
const MAX_NODES: usize = 64;

/// See the module's documentation.
pub fn run(model: &mut Model, _: &mut Context) -> Result<usize> {
    let mut changes = 0;
    for node in model.all_nodes() {
        if model.try_node(node).is_none() {
            continue;
        }
        let Some(perm) = permute::of_transpose(model, node) else { continue };
        let Some(region) = Region::above(model, node, perm) else { continue };
        if region.gains(model) {
            region.carry_out(model)?;
            changes += 1;
        }
    }
    Ok(changes)
}

/// Nodes whose values are to be computed in another order of axes.
struct Region {
    /// Axis `i` of the new order is axis `perm[i]` of the old.
    perm: Vec<usize>,
    nodes: BTreeSet<NodeId>,
    /// Values behind a Transpose of the inverse order, with what that reads.
    leaves: HashMap<ValueId, ValueId>,
}

impl Region {
    /// What leads to a Transpose with this permutation, if all of it can change its order.
    fn above(model: &Model, transpose: NodeId, perm: Vec<usize>) -> Option<Self> {
        let mut region = Self { nodes: BTreeSet::new(), leaves: HashMap::new(), perm };
        let graph = model.node(transpose).graph();
        let mut todo = vec![model.node(transpose).input(0)?];
        while let Some(v) = todo.pop() {
            if region.leaves.contains_key(&v) || model.value(v).constant().is_some_and(|t| region.reorders(t)) {
                continue;
            }
            let node = model.producer(v).filter(|&n| model.node(n).graph() == graph)?;
            let n = model.node(node);
            if let Some(p) = permute::of_transpose(model, node) {
                let undone = p.len() == region.perm.len() && region.perm.iter().enumerate().all(|(i, &q)| p[q] == i);
                region.leaves.insert(v, n.input(0).filter(|_| undone)?);
                continue;
            }
            if !order_does_not_matter(model, node, region.perm.len()) || region.nodes.len() == MAX_NODES {
                return None;
            }
            if region.nodes.insert(node) {
                todo.extend(element_inputs(model, node));
            }
        }
        (!region.leaves.is_empty()).then_some(region)
    }

    /// Whether a constant operand can be brought into the new order.
    fn reorders(&self, t: &Tensor) -> bool {
        t.rank() <= self.perm.len() && (t.len() == 1 || t.dtype() == DType::Float)
    }

    fn outputs(&self, model: &Model) -> Vec<ValueId> {
        self.nodes.iter().filter_map(|&n| model.node(n).output(0)).collect()
    }

    /// Whether a use of one of the region's values is a Transpose that falls away.
    fn is_sink(&self, model: &Model, used: Use) -> bool {
        matches!(used, Use::Input(n, 0) if permute::of_transpose(model, n).is_some_and(|p| p == self.perm))
    }

    fn is_inside(&self, used: Use) -> bool {
        matches!(used, Use::Input(n, _) if self.nodes.contains(&n))
    }

    /// Whether the number of Transposes falls.
    fn gains(&self, model: &Model) -> bool {
        let (mut gone, mut new) = (0, 0);
        for v in self.outputs(model) {
            let uses = model.value(v).uses();
            gone += uses.iter().filter(|&&u| self.is_sink(model, u)).count();
            new += usize::from(uses.iter().any(|&u| !self.is_sink(model, u) && !self.is_inside(u)));
        }
        for &v in self.leaves.keys() {
            let uses = model.value(v).uses();
            gone += uses.iter().filter(|&&u| self.is_sink(model, u)).count();
            gone += usize::from(uses.iter().all(|&u| self.is_sink(model, u) || self.is_inside(u)));
        }
        gone > new
    }

    fn carry_out(&self, model: &mut Model) -> Result<()> {
        // What others read in the old order, before anything changes: (old value, its outside uses, its sinks).
        let outside: Vec<_> = self.outputs(model).into_iter().chain(self.sorted_leaves()).collect();
        let outside: Vec<_> = outside.into_iter().map(|v| (v, model.value(v).uses().to_vec())).collect();
        for &node in &self.nodes {
            for i in 0..model.node(node).inputs().len() {
                let Some(v) = model.node(node).input(i) else { continue };
                if let Some(&source) = self.leaves.get(&v) {
                    model.set_input(node, i, Some(source));
                } else if let Some(t) = model.constant_input(node, i).filter(|t| t.len() > 1).cloned() {
                    self.reorder_constant(model, node, i, &t)?;
                }
            }
            self.reorder_axis(model, node);
        }
        for (v, uses) in outside {
            self.reconnect(model, v, &uses);
        }
        Ok(())
    }

    fn sorted_leaves(&self) -> Vec<ValueId> {
        let mut leaves: Vec<_> = self.leaves.keys().copied().collect();
        leaves.sort_unstable();
        leaves
    }

    /// Takes away the Transposes that read `v`, whose value is in the new order now (a leaf's source is), and puts one
    /// in front of what reads it in the old order.
    fn reconnect(&self, model: &mut Model, v: ValueId, uses: &[Use]) {
        let now = self.leaves.get(&v).copied().unwrap_or(v);
        let is_leaf = now != v;
        let (sinks, others): (Vec<Use>, Vec<Use>) =
            uses.iter().filter(|&&u| !self.is_inside(u)).partition(|&&u| self.is_sink(model, u));
        if !is_leaf && !others.is_empty() {
            let mut inverse = vec![0i64; self.perm.len()];
            for (i, &p) in (0i64..).zip(&self.perm) {
                inverse[p] = i;
            }
            let Some(producer) = model.producer(v) else { return };
            let name = format!("{}_Transpose", model.value(v).name());
            let spec = NodeSpec::new("Transpose").name(&name).attr("perm", inverse).input(v);
            let back = model.insert(spec.output(format!("{name}_Output")), Place::After(producer));
            let Some(old_order) = model.node(back).output(0) else { return };
            if model.value(v).is_graph_output() {
                model.take_output_name(v, old_order);
            }
            for used in others {
                model.redirect(used, old_order);
            }
        }
        if !is_leaf {
            self.reorder_type(model, v);
        }
        for used in sinks {
            let Use::Input(sink, _) = used else { continue };
            let Some(y) = model.node(sink).output(0) else { continue };
            if model.replace_all_uses(y, now) {
                model.remove_node(sink);
            } else {
                // The graph hands out both under names that callers know.
                convert(model, sink, "Identity", &[Some(now)], Vec::new());
            }
        }
    }

    fn reorder_type(&self, model: &mut Model, v: ValueId) {
        let ty = model.value_mut(v).ty.take();
        let dtype = ty.as_ref().and_then(Type::dtype);
        let dims = ty.as_ref().and_then(Type::shape).map(|s| &s.dims).filter(|d| d.len() == self.perm.len());
        let dims = dims.map(|d| self.perm.iter().map(|&p| d[p].clone()).collect());
        model.value_mut(v).ty = dtype.map(|dtype| Type::tensor(dtype, dims.map(Shape::new)));
    }

    fn reorder_constant(&self, model: &mut Model, node: NodeId, i: usize, t: &Tensor) -> Result<()> {
        let mut dims = vec![1; self.perm.len() - t.rank()];
        dims.extend(t.dims());
        let new = permute::transposed(&t.reshaped(dims)?, &self.perm)?;
        super::support::constants::set_constant_input(model, node, i, new, "constant");
        Ok(())
    }

    fn reorder_axis(&self, model: &mut Model, node: NodeId) {
        let Some(axis) = axis(model, node, self.perm.len()) else { return };
        let Some(new) = self.perm.iter().position(|&p| p == axis).and_then(|a| i64::try_from(a).ok()) else { return };
        for a in &mut model.node_mut(node).attributes {
            if a.name == "axis" {
                *a = Attr { value: AttrValue::Int(new), ..a.clone() };
            }
        }
    }
}

/// The axis of a Concat.
fn axis(model: &Model, node: NodeId, rank: usize) -> Option<usize> {
    let n = model.node(node);
    let axis = n.int("axis").filter(|_| n.is("Concat"))?;
    let axis = if axis < 0 { axis.checked_add(i64::try_from(rank).ok()?)? } else { axis };
    usize::try_from(axis).ok().filter(|&a| a < rank)
}

/// The inputs that must have the output's order of axes.
fn element_inputs(model: &Model, node: NodeId) -> Vec<ValueId> {
    let n = model.node(node);
    let count = if n.op_type == "Clip" { 1 } else { n.inputs().len() };
    n.inputs().iter().take(count).copied().flatten().collect()
}

fn order_does_not_matter(model: &Model, node: NodeId, rank: usize) -> bool {
    let n = model.node(node);
    let constant_bounds =
        || (1..n.inputs().len()).all(|i| n.input(i).is_none() || model.constant_input(node, i).is_some());
    n.in_onnx_domain()
        && n.outputs().len() == 1
        && match n.op_type.as_str() {
            "Relu" | "LeakyRelu" | "Elu" | "Selu" | "Celu" | "Sigmoid" | "HardSigmoid" | "HardSwish" | "Tanh"
            | "Softplus" | "Softsign" | "Gelu" | "Mish" | "Erf" | "Exp" | "Log" | "Sqrt" | "Abs" | "Neg"
            | "Reciprocal" | "Floor" | "Ceil" | "Round" | "Cast" | "Identity" => true,
            "Clip" => constant_bounds(),
            "Add" | "Sub" | "Mul" | "Div" | "Max" | "Min" | "Pow" | "PRelu" => true,
            // A constant in a Concat is no operand that broadcasts.
            "Concat" => {
                axis(model, node, rank).is_some()
                    && n.inputs()
                        .iter()
                        .flatten()
                        .all(|&v| model.value(v).constant().is_none_or(|t| t.rank() == rank && t.len() > 1))
            }
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::{super::support::testing::after, run};

    const X: &str = "
        float[1,2,3,4] x
        float[1,2,3,4] z
        float[2] c = {5, 6}
        float[] s = {7}
        a = Transpose <perm = [0, 2, 3, 1]> (x)
        b = Transpose <perm = [0, 2, 3, 1]> (z)
    ";

    fn eliminate(nodes: &str) -> String {
        after(run, &format!("{X}{nodes}"))
    }

    #[test]
    fn through_elementwise_nodes() {
        let y = "y = Transpose <perm = [0, 3, 1, 2]> (r)\nreturn y";
        assert_eq!(eliminate(&format!("r = Relu(a)\n{y}")), "y = Relu(x)");
        assert_eq!(eliminate(&format!("r = Add(a, b)\n{y}")), "y = Add(x, z)");
        assert_eq!(
            eliminate(&format!("q = Mul(a, s)\nr = Mul(c, q)\n{y}")),
            "q = Mul(x, [7.0]); y = Mul([5.0, 6.0], q)"
        );
        assert_eq!(eliminate(&format!("r = Concat <axis = -1> (a, b)\n{y}")), "y = Concat(x, z)");
    }

    #[test]
    fn others_see_the_old_order() {
        let y = "y = Transpose <perm = [0, 3, 1, 2]> (r)\nr2 = Relu(r)\nreturn y\nreturn r2\n";
        let got = eliminate(&format!("r = Add(a, b)\n{y}"));
        assert!(got.starts_with("y = Add(x, z); r_Transpose_Output = Transpose(y)"), "{got}");
        // One for one is no gain.
        let kept = format!("r = Softmax <axis = 3> (a)\n{y}");
        assert!(eliminate(&kept).contains("Softmax(a)"));
    }

    #[test]
    fn a_constant_takes_the_new_order() {
        let mut m =
            crate::ir::testing::model(&format!("{X}r = Mul(a, c)\ny = Transpose <perm = [0, 3, 1, 2]> (r)\nreturn y"));
        run(&mut m, &mut Default::default()).unwrap();
        let last = m.graph(m.main()).last().unwrap();
        assert_eq!(m.constant_input(last, 1).unwrap().dims(), [1, 2, 1, 1]);
    }
}
