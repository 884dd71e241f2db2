//! What models are measured on: samples of a data set, or numbers that are made up.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    calibrate::{Dataset, InputSpec},
    error::{Error, Result},
    ir::{DType, Dim, Tensor},
};

/// Inputs by name.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Their tensors.
    pub tensors: Vec<(String, Tensor)>,
    /// What they are, in words.
    pub words: Vec<String>,
}

/// An input as people write it: `image float[N, 3, 224, 224]`.
pub(super) fn words(spec: &InputSpec) -> String {
    let dim = |d: &Dim| match d {
        Dim::Unknown => "?".to_owned(),
        Dim::Known(n) => n.to_string(),
        Dim::Named(name) => name.clone(),
    };
    let dims = spec.dims.as_ref().map_or("...".to_owned(), |d| d.iter().map(dim).collect::<Vec<_>>().join(", "));
    format!("{} {}[{dims}]", spec.name, spec.dtype)
}

/// The first `batch` samples, stacked along the first axis of each input.
pub fn from_data(data: &Dataset, batch: usize) -> Result<Inputs> {
    if batch > data.len() {
        return Err(Error::data(format!("the data has {} samples, a batch of {batch} needs more", data.len())));
    }
    let samples: Vec<Vec<Tensor>> = (0..batch).map(|i| data.sample(i)).collect::<Result<_>>()?;
    let mut tensors = Vec::new();
    for (i, spec) in data.specs().iter().enumerate() {
        let parts: Vec<&Tensor> = samples.iter().filter_map(|s| s.get(i)).collect();
        let tensor = stacked(&parts, spec).map_err(|e| e.value(&spec.name))?;
        tensors.push((spec.name.clone(), tensor));
    }
    if batch > 1 && samples[0].iter().all(|t| t.rank() == 0) {
        return Err(without_effect(batch));
    }
    let which = if batch == 1 { "sample".to_owned() } else { format!("{batch} samples") };
    let stacked = if batch == 1 { "" } else { ", stacked" };
    let mut words = vec![format!("the first {which} of the data{stacked}")];
    words.extend(tensors.iter().map(|(name, t)| given(name, t)));
    Ok(Inputs { tensors, words })
}

/// A batch that no input takes would be measured as another than it is called.
fn without_effect(batch: usize) -> Error {
    let text = format!("a batch of {batch} has no effect: no input has a first dim that it could set");
    Error::config(text).help("leave --batch out")
}

fn given(name: &str, t: &Tensor) -> String {
    format!("{name} {}{:?}", t.dtype(), t.dims())
}

fn stacked(parts: &[&Tensor], spec: &InputSpec) -> Result<Tensor> {
    let [first, ..] = parts else { return Err(Error::bug("no sample to stack")) };
    // What has no axis to stack along (a sampling rate) goes to the whole batch.
    if parts.len() == 1 || first.rank() == 0 {
        return Ok((*first).clone());
    }
    fixed(spec, parts.len() * first.dims()[0])?;
    if let Some(other) = parts.iter().find(|p| p.dims() != first.dims()) {
        let text = format!("samples of shapes {:?} and {:?} cannot be stacked", first.dims(), other.dims());
        return Err(Error::data(text).help("leave --batch out, or give data whose samples have one shape"));
    }
    let mut dims = first.dims().to_vec();
    dims[0] *= parts.len();
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(&part.bytes()?);
    }
    Tensor::new(first.dtype(), dims, bytes)
}

/// Refuses another batch than the model has.
fn fixed(spec: &InputSpec, batch: usize) -> Result<()> {
    match spec.dims.as_ref().and_then(|d| d.first()).and_then(Dim::known) {
        Some(n) if n != batch => {
            let text = format!("the first dim of this input is fixed to {n}, a batch needs {batch}");
            Err(Error::config(text).value(&spec.name).help("leave --batch out, or export the model with a free batch"))
        }
        _ => Ok(()),
    }
}

/// Numbers of the right types and shapes. A dim that the model leaves open is `batch` if it is the first, what `dims` says of
/// its name, else 1.
pub fn made_up(specs: &[InputSpec], dims: &BTreeMap<String, usize>, batch: usize) -> Result<Inputs> {
    let named = |d: &Dim| if let Dim::Named(name) = d { Some(name.clone()) } else { None };
    let names: BTreeSet<String> = specs.iter().flat_map(|s| s.dims.iter().flatten()).filter_map(named).collect();
    if let Some(unknown) = dims.keys().find(|&name| !names.contains(name)) {
        let known: Vec<&str> = names.iter().map(String::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Err(Error::config(format!("--dim {unknown}: no input has a dim of this name"))
            .help(format!("the inputs' dims with names: {known}")));
    }
    let mut tensors = Vec::new();
    let said = |d: &Dim| matches!(d, Dim::Named(name) if dims.contains_key(name));
    if batch > 1 && specs.iter().all(|s| s.dims.iter().flatten().next().is_none_or(said)) {
        return Err(without_effect(batch));
    }
    for spec in specs {
        if batch > 1 {
            fixed(spec, batch)?;
        }
        let dim = |(axis, d): (usize, &Dim)| match d {
            Dim::Known(n) => usize::try_from(*n).unwrap_or(1),
            Dim::Named(name) if dims.contains_key(name) => dims[name],
            _ if axis == 0 => batch,
            _ => 1,
        };
        let shape: Vec<usize> = spec.dims.iter().flatten().enumerate().map(dim).collect();
        tensors.push((spec.name.clone(), numbers(spec, shape)?));
    }
    let mut words = vec!["made up, since no --data is given".to_owned()];
    words.extend(tensors.iter().map(|(name, t)| given(name, t)));
    Ok(Inputs { tensors, words })
}

/// Floats between -1 and 1, integers 0: an index that every table has.
fn numbers(spec: &InputSpec, shape: Vec<usize>) -> Result<Tensor> {
    let too_large = || Error::config(format!("an input of shape {shape:?} is too large")).value(&spec.name);
    let count =
        shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n < 1 << 31).ok_or_else(too_large)?;
    let float = |i: usize| ((i as f32 * 12.9898).sin() * 43_758.547).fract();
    match spec.dtype {
        DType::String => Tensor::strings(shape, vec!["".into(); count]),
        DType::Float => Ok(Tensor::from_f32(&shape, &(0..count).map(float).collect::<Vec<_>>())),
        DType::Double => {
            let bytes: Vec<u8> = (0..count).flat_map(|i| f64::from(float(i)).to_le_bytes()).collect();
            Tensor::new(DType::Double, shape, bytes)
        }
        DType::Float16 => {
            let bytes: Vec<u8> = (0..count).flat_map(|i| half::f16::from_f32(float(i)).to_le_bytes()).collect();
            Tensor::new(DType::Float16, shape, bytes)
        }
        dtype => {
            let length = Tensor::raw_len(dtype, &shape)?;
            Tensor::new(dtype, shape, vec![0u8; length])
        }
    }
    .map_err(|e| e.value(&spec.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, dtype: DType, dims: Vec<Dim>) -> InputSpec {
        InputSpec { name: name.into(), dtype, dims: Some(dims) }
    }

    #[test]
    fn open_dims_are_the_batch_what_is_said_or_one() {
        let open = |n: &str| Dim::Named(n.into());
        let specs = [
            spec("x", DType::Float, vec![open("N"), Dim::Known(3), open("T"), Dim::Unknown]),
            spec("ids", DType::Int64, vec![Dim::Unknown, open("T")]),
        ];
        let made = made_up(&specs, &[("T".to_owned(), 5)].into(), 2).unwrap();
        assert_eq!(made.tensors[0].1.dims(), [2, 3, 5, 1]);
        assert_eq!(made.tensors[1].1.to_i64().unwrap(), [0; 10]);
        assert_eq!(made.words[1], "x float[2, 3, 5, 1]");
        let error = made_up(&specs, &[("U".to_owned(), 5)].into(), 1).unwrap_err();
        assert_eq!(error.help_text(), Some("the inputs' dims with names: N, T"));
        let fixed = [spec("x", DType::Float, vec![Dim::Known(1)])];
        assert!(made_up(&fixed, &BTreeMap::new(), 1).is_ok());
        assert!(made_up(&fixed, &BTreeMap::new(), 4).unwrap_err().to_string().contains("fixed to 1"));
        let no_effect = |specs: &[InputSpec], dims: &[(&str, usize)]| {
            let dims = dims.iter().map(|(n, size)| ((*n).to_owned(), *size)).collect();
            made_up(specs, &dims, 4).unwrap_err().to_string().contains("a batch of 4 has no effect")
        };
        assert!(no_effect(&[spec("x", DType::Float, vec![open("N"), open("T")])], &[("N", 2)]));
        assert!(no_effect(&[spec("rate", DType::Int64, vec![])], &[]));
        assert!(no_effect(&[], &[]));
        let huge = [spec("x", DType::Float, vec![Dim::Known(1 << 40)])];
        assert!(made_up(&huge, &BTreeMap::new(), 1).is_err());
    }

    #[test]
    fn samples_are_stacked_along_the_first_axis() {
        let spec = spec("x", DType::Float, vec![Dim::Unknown, Dim::Known(2)]);
        let (a, b) = (Tensor::from_f32(&[1, 2], &[1.0, 2.0]), Tensor::from_f32(&[1, 2], &[3.0, 4.0]));
        let both = stacked(&[&a, &b], &spec).unwrap();
        assert_eq!((both.dims(), both.to_f32().unwrap()), (&[2, 2][..], vec![1.0, 2.0, 3.0, 4.0]));
        let wide = Tensor::from_f32(&[1, 3], &[0.0; 3]);
        assert!(stacked(&[&a, &wide], &spec).unwrap_err().to_string().contains("cannot be stacked"));
    }
}
