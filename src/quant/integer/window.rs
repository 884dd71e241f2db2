//! Windows that slide over the spatial dims of a tensor `[N, C, …]`.

use super::shape;
use crate::error::{Error, Result};

/// How a window moves. All lists are for the spatial dims, in order; `auto_pad` must have been resolved.
#[derive(Debug, Clone, Copy)]
pub struct Window<'a> {
    /// Steps between neighbouring windows.
    pub strides: &'a [usize],
    /// Steps between neighbours inside a window.
    pub dilations: &'a [usize],
    /// Elements added before each dim, then those added behind each.
    pub pads: &'a [usize],
}

/// A window over given dims.
pub struct Windows<'a> {
    window: Window<'a>,
    dims: &'a [usize],
    kernel: &'a [usize],
    /// The spatial dims of the result.
    pub out: Vec<usize>,
}

/// Elements that one window covers: the index inside the window, and the index inside the spatial dims.
pub type Taps = Vec<(usize, usize)>;

impl<'a> Windows<'a> {
    /// Windows of the shape `kernel` over the spatial `dims`. With `ceil` a last window that is cut off by the end
    /// counts too, if it begins before the padding behind.
    pub fn new(window: Window<'a>, dims: &'a [usize], kernel: &'a [usize], ceil: bool) -> Result<Self> {
        let Window { strides, dilations, pads } = window;
        let rank = dims.len();
        let lengths = [kernel.len(), strides.len(), dilations.len()];
        if lengths.iter().any(|&l| l != rank) || pads.len() != 2 * rank {
            return Err(Error::malformed(format!(
                "a window {kernel:?} with strides {strides:?}, dilations {dilations:?} and pads {pads:?} over {rank} dims"
            )));
        }
        let along = |i: usize| -> Option<usize> {
            let reach = kernel[i].checked_sub(1)?.checked_mul(dilations[i])?.checked_add(1)?;
            let padded = dims[i].checked_add(pads[i])?.checked_add(pads[rank + i])?;
            let room = padded.checked_sub(reach)?;
            let steps = if ceil {
                room.checked_add(strides[i])?.checked_sub(1)?.checked_div(strides[i])?
            } else {
                room.checked_div(strides[i])?
            };
            let starts_behind = ceil && steps > 0 && steps.checked_mul(strides[i])? >= dims[i] + pads[i];
            Some(steps + 1 - usize::from(starts_behind))
        };
        let out: Option<Vec<usize>> = (0..rank).map(along).collect();
        let out = out.ok_or_else(|| {
            Error::malformed(format!(
                "a window {kernel:?} with strides {strides:?} and pads {pads:?} does not fit {dims:?}"
            ))
        })?;
        shape::count(&out, "the result")?;
        Ok(Self { window, dims, kernel, out })
    }

    /// What the window number `position` covers, padding left out, the last dim running fastest.
    pub fn taps(&self, position: usize) -> Taps {
        let mut starts = vec![0; self.out.len()];
        let mut rest = position;
        for (start, (&out, &stride)) in starts.iter_mut().zip(self.out.iter().zip(self.window.strides)).rev() {
            *start = rest % out * stride;
            rest /= out;
        }
        let mut taps = vec![(0, 0)];
        for (i, &start) in starts.iter().enumerate() {
            let (kernel, dim) = (self.kernel[i], self.dims[i]);
            let inside = |k: usize| {
                let at = (start + k * self.window.dilations[i]).checked_sub(self.window.pads[i])?;
                (at < dim).then_some((k, at))
            };
            let along: Taps = (0..kernel).filter_map(inside).collect();
            taps = taps
                .iter()
                .flat_map(|&(k, at)| along.iter().map(move |&(l, a)| (k * kernel + l, at * dim + a)))
                .collect();
        }
        taps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_leave_padding_out() {
        let window = Window { strides: &[2, 1], dilations: &[1, 2], pads: &[1, 0, 0, 2] };
        let w = Windows::new(window, &[3, 4], &[2, 2], false).unwrap();
        assert_eq!(w.out, [2, 4]);
        assert_eq!(w.taps(0), [(2, 0), (3, 2)]);
        assert_eq!(w.taps(7), [(0, 7), (2, 11)]);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let window = |strides| Window { strides, dilations: &[1], pads: &[0, 0] };
        assert!(Windows::new(window(&[1]), &[3], &[4], false).is_err());
        assert!(Windows::new(window(&[0]), &[3], &[2], false).is_err());
        assert!(Windows::new(window(&[0]), &[3], &[2], true).is_err());
        assert!(Windows::new(window(&[1, 1]), &[3], &[2], false).is_err());
        assert!(Windows::new(window(&[1]), &[3], &[0], false).is_err());
        assert!(Windows::new(window(&[usize::MAX]), &[usize::MAX], &[1], true).is_err());
    }
}
