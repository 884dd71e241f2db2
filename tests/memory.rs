//! A plain copy does not hold the model in memory: weights go from the mapped input to the output piece by piece.
//!
//! `QONVERT_COPY_MB` sets the size (default 256; 4096 takes a minute and 8 GB of disk). One test in this file, since the
//! peak is that of the whole process.

#![cfg(target_os = "linux")]

use std::{fs, io::Write, path::Path};

use prost::Message;
use qonvert::onnx_file::{
    self, WriteOptions,
    proto::{
        GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto, ValueInfoProto,
        tensor_proto::DataLocation,
    },
};

const MB: usize = 1 << 20;
/// Most megabytes that a copy may add to the process.
const MOST: usize = 100;

/// The largest resident set since the last [`reset`], in MB; mapped pages of files count.
fn peak() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
}

fn reset() -> usize {
    let _ = fs::OpenOptions::new().write(true).open("/proc/self/clear_refs").and_then(|mut f| f.write_all(b"5"));
    peak()
}

/// A model whose weights (one of half the size, others of 16 MB) lie in a sparse file.
fn make(folder: &Path, megabytes: usize) {
    let sizes: Vec<usize> = std::iter::once(megabytes / 2).chain(std::iter::repeat_n(16, megabytes / 32)).collect();
    fs::File::create(folder.join("weights.bin")).unwrap().set_len((megabytes * MB) as u64).unwrap();
    let entry = |k: &str, v: usize| StringStringEntryProto { key: Some(k.into()), value: Some(v.to_string()) };
    let mut at = 0;
    let mut graph = GraphProto { name: Some("g".into()), ..GraphProto::default() };
    graph.output.push(ValueInfoProto { name: Some("y".into()), ..ValueInfoProto::default() });
    for (i, size) in sizes.into_iter().enumerate() {
        let location = StringStringEntryProto { key: Some("location".into()), value: Some("weights.bin".into()) };
        graph.initializer.push(TensorProto {
            dims: vec![(size * MB / 4) as i64],
            data_type: Some(1),
            name: Some(format!("w{i}")),
            external_data: vec![location, entry("offset", at), entry("length", size * MB)],
            data_location: Some(DataLocation::External.into()),
            ..TensorProto::default()
        });
        at += size * MB;
    }
    let input = graph.initializer.iter().map(|t| t.name().to_owned()).collect();
    let concat = NodeProto { op_type: Some("Sum".into()), input, output: vec!["y".into()], ..NodeProto::default() };
    graph.node.push(concat);
    let opset = OperatorSetIdProto { domain: None, version: Some(17) };
    let model =
        ModelProto { ir_version: Some(8), graph: Some(graph), opset_import: vec![opset], ..ModelProto::default() };
    fs::write(folder.join("model.onnx"), model.encode_to_vec()).unwrap();
}

fn copy(from: &Path, to: &Path, external: bool) -> usize {
    let before = reset();
    let model = onnx_file::read(from).unwrap();
    onnx_file::write(&model, to, WriteOptions { external_data: Some(external) }).unwrap();
    let size = fs::metadata(to).unwrap().len() / MB as u64;
    let more = peak().saturating_sub(before);
    eprintln!("{} ({size} MB in the model file): {more} MB more than {before}", to.display());
    more
}

#[test]
fn a_copy_takes_little_memory() {
    let megabytes = std::env::var("QONVERT_COPY_MB").map_or(256, |s| s.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    make(folder.path(), megabytes);
    let data_to_data = copy(&at("model.onnx"), &at("copy.onnx"), true);
    assert_eq!(fs::metadata(at("copy.onnx.data")).unwrap().len(), (megabytes * MB) as u64);
    fs::remove_file(at("copy.onnx.data")).unwrap();
    make(folder.path(), megabytes.min(1504));
    let data_to_one = copy(&at("model.onnx"), &at("one.onnx"), false);
    let one_to_one = copy(&at("one.onnx"), &at("again.onnx"), false);
    assert!(data_to_data < MOST && data_to_one < MOST && one_to_one < MOST);
    assert_eq!(fs::metadata(at("one.onnx")).unwrap().len(), fs::metadata(at("again.onnx")).unwrap().len());
}
