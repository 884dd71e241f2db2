//! What rounding to 16-bit floats does to the values of a model, on real data.

use std::sync::{Mutex, PoisonError};

use super::{
    collect::{Feed, Progress, for_each_sample},
    observers::exact_sum::ExactSum,
};
use crate::{
    error::{Error, Result},
    ir::{DType, Model, ValueId},
    quant::{error::sqnr_db, halves::rounded},
    runtime::Runtime,
};

/// A value over all samples, and what is left of it in 16 bits.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rounding {
    /// The least finite number.
    pub lowest: f32,
    /// The greatest.
    pub highest: f32,
    /// Finite numbers seen.
    pub count: u64,
    /// The most numbers in one sample.
    pub elements: usize,
    /// Numbers other than 0 that become 0.
    pub vanished: u64,
    /// The worst relative error of a finite number that stays finite.
    pub worst: f32,
    signal: ExactSum,
    noise: ExactSum,
}

impl Rounding {
    /// Takes in the numbers of a sample.
    pub fn update(&mut self, dtype: DType, values: &[f32]) {
        self.elements = self.elements.max(values.len());
        let (mut signal, mut noise) = (0.0f64, 0.0f64);
        for &x in values.iter().filter(|x| x.is_finite()) {
            self.lowest = self.lowest.min(x);
            self.highest = self.highest.max(x);
            self.count += 1;
            let y = rounded(dtype, x);
            if x == 0.0 || !y.is_finite() {
                continue;
            }
            let error = x - y;
            self.vanished += u64::from(y == 0.0);
            self.worst = self.worst.max((error / x).abs());
            signal += f64::from(x) * f64::from(x);
            noise += f64::from(error) * f64::from(error);
        }
        self.signal.add(signal);
        self.noise.add(noise);
    }

    /// The greatest magnitude.
    pub fn largest(&self) -> f32 {
        self.highest.max(-self.lowest)
    }

    /// The root of the mean square of the numbers that stay finite.
    pub fn usual(&self) -> f64 {
        (self.signal.value() / self.count.max(1) as f64).sqrt()
    }

    /// Signal to rounding noise of the numbers that stay finite, dB.
    pub fn sqnr(&self) -> f64 {
        sqnr_db(self.signal.value(), self.noise.value())
    }
}

/// Runs the model on samples and tells what rounding does to each of the values, in their order.
pub fn roundings(
    runtime: &dyn Runtime,
    model: &Model,
    dtype: DType,
    values: &[ValueId],
    samples: &[usize],
    feed: &Feed<'_>,
    progress: &Progress<'_>,
) -> Result<Vec<Rounding>> {
    if samples.is_empty() {
        return Err(Error::data("there are no samples to calibrate on"));
    }
    let session = runtime.load(model, values)?;
    let found: Vec<Mutex<Rounding>> = values.iter().map(|_| Mutex::default()).collect();
    for_each_sample(samples, progress, |sample| {
        session.run_observed(&feed(sample)?, &mut |i, value| {
            let numbers = value.floats().map_err(|e| e.value(model.value(values[i]).name()))?;
            found[i].lock().unwrap_or_else(PoisonError::into_inner).update(dtype, &numbers);
            Ok(())
        })?;
        Ok(())
    })?;
    Ok(found.into_iter().map(|r| r.into_inner().unwrap_or_else(PoisonError::into_inner)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ir::{
            Tensor,
            testing::{find, model},
        },
        runtime::tract::Tract,
    };

    #[test]
    fn what_is_lost() {
        let m = model("float[4] x \n y = Mul(x, x) \n return y");
        let feed = |i: usize| Ok(vec![Tensor::from_f32(&[4], &[1000.0, 1e-5, 1.0, i as f32])]);
        let values = [find(&m, "x"), find(&m, "y")];
        let seen = roundings(&Tract, &m, DType::Float16, &values, &[0, 1, 2], &feed, &|_, _| ()).unwrap();
        assert_eq!([seen[0].largest(), seen[1].largest()], [1000.0, 1e6]);
        assert_eq!([seen[0].vanished, seen[1].vanished], [0, 3]); // 1e-10, in each sample
        assert_eq!((seen[0].count, seen[0].elements), (12, 4));
        assert!(seen[0].sqnr() > 100.0 && seen[1].worst == 1.0);
        let bf16 = roundings(&Tract, &m, DType::Bfloat16, &values, &[0], &feed, &|_, _| ()).unwrap();
        assert_eq!(bf16[1].vanished, 0);
        assert!(roundings(&Tract, &m, DType::Float16, &values, &[], &feed, &|_, _| ()).is_err());
    }
}
