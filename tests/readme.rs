//! The README's commands run as they stand there.

use std::{fs, path::Path, process::Command};

/// The words behind `cargo run --release --`.
fn main_command() -> Vec<String> {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("a README");
    let line = readme.lines().find_map(|l| l.strip_prefix("cargo run --release -- ")).expect("a command in the README");
    line.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn the_first_command_quantizes_and_prints_the_accuracy() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut words = main_command();
    let at = words.iter().position(|w| w == "-o").expect("-o in the command") + 1;
    let output = folder.path().join(&words[at]);
    words[at] = output.display().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_qonvert"));
    let done = command.current_dir(env!("CARGO_MANIFEST_DIR")).args(&words).output().expect("qonvert starts");
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{out}\n{err}");
    // "accuracy  99.63 % -> 99.44 % (-0.19 points, 540 labelled samples)"
    let accuracy = out.lines().find_map(|l| l.strip_prefix("accuracy")).expect("a line on accuracy");
    let shares: Vec<f64> = accuracy.split('%').filter_map(|s| s.split_whitespace().last()?.parse().ok()).collect();
    assert!(shares[0] > 99.0 && shares[1] > shares[0] - 0.5, "{accuracy}");
    let size = |p: &Path| fs::metadata(p).expect("a file").len();
    let original = Path::new(env!("CARGO_MANIFEST_DIR")).join(&words[1]);
    assert!(size(&output) * 5 < size(&original) * 2, "{} of {} bytes", size(&output), size(&original));
}
