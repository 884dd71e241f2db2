//! `If`: the branch that is taken alone counts, where the condition is known once the input shapes are.
//!
//! Exporters leave many of these (`squeeze, if the dim is 1`). tract's own operator insists that both branches give the
//! same shape, also where one of them is never taken.

use tract_onnx::{
    model::{OnnxOpRegister, ParseResult, ParsingContext},
    pb::NodeProto,
    prelude::*,
    tract_core::ops::logic::IfThenElse,
    tract_hir::internal::*,
};

/// Puts our operator in the place of tract's.
pub(super) fn register(register: &mut OnnxOpRegister) {
    register.insert("If", parse);
}

/// A branch, and for each of its inputs the input of the `If` that feeds it (0 is the condition).
#[derive(Debug, Clone)]
struct Branch {
    body: InferenceModel,
    captures: Vec<usize>,
}

/// `then`, `else`.
#[derive(Debug, Clone)]
struct If([Branch; 2]);

impl PartialEq for If {
    fn eq(&self, _: &Self) -> bool {
        false
    }
}

impl Eq for If {}

fn parse(cx: &ParsingContext, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let mut captured: Vec<String> = Vec::new();
    let mut branch = |name: &str| -> TractResult<Branch> {
        let ParseResult { model: body, unresolved_inputs, .. } = cx.parse_graph(node.get_attr(name)?)?;
        let index = |value: String| {
            let known = captured.iter().position(|c| *c == value);
            1 + known.unwrap_or_else(|| {
                captured.push(value);
                captured.len() - 1
            })
        };
        Ok(Branch { body, captures: unresolved_inputs.into_iter().map(index).collect() })
    };
    let branches = [branch("then_branch")?, branch("else_branch")?];
    let outputs = branches.each_ref().map(|b| b.body.outputs.len());
    ensure!(outputs[0] == outputs[1], "the branches have {} and {} outputs", outputs[0], outputs[1]);
    Ok((Box::new(If(branches)), captured))
}

impl Branch {
    /// Carries what is known of the inputs into the body, and what follows for the outputs back.
    fn infer(&mut self, inputs: &[InferenceFact]) -> TractResult<Vec<InferenceFact>> {
        for (i, &outer) in self.captures.iter().enumerate() {
            self.body.input_fact_mut(i)?.unify_with(&inputs[outer])?;
        }
        self.body.analyse(false)?;
        (0..self.body.outputs.len()).map(|i| self.body.output_fact(i).cloned()).collect()
    }

    /// Puts the body's nodes in the place of the `If`.
    fn inline(
        &self,
        node: &InferenceNode,
        target: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let body = self.body.clone().incorporate()?;
        let mut mapping: HashMap<OutletId, OutletId> = HashMap::new();
        for (&source, &outer) in body.inputs.iter().zip(&self.captures) {
            mapping.insert(source, inputs[outer]);
        }
        for id in body.eval_order()? {
            let mut inner = body.node(id).clone();
            if body.inputs.iter().any(|o| o.node == id) {
                continue;
            }
            inner.name = format!("{}.{}", node.name, inner.name);
            let known = inner.outputs.iter().map(|o| o.fact.value.concretize()).collect::<Option<Vec<_>>>();
            let outlets = match known {
                Some(values) if !values.is_empty() => {
                    let named = values.into_iter().enumerate().map(|(i, v)| (format!("{}.{i}", inner.name), v));
                    named.map(|(name, v)| target.add_const(name, v)).collect::<TractResult<TVec<_>>>()?
                }
                _ => inner.op.to_typed(&body, &inner, target, &mapping)?,
            };
            mapping.extend(outlets.into_iter().enumerate().map(|(slot, outlet)| (OutletId::new(id, slot), outlet)));
        }
        let output = |o| mapping.get(o).copied().context("an output of a branch has no producer");
        body.outputs.iter().map(output).collect()
    }
}

impl Op for If {
    fn name(&self) -> StaticName {
        "If".into()
    }

    not_a_typed_op!();
}

impl EvalOp for If {
    not_out_of_plan!();
}

impl InferenceOp for If {
    fn infer_facts(
        &mut self,
        inputs: TVec<&InferenceFact>,
        outputs: TVec<&InferenceFact>,
        observed: TVec<&InferenceFact>,
    ) -> TractResult<(TVec<InferenceFact>, TVec<InferenceFact>, TVec<InferenceFact>)> {
        let mut inputs: TVec<InferenceFact> = inputs.into_iter().cloned().collect();
        let mut outputs: TVec<InferenceFact> = outputs.into_iter().cloned().collect();
        inputs[0].datum_type.unify_with(&bool::datum_type().into())?;
        if let Some(condition) = inputs[0].value.concretize() {
            let taken = usize::from(!condition.cast_to_scalar::<bool>()?);
            for (output, fact) in outputs.iter_mut().zip(self.0[taken].infer(&inputs)?) {
                output.unify_with(&fact)?;
            }
        } else {
            // What both say holds; a branch that cannot be is one that is not taken.
            let facts = self.0.each_mut().map(|b| b.infer(&inputs).unwrap_or_default());
            for (i, output) in outputs.iter_mut().enumerate() {
                if let [Some(a), Some(b)] = [facts[0].get(i), facts[1].get(i)] {
                    if a.datum_type == b.datum_type {
                        output.datum_type.unify_with(&a.datum_type)?;
                    }
                    if a.shape == b.shape {
                        output.shape.unify_with(&a.shape)?;
                    }
                }
            }
        }
        Ok((inputs, outputs, observed.into_iter().cloned().collect()))
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.0[0].body.outputs.len())
    }

    fn to_typed(
        &self,
        _source: &InferenceModel,
        node: &InferenceNode,
        target: &mut TypedModel,
        mapping: &HashMap<OutletId, OutletId>,
    ) -> TractResult<TVec<OutletId>> {
        let inputs: TVec<OutletId> = node.inputs.iter().map(|o| mapping[o]).collect();
        if let Some(condition) = target.outlet_fact(inputs[0])?.konst.clone() {
            let taken = usize::from(!condition.cast_to_scalar::<bool>()?);
            return self.0[taken].inline(node, target, &inputs);
        }
        let [then_branch, else_branch] = self.0.clone();
        let op = IfThenElse {
            then_body: then_branch.body.into_typed()?,
            then_input_mapping: then_branch.captures,
            else_body: else_branch.body.into_typed()?,
            else_input_mapping: else_branch.captures,
        };
        target.wire_node(&node.name, op, &inputs)
    }

    as_op!();
}
