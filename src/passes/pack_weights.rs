//! Stores weights of float nodes in 1, 2 or 4 bits, packed in bytes, as the plan says. The runtime computes them back to float once,
//! when it loads the file: all that is needed for that are operators that it folds.
//!
//! ```text
//! before: y = Conv(x, w)
//! after:  codes = Mod(BitShift<direction = "RIGHT">(w_packed, {0, 1, …, 7}), 2)
//!         w' = Reshape(Mul(Sub(Reshape(Cast(codes), {rows, block}), 0.5), w_scale), {…}); y = Conv(x, w')
//! ```

use super::Context;
use crate::{
    error::Result,
    ir::{DType, Model, NodeSpec, Place, Tensor, ValueId},
    plan::PackedWeight,
};

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    let Some(plan) = cx.plan.take() else { return Ok(0) };
    let mut changes = 0;
    for v in model.value_ids() {
        let value = model.value(v);
        let (Some(how), Some(t)) = (plan.packed_weights.get(value.name()), value.constant()) else { continue };
        if t.dtype() != DType::Float || value.uses().is_empty() || value.is_graph_output() {
            continue;
        }
        let (name, tensor) = (value.name().to_owned(), t.clone());
        pack(model, v, &tensor, how).map_err(|e| e.value(name))?;
        changes += 1;
    }
    cx.plan = Some(plan);
    Ok(changes)
}

fn pack(model: &mut Model, v: ValueId, tensor: &Tensor, how: &PackedWeight) -> Result<()> {
    let packed = how.round(tensor)?;
    let (graph, name) = (model.value(v).graph(), model.value(v).name().to_owned());
    let per_byte = 8 / how.bits;
    let bytes: Vec<u8> = packed
        .codes
        .chunks(per_byte)
        .map(|codes| codes.iter().rev().fold(0u8, |byte, &c| byte << how.bits | c as u8))
        .collect();
    let rows = tensor.len() / how.block_size;
    let mut add = |suffix: &str, t: Tensor| model.add_initializer(graph, &format!("{name}_{suffix}"), t);
    let count = bytes.len();
    let codes = add("packed", Tensor::from_u8(DType::Uint8, &[count, 1], bytes));
    let shifts: Vec<u8> = (0..per_byte).map(|i| (i * how.bits) as u8).collect();
    let shifts = add("shifts", Tensor::from_u8(DType::Uint8, &[1, per_byte], shifts));
    let levels = add("levels", Tensor::from_u8(DType::Uint8, &[], vec![1 << how.bits]));
    let zero = add("zero", Tensor::from_f32(&[], &[packed.zero]));
    let scale = add("scale", Tensor::from_f32(&[rows, 1], &packed.scales));
    let blocks = add("blocks", Tensor::from_i64(&[2], &[rows as i64, how.block_size as i64]));
    let dims: Vec<i64> = tensor.dims().iter().map(|&d| d as i64).collect();
    let shape = add("shape", Tensor::from_i64(&[dims.len()], &dims));
    // The last byte may hold more codes than there are weights.
    let cut = (count * per_byte != tensor.len()).then(|| {
        let list = |n: usize| Tensor::from_i64(&[1], &[n as i64]);
        [add("flat", Tensor::from_i64(&[1], &[-1])), add("from", list(0)), add("to", list(tensor.len()))]
    });
    let mut last = None;
    let mut then = |op: &str, inputs: &[ValueId], attribute: Option<(&str, crate::ir::AttrValue)>| -> Result<ValueId> {
        let mut spec = NodeSpec::new(op).inputs(inputs.iter().map(|&v| Some(v))).output(format!("{name}_{op}_Output"));
        if let Some((key, value)) = attribute {
            spec = spec.attr(key, value);
        }
        let place = last.map_or(Place::Start(graph), Place::After);
        let made = model.insert_value(spec, place)?;
        last = model.producer(made);
        Ok(made)
    };
    let right = crate::ir::AttrValue::String("RIGHT".into());
    let mut x = then("BitShift", &[codes, shifts], Some(("direction", right)))?;
    x = then("Mod", &[x, levels], None)?;
    if let Some([flat, from, to]) = cut {
        x = then("Reshape", &[x, flat], None)?;
        x = then("Slice", &[x, from, to], None)?;
    }
    let float = crate::ir::AttrValue::Int(i64::from(DType::Float.to_onnx()));
    x = then("Cast", &[x], Some(("to", float)))?;
    x = then("Reshape", &[x, blocks], None)?;
    x = then("Sub", &[x, zero], None)?;
    x = then("Mul", &[x, scale], None)?;
    x = then("Reshape", &[x, shape], None)?;
    model.replace_readers(v, x, |_, _| true);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ir::testing::model,
        plan::{Plan, packed_exactly},
        runtime::{Runtime, tract::Tract},
    };

    /// A weight of so many numbers, of which the greatest magnitude in each row is another one.
    fn weight(numbers: &[f32], rows: usize, columns: usize) -> Tensor {
        let at = |i: usize| numbers[i * 7 % numbers.len()] * (1.0 + (i / columns) as f32 / 3.0);
        Tensor::from_f32(&[rows, columns], &(0..rows * columns).map(at).collect::<Vec<f32>>())
    }

    #[test]
    fn two_or_three_numbers_come_back_exactly() {
        for (numbers, bits) in [(&[0.1, -0.1][..], 1), (&[0.1, -0.1, 0.0], 2), (&[0.0, 0.7], 2)] {
            for columns in [96, 101] {
                let w = weight(numbers, 7, columns);
                let how = packed_exactly(&w, 7).expect("it is exact");
                assert_eq!((how.bits, how.block_size), (bits, columns));
                assert_eq!(how.unpacked(&w).unwrap(), w.to_f32().unwrap());
                let mut m = model(&format!("float[2,7] x \n float[7,{columns}] w \n y = MatMul(x, w) \n return y"));
                let v = m.value_ids().into_iter().find(|&v| m.value(v).name() == "w").unwrap();
                let named = m.add_initializer(m.main(), "v", w.clone());
                m.replace_readers(v, named, |_, _| true);
                let mut plan = Plan::default();
                plan.packed_weights.insert("v".into(), how);
                let x = Tensor::from_f32(&[2, 7], &(0..14).map(|i| (i as f32).sin()).collect::<Vec<_>>());
                let unused = Tensor::from_f32(&[7, columns], &vec![0.0; 7 * columns]);
                let answer =
                    |m: &Model| Tract.load(m, &[]).unwrap().run(&[x.clone(), unused.clone()]).unwrap()[0].clone();
                let before = answer(&m);
                let mut cx = Context { plan: Some(plan), ..Context::default() };
                assert_eq!(run(&mut m, &mut cx).unwrap(), 1);
                m.verify().unwrap();
                assert!(answer(&m).same_content(&before), "{numbers:?} {columns}");
            }
        }
    }

    #[test]
    fn other_weights_are_not_exact() {
        assert_eq!(packed_exactly(&weight(&[0.1, -0.1, 0.2], 7, 96), 7), None);
        assert_eq!(packed_exactly(&weight(&[0.1, -0.1], 2, 20), 2), None); // too small
        assert_eq!(packed_exactly(&weight(&[f32::NAN, 1.0], 7, 96), 7), None);
    }
}
