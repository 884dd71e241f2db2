//! Data and models that are not what they should be.

use std::fs;

use ndarray::Array4;
use ndarray_npy::NpzWriter;
use qonvert::{ir::text, onnx_file};

use super::place::Place;
use crate::random::noise;

#[test]
fn labels_that_cannot_be_are_an_error() {
    let place = Place::new();
    let image = Array4::from_shape_fn((24, 3, 16, 16), |(n, c, y, x)| noise(n as u32, (c * 16 + y) * 16 + x));
    for (name, labels, shape, says) in [
        ("labels", (0..24).map(|i| i as f32).collect::<Vec<_>>(), vec![24], "the output has 4 classes"),
        ("labels", vec![0.5; 24], vec![24], "0.5, which is no whole number"),
        ("labels", (0..96).map(|i| f32::from(u8::from(i % 4 == i / 4 % 4))).collect(), vec![24, 4], "one-hot"),
        ("labels", vec![0.0; 7], vec![7], "has 7 labels for 24 samples"),
        ("labels", vec![0.0; 48], vec![24, 2], "a sample has 2 labels, the output gives 1 answer"),
        ("y", vec![0.5; 24], vec![24], "accuracy is not measured"),
        ("labels", (0..24).map(|i| (i % 4) as f32).collect(), vec![24, 1], "24 labelled samples"),
    ] {
        let mut npz = NpzWriter::new(fs::File::create(place.path("l.npz")).unwrap());
        npz.add_array("image", &image).unwrap();
        npz.add_array(name, &ndarray::ArrayD::from_shape_vec(shape, labels).unwrap()).unwrap();
        npz.finish().unwrap();
        let done = place.run("quantize model.onnx -o out.onnx --calibration data.npz --evaluation l.npz");
        let text = format!("{}{}", done.out, done.err);
        assert!(text.contains(says), "{says}: {text}");
    }
}

#[test]
fn odd_models_are_named() {
    let place = Place::new();
    assert_eq!(place.quantize("-q").code, 0);
    let again = place.run("quantize out.onnx -o twice.onnx --calibration data.npz");
    assert!(again.out.contains("the model comes with quantizers"), "{}{}", again.out, again.err);
    let head = "<ir_version: 8, opset_import: [\"\" : 17]> g (float[N,3,16,16] image) => (float[N,3,16,16] y) ";
    for (name, body) in [("nan", "y = Log (image)"), ("all", "z = Sub (image, image) y = Div (z, z)")] {
        let model = text::parse(&format!("{head} {{ {body} }}")).unwrap();
        onnx_file::write(&model, &place.path("nan.onnx"), Default::default()).unwrap();
        let done = place.run("quantize nan.onnx -o out.onnx --calibration data.npz --everywhere");
        let said = done.out.contains("the original") && done.out.contains("NaN or infinit");
        assert!(said && !done.out.contains("COLLAPSED"), "{name}: {}{}", done.out, done.err);
    }
}

#[test]
fn weights_of_nan_are_no_success() {
    let place = Place::new();
    let head = "<ir_version: 8, opset_import: [\"\" : 17]> g (float[N,3,16,16] image) => (float[N,3,16,16] y) \
                <float[3,3,1,1] w = {1,2,3,4,nan,6,7,8,9}, float[3,3,1,1] v = {1,2,3,4,5,6,7,8,9}> ";
    let body = "[bad] a = Conv (image, w) b = Relu (a) [good] y = Conv (b, v)";
    let model = text::parse(&format!("{head} {{ {body} }}")).unwrap();
    onnx_file::write(&model, &place.path("nan.onnx"), Default::default()).unwrap();
    let done = place.run("quantize nan.onnx -o out.onnx --calibration data.npz --keep-float bad");
    assert_eq!(done.code, 1, "{}{}", done.out, done.err);
    assert!(done.out.contains("NOT COMPARABLE") && !done.out.contains("done: "), "{}", done.out);
    assert!(done.out.contains("1 of 9 numbers of \"w\", which node \"bad\" (Conv) reads, is NaN"), "{}", done.out);
}
