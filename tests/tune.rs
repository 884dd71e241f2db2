//! `tune`: which points are tried depends on no clock, a search goes on where it stopped, the best model can be made again from
//! its YAML, and where nothing is within the budgets it says what is closest.

use std::{fs, path::Path};

use qonvert::{
    Config, ErrorKind, Job, Settings,
    config::Size,
    ir::{DType, Tensor},
    onnx_file::{self, WriteOptions},
    pipeline::{
        self,
        tune::{Aims, SpeedBy, Tuning},
    },
    report::tune::{Tuned, missed, table},
};
use tempfile::TempDir;

fn model(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name)
}

const CNN: &str = "digits_cnn.torchscript.onnx";
const TRANSFORMER: &str = "digits_transformer.torchscript.onnx";

/// A search in this folder, with speeds by the cost model.
fn tune(folder: &TempDir, name: &str, aims: Aims, points: usize, state: &str) -> qonvert::Result<Tuned> {
    let settings = Settings::new(Config::default()).unwrap();
    let data = Some(model("digits_calib.npz"));
    let job = Job { data, ..Job::new(model(name), folder.path().join("out.onnx"), &settings) };
    let state = Some(folder.path().join(state));
    pipeline::tune::tune(&Tuning { job: &job, aims, speed: SpeedBy::Model, points, time: None, seed: 7, state })
}

fn out(folder: &TempDir) -> Vec<u8> {
    fs::read(folder.path().join("out.onnx")).unwrap()
}

const LOSS: Aims = Aims { max_loss: Some(0.002), min_speedup: None, max_size: None };

#[test]
fn a_search_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let whole = tune(&folder, CNN, LOSS, 16, "a.json").unwrap();
    let written = out(&folder);
    assert_eq!((whole.points.len(), whole.known), (16, 0));
    // Some points are better than others, or there would be nothing to choose.
    let front = whole.points.iter().filter(|p| p.front).count();
    assert!((3..16).contains(&front), "{front}");
    for points in [3, 13] {
        let state = format!("{points}.json");
        let first = tune(&folder, CNN, LOSS, points, &state).unwrap();
        assert_eq!(
            first.points[..],
            whole.points[..points]
                .iter()
                .zip(&first.points)
                .map(|(all, some)| {
                    // The front is that of the points so far.
                    qonvert::report::tune::Point { front: some.front, ..all.clone() }
                })
                .collect::<Vec<_>>()[..]
        );
        let rest = tune(&folder, CNN, LOSS, 16, &state).unwrap();
        assert_eq!(rest.known, points);
        assert_eq!((&rest.points, rest.best, &rest.yaml), (&whole.points, whole.best, &whole.yaml));
        assert!(out(&folder) == written);
        let state = |name: &str| fs::read(folder.path().join(name)).unwrap();
        assert!(state(&format!("{points}.json")) == state("a.json"));
    }
}

#[test]
fn the_yaml_makes_the_best_model_again() {
    for name in [CNN, TRANSFORMER] {
        let folder = tempfile::tempdir().unwrap();
        let aims = [
            LOSS,
            Aims { max_loss: Some(0.0005), max_size: Some(Size::Share(0.6)), ..Aims::default() },
            Aims { max_size: Some(Size::Share(0.35)), ..Aims::default() },
            // Any speed will do: the most faithful is the original in another file.
            Aims { min_speedup: Some(0.9), ..Aims::default() },
        ];
        let mut made = std::collections::BTreeSet::new();
        for aims in aims {
            // One state answers for other budgets, too.
            let tuned = tune(&folder, name, aims, 14, "state.json").unwrap();
            let Some(best) = tuned.best else { panic!("{name}: {}", missed(&tuned)) };
            let point = &tuned.points[best];
            assert!(point.fits && point.front, "{name}: {point:?}");
            let bytes = out(&folder);
            assert_eq!(bytes.len() as u64, point.figures.bytes);
            let settings = Settings::new(Config::from_yaml(tuned.yaml.as_ref().unwrap()).unwrap()).unwrap();
            let again = folder.path().join("again.onnx");
            let data = Some(model("digits_calib.npz"));
            let report = pipeline::run(&Job { data, ..Job::new(model(name), &again, &settings) }).unwrap();
            assert!(fs::read(&again).unwrap() == bytes, "{name}: {}", point.made);
            let nothing: Vec<_> = report.diagnostics.iter().filter(|d| d.code == "settings_without_effect").collect();
            assert!(nothing.is_empty(), "{nothing:?}");
            made.insert(best);
        }
        assert!(made.len() >= 2, "{name}: different budgets have different answers: {made:?}");
    }
}

#[test]
fn where_nothing_fits_it_says_what_is_closest() {
    let folder = tempfile::tempdir().unwrap();
    let aims = Aims { max_loss: Some(1e-7), max_size: Some(Size::Share(0.4)), ..Aims::default() };
    let tuned = tune(&folder, CNN, aims, 12, "s.json").unwrap();
    assert!(tuned.best.is_none() && !folder.path().join("out.onnx").exists());
    let text = missed(&tuned);
    for part in ["nothing is written", "the closest is point", "times the speed", "--max-loss ", "--max-size "] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // What it says would do does.
    let flag = |name: &str| {
        let loosened = &tuned.closest.as_ref().unwrap().loosened;
        loosened.iter().find_map(|f| f.strip_prefix(name)).unwrap().trim().to_owned()
    };
    let loss: f64 = flag("--max-loss").trim_end_matches('%').parse().unwrap();
    for aims in [
        Aims { max_loss: Some(loss / 100.0), ..aims },
        Aims { max_size: Some(flag("--max-size").parse().unwrap()), ..aims },
    ] {
        let tuned = tune(&folder, CNN, aims, 12, "s.json").unwrap();
        assert!(tuned.best.is_some(), "{aims:?}: {}", table(&tuned));
    }
}

#[test]
fn a_state_of_something_else_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    tune(&folder, CNN, LOSS, 2, "s.json").unwrap();
    let e = tune(&folder, TRANSFORMER, LOSS, 2, "s.json").unwrap_err();
    assert!(e.kind() == ErrorKind::Config && e.to_string().contains("the model is another one"), "{e}");
    let settings = Settings::new(Config { bias_correction: false, ..Config::default() }).unwrap();
    let data = Some(model("digits_calib.npz"));
    let job = Job { data, ..Job::new(model(CNN), folder.path().join("out.onnx"), &settings) };
    let state = Some(folder.path().join("s.json"));
    let tuning =
        Tuning { job: &job, aims: LOSS, speed: SpeedBy::Model, points: 2, time: None, seed: 7, state: state.clone() };
    let e = pipeline::tune::tune(&tuning).unwrap_err();
    assert!(e.to_string().contains("bias_correction is true there, false now"), "{e}");
    let settings = Settings::new(Config { never_slower: true, ..Config::default() }).unwrap();
    let e = pipeline::tune::tune(&Tuning { job: &Job { settings: &settings, ..job.clone() }, ..tuning }).unwrap_err();
    assert!(e.to_string().contains("no effect of never_slower"), "{e}");
}

#[test]
fn no_point_is_begun_when_time_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::new(Config::default()).unwrap();
    let data = Some(model("digits_calib.npz"));
    let job = Job { data, ..Job::new(model(CNN), folder.path().join("out.onnx"), &settings) };
    let time = Some(std::time::Duration::from_nanos(1));
    let tuning = Tuning { job: &job, aims: LOSS, speed: SpeedBy::Model, points: 30, time, seed: 7, state: None };
    let tuned = pipeline::tune::tune(&tuning).unwrap();
    // All float, and the fastest plan.
    assert_eq!(tuned.points.len(), 2);
    assert!(tuned.points[0].figures.integer == 0 && tuned.points[1].figures.integer > 0);
    assert!(tuned.ended.contains("the time was over"), "{}", tuned.ended);
}

#[test]
fn answers_that_are_no_numbers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut spoiled = onnx_file::read(&model(CNN)).unwrap();
    let weights: Vec<_> =
        spoiled.value_ids().into_iter().filter(|v| spoiled.value(*v).initializer().is_some()).collect();
    for v in weights {
        let Some(tensor) = spoiled.value(v).initializer().filter(|t| t.dtype() == DType::Float) else { continue };
        let nan = Tensor::from_f32(tensor.dims(), &vec![f32::NAN; tensor.len()]);
        spoiled.set_initializer(v, Some(nan));
    }
    let path = folder.path().join("nan.onnx");
    onnx_file::write(&spoiled, &path, WriteOptions::default()).unwrap();
    let e = tune(&folder, path.to_str().unwrap(), LOSS, 3, "s.json").unwrap_err();
    assert!(e.kind() == ErrorKind::Data && e.to_string().contains("NaN"), "{e}");
    assert!(!folder.path().join("out.onnx").exists());
}

/// What training has decided is not searched for.
#[test]
fn models_with_quantizers_of_their_own_are_refused() {
    let folder = TempDir::new().unwrap();
    let e = tune(&folder, "digits_qat_fx.torchscript.onnx", LOSS, 4, "s.json").unwrap_err().to_string();
    assert!(e.contains("comes with quantizers of its data"), "{e}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
