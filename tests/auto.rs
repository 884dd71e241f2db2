//! Mode `auto`: what 8 bits would destroy stays float, the rest of the model does not, and models that bear it are what mode
//! `static` makes of them.

use std::{fs, path::Path};

use ndarray::{Array, Array4, Axis};
use ndarray_npy::NpzWriter;
use qonvert::{Config, Job, Settings, config::Mode, ir::text, onnx_file, pipeline, plan::Form};
use tempfile::TempDir;

/// Four convolutions. The channels between the last two differ in size by up to 10^`span`, which their weights make up for, so
/// that in float nothing is lost there, and with one scale for all channels nearly everything.
fn model(span: i32) -> String {
    let numbers = |count: usize, seed: usize| -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 1000) as f32 / 500.0 - 1.0).collect()
    };
    let list = |v: Vec<f32>| v.iter().map(|x| format!("{x:e}")).collect::<Vec<_>>().join(", ");
    let size = |channel: usize| 10f32.powi(span * (channel % 4) as i32 / 3);
    let third = numbers(32 * 32 * 9, 3).iter().enumerate().map(|(i, x)| x / size(i / (32 * 9))).collect();
    let last = numbers(8 * 32 * 9, 4).iter().enumerate().map(|(i, x)| x * size(i / 9 % 32)).collect();
    format!(
        "<ir_version: 8, opset_import: [\"\" : 17]>\n\
         agraph (float[1,4,24,24] x) => (float[1,8,24,24] y)\n\
         <float[32,4,3,3] w1 = {{{}}}, float[32,32,3,3] w2 = {{{}}}, float[32,32,3,3] w3 = {{{}}}, float[8,32,3,3] w4 = {{{}}}>\n{{\n\
         [first] a = Conv <pads: ints = [1, 1, 1, 1]> (x, w1)\n\
         [second] b = Conv <pads: ints = [1, 1, 1, 1]> (a, w2)\n\
         [third] c = Conv <pads: ints = [1, 1, 1, 1]> (b, w3)\n\
         [last] y = Conv <pads: ints = [1, 1, 1, 1]> (c, w4)\n}}",
        list(numbers(32 * 36, 1)),
        list(numbers(32 * 32 * 9, 2)),
        list(third),
        list(last),
    )
}

fn write(folder: &TempDir, span: i32) {
    onnx_file::write(&text::parse(&model(span)).unwrap(), &folder.path().join("model.onnx"), Default::default())
        .unwrap();
    save(folder, &data());
}

fn data() -> Array4<f32> {
    Array::from_shape_fn((40, 4, 24, 24), |(n, c, i, j)| {
        ((n * 31 + c * 17 + i * 5 + j * 3) as f32 * 0.37).sin() + 0.2 * (n as f32 * 1.7).cos()
    })
}

fn save(folder: &TempDir, x: &Array4<f32>) {
    let mut npz = NpzWriter::new(fs::File::create(folder.path().join("data.npz")).unwrap());
    npz.add_array("x", x).unwrap();
    npz.finish().unwrap();
}

fn quantize(folder: &Path, config: Config) -> pipeline::Quantized {
    let settings = Settings::new(config).unwrap();
    let data = Some(folder.join("data.npz"));
    pipeline::quantize(&Job { data, ..Job::new(folder.join("model.onnx"), folder.join("out.onnx"), &settings) })
        .unwrap()
}

fn integer(q: &pipeline::Quantized) -> Vec<&str> {
    let nodes = q.plan.nodes.values().filter(|n| n.becomes == Form::Integer);
    nodes.filter_map(|n| n.name.as_deref()).collect()
}

#[test]
fn what_eight_bits_would_destroy_stays_float() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, 5);
    let fastest = quantize(folder.path(), Config { mode: Mode::Static, ..Config::default() });
    assert!(fastest.auto.is_none());
    let mut all = integer(&fastest);
    all.sort_unstable();
    assert_eq!(all, ["first", "last", "second", "third"]);
    let chosen = quantize(folder.path(), Config::default());
    let auto = chosen.auto.as_ref().unwrap();
    let (before, after) = (auto.before.unwrap(), auto.after.unwrap());
    assert!(before < 25.0 && after >= 30.0, "{auto:?}");
    assert!(!integer(&chosen).contains(&"last") && integer(&chosen).contains(&"first"), "{:?}", integer(&chosen));
    let reasons = chosen.plan.nodes.values().filter(|n| n.reason.as_deref().is_some_and(|r| r.contains("answers")));
    assert_eq!((reasons.count(), auto.floated), (4 - integer(&chosen).len(), 4 - integer(&chosen).len()));
    // A plan that was made so makes the same file again.
    let yaml = chosen.plan.to_yaml().unwrap();
    assert_eq!(yaml, quantize(folder.path(), Config::default()).plan.to_yaml().unwrap());
    let settings = Settings::new(Config::default()).unwrap();
    let (data, plan) = (Some(folder.path().join("data.npz")), Some(chosen.plan.clone()));
    let job =
        Job { data, plan, ..Job::new(folder.path().join("model.onnx"), folder.path().join("out.onnx"), &settings) };
    let again = pipeline::quantize(&job).unwrap();
    assert!(onnx_file::to_bytes(&again.model).unwrap() == onnx_file::to_bytes(&chosen.model).unwrap());
    // Who can bear the loss gets the fastest plan.
    let loose = quantize(folder.path(), Config { max_loss: Some(1.0), ..Config::default() });
    assert_eq!((integer(&loose).len(), loose.auto.as_ref().unwrap().floated), (if before >= -10.0 { 4 } else { 0 }, 0));
}

#[test]
fn a_model_that_bears_it_is_what_static_makes_of_it() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, 0);
    let plans = [Mode::Static, Mode::Auto].map(|mode| quantize(folder.path(), Config { mode, ..Config::default() }));
    assert_eq!(plans[0].plan, plans[1].plan);
    let auto = plans[1].auto.as_ref().unwrap();
    assert!(auto.floated == 0 && auto.before == auto.after && auto.before.unwrap() > 30.0, "{auto:?}");
    let file = |q: &pipeline::Quantized| onnx_file::to_bytes(&q.model).unwrap();
    assert_eq!(file(&plans[0]), file(&plans[1]));
    assert_eq!(integer(&plans[0]).len(), 4);
}

#[test]
fn channels_are_evened_out_where_that_keeps_nodes_in_integers() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, 3);
    let chosen = quantize(folder.path(), Config::default());
    assert_eq!(integer(&chosen).len(), 4, "{:?}", chosen.auto);
    assert!(chosen.plan.channel_factors.contains_key("c") && chosen.auto.as_ref().unwrap().after.unwrap() >= 30.0);
    assert!(chosen.diagnostics.iter().any(|d| d.code == "evened_out"));
    // Not where the fastest plan bears it.
    let folder = tempfile::tempdir().unwrap();
    write(&folder, 0);
    assert!(quantize(folder.path(), Config::default()).plan.channel_factors.is_empty());
}

/// One scale for boxes and scores rounds all scores to zero, and the noise of the whole output says nothing of it.
#[test]
fn scores_beside_boxes_are_looked_at_for_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let numbers = |count: usize, seed: usize| {
        (0..count).map(move |i| format!("{}", ((i * 7919 + seed * 104_729) % 1000) as f32 / 2500.0 - 0.2))
    };
    let list = |count, seed| numbers(count, seed).collect::<Vec<_>>().join(", ");
    let text = format!(
        "<ir_version: 8, opset_import: [\"\" : 17]>
         agraph (float[1,4,24,24] x) => (float[1,12,24,24] y)
         <float[32,4,3,3] w = {{{}}}, float[4,32,1,1] wb = {{{}}}, float[8,32,1,1] ws = {{{}}}, float size = {{500}}, float off = {{2}}> {{
         [conv] a = Conv <pads: ints = [1, 1, 1, 1]> (x, w)
         r = Relu (a)
         [boxes] b = Conv (r, wb)
         [sizes] s = Mul (b, size)
         [scores] c = Conv (r, ws)
         d = Sub (c, off)
         [shares] e = Sigmoid (d)
         [both] y = Concat <axis: int = 1> (s, e) }}",
        list(32 * 36, 1),
        list(4 * 32, 2),
        list(8 * 32, 3)
    );
    onnx_file::write(&text::parse(&text).unwrap(), &folder.path().join("model.onnx"), Default::default()).unwrap();
    save(&folder, &data());
    let fastest = quantize(folder.path(), Config { mode: Mode::Static, everywhere: true, ..Config::default() });
    assert!(integer(&fastest).contains(&"both"));
    let chosen = quantize(folder.path(), Config { everywhere: true, ..Config::default() });
    let auto = chosen.auto.as_ref().unwrap();
    assert!(auto.before.unwrap() < 20.0 && auto.after.unwrap() >= 30.0, "{auto:?}");
    assert!(!integer(&chosen).contains(&"both") && integer(&chosen).contains(&"conv"), "{:?}", integer(&chosen));
}

#[test]
fn a_search_ends_with_its_time_within_the_budget_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, 3);
    let config = Config { time_budget: Some("1ms".into()), ..Config::default() };
    let chosen = quantize(folder.path(), config);
    let auto = chosen.auto.as_ref().unwrap();
    assert!(auto.out_of_time && auto.after.unwrap() >= auto.aim && !auto.fitted, "{auto:?}");
    assert!(chosen.plan.channel_factors.is_empty() && integer(&chosen).len() < 4);
    let error = Settings::new(Config { time_budget: Some("soon".into()), ..Config::default() }).unwrap_err();
    assert!(error.to_string().contains("time_budget is soon"), "{error}");
}

/// The product's data have another size in each sample, which no range fits.
#[test]
fn products_quantize_at_run_time_where_no_range_fits_all_samples() {
    let folder = tempfile::tempdir().unwrap();
    let weight = (0..256 * 96).map(|i| format!("{:.3}", ((i * 7919) % 1000) as f32 / 500.0 - 1.0));
    let text = format!(
        "<ir_version: 8, opset_import: [\"\" : 17]>\n\
         agraph (float[1,128,256] x) => (float[1,128,96] y) <float[256,96] w = {{{}}}> {{ [product] y = MatMul (x, w) }}",
        weight.collect::<Vec<_>>().join(", ")
    );
    onnx_file::write(&text::parse(&text).unwrap(), &folder.path().join("model.onnx"), Default::default()).unwrap();
    let x = ndarray::Array3::from_shape_fn((40, 128, 256), |(n, i, j)| {
        10f32.powi(n as i32 % 4) * ((n * 31 + i * 17 + j * 3) as f32 * 0.37).sin()
    });
    let mut npz = NpzWriter::new(fs::File::create(folder.path().join("data.npz")).unwrap());
    npz.add_array("x", &x).unwrap();
    npz.finish().unwrap();
    let fastest = quantize(folder.path(), Config { mode: Mode::Static, ..Config::default() });
    assert_eq!(integer(&fastest), ["product"]);
    let chosen = quantize(folder.path(), Config::default());
    let auto = chosen.auto.as_ref().unwrap();
    assert_eq!((chosen.plan.nodes["y"].becomes, auto.at_run_time, auto.floated), (Form::Dynamic, 1, 0));
    assert!(auto.before.unwrap() < 20.0 && auto.after.unwrap() >= auto.aim, "{auto:?}");
    let last = auto.cures.last().unwrap();
    assert_eq!(last.name, "quantizing the data of 1 node at run time");
    assert!(last.after > last.before);
}

#[test]
fn samples_of_nan_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, 0);
    let clean = quantize(folder.path(), Config::default());
    let mut x = data();
    x.index_axis_mut(Axis(0), 3).fill(f32::NAN);
    x[[20, 1, 2, 3]] = f32::INFINITY;
    save(&folder, &x);
    let odd = quantize(folder.path(), Config::default());
    let left_out: Vec<_> = odd.diagnostics.iter().filter(|d| d.code == "samples_left_out").collect();
    assert!(
        left_out.len() == 1 && left_out[0].message.contains("2 of 40") && left_out[0].message.contains("3, 20"),
        "{left_out:?}"
    );
    assert_eq!((integer(&odd), odd.samples.len() + odd.proof_samples.len()), (integer(&clean), 38));
    assert!((odd.auto.unwrap().after.unwrap() - clean.auto.unwrap().after.unwrap()).abs() < 3.0);
}

#[test]
fn the_proof_has_finite_samples_wherever_the_others_lie() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, 0);
    let mut x = data();
    for i in (0..40).step_by(2) {
        x.index_axis_mut(Axis(0), i).fill(f32::NAN);
    }
    save(&folder, &x);
    let odd = quantize(folder.path(), Config::default());
    assert!(odd.held_out && odd.samples.len() == 18 && odd.proof_samples.len() == 2, "{:?}", odd.proof_samples);
    assert!(odd.samples.iter().chain(&odd.proof_samples).all(|i| i % 2 == 1));
}

#[test]
fn data_without_a_finite_sample_are_an_error() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, 0);
    let path = |name: &str| folder.path().join(name);
    let settings = Settings::new(Config::default()).unwrap();
    let run = |data: &str, evaluation: Option<&str>| {
        let (data, evaluation) = (Some(path(data)), evaluation.map(path));
        pipeline::quantize(&Job { data, evaluation, ..Job::new(path("model.onnx"), path("out.onnx"), &settings) })
    };
    fs::copy(path("data.npz"), path("good.npz")).unwrap();
    for odd in [f32::NAN, f32::INFINITY] {
        save(&folder, &data().mapv(|_| odd));
        for e in [run("data.npz", None).err().unwrap(), run("good.npz", Some("data.npz")).err().unwrap()] {
            let said = "data.npz: value \"x\": no finite sample is left: all 40 hold NaN or infinity (2304 of 2304 numbers in sample 0)";
            assert!(e.to_string().contains(said), "{e}");
        }
    }
    let mut few = data();
    few[[7, 0, 0, 0]] = f32::NAN;
    save(&folder, &few);
    let done = run("good.npz", Some("data.npz")).unwrap();
    let said: Vec<_> = done.diagnostics.iter().filter(|d| d.code == "samples_left_out").collect();
    assert!(
        said.len() == 1 && said[0].message.starts_with("in the data to compare on, 1 of 40 samples holds NaN"),
        "{said:?}"
    );
    assert_eq!(done.proof_samples.len(), 39);
}

#[test]
fn without_data_it_quantizes_at_run_time_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, 0);
    let settings = Settings::new(Config::default()).unwrap();
    let job = Job::new(folder.path().join("model.onnx"), folder.path().join("out.onnx"), &settings);
    let done = pipeline::quantize(&job).unwrap();
    assert_eq!(done.diagnostics[0].code, "without_data");
    assert!(done.plan.nodes.values().all(|n| n.becomes != Form::Integer) && !done.plan.stored_weights.is_empty());
}
