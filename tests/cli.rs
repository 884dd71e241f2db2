//! Golden command lines: what a user types, and what comes out. `INSTA_UPDATE=always cargo test --test cli` accepts changes.

mod cli {
    mod odd;
    pub mod place;
    mod weights;
}
#[path = "common/random.rs"]
mod random;

use std::{fs, path::Path, process::Command};

use cli::place::{Done, Place};
use ndarray::{Array, Array4};
use ndarray_npy::NpzWriter;
use qonvert::{ir::text, onnx_file};
use random::noise;
use regex::Regex;

/// What a run may not touch.
const INPUTS: [&str; 5] = ["model.onnx", "data.npz", "c.yaml", "p.yaml", "r.yaml"];

/// What depends on the machine and its arithmetic, and what stands for it in golden files.
const MACHINE: &[(&str, &str)] = &[
    (r" *-?\d+\.\d+ dB", " #.# dB"),
    (r"\d+\.\d+ %", "#.# %"),
    (r"(?m)^( +scores) .*", "$1 …"),
    (r"(?m)^(accuracy|time) .*", "$1 …"),
];

/// Compares with the golden file of this name.
macro_rules! golden {
    ($name:expr, $done:expr) => {{
        let done = $done;
        let text = format!("exit code {}\n-- stdout\n{}-- stderr\n{}", done.code, done.out, done.err);
        let mut text = text;
        for (pattern, with) in MACHINE {
            text = Regex::new(pattern).unwrap().replace_all(&text, *with).into_owned();
        }
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli"));
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| insta::assert_snapshot!($name, text));
    }};
}

#[path = "cli/few_bits.rs"]
mod few_bits;
#[path = "cli/float8.rs"]
mod float8;
#[path = "cli/floats.rs"]
mod floats;
#[path = "cli/lint.rs"]
mod lint;

/// A panic inside the runtime is one sentence, not a backtrace.
#[test]
fn data_that_the_model_fails_on() {
    let place = Place::new();
    let text = r#"<ir_version: 8, opset_import: ["" : 17]>
        net (float[N,3,16,16] image, int64[N,1] id) => (y) <float[2,16] table = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14,
        15, 16, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}> { [look] row = Gather(table, id) y = Add(image, row) }"#;
    onnx_file::write(&text::parse(text).unwrap(), &place.path("gather.onnx"), Default::default()).unwrap();
    let mut npz = NpzWriter::new(fs::File::create(place.path("wrong.npz")).unwrap());
    npz.add_array("image", &Array4::<f32>::zeros((8, 3, 16, 16))).unwrap();
    npz.add_array("id", &Array::from_elem((8, 1), 7i64)).unwrap();
    npz.finish().unwrap();
    let done = place.run("quantize gather.onnx -o out.onnx --calibration wrong.npz");
    assert_eq!(done.code, 2);
    assert!(!done.err.contains("panicked"), "{}", done.err);
    for words in ["sample 0: node \"look\" (Gather)", "out of range", "but not on this sample"] {
        assert!(done.err.contains(words), "{words:?} is not in {}", done.err);
    }
}

#[test]
fn help() {
    let place = Place::new();
    golden!("help", place.run("--help"));
    golden!("help_quantize", place.run("quantize --help"));
    golden!("help_tune", place.run("tune --help"));
    golden!("help_calibrate", place.run("help calibrate"));
    golden!("help_kernels", place.run("kernels --help"));
    golden!("help_inspect", place.run("inspect --help"));
    golden!("help_compare", place.run("compare -h"));
    golden!("help_convert", place.run("convert --help"));
    golden!("help_bench", place.run("bench --help"));
    golden!("help_sensitivity", place.run("sensitivity --help"));
    golden!("unknown_flag", place.run("quantize model.onnx -o out.onnx --calibration data.npz --observers mse"));
    golden!("no_calibration", place.run("quantize model.onnx -o out.onnx --mode static"));
    golden!("without_data", place.run("quantize model.onnx -o out.onnx"));
    golden!("auto_within_a_budget", place.quantize("--max-loss 0.05%"));
}

/// What `kernels` reads is not written over: not the model, not its weights, not the other graph.
#[test]
fn kernels_writes_over_nothing() {
    let place = Place::new();
    fs::copy(place.path("model.onnx"), place.path("own.onnx")).unwrap();
    assert_eq!(place.run("convert --format qdq model.onnx far.onnx --external-data").code, 0);
    for (model, json, words) in [
        ("model.onnx", "model.onnx", "is read as MODEL; writing --json over it"),
        ("model.onnx", "own.onnx", "is read as --optimized; writing --json over it"),
        ("far.onnx", "far.onnx.data", "is read as the weights of MODEL; writing --json over it"),
        ("model.onnx", "nowhere/k.json", "there is no folder"),
    ] {
        let before = fs::read(place.path(json)).ok();
        let done = place.run(&format!("kernels {model} --optimized own.onnx --json {json}"));
        assert_eq!((done.code, fs::read(place.path(json)).ok()), (2, before), "{json}");
        assert!(done.err.contains(words), "{words:?} is not in {}", done.err);
    }
}

#[test]
fn the_main_job() {
    let place = Place::new();
    golden!("quantize", place.quantize("--report report.json"));
    let first = place.bytes("out.onnx");
    let report: serde_json::Value = serde_json::from_slice(&place.bytes("report.json")).unwrap();
    assert_eq!((&report["verdict"], &report["output"]), (&"good".into(), &"out.onnx".into()));
    assert!(report["proof"]["outputs"][0]["sqnr"].as_f64().unwrap() > 20.0);
    assert!(first.len() < place.bytes("model.onnx").len() / 2);

    let again = place.quantize("--quiet");
    assert_eq!((again.code, &again.out[..], &again.err[..]), (0, "", ""));
    assert!(place.bytes("out.onnx") == first, "the same input twice gives the same bytes");
    golden!("kernels", place.run("kernels --no-runtime --nodes out.onnx"));
    golden!("inspect_quantized", place.run("inspect --nodes out.onnx"));
    golden!("compare", place.run("compare model.onnx out.onnx --data data.npz --samples 10"));
}

#[test]
fn other_forms() {
    let place = Place::new();
    assert_eq!(place.quantize("--quiet --dump-plan p.yaml").code, 0);
    golden!("convert", place.run("convert --format qoperator out.onnx integer.onnx --data data.npz"));
    golden!("convert_back", place.run("convert --format qdq integer.onnx pairs.onnx"));
    golden!("convert_idle", place.run("convert --format qdq pairs.onnx pairs2.onnx"));
    let line = "quantize model.onnx -o direct.onnx --calibration data.npz --plan p.yaml --format qoperator --quiet";
    assert_eq!(place.run(line).code, 0);
    assert!(
        place.bytes("direct.onnx") == place.bytes("integer.onnx"),
        "the same whether converted later or written at once"
    );
    golden!("error_convert_over", place.run("convert --format qdq out.onnx out.onnx"));
    golden!("error_format", place.run("convert --format qlinear out.onnx x.onnx"));
    assert!(!place.path("x.onnx").exists());
}

#[test]
fn data_quantized_at_run_time() {
    let place = Place::new();
    golden!("dynamic", place.run("quantize model.onnx -o out.onnx --mode dynamic"));
    golden!(
        "dynamic_everywhere",
        place.run("quantize model.onnx -o out.onnx --preset int8-dynamic --everywhere --evaluation data.npz --dump-plan p.yaml")
    );
    let bytes = place.bytes("out.onnx");
    assert_eq!(place.run("quantize model.onnx -o out.onnx --plan p.yaml -q").code, 0);
    assert!(place.bytes("out.onnx") == bytes, "the plan holds all of it");
    // Static here, dynamic there, float elsewhere.
    place.write(
        "mixed.yaml",
        "rules:\n- {nodes: head, precision: int8-dynamic, force: true}\n- {nodes: conv1, precision: float}\n",
    );
    golden!("dynamic_mixed", place.quantize("--config mixed.yaml"));
    place.write("mixed.yaml", "mode: dynamic\nrules:\n- {nodes: conv2, precision: int8}\n");
    golden!("dynamic_mixed_without_data", place.run("quantize model.onnx -o out.onnx --config mixed.yaml"));
    let done = place.quantize("--config mixed.yaml");
    assert!(done.code == 0 && done.out.contains("1 of 8 compute in integers, 1 absorbed"), "{}{}", done.out, done.err);
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let place = Place::new();
    let models = concat!(env!("CARGO_MANIFEST_DIR"), "/models");
    for (model, data, algorithm) in [
        ("model.onnx".to_owned(), "data.npz".to_owned(), "rtn"),
        ("model.onnx".to_owned(), "data.npz".to_owned(), "adaround"),
        (format!("{models}/digits_transformer.dynamo.onnx"), format!("{models}/digits_calib.npz"), "adaround"),
    ] {
        let outputs = ["1", "2", "5"].map(|threads| {
            let out = format!("threads{threads}.onnx");
            let mut command = Command::new(env!("CARGO_BIN_EXE_qonvert"));
            command.current_dir(place.path("")).env("RAYON_NUM_THREADS", threads);
            let words = ["quantize", &model, "-o", &out, "--calibration", &data, "--everywhere", "-q"];
            assert!(command.args(words).args(["--weight-algorithm", algorithm]).status().unwrap().code() < Some(2));
            place.bytes(&out)
        });
        assert!(outputs[0] == outputs[1] && outputs[0] == outputs[2], "{model}");
    }
}

#[test]
fn what_is_dumped_can_be_fed_back() {
    let place = Place::new();
    let first = place.quantize(
        "--preset int8-per-tensor --observer percentile --percentile 99.9 --keep-float head --dump-config c.yaml --dump-plan p.yaml -q",
    );
    assert_eq!((first.code, &first.err[..]), (0, ""));
    let bytes = place.bytes("out.onnx");
    golden!(
        "dumped_config",
        Done { code: 0, out: String::from_utf8(place.bytes("c.yaml")).unwrap(), err: String::new() }
    );
    assert_eq!(place.quantize("--config c.yaml --dump-config again.yaml -q").code, 0);
    assert!(place.bytes("out.onnx") == bytes);
    assert_eq!(place.bytes("c.yaml"), place.bytes("again.yaml"));
    assert_eq!(place.run("quantize model.onnx -o out.onnx --plan p.yaml --dump-plan q.yaml -q").code, 0);
    assert!(place.bytes("out.onnx") == bytes);
    assert_eq!(place.bytes("p.yaml"), place.bytes("q.yaml"));
    assert!(String::from_utf8(place.bytes("p.yaml")).unwrap().contains("rule 1 (nodes: head) keeps it float"));
}

/// On a CPU without VNNI, weights of layers that could saturate there have fewer codes, and the report names the layers.
#[test]
fn another_processor() {
    let place = Place::new();
    golden!("quantize_avx2", place.quantize("--cpu avx2 --dump-plan p.yaml --report r.json"));
    let bytes = place.bytes("out.onnx");
    let report: serde_json::Value = serde_json::from_slice(&place.bytes("r.json")).unwrap();
    let saturation = &report["saturation"];
    assert_eq!((&saturation["cpu"], &saturation["layers"]), (&"avx2".into(), &3.into()));
    let plan = String::from_utf8(place.bytes("p.yaml")).unwrap();
    assert!(plan.contains("\ncpu: avx2\n"), "{plan}");
    assert_eq!(plan.matches("pair_axes:").count(), saturation["narrowed"].as_array().unwrap().len());
    let again = place.run("quantize model.onnx -o out.onnx --plan p.yaml --cpu avx2");
    assert!(again.out.contains("no effect of cpu: the plan already says"), "{}", again.out);
    assert!(place.bytes("out.onnx") == bytes);
    // The first one is what is meant without a word, and uint8 weights are exact on the other.
    assert_eq!(place.quantize("-q").code, 0);
    let own = place.bytes("out.onnx");
    assert!(own != bytes);
    assert_eq!(place.quantize("--cpu vnni -q").code, 0);
    assert!(place.bytes("out.onnx") == own);
    let exact = place.quantize("--cpu avx2 --weight-type uint8");
    assert!(exact.out.contains("avx2: no sum of the 3 layers with weights can saturate"), "{}", exact.out);
}

#[test]
fn sensitivity() {
    let place = Place::new();
    let run = place.run("sensitivity model.onnx --calibration data.npz --json --rules worst.yaml --worst 1");
    assert_eq!(run.code, 0, "{}", run.err);
    let found: serde_json::Value = serde_json::from_str(&run.out).unwrap();
    let units = found["units"].as_array().unwrap();
    assert!(units.len() > 1);
    let share = |i: usize| units[i]["share"].as_f64().unwrap();
    assert!((1..units.len()).all(|i| share(i - 1) >= share(i)) && share(0) > 0.0, "{units:?}");
    let figure = |loss: &serde_json::Value, name: &str| loss["outputs"][0][name].as_f64();
    let (all, without) = (&found["all"], &units[0]["without"]);
    assert!(figure(all, "sqnr").unwrap() < figure(&units[0]["alone"], "sqnr").unwrap());
    assert!(figure(without, "sqnr").unwrap() > figure(all, "sqnr").unwrap());
    // As a table, the same in the same order.
    let table = place.run("sensitivity model.onnx --calibration data.npz");
    let lines: Vec<&str> = table.out.lines().skip(1).take(units.len() + 1).collect();
    let name = |i: usize| units[i]["nodes"][0].as_str().unwrap();
    assert!((0..units.len()).all(|i| lines[i].contains(name(i))), "{}", table.out);
    assert!(lines[units.len()].contains(&format!("all together: {} units", units.len())), "{}", table.out);
    let float = place.run("sensitivity model.onnx --calibration data.npz --keep-float * --keep-float-weights");
    assert!(float.code == 0 && float.out.starts_with("nothing is measured"), "{}", float.out);
    // The rules leave the worst in float.
    let args = "quantize model.onnx -o out.onnx --calibration data.npz --config worst.yaml --dump-plan plan.yaml -q";
    assert_eq!(place.run(args).code, 0);
    let rules = fs::read_to_string(place.path("worst.yaml")).unwrap();
    let worst = units[0]["nodes"][0].as_str().unwrap();
    assert!(rules.contains(worst) && fs::read_to_string(place.path("plan.yaml")).unwrap().contains("rule 1"));
    assert_eq!(place.run("sensitivity model.onnx --calibration data.npz --worst 2").code, 2);
}

#[test]
fn ranges_can_be_saved_merged_and_used() {
    let place = Place::new();
    golden!("calibrate", place.run("calibrate model.onnx --calibration data.npz -o r.yaml --observer min_max"));
    assert_eq!(place.quantize("--observer min_max -q").code, 0);
    let direct = place.bytes("out.onnx");
    assert_eq!(place.quantize("--ranges r.yaml -q").code, 0);
    assert!(place.bytes("out.onnx") == direct);
    place.data("more.npz", "image", 60);
    let merged = place.run("calibrate model.onnx --calibration more.npz -o all.yaml --observer min_max --merge r.yaml");
    assert_eq!(merged.code, 0);
    assert!(String::from_utf8(place.bytes("all.yaml")).unwrap().contains("samples: 88")); // 35 and 53 of 40 and 60
}

#[test]
fn gates() {
    let place = Place::new();
    golden!("gate_fails", place.quantize("--mode static --min-sqnr 90 --min-agreement 0.1"));
    assert!(place.path("out.onnx").exists());
    golden!("gate_fails_quietly", place.quantize("--mode static --min-sqnr 90 -q"));
    assert_eq!(place.quantize("--min-sqnr 10 --max-drop 0.9").code, 0);
}

#[test]
fn a_collapse_is_loud_and_says_what_to_do() {
    let place = Place::new();
    place.write(
        "bad.yaml",
        "mode: static\neverywhere: true\nrules:\n- {nodes: conv1, activation: {range: [0, 0.001]}}\n",
    );
    let done = place.quantize("--config bad.yaml");
    let yaml: Vec<_> = done.out.lines().skip_while(|l| !l.contains("pass it with --config")).skip(1).collect();
    let yaml: Vec<_> = yaml.iter().take_while(|l| !l.trim().is_empty()).map(|l| l.trim_start_matches("    ")).collect();
    place.write("cure.yaml", &yaml.join("\n"));
    golden!("collapse", done);
    assert!(place.path("out.onnx").exists());
    let cured = place.quantize("--config cure.yaml --everywhere");
    assert_eq!(cured.code, 0, "{}{}", cured.out, cured.err);
}

#[test]
fn wrong_words_write_nothing() {
    let place = Place::new();
    let mut npz = NpzWriter::new(fs::File::create(place.path("other.npz")).unwrap());
    npz.add_array("image", &Array4::<f32>::zeros((4, 1, 16, 16))).unwrap();
    npz.finish().unwrap();
    place.write("typo.yaml", "activation:\n  dtyp: int8\n");
    place.write("rule.yaml", "rules:\n- {nodes: convx, precision: float}\n");
    place.write("broken.onnx", "this is no model");
    place.write("empty.onnx", "");
    let before = place.files();
    for (name, line) in [
        ("error_no_model", "quantize missing.onnx -o out.onnx --calibration data.npz"),
        ("error_no_data", "quantize model.onnx -o out.onnx --calibration missing.npz"),
        ("error_broken_model", "quantize broken.onnx -o out.onnx --calibration data.npz"),
        ("error_empty_model", "inspect empty.onnx"),
        ("error_wrong_data", "quantize model.onnx -o out.onnx --calibration other.npz"),
        ("error_no_folder", "quantize model.onnx -o nowhere/out.onnx --calibration data.npz"),
        ("error_over_input", "quantize model.onnx -o model.onnx --calibration data.npz"),
        ("error_unknown_key", "quantize model.onnx -o out.onnx --calibration data.npz --config typo.yaml"),
        ("error_rule", "quantize model.onnx -o out.onnx --calibration data.npz --config rule.yaml"),
        ("error_preset", "quantize model.onnx -o out.onnx --calibration data.npz --preset int5"),
        ("error_observer", "quantize model.onnx -o out.onnx --calibration data.npz --observer minmax"),
        ("error_smooth", "calibrate model.onnx -o r.yaml --calibration data.npz --smooth"),
        ("error_size", "tune model.onnx -o out.onnx --calibration data.npz --max-size 8elephants"),
        ("error_cpu", "quantize model.onnx -o out.onnx --calibration data.npz --cpu avx"),
        ("error_agreement", "quantize model.onnx -o out.onnx --calibration data.npz --min-agreement 98"),
        ("error_plan", "quantize model.onnx -o out.onnx --plan typo.yaml"),
        ("error_library", "bench model.onnx --onnxruntime-lib nothing.so"),
        ("error_library_idle", "compare model.onnx model.onnx --data data.npz --onnxruntime-lib nothing.so"),
        ("error_ranges", "quantize model.onnx -o out.onnx --calibration data.npz --ranges typo.yaml"),
    ] {
        let done = place.run(line);
        assert_eq!((done.code, &done.out[..]), (2, ""), "{line}: {}", done.err);
        golden!(name, &done);
        assert_eq!(place.files(), before, "{line}");
    }
}

#[test]
fn nothing_that_is_read_is_written_over() {
    let place = Place::new();
    let made = place.quantize("--dump-config c.yaml --dump-plan p.yaml -q");
    assert_eq!((made.code, &made.err[..]), (0, ""));
    assert_eq!(place.run("calibrate model.onnx --calibration data.npz -o r.yaml -q").code, 0);
    fs::remove_file(place.path("out.onnx")).unwrap();
    fs::create_dir(place.path("sub")).unwrap();
    let data = "--calibration data.npz";
    let before = (place.files(), INPUTS.map(|f| place.bytes(f)));
    for (line, named) in [
        (format!("quantize model.onnx -o sub/../model.onnx {data}"), ["MODEL", "--output"]),
        (format!("quantize model.onnx -o data.npz {data}"), ["--calibration", "--output"]),
        (format!("quantize model.onnx -o out.onnx {data} --report model.onnx"), ["MODEL", "--report"]),
        (format!("quantize model.onnx -o out.onnx {data} --dump-config model.onnx"), ["MODEL", "--dump-config"]),
        (format!("quantize model.onnx -o out.onnx {data} --dump-plan out.onnx"), ["--output", "--dump-plan"]),
        (format!("quantize model.onnx -o out.onnx {data} --dump-plan a --report ./a"), ["--dump-plan", "--report"]),
        (
            format!("quantize model.onnx -o out.onnx {data} --config c.yaml --dump-config c.yaml"),
            ["--config", "--dump-config"],
        ),
        (format!("quantize model.onnx -o out.onnx {data} --ranges r.yaml --report r.yaml"), ["--ranges", "--report"]),
        ("quantize model.onnx -o out.onnx --plan p.yaml --dump-plan p.yaml".to_owned(), ["--plan", "--dump-plan"]),
        ("quantize model.onnx -o p.yaml --plan p.yaml".to_owned(), ["--plan", "--output"]),
        (format!("calibrate model.onnx -o model.onnx {data}"), ["MODEL", "--output"]),
        (format!("calibrate model.onnx -o r.yaml --merge r.yaml {data}"), ["--merge", "--output"]),
        (format!("quantize model.onnx -o out.onnx {data} --report nowhere/r.json"), ["no folder", "--report"]),
        (format!("quantize model.onnx -o out.onnx {data} --dump-config sub"), ["folder", "--dump-config"]),
    ] {
        let done = place.run(&line);
        assert_eq!((done.code, &done.out[..]), (2, ""), "{line}: {}", done.err);
        assert!(named.iter().all(|n| done.err.contains(n)) && done.err.contains("help: "), "{line}: {}", done.err);
        assert!(before == (place.files(), INPUTS.map(|f| place.bytes(f))), "{line}");
    }
}

#[test]
fn a_model_with_all_weights_outside_is_not_written_over() {
    let place = Place::new();
    let text = "<ir_version: 8, opset_import: [\"\" : 17]> \n g (float[N,3,16,16] image) => (float[N,3,16,16] y) \n \
        <float[512] w = {W}> { f = Mul (image, image) \n s = ReduceSum <keepdims = 1> (w) \n y = Add (f, s) }";
    let model = text::parse(&text.replace('W', &vec!["0.5"; 512].join(","))).unwrap();
    let outside = onnx_file::WriteOptions { external_data: Some(true) };
    onnx_file::write(&model, &place.path("ext.onnx"), outside).unwrap();
    let before = ["ext.onnx", "ext.onnx.data"].map(|f| place.bytes(f));
    for more in ["-o ext.onnx", "-o ext.onnx.data", "-o out.onnx --report ext.onnx.data"] {
        let done = place.run(&format!("quantize ext.onnx --calibration data.npz {more}"));
        assert_eq!(done.code, 2, "{more}: {}{}", done.out, done.err);
        assert!(before == ["ext.onnx", "ext.onnx.data"].map(|f| place.bytes(f)), "{more}");
    }
    assert!(!place.path("out.onnx").exists());
}

#[test]
fn what_has_no_effect_is_said() {
    let place = Place::new();
    assert_eq!(place.quantize("--dump-plan p.yaml --no-proof -q").code, 0);
    assert_eq!(place.run("calibrate model.onnx --calibration data.npz -o r.yaml -q").code, 0);
    place.write("p99.yaml", "calibration: {percentile: 99.0, averaging: 0.5}\n");
    place.write("rule.yaml", "rules: [{values: image, activation: {percentile: 99.0}}]\n");
    place.write("ranges.yaml", "ranges: {imag: {lo: 0, hi: 1}}\n");
    place.write("spare.yaml", "ranges: {scores: {lo: 0, hi: 1}}\n");
    for (more, code, says) in [
        ("--percentile 99", 2, "--percentile has no effect: the observer is auto"),
        ("--config p99.yaml", 0, "no effect of calibration.percentile"),
        ("--config p99.yaml", 0, "no effect of calibration.averaging"),
        ("--config rule.yaml", 0, "no effect of percentile in rule 1 (values: image)"),
        ("--mean 0.5 --image-size 4x4", 0, "no effect of --image-size, --mean: the data is arrays"),
        ("--ranges r.yaml --observer mse", 0, "no effect of observer mse"),
        ("--ranges ranges.yaml", 2, "did you mean \"image\"?"),
        ("--ranges spare.yaml", 0, "done: "),
        ("--plan p.yaml --observer mse", 2, "cannot be used with"),
        ("--plan p.yaml --keep-float head", 2, "cannot be used with"),
        ("--plan p.yaml --config rule.yaml", 0, "no effect of rules: the plan already says"),
    ] {
        let done = place.quantize(more);
        let text = format!("{}{}", done.out, done.err);
        assert!(done.code == code && text.contains(says), "{more}: {text}");
    }
    for gate in ["--min-sqnr 10", "--min-agreement 0.5", "--max-drop 0.1"] {
        fs::remove_file(place.path("out.onnx")).unwrap_or_default();
        let done = place.run(&format!("quantize model.onnx -o out.onnx --plan p.yaml {gate}"));
        assert!(done.code == 2 && done.err.contains("cannot be checked: there is no data"), "{gate}: {}", done.err);
        assert!(!place.path("out.onnx").exists());
    }
    assert_eq!(place.run("quantize model.onnx -o out.onnx --plan p.yaml --evaluation data.npz --min-sqnr 10").code, 0);
    let done = place.run("compare model.onnx out.onnx --data data.npz --samples 0");
    assert!(done.code == 0 && done.out.contains("on 40 samples"), "{}{}", done.out, done.err);
    for gate in ["--min-agreement 98", "--max-drop nan", "--min-sqnr nan"] {
        assert_eq!(place.run(&format!("compare model.onnx out.onnx --data data.npz {gate}")).code, 2, "{gate}");
    }
}

#[test]
fn inspect() {
    let place = Place::new();
    golden!("inspect", place.run("inspect model.onnx"));
    golden!("inspect_text", place.run("inspect --text --elements 2 model.onnx"));
    let json: serde_json::Value = serde_json::from_str(&place.run("inspect --json model.onnx").out).unwrap();
    assert_eq!(json["nodes"].as_array().unwrap().len(), 8);
    assert_eq!((&json["opsets"]["ai.onnx"], &json["nodes"][0]["precision"]), (&17.into(), &"float".into()));
}

#[test]
fn pictures_are_data() {
    let place = Place::new();
    let folder = place.path("pictures");
    fs::create_dir(&folder).unwrap();
    for i in 0..24u32 {
        let picture = image::RgbImage::from_fn(20, 24, |x, y| {
            let at = |c: u32| (noise(i, (x * 31 + y * 7 + c) as usize) * 127.0 + 128.0) as u8;
            image::Rgb([at(0), at(1), at(2)])
        });
        picture.save(Path::new(&folder).join(format!("{i:02}.png"))).unwrap();
    }
    let done = place.run("quantize model.onnx -o out.onnx --calibration pictures --mean 0.5 --std 0.25,0.25,0.25");
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.out.starts_with("done: "), "{}", done.out);
    let done = place.run("quantize model.onnx -o out.onnx --calibration pictures --mean 0.5,0.5");
    assert_eq!(done.code, 2, "{}", done.out);
    assert!(done.err.contains("calibration.image.mean has 2 numbers"), "{}", done.err);
}
