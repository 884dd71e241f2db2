//! Elements in files beside the model: reading with the rule that they must lie inside the model's folder.

use std::{
    collections::HashMap,
    path::{Component, Path, PathBuf},
};

use bytes::Bytes;

use super::{map, proto::StringStringEntryProto};
use crate::error::{Error, Result};

/// The external files of one model, each mapped once.
pub(super) struct External {
    folder: PathBuf,
    maps: HashMap<String, Bytes>,
}

impl External {
    /// For a model in `folder`.
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), maps: HashMap::new() }
    }

    /// The window that a tensor's `external_data` entries describe, `want` bytes long.
    pub(super) fn window(&mut self, entries: &[StringStringEntryProto], want: usize) -> Result<Bytes> {
        let get = |key: &str| entries.iter().find(|e| e.key() == key).map(StringStringEntryProto::value);
        let number = |key: &str| {
            get(key)
                .map(|v| {
                    let wrong = || Error::malformed(format!("external data has {key} {v:?}, which is no byte count"));
                    v.parse::<usize>().map_err(|_| wrong())
                })
                .transpose()
        };
        let location = get("location").ok_or_else(|| Error::malformed("external data has no location"))?;
        let offset = number("offset")?.unwrap_or(0);
        let length = number("length")?.unwrap_or(want);
        if length != want {
            return Err(Error::malformed(format!(
                "external data has length {length}, the tensor's type and shape need {want} bytes"
            )));
        }
        let file = self.open(location)?;
        match offset.checked_add(length).filter(|&end| end <= file.len()) {
            Some(end) => Ok(file.slice(offset..end)),
            None => Err(Error::malformed(format!(
                "external data at offset {offset} with length {length} ends behind {location:?}, which has {} bytes",
                file.len()
            ))),
        }
    }

    fn open(&mut self, location: &str) -> Result<Bytes> {
        if let Some(bytes) = self.maps.get(location) {
            return Ok(bytes.clone());
        }
        let bytes = map::map(&self.resolve(location)?)?;
        self.maps.insert(location.to_owned(), bytes.clone());
        Ok(bytes)
    }

    /// The path of a location; refused where it leads out of the model's folder by `..`, as an absolute path, or
    /// through a link.
    fn resolve(&self, location: &str) -> Result<PathBuf> {
        let refuse = |why: &str| {
            Err(Error::malformed(format!("external data location {location:?} {why}"))
                .help("external data must lie in the model's own folder; move the file there and name it relatively"))
        };
        let relative = Path::new(location);
        let plain = |c: Component| matches!(c, Component::Normal(_) | Component::CurDir);
        if location.is_empty() || !relative.components().all(plain) {
            return refuse("leads out of the model's folder");
        }
        let path = self.folder.join(relative);
        let real = path.canonicalize().map_err(|e| Error::io(&path, "open the external data", e))?;
        let home = self.folder.canonicalize().map_err(|e| Error::io(&self.folder, "open the model's folder", e))?;
        if !real.starts_with(&home) {
            return refuse("is a link that leads out of the model's folder");
        }
        Ok(real)
    }
}
