//! What layers read, seen in some more runs where the plan rounds weights by it.

use std::{collections::BTreeMap, sync::Arc};

use super::{Job, thin};
use crate::{
    analysis::types::{self, Types},
    calibrate::{
        Dataset,
        moments::{self, DEEPEST, Missing, Patches, Reading, Want},
    },
    diagnostics::{Diagnostic, count},
    error::Result,
    ir::{Model, NodeId, ValueId},
    passes::support::linear::Linear,
    plan::{self, Form, KnownReads, Plan},
    weights::{self, Layout, Reads},
};

/// Samples that are looked at, at most, evenly spread over the data.
const SAMPLES: usize = 64;

/// Whether the plan rounds any weight by what its layer reads.
pub(super) fn asked(plan: &Plan) -> bool {
    plan.algorithms().any(|(_, name)| plan::reads(name))
}

/// Runs the model on some of the samples to know what layers read. Says which weights get the nearest codes all the same.
pub(super) fn know(
    job: &Job<'_>,
    model: &Model,
    plan: &Plan,
    data: Option<(&Dataset, &[usize])>,
) -> Result<(Arc<KnownReads>, Vec<Diagnostic>)> {
    let Some((data, samples)) = data.filter(|(_, samples)| !samples.is_empty()) else {
        // Scales of blocks are chosen by the weights alone then, which is no less than what was asked for.
        let blocks = plan.nodes.values().filter(|n| n.becomes == Form::WeightOnly);
        let blocks = blocks.filter(|n| n.algorithm().is_some_and(weights::needs_no_data)).count();
        if plan.algorithms().filter(|(_, name)| plan::reads(name)).count() == blocks {
            return Ok((Arc::default(), Vec::new()));
        }
        let text = "weights are rounded to the nearest codes: the algorithm that is asked for looks at what layers read, and \
                    there is no calibration data";
        let help = "give --calibration with typical inputs, or leave --weight-algorithm out";
        return Ok((Arc::default(), vec![Diagnostic::warning("weights_not_fitted", text).help(help)]));
    };
    let mut few = samples.to_vec();
    thin(&mut few, SAMPLES);
    let (layers, mut skipped) = layers(model, plan);
    // Layers that read the same in the same way have their moments together.
    let mut wants: Vec<Want> = Vec::new();
    let mut places = Vec::new();
    for layer in &layers {
        let same = wants.iter().position(|w| *w == layer.want);
        places.push(same.unwrap_or(wants.len()));
        if same.is_none() {
            wants.push(layer.want.clone());
        }
    }
    if wants.is_empty() {
        return Ok((Arc::default(), noticed(skipped)));
    }
    let progress = |done, total| job.progress.part(done, total);
    let found = moments::gather(job.runtime, model, &wants, &few, &|i| data.sample(i), &progress)?;
    let found: Vec<_> = found.into_iter().map(|f| f.map(Arc::new)).collect();
    let mut reads = BTreeMap::new();
    for (layer, place) in layers.into_iter().zip(places) {
        match &found[place] {
            Ok(moments) => drop(reads.insert(layer.weight, Reads { layout: layer.layout, moments: moments.clone() })),
            Err(why) => skipped.entry(reason(*why)).or_default().push(layer.weight),
        }
    }
    Ok((Arc::new(KnownReads::new(reads)), noticed(skipped)))
}

/// What to do about weights with the nearest codes.
const HELP: &str = "nothing, if the comparison with the original is good; else keep the layer in float with --keep-float \
                    (qonvert sensitivity shows what each costs)";

fn reason(why: Missing) -> String {
    match why {
        Missing::Large => format!("more than {DEEPEST} products for each output, or too large together"),
        Missing::Data => "too few numbers were seen in calibration, or some that are not finite".to_owned(),
    }
}

/// The names of weights that get the nearest codes although something else is asked for, by the reason.
type Skipped = BTreeMap<String, Vec<String>>;

fn noticed(skipped: Skipped) -> Vec<Diagnostic> {
    let note = |(why, names): (String, Vec<String>)| {
        let text = format!("{} rounded to the nearest codes: {why}", count(names.len(), "weight"));
        names.first().map(|first| Diagnostic::note("weights_not_fitted", text).on(first).help(HELP))
    };
    skipped.into_iter().filter_map(note).collect()
}

/// A weight and all layers that multiply by it.
struct Layer {
    weight: String,
    layout: Layout,
    want: Want,
}

/// The weights that the plan rounds by what their layers read.
fn layers(model: &Model, plan: &Plan) -> (Vec<Layer>, Skipped) {
    let types = types::infer(model);
    let (mut layers, mut skipped) = (Vec::new(), Skipped::new());
    for v in model.value_ids() {
        let value = model.value(v);
        if value.constant().is_none() || !is_asked(model, plan, v) {
            continue;
        }
        match layer(model, &types, plan, v) {
            Some(layer) => layers.push(layer),
            None => {
                let why = "layers use it differently, or stand in a subgraph".to_owned();
                skipped.entry(why).or_default().push(value.name().to_owned());
            }
        }
    }
    (layers, skipped)
}

fn is_asked(model: &Model, plan: &Plan, weight: ValueId) -> bool {
    let value = model.value(weight);
    let stored = plan.stored_weights.get(value.name()).map(|s| &s.algorithm);
    let of_reader = |(node, input): (NodeId, usize)| {
        let out = model.node(node).output(0).filter(|_| input == 1)?;
        let entry = plan.nodes.get(model.value(out).name())?;
        let computes = matches!(entry.becomes, Form::Integer | Form::Float8 | Form::Dynamic | Form::WeightOnly);
        entry.algorithm().filter(|_| computes)
    };
    stored.map(String::as_str).into_iter().chain(value.readers().filter_map(of_reader)).any(plan::reads)
}

fn layer(model: &Model, types: &Types, plan: &Plan, weight: ValueId) -> Option<Layer> {
    let value = model.value(weight);
    let readers: Vec<(NodeId, usize)> = value.readers().collect();
    let layout = plan::layout(model, readers.first()?.0)?;
    let mut want = Want { readings: Vec::new(), depth: layout.depth, groups: layout.groups, centered: true };
    for (node, input) in readers {
        let n = model.node(node);
        if input != 1 || n.graph() != model.main() || plan::layout(model, node) != Some(layout) {
            return None;
        }
        let data = n.input(0).filter(|&v| model.value(v).initializer().is_none())?;
        let name = model.value(data).name();
        let patches = match n.op_type.as_str() {
            "Conv" => Some(Patches::of(n, value.constant()?.dims())?),
            _ => None,
        };
        let out = n.output(0).and_then(|v| plan.nodes.get(model.value(v).name()));
        let integer = out.is_some_and(|entry| matches!(entry.becomes, Form::Integer | Form::Float8));
        let params = plan.activations.get(name).filter(|_| integer).map(|a| a.params());
        let corrected = plan.input_means.contains_key(name);
        want.centered &= corrected && Linear::of(model, types, node).is_some_and(|l| l.takes_bias());
        want.readings.push(Reading { value: data, patches, params });
    }
    Some(Layer { weight: value.name().to_owned(), layout, want })
}
