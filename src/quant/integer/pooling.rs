//! Averages: `QLinearAveragePool`, `QLinearGlobalAveragePool`.

use super::{
    Codes, Computed, Output, shape,
    window::{Window, Windows},
};
use crate::{
    error::{Error, Result},
    quant::{arith::dequantize_one, params::QParams},
};

/// The attributes of `QLinearAveragePool`.
#[derive(Debug, Clone, Copy)]
pub struct Pool<'a> {
    /// The shape of the window.
    pub kernel: &'a [usize],
    /// How it moves.
    pub window: Window<'a>,
    /// A last window that is cut off by the end counts, too.
    pub ceil_mode: bool,
    /// Each window is divided by its whole size, even where it is cut off by the end.
    pub count_include_pad: bool,
}

/// `QLinearAveragePool`: the elements of a window dequantized, added one after the other in `f32`, divided by their
/// number, divided by the output's scale; then the zero point is added and the sum rounded.
///
/// A window without padding that is as large as the spatial dims is computed as [`qlinear_global_average_pool`], in
/// integers.
///
/// `x` is `[N, C, …]`; the result has the same N and C.
pub fn qlinear_average_pool(x: Codes, pool: Pool, y: QParams) -> Result<Computed<i32>> {
    let out = Output::new(y)?;
    let (planes, spatial) = planes(&x)?;
    let windows = Windows::new(pool.window, spatial, pool.kernel, pool.ceil_mode)?;
    if pool.kernel == spatial && pool.window.pads.iter().all(|&p| p == 0) {
        return qlinear_global_average_pool(x, y);
    }
    let mut dims = x.dims[..2].to_vec();
    dims.extend(&windows.out);
    let mut values = vec![0; shape::count(&dims, "the result")?];
    let real: Vec<f32> = x.codes.iter().map(|&c| dequantize_one(c, x.params)).collect();
    let (plane, positions) = (real.len() / planes.max(1), values.len() / planes.max(1));
    let whole: usize = pool.kernel.iter().product();
    for position in 0..positions {
        let taps = windows.taps(position);
        let count = if pool.count_include_pad { whole } else { taps.len() };
        for (i, value) in values.iter_mut().skip(position).step_by(positions).enumerate() {
            let sum = taps.iter().fold(0f32, |sum, &(_, at)| sum + real[i * plane + at]);
            *value = out.add_then_round(sum / count as f32 / y.scale);
        }
    }
    Ok(Computed { values, dims })
}

/// `QLinearGlobalAveragePool`: the exact sum of `x - zero_point` over all spatial dims, times `s_x / (s_y * count)`,
/// rounded, then the zero point.
///
/// `x` is `[N, C, …]`; the result has the same N and C and ones behind. Error: that scale is below 2^-32 or not below
/// 256, which the kernel refuses when it runs.
pub fn qlinear_global_average_pool(x: Codes, y: QParams) -> Result<Computed<i32>> {
    let out = Output::new(y)?;
    let (planes, spatial) = planes(&x)?;
    let plane = shape::count(spatial, "x")?;
    let scale = mean_scale(x.params.scale, y.scale, plane)?;
    let steps = x.steps();
    let code = |i: usize| {
        let sum = steps[i * plane..][..plane].iter().copied().fold(0, i32::wrapping_add);
        out.round_then_add(sum as f32 * scale)
    };
    let dims = x.dims.iter().enumerate().map(|(i, &d)| if i < 2 { d } else { 1 }).collect();
    Ok(Computed { values: (0..planes).map(code).collect(), dims })
}

/// Steps of the output for a step of the sum of `count` codes, by which [`qlinear_global_average_pool`] multiplies. Error:
/// the kernel refuses it.
pub fn mean_scale(x: f32, y: f32, count: usize) -> Result<f32> {
    let scale = x / (y * count as f32);
    match (1.0 / 4_294_967_296.0..256.0).contains(&scale) {
        true => Ok(scale),
        false => Err(Error::unsupported(format!(
            "an average over {count} elements from scale {x} to scale {y}: {scale} steps of the output a step of the sum, \
             which must be from 2^-32 to below 256"
        ))
        .help("give the output a scale nearer to that of the input")),
    }
}

/// N * C, and the spatial dims.
fn planes<'a>(x: &Codes<'a>) -> Result<(usize, &'a [usize])> {
    x.check("x")?;
    match x.dims {
        [n, c, spatial @ ..] => Ok((shape::count(&[*n, *c], "x")?, spatial)),
        dims => Err(Error::malformed(format!("a pooling over {dims:?}, which has no spatial dims"))),
    }
}
