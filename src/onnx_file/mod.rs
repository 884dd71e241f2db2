//! Model files. Alone sees the protobuf types, and alone opens model files.
//!
//! Reading maps the file: weights in `raw_data` and in external files stay windows of the map. Writing streams one tensor
//! after the other into a temporary file that gets the final name when it is complete.

mod encode;
mod external_data;
mod map;
mod read;
mod size;
mod sniff;
mod tensors;
mod write;

pub use map::is_mapped;
pub(crate) use map::{give_back, release};
pub use read::{ReadOptions, from_bytes, read, read_with};
pub use size::size_on_disk;
pub use write::{Named, WriteOptions, data_path, to_bytes, to_bytes_and_weights, write, written_len};

/// The generated protobuf types; the schema is `proto/onnx.proto`.
#[allow(missing_docs, clippy::pedantic, clippy::all)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}

/// The encoded descriptor set of the schema that the types were generated from.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/onnx.descriptors"));

/// The newest IR version that the schema covers.
pub const NEWEST_IR_VERSION: i64 = proto::Version::IrVersion as i64;

fn pairs(entries: &[proto::StringStringEntryProto]) -> Vec<(String, String)> {
    entries.iter().map(|e| (e.key().to_owned(), e.value().to_owned())).collect()
}

fn entries(pairs: &[(String, String)]) -> Vec<proto::StringStringEntryProto> {
    let entry =
        |(k, v): &(String, String)| proto::StringStringEntryProto { key: Some(k.clone()), value: Some(v.clone()) };
    pairs.iter().map(entry).collect()
}
