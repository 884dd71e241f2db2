//! An optimized plan for one combination of input shapes.

use std::{cell::Cell, collections::HashMap, sync::Arc};

use tract_onnx::{prelude::*, tract_core::ops::konst::Const, tract_hir::internal::*};

use super::{
    failure::{Doing, Failure, guard},
    pieces::{self, Piece},
    tensors::Value,
    trials::{Alternatives, missing},
};
use crate::{error::Error, runtime::Observer};

/// What a plan is made for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Key {
    /// The shape of each input.
    pub(super) shapes: Vec<Vec<usize>>,
    /// The inputs whose elements the plan takes as constants, by index.
    pub(super) constants: Vec<Option<Arc<Tensor>>>,
}

/// Makes a constant of a source, which stays in the list of inputs.
pub(super) fn fix(model: &mut InferenceModel, source: OutletId, value: Arc<Tensor>) -> TractResult<()> {
    model.set_outlet_fact(source, TypedFact::try_from(value.clone())?.into())?;
    model.nodes[source.node].op = Const::new(value)?.into();
    Ok(())
}

/// A plan; shared by threads.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) parts: Vec<Part>,
    /// For each input that the plan takes: its index in the model, its slot, and the numbers by which it is observed.
    inputs: Vec<(usize, usize, TVec<usize>)>,
    /// Slots that are filled before anything runs: outputs of the model that are constants.
    fixed: Vec<(usize, Arc<Tensor>)>,
    /// The slots that are the model's outputs.
    outputs: Vec<usize>,
    slots: usize,
    /// Observed values that are constants in this plan.
    constants: Vec<(usize, Arc<Tensor>)>,
}

/// The plan of a piece.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) plan: Arc<TypedSimplePlan>,
    /// The slots that it reads, and whether it is the last to do so.
    takes: Vec<(usize, bool)>,
    /// The slots that it fills: its first outputs.
    gives: Vec<usize>,
    /// For each node of the plan, the slots that are observed, with the number of the observed value.
    observed: Vec<TVec<(usize, usize)>>,
    /// Nodes that only observers read: their values are dropped at once.
    only_observed: Vec<bool>,
    /// What may take the place of values.
    pub(super) alternatives: Alternatives,
}

/// Values that pieces hand to each other and to the caller.
pub(super) type Slots = Vec<Option<TValue>>;

/// Gives the parsed model. Who holds no other makes the plan with the least memory.
pub(super) type Parse<'a> = dyn Fn() -> Result<InferenceModel, Failure> + 'a;

/// Why a run ended.
pub(super) enum Stop {
    /// tract failed.
    Failed(Failure),
    /// The observer did.
    Observer(Error),
}

impl Plan {
    /// Makes a plan of what `parse` gives. Its last outputs are the observed values, `outputs` the number of those before.
    pub(super) fn new(parse: &Parse<'_>, types: &[DatumType], outputs: usize, key: &Key) -> Result<Self, Failure> {
        let make = |whole| {
            let model = parse()?;
            guard(Doing::Prepare, || Self::try_new(model, types, outputs, key, whole))
        };
        // tract may know more of a graph that it sees as a whole.
        make(false).or_else(|failure| make(true).map_err(|_| failure))
    }

    fn try_new(
        mut model: InferenceModel,
        types: &[DatumType],
        outputs: usize,
        key: &Key,
        whole: bool,
    ) -> TractResult<Self> {
        let sources = model.inputs.clone();
        ensure!(sources.len() == types.len(), "the model has {} inputs, not {}", sources.len(), types.len());
        let mut inputs = Vec::new();
        for (i, &source) in sources.iter().enumerate() {
            if let Some(value) = &key.constants[i] {
                fix(&mut model, source, value.clone())?;
                model.inputs.retain(|&o| o != source);
            } else {
                model.set_outlet_fact(source, InferenceFact::dt_shape(types[i], key.shapes[i].as_slice()))?;
                inputs.push(i);
            }
        }
        let model = model.into_typed()?;
        ensure!(model.outputs.len() >= outputs, "the model lost outputs");
        let pieces = pieces::cut(&model, outputs, whole)?;
        let mut slots: HashMap<OutletId, usize> = HashMap::new();
        let mut slot = |o: OutletId| {
            let next = slots.len();
            *slots.entry(o).or_insert(next)
        };
        let mut plan = Self {
            parts: Vec::new(),
            inputs: inputs.into_iter().zip(&model.inputs).map(|(i, &o)| (i, slot(o), tvec!())).collect(),
            fixed: Vec::new(),
            outputs: model.outputs[..outputs].iter().map(|&o| slot(o)).collect(),
            slots: 0,
            constants: Vec::new(),
        };
        for &o in &model.outputs[..outputs] {
            if let Some(value) = model.node(o.node).op_as::<Const>() {
                plan.fixed.push((slot(o), value.val().clone()));
            }
        }
        for (number, &o) in model.outputs[outputs..].iter().enumerate() {
            if let Some(value) = model.node(o.node).op_as::<Const>() {
                plan.constants.push((number, value.val().clone()));
            }
            if let Some(at) = model.inputs.iter().position(|&i| i == o) {
                plan.inputs[at].2.push(number);
            }
        }
        // So that a piece alone holds its weights, and they go as soon as it has packed them.
        drop(model);
        let mut last = HashMap::new();
        for (p, piece) in pieces.iter().enumerate() {
            last.extend(piece.takes.iter().map(|&o| (o, p)));
        }
        for (p, piece) in pieces.into_iter().enumerate() {
            let takes = piece.takes.iter().map(|&o| {
                let slot = slot(o);
                (slot, last.get(&o) == Some(&p) && !plan.outputs.contains(&slot))
            });
            let (takes, gives) = (takes.collect(), piece.gives.iter().map(|&o| slot(o)).collect());
            plan.parts.push(Part::new(piece, takes, gives, &mut plan.constants)?);
        }
        plan.slots = slots.len();
        Ok(plan)
    }

    /// Runs it.
    pub(super) fn run(&self, inputs: &[Tensor], observer: &mut Observer<'_>) -> Result<TVec<TValue>, Stop> {
        for (number, value) in &self.constants {
            observer(*number, &Value(value)).map_err(Stop::Observer)?;
        }
        for (i, _, observed) in &self.inputs {
            for &number in observed {
                observer(number, &Value(&inputs[*i])).map_err(Stop::Observer)?;
            }
        }
        let mut slots = self.filled(inputs);
        for part in &self.parts {
            part.run(&mut slots, observer)?;
        }
        self.answers(&slots)
    }

    /// The slots before anything runs.
    pub(super) fn filled(&self, inputs: &[Tensor]) -> Slots {
        let mut slots = vec![None; self.slots];
        for (i, slot, _) in &self.inputs {
            slots[*slot] = Some(inputs[*i].clone().into_tvalue());
        }
        for (slot, value) in &self.fixed {
            slots[*slot] = Some(value.clone().into_tvalue());
        }
        slots
    }

    /// The model's outputs, once all has run.
    pub(super) fn answers(&self, slots: &Slots) -> Result<TVec<TValue>, Stop> {
        self.outputs.iter().map(|&slot| slots[slot].clone().ok_or_else(missing)).collect()
    }
}

impl Part {
    /// Adds what turns out to be constant to `constants`.
    fn new(
        piece: Piece,
        takes: Vec<(usize, bool)>,
        gives: Vec<usize>,
        constants: &mut Vec<(usize, Arc<Tensor>)>,
    ) -> TractResult<Self> {
        let outputs = gives.len();
        let mut model = piece.model.into_optimized()?;
        let handed_out = model.outputs.clone();
        ensure!(handed_out.len() == outputs + piece.observed.len(), "the model lost outputs");
        let mut observed = vec![tvec!(); model.nodes.len()];
        for ((_, number), outlet) in piece.observed.iter().zip(&handed_out[outputs..]) {
            match model.nodes[outlet.node].op_as::<Const>() {
                Some(c) => constants.push((*number, c.val().clone())),
                None => observed[outlet.node].push((outlet.slot, *number)),
            }
        }
        // Of the observed values only those stay outputs that nothing else would compute: leaves of the graph.
        let mut only_observed = vec![false; model.nodes.len()];
        let mut keep = handed_out[..outputs].to_vec();
        for outlet in &handed_out[outputs..] {
            let node = &model.nodes[outlet.node];
            let leaf = node.outputs.iter().all(|o| o.successors.is_empty()) && !node.op_is::<Const>();
            if leaf && !keep[..outputs].iter().any(|o| o.node == outlet.node) {
                only_observed[outlet.node] = true;
                keep.push(*outlet);
            }
        }
        model.select_output_outlets(&keep)?;
        let alternatives = Alternatives::of(&model)?;
        Ok(Self { plan: TypedSimplePlan::new(model)?, takes, gives, observed, only_observed, alternatives })
    }

    fn run(&self, slots: &mut Slots, observer: &mut Observer<'_>) -> Result<(), Stop> {
        let fed = self.fed(slots)?;
        let mut stopped = None;
        let done = self.eval(fed, |cx, op_state, node, inputs| {
            let mut values = tract_onnx::tract_core::plan::eval(cx, op_state, node, inputs)?;
            for &(slot, number) in &self.observed[node.id] {
                if let Err(error) = observer(number, &Value(&values[slot])) {
                    stopped = Some(error);
                    bail!("stopped");
                }
            }
            if self.only_observed[node.id] {
                values.iter_mut().for_each(|v| *v = Tensor::default().into_tvalue());
            }
            Ok(values)
        });
        match stopped {
            Some(error) => return Err(Stop::Observer(error)),
            None => self.give(slots, done?),
        }
        Ok(())
    }

    /// What it reads, taken from the slots.
    pub(super) fn fed(&self, slots: &mut Slots) -> Result<TVec<TValue>, Stop> {
        let taken = self.takes.iter().map(|&(slot, last)| match last {
            true => slots[slot].take(),
            false => slots[slot].clone(),
        });
        taken.map(|value| value.ok_or_else(missing)).collect()
    }

    /// What it made, put into the slots.
    pub(super) fn give(&self, slots: &mut Slots, outputs: TVec<TValue>) {
        for (&slot, value) in self.gives.iter().zip(outputs) {
            slots[slot] = Some(value);
        }
    }

    /// Its outputs, with `eval` in the place of what evaluates a node.
    pub(super) fn eval(
        &self,
        fed: TVec<TValue>,
        mut eval: impl FnMut(
            &EvalContext<'_>,
            Option<&mut (dyn OpState + 'static)>,
            &TypedNode,
            TVec<TValue>,
        ) -> TractResult<TVec<TValue>>,
    ) -> Result<TVec<TValue>, Stop> {
        let at = Cell::new(None);
        let done = guard(Doing::Run, || {
            let mut state = self.plan.spawn()?;
            state.run_plan_with_eval(fed, |cx, op_state, node, inputs| -> TractResult<_> {
                at.set(Some(node.id));
                eval(cx, op_state, node, inputs)
            })
        });
        done.map_err(|failure| {
            Stop::Failed(match at.get() {
                Some(node) => failure.at(&self.plan.model().nodes[node].name),
                None => failure,
            })
        })
    }
}
