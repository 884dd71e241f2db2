//! What nodes compute with once a plan is carried out: their rounded constants, and kernels of another kind.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    error::Result,
    ir::{Attr, Model, NodeId, Tensor},
    passes::{self, Context, Stage},
    plan::{self, Form, KnownReads, Plan, form},
    runtime::{Runtime, tract::Tract},
    weights::{self, Layer},
};

/// Constants in the place of a node's inputs, by the number of the input.
pub(super) type Constants = Vec<(usize, Tensor)>;

/// What does a node's work once it is quantized.
#[derive(Debug, Default)]
pub(super) struct Twin {
    /// Its constants where they are others.
    pub(super) constants: Constants,
    /// Its data are quantized at run time.
    pub(super) dynamic: bool,
    /// Another operator with its domain and attributes.
    pub(super) kernel: Option<(String, Option<String>, Vec<Attr>)>,
}

/// A plan carried out: as far as float weights and biases are adjusted, and with all inserted.
pub(super) struct Carried {
    adjusted: Model,
    inserted: Model,
    /// The nodes of the main graph that are left.
    left: BTreeSet<NodeId>,
}

impl Carried {
    /// `prepared` is the model that the plan speaks of, `known` what its weights are rounded by.
    pub(super) fn out(prepared: &Model, plan: &Plan, known: &Arc<KnownReads>) -> Result<Self> {
        let mut model = prepared.clone();
        let mut cx = Context { plan: Some(plan.clone()), known: known.clone(), ..Context::default() };
        passes::run_stage(Stage::Adjust, &mut model, &mut cx)?;
        let adjusted = model.clone();
        passes::run_stage(Stage::Insert, &mut model, &mut cx)?;
        Ok(Self { adjusted, left: model.nodes(model.main()).into_iter().collect(), inserted: model })
    }

    /// The constant inputs of wanted nodes that the plan changes, as the written model computes with them. Nodes that become
    /// another operator are left out.
    pub(super) fn constants(
        &self,
        prepared: &Model,
        wanted: &BTreeSet<NodeId>,
        sample: &[Tensor],
    ) -> Result<BTreeMap<NodeId, Constants>> {
        let mut found: BTreeMap<NodeId, Constants> = BTreeMap::new();
        let (mut observed, mut places) = (Vec::new(), Vec::new());
        for id in prepared.nodes(prepared.main()) {
            if !wanted.contains(&id) || !self.keeps(prepared, id) {
                continue;
            }
            for (i, now) in self.inserted.node(id).inputs().iter().enumerate() {
                let before = prepared.constant_input(id, i);
                let Some(now) = *now else { continue };
                match self.inserted.value(now).initializer() {
                    Some(t) if !before.is_some_and(|b| b.same_content(t)) => {
                        found.entry(id).or_default().push((i, t.clone()))
                    }
                    None if before.is_some() => {
                        observed.push(now);
                        places.push((id, i));
                    }
                    _ => {}
                }
            }
        }
        if observed.is_empty() {
            return Ok(found);
        }
        let session = Tract.load(&self.inserted, &observed)?;
        session.run_observed(sample, &mut |k, value| {
            let (id, i) = places[k];
            found.entry(id).or_default().push((i, value.to_tensor()?));
            Ok(())
        })?;
        Ok(found)
    }

    /// What does the work of wanted nodes that become another operator.
    pub(super) fn kernels(
        &self,
        prepared: &Model,
        plan: &Plan,
        known: &KnownReads,
        wanted: &BTreeSet<NodeId>,
    ) -> Result<BTreeMap<NodeId, Twin>> {
        let mut found = BTreeMap::new();
        for &id in wanted {
            let node = prepared.node(id);
            if let Some((input, real)) = in_few_bits(prepared, plan, known, id)? {
                found.insert(id, Twin { constants: vec![(input, real)], ..Twin::default() });
                continue;
            }
            let entry = node.output(0).and_then(|v| plan.nodes.get(prepared.value(v).name()));
            let Some(entry) = entry.filter(|e| e.becomes == Form::Dynamic && !self.keeps(prepared, id)) else {
                continue;
            };
            let twin = match (&entry.weight, prepared.constant_input(id, 1)) {
                // It becomes a product and an Add, with the weight laid out for that.
                (Some(how), Some(weight)) if node.is("Gemm") => {
                    let name = node.input(1).map_or("", |v| prepared.value(v).name());
                    let rounded = how.quantize_alike(weight, known.of(name))?.dequantized()?;
                    let mut constants = vec![(1, Tensor::from_f32(weight.dims(), &rounded))];
                    constants.extend(self.adjusted.constant_input(id, 2).map(|bias| (2, bias.clone())));
                    Twin { constants, dynamic: true, kernel: None }
                }
                // A kernel that quantizes its data itself.
                _ if self.left.contains(&id) => {
                    let now = self.inserted.node(id);
                    let inputs = now.inputs().iter().enumerate();
                    let constant =
                        |(i, v): (usize, &Option<_>)| Some((i, self.inserted.value((*v)?).constant()?.clone()));
                    Twin {
                        constants: inputs.filter_map(constant).collect(),
                        dynamic: false,
                        kernel: Some((now.op_type.clone(), now.domain.clone(), now.attributes.clone())),
                    }
                }
                _ => continue,
            };
            found.insert(id, twin);
        }
        Ok(found)
    }

    /// Whether a node is there as what it was.
    fn keeps(&self, prepared: &Model, id: NodeId) -> bool {
        self.left.contains(&id) && self.inserted.node(id).op_type == prepared.node(id).op_type
    }
}

/// The weight of a node in few bits as the node computes with it, and the number of its input.
fn in_few_bits(prepared: &Model, plan: &Plan, known: &KnownReads, id: NodeId) -> Result<Option<(usize, Tensor)>> {
    if form(prepared, plan, id) != Some(Form::WeightOnly) {
        return Ok(None);
    }
    let how = plan::entry(prepared, plan, id).and_then(|e| e.few_bits.as_ref());
    let Some((how, weight)) = how.zip(plan::weight_of(prepared, id)) else { return Ok(None) };
    let value = prepared.value(weight);
    let Some((layout, tensor)) = plan::few_bits_layout(prepared, id).zip(value.constant()) else { return Ok(None) };
    let layer = Layer::new(layout, how.block_size, how.grid()?, known.of(value.name()).reads());
    let real = layer.round_trip(tensor, weights::by_name(&how.algorithm)?).map_err(|e| e.value(value.name()))?;
    Ok(Some((plan::weight_input(prepared, id), real)))
}
