//! Which array goes to which input, and which part of it is a sample.

use super::{
    InputSpec,
    archive::{Archive, Array},
    convert::{may_convert, rounds},
};
use crate::{
    diagnostics::{Diagnostic, count},
    error::{Error, Result},
    ir::Dim,
};

/// Names of arrays that hold what the model should answer, unless an input is called so.
const LABELS: [&str; 3] = ["labels", "label", AMBIGUOUS];
/// May as well hold something else: what does not look like labels is none.
pub(super) const AMBIGUOUS: &str = "y";

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
    /// Whether their array has a name that says little.
    pub ambiguous_labels: bool,
    /// Samples in the file.
    pub len: usize,
}

/// Where samples lie in an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Along axis 0.
    Rows,
    /// The array is one sample, with or without a batch axis.
    Whole,
    /// One without a batch axis is one sample; else as [`Cut::Rows`].
    Either,
}

/// Finds an array for each input.
pub fn match_feeds(file: &Archive, specs: &[InputSpec], how: Cut, notes: &mut Vec<Diagnostic>) -> Result<Feeds> {
    let found = assign(file, specs, notes)?;
    let mut inputs = Vec::new();
    for (spec, &array) in specs.iter().zip(&found) {
        inputs.push(cut(spec, array, &file.arrays()[array], how, notes).map_err(|e| e.value(&spec.name))?);
    }
    let len = agree(specs, &inputs, file)?;
    let is_label = |a: &Array| LABELS.contains(&a.name.to_lowercase().as_str());
    let spare = (0..file.arrays().len()).filter(|i| !found.contains(i));
    let labels = spare.into_iter().find(|&i| is_label(&file.arrays()[i]));
    let ambiguous_labels = labels.is_some_and(|i| file.arrays()[i].name.eq_ignore_ascii_case(AMBIGUOUS));
    let labels = labels.map(|i| label_feed(i, &file.arrays()[i], &inputs, len, notes)).transpose()?.flatten();
    Ok(Feeds { inputs, labels, ambiguous_labels, len })
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
    if arrays.is_empty() {
        return Err(Error::data("the file holds no arrays")
            .file(file.path())
            .help("save one array for each input: numpy.savez(file, INPUT=array, …)"));
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
fn cut(spec: &InputSpec, index: usize, array: &Array, how: Cut, notes: &mut Vec<Diagnostic>) -> Result<Feed> {
    let (have, from) = (&array.header.dims, array.header.dtype);
    if !may_convert(from, spec.dtype) {
        let text = format!("the input takes {}, {} holds {from}", spec.dtype, array.called());
        return Err(Error::data(text).help(format!("save it as {}", spec.dtype)));
    }
    if rounds(from, spec.dtype) {
        let text = format!("{} holds {from}; it is rounded to the input's {}", array.called(), spec.dtype);
        notes.push(Diagnostic::note("data_rounded", text).on(&spec.name));
    }
    let wrong = || {
        let want = spec.dims.as_deref().unwrap_or_default();
        let text = format!("the input has shape {}, {} has shape {have:?}", show(want), array.called());
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
    let whole = how == Cut::Whole;
    if whole && fits(want, have) {
        return Ok(Feed { array: index, rows: 0, dims: have.clone(), samples: Some(1) });
    }
    let one = how != Cut::Rows && have.len() + 1 == want.len();
    if one && fits(&want[1..], have) && want[0].known().is_none_or(|b| b == 1) {
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
        if (1..rows).contains(&have[0]) {
            let text = format!("the input takes batches of {rows}, {} has {}", array.called(), count(have[0], "row"));
            return Err(Error::data(text).help("give more rows, or export the model with a free batch size"));
        }
        if have[0] % rows != 0 {
            let text = format!("{} rows in batches of {rows}: the last {} left out", have[0], have[0] % rows);
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

/// One label for each sample, or one for each row of its batch. An array that is called so and does not fit is an error,
/// for accuracy on labels of other samples would be worse than none.
fn label_feed(
    index: usize,
    array: &Array,
    inputs: &[Feed],
    len: usize,
    notes: &mut Vec<Diagnostic>,
) -> Result<Option<Feed>> {
    let have = &array.header.dims;
    let rows = inputs.iter().map(|f| f.rows).max().unwrap_or(0).max(1);
    if have.is_empty() && len * rows == 1 {
        return Ok(Some(Feed { array: index, rows: 0, dims: vec![1], samples: Some(1) }));
    }
    // Rows that make no whole batch are left out, of labels as of inputs.
    let want = len * rows;
    let fits = have.first().is_some_and(|&n| n >= want && n < want + rows);
    if fits {
        return Ok(Some(Feed { array: index, rows, dims: [&[rows], &have[1..]].concat(), samples: Some(len) }));
    }
    let each = if rows > 1 { format!("{len} batches of {rows}") } else { count(len, "sample") };
    let text = match have.first() {
        Some(n) => format!("{} has {} for {each}", array.called(), count(*n, "label")),
        None => format!("{} is one number for {each}", array.called()),
    };
    if array.name.eq_ignore_ascii_case(AMBIGUOUS) {
        notes.push(Diagnostic::warning("labels_do_not_fit", text));
        return Ok(None);
    }
    Err(Error::data(text).help("give one class number for each row, or rename the array if it holds no labels"))
}
