//! Reading and writing again gives the same model: on our own models, and on every `.onnx` below the folders that
//! `QONVERT_ROUND_TRIP_DIRS` names (separated by colons; CI names the test models of the `onnx` wheel).

use std::{
    fs,
    path::{Path, PathBuf},
};

use prost::Message;
use qonvert::{
    ir::text,
    onnx_file::{
        self, WriteOptions,
        proto::{
            AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto,
            tensor_proto::DataLocation, type_proto,
        },
    },
};
use rayon::prelude::*;

fn models_below(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut paths: Vec<_> = entries.flatten().map(|e| e.path()).collect();
    paths.sort();
    for p in paths {
        if p.is_dir() {
            models_below(&p, found);
        } else if p.extension().is_some_and(|e| e == "onnx") {
            found.push(p);
        }
    }
}

/// Puts the elements of external files into the messages: where they lie is the writer's choice.
fn embed(model: &mut ModelProto, folder: &Path) {
    fn tensor(t: &mut TensorProto, folder: &Path) {
        if t.data_location() != DataLocation::External {
            return;
        }
        let get = |key: &str| t.external_data.iter().find(|e| e.key() == key).map(|e| e.value().to_owned());
        let file = fs::read(folder.join(get("location").unwrap())).unwrap();
        let offset = get("offset").map_or(0, |o| o.parse().unwrap());
        let end = get("length").map_or(file.len(), |l| offset + l.parse::<usize>().unwrap());
        t.raw_data = Some(file[offset..end].to_vec().into());
        t.external_data.clear();
        t.data_location = None;
    }
    fn attribute(a: &mut AttributeProto, folder: &Path) {
        a.t.iter_mut().chain(&mut a.tensors).for_each(|t| tensor(t, folder));
        a.g.iter_mut().chain(&mut a.graphs).for_each(|g| graph(g, folder));
    }
    fn nodes(nodes: &mut [NodeProto], folder: &Path) {
        nodes.iter_mut().flat_map(|n| &mut n.attribute).for_each(|a| attribute(a, folder));
    }
    fn graph(g: &mut GraphProto, folder: &Path) {
        g.initializer.iter_mut().for_each(|t| tensor(t, folder));
        nodes(&mut g.node, folder);
    }
    model.graph.iter_mut().for_each(|g| graph(g, folder));
    model.functions.iter_mut().for_each(|f: &mut FunctionProto| nodes(&mut f.node, folder));
}

/// What a copy of the file is, or where it departs from it.
fn copy(path: &Path, scratch: &Path) -> Result<bool, String> {
    let model = onnx_file::read(path).map_err(|e| e.to_string())?;
    model.verify().map_err(|e| e.to_string())?;
    let to = scratch.join("copy.onnx");
    onnx_file::write(&model, &to, WriteOptions::default()).map_err(|e| e.to_string())?;
    let (original, written) = (fs::read(path).unwrap(), fs::read(&to).unwrap());
    let mut want = ModelProto::decode(&original[..]).map_err(|e| e.to_string())?;
    let mut got = ModelProto::decode(&written[..]).map_err(|e| e.to_string())?;
    embed(&mut want, path.parent().unwrap());
    embed(&mut got, scratch);
    // Encoded: NaN is not equal to itself.
    if want.encode_to_vec() != got.encode_to_vec() {
        let (want, got) = (format!("{want:#?}"), format!("{got:#?}"));
        let at = want.lines().zip(got.lines()).position(|(a, b)| a != b).unwrap_or_default();
        let part = |s: &str| s.lines().skip(at.saturating_sub(4)).take(9).collect::<Vec<_>>().join("\n");
        return Err(format!("was\n{}\nbecame\n{}", part(&want), part(&got)));
    }
    Ok(original == written)
}

#[test]
fn a_copy_is_the_original() {
    let mut paths = Vec::new();
    models_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models"), &mut paths);
    match std::env::var("QONVERT_ROUND_TRIP_DIRS") {
        Ok(dirs) => dirs.split(':').for_each(|d| {
            let before = paths.len();
            models_below(Path::new(d), &mut paths);
            assert!(paths.len() > before, "no model below {d:?}");
        }),
        Err(_) => eprintln!("SKIPPED: QONVERT_ROUND_TRIP_DIRS names no further models"),
    }
    // In parallel, since each file waits for the disk.
    let results: Vec<Result<bool, String>> = paths
        .par_iter()
        .map(|p| copy(p, tempfile::tempdir().unwrap().path()).map_err(|e| format!("{}: {e}", p.display())))
        .collect();
    let same_bytes = results.iter().filter(|r| matches!(r, Ok(true))).count();
    eprintln!("{} models, {same_bytes} equal byte for byte", paths.len());
    let wrong: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    assert!(wrong.is_empty(), "{} of {} models differ:\n{}", wrong.len(), paths.len(), wrong.join("\n"));
}

fn info(name: &str, dtype: i32) -> ValueInfoProto {
    let tensor = type_proto::Tensor { elem_type: Some(dtype), shape: None };
    let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), denotation: None };
    ValueInfoProto { name: Some(name.into()), r#type: Some(ty), ..ValueInfoProto::default() }
}

/// What exporters and tools leave behind, though no model above may have it.
#[test]
fn oddities_come_back() {
    let bare = |name: &str| ValueInfoProto { name: Some(name.into()), ..ValueInfoProto::default() };
    let node = |op: &str, input: &[&str], output: &[&str]| NodeProto {
        op_type: Some(op.into()),
        input: input.iter().map(|&s| s.into()).collect(),
        output: output.iter().map(|&s| s.into()).collect(),
        ..NodeProto::default()
    };
    let body = GraphProto {
        node: vec![node("Neg", &["a"], &["inner"])],
        // A subgraph may describe what it takes from around it.
        value_info: vec![info("a", 1), info("inner", 1)],
        output: vec![bare("inner")],
        ..GraphProto::default()
    };
    let mut branch = node("If", &["p", "", ""], &["b", ""]);
    branch.attribute.push(AttributeProto {
        name: Some("then_branch".into()),
        g: Some(body),
        r#type: Some(5),
        ..AttributeProto::default()
    });
    branch.attribute.push(AttributeProto { name: Some("untyped".into()), i: Some(3), ..AttributeProto::default() });
    branch.attribute.push(AttributeProto { name: Some("empty".into()), r#type: Some(7), ..AttributeProto::default() });
    let weight = |name: &str, location| TensorProto {
        name: Some(name.into()),
        dims: vec![0],
        data_type: Some(1),
        raw_data: Some(bytes::Bytes::new()),
        data_location: location,
        ..TensorProto::default()
    };
    let graph = GraphProto {
        name: Some(String::new()),
        doc_string: Some(String::new()),
        node: vec![node("Abs", &["x"], &["a"]), branch],
        input: vec![bare("x"), info("p", 9), info("w", 1)],
        initializer: vec![weight("w", Some(0)), weight("v", None), TensorProto { raw_data: None, ..weight("t", None) }],
        // Described twice, differently; described, but not there.
        value_info: vec![
            info("nowhere", 1),
            info("x", 1),
            info("a", 1),
            info("b", 7),
            info("w", 7),
            info("nowhere", 1),
        ],
        output: vec![info("b", 1), info("b", 1), bare("x"), bare("w")],
        ..GraphProto::default()
    };
    let model =
        ModelProto { ir_version: Some(3), graph: Some(graph), domain: Some(String::new()), ..ModelProto::default() };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.onnx");
    fs::write(&path, model.encode_to_vec()).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    assert_eq!(copy(&path, scratch.path()), Ok(true));
}

/// Small models below the same folders as text and back.
#[test]
fn a_text_says_the_same_again() {
    let mut paths = Vec::new();
    let dirs = std::env::var("QONVERT_ROUND_TRIP_DIRS").unwrap_or_default();
    dirs.split(':').filter(|d| !d.is_empty()).for_each(|d| models_below(Path::new(d), &mut paths));
    paths.retain(|p| fs::metadata(p).is_ok_and(|m| m.len() < 50_000));
    let (mut compared, mut wrong) = (0, Vec::new());
    for path in &paths {
        let printed = text::print(&onnx_file::read(path).unwrap());
        // Sparse tensors and opaque types have no syntax.
        if printed.contains("...") {
            continue;
        }
        compared += 1;
        match text::parse(&printed).map(|m| text::print(&m)) {
            Ok(again) if again == printed => {}
            Ok(again) => {
                let differ = printed.lines().zip(again.lines()).find(|(a, b)| a != b);
                wrong.push(format!("{}: {differ:#?}", path.display()));
            }
            Err(e) => wrong.push(format!("{}: {e}", path.display())),
        }
    }
    eprintln!("{compared} of {} small models compared", paths.len());
    assert!(wrong.is_empty(), "{} texts differ:\n{}", wrong.len(), wrong.join("\n"));
}
