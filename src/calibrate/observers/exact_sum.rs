//! A sum of doubles whose result does not depend on the order of its terms.

/// Bits of a double below the point: the least is 2^-1074.
const LOWEST: i32 = 1074;
/// Limbs of 32 bits that hold every finite double.
const LIMBS: usize = (1024 + LOWEST as usize) / 32 + 3;

/// Adds finite doubles exactly, as one long fixed-point number; so threads may add in any order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExactSum {
    // Each limb holds 32 bits of weight and room for 2^31 carries, which is more than there are samples.
    limbs: Vec<i64>,
}

impl Default for ExactSum {
    fn default() -> Self {
        Self { limbs: vec![0; LIMBS] }
    }
}

impl ExactSum {
    /// Adds a number. NaN and infinities are left out.
    pub fn add(&mut self, x: f64) {
        if !x.is_finite() || x == 0.0 {
            return;
        }
        let bits = x.to_bits();
        let field = (bits >> 52 & 0x7ff) as i32;
        let fraction = bits & ((1 << 52) - 1);
        // x = mantissa * 2^(shift - 1074)
        let (mantissa, shift) = if field == 0 { (fraction, 0) } else { (fraction | 1 << 52, field - 1) };
        let wide = u128::from(mantissa) << (shift % 32);
        let limb = (shift / 32) as usize;
        for (i, slot) in self.limbs[limb..limb + 3].iter_mut().enumerate() {
            let part = i64::from((wide >> (32 * i)) as u32);
            *slot += if x < 0.0 { -part } else { part };
        }
    }

    /// Adds another sum.
    pub fn merge(&mut self, other: &Self) {
        self.limbs.iter_mut().zip(&other.limbs).for_each(|(a, b)| *a += b);
    }

    /// The sum, rounded. It depends on the terms only, not on their order.
    pub fn value(&self) -> f64 {
        let mut limbs = self.limbs.clone();
        carry(&mut limbs);
        let negative = limbs[LIMBS - 1] < 0;
        if negative {
            // Digits of the magnitude, so that nothing cancels below.
            limbs.iter_mut().for_each(|limb| *limb = -*limb);
            carry(&mut limbs);
        }
        let digit = |(i, &limb): (usize, &i64)| {
            let exponent = 32 * i as i32 - LOWEST;
            // In two factors: one alone may be beyond a double.
            limb as f64 * 2f64.powi(exponent / 2) * 2f64.powi(exponent - exponent / 2)
        };
        let magnitude: f64 = limbs.iter().enumerate().rev().filter(|(_, limb)| **limb != 0).map(digit).sum();
        if negative { -magnitude } else { magnitude }
    }
}

/// Leaves 32 bits in each limb; the sign of the whole is that of the last.
fn carry(limbs: &mut [i64]) {
    let mut over = 0;
    let last = limbs.len() - 1;
    for limb in &mut limbs[..last] {
        let sum = *limb + over;
        *limb = sum & 0xffff_ffff;
        over = sum >> 32;
    }
    limbs[last] += over;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(terms: &[f64]) -> ExactSum {
        let mut s = ExactSum::default();
        terms.iter().for_each(|&t| s.add(t));
        s
    }

    proptest! {
        #[test]
        fn order_and_grouping_do_not_matter(mut terms in prop::collection::vec(prop::num::f64::NORMAL, 0..30), at in 0usize..30) {
            let whole = sum(&terms);
            terms.reverse();
            let (a, b) = terms.split_at(at.min(terms.len()));
            let mut parts = sum(a);
            parts.merge(&sum(b));
            prop_assert_eq!(whole, parts);
        }

        #[test]
        fn close_to_the_plain_sum(terms in prop::collection::vec(-1e6f64..1e6, 0..30)) {
            let plain: f64 = terms.iter().sum();
            prop_assert!((sum(&terms).value() - plain).abs() <= 1e-7);
        }
    }

    #[test]
    fn extremes() {
        assert_eq!(sum(&[1e300, 1.0, -1e300]).value(), 1.0);
        assert_eq!(sum(&[f64::MAX, f64::NAN]).value(), f64::MAX);
        assert_eq!(sum(&[5e-324, 5e-324]).value(), 1e-323);
        assert_eq!(sum(&[]).value(), 0.0);
    }
}
