//! Numbers that look random and are the same in every run.

#![allow(dead_code)] // Each test file is a crate of its own and uses a part of this.

use qonvert::ir::Tensor;

/// A source of them, by its seed.
pub struct Random(pub u64);

impl Random {
    /// The next bits: the upper ones are the better ones.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0
    }

    /// A whole number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() >> 33) as usize % n
    }

    /// A number from 0 up to 1.
    pub fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// So many numbers from `-size` up to `size`.
    pub fn floats(&mut self, count: usize, size: f32) -> Vec<f32> {
        (0..count).map(|_| (2.0 * self.uniform() - 1.0) * size).collect()
    }

    /// A tensor of them.
    pub fn tensor(&mut self, dims: &[usize], size: f32) -> Tensor {
        Tensor::from_f32(dims, &self.floats(dims.iter().product(), size))
    }
}

/// Number `i` of a seed's, from -1 to 1, without those before it.
pub fn noise(seed: u32, i: usize) -> f32 {
    let mut x = seed.wrapping_mul(0x9E37_79B9) ^ (i as u32).wrapping_mul(0x85EB_CA6B);
    x = (x ^ (x >> 15)).wrapping_mul(0x2C1B_3C6D);
    x = (x ^ (x >> 12)).wrapping_mul(0x297A_2D39);
    f64::from(x ^ (x >> 15)) as f32 / u32::MAX as f32 * 2.0 - 1.0
}
