//! Two models side by side over samples, streaming: memory does not grow with the number of samples.

use std::{
    borrow::Cow,
    path::Path,
    sync::{Mutex, PoisonError},
};

use serde::Serialize;

use super::{
    classes::class_axis,
    labels::{Labelled, Labels, Misfit},
    metrics::{Gathered, OutputMetrics},
    reference::Reference,
    runnable::in_runnable_form,
};
use crate::{
    calibrate::{
        Dataset,
        collect::{Progress, for_each_sample},
    },
    error::{Error, Result},
    ir::{DType, Model, Tensor, ValueId},
    quant::halves::converted,
    runtime::Runtime,
};

/// Right answers by the labels.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Accuracy {
    /// The output that the labels speak of.
    pub output: String,
    /// Labels compared.
    pub count: u64,
    /// Right answers of the first model.
    pub original: u64,
    /// Right answers of the second model.
    pub quantized: u64,
}

impl Accuracy {
    /// Share of right answers that the second model loses, in percentage points; negative if it gains.
    pub fn drop_points(&self) -> f64 {
        100.0 * (self.original as f64 - self.quantized as f64) / self.count.max(1) as f64
    }
}

/// What a comparison found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Samples compared.
    pub samples: usize,
    /// Each output, in the models' order.
    pub outputs: Vec<OutputMetrics>,
    /// If the data has labels that fit an output: the first output that does. The answer is the greatest number along
    /// the output's class axis, or, where it has one number for each label, whether that is above 0.5.
    pub accuracy: Option<Accuracy>,
    /// If the data has labels and they fit no output: the output that is nearest to fit, and why it does not.
    pub misfit: Option<(String, Misfit)>,
}

impl Comparison {
    /// The least SQNR of all outputs, in dB; `None` if no output could be compared.
    pub fn least_sqnr(&self) -> Option<f64> {
        self.outputs.iter().map(OutputMetrics::least_sqnr).filter(|s| !s.is_nan()).min_by(f64::total_cmp)
    }

    /// The least share of the same answers over the outputs that hold classes.
    pub fn least_agreement(&self) -> Option<f64> {
        self.outputs.iter().filter_map(OutputMetrics::agreement).min_by(f64::total_cmp)
    }
}

/// Runs both models on the samples and compares their outputs, the `k`-th with the `k`-th. Errors name the model and
/// the sample.
pub fn compare(
    runtime: &dyn Runtime,
    original: &Model,
    quantized: &Model,
    data: &Dataset,
    samples: &[usize],
    progress: &Progress<'_>,
) -> Result<Comparison> {
    check_outputs(&output_names(original), quantized)?;
    let reference = Reference::new(runtime, original, data, samples, &|done, all| progress(done, 2 * all))?;
    compare_with(&reference, quantized, samples, &|done, all| progress(all + done, 2 * all))
}

/// As [`compare`], with the answers of the original model as they are known. The samples are those of the reference or
/// some of them.
pub fn compare_with(
    reference: &Reference<'_>,
    quantized: &Model,
    samples: &[usize],
    progress: &Progress<'_>,
) -> Result<Comparison> {
    let names = &reference.names;
    let values = reference.model.graph(reference.model.main()).outputs();
    let fresh = || names.iter().map(|_| Mutex::<(Gathered, Labelled)>::default()).collect::<Vec<_>>();
    let update = |all: &Vec<Mutex<(Gathered, Labelled)>>,
                  sample,
                  [answers, measured]: [&[Tensor]; 2],
                  labels: Option<&Labels>| {
        for (k, (a, b)) in answers.iter().zip(measured).enumerate() {
            let axis = if a.dtype().is_float() { class_axis(reference.model, values[k], a.rank()) } else { None };
            let mut one = lock(&all[k]);
            one.0.update(sample, a, b, axis).map_err(|e| e.value(&names[k]))?;
            if let Some(labels) = labels {
                one.1.update(sample, [a, b], axis, labels)?;
            }
        }
        Ok(())
    };
    let all = of_each_answer(reference, quantized, samples, progress, fresh, update)?;
    let (gathered, labelled): (Vec<Gathered>, Vec<Labelled>) = all.into_iter().map(into_inner).unzip();
    let labelled: Vec<(&String, Labelled)> = names.iter().zip(labelled).collect();
    let accuracy = labelled.iter().find(|(_, l)| l.count > 0 && l.misfit().is_none()).map(|(name, l)| Accuracy {
        output: (*name).clone(),
        count: l.count,
        original: l.right[0],
        quantized: l.right[1],
    });
    let misfits = labelled.iter().filter_map(|(name, l)| l.misfit().map(|m| (*name, m)));
    let misfit = misfits.filter(|_| accuracy.is_none()).min_by_key(|(_, m)| !m.wrong);
    let misfit = misfit.map(|(name, m)| (name.clone(), m));
    let outputs = gathered.into_iter().zip(names).map(|(g, name)| g.metrics(name.clone())).collect();
    Ok(Comparison { samples: samples.len(), outputs, accuracy, misfit })
}

/// Gathers the answers of both models to each sample, with its labels. The samples are those of the reference or some of them.
/// Where the model must be brought into another form first, gathering begins anew.
pub(super) fn of_each_answer<T: Sync>(
    reference: &Reference<'_>,
    quantized: &Model,
    samples: &[usize],
    progress: &Progress<'_>,
    fresh: impl Fn() -> T,
    update: impl Fn(&T, usize, [&[Tensor]; 2], Option<&Labels>) -> Result<()> + Sync,
) -> Result<T> {
    check_outputs(&reference.names, quantized)?;
    let run = |model: &Model| {
        let session = reference.runtime.load(model, &[])?;
        let gathered = fresh();
        for_each_sample(samples, progress, |sample| {
            let inputs = reference.data.sample(sample)?;
            let measured = session.run(&as_declared(model, &inputs)?)?;
            let labels = reference.data.labels(sample)?.map(|l| Labels::of(&l)).transpose()?;
            let labels = labels.as_ref();
            reference.with_answers(sample, &inputs, |answers| update(&gathered, sample, [answers, &measured], labels))
        })?;
        Ok(gathered)
    };
    in_runnable_form(reference.runtime, quantized, run).map_err(|e| e.file(Path::new("the quantized model")))
}

/// The inputs in the types of a model that has 16-bit floats where the original has 32-bit ones.
fn as_declared<'a>(model: &Model, inputs: &'a [Tensor]) -> Result<Cow<'a, [Tensor]>> {
    let half = |v: ValueId| model.value(v).dtype().filter(|d| matches!(d, DType::Float16 | DType::Bfloat16));
    let values = model.required_inputs();
    let other = |(&v, t): (&ValueId, &Tensor)| half(v).is_some() && t.dtype() == DType::Float;
    if !values.iter().zip(inputs).any(other) {
        return Ok(Cow::Borrowed(inputs));
    }
    let each = values.iter().zip(inputs).map(|(&v, t)| match half(v).filter(|_| other((&v, t))) {
        Some(dtype) => converted(t, dtype, None),
        None => Ok(t.clone()),
    });
    each.collect::<Result<Vec<_>>>().map(Cow::Owned)
}

fn check_outputs(names: &[String], quantized: &Model) -> Result<()> {
    let (a, b) = (names.len(), output_names(quantized).len());
    if a != b {
        return Err(Error::data(format!("the models have {a} and {b} outputs: they cannot be compared")));
    }
    Ok(())
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn into_inner<T>(of: Mutex<T>) -> T {
    of.into_inner().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn output_names(model: &Model) -> Vec<String> {
    model.graph(model.main()).outputs().iter().map(|&v| model.value(v).name().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        calibrate::{DatasetOptions, InputSpec},
        ir::testing::model,
        runtime::tract::Tract,
    };

    fn data(model: &Model, folder: &tempfile::TempDir) -> Dataset {
        let path = folder.path().join("data.npz");
        let x = ndarray::Array2::from_shape_fn((6, 3), |(i, j)| if i % 3 == j { 1.0f32 } else { 0.1 * j as f32 });
        let labels = ndarray::Array1::from_iter((0..6).map(|i| i64::from(i % 3)));
        let mut file = ndarray_npy::NpzWriter::new(std::fs::File::create(&path).unwrap());
        file.add_array("x", &x).unwrap();
        file.add_array("labels", &labels).unwrap();
        file.finish().unwrap();
        Dataset::open(&path, &InputSpec::of_model(model).unwrap(), &DatasetOptions::default()).unwrap()
    }

    #[test]
    fn two_models_and_labels() {
        let folder = tempfile::tempdir().unwrap();
        let text =
            |w: &str| format!("float[n,3] x \n float[3] w = {{{w}}} \n y = Mul(x, w) \n z = Softmax(y) \n return z");
        let (a, b) = (model(&text("1, 1, 1")), model(&text("1, 1, -1")));
        let data = data(&a, &folder);
        assert!(data.has_labels());
        let all: Vec<usize> = (0..6).collect();
        let run = |a: &Model, b: &Model| compare(&Tract, a, b, &data, &all, &|_, _| ()).unwrap();
        let same = run(&a, &a);
        assert_eq!((same.samples, same.least_sqnr(), same.least_agreement()), (6, Some(f64::INFINITY), Some(1.0)));
        let accuracy = same.accuracy.unwrap();
        assert_eq!((accuracy.count, accuracy.original, accuracy.drop_points()), (6, 6, 0.0));
        let other = run(&a, &b);
        assert_eq!(other.outputs[0].same_answers, 4);
        assert!(other.least_sqnr().unwrap() < 20.0);
        let accuracy = other.accuracy.clone().unwrap();
        assert_eq!((accuracy.original, accuracy.quantized), (6, 4));
        assert!((accuracy.drop_points() - 100.0 / 3.0).abs() < 1e-9);
        assert_eq!(run(&a, &b), other);
    }

    #[test]
    fn errors_say_which_model_and_sample() {
        let folder = tempfile::tempdir().unwrap();
        let a = model("float[n,3] x \n y = Relu(x) \n return y");
        let b = model("float[n,2] x \n y = Relu(x) \n return y");
        let data = data(&a, &folder);
        let error = compare(&Tract, &a, &b, &data, &[3, 4], &|_, _| ()).unwrap_err().to_string();
        assert!(error.starts_with("the quantized model: sample 3: value \"x\": "), "{error}");
        let c = model("float[n,3] x \n y = Relu(x) \n return y, x");
        assert!(compare(&Tract, &a, &c, &data, &[0], &|_, _| ()).is_err());
    }

    #[test]
    fn the_same_whether_answers_are_kept_or_computed_again() {
        let folder = tempfile::tempdir().unwrap();
        let a = model("float[n,3] x \n y = Softmax(x) \n return y");
        let b = model("float[n,3] x \n float[1] k = {1.25} \n z = Mul(x, k) \n y = Softmax(z) \n return y");
        let (data, all) = (data(&a, &folder), [0, 1, 2, 3, 4, 5]);
        let want = compare(&Tract, &a, &b, &data, &all, &|_, _| ()).unwrap();
        for most_bytes in [0, 30, 1000] {
            let reference = Reference::with_limit(&Tract, &a, &data, &all, &|_, _| (), most_bytes).unwrap();
            assert_eq!(compare_with(&reference, &b, &all, &|_, _| ()).unwrap(), want, "{most_bytes}");
        }
    }

    #[test]
    fn models_that_run_only_in_another_form() {
        use crate::ir::text;
        let folder = tempfile::tempdir().unwrap();
        let a = model("float[n,3] x \n y = Relu(x) \n return y");
        let data = data(&a, &folder);
        let function = r#"
            <ir_version: 8, opset_import: ["": 17, "my": 1]>
            main (float[n,3] x) => (y) { y = my.Rectify(x) }
            <domain: "my", opset_import: ["": 17]>
            Rectify (a) => (b) { b = Relu(a) }"#;
        let old = r#"
            <ir_version: 8, opset_import: ["": 9]>
            main (float[n,3] x) => (y) {
                four = Constant <value = float[4] {1.0, 1.0, 1.0, 1.0}> ()
                at = Constant <value = int64[2] {0, 1}> ()
                long = Unsqueeze <axes = [0, 1]> (x)
                same = Upsample <mode = "nearest"> (long, four)
                flat = Squeeze <axes = [0, 1]> (same)
                y = Relu(flat)
            }"#;
        let empty = r#"main (float[n,3] x) => (y) { c = Clip(x, "", "") y = Relu(c) }"#;
        for text in [function, old, empty] {
            let b = text::parse(text).unwrap();
            for (a, b) in [(&a, &b), (&b, &a)] {
                let same = compare(&Tract, a, b, &data, &[0, 1], &|_, _| ()).unwrap();
                assert_eq!(same.least_sqnr(), Some(f64::INFINITY), "{text}");
            }
        }
    }
}
