//! RNN, GRU, LSTM and `DynamicQuantizeLSTM`: the built-in runtime against ONNX Runtime, and LSTM nodes on their way there.

mod common;

use std::{collections::BTreeMap, sync::LazyLock};

use common::{ort_run, random::Random};
use qonvert::{
    Config, Job, Settings,
    analysis::placement::{self, Shapes, Wishes},
    config::{Format, Mode},
    ir::{DType, Model, Tensor, text},
    onnx_file,
    passes::{self, Context, Stage},
    pipeline::{self, convert_model},
    plan::{Form, NodePlan, Plan, Scheme, Weight, decide, store_float_weights},
    quant::QuantTarget,
    runtime::{Runtime, tract::Tract},
    target::Target,
    validate,
};

/// A layer, and what it is given.
#[derive(Debug, Clone)]
struct Layer {
    op: &'static str,
    steps: usize,
    batch: usize,
    inputs: usize,
    hidden: usize,
    direction: &'static str,
    /// Attributes beyond `hidden_size` and `direction`, in ONNX's textual syntax, each with a comma in front.
    attributes: &'static str,
    bias: bool,
    initial: bool,
    peepholes: bool,
    lengths: Option<Vec<i32>>,
    /// Whether Y is among the outputs.
    y: bool,
    weight: Weight,
}

static WEIGHT: LazyLock<Weight> = LazyLock::new(|| Weight {
    dtype: DType::Int8,
    axis: Some(1),
    symmetric: true,
    reduce_range: false,
    pair_axes: Vec::new(),
    learned: false,
    algorithm: "rtn".into(),
});

impl Layer {
    fn new(steps: usize, batch: usize, inputs: usize, hidden: usize, direction: &'static str) -> Self {
        let op = "LSTM";
        let (bias, initial, peepholes, y) = (true, false, false, true);
        let (attributes, lengths, weight) = ("", None, WEIGHT.clone());
        Self { op, steps, batch, inputs, hidden, direction, attributes, bias, initial, peepholes, lengths, y, weight }
    }

    fn gates(&self) -> usize {
        match self.op {
            "RNN" => 1,
            "GRU" => 3,
            _ => 4,
        }
    }

    fn directions(&self) -> usize {
        if self.direction == "bidirectional" { 2 } else { 1 }
    }

    /// The float model; its constants are as random as `random`.
    fn model(&self, random: &mut Random) -> Model {
        let Self { op, steps, batch, inputs, hidden, direction, attributes, .. } = self;
        let (gates, is_lstm) = (self.gates(), *op == "LSTM");
        let (d, size) = (self.directions(), 1.0 / (*hidden as f32).sqrt());
        let constants = [
            (true, "w", vec![d, gates * hidden, *inputs], size),
            (true, "r", vec![d, gates * hidden, *hidden], size),
            (self.bias, "b", vec![d, 2 * gates * hidden], size),
            (self.lengths.is_some(), "lengths", vec![], 0.0),
            (self.initial, "h0", vec![d, *batch, *hidden], 0.9),
            (self.initial && is_lstm, "c0", vec![d, *batch, *hidden], 1.5),
            (self.peepholes && is_lstm, "p", vec![d, 3 * hidden], size),
        ];
        let name = |(is, name, ..): &(bool, &'static str, Vec<usize>, f32)| if *is { *name } else { "\"\"" };
        let mut names: Vec<&str> = constants.iter().map(name).collect();
        names.truncate(if is_lstm { 7 } else { 5 });
        let used: Vec<String> = constants.iter().filter(|c| c.0).map(|c| format!("float {} = {{0}}", c.1)).collect();
        let all = [(self.y, "y"), (true, "h"), (is_lstm, "c")];
        let outputs: Vec<String> = all.iter().filter(|o| o.0).map(|o| format!("float {}", o.1)).collect();
        let made = [if self.y { "y" } else { "\"\"" }, "h", "c"][..if is_lstm { 3 } else { 2 }].join(", ");
        let mut model = text::parse(&format!(
            "<ir_version: 8, opset_import: [\"\" : 14]> g (float[{steps}, {batch}, {inputs}] x) => ({}) <{}> {{
                {made} = {op} <hidden_size = {hidden}, direction = \"{direction}\"{attributes}> (x, {})
            }}",
            outputs.join(", "),
            used.join(", "),
            names.join(", "),
        ))
        .expect("it parses");
        for (used, name, dims, size) in constants {
            let tensor = match &self.lengths {
                Some(lengths) if name == "lengths" => Tensor::from_i32(&[*batch], lengths),
                _ => random.tensor(&dims, size),
            };
            if used {
                let v = model.find_value(model.main(), name).expect("it is declared");
                model.set_initializer(v, Some(tensor));
            }
        }
        model
    }
}

/// Of states between -1 and 1: all but the last digits of `exp` and `tanh` is the same.
const TOLERANCE: f32 = 1e-6;
/// Sums of products in another order.
const FLOAT_TOLERANCE: f32 = 3e-6;
/// Where such a digit moves a code of the state by one: at most a step (2 / 255) of what follows. On the machine that the
/// test was written on no layer has one; on others some may.
const MOVED_CODE: f32 = 8e-3;

/// A plan that makes the node dynamic which hands out `name`.
fn plan(name: &str, weight: &Weight) -> Plan {
    let node = NodePlan {
        kernel: Some("DynamicQuantizeLSTM".to_owned()),
        weight: Some(weight.clone()),
        ..NodePlan::new(None, "LSTM", Form::Dynamic)
    };
    Plan { nodes: BTreeMap::from([(name.to_owned(), node)]), ..Plan::default() }
}

fn quantized(mut model: Model, plan: Plan) -> Model {
    let mut cx = Context { plan: Some(plan), ..Context::default() };
    passes::run_stage(Stage::Insert, &mut model, &mut cx).expect("the passes run");
    assert!(model.all_nodes().iter().any(|&n| model.node(n).op_type == "DynamicQuantizeLSTM"));
    model
}

fn worst(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (a.to_f32().expect("floats"), b.to_f32().expect("floats"));
    a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The largest difference between both runtimes.
fn difference(model: &Model, inputs: &[(&str, Tensor)]) -> f32 {
    let session = Tract.load(model, &[]).expect("it loads");
    let fed: Vec<Tensor> = inputs.iter().map(|i| i.1.clone()).collect();
    let ours = session.run(&fed).unwrap_or_else(|e| panic!("{e}\n{}", text::print(model)));
    let bytes = onnx_file::to_bytes(model).expect("it encodes");
    let Some(theirs) = ort_run(&bytes, inputs) else { return 0.0 };
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(&theirs).map(|(a, b)| worst(a, b)).fold(0.0, f32::max)
}

/// The difference on the float layer, and on the quantized one.
fn check(layer: &Layer, seed: u64) -> [f32; 2] {
    let mut random = Random(seed);
    let float = layer.model(&mut random);
    let model = quantized(float.clone(), plan(if layer.y { "y" } else { "h" }, &layer.weight));
    let x = [("x", random.tensor(&[layer.steps, layer.batch, layer.inputs], 2.0))];
    [difference(&float, &x), difference(&model, &x)]
}

/// Forms that all operators share, for one direction and one operator.
fn float_layers(op: &'static str, attributes: &'static str, direction: &'static str) -> Vec<Layer> {
    let new =
        |steps, batch, inputs, hidden| Layer { op, attributes, ..Layer::new(steps, batch, inputs, hidden, direction) };
    let base = Layer { initial: true, ..new(9, 4, 20, 24) };
    let lengths = |l: [i32; 4]| Some(l.to_vec());
    vec![
        new(1, 1, 5, 3),
        new(7, 1, 16, 32),
        new(20, 3, 40, 16),
        new(5, 8, 64, 64),
        base.clone(),
        Layer { y: false, ..base.clone() },
        Layer { bias: false, ..base.clone() },
        Layer { lengths: lengths([3, 6, 1, 6]), ..base.clone() },
        Layer { lengths: lengths([9, 2, 5, 0]), ..base.clone() },
        Layer { lengths: lengths([9, 2, 5, 1]), y: false, ..base.clone() },
        Layer { lengths: lengths([9, 2, 5, 1]), initial: false, ..base },
    ]
}

#[test]
fn float_layers_of_every_form() {
    let mut layers = Vec::new();
    for direction in ["forward", "reverse", "bidirectional"] {
        for attributes in ["", ", clip = 0.3"] {
            layers.extend(float_layers("RNN", attributes, direction));
            layers.extend(float_layers("GRU", attributes, direction));
        }
        for attributes in [", linear_before_reset = 1", ", linear_before_reset = 1, clip = 0.3"] {
            layers.extend(float_layers("GRU", attributes, direction));
        }
    }
    // No layer grows with its steps: where it does, so do the differences of the last digit.
    for (op, attributes) in [
        ("RNN", ", activations = [\"Sigmoid\"]"),
        ("RNN", ", activations = [\"HardSigmoid\"], activation_alpha = [0.3], activation_beta = [0.4]"),
        ("RNN", ", activations = [\"Affine\"], activation_alpha = [0.3], activation_beta = [0.4]"),
        ("RNN", ", activations = [\"Softsign\"]"),
        ("RNN", ", activations = [\"ScaledTanh\"], activation_alpha = [0.9], activation_beta = [0.6]"),
        ("GRU", ", activations = [\"HardSigmoid\", \"Softsign\"], activation_alpha = [0.3], activation_beta = [0.4]"),
        (
            "GRU",
            ", linear_before_reset = 1, activations = [\"sigmoid\", \"ScaledTanh\"], activation_alpha = [0.9], activation_beta = [0.6]",
        ),
        ("GRU", ", activations = [\"Sigmoid\", \"Elu\"], activation_alpha = [0.7]"),
        ("GRU", ", linear_before_reset = 1, activations = [\"Sigmoid\", \"LeakyRelu\"], activation_alpha = [0.2]"),
    ] {
        layers.extend(float_layers(op, attributes, "reverse"));
    }
    let two = ", activations = [\"Sigmoid\", \"Elu\", \"HardSigmoid\", \"Affine\"], activation_alpha = [0.7, 0.3, 0.5], activation_beta = [0.4, 0.1]";
    layers.extend(float_layers("GRU", two, "bidirectional"));
    for (i, layer) in layers.iter().enumerate() {
        let mut random = Random(i as u64);
        let model = layer.model(&mut random);
        let x = random.tensor(&[layer.steps, layer.batch, layer.inputs], 2.0);
        let found = difference(&model, &[("x", x)]);
        assert!(found <= FLOAT_TOLERANCE, "{found:e} in {layer:?}");
    }
}

#[test]
fn quantized_layers_of_every_form() {
    let mut layers = Vec::new();
    for direction in ["forward", "reverse", "bidirectional"] {
        for (steps, batch, inputs, hidden) in [(1, 1, 5, 3), (7, 1, 16, 32), (20, 3, 40, 16), (5, 8, 64, 64)] {
            layers.push(Layer::new(steps, batch, inputs, hidden, direction));
        }
        let base = Layer { initial: true, ..Layer::new(9, 4, 20, 24, direction) };
        let lengths = Some(vec![9, 2, 5, 0]);
        layers.push(Layer { peepholes: true, ..base.clone() });
        layers.push(Layer { lengths: Some(vec![3, 6, 1, 6]), ..base.clone() });
        layers.push(Layer { lengths, ..base.clone() });
        // Without Y, ONNX Runtime reads the state of a sequence of length 0 from memory that nothing has written.
        layers.push(Layer { lengths: Some(vec![9, 2, 5, 1]), y: false, ..base.clone() });
        layers.push(Layer { attributes: ", clip = 0.3", peepholes: true, ..base.clone() });
        layers.push(Layer { attributes: ", input_forget = 1", bias: false, ..base.clone() });
        for (dtype, axis, symmetric, reduce_range) in [
            (DType::Int8, None, true, false),
            (DType::Int8, None, false, false),
            (DType::Uint8, None, false, false),
            (DType::Uint8, Some(1), true, false),
            (DType::Int8, Some(1), true, true),
        ] {
            layers.push(Layer {
                weight: Weight { dtype, axis, symmetric, reduce_range, ..WEIGHT.clone() },
                ..base.clone()
            });
        }
    }
    for attributes in [
        ", activations = [\"HardSigmoid\", \"Softsign\", \"Elu\"], activation_alpha = [0.3, 0.7], activation_beta = [0.4]",
        ", activations = [\"Sigmoid\", \"LeakyRelu\", \"Relu\"]",
        ", activations = [\"sigmoid\", \"ScaledTanh\", \"Affine\"], activation_alpha = [1.1, 0.5], activation_beta = [0.6, 0.1]",
        ", activations = [\"Softplus\", \"ThresholdedRelu\", \"Tanh\"], activation_alpha = [0.1]",
    ] {
        layers.push(Layer { attributes, ..Layer::new(6, 2, 12, 16, "forward") });
    }
    let mut moved = 0;
    for (i, layer) in layers.iter().enumerate() {
        let [float, found] = check(layer, i as u64);
        assert!(float <= FLOAT_TOLERANCE, "{float:e} in {layer:?}, not quantized");
        assert!(found <= MOVED_CODE, "{found:e} in {layer:?}");
        moved += usize::from(found > TOLERANCE);
    }
    assert!(moved <= layers.len() / 20, "{moved} of {} layers differ", layers.len());
}

/// Steps and batch are known only when data come.
#[test]
fn layers_of_unknown_length() {
    let mut random = Random(3);
    for (op, gates) in [("RNN", 1), ("GRU", 3), ("LSTM", 4)] {
        let mut model = text::parse(&format!(
            "<ir_version: 8, opset_import: [\"\" : 14]>
            g (float[s, b, 8] x, bool c) => (float y, float z) <float w = {{0}}, float r = {{0}}> {{
                y = {op} <hidden_size = 8, direction = \"reverse\"> (x, w, r)
                z = If (c) <
                    then_branch = t () => (float t_z) {{ n = Neg(x) t_z = {op} <hidden_size = 8> (n, w, r) }},
                    else_branch = e () => (float e_z) {{ e_z = {op} <hidden_size = 8> (x, w, r) }}
                >
            }}"
        ))
        .expect("it parses");
        for name in ["w", "r"] {
            let v = model.find_value(model.main(), name).expect("it is there");
            model.set_initializer(v, Some(random.tensor(&[1, gates * 8, 8], 0.4)));
        }
        for (dims, taken) in [([3, 2, 8], 1), ([5, 1, 8], 0)] {
            let condition = Tensor::from_u8(DType::Bool, &[], vec![taken]);
            let found = difference(&model, &[("x", random.tensor(&dims, 1.0)), ("c", condition)]);
            assert!(found <= FLOAT_TOLERANCE, "{found:e} in {op}");
        }
    }
}

/// Two layers in the branches of an `If` share one weight of the main graph; each has another of its own.
fn branches(random: &mut Random) -> Model {
    let mut model = text::parse(
        "<ir_version: 8, opset_import: [\"\" : 14]>
        g (bool c, float[3, 2, 8] x) => (float y) <float w = {0}, float b = {0}> {
            y = If (c) <
                then_branch = t () => (float t_y) <float t_r = {0}> {
                    t_y = LSTM <hidden_size = 6> (x, w, t_r, b)
                },
                else_branch = e () => (float e_y) <float e_r = {0}> {
                    e_n = Neg(x)
                    e_y = LSTM <hidden_size = 6, direction = \"reverse\", layout = 0> (e_n, w, e_r, b)
                }
            >
        }",
    )
    .expect("it parses");
    for v in model.value_ids() {
        let dims = match model.value(v).name() {
            "w" => vec![1, 24, 8],
            "b" => vec![1, 48],
            "t_r" | "e_r" => vec![1, 24, 6],
            _ => continue,
        };
        let tensor = random.tensor(&dims, 0.4);
        model.set_initializer(v, Some(tensor));
    }
    model
}

#[test]
fn layers_in_branches() {
    let mut random = Random(5);
    let float = branches(&mut random);
    let mut both = plan("t_y", &WEIGHT);
    both.nodes.extend(plan("e_y", &WEIGHT).nodes);
    let model = quantized(float.clone(), both);
    let codes = |m: &Model| m.value_ids().iter().filter(|&&v| m.value(v).name().ends_with("_quantized")).count();
    assert_eq!(codes(&model), 3, "w, t_r and e_r");
    let x = random.tensor(&[3, 2, 8], 1.0);
    for taken in [true, false] {
        let condition = Tensor::from_u8(DType::Bool, &[], vec![u8::from(taken)]);
        let run = |m: &Model| {
            let session = Tract.load(m, &[]).expect("it loads");
            session.run(&[condition.clone(), x.clone()]).expect("it runs").remove(0)
        };
        let (ours, before) = (run(&model), run(&float));
        assert!((1e-5..2e-2).contains(&worst(&ours, &before)), "{}", worst(&ours, &before));
        let bytes = onnx_file::to_bytes(&model).expect("it encodes");
        let Some(theirs) = ort_run(&bytes, &[("c", condition.clone()), ("x", x.clone())]) else { return };
        assert!(worst(&ours, &theirs[0]) <= TOLERANCE);
    }
}

/// What a DynamicQuantizeLSTM is made of: bytes of its constants, and what it reads otherwise.
fn parts(model: &Model) -> Vec<Vec<(String, Vec<u8>)>> {
    let kernels = model.all_nodes().into_iter().filter(|&n| model.node(n).op_type == "DynamicQuantizeLSTM");
    let part = |input: &Option<_>| match input.map(|v| model.value(v)) {
        None => (String::new(), Vec::new()),
        Some(v) => match v.constant() {
            None => (v.name().to_owned(), Vec::new()),
            Some(t) => (format!("{t:?}"), t.bytes().expect("bytes").to_vec()),
        },
    };
    kernels.map(|n| model.node(n).inputs().iter().map(part).collect()).collect()
}

fn converted(model: &Model, format: Format) -> Model {
    let target = Target::load("onnxruntime-cpu").expect("it is built in");
    convert_model(model, format, &target, &mut Context::default()).expect("it converts")
}

/// The kernel becomes a float layer between DequantizeLinears and a kernel again, with all that it was made of. Both
/// runtimes compute the float layer alike; what the kernel computes differs by how it quantizes the state, so not at all
/// where there is one step and the state begins at zero.
#[test]
fn quantized_layers_there_and_back() {
    let forms = [
        (DType::Int8, Some(1), true),
        (DType::Int8, None, false),
        (DType::Uint8, None, false),
        (DType::Uint8, Some(1), true),
    ];
    for (i, direction) in ["forward", "reverse", "bidirectional"].into_iter().enumerate() {
        for (dtype, axis, symmetric) in forms {
            let weight = Weight { dtype, axis, symmetric, reduce_range: false, ..WEIGHT.clone() };
            let one = Layer { weight: weight.clone(), ..Layer::new(1, 4, 20, 24, direction) };
            let base = Layer { initial: true, peepholes: true, steps: 9, ..one.clone() };
            for layer in [one, base.clone(), Layer { bias: false, attributes: ", clip = 0.7", ..base }] {
                let mut random = Random(i as u64);
                let kernel = quantized(layer.model(&mut random), plan("y", &weight));
                let raised = converted(&kernel, Format::Qdq);
                assert!(raised.all_nodes().iter().all(|&n| raised.node(n).domain.is_none()), "{layer:?}");
                let back = converted(&raised, Format::Qoperator);
                assert_eq!(parts(&back), parts(&kernel), "{layer:?}");
                // Not asked for apart, it stays.
                assert_eq!(parts(&converted(&kernel, Format::Qoperator)), parts(&kernel), "{layer:?}");
                let x = [("x", random.tensor(&[layer.steps, layer.batch, layer.inputs], 2.0))];
                let found = difference(&raised, &x);
                assert!(found <= FLOAT_TOLERANCE, "{found:e} in {layer:?}");
                let run = |m: &Model| Tract.load(m, &[]).expect("it loads").run(&[x[0].1.clone()]).expect("it runs");
                let (whole, apart) = (run(&kernel), run(&raised));
                let found = whole.iter().zip(&apart).map(|(a, b)| worst(a, b)).fold(0.0, f32::max);
                let expected = if layer.steps == 1 { 0.0..=FLOAT_TOLERANCE } else { 1e-6..=5e-2 };
                assert!(expected.contains(&found), "{found:e} in {layer:?}");
            }
        }
    }
    let mut both = plan("t_y", &WEIGHT);
    both.nodes.extend(plan("e_y", &WEIGHT).nodes);
    let kernels = quantized(branches(&mut Random(5)), both);
    let raised = converted(&kernels, Format::Qdq);
    assert_eq!(parts(&raised), Vec::<Vec<_>>::new());
    assert_eq!(parts(&converted(&raised, Format::Qoperator)), parts(&kernels));
}

/// A file that holds the kernel, and one that holds it taken apart, are quantized: it is there, with the same
/// codes, and the plan says so.
#[test]
fn quantizing_what_is_quantized_keeps_the_kernel() {
    let folder = std::env::temp_dir().join(format!("qonvert-lstm-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let layer = Layer { steps: 5, ..Layer::new(5, 1, 8, 12, "bidirectional") };
    let kernel = quantized(layer.model(&mut Random(2)), plan("y", &WEIGHT));
    for (name, model) in [("kernel", kernel.clone()), ("raised", converted(&kernel, Format::Qdq))] {
        let path = folder.join(format!("{name}.onnx"));
        onnx_file::write(&model, &path, Default::default()).expect("it is written");
        for format in [Format::Qdq, Format::Qoperator] {
            let config = Config { mode: Mode::Dynamic, format, ..Config::default() };
            let settings = Settings::new(config).expect("settings");
            let job = Job::new(&path, folder.join("unused.onnx"), &settings);
            let done = pipeline::quantize(&job).expect("it is quantized");
            assert_eq!(parts(&done.model), parts(&kernel), "{name} {format:?}");
            let reason = &done.plan.nodes["y"].reason;
            assert!(reason.as_ref().is_some_and(|r| r.contains("stays as it is")), "{reason:?}");
        }
    }
    std::fs::remove_dir_all(folder).expect("it goes");
}

/// From placement to plan and back through YAML, without a sample: what is not known counts as little.
#[test]
fn a_plan_is_made_and_carried_out() {
    let mut random = Random(9);
    let mut model = text::parse(
        "<ir_version: 8, opset_import: [\"\" : 14]>
        g (bool c, float[30, 1, 64] x) => (float y, float z) <float w = {0}, float r = {0}> {
            y = LSTM <hidden_size = 128> (x, w, r)
            z = If (c) <
                then_branch = t () => (float t_z) { t_z = LSTM <hidden_size = 128> (x, w, r) },
                else_branch = e () => (float e_z) { e_z = LSTM <hidden_size = 128, layout = 1> (x, w, r) }
            >
        }",
    )
    .expect("it parses");
    for (name, dims) in [("w", [1, 512, 64]), ("r", [1, 512, 128])] {
        let v = model.find_value(model.main(), name).expect("it is there");
        model.set_initializer(v, Some(random.tensor(&dims, 0.1)));
    }
    let target = Target::load("onnxruntime-cpu").expect("it is built in");
    let placement = placement::place(&model, &target, &Shapes::default(), &Wishes::default());
    assert!(placement.placed_time < placement.float_time);
    let scheme = Scheme { weight: QuantTarget { symmetric: false, ..QuantTarget::WEIGHT }, ..Scheme::default() };
    let made = decide(&model, &target, &placement, &scheme, |_, _| panic!("no value needs a range")).expect("a plan");
    let mut made = Plan::from_yaml(&made.to_yaml().expect("YAML")).expect("it reads what it wrote");
    store_float_weights(&model, &mut made, &scheme, |_| Some(DType::Int8));
    let forms: Vec<_> = made.nodes.iter().map(|(name, n)| (name.as_str(), n.becomes)).collect();
    let want = [("e_z", Form::Float), ("t_z", Form::Dynamic), ("y", Form::Dynamic), ("z", Form::Float)];
    assert_eq!(forms, want);
    assert_eq!(made.nodes["e_z"].reason.as_deref(), Some("no integer kernel with this layout"));
    // One scale is faster; who wants one for each channel gets no zero points, which the kernel does not have then.
    assert_eq!(made.nodes["y"].weight, Some(Weight { axis: None, symmetric: false, ..WEIGHT.clone() }));
    let y = model.find_value(model.main(), "y").and_then(|v| model.producer(v)).expect("a node makes it");
    let asked = Scheme { weights: [(y, (scheme.weight, true))].into(), ..scheme.clone() };
    let own = decide(&model, &target, &placement, &asked, |_, _| panic!("no value needs a range")).expect("a plan");
    assert_eq!(own.nodes["y"].weight, Some(WEIGHT.clone()));
    assert!(made.stored_weights.is_empty(), "a weight that some node reads in codes is stored twice");
    // Two branches with one name between them: neither is in the plan, and both stay as they are.
    let mut clash = model.clone();
    for name in ["t_z", "e_z"] {
        let v = clash.value_ids().into_iter().find(|&v| clash.value(v).name() == name).expect("it is there");
        clash.rename(v, "inner");
    }
    let placement = placement::place(&clash, &target, &Shapes::default(), &Wishes::default());
    let other = decide(&clash, &target, &placement, &scheme, |_, _| panic!("no value needs a range")).expect("a plan");
    assert_eq!(other.nodes.keys().collect::<Vec<_>>(), ["y", "z"]);
    quantized(clash, other);
    let written = quantized(model, made);
    let names: Vec<_> = written.value_ids().into_iter().map(|v| written.value(v).name().to_owned()).collect();
    assert_eq!(names.iter().filter(|n| n.starts_with("w_")).count(), 3, "{names:?}");
    validate::check(&written).expect("it is sound");
}
