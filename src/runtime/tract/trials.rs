//! A plan run with other [`Alternative`]s in place than the first time, from there on only: what comes before is computed
//! once for all trials.

use std::collections::BTreeMap;

use tract_onnx::prelude::*;

use super::{
    alternative::Alternative,
    plan::{Part, Plan, Stop},
};
use crate::{
    error::{Error, Result},
    runtime::Trials,
};

/// Is given the number of a trial and what the model then answers.
pub(super) type Judge<'a> = dyn FnMut(usize, &[TValue]) -> Result<()> + 'a;

/// Whether the alternative of a number stands in the place of its value.
type Chosen<'a> = dyn Fn(usize) -> bool + 'a;

/// The alternatives in the plan of a piece.
#[derive(Debug)]
pub(super) struct Alternatives {
    /// By number, their nodes.
    nodes: BTreeMap<usize, Vec<usize>>,
    /// All nodes in the order in which they are computed.
    order: Vec<usize>,
}

impl Alternatives {
    pub(super) fn of(model: &TypedModel) -> TractResult<Self> {
        let order = model.eval_order()?;
        let mut nodes: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for &n in &order {
            if let Some(alternative) = model.node(n).op_as::<Alternative>() {
                nodes.entry(alternative.number).or_default().push(n);
            }
        }
        Ok(Self { nodes, order })
    }

    fn has_any(&self, set: &[usize]) -> bool {
        set.iter().any(|number| self.nodes.contains_key(number))
    }

    /// For each node, whether an output hangs on it with these in place.
    fn needed(&self, model: &TypedModel, chosen: &Chosen<'_>) -> Vec<bool> {
        let mut needed = vec![false; model.nodes.len()];
        model.outputs.iter().for_each(|o| needed[o.node] = true);
        for &n in self.order.iter().rev().filter(|&&n| !model.node(n).inputs.is_empty()) {
            if needed[n] {
                let node = model.node(n);
                match taken(node, chosen) {
                    Some(slot) => needed[node.inputs[slot].node] = true,
                    None => node.inputs.iter().for_each(|i| needed[i.node] = true),
                }
            }
        }
        needed
    }
}

/// Which of its two inputs an alternative hands on.
fn taken(node: &TypedNode, chosen: &Chosen<'_>) -> Option<usize> {
    node.op_as::<Alternative>().map(|a| usize::from(chosen(a.number)))
}

impl Plan {
    /// Runs it with the base of the trials in place, and once more for each set, in the order of the pieces in which they
    /// begin. Returns what it answers with the base.
    pub(super) fn run_trials(
        &self,
        inputs: &[Tensor],
        trials: &Trials,
        judge: &mut Judge<'_>,
    ) -> Result<TVec<TValue>, Stop> {
        let base = |number: usize| trials.base.contains(&number);
        let needed: Vec<Vec<bool>> =
            self.parts.iter().map(|part| part.alternatives.needed(part.plan.model(), &base)).collect();
        let mut slots = self.filled(inputs);
        for (p, part) in self.parts.iter().enumerate() {
            let begins = |set: &[usize]| {
                part.alternatives.has_any(set) && !self.parts[..p].iter().any(|before| before.alternatives.has_any(set))
            };
            let here: Vec<usize> = (0..trials.sets.len()).filter(|&k| begins(&trials.sets[k])).collect();
            let fed = part.fed(&mut slots)?;
            let mut values: Vec<TVec<TValue>> = vec![tvec!(); part.plan.model().nodes.len()];
            let outputs =
                part.run_with(fed.clone(), &needed[p], &base, if here.is_empty() { None } else { Some(&mut values) })?;
            for k in here {
                let set = &trials.sets[k];
                let chosen = |number: usize| base(number) != set.contains(&number);
                let mut others = slots.clone();
                part.give(&mut others, part.changed(fed.clone(), &values, set, &chosen)?);
                for (later, as_before) in self.parts.iter().zip(&needed).skip(p + 1) {
                    let fed = later.fed(&mut others)?;
                    let outputs = match later.alternatives.has_any(set) {
                        true => {
                            let needed = later.alternatives.needed(later.plan.model(), &chosen);
                            later.run_with(fed, &needed, &chosen, None)?
                        }
                        false => later.run_with(fed, as_before, &chosen, None)?,
                    };
                    later.give(&mut others, outputs);
                }
                judge(k, &self.answers(&others)?).map_err(Stop::Observer)?;
            }
            part.give(&mut slots, outputs);
        }
        self.answers(&slots)
    }
}

impl Part {
    /// Its outputs with these in place; the values of what is needed are kept where that is asked for.
    fn run_with(
        &self,
        fed: TVec<TValue>,
        needed: &[bool],
        chosen: &Chosen<'_>,
        mut keep: Option<&mut Vec<TVec<TValue>>>,
    ) -> Result<TVec<TValue>, Stop> {
        self.eval(fed, |cx, op_state, node, mut inputs| {
            if !needed[node.id] {
                return Ok(nothing(node));
            }
            let made = match taken(node, chosen) {
                Some(slot) => tvec!(inputs.remove(slot)),
                None => tract_onnx::tract_core::plan::eval(cx, op_state, node, inputs)?,
            };
            if let Some(values) = &mut keep {
                values[node.id].clone_from(&made);
            }
            Ok(made)
        })
    }

    /// Its outputs with a set switched; `values` are those of all nodes that were needed before.
    fn changed(
        &self,
        fed: TVec<TValue>,
        values: &[TVec<TValue>],
        set: &[usize],
        chosen: &Chosen<'_>,
    ) -> Result<TVec<TValue>, Stop> {
        let model = self.plan.model();
        let needed = self.alternatives.needed(model, chosen);
        let mut behind = vec![false; model.nodes.len()];
        let switched = set.iter().filter_map(|number| self.alternatives.nodes.get(number)).flatten();
        let mut stack: Vec<usize> = switched.copied().filter(|&n| needed[n]).collect();
        stack.iter().for_each(|&n| behind[n] = true);
        while let Some(n) = stack.pop() {
            for next in model.node(n).outputs.iter().flat_map(|o| &o.successors) {
                let reads = needed[next.node] && taken(model.node(next.node), chosen).is_none_or(|s| s == next.slot);
                if reads && !std::mem::replace(&mut behind[next.node], true) {
                    stack.push(next.node);
                }
            }
        }
        self.eval(fed, |cx, op_state, node, mut inputs| match node.id {
            id if !needed[id] => Ok(nothing(node)),
            id if !behind[id] && !values[id].is_empty() => Ok(values[id].clone()),
            _ => match taken(node, chosen) {
                Some(slot) => Ok(tvec!(inputs.remove(slot))),
                None => tract_onnx::tract_core::plan::eval(cx, op_state, node, inputs),
            },
        })
    }
}

/// What stands for the outputs of a node that is not computed.
fn nothing(node: &TypedNode) -> TVec<TValue> {
    node.outputs.iter().map(|_| Tensor::default().into_tvalue()).collect()
}

/// An output that no piece made.
pub(super) fn missing() -> Stop {
    Stop::Observer(Error::bug("a value was not computed"))
}

#[cfg(test)]
mod tests {
    use crate::{
        ir::{Tensor, testing::model},
        runtime::{Runtime, Session, Trials, tract::Tract},
    };

    /// Over several pieces, with one alternative of two values and one whose value is a constant.
    fn session() -> Box<dyn Session> {
        let mut text = "float[n] x \n float[1] one = {1} \n a = Neg(x) \n b = Add(x, one) \n \
                        p = Alternative <number = 0> (x, a) \n q = Alternative <number = 0> (b, a) \n \
                        r = Alternative <number = 1> (one, one) \n v0 = Mul(p, q)"
            .to_owned();
        for i in 0..400 {
            text += &format!(" \n v{} = Add(v{i}, r)", i + 1);
        }
        // The second reads what the first leaves, on either side.
        text += " \n t = Neg(v400) \n s = Alternative <number = 2> (v400, t) \n u = Mul(s, v0) \n w = Sub(s, v0) \n \
                 y = Alternative <number = 3> (u, w) \n return y, v0";
        Tract.load(&model(&text), &[]).unwrap()
    }

    type Seen = Vec<(usize, Vec<Vec<f32>>)>;

    fn trials(base: &[usize], sets: &[&[usize]]) -> (Vec<Vec<f32>>, Seen) {
        let inputs = [Tensor::from_f32(&[2], &[2.0, 3.0])];
        let floats = |outputs: &[Tensor]| outputs.iter().map(|t| t.to_f32().unwrap()).collect::<Vec<_>>();
        let trials =
            Trials { base: base.iter().copied().collect(), sets: sets.iter().map(|set| set.to_vec()).collect() };
        let mut seen = Vec::new();
        let answers = session().run_trials(&inputs, &trials, &mut |number, outputs| {
            seen.push((number, floats(outputs)));
            Ok(())
        });
        (floats(&answers.unwrap()), seen)
    }

    /// The same by hand, for one number: `on` says what is in place.
    fn answers(on: &[usize]) -> Vec<Vec<f32>> {
        let each = |x: f32| {
            let v0 = if on.contains(&0) { x * x } else { x * (x + 1.0) };
            let s = if on.contains(&2) { -(v0 + 400.0) } else { v0 + 400.0 };
            (if on.contains(&3) { s - v0 } else { s * v0 }, v0)
        };
        let (a, b) = (each(2.0), each(3.0));
        vec![vec![a.0, b.0], vec![a.1, b.1]]
    }

    #[test]
    fn each_alternative_alone() {
        let sets: &[&[usize]] = &[&[0], &[1], &[2], &[3]];
        let (base, seen) = trials(&[], sets);
        assert_eq!(base, answers(&[]));
        assert_eq!(seen, [(0, answers(&[0])), (2, answers(&[2])), (3, answers(&[3]))]);
    }

    #[test]
    fn sets_of_alternatives_over_pieces_from_either_side() {
        for base in [&[][..], &[0, 2, 3], &[2], &[0, 3]] {
            let sets: &[&[usize]] = &[&[0, 2], &[3, 2], &[0, 2, 3], &[3], &[2], &[0], &[]];
            let (found, mut seen) = trials(base, sets);
            assert_eq!(found, answers(base));
            seen.sort_by_key(|(number, _)| *number);
            // The set of none changes nothing, and is no trial.
            assert_eq!(seen.len(), sets.len() - 1);
            for (number, found) in seen {
                let on: Vec<usize> = (0..4).filter(|n| base.contains(n) != sets[number].contains(n)).collect();
                assert_eq!(found, answers(&on), "{base:?} {:?}", sets[number]);
            }
        }
    }
}
