//! A typed model in pieces that are optimized and run one after the other.
//!
//! tract's optimizer looks at the whole graph for each of its many small changes, so its time grows with the square of
//! the number of nodes and more: a chain of 2000 took 45 s. In pieces it grows with the number. And a piece that is
//! optimized has its weights twice, as they were and packed for the kernels; the others have not.

use std::{collections::HashMap, sync::Arc};

use tract_onnx::{
    prelude::*,
    tract_core::ops::{konst::Const, source::TypedSource},
};

/// Nodes of a piece (constants not counted), and bytes of its constants, after which the next one begins.
const MOST_NODES: usize = 160;
const MOST_BYTES: usize = 32 << 20;

/// Part of a model. Outlets are those of the whole.
pub(super) struct Piece {
    /// Its outputs are `gives`, then `observed`.
    pub(super) model: TypedModel,
    /// What it takes, in the order of its inputs.
    pub(super) takes: Vec<OutletId>,
    /// What it makes for other pieces and for the caller.
    pub(super) gives: Vec<OutletId>,
    /// What it makes that is observed, with the number of each.
    pub(super) observed: Vec<(OutletId, usize)>,
    /// Where the outlets of the whole are in it.
    place: HashMap<OutletId, OutletId>,
}

/// The constant at an outlet, if it is one.
pub(super) fn constant(model: &TypedModel, outlet: OutletId) -> TractResult<Option<Arc<Tensor>>> {
    let node = model.node(outlet.node);
    Ok(match node.op_as::<Const>() {
        Some(c) => Some(c.val().clone()),
        None if node.op_is::<TypedSource>() => None,
        None => model.outlet_fact(outlet)?.konst.clone(),
    })
}

/// Cuts a model whose first `outputs` outputs are the caller's, and the others observed. Constants and the model's inputs
/// belong to no piece, even where they are outputs. `whole` makes one piece of all.
pub(super) fn cut(model: &TypedModel, outputs: usize, whole: bool) -> TractResult<Vec<Piece>> {
    let order = model.eval_order()?;
    let piece_of = assign(model, &order, whole);
    let count = piece_of.iter().flatten().max().map_or(0, |last| last + 1);
    let mut pieces: Vec<Piece> = (0..count)
        .map(|_| Piece {
            model: TypedModel { symbols: model.symbols.clone(), ..TypedModel::default() },
            takes: Vec::new(),
            gives: Vec::new(),
            observed: Vec::new(),
            place: HashMap::new(),
        })
        .collect();
    for &n in &order {
        let Some(p) = piece_of[n] else { continue };
        pieces[p].add(model, n)?;
        for slot in 0..model.node(n).outputs.len() {
            let outlet = OutletId::new(n, slot);
            let elsewhere = model.outlet_successors(outlet).iter().any(|s| piece_of[s.node] != Some(p));
            let known = || constant(model, outlet).map(|c| c.is_some());
            if model.outputs[..outputs].contains(&outlet) || elsewhere && !known()? {
                pieces[p].gives.push(outlet);
            }
        }
    }
    for (number, &outlet) in model.outputs[outputs..].iter().enumerate() {
        if let Some(p) = piece_of[outlet.node] {
            pieces[p].observed.push((outlet, number));
        }
    }
    pieces.retain(|p| !p.gives.is_empty() || !p.observed.is_empty());
    for piece in &mut pieces {
        let wanted = piece.gives.iter().chain(piece.observed.iter().map(|(o, _)| o));
        let wanted: Vec<OutletId> = wanted.map(|o| piece.place[o]).collect();
        piece.model.select_output_outlets(&wanted)?;
    }
    Ok(pieces)
}

/// Which piece each node is in; none for constants, inputs and what nothing needs.
fn assign(model: &TypedModel, order: &[usize], whole: bool) -> Vec<Option<usize>> {
    let mut piece_of = vec![None; model.nodes.len()];
    let (mut piece, mut nodes, mut bytes) = (0, 0, 0usize);
    for &n in order {
        let node = model.node(n);
        if let Some(c) = node.op_as::<Const>() {
            bytes = bytes.saturating_add(c.val().volume().saturating_mul(c.val().datum_type().size_of()));
        } else if !node.op_is::<TypedSource>() {
            piece_of[n] = Some(piece);
            nodes += 1;
            if !whole && (nodes >= MOST_NODES || bytes >= MOST_BYTES) {
                (nodes, bytes) = (0, 0);
                piece += 1;
            }
        }
    }
    piece_of
}

impl Piece {
    /// Copies a node; what it reads is copied before, or taken from other pieces.
    fn add(&mut self, model: &TypedModel, n: usize) -> TractResult<()> {
        let node = model.node(n);
        let inputs: Vec<OutletId> = node.inputs.iter().map(|&o| self.input(model, o)).collect::<TractResult<_>>()?;
        let facts = node.outputs.iter().map(|o| o.fact.clone()).collect();
        let copy = self.model.add_node(node.name.clone(), node.op.clone(), facts)?;
        for (slot, input) in inputs.into_iter().enumerate() {
            self.model.add_edge(input, InletId::new(copy, slot))?;
        }
        for slot in 0..node.outputs.len() {
            self.place.insert(OutletId::new(n, slot), OutletId::new(copy, slot));
        }
        Ok(())
    }

    fn input(&mut self, model: &TypedModel, outlet: OutletId) -> TractResult<OutletId> {
        if let Some(&here) = self.place.get(&outlet) {
            return Ok(here);
        }
        let from = model.node(outlet.node);
        let fact = model.outlet_fact(outlet)?.clone();
        let here = if let Some(c) = from.op_as::<Const>() {
            OutletId::new(self.model.add_node(from.name.clone(), c.clone(), tvec!(fact))?, 0)
        } else if let Some(value) = constant(model, outlet)? {
            let op = Const::new(value)?;
            OutletId::new(self.model.add_node(format!("{}.{}", from.name, outlet.slot), op, tvec!(fact))?, 0)
        } else {
            self.takes.push(outlet);
            self.model.add_source(format!("{}.{}", from.name, outlet.slot), fact)?
        };
        self.place.insert(outlet, here);
        Ok(here)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::MOST_NODES;
    use crate::{
        ir::{
            Tensor,
            testing::{find, model},
        },
        runtime::{Runtime, tract::Tract},
    };

    /// A chain over several pieces, with values that are read far behind, observed, constant, and inputs.
    #[test]
    fn pieces_compute_what_the_whole_does() {
        let n = 3 * MOST_NODES + 7;
        let mut text = "float[k] x \n float[1] one = {1} \n v0 = Add(x, one)".to_owned();
        for i in 1..n {
            // Every tenth adds what was there before all others.
            let (op, other) = if i % 10 == 0 { ("Add", "v0") } else { ("Max", "one") };
            write!(text, " \n v{i} = {op}(v{}, {other})", i - 1).unwrap();
        }
        let m = model(&format!("{text} \n return v{}, v3, one, x", n - 1));
        let watch = ["v0", "v5", &format!("v{}", n / 2), &format!("v{}", n - 1), "x", "one"].map(|v| find(&m, v));
        let session = Tract.load(&m, &watch).unwrap();
        // Another shape makes another plan, for which the model is parsed again.
        for x in [&[1.0f32, 4.0][..], &[2.0], &[0.0, 3.0]] {
            let value = |upto: usize| x.iter().map(|x| (x + 1.0) * (1 + upto / 10) as f32).collect::<Vec<_>>();
            let mut seen = vec![Vec::new(); watch.len()];
            let outputs = session.run_observed(&[Tensor::from_f32(&[x.len()], x)], &mut |i, v| {
                assert!(seen[i].is_empty(), "value {i} came twice");
                seen[i] = v.floats()?.into_owned();
                Ok(())
            });
            let outputs: Vec<_> = outputs.unwrap().iter().map(|t| t.to_f32().unwrap()).collect();
            assert_eq!(outputs, [value(n - 1), value(3), vec![1.0], x.to_vec()]);
            assert_eq!(seen, [value(0), value(5), value(n / 2), value(n - 1), x.to_vec(), vec![1.0]]);
        }
    }
}
