//! Products whose data are quantized at run time. Quantizing costs once what several of them read, so all readers of a value
//! are decided together: each must gain by itself, and all of them more than the quantizing costs.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Decision, Shapes, Wishes,
    dynamic::{Choice, Known, row},
};
use crate::{
    ir::{GraphId, Model, NodeId, ValueId},
    target::{Convolution, DynamicKernel, ProductTimes, Target},
};

/// The part of the float time that readers of a value must gain: less is within the error of the cost model.
const LEAST_GAIN: f64 = 0.1;

/// A product that could be quantized.
struct Product<'t> {
    row: &'t DynamicKernel,
    times: ProductTimes,
    /// What it reads, and in which graph.
    reads: (ValueId, GraphId),
}

/// What becomes of each of these nodes.
pub(super) fn choose(
    model: &Model,
    target: &Target,
    known: &Known<'_>,
    wishes: &Wishes,
    nodes: &[NodeId],
) -> Vec<Choice> {
    let all: Vec<_> = nodes.iter().map(|&id| (id, product(model, target, known, wishes, id))).collect();
    let mut readers: BTreeMap<(ValueId, GraphId), Vec<(NodeId, &Product<'_>)>> = BTreeMap::new();
    for (id, found) in &all {
        if let Ok(p) = found {
            readers.entry(p.reads).or_default().push((*id, p));
        }
    }
    let forced = |id: NodeId| wishes.ignore_cost || wishes.forces(model, id);
    let mut chosen: BTreeMap<NodeId, (String, f64)> = BTreeMap::new();
    for group in readers.values() {
        let gains = |p: &Product<'_>| p.times.integer < p.times.float;
        let gainers = || group.iter().filter(|(_, p)| gains(p));
        let float: f64 = gainers().map(|(_, p)| p.times.float).sum();
        let integer: f64 = gainers().map(|(_, p)| p.times.integer).sum();
        let quantize = group[0].1.times.quantize;
        let pays = integer + quantize < float * (1.0 - LEAST_GAIN) || group.iter().any(|(id, _)| forced(*id));
        let taken: Vec<_> = group.iter().filter(|(id, p)| forced(*id) || pays && gains(p)).collect();
        for (i, (id, p)) in taken.iter().enumerate() {
            let shared = p.row.shared_kernel.as_ref().filter(|_| taken.len() > 1);
            let time = p.times.integer + if i == 0 { quantize } else { 0.0 };
            chosen.insert(*id, (shared.unwrap_or(&p.row.kernel).clone(), time));
        }
    }
    let choice = |(id, found): &(NodeId, Result<Product<'_>, String>)| {
        let (decision, times) = match (found, chosen.get(id)) {
            (Ok(p), Some((kernel, time))) => (Decision::Dynamic(kernel.clone()), (p.times.float, *time)),
            (Ok(p), None) => {
                let reason = format!("quantizing at run time ({}) would cost more than it gains", p.row.kernel);
                (Decision::Float(reason), (p.times.float, p.times.float))
            }
            (Err(reason), _) => (Decision::Float(reason.clone()), (0.0, 0.0)),
        };
        Choice { id: *id, decision, times }
    };
    all.iter().map(choice).collect()
}

/// How a product that would be float otherwise could compute with data that are quantized at run time.
pub(super) struct Offer<'t> {
    row: &'t DynamicKernel,
    /// The time of a run, as a share of that in float.
    pub(super) share: f64,
    reads: (ValueId, GraphId),
}

impl Offer<'_> {
    /// The kernel where these take their offers.
    pub(super) fn kernel(&self, offers: &BTreeMap<NodeId, Self>, taken: &BTreeSet<NodeId>) -> String {
        let shares = taken.iter().filter_map(|n| offers.get(n)).filter(|o| o.reads == self.reads).count() > 1;
        self.row.shared_kernel.as_ref().filter(|_| shares).unwrap_or(&self.row.kernel).clone()
    }
}

/// The products that may quantize their data at run time instead of being float, and gain by it.
pub(super) fn offers<'t>(
    model: &Model,
    target: &'t Target,
    shapes: &Shapes,
    wishes: &Wishes,
) -> BTreeMap<NodeId, Offer<'t>> {
    if wishes.float_at_run_time.is_empty() {
        return BTreeMap::new();
    }
    let known = Known::of(model, shapes);
    let product = |&id: &NodeId| Some((id, product(model, target, &known, wishes, id).ok()?));
    let all: Vec<(NodeId, Product<'t>)> = wishes.float_at_run_time.iter().filter_map(product).collect();
    let readers = |reads| all.iter().filter(|(_, p)| p.reads == reads).count().max(1) as f64;
    let offer = |(id, p): &(NodeId, Product<'t>)| {
        let share = (p.times.integer + p.times.quantize / readers(p.reads)) / p.times.float;
        (share < 1.0 - LEAST_GAIN).then_some((*id, Offer { row: p.row, share, reads: p.reads }))
    };
    all.iter().filter_map(offer).collect()
}

fn product<'t>(
    model: &Model,
    target: &'t Target,
    known: &Known<'_>,
    wishes: &Wishes,
    id: NodeId,
) -> Result<Product<'t>, String> {
    let row = row(model, target, known, wishes, id)?;
    let node = model.node(id);
    let x = node.input(0).filter(|&v| model.value(v).constant().is_none()).ok_or("it has no data input")?;
    let weight = model.constant_input(id, 1).ok_or("its second operand is not constant")?;
    let w = weight.dims();
    // What is not known counts as one: so small a product gains least.
    let dim = |v: ValueId, axis: usize| known.dim(v, axis).unwrap_or(1).max(1);
    let odd = || format!("its weight is {weight:?}, which has no kernel that quantizes its data at run time");
    let times = if node.is("Conv") {
        if node.input(2).is_some_and(|b| model.value(b).constant().is_none()) {
            return Err("its bias is not constant".to_owned());
        }
        let &[outputs, inputs, ref taps @ ..] = w else { return Err(odd()) };
        if taps.is_empty() || weight.is_empty() {
            return Err(odd());
        }
        let groups = usize::try_from(node.int("group").unwrap_or(1)).unwrap_or(1).max(1);
        let out = node.output(0).ok_or("it has no output")?;
        let positions = |v: ValueId| (2..w.len()).map(|i| dim(v, i)).fold(dim(x, 0), usize::saturating_mul);
        let inputs = inputs.saturating_mul(groups);
        let shape = Convolution {
            positions: positions(out),
            taps: taps.iter().product(),
            inputs,
            outputs,
            groups,
            planar: w.len() == 4,
        };
        target.costs.dynamic_convolution(shape, positions(x).saturating_mul(inputs))
    } else {
        let trans_b = node.is("Gemm") && node.int("transB").unwrap_or(0) != 0;
        let (depth, columns) = match *w {
            [n, k] if trans_b => (k, n),
            [k, n] => (k, n),
            _ => return Err(odd()),
        };
        let rank = known.rank(x).unwrap_or(2);
        if rank < 2 || depth == 0 || columns == 0 {
            return Err(odd());
        }
        let rows = (0..rank - 1).map(|i| dim(x, i)).fold(1, usize::saturating_mul);
        target.costs.dynamic_matrix(rows, depth, columns)
    };
    Ok(Product { row, times, reads: (x, node.graph()) })
}
