//! Which array goes to which input, and which part of it is a sample.

use super::{
    InputSpec,
    archive::{Archive, Array},
    convert::{may_convert, rounds},
};
use crate::{
    diagnostics::Diagnostic,
    error::{Error, Result},
    ir::Dim,
};

/// Names of arrays that hold what the model should answer, unless an input is called so.
const LABELS: [&str; 3] = ["labels", "label", "y"];

/// How samples are cut from an array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feed {
    /// The array's place in its file.
    pub array: usize,
    /// Rows of axis 0 that a sample takes; 0 where the whole array is every sample.
    pub rows: usize,
    /// The shape of a sample.
    pub dims: Vec<usize>,
    /// Samples in the array; `None` where the whole array is every sample.
    pub samples: Option<usize>,
}

/// How the samples of one file are cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feeds {
    /// One for each input, in the order of the inputs.
    pub inputs: Vec<Feed>,
    /// The labels.
    pub labels: Option<Feed>,
    /// Samples in the file.
    pub len: usize,
}

/// Finds an array for each input. `whole` takes each array as one sample.
pub fn match_feeds(file: &Archive, specs: &[InputSpec], whole: bool, notes: &mut Vec<Diagnostic>) -> Result<Feeds> {
    let found = assign(file, specs, notes)?;
    let mut inputs = Vec::new();
    for (spec, &array) in specs.iter().zip(&found) {
        inputs.push(cut(spec, array, &file.arrays()[array], whole, notes).map_err(|e| e.value(&spec.name))?);
    }
    let len = agree(specs, &inputs, file)?;
    let is_label = |a: &Array| LABELS.contains(&a.name.to_lowercase().as_str());
    let spare = (0..file.arrays().len()).filter(|i| !found.contains(i));
    let labels = spare.into_iter().find(|&i| is_label(&file.arrays()[i]));
    let labels = labels.and_then(|i| label_feed(i, &file.arrays()[i], &inputs, len, notes));
    Ok(Feeds { inputs, labels, len })
}

/// The array of each input: by name; by order if no name is known and there are as many arrays as inputs.
fn assign(file: &Archive, specs: &[InputSpec], notes: &mut Vec<Diagnostic>) -> Result<Vec<usize>> {
    let arrays = file.arrays();
    let plain = |s: &str| s.to_lowercase().replace(|c: char| !c.is_alphanumeric(), "_");
    let by_name = |name: &str| {
        let exact = arrays.iter().position(|a| a.name == name);
        exact.or_else(|| {
            let mut like = (0..arrays.len()).filter(|&i| plain(&arrays[i].name) == plain(name));
            like.next().filter(|_| like.next().is_none())
        })
    };
    let found: Vec<Option<usize>> = specs.iter().map(|s| by_name(&s.name)).collect();
    if found.iter().all(Option::is_none) {
        let others = (0..arrays.len()).filter(|&i| !LABELS.contains(&arrays[i].name.to_lowercase().as_str()));
        let others: Vec<usize> = others.collect();
        if others.len() == specs.len() {
            for (spec, &i) in specs.iter().zip(&others).filter(|(_, i)| !arrays[**i].name.is_empty()) {
                let text = format!("fed from array {:?}, by order: no array has an input's name", arrays[i].name);
                notes.push(Diagnostic::note("array_by_order", text).on(&spec.name));
            }
            return Ok(others);
        }
    }
    let names = || arrays.iter().map(|a| format!("{:?}", a.name)).collect::<Vec<_>>().join(", ");
    specs
        .iter()
        .zip(found)
        .map(|(spec, found)| {
            found.ok_or_else(|| {
                let text = format!("the data has no array for input {:?}; it has {}", spec.name, names());
                let error = Error::data(text).file(file.path());
                let spare = arrays.iter().filter(|a| specs.iter().all(|s| s.name != a.name));
                match spare.min_by_key(|a| distance(&a.name, &spec.name)) {
                    Some(a) if !a.name.is_empty() => {
                        error.help(format!("did you mean {:?}? name the arrays as the inputs", a.name))
                    }
                    _ => error.help("save one array for each input: numpy.savez(file, INPUT=array, …)"),
                }
            })
        })
        .collect()
}

/// How many letters to insert, remove or replace to make `a` of `b`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn show(dims: &[Dim]) -> String {
    let one = |d: &Dim| match d {
        Dim::Named(name) => name.clone(),
        d => d.known().map_or_else(|| "?".into(), |n| n.to_string()),
    };
    format!("[{}]", dims.iter().map(one).collect::<Vec<_>>().join(", "))
}

/// Whether a shape is one that the input can take.
fn fits(want: &[Dim], have: &[usize]) -> bool {
    want.len() == have.len() && want.iter().zip(have).all(|(w, &h)| w.known().is_none_or(|w| w == h))
}

/// How samples for `spec` are cut from `array`.
fn cut(spec: &InputSpec, index: usize, array: &Array, whole: bool, notes: &mut Vec<Diagnostic>) -> Result<Feed> {
    let (have, from) = (&array.header.dims, array.header.dtype);
    if !may_convert(from, spec.dtype) {
        let text = format!("the input takes {}, array {:?} holds {from}", spec.dtype, array.name);
        return Err(Error::data(text).help(format!("save it as {}", spec.dtype)));
    }
    if rounds(from, spec.dtype) {
        let text = format!("array {:?} holds {from}; it is rounded to the input's {}", array.name, spec.dtype);
        notes.push(Diagnostic::note("data_rounded", text).on(&spec.name));
    }
    let wrong = || {
        let want = spec.dims.as_deref().unwrap_or_default();
        let text = format!("the input has shape {}, array {:?} has shape {have:?}", show(want), array.name);
        Error::data(text).help("samples lie along axis 0, each of the input's shape")
    };
    let stack = |rows: usize, dims: Vec<usize>| {
        let samples = have[0] / rows;
        Feed { array: index, rows, dims, samples: Some(samples) }
    };
    let Some(want) = spec.dims.as_deref() else {
        // Nothing is known: samples along axis 0 with a batch of 1.
        let Some((_, rest)) = have.split_first() else { return Ok(constant(index, have)) };
        return Ok(stack(1, [&[1], rest].concat()));
    };
    if whole && fits(want, have) {
        return Ok(Feed { array: index, rows: 0, dims: have.clone(), samples: Some(1) });
    }
    if whole && !want.is_empty() && fits(&want[1..], have) && want[0].known().is_none_or(|b| b == 1) {
        return Ok(Feed { array: index, rows: 0, dims: [&[1], &have[..]].concat(), samples: Some(1) });
    }
    if whole {
        return Err(wrong());
    }
    if have.len() == want.len() {
        let Some(batch) = want.first() else { return Ok(constant(index, have)) };
        let rows = batch.known().unwrap_or(1);
        if rows == 0 || !fits(&want[1..], &have[1..]) {
            return Err(wrong());
        }
        if have[0] % rows != 0 {
            let text = format!("{} rows make {} batches of {rows}; the rest is left out", have[0], have[0] / rows);
            notes.push(Diagnostic::note("rest_left_out", text).on(&spec.name));
        }
        return Ok(stack(rows, [&[rows], &have[1..]].concat()));
    }
    if have.len() == want.len() + 1 && fits(want, &have[1..]) {
        return Ok(stack(1, have[1..].to_vec()));
    }
    Err(wrong())
}

/// The same for every sample.
fn constant(array: usize, dims: &[usize]) -> Feed {
    Feed { array, rows: 0, dims: dims.to_vec(), samples: None }
}

/// The number of samples, which all arrays must agree on.
fn agree(specs: &[InputSpec], feeds: &[Feed], file: &Archive) -> Result<usize> {
    let mut counts = specs.iter().zip(feeds).filter_map(|(s, f)| f.samples.map(|n| (&s.name, n)));
    let Some((first, len)) = counts.next() else { return Ok(1) };
    if let Some((other, n)) = counts.find(|&(_, n)| n != len) {
        let text = format!("the data has {len} samples for input {first:?} and {n} for {other:?}");
        return Err(Error::data(text).file(file.path()).help("samples lie along axis 0 of each array"));
    }
    Ok(len)
}

/// Labels are used only if there are as many as samples; a batch of rows has as many labels as rows.
fn label_feed(index: usize, array: &Array, inputs: &[Feed], len: usize, notes: &mut Vec<Diagnostic>) -> Option<Feed> {
    let have = &array.header.dims;
    let rows = inputs.iter().map(|f| f.rows).max().unwrap_or(0).max(1);
    if have.first().is_none_or(|&n| n / rows != len) {
        let text =
            format!("array {:?} of shape {have:?} does not give one label for each of {len} samples", array.name);
        notes.push(Diagnostic::warning("labels_do_not_fit", text));
        return None;
    }
    Some(Feed { array: index, rows, dims: [&[rows], &have[1..]].concat(), samples: Some(len) })
}
