//! Sums of products of all pairs of columns: X'X, the Gram matrix of the rows of X, row by row as they come.

use rayon::prelude::*;

/// Columns that are multiplied side by side.
const LANES: usize = 8;
/// Rows of the matrix that are computed at a time: with the lanes, as many sums as the vector registers of any x86-64 hold.
const ROWS: usize = 4;
/// Matrices of at most this size are computed by one thread.
const SMALL: usize = 64;

/// A square matrix of sums; only the upper half is right until it is mirrored.
#[derive(Debug, Clone, PartialEq)]
pub struct Gram {
    size: usize,
    sums: Vec<f32>,
}

impl Gram {
    /// Zeros.
    pub fn new(size: usize) -> Self {
        Self { size, sums: vec![0.0; size * size] }
    }

    /// Bytes that a matrix of this size takes.
    pub fn bytes(size: usize) -> usize {
        size.saturating_mul(size).saturating_mul(size_of::<f32>())
    }

    /// Adds the products of rows, one behind the other. Added in the order of the rows, whatever the threads.
    pub fn add(&mut self, rows: &[f32]) {
        let size = self.size;
        let count = rows.len() / size.max(1);
        if count == 0 {
            return;
        }
        // Columns in panels of a few, so that the innermost loop reads on.
        let panels = size.div_ceil(LANES);
        let mut packed = vec![[0f32; LANES]; panels * count];
        for (r, row) in rows.chunks_exact(size).enumerate() {
            for (p, part) in row.chunks(LANES).enumerate() {
                packed[p * count + r][..part.len()].copy_from_slice(part);
            }
        }
        let panel = |p: usize| &packed[p * count..(p + 1) * count];
        let band = |(p, band): (usize, &mut [f32])| {
            for q in p..panels {
                for half in 0..LANES / ROWS {
                    let sums = products(panel(p), panel(q), half * ROWS);
                    for (r, sums) in sums.iter().enumerate() {
                        let at = (half * ROWS + r) * size + q * LANES;
                        let Some(into) = band.get_mut(at..(at - q * LANES + size).min(at + LANES)) else { continue };
                        into.iter_mut().zip(sums).for_each(|(into, sum)| *into += sum);
                    }
                }
            }
        };
        match size <= SMALL {
            true => self.sums.chunks_mut(LANES * size).enumerate().for_each(band),
            false => self.sums.par_chunks_mut(LANES * size).enumerate().for_each(band),
        }
    }

    /// Makes the lower half like the upper one.
    pub fn mirror(&mut self) {
        for i in 1..self.size {
            for j in 0..i {
                self.sums[i * self.size + j] = self.sums[j * self.size + i];
            }
        }
    }

    /// The same for columns that are divided.
    pub fn divided(&self, by: &[f32]) -> Self {
        let mut sums = self.sums.clone();
        for (row, own) in sums.chunks_exact_mut(self.size.max(1)).zip(by) {
            row.iter_mut().zip(by).for_each(|(sum, other)| *sum /= own * other);
        }
        Self { size: self.size, sums }
    }

    /// A row, which is a column too once the matrix is mirrored.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.sums[i * self.size..(i + 1) * self.size]
    }

    /// The same to change.
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        &mut self.sums[i * self.size..(i + 1) * self.size]
    }

    /// The elements of the diagonal.
    pub fn diagonal(&self) -> impl Iterator<Item = f32> + '_ {
        (0..self.size).map(|i| self.sums[i * self.size + i])
    }
}

/// The products of four columns of one panel, from `first` on, with the columns of another.
fn products(a: &[[f32; LANES]], b: &[[f32; LANES]], first: usize) -> [[f32; LANES]; ROWS] {
    let mut sums = [[0f32; LANES]; ROWS];
    for (a, b) in a.iter().zip(b) {
        for (r, sums) in sums.iter_mut().enumerate() {
            let factor = a[first + r];
            sums.iter_mut().zip(b).for_each(|(sum, b)| *sum += factor * b);
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_all_pairs_of_columns() {
        for size in [1, 3, 8, 9, 21, 70] {
            let rows: Vec<f32> = (0..size * 5).map(|i| ((i * 7 + 3) % 11) as f32 - 5.0).collect();
            let mut gram = Gram::new(size);
            let (first, rest) = rows.split_at(2 * size);
            gram.add(first);
            gram.add(rest);
            gram.add(&[]);
            gram.mirror();
            for i in 0..size {
                for j in 0..size {
                    let want: f32 = rows.chunks(size).map(|row| row[i] * row[j]).sum();
                    assert_eq!(gram.row(i)[j], want, "{size}: {i} {j}");
                }
            }
        }
    }
}
