//! Damaged and hostile files, full disks and killed processes: a clear error, no panic, no half-written output.

#[path = "common/random.rs"]
mod random;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use prost::Message;
use qonvert::{
    Error, Result,
    ir::{DType, Model, NodeSpec, Place, Stored, Tensor, text},
    onnx_file::{
        self, WriteOptions,
        proto::{self, GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto, ValueInfoProto},
    },
    passes,
};
use random::Random;

/// One of everything that the reader has a branch for.
fn small() -> Vec<u8> {
    let mut m = text::parse(
        r#"<ir_version: 8, opset_import: ["" : 18, "f" : 1], metadata_props: ["k" : "v"]>
        g (float[N,4] x, bool p, float[2] i = {1, 2}) => (float[N,2] y, s)
        <float[4,2] w = {1, 2, 3, 4, 5, 6, 7, 8}, int64[2] shape = {-1, 2}, string[1] st = {"a"}, float[N,2] h> {
            h = MatMul(x, w)
            r = Reshape<allowzero = 0>(h, shape)
            c = Constant<value = float[2] {0.5, 1}>()
            b = If<then_branch = t () => (a) <float k = {3}> { a = Mul(h, k) }, else_branch = e () => (z) { z = Neg(r) }>(p)
            y = f.foo<alpha = 2.0>(b, c)
            s = Split<axis = 0, names = ["q"], sizes = [1, 2], scales = [0.5]>(i)
        }
        <domain: "f", opset_import: ["" : 18]> foo <alpha, beta: int = 1> (a, b) => (c) { d = Elu<alpha: float = @alpha>(a) c = Add(d, b) }"#,
    )
    .unwrap();
    let w = m.find_value(m.main(), "w").unwrap();
    let typed = m.value(w).initializer().unwrap().clone().with_stored(Stored::Typed);
    m.set_initializer(w, Some(typed));
    onnx_file::to_bytes(&m).unwrap()
}

/// Does what programs do with a model. Errors are welcome, panics are not.
fn exercise(bytes: &[u8]) -> Result<()> {
    let mut m = onnx_file::from_bytes(bytes.to_vec(), Path::new("."))?;
    m.verify()?;
    text::print(&m);
    let again = onnx_file::to_bytes(&m)?;
    onnx_file::from_bytes(again, Path::new("."))?.verify()?;
    qonvert::analysis::types::infer(&m);
    passes::run_stage(passes::Stage::Prepare, &mut m, &mut passes::Context::default())?;
    m.verify()?;
    onnx_file::to_bytes(&m).map(|_| ())
}

fn never_panics(bytes: &[u8], what: &str) {
    let done = catch_unwind(AssertUnwindSafe(|| exercise(bytes)));
    match done {
        Ok(Err(e)) if e.kind() == qonvert::ErrorKind::Bug => panic!("{what}: {e}"),
        Ok(_) => {}
        Err(_) => {
            let file = std::env::temp_dir().join("qonvert-panic.onnx");
            let _ = fs::write(&file, bytes);
            panic!("{what}: a panic; the bytes are in {}", file.display());
        }
    }
}

#[test]
fn every_truncation_is_survived() {
    let bytes = small();
    exercise(&bytes).unwrap();
    for len in 0..bytes.len() {
        never_panics(&bytes[..len], &format!("the first {len} bytes"));
    }
}

/// One to three bits flipped, bytes replaced or bytes lost.
fn damage(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut damaged = bytes.to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(damaged.len());
        match random.below(4) {
            0 => damaged[at] = random.below(256) as u8,
            1 if damaged.len() > 1 => drop(damaged.remove(at)),
            _ => damaged[at] ^= 1 << random.below(8),
        }
    }
    damaged
}

/// `QONVERT_DAMAGE_ROUNDS` asks for more.
fn rounds(usual: usize) -> usize {
    std::env::var("QONVERT_DAMAGE_ROUNDS").map_or(usual, |n| n.parse().unwrap())
}

#[test]
fn flipped_bits_are_survived() {
    let (bytes, mut random) = (small(), Random(0x9e37_79b9_7f4a_7c15));
    for round in 0..rounds(20_000) {
        never_panics(&damage(&bytes, &mut random), &format!("round {round}"));
    }
}

/// The same with the small models below the folders that `QONVERT_ROUND_TRIP_DIRS` names, whole first.
#[test]
fn damage_to_models_of_every_operator_is_survived() {
    let Ok(dirs) = std::env::var("QONVERT_ROUND_TRIP_DIRS") else {
        return eprintln!("SKIPPED: QONVERT_ROUND_TRIP_DIRS names no further models");
    };
    let (mut folders, mut random) = (dirs.split(':').map(PathBuf::from).collect::<Vec<_>>(), Random(42));
    while let Some(folder) = folders.pop() {
        for path in files_in(&folder) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "onnx") && fs::metadata(&path).unwrap().len() < 20_000 {
                let bytes = fs::read(&path).unwrap();
                never_panics(&bytes, &path.display().to_string());
                for round in 0..rounds(8).min(1000) {
                    never_panics(&damage(&bytes, &mut random), &format!("{}, round {round}", path.display()));
                }
            }
        }
    }
}

fn node(op: &str, input: &[&str], output: &[&str]) -> NodeProto {
    let list = |l: &[&str]| l.iter().map(|&s| s.to_owned()).collect();
    NodeProto { op_type: Some(op.into()), input: list(input), output: list(output), ..NodeProto::default() }
}

fn value(name: &str) -> ValueInfoProto {
    ValueInfoProto { name: Some(name.into()), ..ValueInfoProto::default() }
}

fn tensor(name: &str, dims: &[i64]) -> TensorProto {
    let dims = dims.to_vec();
    TensorProto {
        name: Some(name.into()),
        data_type: Some(1),
        dims,
        raw_data: Some(vec![0; 8].into()),
        ..TensorProto::default()
    }
}

fn external(name: &str, entries: &[(&str, &str)]) -> TensorProto {
    let entry = |&(k, v): &(&str, &str)| StringStringEntryProto { key: Some(k.into()), value: Some(v.into()) };
    TensorProto {
        raw_data: None,
        external_data: entries.iter().map(entry).collect(),
        data_location: Some(proto::tensor_proto::DataLocation::External.into()),
        ..tensor(name, &[2])
    }
}

/// A model of `x → … → y`.
fn model(nodes: Vec<NodeProto>, initializers: Vec<TensorProto>) -> ModelProto {
    let graph = GraphProto {
        name: Some("main".into()),
        input: vec![value("x")],
        output: vec![value("y")],
        node: nodes,
        initializer: initializers,
        ..GraphProto::default()
    };
    whole(graph)
}

fn whole(graph: GraphProto) -> ModelProto {
    let opset = proto::OperatorSetIdProto { domain: None, version: Some(17) };
    ModelProto { ir_version: Some(8), graph: Some(graph), opset_import: vec![opset], ..ModelProto::default() }
}

fn with_tensor(t: TensorProto) -> ModelProto {
    model(vec![node("Add", &["x", "w"], &["y"])], vec![t])
}

/// The error of reading the model from a file in a folder.
fn refused_in(folder: &Path, m: &ModelProto) -> String {
    let path = folder.join("model.onnx");
    fs::write(&path, m.encode_to_vec()).unwrap();
    let e = onnx_file::read(&path).expect_err("the model is refused");
    let text = e.to_string();
    assert!(text.contains(&folder.display().to_string()), "{text} names no file");
    text
}

fn refused(m: &ModelProto) -> String {
    refused_in(tempfile::tempdir().unwrap().path(), m)
}

fn has(text: &str, words: &[&str]) {
    for w in words {
        assert!(text.contains(w), "{text:?} does not say {w:?}");
    }
}

#[test]
fn external_data_stays_in_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::write(at.join("short.bin"), [0; 4]).unwrap();
    fs::create_dir(at.join("sub")).unwrap();
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("/etc/passwd", at.join("link")).unwrap();
        std::os::unix::fs::symlink("/etc", at.join("linked")).unwrap();
        has(&refused_in(at, &with_tensor(external("w", &[("location", "link")]))), &["\"w\"", "link", "leads out"]);
        has(&refused_in(at, &with_tensor(external("w", &[("location", "linked/passwd")]))), &["leads out"]);
    }
    for outside in ["../../etc/passwd", "/etc/passwd", "sub/../../x", "..", ""] {
        let e = refused_in(at, &with_tensor(external("w", &[("location", outside)])));
        has(&e, &["\"w\"", "leads out of the model's folder", outside]);
    }
    let of = |entries: &[(&str, &str)]| refused_in(at, &with_tensor(external("w", entries)));
    has(&of(&[]), &["\"w\"", "no location"]);
    has(&of(&[("location", "none.bin")]), &["none.bin"]);
    has(&of(&[("location", "sub")]), &["folder"]);
    has(&of(&[("location", "short.bin")]), &["\"w\"", "short.bin", "8", "4 bytes"]);
    has(&of(&[("location", "short.bin"), ("offset", "18446744073709551615")]), &["18446744073709551615", "4 bytes"]);
    has(&of(&[("location", "short.bin"), ("offset", "-1")]), &["offset", "-1"]);
    has(&of(&[("location", "short.bin"), ("length", "4")]), &["length 4", "8 bytes"]);
}

#[test]
fn impossible_shapes_are_named() {
    has(&refused(&with_tensor(tensor("w", &[1_000_000_000_000_000_000]))), &["\"w\"", "1000000000000000000"]);
    has(&refused(&with_tensor(tensor("w", &[i64::MAX, i64::MAX]))), &["\"w\"", "too large"]);
    has(&refused(&with_tensor(tensor("w", &[-2]))), &["\"w\"", "-2"]);
    has(&refused(&with_tensor(tensor("w", &[3]))), &["\"w\"", "12", "8"]);
    has(&refused(&with_tensor(TensorProto { data_type: Some(99), ..tensor("w", &[2]) })), &["\"w\"", "99"]);
    let strings = TensorProto { data_type: Some(8), ..tensor("w", &[i64::MAX, 4]) };
    has(&refused(&with_tensor(strings)), &["\"w\"", "0 elements"]);
    let constant = NodeProto {
        name: Some("n".into()),
        attribute: vec![proto::AttributeProto {
            name: Some("value".into()),
            t: Some(tensor("t", &[5])),
            r#type: Some(4),
            ..Default::default()
        }],
        ..node("Constant", &[], &["y"])
    };
    has(&refused(&model(vec![constant], vec![])), &["\"n\" (Constant)", "20", "8"]);
}

#[test]
fn wrong_names_are_named() {
    let two = |a, b| refused(&model(vec![a, b], vec![]));
    has(&two(node("Neg", &["x"], &["y"]), node("Abs", &["x"], &["y"])), &["\"y\"", "Abs"]);
    has(&two(node("Neg", &["q"], &["a"]), node("Abs", &["a"], &["y"])), &["\"q\"", "\"a\" (Neg)", "nothing makes it"]);
    has(&two(node("Neg", &["x"], &["a"]), node("Abs", &["a"], &["b"])), &["\"y\"", "nothing makes it"]);
    has(&two(node("Neg", &["x"], &["x"]), node("Abs", &["x"], &["y"])), &["\"x\"", "Neg"]);
    let cycle = vec![
        node("Neg", &["c"], &["y"]),
        node("Add", &["x", "b"], &["a"]),
        node("Abs", &["a"], &["b"]),
        node("Exp", &["b"], &["c"]),
    ];
    has(&refused(&model(cycle, vec![])), &["cycle", "2 nodes", "\"a\"", "\"b\""]);
    has(
        &refused(&model(vec![node("Neg", &["x"], &["y"])], vec![tensor("w", &[2]), tensor("w", &[2])])),
        &["\"w\"", "two"],
    );
    has(&refused(&model(vec![node("Neg", &["x"], &["y"])], vec![tensor("", &[2])])), &["no name"]);
    // A type alone makes no value.
    let mut typed = model(vec![node("Neg", &["q"], &["y"])], vec![]);
    typed.graph.as_mut().unwrap().value_info.push(value("q"));
    has(&refused(&typed), &["\"q\"", "nothing makes it"]);
}

#[test]
fn deep_nesting_ends() {
    let mut g = GraphProto { output: vec![value("x")], ..GraphProto::default() };
    for depth in 0..1000 {
        let branch = proto::AttributeProto {
            name: Some("then_branch".into()),
            g: Some(g),
            r#type: Some(5),
            ..Default::default()
        };
        let mut n = node("If", &["x"], &["y"]);
        n.attribute.push(branch);
        g = GraphProto { node: vec![n], input: vec![value("x")], output: vec![value("y")], ..GraphProto::default() };
        if depth == 20 {
            let fine = whole(g.clone());
            exercise(&fine.encode_to_vec()).unwrap();
        }
    }
    let deep = whole(g);
    let e = onnx_file::from_bytes(deep.encode_to_vec(), Path::new(".")).unwrap_err();
    let mut chain = e.to_string();
    let mut source = std::error::Error::source(&e);
    while let Some(s) = source {
        chain += &format!(": {s}");
        source = s.source();
    }
    has(&chain, &["recursion"]);
}

#[test]
fn other_files_are_recognized() {
    let folder = tempfile::tempdir().unwrap();
    let say = |content: &[u8]| {
        let path = folder.path().join("m.onnx");
        fs::write(&path, content).unwrap();
        let e = onnx_file::read(&path).unwrap_err();
        format!("{e} help: {}", e.help_text().unwrap_or_default())
    };
    has(&say(b""), &["m.onnx", "empty", "0 bytes"]);
    has(&say(b"PK\x03\x04\x00\x00"), &["zip", "torch.onnx.export"]);
    has(&say(b"<!DOCTYPE html><html>404</html>"), &["web page"]);
    has(&say(b"version https://git-lfs.github.com/spec/v1\noid sha256:00"), &["git lfs pull"]);
    has(&say(b"just words"), &["text"]);
    has(&say(&[0xff; 100]), &["not an ONNX model", "100 bytes"]);
    has(&say(&ModelProto { ir_version: Some(8), ..ModelProto::default() }.encode_to_vec()), &["no graph"]);
    let newer = ModelProto { ir_version: Some(99), ..model(vec![node("Neg", &["x"], &["y"])], vec![]) };
    has(&say(&newer.encode_to_vec()), &["99", "14", "--force"]);
    let path = folder.path().join("m.onnx");
    assert!(onnx_file::read_with(&path, onnx_file::ReadOptions { force: true }).is_ok());
    has(&onnx_file::read(folder.path()).unwrap_err().to_string(), &["is a folder"]);
    has(&onnx_file::read(&folder.path().join("none")).unwrap_err().to_string(), &["none", "cannot open"]);
    #[cfg(unix)]
    has(&onnx_file::read(Path::new("/dev/null")).unwrap_err().to_string(), &["device"]);
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn outputs_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.onnx");
    let proto = with_tensor(tensor("w", &[2]));
    fs::write(&input, proto.encode_to_vec()).unwrap();
    let m = onnx_file::read(&input).unwrap();
    let to = |path: &Path, external| {
        let e = onnx_file::write(&m, path, WriteOptions { external_data: Some(external) }).unwrap_err();
        format!("{e} help: {}", e.help_text().unwrap_or_default())
    };
    has(&to(&input, false), &["is read as the input", "choose another path", "in.onnx"]);
    has(&to(&folder.path().join("none/out.onnx"), false), &["output folder", "out.onnx", "make the folder"]);
    has(&to(folder.path(), false), &["folder"]);
    #[cfg(unix)]
    has(&to(Path::new("/dev/full"), false), &["device"]);
    assert_eq!(files_in(folder.path()), std::slice::from_ref(&input));
    assert_eq!(fs::read(&input).unwrap(), proto.encode_to_vec());
}

/// A weight that cannot be computed, behind one that can.
fn failing(after: usize, fail: impl Fn() -> Result<bytes::Bytes> + Send + Sync + 'static) -> Model {
    let mut m = Model::new(8);
    m.set_opset("", 17);
    let g = m.main();
    let good = Arc::new(move || Ok(vec![7u8; after].into()));
    let a = m.add_initializer(g, "good", Tensor::deferred(DType::Uint8, vec![after], good).unwrap());
    let b = m.add_initializer(g, "bad", Tensor::deferred(DType::Uint8, vec![after], Arc::new(fail)).unwrap());
    let n = m.insert(NodeSpec::new("Add").input(a).input(b).output("y"), Place::End(g));
    let y = m.node(n).output(0).unwrap();
    m.add_output(g, y);
    m
}

#[test]
fn a_failing_weight_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.onnx");
    fs::write(&path, "old").unwrap();
    let m = failing(1 << 20, || Err(Error::data("the weight has gone")));
    for external in [false, true] {
        let e = onnx_file::write(&m, &path, WriteOptions { external_data: Some(external) }).unwrap_err().to_string();
        has(&e, &["\"bad\"", "the weight has gone"]);
        assert_eq!(files_in(folder.path()), std::slice::from_ref(&path));
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }
}

const CHILD: &str = "QONVERT_ROBUSTNESS_CHILD";

/// Not a test of its own: what the tests below run in a process that is killed, or has no room.
#[test]
fn child() {
    let Ok(job) = std::env::var(CHILD) else { return };
    let (kind, path) = job.split_once(':').unwrap();
    let slow = kind == "slow";
    let m = failing(32 << 20, move || {
        if slow {
            std::thread::sleep(Duration::from_secs(60));
        }
        Ok(vec![1; 32 << 20].into())
    });
    let external = Some(kind == "external");
    if let Err(e) = onnx_file::write(&m, Path::new(path), WriteOptions { external_data: external }) {
        let cause = std::error::Error::source(&e).map(ToString::to_string).unwrap_or_default();
        fs::write(format!("{path}.error"), format!("{e}: {cause}")).unwrap();
    }
}

fn child_command(shell: &str, kind: &str, path: &Path) -> Command {
    let mut c = Command::new("sh");
    c.args(["-c", &format!("{shell} exec \"$0\" --exact child"), std::env::current_exe().unwrap().to_str().unwrap()]);
    c.env(CHILD, format!("{kind}:{}", path.display())).stdout(Stdio::null()).stderr(Stdio::null());
    c
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_no_file() {
    for kind in ["single", "external"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.onnx");
        // A limit on the size of files fails writes as a full disk does, for everyone.
        let status = child_command("trap '' XFSZ; ulimit -f 40000;", kind, &path).status().unwrap();
        assert!(status.success());
        let error = folder.path().join("out.onnx.error");
        assert_eq!(files_in(folder.path()), std::slice::from_ref(&error), "{kind}");
        has(&fs::read_to_string(error).unwrap(), &["out.onnx", "cannot write", "large"]);
    }
}

#[cfg(unix)]
#[test]
fn a_killed_process_leaves_no_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.onnx");
    let mut child = child_command("", "slow", &path).spawn().unwrap();
    let start = Instant::now();
    while files_in(folder.path()).is_empty() && start.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let left = files_in(folder.path());
    assert!(!left.is_empty() && left.iter().all(|p| p.extension().is_some_and(|e| e == "tmp")), "{left:?}");
}
