//! The functions that recurrent layers may name for their gates and states.

/// A function of the gates or the states, with its numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Activation {
    Affine(f32, f32),
    Relu,
    LeakyRelu(f32),
    ThresholdedRelu(f32),
    Tanh,
    ScaledTanh(f32, f32),
    Sigmoid,
    HardSigmoid(f32, f32),
    Elu(f32),
    Softsign,
    Softplus,
}

impl Activation {
    /// By its name, in upper or lower case. It takes as many numbers from the lists as it has parameters; ONNX Runtime's
    /// defaults stand for those that are missing.
    pub(super) fn new(
        name: &str,
        alphas: &mut impl Iterator<Item = f32>,
        betas: &mut impl Iterator<Item = f32>,
    ) -> Option<Self> {
        let mut alpha = |default| alphas.next().unwrap_or(default);
        let mut beta = |default| betas.next().unwrap_or(default);
        Some(match name.to_ascii_lowercase().as_str() {
            "affine" => Self::Affine(alpha(0.0), beta(0.0)),
            "relu" => Self::Relu,
            "leakyrelu" => Self::LeakyRelu(alpha(0.01)),
            "thresholdedrelu" => Self::ThresholdedRelu(alpha(0.0)),
            "tanh" => Self::Tanh,
            "scaledtanh" => Self::ScaledTanh(alpha(0.0), beta(0.0)),
            "sigmoid" => Self::Sigmoid,
            "hardsigmoid" => Self::HardSigmoid(alpha(0.2), beta(0.5)),
            "elu" => Self::Elu(alpha(1.0)),
            "softsign" => Self::Softsign,
            "softplus" => Self::Softplus,
            _ => return None,
        })
    }

    /// Its value at `x`.
    pub(super) fn of(self, x: f32) -> f32 {
        match self {
            Self::Affine(alpha, beta) => alpha * x + beta,
            Self::Relu => x.max(0.0),
            Self::LeakyRelu(alpha) => {
                if x >= 0.0 {
                    x
                } else {
                    alpha * x
                }
            }
            Self::ThresholdedRelu(alpha) => {
                if x > alpha {
                    x
                } else {
                    0.0
                }
            }
            Self::Tanh => x.tanh(),
            Self::ScaledTanh(alpha, beta) => alpha * (beta * x).tanh(),
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::HardSigmoid(alpha, beta) => (alpha * x + beta).clamp(0.0, 1.0),
            Self::Elu(alpha) => {
                if x >= 0.0 {
                    x
                } else {
                    alpha * x.exp_m1()
                }
            }
            Self::Softsign => x / (1.0 + x.abs()),
            Self::Softplus => {
                if x > 0.0 {
                    x + (-x).exp().ln_1p()
                } else {
                    x.exp().ln_1p()
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_take_their_numbers_in_turn() {
        let (mut alphas, mut betas) = ([0.5, 2.0].into_iter(), [0.25].into_iter());
        let mut next = |name| Activation::new(name, &mut alphas, &mut betas);
        assert_eq!(next("Sigmoid"), Some(Activation::Sigmoid));
        assert_eq!(next("HardSigmoid"), Some(Activation::HardSigmoid(0.5, 0.25)));
        assert_eq!(next("elu"), Some(Activation::Elu(2.0)));
        assert_eq!(next("LeakyRelu"), Some(Activation::LeakyRelu(0.01)));
        assert_eq!(next("Swish"), None);
    }
}
