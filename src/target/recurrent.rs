//! Times of recurrent layers.

use serde::{Deserialize, Serialize};

/// Parameters of recurrent layers in the cost model; `configs/targets/*.yaml` explains each.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct RecurrentCosts {
    pub float_direction: f64,
    pub integer_direction: f64,
    pub integer_step: f64,
    pub float_row: f64,
    pub integer_row: f64,
    pub float_element: f64,
    pub integer_element: f64,
    pub float_mac: f64,
    pub integer_mac: f64,
    pub float_least_rows: f64,
    pub integer_least_rows: f64,
}

/// The shape of a recurrent layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// Steps.
    pub steps: usize,
    /// Rows of the batch.
    pub batch: usize,
    /// Elements of a step's data.
    pub inputs: usize,
    /// Elements of the state.
    pub hidden: usize,
    /// Gates: 4 for LSTM.
    pub gates: usize,
    /// 2 where it runs both ways.
    pub directions: usize,
}

impl RecurrentCosts {
    /// Float time, and time with data that are quantized at run time.
    pub fn layer(&self, l: Layer) -> (f64, f64) {
        let f = |n: usize| n as f64;
        let steps = f(l.directions) * f(l.steps);
        let rows = steps * f(l.batch);
        // The data of all steps are multiplied at once, the state at each step.
        let macs = |least_rows: f64| {
            let state_rows = steps * f(l.batch).max(least_rows);
            f(l.gates) * f(l.hidden) * (rows * f(l.inputs) + state_rows * f(l.hidden))
        };
        let float = f(l.directions) * self.float_direction
            + rows * (self.float_row + f(l.hidden) * self.float_element)
            + macs(self.float_least_rows) * self.float_mac;
        let integer = f(l.directions) * self.integer_direction
            + steps * self.integer_step
            + rows * (self.integer_row + f(l.hidden) * self.integer_element)
            + macs(self.integer_least_rows) * self.integer_mac;
        (float, integer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::Target;

    #[test]
    fn wide_layers_gain_and_narrow_ones_do_not() {
        let costs = Target::load("onnxruntime-cpu").unwrap().costs.recurrent;
        let ratio = |hidden, steps, batch| {
            let (float, integer) = costs.layer(Layer { steps, batch, inputs: hidden, hidden, gates: 4, directions: 1 });
            float / integer
        };
        assert!(ratio(16, 200, 1) < 0.9 && ratio(32, 50, 1) < 0.95);
        assert!((1.2..1.6).contains(&ratio(64, 50, 1)) && (1.1..1.5).contains(&ratio(128, 1, 1)));
        assert!((1.8..2.4).contains(&ratio(128, 50, 1)) && (2.4..4.0).contains(&ratio(512, 50, 1)));
        assert!((2.2..2.8).contains(&ratio(256, 50, 8)));
    }
}
