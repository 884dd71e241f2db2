//! One output's weights with what it reads: the error of its codes at the layer's output.

use super::{
    WeightTask,
    moments::{Half, Reads, cost},
};
use crate::{
    error::Result,
    quant::{
        QParams,
        granularity::QuantizedWeight,
        pack,
        saturation::{ANY_CODE, can_saturate},
    },
};

/// Rows whose products with a matrix are computed together: a row of the matrix is read once for all of them.
pub const TOGETHER: usize = 8;

/// The weights of one output in the order of its depth.
#[derive(Debug, Clone)]
pub struct Row {
    /// The output.
    pub out: usize,
    /// The weights.
    pub weights: Vec<f32>,
    /// The distance of two codes.
    pub steps: Vec<f32>,
    /// The codes of 0.
    pub zeros: Vec<i32>,
    /// The codes.
    pub codes: Vec<i32>,
    /// For each place the one whose product is added to its own with 16 bits; empty where no pair can saturate.
    pub partners: Vec<Option<usize>>,
}

impl Row {
    /// What the codes are off.
    pub fn errors(&self) -> Vec<f32> {
        let real = self.codes.iter().zip(&self.zeros).zip(&self.steps).map(|((c, z), s)| (c - z) as f32 * s);
        self.weights.iter().zip(real).map(|(w, r)| w - r).collect()
    }

    /// Whether the pair at this place saturates with this code there.
    pub fn saturates(&self, at: usize, code: i32) -> bool {
        let partner = self.partners.get(at).copied().flatten();
        partner.is_some_and(|p| can_saturate([code, self.codes[p]], ANY_CODE))
    }
}

/// What the errors of each output cost on a half of the data.
pub(super) fn costs(rows: &[Row], half: &Half) -> Vec<f64> {
    let errors: Vec<Vec<f32>> = rows.iter().map(Row::errors).collect();
    let slopes = half.slopes(&errors.iter().map(Vec::as_slice).collect::<Vec<_>>());
    errors.iter().zip(&slopes).map(|(e, s)| cost(e, s)).collect()
}

/// A weight as rows.
pub struct Rows<'a> {
    reads: &'a Reads,
    /// The weight.
    pub values: Vec<f32>,
    partners: Vec<Option<usize>>,
    /// Scales, and the elements behind each other that share one.
    channels: (usize, usize),
}

impl<'a> Rows<'a> {
    /// `None` where nothing is known of what the layer reads, or it does not fit the weight.
    pub fn of(task: &WeightTask<'a>) -> Result<Option<Self>> {
        let Some(reads) = task.reads else { return Ok(None) };
        let layout = reads.layout;
        let fits = task.weight.len() == layout.outs * layout.depth && !task.weight.is_empty();
        let channels = task.granularity.layout(task.weight.dims())?;
        if !fits || channels.0 != task.params.len() || layout.groups == 0 || !layout.outs.is_multiple_of(layout.groups)
        {
            return Ok(None);
        }
        let partners = task.pairs.map(|p| p.partners(task.weight.len())).unwrap_or_default();
        Ok(Some(Self { reads, values: task.weight.to_f32()?, partners, channels }))
    }

    /// How many outputs there are.
    pub fn count(&self) -> usize {
        self.reads.layout.outs
    }

    fn channel(&self, place: usize) -> usize {
        place / self.channels.1 % self.channels.0
    }

    /// The outputs that share each scale; `None` if an output has several.
    pub fn channels(&self) -> Option<Vec<Vec<usize>>> {
        let layout = self.reads.layout;
        let mut channels = vec![Vec::new(); self.channels.0];
        for out in 0..layout.outs {
            let own = self.channel(layout.place(out, 0));
            if (1..layout.depth).any(|j| self.channel(layout.place(out, j)) != own) {
                return None;
            }
            channels[own].push(out);
        }
        Some(channels)
    }

    /// One output with its codes among those of the weight; there may be none.
    pub fn row(&self, out: usize, params: &[QParams], codes: &[i32]) -> Row {
        let layout = self.reads.layout;
        let places: Vec<usize> = (0..layout.depth).map(|j| layout.place(out, j)).collect();
        let own: Vec<QParams> = places.iter().map(|&p| params[self.channel(p)]).collect();
        let partner = |&p: &usize| {
            let (other, j) = layout.find(self.partners[p]?);
            (other == out).then_some(j)
        };
        Row {
            out,
            weights: places.iter().map(|&p| self.values[p]).collect(),
            steps: own.iter().map(|p| p.scale).collect(),
            zeros: own.iter().map(|p| p.zero_point).collect(),
            codes: if codes.is_empty() { Vec::new() } else { places.iter().map(|&p| codes[p]).collect() },
            partners: if self.partners.is_empty() { Vec::new() } else { places.iter().map(partner).collect() },
        }
    }

    /// What was seen of an output's inputs in one half of the data.
    pub fn half(&self, half: usize, out: usize) -> &Half {
        self.reads.moments.half(half, self.reads.layout.group(out))
    }

    /// The outputs in groups that are best computed together.
    pub fn batches(&self) -> Vec<std::ops::Range<usize>> {
        let layout = self.reads.layout;
        let each = layout.outs / layout.groups;
        let of_group =
            |g: usize| (0..each).step_by(TOGETHER).map(move |at| g * each + at..g * each + each.min(at + TOGETHER));
        (0..layout.groups).flat_map(of_group).collect()
    }

    /// The codes of all outputs in the places of the weight.
    pub fn join(&self, rows: &[Row], q: &QuantizedWeight) -> Result<QuantizedWeight> {
        let mut codes = vec![0; self.values.len()];
        for row in rows {
            for (j, &code) in row.codes.iter().enumerate() {
                codes[self.reads.layout.place(row.out, j)] = code;
            }
        }
        let dtype = q.values.dtype();
        Ok(QuantizedWeight { values: pack::pack(dtype, q.values.dims(), &codes)?, ..q.clone() })
    }
}
