//! Stores large float constants that hold two different numbers only, such as the masks of attention, as bool: a quarter
//! of the bytes, and exactly the same numbers. The runtime computes them once, when it loads the file.
//!
//! ```text
//! before: y = Add(x, mask), mask = {0, -inf, 0, 0}
//! after:  m = Where(mask_bool, -inf, 0); y = Add(x, m)
//! ```

use super::Context;
use crate::{
    error::Result,
    ir::{DType, Model, NodeSpec, Place, Tensor, ValueId},
};

/// Below this many elements nothing worth having is saved.
const SMALLEST: usize = 1024;
/// The first opset in which runtimes compute `Where` at load.
const OPSET: i64 = 9;

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    if cx.options.keep_masks || model.opset("").is_none_or(|o| o < OPSET) {
        return Ok(0);
    }
    let mut changes = 0;
    for v in model.value_ids() {
        let value = model.value(v);
        let Some(t) = value.constant().filter(|t| t.dtype() == DType::Float && t.len() >= SMALLEST) else { continue };
        // What is computed when it is written is no mask.
        if t.is_deferred() || value.graph() != model.main() || value.uses().is_empty() || value.is_graph_output() {
            continue;
        }
        let (dims, bytes) = (t.dims().to_vec(), t.bytes()?);
        if let Some((first, second, codes)) = two_numbers(&bytes) {
            store(model, v, &dims, first, second, codes);
            changes += 1;
        }
    }
    Ok(changes)
}

/// The two numbers that the elements are, as little-endian bytes, and for each element whether it is the first. Compared
/// as bits: NaN is a number like any other here, and 0 is not -0.
fn two_numbers(bytes: &[u8]) -> Option<([u8; 4], [u8; 4], Vec<u8>)> {
    let number = |c: &[u8]| <[u8; 4]>::try_from(c).ok();
    let first = number(bytes.get(..4)?)?;
    let second = bytes.chunks_exact(4).find(|c| **c != first).and_then(number)?;
    let mut codes = Vec::with_capacity(bytes.len() / 4);
    for c in bytes.chunks_exact(4) {
        match c {
            c if *c == first => codes.push(1),
            c if *c == second => codes.push(0),
            _ => return None,
        }
    }
    Some((first, second, codes))
}

fn store(model: &mut Model, v: ValueId, dims: &[usize], first: [u8; 4], second: [u8; 4], codes: Vec<u8>) {
    let (graph, name) = (model.value(v).graph(), model.value(v).name().to_owned());
    let number = |bytes: [u8; 4]| Tensor::from_f32(&[], &[f32::from_le_bytes(bytes)]);
    let is_first = model.add_initializer(graph, &format!("{name}_bool"), Tensor::from_u8(DType::Bool, dims, codes));
    let first = model.add_initializer(graph, &format!("{name}_true"), number(first));
    let second = model.add_initializer(graph, &format!("{name}_false"), number(second));
    let spec = NodeSpec::new("Where").input(is_first).input(first).input(second).output(format!("{name}_Where_Output"));
    let node = model.insert(spec, Place::Start(graph));
    if let Some(made) = model.node(node).output(0) {
        model.replace_readers(v, made, |n, _| n != node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ir::testing::{find, model},
        runtime::{Runtime, tract::Tract},
    };

    fn with_constant(values: &[f32]) -> Model {
        let mut m = model("float[n] x \n float[1] c = {0} \n y = Add(x, c) \n return y");
        let c = find(&m, "c");
        m.value_mut(c).ty = None;
        m.set_initializer(c, Some(Tensor::from_f32(&[values.len()], values)));
        m
    }

    #[test]
    fn a_mask_keeps_its_numbers() {
        let mask: Vec<f32> = (0..2048).map(|i| if i % 3 == 0 { f32::NEG_INFINITY } else { 0.0 }).collect();
        let mut m = with_constant(&mask);
        assert_eq!(run(&mut m, &mut Context::default()).unwrap(), 1);
        super::super::remove_dead::run(&mut m, &mut Context::default()).unwrap();
        m.verify().unwrap();
        assert!(m.find_value(m.main(), "c").is_none());
        let x = Tensor::from_f32(&[2048], &[0.0; 2048]);
        assert_eq!(Tract.load(&m, &[]).unwrap().run(&[x]).unwrap()[0].to_f32().unwrap(), mask);
    }

    #[test]
    fn what_is_no_mask_stays() {
        let three: Vec<f32> = (0..2048).map(|i| (i % 3) as f32).collect();
        let mut zeros = vec![0.0; 2048];
        zeros[7] = -0.0;
        zeros[8] = 1.0;
        for values in [&three[..], &zeros, &[0.0; 2048], &[0.0, 1.0]] {
            assert_eq!(run(&mut with_constant(values), &mut Context::default()).unwrap(), 0);
        }
        let mut cx = Context::default();
        cx.options.keep_masks = true;
        let mask: Vec<f32> = (0..2048).map(|i| (i % 2) as f32).collect();
        assert_eq!(run(&mut with_constant(&mask), &mut cx).unwrap(), 0);
    }
}
