//! One more pass over some of the data: second moments of what layers read, for the algorithms that round weights by them.
//!
//! Of each sample a layer gives a few of its rows (positions of a convolution, rows of a matrix), spread over all of it.
//! How many depends on the depth of its products alone, so neither memory nor time grow with the data.
//! Samples run in parallel, a few at a time; what they give is added in their order, so that threads change nothing.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use rayon::prelude::*;

use super::collect::{Feed, Progress, for_each_sample};
use crate::{
    error::{Error, Result},
    ir::{Model, Node, ValueId},
    quant::{
        QParams,
        arith::Quantizer,
        float8::Float8,
        integer::{Window, Windows},
    },
    runtime::{Observed, Runtime},
    weights::Moments,
};

/// Products of more inputs than this are not looked at: their moments alone would take 64 MB for each half of the data.
pub const DEEPEST: usize = 4096;
/// Moments of all layers take at most so many bytes.
const MOST_BYTES: usize = 1 << 30;
/// Rows for each input of a product, in both halves together. Four times as many gained nothing …
const ROWS_FOR_EACH: usize = 4;
/// … but shallow products get more, since it costs nothing …
const FEWEST_ROWS: usize = 2048;
/// … and the deepest make do with fewer: so many products for each layer. What is added to the diagonal of the moments, and
/// the half that is only checked, keep it from fitting to chance.
const MOST_PRODUCTS: usize = 5_000_000_000;
/// Samples whose rows are kept at a time, at most, and the bytes that these may take.
const AT_A_TIME: (usize, usize) = (16, 1 << 26);
/// With fewer samples than this, each gives rows to both halves.
const FEW_SAMPLES: usize = 8;

/// A layer's window over its input.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Patches {
    kernel: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    pads: Vec<usize>,
    auto_pad: String,
    groups: usize,
}

impl Patches {
    /// The window of a convolution with a weight of these dims; `None` for what is not sound, or crops.
    pub fn of(conv: &Node, weight: &[usize]) -> Option<Self> {
        let kernel = weight.get(2..)?.to_vec();
        let list = |name: &str, count: usize, default: usize| match conv.ints(name) {
            Some(v) if v.len() == count => v.iter().map(|&i| usize::try_from(i).ok()).collect::<Option<Vec<_>>>(),
            _ => Some(vec![default; count]),
        };
        let rank = kernel.len();
        let patches = Self {
            strides: list("strides", rank, 1)?,
            dilations: list("dilations", rank, 1)?,
            pads: list("pads", 2 * rank, 0)?,
            auto_pad: conv.string("auto_pad").unwrap_or("NOTSET").to_owned(),
            groups: usize::try_from(conv.int("group").unwrap_or(1)).ok().filter(|&g| g > 0)?,
            kernel,
        };
        (!patches.strides.contains(&0)).then_some(patches)
    }

    /// Elements added before each dim of these sizes, then those added behind each.
    fn pads(&self, sizes: &[usize]) -> Option<Vec<usize>> {
        let rank = self.kernel.len();
        match self.auto_pad.as_str() {
            "VALID" => Some(vec![0; 2 * rank]),
            "SAME_UPPER" | "SAME_LOWER" => {
                let total = |i: usize| {
                    let reach = self.kernel[i].checked_sub(1)?.checked_mul(self.dilations[i])?.checked_add(1)?;
                    let last = (sizes[i].div_ceil(self.strides[i])).checked_sub(1)?.checked_mul(self.strides[i])?;
                    Some(last.checked_add(reach)?.saturating_sub(sizes[i]))
                };
                let totals: Vec<usize> = (0..rank).map(total).collect::<Option<_>>()?;
                let less = |t: &usize| t / 2;
                let more = |t: &usize| t - t / 2;
                let upper = self.auto_pad == "SAME_UPPER";
                let before = totals.iter().map(if upper { less } else { more });
                Some(before.chain(totals.iter().map(if upper { more } else { less })).collect())
            }
            _ => Some(self.pads.clone()),
        }
    }
}

/// How a layer reads a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// The value.
    pub value: ValueId,
    /// Through a window, or row by row: along the last axis.
    pub patches: Option<Patches>,
    /// How the value is quantized before the layer reads it.
    pub params: Option<QParams>,
}

/// Layers that are to have moments in common.
#[derive(Debug, Clone, PartialEq)]
pub struct Want {
    /// What they read.
    pub readings: Vec<Reading>,
    /// Products that one of their outputs adds.
    pub depth: usize,
    /// Groups of outputs that read different inputs.
    pub groups: usize,
    /// Their biases take back what the mean of their output is off.
    pub centered: bool,
}

/// Why there are no moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The products are deeper than [`DEEPEST`], or those of the layers before took all the memory that is allowed.
    Large,
    /// The data have another shape than the weight asks for, have numbers that are not finite, or there are too few rows.
    Data,
}

/// What was seen for each half of the data.
type Halves = [Option<Seen>; 2];

/// Rows of a layer, and what quantizing adds to them, summed up for each group and place of the depth.
#[derive(Default)]
struct Seen {
    rows: Vec<f32>,
    noise: Vec<f64>,
}

/// Runs `model` on `samples` and gathers what is wanted, in the order of the wants.
pub fn gather(
    runtime: &dyn Runtime,
    model: &Model,
    wants: &[Want],
    samples: &[usize],
    feed: &Feed<'_>,
    progress: &Progress<'_>,
) -> Result<Vec<std::result::Result<Moments, Missing>>> {
    if samples.is_empty() {
        return Err(Error::data("there are no samples to see what layers read"));
    }
    let mut left = MOST_BYTES;
    let fits = |want: &Want| {
        let bytes = Moments::bytes(want.depth, want.groups);
        let fits = want.depth <= DEEPEST && bytes <= left;
        left -= if fits { bytes } else { 0 };
        fits.then(|| Mutex::new(Some(Moments::new(want.depth, want.groups))))
    };
    let moments: Vec<Option<Mutex<Option<Moments>>>> = wants.iter().map(fits).collect();
    let mut readers: BTreeMap<ValueId, Vec<(usize, &Reading)>> = BTreeMap::new();
    for (w, want) in wants.iter().enumerate().filter(|(w, _)| moments[*w].is_some()) {
        want.readings.iter().for_each(|r| readers.entry(r.value).or_default().push((w, r)));
    }
    let values: Vec<ValueId> = readers.keys().copied().collect();
    // With nothing to see, nothing is run.
    let samples = if values.is_empty() { &[] } else { samples };
    let session = runtime.load(model, &values)?;
    let rows: Vec<usize> = wants.iter().map(|want| rows_of_sample(want, samples.len())).collect();
    let kept: usize = wants.iter().zip(&rows).map(|(w, r)| r * w.depth * w.groups * size_of::<f32>()).sum();
    let at_a_time = (AT_A_TIME.1 / kept.max(1)).clamp(1, AT_A_TIME.0);
    let order: BTreeMap<usize, usize> = samples.iter().enumerate().map(|(i, &s)| (s, i)).collect();
    for (chunk, some) in samples.chunks(at_a_time).enumerate() {
        let seen: Mutex<BTreeMap<[usize; 4], Option<Halves>>> = Mutex::new(BTreeMap::new());
        let progress = |done: usize, _: usize| progress(chunk * at_a_time + done, samples.len());
        for_each_sample(some, &progress, |sample| {
            let nth = order[&sample];
            session.run_observed(&feed(sample)?, &mut |number, value| {
                for (i, &(w, reading)) in readers[&values[number]].iter().enumerate() {
                    let split = samples.len() < FEW_SAMPLES;
                    let halves = rows_of(value, reading, &wants[w], rows[w], nth, split)?;
                    seen.lock().unwrap_or_else(PoisonError::into_inner).insert([w, nth, number, i], halves);
                }
                Ok(())
            })?;
            Ok(())
        })?;
        let mut of_want: BTreeMap<usize, Vec<Option<Halves>>> = BTreeMap::new();
        for ([w, ..], halves) in seen.into_inner().unwrap_or_else(PoisonError::into_inner) {
            of_want.entry(w).or_default().push(halves);
        }
        of_want.par_iter().for_each(|(&w, seen)| {
            let Some(slot) = &moments[w] else { return };
            let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(own) = slot.as_mut() else { return };
            for half in [0, 1] {
                let parts: Vec<&Seen> = seen.iter().flatten().filter_map(|halves| halves[half].as_ref()).collect();
                if !parts.is_empty() {
                    let all = joined(&parts, wants[w].groups);
                    own.add(half, &all.rows, &all.noise);
                }
            }
            if seen.iter().any(Option::is_none) {
                *slot = None;
            }
        });
    }
    let finish = |(w, slot): (usize, Option<Mutex<Option<Moments>>>)| {
        let moments = slot.ok_or(Missing::Large)?.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut moments = moments.ok_or(Missing::Data)?;
        moments.finish(wants[w].centered).then_some(moments).ok_or(Missing::Data)
    };
    Ok(moments.into_par_iter().enumerate().map(finish).collect())
}

/// Rows that each sample gives.
fn rows_of_sample(want: &Want, samples: usize) -> usize {
    let most = MOST_PRODUCTS / want.depth.saturating_mul(want.depth).saturating_mul(want.groups).max(1);
    let rows = want.depth.saturating_mul(ROWS_FOR_EACH).max(FEWEST_ROWS).min(most);
    rows.div_ceil(samples.max(1) * want.readings.len().max(1)).max(2)
}

/// All rows of one group behind each other, then those of the next.
fn joined(parts: &[&Seen], groups: usize) -> Seen {
    let (mut rows, mut noise) = (Vec::new(), vec![0.0; parts.first().map_or(0, |p| p.noise.len())]);
    for part in parts {
        noise.iter_mut().zip(&part.noise).for_each(|(a, b)| *a += b);
    }
    for group in 0..groups {
        for part in parts {
            let each = part.rows.len() / groups;
            rows.extend_from_slice(&part.rows[group * each..(group + 1) * each]);
        }
    }
    Seen { rows, noise }
}

/// What a layer reads of a value in a sample, in the halves that it belongs to; `None` where its shape does not fit.
/// With `split` its rows go to both, else all to one.
fn rows_of(
    value: &dyn Observed,
    reading: &Reading,
    want: &Want,
    count: usize,
    nth: usize,
    split: bool,
) -> Result<Option<Halves>> {
    let values = value.floats()?;
    let dims = value.dims();
    let view = match &reading.patches {
        None => View::rows(dims, want),
        Some(patches) => View::patches(dims, patches, want),
    };
    let Some(view) = view else { return Ok(None) };
    let chosen = spread(view.positions(), count, nth);
    let parity = |at: usize| if split { (at + nth) % 2 } else { nth % 2 };
    let of_half = |half: usize| -> Result<Option<Seen>> {
        let own: Vec<usize> = chosen.iter().enumerate().filter(|(i, _)| parity(*i) == half).map(|(_, &p)| p).collect();
        if own.is_empty() { Ok(None) } else { view.seen(&values, &own, want, reading.params).map(Some) }
    };
    Ok(Some([of_half(0)?, of_half(1)?]))
}

/// So many of the positions, spread evenly; other ones for each sample. They come in steps of the golden ratio, which falls
/// in step with no width of a picture.
fn spread(positions: usize, count: usize, nth: usize) -> Vec<usize> {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    if positions <= count {
        return (0..positions).collect();
    }
    let place = |i: usize| (((nth * count + i) as f64 * GOLDEN).fract() * positions as f64) as usize;
    (0..count).map(|i| place(i).min(positions - 1)).collect()
}

/// Rows of a value, not yet taken out.
enum View<'a> {
    /// Row after row of the layer's depth.
    Rows(usize),
    /// Windows over each of so many pictures, of so many channels and elements of a channel.
    Patches { windows: WindowsOf<'a>, batch: usize, channels: usize, plane: usize },
}

/// A window with its lists.
struct WindowsOf<'a> {
    patches: &'a Patches,
    pads: Vec<usize>,
    sizes: &'a [usize],
    positions: usize,
}

impl WindowsOf<'_> {
    fn each<T>(&self, work: impl FnOnce(&Windows<'_>) -> T) -> Result<T> {
        let Patches { kernel, strides, dilations, .. } = self.patches;
        let window = Window { strides, dilations, pads: &self.pads };
        Ok(work(&Windows::new(window, self.sizes, kernel, false)?))
    }
}

impl<'a> View<'a> {
    fn rows(dims: &[usize], want: &Want) -> Option<Self> {
        let (&last, lead) = dims.split_last()?;
        (last == want.depth && want.groups == 1).then(|| Self::Rows(lead.iter().product()))
    }

    fn patches(dims: &'a [usize], patches: &'a Patches, want: &Want) -> Option<Self> {
        let (&[batch, channels], sizes) = dims.split_first_chunk()?;
        let taps: usize = patches.kernel.iter().product();
        let own = channels.checked_div(patches.groups)?;
        if sizes.len() != patches.kernel.len() || own.checked_mul(taps)? != want.depth || patches.groups != want.groups
        {
            return None;
        }
        let mut windows = WindowsOf { patches, pads: patches.pads(sizes)?, sizes, positions: 0 };
        windows.positions = windows.each(|w| w.out.iter().product()).ok()?;
        Some(Self::Patches { windows, batch, channels, plane: sizes.iter().product() })
    }

    /// How many rows there are.
    fn positions(&self) -> usize {
        match self {
            Self::Rows(count) => *count,
            Self::Patches { windows, batch, .. } => windows.positions * batch,
        }
    }

    /// Takes these rows out, as they are when they have been quantized.
    fn seen(&self, values: &[f32], chosen: &[usize], want: &Want, params: Option<QParams>) -> Result<Seen> {
        let (depth, groups) = (want.depth, want.groups);
        let mut rows = vec![0f32; chosen.len() * depth * groups];
        match self {
            Self::Rows(_) => {
                for (row, &at) in rows.chunks_exact_mut(depth.max(1)).zip(chosen) {
                    row.copy_from_slice(&values[at * depth..(at + 1) * depth]);
                }
            }
            Self::Patches { windows, channels, plane, .. } => windows.each(|w| {
                let (own, taps) = (channels / groups, depth / (channels / groups).max(1));
                for (r, &at) in chosen.iter().enumerate() {
                    let covered = w.taps(at % windows.positions);
                    let picture = &values[at / windows.positions * channels * plane..];
                    for c in 0..*channels {
                        let (group, c_of_group) = (c / own, c % own);
                        let row = &mut rows[(group * chosen.len() + r) * depth + c_of_group * taps..][..taps];
                        let channel = &picture[c * plane..(c + 1) * plane];
                        covered.iter().for_each(|&(tap, place)| row[tap] = channel[place]);
                    }
                }
            })?,
        }
        let mut noise = Vec::new();
        if let Some(params) = params {
            noise = vec![0.0; depth * groups];
            let each_row = rows.chunks_exact_mut(depth.max(1)).enumerate();
            let pairs = each_row.map(|(r, row)| (row, r / chosen.len() * depth..(r / chosen.len() + 1) * depth));
            let scale = params.scale;
            match Float8::of(params.dtype) {
                // Their steps at the greatest number are the largest.
                Some(float) => {
                    let step = scale * float.largest() / 8.0;
                    pairs.for_each(|(row, at)| {
                        round_row(row, &mut noise[at], step, |x| float.rounded(x / scale) * scale);
                    });
                }
                None => {
                    let q = Quantizer::new(params)?;
                    pairs.for_each(|(row, at)| round_row(row, &mut noise[at], scale, |x| q.round_trip(x)));
                }
            }
        }
        Ok(Seen { rows, noise })
    }
}

/// Rounds what a row reads, and adds the errors up. What is cut off counts as one step: a few numbers far beyond the range
/// would shift all others.
fn round_row(row: &mut [f32], sums: &mut [f64], step: f32, round_trip: impl Fn(f32) -> f32) {
    for (x, sum) in row.iter_mut().zip(sums) {
        let read = round_trip(*x);
        *sum += f64::from((read - *x).clamp(-step, step));
        *x = read;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        ir::{
            DType, Tensor,
            testing::{find, model},
        },
        runtime::tract::Tract,
        weights::{Layout, Reads},
    };

    fn noise(i: usize) -> f32 {
        ((i as f32 + 1.0) * 12.9898).sin()
    }

    fn feed(dims: &[usize], sample: usize) -> Tensor {
        let count: usize = dims.iter().product();
        Tensor::from_f32(dims, &(0..count).map(|i| noise(i + sample * count)).collect::<Vec<_>>())
    }

    /// The mean of each output, from the moments and from running the layer.
    fn means(attributes: &str, weight: &[usize], groups: usize) -> [Vec<f64>; 2] {
        let (dims, count) = ([2, weight[1] * groups, 5, 6], weight.iter().product::<usize>());
        let numbers: Vec<f32> = (0..count).map(noise).collect();
        let list = numbers.iter().map(f32::to_string).collect::<Vec<_>>().join(",");
        let shape = |d: &[usize]| d.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let m = model(&format!(
            "float[{}] x \n float[{}] w = {{{list}}} \n y = Conv <group = {groups}, {attributes}> (x, w) \n return y",
            shape(&dims),
            shape(weight)
        ));
        let patches = Patches::of(m.node(m.nodes(m.main())[0]), weight).unwrap();
        let reading = Reading { value: find(&m, "x"), patches: Some(patches), params: None };
        let depth = count / weight[0];
        let want = Want { readings: vec![reading], depth, groups, centered: true };
        let found = gather(&Tract, &m, &[want], &[0, 1], &|i| Ok(vec![feed(&dims, i)]), &|_, _| ()).unwrap();
        let layout = Layout { outs: weight[0], depth, groups, depth_first: false };
        let reads = Reads { layout, moments: Arc::new(found.into_iter().next().unwrap().unwrap()) };
        let session = Tract.load(&m, &[]).unwrap();
        let mut sums = vec![(0.0, 0usize); weight[0]];
        for sample in [0, 1] {
            let y = session.run(&[feed(&dims, sample)]).unwrap().remove(0);
            let inner: usize = y.dims()[2..].iter().product();
            for (i, run) in y.to_f32().unwrap().chunks(inner).enumerate() {
                let (sum, count) = &mut sums[i % weight[0]];
                *sum += run.iter().map(|&v| f64::from(v)).sum::<f64>();
                *count += run.len();
            }
        }
        [reads.shift(&numbers, &vec![0.0; count]), sums.iter().map(|(s, n)| s / *n as f64).collect()]
    }

    #[test]
    fn rows_are_what_a_convolution_multiplies() {
        for (attributes, weight, groups) in [
            ("pads = [1, 0, 2, 1]", [4, 3, 3, 2], 1),
            ("strides = [2, 1], dilations = [1, 2]", [4, 2, 2, 2], 2),
            ("auto_pad = \"SAME_UPPER\", strides = [2, 2]", [3, 1, 4, 3], 3),
            ("auto_pad = \"SAME_LOWER\"", [2, 2, 2, 3], 1),
            ("auto_pad = \"VALID\"", [2, 2, 2, 3], 1),
        ] {
            let [ours, theirs] = means(attributes, &weight, groups);
            for (a, b) in ours.iter().zip(&theirs) {
                assert!((a - b).abs() < 1e-5, "{attributes}: {ours:?} {theirs:?}");
            }
        }
    }

    #[test]
    fn few_rows_of_each_sample_whatever_the_threads() {
        let m = model("float[n,3] x \n y = Relu(x) \n return y");
        let want = |value: &str, depth: usize, params: Option<QParams>| Want {
            readings: vec![Reading { value: find(&m, value), patches: None, params }],
            depth,
            groups: 1,
            centered: false,
        };
        let params = QParams { scale: 0.5, zero_point: 0, dtype: DType::Int8 };
        let wants = [want("x", 3, None), want("y", 3, Some(params)), want("y", 4, None), want("y", DEEPEST + 1, None)];
        let samples: Vec<usize> = (0..30).collect();
        let run = || gather(&Tract, &m, &wants, &samples, &|i| Ok(vec![feed(&[9000, 3], i)]), &|_, _| ()).unwrap();
        let (found, again) = (run(), run());
        assert_eq!(found, again);
        assert_eq!(
            found[2..].iter().map(|f| f.clone().unwrap_err()).collect::<Vec<_>>(),
            [Missing::Data, Missing::Large]
        );
        let layout = Layout { outs: 1, depth: 3, groups: 1, depth_first: true };
        let shift = |i: usize| {
            let reads = Reads { layout, moments: Arc::new(found[i].clone().unwrap()) };
            reads.shift(&[1.0, 0.0, 0.0], &[0.0; 3])[0]
        };
        // Nothing is lost of the mean of a sine, and of its upper half: 1 / pi.
        assert!(
            shift(0).abs() < 0.03 && (shift(1) - std::f64::consts::FRAC_1_PI).abs() < 0.03,
            "{} {}",
            shift(0),
            shift(1)
        );
    }

    #[test]
    fn places_are_spread() {
        let places = spread(1000, 10, 3);
        assert!(places.len() == 10 && places.iter().all(|&p| p < 1000));
        assert!((0..10).all(|tenth| places.iter().filter(|&&p| p / 100 == tenth).count() <= 2), "{places:?}");
        assert_eq!(spread(3, 10, 5), [0, 1, 2]);
    }
}
