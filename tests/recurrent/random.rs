//! Numbers for layers, the same in each run.

use qonvert::ir::Tensor;

/// Numbers between -1 and 1.
pub struct Random(pub u64);

impl Random {
    /// So many, up to a size.
    pub fn floats(&mut self, count: usize, size: f32) -> Vec<f32> {
        let mut next = || {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next() * size).collect()
    }

    /// A tensor of them.
    pub fn tensor(&mut self, dims: &[usize], size: f32) -> Tensor {
        Tensor::from_f32(dims, &self.floats(dims.iter().product(), size))
    }
}
