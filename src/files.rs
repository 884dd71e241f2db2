//! Files that a run reads and writes: none of them is written over by mistake, and none is ever half-written.

use std::{
    fmt, fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tempfile::{NamedTempFile, TempDir};

use crate::error::{Error, Result};

/// All files of a run, each with the words by which its user knows it (`--report`). [`Files::check`] is for the time
/// before the work.
#[derive(Debug, Clone, Default)]
pub struct Files {
    reads: Vec<(String, PathBuf)>,
    writes: Vec<(String, PathBuf)>,
}

impl Files {
    /// A file that is read.
    pub fn read(&mut self, called: impl fmt::Display, path: impl Into<PathBuf>) {
        self.reads.push((called.to_string(), path.into()));
    }

    /// A file that is written.
    pub fn write(&mut self, called: impl fmt::Display, path: impl Into<PathBuf>) {
        self.writes.push((called.to_string(), path.into()));
    }

    /// Takes in the files of another list.
    pub fn extend(&mut self, other: &Self) {
        self.reads.extend(other.reads.iter().cloned());
        self.writes.extend(other.writes.iter().cloned());
    }

    /// The files that are written.
    pub fn written(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.writes.iter().map(|(called, path)| (called.as_str(), path.as_path()))
    }

    /// Refuses to write over what is read, to write two things to one place, and to write where nothing can be written.
    /// Files are told apart by what they are, not by how their paths are spelled.
    pub fn check(&self) -> Result<()> {
        let writes: Vec<(&str, &Path, Identity)> =
            self.written().filter(|(_, path)| !is_sink(path)).map(|(called, p)| (called, p, Identity::of(p))).collect();
        for (i, (called, path, identity)) in writes.iter().enumerate() {
            if let Some((other, ..)) = writes[..i].iter().find(|w| w.2 == *identity) {
                return Err(Error::config(format!("{other} and {called} are both to be written to this file"))
                    .file(path)
                    .help("give each a file of its own"));
            }
        }
        // Data may be many thousand files, and what is not there yet is none of them.
        let there: Vec<_> = writes.iter().filter(|(_, path, _)| path.exists()).collect();
        if !there.is_empty() {
            for (called, path) in &self.reads {
                let identity = Identity::of(path);
                if let Some((writer, to, _)) = there.iter().find(|w| w.2 == identity) {
                    return Err(over(writer, called).file(to));
                }
            }
        }
        writes.iter().try_for_each(|(called, path, _)| check_place(called, path))
    }
}

/// The error for a file that would be written over.
pub fn over(writer: &str, reader: &str) -> Error {
    Error::config(format!("is read as {reader}; writing {writer} over it would lose it")).help("choose another path")
}

/// What a path leads to, whatever its spelling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity(Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// Device and number of a file that is there: also the same through another link.
    #[cfg(unix)]
    Inode(u64, u64),
    Path(PathBuf),
}

impl Identity {
    /// The identity of the file at this path, or of the one that would come to be there.
    pub fn of(path: &Path) -> Self {
        #[cfg(unix)]
        if let Ok(meta) = fs::metadata(path) {
            use std::os::unix::fs::MetadataExt;
            return Self(Kind::Inode(meta.dev(), meta.ino()));
        }
        let named = || path.file_name().and_then(|name| folder(path).canonicalize().ok().map(|f| f.join(name)));
        Self(Kind::Path(path.canonicalize().ok().or_else(named).unwrap_or_else(|| path.to_owned())))
    }
}

/// Whether it is a pipe, a terminal or another device: nothing is lost there, and it cannot be replaced.
fn is_sink(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir())
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether a file can come to be at this path.
fn check_place(called: &str, path: &Path) -> Result<()> {
    if path.is_dir() || path.file_name().is_none() {
        return Err(Error::config(format!("{called} names a folder; it needs a file"))
            .file(path)
            .help("name a file in it"));
    }
    let at = folder(path);
    if !at.is_dir() {
        let text = format!("there is no folder {:?} for {called}", at.display().to_string());
        return Err(Error::config(text).file(path).help("make the folder first"));
    }
    Draft::new(path).map(drop)
}

/// Drafts and scratch folders that are there now, for [`discard_drafts`].
static DRAFTS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn drafts() -> MutexGuard<'static, Vec<PathBuf>> {
    DRAFTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes files that are not complete, and scratch folders. For programs that are about to end in the middle of the work.
pub fn discard_drafts() {
    remove(drafts().drain(..));
}

fn remove(paths: impl Iterator<Item = PathBuf>) {
    for path in paths {
        // What is gone already needs no removing, and nobody is left to be told of the rest.
        if path.is_dir() {
            // Again if another thread puts a file into it meanwhile.
            let _ = (0..3).any(|_| fs::remove_dir_all(&path).is_ok());
        } else {
            let _ = fs::remove_file(path);
        }
    }
}

/// A folder for files that only this run needs. It is removed with all that is in it.
#[derive(Debug)]
pub struct Scratch(TempDir);

impl Scratch {
    /// A new one where the system keeps such things.
    pub fn new() -> Result<Self> {
        let mut all = drafts();
        let made = tempfile::Builder::new().prefix("qonvert-").tempdir();
        let folder = made.map_err(|e| Error::io(&std::env::temp_dir(), "make a folder for a while", e))?;
        all.push(folder.path().to_owned());
        Ok(Self(folder))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Its files go now, the empty folder when the field is dropped.
        remove(std::iter::once(self.path().to_owned()));
        forget(self.path());
    }
}

/// A file in the making, beside the place where it will be. It is removed unless it is published.
#[derive(Debug)]
pub struct Draft {
    /// `None` once it is published.
    file: Option<NamedTempFile>,
    path: PathBuf,
}

impl Draft {
    /// A draft of the file at `path`.
    pub fn new(path: &Path) -> Result<Self> {
        let folder = folder(path);
        // Held until the draft is listed, so that none is missed by a program that is ending.
        let mut all = drafts();
        let file = tempfile::Builder::new().prefix(".qonvert-").suffix(".tmp").tempfile_in(folder).map_err(|e| {
            let missing = e.kind() == io::ErrorKind::NotFound;
            let e = Error::io(path, "create a file in the output folder", e);
            if missing { e.help(format!("make the folder {:?} first", folder.display().to_string())) } else { e }
        })?;
        all.push(file.path().to_owned());
        Ok(Self { file: Some(file), path: path.to_owned() })
    }

    /// Gives the file its name, in place of what was there.
    pub fn publish(mut self) -> Result<()> {
        let Some(file) = self.file.take() else { return Err(Error::bug("a draft is published once").file(&self.path)) };
        let path = &self.path;
        let listed = file.path().to_owned();
        let named =
            file.as_file().sync_all().map_err(|e| Error::io(path, "write the file to disk", e)).and_then(|()| {
                #[cfg(unix)]
                {
                    use std::os::unix::fs::PermissionsExt;
                    // Temporary files are private; the result gets what a plain file would have.
                    let mode = fs::metadata(path).map_or(0o644, |m| m.permissions().mode());
                    let _ = file.as_file().set_permissions(fs::Permissions::from_mode(mode));
                }
                file.persist(path).map(drop).map_err(|e| Error::io(path, "give the finished file its name", e.error))
            });
        forget(&listed);
        named
    }
}

fn forget(draft: &Path) {
    drafts().retain(|p| p != draft);
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            let path = file.path().to_owned();
            drop(file);
            forget(&path);
        }
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.as_mut().map_or(Ok(0), |f| f.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }
}

/// Writes a whole file, which appears under its name only when it is complete. `what` is for messages.
pub fn write(path: &Path, what: &str, bytes: &[u8]) -> Result<()> {
    let failed = |e| Error::io(path, &format!("write {what}"), e);
    if is_sink(path) {
        return fs::write(path, bytes).map_err(failed);
    }
    // Through a link to the file, so that the link stays one.
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut draft = Draft::new(&real)?;
    draft.write_all(bytes).map_err(failed)?;
    draft.publish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(files: &Files) -> String {
        files.check().expect_err("must be refused").to_string()
    }

    #[test]
    fn no_input_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("sub")).unwrap();
        fs::write(at("m.onnx"), "model").unwrap();
        let check = |to: &str| {
            let mut files = Files::default();
            files.read("MODEL", at("m.onnx"));
            files.write("--output", at(to));
            files
        };
        check("out.onnx").check().unwrap();
        let mut same = vec!["m.onnx", "sub/../m.onnx"];
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(at("m.onnx"), at("link.onnx")).unwrap();
            fs::hard_link(at("m.onnx"), at("hard.onnx")).unwrap();
            same.extend(["link.onnx", "hard.onnx"]);
        }
        for to in same {
            assert!(message(&check(to)).contains("is read as MODEL; writing --output over it"), "{to}");
        }
    }

    #[test]
    fn places_are_checked_before_the_work() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("sub")).unwrap();
        let check = |a: &str, b: &str| {
            let mut files = Files::default();
            files.write("--report", at(a));
            files.write("--dump-plan", at(b));
            message(&files)
        };
        assert!(check("a", "sub/../a").contains("--report and --dump-plan are both"));
        assert!(check("a", "nowhere/b").contains("there is no folder"));
        assert!(check("a", "sub").contains("--dump-plan names a folder"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left behind");
    }

    #[test]
    fn scratch_folders_are_gone_in_the_end_and_when_the_program_ends_before() {
        let listed = |path: &Path| drafts().iter().any(|p| p == path);
        let scratch = Scratch::new().unwrap();
        let path = scratch.path().to_owned();
        fs::write(path.join("model.onnx"), "1").unwrap();
        assert!(listed(&path));
        remove([path.clone(), path.join("no such file")].into_iter());
        assert!(!path.exists(), "an interrupted program leaves it behind");
        drop(scratch);
        assert!(!listed(&path));
        let scratch = Scratch::new().unwrap();
        let path = scratch.path().to_owned();
        fs::write(path.join("model.onnx"), "1").unwrap();
        drop(scratch);
        assert!(!path.exists() && !listed(&path));
    }

    #[test]
    fn whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write(&path, "it", b"1").unwrap();
        write(&path, "it", b"2").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"2");
        let mut draft = Draft::new(&path).unwrap();
        draft.write_all(b"3").unwrap();
        drop(draft);
        assert_eq!((fs::read(&path).unwrap(), fs::read_dir(dir.path()).unwrap().count()), (b"2".to_vec(), 1));
        assert!(write(&dir.path().join("no/b"), "it", b"").is_err());
    }
}
