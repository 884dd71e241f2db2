//! Times of kernels, in nanoseconds for one run on one core.

use serde::{Deserialize, Serialize};

use super::{DynamicCosts, RecurrentCosts};

/// Parameters of the cost model; `configs/targets/*.yaml` explains each.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Costs {
    pub uncertainty: f64,
    pub float_node: f64,
    pub integer_node: f64,
    pub convert_node: f64,
    pub quantize: f64,
    pub dequantize: f64,
    pub layout: f64,
    pub cached_elements: usize,
    pub uncached: f64,
    pub float_mac: f64,
    pub float_mac_narrow: f64,
    pub integer_mac: f64,
    pub float_position: f64,
    pub integer_position: f64,
    pub integer_tap: f64,
    pub integer_tap_thin: f64,
    pub integer_output: f64,
    pub float_depthwise: f64,
    pub integer_depthwise: f64,
    pub integer_depthwise_tap: f64,
    pub float_channel_block: usize,
    pub float_weight: f64,
    pub integer_weight: f64,
    pub float_kernel_weight: f64,
    pub integer_kernel_weight: f64,
    pub float_element: f64,
    pub integer_element: f64,
    pub float_pool_read: f64,
    pub integer_max_read: f64,
    pub integer_max_read_other: f64,
    pub integer_mean_read: f64,
    pub float_softmax: f64,
    pub integer_softmax: f64,
    pub recurrent: RecurrentCosts,
    pub dynamic: DynamicCosts,
}

/// The shape of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Convolution {
    /// Batch times output height times width.
    pub positions: usize,
    /// Elements of the kernel's window (1 for pointwise).
    pub taps: usize,
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Groups.
    pub groups: usize,
    /// Over images: only these have the float kernels in blocks of channels.
    pub planar: bool,
}

impl Costs {
    /// Float and integer time of a convolution.
    pub fn convolution(&self, c: Convolution) -> (f64, f64) {
        let f = |n: usize| n as f64;
        let (positions, taps) = (f(c.positions), f(c.taps));
        if c.groups == c.inputs && c.groups > 1 {
            let channels = f(c.outputs.next_multiple_of(self.float_channel_block));
            let float = positions * self.float_depthwise * taps * channels;
            let integer =
                positions * (self.integer_depthwise_tap * taps + self.integer_depthwise * taps * f(c.outputs));
            return (self.float_node + float, self.integer_node + integer);
        }
        let depth = f(c.inputs / c.groups.max(1)) * taps;
        let blocked = |n: usize| if c.groups == 1 { n.next_multiple_of(self.float_channel_block) } else { n };
        // The first layer's few channels are read in the plain layout, without padding them to a block.
        let float_depth = if c.inputs > 4 { f(blocked(c.inputs) / c.groups.max(1)) * taps } else { depth };
        let narrow = c.planar && c.groups == 1 && c.outputs <= self.float_channel_block;
        let mac = if narrow { self.float_mac_narrow } else { self.float_mac };
        let float = positions * (self.float_position * f(c.groups) + mac * float_depth * f(blocked(c.outputs)));
        // Other convolutions are matrix products: with few positions, reading the weights is what they cost.
        let weights = if c.planar { 0.0 } else { depth * f(c.outputs) };
        let float = float.max(weights * self.float_kernel_weight);
        let tap = if c.inputs / c.groups.max(1) < 4 { self.integer_tap_thin } else { self.integer_tap };
        let gather = if c.taps > 1 { tap * taps * f(c.groups) } else { 0.0 };
        let integer = positions
            * (self.integer_position * f(c.groups)
                + gather
                + self.integer_output * f(c.outputs)
                + self.integer_mac * depth * f(c.outputs));
        let integer = integer.max(weights * self.integer_kernel_weight);
        (self.float_node + float, self.integer_node + integer)
    }

    /// Float and integer time of a matrix product of `rows` × `depth` by `depth` × `columns`.
    pub fn matrix(&self, rows: usize, depth: usize, columns: usize) -> (f64, f64) {
        let (m, k, n) = (rows as f64, depth as f64, columns as f64);
        let float = (m * k * n * self.float_mac).max(k * n * self.float_weight);
        let integer = (m * k * n * self.integer_mac).max(k * n * self.integer_weight) + m * n * self.integer_output;
        (self.float_node + float, self.integer_node + integer)
    }

    /// Float and integer time of a pooling operator that reads `reads` elements in all (output elements times window).
    pub fn pool(&self, reads: usize, max: bool, two_dimensional: bool) -> (f64, f64) {
        let n = reads as f64;
        let integer = match (max, two_dimensional) {
            (true, true) => self.integer_max_read,
            (true, false) => self.integer_max_read_other,
            (false, _) => self.integer_mean_read,
        };
        (self.float_node + n * self.float_pool_read, self.integer_node + n * integer)
    }

    /// Float and integer time of a Softmax.
    pub fn softmax(&self, elements: usize) -> (f64, f64) {
        let n = elements as f64;
        (self.float_node + n * self.float_softmax, self.integer_node + n * self.integer_softmax)
    }

    /// Float and integer time of an elementwise operator.
    pub fn elementwise(&self, elements: usize) -> (f64, f64) {
        let n = elements as f64;
        (self.float_node + n * self.float_element, self.integer_node + n * self.integer_element)
    }
}
