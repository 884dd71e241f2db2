//! Memory maps of model files, and giving their pages back.
#![allow(unsafe_code)]

use std::{fs::File, ops::Range, path::Path, sync::Mutex};

use bytes::Bytes;
use memmap2::Mmap;

use crate::{
    error::{Error, Result},
    files::Identity,
    ir::{Tensor, TensorData},
};

/// Address ranges of live maps with the files behind them. [`release`] asks here first: the same advice on ordinary
/// memory would destroy it.
static LIVE: Mutex<Vec<(Range<usize>, Identity)>> = Mutex::new(Vec::new());

struct Mapped(Mmap);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let start = self.0.as_ptr() as usize;
        live().retain(|(r, _)| r.start != start);
    }
}

fn live() -> std::sync::MutexGuard<'static, Vec<(Range<usize>, Identity)>> {
    LIVE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The file's content as a window of memory; nothing is read yet.
pub(super) fn map(path: &Path) -> Result<Bytes> {
    // Before opening: opening a pipe waits for its writer.
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path, "open the file", e))?;
    if meta.is_dir() {
        return Err(Error::data("is a folder, not a model file").file(path).help("name the .onnx file in it"));
    }
    if !meta.is_file() {
        return Err(Error::data("is a pipe or device; a model must be a plain file").file(path));
    }
    let file = File::open(path).map_err(|e| Error::io(path, "open the file", e))?;
    if meta.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the map is read only. A file that another process cuts short while we read raises SIGBUS, as for every
    // program that maps files; qonvert itself never writes into a file in place.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, "map the file", e))?;
    let start = map.as_ptr() as usize;
    live().push((start..start + map.len(), Identity::of(path)));
    Ok(Bytes::from_owner(Mapped(map)))
}

/// Whether a model that is in memory has elements in this file.
pub fn is_mapped(path: &Path) -> bool {
    let identity = Identity::of(path);
    live().iter().any(|(_, i)| *i == identity)
}

/// [`release`] for all of a tensor's elements, where these stand in a file.
pub(crate) fn give_back(tensor: &Tensor) {
    if let TensorData::Bytes(bytes) = tensor.data() {
        release(bytes);
    }
}

/// Tells the system that these bytes are not needed for now, if they are a window of a map: their pages no longer count
/// as this process's memory, and are read again from the file when they are touched.
pub(crate) fn release(window: &[u8]) {
    let at = window.as_ptr() as usize;
    let live = live();
    let Some((range, _)) = live.iter().find(|(r, _)| r.contains(&at) && at + window.len() <= r.end) else {
        return;
    };
    #[cfg(unix)]
    {
        let page = page_size();
        // Whole pages inside the window; a partial page may hold a neighbour that somebody is reading.
        let start = at.next_multiple_of(page);
        let end = (at + window.len()) / page * page;
        if start < end {
            // SAFETY: the range lies inside a live, read-only, file-backed map (checked above, and the lock keeps it
            // alive), so that dropping its pages loses nothing.
            unsafe {
                let whole = std::slice::from_raw_parts(range.start as *const u8, range.len());
                let _ = advise(whole, start - range.start, end - start);
            }
        }
    }
    let _ = range;
}

#[cfg(unix)]
fn page_size() -> usize {
    // SAFETY: asks for a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(page).unwrap_or(4096).max(1)
}

/// # Safety
/// `whole` must be a read-only file-backed map that starts at a page.
#[cfg(unix)]
unsafe fn advise(whole: &[u8], offset: usize, len: usize) -> std::io::Result<()> {
    // SAFETY: the caller's promise; madvise with MADV_DONTNEED on such a map only drops clean pages.
    let done = unsafe { libc::madvise(whole.as_ptr().add(offset) as *mut libc::c_void, len, libc::MADV_DONTNEED) };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
