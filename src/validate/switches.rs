//! The prepared model with roundings beside what they round, so that they can be switched while it runs.

use std::collections::{BTreeMap, HashMap};

use super::rounded::Twin;
use crate::{
    error::Result,
    ir::{DType, Model, NodeId, NodeSpec, Place, Tensor, Use, ValueId},
    passes::{
        Context, remove_dead,
        support::{pairs, replace},
    },
    plan::Activation,
    quant::pack::pack,
    runtime::{ALTERNATIVE, NUMBER, ROUNDED},
};

/// When a rounding is in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// In trials that choose this number.
    Chosen(usize),
    /// Always.
    Always,
}

/// The model in the making. Nodes first, then values: what a value is rounded to is read by a node and by its twin.
pub(super) struct Switches<'a> {
    prepared: &'a Model,
    model: Model,
    /// What stands in the place of an output once its node has a twin.
    chosen: BTreeMap<ValueId, ValueId>,
    /// Where the twin of a node reads what the node reads.
    twins: HashMap<(NodeId, usize), Use>,
}

impl<'a> Switches<'a> {
    pub(super) fn new(prepared: &'a Model) -> Self {
        let mut model = prepared.clone();
        model.set_opset(ALTERNATIVE, 1);
        Self { prepared, model, chosen: BTreeMap::new(), twins: HashMap::new() }
    }

    /// Beside a node, what does its work in integers.
    pub(super) fn node(&mut self, id: NodeId, twin: Twin, when: When) -> Result<()> {
        let node = self.prepared.node(id);
        let mut inputs = self.model.node(id).inputs().to_vec();
        let kept = |i: usize| !twin.constants.iter().any(|(other, _)| *other == i);
        let mut reads: Vec<(usize, Option<Use>)> = (0..inputs.len()).filter(|&i| kept(i)).map(|i| (i, None)).collect();
        if let Some(x) = inputs.first().copied().flatten().filter(|_| twin.dynamic) {
            let real = pairs::dynamic_pair(&mut self.model, x, Place::Before(id))?;
            let codes = self.model.producer(real).and_then(|n| self.model.node(n).input(0));
            let quantize = codes.and_then(|v| self.model.producer(v));
            reads.iter_mut().filter(|r| r.0 == 0).for_each(|r| r.1 = quantize.map(|n| Use::Input(n, 0)));
            inputs[0] = Some(real);
        }
        for (i, tensor) in twin.constants {
            inputs.resize(inputs.len().max(i + 1), None);
            inputs[i] = Some(self.model.add_initializer(self.model.main(), "rounded", tensor));
        }
        let (op, domain, attributes) =
            twin.kernel.unwrap_or_else(|| (node.op_type.clone(), node.domain.clone(), node.attributes.clone()));
        let mut spec = NodeSpec::new(op).inputs(inputs).attrs(attributes);
        if let Some(domain) = domain {
            pairs::import(&mut self.model, &domain);
            spec = spec.domain(domain);
        }
        for out in node.outputs() {
            spec = match out {
                Some(_) => spec.output("rounded"),
                None => spec.output_value(None),
            };
        }
        let other = self.model.insert(spec, Place::After(id));
        self.twins.extend(reads.into_iter().map(|(i, at)| ((id, i), at.unwrap_or(Use::Input(other, i)))));
        let others = self.model.node(other).outputs().to_vec();
        for (&out, &rounded) in node.outputs().iter().flatten().zip(others.iter().flatten()) {
            let chosen = self.choose(out, rounded, when, Place::After(other))?;
            self.prepared.value(out).uses().iter().for_each(|&used| self.redirect(used, chosen));
            self.chosen.insert(out, chosen);
        }
        Ok(())
    }

    /// Behind a value, its Q/DQ pair for these uses of it.
    pub(super) fn value(
        &mut self,
        value: ValueId,
        activation: &Activation,
        readings: &[(When, Vec<Use>)],
    ) -> Result<()> {
        let now = self.chosen.get(&value).copied().unwrap_or(value);
        let pair = self.pair(now, activation)?;
        for (when, uses) in readings {
            let place = replace::behind_maker(&self.model, pair, self.model.main());
            let chosen = self.choose(now, pair, *when, place)?;
            uses.iter().for_each(|&used| self.redirect(used, chosen));
        }
        Ok(())
    }

    /// Behind a value, its rounding to 16-bit floats, for these uses of it.
    pub(super) fn half(&mut self, value: ValueId, dtype: DType, when: When, uses: &[Use]) -> Result<()> {
        let now = self.chosen.get(&value).copied().unwrap_or(value);
        let graph = self.model.main();
        let spec = NodeSpec::new(ROUNDED).input(now).attr(NUMBER, i64::from(dtype.to_onnx())).output("rounded");
        let place = replace::behind_maker(&self.model, now, graph);
        let rounded = self.model.insert_value(spec, place)?;
        let place = replace::behind_maker(&self.model, rounded, graph);
        let chosen = self.choose(now, rounded, when, place)?;
        uses.iter().for_each(|&used| self.redirect(used, chosen));
        Ok(())
    }

    /// The model, without what nothing reads any more.
    pub(super) fn finish(mut self) -> Result<Model> {
        remove_dead::run(&mut self.model, &mut Context::default())?;
        Ok(self.model)
    }

    fn redirect(&mut self, used: Use, to: ValueId) {
        self.model.redirect(used, to);
        let twin = match used {
            Use::Input(n, i) => self.twins.get(&(n, i)),
            Use::Output(..) => None,
        };
        if let Some(&twin) = twin {
            self.model.redirect(twin, to);
        }
    }

    fn pair(&mut self, x: ValueId, activation: &Activation) -> Result<ValueId> {
        let graph = self.model.main();
        let scale = self.model.add_initializer(graph, "scale", Tensor::from_f32(&[], &[activation.scale]));
        let zero = pack(activation.dtype, &[], &[activation.zero_point])?;
        let zero = self.model.add_initializer(graph, "zero_point", zero);
        let spec =
            |op: &str, x: ValueId| NodeSpec::new(op).inputs([Some(x), Some(scale), Some(zero)]).output("rounded");
        let place = replace::behind_maker(&self.model, x, graph);
        let codes = self.model.insert_value(spec("QuantizeLinear", x), place)?;
        let place = replace::behind_maker(&self.model, codes, graph);
        self.model.insert_value(spec("DequantizeLinear", codes), place)
    }

    /// What stands in the place of `value`: itself, or `other` when that is chosen.
    fn choose(&mut self, value: ValueId, other: ValueId, when: When, place: Place) -> Result<ValueId> {
        let When::Chosen(number) = when else { return Ok(other) };
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        let spec = NodeSpec::new(ALTERNATIVE).domain(ALTERNATIVE).inputs([Some(value), Some(other)]);
        self.model.insert_value(spec.attr(NUMBER, number).output("chosen"), place)
    }
}
