//! Sensitivity: what roundings that are switched in one model tell is what the models tell that carry each of them out, in the
//! built-in runtime and in ONNX Runtime; and the rules that come of it leave these units in float, and no others.

use std::collections::BTreeSet;

use qonvert::{
    Config, Job, Settings,
    config::Mode,
    pipeline::{self, MeasureSensitivity, MeasuredSensitivity},
    plan::{Form, NodePlan, Plan},
    runtime::{Runtime, onnxruntime::OnnxRuntime, tract::Tract},
    validate::{losses::Loss, sensitivity::Sensitivity},
};

const MODELS: [&str; 2] = ["digits_cnn.torchscript", "digits_transformer.torchscript"];

fn job<'a>(name: &str, settings: &'a Settings) -> Job<'a> {
    let mut job = Job::new(format!("models/{name}.onnx"), "", settings);
    job.data = Some("models/digits_calib.npz".into());
    job.evaluation = Some("models/digits_eval.npz".into());
    job
}

fn measured(name: &str, runtime: &dyn Runtime, one_by_one: bool, samples: usize) -> MeasuredSensitivity {
    let settings = Settings::new(Config::default()).unwrap();
    let how = MeasureSensitivity { most_units: 100, samples, one_by_one };
    pipeline::measure_sensitivity(&Job { runtime, ..job(name, &settings) }, how).unwrap()
}

/// Spearman's correlation of the ranks.
fn spearman(pairs: &[(f64, f64)]) -> f64 {
    let ranks = |of: &dyn Fn(&(f64, f64)) -> f64| -> Vec<f64> {
        let rank = |a: f64| {
            let below = pairs.iter().filter(|p| of(p) < a).count() as f64;
            below + pairs.iter().filter(|p| of(p) == a).count() as f64 / 2.0
        };
        pairs.iter().map(|p| rank(of(p))).collect()
    };
    let (a, b) = (ranks(&|p| p.0), ranks(&|p| p.1));
    let mean = a.iter().sum::<f64>() / a.len() as f64;
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| (x - mean) * (y - mean)).sum::<f64>();
    dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
}

/// A number of a unit's.
type Figure<'a> = dyn Fn(&Sensitivity) -> f64 + 'a;

/// Holds the trials against models in this runtime.
fn check(name: &str, runtime: &dyn Runtime) {
    let (trials, models) = (measured(name, &Tract, false, 8), measured(name, runtime, true, 8));
    assert!(models.diagnostics.iter().any(|d| d.code == "one_by_one"), "{:?}", models.diagnostics);
    assert!(!trials.diagnostics.iter().any(|d| d.code == "one_by_one"), "{:?}", trials.diagnostics);
    let (trials, models) = (trials.found, models.found);
    assert!(trials.units.len() > 15 && trials.units.len() == models.units.len(), "{name}: {}", trials.units.len());
    let whole = (trials.all.sqnr.unwrap(), models.all.sqnr.unwrap());
    assert!((whole.0 - whole.1).abs() < 0.3, "{name}: all {whole:?} dB");
    let tract = runtime.name() == Tract.name();
    let figures: [(&str, &Figure<'_>); 4] = [
        ("share", &|u| u.share),
        ("noise alone", &|u| u.alone.noise()),
        ("divergence alone", &|u| u.alone.kl().unwrap()),
        ("noise without", &|u| u.without.noise()),
    ];
    for (what, figure) in figures {
        let other = |nodes: &[String]| models.units.iter().find(|m| m.nodes == nodes).unwrap();
        let pairs: Vec<_> = trials.units.iter().map(|u| (figure(u), figure(other(&u.nodes)))).collect();
        let found = spearman(&pairs);
        // Where all but one are quantized, integer kernels round some numbers otherwise than Q/DQ pairs do, so that errors of
        // another sign meet: the noise is as much, but units that hardly change it come in another order.
        if what == "noise without" && !tract {
            assert!(pairs.iter().all(|(a, b)| (a / b).log2().abs() < 1.0), "{name}: {pairs:?}");
            continue;
        }
        println!(
            "{name} in {}: {what}: Spearman {found:.4} of {} units, all {whole:?} dB",
            runtime.name(),
            pairs.len()
        );
        assert!(found >= 0.95, "{name} in {}: {what}: {found} {pairs:?}", runtime.name());
    }
}

#[test]
fn trials_tell_what_models_tell() {
    MODELS.iter().for_each(|name| check(name, &Tract));
}

#[test]
fn trials_tell_what_models_tell_in_onnx_runtime() {
    if std::env::var_os("ORT_DYLIB_PATH").is_none() {
        return eprintln!("SKIPPED: ORT_DYLIB_PATH is not set, nothing was run with ONNX Runtime");
    }
    let runtime = OnnxRuntime::open(None).unwrap();
    MODELS.iter().for_each(|name| check(name, &runtime));
}

#[test]
fn the_most_harmful_come_first_and_labels_are_counted() {
    let found = measured(MODELS[0], &Tract, false, 120).found;
    assert!(found.units.windows(2).all(|pair| pair[0].share >= pair[1].share));
    let labels = |loss: &Loss| loss.labels.clone().unwrap();
    assert_eq!(labels(&found.all).count, 120);
    assert!(found.units.iter().all(|u| labels(&u.alone).original == labels(&found.all).original));
    // Neighbours together do what they do.
    let settings = Settings::new(Config::default()).unwrap();
    let how = MeasureSensitivity { most_units: 1, samples: 8, one_by_one: false };
    let one = pipeline::measure_sensitivity(&job(MODELS[0], &settings), how).unwrap().found;
    assert!(one.units.len() == 1 && (one.units[0].share - 1.0).abs() < 1e-9);
    assert_eq!((&one.units[0].alone, one.units[0].without.noise()), (&one.all, 0.0));
}

#[test]
fn rules_keep_exactly_these_units_in_float() {
    let settings = Settings::new(Config { mode: Mode::Static, ..Config::default() }).unwrap();
    let how = MeasureSensitivity { most_units: 100, samples: 4, one_by_one: false };
    let measured = pipeline::measure_sensitivity(&job(MODELS[0], &settings), how).unwrap();
    let plan = |settings: &Settings| pipeline::quantize(&job(MODELS[0], settings)).unwrap().plan;
    let integer = |plan: &Plan| -> BTreeSet<String> {
        let nodes = plan.nodes.iter().filter(|(_, n)| n.becomes == Form::Integer);
        nodes.map(|(key, n)| n.name.clone().unwrap_or_else(|| key.clone())).collect()
    };
    let before = integer(&plan(&settings));
    for count in [1, 3, 5] {
        let yaml = format!("mode: static\n{}", measured.rules(count).unwrap());
        let settings = Settings::new(Config::from_yaml(&yaml).unwrap()).unwrap();
        let plan = plan(&settings);
        let units = measured.found.units.iter().take(count).flat_map(|u| u.nodes.iter().cloned());
        let named = |key: &String, n: &NodePlan| n.name.clone().unwrap_or_else(|| key.clone());
        let by_rule = plan.nodes.iter().filter(|(_, n)| n.reason.as_deref().is_some_and(|r| r.contains("rule 1")));
        let by_rule: BTreeSet<String> = by_rule.map(|(key, n)| named(key, n)).collect();
        let units: BTreeSet<String> = units.collect();
        assert_eq!(by_rule, units, "{yaml}");
        // They were integer, and are not; what else is float now does not pay without them.
        let gone: BTreeSet<String> = before.difference(&integer(&plan)).cloned().collect();
        assert!(gone.is_superset(&units) && gone.len() <= 2 * units.len(), "{gone:?}");
    }
}
