//! The runtime in Rust that needs no installation: [tract](https://github.com/sonos/tract). Alone names it.
//!
//! A session makes a plan for each combination of input shapes that comes along: with concrete shapes tract folds the
//! shape arithmetic of real exports away. The model as tract parsed it becomes the first plan, so that its weights are in
//! memory once; it is parsed again, and kept, if other shapes come. `QuantizeLinear` and
//! `DequantizeLinear` are our own operators ([`quantize`]), because tract's multiply by the reciprocal of the scale,
//! where ONNX Runtime divides. So are the recurrent ones
//! ([`recurrent`]). Other operators that tract computes differently are wired anew ([`corrected`]) or refused ([`refused`]).

mod alternative;
mod branch;
mod corrected;
mod dynamic;
mod failure;
mod float8;
mod kernels;
mod pieces;
mod plan;
mod quantize;
mod recurrent;
mod refused;
mod rounded;
mod session;
mod tensors;
mod tracts;
mod trials;
mod widen;

use std::collections::{BTreeSet, HashMap, HashSet};

use tract_onnx::{prelude::*, tract_core::ops::konst::Const};

use super::{Runtime, Session};
use crate::{
    error::{Error, Result},
    ir::{Model, Tensor, ValueId},
    onnx_file,
};

/// The tract runtime.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tract;

impl Runtime for Tract {
    fn name(&self) -> &'static str {
        "tract"
    }

    fn load(&self, model: &Model, observe: &[ValueId]) -> Result<Box<dyn Session>> {
        let wider = widen::small_integers(model)?;
        let model = wider.as_ref().unwrap_or(model);
        let bytes = float8::as_bytes(model)?;
        let model = bytes.as_ref().unwrap_or(model);
        refuse_unknown_operators(model, &framework())?;
        let outside = observe.iter().find(|&&v| model.value(v).graph() != model.main());
        if let Some(&v) = outside {
            return Err(Error::bug("a value inside a subgraph cannot be observed").value(model.value(v).name()));
        }
        let parsed = parse(model, observe)?;
        Ok(Box::new(session::TractSession::new(model, observe, parsed)))
    }
}

/// The model as tract reads it. Large weights do not go through the encoded model.
fn parse(model: &Model, observe: &[ValueId]) -> Result<InferenceModel> {
    let apart = |t: &Tensor| tensors::datum_type(t.dtype()).is_ok();
    let (bytes, weights) = onnx_file::to_bytes_and_weights(&with_unique_names(model), observe, apart)?;
    let parsed = failure::guard(failure::Doing::Read, || framework().model_for_read(&mut bytes.as_slice()));
    drop(bytes);
    let mut parsed = parsed.map_err(|f| f.into_error(&failure::Operators::of(model)))?;
    let inputs: HashMap<String, OutletId> =
        parsed.inputs.iter().map(|&o| (parsed.nodes[o.node].name.clone(), o)).collect();
    for (name, tensor) in weights {
        let Some(&outlet) = inputs.get(&name) else { continue };
        let value = tensors::weight_to_tract(&tensor).map_err(|e| e.value(&name))?;
        plan::fix(&mut parsed, outlet, value.into()).map_err(|e| Error::runtime(e.to_string()).value(&name))?;
    }
    let left = |o: &OutletId| !parsed.nodes[o.node].op_is::<Const>();
    let left: Vec<OutletId> = parsed.inputs.iter().copied().filter(left).collect();
    parsed.inputs = left;
    Ok(parsed)
}

/// The model with a name for each node that shares its own with another node, an input or a weight: for tract, a node
/// without a name bears that of its first output.
fn with_unique_names(model: &Model) -> Model {
    let mut named = model.clone();
    let main = model.graph(model.main());
    let weights = model.value_ids().into_iter().filter(|&v| model.value(v).initializer().is_some());
    let mut taken: HashSet<String> =
        main.inputs().iter().copied().chain(weights).map(|v| model.value(v).name().to_owned()).collect();
    for n in model.nodes(model.main()) {
        let label = model.node_label(n);
        if taken.insert(label.clone()) {
            continue;
        }
        let op = &model.node(n).op_type;
        let free = (1..).map(|k| format!("{label} ({op} {k})")).find(|name| !taken.contains(name));
        taken.extend(free.clone());
        named.node_mut(n).name = free;
    }
    named
}

fn framework() -> tract_onnx::Onnx {
    let mut onnx = tract_onnx::onnx().with_ignore_output_shapes(true).with_ignore_value_info(true);
    quantize::register(&mut onnx.op_register);
    dynamic::register(&mut onnx.op_register);
    alternative::register(&mut onnx.op_register);
    rounded::register(&mut onnx.op_register);
    branch::register(&mut onnx.op_register);
    recurrent::register(&mut onnx.op_register);
    corrected::register(&mut onnx.op_register);
    refused::register(&mut onnx.op_register);
    tracts::name_nodes(&mut onnx.op_register);
    onnx
}

/// tract finds an unknown operator only when it meets it; all of them at once help the user more.
fn refuse_unknown_operators(model: &Model, framework: &tract_onnx::Onnx) -> Result<()> {
    let known = &framework.op_register.0;
    let unknown = |&n: &_| !known.contains_key(&model.node(n).op_type);
    let nodes: Vec<_> = model.all_nodes().into_iter().filter(unknown).collect();
    let Some(&first) = nodes.first() else { return Ok(()) };
    let mut ops: BTreeSet<&str> = nodes.iter().map(|&n| model.node(n).op_type.as_str()).collect();
    ops.remove(model.node(first).op_type.as_str());
    let also = match ops.len() {
        0 => String::new(),
        _ => format!(" (nor {})", ops.into_iter().collect::<Vec<_>>().join(", ")),
    };
    let domain = match model.node(first).domain.as_deref() {
        None | Some("") => String::new(),
        Some(d) => format!(" of domain {d}"),
    };
    Err(Error::runtime(format!("the built-in runtime does not have this operator{domain}{also}"))
        .node(model.node_label(first), &model.node(first).op_type)
        .help(failure::HELP))
}
