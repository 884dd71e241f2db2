//! Writing: lengths first, then one tensor after the other, into a temporary file that is renamed when it is complete.

use std::{
    collections::HashSet,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use super::{
    encode::{self, Encoded, Initializer},
    map,
    proto::{GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto, tensor_proto::DataLocation},
};
use crate::{
    error::{Error, Result},
    files::{self, Draft},
    ir::{Model, Tensor, ValueId},
};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len},
};

/// The largest file that protobuf readers accept, with room for what the estimate does not see.
const LARGEST_FILE: u64 = (1 << 31) - (1 << 20);
/// Protobuf counts in signed 32 bit numbers.
const MOST_READABLE: u64 = (1 << 31) - 1;
/// Tensors below this stay in the model file, as ONNX's own tools keep them.
const SMALLEST_EXTERNAL: usize = 1024;
/// Alignment of tensors in the data file, so that runtimes can map them: a page, the rule of the ONNX specification.
const ALIGNMENT: u64 = 4096;
/// Bytes of a reference to a tensor in the data file, about: names of files are seldom longer than a hundred.
const REFERENCE: u64 = 200;
/// How much of a tensor is copied before its pages are given back.
const CHUNK: usize = 8 << 20;

/// How to write.
#[derive(Debug, Clone, Copy, Default)]
pub struct WriteOptions {
    /// Keep weights in a file beside the model: `None` does so where one file would exceed protobuf's 2 GB.
    pub external_data: Option<bool>,
}

/// Writes the model to `path`. The file appears under that name only when it is complete; the weights of a model with
/// external data stand in `path` + `.data`.
pub fn write(model: &Model, path: &Path, options: WriteOptions) -> Result<()> {
    let data_path = data_path(path);
    for p in [path, &data_path] {
        if std::fs::metadata(p).is_ok_and(|m| !m.is_file()) {
            return Err(Error::config("is a folder or device; the model needs a plain file").file(p));
        }
        if map::is_mapped(p) {
            return Err(files::over("the output", "the input").file(p));
        }
    }
    let mut encoded = encode::model(model, &[])?;
    let lengths = Lengths::of(model, &encoded)?;
    let external = options.external_data.unwrap_or(lengths.model > LARGEST_FILE);
    let data = if external { write_data(&mut encoded, &data_path)? } else { None };
    let file = Draft::new(path)?;
    let failed = |e| Error::io(path, "write the model", e);
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let lengths = if external { Lengths::of(model, &encoded)? } else { lengths };
    if lengths.model > MOST_READABLE {
        return Err(Error::unsupported(format!(
            "needs {} bytes in the model file, readers accept {MOST_READABLE}",
            lengths.model
        ))
        .file(path)
        .help(if external {
            "large tensors in attributes cannot move to a data file"
        } else {
            "allow external data"
        }));
    }
    stream(model, &encoded, &lengths, &mut out).map_err(|e| e.into_error(path))?;
    let file = out.into_inner().map_err(|e| failed(e.into_error()))?;
    // An old model beside new weights would load and be wrong: it goes before the weights change.
    if let Some(data) = data {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io(path, "replace the old file", e)),
            _ => data.publish()?,
        }
    }
    file.publish()
}

/// The bytes that [`write`] will write, both files together. No elements of tensors are computed.
pub fn written_len(model: &Model, options: WriteOptions) -> Result<u64> {
    let encoded = encode::model(model, &[])?;
    let length = Lengths::of(model, &encoded)?.model;
    if !options.external_data.unwrap_or(length > LARGEST_FILE) {
        return Ok(length);
    }
    // Tensors that move out leave the place of their elements to that of a reference, and gaps between pages.
    let moved = encoded.initializers.iter().filter_map(|i| i.raw.as_ref().map(|t| t.byte_len() as u64));
    let mut data = 0u64;
    let mut rest = length;
    for bytes in moved.filter(|bytes| *bytes >= SMALLEST_EXTERNAL as u64) {
        data = data.next_multiple_of(ALIGNMENT) + bytes;
        rest = rest.saturating_sub(bytes) + REFERENCE;
    }
    Ok(rest + data)
}

/// The encoded model in memory, for runtimes that load it from there.
pub fn to_bytes(model: &Model) -> Result<Vec<u8>> {
    in_memory(model, &encode::model(model, &[])?)
}

/// Tensors with their names.
pub type Named = Vec<(String, Tensor)>;

/// As [`to_bytes`], with further values handed out as graph outputs, in this order behind the model's own, and with the
/// large initializers that `apart` wants declared as graph inputs: their names and tensors come with it. So a runtime can
/// take weights from where they are, and no copy of all of them passes through memory.
pub fn to_bytes_and_weights(
    model: &Model,
    outputs: &[ValueId],
    apart: impl Fn(&Tensor) -> bool,
) -> Result<(Vec<u8>, Named)> {
    let mut encoded = encode::model(model, outputs)?;
    let mut weights = Vec::new();
    let wanted = |t: &mut Tensor| t.byte_len() >= SMALLEST_EXTERNAL && apart(t);
    for mut i in std::mem::take(&mut encoded.initializers) {
        match i.raw.take_if(wanted) {
            Some(tensor) => weights.push((i.proto.name().to_owned(), tensor)),
            None => encoded.initializers.push(i),
        }
    }
    let declared: HashSet<String> = encoded.graph.input.iter().map(|i| i.name().to_owned()).collect();
    let new = weights.iter().filter(|(name, _)| !declared.contains(name));
    encoded.graph.input.extend(new.map(|(name, t)| encode::input(name, t)));
    Ok((in_memory(model, &encoded)?, weights))
}

fn in_memory(model: &Model, encoded: &Encoded) -> Result<Vec<u8>> {
    let lengths = Lengths::of(model, encoded)?;
    let mut out = Vec::with_capacity(usize::try_from(lengths.model).unwrap_or(0));
    stream(model, encoded, &lengths, &mut out).map_err(|e| e.into_error(Path::new("")))?;
    Ok(out)
}

/// Where the weights of a model with external data stand that is written to `path`.
pub fn data_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".data");
    path.with_file_name(name)
}

/// Moves the large tensors out into the data file, and into the messages where they stand there. `None` if there are none.
fn write_data(encoded: &mut Encoded, data_path: &Path) -> Result<Option<Draft>> {
    let big = |i: &Initializer| i.raw.as_ref().is_some_and(|t| t.byte_len() >= SMALLEST_EXTERNAL);
    if !encoded.initializers.iter().any(big) {
        return Ok(None);
    }
    let Some(location) = data_path.file_name().and_then(|n| n.to_str()).map(str::to_owned) else {
        return Err(Error::config("is no UTF-8 name, and the model must name it").file(data_path));
    };
    let failed = |e: Failure| e.into_error(data_path);
    let mut out = BufWriter::with_capacity(1 << 20, Draft::new(data_path)?);
    let mut offset = 0u64;
    for i in encoded.initializers.iter_mut().filter(|i| big(i)) {
        let tensor = i.raw.take().expect("big tensors have elements");
        let start = offset.next_multiple_of(ALIGNMENT);
        out.write_all(&vec![0; (start - offset) as usize]).map_err(|e| failed(e.into()))?;
        write_elements(&tensor, &mut out).map_err(|e| failed(e).value(i.proto.name()))?;
        offset = start + tensor.byte_len() as u64;
        i.proto.data_location = Some(DataLocation::External.into());
        let entry = |k: &str, v: String| StringStringEntryProto { key: Some(k.into()), value: Some(v) };
        i.proto.external_data = vec![
            entry("location", location.clone()),
            entry("offset", start.to_string()),
            entry("length", tensor.byte_len().to_string()),
        ];
    }
    let file = out.into_inner().map_err(|e| failed(e.into_error().into()))?;
    Ok(Some(file))
}

/// Why streaming stopped: the disk, or the tensor that should have been written.
enum Failure {
    Io(io::Error),
    Model(Error),
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Self::Model(e)
    }
}

impl Failure {
    fn into_error(self, path: &Path) -> Error {
        match self {
            Self::Io(e) => Error::io(path, "write the file", e),
            Self::Model(e) => e,
        }
    }
}

/// Encoded lengths, which protobuf wants before the content.
struct Lengths {
    graph: u64,
    model: u64,
}

/// A tensor message up to `raw_data`, and what comes behind it: fields are written in the order of their numbers.
fn split(proto: &TensorProto) -> (TensorProto, TensorProto) {
    let behind = TensorProto {
        doc_string: proto.doc_string.clone(),
        external_data: proto.external_data.clone(),
        data_location: proto.data_location,
        metadata_props: proto.metadata_props.clone(),
        ..TensorProto::default()
    };
    let before = TensorProto {
        doc_string: None,
        external_data: Vec::new(),
        data_location: None,
        metadata_props: Vec::new(),
        ..proto.clone()
    };
    (before, behind)
}

fn field_len(tag: u32, len: u64) -> u64 {
    key_len(tag) as u64 + encoded_len_varint(len) as u64 + len
}

fn tensor_len(i: &Initializer) -> u64 {
    i.proto.encoded_len() as u64 + i.raw.as_ref().map_or(0, |t| field_len(tag::RAW_DATA, t.byte_len() as u64))
}

/// Field numbers of `proto/onnx.proto` that the streaming writer places by hand.
mod tag {
    pub(super) const MODEL_GRAPH: u32 = 7;
    pub(super) const GRAPH_NODE: u32 = 1;
    pub(super) const GRAPH_INITIALIZER: u32 = 5;
    pub(super) const RAW_DATA: u32 = 9;
}

impl Lengths {
    fn of(model: &Model, e: &Encoded) -> Result<Self> {
        let mut graph = e.graph.encoded_len() as u64;
        for &n in &e.nodes {
            graph += field_len(tag::GRAPH_NODE, encode::node(model, n)?.encoded_len() as u64);
        }
        graph += e.initializers.iter().map(|i| field_len(tag::GRAPH_INITIALIZER, tensor_len(i))).sum::<u64>();
        Ok(Self { graph, model: e.model.encoded_len() as u64 + field_len(tag::MODEL_GRAPH, graph) })
    }
}

fn stream(model: &Model, e: &Encoded, lengths: &Lengths, out: &mut impl Write) -> Result<(), Failure> {
    let m = &e.model;
    let behind = ModelProto {
        opset_import: m.opset_import.clone(),
        metadata_props: m.metadata_props.clone(),
        training_info: m.training_info.clone(),
        functions: m.functions.clone(),
        configuration: m.configuration.clone(),
        ..ModelProto::default()
    };
    let before = ModelProto {
        opset_import: Vec::new(),
        metadata_props: Vec::new(),
        training_info: Vec::new(),
        functions: Vec::new(),
        configuration: Vec::new(),
        ..m.clone()
    };
    out.write_all(&before.encode_to_vec())?;
    field(out, tag::MODEL_GRAPH, lengths.graph)?;
    for &n in &e.nodes {
        let node: NodeProto = encode::node(model, n)?;
        field(out, tag::GRAPH_NODE, node.encoded_len() as u64)?;
        out.write_all(&node.encode_to_vec())?;
    }
    let name = GraphProto { name: e.graph.name.clone(), ..GraphProto::default() };
    out.write_all(&name.encode_to_vec())?;
    for i in &e.initializers {
        field(out, tag::GRAPH_INITIALIZER, tensor_len(i))?;
        let (before, behind) = split(&i.proto);
        out.write_all(&before.encode_to_vec())?;
        if let Some(tensor) = &i.raw {
            field(out, tag::RAW_DATA, tensor.byte_len() as u64)?;
            write_elements(tensor, out).map_err(|e| match e {
                Failure::Model(e) => Failure::Model(e.value(i.proto.name())),
                io @ Failure::Io(_) => io,
            })?;
        }
        out.write_all(&behind.encode_to_vec())?;
    }
    out.write_all(&GraphProto { name: None, ..e.graph.clone() }.encode_to_vec())?;
    out.write_all(&behind.encode_to_vec())?;
    Ok(())
}

fn field(out: &mut impl Write, tag: u32, len: u64) -> io::Result<()> {
    let mut head = Vec::with_capacity(16);
    encode_key(tag, WireType::LengthDelimited, &mut head);
    encode_varint(len, &mut head);
    out.write_all(&head)
}

fn write_elements(tensor: &Tensor, out: &mut impl Write) -> Result<(), Failure> {
    let bytes = tensor.bytes()?;
    for chunk in bytes.chunks(CHUNK) {
        out.write_all(chunk)?;
        map::release(chunk);
    }
    Ok(())
}
