//! Operators of the dynamic form in the built-in runtime against ONNX Runtime, bit for bit.

mod common;

use common::ort_try_run;
use qonvert::{
    ir::{DType, Tensor, text},
    onnx_file,
    runtime::{Runtime, tract::Tract},
};

fn codes(count: usize, seed: usize) -> Vec<u8> {
    (0..count).map(|i| ((i * 7919 + seed * 104_729 + 13) % 256) as u8).collect()
}

fn check(text: &str, inputs: &[(&str, Tensor)]) {
    let model = text::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let fed: Vec<Tensor> = inputs.iter().map(|i| i.1.clone()).collect();
    let ours = Tract.load(&model, &[]).expect("it loads").run(&fed).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let bytes = onnx_file::to_bytes(&model).expect("it encodes");
    let Some(theirs) = ort_try_run(&bytes, inputs, false) else { return };
    let theirs = theirs.unwrap_or_else(|e| panic!("{e}\n{text}"));
    for (a, b) in ours.iter().zip(&theirs) {
        if !(a.dims() == b.dims() && a.same_content(b)) {
            eprintln!(
                "DIFFERS {:?} {:?} vs {:?}\n{text}",
                a.dims(),
                a.to_i64().map(|v| v[..v.len().min(8)].to_vec()),
                b.to_i64().map(|v| v[..v.len().min(8)].to_vec())
            );
        }
    }
}

fn tensor(dtype: DType, dims: &[usize], seed: usize) -> Tensor {
    Tensor::new(dtype, dims.to_vec(), codes(dims.iter().product(), seed)).expect("a tensor")
}

#[test]
fn products_of_codes() {
    for (wt, wd) in [("int8", DType::Int8), ("uint8", DType::Uint8)] {
        for (xt, xd) in [("uint8", DType::Uint8), ("int8", DType::Int8)] {
            for zeros in ["", ", xz", ", , wz", ", xz, wz", ", xz, wv"] {
                let text = format!(
                    "<ir_version: 8, opset_import: [\"\" : 17]> g ({xt}[3, 5, 700] x, {wt}[700, 6] w, {xt} xz, {wt} wz, {wt}[6] wv) => (int32[3, 5, 6] y) {{ y = MatMulInteger (x, w{zeros}) }}"
                );
                let inputs = [
                    ("x", tensor(xd, &[3, 5, 700], 1)),
                    ("w", tensor(wd, &[700, 6], 2)),
                    ("xz", tensor(xd, &[], 9)),
                    ("wz", tensor(wd, &[], 5)),
                    ("wv", tensor(wd, &[6], 6)),
                ];
                check(&text, &inputs);
            }
        }
    }
}

#[test]
fn convolutions_of_codes() {
    for (wt, wd) in [("int8", DType::Int8), ("uint8", DType::Uint8)] {
        for zeros in ["", ", xz", ", xz, wz"] {
            for (attrs, group) in [
                ("", 1),
                ("pads = [1, 1, 1, 1], strides = [2, 1]", 1),
                ("auto_pad = \"SAME_UPPER\"", 1),
                ("group = 2, pads = [0, 1, 2, 1], dilations = [2, 1]", 2),
                ("group = 6, pads=[1,1,1,1]", 6),
            ] {
                let c = 6 / group;
                let text = format!("<ir_version: 8, opset_import: [\"\" : 17]> g (uint8[2, 6, 7, 9] x, {wt}[6, {c}, 3, 3] w, uint8 xz, {wt} wz) => (int32[a, b, c, d] y) {{ y = ConvInteger <{attrs}> (x, w{zeros}) }}").replace("ConvInteger <>", "ConvInteger");
                let inputs = [
                    ("x", tensor(DType::Uint8, &[2, 6, 7, 9], 1)),
                    ("w", tensor(wd, &[6, c, 3, 3], 2)),
                    ("xz", tensor(DType::Uint8, &[], 9)),
                    ("wz", tensor(wd, &[], 5)),
                ];
                check(&text, &inputs);
            }
        }
    }
}
