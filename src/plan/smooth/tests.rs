use super::{
    layer::{Layer, lost},
    seen::{Seen, Watched},
    *,
};
use crate::{
    analysis::placement::Quantized,
    ir::{Tensor, testing},
    runtime::tract::Tract,
    target::Target,
};

fn seen(value: ValueId, lo: &[f32], hi: &[f32]) -> BTreeMap<ValueId, Seen> {
    [(value, Seen { lo: lo.to_vec(), hi: hi.to_vec() })].into()
}

/// `v = Tanh(x)·sizes; y = MatMul(v, w)`, one channel of which is far larger than the others.
fn outlier(far: f32, also: &str) -> Model {
    let list = |count: usize, f: &dyn Fn(usize) -> f32| {
        (0..count).map(|i| format!("{:.6}", f(i))).collect::<Vec<_>>().join(",")
    };
    let sizes = list(8, &|i| if i == 5 { far } else { 1.0 });
    let weight = list(8 * 128, &|i| (i as f32 * 0.7).sin() / if i / 128 == 5 { far } else { 1.0 });
    testing::model(&format!(
        "float[n,8] x\nfloat[8] s = {{{sizes}}}\nfloat[8,128] w = {{{weight}}}\nt = Tanh(x)\nv = Mul(t, s)\n\
         y = MatMul(v, w)\n{also}\nreturn y"
    ))
}

/// The factors that are found with all products in integers.
fn found(model: &Model, samples: usize, fixed: &(dyn Fn(ValueId) -> bool + Sync)) -> BTreeMap<String, ChannelFactors> {
    let product = |n: NodeId| match model.node(n).is("MatMul") {
        true => Decision::Integer("QLinearMatMul".into()),
        false => Decision::Float("it is not asked".into()),
    };
    let v = testing::find(model, "v");
    let placement = Placement {
        nodes: model.nodes(model.main()).into_iter().map(|n| (n, product(n))).collect(),
        values: [(v, Quantized { readers: Readers::Integer, root: v })].into(),
        ..Placement::default()
    };
    let task = Smoothing {
        runtime: &Tract,
        model,
        target: &Target::load("onnxruntime-cpu").unwrap(),
        placement: &placement,
        scheme: &Scheme::default(),
        clips: true,
        fixed,
    };
    let samples: Vec<usize> = (0..samples).collect();
    let feed = |i: usize| -> Result<Vec<Tensor>> {
        let x: Vec<f32> = (0..64).map(|k| ((i * 64 + k) as f32 * 0.37).sin() * 2.0).collect();
        Ok(vec![Tensor::from_f32(&[8, 8], &x)])
    };
    smooth(&task, &samples, &feed, &|_, _| ()).unwrap()
}

#[test]
fn a_channel_far_from_the_rest() {
    let model = outlier(50.0, "");
    let factors = found(&model, 6, &|_| false);
    let (name, by) = factors.first_key_value().unwrap();
    assert_eq!((&name[..], by.taken_by, factors.len()), ("v", TakenBy::Constants, 1));
    let largest = by.factors[5];
    assert!(by.factors.iter().enumerate().all(|(i, f)| i == 5 || *f < 0.2 * largest), "{:?}", by.factors);
    // Where another node reads the value, a Mul divides for the product alone.
    let shared = outlier(50.0, "e = Exp(v)\nreturn e");
    assert_eq!(found(&shared, 6, &|_| false)["v"].taken_by, TakenBy::Mul);
}

#[test]
fn what_does_not_gain_stays() {
    assert!(found(&outlier(1.0, ""), 6, &|_| false).is_empty());
    let model = outlier(50.0, "");
    // There is nothing to confirm the gain on; or the value's range is given.
    assert!(found(&model, 1, &|_| false).is_empty());
    let v = testing::find(&model, "v");
    assert!(found(&model, 6, &|value| value == v).is_empty());
}

#[test]
fn factors_are_1_for_the_largest_channel() {
    let m = testing::model("float[2] x\ny = Relu(x)\nreturn y");
    let y = testing::find(&m, "y");
    let of = |bounds: &[Bound], seen: &BTreeMap<ValueId, Seen>| {
        factors(&[8.0, 2.0, 0.0], &[1.0, 1.0, 1.0], (1.0, 0.0), bounds, seen)
    };
    assert_eq!(of(&[], &BTreeMap::new()), [1.0, 0.25, 1.0]);
    let exponents = factors(&[8.0, 2.0], &[0.5, 8.0], (0.5, 0.5), &[], &BTreeMap::new());
    assert!((exponents[1] - 0.125).abs() < 1e-6 && exponents[0] == 1.0, "{exponents:?}");
    // Of a clamp at 6: a channel that it cuts stays, and none is enlarged so far that it is cut.
    let bound = Bound { value: y, lo: 0.0, hi: 6.0 };
    let at = |hi: &[f32]| of(&[bound], &seen(y, &[0.0; 3], hi));
    assert_eq!(at(&[6.0, 6.0, 0.0])[1], 1.0);
    assert_eq!(at(&[6.0, 2.4, 0.0])[1], 0.5);
    assert_eq!(at(&[6.0, 0.6, 0.0])[1], 0.25);
    // Nothing is known of the clamp: all stay.
    assert_eq!(of(&[bound], &BTreeMap::new()), [1.0; 3]);
}

#[test]
fn rows_are_what_windows_see() {
    let m = testing::model(
        "float[1,2,3,3] x\nfloat[2,1,2,2] w = {1,2,3,4,5,6,7,8}\ny = Conv <group = 2, pads = [1,1,0,0]> (x, w)\nreturn y",
    );
    let x: Vec<f32> = (1..=18).map(|i| i as f32).collect();
    let node = m.nodes(m.main())[0];
    let take = Take { node, input: 1, axes: vec![1], groups: 2, power: Power::Times };
    let how = decide::weight(&m, &Scheme::default(), node).unwrap();
    let layer = Layer::of(&m, take, how).unwrap();
    assert_eq!((layer.width, layer.outs), (8, 2));
    let rows = layer.rows(&m, &[1, 2, 3, 3], &x, 100, 3);
    assert_eq!(rows.len(), 9 * 8);
    let answers = layer.answers(&m, &[rows, Vec::new()]).unwrap();
    let want = Tract.load(&m, &[]).unwrap().run(&[Tensor::from_f32(&[1, 2, 3, 3], &x)]).unwrap()[0].to_f32().unwrap();
    // Rows come in an order of their own.
    let sorted = |mut v: Vec<f32>| {
        v.sort_by(f32::total_cmp);
        v
    };
    assert_eq!(sorted(answers[0].clone()), sorted(want));
}

#[test]
fn channels_that_are_lost() {
    // Of the first channel nothing is left, the second is whole, and the third is dead.
    let float = [4.0, 4.0, 0.0, 4.0, -4.0, 0.0];
    let integer = [0.0, 4.0, 0.01, 0.0, -4.0, 0.01];
    let share = lost(&float, &integer, 3, None);
    assert!((share - 0.33).abs() < 0.005, "{share}");
    // What is divided by factors counts as before.
    assert_eq!(lost(&float, &[2.0, 4.0, 0.0, 2.0, -4.0, 0.0], 3, Some(&[2.0, 1.0, 1.0])), 0.0);
    assert_eq!(noise(&[3.0, f32::NAN, 4.0], &[3.0, 1.0, 5.0]), 1.0 / 25.0);
}

#[test]
fn channels_along_any_axes() {
    let m = testing::model("float[2,2,2] x\ny = Tanh(x)\nz = Neg(y)\nreturn z");
    let y = testing::find(&m, "y");
    let placement = Placement::default();
    let task = Smoothing {
        runtime: &Tract,
        model: &m,
        target: &Target::load("onnxruntime-cpu").unwrap(),
        placement: &placement,
        scheme: &Scheme::default(),
        clips: true,
        fixed: &|_| false,
    };
    let of = |axes: &[usize]| {
        let watched = [(y, Watched { axes: axes.to_vec(), layers: Vec::new() })].into();
        let x: Vec<f32> = [0.1, 0.2, 0.3, 0.4, -0.5, 0.6, 0.7, 0.8].iter().map(|v: &f32| v.atanh()).collect();
        let feed = |_| Ok(vec![Tensor::from_f32(&[2, 2, 2], &x)]);
        let (seen, _) = seen::see(&task, &watched, &[], &[0], &feed, &|_, _| ()).unwrap();
        let round = |v: &[f32]| v.iter().map(|x| (x * 10.0).round() as i32).collect::<Vec<_>>();
        (round(&seen[&y].lo), round(&seen[&y].hi))
    };
    assert_eq!(of(&[0]), (vec![0, -5], vec![4, 8]));
    assert_eq!(of(&[1]), (vec![-5, 0], vec![6, 8]));
    assert_eq!(of(&[0, 2]), (vec![0, 0, -5, 0], vec![3, 4, 7, 8]));
    let seen = Seen { lo: vec![-1.0, 0.0], hi: vec![2.0, 8.0] };
    let range = seen.range(&[1.0, 4.0]);
    assert_eq!((range.lo, range.hi), (-1.0, 2.0));
    assert_eq!(seen.largest().collect::<Vec<_>>(), [2.0, 8.0]);
}
