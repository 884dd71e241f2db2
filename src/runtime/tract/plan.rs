//! An optimized plan for one combination of input shapes.

use std::{cell::Cell, sync::Arc};

use tract_onnx::{prelude::*, tract_core::ops::konst::Const, tract_hir::internal::*};

use super::{
    failure::{Doing, Failure, guard},
    tensors::Value,
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

/// A plan; shared by threads.
#[derive(Debug)]
pub(super) struct Plan {
    plan: Arc<TypedSimplePlan>,
    /// Which inputs the plan takes, by their index in the model.
    inputs: Vec<usize>,
    outputs: usize,
    /// For each node of the plan, the slots that are observed, with the number of the observed value.
    observed: Vec<TVec<(usize, usize)>>,
    /// Nodes that only observers read: their values are dropped at once.
    only_observed: Vec<bool>,
    /// Observed values that are constants in this plan.
    constants: Vec<(usize, Arc<Tensor>)>,
}

/// Why a run ended.
pub(super) enum Stop {
    /// tract failed.
    Failed(Failure),
    /// The observer did.
    Observer(Error),
}

impl Plan {
    /// Makes a plan. The last outputs of `model` are the observed values, `outputs` the number of those before.
    pub(super) fn new(model: &InferenceModel, types: &[DatumType], outputs: usize, key: &Key) -> Result<Self, Failure> {
        guard(Doing::Prepare, || Self::try_new(model.clone(), types, outputs, key))
    }

    fn try_new(mut model: InferenceModel, types: &[DatumType], outputs: usize, key: &Key) -> TractResult<Self> {
        let sources = model.inputs.clone();
        ensure!(sources.len() == types.len(), "the model has {} inputs, not {}", sources.len(), types.len());
        let mut inputs = Vec::new();
        for (i, &source) in sources.iter().enumerate() {
            if let Some(value) = &key.constants[i] {
                model.nodes[source.node].op = Const::new(value.clone())?.into();
                model.set_outlet_fact(source, InferenceFact::from(value.as_ref().clone()))?;
                model.inputs.retain(|&o| o != source);
            } else {
                model.set_outlet_fact(source, InferenceFact::dt_shape(types[i], key.shapes[i].as_slice()))?;
                inputs.push(i);
            }
        }
        let mut model = model.into_typed()?.into_decluttered()?.into_optimized()?;
        let handed_out = model.outputs.clone();
        ensure!(handed_out.len() >= outputs, "the model lost outputs");
        let mut observed = vec![tvec!(); model.nodes.len()];
        let mut constants = Vec::new();
        for (number, outlet) in handed_out[outputs..].iter().enumerate() {
            match model.nodes[outlet.node].op_as::<Const>() {
                Some(c) => constants.push((number, c.val().clone())),
                None => observed[outlet.node].push((outlet.slot, number)),
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
        Ok(Self { plan: TypedSimplePlan::new(model)?, inputs, outputs, observed, only_observed, constants })
    }

    /// Runs it.
    pub(super) fn run(&self, inputs: &[Tensor], observer: &mut Observer<'_>) -> Result<TVec<TValue>, Stop> {
        for (number, value) in &self.constants {
            observer(*number, &Value(value)).map_err(Stop::Observer)?;
        }
        let mut stopped = None;
        let at = Cell::new(None);
        let done = guard(Doing::Run, || {
            let mut state = self.plan.spawn()?;
            let fed = self.inputs.iter().map(|&i| inputs[i].clone().into_tvalue()).collect();
            let mut outputs = state.run_plan_with_eval(fed, |cx, op_state, node, inputs| -> TractResult<_> {
                at.set(Some(node.id));
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
            })?;
            outputs.truncate(self.outputs);
            Ok(outputs)
        });
        match stopped {
            Some(error) => Err(Stop::Observer(error)),
            None => done.map_err(|failure| {
                Stop::Failed(match at.get() {
                    Some(node) => failure.at(&self.plan.model().nodes[node].name),
                    None => failure,
                })
            }),
        }
    }
}
