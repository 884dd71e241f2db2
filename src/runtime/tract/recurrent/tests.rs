use half::f16;

use crate::{
    error::Result,
    ir::{DType, Model, Tensor, text},
    runtime::{Runtime, tract::Tract},
};

fn run(model: &Model, x: Tensor) -> Result<Vec<Tensor>> {
    Tract.load(model, &[])?.run(&[x])
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * 0.7).sin()).collect()
}

fn layer(dtype: DType) -> (Model, Tensor) {
    let make = |dims: &[usize]| {
        let values = numbers(dims.iter().product());
        match dtype {
            DType::Float16 => {
                let bytes: Vec<u8> = values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
                Tensor::new(dtype, dims.to_vec(), bytes).unwrap()
            }
            _ => Tensor::from_f32(dims, &values),
        }
    };
    let mut model = text::parse(&format!(
        "<ir_version: 8, opset_import: [\"\" : 14]> g ({dtype}[2, 1, 3] x) => ({dtype} y)
         <{dtype} w = {{0}}, {dtype} r = {{0}}> {{ y = LSTM <hidden_size = 2, direction = \"reverse\"> (x, w, r) }}"
    ))
    .unwrap();
    for (name, dims) in [("w", [1, 8, 3]), ("r", [1, 8, 2])] {
        let v = model.find_value(model.main(), name).unwrap();
        model.set_initializer(v, Some(make(&dims)));
    }
    (model, make(&[2, 1, 3]))
}

#[test]
fn half_precision_stays_what_it_is() {
    let [wide, narrow] = [DType::Float, DType::Float16].map(|dtype| {
        let (model, x) = layer(dtype);
        let y = run(&model, x).unwrap().remove(0);
        assert_eq!((y.dtype(), y.dims()), (dtype, &[2, 1, 1, 2][..]));
        y.to_f32().unwrap()
    });
    assert!(wide.iter().zip(&narrow).all(|(a, b)| (a - b).abs() < 2e-3), "{wide:?} {narrow:?}");
}

#[test]
fn the_batch_in_front_is_an_error_that_names_the_node() {
    for (op, gates) in [("RNN", 1), ("GRU", 3), ("LSTM", 4)] {
        let error = |layout: usize| {
            let mut model = text::parse(&format!(
                "<ir_version: 8, opset_import: [\"\" : 14]> g (float[2, 1, 3] x) => (float y)
                 <float w = {{0}}, float r = {{0}}> {{ y = {op} <hidden_size = 2, layout = {layout}> (x, w, r) }}"
            ))
            .unwrap();
            for (name, dims) in [("w", [1, gates * 2, 3]), ("r", [1, gates * 2, 2])] {
                let v = model.find_value(model.main(), name).unwrap();
                model.set_initializer(v, Some(Tensor::from_f32(&dims, &numbers(dims.iter().product()))));
            }
            run(&model, Tensor::from_f32(&[2, 1, 3], &numbers(6))).err().map(|e| e.to_string())
        };
        assert_eq!(error(0), None);
        let text = error(1).unwrap();
        assert!(text.contains("layout = 1") && text.contains(&format!("node \"y\" ({op})")), "{text}");
    }
}

#[test]
fn what_does_not_fit_is_an_error_that_names_the_node() {
    let error = |call: &str, w: [usize; 3], scale: &[usize]| {
        let mut model = text::parse(&format!(
            "<ir_version: 8, opset_import: [\"\" : 14, \"com.microsoft\" : 1]> g (float[2, 1, 3] x) => (float y)
             <int8 w = {{0}}, int8 r = {{0}}, float s = {{1}}, int8 z = {{0}}> {{
                y = com.microsoft.DynamicQuantizeLSTM <{call}> (x, w, r, , , , , , s, z, s, z)
             }}"
        ))
        .unwrap();
        for (name, dims) in [("w", &w[..]), ("r", &[1, 2, 8]), ("s", scale), ("z", scale)] {
            let count = dims.iter().product();
            let tensor = match name {
                "s" => Tensor::from_f32(dims, &vec![0.1; count]),
                _ => Tensor::from_u8(DType::Int8, dims, vec![1; count]),
            };
            let v = model.find_value(model.main(), name).unwrap();
            model.set_initializer(v, Some(tensor));
        }
        run(&model, Tensor::from_f32(&[2, 1, 3], &numbers(6))).map(|y| y[0].dims().to_vec()).map_err(|e| e.to_string())
    };
    assert_eq!(error("hidden_size = 2", [1, 3, 8], &[1, 8]), Ok(vec![2, 1, 1, 2]));
    assert_eq!(error("hidden_size = 2", [1, 3, 8], &[1]), Ok(vec![2, 1, 1, 2]));
    for (call, w, scale, words) in [
        ("hidden_size = 2", [1, 4, 8], &[1, 8][..], "input 1 has shape [1, 4, 8], not [1, 3, 8]"),
        ("hidden_size = 2", [1, 3, 8], &[8], "the scale of input 1 has shape [8]"),
        ("hidden_size = 3", [1, 3, 8], &[1, 8], "input 1 has shape [1, 3, 8], not [1, 3, 12]"),
        ("hidden_size = 99999999999", [1, 3, 8], &[1, 8], "hidden_size is 99999999999"),
        ("direction = \"forward\"", [1, 3, 8], &[1, 8], "no hidden_size"),
        ("hidden_size = 2, direction = \"up\"", [1, 3, 8], &[1, 8], "direction is \"up\""),
        ("hidden_size = 2, activations = [\"Sine\", \"Tanh\", \"Tanh\"]", [1, 3, 8], &[1, 8], "\"Sine\" is not known"),
    ] {
        let text = error(call, w, scale).unwrap_err();
        assert!(text.contains(words) && text.contains("DynamicQuantizeLSTM"), "{text}");
    }
}
