//! A plan run once for each [`Alternative`] in it, from there on only: what comes before is computed once for all.

use std::collections::BTreeMap;

use tract_onnx::prelude::*;

use super::{
    alternative::Alternative,
    plan::{Part, Plan, Slots, Stop},
};
use crate::error::{Error, Result};

/// Is given the number of a trial and what the model then answers.
pub(super) type Judge<'a> = dyn FnMut(usize, &[TValue]) -> Result<()> + 'a;

/// The alternatives in the plan of a piece.
#[derive(Debug)]
pub(super) struct Alternatives {
    /// By number, their nodes.
    nodes: BTreeMap<usize, Vec<usize>>,
    /// For each node of the plan: nothing but alternatives hangs on it.
    beside: Vec<bool>,
}

impl Alternatives {
    pub(super) fn of(model: &TypedModel) -> TractResult<Self> {
        let mut beside = vec![true; model.nodes.len()];
        let mut nodes: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let ends: Vec<usize> = model.outputs.iter().map(|o| o.node).collect();
        for n in model.eval_order()?.into_iter().rev() {
            let node = model.node(n);
            let main = |i: &InletId| !beside[i.node] && (i.slot == 0 || !model.node(i.node).op_is::<Alternative>());
            beside[n] = !ends.contains(&n) && !node.outputs.iter().flat_map(|o| &o.successors).any(main);
            if let Some(alternative) = node.op_as::<Alternative>() {
                nodes.entry(alternative.number).or_default().push(n);
            }
        }
        Ok(Self { nodes, beside })
    }
}

impl Plan {
    /// Runs it for each alternative, which then stands in the place of its value.
    pub(super) fn run_trials(&self, inputs: &[Tensor], judge: &mut Judge<'_>) -> Result<(), Stop> {
        let mut slots = self.filled(inputs);
        for (p, part) in self.parts.iter().enumerate() {
            let fed = part.fed(&mut slots)?;
            let mut values: Vec<TVec<TValue>> = vec![tvec!(); part.plan.model().nodes.len()];
            let outputs = part.eval(fed.clone(), |cx, op_state, node, inputs| {
                let made = tract_onnx::tract_core::plan::eval(cx, op_state, node, inputs)?;
                values[node.id].clone_from(&made);
                Ok(made)
            })?;
            for (&number, nodes) in &part.alternatives.nodes {
                let mut others = slots.clone();
                part.give(&mut others, part.changed(fed.clone(), &values, nodes)?);
                for later in &self.parts[p + 1..] {
                    later.run_main(&mut others)?;
                }
                judge(number, &self.answers(&others)?).map_err(Stop::Observer)?;
            }
            part.give(&mut slots, outputs);
        }
        Ok(())
    }
}

impl Part {
    /// Its outputs with alternatives in place; `values` are those of all nodes without.
    fn changed(
        &self,
        fed: TVec<TValue>,
        values: &[TVec<TValue>],
        alternatives: &[usize],
    ) -> Result<TVec<TValue>, Stop> {
        let model = self.plan.model();
        let mut behind = vec![false; model.nodes.len()];
        let mut stack = alternatives.to_vec();
        while let Some(n) = stack.pop() {
            for next in model.node(n).outputs.iter().flat_map(|o| &o.successors).map(|i| i.node) {
                if !self.alternatives.beside[next] && !std::mem::replace(&mut behind[next], true) {
                    stack.push(next);
                }
            }
        }
        self.eval(fed, |cx, op_state, node, mut inputs| match node.id {
            id if alternatives.contains(&id) && inputs.len() == 2 => Ok(tvec!(inputs.remove(1))),
            id if behind[id] => tract_onnx::tract_core::plan::eval(cx, op_state, node, inputs),
            id => Ok(values[id].clone()),
        })
    }

    /// Runs it without what only alternatives need.
    fn run_main(&self, slots: &mut Slots) -> Result<(), Stop> {
        let fed = self.fed(slots)?;
        let outputs = self.eval(fed, |cx, op_state, node, inputs| match self.alternatives.beside[node.id] {
            true => Ok(node.outputs.iter().map(|_| Tensor::default().into_tvalue()).collect()),
            false => tract_onnx::tract_core::plan::eval(cx, op_state, node, inputs),
        })?;
        self.give(slots, outputs);
        Ok(())
    }
}

/// An output that no piece made.
pub(super) fn missing() -> Stop {
    Stop::Observer(Error::bug("a value was not computed"))
}

#[cfg(test)]
mod tests {
    use crate::{
        ir::{Tensor, testing::model},
        runtime::{Runtime, tract::Tract},
    };

    #[test]
    fn each_alternative_alone() {
        // Over several pieces, with one alternative of two values and one whose value is a constant.
        let mut text = "float[n] x \n float[1] one = {1} \n a = Neg(x) \n b = Add(x, one) \n \
                        p = Alternative <number = 0> (x, a) \n q = Alternative <number = 0> (b, a) \n \
                        r = Alternative <number = 1> (one, one) \n v0 = Mul(p, q)"
            .to_owned();
        for i in 0..400 {
            text += &format!(" \n v{} = Add(v{i}, r)", i + 1);
        }
        text += " \n t = Neg(v400) \n y = Alternative <number = 2> (v400, t) \n return y, v0";
        let session = Tract.load(&model(&text), &[]).unwrap();
        let inputs = [Tensor::from_f32(&[2], &[2.0, 3.0])];
        let floats = |outputs: &[Tensor]| outputs.iter().map(|t| t.to_f32().unwrap()).collect::<Vec<_>>();
        assert_eq!(floats(&session.run(&inputs).unwrap()), [[406.0, 412.0], [6.0, 12.0]]);
        let mut seen = Vec::new();
        session
            .run_trials(&inputs, &mut |number, outputs| {
                seen.push((number, floats(outputs)));
                Ok(())
            })
            .unwrap();
        assert_eq!(
            seen,
            [(0, vec![vec![404.0, 409.0], vec![4.0, 9.0]]), (2, vec![vec![-406.0, -412.0], vec![6.0, 12.0]])]
        );
    }
}
