//! Models with functions compute the same in ONNX Runtime when the functions are inlined: two exports of PyTorch
//! (`export_modules_as_functions`), and every model with functions below the folders in `QONVERT_ROUND_TRIP_DIRS`.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use qonvert::{
    ir::{DType, Dim, Model, Tensor},
    onnx_file,
    passes::{Context, inline_functions},
};

fn models_below(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for p in entries.flatten().map(|e| e.path()) {
        if p.is_dir() {
            models_below(&p, found);
        } else if p.extension().is_some_and(|e| e == "onnx") {
            found.push(p);
        }
    }
}

/// Numbers for each input; unknown dims are 2.
fn feeds(m: &Model) -> Vec<(String, Tensor)> {
    let feed = |v| {
        let value = m.value(v);
        let dims: Vec<usize> = value.shape().map_or_else(Vec::new, |s| {
            s.dims.iter().map(|d| if let Dim::Known(n) = d { *n as usize } else { 2 }).collect()
        });
        let count = dims.iter().product::<usize>();
        let tensor = match value.dtype() {
            Some(DType::Float) => {
                let wave: Vec<f32> = (0..count).map(|i| (i as f32 * 0.7).sin()).collect();
                Tensor::from_f32(&dims, &wave)
            }
            Some(DType::Int64) => Tensor::from_i64(&dims, &vec![1; count]),
            Some(d) => Tensor::new(d, dims, vec![1u8; d.byte_len(count).unwrap()]).unwrap(),
            None => panic!("an input without a type"),
        };
        (value.name().to_owned(), tensor)
    };
    m.required_inputs().into_iter().map(feed).collect()
}

#[test]
fn the_same_numbers_come_out() {
    let mut paths = Vec::new();
    models_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/functions"), &mut paths);
    assert_eq!(paths.len(), 2);
    if let Ok(dirs) = std::env::var("QONVERT_ROUND_TRIP_DIRS") {
        dirs.split(':').for_each(|d| models_below(Path::new(d), &mut paths));
    }
    let mut compared = 0;
    for path in &paths {
        let mut m = onnx_file::read(path).unwrap();
        if m.functions.is_empty() {
            continue;
        }
        let feeds = feeds(&m);
        let feeds: Vec<(&str, Tensor)> = feeds.iter().map(|(n, t)| (n.as_str(), t.clone())).collect();
        let before = onnx_file::to_bytes(&m).unwrap();
        assert!(inline_functions::run(&mut m, &mut Context::default()).unwrap() > 0);
        m.verify().unwrap();
        assert!(m.functions.is_empty());
        let after = onnx_file::to_bytes(&m).unwrap();
        let Some(want) = common::ort_run(&before, &feeds) else { return };
        let got = common::ort_run(&after, &feeds).unwrap();
        assert_eq!(want.len(), got.len());
        for (w, g) in want.iter().zip(&got) {
            let (a, b) = (w.to_f32().unwrap(), g.to_f32().unwrap());
            assert!(!a.is_empty() && w.dims() == g.dims(), "{}", path.display());
            assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-5 * a.abs().max(1.0)), "{}", path.display());
        }
        compared += 1;
    }
    eprintln!("{compared} models with functions compared");
}
