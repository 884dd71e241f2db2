//! Convolutions over any number of spatial dims: `ConvInteger`, `QLinearConv`.

pub use super::window::Window;
use super::{Codes, Computed, Output, Weight, shape, window::Windows};
use crate::{
    error::{Error, Result},
    quant::params::QParams,
};

/// `ConvInteger`: `sum (x - x_zero_point) (w - w_zero_point)`; padding counts as 0. Scales have no effect.
///
/// `x` is `[N, C, …]`, `w` is `[M, C / groups, …]`; the result is `[N, M, …]`. Parameters of `w` are one or M. Errors:
/// dims that do not go together, or `groups` that divides C or M not.
pub fn conv_integer(x: Codes, w: Weight, window: Window, groups: usize) -> Result<Computed<i32>> {
    let wrong = || {
        let (x, w) = (x.dims, w.dims);
        Error::malformed(format!("no convolution of {x:?} with a weight {w:?} in {groups} groups"))
    };
    let (&[batches, channels, ref spatial @ ..], &[filters, depth, ref kernel @ ..]) = (x.dims, w.dims) else {
        return Err(wrong());
    };
    if groups == 0 || depth.checked_mul(groups) != Some(channels) || filters % groups != 0 {
        return Err(wrong());
    }
    x.check("x")?;
    w.check(filters, "w")?;
    let windows = Windows::new(window, spatial, kernel, false)?;
    let dims: Vec<usize> = [batches, filters].into_iter().chain(windows.out.iter().copied()).collect();
    let mut values = vec![0i32; shape::count(&dims, "the result")?];
    let steps = x.steps();
    let (in_plane, in_kernel) = (shape::count(spatial, "x")?, shape::count(kernel, "w")?);
    let positions = shape::count(&windows.out, "the result")?;
    for position in 0..positions {
        let taps = windows.taps(position);
        for (plane, value) in values.iter_mut().skip(position).step_by(positions).enumerate() {
            let (batch, filter) = (plane / filters, plane % filters);
            let first = batch * channels + filter / (filters / groups) * depth;
            let zero = w.zero_point(filter);
            for c in 0..depth {
                let x = &steps[(first + c) * in_plane..];
                let w = &w.codes[(filter * depth + c) * in_kernel..];
                let term = |&(k, at): &(usize, usize)| x[at].wrapping_mul(w[k].wrapping_sub(zero));
                *value = taps.iter().map(term).fold(*value, i32::wrapping_add);
            }
        }
    }
    Ok(Computed { values, dims })
}

/// `QLinearConv`: the sum of [`conv_integer`] plus the bias, times `(s_x * s_w) / s_y`, rounded, then the zero point.
///
/// The bias, if there is one, has M codes of 32 bits under the scale `s_x * s_w`.
pub fn qlinear_conv(
    x: Codes,
    w: Weight,
    bias: Option<&[i32]>,
    window: Window,
    groups: usize,
    y: QParams,
) -> Result<Computed<i32>> {
    let out = Output::new(y)?;
    let sums = conv_integer(x, w, window, groups)?;
    let (filters, plane) = (sums.dims[1], sums.dims[2..].iter().product::<usize>());
    if let Some(bias) = bias.filter(|b| b.len() != filters) {
        return Err(Error::malformed(format!("bias has {} elements, the weight has {filters} filters", bias.len())));
    }
    let code = |(i, &sum): (usize, &i32)| {
        let filter = i / plane % filters;
        let sum = sum.wrapping_add(bias.map_or(0, |b| b[filter]));
        out.round_then_add(sum as f32 * (x.params.scale * w.scale(filter) / y.scale))
    };
    Ok(Computed { values: sums.values.iter().enumerate().map(code).collect(), dims: sums.dims })
}
