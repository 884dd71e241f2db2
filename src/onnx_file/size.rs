//! How much room a model takes on disk.

use std::path::Path;

use crate::ir::Model;

/// Bytes on disk: of the file, and of the constants if they are more than fit in it, so that they must stand in others.
pub fn size_on_disk(path: &Path, model: &Model) -> u64 {
    let file = std::fs::metadata(path).map_or(0, |m| m.len());
    let constants = model.value_ids().into_iter().filter_map(|v| model.value(v).initializer());
    let constants: u64 = constants.map(|t| t.byte_len() as u64).sum();
    if constants > file { file + constants } else { file }
}
