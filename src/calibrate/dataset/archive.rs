//! `.npz` and `.npy` files: arrays by name, read in pieces.
//!
//! Stored members are read in place. A deflated member can only be inflated from its start, so it is inflated once:
//! into memory if it is small, else into a temporary file. Memory does not grow with the number of samples.

use std::{
    fs::File,
    io::{BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use zip::{CompressionMethod, ZipArchive};

use super::npy::Header;
use crate::error::{Error, Result};

/// An inflated array of up to this many bytes is kept in memory.
const IN_MEMORY: u64 = 64 << 20;

/// A file of arrays.
pub struct Archive {
    path: PathBuf,
    arrays: Vec<Array>,
}

/// One array of a file.
pub struct Array {
    /// Its name in the file; empty for a `.npy` file.
    pub name: String,
    /// What it holds.
    pub header: Header,
    place: Place,
    source: Mutex<Option<Source>>,
}

/// Where the elements are in the file.
enum Place {
    /// From this byte on, as they are.
    At(u64),
    /// In this member of the zip file, deflated.
    Deflated(usize),
}

/// Elements ready to be read, in row-major order.
enum Source {
    Memory(Vec<u8>),
    File(File, u64),
}

impl Archive {
    /// Opens a `.npz` or `.npy` file and reads the headers of its arrays.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(|e| Error::io(path, "open the data", e))?;
        let mut magic = [0u8; 6];
        let is_npy = file.read_exact(&mut magic).is_ok() && &magic == b"\x93NUMPY";
        file.rewind().map_err(|e| Error::io(path, "read the data", e))?;
        let arrays = if is_npy { vec![single(file)] } else { members(file) };
        let arrays = arrays.into_iter().collect::<Result<Vec<_>>>().map_err(|e| e.file(path))?;
        Ok(Self { path: path.into(), arrays })
    }

    /// The arrays in the order of the file.
    pub fn arrays(&self) -> &[Array] {
        &self.arrays
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes of `count` elements from element `start` on, in row-major order, little-endian.
    pub fn read(&self, array: usize, start: usize, count: usize) -> Result<Vec<u8>> {
        let array = &self.arrays[array];
        array.read(&self.path, start, count).map_err(|e| e.file(&self.path))
    }
}

/// The array of a `.npy` file.
fn single(file: File) -> Result<Array> {
    let len = file.metadata().map_err(|e| Error::data("its size is unknown").source(e))?.len();
    let header = Header::read(&mut BufReader::new(file))?;
    let place = Place::At(header.len);
    Array::new(String::new(), header, place, len)
}

/// The arrays of a `.npz` file.
fn members(file: File) -> Vec<Result<Array>> {
    let mut zip = match ZipArchive::new(BufReader::new(file)) {
        Ok(zip) => zip,
        Err(e) => {
            return vec![Err(Error::data("it is neither a .npy array nor a complete .npz archive")
                .source(e)
                .help("was it cut off while it was copied?"))];
        }
    };
    (0..zip.len())
        .map(|index| {
            let broken = |e| Error::data(format!("member {index} of the archive cannot be read")).source(e);
            let mut member = zip.by_index(index).map_err(broken)?;
            if member.encrypted() {
                return Err(Error::data(format!("its array {:?} is encrypted", member.name())));
            }
            let name = member.name().strip_suffix(".npy").unwrap_or(member.name()).to_string();
            let (start, size, method) = (member.data_start(), member.size(), member.compression());
            let header = Header::read(&mut member).map_err(|e| about(&name, e))?;
            let place = match method {
                CompressionMethod::Stored => Place::At(start + header.len),
                _ => Place::Deflated(index),
            };
            Array::new(name, header, place, size)
        })
        .collect()
}

fn called(name: &str) -> String {
    if name.is_empty() { "the array".into() } else { format!("array {name:?}") }
}

/// Puts the array's name into an error about its header.
fn about(name: &str, e: Error) -> Error {
    let named = Error::data(format!("array {name:?}: {}", e.message()));
    match e.help_text() {
        Some(help) => named.help(help),
        None => named,
    }
}

impl Array {
    /// How messages call it: a `.npy` file has only one, without a name.
    pub fn called(&self) -> String {
        called(&self.name)
    }

    /// Checks that `size` bytes can hold header and elements.
    fn new(name: String, header: Header, place: Place, size: u64) -> Result<Self> {
        let need = header.len + header.byte_len()?;
        if size < need {
            let text = format!("{} of shape {:?} needs {need} bytes, the file has {size}", called(&name), header.dims);
            return Err(Error::data(text).help("was it cut off while it was copied?"));
        }
        Ok(Self { name, header, place, source: Mutex::new(None) })
    }

    fn read(&self, path: &Path, start: usize, count: usize) -> Result<Vec<u8>> {
        let element = self.header.element_len();
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        if source.is_none() {
            *source = Some(self.prepare(path)?);
        }
        let mut bytes = match source.as_mut() {
            Some(Source::Memory(all)) => all[start * element..(start + count) * element].to_vec(),
            Some(Source::File(file, offset)) => {
                let mut bytes = vec![0; count * element];
                file.seek(SeekFrom::Start(*offset + (start * element) as u64))
                    .and_then(|_| file.read_exact(&mut bytes))
                    .map_err(|e| Error::data(format!("{} cannot be read", self.called())).source(e))?;
                bytes
            }
            None => return Err(Error::bug("a source was just made")),
        };
        drop(source);
        if self.header.big_endian {
            bytes.chunks_exact_mut(element).for_each(<[u8]>::reverse);
        }
        Ok(bytes)
    }

    /// Makes the elements readable piece by piece.
    fn prepare(&self, path: &Path) -> Result<Source> {
        let file = File::open(path).map_err(|e| Error::io(path, "open the data", e))?;
        let reorder = self.header.fortran && self.header.dims.len() > 1;
        let source = match self.place {
            Place::At(offset) => Source::File(file, offset),
            Place::Deflated(index) => self.inflate(file, index)?,
        };
        if !reorder {
            return Ok(source);
        }
        // Rare enough to pay for it with memory once.
        let all = match source {
            Source::Memory(all) => all,
            Source::File(mut file, offset) => {
                let mut all = vec![0; self.header.byte_len()? as usize];
                file.seek(SeekFrom::Start(offset))
                    .and_then(|_| file.read_exact(&mut all))
                    .map_err(|e| Error::data(format!("{} cannot be read", self.called())).source(e))?;
                all
            }
        };
        keep(row_major(&all, &self.header))
    }

    fn inflate(&self, file: File, index: usize) -> Result<Source> {
        let broken = || format!("array {:?} cannot be inflated", self.name);
        let mut zip = ZipArchive::new(BufReader::new(file)).map_err(|e| Error::data(broken()).source(e))?;
        let mut member = zip.by_index(index).map_err(|e| Error::data(broken()).source(e))?;
        Header::read(&mut member)?;
        let need = self.header.byte_len()?;
        if need <= IN_MEMORY {
            let mut bytes = Vec::with_capacity(need as usize);
            member.by_ref().take(need).read_to_end(&mut bytes).map_err(|e| Error::data(broken()).source(e))?;
            // Reading to the end checks the checksum.
            std::io::copy(&mut member, &mut std::io::sink()).map_err(|e| Error::data(broken()).source(e))?;
            return match bytes.len() as u64 == need {
                true => Ok(Source::Memory(bytes)),
                false => Err(Error::data(format!("array {:?} has {} of {need} bytes", self.name, bytes.len()))),
            };
        }
        let full = |e| Error::data("the inflated data does not fit the folder for temporary files").source(e);
        let mut to = tempfile::tempfile().map_err(full)?;
        let mut left = need;
        let mut buffer = vec![0; 1 << 20];
        while left > 0 {
            let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let got = member.read(&mut buffer[..want]).map_err(|e| Error::data(broken()).source(e))?;
            if got == 0 {
                return Err(Error::data(format!("array {:?} lacks {left} of {need} bytes", self.name)));
            }
            to.write_all(&buffer[..got]).map_err(full)?;
            left -= got as u64;
        }
        std::io::copy(&mut member, &mut std::io::sink()).map_err(|e| Error::data(broken()).source(e))?;
        Ok(Source::File(to, 0))
    }
}

/// Keeps bytes in memory if they are few, else in a temporary file.
fn keep(bytes: Vec<u8>) -> Result<Source> {
    if bytes.len() as u64 <= IN_MEMORY {
        return Ok(Source::Memory(bytes));
    }
    let full = |e| Error::data("the data does not fit the folder for temporary files").source(e);
    let mut to = tempfile::tempfile().map_err(full)?;
    to.write_all(&bytes).map_err(full)?;
    Ok(Source::File(to, 0))
}

/// The elements of an array whose first index runs fastest, with the last running fastest.
fn row_major(bytes: &[u8], header: &Header) -> Vec<u8> {
    let element = header.element_len();
    let dims = &header.dims;
    let mut out = Vec::with_capacity(bytes.len());
    let mut index = vec![0usize; dims.len()];
    for _ in 0..bytes.len() / element {
        let at = index.iter().zip(dims).rev().fold(0, |at, (&i, &d)| at * d + i);
        out.extend_from_slice(&bytes[at * element..(at + 1) * element]);
        for (i, &d) in index.iter_mut().zip(dims).rev() {
            *i += 1;
            if *i < d {
                break;
            }
            *i = 0;
        }
    }
    out
}
