//! A model as ONNX Runtime loads it: bytes in memory, or a file whose weights lie beside it.

use std::path::PathBuf;

use super::failure::{Doing, guard};
use crate::{
    error::Result,
    files::Scratch,
    ir::{Model, Tensor},
    onnx_file::{self, WriteOptions},
};
use ort::session::{Session, builder::SessionBuilder};

/// Models with more weights go through a file, from which the runtime maps them: bytes would be copied several times, and
/// protobuf ends at 2 GB.
const MOST_IN_MEMORY: usize = 64 << 20;

/// Loaded as often as there are sessions.
pub(super) enum Source {
    Bytes(Vec<u8>),
    File {
        model: PathBuf,
        /// Removed with this value.
        _folder: Scratch,
    },
}

impl Source {
    /// Nodes without a name get their label, so that errors, profiles and optimized graphs can name them.
    pub(super) fn new(model: &Model) -> Result<Self> {
        let mut named = model.clone();
        for n in model.all_nodes() {
            if model.node(n).name.as_deref().is_none_or(str::is_empty) {
                named.node_mut(n).name = Some(model.node_label(n));
            }
        }
        let model = &named;
        if weights(model) <= MOST_IN_MEMORY {
            return onnx_file::to_bytes(model).map(Self::Bytes);
        }
        let folder = Scratch::new()?;
        let path = folder.path().join("model.onnx");
        onnx_file::write(model, &path, WriteOptions { external_data: Some(true) })?;
        Ok(Self::File { model: path, _folder: folder })
    }

    pub(super) fn load(&self, mut builder: SessionBuilder) -> Result<Session> {
        guard(Doing::Load, || match self {
            Self::Bytes(bytes) => builder.commit_from_memory(bytes),
            Self::File { model, .. } => builder.commit_from_file(model),
        })
    }
}

/// Bytes of all weights.
pub(super) fn weights(model: &Model) -> usize {
    model.value_ids().iter().filter_map(|&v| model.value(v).initializer()).map(Tensor::byte_len).sum()
}
