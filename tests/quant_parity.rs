//! The library's own arithmetic against ONNX Runtime: codes and real numbers, bit for bit.

mod common;

use common::{ort_try_run, random::Random};
use qonvert::{
    ir::{DType, NodeSpec, Place, Tensor, text},
    onnx_file,
    quant::{QuantTarget, Range, arith, pack, quantize_weight},
};

/// Numbers over, at and beyond a range, many of them half-way between two codes.
fn numbers(range: Range, step: f32) -> Vec<f32> {
    let mut draw = Random(11);
    let spread = range.hi - range.lo;
    let random: Vec<f32> = (0..4000).map(|_| range.lo + spread * (1.4 * draw.uniform() - 0.2)).collect();
    let halves = (-300..300).map(|i| (i as f32 + 0.5) * step);
    random.into_iter().chain(halves).chain([1e30, -1e30, 0.0, -0.0, 1e-42, f32::INFINITY, f32::NEG_INFINITY]).collect()
}

#[test]
fn codes_and_numbers() {
    for dtype in [DType::Uint8, DType::Int8, DType::Uint16, DType::Int16] {
        for symmetric in [false, true] {
            for (lo, hi) in [(-1.0, 1.0), (-0.3, 7.7), (0.0, 255.0), (-1e-3, 2e-3), (-812.0, 3.0)] {
                let target = QuantTarget { dtype, symmetric, reduce_range: false };
                let params = target.params(Range::new(lo, hi)).expect("a good range");
                let x = numbers(Range::new(lo, hi), params.scale);
                let mut model = text::parse(&format!(
                    "<ir_version: 10, opset_import: [\"\" : 21]> g (float[N] x) => ({dtype}[N] q, float[N] y)
                     <float s = {{0}}, {dtype} z = {{{}}}> {{
                         q = QuantizeLinear(x, s, z)
                         y = DequantizeLinear(q, s, z)
                     }}",
                    params.zero_point
                ))
                .expect("it parses");
                let s = model.find_value(model.main(), "s").expect("it is there");
                model.set_initializer(s, Some(Tensor::from_f32(&[], &[params.scale])));
                let bytes = onnx_file::to_bytes(&model).expect("it encodes");
                let input = Tensor::from_f32(&[x.len()], &x);
                let Some(theirs) = ort_try_run(&bytes, &[("x", input)], false) else { return };
                let theirs = theirs.expect("ONNX Runtime runs it");
                let codes = arith::quantize_slice(&x, params).expect("a good type");
                assert_eq!(pack::unpack(&theirs[0]).expect("codes"), codes, "{params:?}");
                assert_eq!(theirs[1].to_f32().expect("numbers"), arith::dequantize_slice(&codes, params), "{params:?}");
            }
        }
    }
}

#[test]
fn weights_of_every_type_and_axis() {
    let values: Vec<f32> = (0..120).map(|i| (i as f32 * 0.77).sin() * (1 + i % 7) as f32).collect();
    let weight = Tensor::from_f32(&[4, 5, 6], &values);
    for dtype in [DType::Int8, DType::Uint8, DType::Int16, DType::Int4, DType::Uint4] {
        for (axis, symmetric) in [(None, true), (Some(0), true), (Some(1), false), (Some(2), true)] {
            let q = quantize_weight(&weight, dtype, axis, symmetric, false).expect("a good weight");
            let text = "<ir_version: 10, opset_import: [\"\" : 21]> g (float[1] one) => (float[4,5,6] y)
                        <float[1] w = {0}> { y = Mul(w, one) }";
            let mut model = text::parse(text).expect("it parses");
            let g = model.main();
            let w = model.find_value(g, "w").expect("it is there");
            let mut spec = NodeSpec::new("DequantizeLinear").output("dequantized");
            for (name, tensor) in [("q", &q.values), ("s", &q.scale), ("z", &q.zero_point)] {
                spec = spec.input(model.add_initializer(g, name, tensor.clone()));
            }
            spec = axis.map_or(spec.clone(), |a| spec.attr("axis", a as i64));
            let node = model.insert(spec, Place::End(g));
            let real = model.node(node).output(0).expect("it has an output");
            model.replace_all_uses(w, real);
            let bytes = onnx_file::to_bytes(&model).expect("it encodes");
            let Some(theirs) = ort_try_run(&bytes, &[("one", Tensor::from_f32(&[1], &[1.0]))], false) else { return };
            let theirs = theirs.expect("ONNX Runtime runs it");
            assert_eq!(theirs[0].to_f32().expect("numbers"), q.dequantized().expect("numbers"), "{dtype} {axis:?}");
        }
    }
}
