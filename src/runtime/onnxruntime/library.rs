//! Where ONNX Runtime's library is: the file that the user names, else the one of an installed Python wheel.
//!
//! Folders are searched by hand: no Python is run, and nothing is loaded until a file is chosen.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use crate::error::{Error, Result};

/// The variable that names the library, known to other programs, too.
const VARIABLE: &str = "ORT_DYLIB_PATH";

/// What a user can do where there is no library.
pub(super) const HELP: &str =
    "`pip install onnxruntime` in the active Python environment, or name its library with --onnxruntime-lib FILE";

/// What a user can do where the variable names something else.
const VARIABLE_HELP: &str =
    "let ORT_DYLIB_PATH name the library, or unset it: then that of an installed Python wheel is taken";

/// The library file: the given one, else that of `ORT_DYLIB_PATH`, else that of an installed wheel.
pub(super) fn find(given: Option<&Path>) -> Result<PathBuf> {
    find_in(given, &|name| env::var_os(name))
}

/// What a user can do where the file that was found is no such library.
pub(super) fn help(given: Option<&Path>) -> &'static str {
    let variable = env::var_os(VARIABLE).is_some_and(|path| !path.is_empty());
    if given.is_none() && variable { VARIABLE_HELP } else { HELP }
}

fn find_in(given: Option<&Path>, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    let variable = |name: &str| variable(name).filter(|text| !text.is_empty());
    if let Some(path) = given {
        return named("--onnxruntime-lib", path);
    }
    if let Some(path) = variable(VARIABLE) {
        return named(VARIABLE, Path::new(&path));
    }
    let mut looked = vec![format!("{VARIABLE} (not set)")];
    let mut folders = Vec::new();
    for name in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
        match variable(name) {
            Some(prefix) => folders.extend(site_folders(Path::new(&prefix))),
            None => looked.push(format!("{name} (not set)")),
        }
    }
    let python = variable("PATH").and_then(|path| env::split_paths(&path).find_map(|d| python_in(&d)));
    match python {
        Some(python) => {
            folders.extend(prefixes_of(&python).iter().flat_map(|p| site_folders(p)));
            looked.push(format!("the packages of {}", python.display()));
        }
        None => looked.push("python3 on PATH (there is none)".to_owned()),
    }
    folders.extend(variable("HOME").into_iter().flat_map(|home| site_folders(&Path::new(&home).join(".local"))));
    let mut seen = BTreeSet::new();
    folders.retain(|f| seen.insert(f.clone()));
    for folder in &folders {
        if let Some(library) = library_in(&folder.join("onnxruntime").join("capi")) {
            return Ok(library);
        }
    }
    // Old wheels have everything in one module for Python.
    if let Some(site) = folders.iter().find(|f| f.join("onnxruntime").join("capi").is_dir()) {
        let version = wheel_version(site).unwrap_or_else(|| "of unknown version".to_owned());
        let text =
            format!("onnxruntime {version} is too old: its Python wheel has no library that other programs can load");
        return Err(Error::runtime(text).file(site).help("`pip install --upgrade onnxruntime`"));
    }
    looked.extend(folders.iter().map(|f| f.display().to_string()));
    Err(Error::runtime(format!("ONNX Runtime is not installed, or not where it was looked for: {}", looked.join(", ")))
        .help(HELP))
}

/// What the user named: the library itself, or a folder with it.
fn named(by: &str, path: &Path) -> Result<PathBuf> {
    let help = if by == VARIABLE { VARIABLE_HELP } else { HELP };
    let wrong = |text: &str| Err(Error::config(format!("{by} names no library: {text}")).file(path).help(help));
    if path.is_dir() {
        let wheel = |site: &Path| site.join("onnxruntime").join("capi");
        let mut found = vec![path.to_owned(), path.join("capi"), wheel(path), path.join("lib")];
        // A virtual environment.
        found.extend(site_folders(path).iter().map(|site| wheel(site)));
        return match found.iter().find_map(|folder| library_in(folder)) {
            Some(library) => Ok(library),
            None => wrong(&format!("there is no {} in this folder", pattern())),
        };
    }
    if !path.is_file() {
        return wrong("there is no such file");
    }
    // Relative paths would be taken as relative to the program.
    path.canonicalize().map_err(|e| Error::io(path, "find the library", e))
}

/// The interpreter in a folder of PATH.
fn python_in(folder: &Path) -> Option<PathBuf> {
    ["python3", "python", "python3.exe", "python.exe"].iter().map(|n| folder.join(n)).find(|p| p.is_file())
}

/// Where an interpreter's packages may lie: beside it as it is called (a virtual environment), and beside what the link
/// leads to.
fn prefixes_of(python: &Path) -> Vec<PathBuf> {
    let real = python.canonicalize().unwrap_or_else(|_| python.to_owned());
    let mut prefixes = Vec::new();
    for path in [python, &real] {
        let Some(folder) = path.parent() else { continue };
        // On Windows the interpreter stands in the prefix itself.
        prefixes.extend(folder.parent().map(Path::to_owned));
        prefixes.push(folder.to_owned());
        // Debian keeps what pip installs for all users below /usr/local.
        prefixes.extend(folder.parent().map(|p| p.join("local")));
    }
    prefixes
}

/// The folders with packages below a prefix, in order of their names.
fn site_folders(prefix: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for lib in ["lib", "lib64", "Lib"] {
        let lib = prefix.join(lib);
        let mut pythons = entries(&lib);
        pythons.retain(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("python3")));
        pythons.push(lib);
        for python in pythons {
            found.extend(["site-packages", "dist-packages"].iter().map(|n| python.join(n)).filter(|p| p.is_dir()));
        }
    }
    found
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    entries.sort();
    entries
}

/// The library in a folder; of several the one whose name is last, the newest as a rule.
fn library_in(folder: &Path) -> Option<PathBuf> {
    entries(folder)
        .into_iter()
        .rfind(|p| p.is_file() && p.file_name().is_some_and(|n| is_library(&n.to_string_lossy())))
}

fn is_library(name: &str) -> bool {
    let (start, end) = (env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX);
    let Some(rest) = name.strip_prefix(start).and_then(|n| n.strip_prefix("onnxruntime")) else { return false };
    // libonnxruntime.so, libonnxruntime.so.1.32.0, libonnxruntime.1.32.0.dylib; not libonnxruntime_providers_shared.so
    rest.starts_with('.') && rest.contains(end)
}

fn pattern() -> String {
    format!("{}onnxruntime{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX)
}

/// The version that the file's name or the wheel says; the library itself does not tell it without unsafe code.
pub(super) fn version(library: &Path) -> Option<String> {
    let real = library.canonicalize().unwrap_or_else(|_| library.to_owned());
    let name = real.file_name()?.to_string_lossy().into_owned();
    digits(&name).or_else(|| wheel_version(real.ancestors().nth(3)?))
}

/// The version of the wheel among these packages.
fn wheel_version(site: &Path) -> Option<String> {
    let wheel = |p: &PathBuf| {
        let name = p.file_name()?.to_str()?.strip_suffix(".dist-info")?;
        name.starts_with("onnxruntime").then(|| digits(name)).flatten()
    };
    entries(site).iter().find_map(wheel)
}

/// The first number with dots.
fn digits(text: &str) -> Option<String> {
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let end = text[start..].find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len() - start);
    Some(text[start..start + end].trim_end_matches('.').to_owned()).filter(|v| v.contains('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wheel(prefix: &Path) -> PathBuf {
        let capi = prefix.join("lib/python3.11/site-packages/onnxruntime/capi");
        fs::create_dir_all(&capi).unwrap();
        fs::write(capi.join(pattern().replace("runtime", "runtime_providers_shared")), "").unwrap();
        fs::write(capi.join(pattern()), "").unwrap();
        capi.join(pattern())
    }

    fn look(given: Option<&Path>, set: &[(&str, &Path)]) -> Result<PathBuf> {
        find_in(given, &|name| set.iter().find(|(n, _)| *n == name).map(|(_, p)| p.as_os_str().to_owned()))
    }

    #[test]
    fn what_is_named_goes_before_what_is_installed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let (a, b, c) = (wheel(&root.join("a")), wheel(&root.join("b")), wheel(&root.join("c")));
        let bin = root.join("c/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::write(bin.join("python3"), "").unwrap();
        let set: &[(&str, &Path)] = &[("ORT_DYLIB_PATH", &b), ("VIRTUAL_ENV", &root.join("a")), ("PATH", &bin)];
        assert_eq!(look(Some(&c), set).unwrap(), c);
        assert_eq!(look(c.parent(), set).unwrap(), c);
        assert_eq!(look(None, set).unwrap(), b);
        assert_eq!(look(None, &set[1..]).unwrap(), a);
        assert_eq!(look(None, &set[2..]).unwrap(), c);
        assert_eq!(version(Path::new("libonnxruntime.so.1.9.0")).unwrap(), "1.9.0");
        assert_eq!(version(&c), None);
    }

    #[test]
    fn where_it_was_looked_for_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let site = folder.path().join("lib/python3.12/site-packages");
        fs::create_dir_all(&site).unwrap();
        let error = look(None, &[("CONDA_PREFIX", folder.path())]).unwrap_err();
        let text = error.to_string();
        for part in ["ORT_DYLIB_PATH (not set)", "VIRTUAL_ENV (not set)", "python3 on PATH", site.to_str().unwrap()] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(error.help_text().unwrap().contains("pip install onnxruntime"));
        let error = look(Some(&folder.path().join("nothing.so")), &[]).unwrap_err();
        assert!(error.to_string().ends_with("--onnxruntime-lib names no library: there is no such file"), "{error}");
        assert!(look(Some(folder.path()), &[]).unwrap_err().to_string().contains("in this folder"));
    }

    #[test]
    fn an_old_wheel_and_a_wrong_variable_are_called_so() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        let site = old.join("lib/python3.11/site-packages");
        fs::create_dir_all(site.join("onnxruntime/capi")).unwrap();
        fs::create_dir_all(site.join("onnxruntime-1.17.3.dist-info")).unwrap();
        let error = look(None, &[("VIRTUAL_ENV", &old)]).unwrap_err();
        assert!(error.to_string().contains("onnxruntime 1.17.3 is too old"), "{error}");
        assert_eq!(error.help_text(), Some("`pip install --upgrade onnxruntime`"));
        // A newer one elsewhere is taken, and an environment can be named as a whole.
        let library = wheel(&new);
        assert_eq!(look(None, &[("VIRTUAL_ENV", &old), ("CONDA_PREFIX", &new)]).unwrap(), library);
        assert_eq!(look(Some(&new), &[]).unwrap(), library);
        let error = look(None, &[("ORT_DYLIB_PATH", &old.join("no.so")), ("VIRTUAL_ENV", &new)]).unwrap_err();
        assert!(error.help_text().unwrap().contains("unset it"), "{error}");
    }

    #[test]
    fn the_version_comes_from_the_wheel_where_the_name_has_none() {
        let folder = tempfile::tempdir().unwrap();
        let capi = folder.path().join("onnxruntime/capi");
        fs::create_dir_all(&capi).unwrap();
        fs::create_dir_all(folder.path().join("onnxruntime_gpu-1.20.1.dist-info")).unwrap();
        fs::write(capi.join(pattern()), "").unwrap();
        assert_eq!(version(&capi.join(pattern())).unwrap(), "1.20.1");
    }
}
