//! What is known of what layers read when weights are rounded by it, and the codes that were found.
//!
//! It is no part of the plan, which is plain data and small; a plan that is used again finds it out again from data.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use super::Learned;
use crate::{
    error::Result,
    ir::{Model, NodeId, Tensor},
    quant::{QuantTarget, QuantizedWeight},
    weights::{self, Layout, Reads, WeightTask},
};

/// What layers read, by the name of their weight.
#[derive(Debug, Default)]
pub struct KnownReads {
    reads: BTreeMap<String, Reads>,
    /// What training has chosen.
    learned: Arc<Learned>,
    /// Weights are rounded by passes that correct for the errors and by those that write the codes: the second time they are
    /// looked up.
    rounded: Mutex<HashMap<Key, QuantizedWeight>>,
}

/// All that the codes follow from, beside the weight and what its layer reads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    weight: String,
    algorithm: &'static str,
    target: QuantTarget,
    axis: Option<usize>,
    dims: Vec<usize>,
    /// Bits of scales and zero points, and of the least scales.
    numbers: Vec<u32>,
    pairs: bool,
}

impl KnownReads {
    /// By the name of the weight.
    pub fn new(reads: BTreeMap<String, Reads>) -> Self {
        Self { reads, ..Self::default() }
    }

    /// Of a model that was trained with quantizers.
    pub fn of_training(learned: Arc<Learned>) -> Self {
        Self { learned, ..Self::default() }
    }

    /// What is known for a weight of this name.
    pub fn of<'a>(&'a self, weight: &'a str) -> Known<'a> {
        Known { all: Some(self), weight }
    }
}

/// What is known for one weight.
#[derive(Debug, Clone, Copy, Default)]
pub struct Known<'a> {
    all: Option<&'a KnownReads>,
    weight: &'a str,
}

impl<'a> Known<'a> {
    /// What is known of what the layer reads.
    pub fn reads(&self) -> Option<&'a Reads> {
        self.all.and_then(|all| all.reads.get(self.weight))
    }

    /// The codes that training gave a weight.
    pub(super) fn learned(&self, weight: &Tensor, axis: Option<usize>) -> Result<Option<QuantizedWeight>> {
        self.all.map_or(Ok(None), |all| all.learned.weight(weight, axis))
    }

    /// Whether an algorithm would round the weight by anything but itself.
    pub(super) fn helps(&self, algorithm: &str) -> bool {
        self.reads().is_some() && reads(algorithm)
    }

    /// Rounds the weight; nothing is computed twice.
    pub(super) fn round(&self, algorithm: &str, task: WeightTask<'_>) -> Result<QuantizedWeight> {
        let algorithm = weights::by_name(algorithm)?;
        let Some(all) = self.all else { return algorithm.round(&task) };
        let task = WeightTask { reads: self.reads(), ..task };
        let params = task.params.iter().flat_map(|p| [p.scale.to_bits(), p.zero_point.cast_unsigned()]);
        let key = Key {
            weight: self.weight.to_owned(),
            algorithm: algorithm.name,
            target: task.target,
            axis: task.granularity.axis(),
            dims: task.weight.dims().to_vec(),
            numbers: params.chain(task.least.iter().map(|s| s.to_bits())).collect(),
            pairs: task.pairs.is_some(),
        };
        let lock = || all.rounded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(&key) {
            return Ok(known.clone());
        }
        let rounded = algorithm.round(&task)?;
        lock().insert(key, rounded.clone());
        Ok(rounded)
    }
}

/// Whether the algorithm of this name looks at what layers read.
pub fn reads(algorithm: &str) -> bool {
    weights::by_name(algorithm).is_ok_and(|a| a.reads)
}

/// How the weight of a layer meets what the layer reads; `None` for operators whose weights are only rounded to nearest.
pub fn layout(model: &Model, id: NodeId) -> Option<Layout> {
    let node = model.node(id);
    let weight = model.constant_input(id, 1).filter(|t| !t.is_empty())?;
    let flag = |name: &str| node.int(name).unwrap_or(0) != 0;
    match (node.op_type.as_str(), weight.dims()) {
        _ if !node.in_onnx_domain() => None,
        ("Conv", [outs, _, _, ..]) => {
            let groups = usize::try_from(node.int("group").unwrap_or(1)).ok().filter(|&g| g > 0)?;
            let fits = outs.is_multiple_of(groups);
            fits.then_some(Layout { outs: *outs, depth: weight.len() / outs, groups, depth_first: false })
        }
        ("Gemm", &[outs, depth]) if flag("transB") && !flag("transA") => {
            Some(Layout { outs, depth, groups: 1, depth_first: false })
        }
        ("Gemm", &[depth, outs]) if !flag("transA") => Some(Layout { outs, depth, groups: 1, depth_first: true }),
        ("MatMul", &[depth, outs]) => Some(Layout { outs, depth, groups: 1, depth_first: true }),
        _ => None,
    }
}
