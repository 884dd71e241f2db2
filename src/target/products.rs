//! Times of products with data that are quantized at run time.

use serde::{Deserialize, Serialize};

use super::{Convolution, Costs};

/// Parameters of these products in the cost model; `configs/targets/*.yaml` explains each.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct DynamicCosts {
    pub float_node: f64,
    pub float_read: f64,
    pub float_output: f64,
    pub float_mac: f64,
    pub float_weight: f64,
    pub quantize_node: f64,
    pub quantize: f64,
    pub integer_node: f64,
    pub integer_output: f64,
    pub integer_mac: f64,
    pub integer_weight: f64,
    pub integer_column: f64,
    pub convolution_node: f64,
    pub convolution_output: f64,
    pub convolution_tap: f64,
    pub convolution_mac: f64,
    pub convolution_weight: f64,
}

/// What a product costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProductTimes {
    /// In float.
    pub float: f64,
    /// In integers, its data quantized already.
    pub integer: f64,
    /// Quantizing the data: once for all that read them.
    pub quantize: f64,
}

impl Costs {
    /// A matrix product of `rows` × `depth` by `depth` × `columns`, with data quantized at run time.
    pub fn dynamic_matrix(&self, rows: usize, depth: usize, columns: usize) -> ProductTimes {
        let (m, k, n, c) = (rows as f64, depth as f64, columns as f64, &self.dynamic);
        let float = c.float_node
            + m * k * c.float_read
            + m * n * c.float_output
            + m * k * n * c.float_mac
            + k * n * c.float_weight;
        let integer = c.integer_node
            + m * n * c.integer_output
            + m * k * n * c.integer_mac
            + k * n * c.integer_weight
            + n * c.integer_column;
        ProductTimes { float, integer, quantize: c.quantize_node + m * k * c.quantize }
    }

    /// A convolution with data quantized at run time, `elements` of them.
    pub fn dynamic_convolution(&self, shape: Convolution, elements: usize) -> ProductTimes {
        let (c, f) = (&self.dynamic, |n: usize| n as f64);
        let depth = f(shape.inputs) / f(shape.groups.max(1)) * f(shape.taps);
        let (positions, outputs) = (f(shape.positions), f(shape.outputs));
        // The float convolutions around it have images in blocks of channels.
        let layout = if shape.planar { self.layout * (f(elements) + positions * outputs) } else { 0.0 };
        let integer = c.convolution_node
            + layout
            + positions * outputs * c.convolution_output
            + positions * f(shape.taps) * f(shape.inputs) * c.convolution_tap
            + positions * depth * outputs * c.convolution_mac
            + depth * outputs * c.convolution_weight;
        let float = self.convolution(shape).0;
        ProductTimes { float, integer, quantize: c.quantize_node + f(elements) * c.quantize }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::Target;

    #[test]
    fn gains_that_were_measured() {
        let costs = Target::load("onnxruntime-cpu").unwrap().costs;
        let gain = |m, k, n| {
            let t = costs.dynamic_matrix(m, k, n);
            t.float / (t.integer + t.quantize)
        };
        assert!(gain(64, 384, 1536) > 2.5 && gain(16, 384, 384) > 2.0 && gain(1, 512, 512) > 1.5);
        assert!(gain(1, 64, 64) < 0.9 && gain(1000, 16, 16) < 0.8 && gain(8, 16, 16) < 0.7);
        let shape = Convolution { positions: 196, taps: 9, inputs: 64, outputs: 64, groups: 1, planar: true };
        let gain = |c: Convolution| {
            let t = costs.dynamic_convolution(c, 196 * c.inputs);
            t.float / (t.integer + t.quantize)
        };
        assert!(gain(shape) < 1.0 && gain(Convolution { groups: 64, ..shape }) < 0.3);
    }
}
