//! The table of kernels is true: what `kernels::predict` says of each case of `tests/kernels_table.txt` is what stands there,
//! and what ONNX Runtime makes of it.
//!
//! `QONVERT_UPDATE=1` writes the counts that are predicted into the file; read the difference.

mod common;

use std::{collections::BTreeSet, fmt::Write, fs, path::Path};

use qonvert::{
    ir::{Model, NodeSpec, Place, ValueId, text},
    kernels::{self, Prediction, check},
    onnx_file,
    target::Target,
};

/// Constants: type and shape, name, elements (or what fills it).
const CONSTANTS: &[(&str, &str, &str)] = &[
    ("float", "s", "0.1"),
    ("float", "s2", "0.2"),
    ("float", "ws", "0.01"),
    ("float", "sws", "0.001"), // of a bias: s * ws
    ("uint8", "z", "0"),
    ("uint8", "z2", "128"),
    ("uint8", "zb", "0"), // as z
    ("int8", "sz", "0"),
    ("int8", "wz", "0"),
    ("uint16", "z16", "0"),
    ("float", "zero", "0"),
    ("float", "three", "3"),
    ("float", "thirty", "30"),
    ("float", "one", "1"),
    ("int8[8,8]", "w", ""),
    ("uint8[8,8]", "wu", ""),
    ("float[8,8]", "wf", ""),
    ("float[8]", "wsn", "0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08"),
    ("int8[8]", "wzn", ""),
    ("float[8]", "sfence", "0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1"),
    ("uint8[8]", "zfence", "0, 0, 0, 0, 0, 0, 0, 0"),
    ("float[8]", "b", ""),
    ("float[1,8]", "b2", ""),
    ("int32[1,8]", "bi2", ""),
    ("float[8]", "one8", "1, 1, 1, 1, 1, 1, 1, 1"),
    ("int32[8]", "bi", ""),
    ("int8[8]", "v8", ""),
    ("uint8[8]", "vu", ""),
    ("int8[8,8,3,3]", "cw", ""),
    ("int8[12,8,1,1]", "cw12", ""),
    ("int8[8,12,1,1]", "cw12b", ""),
    ("int8[16,8,1,1]", "cw16", ""),
    ("int8[8,16,1,1]", "cw8", ""),
    ("uint8[8,8,3,3]", "cwu", ""),
    ("float[8,8,3,3]", "cf", ""),
    ("float[8,1,1]", "slope", ""),
    ("uint8[30,8]", "tu", ""),
    ("int8[30,8]", "ts", ""),
    ("int4[32,8]", "w4", ""),
    ("float[2,8]", "s4", ""),
    ("float[4,8]", "s48", ""),
    ("int4[2,8]", "z4", ""),
    ("int4[32,8]", "w4t", ""),
    ("float[32,1]", "s4t", ""),
    ("uint8[8,2,8]", "wnb", ""),
    ("float[16]", "snb", ""),
    ("int64[1]", "axes1", "1"),
    ("int64[1]", "axes1b", "1"),
    ("int64[1]", "axes2", "2"),
    ("int64[2]", "flat", "1, -1"),
    ("int64[1]", "starts", "1"),
    ("int64[1]", "ends", "3"),
    ("int64[2]", "index", "0, 2"),
    ("int64[4]", "shape5", "3, 8, 6, 6"),
    ("int64[4]", "tiles", "1, 2, 1, 1"),
    ("int64[1,1,1,1]", "indices4", "2"),
    ("int64[8]", "pads", "0, 0, 1, 1, 0, 0, 1, 1"),
    ("float[4]", "scales", "1, 1, 2, 2"),
];

/// What the words of a case stand for: the lines that take their place.
const WORDS: &[(&str, &str)] = &[
    ("DX", "q = QuantizeLinear(x, s, z)\nd = DequantizeLinear(q, s, z)"),
    ("SX", "q = QuantizeLinear(x, s, sz)\nd = DequantizeLinear(q, s, sz)"),
    ("HX", "q = QuantizeLinear(x, s, z16)\nd = DequantizeLinear(q, s, z16)"),
    ("DW", "dw = DequantizeLinear(w, ws, wz)"),
    ("OUT", "yq = QuantizeLinear(@, s, z)\ny = DequantizeLinear(yq, s, z)"),
    ("SOUT", "yq = QuantizeLinear(@, s, sz)\ny = DequantizeLinear(yq, s, sz)"),
    ("HOUT", "yq = QuantizeLinear(@, s, z16)\ny = DequantizeLinear(yq, s, z16)"),
    ("MOUT", "yq = QuantizeLinear(@, s, z2)\ny = DequantizeLinear(yq, s, z2)"), // zero in the middle of the codes
    ("NOUT", "yq = QuantizeLinear(@, s2, z)\ny = DequantizeLinear(yq, s2, z)"), // another scale
];

struct Case {
    title: String,
    inputs: String,
    nodes: Vec<String>,
    expected: String,
}

fn table() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels_table.txt")
}

/// The file's head, and its cases.
fn read() -> (String, Vec<Case>) {
    let text = fs::read_to_string(table()).unwrap();
    let (head, cases) = text.split_once("\n\n").unwrap();
    let case = |block: &str| {
        let mut lines: Vec<_> = block.trim().lines().map(str::to_owned).collect();
        let expected = lines.pop().and_then(|l| Some(l.strip_prefix("=>")?.trim().to_owned()));
        let title = lines[0].strip_prefix("# ").unwrap_or_else(|| panic!("no title: {block}")).to_owned();
        let expected = expected.unwrap_or_else(|| panic!("{title}: no line with =>"));
        Case { title, inputs: lines[1].clone(), nodes: lines.split_off(2), expected }
    };
    (head.to_owned(), cases.split("\n\n").filter(|b| !b.trim().is_empty()).map(case).collect())
}

/// A line with its words put in full.
fn expand(line: &str) -> String {
    let (word, of) = line.trim_end_matches(')').split_once('(').unwrap_or((line, ""));
    match WORDS.iter().find(|(w, _)| *w == word) {
        Some((_, lines)) => lines.replace('@', of),
        None => line.to_owned(),
    }
}

fn constant((ty, name, elements): &(&str, &str, &str)) -> String {
    let dims = ty.split_once('[').map_or("", |(_, d)| d.trim_end_matches(']'));
    let count: usize = dims.split(',').map(|d| d.parse().unwrap_or(1)).product();
    let (float, most) = (ty.starts_with("float"), if ty.starts_with("int4") { 7 } else { 90 });
    let number = |i: usize| {
        let n = (i * 7919 + name.len() * 31 + 5) % most;
        if float { format!("{:e}", (n as f32 + 1.0) / 90.0) } else { n.to_string() }
    };
    let fill = || (0..count).map(number).collect::<Vec<_>>().join(", ");
    let elements = if elements.is_empty() { fill() } else { (*elements).to_owned() };
    format!("{ty} {name} = {{{elements}}}")
}

/// The model of a case; what nobody reads is an output, and so is `v` with a line `ALSO(v)`.
fn model(case: &Case) -> Model {
    let also: Vec<&str> = case.nodes.iter().filter_map(|l| l.strip_prefix("ALSO(")?.strip_suffix(')')).collect();
    let nodes = case.nodes.iter().filter(|l| !l.starts_with("ALSO("));
    let nodes = nodes.map(|l| expand(l)).collect::<Vec<_>>().join("\n");
    let words: BTreeSet<&str> = nodes.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let constants: Vec<_> = CONSTANTS.iter().filter(|(_, name, _)| words.contains(name)).map(constant).collect();
    let text = format!(
        "<ir_version: 10, opset_import: [\"\" : 21, \"com.microsoft\" : 1]>\nagraph ({}) => ()\n<{}>\n{{\n{nodes}\n}}",
        case.inputs,
        constants.join(", ")
    );
    let mut model = text::parse(&text).unwrap_or_else(|e| panic!("{}: {e}\n{text}", case.title));
    let main = model.main();
    let unread = |&v: &ValueId| {
        let value = model.value(v);
        value.producer().is_some() && (value.uses().is_empty() || also.contains(&value.name()))
    };
    let unread: Vec<_> = model.value_ids().into_iter().filter(unread).collect();
    unread.into_iter().for_each(|v| model.add_output(main, v));
    model
}

fn counts(prediction: &Prediction) -> String {
    let s = prediction.summary();
    let mut out = String::new();
    for (kernel, n) in s.integer.iter().chain(&s.conversions) {
        let _ = write!(out, "{kernel} {n}, ");
    }
    for (op, n) in &s.moves {
        let _ = write!(out, "{op} on codes {n}, ");
    }
    if out.is_empty() { "float".to_owned() } else { out.trim_end_matches(", ").to_owned() }
}

#[test]
fn is_what_the_runtime_does() {
    let target = Target::load("onnxruntime-cpu").unwrap();
    let (head, cases) = read();
    assert!(cases.len() > 200);
    let update = std::env::var_os("QONVERT_UPDATE").is_some();
    let folder = tempfile::tempdir().unwrap();
    let (mut wrong, mut text) = (String::new(), head);
    for case in &cases {
        let model = model(case);
        let prediction = kernels::predict(&model, &target);
        let counted = counts(&prediction);
        let _ = write!(text, "\n\n# {}\n{}\n{}\n=> {counted}", case.title, case.inputs, case.nodes.join("\n"));
        if counted != case.expected && !update {
            let _ = writeln!(wrong, "{}: {counted}, not {}", case.title, case.expected);
        }
        let optimized = folder.path().join("optimized.onnx");
        if common::ort_optimize(&onnx_file::to_bytes(&model).unwrap(), &optimized) {
            let runs = onnx_file::read(&optimized).unwrap();
            for difference in check::differences(&prediction, &runs, &target) {
                let _ = writeln!(wrong, "{}: {difference}", case.title);
            }
        }
    }
    if update {
        fs::write(table(), text + "\n").unwrap();
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn a_wrong_prediction_is_found() {
    let target = Target::load("onnxruntime-cpu").unwrap();
    let (_, cases) = read();
    let case = |title: &str| model(cases.iter().find(|c| c.title == title).unwrap());
    let (integer, float) = (case("Conv"), case("plain float"));
    assert!(check::differences(&kernels::predict(&float, &target), &float, &target).is_empty());
    // A runtime that left the file as it is would differ.
    let found = check::differences(&kernels::predict(&integer, &target), &integer, &target);
    assert!(found.iter().any(|d| d == "QLinearConv: expected 1, the runtime has 0"), "{found:?}");
    // One that has one conversion more, too.
    let mut more = float.clone();
    let x = more.graph(more.main()).inputs()[0];
    more.insert(NodeSpec::new("QuantizeLinear").input(x).output("more"), Place::End(more.main()));
    let found = check::differences(&kernels::predict(&float, &target), &more, &target);
    assert_eq!(found, ["QuantizeLinear: expected 0, the runtime has 1"]);
}
