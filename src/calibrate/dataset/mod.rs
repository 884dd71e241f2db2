//! Calibration and evaluation data: files to tensors, one sample at a time.
//!
//! A sample is what the model is fed at once. Samples are read when they are asked for, from any thread; memory does
//! not grow with their number.

mod archive;
mod convert;
mod feed;
mod finite;
mod images;
mod npy;
mod split;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use self::{
    archive::Archive,
    convert::convert,
    feed::{Cut, Feed, Feeds, match_feeds},
    images::{Images, is_image},
};
pub use self::{
    finite::NotFinite,
    images::{Channels, ImageOptions, Layout},
    split::{Split, split, split_of},
};
use super::observers::TensorStats;
use crate::{
    diagnostics::{Diagnostic, count},
    error::{Error, Result},
    ir::{DType, Dim, Model, Tensor},
};

/// What a model takes under one name.
#[derive(Debug, Clone, PartialEq)]
pub struct InputSpec {
    /// The input's name.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its shape; `None` where not even the rank is known.
    pub dims: Option<Vec<Dim>>,
}

impl InputSpec {
    /// The inputs that must be fed to a model, in its order.
    pub fn of_model(model: &Model) -> Result<Vec<Self>> {
        let spec = |v| {
            let value = model.value(v);
            let ty = value.ty.as_ref();
            let dtype = ty.and_then(|t| t.dtype()).ok_or_else(|| {
                Error::unsupported("this model input is no tensor of a known type").value(value.name())
            })?;
            Ok(Self { name: value.name().into(), dtype, dims: ty.and_then(|t| t.shape()).map(|s| s.dims.clone()) })
        };
        model.required_inputs().into_iter().map(spec).collect()
    }
}

/// What cannot be seen from the files.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DatasetOptions {
    /// How pictures become numbers.
    pub images: ImageOptions,
}

/// Samples for a model.
pub struct Dataset {
    specs: Vec<InputSpec>,
    source: Source,
    notes: Vec<Diagnostic>,
}

enum Source {
    /// Arrays, one file after the other.
    Files {
        files: Vec<DataFile>,
        opened: Mutex<Vec<(usize, Arc<Archive>)>>,
    },
    Images(Images),
}

/// A file of arrays and how its samples are cut. It is opened when they are needed.
struct DataFile {
    path: PathBuf,
    /// Samples in the files before.
    before: usize,
    feeds: Feeds,
}

/// Files kept open: threads work on neighbouring samples.
const OPEN_FILES: usize = 4;

impl Dataset {
    /// Opens the data for a model with these inputs: a `.npz` or `.npy` file, or a folder of such files or of pictures.
    ///
    /// In a file, samples lie along axis 0. An array of the input's own rank gives `[i:i+1]` (batches of the input's
    /// size, if that is fixed), one rank more gives `[i]`, a scalar goes to every sample. In a folder each `.npy` file
    /// is one sample, and so is a `.npz` file whose arrays lack the batch axis. Errors name the input, what it takes and what was found.
    pub fn open(path: &Path, specs: &[InputSpec], options: &DatasetOptions) -> Result<Self> {
        if specs.is_empty() {
            return Err(Error::data("the model has no inputs to feed"));
        }
        let mut notes = Vec::new();
        let meta = fs::metadata(path).map_err(|e| Error::io(path, "open the data", e))?;
        let source = if meta.is_dir() {
            folder(path, specs, options, &mut notes)?
        } else if is_image(path) {
            images(vec![path.into()], specs, options)?
        } else {
            files(vec![path.into()], specs, Cut::Rows, &mut notes)?
        };
        match &source {
            Source::Images(_) => notes.extend(options.images.diagnose()),
            Source::Files { .. } => notes.extend(options.images.idle()),
        }
        let data = Self { specs: specs.to_vec(), source, notes };
        if data.len() == 0 {
            return Err(Error::data("the data holds no samples").file(path));
        }
        Ok(data)
    }

    /// Number of samples; at least 1.
    #[expect(clippy::len_without_is_empty, reason = "empty data is refused")]
    pub fn len(&self) -> usize {
        match &self.source {
            Source::Files { files, .. } => files.last().map_or(0, |f| f.before + f.feeds.len),
            Source::Images(images) => images.len(),
        }
    }

    /// The inputs that a sample feeds, in order.
    pub fn specs(&self) -> &[InputSpec] {
        &self.specs
    }

    /// What was noticed when the data was opened.
    pub fn notes(&self) -> &[Diagnostic] {
        &self.notes
    }

    /// One tensor for each input, in the order of the specs and of their types. `index` must be below [`Self::len`].
    pub fn sample(&self, index: usize) -> Result<Vec<Tensor>> {
        if index >= self.len() {
            return Err(Error::bug(format!("sample {index} of {}", self.len())));
        }
        match &self.source {
            Source::Images(images) => Ok(vec![images.sample(index)?]),
            Source::Files { .. } => {
                let (file, archive, at) = self.locate(index)?;
                let read = |(spec, feed): (&InputSpec, &Feed)| {
                    read(&archive, feed, at, spec.dtype).map_err(|e| e.file(archive.path()).value(&spec.name))
                };
                self.specs.iter().zip(&file.feeds.inputs).map(read).collect()
            }
        }
    }

    /// Whether every sample has labels.
    pub fn has_labels(&self) -> bool {
        match &self.source {
            Source::Files { files, .. } => files.iter().all(|f| f.feeds.labels.is_some()),
            Source::Images(_) => false,
        }
    }

    /// Whether the labels are called so, and are not just an array by a name that labels often have.
    pub fn surely_labels(&self) -> bool {
        match &self.source {
            Source::Files { files, .. } => files.iter().all(|f| !f.feeds.ambiguous_labels),
            Source::Images(_) => false,
        }
    }

    /// The labels of a sample, in their own type: axis 0 are the rows of its batch. `None` without labels.
    pub fn labels(&self, index: usize) -> Result<Option<Tensor>> {
        if !self.has_labels() || index >= self.len() {
            return Ok(None);
        }
        let (file, archive, at) = self.locate(index)?;
        let Some(feed) = &file.feeds.labels else { return Ok(None) };
        let array = archive.arrays().get(feed.array);
        let dtype = array.map_or(DType::Int64, |a| a.header.dtype);
        read(&archive, feed, at, dtype).map(Some)
    }

    /// Statistics of the floating point inputs over some samples, by input name, to judge the data by.
    pub fn input_stats(&self, samples: &[usize]) -> Result<Vec<(String, TensorStats)>> {
        let mut stats = vec![TensorStats::default(); self.specs.len()];
        for &i in samples {
            for (stats, tensor) in stats.iter_mut().zip(self.sample(i)?) {
                if tensor.dtype().is_float() {
                    stats.update(&tensor.to_f32()?);
                }
            }
        }
        let named = self.specs.iter().zip(stats).filter(|(spec, _)| spec.dtype.is_float());
        Ok(named.map(|(spec, stats)| (spec.name.clone(), stats)).collect())
    }

    /// The file of a sample, opened, and the sample's place in it.
    fn locate(&self, index: usize) -> Result<(&DataFile, Arc<Archive>, usize)> {
        let Source::Files { files, opened } = &self.source else {
            return Err(Error::bug("pictures are not in an archive"));
        };
        let number = files.partition_point(|f| f.before + f.feeds.len <= index);
        let file = &files[number];
        let mut opened = opened.lock().unwrap_or_else(PoisonError::into_inner);
        let at = index - file.before;
        if let Some((_, archive)) = opened.iter().find(|(n, _)| *n == number) {
            return Ok((file, archive.clone(), at));
        }
        let archive = Arc::new(Archive::open(&file.path)?);
        if opened.len() == OPEN_FILES {
            opened.remove(0);
        }
        opened.push((number, archive.clone()));
        Ok((file, archive, at))
    }
}

/// A sample of an array, as an input of `dtype` takes it.
fn read(archive: &Archive, feed: &Feed, at: usize, dtype: DType) -> Result<Tensor> {
    let changed = || Error::data("the file is not what it was when it was opened");
    let header = &archive.arrays().get(feed.array).ok_or_else(changed)?.header;
    let count: usize = feed.dims.iter().product();
    let start = if feed.rows == 0 { 0 } else { at * count };
    if start + count > header.dims.iter().product() {
        return Err(changed());
    }
    let bytes = convert(archive.read(feed.array, start, count)?, header.dtype, dtype)?;
    Tensor::new(dtype, feed.dims.clone(), bytes)
}

/// Opens each file once to see what it holds.
fn files(paths: Vec<PathBuf>, specs: &[InputSpec], how: Cut, notes: &mut Vec<Diagnostic>) -> Result<Source> {
    let (mut files, mut before) = (Vec::new(), 0);
    for path in paths {
        let mut own = Vec::new();
        let feeds = match_feeds(&Archive::open(&path)?, specs, how, &mut own).map_err(|e| e.file(&path))?;
        for note in own {
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
        let len = feeds.len;
        files.push(DataFile { path, before, feeds });
        before += len;
    }
    let labelled = files.iter().filter(|f| f.feeds.labels.is_some()).count();
    if (1..files.len()).contains(&labelled) {
        let text = format!("{labelled} of {} have labels, so accuracy is not measured", count(files.len(), "file"));
        notes.push(Diagnostic::warning("labels_missing", text));
    }
    Ok(Source::Files { files, opened: Mutex::default() })
}

fn images(paths: Vec<PathBuf>, specs: &[InputSpec], options: &DatasetOptions) -> Result<Source> {
    match specs {
        [one] => Ok(Source::Images(Images::new(paths, one, &options.images)?)),
        many => Err(Error::data(format!("pictures feed one input, the model has {}", many.len()))
            .help("give the data as .npz, one array for each input")),
    }
}

/// The files that data at this path consists of: itself, or what a folder holds of arrays and pictures.
pub fn files_of(path: &Path) -> Vec<PathBuf> {
    if !path.is_dir() {
        return vec![path.into()];
    }
    let mut all = Vec::new();
    // What cannot be listed is said when the data is opened.
    let _ = walk(path, 0, &mut all);
    all.retain(|p| has_extension(p, "npz") || has_extension(p, "npy") || is_image(p));
    all
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension))
}

/// A folder holds either arrays or pictures, in the order of their names; pictures also in folders below.
fn folder(path: &Path, specs: &[InputSpec], options: &DatasetOptions, notes: &mut Vec<Diagnostic>) -> Result<Source> {
    let mut all = Vec::new();
    walk(path, 0, &mut all)?;
    all.sort();
    let pick = |keep: &dyn Fn(&Path) -> bool| -> Vec<PathBuf> { all.iter().filter(|p| keep(p)).cloned().collect() };
    let (npz, npy, pictures) =
        (pick(&|p| has_extension(p, "npz")), pick(&|p| has_extension(p, "npy")), pick(&is_image));
    let kinds = [npz.len(), npy.len(), pictures.len()];
    if kinds.iter().filter(|n| **n > 0).count() > 1 {
        let text = format!(
            "the folder mixes {}, {} and {}",
            count(kinds[0], ".npz file"),
            count(kinds[1], ".npy file"),
            count(kinds[2], "picture")
        );
        return Err(Error::data(text).file(path).help("give each kind a folder of its own"));
    }
    let used = kinds.iter().sum::<usize>();
    if used == 0 {
        return Err(Error::data(format!("of {} here none is data", count(all.len(), "file")))
            .file(path)
            .help("use .npz, .npy, .jpg, .png, .bmp or .webp files"));
    }
    if used < all.len() {
        notes.push(Diagnostic::note("files_left_out", left_out(all.len() - used)));
    }
    if !pictures.is_empty() {
        images(pictures, specs, options)
    } else if npy.is_empty() {
        files(npz, specs, Cut::Either, notes)
    } else if specs.len() == 1 {
        files(npy, specs, Cut::Whole, notes)
    } else {
        Err(Error::data(format!("a folder of .npy files feeds one input, the model has {}", specs.len()))
            .file(path)
            .help("save one .npz file for each sample, with one array for each input"))
    }
}

/// Every file below a folder, a few levels deep; hidden ones left out.
fn walk(path: &Path, depth: usize, into: &mut Vec<PathBuf>) -> Result<()> {
    let failed = |e| Error::io(path, "list the folder", e);
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let below = entry.path();
        if !below.is_dir() {
            into.push(below);
        } else if depth < 4 {
            walk(&below, depth + 1, into)?;
        }
    }
    Ok(())
}

fn left_out(files: usize) -> String {
    format!("{} of the folder {} no data", count(files, "file"), if files == 1 { "is" } else { "are" })
}

#[cfg(test)]
mod tests;
